//! From what the nodes report to the status of an EbpfProgram. Pure.
//!
//! Guarantees: a status says nothing that a node did not say about this revision; unreachable and unsupported nodes are
//! counted and do not hold `Ready` as long as some node runs the revision; the same facts give the same status.

mod failures;
mod verdict;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use skep_crds::status::{NodeCounts, ResolvedImage, Summary};
use skep_crds::{EbpfProgram, EbpfProgramStatus, Reason};
use skep_proto::v1::{ProgramReport, State};

use crate::image::{Problem, Resolution};

/// What is known of a program.
#[derive(Debug)]
pub struct View<'a> {
    /// The object, with the status that it has.
    pub program: &'a EbpfProgram,
    /// What became of its image.
    pub image: Image<'a>,
    /// The revision that the nodes should run; empty while the image is not resolved.
    pub revision: &'a str,
    /// The nodes that should run it, by name; of a program that is deleted: those that still have something of it.
    pub nodes: Vec<(&'a str, Standing<'a>)>,
}

/// What became of an image.
#[derive(Clone, Copy, Debug)]
pub enum Image<'a> {
    /// Being asked for.
    Resolving,
    /// Known.
    Resolved(&'a Resolution),
    /// Not to be had.
    Failed(&'a Problem),
}

/// What is known of a program on one node.
#[derive(Clone, Copy, Debug)]
pub enum Standing<'a> {
    /// The node was not heard yet, or has said nothing of the program yet.
    Waiting,
    /// The node's agent does not answer; why.
    Unreachable(&'a str),
    /// What it says.
    Report(&'a ProgramReport),
}

/// A node's state with respect to the revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Ready,
    Updating,
    /// It has not said anything about this revision.
    Waiting,
    Failed,
    Degraded,
    Unsupported,
    Unreachable,
}

impl Standing<'_> {
    fn seen(&self, revision: &str) -> Seen {
        let report = match self {
            Self::Waiting => return Seen::Waiting,
            Self::Unreachable(_) => return Seen::Unreachable,
            Self::Report(report) if report.desired_revision != revision => return Seen::Waiting,
            Self::Report(report) => report,
        };
        match report.state() {
            State::Ready => Seen::Ready,
            State::Unspecified | State::Updating | State::Removing => Seen::Updating,
            State::Degraded => Seen::Degraded,
            State::Failed => Seen::Failed,
            State::Unsupported => Seen::Unsupported,
        }
    }
}

/// The status that the object should have.
pub fn rollup(view: &View<'_>, now: &Time) -> EbpfProgramStatus {
    let nodes = counts(view);
    let failures = failures::group(view);
    let verdict = verdict::verdict(view, &nodes, &failures);
    let previous = view.program.status.clone().unwrap_or_default();
    let resolved = match view.image {
        Image::Resolved(image) => {
            Some(ResolvedImage { reference: image.reference.clone(), digest: image.digest.clone() })
        }
        Image::Resolving | Image::Failed(_) => None,
    };
    let summary = Summary { ready: format!("{}/{}", nodes.ready, nodes.desired), reason: verdict.reason };
    let generation = view.program.metadata.generation;
    EbpfProgramStatus {
        observed_generation: generation,
        summary: Some(summary),
        image: resolved,
        revision: Some(view.revision).filter(|revision| !revision.is_empty()).map(Into::into),
        nodes: Some(nodes),
        failures,
        conditions: verdict::conditions(previous.conditions, verdict, generation, now),
    }
}

fn counts(view: &View<'_>) -> NodeCounts {
    let mut counts = NodeCounts { desired: i32::try_from(view.nodes.len()).unwrap_or(i32::MAX), ..Default::default() };
    for (_, standing) in &view.nodes {
        let count = match standing.seen(view.revision) {
            Seen::Ready => &mut counts.ready,
            Seen::Updating | Seen::Waiting => &mut counts.updating,
            Seen::Failed => &mut counts.failed,
            Seen::Degraded => &mut counts.degraded,
            Seen::Unsupported => &mut counts.unsupported,
            Seen::Unreachable => &mut counts.unreachable,
        };
        *count += 1;
    }
    counts
}

/// The reason of a report. A word that is no reason is a fault of the agent.
fn reason_of(report: &ProgramReport) -> Reason {
    report.reason.parse().unwrap_or(Reason::Internal)
}

#[cfg(test)]
mod tests;
