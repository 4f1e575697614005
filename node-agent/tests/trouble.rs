//! What a node lacks is said on the program, and mends itself when it is there again. Real binary, real kernel. Needs
//! root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code, reason = "each test binary uses its part of it")]
mod node;

use node::{Node, manifest};
use serde_json::json;
use skep_proto::v1::State;

#[tokio::test]
async fn a_map_that_does_not_fit_is_named_with_its_size_and_the_limit() {
    const LIMIT: u64 = 256 << 20;
    let mut node = Node::start().await;
    let image = node.push("net", "counter:v1").await;
    if !node.limit_memory(LIMIT) {
        println!("SKIPPED: no memory controller to be used");
        return;
    }
    let text = manifest("counter", &image, json!({"step": 1}));
    node.write("a.yaml", &text.replace("  programs:", "  maps: {flows: {maxEntries: 8000000}}\n  programs:"));
    let full = node.until("counter", |r| r.state() == State::Failed).await;
    assert_eq!(full.reason, "NodeFull");
    let said = format!(
        "map flows: no memory for 8000000 entries (192000000 bytes of keys and values), the agent's memory limit is {LIMIT} bytes; lower maxEntries or raise the agent's memory limit"
    );
    assert_eq!(full.message, said);
    assert_eq!(node.loads_in_bpffs(), 0);
    // Near its limit each allocation of another thread may end the agent.
    assert!(node.most_memory() < LIMIT / 2, "the map was tried: {} bytes at most", node.most_memory());
    node.raise_memory(4 << 30);
    node.until("counter", |r| r.state() == State::Ready).await;
}

#[tokio::test]
async fn a_state_directory_that_takes_no_more_is_said_and_mends_itself() {
    let mut node = Node::start().await;
    let image = node.push("net", "counter:v1").await;
    node.kill();
    node.mount_state(4 << 20);
    node.start_agent().await;
    node.write("a.yaml", &manifest("first", &image, json!({"step": 1})));
    let first = node.until("first", |r| r.state() == State::Ready).await;

    let filler = node.state().join("filler");
    let full = std::fs::write(&filler, vec![1; 8 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let other = manifest("second", &image, json!({"step": 1})).replace("names: [lo]", "match: [\"none*\"]");
    node.write("b.yaml", &other);
    let refused = node.until("second", |r| r.state() == State::Failed).await;
    assert_eq!(refused.reason, "NodeFull", "{}", refused.message);
    assert!(refused.message.contains("No space left on device"), "{}", refused.message);
    assert_eq!(node.report("first").await.unwrap(), first, "a neighbour was disturbed");
    std::fs::remove_file(&filler).unwrap();
    node.until("second", |r| r.state() == State::Ready).await;

    node.forbid_records(true);
    node.write("b.yaml", &other.replace("second", "third"));
    let refused = node.until("third", |r| r.state() == State::Failed).await;
    assert!(refused.message.contains("Operation not permitted"), "{}", refused.message);
    node.forbid_records(false);
    node.until("third", |r| r.state() == State::Ready).await;
    node.until_gone("second").await;
}

/// What is left of a record is not taken for a wish, nor for the absence of one.
#[tokio::test]
async fn a_damaged_record_is_said_and_takes_nothing_away() {
    let mut node = Node::start().await;
    let image = node.push("net", "counter:v1").await;
    node.write("a.yaml", &manifest("counter", &image, json!({"step": 1})));
    let first = node.until("counter", |r| r.state() == State::Ready).await;
    node.kill();
    let record = node.state().join("desired").join(format!("{}.json", first.uid));
    let whole = std::fs::read(&record).unwrap();
    std::fs::write(&record, &whole[..whole.len() / 2]).unwrap();
    node.hide_manifests(true);
    node.start_agent().await;
    let said = node.until("", |r| r.uid == first.uid).await;
    assert_eq!((said.state(), said.reason.as_str()), (State::Failed, "Internal"));
    assert!(said.message.contains("its record cannot be read") && said.message.contains("EOF"), "{}", said.message);
    node.packets(1);
    assert_eq!(node.programs_in_bpffs(), 1);
    node.hide_manifests(false);
    node.write("touch.txt", "");
    let again = node.until("counter", |r| r.state() == State::Ready).await;
    assert_eq!((again.functions, again.hooks), (first.functions, first.hooks));
    assert_eq!(node.hits("counter").await, 1);
    assert_eq!(std::fs::read(&record).unwrap(), whole);
    assert!(node.report("").await.is_none());
}

#[tokio::test]
async fn an_agent_that_may_start_no_more_threads_says_so_and_goes_on_when_it_may() {
    let mut node = Node::start().await;
    let image = node.push("net", "counter:v1").await;
    node.write("a.yaml", &manifest("first", &image, json!({"step": 1})));
    node.until("first", |r| r.state() == State::Ready).await;
    if !node.limit_threads(0) {
        println!("SKIPPED: no pids controller to be used");
        return;
    }
    let other = manifest("second", &image, json!({"step": 2})).replace("xdp: {", "tcx: {direction: Ingress, ");
    node.write("b.yaml", &other.replace("count_xdp", "count_tc"));
    let refused = node.until("second", |r| r.hooks.iter().any(|h| !h.failures.is_empty())).await;
    let failure = &refused.hooks[0].failures[0];
    assert_eq!(failure.reason, "LimitReached", "{failure:#?}");
    assert!(failure.message.contains("Resource temporarily unavailable"), "{}", failure.message);
    let first = node.report("first").await.unwrap();
    assert_eq!(first.state(), State::Ready, "a neighbour was disturbed");
    node.raise_threads();
    node.until("second", |r| r.state() == State::Ready).await;
    assert!(!node.log().contains("panicked"), "{}", node.log());
}

#[tokio::test]
async fn a_bpffs_that_is_gone_is_named_and_what_was_pinned_is_found_when_it_is_back() {
    let mut node = Node::start().await;
    let image = node.push("net", "counter:v1").await;
    node.write("a.yaml", &manifest("counter", &image, json!({"step": 1})));
    let before = node.until("counter", |r| r.state() == State::Ready).await;
    node.hide_bpffs(true);
    node.hang_up();
    let gone = node.until("counter", |r| r.state() == State::Failed).await;
    assert_eq!(gone.reason, "TargetNotFound", "{}", gone.message);
    assert!(gone.message.contains("is not a bpffs; mount one with `mount -t bpf bpf "), "{}", gone.message);
    node.packets(5);
    node.hide_bpffs(false);
    let after = node.until("counter", |r| r.state() == State::Ready).await;
    assert_eq!(after.functions[0].id, before.functions[0].id, "it was loaded again");
    assert_eq!(node.hits("counter").await, 5, "it stood still meanwhile");
}
