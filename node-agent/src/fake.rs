//! A kernel for tests of plans: it models what tests against the real one have shown, and can refuse or "crash" at any
//! call.
//!
//! | modelled | shown by (kernel/tests) |
//! |---|---|
//! | a load is there whole or not at all; a crash leaves `<load>~` | `loading::a_verifier_rejection_names_the_line_and_leaves_nothing` |
//! | replacing keeps the link and needs the old program's id | `lifecycle::a_replacement_loses_to_somebody_elses_program` |
//! | one XDP link per interface | `lifecycle::a_second_xdp_program_is_told_who_holds_the_interface` |
//! | a link whose target went is there, but not alive | `lifecycle::a_link_whose_interface_went_is_not_alive` |

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use skep_kernel::hook::{Hook, Target};
use skep_kernel::seam::{
    Kernel, LoadOutcome, LoadRequest, Observed, ObservedLink, ObservedLoad, ObservedMap, ObservedProgram, ProgramAt,
};
use skep_kernel::{KernelError, error::Holder};
use skep_object::kind::Kind;

/// What goes wrong at one call that changes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call is refused.
    Refuse,
    /// The process dies before it.
    CrashBefore,
    /// The process dies in or after it.
    CrashAfter,
}

#[derive(Default)]
struct State {
    observed: Observed,
    /// Link name to hook.
    hooks: BTreeMap<String, Hook>,
    gone: BTreeSet<String>,
    next_id: u32,
    /// Calls until the fault.
    fault: Option<(u32, Fault)>,
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

impl Fake {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// The fault strikes at the `calls`-th change from now.
    pub fn strike(&self, calls: u32, fault: Fault) {
        self.lock().fault = Some((calls, fault));
    }
    /// A new process.
    pub fn restart(&self) {
        let mut state = self.lock();
        (state.crashed, state.fault) = (false, None);
    }
    /// From now on these links must hold a program of a load that is there.
    pub fn guard(&self, links: BTreeSet<String>) {
        self.lock().guarded = links;
    }
    /// What broke, if something did.
    pub fn broken(&self) -> Option<String> {
        self.lock().broken.clone()
    }
    /// The target of a link goes away.
    pub fn sever(&self, link: &str) {
        let mut state = self.lock();
        state.guarded.remove(link);
        if let Some(link) = state.observed.links.get_mut(link) {
            link.alive = false;
        }
    }
    /// The load that a link runs.
    pub fn load_of(&self, link: &str) -> Option<String> {
        let state = self.lock();
        let id = state.observed.links.get(link)?.program_id;
        state.observed.loads.iter().find(|(_, l)| l.programs.values().any(|p| p.id == id)).map(|(name, _)| name.clone())
    }

    fn change<T>(
        &self,
        what: &str,
        half: impl FnOnce(&mut State),
        change: impl FnOnce(&mut State) -> Result<T, KernelError>,
    ) -> Result<T, KernelError> {
        let mut state = self.lock();
        if state.crashed {
            return Err(refused("crashed"));
        }
        let strikes = match &mut state.fault {
            Some((0, fault)) => Some(*fault),
            Some((calls, _)) => {
                *calls -= 1;
                None
            }
            None => None,
        };
        if strikes.is_some() {
            state.fault = None;
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
        state.check(what);
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
            for variant in &request.variants {
                let id = state.id();
                let loaded = state.observed.loads.entry(load.to_owned()).or_default();
                loaded.programs.entry(variant.pin()).or_insert(ObservedProgram { id, tag: String::new() });
            }
            let id = state.id();
            let loaded: &mut ObservedLoad = state.observed.loads.entry(load.to_owned()).or_default();
            loaded.maps.entry("hits".into()).or_insert(ObservedMap { id, map_type: 2 });
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
                let target = hook.target.display();
                if state.gone.contains(&target) {
                    return Err(KernelError::TargetNotFound { target, why: "gone".into() });
                }
                if state.observed.links.contains_key(link) {
                    return Err(refused("a pin of that name exists"));
                }
                let same_place = |(name, other): (&String, &Hook)| {
                    hook.kind == Kind::Xdp && other.kind == Kind::Xdp && other.target == hook.target && name != link
                };
                if state.hooks.iter().any(same_place) {
                    return Err(KernelError::HookBusy {
                        target,
                        holder: Holder { program_id: 0, program_name: String::new() },
                    });
                }
                let id = state.id();
                state.observed.links.insert(link.to_owned(), ObservedLink { id, program_id, alive: true });
                state.hooks.insert(link.to_owned(), hook.clone());
                Ok(())
            },
        )
    }

    fn replace(&self, _: &str, link: &str, hook: &Hook, old: u32, program: &ProgramAt) -> Result<(), KernelError> {
        self.change(
            "replace",
            |_| (),
            |state| {
                let program_id = state.program(program)?;
                let Some(seen) = state.observed.links.get_mut(link) else { return Err(refused("no such link")) };
                if !seen.alive {
                    return Err(KernelError::TargetNotFound { target: hook.target.display(), why: "gone".into() });
                }
                if seen.program_id != old {
                    return Err(refused("another program is there"));
                }
                seen.program_id = program_id;
                Ok(())
            },
        )
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

    fn remove_load(&self, _: &str, load: &str) -> Result<(), KernelError> {
        self.change(
            "remove_load",
            |_| (),
            |state| {
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

    fn remove_program(&self, _: &str) -> Result<(), KernelError> {
        self.change(
            "remove_program",
            |_| (),
            |state| {
                state.observed = Observed::default();
                state.hooks.clear();
                Ok(())
            },
        )
    }
}

/// An interface by number.
pub fn interface(index: u32) -> Target {
    Target::Interface { netns: "/n".into(), cookie: 1, ifindex: index, name: format!("eth{index}") }
}
