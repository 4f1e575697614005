//! What the plugin is asked that is easily asked wrong, and who goes away in the middle: its reader, the agent, a program.
//! Real binaries, real kernel. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code, reason = "each test binary uses its part of it")]
mod host;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use host::Host;
use serde_json::{Value, json};
use skep_kernel::sys::map::{self, Map};

const ON_PACKET: &str = "  - name: on_packet\n    attach:\n    - xdp: {interfaces: {names: [lo]}, mode: Generic}\n";
/// Entries of the map that is large.
const LARGE: u32 = 200_000;
/// How long anything may take until it ends.
const PATIENCE: Duration = Duration::from_secs(30);

fn start() -> Host {
    let host = Host::start();
    host.apply("kinds", "cli/tests/c/kinds.bpf.c", ON_PACKET);
    host.wait("kinds is ready", || {
        let output = host.skep(&["get", "kinds", "-o", "json"]);
        serde_json::from_slice::<Value>(&output.stdout).is_ok_and(|p| p["reason"] == "Ready")
    });
    host
}

fn json_of(host: &Host, args: &[&str]) -> Value {
    serde_json::from_str(&host.out(&[args, &["-o", "json"]].concat())).unwrap()
}

/// A map of the program's.
fn opened(host: &Host, name: &str) -> Map {
    let maps = json_of(host, &["maps", "ls", "kinds"]);
    let id = maps.as_array().unwrap().iter().find(|map| map["name"] == name).unwrap()["id"].as_u64().unwrap();
    Map::new(map::by_id(id as u32).unwrap()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Exit code and words of a failure.
fn fails(host: &Host, args: &[&str]) -> (i32, String) {
    let output = host.skep(args);
    (output.status.code().unwrap(), stderr(&output))
}

fn spawn(host: &Host, args: &[&str]) -> Child {
    host.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Its exit code and words, when it ends by itself.
fn ended(what: &str, mut child: Child) -> (Option<i32>, String) {
    let begin = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begin.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("{what} does not end: {}", stderr(&child.wait_with_output().unwrap()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().unwrap();
    (output.status.code(), stderr(&output))
}

/// Waits until it prints, while packets come. What else it prints is read too: it does not end while it cannot print.
fn follows(host: &Host, child: &mut Child) {
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let (sender, first) = mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let _ = reader.read_line(&mut line);
        let _ = sender.send(line);
        let _ = std::io::copy(&mut reader, &mut std::io::sink());
    });
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        host.packets(1);
        if let Ok(line) = first.recv_timeout(Duration::from_millis(50)) {
            assert!(!line.is_empty(), "it prints nothing");
            return;
        }
    }
    panic!("it does not print");
}

/// What follows something until it is told to end.
const FOLLOWERS: [&[&str]; 8] = [
    &["maps", "watch", "kinds", "counts"],
    &["maps", "top", "kinds", "counts"],
    &["top"],
    &["top", "kinds", "-o", "json"],
    &["events", "kinds", "records"],
    &["output"],
    &["hist", "kinds", "counts", "--live", "1h"],
    &["graph", "kinds", "counts"],
];

#[test]
fn a_reader_that_goes_away_ends_what_is_read_for_it() {
    let host = start();
    // There is nothing to print, so that nobody notices by printing.
    for args in FOLLOWERS {
        let mut child = spawn(&host, args);
        drop(child.stdout.take());
        let (code, said) = ended(&args.join(" "), child);
        assert_eq!((code, said.contains("error")), (Some(0), false), "{args:?}: {said}");
    }

    // Whoever writes does what was asked for.
    let mut child = spawn(&host, &["maps", "set", "kinds", "counts", "7", "70"]);
    drop(child.stdout.take());
    assert_eq!(ended("maps set", child).0, Some(0));
    assert_eq!(json_of(&host, &["maps", "get", "kinds", "counts", "7"])[0]["value"], 70);

    // More than any buffer on the way holds.
    let large = opened(&host, "large");
    (0..LARGE).for_each(|key| large.update(&key.to_ne_bytes(), &[1; 128], 0).unwrap());
    for verb in ["dump", "drain"] {
        let mut child = spawn(&host, &["maps", verb, "kinds", "large", "-o", "jsonl"]);
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        assert!(line.starts_with("{\"node\":\"standalone\",\"key\":"), "{line}");
        drop(lines);
        assert_eq!(ended(verb, child), (Some(0), String::new()));
    }
    let left = host.out(&["maps", "dump", "kinds", "large", "-o", "raw"]).lines().count();
    assert!((1..LARGE as usize).contains(&left), "{left} entries are left: those that nobody would have seen");
}

#[test]
fn who_follows_an_agent_that_ends_is_told_so() {
    let mut host = start();
    host.out(&["maps", "set", "kinds", "counts", "7", "70"]);
    let followers: [&[&str]; 5] = [
        &["maps", "watch", "kinds", "counts", "--snapshot"],
        &["maps", "top", "kinds", "counts"],
        &["top", "kinds", "-o", "json"],
        &["events", "kinds", "records"],
        &["output"],
    ];
    let mut children = followers.map(|args| spawn(&host, args));
    children.iter_mut().for_each(|child| follows(&host, child));
    host.kill_agent();
    for (args, child) in followers.into_iter().zip(children) {
        let (code, said) = ended(&args.join(" "), child);
        let wanted = "error: node standalone: the connection to its agent broke: ";
        assert!(
            said.contains(wanted) && said.contains("may have ended or been restarted: try again"),
            "{args:?}: {said}"
        );
        assert_eq!(code, Some(1), "{args:?}");
    }
}

#[test]
fn what_is_not_there_is_not_followed() {
    let host = start();
    for args in [&["top", "nosuch"][..], &["top", "nosuch", "-n", "test", "-o", "json"]] {
        let (code, said) = ended("top of nothing", spawn(&host, args));
        assert_eq!((code, said.as_str()), (Some(3), "error: EbpfProgram nosuch does not run on this host\n"));
    }
    let mut child = spawn(&host, &["top", "kinds", "-o", "json", "--interval", "100ms"]);
    follows(&host, &mut child);
    host.withdraw("kinds");
    let (code, said) = ended("top of what is deleted", child);
    assert_eq!((code, said.as_str()), (Some(3), "error: EbpfProgram kinds does not run on this host\n"));
}

#[test]
fn another_node_than_the_sockets_is_refused() {
    let host = start();
    let set = ["maps", "set", "kinds", "counts", "1", "2", "--node", "foo"];
    // The socket is named before the verb, as people do.
    let mut command = Command::new(host.command(&[]).get_program());
    let output = command.arg("--socket").arg(host.socket()).args(set).output().unwrap();
    for output in [output, host.skep(&set)] {
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("--node foo: the agent at ") && said.contains(" is that of node standalone"), "{said}");
        assert!(said.contains("Leave --node out, or --socket"), "{said}");
    }
    let (code, said) = fails(&host, &["maps", "dump", "kinds", "counts", "--node", "foo"]);
    assert_eq!((code, said.contains("node standalone")), (2, true), "{said}");
    let (code, said) = fails(&host, &["maps", "set", "kinds", "counts", "1", "2", "--all-nodes"]);
    assert_eq!((code, said.contains("the socket of one node alone")), (2, true), "{said}");
    assert_eq!(json_of(&host, &["maps", "dump", "kinds", "counts"]), json!([]), "nothing was written");
    host.out(&["maps", "set", "kinds", "counts", "1", "2", "--node", "standalone"]);
    assert_eq!(host.out(&["maps", "dump", "kinds", "counts", "--node", "standalone"]), "KEY   VALUE\n1     2\n");
}

#[test]
fn records_that_are_left_out_are_summed_up() {
    let host = start();
    let begin = Instant::now();
    let mut child = spawn(&host, &["events", "kinds", "records", "--rate", "2", "--limit", "5"]);
    let mut sent = 0;
    while child.try_wait().unwrap().is_none() && begin.elapsed() < PATIENCE {
        host.packets(50);
        sent += 50;
        std::thread::sleep(Duration::from_millis(5));
    }
    let (code, said) = ended("events", child);
    assert_eq!(code, Some(0), "{said}");
    let notes: Vec<&str> = said.lines().filter(|line| line.contains("left out: --rate")).collect();
    let most = begin.elapsed().as_secs() as usize + 2;
    assert!((1..=most).contains(&notes.len()), "{} notes: {said}", notes.len());
    let number = |line: &&str| line.split_whitespace().find_map(|word| word.parse::<u64>().ok()).unwrap();
    let told: u64 = notes.iter().map(number).sum();
    assert!(told > 100 && told <= sent, "{told} of {sent}");
}

#[test]
fn keys_and_values_are_taken_as_they_are_meant() {
    let host = start();
    // Numbers below zero are no options.
    host.out(&["maps", "set", "kinds", "deltas", "-1", "-5"]);
    assert_eq!(json_of(&host, &["maps", "get", "kinds", "deltas", "-1"])[0]["value"], -5);
    host.out(&["maps", "del", "kinds", "deltas", "-1"]);

    // Texts that look like JSON.
    for args in [&["maps", "set", "kinds", "texts", "true", "1"][..], &["maps", "get", "kinds", "texts", "12"]] {
        let (code, said) = fails(&host, args);
        let wanted = format!("if a text is meant, write '\"{}\"'", if args[1] == "set" { "true" } else { "12" });
        assert!(code == 1 && said.contains(&wanted), "{said}");
    }
    host.out(&["maps", "set", "kinds", "texts", "\"true\"", "1"]);
    host.out(&["maps", "set", "kinds", "texts", "nginx", "2"]);
    assert_eq!(host.out(&["maps", "dump", "kinds", "texts"]), "KEY     VALUE\nnginx   2\ntrue    1\n");
    let (code, said) = fails(&host, &["maps", "get", "kinds", "texts", "\u{1b}[31mred"]);
    assert_eq!((code, said.as_str()), (3, "error: map texts has no entry with the key \\u{1b}[31mred\n"));

    // Maps without keys.
    for number in ["1", "2"] {
        let written = host.out(&["maps", "set", "kinds", "queue", number]);
        assert_eq!(written, "standalone: 1 entry written\n");
    }
    let (code, said) = fails(&host, &["maps", "set", "kinds", "counts", "5"]);
    assert!(code == 1 && said.contains("it has no key") && said.contains("give KEY and VALUE"), "{said}");
    assert_eq!(fails(&host, &["maps", "set", "kinds", "counts"]).0, 2);
    let seen = host.skep(&["maps", "dump", "kinds", "queue"]);
    assert!(stderr(&seen).contains("of a queue the next entry alone can be seen"), "{}", stderr(&seen));
    let drained = host.skep(&["maps", "drain", "kinds", "queue", "-o", "json"]);
    assert_eq!(stderr(&drained), "", "all of it was printed");
    let rows: Value = serde_json::from_slice(&drained.stdout).unwrap();
    assert_eq!((&rows[0]["value"], &rows[1]["value"]), (&json!(1), &json!(2)), "typed by the object");

    // A text's key with something left over after its end is another key, which no text names.
    let map = opened(&host, "texts");
    let leftover = [&b"nginx\0left over"[..], &[0; 2]].concat();
    map.update(&leftover[..16], &3u32.to_ne_bytes(), 0).unwrap();
    let shown = host.out(&["maps", "dump", "kinds", "texts", "-o", "raw"]);
    let raw = shown.lines().find(|line| line.ends_with(" 0x03000000")).unwrap().split(' ').next().unwrap().to_owned();
    let get = ["maps", "get", "kinds", "texts", &raw, "--raw"];
    assert_eq!(json_of(&host, &get)[0]["value"], 3);
    assert_eq!(json_of(&host, &["maps", "get", "kinds", "texts", "nginx"])[0]["value"], 2);
    host.out(&["maps", "del", "kinds", "texts", &raw, "--raw"]);
    assert_eq!(host.out(&["maps", "dump", "kinds", "texts"]), "KEY     VALUE\nnginx   2\ntrue    1\n");
    let (code, said) = fails(&host, &["maps", "del", "kinds", "texts", "nginx", "--raw"]);
    assert!(code == 2 && said.contains("nginx: hexadecimal digits are expected, two a byte"), "{code}: {said}");

    // The kernel's answer for an address is not the entry of the address.
    let key = |length: u32| json!({"length": length, "address": [10, 0, 0, 1]}).to_string();
    host.out(&["maps", "set", "kinds", "routes", &key(8), "7"]);
    let found = host.skep(&["maps", "get", "kinds", "routes", &key(32), "-o", "json"]);
    let rows: Value = serde_json::from_slice(&found.stdout).unwrap();
    assert_eq!(rows[0]["value"], 7);
    assert!(stderr(&found).contains("by the longest prefix"), "{}", stderr(&found));

    let summed = host.skep(&["maps", "dump", "kinds", "routes", "--per-cpu", "sum"]);
    assert!(summed.status.success());
    let wanted = "note: standalone: map routes, a lpm_trie, has one value for all CPUs: --per-cpu says nothing\n";
    assert_eq!(stderr(&summed), wanted);
    let (code, said) = fails(&host, &["prog", "test", "kinds", "on_packet", "--pcap", "/nonexistent/file"]);
    assert_eq!((code, said.contains("/nonexistent/file: No such file")), (2, true), "{said}");
}

#[test]
fn counts_are_exact() {
    let host = start();
    host.out(&["maps", "set", "kinds", "counts", "3", "9007199254740993"]);
    let bars = host.out(&["hist", "kinds", "counts", "--scale", "linear", "-o", "json"]);
    assert_eq!(bars, "[{\"buckets\":[{\"from\":3,\"to\":3,\"count\":9007199254740993}]}]\n");
    let begin = Instant::now();
    let lines = json_of(&host, &["graph", "kinds", "counts", "--for", "1s", "--interval", "20s"]);
    assert!(begin.elapsed() < Duration::from_secs(15), "no longer than was said");
    assert_eq!(
        (&lines["series"][0]["points"][1][1], &lines["series"][0]["growth"]),
        (&json!(9007199254740993u64), &json!(0))
    );
    host.out(&["maps", "set", "kinds", "counts", "4294967295", "1"]);
    let (code, said) = fails(&host, &["hist", "kinds", "counts"]);
    assert_eq!((code, said.contains("key is 4294967295, and buckets are 0 to 511")), (2, true), "{said}");
    // Nothing of the kind is rounded.
    host.out(&["maps", "del", "kinds", "counts", "4294967295"]);
    let (_, said) = fails(&host, &["hist", "kinds", "counts", "--bucket", "value", "--count", "key"]);
    assert!(said.contains("value is 9007199254740993, and"), "{said}");
}
