//! What must happen so that what is there becomes what is wanted: a set difference on names and liveness.
//!
//! **Guarantees.** Pure. A plan made from a state that is right is empty. No order of failures or crashes between two
//! actions leaves a hook empty that the wanted revision and the running one share: the new load is complete before any
//! link moves, links move by replacement, and nothing is taken away before all of them have moved. The one exception is
//! a change of XDP mode on one interface: the kernel takes one program per interface, so the old link goes first.

use std::collections::{BTreeMap, BTreeSet};

use skep_kernel::hook::Hook;
use skep_kernel::seam::{Observed, ObservedLink, ProgramAt, Variant};
use skep_object::kind::Kind;

/// The state of one program that a node should have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The name of the load.
    pub load: String,
    pub variants: BTreeSet<Variant>,
    /// By link name.
    pub links: BTreeMap<String, WantedLink>,
    /// Links that stay as they are because it is not known whether they are wanted.
    pub spare: bool,
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
    },
    Detach {
        link: String,
    },
    /// Takes a single program of the wanted load away.
    Unload {
        program: ProgramAt,
    },
    RemoveLoad {
        load: String,
    },
}

/// Plans for a program that is wanted.
pub fn plan(wanted: &Wanted, observed: &Observed) -> Vec<Action> {
    let mut actions: Vec<Action> = observed.staged.iter().map(|s| Action::Discard { staged: s.clone() }).collect();
    let present = observed.loads.get(&wanted.load);
    let missing = wanted.variants.iter().any(|v| present.is_none_or(|l| !l.programs.contains_key(&v.pin())));
    if missing || present.is_none() {
        actions.push(Action::Load { load: wanted.load.clone() });
    }

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
                dead.push(Action::Detach { link: name.clone() });
                attach.push(Action::Attach { link: name.clone(), hook: link.hook.clone(), program });
            }
            None => attach.push(Action::Attach { link: name.clone(), hook: link.hook.clone(), program }),
        }
    }
    actions.extend(moved_already(&settled, &replace, observed));
    actions.extend(replace);
    let spared = |seen: &ObservedLink| wanted.spare && seen.alive;
    let unwanted: Vec<Action> = observed
        .links
        .iter()
        .filter(|(name, seen)| !wanted.links.contains_key(*name) && !spared(seen))
        .map(|(name, _)| Action::Detach { link: name.clone() })
        .collect();
    actions.extend(dead);
    // One XDP program fits on an interface: what changes its mode must leave before it can come back.
    if attach.iter().any(|a| matches!(a, Action::Attach { hook, .. } if hook.kind == Kind::Xdp)) {
        actions.extend(unwanted);
        actions.extend(attach);
    } else {
        actions.extend(attach);
        actions.extend(unwanted);
    }
    actions.extend(stale_programs(wanted, observed));
    let in_use = |load: &str| wanted.spare && observed.links.values().any(|l| l.alive && holds(observed, load, l));
    for load in observed.loads.keys().filter(|l| **l != wanted.load && !in_use(l)) {
        actions.push(Action::RemoveLoad { load: load.clone() });
    }
    actions
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
    let named: BTreeSet<&str> = wanted.variants.iter().map(|v| v.function.as_str()).collect();
    load.programs
        .keys()
        .filter(|pin| {
            !pins.contains(*pin) && pin.rsplit_once('+').is_some_and(|(function, _)| named.contains(function))
        })
        .map(|pin| Action::Unload { program: ProgramAt { load: wanted.load.clone(), pin: pin.clone() } })
        .collect()
}
