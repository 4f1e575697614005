//! A kernel for tests of plans: it models what tests against the real one have shown, can refuse or "crash" at any call,
//! and has traffic: after every call each live link counts once in its load's map.
//!
//! | modelled | shown by (kernel/tests) |
//! |---|---|
//! | a load is there whole or not at all; a crash leaves `<load>~` | `loading::a_verifier_rejection_names_the_line_and_leaves_nothing` |
//! | replacing keeps the link and needs the old program's id | `lifecycle::a_replacement_loses_to_somebody_elses_program` |
//! | one XDP link per interface, whoever holds it | `lifecycle::a_second_xdp_program_is_told_who_holds_the_interface` |
//! | a hook whose link lost its last reference comes free a moment later | `drift::a_hook_comes_free_a_moment_after_its_pin_went` |
//! | a link whose target went is there, but not alive; an update says so | `lifecycle::a_link_whose_interface_went_is_not_alive` |
//! | an interface that is made again has its number again, and another identity | `drift::an_interface_that_is_made_again_is_another_target` |
//! | a link detached by somebody else is there, and not alive | `drift::a_link_that_somebody_detached_is_not_alive` |
//! | a cgroup takes so many programs and no more | `drift::a_full_cgroup_says_so` |
//! | a netfilter link moves to the other of two priorities, if that is free | `netns::two_priorities_alternate_and_are_free_at_once` |
//! | a map pin that is deleted is made again with the same map | `drift::pins_that_were_deleted_come_back_with_the_same_objects` |
//! | contents move with a map's size, sums are exact, what was given up goes back | `kept::*` |

mod drift;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use skep_kernel::hook::{Hook, Target};
use skep_kernel::seam::{
    Kernel, LoadOutcome, LoadRequest, Observed, ObservedLink, ObservedLoad, ObservedMap, ObservedProgram, ProgramAt,
    Remain, Settled, Standing,
};
use skep_kernel::{KernelError, error::Holder};
use skep_object::kind::Kind;

pub use drift::Drift;

/// What goes wrong at one call that changes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The call is refused.
    Refuse,
    /// The process dies before it, or half way.
    CrashBefore,
    /// The process dies after it.
    CrashAfter,
}

/// The one map of every load.
pub const MAP: &str = "hits";
/// Programs of a kind on a cgroup, at most.
const CGROUP_LIMIT: usize = 2;

#[derive(Clone, Debug, Default)]
struct Contents {
    entries: u32,
    count: u64,
}

#[derive(Default)]
struct State {
    observed: Observed,
    /// Link name to hook.
    hooks: BTreeMap<String, Hook>,
    /// Hooks of other people's programs.
    foreign: Vec<Hook>,
    /// Hooks whose link went with its last reference, and for how many calls they are still taken.
    leaving: Vec<(Hook, u32)>,
    /// Contents of maps, by id.
    maps: BTreeMap<u32, Contents>,
    /// What was copied, by load: the base of its map.
    bases: BTreeMap<String, u64>,
    /// The map that a program uses, pinned or not.
    uses: BTreeMap<u32, u32>,
    counted: u64,
    next_id: u32,
    /// Calls until the fault; of one kind only, where it has a name.
    fault: Option<(Option<&'static str>, u32, Fault)>,
    struck: BTreeMap<(&'static str, Fault), u32>,
    crashed: bool,
    /// Links that must never be without a program.
    guarded: BTreeSet<String>,
    broken: Option<String>,
}

/// The fake.
#[derive(Default)]
pub struct Fake(Mutex<State>);

fn refused(what: &str) -> KernelError {
    KernelError::Io { what: what.to_owned(), source: io::Error::from_raw_os_error(libc::EINVAL) }
}

fn busy(hook: &Hook) -> KernelError {
    let holder = Holder { program_id: 0, program_name: String::new() };
    KernelError::HookBusy { target: hook.target.display(), holder }
}

fn same_place(a: &Hook, b: &Hook) -> bool {
    (a.kind, a.attach_type, &a.target) == (b.kind, b.attach_type, &b.target)
}

impl Fake {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// The fault strikes at the `calls`-th change from now, or at the `calls`-th of one kind.
    pub fn strike(&self, kind: Option<&'static str>, calls: u32, fault: Fault) {
        self.lock().fault = Some((kind, calls, fault));
    }
    /// A new process.
    pub fn restart(&self) {
        let mut state = self.lock();
        (state.crashed, state.fault) = (false, None);
    }
    /// Which calls were struck, and how often.
    pub fn struck(&self) -> BTreeMap<(&'static str, Fault), u32> {
        self.lock().struck.clone()
    }
    /// From now on these links must hold a program of a load that is there.
    pub fn guard(&self, links: BTreeSet<String>) {
        self.lock().guarded = links;
    }
    /// Links that are still watched.
    pub fn guarded(&self) -> BTreeSet<String> {
        self.lock().guarded.clone()
    }
    /// What broke, if something did.
    pub fn broken(&self) -> Option<String> {
        self.lock().broken.clone()
    }
    /// Somebody takes a hook, or lets all of his go.
    pub fn foreign(&self, hook: Option<Hook>) {
        let mut state = self.lock();
        match hook {
            Some(hook) if !state.hooks.values().any(|ours| same_place(ours, &hook)) => state.foreign.push(hook),
            Some(_) => {}
            None => state.foreign.clear(),
        }
    }
    /// An earlier process left a load half built.
    pub fn litter(&self) {
        self.lock().observed.staged.insert("l0~".into());
    }
    /// The load that a link runs.
    pub fn load_of(&self, link: &str) -> Option<String> {
        let state = self.lock();
        let id = state.observed.links.get(link)?.program_id;
        state.observed.loads.iter().find(|(_, l)| l.programs.values().any(|p| p.id == id)).map(|(name, _)| name.clone())
    }
    /// What the kept map holds, and all that was ever counted.
    pub fn counts(&self) -> (Option<u64>, u64) {
        let state = self.lock();
        let kept = state.observed.kept.get(MAP).and_then(|id| state.maps.get(id)).map(|map| map.count);
        (kept, state.counted)
    }

    /// Somebody does something that nobody tells the agent of.
    pub fn drift(&self, drift: Drift, random: &mut fastrand::Rng) {
        drift.befall(&mut self.lock(), random);
    }

    fn change<T>(
        &self,
        what: &'static str,
        half: impl FnOnce(&mut State),
        change: impl FnOnce(&mut State) -> Result<T, KernelError>,
    ) -> Result<T, KernelError> {
        let mut state = self.lock();
        if state.crashed {
            return Err(refused("crashed"));
        }
        let strikes = match &mut state.fault {
            Some((Some(kind), ..)) if *kind != what => None,
            Some((_, 0, fault)) => Some(*fault),
            Some((_, calls, _)) => {
                *calls -= 1;
                None
            }
            None => None,
        };
        if let Some(fault) = strikes {
            state.fault = None;
            *state.struck.entry((what, fault)).or_default() += 1;
        }
        let result = match strikes {
            Some(Fault::Refuse) => Err(refused(what)),
            Some(Fault::CrashBefore) => {
                half(&mut state);
                state.crashed = true;
                Err(refused("crashed"))
            }
            Some(Fault::CrashAfter) => {
                let _ = change(&mut state);
                state.crashed = true;
                Err(refused("crashed"))
            }
            None => change(&mut state),
        };
        state.leaving.iter_mut().for_each(|(_, calls)| *calls = calls.saturating_sub(1));
        state.leaving.retain(|(_, calls)| *calls > 0);
        state.check(what);
        state.traffic();
        result
    }
}

impl State {
    fn id(&mut self) -> u32 {
        self.next_id += 1;
        self.next_id
    }
    fn program(&self, at: &ProgramAt) -> Result<u32, KernelError> {
        let program = self.observed.loads.get(&at.load).and_then(|l| l.programs.get(&at.pin));
        program.map(|p| p.id).ok_or_else(|| refused("no such program"))
    }
    fn check(&mut self, after: &str) {
        for link in &self.guarded {
            let held = self.observed.links.get(link).is_some_and(|l| {
                l.alive && self.observed.loads.values().any(|load| load.programs.values().any(|p| p.id == l.program_id))
            });
            if !held && self.broken.is_none() {
                self.broken = Some(format!("link {link} is without a program after {after}"));
            }
        }
    }
    fn traffic(&mut self) {
        for link in self.observed.links.values().filter(|link| link.alive) {
            let map = self.uses.get(&link.program_id).and_then(|id| self.maps.get_mut(id));
            if let Some(map) = map {
                map.count += 1;
                self.counted += 1;
            }
        }
    }
    fn new_map(&mut self, entries: u32, count: u64) -> u32 {
        let id = self.id();
        self.maps.insert(id, Contents { entries, count });
        id
    }
    fn map_of(&self, load: &str) -> Option<u32> {
        self.observed.loads.get(load)?.maps.get(MAP).map(|map| map.id)
    }
    /// The kept map that a load gets: the one there is, or one that is filled from it.
    fn inherit(&mut self, load: &str, entries: u32) -> u32 {
        let kept = self.observed.kept.get(MAP).copied();
        let Some((id, old)) = kept.and_then(|id| Some((id, self.maps.get(&id)?.clone()))) else {
            return self.new_map(entries, 0);
        };
        if old.entries == entries {
            return id;
        }
        self.bases.insert(load.to_owned(), old.count);
        self.new_map(entries, old.count)
    }
    /// Adds to `to` what `from` counted more than the base knows.
    fn bring_over(&mut self, load: &str, from: u32, to: u32) {
        let now = self.maps.get(&from).map_or(0, |map| map.count);
        let Some(base) = self.bases.get_mut(load) else { return };
        let more = now - std::mem::replace(base, now);
        if let Some(map) = self.maps.get_mut(&to) {
            map.count += more;
        }
    }
    fn place_is_taken(&self, link: &str, hook: &Hook) -> Option<KernelError> {
        let ours = self.hooks.iter().filter(|(name, _)| *name != link).map(|(_, hook)| hook);
        let all = ours.chain(&self.foreign).chain(self.leaving.iter().map(|(hook, _)| hook));
        let there = all.filter(|other| same_place(other, hook)).count();
        match hook.kind {
            Kind::Xdp if there > 0 => Some(busy(hook)),
            Kind::CgroupSkb if there >= CGROUP_LIMIT => {
                Some(KernelError::LimitReached { what: hook.target.display(), limit: "full".into() })
            }
            // Two neighbouring priorities, of which a link has one.
            Kind::Netfilter if there > 1 => Some(busy(hook)),
            _ => None,
        }
    }
}

impl Kernel for Fake {
    fn programs(&self) -> Result<Vec<String>, KernelError> {
        Ok(vec!["uid".into()])
    }

    fn observe(&self, _: &str) -> Result<Observed, KernelError> {
        let state = self.lock();
        if state.crashed { Err(refused("crashed")) } else { Ok(state.observed.clone()) }
    }

    fn load(&self, _: &str, load: &str, request: &LoadRequest) -> Result<LoadOutcome, KernelError> {
        let staged = format!("{load}~");
        let half = |state: &mut State| {
            if !state.observed.loads.contains_key(load) {
                state.observed.staged.insert(staged);
            }
        };
        self.change("load", half, |state| {
            let entries = request.maps.first().map_or(1, |map| map.max_entries);
            let programs = state.observed.loads.get(load).map(|l| l.programs.clone()).unwrap_or_default();
            let known = programs.values().find_map(|program| state.uses.get(&program.id).copied());
            let map = match state.map_of(load).or(known) {
                Some(map) => map,
                None => state.inherit(load, entries),
            };
            for variant in &request.variants {
                let id = state.id();
                let loaded = state.observed.loads.entry(load.to_owned()).or_default();
                let program =
                    loaded.programs.entry(variant.pin()).or_insert(ObservedProgram { id, tag: String::new() });
                state.uses.insert(program.id, map);
            }
            let pending = state.bases.contains_key(load);
            let loaded: &mut ObservedLoad = state.observed.loads.entry(load.to_owned()).or_default();
            loaded.maps.insert(MAP.into(), ObservedMap { id: map, map_type: 2 });
            loaded.pending = pending;
            state.observed.kept.entry(MAP.into()).or_insert(map);
            Ok(LoadOutcome::default())
        })
    }

    fn set_gate(&self, _: &str, _: &str, _: &str, _: &[u64]) -> Result<(), KernelError> {
        Ok(())
    }

    fn attach(&self, _: &str, link: &str, hook: &Hook, program: &ProgramAt) -> Result<(), KernelError> {
        self.change(
            "attach",
            |_| (),
            |state| {
                let program_id = state.program(program)?;
                if state.observed.links.contains_key(link) {
                    return Err(refused("a pin of that name exists"));
                }
                if let Some(taken) = state.place_is_taken(link, hook) {
                    return Err(taken);
                }
                let id = state.id();
                let interface = match (hook.kind, &hook.target) {
                    (Kind::Xdp, Target::Interface { ifindex, .. }) => Some(*ifindex),
                    _ => None,
                };
                state.observed.links.insert(link.to_owned(), ObservedLink { id, program_id, alive: true, interface });
                state.hooks.insert(link.to_owned(), hook.clone());
                Ok(())
            },
        )
    }

    fn has_changed(&self, uid: &str, seen: &Observed) -> Result<bool, KernelError> {
        Ok(self.observe(uid)? != *seen)
    }

    fn programs_with(&self, _: &str, function: &str) -> Result<Vec<u32>, KernelError> {
        let state = self.lock();
        let programs = state.observed.loads.values().flat_map(|load| &load.programs);
        let with = programs.filter(|(pin, _)| pin.rsplit_once('+').is_some_and(|(of, _)| of == function));
        Ok(with.map(|(_, program)| program.id).collect())
    }

    fn replace(
        &self,
        _: &str,
        link: &str,
        hook: &Hook,
        old: u32,
        program: &ProgramAt,
    ) -> Result<Option<Duration>, KernelError> {
        self.change(
            "replace",
            |_| (),
            |state| {
                let program_id = state.program(program)?;
                if hook.kind == Kind::Netfilter
                    && let Some(taken) = state.place_is_taken(link, hook)
                {
                    return Err(taken);
                }
                let Some(seen) = state.observed.links.get_mut(link) else { return Err(refused("no such link")) };
                if !seen.alive {
                    return Err(KernelError::TargetNotFound { target: hook.target.display(), why: "gone".into() });
                }
                if seen.program_id != old {
                    return Err(refused("another program is there"));
                }
                seen.program_id = program_id;
                Ok(None)
            },
        )
    }

    fn standing(&self, _: &Hook, _: u32) -> Result<Standing, KernelError> {
        Ok(Standing::Right)
    }

    fn detach(&self, _: &str, link: &str) -> Result<(), KernelError> {
        self.change(
            "detach",
            |_| (),
            |state| {
                state.observed.links.remove(link);
                state.hooks.remove(link);
                Ok(())
            },
        )
    }

    fn settle(&self, _: &str, load: &str, _: &BTreeSet<String>) -> Result<BTreeMap<String, Settled>, KernelError> {
        // A crash on the way: brought over, and not published.
        let bring = |state: &mut State| {
            let (own, kept) = (state.map_of(load), state.observed.kept.get(MAP).copied());
            if let (Some(own), Some(kept)) = (own, kept)
                && own != kept
            {
                state.bring_over(load, kept, own);
            }
        };
        self.change("settle", bring, |state| {
            bring(state);
            let own = state.map_of(load).ok_or_else(|| refused("no such load"))?;
            state.observed.kept = [(MAP.to_owned(), own)].into();
            state.bases.remove(load);
            if let Some(load) = state.observed.loads.get_mut(load) {
                load.pending = false;
            }
            Ok(BTreeMap::new())
        })
    }

    fn remove_load(&self, _: &str, load: &str) -> Result<(), KernelError> {
        self.change(
            "remove_load",
            |_| (),
            |state| {
                let (own, kept) = (state.map_of(load), state.observed.kept.get(MAP).copied());
                if let (Some(own), Some(kept)) = (own, kept)
                    && own != kept
                {
                    state.bring_over(load, own, kept);
                }
                state.bases.remove(load);
                state.observed.loads.remove(load);
                Ok(())
            },
        )
    }

    fn unload(&self, _: &str, program: &ProgramAt) -> Result<(), KernelError> {
        self.change(
            "unload",
            |_| (),
            |state| {
                if let Some(load) = state.observed.loads.get_mut(&program.load) {
                    load.programs.remove(&program.pin);
                }
                Ok(())
            },
        )
    }

    fn discard(&self, _: &str, staged: &str) -> Result<(), KernelError> {
        self.change(
            "discard",
            |_| (),
            |state| {
                state.observed.staged.remove(staged);
                Ok(())
            },
        )
    }

    fn remains(&self, _: &Observed) -> Vec<Remain> {
        Vec::new()
    }

    fn remove_program(&self, _: &str) -> Result<(), KernelError> {
        self.change(
            "remove_program",
            |_| (),
            |state| {
                state.observed = Observed::default();
                state.hooks.clear();
                state.bases.clear();
                Ok(())
            },
        )
    }
}

/// An interface by number, made for the `generation`-th time.
pub fn interface(index: u32, generation: u64) -> Target {
    Target::Interface { netns: "/n".into(), cookie: generation, ifindex: index, name: format!("eth{index}") }
}
