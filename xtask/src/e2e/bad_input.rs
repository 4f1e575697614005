//! Bad input past the API: each shows its reason on the object and an Event in time, names the node, leaves nothing
//! half-loaded, and disturbs nobody. What can be mended heals without a restart.

mod images;

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Cluster, NODE_NAME, host};
use crate::install::until;
use crate::step;

/// From `kubectl apply` to reason and Event: the promise is 5 s after the cause is known, so this is stricter.
const DEADLINE: Duration = Duration::from_secs(5);
/// What comes late is asked for again within this.
const RETRIED: Duration = Duration::from_secs(45);

/// (name, image, program, more of the spec, reason, a part of the message)
type Case = (&'static str, &'static str, &'static str, &'static str, &'static str, &'static str);

const PROGRAM: &str = "{name: count_rx, attach: [{xdp: {interfaces: {match: [\"none*\"]}}}]}";
const FLOWS: &str = "{name: count_flows, attach: [{tcx: {direction: Ingress, interfaces: {match: [\"none*\"]}}}]}";
const TRACE_EXEC: &str = "{name: count_execs, attach: [{tracepoint: {category: sched, name: sched_process_exec}}]}";
const TRACE: &str = "{name: trace, attach: [{tracepoint: {category: sched, name: sched_process_exec}}]}";

/// Of the image, by whoever is first to look: the operator at the tag, an agent at the bytes.
const OF_IMAGES: &[Case] = &[
    ("missing-tag", "xdp-counter:nope", PROGRAM, "", "ImageNotFound", "does not have it"),
    ("missing-repository", "nope:v1", PROGRAM, "", "ImageNotFound", "does not have it"),
    ("no-image", "bad/not-an-image:v1", PROGRAM, "", "ImageInvalid", "has no image, and none for linux/"),
    ("no-object", "busybox:dev", PROGRAM, "", "ImageInvalid", "no .o file"),
    ("not-elf", "bad/text:v1", PROGRAM, "", "ImageInvalid", "no ELF file"),
    ("truncated", "bad/truncated:v1", PROGRAM, "", "ObjectInvalid", "truncated"),
    ("big-endian", "bad/big-endian:v1", PROGRAM, "", "ObjectInvalid", "big-endian"),
];

/// Of the spec against the object, and of the node.
const OF_NODES: &[Case] = &[
    (
        "unknown-program",
        "xdp-counter:v1",
        "{name: count_xr, attach: [{xdp: {interfaces: {match: [\"none*\"]}}}]}",
        "",
        "ProgramUnknown",
        "no program count_xr; it has count_rx",
    ),
    ("unknown-global", "tcx-flows:v1", FLOWS, "globals: {smaple_rate: 1}", "GlobalInvalid", "global smaple_rate"),
    (
        "oversized-global",
        "tcx-flows:v1",
        FLOWS,
        "globals: {sample_rate: 4294967296}",
        "GlobalInvalid",
        "is outside 0..=4294967295",
    ),
    ("rejected", "bad/rejected:v1", TRACE, "", "VerifierRejected", "rejected.bpf.c:"),
    (
        "no-interface",
        "xdp-counter:v1",
        "{name: count_rx, attach: [{xdp: {interfaces: {names: [eth77]}}}]}",
        "",
        "TargetNotFound",
        "this node has no interface eth77",
    ),
    (
        "no-hook",
        "exec-events:v1",
        "{name: count_execs, attach: [{tracepoint: {category: sched, name: no_such_event}}]}",
        "",
        "TargetNotFound",
        "tracepoint sched/no_such_event not found",
    ),
];

pub fn reasons(c: &Cluster) -> Result<()> {
    images::push(c)?;
    let before = host::Snapshot::take()?;
    let good = c.on_node("xdp-counter")?;
    for case in OF_IMAGES.iter().chain(OF_NODES) {
        check(c, case, &before).with_context(|| case.0.to_owned())?;
    }
    lacking_kind(c, &before).context("a kind that this kernel lacks")?;
    // Selectors that match nothing are no failure.
    apply(c, "no-target", "xdp-counter:v1", PROGRAM, "")?;
    expect(c, "no-target", "NoTarget", "")?;
    let ready = c.program("no-target")?;
    ensure!(condition(&ready, "Ready") == "True", "NoTarget is not Ready: {}", ready["status"]);
    delete(c, "no-target")?;
    let left = host::Snapshot::take()?.difference(&before, host::Except::Files);
    ensure!(left.is_empty(), "left behind: {left:?}");
    ensure!(c.on_node("xdp-counter")? == good, "a neighbour was disturbed");
    Ok(())
}

fn check(c: &Cluster, case: &Case, before: &host::Snapshot) -> Result<()> {
    let (name, image, program, extra, reason, message) = case;
    let start = Instant::now();
    apply(c, name, image, program, extra)?;
    wait(c, start, name, reason, message)?;
    loop {
        let selector = format!("involvedObject.name={name},reason={reason}");
        let events = c.json(&["get", "events", "--field-selector", &selector])?;
        if events["items"].as_array().is_some_and(|e| !e.is_empty()) {
            break;
        }
        ensure!(start.elapsed() < DEADLINE, "no Event with reason {reason}");
        std::thread::sleep(Duration::from_millis(100));
    }
    // Who looked first was the operator, for what is wrong before any node is asked.
    let failures = c.program(name)?["status"]["failures"].clone();
    if let Some(failure) = failures.as_array().and_then(|all| all.first()) {
        ensure!(failure["nodes"][0] == NODE_NAME && failure["count"] == 1, "the node is not named: {failures}");
    } else {
        ensure!(OF_IMAGES.iter().any(|known| known.0 == *name), "no node is blamed for {name}");
    }
    // What only lacks its target, or a way to attach there, is loaded whole, and waits.
    if !["TargetNotFound", "KernelUnsupported"].contains(reason) {
        let half = host::Snapshot::take()?.difference(before, host::Except::Files);
        ensure!(half.is_empty(), "half-loaded: {half:?}");
    }
    delete(c, name)
}

/// Some kernels lack kprobes, some fentry; the newest have all, and then there is nothing to show.
fn lacking_kind(c: &Cluster, before: &host::Snapshot) -> Result<()> {
    if std::path::Path::new("/sys/bus/event_source/devices/kprobe").exists() {
        println!("  a kind that this kernel lacks: SKIPPED: it has kprobes");
        return Ok(());
    }
    let program = "{name: probe, attach: [{kprobe: {function: do_unlinkat}}]}";
    check(c, &("lacking", "bad/kprobe:v1", program, "", "KernelUnsupported", "CONFIG_KPROBE_EVENTS"), before)
}

/// A registry that asks for a password: refused without, served with the Secret.
pub fn no_access(c: &Cluster) -> Result<()> {
    let registry = images::PrivateRegistry::start(c)?;
    let reference = registry.reference();
    let manifest = |secrets: &str| {
        format!(
            "apiVersion: skep.dev/v1alpha1\nkind: EbpfProgram\nmetadata: {{name: private, namespace: default}}\nspec:\n  \
             image: {{reference: \"{reference}\"{secrets}}}\n  programs: [{PROGRAM}]\n"
        )
    };
    c.place.apply(&manifest(""))?;
    expect(c, "private", "ImageUnauthorized", &reference)?;
    let (user, password) = images::LOGIN;
    c.kubectl(&[
        "create",
        "secret",
        "docker-registry",
        "private-registry",
        &format!("--docker-server={}", images::PRIVATE),
        &format!("--docker-username={user}"),
        &format!("--docker-password={password}"),
    ])?;
    c.place.apply(&manifest(", pullSecrets: [{name: private-registry}]"))?;
    let result = expect(c, "private", "NoTarget", "");
    c.kubectl(&["delete", "secret", "private-registry"])?;
    delete(c, "private")?;
    result
}

/// Client-side apply drops a key without a value before the server sees it: the selection would grow without a word.
pub fn emptied(c: &Cluster) -> Result<()> {
    let apply = |selector: &str| {
        let image = format!("{}/exec-events:v1", c.place.registry);
        let text = format!(
            "apiVersion: skep.dev/v1alpha1\nkind: EbpfProgram\nmetadata: {{name: narrow, namespace: default}}\nspec:\n  \
             image: {{reference: \"{image}\"}}\n  nodeSelector:{selector}\n  programs: [{TRACE_EXEC}]\n"
        );
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), text)?;
        c.kubectl(&["apply", "-f", &file.path().to_string_lossy()]).map(drop)
    };
    let elsewhere = " {matchLabels: {kubernetes.io/hostname: elsewhere}}";
    apply(elsewhere)?;
    expect(c, "narrow", "NoMatchingNode", "")?;
    apply("")?;
    wait_condition(c, "narrow", "ObjectUnreadable", "spec.nodeSelector was applied without a value")?;
    ensure!(c.on_node("narrow").is_err(), "it runs where it was never meant to");
    apply(elsewhere)?;
    expect(c, "narrow", "NoMatchingNode", "")?;
    delete(c, "narrow")
}

/// Of an object that is not understood, the condition alone is written.
fn wait_condition(c: &Cluster, name: &str, reason: &str, message: &str) -> Result<()> {
    until(&format!("{name} says {reason}"), DEADLINE, || {
        let conditions = c.program(name)?["status"]["conditions"].to_string();
        Ok(conditions.contains(reason) && conditions.contains(message))
    })
}

/// A tag that is pushed after the program that names it.
pub fn late_tag(c: &Cluster) -> Result<()> {
    let tag = format!("late/exec-events:{}", jiff::Timestamp::now().as_second());
    apply(c, "late", &tag, TRACE_EXEC, "")?;
    expect(c, "late", "ImageNotFound", "")?;
    images::push_object(c, &tag, &std::fs::read(crate::bpf::objects().join("exec-events.o"))?)?;
    until("the tag is found", RETRIED, || Ok(c.program("late")?["status"]["summary"]["reason"] == "Ready"))?;
    delete(c, "late")
}

const LINK: &str = "skep-e2e0";

/// An interface of the test's own.
struct Veth;

impl Veth {
    fn add() -> Result<Self> {
        let add = ["link", "add", LINK, "up", "type", "veth", "peer", "name", "skep-e2e1"];
        step::ask(Command::new("ip").args(add)).map(|_| Self)
    }
}

impl Drop for Veth {
    fn drop(&mut self) {
        // Gone already when the test came so far.
        let _gone = step::ask(Command::new("ip").args(["link", "del", LINK]));
    }
}

/// Program and maps stay loaded when the interface goes, and the program is back with it.
pub fn vanishing_interface(c: &Cluster) -> Result<()> {
    let link = Veth::add()?;
    let program = format!("{{name: count_rx, attach: [{{xdp: {{interfaces: {{names: [{LINK}]}}}}}}]}}");
    apply(c, "vanishing", "xdp-counter:v1", &program, "")?;
    c.ready("vanishing")?;
    let functions = || -> Result<Value> { Ok(c.on_node("vanishing")?["functions"].clone()) };
    // What is on nodes is written a moment after the program is Ready.
    until("its node shows the program", DEADLINE, || Ok(functions()?[0]["id"].is_number()))?;
    let before = functions()?;
    drop(link);
    expect(c, "vanishing", "TargetNotFound", LINK)?;
    ensure!(functions()? == before, "the program did not stay loaded: {before} became {}", functions()?);
    let _link = Veth::add()?;
    expect(c, "vanishing", "Ready", "")?;
    ensure!(functions()? == before, "it was loaded again: {before} became {}", functions()?);
    delete(c, "vanishing")
}

fn apply(c: &Cluster, name: &str, image: &str, program: &str, extra: &str) -> Result<()> {
    let registry = &c.place.registry;
    c.place.apply(&format!(
        "apiVersion: skep.dev/v1alpha1\nkind: EbpfProgram\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  image: {{reference: \"{registry}/{image}\"}}\n  programs: [{program}]\n  {extra}\n"
    ))
}

fn delete(c: &Cluster, name: &str) -> Result<()> {
    c.kubectl(&["delete", "ebpf", name, "--timeout=20s"]).map(drop)
}

fn condition(program: &Value, kind: &str) -> String {
    let conditions = program["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.iter().find(|c| c["type"] == kind);
    found.and_then(|c| c["status"].as_str()).unwrap_or_default().to_owned()
}

/// The object shows a reason, in time from now.
pub fn expect(c: &Cluster, name: &str, reason: &str, message: &str) -> Result<()> {
    wait(c, Instant::now(), name, reason, message)
}

fn wait(c: &Cluster, start: Instant, name: &str, reason: &str, message: &str) -> Result<()> {
    loop {
        let program = c.program(name)?;
        let status = &program["status"];
        if status["summary"]["reason"] == reason && status.to_string().contains(message) {
            return Ok(());
        }
        if start.elapsed() > DEADLINE {
            bail!("expected {reason} and {message:?} within {DEADLINE:?}, got {status:#}");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
