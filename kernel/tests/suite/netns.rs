//! Programs on network namespaces: updates under traffic, and what becomes of a link when its namespace goes.

use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use skep_kernel::hook::{Hook, Target};
use skep_kernel::netns;
use skep_kernel::seam::Kernel;
use skep_kernel::sys::link::{self, LinkKind, NetfilterAt};
use skep_object::kind::Kind;

use super::fixture::{Fixture, at, hook, local_in, object, request, run};

const UPDATES: u32 = 50;

/// What a stream of packets met while `updates` ran: how many were sent, and how many came through.
fn under_traffic(f: &Fixture, updates: impl FnOnce()) -> (u64, u64) {
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let path = f.netns_path();
    std::thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            netns::within(Some(&path), || {
                let ear = UdpSocket::bind("127.0.0.1:0")?;
                ear.set_read_timeout(Some(Duration::from_millis(100)))?;
                let mouth = UdpSocket::bind("127.0.0.1:0")?;
                let heard = || ear.recv(&mut [0; 16]).is_ok();
                let mut received = 0;
                ear.set_nonblocking(true)?;
                while !stop.load(Ordering::Relaxed) {
                    mouth.send_to(b"hello", ear.local_addr()?)?;
                    sent.fetch_add(1, Ordering::Relaxed);
                    received += u64::from(heard());
                }
                ear.set_nonblocking(false)?;
                while heard() {
                    received += 1;
                }
                Ok(received)
            })
        });
        // Updates before the first packet would show nothing.
        let start = Instant::now();
        while sent.load(Ordering::Relaxed) < 100 && start.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(1));
        }
        updates();
        stop.store(true, Ordering::Relaxed);
        let received = traffic.join().unwrap().unwrap();
        (sent.load(Ordering::Relaxed), received)
    })
}

/// Two loads of a function with shared counters; it runs from the first.
fn two_loads(f: &Fixture, function: &str, hook: &Hook, verdict: u32) -> (String, skep_kernel::seam::LoadRequest) {
    let request = request(&object("net"), &[(function, hook)], &[("verdict", json!(verdict))]);
    f.load("l1", &request);
    let link = f.attach("l1", function, &request, hook);
    // Now the counters of the first are the kept ones, which the second gets.
    f.load("l2", &request);
    (link, request)
}

/// Moves the link from load to load; what it was after each move.
fn swing(f: &Fixture, link: &str, hook: &Hook, function: &str, request: &skep_kernel::seam::LoadRequest) {
    for i in 0..UPDATES {
        let old = f.host.observe(&f.uid).unwrap().links[link].program_id;
        let load = if i % 2 == 0 { "l2" } else { "l1" };
        f.host.replace(&f.uid, link, hook, old, &at(load, function, request)).unwrap();
    }
}

fn netfilter_at(f: &Fixture, link: &str) -> NetfilterAt {
    let fd = skep_kernel::sys::open_pin(&f.host.bpffs().link(&f.uid, link)).unwrap();
    let LinkKind::Netfilter(at) = link::info(fd.as_fd()).unwrap().kind else { panic!("no netfilter link") };
    at
}

fn has_netfilter() -> bool {
    let has = super::fires::has_release(6, 4);
    if !has {
        println!("SKIPPED: netfilter links came with Linux 6.4");
    }
    has
}

/// A guard that drops everything: a packet that met no program would come through, one that met two is counted once,
/// since the first drops it.
#[test]
fn an_update_of_netfilter_lets_no_packet_by() {
    if !has_netfilter() {
        return;
    }
    let mut f = Fixture::new();
    let guard = local_in(f.netns(), 10);
    let (link, request) = two_loads(&f, "count_netfilter", &guard, 0);
    let (sent, received) = under_traffic(&f, || swing(&f, &link, &guard, "count_netfilter", &request));
    assert_eq!(received, 0, "of {sent} packets some met no program");
    assert_eq!(f.hits("l1", 5), sent);
    assert!(f.host.observe(&f.uid).unwrap().staged.is_empty());
}

#[test]
fn an_update_of_netfilter_may_count_a_packet_twice() {
    if !has_netfilter() {
        return;
    }
    let mut f = Fixture::new();
    let counter = local_in(f.netns(), 10);
    let (link, request) = two_loads(&f, "count_netfilter", &counter, 1);
    let (sent, received) = under_traffic(&f, || swing(&f, &link, &counter, "count_netfilter", &request));
    assert_eq!(received, sent);
    let counted = f.hits("l1", 5);
    assert!(counted >= sent, "{} of {sent} packets were missed", sent - counted);
    println!("netfilter: {UPDATES} updates, {sent} packets, {} counted twice", counted - sent);
    f.packets(10);
    assert_eq!(f.hits("l1", 5), counted + 10, "one program is left, and counts once");
}

#[test]
fn an_update_of_sk_lookup_misses_nothing_and_keeps_the_link() {
    let mut f = Fixture::new();
    let lookup = hook(Kind::SkLookup, 0, f.netns());
    let (link, request) = two_loads(&f, "count_lookup", &lookup, 1);
    let before = f.host.observe(&f.uid).unwrap().links[&link].clone();
    let (sent, received) = under_traffic(&f, || swing(&f, &link, &lookup, "count_lookup", &request));
    assert_eq!((received, f.hits("l1", 4)), (sent, sent), "packets received and sockets looked up");
    let after = f.host.observe(&f.uid).unwrap().links[&link].clone();
    assert_eq!(after.id, before.id, "the link itself stays");
    f.host.replace(&f.uid, &link, &lookup, after.program_id, &at("l2", "count_lookup", &request)).unwrap();
    let moved = f.host.observe(&f.uid).unwrap().links[&link].clone();
    assert_eq!(moved.id, before.id);
    assert_ne!(moved.program_id, before.program_id);
}

#[test]
fn two_priorities_alternate_and_are_free_at_once() {
    if !has_netfilter() {
        return;
    }
    let mut f = Fixture::new();
    let hook = local_in(f.netns(), -5);
    let (link, request) = two_loads(&f, "count_netfilter", &hook, 1);
    let mut seen = vec![netfilter_at(&f, &link)];
    for load in ["l2", "l1", "l2"] {
        f.host.replace(&f.uid, &link, &hook, 0, &at(load, "count_netfilter", &request)).unwrap();
        seen.push(netfilter_at(&f, &link));
    }
    let place = NetfilterAt { family: 2, hook: 1, priority: -5, defragment: false };
    let next = NetfilterAt { priority: -4, ..place };
    assert_eq!(seen, [place, next, place, next]);
    // Another function on the hook comes before the old one goes, as the plan has it.
    f.host.attach(&f.uid, "other", &hook, &at("l1", "count_netfilter", &request)).unwrap();
    assert_eq!(netfilter_at(&f, "other"), place);
    let error = f.host.replace(&f.uid, &link, &hook, 0, &at("l1", "count_netfilter", &request)).unwrap_err();
    assert_eq!(error.reason(), "HookBusy");
    assert_eq!(
        error.to_string(),
        "netfilter Ipv4 LocalIn in the network namespace of the test, priority -5 or -4, is held by another program; detach that one (bpftool net, bpftool link), or attach elsewhere"
    );
    f.host.detach(&f.uid, &link).unwrap();
    f.host.replace(&f.uid, "other", &hook, 0, &at("l2", "count_netfilter", &request)).unwrap();
    assert_eq!(netfilter_at(&f, "other"), next);
}

/// A crash between pinning and renaming leaves a link in the other place.
#[test]
fn a_netfilter_update_that_was_cut_short_is_taken_back_or_done_again() {
    if !has_netfilter() {
        return;
    }
    let mut f = Fixture::new();
    let hook = local_in(f.netns(), 10);
    let (link, request) = two_loads(&f, "count_netfilter", &hook, 1);
    let to = at("l2", "count_netfilter", &request);
    let cut_short = |f: &Fixture| {
        f.host.attach(&f.uid, "half", &hook, &to).unwrap();
        let staged = f.host.bpffs().links(&f.uid).join(format!("{link}~"));
        std::fs::rename(f.host.bpffs().link(&f.uid, "half"), staged).unwrap();
    };
    cut_short(&f);
    f.restart();
    let staged: Vec<String> = f.host.observe(&f.uid).unwrap().staged.into_iter().collect();
    assert_eq!(staged, [format!("{link}~")]);
    f.host.discard(&f.uid, &staged[0]).unwrap();
    f.packets(1);
    assert_eq!(f.hits("l1", 5), 1, "the link that was taken back counts");
    f.host.replace(&f.uid, &link, &hook, 0, &to).unwrap();
    cut_short(&f);
    f.host.replace(&f.uid, &link, &hook, 0, &to).unwrap();
    f.packets(1);
    assert_eq!(f.hits("l1", 5), 2);
    assert!(f.host.observe(&f.uid).unwrap().staged.is_empty());
}

#[test]
fn whole_packets_are_seen_or_the_kernel_is_told_to_lack_what_it_takes() {
    if !has_netfilter() {
        return;
    }
    let mut f = Fixture::new();
    let mut hook = local_in(f.netns(), 10);
    hook.options.netfilter.as_mut().unwrap().defragment = true;
    let request = request(&object("net"), &[("count_netfilter", &hook)], &[]);
    f.load("l1", &request);
    match f.host.attach(&f.uid, "x", &hook, &at("l1", "count_netfilter", &request)) {
        Ok(()) => assert!(netfilter_at(&f, "x").defragment),
        Err(error) => assert_eq!(error.reason(), "KernelUnsupported", "{error}"),
    }
}

/// A namespace of no process, with one end of a veth of which the other is in the fixture's.
struct Second(String);

impl Second {
    fn new(f: &Fixture) -> (Self, Target) {
        let first = f.netns_path().file_name().unwrap().to_string_lossy().into_owned();
        let second = Second(format!("{first}-2"));
        run("ip", &["netns", "add", &second.0]);
        run("ip", &["-n", &first, "link", "add", "v0", "type", "veth", "peer", "name", "v1", "netns", &second.0]);
        let path = std::path::Path::new("/run/netns").join(&second.0);
        let cookie = netns::view(&path).unwrap().cookie;
        (second, Target::Netns { path, cookie, name: "pod web".into() })
    }
    fn delete(&self) {
        run("ip", &["netns", "del", &self.0]);
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        let _ = std::process::Command::new("ip")
            .args(["netns", "del", &self.0])
            .stderr(std::process::Stdio::null())
            .status();
    }
}

/// A veth goes with the namespace of its other end, some time after.
fn veth_goes(f: &Fixture, within: Duration) -> bool {
    let start = Instant::now();
    while netns::view(&f.netns_path()).unwrap().interfaces.iter().any(|i| i.name == "v0") {
        if start.elapsed() > within {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

#[test]
fn a_sk_lookup_link_whose_namespace_went_is_not_alive() {
    let mut f = Fixture::new();
    f.lo();
    let (second, target) = Second::new(&f);
    let lookup = hook(Kind::SkLookup, 0, target);
    let (link, request) = two_loads(&f, "count_lookup", &lookup, 1);
    assert!(f.host.observe(&f.uid).unwrap().links[&link].alive);
    second.delete();
    assert!(veth_goes(&f, Duration::from_secs(10)), "the link held its namespace");
    let seen = f.host.observe(&f.uid).unwrap().links[&link].clone();
    assert!(!seen.alive);
    let error =
        f.host.replace(&f.uid, &link, &lookup, seen.program_id, &at("l2", "count_lookup", &request)).unwrap_err();
    assert_eq!(error.reason(), "TargetNotFound", "{error}");
    let error = f.host.attach(&f.uid, "other", &lookup, &at("l1", "count_lookup", &request)).unwrap_err();
    assert_eq!(error.to_string(), "the network namespace of pod web not found: its process is gone");
}

/// So that it is the list of pods that tells when to take it away, not the kernel.
#[test]
fn a_netfilter_link_keeps_its_namespace_until_it_is_detached() {
    if !has_netfilter() {
        return;
    }
    let mut f = Fixture::new();
    f.lo();
    let (second, target) = Second::new(&f);
    let hook = local_in(target, 10);
    let (link, _) = two_loads(&f, "count_netfilter", &hook, 1);
    second.delete();
    assert!(!veth_goes(&f, Duration::from_millis(500)), "the link did not hold its namespace");
    assert!(f.host.observe(&f.uid).unwrap().links[&link].alive);
    f.host.detach(&f.uid, &link).unwrap();
    assert!(veth_goes(&f, Duration::from_secs(10)), "the namespace outlived the link");
}

/// What the kernel does not show: that somebody else detached a netfilter link.
#[test]
fn a_netfilter_link_that_was_detached_by_another_hand_looks_as_before() {
    if !has_netfilter() {
        return;
    }
    let mut f = Fixture::new();
    let hook = local_in(f.netns(), 10);
    let (link, _) = two_loads(&f, "count_netfilter", &hook, 1);
    let fd = skep_kernel::sys::open_pin(&f.host.bpffs().link(&f.uid, &link)).unwrap();
    let before = link::info(fd.as_fd()).unwrap();
    link::detach(fd.as_fd()).unwrap();
    assert_eq!(link::info(fd.as_fd()).unwrap(), before);
    f.packets(3);
    assert_eq!(f.hits("l1", 5), 0);
}
