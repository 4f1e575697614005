//! Programs that are described, verified, listed and run through the Inspector. Real binary, real kernel. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code, reason = "each test binary uses its part of it")]
mod node;

use std::time::{Duration, Instant};

use node::{Node, manifest, tracing_manifest};
use serde_json::json;
use skep_proto::v1::tail_output_request::Source;
use skep_proto::v1::{
    DescribeProgramsRequest, DumpInstructionsRequest, FunctionVerdict, ProgramRef, State, StatsFrame,
    TailOutputRequest, TestProgramRequest, TestRun, VerifyProgramRequest, WatchStatsRequest,
};
use tonic::{Code, Status};

fn program() -> Option<ProgramRef> {
    Some(ProgramRef { namespace: "test".into(), name: "counter".into() })
}

#[tokio::test]
async fn functions_are_described_and_their_runs_counted() {
    let mut node = Node::start().await;
    let image = node.push("net", "counter:v1").await;
    node.write("a.yaml", &manifest("counter", &image, json!({"step": 1})));
    let report = node.until("counter", |r| r.state() == State::Ready).await;
    let asked = DescribeProgramsRequest { namespace: "test".into(), name: "counter".into() };
    let functions = node.inspector().describe_programs(asked).await.unwrap().into_inner().functions;
    let [facts] = &functions[..] else { panic!("{functions:#?}") };
    assert_eq!(
        (facts.function.as_str(), facts.r#type.as_str(), facts.id),
        ("count_xdp", "xdp", report.functions[0].id)
    );
    assert_eq!(facts.tag, report.functions[0].tag);
    let link = &facts.links[0];
    assert_eq!((link.hook.as_str(), link.target.as_str(), link.id), ("xdp", "lo", report.hooks[0].link_ids[0]));
    let maps: Vec<&str> = facts.maps.iter().map(|map| map.name.as_str()).collect();
    assert!(maps.contains(&"hits") && maps.contains(&"flows"), "{maps:?}");
    let loaded: jiff::Timestamp = facts.loaded_at.parse().unwrap();
    assert!((jiff::Timestamp::now() - loaded).total(jiff::Unit::Second).unwrap().abs() < 60.0, "{loaded}");
    assert!(facts.memlock > 0 && facts.translated_bytes > 0 && facts.gpl_compatible);

    let asked = WatchStatsRequest { namespace: "test".into(), interval_ms: 100, ..WatchStatsRequest::default() };
    let mut stream = node.inspector().watch_stats(asked).await.unwrap().into_inner();
    let runs = |frame: StatsFrame| {
        assert_eq!(frame.functions.len(), 1);
        frame.functions[0].stats.unwrap()
    };
    let first = stream.message().await.unwrap().unwrap();
    assert_eq!(first.elapsed_us, 0);
    let before = runs(first);
    node.packets(50);
    let start = Instant::now();
    loop {
        let frame = stream.message().await.unwrap().unwrap();
        assert!(frame.elapsed_us >= 50_000, "{frame:?}");
        let now = runs(frame);
        if now.run_count == before.run_count + 50 {
            assert!(now.run_time_ns > before.run_time_ns);
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "50 runs were {now:?}");
    }
    let asked =
        WatchStatsRequest { namespace: "test".into(), interval_ms: 100, frames: 2, ..WatchStatsRequest::default() };
    let mut stream = node.inspector().watch_stats(asked).await.unwrap().into_inner();
    let mut frames = 0;
    while stream.message().await.unwrap().is_some() {
        frames += 1;
    }
    assert_eq!(frames, 3, "the first, and two more");
    let asked = WatchStatsRequest { interval_ms: 5, ..WatchStatsRequest::default() };
    let status = node.inspector().watch_stats(asked).await.map(drop).unwrap_err();
    assert_eq!(status.message(), "interval_ms 5: at least 100");
}

/// On packets, with maps of its own or with those that are.
#[tokio::test]
async fn functions_run_on_packets() {
    let mut node = Node::start().await;
    let (image, trace) = (node.push("net", "counter:v1").await, node.push("trace", "trace:v1").await);
    node.write("a.yaml", &manifest("counter", &image, json!({"step": 1})));
    node.until("counter", |r| r.state() == State::Ready).await;
    let ask = async |function: &str, packets: Vec<Vec<u8>>, live: bool| -> Result<Vec<TestRun>, Status> {
        let packets = packets.into_iter().map(Into::into).collect();
        let (function, repeat) = (function.into(), 0);
        let request = TestProgramRequest { program: program(), function, packets, live, repeat, contexts: vec![] };
        Ok(node.inspector().test_program(request).await?.into_inner().runs)
    };
    let packet = vec![9u8; 64];
    let runs = ask("count_xdp", vec![packet.clone(), vec![1; 100]], false).await.unwrap();
    let seen: Vec<_> = runs.iter().map(|run| (run.return_value, run.verdict.as_str(), run.packet.len())).collect();
    assert_eq!(seen, [(2, "XDP_PASS", 64), (2, "XDP_PASS", 100)]);
    assert_eq!((node.hits("counter").await, runs[0].packet.to_vec()), (0, packet.clone()));
    ask("count_xdp", vec![packet.clone(); 3], true).await.unwrap();
    assert_eq!(node.hits("counter").await, 3, "its own maps");
    node.until_logged("root of the node ran function count_xdp, with its maps, on packets of a test").await;
    for (function, packets, live, said) in [
        ("nothing", vec![packet.clone()], false, "ProgramUnknown: no function nothing is loaded; there are count_xdp"),
        ("nothing", vec![packet.clone()], true, "ProgramUnknown: no function nothing is loaded; there are count_xdp"),
        ("count_xdp", vec![], false, "0 packets: one at least, and at most 1024"),
        (
            "count_xdp",
            vec![packet.clone(), vec![1; 3]],
            false,
            "packet 1: the kernel takes none of 3 bytes for a program of type xdp",
        ),
    ] {
        let status = ask(function, packets, live).await.unwrap_err();
        assert!(status.message().starts_with(said), "{status}");
    }
    let packets = vec![packet.clone().into(); 2];
    let many = TestProgramRequest {
        program: program(),
        function: "count_xdp".into(),
        packets,
        repeat: 5_000_001,
        live: false,
        contexts: vec![],
    };
    let status = node.inspector().test_program(many).await.unwrap_err();
    assert_eq!(status.message(), "repeat 5000001, 2 packets: at most 10000000 runs in all");
    node.write("a.yaml", &tracing_manifest("counter", &trace, "on_raw", "rawTracepoint: {name: sys_enter}"));
    node.until("counter", |r| r.functions.iter().any(|f| f.name == "on_raw")).await;
    let request = TestProgramRequest {
        program: program(),
        function: "on_raw".into(),
        packets: vec![packet.into()],
        ..Default::default()
    };
    let status = node.inspector().test_program(request).await.unwrap_err();
    assert!(!status.message().is_empty() && status.code() != Code::Internal, "{status}");
}

/// Every word of the verifier, of what runs and of what it refuses.
#[tokio::test]
async fn the_verifier_is_asked_once_more_and_leaves_nothing() {
    let mut node = Node::start().await;
    let (image, trace) = (node.push("net", "counter:v1").await, node.push("trace", "trace:v1").await);
    node.write("a.yaml", &manifest("counter", &image, json!({"step": 1})));
    let first = node.until("counter", |r| r.state() == State::Ready).await;
    let pid = node.pid();
    let held = || {
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        let names = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        names.filter(|name| name.to_string_lossy().contains("bpf-")).count()
    };
    let before = held();
    let ask = async |function: &str| -> Result<Vec<FunctionVerdict>, Status> {
        let asked = VerifyProgramRequest { program: program(), function: function.into() };
        let mut stream = node.inspector().verify_program(asked).await?.into_inner();
        let mut verdicts = Vec::new();
        while let Some(verdict) = stream.message().await? {
            verdicts.push(verdict);
        }
        Ok(verdicts)
    };
    let verdicts = ask("").await.unwrap();
    assert_eq!((verdicts.len(), verdicts[0].function.as_str(), verdicts[0].accepted), (1, "count_xdp", true));
    assert!(
        verdicts[0].log.contains("processed ") && verdicts[0].log.contains("verification time"),
        "{}",
        verdicts[0].log
    );
    assert!(verdicts[0].log.contains("(95) exit"), "every instruction: {}", verdicts[0].log);
    assert!(!verdicts[0].more && verdicts[0].reason.is_empty());
    let status = ask("count_tc").await.unwrap_err();
    assert_eq!(status.message(), "ProgramUnknown: no function count_tc is loaded; there are count_xdp");

    // One that is refused, while the older one runs.
    node.write("a.yaml", &tracing_manifest("counter", &trace, "on_bad", "rawTracepoint: {name: sys_enter}"));
    let refused = node.until("counter", |r| r.reason == "VerifierRejected").await;
    let asked = VerifyProgramRequest { program: program(), function: "on_bad".into() };
    let mut stream = node.inspector().verify_program(asked).await.unwrap().into_inner();
    let verdict = stream.message().await.unwrap().unwrap();
    assert_eq!((verdict.accepted, verdict.reason.as_str()), (false, "VerifierRejected"));
    assert!(refused.message.starts_with(&verdict.message), "{} and {}", refused.message, verdict.message);
    let last = refused.log.lines().rev().find(|line| line.starts_with("processed ")).unwrap();
    assert!(verdict.log.contains(last), "the whole of which the report has the end: {}", verdict.log);
    node.packets(2);
    assert_eq!(node.hits("counter").await, 2);
    assert_eq!(refused.functions, first.functions, "what runs was not touched");
    assert_eq!(held(), before, "programs or maps are held");
}

/// More of them than there are threads for what blocks.
#[tokio::test]
async fn clients_that_follow_or_do_not_read_hold_up_no_program() {
    const CLIENTS: usize = 40;
    let mut node = Node::start().await;
    let (net, long) = (node.push("net", "counter:v1").await, node.push("long", "long:v1").await);
    node.write("a.yaml", &manifest("counter", &net, json!({"step": 1})));
    node.until("counter", |r| r.state() == State::Ready).await;
    node.write("long.yaml", &tracing_manifest("long", &long, "many", "xdp: {interfaces: {names: [lo]}}"));
    node.until("long", |r| !r.functions.is_empty() || r.reason == "HookBusy").await;
    let mut connection = node.another_inspector().await;
    let (mut listings, mut followers) = (Vec::new(), Vec::new());
    let of = Some(ProgramRef { namespace: "test".into(), name: "long".into() });
    for _ in 0..CLIENTS {
        let request = DumpInstructionsRequest { program: of.clone(), ..DumpInstructionsRequest::default() };
        listings.push(connection.dump_instructions(request).await.unwrap().into_inner());
        let request =
            TailOutputRequest { program: program(), source: Source::Stdout.into(), ..TailOutputRequest::default() };
        match connection.tail_output(request).await {
            Ok(stream) => followers.push(stream.into_inner()),
            // Linux 6.17 and later have them.
            Err(status) => assert!(status.message().contains("no streams of programs"), "{status}"),
        }
    }
    // Each has its threads by now, if it took one.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let start = Instant::now();
    let other = "tcx: {interfaces: {names: [lo]}, direction: Ingress}";
    node.write("b.yaml", &tracing_manifest("other", &net, "count_tc", other));
    node.until("other", |r| r.state() == State::Ready).await;
    node.packets(3);
    assert_eq!(node.hits("counter").await, 3);
    assert!(start.elapsed() < Duration::from_secs(30), "others wait for clients that do not read");
    // Who follows hears of the end.
    node.delete("a.yaml");
    if let Some(follower) = followers.first_mut() {
        let status = follower.message().await.unwrap_err();
        assert_eq!(status.message(), "TargetNotFound: test/counter runs here no more");
    }
    // Who reads gets all of it.
    drop(listings.split_off(1));
    let mut listed = 0;
    while let Some(frame) = listings[0].message().await.unwrap() {
        listed += frame.instructions.len();
    }
    assert!(listed > 40_000, "{listed} instructions");
}
