//! One program on this node: reconciled whenever what is wanted, or the node, or what was left, changes.
//!
//! **Guarantees.** Serial per program. Programs do not wait for each other, but for a bounded number of places where
//! blocking kernel work may go on.

use std::sync::Arc;
use std::time::Duration;

use skep_crds::Reason;
use skep_image::Auth;
use skep_kernel::Kernel;
use skep_proto::v1::{ProgramReport, State};
use tokio::sync::{Semaphore, watch};

use crate::backoff::{self, Backoff};
use crate::checks::{Checks, EVERY, SETTLE};
use crate::desired::{DesiredProgram, Store};
use crate::features::Features;
use crate::images::{Images, blocking};
use crate::neighbours::Neighbours;
use crate::pass::{Past, observe, reconcile};
use crate::removal;
use crate::reports::Reports;
use crate::view::NodeView;
use crate::watches::{Stir, Watches};

/// What all actors share.
pub struct Shared {
    pub kernel: Arc<dyn Kernel>,
    pub images: Images,
    pub reports: Reports,
    pub store: Store,
    pub neighbours: Neighbours,
    pub view: watch::Receiver<Arc<NodeView>>,
    /// Places for blocking kernel work.
    pub places: Arc<Semaphore>,
    pub features: Features,
    pub watches: Watches,
    pub checks: Checks,
    /// Counts the orders to look at everything.
    pub resyncs: watch::Receiver<u64>,
}

/// What an actor is told to bring about.
#[derive(Clone, Debug)]
pub struct Order {
    /// `None`: nothing of the program is to be left.
    pub program: Option<DesiredProgram>,
    pub auth: Auth,
    /// A newer version of the manifest that was refused: said in the report, while the older one runs on.
    pub refused: Option<(Reason, String)>,
}

/// Runs until the program is gone, or until the agent stops (the sender of orders is dropped).
pub async fn run(shared: Arc<Shared>, uid: String, mut orders: watch::Receiver<Order>) {
    let mut others = shared.neighbours.watch();
    let (mut view, mut resyncs) = (shared.view.clone(), shared.resyncs.clone());
    let stir = Arc::new(Stir::default());
    let mut backoff = Backoff::new(fastrand::f64);
    let mut past = Past::default();
    // Nothing that is wanted changed since the last pass: time has come, or something drifted.
    let mut look = false;
    loop {
        let order = orders.borrow_and_update().clone();
        let now = view.borrow_and_update().clone();
        let change = *others.borrow_and_update();
        resyncs.borrow_and_update();
        let mut retry = false;
        let again = match &order.program {
            None => match removal::remove(&shared, &uid).await {
                Ok(()) => {
                    shared.neighbours.remove(&uid);
                    shared.watches.forget(&uid);
                    shared.checks.forget(&uid);
                    shared.reports.gone(&uid);
                    trim(&shared).await;
                    return;
                }
                Err(e) => {
                    tracing::warn!(uid, error = %e, "removal failed; it is tried again");
                    shared.reports.removing(&uid, e.reason(), format!("removal failed, and is tried again: {e}"));
                    Some(backoff.wait())
                }
            },
            Some(desired) => {
                let mut report = reconcile(&shared, desired, &order.auth, now, &mut past, look).await;
                let next = next(&report);
                if let Some((reason, message)) = &order.refused {
                    report.set_state(State::Failed);
                    report.reason = reason.to_string();
                    report.message = message.clone();
                }
                shared.reports.put(report);
                if shared.neighbours.names_others(&uid) {
                    shared.neighbours.looked(&uid, change);
                }
                follow(&shared, &uid, &stir, &past).await;
                shared.checks.put(&uid, &past.seen, &stir);
                match next {
                    Next::Retry => {
                        retry = true;
                        Some(backoff.wait())
                    }
                    Next::Look => {
                        backoff.reset();
                        past.unheard.then_some(EVERY)
                    }
                    Next::Wait => past.unheard.then_some(EVERY),
                }
            }
        };
        let woken = tokio::select! {
            changed = orders.changed() => Woken::by(changed),
            changed = view.changed() => Woken::by(changed),
            changed = resyncs.changed() => Woken::by(changed),
            _ = others.changed(), if shared.neighbours.names_others(&uid) => Woken::Neighbours,
            () = stir.cgroups.notified() => Woken::Change,
            () = drifted(&shared, &uid, &stir, &past) => Woken::Look,
            () = after(again) => if retry { Woken::Retry } else { Woken::Look },
        };
        look = woken == Woken::Look;
        match woken {
            Woken::Stop => return,
            Woken::Change => backoff.reset(),
            // It may be of our own making: no reason to try again earlier than the backoff says the next time.
            Woken::Neighbours | Woken::Look | Woken::Retry => {}
        }
    }
}

/// What led to another pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Woken {
    /// The agent stops.
    Stop,
    /// What is wanted, or the node, is another.
    Change,
    Neighbours,
    /// What is there may be another.
    Look,
    Retry,
}

impl Woken {
    fn by(changed: Result<(), watch::error::RecvError>) -> Self {
        if changed.is_ok() { Woken::Change } else { Woken::Stop }
    }
}

/// A time to wait; `None` is for ever.
async fn after(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

/// Until somebody changed what the last pass left.
async fn drifted(shared: &Arc<Shared>, uid: &str, stir: &Stir, past: &Past) {
    loop {
        stir.pins.notified().await;
        // Who deletes one deletes several; also the least time between two passes for that.
        tokio::time::sleep(SETTLE).await;
        if observe(shared, uid).await != *past.seen {
            return;
        }
    }
}

/// Has the pins and the cgroups of a program watched.
async fn follow(shared: &Arc<Shared>, uid: &str, stir: &Arc<Stir>, past: &Past) {
    let (watching, uid, stir, cgroups) = (shared.clone(), uid.to_owned(), stir.clone(), past.cgroups.clone());
    if let Err(error) = blocking(move || watching.watches.follow(&uid, &stir, &cgroups)).await {
        tracing::warn!(%error, "watching");
    }
}

/// What follows a report when nothing is heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Another try, after the backoff.
    Retry,
    /// Only what differs leads to another pass; where nobody tells of it, time does.
    Look,
    /// The same would come of it: only what differs in the kernel leads to another pass.
    Wait,
}

/// Permanent reasons wait for a change, transient ones for time.
fn next(report: &ProgramReport) -> Next {
    let transient = |word: &str| word.parse().is_ok_and(backoff::is_worth_another_try);
    let mut failures = report.hooks.iter().flat_map(|h| &h.failures);
    match report.state() {
        State::Failed | State::Degraded | State::Updating | State::Unsupported => {
            let retry = transient(&report.reason) || failures.any(|f| transient(&f.reason));
            // Targets that are well are looked after.
            let look = report.hooks.iter().any(|h| h.targets > 0);
            if retry {
                Next::Retry
            } else if look {
                Next::Look
            } else {
                Next::Wait
            }
        }
        _ => Next::Look,
    }
}

/// Lets images go that no program wants, if the cache is too large. A cache that cannot be trimmed is no reason to fail.
pub(crate) async fn trim(shared: &Arc<Shared>) {
    let work = shared.clone();
    let trimmed = blocking(move || {
        // Reading what is wanted takes as long as there are programs; mostly nothing has to go.
        if !work.images.is_over().map_err(|e| e.to_string())? {
            return Ok(vec![]);
        }
        // A record that cannot be read may want any of them.
        let (wanted, broken) = work.store.load().map_err(|e| e.to_string())?;
        let all = wanted.iter().flat_map(|program| std::iter::once(program).chain(program.older.as_deref()));
        let wanted = all.filter_map(|program| program.digest.parse().ok()).collect();
        if broken.is_empty() { work.images.trim(&wanted).map_err(|e| e.to_string()) } else { Ok(vec![]) }
    });
    match trimmed.await {
        Ok(Ok(gone)) if gone.is_empty() => {}
        Ok(Ok(gone)) => tracing::info!(images = gone.len(), "removed from the image cache"),
        Ok(Err(error)) => tracing::warn!(error, "image cache"),
        Err(error) => tracing::warn!(%error, "image cache"),
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("store", &self.store).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_change_by_itself_is_not_tried_again() {
        let of = |state, reason: Reason, targets| {
            let hook = skep_proto::v1::HookReport { targets, ..Default::default() };
            let mut report = ProgramReport { reason: reason.to_string(), hooks: vec![hook], ..Default::default() };
            report.set_state(state);
            next(&report)
        };
        for reason in [Reason::VerifierRejected, Reason::ObjectInvalid, Reason::GlobalInvalid, Reason::AgentTooOld] {
            assert_eq!(of(State::Failed, reason, 0), Next::Wait, "{reason}");
        }
        assert_eq!(of(State::Unsupported, Reason::KernelUnsupported, 0), Next::Wait);
        for reason in [Reason::NodeFull, Reason::HookBusy, Reason::Timeout, Reason::ImageNotFound, Reason::LimitReached]
        {
            assert_eq!(of(State::Failed, reason, 0), Next::Retry, "{reason}");
        }
        assert_eq!(of(State::Degraded, Reason::KernelUnsupported, 1), Next::Look);
        assert_eq!(of(State::Ready, Reason::Ready, 1), Next::Look);
    }
}
