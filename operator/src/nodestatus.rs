//! From what is known of a node to the status of its EbpfNode. Pure.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use skep_crds::condition::READY;
use skep_crds::ebpfnode::{
    AgentInfo, Features, KernelInfo, LoadedFunction, NodeHook, NodeProgram, NodeProgramState, Support,
};
use skep_crds::{Condition, EbpfNodeStatus, Reason, merge_condition};
use skep_proto::v1::{Feature, Node, ProgramReport, State};

/// The largest status, as JSON, in bytes.
pub const MAX_BYTES: usize = 256 * 1024;
/// Targets that a hook names, at most.
const MAX_TARGETS: usize = 4;

/// What is known of a node.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// What its agent says of it, once it was heard.
    pub node: Option<&'a Node>,
    /// Why its agent does not answer.
    pub unreachable: Option<&'a str>,
    /// By uid; none before the agent's first list.
    pub reports: Option<&'a BTreeMap<String, ProgramReport>>,
    /// The status that it has.
    pub previous: &'a EbpfNodeStatus,
}

/// The status that the node should have. `lastSeen` is `now` if the agent answers.
pub fn status(view: View<'_>, now: &Time) -> EbpfNodeStatus {
    let previous = view.previous.clone();
    // Unknown is not none: an operator that has just started, and has not heard the agent, leaves what was written.
    let (programs, program_count, truncated) = match view.reports {
        Some(reports) => (listed(reports), Some(i32::try_from(reports.len()).unwrap_or(i32::MAX)), false),
        None => (previous.programs, previous.program_count, previous.truncated),
    };
    let last_seen = match view.unreachable {
        Some(_) => previous.agent.as_ref().and_then(|agent| agent.last_seen.clone()),
        None => Some(now.clone()),
    };
    let agent = view.node.map(|node| AgentInfo {
        version: node.agent_version.clone(),
        instance: node.instance.clone(),
        healthy: view.unreachable.is_none(),
        message: view.unreachable.map(Into::into),
        last_seen: last_seen.clone(),
    });
    let unheard = previous.agent.map(|agent| AgentInfo {
        healthy: view.unreachable.is_none(),
        message: view.unreachable.map(Into::into),
        last_seen,
        ..agent
    });
    let kernel = view
        .node
        .map(|node| KernelInfo { release: node.kernel_release.clone(), architecture: node.architecture.clone() });
    let mut status = EbpfNodeStatus {
        agent: agent.or(unheard),
        kernel: kernel.or(previous.kernel),
        features: view.node.map(|node| features(&node.features)).or(previous.features),
        program_count,
        programs,
        truncated,
        conditions: conditions(previous.conditions, view.unreachable, now),
    };
    bound(&mut status);
    status
}

/// Whether two statuses say the same, but for when the agent was last heard.
pub fn says_the_same(one: &EbpfNodeStatus, other: &EbpfNodeStatus) -> bool {
    let timeless = |status: &EbpfNodeStatus| {
        let mut status = status.clone();
        status.agent.iter_mut().for_each(|agent| agent.last_seen = None);
        status
    };
    timeless(one) == timeless(other)
}

fn conditions(mut conditions: Vec<Condition>, unreachable: Option<&str>, now: &Time) -> Vec<Condition> {
    let (reason, message) = match unreachable {
        None => (Reason::Ready, "the agent answers".to_string()),
        Some(why) => (Reason::NodeUnreachable, format!("the agent does not answer: {why}")),
    };
    let ready = Condition {
        type_: READY.into(),
        status: unreachable.is_none().into(),
        reason,
        message,
        observed_generation: None,
        last_transition_time: now.clone(),
    };
    merge_condition(&mut conditions, ready, now);
    conditions
}

fn listed(reports: &BTreeMap<String, ProgramReport>) -> Vec<NodeProgram> {
    let mut programs: Vec<NodeProgram> = reports.values().map(program).collect();
    programs
        .sort_by(|one, other| (&one.namespace, &one.name, &one.uid).cmp(&(&other.namespace, &other.name, &other.uid)));
    programs
}

fn program(report: &ProgramReport) -> NodeProgram {
    let text = |text: &str| Some(text.to_string()).filter(|text| !text.is_empty());
    NodeProgram {
        namespace: report.namespace.clone(),
        name: report.name.clone(),
        uid: report.uid.clone(),
        revision: text(&report.running_revision),
        state: Some(match report.state() {
            State::Ready => NodeProgramState::Ready,
            State::Degraded => NodeProgramState::Degraded,
            State::Failed => NodeProgramState::Failed,
            State::Unsupported => NodeProgramState::Unsupported,
            State::Removing => NodeProgramState::Removing,
            State::Updating | State::Unspecified => NodeProgramState::Updating,
        }),
        reason: text(&report.reason).map(|word| word.parse().unwrap_or(Reason::Internal)),
        message: text(&report.message),
        functions: report
            .functions
            .iter()
            .map(|function| LoadedFunction { name: function.name.clone(), id: function.id, tag: function.tag.clone() })
            .collect(),
        hooks: report
            .hooks
            .iter()
            .map(|hook| NodeHook {
                function: hook.function.clone(),
                hook: hook.hook.clone(),
                targets: i32::try_from(hook.targets).unwrap_or(i32::MAX),
                first: hook.names.iter().take(MAX_TARGETS).cloned().collect(),
            })
            .collect(),
    }
}

fn features(features: &[Feature]) -> Features {
    let named = |name: &str| features.iter().find(|feature| feature.name == name);
    let has = |name: &str| named(name).is_some_and(|feature| feature.supported);
    let reason = |feature: &Feature| Some(feature.reason.clone()).filter(|reason| !reason.is_empty());
    let kinds = features.iter().filter_map(|feature| {
        let support = Support { supported: feature.supported, reason: reason(feature).filter(|_| !feature.supported) };
        Some((feature.name.strip_prefix("kind/")?.to_string(), support))
    });
    Features {
        btf: has("btf"),
        jit: has("jit"),
        bpffs: has("bpffs"),
        cgroup_v2: has("cgroup2"),
        lockdown: named("lockdown").map(|feature| reason(feature).unwrap_or_else(|| "none".into())),
        program_kinds: kinds.collect(),
    }
}

/// Keeps within the bound: names only, and as many as there is room for.
fn bound(status: &mut EbpfNodeStatus) {
    let size = |status: &EbpfNodeStatus| serde_json::to_vec(status).map_or(0, |bytes| bytes.len());
    if size(status) <= MAX_BYTES {
        return;
    }
    status.truncated = true;
    for program in &mut status.programs {
        let (namespace, name) = (std::mem::take(&mut program.namespace), std::mem::take(&mut program.name));
        *program = NodeProgram { namespace, name, ..NodeProgram::default() };
    }
    let each = size(status) / status.programs.len().max(1) + 1;
    if size(status) > MAX_BYTES {
        status.programs.truncate(MAX_BYTES / each);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::report;
    use serde_json::json;

    fn now() -> Time {
        serde_json::from_value(json!("2024-01-01T00:00:00Z")).unwrap()
    }

    fn node() -> Node {
        let feature =
            |name: &str, supported, reason: &str| Feature { name: name.into(), supported, reason: reason.into() };
        Node {
            node_name: "n1".into(),
            instance: "i1".into(),
            agent_version: "0.1.0".into(),
            kernel_release: "6.12.30".into(),
            architecture: "x86_64".into(),
            features: vec![
                feature("btf", true, ""),
                feature("kind/xdp", true, ""),
                feature("kind/kprobe", false, "no CONFIG_KPROBES"),
            ],
            ..Node::default()
        }
    }

    #[test]
    fn a_node_and_what_runs_there() {
        let mut ready = report("r1", State::Ready, "Ready", "");
        ready.hooks[0].names = ["a", "b", "c", "d", "e"].map(String::from).to_vec();
        let reports = [("uid-flows".to_string(), ready)].into();
        let (node, previous) = (node(), EbpfNodeStatus::default());
        let status =
            status(View { node: Some(&node), unreachable: None, reports: Some(&reports), previous: &previous }, &now());
        let wanted = json!({
            "agent": {"version": "0.1.0", "instance": "i1", "healthy": true, "lastSeen": "2024-01-01T00:00:00Z"},
            "kernel": {"release": "6.12.30", "architecture": "x86_64"},
            "features": {
                "btf": true, "jit": false, "bpffs": false, "cgroupV2": false,
                "programKinds": {
                    "xdp": {"supported": true}, "kprobe": {"supported": false, "reason": "no CONFIG_KPROBES"},
                },
            },
            "programCount": 1,
            "programs": [{
                "namespace": "net", "name": "flows", "uid": "uid-flows", "revision": "r1", "state": "Ready",
                "reason": "Ready",
                "hooks": [{"function": "count_rx", "hook": "xdp", "targets": 1, "first": ["a", "b", "c", "d"]}],
            }],
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "Ready", "message": "the agent answers",
                "lastTransitionTime": "2024-01-01T00:00:00Z",
            }],
        });
        assert_eq!(serde_json::to_value(&status).unwrap(), wanted);
    }

    #[test]
    fn a_node_that_is_away_keeps_what_was_known() {
        let ready = report("r1", State::Ready, "Ready", "");
        let (node, reports, none) = (node(), [("uid-flows".to_string(), ready)].into(), EbpfNodeStatus::default());
        let first =
            status(View { node: Some(&node), unreachable: None, reports: Some(&reports), previous: &none }, &now());
        let later: Time = serde_json::from_value(json!("2024-01-02T00:00:00Z")).unwrap();
        let away = View { node: None, unreachable: Some("refused"), reports: None, previous: &first };
        let away = status(away, &later);
        assert_eq!((away.programs.len(), &away.programs, away.program_count), (1, &first.programs, Some(1)));
        assert_eq!(away.kernel, first.kernel);
        let agent = away.agent.clone().unwrap();
        assert_eq!((agent.healthy, agent.message.as_deref(), agent.last_seen), (false, Some("refused"), Some(now())));
        assert!(!says_the_same(&away, &first));
    }

    #[test]
    fn a_status_has_a_bound() {
        let long = report("r1", State::Failed, "Internal", &"x".repeat(1000));
        let reports =
            (0..5000).map(|n| (n.to_string(), ProgramReport { name: format!("p{n}"), ..long.clone() })).collect();
        let previous = EbpfNodeStatus::default();
        let status =
            status(View { node: None, unreachable: None, reports: Some(&reports), previous: &previous }, &now());
        assert!(status.truncated && serde_json::to_vec(&status).unwrap().len() <= MAX_BYTES);
        assert_eq!(status.program_count, Some(5000));
        assert!(status.programs.len() > 1000 && status.programs[0].message.is_none());
    }
}
