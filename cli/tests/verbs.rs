//! What is done beyond reading and writing entries: records in and out, draining, text that programs print, instructions,
//! runs on arguments, storages by their owners. Real binaries, real kernel. Needs root. Also in the virtual machines.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code, reason = "each test binary uses its part of it")]
mod host;

use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use host::Host;
use serde_json::{Value, json};
use skep_kernel::sys::map::{self, Map};

const ON_PACKET: &str = "  - name: on_packet\n    attach:\n    - xdp: {interfaces: {names: [lo]}, mode: Generic}\n";
const ON_ARGUMENTS: &str = "  - name: on_arguments\n    attach:\n    - rawTracepoint: {name: sys_enter}\n";

fn host(program: &str, source: &str, programs: &str) -> Host {
    let host = Host::start();
    host.apply(program, source, programs);
    ready(&host, program);
    host
}

fn ready(host: &Host, program: &str) {
    host.wait(&format!("{program} is ready"), || {
        let output = host.skep(&["get", program, "-o", "json"]);
        serde_json::from_slice::<Value>(&output.stdout).is_ok_and(|p| p["reason"] == "Ready")
    });
}

fn json_of(host: &Host, args: &[&str]) -> Value {
    serde_json::from_str(&host.out(&[args, &["-o", "json"]].concat())).unwrap()
}

fn refused(host: &Host, args: &[&str]) -> String {
    let output = host.skep(args);
    assert!(!output.status.success(), "{args:?} is done");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A global variable of the program `verbs`.
fn global(host: &Host, name: &str) -> u64 {
    json_of(host, &["maps", "dump", "verbs", ".bss"])[0]["value"][name].as_u64().unwrap()
}

/// A command that does not end by itself, and its lines.
struct Following {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Following {
    fn start(host: &Host, args: &[&str]) -> Self {
        let mut command = host.command(args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = mpsc::channel();
        let streams: [Box<dyn std::io::Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for stream in streams {
            let sender = sender.clone();
            std::thread::spawn(move || {
                BufReader::new(stream).lines().map_while(Result::ok).for_each(|line| drop(sender.send(line)));
            });
        }
        Following { child, lines }
    }

    /// The next line that has it.
    fn until(&self, text: &str) -> String {
        let mut seen = Vec::new();
        loop {
            let line = self.lines.recv_timeout(Duration::from_secs(60));
            let line = line.unwrap_or_else(|_| panic!("nothing has {text:?}: {seen:#?}"));
            if line.contains(text) {
                return line;
            }
            seen.push(line);
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn records_go_in_and_what_does_not_come_out_is_counted() {
    let host = Host::start();
    let spec = format!("{ON_PACKET}  maps: {{events: {{dropCounter: dropped}}}}\n");
    host.apply("verbs", "kernel/tests/c/verbs.bpf.c", &spec);
    ready(&host, "verbs");

    // In: all or none, and what programs make of them.
    let put = |records: &[&str]| {
        let args = ["maps", "put", "verbs", "commands", "--type", "command"];
        host.skep(&[&args[..], records].concat())
    };
    let add = "{\"op\": \"ADD\", \"amount\": 7}";
    assert!(put(&[add, add]).status.success());
    assert_eq!(global(&host, "total"), 0, "nobody has looked yet");
    host.packets(1);
    host.wait("the program takes them", || global(&host, "total") == 14);
    let wrong = put(&[add, "{\"op\": \"SUB\", \"amount\": 1}"]);
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(said.contains("map commands: record 1: record.op: \"SUB\" is not a value of enum op"), "{said}");
    assert!(said.contains("nothing was written"), "{said}");
    // Sixteen bytes each, in a buffer of 4,096.
    let many: Vec<&str> = std::iter::repeat_n(add, 257).collect();
    let full = put(&many);
    let said = String::from_utf8_lossy(&full.stderr).into_owned();
    assert!(said.contains("there is no room for them until its programs take some out; nothing was written"), "{said}");
    assert!(put(&many[1..]).status.success(), "as many as fit");
    host.packets(1);
    host.wait("the program takes them", || global(&host, "total") == 14 + 256 * 7);
    let raw = refused(&host, &["maps", "put", "verbs", "commands", "{\"op\": 1}"]);
    assert!(raw.contains("--type"), "{raw}");
    let entry = refused(&host, &["maps", "put", "verbs", "seen", "00"]);
    assert!(entry.contains("map seen, a hash, takes no records"), "{entry}");

    // Out: the buffer is full long before the last of these, and the program counts that.
    host.packets(200);
    host.wait("the buffer is full", || global(&host, "dropped") > 100);
    let before = global(&host, "dropped");
    let follow = Following::start(&host, &["events", "verbs", "events", "--type", "event", "--rate", "3"]);
    follow.until("\"number\"");
    host.packets(500);
    follow.until("records are left out: --rate");
    // What was dropped before anybody looked is not told as lost.
    host.wait("more is dropped while it is read", || {
        host.packets(2000);
        global(&host, "dropped") > before
    });
    let lost = follow.until("records are lost: the map had no room for them");
    let told: u64 = lost.split_whitespace().find_map(|word| word.parse().ok()).unwrap();
    assert!(told <= global(&host, "dropped") - before, "{lost}");

    host.apply(
        "verbs",
        "kernel/tests/c/verbs.bpf.c",
        &format!("{ON_PACKET}  maps: {{events: {{dropCounter: lost}}}}\n"),
    );
    host.wait("the misspelt counter is told", || {
        let told = json_of(&host, &["get", "verbs"]).to_string();
        println!("{told}");
        told.contains("dropCounter lost: the object has no such map")
    });
}

#[test]
fn what_is_drained_is_shown_and_gone() {
    let host = host("verbs", "kernel/tests/c/verbs.bpf.c", ON_PACKET);
    host.packets(100);
    host.wait("packets are counted", || global(&host, "packets") >= 100);
    let count = |map: &str| json_of(&host, &["maps", "dump", "verbs", map]).as_array().unwrap().len();
    let seen = count("seen");
    assert!(seen >= 100);
    let drained = json_of(&host, &["maps", "drain", "verbs", "seen"]);
    assert_eq!((drained.as_array().unwrap().len(), count("seen")), (seen, 0));
    assert_eq!(drained[7]["value"], drained[7]["key"], "in the order of their keys: {}", drained[7]);
    let queued = json_of(&host, &["maps", "drain", "verbs", "waiting", "--limit", "10"]);
    // The kernel takes no types for queues; the object has them.
    let values: Vec<&Value> = queued.as_array().unwrap().iter().map(|row| &row["value"]).collect();
    assert_eq!(
        values,
        (0..10).map(|number| json!(number)).collect::<Vec<_>>().iter().collect::<Vec<_>>(),
        "the first in is the first out"
    );
    assert_eq!(json_of(&host, &["maps", "dump", "verbs", "waiting"])[0]["value"], 10);
    let rest = json_of(&host, &["maps", "drain", "verbs", "waiting"]);
    assert_eq!(rest.as_array().unwrap().len(), 54, "of 64 that fit");
    let array = refused(&host, &["maps", "drain", "verbs", ".bss"]);
    assert!(array.contains("map .bss, an array, cannot be drained: an array has all its entries always"), "{array}");
}

#[test]
fn what_programs_print_is_followed_beside_everybody_else() {
    let host = host("verbs", "kernel/tests/c/verbs.bpf.c", ON_PACKET);
    let instances = || {
        let all = std::fs::read_dir("/sys/kernel/tracing/instances").unwrap().flatten();
        all.filter(|instance| instance.file_name().to_string_lossy().starts_with("skep-"))
            .map(|instance| instance.path())
    };
    // An instance is made before it is told to follow anything.
    let follows = |instance: &PathBuf| {
        let event = std::fs::read_to_string(instance.join("events/bpf_trace/bpf_trace_printk/enable"));
        event.is_ok_and(|enabled| enabled.trim() == "1")
    };
    let before = instances().count();
    let following = instances().filter(follows).count();
    let [first, second] = [(); 2].map(|()| Following::start(&host, &["output"]));
    host.wait("both instances follow", || instances().filter(follows).count() == following + 2);
    host.packets(3);
    for follow in [&first, &second] {
        let line = follow.until("packet 0 of verbs");
        assert!(line.contains("bpf_trace_printk: packet 0 of verbs"), "{line}");
        follow.until("packet 2 of verbs");
    }
    drop((first, second));
    host.wait("the instances go", || instances().count() == before);
}

/// What is in it is shown at the kernel level, where a program can be made that writes it.
#[test]
fn streams_of_programs_are_followed_where_the_kernel_has_them() {
    let host = host("verbs", "kernel/tests/c/verbs.bpf.c", ON_PACKET);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let version: Vec<u32> = kernel.split(['.', '-']).take(2).map(|part| part.parse().unwrap()).collect();
    let absent = refused(&host, &["output", "verbs", "nothing", "--stderr"]);
    assert!(absent.contains("no function nothing is loaded; there are on_packet"), "{absent}");
    if version < vec![6, 17] {
        let said = refused(&host, &["output", "verbs", "on_packet", "--stderr"]);
        assert!(said.contains("the kernel has no streams of programs"), "{said}");
        return;
    }
    let mut follow = Following::start(&host, &["output", "verbs", "on_packet"]);
    assert!(follow.lines.recv_timeout(Duration::from_secs(1)).is_err(), "nobody printed anything");
    assert!(follow.child.try_wait().unwrap().is_none(), "it goes on");
}

/// What they write is printed line by line, run anew by each reader.
#[test]
fn iterators_are_read() {
    let elements = "  - name: on_elements\n    attach:\n    - iter: {target: bpf_map_elem, map: hits}\n";
    let maps = "  - name: on_maps\n    attach:\n    - iter: {target: bpf_map}\n";
    let host = host("sockets", "kernel/tests/c/sockets.bpf.c", &format!("{elements}{maps}"));
    let slots: Vec<String> = (0..16).map(|slot| format!("slot {slot}")).collect();
    for _ in 0..2 {
        let printed = host.out(&["prog", "read", "sockets", "on_elements"]);
        // The function is said of each line.
        let lines: Vec<String> = printed.lines().map(|line| line.replace("on_elements ", "")).collect();
        assert_eq!(lines, slots);
    }
    let hits = json_of(&host, &["maps", "dump", "sockets", "hits"]);
    assert_eq!(hits[5]["value"], 32, "each reading runs it for each element");
    let id = json_of(&host, &["maps", "ls", "sockets"]);
    let id = id.as_array().unwrap().iter().find(|map| map["name"] == "hits").unwrap()["id"].as_u64().unwrap();
    let all = host.out(&["prog", "read", "sockets", "-o", "json"]);
    let rows: Vec<Value> = all.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |function: &str| rows.iter().filter(|row| row["function"] == function).count();
    assert_eq!(of("on_elements"), 16);
    assert!(rows.iter().any(|row| row["function"] == "on_maps" && row["line"] == format!("map {id}")), "{all}");
    let said = refused(&host, &["prog", "read", "sockets", "nothing"]);
    assert!(
        said.contains("no iterator nothing attached; of its functions these are iterators: on_elements, on_maps"),
        "{said}"
    );
}

#[test]
fn instructions_are_those_of_bpftool_with_their_source() {
    let host = host("verbs", "kernel/tests/c/verbs.bpf.c", &format!("{ON_PACKET}{ON_ARGUMENTS}"));
    host.apply(
        "counter",
        "kernel/tests/c/net.bpf.c",
        "  - name: count_tc\n    attach:\n    - tcx: {interfaces: {names: [lo]}, direction: Ingress}\n",
    );
    ready(&host, "counter");
    for (program, function) in [("verbs", "on_packet"), ("verbs", "on_arguments"), ("counter", "count_tc")] {
        let facts = json_of(&host, &["prog", "show", program, function]);
        let id = facts[0]["id"].as_u64().unwrap().to_string();
        let parts = json_of(&host, &["prog", "insns", program, function]);
        let ours: Vec<&Value> =
            parts.as_array().unwrap().iter().flat_map(|part| part["instructions"].as_array().unwrap()).collect();
        let output =
            Command::new("bpftool").args(["-j", "prog", "dump", "xlated", "id", &id, "opcodes"]).output().unwrap();
        let theirs: Value = serde_json::from_slice(&output.stdout).unwrap();
        let theirs: Vec<&Value> =
            theirs.as_array().unwrap().iter().filter(|line| line.get("disasm").is_some()).collect();
        assert_eq!(ours.len(), theirs.len(), "{function}");
        for (ours, theirs) in ours.iter().zip(theirs) {
            let (_, text) = theirs["disasm"].as_str().unwrap().split_once(' ').unwrap();
            assert_eq!(plain(ours["text"].as_str().unwrap()), plain(text), "{function}: {ours} beside {theirs}");
        }
        let source = |row: &&&Value| row["source"]["text"].as_str().is_some_and(|text| !text.is_empty());
        assert!(ours.iter().any(|row| source(&row)), "{function} has no source");
        // Line info is of the same lines that bpftool prints.
        let jited: Vec<&Value> =
            parts.as_array().unwrap().iter().flat_map(|part| part["jited"].as_array().unwrap()).collect();
        let length: usize = jited.iter().map(|row| row["bytes"].as_str().unwrap().len() / 2 - 1).sum();
        assert_eq!(length as u64, facts[0]["jitedBytes"].as_u64().unwrap(), "{function}");
    }
    let facts = json_of(&host, &["prog", "show", "verbs", "on_packet"]);
    let signatures: Vec<&str> =
        facts[0]["subprograms"].as_array().unwrap().iter().map(|part| part["signature"].as_str().unwrap()).collect();
    assert_eq!(
        signatures,
        ["int on_packet(struct xdp_md *ctx)", "long apply(struct bpf_dynptr *record, void *context)"]
    );
    let page = host.out(&["prog", "show", "verbs", "on_packet"]);
    for wanted in ["Signature  int on_packet(struct xdp_md *ctx)", "Functions that it calls", "xdp", "commands"] {
        assert!(page.contains(wanted), "no {wanted:?}: {page}");
    }
    let text = host.out(&["prog", "insns", "verbs", "on_packet"]);
    assert!(
        text.contains("# on_packet on ") && text.contains("verbs.bpf.c:") && text.contains("call bpf_ringbuf"),
        "{text}"
    );
    let code = host.out(&["prog", "insns", "verbs", "on_packet", "--jited"]);
    assert!(code.contains("push") || !cfg!(target_arch = "x86_64"), "{code}");
    let absent = refused(&host, &["prog", "insns", "verbs", "nothing"]);
    assert!(absent.contains("no function nothing is loaded; there are on_arguments, on_packet"), "{absent}");
}

/// Without what names are told by: ids of maps, distances and symbols of calls.
fn plain(text: &str) -> String {
    let text = text.split('#').next().unwrap().split(" <").next().unwrap();
    let Some((before, map)) = text.split_once("= map") else { return text.trim_end().to_owned() };
    let id: String = match (map.strip_prefix("[id:"), map.split_once("(id ")) {
        (Some(rest), _) | (None, Some((_, rest))) => rest.chars().take_while(char::is_ascii_digit).collect(),
        _ => String::new(),
    };
    let after = map.rsplit_once([')', ']']).map_or("", |(_, after)| after);
    format!("{before}= map {id} {after}")
}

#[test]
fn programs_that_take_no_packets_run_on_arguments() {
    let host = host("verbs", "kernel/tests/c/verbs.bpf.c", &format!("{ON_PACKET}{ON_ARGUMENTS}"));
    let words = |words: [u64; 2]| {
        words.iter().flat_map(|word| word.to_le_bytes()).map(|b| format!("{b:02x}")).collect::<String>()
    };
    let (seven, eight) = (words([0, 7]), words([0, 8]));
    let ran = json_of(&host, &["prog", "test", "verbs", "on_arguments", "--ctx", &seven, "--ctx", &eight]);
    assert_eq!((&ran[0]["returnValue"], &ran[1]["returnValue"]), (&json!(70), &json!(0)), "{ran}");
    let short = refused(&host, &["prog", "test", "verbs", "on_arguments", "--ctx", "00"]);
    assert!(short.contains("context 0: the kernel takes none of 1 bytes for on_arguments"), "{short}");
    let packet = refused(&host, &["prog", "test", "verbs", "on_packet", "--ctx", &seven]);
    assert!(packet.contains("context 0"), "{packet}");
}

#[test]
fn storages_are_read_by_their_owners() {
    let host = host(
        "storage",
        "kernel/tests/c/storage.bpf.c",
        "  - name: pass\n    attach:\n    - xdp: {interfaces: {names: [lo]}, mode: Generic}\n",
    );
    let all = json_of(&host, &["maps", "ls", "storage"]);
    let open = |name: &str| {
        let found = all.as_array().unwrap().iter().find(|map| map["name"] == name).unwrap();
        Map::new(map::by_id(found["id"].as_u64().unwrap() as u32).unwrap()).unwrap()
    };
    let value = |n: u32| [n.to_ne_bytes(), (n + 1).to_ne_bytes()].concat();
    let put = |name: &str, owner: i32, n: u32| open(name).update(&owner.to_ne_bytes(), &value(n), 0).unwrap();
    let dump = |name: &str| json_of(&host, &["maps", "dump", "storage", name]);
    let shown = |n: u32| json!({"first": n, "second": n + 1});

    let me = std::process::id();
    let pidfd = rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty()).unwrap();
    put("of_tasks", pidfd.as_raw_fd(), 3);
    assert_eq!(dump("of_tasks"), json!([{"node": dump("of_tasks")[0]["node"], "key": me, "value": shown(3)}]));
    let one = json_of(&host, &["maps", "get", "storage", "of_tasks", &me.to_string()]);
    assert_eq!(one[0]["value"], shown(3));
    let command = std::fs::read_to_string("/proc/self/comm").unwrap();
    let table = host.out(&["maps", "dump", "storage", "of_tasks"]);
    assert!(table.contains(&format!("{me} ({})", command.trim_end())), "{table}");
    assert!(refused(&host, &["maps", "get", "storage", "of_tasks", "1"]).contains("no entry with the key 1"));

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    put("of_sockets", listener.as_raw_fd(), 5);
    put("of_sockets", udp.as_raw_fd(), 6);
    let mut cookies = [cookie(&listener), cookie(&udp)].map(|cookie| json!(cookie));
    cookies.sort_by_key(|cookie| cookie.as_u64());
    let sockets = dump("of_sockets");
    assert_eq!([&sockets[0]["key"], &sockets[1]["key"]], [&cookies[0], &cookies[1]], "{sockets}");
    let one = json_of(&host, &["maps", "get", "storage", "of_sockets", &cookie(&udp).to_string()]);
    assert_eq!(one[0]["value"], shown(6));
    drop(udp);
    assert_eq!(dump("of_sockets").as_array().unwrap().len(), 1, "the socket is gone, and its entry with it");

    let root = skep_kernel::probe::cgroup2_mount().unwrap();
    let dir = std::fs::File::open(&root).unwrap();
    put("of_cgroups", dir.as_raw_fd(), 8);
    let cgroups = dump("of_cgroups");
    let id = std::os::unix::fs::MetadataExt::ino(&dir.metadata().unwrap());
    assert_eq!((&cgroups[0]["key"], &cgroups[0]["value"]), (&json!(id), &shown(8)));

    let table = host.out(&["maps", "dump", "storage", "of_cgroups"]);
    assert!(table.contains(&format!("{id} (/)")), "the hierarchy's root: {table}");

    let inodes = refused(&host, &["maps", "dump", "storage", "of_inodes"]);
    assert!(inodes.contains("of which the kernel has no list"), "{inodes}");
}

fn cookie(socket: impl AsFd) -> u64 {
    rustix::net::sockopt::socket_cookie(socket).unwrap()
}
