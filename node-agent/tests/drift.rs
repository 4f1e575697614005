//! What others do to a node is seen when it happens, long before the look every 30 s. Real binary, real kernel. Needs
//! root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code, reason = "each test binary uses its part of it")]
mod node;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use node::{Node, manifest, tracing_manifest};
use serde_json::json;
use skep_proto::v1::{ProgramReport, State};

/// Nothing that is waited for here may take longer.
const SOON: Duration = Duration::from_secs(3);

/// Waits for a report, but not until the look that comes anyway.
async fn soon(node: &mut Node, name: &str, what: &str, satisfied: impl Fn(&ProgramReport) -> bool) -> ProgramReport {
    let start = Instant::now();
    loop {
        let report = node.report(name).await.unwrap();
        if satisfied(&report) {
            println!("{what}: repaired after {} ms", start.elapsed().as_millis());
            return report;
        }
        assert!(start.elapsed() < SOON, "{what}: not seen: {report:#?}\n{}", node.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A pass that changed something is followed by another look: what this is about comes after it.
async fn quiet() {
    tokio::time::sleep(Duration::from_secs(1)).await;
}

/// The pins below a directory of the only program.
fn pins(node: &Node, below: &str) -> Vec<PathBuf> {
    let children =
        |dir: &Path| -> Vec<PathBuf> { std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect() };
    let uid = children(&node.root()).remove(0);
    let mut all: Vec<PathBuf> = children(&uid).into_iter().flat_map(|dir| children(&dir)).collect();
    all.extend(all.clone().iter().filter(|p| p.is_dir()).flat_map(|dir| children(dir)));
    all.retain(|p| !p.is_dir() && p.parent().unwrap().ends_with(below));
    all
}

#[tokio::test]
async fn deleted_pins_are_there_again_at_once() {
    let mut node = Node::start().await;
    let image = node.push("net", "counter:v1").await;
    node.write("a.yaml", &manifest("counter", &image, json!({"step": 1})));
    let first = node.until("counter", |r| r.state() == State::Ready).await;

    quiet().await;
    let link = pins(&node, "links").remove(0);
    std::fs::remove_file(&link).unwrap();
    let mended = soon(&mut node, "counter", "link", |r| r.hooks[0].link_ids != first.hooks[0].link_ids).await;
    assert_eq!((mended.hooks[0].targets, &mended.functions), (1, &first.functions));
    node.packets(3);
    assert_eq!(node.hits("counter").await, 3);

    let program = pins(&node, "progs").remove(0);
    std::fs::remove_file(&program).unwrap();
    soon(&mut node, "counter", "program", |r| r.functions.first().is_some_and(|f| f.id != first.functions[0].id)).await;
    assert!(program.exists());

    // Both pins of a map, the kept one and the load's; the program still has it.
    let maps: Vec<PathBuf> = pins(&node, "maps").into_iter().filter(|p| p.ends_with("hits")).collect();
    assert_eq!(maps.len(), 2);
    let lost = maps.iter().find(|p| p.ancestors().nth(3).unwrap() == node.root()).unwrap();
    std::fs::remove_file(lost).unwrap();
    let start = Instant::now();
    while !lost.exists() {
        assert!(start.elapsed() < SOON, "the pin of the map is not there again");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    node.packets(2);
    assert_eq!(node.hits("counter").await, 5);
}

#[tokio::test]
async fn a_cgroup_that_is_made_again_is_found_at_once() {
    let mut node = Node::start().await;
    let image = node.push("net", "counter:v1").await;
    let hook = format!("cgroupSkb: {{cgroups: {{path: {}}}, direction: Egress}}", node.cgroup());
    let text = manifest("counter", &image, json!({"step": 1})).replace("count_xdp", "count_cgroup");
    node.write("a.yaml", &text.replace("xdp: {interfaces: {names: [lo]}}", &hook));
    let first = node.until("counter", |r| r.state() == State::Ready).await;

    quiet().await;
    node.remove_cgroup();
    let gone = soon(&mut node, "counter", "gone", |r| r.state() == State::Failed).await;
    assert_eq!(gone.reason, "TargetNotFound");
    // Long enough for retries to be far apart; then the cgroup is what is heard of, not the next try.
    tokio::time::sleep(Duration::from_secs(8)).await;
    node.make_cgroup();
    let back = soon(&mut node, "counter", "back", |r| r.state() == State::Ready).await;
    assert_eq!(back.functions, first.functions);

    // Faster than anybody looks.
    node.remove_cgroup();
    node.make_cgroup();
    soon(&mut node, "counter", "at once", |r| {
        r.state() == State::Ready && r.hooks[0].link_ids != back.hooks[0].link_ids
    })
    .await;
}

/// Down and up keeps links; an interface of the same name and number that takes the place of another has none.
#[tokio::test]
async fn interfaces_that_come_and_go_are_followed_at_once() {
    let mut node = Node::start().await;
    let image = node.push("net", "counter:v1").await;
    let make = ["link", "add", "drift0", "index", "77", "type", "veth", "peer", "name", "other0", "index", "78"];
    node.ip(&make);
    let text = manifest("counter", &image, json!({"step": 1})).replace("count_xdp", "count_tc");
    let tcx = "xdp: {interfaces: {names: [lo]}}";
    node.write("a.yaml", &text.replace(tcx, "tcx: {interfaces: {names: [drift0]}, direction: Ingress}"));
    let first = node.until("counter", |r| r.state() == State::Ready).await;

    for change in ["up", "down", "up"] {
        node.ip(&["link", "set", "drift0", change]);
    }
    quiet().await;
    // In one batch: both are over before anybody can look.
    node.ip_batch("link del drift0\nlink add drift0 index 77 type veth peer name other0 index 78\n");
    let other = |r: &ProgramReport| r.state() == State::Ready && r.hooks[0].link_ids != first.hooks[0].link_ids;
    soon(&mut node, "counter", "replaced", other).await;

    node.ip(&["link", "del", "drift0"]);
    soon(&mut node, "counter", "gone", |r| r.reason == "TargetNotFound").await;
    node.ip(&make);
    soon(&mut node, "counter", "back", |r| r.state() == State::Ready).await;
}

/// A filter has no link: who removes the qdisc takes it along, and netlink tells.
#[tokio::test]
async fn a_removed_qdisc_is_there_again_at_once() {
    let mut node = Node::start().await;
    let image = node.push("net", "counter:v1").await;
    let text = manifest("counter", &image, json!({"step": 1})).replace("count_xdp", "count_tc");
    let tc = "tc: {interfaces: {names: [lo]}, direction: Ingress}";
    node.write("a.yaml", &text.replace("xdp: {interfaces: {names: [lo]}}", tc));
    node.until("counter", |r| r.state() == State::Ready).await;
    quiet().await;
    node.tc(&["qdisc", "del", "dev", "lo", "clsact"]);
    let start = Instant::now();
    loop {
        let before = node.slot("counter", 1).await;
        node.packets(1);
        if node.slot("counter", 1).await == before + 1 {
            return println!("filter: repaired after {} ms", start.elapsed().as_millis());
        }
        assert!(start.elapsed() < SOON, "the filter is not there again: {}", node.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_hangup_has_everything_looked_at() {
    let mut node = Node::start().await;
    let late = format!("{}/late:v1", node.registry());
    node.write("a.yaml", &manifest("counter", &late, json!({"step": 1})));
    node.until("counter", |r| r.reason == "ImageNotFound").await;
    node.push("net", "late:v1").await;
    quiet().await;
    assert_eq!(node.report("counter").await.unwrap().reason, "ImageNotFound");
    node.hang_up();
    soon(&mut node, "counter", "pushed", |r| r.state() == State::Ready).await;
}

/// An update that the verifier refuses leaves more than what happened to be attached: what ran before is repaired, follows
/// the node, and is back after a reboot.
#[tokio::test]
async fn while_an_update_is_refused_what_ran_before_is_looked_after() {
    let mut node = Node::start().await;
    let (image, broken) = (node.push("net", "counter:v1").await, node.push("trace", "broken:v1").await);
    let text = manifest("counter", &image, json!({"step": 1})).replace("names: [lo]", "match: [lo, \"eth*\"]");
    node.write("a.yaml", &text.replace("xdp: {", "tcx: {direction: Ingress, ").replace("count_xdp", "count_tc"));
    let first = node.until("counter", |r| r.state() == State::Ready).await;

    let update = |function| tracing_manifest("counter", &broken, function, "rawTracepoint: {name: sys_enter}");
    node.write("a.yaml", &update("on_bad"));
    let refused = node.until("counter", |r| r.reason == "VerifierRejected").await;
    assert_eq!((refused.state(), &refused.running_revision), (State::Failed, &first.running_revision));
    assert_ne!(refused.desired_revision, first.running_revision);
    assert_eq!(refused.hooks, first.hooks, "what runs is shown");

    quiet().await;
    let link = pins(&node, "links").remove(0);
    std::fs::remove_file(&link).unwrap();
    let start = Instant::now();
    while !link.exists() {
        assert!(start.elapsed() < SOON, "the link is not there again: {}", node.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    node.packets(3);
    assert_eq!(node.slot("counter", 1).await, 3);
    assert!(node.log().contains("tcx on lo was gone, and is attached again"), "{}", node.log());
    node.ip(&["link", "add", "eth7", "type", "veth", "peer", "name", "other"]);
    let start = Instant::now();
    while pins(&node, "links").len() < 2 {
        assert!(start.elapsed() < SOON, "it does not follow the node: {}", node.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let tries = node.log().matches("program failed").count();
    assert_eq!(tries, 1, "said once");

    // Whoever wants it off its hooks does not wait for an object that loads.
    node.write("a.yaml", &update("on_bad").replace("  programs:", "  suspend: true\n  programs:"));
    let off = node.until("counter", |r| r.message.contains("is off its hooks")).await;
    assert_eq!((off.state(), off.reason.as_str()), (State::Failed, "VerifierRejected"));
    assert!(pins(&node, "links").is_empty());
    node.write("a.yaml", &update("on_bad"));
    let start = Instant::now();
    while pins(&node, "links").len() < 2 {
        assert!(start.elapsed() < SOON, "it is not resumed: {}", node.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    // Nor is it lost with the kernel; and the one that is wanted is still wanted.
    node.reboot();
    node.hide_manifests(true);
    node.start_agent().await;
    let again = node.until("counter", |r| r.reason == "VerifierRejected" && !r.functions.is_empty()).await;
    assert_eq!(
        (&again.running_revision, &again.desired_revision),
        (&first.running_revision, &refused.desired_revision)
    );
    node.ip(&["link", "set", "lo", "up"]);
    node.packets(2);
    assert_eq!(node.slot("counter", 1).await, 2);

    node.hide_manifests(false);
    node.write("a.yaml", &update("on_raw"));
    let last = node.until("counter", |r| r.state() == State::Ready).await;
    assert_eq!(last.running_revision, last.desired_revision);
    let record = std::fs::read_to_string(node.state().join("desired").join(format!("{}.json", last.uid))).unwrap();
    assert!(!record.contains("older"), "what is not needed any more is kept: {record}");
    assert!(pins(&node, "links").len() == 1 && node.loads_in_bpffs() == 1);
}

/// A slip of the pen in a name takes nothing off the hooks that it was on.
#[tokio::test]
async fn an_edit_that_names_what_is_not_there_leaves_what_runs_where_it_is() {
    let mut node = Node::start().await;
    let image = node.push("net", "counter:v1").await;
    let text = manifest("counter", &image, json!({"step": 1}));
    for step in [1, 2] {
        node.write("a.yaml", &text);
        let first = node.until("counter", |r| r.state() == State::Ready).await;
        // With another load, too.
        node.write("a.yaml", &text.replace("names: [lo]", "names: [l0]").replace("1}", &format!("{step}}}")));
        let slip = node.until("counter", |r| r.state() == State::Failed).await;
        assert_eq!(slip.reason, "TargetNotFound");
        assert_eq!(slip.message, "count_xdp: this node has no interface l0; what ran elsewhere runs on there");
        let before = node.hits("counter").await;
        node.packets(3);
        assert_eq!(node.hits("counter").await, before + 3, "step {step}: it was taken off");
        node.write("a.yaml", &text);
        let mended = node.until("counter", |r| r.state() == State::Ready).await;
        assert_eq!((&mended.functions, &mended.hooks), (&first.functions, &first.hooks), "step {step}");
    }
    // What matches nothing is no slip.
    node.write("a.yaml", &text.replace("names: [lo]", "match: [\"nothing*\"]"));
    node.until("counter", |r| r.reason == "NoTarget").await;
    assert!(pins(&node, "links").is_empty());
}
