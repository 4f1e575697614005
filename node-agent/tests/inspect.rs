//! Maps that are written, searched and watched through the Inspector. Real binary, real kernel. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code, reason = "each test binary uses its part of it")]
mod node;

use std::time::{Duration, Instant};

use node::{Node, manifest, tracing_manifest};
use serde_json::{Value, json};
use skep_proto::v1::inspector_client::InspectorClient;
use skep_proto::v1::update_map_request::Mode;
use skep_proto::v1::{
    Changes, Datum, DecodedChange, DeleteMapEntriesRequest, DumpMapRequest, LookupMapRequest, MapEntry, MapFrame,
    ProgramRef, State, UpdateMapRequest, WatchMapRequest, datum, lookup_map_request::Key, map_frame,
};
use skep_proto::value::{from_json, to_json};
use tonic::transport::Channel;
use tonic::{Code, Status};

fn program() -> Option<ProgramRef> {
    Some(ProgramRef { namespace: "test".into(), name: "counter".into() })
}

fn datum(json: &Value) -> Option<Datum> {
    Some(Datum { datum: Some(datum::Datum::Json(from_json(json))) })
}

async fn write(node: &Node, map: &str, mode: Mode, entries: &[(Value, Value)]) -> Result<u64, Status> {
    let entries = entries.iter().map(|(key, value)| MapEntry { key: datum(key), value: datum(value) }).collect();
    let request = UpdateMapRequest { program: program(), map: map.into(), entries, mode: mode.into() };
    Ok(node.inspector().update_map(request).await?.into_inner().written)
}

async fn delete(node: &Node, map: &str, keys: &[Value]) -> Result<(u64, u64), Status> {
    let keys = keys.iter().filter_map(datum).collect();
    let request = DeleteMapEntriesRequest { program: program(), map: map.into(), keys };
    let answer = node.inspector().delete_map_entries(request).await?.into_inner();
    Ok((answer.deleted, answer.absent))
}

async fn get(node: &Node, map: &str, key: &Value) -> Option<Value> {
    let key = Some(Key::Json(from_json(key)));
    let request = LookupMapRequest { program: program(), map: map.into(), key, schema: true };
    let answer = node.inspector().lookup_map(request).await.unwrap().into_inner();
    assert!(answer.schema.is_some() && !answer.raw_key.is_empty());
    answer.found.then(|| to_json(&answer.value.unwrap()))
}

/// Decoded entries, and how many were looked at.
async fn dump(
    node: &Node,
    map: &str,
    limit: u64,
    filter: &str,
    top: &str,
) -> Result<(Vec<(Value, Value)>, u64), Status> {
    let (filter, top) = (filter.to_owned(), top.to_owned());
    let request = DumpMapRequest {
        program: program(),
        map: map.into(),
        decode: true,
        limit,
        filter,
        top,
        ..DumpMapRequest::default()
    };
    let mut stream = node.inspector().dump_map(request).await?.into_inner();
    let mut entries = Vec::new();
    while let Some(frame) = stream.message().await? {
        match frame.frame.unwrap() {
            map_frame::Frame::Decoded(decoded) => entries
                .extend(decoded.entries.into_iter().map(|e| (to_json(&e.key.unwrap()), to_json(&e.value.unwrap())))),
            map_frame::Frame::End(end) => {
                assert_eq!(end.count, entries.len() as u64);
                return Ok((entries, end.read));
            }
            _ => {}
        }
    }
    panic!("no end")
}

fn flow(port: u32) -> Value {
    json!({"source": 7, "port": port, "protocol": 6})
}

fn count(packets: u64) -> Value {
    json!({"packets": packets, "bytes": 10 * packets})
}

#[tokio::test]
async fn entries_are_written_checked_and_taken_out() {
    let mut node = Node::start().await;
    let image = node.push("net", "counter:v1").await;
    node.write("a.yaml", &manifest("counter", &image, json!({"step": 1})));
    node.until("counter", |r| r.state() == State::Ready).await;
    let node = &node;

    let many: Vec<(Value, Value)> = (1..=200).map(|n| (flow(n), count(u64::from(n)))).collect();
    assert_eq!(write(node, "flows", Mode::Unspecified, &many).await.unwrap(), 200);
    assert_eq!(get(node, "flows", &flow(17)).await, Some(count(17)));
    write(node, "hits", Mode::Unspecified, &[(json!(3), json!(u64::MAX.to_string()))]).await.unwrap();
    assert_eq!(get(node, "hits", &json!(3)).await, Some(json!(u64::MAX.to_string())));
    assert_eq!(delete(node, "flows", &[flow(1), flow(1000)]).await.unwrap(), (1, 1));
    assert_eq!(get(node, "flows", &flow(1)).await, None);
    node.until_logged("root of the node wrote 200 entries of map flows").await;
    node.until_logged("root of the node deleted 1 entry of map flows").await;

    // One that is wrong, and none is written.
    for (case, wrong, said) in [
        ("range", (flow(70_000), count(1)), "map flows: entry 1: key.port: 70000 is outside 0..=65535"),
        ("member", (flow(5), json!({"packets": 1})), "map flows: entry 1: value.bytes: it is missing"),
        ("type", (json!("five"), count(1)), "map flows: entry 1: key: "),
    ] {
        let status = write(node, "flows", Mode::Unspecified, &[(flow(2), count(999)), wrong]).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{case}");
        assert!(status.message().starts_with(said), "{case}: {}", status.message());
        assert!(status.message().ends_with("; nothing was written"), "{case}: {}", status.message());
        assert_eq!(get(node, "flows", &flow(2)).await, Some(count(2)), "{case}");
    }
    // One that the kernel refuses: those before it are as they were.
    let status = write(node, "flows", Mode::Create, &[(flow(3000), count(1)), (flow(2), count(5))]).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    assert!(status.message().contains("map flows: entry 1: its key is there already; nothing was written"), "{status}");
    assert_eq!((get(node, "flows", &flow(3000)).await, get(node, "flows", &flow(2)).await), (None, Some(count(2))));
    let status = write(node, "flows", Mode::Replace, &[(flow(2), count(6)), (flow(3000), count(1))]).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(get(node, "flows", &flow(2)).await, Some(count(2)));
    let full: Vec<(Value, Value)> = (2000..4000).map(|n| (flow(n), count(1))).collect();
    let status = write(node, "flows", Mode::Unspecified, &full).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("the map is full, or its key outside of it; nothing was written"), "{status}");
    assert_eq!(dump(node, "flows", 0, "", "").await.unwrap().0.len(), 199);

    for (map, entry, said) in [
        ("hits", (json!(16), json!(1)), "map hits: entry 0: the map is full, or its key outside of it"),
        (".rodata", (json!(0), json!({"step": 1, "verdict": 1})), "cannot be written: it is frozen"),
        ("nope", (json!(0), json!(0)), "has no map nope; it has "),
    ] {
        let status = write(node, map, Mode::Unspecified, &[entry]).await.unwrap_err();
        assert!(status.message().contains(said), "{map}: {}", status.message());
    }
    let status = delete(node, "hits", &[json!(1)]).await.unwrap_err();
    assert!(status.message().contains("an array has all its entries always"), "{status}");
    assert!(write(node, "hits", Mode::Unspecified, &[]).await.unwrap_err().message().contains("no entries are given"));
}

#[tokio::test]
async fn what_is_not_wanted_of_a_map_is_left_out_on_the_node() {
    let mut node = Node::start().await;
    let image = node.push("net", "counter:v1").await;
    node.write("a.yaml", &manifest("counter", &image, json!({"step": 1})));
    node.until("counter", |r| r.state() == State::Ready).await;
    let node = &node;
    let all: Vec<(Value, Value)> = (1..=500).map(|n| (flow(n), count(u64::from(n * 37 % 501)))).collect();
    write(node, "flows", Mode::Unspecified, &all).await.unwrap();

    let (found, read) = dump(node, "flows", 0, "value.packets > 490 and key.protocol == 6", "").await.unwrap();
    let mut packets: Vec<u64> = found.iter().map(|(_, v)| v["packets"].as_u64().unwrap()).collect();
    packets.sort_unstable();
    assert_eq!((packets, read), ((491..=500).collect(), 500));
    assert_eq!(dump(node, "flows", 3, "value.packets > 490", "").await.unwrap().0.len(), 3);
    let (top, read) = dump(node, "flows", 5, "key.port != 13", "value.bytes").await.unwrap();
    let packets: Vec<u64> = top.iter().map(|(_, v)| v["packets"].as_u64().unwrap()).collect();
    let mut wanted: Vec<u64> =
        all.iter().filter(|(k, _)| k["port"] != 13).map(|(_, v)| v["packets"].as_u64().unwrap()).collect();
    wanted.sort_unstable_by(|a, b| b.cmp(a));
    assert_eq!((packets.as_slice(), read), (&wanted[..5], 500));
    assert!(dump(node, "flows", 0, "value.packets > 1000", "").await.unwrap().0.is_empty());

    // Page by page, each entry once; with a condition too.
    for (filter, expected) in [("", 500), ("value.packets > 250", 250)] {
        let (mut ports, mut page, mut pages) = (Vec::new(), Default::default(), 0);
        loop {
            let (filter, map) = (filter.to_owned(), "flows".to_owned());
            let request = DumpMapRequest {
                program: program(),
                map,
                decode: true,
                limit: 70,
                filter,
                page,
                ..DumpMapRequest::default()
            };
            let mut stream = node.inspector().dump_map(request).await.unwrap().into_inner();
            let mut next = None;
            while let Some(frame) = stream.message().await.unwrap() {
                match frame.frame.unwrap() {
                    map_frame::Frame::Decoded(decoded) => ports.extend(
                        decoded.entries.iter().map(|e| to_json(e.key.as_ref().unwrap())["port"].as_u64().unwrap()),
                    ),
                    map_frame::Frame::End(end) => next = Some(end.next_page),
                    _ => {}
                }
            }
            (page, pages) = (next.unwrap(), pages + 1);
            if page.is_empty() {
                break;
            }
        }
        let all = ports.len();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!((ports.len(), all), (expected, expected), "{filter:?}");
        assert_eq!(pages, expected / 70 + 1, "{filter:?}");
    }
    let page = vec![1, 2, 3, 4, 5, 6, 7, 8, 9].into();
    let request =
        DumpMapRequest { program: program(), map: "flows".into(), limit: 1, page, ..DumpMapRequest::default() };
    let status = node.inspector().dump_map(request).await.map(drop).unwrap_err();
    assert!(status.message().starts_with("page: it is of another map, or none"), "{status}");

    for (filter, top, limit, said) in [
        ("value.pakets > 1", "", 0, "filter: value has no member pakets; it has packets, bytes"),
        ("", "value.packets", 0, "top: how many is said by limit"),
        ("", "value", 3, "top: value is no number"),
        ("", "value.packets", 1 << 40, "top: limit 1099511627776: of this map at most the "),
    ] {
        let status = dump(node, "flows", limit, filter, top).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with(said), "{}", status.message());
    }
}

/// A watch of the map of flows.
struct Watch {
    stream: tonic::Streaming<MapFrame>,
    schemas: u32,
}

impl Watch {
    async fn open(node: &Node, change: impl FnOnce(&mut WatchMapRequest)) -> Result<Self, Status> {
        let mut request = WatchMapRequest {
            program: program(),
            map: "flows".into(),
            decode: true,
            interval_ms: 100,
            ..WatchMapRequest::default()
        };
        change(&mut request);
        let stream = node.another_inspector().await.watch_map(request).await?.into_inner();
        Ok(Watch { stream, schemas: 0 })
    }

    async fn frame(&mut self) -> Result<map_frame::Frame, Status> {
        loop {
            match self.stream.message().await?.expect("no end").frame.unwrap() {
                map_frame::Frame::Schema(_) => self.schemas += 1,
                map_frame::Frame::Queued(_) => {}
                frame => return Ok(frame),
            }
        }
    }

    /// The next look that found something: its last frame with what all of them had.
    async fn look(&mut self) -> Changes {
        let mut all = Changes::default();
        loop {
            let map_frame::Frame::Changes(frame) = self.frame().await.unwrap() else { panic!("it ended") };
            all.decoded.extend(frame.decoded.clone());
            all.decoded_gone.extend(frame.decoded_gone.clone());
            if !frame.more && (frame.look == 0 || frame.changed + frame.removed > 0) {
                return Changes { decoded: all.decoded, decoded_gone: all.decoded_gone, ..frame };
            }
        }
    }
}

/// Port, packets, whether it is new.
fn ports(look: &Changes) -> Vec<(u64, u64, bool)> {
    let number = |value: &Value| value.as_u64().unwrap();
    let of = |change: &DecodedChange| {
        let (key, value) = (to_json(change.key.as_ref().unwrap()), to_json(change.value.as_ref().unwrap()));
        (number(&key["port"]), number(&value["packets"]), change.added)
    };
    look.decoded.iter().map(of).collect()
}

#[tokio::test]
async fn a_watch_tells_what_changed_and_nothing_else() {
    let mut node = Node::start().await;
    let image = node.push("net", "counter:v1").await;
    let text = manifest("counter", &image, json!({"step": 1}));
    node.write("a.yaml", &text);
    let first = node.until("counter", |r| r.state() == State::Ready).await;
    let all: Vec<(Value, Value)> = (1..=300).map(|n| (flow(n), count(u64::from(n)))).collect();
    write(&node, "flows", Mode::Unspecified, &all).await.unwrap();

    let mut watch = Watch::open(&node, |_| {}).await.unwrap();
    let mut snapshot =
        Watch::open(&node, |r| (r.snapshot, r.filter) = (true, "value.packets > 290".into())).await.unwrap();
    let mut top = Watch::open(&node, |r| (r.top, r.limit) = ("value.bytes".into(), 2)).await.unwrap();
    let mut driven = Watch::open(&node, |r| r.interval_ms = 0).await.unwrap();
    let (begun, filtered) = (watch.look().await, snapshot.look().await);
    assert_eq!((begun.look, begun.total, begun.changed, ports(&begun)), (0, 300, 0, vec![]));
    assert_eq!((filtered.total, ports(&filtered)), (10, (291..=300).map(|n| (n, n, true)).collect()));
    assert_eq!((top.look().await.total, driven.look().await.total), (300, 300));

    // Five change, one is new, two go.
    let mut entries: Vec<_> = (10..15).map(|n| (flow(n), count(u64::from(n) * 11))).collect();
    entries.push((flow(1000), count(1000)));
    write(&node, "flows", Mode::Unspecified, &entries).await.unwrap();
    assert_eq!(delete(&node, "flows", &[flow(1), flow(300)]).await.unwrap(), (2, 0));
    let wanted: Vec<(u64, u64, bool)> = (10..15).map(|n| (n, n * 11, false)).chain([(1000, 1000, true)]).collect();
    // What is written one after the other may be seen by several looks.
    let (mut seen, mut gone, mut rates) = (Vec::new(), Vec::new(), Vec::new());
    while seen.len() < wanted.len() || gone.len() < 2 {
        let look = watch.look().await;
        seen.extend(ports(&look));
        gone.extend(look.decoded_gone.iter().map(|key| to_json(key)["port"].as_u64().unwrap()));
        rates.extend(look.decoded.iter().map(|change| {
            let per_second = to_json(change.rates.as_ref().unwrap());
            per_second["packets"].as_f64().unwrap() * look.elapsed_us as f64 / 1e6
        }));
    }
    seen.sort_unstable();
    gone.sort_unstable();
    assert_eq!((seen, gone), (wanted.clone(), vec![1, 300]));
    rates.sort_by(f64::total_cmp);
    let grown: Vec<u64> = rates.iter().map(|rate| rate.round() as u64).collect();
    assert_eq!(grown, [100, 110, 120, 130, 140, 1000], "what each grew by");
    let mut growing = ports(&top.look().await);
    while growing.is_empty() {
        growing = ports(&top.look().await);
    }
    assert_eq!(growing[0], (1000, 1000, true), "the largest growth first: {growing:?}");
    let change = snapshot.look().await;
    assert!(change.decoded.len() <= 1 && change.total <= 10, "only what satisfies the condition: {change:?}");

    // Where changes drive it, nothing is told while nothing changes.
    let mut told = 0;
    while told < 6 {
        told += driven.look().await.changed;
    }
    let quiet = tokio::time::timeout(Duration::from_secs(2), driven.frame()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    write(&node, "flows", Mode::Unspecified, &[(flow(1), count(7))]).await.unwrap();
    assert_eq!(ports(&driven.look().await), [(1, 7, true)]);

    // Another map in its place, with what the first one held; then none.
    let grown = text.replace("  programs:", "  maps: {flows: {maxEntries: 200000}}\n  programs:");
    node.write("a.yaml", &grown);
    node.until("counter", |r| r.state() == State::Ready && r.desired_revision != first.desired_revision).await;
    let start = Instant::now();
    while watch.schemas < 2 {
        watch.look().await;
        assert!(start.elapsed() < Duration::from_secs(20), "the new map is not watched");
    }
    let batch = |from: u32| (from..from + 25_000).map(|n| (json!({"source": n, "port": 1, "protocol": 1}), count(1)));
    for from in (0..175_000).step_by(25_000) {
        let part: Vec<_> = batch(from).collect();
        write(&node, "flows", Mode::Unspecified, &part).await.unwrap();
    }
    let error = loop {
        if let Err(status) = watch.frame().await {
            break status;
        }
    };
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert!(error.message().contains("map flows holds more than the 4 MiB of entries"), "{error}");
    let mut few = Watch::open(&node, |r| r.filter = "key.port == 1000".into()).await.unwrap();
    assert_eq!(few.look().await.total, 1, "some of them can be watched");
    node.delete("a.yaml");
    let end = loop {
        if let map_frame::Frame::End(end) = few.frame().await.unwrap() {
            break end;
        }
    };
    assert_eq!(end.reason, "test/counter has no map flows here any more");
}

#[tokio::test]
async fn a_watch_ends_after_its_looks_and_says_what_it_cannot_do() {
    let mut node = Node::start().await;
    let image = node.push("net", "counter:v1").await;
    node.write("a.yaml", &manifest("counter", &image, json!({"step": 1})));
    node.until("counter", |r| r.state() == State::Ready).await;
    let mut watch = Watch::open(&node, |r| r.looks = 2).await.unwrap();
    let mut looks = Vec::new();
    let end = loop {
        match watch.frame().await.unwrap() {
            map_frame::Frame::Changes(frame) => looks.push(frame.look),
            map_frame::Frame::End(end) => break end,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((looks, end.reason.as_str()), (vec![0, 1, 2], "looks"));
    type Change = fn(&mut WatchMapRequest);
    let refused: [(Change, &str); 5] = [
        (|r| r.interval_ms = 50, "interval_ms 50: at least 100, or 0 for changes"),
        (|r| r.top = "value.packets".into(), "top: how many is said by limit"),
        (|r| (r.top, r.limit) = ("value".into(), 3), "top: value is no number"),
        (|r| r.filter = "value.pakets > 1".into(), "filter: value has no member pakets"),
        (|r| r.map = "nope".into(), "has no map nope; it has "),
    ];
    for (change, said) in refused {
        let status = Watch::open(&node, change).await.map(|_| ()).unwrap_err();
        assert!(status.message().contains(said), "{status}");
    }
}

/// Two hundred clients of a large map that do not read: some are served, the others wait and are told, nobody else notices,
/// and the agent's memory is bounded.
#[tokio::test]
async fn clients_that_do_not_read_wait_in_line_and_hold_up_nobody_else() {
    let mut node = Node::start().await;
    let image = node.push("net", "counter:v1").await;
    let text = manifest("counter", &image, json!({"step": 1}));
    node.write("a.yaml", &text.replace("  programs:", "  maps: {hits: {maxEntries: 1000000}}\n  programs:"));
    node.until("counter", |r| r.state() == State::Ready).await;
    let before = resident(&node);
    let open = async |connection: &mut InspectorClient<Channel>| {
        let request = DumpMapRequest { program: program(), map: "hits".into(), ..DumpMapRequest::default() };
        connection.dump_map(request).await.unwrap().into_inner()
    };
    // One connection has a hundred calls at most.
    let mut connections = Vec::new();
    for _ in 0..4 {
        connections.push(node.another_inspector().await);
    }
    let (mut served, mut queued) = (Vec::new(), Vec::new());
    for i in 0..200 {
        let mut stream = open(&mut connections[i % 4]).await;
        match stream.message().await.unwrap().unwrap().frame.unwrap() {
            map_frame::Frame::Schema(_) => served.push(stream),
            map_frame::Frame::Queued(at) => queued.push((at.before, stream)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((served.len(), queued.len()), (8, 192));
    let positions: Vec<u64> = queued.iter().map(|(before, _)| *before).collect();
    assert_eq!(positions, (0..192).collect::<Vec<u64>>());

    // Others are served as if nothing was: an entry, a new program, events of the node.
    let other = "tcx: {interfaces: {names: [lo]}, direction: Ingress}";
    node.write("b.yaml", &tracing_manifest("other", &image, "count_tc", other));
    node.until("other", |r| r.state() == State::Ready).await;
    node.packets(3);
    assert_eq!(node.hits("counter").await, 3);
    let grown = resident(&node).saturating_sub(before) >> 20;
    assert!(grown < 96, "200 clients cost {grown} MiB");

    // Who is served and goes makes room for the first in line, which gets all there is.
    drop(served.pop());
    let (_, mut first) = queued.remove(0);
    let mut entries = 0;
    while let Some(frame) = first.message().await.unwrap() {
        match frame.frame.unwrap() {
            map_frame::Frame::Raw(raw) => entries += u64::from(raw.count),
            map_frame::Frame::End(end) => assert_eq!((end.count, end.read), (entries, 1_000_000)),
            _ => {}
        }
    }
    assert_eq!(entries, 1_000_000);
}

/// Bytes that the agent has in memory.
fn resident(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}
