//! Values for unit tests.

use serde_json::json;
use skep_crds::EbpfProgram;
use skep_proto::v1::{HookReport, ProgramReport, State};

/// A program in namespace `net`, of generation 1, with the finalizer.
pub fn program(name: &str) -> EbpfProgram {
    serde_json::from_value(json!({
        "apiVersion": "skep.dev/v1alpha1", "kind": "EbpfProgram",
        "metadata": {
            "name": name, "namespace": "net", "uid": format!("uid-{name}"), "generation": 1,
            "finalizers": ["skep.dev/cleanup"], "resourceVersion": "1",
        },
        "spec": {
            "image": {"reference": "registry.example.com/ebpf/flows:v2"},
            "programs": [{"name": "count_rx", "attach": [{"xdp": {"interfaces": {"primary": true}}}]}],
        },
    }))
    .unwrap()
}

/// A report about `uid-flows`, with one target if it is ready.
pub fn report(revision: &str, state: State, reason: &str, message: &str) -> ProgramReport {
    let targets = u32::from(state == State::Ready);
    ProgramReport {
        uid: "uid-flows".into(),
        namespace: "net".into(),
        name: "flows".into(),
        generation: 1,
        desired_revision: revision.into(),
        running_revision: if state == State::Ready { revision.into() } else { String::new() },
        state: state as i32,
        reason: reason.into(),
        message: message.into(),
        hooks: vec![HookReport { function: "count_rx".into(), hook: "xdp".into(), targets, ..HookReport::default() }],
        ..ProgramReport::default()
    }
}
