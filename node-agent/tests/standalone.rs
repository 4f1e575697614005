//! The agent without Kubernetes: real binary, real kernel, real registry. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code, reason = "each test binary uses its part of it")]
mod node;

use node::{Node, manifest, tracing_manifest};
use serde_json::json;
use skep_proto::v1::{ProgramReport, State};

#[tokio::test]
async fn a_manifest_is_loaded_edited_broken_and_removed() {
    let mut node = Node::start().await;
    let image = node.push("net", "counter:v1").await;

    // Added.
    node.write("a.yaml", &manifest("counter", &image, json!({"step": 1})));
    let first = node.until("counter", |r| r.state() == State::Ready).await;
    assert_eq!(first.reason, "Ready");
    assert_eq!(first.hooks[0].names, ["lo"]);
    node.packets(5);
    assert_eq!(node.hits("counter").await, 5);

    // Edited: another revision, the same link, the map kept.
    node.write("a.yaml", &manifest("counter", &image, json!({"step": 100})));
    let second =
        node.until("counter", |r| r.state() == State::Ready && r.desired_revision != first.desired_revision).await;
    assert_eq!(second.running_revision, second.desired_revision);
    assert_eq!(second.hooks[0].link_ids, first.hooks[0].link_ids);
    assert_ne!(second.functions[0].id, first.functions[0].id);
    node.packets(1);
    assert_eq!(node.hits("counter").await, 105);

    // Broken: said, and nothing else changes.
    let broken =
        manifest("counter", &image, json!({"step": 1})).replace("primary", "primry").replace("names:", "nmaes:");
    node.write("a.yaml", &broken);
    let refused = node.until("counter", |r| r.state() == State::Failed).await;
    assert!(refused.message.contains("known here: exclude, match, names, pods, primary"), "{}", refused.message);
    assert_eq!(refused.running_revision, second.running_revision);
    node.packets(1);
    assert_eq!(node.hits("counter").await, 205);

    // Mended.
    node.write("a.yaml", &manifest("counter", &image, json!({"step": 100})));
    node.until("counter", |r| r.state() == State::Ready).await;

    // Removed.
    node.delete("a.yaml");
    node.until_gone("counter").await;
    assert_eq!(node.programs_in_bpffs(), 0);
    assert_eq!(node.desired_files(), 0);
}

/// The hook's identity changes under an edit of priority, and the place that it leaves is the one that the next wants.
#[tokio::test]
async fn programs_on_the_nodes_network_namespace_follow_their_manifest() {
    let release = skep_kernel::probe::kernel_release();
    let numbers: Vec<u32> = release.split(['.', '-']).take(2).filter_map(|n| n.parse().ok()).collect();
    if numbers < vec![6, 4] {
        println!("SKIPPED: netfilter links came with Linux 6.4");
        return;
    }
    let mut node = Node::start().await;
    let image = node.push("net", "counter:v1").await;
    let both = |step: u32, priority: i32| {
        format!(
            "apiVersion: skep.dev/v1alpha1\nkind: EbpfProgram\nmetadata: {{name: both, namespace: test}}\nspec:\n  image: {{reference: \"{image}\"}}\n  globals: {{step: {step}}}\n  programs:\n  - name: count_lookup\n    attach:\n    - skLookup: {{networkNamespaces: {{host: true}}}}\n  - name: count_netfilter\n    attach:\n    - netfilter: {{networkNamespaces: {{host: true}}, family: Ipv4, hook: LocalIn, priority: {priority}}}\n"
        )
    };
    node.write("a.yaml", &both(1, 10));
    let first = node.until("both", |r| r.state() == State::Ready).await;
    assert_eq!(first.hooks[0].names, ["the node"]);
    assert_eq!(first.hooks[1].hook, "netfilter Ipv4 LocalIn");
    node.packets(5);
    assert_eq!((node.slot("both", 4).await, node.slot("both", 5).await), (5, 5));

    node.write("a.yaml", &both(100, 10));
    let moved = |old: &ProgramReport, new: &ProgramReport| {
        new.state() == State::Ready && new.desired_revision != old.desired_revision
    };
    let second = node.until("both", |r| moved(&first, r)).await;
    assert_eq!(second.hooks[0].link_ids, first.hooks[0].link_ids);
    assert_ne!(second.hooks[1].link_ids, first.hooks[1].link_ids);
    node.packets(1);
    assert_eq!((node.slot("both", 4).await, node.slot("both", 5).await), (105, 105));

    // The link is at 11 now, where the next is wanted.
    node.write("a.yaml", &both(100, 11));
    node.until("both", |r| moved(&second, r)).await;
    node.packets(1);
    assert_eq!(node.slot("both", 5).await, 205);

    node.delete("a.yaml");
    node.until_gone("both").await;
    assert_eq!(node.programs_in_bpffs(), 0);
}

#[tokio::test]
async fn killed_and_started_again_nothing_is_missed_and_everything_is_the_same() {
    let mut node = Node::start().await;
    let image = node.push("net", "counter:v1").await;
    node.write("a.yaml", &manifest("counter", &image, json!({"step": 1})));
    let before = node.until("counter", |r| r.state() == State::Ready).await;
    node.packets(3);
    node.kill();
    node.packets(4);
    node.stop_registry();
    node.start_agent().await;
    let after = node.until("counter", |r| r.state() == State::Ready).await;
    assert_eq!(after.functions, before.functions);
    assert_eq!(after.hooks, before.hooks);
    assert_eq!(after.maps, before.maps);
    node.packets(2);
    assert_eq!(node.hits("counter").await, 9);
}

/// Always asks for every load, IfNotPresent only for what the node does not have, and what is loaded asks nobody.
#[tokio::test]
async fn the_registry_is_asked_as_the_pull_policy_says() {
    let mut node = Node::start().await;
    let image = node.push("net", "counter:v1").await;
    let policy = |policy: &str, step: u32| {
        let text = manifest("counter", &image, json!({"step": step}));
        text.replace("image: {", &format!("image: {{pullPolicy: {policy}, "))
    };
    node.write("a.yaml", &policy("Always", 1));
    let first = node.until("counter", |r| r.state() == State::Ready).await;
    node.stop_registry();

    // Another pass over the same load.
    node.kill();
    node.start_agent().await;
    let again = node.until("counter", |r| r.state() == State::Ready).await;
    assert_eq!(again.functions, first.functions);

    // Another load of the same image: the old one runs on.
    node.write("a.yaml", &policy("Always", 100));
    let refused = node.until("counter", |r| r.state() == State::Failed).await;
    assert_eq!((refused.reason.as_str(), &refused.running_revision), ("RegistryUnreachable", &first.running_revision));
    node.packets(1);
    assert_eq!(node.hits("counter").await, 1);

    node.write("a.yaml", &policy("IfNotPresent", 100));
    node.until("counter", |r| r.state() == State::Ready && r.running_revision != first.running_revision).await;
    node.packets(1);
    assert_eq!(node.hits("counter").await, 101);
}

#[tokio::test]
async fn each_failure_has_its_reason_and_heals_without_a_restart() {
    let mut node = Node::start().await;
    let image = node.push("net", "counter:v1").await;
    let trace = node.push("trace", "trace:v1").await;

    // Somebody who is well, to be left alone by all that follows.
    node.write("good.yaml", &manifest("good", &image, json!({"step": 1})));
    let good = node.until("good", |r| r.state() == State::Ready).await;

    let cases: Vec<(&str, String, &str, &str)> = vec![
        ("missing-tag", manifest("x", &format!("{image}-nope"), json!({})), "ImageNotFound", "does not have it"),
        ("no-registry", manifest("x", "127.0.0.1:1/a/b:v1", json!({})), "RegistryUnreachable", "127.0.0.1:1"),
        (
            "unknown-global",
            manifest("x", &image, json!({"stp": 1})),
            "GlobalInvalid",
            "global stp: the object has no such global variable; it has step",
        ),
        (
            "oversized-global",
            manifest("x", &image, json!({"step": 4294967296u64})),
            "GlobalInvalid",
            "global step: 4294967296 is outside 0..=4294967295",
        ),
        (
            "unknown-program",
            manifest("x", &image, json!({})).replace("count_xdp", "count_xpd"),
            "ProgramUnknown",
            "the object has no program count_xpd; it has",
        ),
        (
            "busy",
            manifest("x", &image, json!({})),
            "HookBusy",
            "xdp on interface lo is held by EbpfProgram test/good (function count_xdp)",
        ),
        (
            "no-interface",
            manifest("x", &image, json!({})).replace("names: [lo]", "names: [eth77]"),
            "TargetNotFound",
            "this node has no interface eth77",
        ),
        (
            "verifier",
            tracing_manifest("x", &trace, "on_bad", "rawTracepoint: {name: sys_enter}"),
            "VerifierRejected",
            "on_bad: R",
        ),
        (
            "no-event",
            tracing_manifest("x", &trace, "on_tracepoint", "tracepoint: {category: syscalls, name: sys_enter_nope}"),
            "TargetNotFound",
            "tracepoint syscalls/sys_enter_nope not found",
        ),
        (
            "no-function",
            tracing_manifest("x", &trace, "on_btf", "btfTracepoint: {name: no_such_event}"),
            "TargetNotFound",
            "tracepoint no_such_event not found",
        ),
    ];
    for (case, text, reason, message) in cases {
        node.write("x.yaml", &text);
        let report = node.until("x", |r| r.reason == reason).await;
        assert!(report.message.contains(message), "{case}: {}", report.message);
        assert!(matches!(report.state(), State::Failed | State::Unsupported), "{case}: {:?}", report.state());
        node.delete("x.yaml");
        node.until_gone("x").await;
        assert_eq!(node.programs_in_bpffs(), 1, "{case} left something behind");
    }

    // A selector that matches nothing is no failure.
    node.write("x.yaml", &manifest("x", &image, json!({})).replace("names: [lo]", "match: [\"nope*\"]"));
    let report = node.until("x", |r| r.state() == State::Ready).await;
    assert_eq!((report.reason.as_str(), report.hooks[0].targets), ("NoTarget", 0));
    // And the interface that comes later is found.
    node.ip(&["link", "add", "nope0", "type", "veth", "peer", "name", "other0"]);
    let report = node.until("x", |r| r.hooks.first().is_some_and(|h| h.targets == 1)).await;
    assert_eq!(report.hooks[0].names, ["nope0"]);
    // One that goes leaves program and maps loaded.
    node.ip(&["link", "del", "nope0"]);
    let report = node.until("x", |r| r.reason == "NoTarget").await;
    assert!(!report.functions.is_empty());

    // The fixed cause heals: the tag comes to be.
    node.write(
        "late.yaml",
        &manifest("late", &format!("{}/late:v1", node.registry()), json!({}))
            .replace("names: [lo]", "match: [\"none*\"]"),
    );
    node.until("late", |r| r.reason == "ImageNotFound").await;
    node.push("net", "late:v1").await;
    node.until("late", |r| r.state() == State::Ready).await;

    let still = node.report("good").await.unwrap();
    assert_eq!((still.functions, still.hooks), (good.functions, good.hooks), "a neighbour was disturbed");
}

#[tokio::test]
async fn a_library_is_probed_by_its_name() {
    let mut node = Node::start().await;
    let trace = node.push("trace", "trace:v1").await;
    node.write("x.yaml", &tracing_manifest("x", &trace, "on_uprobe", "uprobe: {binary: libc.so.6, symbol: exit}"));
    let report = node.until("x", |r| r.state() == State::Ready).await;
    assert_eq!(report.hooks[0].names, ["libc.so.6:exit"]);
    assert!(std::process::Command::new("/bin/true").status().unwrap().success());
    assert!(node.slot("x", 3).await >= 1);

    node.write("x.yaml", &tracing_manifest("x", &trace, "on_uprobe", "uprobe: {binary: libc.so.6, symbol: exitt}"));
    let report = node.until("x", |r| r.reason == "TargetNotFound").await;
    assert_eq!(report.message, "on_uprobe: libc.so.6: no symbol exitt");
}

#[tokio::test]
async fn what_others_hold_of_a_removed_program_is_waited_for_and_said() {
    let mut node = Node::start().await;
    let image = node.push("net", "counter:v1").await;
    node.write("a.yaml", &manifest("counter", &image, json!({})));
    node.until("counter", |r| r.state() == State::Ready).await;
    let uid = skep_kernel::bpffs::list(&node.root()).unwrap().remove(0);
    let load = std::fs::read_dir(node.root().join(&uid)).unwrap().map(|entry| entry.unwrap().path());
    let load = load.into_iter().find(|path| path.join("progs").exists()).unwrap();
    let held = skep_kernel::sys::open_pin(&load.join("maps/hits")).unwrap();
    let start = std::time::Instant::now();
    node.delete("a.yaml");
    let removing = node.until("counter", |r| r.state() == State::Removing).await;
    assert_eq!(removing.reason, "Progressing");
    while node.programs_in_bpffs() > 0 {
        assert!(start.elapsed().as_secs() < 5, "its pins are gone at once");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    node.until_gone("counter").await;
    let waited = start.elapsed().as_secs();
    assert!((9..15).contains(&waited), "{waited} s");
    let me = format!("(pid {})", std::process::id());
    let log = node.log();
    let line = log.lines().find(|line| line.contains("removed, but for what others hold: map hits (id ")).unwrap();
    assert!(line.contains(&me), "{line}");
    drop(held);
}

/// The kernel takes one XDP program per interface, and its mode is the link's for good.
#[tokio::test]
async fn a_change_of_xdp_mode_says_how_long_the_interface_was_without() {
    let mut node = Node::start().await;
    let image = node.push("net", "counter:v1").await;
    let text = manifest("counter", &image, json!({"step": 1}));
    node.write("a.yaml", &text);
    let before = node.until("counter", |r| r.state() == State::Ready).await;
    node.packets(3);
    node.write("a.yaml", &text.replace("names: [lo]}", "names: [lo]}, mode: Generic"));
    let after = node.until("counter", |r| r.desired_revision != before.desired_revision).await;
    let after =
        node.until("counter", |r| r.state() == State::Ready && r.desired_revision == after.desired_revision).await;
    assert_eq!(after.functions[0].id, before.functions[0].id, "nothing is loaded again");
    let (_, gap) = after.message.split_once("xdp on lo was empty for ").unwrap_or_else(|| panic!("{}", after.message));
    println!("a change of mode: {gap}");
    assert!(gap.contains(" ms while its program was replaced"), "{gap}");
    node.packets(3);
    assert_eq!(node.hits("counter").await, 6);
}

/// What a crash in the middle of a write leaves, and a mount that comes late.
#[tokio::test]
async fn what_is_empty_takes_nothing_away() {
    let mut node = Node::start().await;
    let image = node.push("net", "counter:v1").await;
    let text = manifest("counter", &image, json!({"step": 1}));
    node.write("a.yaml", &text);
    let before = node.until("counter", |r| r.state() == State::Ready).await;
    node.packets(3);
    node.write("a.yaml", "");
    node.until_logged("a.yaml: it is empty; delete the file to remove its programs").await;
    let unread = node.until("a.yaml", |r| r.state() == State::Failed).await;
    assert_eq!(unread.reason, "ObjectUnreadable");
    let words = "as long as it cannot be read, programs whose manifests go are not removed";
    assert!(unread.message.ends_with(words), "{}", unread.message);
    node.hide_manifests(true);
    node.make_manifests();
    node.hang_up();
    node.until_logged("is another directory now, and empty").await;
    assert_eq!(node.report("counter").await.unwrap(), before);
    // It is watched like the one before.
    node.write("a.yaml", &text.replace("step\":1", "step\":2"));
    node.until("counter", |r| r.state() == State::Ready && r.desired_revision != before.desired_revision).await;
    node.until_gone("a.yaml").await;
    node.packets(1);
    assert_eq!(node.hits("counter").await, 5);
    node.delete("a.yaml");
    node.until_gone("counter").await;
}

/// A registry that accepts and says nothing.
#[tokio::test]
async fn a_registry_that_does_not_answer_holds_up_nobody_else() {
    let mut node = Node::start().await;
    let image = node.push("net", "counter:v1").await;
    node.write("a.yaml", &manifest("counter", &image, json!({"step": 1})));
    node.until("counter", |r| r.state() == State::Ready).await;
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let reference = format!("{}/nobody/home:v1", silent.local_addr().unwrap());
    node.write("0.yaml", &manifest("waiting", &reference, json!({})));
    let (_held, _) = silent.accept().unwrap();
    let start = std::time::Instant::now();
    node.delete("a.yaml");
    node.until_gone("counter").await;
    node.write("b.yaml", &manifest("next", &image, json!({"step": 1})));
    node.until("next", |r| r.state() == State::Ready).await;
    assert!(start.elapsed() < std::time::Duration::from_secs(10), "{:?}", start.elapsed());
}

/// A mistake in a new place is no reason to leave the old one.
#[tokio::test]
async fn what_cannot_be_attached_in_its_new_place_stays_in_its_old_one() {
    let mut node = Node::start().await;
    let image = node.push("net", "counter:v1").await;
    let text = manifest("counter", &image, json!({"step": 1}));
    let tcx = manifest("other", &image, json!({"step": 1}))
        .replace("count_xdp", "count_tc")
        .replace("xdp: {interfaces: {names: [lo]}}", "tcx: {interfaces: {names: [lo]}, direction: Ingress}");
    node.write("a.yaml", &text);
    node.write("b.yaml", &tcx);
    node.until("counter", |r| r.state() == State::Ready).await;
    node.until("other", |r| r.state() == State::Ready).await;
    node.write("a.yaml", &text.replace("names: [lo]}", "names: [lo]}, mode: Native"));
    let place = "direction: Ingress, position: {after: {ebpfProgram: counter, function: tpyo}}";
    node.write("b.yaml", &tcx.replace("direction: Ingress", place));
    let native = node.until("counter", |r| r.state() != State::Ready && r.state() != State::Updating).await;
    assert_eq!(native.hooks[0].failures[0].reason, "KernelUnsupported", "{native:#?}");
    let lost = node.until("other", |r| r.hooks.iter().any(|h| !h.failures.is_empty())).await;
    assert_eq!(lost.hooks[0].failures[0].reason, "TargetNotFound", "{lost:#?}");
    node.packets(3);
    assert_eq!((node.slot("counter", 0).await, node.slot("other", 1).await), (3, 3), "they run on");
    node.write("a.yaml", &text);
    node.write("b.yaml", &tcx);
    node.until("counter", |r| r.state() == State::Ready).await;
    node.until("other", |r| r.state() == State::Ready).await;
    node.packets(3);
    assert_eq!((node.slot("counter", 0).await, node.slot("other", 1).await), (6, 6));
}

/// Nor is a new image: the revision that ran is whole until the next one can be somewhere.
#[tokio::test]
async fn a_new_image_that_can_be_on_no_hook_is_refused_as_a_whole() {
    let mut node = Node::start().await;
    let (image, next) = (node.push("net", "counter:v1").await, node.push("events", "events:v1").await);
    node.ip(&["link", "add", "busy", "type", "veth", "peer", "name", "other"]);
    let holder = manifest("holder", &image, json!({})).replace("names: [lo]", "names: [busy]");
    node.write("0.yaml", &holder);
    node.until("holder", |r| r.state() == State::Ready).await;
    let text = manifest("counter", &image, json!({"step": 1}));
    node.write("a.yaml", &text);
    let first = node.until("counter", |r| r.state() == State::Ready).await;
    // Of the same function, and of one that the older revision has not.
    let same = manifest("counter", &image, json!({"step": 2}));
    let another = manifest("counter", &next, json!({})).replace("count_xdp", "packet_to_ring");
    for edit in [&same, &another] {
        node.write("a.yaml", &edit.replace("names: [lo]", "names: [busy]"));
        let busy = node.until("counter", |r| r.reason == "HookBusy").await;
        assert!(busy.message.contains("is held by EbpfProgram test/holder"), "{}", busy.message);
        assert_eq!((busy.state(), &busy.running_revision), (State::Failed, &first.running_revision), "{busy:#?}");
        assert_eq!(busy.hooks, first.hooks, "what runs is shown");
        let before = node.hits("counter").await;
        node.packets(3);
        assert_eq!(node.hits("counter").await, before + 3, "it was taken off for what cannot come");
        assert_eq!(node.loads_in_bpffs(), 2, "the holder's and the older one");
    }
    node.delete("0.yaml");
    let last = node.until("counter", |r| r.state() == State::Ready).await;
    assert_eq!((&last.running_revision, node.loads_in_bpffs()), (&last.desired_revision, 1));
}

/// What an edit says beside its image is not lost with it: whoever wants a program off its hooks gets that.
#[tokio::test]
async fn an_image_that_is_not_there_keeps_what_ran_and_lets_it_be_suspended() {
    let mut node = Node::start().await;
    let image = node.push("net", "counter:v1").await;
    let text = manifest("counter", &image, json!({"step": 1}));
    node.write("a.yaml", &text);
    let first = node.until("counter", |r| r.state() == State::Ready).await;
    let missing = text.replace("counter:v1", "counter:v9");
    node.write("a.yaml", &missing);
    let refused = node.until("counter", |r| r.reason == "ImageNotFound").await;
    assert_eq!((refused.state(), &refused.running_revision), (State::Failed, &first.running_revision));
    assert_ne!(refused.desired_revision, first.running_revision, "which revision is refused is said");
    assert_eq!(refused.hooks, first.hooks);
    node.packets(3);
    assert_eq!(node.hits("counter").await, 3);
    node.write("a.yaml", &missing.replace("  programs:", "  suspend: true\n  programs:"));
    let off = node.until("counter", |r| r.message.contains("is off its hooks")).await;
    assert_eq!(off.reason, "ImageNotFound");
    node.packets(3);
    assert_eq!(node.hits("counter").await, 3);
    node.kill();
    node.start_agent().await;
    node.until("counter", |r| r.message.contains("is off its hooks")).await;
    node.write("a.yaml", &missing);
    let on_lo = |r: &ProgramReport| r.hooks.first().is_some_and(|hook| hook.names == ["lo"]);
    node.until("counter", |r| r.reason == "ImageNotFound" && on_lo(r)).await;
    node.packets(3);
    assert_eq!(node.hits("counter").await, 6);
    node.push("net", "counter:v9").await;
    let last = node.until("counter", |r| r.state() == State::Ready).await;
    assert_eq!(last.running_revision, last.desired_revision);
    node.packets(3);
    assert_eq!(node.hits("counter").await, 9, "contents are kept");
}

/// Which of two is meant nobody can know.
#[tokio::test]
async fn two_manifests_of_one_name_change_nothing_until_one_goes() {
    let mut node = Node::start().await;
    let image = node.push("net", "counter:v1").await;
    node.write("b.yaml", &manifest("counter", &image, json!({"step": 1})));
    let first = node.until("counter", |r| r.state() == State::Ready).await;
    for _ in 0..2 {
        node.write("a.yaml", &manifest("counter", &image, json!({"step": 100})));
        let both = node.until("counter", |r| r.state() == State::Failed).await;
        assert_eq!(both.reason, "ObjectUnreadable");
        let said = "b.yaml: rename or delete all but one; until then nothing is changed";
        assert!(both.message.contains("a.yaml and ") && both.message.ends_with(said), "{}", both.message);
        assert_eq!(both.running_revision, first.running_revision);
        node.delete("a.yaml");
        node.until("counter", |r| r.state() == State::Ready).await;
    }
    node.packets(1);
    assert_eq!(node.hits("counter").await, 1);
}

/// Each with its own state directory, by a mistake.
#[tokio::test]
async fn a_second_agent_leaves_the_pins_and_the_socket_of_the_first_alone() {
    let mut node = Node::start().await;
    let image = node.push("net", "counter:v1").await;
    node.write("a.yaml", &manifest("counter", &image, json!({"step": 1})));
    let before = node.until("counter", |r| r.state() == State::Ready).await;
    let pins = node.run_another(&["--bpffs", &node.root().to_string_lossy()]);
    assert!(pins.contains("are another agent's, which runs"), "{pins}");
    let socket = node.run_another(&["--socket", &node.socket().to_string_lossy()]);
    assert!(socket.contains("another agent answers there"), "{socket}");
    let purged = node.purge_another();
    assert!(purged.contains("are another agent's, which runs"), "{purged}");
    assert_eq!(node.report("counter").await.unwrap(), before);
    node.packets(1);
    assert_eq!(node.hits("counter").await, 1);
}
