//! The plugin against a real agent on a real kernel, by the agent's socket. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code, reason = "each test binary uses its part of it")]
mod host;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

use host::Host;
use serde_json::{Value, json};

const ON_LO: &str = "  - name: count_xdp\n    attach:\n    - xdp: {interfaces: {names: [lo]}}\n";
const ON_DUMMY: &str = "  - name: count_xdp\n    attach:\n    - xdp: {interfaces: {names: [absent0]}}\n";
const BAD: &str = "  - name: on_bad\n    attach:\n    - rawTracepoint: {name: sys_enter}\n";

fn ready(host: &Host, name: &str, reason: &str) {
    host.wait(&format!("{name} {reason}"), || {
        let output = host.skep(&["get", name, "-o", "json"]);
        serde_json::from_slice::<Value>(&output.stdout).is_ok_and(|p| p["reason"] == reason)
    });
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Lines of words: how wide the columns are depends on the ids.
fn words(text: &str) -> Vec<Vec<&str>> {
    text.lines().map(|line| line.split_whitespace().collect()).collect()
}

fn yaml(text: &str) -> Value {
    serde_yaml_ng::from_str(text).unwrap()
}

#[test]
fn programs_reasons_and_maps_of_a_host() {
    let host = Host::start();
    host.apply("counter", "kernel/tests/c/net.bpf.c", ON_LO);
    host.apply("bad", "kernel/tests/c/trace.bpf.c", BAD);
    host.apply("nowhere", "kernel/tests/c/net.bpf.c", ON_DUMMY);
    ready(&host, "counter", "Ready");
    ready(&host, "bad", "VerifierRejected");
    ready(&host, "nowhere", "TargetNotFound");
    host.packets(300);

    programs(&host);
    reasons(&host);
    maps(&host);
    failures(&host);
    kinds(&host);

    // The same hook with another object, whose map has a value per CPU.
    host.apply("counter", "cli/tests/c/percpu.bpf.c", ON_LO);
    host.wait("the other object", || host.skep(&["maps", "dump", "counter", "counts"]).status.success());
    host.packets(50);
    values_of_each_cpu(&host);
}

fn values_of_each_cpu(host: &Host) {
    let table = host.out(&["maps", "dump", "counter", "counts"]);
    // Linux 5.15 keeps no tags.
    let peer = if tags_are_kept() { "02:00:00:00:00:02" } else { "0x020000000002" };
    let expected = [
        ["LABEL", "MAC", "PEER", "ADDRESS", "PORT", "PACKETS", "SLOTS", "SEEN"],
        ["lo", "0x020000000001", peer, "10.0.0.1", "443", "50", "[50,100]", "true"],
    ];
    let rows = words(&table);
    assert_eq!(rows, expected, "{table}");
    let json: Value = serde_json::from_str(&host.out(&["maps", "dump", "counter", "counts", "-o", "json"])).unwrap();
    let cpus = json[0]["value"].as_array().unwrap();
    assert_eq!(cpus.iter().map(|cpu| cpu["packets"].as_u64().unwrap()).sum::<u64>(), 50);
    let raw = host.out(&["maps", "dump", "counter", "counts", "-o", "raw"]);
    assert_eq!(raw.split_whitespace().count(), 1 + cpus.len(), "{raw}");
    assert!(raw.starts_with("0x6c6f00000000000002000000000102000000000"), "{raw}");
}

fn tags_are_kept() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    !release.starts_with("5.15.")
}

#[test]
fn without_an_agent_or_a_cluster_it_says_what_to_do() {
    let run = |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_kubectl-skep"));
        command.env_remove("KUBECONFIG").env("HOME", "/nonexistent").args(args).output().unwrap()
    };
    let output = run(&["get", "--socket", "/nonexistent/agent.sock"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("no socket at /nonexistent/agent.sock"), "{}", stderr(&output));
    let output = run(&["get"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("Give one by --kubeconfig"), "{}", stderr(&output));
    assert_eq!(run(&["version"]).stdout, b"kubectl-skep 0.1.0\n");
    assert!(String::from_utf8_lossy(&run(&["completion", "bash"]).stdout).contains("complete -F"));
    assert_eq!(run(&["gte"]).status.code(), Some(2));
}

fn programs(host: &Host) {
    let table = host.out(&["get"]);
    let rows = words(&table);
    assert_eq!(rows[0], ["NAMESPACE", "NAME", "READY", "REASON", "REVISION", "AGE"]);
    assert_eq!(rows[1][..4], ["test", "bad", "0/1", "VerifierRejected"]);
    assert_eq!(rows[2][..4], ["test", "counter", "1/1", "Ready"]);
    assert_eq!(rows.len(), 4);

    // By name: the state on the node below.
    let one = host.out(&["get", "counter", "-n", "test"]);
    let rows = words(&one);
    assert_eq!(rows[0][0], "NAME");
    assert_eq!(rows[2], ["NODE", "STATE", "REASON", "REVISION", "FUNCTION", "HOOK", "TARGETS"]);
    assert_eq!(rows[3][..3], ["standalone", "Ready", "Ready"]);
    assert_eq!(rows[3][4..], ["count_xdp", "xdp", "lo"]);

    let json: Value = serde_json::from_str(&host.out(&["get", "-o", "json"])).unwrap();
    assert_eq!(json[1]["nodes"][0]["hooks"][0]["names"], json!(["lo"]));
    assert_eq!(yaml(&host.out(&["get", "-o", "yaml"])), json);
    assert!(host.out(&["get", "-o", "wide"]).contains("sha256:"));
    assert_eq!(host.out(&["get", "-n", "other"]), "");
}

fn reasons(host: &Host) {
    let page = host.out(&["why", "bad"]);
    assert!(page.starts_with("EbpfProgram test/bad is not ready (0/1 nodes): VerifierRejected\n"), "{page}");
    assert!(page.contains("  VerifierRejected: Read the verifier's log"), "{page}");
    assert!(page.contains("    on_bad: R"), "{page}");
    assert!(page.contains("    | "), "the verifier's log: {page}");

    let page = host.out(&["why", "counter"]);
    assert!(page.starts_with("EbpfProgram test/counter is ready (1/1 nodes): Ready\n"), "{page}");
    assert!(!page.contains("Failures"), "{page}");
    assert!(page.contains("sha256:"), "{page}");

    let page = host.out(&["why", "nowhere"]);
    assert!(page.contains("this node has no interface absent0"), "{page}");
    let json: Value = serde_json::from_str(&host.out(&["why", "nowhere", "-o", "json"])).unwrap();
    assert_eq!(json["failures"][0]["reason"], "TargetNotFound");
    assert_eq!(yaml(&host.out(&["why", "nowhere", "-o", "yaml"])), json);
}

fn maps(host: &Host) {
    let table = host.out(&["maps", "ls", "counter"]);
    let rows = words(&table);
    assert_eq!(rows[0][..5], ["NAMESPACE", "PROGRAM", "MAP", "TYPE", "KEY"]);
    let hits = rows.iter().find(|r| r[2] == "hits").unwrap();
    assert_eq!(hits[3..7], ["array", "4", "8", "16"]);
    let json: Value = serde_json::from_str(&host.out(&["maps", "ls", "-o", "json"])).unwrap();
    let named = |name: &str| json.as_array().unwrap().iter().find(|m| m["name"] == name).unwrap().clone();
    assert_eq!((&named("flows")["keySize"], &named("flows")["node"]), (&json!(8), &json!("standalone")));

    let table = host.out(&["maps", "dump", "counter", "flows"]);
    let expected = "SOURCE   PORT   PROTOCOL   PACKETS   BYTES\n1        7      17         300       ";
    assert!(table.starts_with(expected), "{table}");
    let text = host.out(&["maps", "dump", "counter", "flows", "-o", "json"]);
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json[0]["key"], json!({"source": 1, "port": 7, "protocol": 17}));
    assert_eq!((&json[0]["value"]["packets"], &json[0]["node"]), (&json!(300), &json!("standalone")));
    assert!(text.find("\"node\"").unwrap() < text.find("\"key\"").unwrap(), "{text}");
    assert_eq!(yaml(&host.out(&["maps", "dump", "counter", "flows", "-o", "yaml"])), json);
    let raw = host.out(&["maps", "dump", "counter", "flows", "-o", "raw"]);
    assert!(raw.starts_with("0x01000000070011") && raw.contains(" 0x2c01000000000000"), "{raw}");
    assert_eq!(raw.lines().count(), 1);

    // In the order of keys, as many as were asked for.
    let table = host.out(&["maps", "dump", "counter", "hits", "-n", "test", "--limit", "3"]);
    assert_eq!(table, "KEY   VALUE\n0     300\n1     0\n2     0\n");
    assert_eq!(host.out(&["maps", "dump", "counter", "hits"]).lines().count(), 17);
    assert!(host.out(&["maps", "dump", "counter", ".bss"]).contains("TOTAL\n0     300\n"));
}

/// What this kernel can do, as its agent found it, and what that means for objects.
fn kinds(host: &Host) {
    let all = host.out(&["features"]);
    let rows = words(&all);
    assert_eq!(rows[1][0], "standalone");
    for kind in ["xdp", "tc", "cgroupSkb", "rawTracepoint"] {
        assert!(rows.iter().any(|row| row[..] == [kind, "1/1", "-", "-"]), "{kind}: {all}");
    }
    let file = tempfile::Builder::new().suffix(".o").tempfile().unwrap();
    let runs = |object: &str| {
        std::fs::write(file.path(), host::compiled(object)).unwrap();
        host.out(&["features", "--for", file.path().to_str().unwrap()])
    };
    assert_eq!(words(&runs("cli/tests/c/percpu.bpf.c"))[1][2], "yes");
    // One function of each tracing kind: on a kernel that has all of them it says yes.
    let told = runs("kernel/tests/c/trace.bpf.c");
    let lacks = |kind: &str| rows.iter().any(|row| row.starts_with(&[kind, "0/1"]));
    assert_eq!(told.contains("on_kprobe"), lacks("kprobe"), "{told}");
    assert_eq!(told.contains("on_fentry"), lacks("fentry"), "{told}");
    let output = host.skep(&["features", "--for", "127.0.0.1:1/nothing:v1", "--plain-http"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("127.0.0.1:1/nothing:v1"), "{}", stderr(&output));
    let output = host.skep(&["features", "--for", "counter"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--for counter: there is no such file"), "{}", stderr(&output));
}

fn failures(host: &Host) {
    let cases: [(&[&str], i32, &str); 8] = [
        (&["get", "-A", "-n", "test"], 2, "cannot be used with"),
        (&["get", "counter", "-A"], 2, "cannot be used with"),
        (&["maps", "dump", "counter", "hit"], 3, "test/counter has no map hit; it has "),
        (&["maps", "dump", "count", "hits"], 3, "count does not run on this host"),
        (&["maps", "ls", "count"], 3, "does not run there"),
        (&["why", "count"], 3, "count does not run on this host"),
        (&["get", "-o", "xml"], 2, "invalid value 'xml'"),
        (&["maps", "dump", "counter", "hits", "--node", "a"], 2, "that of node standalone"),
    ];
    for (args, code, text) in cases {
        let output = host.skep(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(text), "{args:?}: {}", stderr(&output));
    }
    for (object, reference, text) in [
        (&b"#!/bin/sh\n"[..], "127.0.0.1:1/nothing:v1", "not an ELF file"),
        (&std::fs::read("/bin/true").unwrap(), "127.0.0.1:1/nothing:v1", "object.o: "),
        (&host::compiled("kernel/tests/c/net.bpf.c"), &host.nowhere(), "cannot be reached"),
        (&host::compiled("kernel/tests/c/net.bpf.c"), "Not/A:Reference", "not an image reference"),
    ] {
        let output = host.push(object, reference);
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(stderr(&output).contains(text), "{}", stderr(&output));
    }
    // A reader that went away.
    let mut child = host
        .command(&["maps", "dump", "counter", "hits"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", stderr(&output));
    // Somebody who is not root, and may not enter the directory that this was built in.
    let open = tempfile::Builder::new().permissions(PermissionsExt::from_mode(0o755)).tempdir().unwrap();
    let as_root = host.command(&["get"]);
    let plugin = open.path().join("kubectl-skep");
    std::fs::copy(as_root.get_program(), &plugin).unwrap();
    let output = Command::new(&plugin).args(as_root.get_args()).uid(65534).gid(65534).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("only root may use the agent's socket; try sudo"), "{}", stderr(&output));
}
