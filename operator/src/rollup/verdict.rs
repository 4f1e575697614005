//! Ready or not, and why, in one word and one sentence.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use skep_crds::condition::{READY, RECONCILING, STALLED};
use skep_crds::status::{Failure, NodeCounts};
use skep_crds::{Condition, Reason, merge_condition};

use super::{Image, Seen, Standing, View};

/// Node names in a sentence, at most.
const NAMED: usize = 3;

/// The three conditions in one value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Verdict {
    pub ready: bool,
    pub reason: Reason,
    pub message: String,
    /// What goes on.
    pub work: Work,
}

/// Whether anything goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Nothing, and nothing needs to.
    Rest,
    /// Something does: `Reconciling`.
    Going,
    /// Nothing, until spec, image or node change: `Stalled`.
    Stuck,
}

pub(super) fn verdict(view: &View<'_>, counts: &NodeCounts, failures: &[Failure]) -> Verdict {
    let not = |reason: Reason, work, message: String| Verdict { ready: false, reason, message, work };
    if view.program.metadata.deletion_timestamp.is_some() {
        let message = format!("being removed{}", on(view.nodes.iter().map(|(node, _)| *node), " from "));
        return not(Reason::Progressing, Work::Going, message);
    }
    match view.image {
        Image::Resolving => return not(Reason::Progressing, Work::Going, "the image is being looked up".into()),
        Image::Failed(problem) => {
            let work = if problem.reason.is_transient() { Work::Going } else { Work::Stuck };
            return not(problem.reason, work, problem.message.clone());
        }
        Image::Resolved(_) => {}
    }
    if counts.desired == 0 {
        let message = match view.program.spec.node_selector {
            Some(_) => "no node that has an agent is selected by spec.nodeSelector",
            None => "no node has an agent",
        };
        return not(Reason::NoMatchingNode, Work::Rest, message.into());
    }
    let holding = counts.failed + counts.degraded;
    let going = counts.updating > 0;
    if let Some(worst) = failures.iter().find(|failure| holding > 0 && holds(view, failure)) {
        let transient = failures.iter().any(|f| holds(view, f) && f.reason.is_transient());
        let work = if going || transient { Work::Going } else { Work::Stuck };
        return not(worst.reason, work, blame(worst));
    }
    if going {
        return not_yet(view, counts);
    }
    if counts.ready == 0 {
        // Nobody runs it: whoever cannot be reached, or cannot do it, is the reason.
        let unsupported = failures.iter().find(|failure| failure.reason != Reason::NodeUnreachable);
        return match unsupported {
            Some(failure) => not(failure.reason, Work::Stuck, blame(failure)),
            None => not(Reason::NodeUnreachable, Work::Going, failures.first().map(blame).unwrap_or_default()),
        };
    }
    let targets = view.nodes.iter().filter_map(|(_, standing)| match standing {
        Standing::Report(report) if standing.seen(view.revision) == Seen::Ready => Some(report),
        _ => None,
    });
    let targets: u64 = targets.flat_map(|report| &report.hooks).map(|hook| u64::from(hook.targets)).sum();
    if view.program.spec.suspend == Some(true) {
        let message = format!(
            "suspended: loaded and on no hook; set spec.suspend to false to attach it ({})",
            running(view, counts)
        );
        return Verdict { ready: true, reason: Reason::Suspended, message, work: Work::Rest };
    }
    let message = running(view, counts);
    if targets == 0 {
        let message = format!("{message}; its selectors match nothing on any node");
        return Verdict { ready: true, reason: Reason::NoTarget, message, work: Work::Rest };
    }
    Verdict { ready: true, reason: Reason::Ready, message: remarks(view, message), work: Work::Rest }
}

/// What nodes that run the revision have to say beside: a map that started anew.
fn remarks(view: &View<'_>, message: String) -> String {
    let mut by_text: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (node, standing) in &view.nodes {
        if let Standing::Report(report) = standing
            && standing.seen(view.revision) == Seen::Ready
            && !report.message.is_empty()
        {
            by_text.entry(&report.message).or_default().push(node);
        }
    }
    by_text
        .into_iter()
        .take(NAMED)
        .fold(message, |text, (said, nodes)| format!("{text}; {said}{}", on(nodes.into_iter(), " on ")))
}

/// Whether a group of failures is one that holds `Ready`.
fn holds(view: &View<'_>, failure: &Failure) -> bool {
    let holding = |node: &String| {
        let standing = view.nodes.iter().find(|(name, _)| name == node).map(|(_, standing)| standing);
        standing.is_some_and(|standing| matches!(standing.seen(view.revision), Seen::Failed | Seen::Degraded))
    };
    failure.nodes.iter().any(holding)
}

fn not_yet(view: &View<'_>, counts: &NodeCounts) -> Verdict {
    let of = |wanted: Seen| view.nodes.iter().filter(move |(_, s)| s.seen(view.revision) == wanted).map(|(n, _)| *n);
    let ready = format!("{} of {} nodes run the revision", counts.ready, counts.desired);
    let (reason, message) = match of(Seen::Updating).next() {
        Some(_) => (Reason::Progressing, format!("{ready}; being updated{}", on(of(Seen::Updating), ": "))),
        None => (Reason::WaitingForNode, format!("{ready}; nothing was heard yet{}", on(of(Seen::Waiting), " from "))),
    };
    Verdict { ready: false, reason, message, work: Work::Going }
}

fn running(view: &View<'_>, counts: &NodeCounts) -> String {
    let of = |wanted: Seen| view.nodes.iter().filter(move |(_, s)| s.seen(view.revision) == wanted).map(|(n, _)| *n);
    let mut text = match (counts.ready, counts.desired) {
        (ready, desired) if ready != desired => format!("runs on {ready} of {desired} nodes"),
        (1, _) => "runs on 1 node".into(),
        (ready, _) => format!("runs on {ready} nodes"),
    };
    for (seen, word) in [(Seen::Unreachable, "unreachable"), (Seen::Unsupported, "not supported by")] {
        let names = on(of(seen), "");
        if !names.is_empty() {
            text = format!("{text}; {word}: {names}");
        }
    }
    if let Image::Resolved(image) = view.image {
        text = image.missing.iter().fold(text, |text, missing| format!("{text}; {missing}"));
    }
    text
}

/// A failure with its nodes.
fn blame(failure: &Failure) -> String {
    let more = usize::try_from(failure.count).unwrap_or_default().saturating_sub(failure.nodes.len().min(NAMED));
    let mut nodes = failure.nodes.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    if more > 0 {
        nodes = format!("{nodes} and {more} more");
    }
    format!("{} (on {nodes})", failure.message)
}

/// Names after a lead, or nothing.
fn on<'n>(names: impl Iterator<Item = &'n str>, lead: &str) -> String {
    let names: Vec<&str> = names.collect();
    let shown = names.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    match names.len() {
        0 => String::new(),
        count if count > NAMED => format!("{lead}{shown} and {} more", count - NAMED),
        _ => format!("{lead}{shown}"),
    }
}

/// The conditions that follow, on top of those that were there.
pub(super) fn conditions(
    mut conditions: Vec<Condition>,
    verdict: Verdict,
    generation: Option<i64>,
    now: &Time,
) -> Vec<Condition> {
    let Verdict { ready, reason, message, work } = verdict;
    let parts = [(READY, ready), (RECONCILING, work == Work::Going), (STALLED, work == Work::Stuck)];
    for (type_, holds) in parts {
        let condition = Condition {
            type_: type_.into(),
            status: holds.into(),
            reason,
            message: message.clone(),
            observed_generation: generation,
            last_transition_time: now.clone(),
        };
        merge_condition(&mut conditions, condition, now);
    }
    conditions
}
