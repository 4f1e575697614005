//! Whole outputs, compared with the files in `golden/`. With `SKEP_BLESS=1` they are written anew.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

use jiff::Timestamp;
use kubectl_skep::args::DumpFormat;
use kubectl_skep::dump::{self, Contents};
use kubectl_skep::entries::{Entry, unpack};
use kubectl_skep::maps::{self, MapRow};
use kubectl_skep::schema::Schema;
use kubectl_skep::view::{Deletion, Event, NodeState, Program, TargetFailure};
use kubectl_skep::{cluster, features, get, output, page, reports};
use serde_json::{Value, json};
use skep_crds::{EbpfNode, EbpfProgram};
use skep_node_agent::grpc::frames::type_message;
use skep_object::btf::desc::{FieldDesc, TypeDesc, TypeKind};
use skep_object::kind::KINDS;
use skep_proto::v1::{MapInfo, MapSchema, ProgramRef, ProgramReport, RawEntries, State};

fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("SKEP_BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "{name} differs; if the new output is right, run again with SKEP_BLESS=1");
}

fn now() -> Timestamp {
    "2026-01-02T00:00:00Z".parse().unwrap()
}

fn object(name: &str, status: Value) -> EbpfProgram {
    serde_json::from_value(json!({
        "apiVersion": "skep.dev/v1alpha1", "kind": "EbpfProgram",
        "metadata": {"name": name, "namespace": "net", "generation": 3, "creationTimestamp": "2026-01-01T22:30:00Z"},
        "spec": {
            "image": {"reference": format!("registry.example.com/ebpf/{name}:v2")},
            "programs": [{"name": "count_rx", "attach": [{"xdp": {"interfaces": {"primary": true}}}]}],
        },
        "status": status,
    }))
    .unwrap()
}

fn node(name: &str, programs: Value) -> EbpfNode {
    serde_json::from_value(json!({
        "apiVersion": "skep.dev/v1alpha1", "kind": "EbpfNode", "metadata": {"name": name}, "spec": {},
        "status": {"programs": programs},
    }))
    .unwrap()
}

const REFUSED: &str = "count_rx: R1 invalid mem access 'scalar' at flows.bpf.c:22";

/// One that is well, one that half of the nodes refuse, one that nobody has taken up.
fn programs() -> Vec<Program> {
    let condition = |type_: &str, status: &str, reason: &str, message: &str| {
        json!({"type": type_, "status": status, "reason": reason, "message": message,
               "observedGeneration": 2, "lastTransitionTime": "2026-01-01T23:50:00Z"})
    };
    let digest = format!("sha256:{}", "7c".repeat(32));
    let well = object(
        "dns",
        json!({
            "observedGeneration": 3, "summary": {"ready": "2/2", "reason": "Ready"}, "revision": "0a1b2c3d4e",
            "image": {"reference": "registry.example.com/ebpf/dns:v2", "digest": digest},
            "conditions": [condition("Ready", "True", "Ready", "2 of 2 nodes run revision 0a1b2c3d4e")],
        }),
    );
    let ill = object(
        "flows",
        json!({
            "observedGeneration": 2, "summary": {"ready": "1/14", "reason": "VerifierRejected"}, "revision": "7c9d5f0123",
            "image": {"reference": "registry.example.com/ebpf/flows:v2", "digest": digest},
            "nodes": {"desired": 14, "ready": 1, "updating": 0, "failed": 12, "degraded": 1, "unsupported": 0, "unreachable": 0},
            "failures": [
                {"reason": "VerifierRejected", "message": REFUSED, "count": 12, "nodes": ["node-3", "node-4"],
                 "log": "21: (79) r1 = *(u64 *)(r1 +0)\nR1 invalid mem access 'scalar'\nprocessed 21 insns"},
            ],
            "conditions": [
                condition("Ready", "False", "VerifierRejected", REFUSED),
                condition("Stalled", "True", "VerifierRejected", "nothing will change without a new image"),
            ],
        }),
    );
    let new = object("guard", json!({}));
    let on = |revision: Value, state: &str, reason: &str, message: &str, hooks: Value| json!({"namespace": "net", "name": "flows", "revision": revision, "state": state, "reason": reason, "message": message, "hooks": hooks});
    let hook =
        json!([{"function": "count_rx", "hook": "xdp", "targets": 6, "first": ["eth0", "eth1", "eth2", "eth3"]}]);
    let nodes = [
        node("node-3", json!([on(Value::Null, "Failed", "VerifierRejected", REFUSED, json!([]))])),
        node("node-1", json!([on("7c9d5f0123".into(), "Ready", "Ready", "", hook.clone())])),
        node("node-2", json!([on("7c9d5f0123".into(), "Degraded", "HookBusy", "1 of 7 targets failed", hook)])),
    ];
    let mut programs: Vec<Program> = [well, ill, new].iter().map(cluster::program).collect();
    cluster::put_states(&mut programs, &nodes);
    programs
}

#[test]
fn get_lists_programs_and_their_nodes() {
    let programs = programs();
    golden("get.txt", &get::render(&programs, true, false, false, now()));
    golden("get-wide.txt", &get::render(&programs, false, true, true, now()));
    golden("get.json", &output::json(&programs));
    golden("get.yaml", &output::yaml(&programs[1]));
}

#[test]
fn why_is_one_page() {
    let mut all = programs();
    let failure = TargetFailure {
        target: "eth6".into(),
        reason: "HookBusy".into(),
        message: "xdp on interface eth6 is held by program \u{1b}[2J".into(),
    };
    let degraded: &mut NodeState = all[1].nodes.iter_mut().find(|n| n.node == "node-2").unwrap();
    degraded.hooks[0].failures.push(failure);
    all[1].events = vec![Event {
        last: Some("2026-01-01T23:55:00Z".parse().unwrap()),
        count: 3,
        type_: "Warning".into(),
        reason: "VerifierRejected".into(),
        message: REFUSED.into(),
    }];
    let pages: Vec<String> = all.iter().map(|p| page::render(p, "skep-system", now())).collect();
    golden("why-ready.txt", &pages[0]);
    golden("why-failed.txt", &pages[1]);
    golden("why-unseen.txt", &pages[2]);
    let mut going = programs().swap_remove(1);
    going.deletion = Some(Deletion {
        since: "2026-01-01T23:55:00Z".parse().unwrap(),
        finalizers: vec!["skep.dev/cleanup".into(), "example.com/archive".into()],
    });
    golden("why-deleted.txt", &page::render(&going, "skep-system", now()));
    let report = ProgramReport {
        namespace: "net".into(),
        name: "flows".into(),
        state: State::Failed.into(),
        reason: "VerifierRejected".into(),
        message: REFUSED.into(),
        log: "R1 invalid mem access 'scalar'\n".into(),
        desired_revision: "7c9d5f0123".into(),
        ..ProgramReport::default()
    };
    golden("why-socket.txt", &page::render(&reports::program("standalone", &report), "skep-system", now()));
}

fn desc(kind: TypeKind, size: u32) -> TypeDesc {
    TypeDesc { kind, name: "".into(), size }
}

fn field(name: &str, desc: TypeDesc, byte: u32) -> FieldDesc {
    FieldDesc { name: name.into(), desc, bit_offset: byte * 8, bit_size: 0 }
}

/// `struct { u32 source; struct { u16 port; u8 protocol; } to; u8 name[4] }` to two CPUs' `struct { u64 packets; u32 seen }`.
fn contents(node: &str, sources: &[u8]) -> Contents {
    let uint = |size| desc(TypeKind::Uint, size);
    let to = desc(TypeKind::Struct(vec![field("port", uint(2), 0), field("protocol", uint(1), 2)]), 4);
    let name = desc(TypeKind::Array { element: Box::new(uint(1)), count: 4 }, 4);
    let key = desc(TypeKind::Struct(vec![field("source", uint(4), 0), field("to", to, 4), field("name", name, 8)]), 12);
    let seen = TypeKind::Enum { signed: false, values: vec![("NEW".into(), 0), ("OLD".into(), 1)] };
    let value = desc(TypeKind::Struct(vec![field("packets", uint(8), 0), field("seen", desc(seen, 4), 8)]), 12);
    let schema = Schema::new(MapSchema {
        map: Some(info(node)),
        key: Some(type_message(&key)),
        value: Some(type_message(&value)),
        values_per_entry: 2,
        value_stride: 16,
        head_only: false,
    });
    let schema = schema.unwrap();
    let mut frame = RawEntries { count: sources.len() as u32, ..RawEntries::default() };
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    for source in sources {
        keys.extend([*source, 0, 0, 0, 0x35, 0, 17, 0xff, b'e', b't', b'h', 0]);
        for cpu in [1u8, 2] {
            values.extend([*source, cpu, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0xee, 0xee, 0xee, 0xee]);
        }
    }
    (frame.keys, frame.values) = (keys.into(), values.into());
    let entries = unpack(&schema, &frame).unwrap().collect();
    Contents::new(node.into(), schema, entries, None)
}

fn info(name: &str) -> MapInfo {
    MapInfo {
        program: Some(ProgramRef { namespace: "net".into(), name: "flows".into() }),
        name: name.into(),
        id: 17,
        r#type: "percpu_hash".into(),
        key_size: 12,
        value_size: 12,
        max_entries: 1024,
        memlock: 82_240,
        ..MapInfo::default()
    }
}

#[test]
fn dump_shows_a_map_in_every_format() {
    let all = [contents("node-1", &[1, 2]), contents("node-2", &[1])];
    golden("dump.txt", &dump::render(&all, DumpFormat::Table, true));
    golden("dump.json", &dump::render(&all, DumpFormat::Json, true));
    golden("dump.yaml", &dump::render(&all, DumpFormat::Yaml, true));
    golden("dump-raw.txt", &dump::render(&all, DumpFormat::Raw, true));
    golden("dump.jsonl", &dump::render(&all, DumpFormat::Jsonl, true));
    golden("dump.csv", &dump::render(&all, DumpFormat::Csv, true));
    golden("dump-one-node.txt", &dump::render(&all[..1], DumpFormat::Table, false));
    assert_eq!(dump::render(&[], DumpFormat::Json, true), "[]\n");
}

#[test]
fn a_cpu_that_wrote_nothing_says_nothing() {
    let one = contents("node-1", &[1]);
    let Entry { key, values } = one.entries.iter().next().unwrap();
    let kept = |first: usize| {
        let values = [&values[..first], &vec![0; values.len() - first]].concat();
        let entries = [Entry { key, values: &values }].into_iter().collect();
        dump::render(&[Contents { entries, ..one.clone() }], DumpFormat::Table, false)
    };
    golden("dump-idle-cpu.txt", &kept(16));
    assert!(kept(0).ends_with("0         NEW\n"));
}

/// Large maps are made text of in parts, by several threads.
#[test]
fn parts_come_to_one_list() {
    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct Row {
        node: String,
        key: Value,
        value: Value,
    }
    let numbers: Vec<u8> = (0..20_000u32).map(|number| (number % 251) as u8).collect();
    let all = [contents("node-1", &numbers), contents("node-2", &[7])];
    let text = dump::render(&all, DumpFormat::Json, true);
    let list: Vec<Row> = serde_json::from_str(&text).unwrap();
    assert_eq!(list.len(), 20_001);
    assert_eq!(text, output::json(&list), "and is indented as a whole would be");
    let lines = dump::render(&all, DumpFormat::Jsonl, true);
    let lines: Vec<Row> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(list, lines, "in the same order");
}

/// Of an arena the kernel has no size of a value.
#[test]
fn values_without_a_size_are_as_long_as_their_stride() {
    let map = MapInfo { r#type: "arena".into(), value_size: 0, key_size: 0, ..info("memory") };
    let described = |kind, size| Some(type_message(&desc(kind, size)));
    let (key, value) = (described(TypeKind::Pointer, 8), described(TypeKind::Bytes, 4));
    let schema = MapSchema { map: Some(map), key, value, values_per_entry: 1, value_stride: 4, ..MapSchema::default() };
    let schema = Schema::new(schema).unwrap();
    let frame = RawEntries { count: 1, keys: vec![0, 16, 0, 0, 1, 0, 0, 0].into(), values: vec![1, 2, 3, 4].into() };
    let entries = unpack(&schema, &frame).unwrap().collect();
    let text = dump::render(&[Contents::new("n".into(), schema, entries, None)], DumpFormat::Jsonl, false);
    assert_eq!(text, "{\"node\":\"n\",\"key\":\"0x100001000\",\"value\":\"0x01020304\"}\n");
}

#[test]
fn entries_of_another_size_are_refused() {
    let schema = contents("node-1", &[]).schema;
    let frame = RawEntries { count: 2, keys: vec![0; 24].into(), values: vec![0; 63].into() };
    assert!(unpack(&schema, &frame).is_err());
}

/// Three that were heard of, one of them of another kernel and one of an older agent, and one that was not.
fn kernels() -> Vec<features::NodeFeatures> {
    let kinds = |lacking: &[(&str, &str)], without: &[&str]| {
        let support = |name: &str| match lacking.iter().find(|(kind, _)| *kind == name) {
            Some((_, why)) => json!({"supported": false, "reason": why}),
            None => json!({"supported": true}),
        };
        let known = KINDS.iter().filter(|row| !without.contains(&row.name));
        known.map(|row| (row.name.to_owned(), support(row.name))).collect::<serde_json::Map<_, _>>()
    };
    let node = |name: &str, release: &str, btf: bool, kinds| -> EbpfNode {
        serde_json::from_value(json!({
            "apiVersion": "skep.dev/v1alpha1", "kind": "EbpfNode", "metadata": {"name": name}, "spec": {},
            "status": {
                "kernel": {"release": release, "architecture": "x86_64"},
                "features": {"btf": btf, "jit": true, "bpffs": true, "cgroupV2": true, "lockdown": "none", "programKinds": kinds},
            },
        }))
        .unwrap()
    };
    let old = [("netkit", "netkit needs Linux 6.7, and this is 6.1"), ("tcx", "tcx needs Linux 6.6, and this is 6.1")];
    let nodes = [
        node("node-1", "6.12.30", true, kinds(&[("kprobe", "this kernel is built without CONFIG_KPROBE_EVENTS")], &[])),
        node("node-2", "6.1.0-56", false, kinds(&old, &[])),
        node("node-3", "6.12.30", true, kinds(&[], &["iter"])),
        serde_json::from_value(
            json!({"apiVersion": "skep.dev/v1alpha1", "kind": "EbpfNode", "metadata": {"name": "node-4"}, "spec": {}}),
        )
        .unwrap(),
    ];
    nodes.iter().map(features::of_node).collect()
}

#[test]
fn kernels_of_a_fleet() {
    let nodes = kernels();
    golden("features.txt", &features::render(&nodes));
    golden("features.json", &output::json(&nodes[3..].to_vec()));
    let spec = serde_json::from_value(json!({
        "image": {"reference": "registry.example.com/ebpf/flows:v2"},
        "programs": [
            {"name": "count_rx", "attach": [{"xdp": {"interfaces": {"primary": true}}}, {"netkit": {"interfaces": {"primary": true}, "sender": "Primary"}}]},
            {"name": "on_open", "attach": [{"kprobe": {"function": "do_sys_openat2"}}]},
        ],
    }));
    let verdicts = features::verdicts(&nodes, &features::Needs::of_spec(&spec.unwrap(), None));
    golden("features-for.txt", &features::render_verdicts(&verdicts));
    golden("features-for.json", &output::json(&verdicts));
}

#[test]
fn maps_are_listed() {
    let rows = [MapRow::new("node-1", info("counts")), MapRow::new("node-2", info(".bss"))];
    let rows: Vec<&MapRow> = rows.iter().collect();
    golden("maps.txt", &maps::render(&rows, true, true, false));
    golden("maps-wide.txt", &maps::render(&rows, true, true, true));
    golden("maps.json", &output::json(&rows));
}
