//! Bad input past the API: each shows its reason on the object and an Event, names the node, and leaves nothing.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Cluster, host};

/// Within this after the cause can be known.
const DEADLINE: Duration = Duration::from_secs(10);

struct Case {
    name: &'static str,
    image: &'static str,
    program: &'static str,
    extra: &'static str,
    reason: &'static str,
    message: &'static str,
}

const CASES: &[Case] = &[
    Case {
        name: "missing-tag",
        image: "xdp-counter:nope",
        program: PROGRAM,
        extra: "",
        reason: "ImageNotFound",
        message: "does not have it",
    },
    Case {
        name: "missing-repository",
        image: "nope:v1",
        program: PROGRAM,
        extra: "",
        reason: "ImageNotFound",
        message: "does not have it",
    },
    Case { name: "no-object", image: "busybox:dev", program: PROGRAM, extra: "", reason: "ImageInvalid", message: "" },
    Case {
        name: "unknown-program",
        image: "xdp-counter:v1",
        program: "{name: count_xr, attach: [{xdp: {interfaces: {match: [\"none*\"]}}}]}",
        extra: "",
        reason: "ProgramUnknown",
        message: "no program count_xr; it has count_rx",
    },
    Case {
        name: "unknown-global",
        image: "tcx-flows:v1",
        program: "{name: count_flows, attach: [{tcx: {direction: Ingress, interfaces: {match: [\"none*\"]}}}]}",
        extra: "globals: {smaple_rate: 1}",
        reason: "GlobalInvalid",
        message: "global smaple_rate",
    },
    Case {
        name: "oversized-global",
        image: "tcx-flows:v1",
        program: "{name: count_flows, attach: [{tcx: {direction: Ingress, interfaces: {match: [\"none*\"]}}}]}",
        extra: "globals: {sample_rate: 4294967296}",
        reason: "GlobalInvalid",
        message: "is outside 0..=4294967295",
    },
    Case {
        name: "no-interface",
        image: "xdp-counter:v1",
        program: "{name: count_rx, attach: [{xdp: {interfaces: {names: [eth77]}}}]}",
        extra: "",
        reason: "TargetNotFound",
        message: "this node has no interface eth77",
    },
    Case {
        name: "no-hook",
        image: "exec-events:v1",
        program: "{name: count_execs, attach: [{tracepoint: {category: sched, name: no_such_event}}]}",
        extra: "",
        reason: "TargetNotFound",
        message: "tracepoint sched/no_such_event not found",
    },
];

const PROGRAM: &str = "{name: count_rx, attach: [{xdp: {interfaces: {match: [\"none*\"]}}}]}";

pub fn reasons(c: &Cluster) -> Result<()> {
    let before = host::Snapshot::take()?;
    let good = c.on_node("xdp-counter")?;
    for case in CASES {
        check(c, case).with_context(|| case.name.to_owned())?;
    }
    // Selectors that match nothing are no failure.
    apply(c, "no-target", "xdp-counter:v1", PROGRAM, "")?;
    wait(c, "no-target", "NoTarget", "")?;
    let ready = c.program("no-target")?;
    ensure!(condition(&ready, "Ready") == "True", "NoTarget is not Ready: {}", ready["status"]);
    c.kubectl(&["delete", "ebpf", "no-target", "--timeout=20s"])?;
    let left = host::Snapshot::take()?.difference(&before, host::Except::Files);
    ensure!(left.is_empty(), "left behind: {left:?}");
    ensure!(c.on_node("xdp-counter")? == good, "a neighbour was disturbed");
    Ok(())
}

fn apply(c: &Cluster, name: &str, image: &str, program: &str, extra: &str) -> Result<()> {
    let registry = &c.place.registry;
    c.place.apply(&format!(
        "apiVersion: skep.dev/v1alpha1\nkind: EbpfProgram\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  image: {{reference: \"{registry}/{image}\"}}\n  programs: [{program}]\n  {extra}\n"
    ))
}

fn condition(program: &Value, kind: &str) -> String {
    let conditions = program["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.iter().find(|c| c["type"] == kind);
    found.and_then(|c| c["status"].as_str()).unwrap_or_default().to_owned()
}

fn wait(c: &Cluster, name: &str, reason: &str, message: &str) -> Result<()> {
    let start = Instant::now();
    loop {
        let program = c.program(name)?;
        let status = &program["status"];
        if status["summary"]["reason"] == reason && status.to_string().contains(message) {
            return Ok(());
        }
        if start.elapsed() > DEADLINE {
            bail!("expected {reason} and {message:?}, got {status:#}");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn check(c: &Cluster, case: &Case) -> Result<()> {
    apply(c, case.name, case.image, case.program, case.extra)?;
    wait(c, case.name, case.reason, case.message)?;
    let start = Instant::now();
    loop {
        let selector = format!("involvedObject.name={},reason={}", case.name, case.reason);
        let events = c.json(&["get", "events", "--field-selector", &selector])?;
        if events["items"].as_array().is_some_and(|e| !e.is_empty()) {
            break;
        }
        ensure!(start.elapsed() < DEADLINE, "no Event with reason {}", case.reason);
        std::thread::sleep(Duration::from_millis(200));
    }
    c.kubectl(&["delete", "ebpf", case.name, "--timeout=20s"]).map(drop)
}
