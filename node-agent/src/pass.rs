//! One pass over one program: image, plan, execution, report.
//!
//! **Guarantees.** What a pass leaves is what the kernel shows after it, and is remembered: a repair is told from a
//! change, and somebody else's doing from our own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use skep_crds::{EbpfProgramSpec, PullPolicy};
use skep_image::Auth;
use skep_kernel::Kernel;
use skep_kernel::seam::Observed;
use skep_proto::v1::{Notice, ProgramReport};

use crate::actor::{Shared, trim};
use crate::binaries::HostBinaries;
use crate::desired::DesiredProgram;
use crate::drift::{self, Left};
use crate::error::ProgramError;
use crate::execute::{Outcome, execute};
use crate::images::blocking;
use crate::neighbours;
use crate::plan::{Action, plan};
use crate::prepare::{Prepared, prepare};
use crate::report;
use crate::spec;
use crate::view::NodeView;

/// How long one pass over the kernel may take.
const PASS: Duration = Duration::from_secs(120);

/// What an actor knows of earlier passes.
#[derive(Debug, Default)]
pub struct Past {
    left: Option<Left>,
    /// What the kernel showed when the last one ended.
    pub seen: Observed,
    /// Directories of the cgroups that the spec names.
    pub cgroups: BTreeSet<PathBuf>,
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

/// Brings a program about as far as it can be, and says how far.
pub async fn reconcile(
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
            *past = Past { left: Some(passed.left), seen: passed.seen, cgroups: passed.cgroups, said: None };
            passed.report
        }
        Err(error) => {
            past.fails(desired, &error);
            past.seen = observe(shared, &desired.uid).await;
            report::failed(desired, &past.seen, &error)
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
    let late = desired.clone();
    let mut pass = std::pin::pin!(blocking(move || act(&work, &spec, &desired, object, &view, left.as_ref())));
    match tokio::time::timeout(PASS, &mut pass).await {
        Ok(result) => result?,
        Err(_) => {
            let error = ProgramError::Timeout { what: "work in the kernel".into(), seconds: PASS.as_secs() };
            shared.reports.put(report::failed(&late, &observed, &error));
            // It cannot be called off, and a second pass beside it would undo what it does.
            pass.await?
        }
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
    let before = observed.links.clone();
    let alone = neighbours::look(kernel, &prepared.wanted, &mut observed)?;
    let plan = plan(&prepared.wanted, &observed);
    let mut outcome = execute(kernel, &desired.uid, &prepared.request, &prepared.gates, &plan);
    outcome.targets.extend(alone);
    if outcome.done > 0 {
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
    // Whoever waits for a neighbour wakes for links alone: its own vain try must not wake it again.
    if passed.as_ref().is_ok_and(|passed| passed.seen.links != before) {
        shared.neighbours.changed();
    }
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
    seen: Observed,
    cgroups: BTreeSet<PathBuf>,
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
    Ok(Passed { report, notices, left, seen: observed, cgroups: prepared.targets.cgroups.clone() })
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
pub async fn observe(shared: &Arc<Shared>, uid: &str) -> Observed {
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
