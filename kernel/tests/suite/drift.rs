//! What others do to hooks, links and pins behind Skep's back.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use skep_kernel::KernelError;
use skep_kernel::bpffs;
use skep_kernel::hook::Target;
use skep_kernel::seam::Kernel;
use skep_kernel::sys::{self, link};
use skep_object::kind::{Kind, attach};

use super::fixture::{Fixture, at, hook, object, request, run};

#[test]
fn a_hook_comes_free_a_moment_after_its_pin_went() {
    let mut f = Fixture::new();
    let xdp = hook(Kind::Xdp, 0, f.lo());
    let request = request(&object("net"), &[("count_xdp", &xdp)], &[]);
    f.load("l1", &request);
    for _ in 0..5 {
        let link = f.attach("l1", "count_xdp", &request, &xdp);
        bpffs::unpin(&f.host.bpffs().link(&f.uid, &link)).unwrap();
        assert!(f.host.observe(&f.uid).unwrap().links.is_empty());
        // Who is told that it is taken tries again.
        let start = Instant::now();
        while let Err(e) = f.host.attach(&f.uid, &link, &xdp, &at("l1", "count_xdp", &request)) {
            assert!(matches!(e, KernelError::HookBusy { .. }), "{e}");
            assert!(start.elapsed() < Duration::from_secs(5), "{e}");
        }
        f.host.detach(&f.uid, &link).unwrap();
    }
}

#[test]
fn an_interface_that_is_made_again_is_another_target() {
    let mut f = Fixture::new();
    let first = f.lo();
    let name = f.netns_path();
    let name = name.file_name().unwrap().to_string_lossy();
    run("ip", &["netns", "del", &name]);
    run("ip", &["netns", "add", &name]);
    let second = f.interface("lo");
    let (Target::Interface { ifindex: before, .. }, Target::Interface { ifindex: after, .. }) = (&first, &second)
    else {
        panic!("no interfaces")
    };
    assert_eq!(before, after);
    let link = |target: Target| hook(Kind::Xdp, 0, target).link_name("count_xdp");
    assert_ne!(link(first), link(second));
}

#[test]
fn a_link_that_somebody_detached_is_not_alive() {
    let mut f = Fixture::new();
    let lo = f.lo();
    let cgroup = f.cgroup();
    let hooks = [
        ("count_xdp", hook(Kind::Xdp, 0, lo.clone())),
        ("count_tc", hook(Kind::Tcx, attach::TCX_INGRESS, lo)),
        ("count_cgroup", hook(Kind::CgroupSkb, attach::CGROUP_INET_EGRESS, cgroup)),
    ];
    for (function, hook) in hooks {
        let load = format!("of-{function}");
        let request = request(&object("net"), &[(function, &hook)], &[]);
        f.load(&load, &request);
        let name = f.attach(&load, function, &request, &hook);
        let pin = sys::open_pin(&f.host.bpffs().link(&f.uid, &name)).unwrap();
        link::detach(pin.as_fd()).unwrap();
        let seen = f.host.observe(&f.uid).unwrap();
        assert!(!seen.links[&name].alive, "{function}: {:?}", seen.links[&name]);
        // Taken away and attached again, it is.
        f.host.detach(&f.uid, &name).unwrap();
        f.attach(&load, function, &request, &hook);
        assert!(f.host.observe(&f.uid).unwrap().links[&name].alive, "{function}");
    }
}

#[test]
fn a_full_cgroup_says_so() {
    const LIMIT: usize = 64;
    let mut f = Fixture::new();
    let egress = hook(Kind::CgroupSkb, attach::CGROUP_INET_EGRESS, f.cgroup());
    let request = request(&object("net"), &[("count_cgroup", &egress)], &[]);
    for number in 0..=LIMIT {
        let load = format!("l{number}");
        f.load(&load, &request);
        let result = f.host.attach(&f.uid, &format!("{number}"), &egress, &at(&load, "count_cgroup", &request));
        match result {
            Ok(()) => assert!(number < LIMIT, "there is room for more than {LIMIT}"),
            Err(e) => {
                assert_eq!((number, e.reason()), (LIMIT, "LimitReached"), "{e}");
                assert!(e.to_string().contains("64 programs per cgroup"), "{e}");
            }
        }
    }
}

#[test]
fn pins_that_were_deleted_come_back_with_the_same_objects() {
    let mut f = Fixture::new();
    let xdp = hook(Kind::Xdp, 0, f.lo());
    let request = request(&object("net"), &[("count_xdp", &xdp)], &[]);
    f.load("l1", &request);
    f.attach("l1", "count_xdp", &request, &xdp);
    f.packets(3);
    let before = f.host.observe(&f.uid).unwrap();
    bpffs::remove_tree(&f.host.bpffs().load(&f.uid, "l1").join("maps")).unwrap();
    bpffs::remove_tree(&f.host.bpffs().kept_maps(&f.uid)).unwrap();
    assert!(f.host.observe(&f.uid).unwrap().loads["l1"].maps.is_empty());
    f.load("l1", &request);
    f.host.settle(&f.uid, "l1", &request.keep.keys().cloned().collect()).unwrap();
    let after = f.host.observe(&f.uid).unwrap();
    assert_eq!((after.loads, after.links, after.kept), (before.loads, before.links, before.kept));
    assert_eq!(f.hits("l1", 0), 3);
}
