//! The one place that changes the kernel: runs a plan's actions, and undoes what must not stay half done.
//!
//! **Guarantees.** Loading is all or nothing, and so is the move of the links that ran an older load: when one cannot
//! move, those that did go back, and the new load goes; so too when a function that ran can be on no hook of the new load.
//! Any other new target that fails is a failure of that target alone. A target that vanished is none.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use skep_kernel::KernelError;
use skep_kernel::seam::{Kernel, LoadOutcome, LoadRequest, ProgramAt, Settled};

use crate::plan::{Action, Former, function_of};

/// What came of a plan.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The failure that stopped the plan; the older load, if there was one, still runs.
    pub failure: Option<KernelError>,
    /// Targets that could not be attached, by link name.
    pub targets: Vec<(String, KernelError)>,
    pub load: LoadOutcome,
    /// What was brought over from kept maps of another size.
    pub settled: BTreeMap<String, Settled>,
    /// How long hooks were empty whose way of updating has a gap.
    pub gaps: Vec<(String, Duration)>,
    /// Actions that were carried out.
    pub done: usize,
}

/// A load that an earlier part of the same plan made.
#[derive(Debug)]
pub struct Begun {
    pub load: String,
    pub outcome: LoadOutcome,
}

/// Runs a plan. `begun`: what an earlier part of it loaded, which is undone with the rest.
pub fn execute(
    kernel: &dyn Kernel,
    uid: &str,
    request: &LoadRequest,
    gates: &BTreeMap<String, Vec<u64>>,
    plan: &[Action],
    begun: Option<Begun>,
) -> Outcome {
    let (loaded, load) = begun.map(|begun| (Some(begun.load), begun.outcome)).unwrap_or_default();
    let mut run = Run {
        plan,
        kernel,
        uid,
        request,
        gates,
        outcome: Outcome { load, ..Outcome::default() },
        moved: Vec::new(),
        kept: BTreeSet::new(),
        made: BTreeSet::new(),
        failed: BTreeMap::new(),
        left: BTreeMap::new(),
        attached: Vec::new(),
        formers: Vec::new(),
        loaded,
    };
    for action in plan {
        if let Err(failure) = run.step(action) {
            run.undo();
            run.outcome.failure = Some(failure);
            break;
        }
        run.outcome.done += 1;
    }
    run.outcome
}

struct Run<'a> {
    plan: &'a [Action],
    kernel: &'a dyn Kernel,
    uid: &'a str,
    request: &'a LoadRequest,
    gates: &'a BTreeMap<String, Vec<u64>>,
    outcome: Outcome,
    /// Links that run the new load, to be taken back while nothing of the old is gone.
    moved: Vec<&'a Action>,
    /// Functions whose old links stay: what they run is not to be forgotten.
    kept: BTreeSet<&'a String>,
    /// Functions of which a link was made, and of which one could not be, with the link.
    made: BTreeSet<String>,
    failed: BTreeMap<String, &'a str>,
    /// When links were taken away, by name.
    left: BTreeMap<&'a str, Instant>,
    /// Links that were made, by name, and those that left for one of them.
    attached: Vec<&'a str>,
    formers: Vec<&'a Former>,
    loaded: Option<String>,
}

impl<'a> Run<'a> {
    fn step(&mut self, action: &'a Action) -> Result<(), KernelError> {
        match action {
            Action::Discard { staged } => self.kernel.discard(self.uid, staged),
            Action::Load { load } => {
                let existed = self.kernel.observe(self.uid)?.loads.contains_key(load);
                let LoadOutcome { reset, resized } = self.kernel.load(self.uid, load, self.request)?;
                self.outcome.load.reset.extend(reset);
                self.outcome.load.resized.extend(resized);
                if !existed {
                    self.loaded = Some(load.clone());
                }
                self.open_gates(load)
            }
            Action::Replace { link, hook, old, to, .. } => {
                match self.kernel.replace(self.uid, link, hook, *old, to) {
                    Ok(gap) => {
                        let gap = gap.map(|gap| (format!("{} on {}", hook.kind, hook.target.display()), gap));
                        self.outcome.gaps.extend(gap);
                        self.moved.push(action);
                        Ok(())
                    }
                    // It vanished: no failure, and nothing to move. The next pass finds it dead.
                    Err(KernelError::TargetNotFound { .. }) => Ok(()),
                    Err(e) => Err(e),
                }
            }
            Action::Moved { .. } => {
                self.moved.push(action);
                Ok(())
            }
            Action::Attach { link, hook, program, instead_of } => {
                match self.kernel.attach(self.uid, link, hook, program) {
                    Ok(()) => {
                        self.attached.push(link);
                        self.made.extend(function_of(&program.pin));
                        let left = instead_of.as_ref().and_then(|former| self.left.get(former.link.as_str()));
                        let gap =
                            left.map(|left| (format!("{} on {}", hook.kind, hook.target.display()), left.elapsed()));
                        self.outcome.gaps.extend(gap);
                        self.formers.extend(instead_of.as_deref());
                    }
                    Err(e) => {
                        if let Some(former) = instead_of {
                            self.attach_again(former);
                        }
                        if instead_of.as_ref().is_some_and(|former| former.older) {
                            return Err(e);
                        }
                        self.outcome.targets.push((link.clone(), e));
                        self.failed.extend(function_of(&program.pin).map(|function| (function, link.as_str())));
                    }
                }
                Ok(())
            }
            Action::Detach { .. } if let Some(failed) = self.loses() => {
                let at = self.outcome.targets.iter().position(|(link, _)| link == failed);
                at.map_or(Ok(()), |at| Err(self.outcome.targets.swap_remove(at).1))
            }
            // What ran runs on as long as nothing came after it.
            Action::Detach { last: Some(last), .. } if self.fails(&last.function).is_some() => {
                self.kept.insert(&last.function);
                Ok(())
            }
            Action::Detach { link, .. } => {
                self.left.insert(link, Instant::now());
                self.kernel.detach(self.uid, link)
            }
            Action::Settle { load } => {
                let keep = self.request.keep.keys().cloned().collect();
                self.outcome.settled = self.kernel.settle(self.uid, load, &keep)?;
                // What follows only takes away what nobody uses: a failure there is no reason to go back.
                self.moved.clear();
                self.loaded = None;
                Ok(())
            }
            Action::Unload { program } if function_of(&program.pin).is_some_and(|of| self.kept.contains(&of)) => Ok(()),
            Action::Unload { program } => self.kernel.unload(self.uid, program),
            Action::RemoveLoad { load } => self.kernel.remove_load(self.uid, load),
        }
    }

    /// A link that failed, if that is why something that runs an older load would run nowhere: asked before the first of
    /// its links goes.
    fn loses(&self) -> Option<&'a str> {
        let first = self.failed.values().next().copied()?;
        let nowhere = self.made.is_empty() && self.moved.is_empty();
        self.plan.iter().find_map(|action| match action {
            // The new load may have other functions.
            Action::Detach { last: Some(last), .. } if last.older && nowhere => Some(first),
            Action::Detach { last: Some(last), .. } if last.older => self.fails(&last.function),
            _ => None,
        })
    }

    /// A link that failed of a function of which none could be made.
    fn fails(&self, function: &str) -> Option<&'a str> {
        self.failed.get(function).filter(|_| !self.made.contains(function)).copied()
    }

    fn attach_again(&self, former: &Former) {
        if let Former { link, again: Some((hook, program)), .. } = former
            && let Err(error) = self.kernel.attach(self.uid, link, hook, program)
        {
            tracing::warn!(uid = self.uid, %error, "what was there before is not there again");
        }
    }

    /// Before any link moves to the new load: its gates are shut when it is made.
    fn open_gates(&self, load: &str) -> Result<(), KernelError> {
        for variant in &self.request.variants {
            if let Some(gate) = &variant.attributes.gate
                && let Some(cgroups) = self.gates.get(gate)
            {
                self.kernel.set_gate(self.uid, load, gate, cgroups)?;
            }
        }
        Ok(())
    }

    /// Takes the moved links back, newest first; then the new load, unless something still runs it.
    fn undo(&mut self) {
        let mut clean = true;
        while let Some(action) = self.moved.pop() {
            let (link, hook, to, undo) = match action {
                Action::Replace { link, hook, to, undo, .. } => (link, hook, to, undo.as_ref()),
                Action::Moved { link, hook, to, undo } => (link, hook, to, Some(undo)),
                _ => continue,
            };
            let back = undo.and_then(|old| {
                // Of such a hook the old program is off for good; the next pass goes on to the new one.
                if hook.attaches_once() {
                    return None;
                }
                let now = self.program_id(to)?;
                self.kernel.replace(self.uid, link, hook, now, old).ok()
            });
            clean &= back.is_some();
        }
        if let (true, Some(load)) = (clean, &self.loaded) {
            // New targets of a load that goes: they would run on what nobody can find any more.
            let gone = self.attached.drain(..).all(|link| self.kernel.detach(self.uid, link).is_ok());
            if !gone {
                return;
            }
            self.formers.iter().filter(|former| former.older).for_each(|former| self.attach_again(former));
            // What cannot be removed now is removed by the next pass: it is not the wanted load then, or it is completed.
            let _ = self.kernel.remove_load(self.uid, load);
        }
    }

    fn program_id(&self, program: &ProgramAt) -> Option<u32> {
        let observed = self.kernel.observe(self.uid).ok()?;
        Some(observed.loads.get(&program.load)?.programs.get(&program.pin)?.id)
    }
}
