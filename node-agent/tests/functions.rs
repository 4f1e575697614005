//! Programs on the functions of other programs, by the real agent. Needs root; what a vendor's kernel refuses is shown in
//! the machines of `cargo xtask test --only vm`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code, reason = "each test binary uses its part of it")]
mod node;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use node::{Node, packets};
use skep_kernel::sys::program;
use skep_proto::v1::{ProgramReport, State};

fn manifest(name: &str, image: &str, spec: &str, programs: &[(&str, &str)]) -> String {
    let programs: Vec<String> =
        programs.iter().map(|(function, attach)| format!("  - name: {function}\n    attach: [{attach}]\n")).collect();
    format!(
        "apiVersion: skep.dev/v1alpha1\nkind: EbpfProgram\nmetadata: {{name: {name}, namespace: test}}\nspec:\n  image: {{reference: \"{image}\"}}\n{spec}  programs:\n{}",
        programs.concat()
    )
}

/// `answer`: 0 lets a packet pass, 4294967295 leaves it to the next program.
fn guard(image: &str, answer: u32) -> String {
    let tcx = "{tcx: {interfaces: {names: [lo]}, direction: Ingress}}";
    manifest("guard", image, &format!("  globals: {{answer: {answer}}}\n"), &[("guard", tcx)])
}

fn tracer(image: &str, spec: &str) -> String {
    let on = |kind: &str| format!("{{{kind}: {{ebpfProgram: guard, function: check}}}}");
    manifest("tracer", image, spec, &[("on_entry", &on("fentry")), ("on_exit", &on("fexit"))])
}

fn replacer(image: &str, answer: u32) -> String {
    let attach = "{freplace: {ebpfProgram: guard, function: check}}";
    manifest("replacer", image, &format!("  globals: {{answer: {answer}}}\n"), &[("instead", attach)])
}

/// Programs of that name that the kernel has, whoever holds them.
fn loaded(name: &str) -> usize {
    use std::os::fd::AsFd;
    let named = |id: &u32| program::by_id(*id).is_ok_and(|fd| program::info(fd.as_fd()).is_ok_and(|i| i.name == name));
    program::all_ids().unwrap().iter().filter(|id| named(id)).count()
}

fn is_next(old: &ProgramReport, new: &ProgramReport) -> bool {
    new.state() == State::Ready && new.desired_revision != old.desired_revision
}

/// Until the kernel has so many programs `guard`.
async fn until_loaded(count: usize) {
    let start = std::time::Instant::now();
    while loaded("guard") != count {
        assert!(start.elapsed().as_secs() < 20, "{} programs guard instead of {count}", loaded("guard"));
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_that_trace_another_follow_its_revisions_without_missing_a_call() {
    let mut node = Node::start().await;
    let callee = node.push("callee", "callee:v1").await;
    let image = node.push("tracer", "tracer:v1").await;
    let net = node.push("net", "net:v1").await;

    node.write("tracer.yaml", &tracer(&image, ""));
    let waiting = node.until("tracer", |r| r.hooks.iter().any(|h| !h.failures.is_empty())).await;
    let failure = &waiting.hooks[0].failures[0];
    assert_eq!(failure.reason, "TargetNotFound");
    let text = "check of EbpfProgram guard not found: this node has no such EbpfProgram in the namespace";
    assert!(failure.message.ends_with(text), "{}", failure.message);

    node.write("guard.yaml", &guard(&callee, 0));
    let mut guarded = node.until("guard", |r| r.state() == State::Ready).await;
    if std::env::var_os("SKEP_TEST_MUST_FIRE").is_none() {
        let tracer = node.until("tracer", |r| r.state() == State::Ready || r.reason == "PermissionDenied").await;
        if tracer.state() != State::Ready {
            println!("refused here as it should be: {}", tracer.message);
            // Who cannot follow holds nobody up for long, and the reason stays his own.
            node.write("guard.yaml", &guard(&callee, u32::MAX));
            node.until("guard", |r| is_next(&guarded, r)).await;
            return;
        }
    }
    node.until("tracer", |r| r.state() == State::Ready).await;
    node.packets(5);
    assert_eq!((node.slot("tracer", 0).await, node.slot("tracer", 1).await), (5, 5));

    // A reference that is never touched, and packets all the time.
    let first = "{tcx: {interfaces: {names: [lo]}, direction: Ingress, position: {place: First}}}";
    node.write("reference.yaml", &manifest("reference", &net, "", &[("count_tc", first)]));
    node.until("reference", |r| r.state() == State::Ready).await;
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, netns) = (stop.clone(), node.netns());
    let traffic = std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            packets(&netns, 50);
        }
    });
    for round in 0..10 {
        node.write("guard.yaml", &guard(&callee, if round % 2 == 0 { u32::MAX } else { 0 }));
        guarded = node.until("guard", |r| is_next(&guarded, r)).await;
    }
    stop.store(true, Ordering::Relaxed);
    traffic.join().unwrap();
    let sent = node.slot("reference", 1).await;
    assert!(sent > 100, "{sent} packets are no load");
    println!("{sent} packets while guard was updated ten times");
    assert_eq!(node.slot("tracer", 0).await, 5 + sent, "entries missed or doubled");
    assert_eq!(node.slot("tracer", 1).await, 5 + sent, "exits missed or doubled");
    until_loaded(1).await;

    // The tracer's own next revision, and its restart: nothing is left of what it was.
    let before = node.until("tracer", |r| r.state() == State::Ready).await;
    node.write("tracer.yaml", &tracer(&image, "  globals: {answer: 9}\n"));
    node.until("tracer", |r| is_next(&before, r)).await;
    node.kill();
    node.start_agent().await;
    let again = node.until("tracer", |r| r.state() == State::Ready).await;
    assert_eq!(again.functions.len(), 2);
    let counted = node.slot("tracer", 0).await;
    node.packets(5);
    assert_eq!(node.slot("tracer", 0).await, counted + 5);

    // The one that is traced leaves: nobody holds it.
    node.delete("guard.yaml");
    node.until_gone("guard").await;
    until_loaded(0).await;
    assert!(!node.log().contains("what others hold"), "{}", node.log());
    // While it leaves there is a moment in which it is known and has no functions.
    node.until("tracer", |r| r.hooks.iter().all(|h| h.failures.iter().any(|f| f.message.ends_with(text)))).await;
    for name in ["tracer", "reference"] {
        node.delete(&format!("{name}.yaml"));
        node.until_gone(name).await;
    }
    assert_eq!(node.programs_in_bpffs(), 0);
}

#[tokio::test]
async fn programs_that_replace_a_function_say_how_long_it_was_not_replaced() {
    let mut node = Node::start().await;
    let callee = node.push("callee", "callee:v1").await;
    let image = node.push("tracer", "tracer:v1").await;
    node.write("guard.yaml", &guard(&callee, 0));
    let guarded = node.until("guard", |r| r.state() == State::Ready).await;
    node.write("replacer.yaml", &replacer(&image, u32::MAX));
    let first = node.until("replacer", |r| r.state() == State::Ready || r.reason == "PermissionDenied").await;
    if std::env::var_os("SKEP_TEST_MUST_FIRE").is_none() && first.state() != State::Ready {
        println!("refused here as it should be: {}", first.message);
        return;
    }
    assert_eq!(first.state(), State::Ready, "{}", first.message);
    node.packets(5);
    assert_eq!(node.slot("replacer", 2).await, 5);

    node.write("replacer.yaml", &replacer(&image, 0));
    let second = node.until("replacer", |r| is_next(&first, r)).await;
    let said = "freplace on check of EbpfProgram guard was empty for ";
    assert!(second.message.contains(said), "{}", second.message);
    println!("{}", second.message);

    // The new revision of what is replaced runs replaced from its first packet on.
    node.write("guard.yaml", &guard(&callee, u32::MAX));
    node.until("guard", |r| is_next(&guarded, r)).await;
    let counted = node.slot("replacer", 2).await;
    node.packets(5);
    assert_eq!(node.slot("replacer", 2).await, counted + 5);
    until_loaded(1).await;

    let circular = replacer(&image, 0)
        .replace("  programs:", "  maps: {hits: {share: hits}}\n  programs:")
        .replace("ebpfProgram: guard", "ebpfProgram: replacer");
    node.write("replacer.yaml", &circular);
    let refused = node.until("replacer", |r| r.state() == State::Failed).await;
    assert!(refused.message.contains("programs in a circle: replacer, replacer"), "{}", refused.message);
    for name in ["replacer", "guard"] {
        node.delete(&format!("{name}.yaml"));
        node.until_gone(name).await;
    }
    assert_eq!(node.programs_in_bpffs(), 0);
}
