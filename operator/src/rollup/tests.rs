use super::*;
use crate::testing::{program, report};
use serde_json::{Value, json};

const REV: &str = "aaaaaaaaaa";

fn time(text: &str) -> Time {
    serde_json::from_value(text.into()).unwrap()
}

fn now() -> Time {
    time("2024-01-01T00:00:00Z")
}

fn image() -> Resolution {
    let reference = "registry.example.com/ebpf/flows:v2".into();
    Resolution { reference, digest: "sha256:0".into(), credentials: vec![], missing: vec![] }
}

fn status(nodes: Vec<(&str, Standing<'_>)>) -> Value {
    status_of(&program("flows"), nodes)
}

fn status_of(program: &EbpfProgram, nodes: Vec<(&str, Standing<'_>)>) -> Value {
    let view = View { program, image: Image::Resolved(&image()), revision: REV, nodes };
    serde_json::to_value(rollup(&view, &now())).unwrap()
}

fn condition(type_: &str, status: &str, reason: &str, message: &str) -> Value {
    json!({
        "type": type_, "status": status, "reason": reason, "message": message,
        "observedGeneration": 1, "lastTransitionTime": "2024-01-01T00:00:00Z",
    })
}

fn counts(counts: [i32; 7]) -> Value {
    let [desired, ready, updating, failed, degraded, unsupported, unreachable] = counts;
    json!({
        "desired": desired, "ready": ready, "updating": updating, "failed": failed, "degraded": degraded,
        "unsupported": unsupported, "unreachable": unreachable,
    })
}

#[test]
fn all_nodes_run_it_but_one_that_does_not_answer() {
    let ready = report(REV, State::Ready, "Ready", "");
    let nodes = vec![
        ("n1", Standing::Report(&ready)),
        ("n2", Standing::Report(&ready)),
        ("n3", Standing::Unreachable("connection refused")),
    ];
    let wanted = json!({
        "observedGeneration": 1,
        "summary": {"ready": "2/3", "reason": "Ready"},
        "image": {"reference": "registry.example.com/ebpf/flows:v2", "digest": "sha256:0"},
        "revision": REV,
        "nodes": counts([3, 2, 0, 0, 0, 0, 1]),
        "failures": [{
            "reason": "NodeUnreachable", "count": 1, "nodes": ["n3"],
            "message": "the node's agent does not answer; what runs there goes on, and it is tried again",
        }],
        "conditions": [condition("Ready", "True", "Ready", "runs on 2 of 3 nodes; unreachable: n3")],
    });
    assert_eq!(status(nodes), wanted);
}

#[test]
fn a_refusal_by_the_verifier_is_said_with_its_log_and_nodes() {
    let ready = report(REV, State::Ready, "Ready", "");
    let mut bad = report(REV, State::Failed, "VerifierRejected", "count_rx: R1 invalid mem access");
    bad.log = "last line".into();
    let nodes = vec![("n1", Standing::Report(&bad)), ("n2", Standing::Report(&ready)), ("n3", Standing::Report(&bad))];
    let said = "count_rx: R1 invalid mem access (on n1, n3)";
    let wanted = json!({
        "observedGeneration": 1,
        "summary": {"ready": "1/3", "reason": "VerifierRejected"},
        "image": {"reference": "registry.example.com/ebpf/flows:v2", "digest": "sha256:0"},
        "revision": REV,
        "nodes": counts([3, 1, 0, 2, 0, 0, 0]),
        "failures": [{
            "reason": "VerifierRejected", "message": "count_rx: R1 invalid mem access", "log": "last line",
            "count": 2, "nodes": ["n1", "n3"],
        }],
        "conditions": [
            condition("Ready", "False", "VerifierRejected", said),
            condition("Stalled", "True", "VerifierRejected", said),
        ],
    });
    assert_eq!(status(nodes), wanted);
}

fn ready_condition(nodes: Vec<(&str, Standing<'_>)>) -> (String, String, String) {
    let status = status(nodes);
    let condition = &status["conditions"][0];
    let text = |key: &str| condition[key].as_str().unwrap().to_string();
    assert_eq!(text("type"), "Ready");
    (text("status"), text("reason"), text("message"))
}

fn is(status: &str, reason: &str, message: &str) -> (String, String, String) {
    (status.into(), reason.into(), message.into())
}

#[test]
fn what_holds_ready_and_what_does_not() {
    let ready = report(REV, State::Ready, "Ready", "");
    let old = report("bbbbbbbbbb", State::Ready, "Ready", "");
    let updating = report(REV, State::Updating, "Progressing", "");
    let unsupported = report(REV, State::Unsupported, "KernelUnsupported", "tcx needs Linux 6.6");
    let mut idle = report(REV, State::Ready, "NoTarget", "");
    idle.hooks[0].targets = 0;
    let full = report(REV, State::Failed, "NodeFull", "map flows");
    use Standing::{Report, Unreachable, Waiting};
    assert_eq!(ready_condition(vec![]), is("False", "NoMatchingNode", "no node has an agent"));
    assert_eq!(ready_condition(vec![("a", Report(&ready))]), is("True", "Ready", "runs on 1 node"));
    assert_eq!(
        ready_condition(vec![("a", Report(&ready)), ("b", Report(&old))]),
        is("False", "WaitingForNode", "1 of 2 nodes run the revision; nothing was heard yet from b")
    );
    assert_eq!(
        ready_condition(vec![("a", Report(&updating)), ("b", Waiting)]),
        is("False", "Progressing", "0 of 2 nodes run the revision; being updated: a")
    );
    assert_eq!(
        ready_condition(vec![("a", Report(&unsupported)), ("b", Report(&ready))]),
        is("True", "Ready", "runs on 1 of 2 nodes; not supported by: a")
    );
    assert_eq!(
        ready_condition(vec![("a", Report(&unsupported)), ("b", Unreachable("x"))]),
        is("False", "KernelUnsupported", "tcx needs Linux 6.6 (on a)")
    );
    assert_eq!(ready_condition(vec![("b", Unreachable("x"))]).1, "NodeUnreachable");
    assert_eq!(
        ready_condition(vec![("a", Report(&idle)), ("b", Report(&idle))]),
        is("True", "NoTarget", "runs on 2 nodes; its selectors match nothing on any node")
    );
    assert_eq!(ready_condition(vec![("a", Report(&idle)), ("b", Report(&ready))]).1, "Ready");
    let transient = status(vec![("a", Report(&full))]);
    assert_eq!(transient["conditions"][1]["type"], "Reconciling", "what is tried again is not stalled");
}

#[test]
fn a_suspended_program_is_ready_and_says_that_it_is_on_no_hook() {
    let mut program = program("flows");
    program.spec.suspend = Some(true);
    let mut detached = report(REV, State::Ready, "Suspended", "");
    detached.hooks[0].targets = 0;
    let condition = &status_of(&program, vec![("a", Standing::Report(&detached))])["conditions"][0];
    assert_eq!((&condition["status"], &condition["reason"]), (&json!("True"), &json!("Suspended")));
}

#[test]
fn failures_are_at_most_ten_groups_of_ten_names() {
    let names: Vec<String> = (0..40).map(|index| format!("node-{index:02}")).collect();
    let reports: Vec<ProgramReport> = (0..40)
        .map(|index| {
            let message = if index < 12 { "same".to_string() } else { format!("odd {index}") };
            report(REV, State::Failed, "Internal", &message)
        })
        .collect();
    let nodes = names.iter().map(String::as_str).zip(reports.iter().map(Standing::Report)).collect();
    let program = program("flows");
    let image = image();
    let view = View { program: &program, image: Image::Resolved(&image), revision: REV, nodes };
    let failures = rollup(&view, &now()).failures;
    assert_eq!(failures.len(), 10);
    assert_eq!((failures[0].count, failures[0].nodes.len()), (12, 10));
    assert_eq!(failures.iter().map(|failure| failure.count).sum::<i32>(), 40);
    assert!(failures[9].message.ends_with("(and 19 other failures; kubectl get ebpfnode has them all)"));
}

#[test]
fn an_image_that_cannot_be_had_is_the_reason() {
    let program = program("flows");
    let problem = Problem { reason: Reason::ImageNotFound, message: "image x: not there".into() };
    let view =
        View { program: &program, image: Image::Failed(&problem), revision: "", nodes: vec![("a", Standing::Waiting)] };
    let status = rollup(&view, &now());
    assert_eq!((status.revision, status.image), (None, None));
    assert_eq!(status.summary.unwrap(), Summary { ready: "0/1".into(), reason: Reason::ImageNotFound });
    let types: Vec<&str> = status.conditions.iter().map(|condition| condition.type_.as_str()).collect();
    assert_eq!(types, ["Ready", "Stalled"]);
}

#[test]
fn nothing_changes_when_nothing_changed() {
    let (mut program, image, ready) = (program("flows"), image(), report(REV, State::Ready, "Ready", ""));
    let status = |program: &EbpfProgram, at: &str| {
        let nodes = vec![("a", Standing::Report(&ready))];
        rollup(&View { program, image: Image::Resolved(&image), revision: REV, nodes }, &time(at))
    };
    let first = status(&program, "2024-01-01T00:00:00Z");
    program.status = Some(first.clone());
    assert_eq!(status(&program, "2024-01-02T00:00:00Z"), first);
}
