//! Agents' reports as what is shown.

use skep_crds::status::Failure;
use skep_proto::v1::{HookReport, ProgramReport, State};

use crate::view::{Hook, NodeState, Program, TargetFailure};

/// A program of the one node that was asked.
pub fn program(node: &str, report: &ProgramReport) -> Program {
    Program {
        namespace: report.namespace.clone(),
        name: report.name.clone(),
        ready: if report.state() == State::Ready { "1/1" } else { "0/1" }.to_owned(),
        reason: report.reason.clone(),
        revision: report.desired_revision.clone(),
        digest: report.digest.clone(),
        failures: failure(node, report).into_iter().collect(),
        nodes: vec![node_state(node, report)],
        ..Program::default()
    }
}

/// How it does there.
pub fn node_state(node: &str, report: &ProgramReport) -> NodeState {
    NodeState {
        node: node.to_owned(),
        state: state(report.state()).to_owned(),
        reason: report.reason.clone(),
        message: report.message.clone(),
        revision: report.running_revision.clone(),
        hooks: report.hooks.iter().map(hook).collect(),
    }
}

fn failure(node: &str, report: &ProgramReport) -> Option<Failure> {
    let failed = matches!(report.state(), State::Failed | State::Degraded | State::Unsupported);
    failed.then(|| Failure {
        reason: report.reason.parse().unwrap_or(skep_crds::Reason::Internal),
        message: report.message.clone(),
        log: Some(report.log.clone()).filter(|log| !log.is_empty()),
        count: 1,
        nodes: vec![node.to_owned()],
    })
}

fn state(state: State) -> &'static str {
    match state {
        State::Unspecified => "",
        State::Updating => "Updating",
        State::Ready => "Ready",
        State::Degraded => "Degraded",
        State::Failed => "Failed",
        State::Unsupported => "Unsupported",
        State::Removing => "Removing",
    }
}

fn hook(report: &HookReport) -> Hook {
    let failures = report.failures.iter().map(|f| TargetFailure {
        target: f.target.clone(),
        reason: f.reason.clone(),
        message: f.message.clone(),
    });
    Hook {
        function: report.function.clone(),
        hook: report.hook.clone(),
        targets: report.targets,
        names: report.names.clone(),
        failures: failures.collect(),
    }
}
