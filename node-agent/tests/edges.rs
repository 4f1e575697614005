//! What programs have to do with each other on a node, by the real agent. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code, reason = "each test binary uses its part of it")]
mod node;

use node::Node;
use skep_kernel::netns;
use skep_kernel::sys::link;
use skep_object::kind::attach;
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

/// The kernel's ids of the programs on lo, in the order in which they run.
fn order(node: &Node) -> Vec<u32> {
    let index = node.interface_index("lo");
    let all = netns::within(Some(&node.netns()), || link::on_interface(index, attach::TCX_INGRESS)).unwrap();
    all.into_iter().map(|on| on.program_id).collect()
}

fn tcx(name: &str, image: &str, position: &str) -> String {
    let attach = format!("tcx: {{interfaces: {{names: [lo]}}, direction: Ingress{position}}}");
    manifest(name, image, "onUpdate: Keep", TCX.0, &attach)
}

fn id(report: &ProgramReport) -> u32 {
    report.functions[0].id
}

#[tokio::test]
async fn a_program_waits_for_its_neighbour_and_stands_beside_it() {
    let mut node = Node::start().await;
    let image = node.push("net", "counter:v1").await;
    let before = ", position: {before: {ebpfProgram: guard, function: count_tc}}";
    let after = ", position: {after: {ebpfProgram: guard, function: count_tc}}";
    node.write("count.yaml", &tcx("count", &image, before));
    let waiting = node.until("count", |r| r.state() == State::Degraded || r.state() == State::Failed).await;
    let failure = &waiting.hooks[0].failures[0];
    assert_eq!(failure.reason, "TargetNotFound");
    assert!(failure.message.contains("count_tc of EbpfProgram guard not found"), "{}", failure.message);

    // Meanwhile it does not wake itself.
    let tries = |node: &Node| node.log().matches("reconciled").count();
    let before = tries(&node);
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert!(tries(&node) - before < 10, "{} tries in two seconds", tries(&node) - before);

    // It comes, and is heard of.
    node.write("guard.yaml", &tcx("guard", &image, ""));
    let guard = node.until("guard", |r| r.state() == State::Ready).await;
    let count = node.until("count", |r| r.state() == State::Ready).await;
    assert_eq!(order(&node), [id(&count), id(&guard)]);

    // Another place: another copy of the same load.
    node.write("count.yaml", &tcx("count", &image, after));
    let ready = |old: &ProgramReport, new: &ProgramReport| {
        new.state() == State::Ready && new.desired_revision != old.desired_revision
    };
    let moved = node.until("count", |r| ready(&count, r)).await;
    assert_eq!(order(&node), [id(&guard), id(&moved)]);

    // The neighbour's next revision takes its place.
    node.write("guard.yaml", &tcx("guard", &image, "").replace("  programs:", "  globals: {step: 7}\n  programs:"));
    let second = node.until("guard", |r| ready(&guard, r)).await;
    assert_eq!(order(&node), [id(&second), id(&moved)]);

    // It leaves the hook, and comes back on the wrong side.
    node.write("guard.yaml", &tcx("guard", &image, "").replace("\n  maps", "\n  suspend: true\n  maps"));
    let alone = node.until("count", |r| r.state() == State::Degraded).await;
    assert_eq!(alone.hooks[0].failures[0].reason, "TargetNotFound");
    assert!(alone.hooks[0].failures[0].message.ends_with("stays where it is"), "{alone:#?}");
    assert_eq!(order(&node), [id(&moved)], "it runs on");
    node.write("guard.yaml", &tcx("guard", &image, ""));
    let back = node.until("guard", |r| r.state() == State::Ready && r.hooks[0].targets == 1).await;
    node.until("count", |r| r.state() == State::Ready).await;
    assert_eq!(order(&node), [id(&back), id(&moved)]);

    // Nobody can be both before and behind: who closes the circle is refused, and the other is looked after.
    let circular = tcx("guard", &image, &after.replace("guard", "count"));
    node.write("guard.yaml", &circular);
    let refused = node.until("guard", |r| r.state() == State::Failed).await;
    assert!(refused.message.contains("programs in a circle: guard, count, guard"), "{}", refused.message);
    assert_eq!(order(&node), [id(&back), id(&moved)], "and what ran runs on");
    assert_eq!(node.report("count").await.unwrap().state(), State::Ready);
    for name in ["guard", "count"] {
        node.delete(&format!("{name}.yaml"));
        node.until_gone(name).await;
    }
    assert_eq!(node.programs_in_bpffs(), 0);
}

/// Without `programs` or `attach`, what the object's sections say is attached, and what they leave out is not.
#[tokio::test]
async fn what_sections_say_is_attached() {
    let mut node = Node::start().await;
    let image = node.push("sections", "sections:v1").await;
    let spec = |programs: &str| {
        format!(
            "apiVersion: skep.dev/v1alpha1\nkind: EbpfProgram\nmetadata: {{name: sections, namespace: test}}\nspec:\n  image: {{reference: {image}}}\n{programs}"
        )
    };
    node.write("a.yaml", &spec(""));
    let whole = node.until("sections", |r| r.state() == State::Ready).await;
    let hooks: Vec<(&str, &str)> = whole.hooks.iter().map(|h| (h.function.as_str(), h.hook.as_str())).collect();
    // The one that is called is loaded, and on no hook.
    assert_eq!(hooks, [("on_getppid", "tracepoint"), ("on_enter", "rawTracepoint")]);
    let functions: Vec<&str> = whole.functions.iter().map(|f| f.name.as_str()).collect();
    assert!(functions.contains(&"on_getppid") && !functions.contains(&"on_packet"), "{functions:?}");

    node.write("a.yaml", &spec("  programs: [{name: on_enter}]\n"));
    let one = node.until("sections", |r| r.state() == State::Ready && r.hooks.len() == 1).await;
    assert_eq!(one.hooks[0].function, "on_enter");

    node.write("a.yaml", &spec("  programs: [{name: on_enter}, {name: on_packet}]\n"));
    let refused = node.until("sections", |r| r.state() == State::Failed).await;
    assert_eq!(refused.reason, "ObjectInvalid");
    assert_eq!(
        refused.message,
        "on_packet: its section xdp does not say where it goes: write spec.programs: [{name: on_packet, attach: [{xdp: {interfaces: {primary: true}}}]}]"
    );
}

#[tokio::test]
async fn what_the_kernel_lacks_is_told_before_anything_is_tried() {
    let lacks = skep_kernel::features::kinds()
        .into_iter()
        .filter(|support| support.missing.as_ref().is_some_and(|error| error.reason() == "KernelUnsupported"));
    let hooks = [
        ("netkit", "netkit: {interfaces: {names: [lo]}, sender: Primary}"),
        ("kprobe", "kprobe: {function: do_sys_openat2}"),
        ("kprobeMulti", "kprobeMulti: {functions: {names: [do_sys_openat2]}}"),
    ];
    let lacks: Vec<String> = lacks.map(|support| support.kind.to_string()).collect();
    let Some((kind, attach)) = hooks.iter().find(|(kind, _)| lacks.iter().any(|lack| lack == kind)) else {
        println!("SKIPPED: this kernel lacks none of the kinds that this test knows");
        return;
    };
    let mut node = Node::start().await;
    // Nobody answers there: what needs the image fails with another reason.
    let image = format!("127.0.0.1:1/none@sha256:{}", "0".repeat(64));
    node.write("a.yaml", &manifest("first", &image, "onUpdate: Keep", "on_it", attach));
    let report = node.until("first", |r| matches!(r.state(), State::Unsupported | State::Failed)).await;
    assert_eq!(
        (report.state(), report.reason.as_str()),
        (State::Unsupported, "KernelUnsupported"),
        "{}",
        report.message
    );
    assert!(report.message.contains(&format!("{kind} of on_it: ")), "{}", report.message);
    node.delete("a.yaml");
    node.until_gone("first").await;
}
