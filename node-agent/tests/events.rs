//! Records of ring buffers and perf event arrays, followed through the Inspector. Real binary, real kernel. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code, reason = "each test binary uses its part of it")]
mod node;

use std::time::{Duration, Instant};

use node::{Node, tracing_manifest};
use skep_kernel::sys;
use skep_proto::v1::{EventEnd, ProgramRef, State, TailEventsRequest, event_frame};
use skep_proto::value::to_json;
use tonic::{Code, Status};

fn program() -> Option<ProgramRef> {
    Some(ProgramRef { namespace: "test".into(), name: "counter".into() })
}

/// What a stream has given so far.
struct Events {
    stream: tonic::Streaming<skep_proto::v1::EventFrame>,
    numbers: Vec<u64>,
    lost: u64,
}

impl Events {
    async fn open(node: &Node, map: &str, change: impl FnOnce(&mut TailEventsRequest)) -> Result<Self, Status> {
        let mut request = TailEventsRequest {
            program: program(),
            map: map.into(),
            r#type: "event".into(),
            decode: true,
            ..TailEventsRequest::default()
        };
        change(&mut request);
        let mut stream = node.inspector().tail_events(request).await?.into_inner();
        let first = stream.message().await?.unwrap().frame.unwrap();
        assert!(matches!(first, event_frame::Frame::Schema(schema) if schema.loss_is_known == (map == "perf")));
        Ok(Events { stream, numbers: Vec::new(), lost: 0 })
    }

    /// Until so many came, or the end.
    async fn until(&mut self, count: usize) -> Option<EventEnd> {
        let start = Instant::now();
        while self.numbers.len() < count {
            let left = Duration::from_secs(20).saturating_sub(start.elapsed());
            let frame = tokio::time::timeout(left, self.stream.message()).await.expect("no more events come");
            match frame.unwrap().unwrap().frame.unwrap() {
                event_frame::Frame::Decoded(decoded) => {
                    self.lost += decoded.lost.map_or(0, |lost| lost.kernel + lost.client);
                    for event in decoded.events.iter().map(to_json) {
                        let number = event["number"].as_u64().unwrap();
                        assert_eq!(event["twice"], 2 * number);
                        self.numbers.push(number);
                    }
                }
                event_frame::Frame::End(end) => return Some(end),
                other => panic!("{other:?}"),
            }
        }
        None
    }
}

#[tokio::test]
async fn records_reach_every_client_from_both_kinds_of_buffer() {
    for (map, function) in [("ring", "packet_to_ring"), ("perf", "packet_to_perf")] {
        let mut node = Node::start().await;
        let image = node.push("events", "events:v1").await;
        node.write("a.yaml", &tracing_manifest("counter", &image, function, "xdp: {interfaces: {names: [lo]}}"));
        node.until("counter", |r| r.state() == State::Ready).await;

        let mut first = Events::open(&node, map, |_| {}).await.unwrap();
        let mut second = Events::open(&node, map, |r| r.limit = 10).await.unwrap();
        let mut some = Events::open(&node, map, |r| r.filter = "number >= 20 and number < 24".into()).await.unwrap();
        let mut few = Events::open(&node, map, |r| r.one_in = 10).await.unwrap();
        node.packets(50);
        // Every fifth of the ring is thought better of by the program.
        let wanted: Vec<u64> = (0..50).filter(|n| map == "perf" || n % 5 != 4).collect();
        assert!(first.until(wanted.len()).await.is_none());
        assert_eq!((&first.numbers, first.lost), (&wanted, 0), "{map}");
        let end = second.until(usize::MAX).await.unwrap();
        assert_eq!((second.numbers.as_slice(), end.count, end.reason.as_str()), (&wanted[..10], 10, "limit"));
        some.until(4).await;
        assert_eq!(some.numbers, (20..24).collect::<Vec<u64>>());
        few.until(4).await;
        assert_eq!(few.numbers[..4], wanted.iter().step_by(10).take(4).copied().collect::<Vec<u64>>());

        // A client that dies leaves the others alone; a map that goes with its program ends them with a reason.
        drop(some);
        node.packets(5);
        first.until(wanted.len() + 4).await;
        node.delete("a.yaml");
        let end = first.until(usize::MAX).await.unwrap();
        assert!(end.reason.starts_with("the map is not the program's any more"), "{}", end.reason);
        node.until_gone("counter").await;
    }
}

#[tokio::test]
async fn events_that_cannot_be_read_are_refused_with_the_reason() {
    let mut node = Node::start().await;
    let image = node.push("events", "events:v1").await;
    let attach = "xdp: {interfaces: {names: [lo]}}";
    node.write("a.yaml", &tracing_manifest("counter", &image, "packet_to_ring", attach));
    let report = node.until("counter", |r| r.state() == State::Ready).await;
    for (change, said) in [
        ((|r| r.map = ".bss".into()) as fn(&mut TailEventsRequest), "holds no records"),
        (|r| r.r#type = "evnt".into(), "type evnt: the program's types have no such struct, union or typedef"),
        (|r| r.filter = "nmber > 1".into(), "filter: a record has no member nmber; it has number, name, twice"),
        (
            |r| (r.r#type, r.decode, r.filter) = (String::new(), false, "number > 1".into()),
            "a filter needs the records' type",
        ),
        (|r| r.r#type = String::new(), "decode needs the records' type"),
    ] {
        let status = Events::open(&node, "ring", change).await.err().unwrap();
        assert!(status.message().contains(said), "{}", status.message());
    }
    // This test has it open: it might be its reader.
    let id = report.maps.iter().find(|map| map.name == "ring").unwrap().id;
    let held = sys::map::by_id(id).unwrap();
    let status = Events::open(&node, "ring", |_| {}).await.err().unwrap();
    assert_eq!(status.code(), Code::FailedPrecondition);
    let me = format!("(pid {})", std::process::id());
    assert!(status.message().contains(&me) && status.message().contains("ask with consume"), "{}", status.message());
    let mut taken = Events::open(&node, "ring", |r| r.consume = true).await.unwrap();
    node.packets(3);
    taken.until(3).await;
    drop(held);
}

/// Whoever reads too slowly loses by itself, is told how many, and holds up nobody; nobody's memory grows.
#[tokio::test]
async fn a_client_that_does_not_read_is_told_what_it_missed() {
    let mut node = Node::start().await;
    let image = node.push("events", "events:v1").await;
    node.write("a.yaml", &tracing_manifest("counter", &image, "packet_to_perf", "xdp: {interfaces: {names: [lo]}}"));
    node.until("counter", |r| r.state() == State::Ready).await;
    let mut lazy = Events::open(&node, "perf", |_| {}).await.unwrap();
    let mut eager = Events::open(&node, "perf", |_| {}).await.unwrap();
    let (mut sent, mut seen) = (0, 0);
    // Until the transport's windows and all queues are full for certain: what is decoded takes some hundred bytes.
    while sent < 100_000 {
        node.packets(2_000);
        sent += 2_000;
        while seen + (eager.lost as usize) < sent {
            let before = eager.numbers.len();
            eager.until(before + 1).await;
            seen = eager.numbers.len();
        }
    }
    let total = eager.numbers.len() as u64 + eager.lost;
    assert_eq!(total, 100_000);
    // Now it reads: what it gets and what it is told to have missed are all there was.
    while lazy.numbers.len() as u64 + lazy.lost < 100_000 {
        let before = lazy.numbers.len();
        node.packets(1);
        lazy.until(before + 1).await;
    }
    assert!(lazy.lost > 0, "everything fitted somewhere: {} records", lazy.numbers.len());
}
