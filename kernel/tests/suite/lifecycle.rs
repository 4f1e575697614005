//! Pins outlive their maker; updates leave no gap; what is taken away is gone.

use serde_json::json;
use skep_kernel::bpffs;
use skep_kernel::hook::{Target, XdpMode};
use skep_kernel::seam::Kernel;
use skep_object::kind::Kind;

use super::fixture::{Fixture, at, hook, object, request, run};

#[test]
fn another_process_finds_the_same_kernel_objects() {
    let mut f = Fixture::new();
    let lo = f.lo();
    let xdp = hook(Kind::Xdp, 0, lo);
    let request = request(&object("net"), &[("count_xdp", &xdp)], &[]);
    f.load("l1", &request);
    f.attach("l1", "count_xdp", &request, &xdp);
    let seen = f.host.observe(&f.uid).unwrap();
    f.restart();
    assert_eq!(f.host.observe(&f.uid).unwrap(), seen);
    f.packets(4);
    assert_eq!(f.hits("l1", 0), 4);
}

#[test]
fn a_new_load_takes_the_place_of_the_old_one_and_keeps_the_maps() {
    let mut f = Fixture::new();
    let lo = f.lo();
    let xdp = hook(Kind::Xdp, 0, lo);
    let object = object("net");
    let first = request(&object, &[("count_xdp", &xdp)], &[]);
    f.load("l1", &first);
    let link = f.attach("l1", "count_xdp", &first, &xdp);
    f.packets(5);
    let second = request(&object, &[("count_xdp", &xdp)], &[("step", json!(100))]);
    f.load("l2", &second);
    let before = f.host.observe(&f.uid).unwrap();
    let old = before.links[&link].clone();
    f.host.replace(&f.uid, &link, &xdp, old.program_id, &at("l2", "count_xdp", &second)).unwrap();
    f.host.remove_load(&f.uid, "l1").unwrap();
    f.packets(1);
    let after = f.host.observe(&f.uid).unwrap();
    assert_eq!(after.links[&link].id, old.id, "the link itself stays");
    assert_ne!(after.links[&link].program_id, old.program_id);
    assert_eq!(after.loads.len(), 1);
    assert_eq!(after.loads["l2"].maps["hits"].id, before.loads["l1"].maps["hits"].id, "the map was not kept");
    assert_ne!(after.loads["l2"].maps[".bss"].id, before.loads["l1"].maps[".bss"].id, ".bss starts anew");
    assert_eq!(f.hits("l2", 0), 105);
}

#[test]
fn a_replacement_loses_to_somebody_elses_program() {
    let mut f = Fixture::new();
    let lo = f.lo();
    let xdp = hook(Kind::Xdp, 0, lo);
    let object = object("net");
    let first = request(&object, &[("count_xdp", &xdp)], &[]);
    f.load("l1", &first);
    let link = f.attach("l1", "count_xdp", &first, &xdp);
    let second = request(&object, &[("count_xdp", &xdp)], &[("step", json!(2))]);
    f.load("l2", &second);
    let seen = f.host.observe(&f.uid).unwrap();
    let wrong = seen.loads["l2"].programs.values().next().unwrap().id;
    f.host.replace(&f.uid, &link, &xdp, wrong, &at("l2", "count_xdp", &second)).unwrap_err();
    assert_eq!(f.host.observe(&f.uid).unwrap().links, seen.links);
}

#[test]
fn tracing_programs_are_attached_beside_the_old_one() {
    let f = Fixture::new();
    let target = Target::Event("syscalls/sys_enter_getppid".into());
    let tp = hook(Kind::Tracepoint, 0, target);
    let object = object("trace");
    let first = request(&object, &[("on_tracepoint", &tp)], &[("tgid", json!(std::process::id()))]);
    f.load("l1", &first);
    let link = f.attach("l1", "on_tracepoint", &first, &tp);
    f.load("l2", &first);
    let old = f.host.observe(&f.uid).unwrap().links[&link].clone();
    f.host.replace(&f.uid, &link, &tp, old.program_id, &at("l2", "on_tracepoint", &first)).unwrap();
    let new = f.host.observe(&f.uid).unwrap();
    assert_ne!(new.links[&link].id, old.id);
    assert_eq!(new.links.len(), 1);
    assert!(new.staged.is_empty());
    std::thread::sleep(std::time::Duration::from_millis(200));
    let before = f.hits("l2", 0);
    let _ = std::os::unix::process::parent_id();
    assert_eq!(f.hits("l2", 0), before + 1, "one program fires, once");
}

/// veth refuses native XDP where its peer may send more than a page holds.
#[test]
fn where_the_driver_refuses_auto_is_generic() {
    let mut f = Fixture::new();
    f.lo();
    let name = f.netns_path().file_name().unwrap().to_string_lossy().into_owned();
    let pair = ["link", "add", "big", "mtu", "9000", "type", "veth", "peer", "name", "other", "mtu", "9000"];
    run("ip", &[&["-n", &name][..], &pair].concat());
    let mut xdp = hook(Kind::Xdp, 0, f.interface("big"));
    let request = request(&object("net"), &[("count_xdp", &xdp)], &[]);
    f.load("l1", &request);
    xdp.options.xdp_mode = XdpMode::Native;
    f.host.attach(&f.uid, "native", &xdp, &at("l1", "count_xdp", &request)).unwrap_err();
    xdp.options.xdp_mode = XdpMode::Auto;
    f.attach("l1", "count_xdp", &request, &xdp);
}

#[test]
fn a_second_xdp_program_is_told_who_holds_the_interface() {
    let mut f = Fixture::new();
    let lo = f.lo();
    let xdp = hook(Kind::Xdp, 0, lo);
    let request = request(&object("net"), &[("count_xdp", &xdp)], &[]);
    f.load("l1", &request);
    f.attach("l1", "count_xdp", &request, &xdp);
    let id = f.host.observe(&f.uid).unwrap().loads["l1"].programs.values().next().unwrap().id;
    let error = f.host.attach(&f.uid, "other", &xdp, &at("l1", "count_xdp", &request)).unwrap_err();
    assert_eq!(error.reason(), "HookBusy");
    assert_eq!(
        error.to_string(),
        format!(
            "xdp on interface lo is held by program count_xdp (id {id}); detach that one (bpftool net, bpftool link), or attach elsewhere"
        )
    );
}

#[test]
fn a_link_whose_interface_went_is_not_alive() {
    let mut f = Fixture::new();
    f.lo();
    let netns = f.netns_path();
    let name = netns.file_name().unwrap().to_string_lossy().into_owned();
    super::fixture::run("ip", &["-n", &name, "link", "add", "v0", "type", "veth", "peer", "name", "v1"]);
    let xdp = hook(Kind::Xdp, 0, f.interface("v0"));
    let request = request(&object("net"), &[("count_xdp", &xdp)], &[]);
    f.load("l1", &request);
    let link = f.attach("l1", "count_xdp", &request, &xdp);
    super::fixture::run("ip", &["-n", &name, "link", "del", "v0"]);
    let seen = f.host.observe(&f.uid).unwrap();
    assert!(!seen.links[&link].alive);
    assert_eq!(seen.loads.len(), 1, "the load stays");
}

#[test]
fn a_map_whose_shape_changed_starts_anew_and_says_so() {
    let mut f = Fixture::new();
    let lo = f.lo();
    let xdp = hook(Kind::Xdp, 0, lo);
    let object = object("net");
    let first = request(&object, &[("count_xdp", &xdp)], &[]);
    f.load("l1", &first);
    f.attach("l1", "count_xdp", &first, &xdp);
    let mut second = first.clone();
    second.maps.iter_mut().find(|m| m.name == "flows").unwrap().flags = 1;
    let outcome = f.host.load(&f.uid, "l2", &second).unwrap();
    assert_eq!(outcome.reset.into_iter().collect::<Vec<_>>(), [("flows".into(), "flags was 0 and is now 1".into())]);
    let seen = f.host.observe(&f.uid).unwrap();
    assert_eq!(seen.loads["l1"].maps["hits"].id, seen.loads["l2"].maps["hits"].id);
    assert_ne!(seen.loads["l1"].maps["flows"].id, seen.loads["l2"].maps["flows"].id);
}

#[test]
fn removal_leaves_nothing() {
    let mut f = Fixture::new();
    let lo = f.lo();
    let xdp = hook(Kind::Xdp, 0, lo);
    let request = request(&object("net"), &[("count_xdp", &xdp)], &[]);
    f.load("l1", &request);
    f.attach("l1", "count_xdp", &request, &xdp);
    let seen = f.host.observe(&f.uid).unwrap();
    f.host.remove_program(&f.uid).unwrap();
    f.host.remove_program(&f.uid).unwrap();
    assert_eq!(f.host.programs().unwrap(), Vec::<String>::new());
    assert_eq!(bpffs::list(f.host.bpffs().root()).unwrap(), Vec::<String>::new());
    let link = seen.links.values().next().unwrap().id;
    let program = seen.loads["l1"].programs.values().next().unwrap().id;
    let gone = |e: std::io::Result<std::os::fd::OwnedFd>| e.is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound);
    assert!(gone(skep_kernel::sys::link::by_id(link)));
    for _ in 0..100 {
        if gone(skep_kernel::sys::program::by_id(program)) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("program {program} is still there after 2 s");
}

/// tc has no link to pin: records stand in, and what others have on the interface is left alone.
#[test]
fn tc_filters_live_beside_those_of_others() {
    use super::fixture::run;
    let mut f = Fixture::new();
    let lo = f.lo();
    let netns = f.netns_path().file_name().unwrap().to_string_lossy().into_owned();
    let tc = |args: &[&str]| {
        let out = std::process::Command::new("tc").args(["-n", &netns]).args(args).output().unwrap();
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    let ingress = hook(Kind::Tc, skep_object::kind::attach::TCX_INGRESS, lo.clone());
    let egress = hook(Kind::Tc, skep_object::kind::attach::TCX_EGRESS, lo);
    let object = object("net");
    let first = request(&object, &[("count_tc", &ingress), ("count_tc", &egress)], &[]);
    f.load("l1", &first);

    // Alone: the qdisc is ours, and goes with the last filter.
    let link = f.attach("l1", "count_tc", &first, &ingress);
    let other = f.attach("l1", "count_tc", &first, &egress);
    f.packets(3);
    assert_eq!(f.hits("l1", 1), 6, "each packet once in, once out");
    f.restart();
    let seen = f.host.observe(&f.uid).unwrap();
    assert!(seen.links[&link].alive && seen.links[&other].alive);
    f.host.detach(&f.uid, &link).unwrap();
    assert!(tc(&["qdisc", "show", "dev", "lo"]).contains("clsact"));
    f.packets(1);
    assert_eq!(f.hits("l1", 1), 7);

    // An update keeps the filter and swaps the program.
    let second = request(&object, &[("count_tc", &egress)], &[("step", json!(100))]);
    f.load("l2", &second);
    let old = seen.links[&other].program_id;
    f.host.replace(&f.uid, &other, &egress, old, &at("l2", "count_tc", &second)).unwrap();
    f.packets(1);
    assert_eq!(f.hits("l2", 1), 107);
    f.host.replace(&f.uid, &other, &egress, old, &at("l2", "count_tc", &second)).unwrap_err();
    f.host.detach(&f.uid, &other).unwrap();
    assert!(!tc(&["qdisc", "show", "dev", "lo"]).contains("clsact"), "our empty qdisc stayed");

    // With others: their qdisc and filter stay.
    run("tc", &["-n", &netns, "qdisc", "add", "dev", "lo", "clsact"]);
    run("tc", &["-n", &netns, "filter", "add", "dev", "lo", "ingress", "prio", "50", "bpf", "bytecode", "1,6 0 0 0"]);
    let link = f.attach("l2", "count_tc", &first, &ingress);
    f.host.detach(&f.uid, &link).unwrap();
    assert!(tc(&["filter", "show", "dev", "lo", "ingress"]).contains("bytecode"), "another's filter went");

    // Removed by somebody: seen.
    let link = f.attach("l2", "count_tc", &first, &ingress);
    run("tc", &["-n", &netns, "qdisc", "del", "dev", "lo", "clsact"]);
    assert!(!f.host.observe(&f.uid).unwrap().links[&link].alive);
    f.host.remove_program(&f.uid).unwrap();
    assert_eq!(f.host.programs().unwrap(), Vec::<String>::new());
}
