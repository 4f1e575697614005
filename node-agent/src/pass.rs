//! One pass over one program: image, plan, execution, report.
//!
//! **Guarantees.** What a pass leaves is what the kernel shows after it, and is remembered: a repair is told from a
//! change, and somebody else's doing from our own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use skep_crds::{EbpfProgramSpec, PullPolicy, Reason};
use skep_image::Auth;
use skep_kernel::hook::{Hook, Order, Target};
use skep_kernel::seam::{Observed, ObservedLink};
use skep_kernel::{Kernel, KernelError};
use skep_proto::v1::{HookReport, Notice, ProgramReport, State};

use crate::actor::{Shared, trim};
use crate::backoff;
use crate::binaries::HostBinaries;
use crate::desired::DesiredProgram;
use crate::drift::{self, Left};
use crate::error::ProgramError;
use crate::execute::{Begun, Outcome, execute};
use crate::images::blocking;
use crate::neighbours::{self, NodeFunctions};
use crate::plan::{Action, plan};
use crate::prepare::{Prepared, prepare};
use crate::report;
use crate::sections;
use crate::spec;
use crate::targets::Lookup;
use crate::view::NodeView;

/// How long one pass over the kernel may take.
pub const PASS: Duration = Duration::from_secs(120);
/// How long a loaded revision waits, before it runs, for programs that attach to its functions.
const FOLLOWED: Duration = Duration::from_secs(5);

/// What an actor knows of earlier passes.
#[derive(Debug, Default)]
pub struct Past {
    left: Option<Left>,
    /// What the kernel showed when the last one ended.
    pub seen: Arc<Observed>,
    /// Some of its targets change without a sign: files that are probed, neighbours of a place.
    pub unheard: bool,
    /// The revision that was brought about last.
    settled: Option<String>,
    /// Directories of the cgroups that the spec names.
    pub cgroups: BTreeSet<PathBuf>,
    /// The failure that was logged last: one that stays is said once.
    said: Option<String>,
    /// A revision that was refused for good, as long as nothing changes; and why.
    refused: Option<(String, ProgramError)>,
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

/// Brings a program about as far as it can be, and says how far. `look`: nothing that is wanted changed since the last
/// time.
pub async fn reconcile(
    shared: &Arc<Shared>,
    desired: &DesiredProgram,
    auth: &Auth,
    view: Arc<NodeView>,
    past: &mut Past,
    look: bool,
) -> ProgramReport {
    let mut desired = desired.clone();
    if past.settled.as_ref() == Some(&desired.revision) {
        desired.older = None;
    }
    let desired = &desired;
    let refused = past.refused.take().filter(|(revision, _)| look && *revision == desired.revision);
    let error = match refused {
        Some((_, error)) => error,
        None => match pass(shared, desired, auth, view.clone(), past.left.clone(), Role::Wanted).await {
            Ok(passed) => {
                past.said = None;
                past.settled = Some(desired.revision.clone());
                settle(shared, desired).await;
                return take_over(shared, past, passed);
            }
            Err(error) => error,
        },
    };
    past.fails(desired, &error);
    let (hooks, remark) = match &desired.older {
        Some(older) => {
            // Whoever wants it off its hooks does not wait for an image that cannot be had.
            let suspend = desired.spec.get("suspend").filter(|suspend| **suspend == true).cloned();
            let mut older = older.clone();
            if let (Some(suspend), Some(spec)) = (&suspend, older.spec.as_object_mut()) {
                spec.insert("suspend".into(), suspend.clone());
            }
            let (hooks, said) = look_after(shared, &older, auth, view, past).await;
            let off = || suspend.map(|_| format!("revision {}, which ran before, is off its hooks", older.revision));
            (hooks, said.or_else(off))
        }
        None => {
            past.seen = Arc::new(observe(shared, &desired.uid).await);
            (Vec::new(), None)
        }
    };
    let owner = |id| shared.reports.owner(id);
    let mut report = report::failed(desired, &past.seen, &error, &owner);
    report.hooks = hooks;
    if let Some(remark) = remark {
        report.message = format!("{}; {remark}", report.message);
    }
    if !backoff::is_worth_another_try(error.reason()) {
        past.refused = Some((desired.revision.clone(), error));
    }
    report
}

/// Remembers what a pass left.
fn take_over(shared: &Shared, past: &mut Past, passed: Passed) -> ProgramReport {
    let Passed { report, notices, left, seen, cgroups, unheard } = passed;
    notices.into_iter().for_each(|notice| shared.reports.notice(notice));
    (past.left, past.seen, past.cgroups, past.unheard) = (Some(left), Arc::new(seen), cgroups, unheard);
    report
}

/// The older revision is not needed any more.
async fn settle(shared: &Arc<Shared>, desired: &DesiredProgram) {
    if desired.older.is_none() {
        return;
    }
    let (owned, uid, revision) = (shared.clone(), desired.uid.clone(), desired.revision.clone());
    match blocking(move || owned.store.settle(&uid, &revision)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the record still has the revision before"),
        Err(error) => tracing::warn!(%error, "the record still has the revision before"),
    }
}

/// Keeps the revision that ran before as it was, while the one that is wanted cannot be: its hooks, and what cannot be
/// kept, in words.
async fn look_after(
    shared: &Arc<Shared>,
    older: &DesiredProgram,
    auth: &Auth,
    view: Arc<NodeView>,
    past: &mut Past,
) -> (Vec<HookReport>, Option<String>) {
    let (hooks, trouble) = match pass(shared, older, auth, view, past.left.clone(), Role::Older).await {
        Ok(passed) => {
            let report = take_over(shared, past, passed);
            let bad = matches!(report.state(), State::Failed | State::Degraded | State::Unsupported);
            (report.hooks, bad.then_some(report.message))
        }
        Err(error) => {
            past.seen = Arc::new(observe(shared, &older.uid).await);
            (Vec::new(), Some(error.to_string()))
        }
    };
    (hooks, trouble.map(|trouble| format!("of revision {}, which is kept meanwhile: {trouble}", older.revision)))
}

/// Why a pass is made for a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Wanted,
    /// It ran before, and the wanted one cannot be: nothing is said of it but what is repaired.
    Older,
}

async fn pass(
    shared: &Arc<Shared>,
    desired: &DesiredProgram,
    auth: &Auth,
    view: Arc<NodeView>,
    left: Option<Left>,
    role: Role,
) -> Result<Passed, ProgramError> {
    let spec = spec::decode(&desired.api_version, &desired.spec)?;
    if role == Role::Wanted {
        shared.neighbours.put(&desired.uid, &desired.namespace, &desired.name, &spec)?;
    }
    let say = |report: ProgramReport| {
        if role == Role::Wanted {
            shared.reports.put(report);
        }
    };
    if let Some(why) = &desired.unresolved {
        return Err(ProgramError::Unresolved(why.clone()));
    }
    let late = |error| say(report::failed(desired, &Observed::default(), &error, &|_| None));
    let observed = patiently("a look at the kernel", PASS, late, observe(shared, &desired.uid)).await;
    let (reference, policy) = (&spec.image.reference, spec.image.pull_policy.unwrap_or_default());
    let fresh = !observed.loads.contains_key(&desired.load);
    if fresh {
        shared.features.check(&spec)?;
        say(report::progressing(desired, &observed, "fetching the image and loading"));
        // What is loaded stays as it is, whatever became of its image; and what was, is again after a reboot.
        let ran = role == Role::Older;
        if policy == PullPolicy::Always && !ran && !shared.store.is_admitted(&desired.uid, &desired.load) {
            shared.images.check(reference, &desired.digest, auth).await?;
            shared.store.admit(&desired.uid, &desired.load);
        }
    }
    let object = shared.images.object(reference, &desired.digest, auth, policy != PullPolicy::Never).await?;
    if fresh {
        trim(shared).await;
        shared.features.check(&*sections::completed(&spec, &object)?)?;
    }
    // If it comes to the end, it is what runs.
    let wanted = DesiredProgram { older: None, ..desired.clone() };
    let work = Arc::new(Work { shared: shared.clone(), spec, desired: wanted, object, view, left });
    let late = |error| say(report::failed(desired, &observed, &error, &|_| None));
    // What was loaded before needed no image to be fetched: what was seen is still so.
    let seen = (!fresh).then(|| observed.clone());
    patiently("work in the kernel", PASS, late, bring_about(work, seen)).await
}

/// Says when work takes too long, and waits on: it cannot be called off, and a second pass beside it would undo what it
/// does.
pub async fn patiently<T>(
    what: &str,
    patience: Duration,
    late: impl FnOnce(ProgramError),
    work: impl Future<Output = T>,
) -> T {
    let mut work = std::pin::pin!(work);
    match tokio::time::timeout(patience, &mut work).await {
        Ok(done) => done,
        Err(_) => {
            late(ProgramError::Timeout { what: what.into(), seconds: patience.as_secs() });
            work.await
        }
    }
}

/// What a pass works with.
struct Work {
    shared: Arc<Shared>,
    spec: EbpfProgramSpec,
    desired: DesiredProgram,
    object: Arc<skep_object::Object>,
    view: Arc<NodeView>,
    left: Option<Left>,
}

/// `seen`: what the kernel shows, if that was looked at just now.
async fn bring_about(work: Arc<Work>, mut seen: Option<Observed>) -> Result<Passed, ProgramError> {
    let place = || async { work.shared.places.acquire().await.map_err(|e| ProgramError::Internal(e.to_string())) };
    let Work { shared, desired, .. } = &*work;
    let mut begun = None;
    // Whether anything is to run that they are not attached to, after a crash or a retry too.
    let mut moves = false;
    if shared.neighbours.is_followed(&desired.namespace, &desired.name) {
        let _place = place().await?;
        let work = work.clone();
        seen = None;
        (begun, moves) = blocking(move || load(&work)).await??;
    }
    if moves {
        // Without a place: those that follow need theirs.
        let late = shared.neighbours.lead(&desired.namespace, &desired.name, FOLLOWED).await;
        if !late.is_empty() {
            let message = format!(
                "{} did not follow within {} s: until they do, they miss what its new revision does",
                late.join(", "),
                FOLLOWED.as_secs()
            );
            let (uid, reason) = (desired.uid.clone(), Reason::Timeout.to_string());
            shared.reports.notice(Notice { uid, warning: true, reason, message });
        }
    }
    let _place = place().await?;
    let (acting, led) = (work.clone(), begun.is_some());
    let passed = blocking(move || act(&acting, begun, seen)).await?;
    if led && passed.is_err() {
        // What they followed is gone again.
        shared.neighbours.changed();
    }
    passed
}

/// A plan, and what it was made from.
struct Planned {
    prepared: Prepared,
    observed: Observed,
    /// Links without the neighbour that they ask for.
    alone: Vec<(String, KernelError)>,
    /// The links as they were.
    before: BTreeMap<String, ObservedLink>,
    plan: Vec<Action>,
}

/// `begun`: the first half of the pass has loaded.
fn prepare_plan(work: &Work, begun: bool, seen: Option<Observed>) -> Result<Planned, ProgramError> {
    let Work { shared, spec, desired, object, view, .. } = work;
    let kernel = &*shared.kernel;
    let functions = NodeFunctions { neighbours: &shared.neighbours, kernel };
    let lookup = Lookup { binaries: &HostBinaries, functions: &functions };
    let mut prepared = prepare(spec, &desired.namespace, &desired.load, object.clone(), view, lookup)?;
    prepared.wanted.begun = begun;
    neighbours::resolve(&shared.neighbours, &desired.namespace, &mut prepared.wanted);
    let mut observed = match seen {
        Some(seen) => seen,
        None => kernel.observe(&desired.uid)?,
    };
    let before = observed.links.clone();
    let alone = neighbours::look(kernel, &prepared.wanted, &mut observed)?;
    let plan = plan(&prepared.wanted, &observed);
    Ok(Planned { prepared, observed, alone, before, plan })
}

/// The first half of a pass: up to the load, if there is one, before any link moves; and whether some will. Blocks.
fn load(work: &Work) -> Result<(Option<Begun>, bool), ProgramError> {
    let Planned { prepared, plan, .. } = prepare_plan(work, false, None)?;
    let moves = plan.iter().any(|action| matches!(action, Action::Replace { .. } | Action::Attach { .. }));
    let Some(at) = plan.iter().position(|action| matches!(action, Action::Load { .. })) else {
        return Ok((None, moves));
    };
    let (kernel, uid) = (&*work.shared.kernel, &work.desired.uid);
    let outcome = execute(kernel, uid, &prepared.request, &prepared.gates, &plan[..=at], None);
    match outcome.failure {
        Some(failure) => Err(failure.into()),
        None => Ok((Some(Begun { load: work.desired.load.clone(), outcome: outcome.load }), true)),
    }
}

/// One pass: prepare, observe, plan, execute, observe again, report. `begun`: what was loaded by its first half. Blocks.
fn act(work: &Work, begun: Option<Begun>, seen: Option<Observed>) -> Result<Passed, ProgramError> {
    let Work { shared, desired, left, .. } = work;
    let kernel = &*shared.kernel;
    let loaded = begun.is_some();
    let Planned { prepared, observed, alone, before, plan } = prepare_plan(work, loaded, seen)?;
    let mut outcome = execute(kernel, &desired.uid, &prepared.request, &prepared.gates, &plan, begun);
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
    let loaded = loaded || plan.iter().any(|action| matches!(action, Action::Load { .. }));
    // Nothing was done: what is there is what was there.
    let after = plan.is_empty().then(|| Observed { links: before.clone(), ..observed.clone() });
    let passed = finish(shared, desired, &prepared, outcome, (&observed, &plan, after), left.as_ref());
    // Whoever waits for a neighbour wakes for what is another there: its own vain try must not wake it again.
    if passed.as_ref().is_ok_and(|passed| passed.seen.links != before || programs(&passed.seen) != programs(&observed))
    {
        shared.neighbours.changed();
    }
    if loaded {
        // Pulling, parsing and relocating leave megabytes that are free and still count as the agent's.
        skep_kernel::sys::trim_heap();
    }
    passed
}

/// Ids of all loaded programs.
fn programs(observed: &Observed) -> Vec<u32> {
    observed.loads.values().flat_map(|load| load.programs.values().map(|program| program.id)).collect()
}

/// What came of a pass.
struct Passed {
    report: ProgramReport,
    notices: Vec<Notice>,
    left: Left,
    seen: Observed,
    cgroups: BTreeSet<PathBuf>,
    unheard: bool,
}

fn finish(
    shared: &Shared,
    desired: &DesiredProgram,
    prepared: &Prepared,
    mut outcome: Outcome,
    (seen, plan, after): (&Observed, &[Action], Option<Observed>),
    before: Option<&Left>,
) -> Result<Passed, ProgramError> {
    if let Some(failure) = outcome.failure.take() {
        return Err(failure.into());
    }
    let kernel = &*shared.kernel;
    let observed = match after {
        Some(after) => after,
        None => kernel.observe(&desired.uid)?,
    };
    set_gates(kernel, desired, &prepared.gates, &observed)?;
    let left = Left::new(before, &desired.revision, &observed, &outcome);
    let notices = drift::notices(&desired.uid, before, &left, seen, plan, &outcome);
    let owner = |id| shared.reports.owner(id);
    let report = report::settled(desired, prepared, &outcome, &observed, &left.remarks, &owner);
    let unheard = prepared.targets.hooks.iter().any(|found| is_unheard(&found.hook));
    Ok(Passed { report, notices, left, seen: observed, cgroups: prepared.targets.cgroups.clone(), unheard })
}

/// Nobody tells when a file is replaced, a CPU comes, or when somebody else's program moves in between two.
fn is_unheard(hook: &Hook) -> bool {
    matches!(hook.target, Target::Binary { .. } | Target::Symbols { .. } | Target::CpuEvent { .. })
        || matches!(hook.options.order, Order::Before(_) | Order::After(_))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_takes_too_long_is_said_and_waited_for() {
        let mut said = Vec::new();
        let slow = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            7
        };
        assert_eq!(patiently("work", Duration::ZERO, |error| said.push(error.to_string()), slow).await, 7);
        assert_eq!(said, ["work took longer than 0 s"]);
        assert_eq!(patiently("work", PASS, |_| panic!("it was in time"), async { 8 }).await, 8);
    }
}
