//! What must happen so that what is there becomes what is wanted: a set difference on names and liveness.
//!
//! **Guarantees.** Pure. A plan made from a state that is right is empty. No order of failures or crashes between two
//! actions leaves a hook empty that the wanted revision and the running one share: the new load is complete before any
//! link moves, links move by replacement, and nothing is taken away before all of them have moved. The one exception is
//! a change of XDP mode on one interface: the kernel takes one program per interface, so the old link goes first.

use std::collections::{BTreeMap, BTreeSet};

use skep_kernel::hook::{Hook, Options, Target, XdpMode};
use skep_kernel::seam::{Observed, ObservedLink, ObservedLoad, ObservedMap, ProgramAt, Variant};
use skep_object::kind::Kind;

/// The state of one program that a node should have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The name of the load.
    pub load: String,
    pub variants: BTreeSet<Variant>,
    /// By link name.
    pub links: BTreeMap<String, WantedLink>,
    /// Maps whose contents outlive the load.
    pub keep: BTreeSet<String>,
    /// Maps that the load has.
    pub maps: BTreeSet<String>,
    /// Functions of which a program stays loaded only as long as its target is there.
    pub follows: BTreeSet<String>,
    /// Its programs were loaded just now, by the first half of this pass.
    pub begun: bool,
    /// Links that stay as they are because it is not known whether they are wanted.
    pub spare: bool,
    /// Functions whose links stay as well: of the targets that are named for them not one is there, which may be a slip.
    pub stay: BTreeSet<String>,
}

/// A function on a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedLink {
    pub function: String,
    pub hook: Hook,
    /// The pin of the program to run there.
    pub pin: String,
}

/// One step. Undoing is the executor's; what it needs is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Removes half-done work of an earlier run.
    Discard {
        staged: String,
    },
    /// Loads what is missing of the wanted load.
    Load {
        load: String,
    },
    /// Moves a link to the wanted load; `undo` is where it was, when that is one of ours.
    Replace {
        link: String,
        hook: Hook,
        old: u32,
        to: ProgramAt,
        undo: Option<ProgramAt>,
    },
    /// A link that an earlier run, cut short, moved already: nothing to do, but to take back with the others.
    Moved {
        link: String,
        hook: Hook,
        to: ProgramAt,
        undo: ProgramAt,
    },
    Attach {
        link: String,
        hook: Hook,
        program: ProgramAt,
        /// A link of ours that leaves the place first, since it fits only one: in between nothing is there.
        instead_of: Option<Box<Former>>,
    },
    Detach {
        link: String,
        /// What it runs, if that would run nowhere unless a wanted link of it can be made.
        last: Option<Last>,
    },
    /// Makes the load's maps the kept ones, with what older programs counted in maps of another size. The point of no
    /// return: what is left of older loads can go.
    Settle {
        load: String,
    },
    /// Takes a single program of the wanted load away.
    Unload {
        program: ProgramAt,
    },
    RemoveLoad {
        load: String,
    },
}

/// What runs on a link of a function that no wanted link has yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Last {
    pub function: String,
    /// Of an older load: it cannot stay beside the wanted one, which goes instead if it can be on no hook.
    pub older: bool,
}

/// A link that leaves so that another can come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Former {
    pub link: String,
    /// How it is made again if the other cannot be, where that is known.
    pub again: Option<(Hook, ProgramAt)>,
    /// It runs an older load: this is a move, and fails as those do.
    pub older: bool,
}

/// Plans for a program that is wanted.
pub fn plan(wanted: &Wanted, observed: &Observed) -> Vec<Action> {
    let superseded = is_superseded(wanted, observed);
    let present = observed.loads.get(&wanted.load).filter(|_| !superseded);
    let missing = present.is_none_or(|load| {
        let programs = wanted.variants.iter().all(|v| load.programs.contains_key(&v.pin()));
        !programs
            || !wanted.maps.iter().all(|map| load.maps.contains_key(map))
            || !load.shares.values().all(|pinned| *pinned)
    });
    let (mut attach, mut dead, mut replace, mut settled) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (name, link) in &wanted.links {
        let program = ProgramAt { load: wanted.load.clone(), pin: link.pin.clone() };
        match observed.links.get(name) {
            Some(seen) if seen.alive => {
                if present.and_then(|l| l.programs.get(&link.pin)).map(|p| p.id) == Some(seen.program_id) {
                    settled.push((name, link, program));
                } else {
                    replace.push(Action::Replace {
                        link: name.clone(),
                        hook: link.hook.clone(),
                        old: seen.program_id,
                        to: program,
                        undo: find_program(observed, seen),
                    });
                }
            }
            Some(_) => {
                dead.push(Action::Detach { link: name.clone(), last: None });
                attach.push(Action::Attach { link: name.clone(), hook: link.hook.clone(), program, instead_of: None });
            }
            None => attach.push(Action::Attach {
                link: name.clone(),
                hook: link.hook.clone(),
                program,
                instead_of: in_the_way(wanted, observed, link),
            }),
        }
    }
    // What the kernel attaches once was on its hook before, or will never be: it is loaded anew.
    let spent = attach.iter().filter_map(|action| spent(action, present)).filter(|_| !wanted.begun);
    let spent: Vec<Action> = spent.collect();
    let missing = missing || !spent.is_empty();
    // First of all what an earlier run moved: whatever is refused, it is taken back with the others.
    let mut actions = moved_already(&settled, &replace, observed);
    actions.extend(observed.staged.iter().map(|staged| Action::Discard { staged: staged.clone() }));
    if superseded {
        actions.push(Action::RemoveLoad { load: wanted.load.clone() });
    }
    actions.extend(spent);
    if missing {
        // The new load gets the kept maps: what was cut short there ends first.
        actions.extend(present.is_none().then(|| unfinished(wanted, observed)).flatten());
        actions.push(Action::Load { load: wanted.load.clone() });
    }
    actions.extend(replace);
    let stays = |seen: &ObservedLink| {
        let of = find_program(observed, seen).and_then(|at| function_of(&at.pin));
        seen.alive && of.is_some_and(|function| wanted.stay.contains(&function))
    };
    let spared = |seen: &ObservedLink| (wanted.spare && seen.alive) || stays(seen);
    let unwanted = observed.links.iter().filter(|(name, seen)| !wanted.links.contains_key(*name) && !spared(seen));
    let has_link = |function: &String| {
        let alive = |name: &String| observed.links.get(name).is_some_and(|seen| seen.alive);
        wanted.links.iter().any(|(name, link)| link.function == *function && alive(name))
    };
    let last = |seen: &ObservedLink| {
        let of = find_program(observed, seen).filter(|_| seen.alive)?;
        let function = function_of(&of.pin).filter(|function| !has_link(function))?;
        Some(Last { function, older: of.load != wanted.load })
    };
    let unwanted = unwanted.map(|(name, seen)| Action::Detach { link: name.clone(), last: last(seen) });
    // One XDP program fits on an interface: what changes its mode must leave before it can come back.
    let former = |action: &Action| match action {
        Action::Attach { instead_of: Some(former), .. } => Some(former.link.clone()),
        _ => None,
    };
    let formers: BTreeSet<String> = attach.iter().filter_map(former).collect();
    let (first, last): (Vec<Action>, Vec<Action>) =
        unwanted.partition(|action| matches!(action, Action::Detach { link, .. } if formers.contains(link)));
    actions.extend(dead);
    actions.extend(first);
    actions.extend(attach);
    actions.extend(last);
    // A program whose pin somebody deleted may be of any load.
    let of = |load: &str, link: &ObservedLink| holds(observed, load, link) || find_program(observed, link).is_none();
    let in_use = |load: &str| observed.links.values().any(|link| spared(link) && of(load, link));
    let older: Vec<&String> = observed.loads.keys().filter(|load| **load != wanted.load).collect();
    if (missing || !is_settled(wanted, observed, &wanted.load)) && !older.iter().any(|load| in_use(load)) {
        actions.push(Action::Settle { load: wanted.load.clone() });
    }
    actions.extend(stale_programs(wanted, observed));
    for load in older.into_iter().filter(|load| !in_use(load)) {
        actions.push(Action::RemoveLoad { load: load.clone() });
    }
    actions
}

/// An XDP link that is not wanted, on an interface on which another is.
fn in_the_way(wanted: &Wanted, observed: &Observed, new: &WantedLink) -> Option<Box<Former>> {
    let hook = &new.hook;
    let Target::Interface { ifindex, .. } = &hook.target else { return None };
    let mut unwanted = observed.links.iter().filter(|(name, seen)| seen.alive && !wanted.links.contains_key(*name));
    let (link, seen) = unwanted.find(|(_, seen)| hook.kind == Kind::Xdp && seen.interface == Some(*ifindex))?;
    let again = find_program(observed, seen).and_then(|at| {
        // A name tells what it was made of only to who guesses it.
        let modes = [XdpMode::Auto, XdpMode::Native, XdpMode::Generic];
        let mut hooks = modes.map(|xdp_mode| {
            let options = Options { xdp_mode, ..hook.options.clone() };
            Hook { options, ..hook.clone() }
        });
        let function = function_of(&at.pin)?;
        let known = hooks.iter_mut().find(|hook| hook.link_name(&function) == *link)?;
        Some((known.clone(), at))
    });
    let older = find_program(observed, seen).is_some_and(|at| at.load != wanted.load);
    Some(Box::new(Former { link: link.clone(), again, older }))
}

/// The function of a program's pin.
pub fn function_of(pin: &str) -> Option<String> {
    pin.rsplit_once('+').map(|(function, _)| function.to_owned())
}

/// Takes a program away that is there already, for a hook to which the kernel attaches a program once.
fn spent(attach: &Action, present: Option<&ObservedLoad>) -> Option<Action> {
    let Action::Attach { hook, program, .. } = attach else { return None };
    let used = hook.attaches_once() && present?.programs.contains_key(&program.pin);
    used.then(|| Action::Unload { program: program.clone() })
}

/// Links on the wanted load while others still run an older one that has their program too.
fn moved_already(
    settled: &[(&String, &WantedLink, ProgramAt)],
    replace: &[Action],
    observed: &Observed,
) -> Vec<Action> {
    let older = replace.iter().find_map(|a| match a {
        Action::Replace { undo: Some(undo), to, .. } if undo.load != to.load => Some(&undo.load),
        _ => None,
    });
    let Some((older, seen)) = older.and_then(|load| observed.loads.get_key_value(load)) else { return Vec::new() };
    let back = |pin: &String| ProgramAt { load: older.clone(), pin: pin.clone() };
    settled
        .iter()
        .filter(|(_, link, _)| seen.programs.contains_key(&link.pin))
        .map(|(name, link, to)| Action::Moved {
            link: (*name).clone(),
            hook: link.hook.clone(),
            to: to.clone(),
            undo: back(&link.pin),
        })
        .collect()
}

/// A load that was left for another one has maps that are not the kept ones any more: nobody who comes back to it may
/// count in them.
fn is_superseded(wanted: &Wanted, observed: &Observed) -> bool {
    let Some(load) = observed.loads.get(&wanted.load).filter(|load| !load.pending) else { return false };
    let running = running(observed).into_iter().max_by_key(|(_, links)| *links);
    let in_running = |name: &String| Some(observed.loads[running.as_ref()?.0].maps.get(name)?.id);
    let kept = |name: &String| observed.kept.get(name).copied().or_else(|| in_running(name));
    let another = |(name, map): (&String, &ObservedMap)| kept(name).is_some_and(|kept| kept != map.id);
    let runs = || observed.links.values().any(|link| link.alive && holds(observed, &wanted.load, link));
    // Of a map whose pin is gone it cannot be told.
    let unknown = wanted.maps.intersection(&wanted.keep).any(|map| !load.maps.contains_key(map));
    (unknown || load.maps.iter().filter(|(name, _)| wanted.keep.contains(*name)).any(another)) && !runs()
}

/// Settling an older load, if it runs and was not settled. When links run several, only where nothing is kept: another
/// load's programs may still count in what is kept now.
fn unfinished(wanted: &Wanted, observed: &Observed) -> Option<Action> {
    let running = running(observed);
    let most = running.iter().max_by_key(|(_, links)| **links).map(|(load, _)| *load);
    // Where nothing runs, whatever was complete.
    let complete = || observed.loads.iter().find(|(_, load)| !load.pending).map(|(name, _)| name);
    let load = most.or_else(complete)?;
    let kept = observed.loads[load].maps.keys().filter(|map| wanted.keep.contains(*map));
    let nothing_kept = kept.into_iter().any(|map| !observed.kept.contains_key(map));
    // A program whose pin somebody deleted may be an older load's.
    let unknown = observed.links.values().any(|link| link.alive && find_program(observed, link).is_none());
    let alone = running.len() == 1 && !unknown;
    let due = !is_settled(wanted, observed, load) && (alone || nothing_kept);
    due.then(|| Action::Settle { load: load.clone() })
}

/// How many live links run each load.
fn running(observed: &Observed) -> BTreeMap<&String, usize> {
    let mut running: BTreeMap<&String, usize> = BTreeMap::new();
    for link in observed.links.values().filter(|link| link.alive) {
        if let Some(load) = observed.loads.keys().find(|load| holds(observed, load, link)) {
            *running.entry(load).or_default() += 1;
        }
    }
    running
}

/// The kept maps are those of a load, and none else is kept.
fn is_settled(wanted: &Wanted, observed: &Observed, load: &str) -> bool {
    let Some(load) = observed.loads.get(load) else { return false };
    let shown = |(name, map): (&String, &ObservedMap)| observed.kept.get(name) == Some(&map.id);
    let kept = load.maps.iter().filter(|(name, _)| wanted.keep.contains(*name));
    !load.pending && kept.into_iter().all(shown) && observed.kept.keys().all(|k| wanted.keep.contains(k))
}

fn holds(observed: &Observed, load: &str, link: &ObservedLink) -> bool {
    observed.loads.get(load).is_some_and(|l| l.programs.values().any(|p| p.id == link.program_id))
}

fn find_program(observed: &Observed, link: &ObservedLink) -> Option<ProgramAt> {
    observed.loads.iter().find_map(|(load, seen)| {
        let (pin, _) = seen.programs.iter().find(|(_, p)| p.id == link.program_id)?;
        Some(ProgramAt { load: load.clone(), pin: pin.clone() })
    })
}

/// Programs of the wanted load that were loaded for an attach point that is not wanted any more. Functions that the
/// spec does not name are there for program arrays, and stay.
fn stale_programs(wanted: &Wanted, observed: &Observed) -> Vec<Action> {
    let Some(load) = observed.loads.get(&wanted.load).filter(|_| !wanted.spare) else { return Vec::new() };
    let pins: BTreeSet<String> = wanted.variants.iter().map(Variant::pin).collect();
    let named = wanted.variants.iter().map(|v| v.function.as_str());
    let named: BTreeSet<&str> = named.chain(wanted.follows.iter().map(String::as_str)).collect();
    load.programs
        .keys()
        .filter(|pin| {
            !pins.contains(*pin) && pin.rsplit_once('+').is_some_and(|(function, _)| named.contains(function))
        })
        .map(|pin| Action::Unload { program: ProgramAt { load: wanted.load.clone(), pin: pin.clone() } })
        .collect()
}
