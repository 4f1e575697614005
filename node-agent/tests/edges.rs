//! What programs have to do with each other on a node, by the real agent. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code, reason = "each test binary uses its part of it")]
mod node;

use node::Node;
use skep_proto::v1::{ProgramReport, State};

/// An EbpfProgram of the object `net` with options for its map `hits` and one function on one hook.
fn manifest(name: &str, image: &str, hits: &str, function: &str, attach: &str) -> String {
    format!(
        "apiVersion: skep.dev/v1alpha1\nkind: EbpfProgram\nmetadata: {{name: {name}, namespace: test}}\nspec:\n  image: {{reference: \"{image}\"}}\n  maps: {{hits: {{{hits}}}}}\n  programs:\n  - name: {function}\n    attach:\n    - {attach}\n"
    )
}

const XDP: (&str, &str) = ("count_xdp", "xdp: {interfaces: {names: [lo]}}");
const TCX: (&str, &str) = ("count_tc", "tcx: {interfaces: {names: [lo]}, direction: Ingress}");

fn map_id(report: &ProgramReport, name: &str) -> u32 {
    report.maps.iter().find(|map| map.name == name).unwrap().id
}

#[tokio::test]
async fn programs_that_share_a_map_have_one_and_a_third_that_differs_is_refused() {
    let mut node = Node::start().await;
    let image = node.push("net", "counter:v1").await;
    node.write("a.yaml", &manifest("first", &image, "share: flows", XDP.0, XDP.1));
    node.write("b.yaml", &manifest("second", &image, "share: flows", TCX.0, TCX.1));
    let first = node.until("first", |r| r.state() == State::Ready).await;
    let second = node.until("second", |r| r.state() == State::Ready).await;
    assert_eq!(map_id(&first, "hits"), map_id(&second, "hits"));
    node.packets(5);
    assert_eq!(node.slot("second", 0).await, 5, "what the first counts is in the second's map");

    node.write("c.yaml", &manifest("third", &image, "share: flows, maxEntries: 7", TCX.0, &TCX.1.replace("Ing", "Eg")));
    let third = node.until("third", |r| r.state() == State::Failed).await;
    assert_eq!(third.reason, "MapIncompatible");
    assert!(third.message.contains("group flows of namespace test has this map already"), "{}", third.message);

    // The group's map outlives a member, and a restart of the agent.
    node.delete("a.yaml");
    node.until_gone("first").await;
    node.kill();
    node.start_agent().await;
    let again = node.until("second", |r| r.state() == State::Ready).await;
    assert_eq!(map_id(&again, "hits"), map_id(&second, "hits"));
    assert_eq!(node.slot("second", 0).await, 5);

    node.delete("b.yaml");
    node.until_gone("second").await;
    // Nobody has the map any more: the third makes one as it likes.
    node.write("c.yaml", &manifest("third", &image, "share: flows, maxEntries: 8", TCX.0, &TCX.1.replace("Ing", "Eg")));
    let third = node.until("third", |r| r.state() == State::Ready).await;
    assert_ne!(map_id(&third, "hits"), map_id(&second, "hits"));
    node.delete("c.yaml");
    node.until_gone("third").await;
    assert_eq!(node.programs_in_bpffs(), 0);
}
