//! One program on this node: reconciled whenever what is wanted, or the node, changes; else every 30 s against drift.
//!
//! **Guarantees.** Serial per program. Programs do not wait for each other, but for a bounded number of places where
//! blocking kernel work may go on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use skep_crds::{EbpfProgramSpec, PullPolicy, Reason};
use skep_image::Auth;
use skep_kernel::Kernel;
use skep_kernel::seam::Observed;
use skep_proto::v1::{Notice, ProgramReport, State};
use tokio::sync::{Semaphore, watch};

use crate::backoff::Backoff;
use crate::binaries::HostBinaries;
use crate::desired::{DesiredProgram, Store};
use crate::drift::{self, Left};
use crate::error::ProgramError;
use crate::execute::{Outcome, execute};
use crate::images::{Images, blocking};
use crate::neighbours::{self, Neighbours};
use crate::plan::{Action, plan};
use crate::prepare::{Prepared, prepare};
use crate::report;
use crate::reports::Reports;
use crate::spec;
use crate::view::NodeView;

/// How often what is there is compared with what is wanted, when nothing tells of a change.
const DRIFT: Duration = Duration::from_secs(30);
/// How long one pass over the kernel may take.
const PASS: Duration = Duration::from_secs(120);

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
    let mut view = shared.view.clone();
    let mut others = shared.neighbours.watch();
    let mut backoff = Backoff::new(fastrand::f64);
    let mut past = Past::default();
    loop {
        let order = orders.borrow_and_update().clone();
        let now = view.borrow_and_update().clone();
        others.borrow_and_update();
        let again = match &order.program {
            None => match remove(&shared, &uid).await {
                Ok(()) => {
                    shared.neighbours.remove(&uid);
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
            () = tokio::time::sleep(again) => {}
        }
    }
}

/// What an actor knows of earlier passes.
#[derive(Default)]
struct Past {
    left: Option<Left>,
    /// The failure that was logged last: one that stays is said once.
    said: Option<String>,
}

impl Past {
    fn fails(&mut self, desired: &DesiredProgram, error: &ProgramError) {
        let text = error.to_string();
        if self.said.as_ref() != Some(&text) {
            tracing::warn!(namespace = desired.namespace, name = desired.name, reason = %error.reason(), %error, "program failed");
            self.said = Some(text);
        }
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

async fn remove(shared: &Arc<Shared>, uid: &str) -> Result<(), ProgramError> {
    let _place = shared.places.acquire().await.map_err(|e| ProgramError::Internal(e.to_string()))?;
    let (shared, uid) = (shared.clone(), uid.to_owned());
    blocking(move || {
        // First the record: a crash after it leaves pins of an unknown uid, which the next Sync removes.
        shared.store.remove(&uid).map_err(|e| ProgramError::Internal(e.to_string()))?;
        Ok(shared.kernel.remove_program(&uid)?)
    })
    .await?
}

/// Lets images go that no program wants, if the cache is too large. A cache that cannot be trimmed is no reason to fail.
async fn trim(shared: &Arc<Shared>) {
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

async fn reconcile(
    shared: &Arc<Shared>,
    desired: &DesiredProgram,
    auth: &Auth,
    view: Arc<NodeView>,
    past: &mut Past,
) -> ProgramReport {
    let result = pass(shared, desired, auth, view, past.left.clone()).await;
    match result {
        Ok(passed) => {
            passed.notices.into_iter().for_each(|notice| shared.reports.notice(notice));
            *past = Past { left: Some(passed.left), said: None };
            passed.report
        }
        Err(error) => {
            past.fails(desired, &error);
            report::failed(desired, &observe(shared, &desired.uid).await, &error)
        }
    }
}

async fn pass(
    shared: &Arc<Shared>,
    desired: &DesiredProgram,
    auth: &Auth,
    view: Arc<NodeView>,
    left: Option<Left>,
) -> Result<Passed, ProgramError> {
    let spec = spec::decode(&desired.api_version, &desired.spec)?;
    shared.neighbours.put(&desired.uid, &desired.namespace, &desired.name, &spec)?;
    let observed = observe(shared, &desired.uid).await;
    let (reference, policy) = (&spec.image.reference, spec.image.pull_policy.unwrap_or_default());
    let fresh = !observed.loads.contains_key(&desired.load);
    if fresh {
        shared.reports.put(report::progressing(desired, &observed, "fetching the image and loading"));
        // What is loaded stays as it is, whatever became of its image.
        if policy == PullPolicy::Always {
            shared.images.check(reference, &desired.digest, auth).await?;
        }
    }
    let object = shared.images.object(reference, &desired.digest, auth, policy != PullPolicy::Never).await?;
    if fresh {
        trim(shared).await;
    }
    let _place = shared.places.acquire().await.map_err(|e| ProgramError::Internal(e.to_string()))?;
    let (work, desired) = (shared.clone(), desired.clone());
    let pass = blocking(move || act(&work, &spec, &desired, object, &view, left.as_ref()));
    match tokio::time::timeout(PASS, pass).await {
        Ok(result) => result?,
        Err(_) => Err(ProgramError::Timeout { what: "work in the kernel".into(), seconds: PASS.as_secs() }),
    }
}

/// One pass: prepare, observe, plan, execute, observe again, report. Blocks.
fn act(
    shared: &Shared,
    spec: &EbpfProgramSpec,
    desired: &DesiredProgram,
    object: Arc<skep_object::Object>,
    view: &NodeView,
    left: Option<&Left>,
) -> Result<Passed, ProgramError> {
    let kernel = &*shared.kernel;
    let mut prepared = prepare(spec, &desired.namespace, &desired.load, object, view, &HostBinaries)?;
    neighbours::resolve(&shared.neighbours, &desired.namespace, &mut prepared.wanted);
    let mut observed = kernel.observe(&desired.uid)?;
    let alone = neighbours::look(kernel, &prepared.wanted, &mut observed)?;
    let plan = plan(&prepared.wanted, &observed);
    let mut outcome = execute(kernel, &desired.uid, &prepared.request, &prepared.gates, &plan);
    outcome.targets.extend(alone);
    if outcome.done > 0 {
        shared.neighbours.changed();
        tracing::info!(
            namespace = desired.namespace,
            name = desired.name,
            revision = desired.revision,
            actions = outcome.done,
            failed_targets = outcome.targets.len(),
            "reconciled"
        );
    }
    let loaded = plan.iter().any(|action| matches!(action, Action::Load { .. }));
    let passed = finish(shared, desired, &prepared, outcome, (&observed, &plan), left);
    if loaded {
        // Pulling, parsing and relocating leave megabytes that are free and still count as the agent's.
        skep_kernel::sys::trim_heap();
    }
    passed
}

/// What came of a pass.
struct Passed {
    report: ProgramReport,
    notices: Vec<Notice>,
    left: Left,
}

fn finish(
    shared: &Shared,
    desired: &DesiredProgram,
    prepared: &Prepared,
    mut outcome: Outcome,
    (seen, plan): (&Observed, &[Action]),
    before: Option<&Left>,
) -> Result<Passed, ProgramError> {
    if let Some(failure) = outcome.failure.take() {
        return Err(failure.into());
    }
    let kernel = &*shared.kernel;
    let observed = kernel.observe(&desired.uid)?;
    set_gates(kernel, desired, &prepared.gates, &observed)?;
    let left = Left::new(before, &desired.revision, &observed, &outcome);
    let notices = drift::notices(&desired.uid, before, &desired.revision, seen, plan, &outcome);
    let owner = |id| shared.reports.owner(id);
    let report = report::settled(desired, prepared, &outcome, &observed, &left.remarks, &owner);
    Ok(Passed { report, notices, left })
}

/// Pods come and go without a plan: the gates follow them.
fn set_gates(
    kernel: &dyn Kernel,
    desired: &DesiredProgram,
    gates: &BTreeMap<String, Vec<u64>>,
    observed: &Observed,
) -> Result<(), ProgramError> {
    let Some(load) = observed.loads.get(&desired.load) else { return Ok(()) };
    for (gate, cgroups) in gates {
        if load.maps.contains_key(&skep_kernel::gate::map_name(gate)) {
            kernel.set_gate(&desired.uid, &desired.load, gate, cgroups)?;
        }
    }
    Ok(())
}

/// What the kernel shows; nothing if it cannot be read, which the pass itself will say.
async fn observe(shared: &Arc<Shared>, uid: &str) -> Observed {
    let (kernel, uid) = (shared.kernel.clone(), uid.to_owned());
    let Ok(_place) = shared.places.acquire().await else { return Observed::default() };
    match blocking(move || kernel.observe(&uid)).await {
        Ok(Ok(observed)) => observed,
        Ok(Err(error)) => {
            tracing::warn!(%error, "observing");
            Observed::default()
        }
        Err(error) => {
            tracing::warn!(%error, "observing");
            Observed::default()
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("store", &self.store).finish_non_exhaustive()
    }
}
