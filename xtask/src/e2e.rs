//! The cluster level: Skep installed by its chart on a real API server, kubelet, containerd and registry, used as its
//! users do: by `kubectl`, `helm` and `kubectl skep`.
//!
//! The tests run in order on one installation: each builds on what the ones before have shown.

mod bad_input;
mod changes;
mod demo;
mod host;
mod inspect;
mod manifests;
mod restart;
mod samples;
mod trust;
mod versions;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::install::{NAMESPACE, Place, TAG, until};
use crate::{bpf, build, cluster, install, step};

/// The test cluster's one node.
const NODE_NAME: &str = "skep-node";

type Test = fn(&Cluster) -> Result<()>;

const TESTS: &[(&str, Test)] = &[
    ("install", install),
    ("versions::an_upgrade_brings_a_new_field_and_disturbs_nothing", versions::upgrade),
    ("bad_manifests_get_the_same_verdict_everywhere", manifests::same_verdict),
    ("samples::xdp_counter", samples::xdp_counter),
    ("samples::tcx_flows", samples::tcx_flows),
    ("samples::exec_events", samples::exec_events),
    ("samples::connect_guard", samples::connect_guard),
    ("samples::malloc_sizes", samples::malloc_sizes),
    ("samples::a_changed_global_is_a_new_revision_and_keeps_the_map", samples::changed_global),
    ("changes::labels_and_node_selector_touch_nothing", changes::labels_and_node_selector),
    ("changes::suspend_resume_and_restart", changes::suspend_resume_restart),
    ("restart::an_agent_killed_while_counting_misses_nothing", restart::agent_killed),
    ("restart::a_moved_tag_and_a_killed_operator_change_nothing", restart::moved_tag),
    ("restart::an_api_server_away_for_a_while", restart::api_server_away),
    ("trust::calls_without_the_right_are_refused", trust::refused),
    ("trust::certificates_of_others_are_refused", trust::other_certificates),
    ("versions::a_kind_from_the_future_is_left_alone", versions::unknown_kind),
    ("bad_input::each_has_its_reason_and_an_event", bad_input::reasons),
    ("bad_input::a_private_registry_is_read_with_its_secret", bad_input::no_access),
    ("bad_input::a_key_that_kubectl_emptied_changes_nothing", bad_input::emptied),
    ("bad_input::a_tag_that_comes_late_is_found", bad_input::late_tag),
    ("bad_input::an_interface_that_goes_and_comes_back", bad_input::vanishing_interface),
    ("inspect::maps_are_written_and_events_followed", inspect::written_and_followed),
    ("inspect::changes_of_a_map_are_watched", inspect::watched),
    ("demo_on_a_cluster_of_ones_own", demo::own_cluster),
    ("logs_have_no_colours", logs),
    ("deletion_leaves_nothing", deletion),
    ("uninstall_leaves_nothing", uninstall),
];

/// What tests work on.
pub struct Cluster {
    pub place: Place,
    pub before: host::Snapshot,
}

/// Runs the tests; (passed, failed).
pub fn run(filter: Option<&str>) -> Result<(u64, u64)> {
    // First: what does not compile leaves no cluster behind.
    bpf::build_all()?;
    build::binaries()?;
    let started = !install::is_up();
    if started {
        cluster::Cluster::Up.run()?;
    }
    let place = Place::test_cluster();
    place.push()?;
    let cluster = Cluster { place, before: host::Snapshot::take()? };
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in TESTS {
        // The first two and the last frame all others.
        let framing = ["install", "versions::an_upgrade", "uninstall"].iter().any(|frame| name.starts_with(frame));
        if !framing && filter.is_some_and(|filter| !name.contains(filter)) {
            continue;
        }
        let start = Instant::now();
        match test(&cluster) {
            Ok(()) => {
                passed += 1;
                println!("test {name} ... ok ({:.1} s)", start.elapsed().as_secs_f64());
            }
            Err(error) => {
                failed += 1;
                println!("test {name} ... FAILED ({:.1} s)\n  {error:#}", start.elapsed().as_secs_f64());
                cluster.explain();
                if framing {
                    break;
                }
            }
        }
    }
    if started {
        cluster::Cluster::Down.run()?;
    }
    Ok((passed, failed))
}

impl Cluster {
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        step::ask(&mut self.place.kubectl(args))
    }

    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let mut all = args.to_vec();
        all.extend(["-o", "json"]);
        serde_json::from_str(&self.kubectl(&all)?).context("kubectl did not print JSON")
    }

    pub fn skep(&self, args: &[&str]) -> Result<String> {
        step::ask(&mut self.place.kubectl_skep(args))
    }

    /// Runs a shell command in a pod.
    pub fn exec(&self, pod: &str, script: &str) -> Result<String> {
        self.kubectl(&["exec", pod, "--", "/bin/sh", "-c", script])
    }

    /// An EbpfProgram of the namespace `default`.
    pub fn program(&self, name: &str) -> Result<Value> {
        self.json(&["get", "ebpf", name])
    }

    pub fn ready(&self, name: &str) -> Result<()> {
        self.kubectl(&["wait", "--for=condition=Ready", &format!("ebpf/{name}"), "--timeout=30s"]).map(drop)
    }

    /// The program as its node has it, from EbpfNode.
    pub fn on_node(&self, name: &str) -> Result<Value> {
        let nodes = self.json(&["get", "ebpfnodes"])?;
        let programs = nodes["items"][0]["status"]["programs"].as_array().cloned().unwrap_or_default();
        programs.into_iter().find(|p| p["name"] == name).with_context(|| format!("no node has {name}"))
    }

    /// The entries of a map, through the plugin. Which nodes a program runs on is in EbpfNode, which is written a moment
    /// after the program is Ready.
    pub fn dump(&self, name: &str, map: &str) -> Result<Vec<Value>> {
        let mut text = String::new();
        until(&format!("{name} has a map {map}"), Duration::from_secs(5), || {
            text = self.skep(&["maps", "dump", name, map, "-n", "default", "-o", "json"])?;
            Ok(true)
        })?;
        serde_json::from_str(&text).with_context(|| format!("maps dump printed {text}"))
    }

    /// The sum of all numbers in the values of a map's entries that `wanted` keeps.
    pub fn sum(&self, name: &str, map: &str, field: &str, wanted: impl Fn(&Value) -> bool) -> Result<u64> {
        let entries = self.dump(name, map)?;
        Ok(entries.iter().filter(|e| wanted(&e["key"])).map(|e| total(&e["value"], field)).sum())
    }

    /// What a reader of a failed test wants to see.
    fn explain(&self) {
        for (what, args) in [
            ("programs", vec!["get", "ebpf,ebpfnodes,pods", "-A"]),
            ("operator", vec!["logs", "-n", NAMESPACE, "deployment/skep-operator", "--tail=25"]),
            ("agent", vec!["logs", "-n", NAMESPACE, "daemonset/skep-agent", "--tail=25"]),
        ] {
            let text = self.kubectl(&args).unwrap_or_else(|e| e.to_string());
            for line in text.lines() {
                println!("  {what} | {line}");
            }
        }
    }
}

/// The numbers of a field, over lists (one per CPU); an empty field means the value itself.
fn total(value: &Value, field: &str) -> u64 {
    match value {
        Value::Array(items) => items.iter().map(|v| total(v, field)).sum(),
        Value::Object(members) if !field.is_empty() => members.get(field).map_or(0, |v| total(v, "")),
        Value::Object(members) => members.values().map(|v| total(v, "")).sum(),
        number => number.as_u64().unwrap_or(0),
    }
}

fn install(c: &Cluster) -> Result<()> {
    versions::install_older(c)?;
    c.kubectl(&["rollout", "status", "deployment/skep-operator", "-n", NAMESPACE, "--timeout=60s"])?;
    // At the first install the authority's bundle reaches the agents when kubelet next looks: within about a minute.
    until("the node is reported", Duration::from_secs(120), || {
        let nodes = c.json(&["get", "ebpfnodes"])?;
        Ok(nodes["items"][0]["status"]["kernel"]["release"].is_string())
    })?;
    let registry = &c.place.registry;
    for (name, label, image, command) in [
        ("web", "web", "busybox", "while true; do /bin/sleep 1; done"),
        ("other", "other", "busybox", "while true; do /bin/sleep 1; done"),
        ("web-libc", "web", "libc", "while true; do /bin/sleep 1; done"),
        ("other-libc", "other", "libc", "while true; do /bin/sleep 1; done"),
    ] {
        c.place.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: default, labels: {{app: {label}}}}}, spec: {{terminationGracePeriodSeconds: 0, \
             containers: [{{name: main, image: '{registry}/{image}:{TAG}', command: [/bin/sh, -c, '{command}']}}]}}}}"
        ))?;
    }
    c.kubectl(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"]).map(drop)
}

/// `kubectl logs` and what collects logs show every byte.
fn logs(c: &Cluster) -> Result<()> {
    for part in ["deployment/skep-operator", "daemonset/skep-agent"] {
        let mut log = String::new();
        // A pod that was just made has said nothing yet.
        until(&format!("{part} says something"), Duration::from_secs(30), || {
            log = c.kubectl(&["logs", "-n", NAMESPACE, part])?;
            Ok(log.contains(" INFO ") || log.contains('\u{1b}'))
        })?;
        ensure!(!log.contains('\u{1b}'), "{part} writes escape codes: {log:?}");
    }
    Ok(())
}

fn deletion(c: &Cluster) -> Result<()> {
    c.kubectl(&["delete", "ebpf", "--all", "--timeout=30s"])?;
    until("nothing of the programs is left", Duration::from_secs(15), || {
        let now = host::Snapshot::take()?;
        Ok(now.difference(&c.before, host::Except::Files).is_empty())
    })
    .with_context(|| leftovers(c, host::Except::Files))
}

fn uninstall(c: &Cluster) -> Result<()> {
    // Something must be there for the hook to take away.
    let manifest = c.place.example("exec-events")?;
    c.place.apply(&manifest)?;
    c.ready("exec-events")?;
    let said = uninstalled(c)?;
    for line in [
        "removing all programs from 1 nodes",
        &format!("node {NODE_NAME} is clean"),
        "EbpfPrograms are released",
        "the certificate authority is deleted",
    ] {
        ensure!(said.contains(line), "the hook did not say {line:?}: {said}");
    }
    ensure!(!said.contains("skep-agent purge"), "the hook names a node that is clean: {said}");
    let left = c.json(&["get", "ebpf", "-A"])?;
    for item in left["items"].as_array().into_iter().flatten() {
        if item["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty()) {
            bail!("a finalizer is left on {}", item["metadata"]["name"]);
        }
    }
    let own = c.kubectl(&[
        "get",
        "secret/skep-ca",
        "configmap/skep-ca-bundle",
        "-n",
        NAMESPACE,
        "--ignore-not-found",
        "-o",
        "name",
    ])?;
    if !own.is_empty() {
        bail!("the authority is left: {own}");
    }
    c.kubectl(&["delete", "pod", "--all", "--timeout=30s"])?;
    c.kubectl(&["delete", "crd", "ebpfprograms.skep.dev", "ebpfnodes.skep.dev", "--timeout=30s"])?;
    c.kubectl(&["delete", "namespace", NAMESPACE, "--timeout=60s"])?;
    until("the host is as before", Duration::from_secs(15), || {
        Ok(host::Snapshot::take()?.difference(&c.before, host::Except::Nothing).is_empty())
    })
    .with_context(|| leftovers(c, host::Except::Nothing))
}

/// `helm uninstall`, and what it printed: helm shows the output of hooks, in one line, among its own messages.
fn uninstalled(c: &Cluster) -> Result<String> {
    let output = c.place.helm(&["uninstall", "skep", "--wait", "--timeout", "180s"]).output()?;
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    ensure!(output.status.success(), "helm uninstall: {}: {said}", output.status);
    Ok(said)
}

fn leftovers(c: &Cluster, except: host::Except) -> String {
    let now = host::Snapshot::take().map(|now| now.difference(&c.before, except)).unwrap_or_default();
    format!("left behind: {}", now.join(", "))
}
