//! One program on this node: reconciled whenever what is wanted, or the node, changes; else every 30 s against drift.
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

use crate::backoff::Backoff;
use crate::desired::{DesiredProgram, Store};
use crate::error::ProgramError;
use crate::images::{Images, blocking};
use crate::neighbours::Neighbours;
use crate::pass::{Past, observe, reconcile};
use crate::removal;
use crate::reports::Reports;
use crate::view::NodeView;
use crate::watches::{Stir, Watches};

/// How often what is there is compared with what is wanted, when nothing tells of a change.
const DRIFT: Duration = Duration::from_secs(30);
/// How long after a sign of drift the kernel is asked; also the least time between two passes for that.
const SETTLE: Duration = Duration::from_millis(200);

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
    pub watches: Watches,
    /// Counts the changes of links after which what is there is to be compared.
    pub checks: watch::Receiver<u64>,
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
    let (mut view, mut checks, mut resyncs) = (shared.view.clone(), shared.checks.clone(), shared.resyncs.clone());
    let stir = Arc::new(Stir::default());
    let mut backoff = Backoff::new(fastrand::f64);
    let mut past = Past::default();
    loop {
        let order = orders.borrow_and_update().clone();
        let now = view.borrow_and_update().clone();
        others.borrow_and_update();
        resyncs.borrow_and_update();
        let again = match &order.program {
            None => match removal::remove(&shared, &uid).await {
                Ok(()) => {
                    shared.neighbours.remove(&uid);
                    shared.watches.forget(&uid);
                    shared.reports.gone(&uid);
                    trim(&shared).await;
                    return;
                }
                Err(e) => {
                    tracing::warn!(uid, error = %e, "removal failed; it is tried again");
                    backoff.wait()
                }
            },
            Some(desired) => {
                let mut report = reconcile(&shared, desired, &order.auth, now, &mut past).await;
                let retry = is_transient(&report);
                if let Some((reason, message)) = &order.refused {
                    report.set_state(State::Failed);
                    report.reason = reason.to_string();
                    report.message = message.clone();
                }
                shared.reports.put(report);
                follow(&shared, &uid, &stir, &past).await;
                if retry {
                    backoff.wait()
                } else {
                    backoff.reset();
                    DRIFT
                }
            }
        };
        tokio::select! {
            changed = orders.changed() => {
                if changed.is_err() {
                    return;
                }
                backoff.reset();
            }
            changed = view.changed() => {
                if changed.is_err() {
                    return;
                }
                backoff.reset();
            }
            _ = others.changed(), if shared.neighbours.names_others(&uid) => {}
            changed = resyncs.changed() => {
                if changed.is_err() {
                    return;
                }
                backoff.reset();
            }
            () = stir.cgroups.notified() => backoff.reset(),
            // It may be of our own making: no reason to try again earlier than the backoff says the next time.
            () = drifted(&shared, &uid, &stir, &mut checks, &past) => {}
            () = tokio::time::sleep(again) => {}
        }
    }
}

/// Until somebody changed what the last pass left.
async fn drifted(shared: &Arc<Shared>, uid: &str, stir: &Stir, checks: &mut watch::Receiver<u64>, past: &Past) {
    loop {
        tokio::select! {
            () = stir.pins.notified() => {}
            changed = checks.changed() => if changed.is_err() {
                return std::future::pending().await;
            },
        }
        // Who deletes one deletes several.
        tokio::time::sleep(SETTLE).await;
        if observe(shared, uid).await != past.seen {
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

/// Permanent reasons wait for a change, transient ones for time. A target that is held or missing may come free without
/// the agent hearing of it.
fn is_transient(report: &ProgramReport) -> bool {
    let transient = |word: &str| {
        word.parse().is_ok_and(|r: Reason| r.is_transient() || matches!(r, Reason::HookBusy | Reason::TargetNotFound))
    };
    let failed = matches!(report.state(), State::Failed | State::Degraded | State::Updating);
    failed && (transient(&report.reason) || report.hooks.iter().flat_map(|h| &h.failures).any(|f| transient(&f.reason)))
}

/// Lets images go that no program wants, if the cache is too large. A cache that cannot be trimmed is no reason to fail.
pub(crate) async fn trim(shared: &Arc<Shared>) {
    let work = shared.clone();
    let trimmed = blocking(move || {
        // A record that cannot be read may want any of them.
        let (wanted, broken) = work.store.load().map_err(|e| e.to_string())?;
        let wanted = wanted.iter().filter_map(|p| p.digest.parse().ok()).collect();
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
