//! Updates under load: a hundred of them for each kind, beside a program on the same events that is never touched. Totals
//! are compared when the events have stopped, exactly.

use std::collections::BTreeSet;
use std::net::{TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use skep_kernel::hook::{Hook, Target, XdpMode};
use skep_kernel::netns;
use skep_kernel::seam::{Kernel, LoadRequest, Merge, Settled};
use skep_kernel::sys::map::Map;
use skep_object::kind::{Kind, UpdateWay, attach};

use super::fires::{has_release, probed_target, spread_packets};
use super::fixture::{Fixture, at, hook, local_in, object, request, run};

/// Events a second, if the machine can.
const RATE: u64 = 50_000;
const UPDATES: usize = 100;
const REFERENCE: &str = "reference";

/// Makes events at the rate, from before the updates until after them; how many a second it were.
fn under_load(netns: Option<PathBuf>, event: impl FnMut() + Send, updates: impl FnOnce()) -> u64 {
    let (started, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            let mut event = event;
            netns::within(netns.as_deref(), || {
                let (start, mut made) = (Instant::now(), 0);
                while !stop.load(Ordering::Relaxed) {
                    let due = start.elapsed().as_micros() as u64 * RATE / 1_000_000;
                    while made < due && !stop.load(Ordering::Relaxed) {
                        event();
                        made += 1;
                    }
                    started.store(made > 100, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_micros(200));
                }
                Ok(made * 1_000_000 / start.elapsed().as_micros() as u64)
            })
            .unwrap()
        });
        while !started.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        updates();
        stop.store(true, Ordering::Relaxed);
        let rate = traffic.join().unwrap();
        // What is on its way arrives.
        std::thread::sleep(Duration::from_millis(200));
        rate
    })
}

fn hits(f: &Fixture, uid: &str, load: &str, slot: u32) -> u64 {
    let map = Map::new(f.host.open_map(uid, load, "hits").unwrap()).unwrap();
    u64::from_ne_bytes(map.lookup(&slot.to_ne_bytes()).unwrap().unwrap().try_into().unwrap())
}

fn start(f: &Fixture, uid: &str, function: &str, hook: &Hook, request: &LoadRequest) -> String {
    f.host.load(uid, "l1", request).unwrap();
    let link = hook.link_name(function);
    f.host.attach(uid, &link, hook, &at("l1", function, request)).unwrap();
    f.host.load(uid, "l2", request).unwrap();
    link
}

/// A function with its counter's slot.
type Counter = (&'static str, u32);

/// Updates `subject` a hundred times while `event` happens, beside `reference`, and compares what both counted.
fn compare(
    f: &Fixture,
    source: &str,
    subject: (Counter, &Hook),
    reference: (Counter, &Hook),
    event: impl FnMut() + Send,
    netns: Option<PathBuf>,
) {
    let globals: &[_] = if source == "trace" { &[("tgid", json!(std::process::id()))] } else { &[] };
    let ((function, slot), hook) = subject;
    let ((beside, beside_slot), beside_hook) = reference;
    let request = request(&object(source), &[(function, hook)], globals);
    let unchanged = super::fixture::request(&object(source), &[(beside, beside_hook)], globals);
    start(f, REFERENCE, beside, beside_hook, &unchanged);
    let link = start(f, &f.uid, function, hook, &request);
    // Events that one of them saw alone, while the other was being attached, are not in the comparison.
    let before = (hits(f, &f.uid, "l1", slot), hits(f, REFERENCE, "l1", beside_slot));
    let mut latencies = Vec::new();
    let rate = under_load(netns, event, || {
        for update in 0..UPDATES {
            let old = f.host.observe(&f.uid).unwrap().links[&link].program_id;
            let load = if update % 2 == 0 { "l2" } else { "l1" };
            let start = Instant::now();
            f.host.replace(&f.uid, &link, hook, old, &at(load, function, &request)).unwrap();
            latencies.push(start.elapsed());
            // Some kinds would be done with all of them before a single event.
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    let counted = hits(f, &f.uid, "l1", slot) - before.0;
    let events = hits(f, REFERENCE, "l1", beside_slot) - before.1;
    latencies.sort();
    println!(
        "{}: {UPDATES} updates (p50 {:?}) at {rate} events/s: {events} events, missed {}, doubled {}",
        hook.kind,
        latencies[UPDATES / 2],
        events.saturating_sub(counted),
        counted.saturating_sub(events)
    );
    assert!(events > 1000, "only {events} events");
    match hook.kind.row().update {
        UpdateWay::Swap => assert_eq!(counted, events, "{}", hook.kind),
        UpdateWay::Gap => unreachable!("no kind with a gap is updated under load"),
        UpdateWay::Beside | UpdateWay::BesideNeighbour => {
            assert!(counted >= events, "{}: {} of {events} missed", hook.kind, events - counted);
        }
    }
}

/// One packet through lo.
fn packets(f: &Fixture) -> impl FnMut() + Send + use<> {
    netns::within(Some(&f.netns_path()), || {
        let (ear, mouth) = (UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?);
        ear.set_nonblocking(true)?;
        let to = ear.local_addr()?;
        Ok(move || {
            mouth.send_to(b"hello", to).unwrap();
            let _heard = ear.recv(&mut [0; 8]);
        })
    })
    .unwrap()
}

/// A link kind that every test kernel with tcx has, to compare with: it sees each packet once.
fn ingress(target: Target) -> Hook {
    let (kind, attach_type) = (if has_release(6, 6) { Kind::Tcx } else { Kind::Tc }, attach::TCX_INGRESS);
    hook(kind, attach_type, target)
}

#[test]
fn xdp_generic_and_tcx() {
    for (function, slot, kind) in [("count_xdp", 0, Kind::Xdp), ("count_tc", 1, Kind::Tcx)] {
        if kind == Kind::Tcx && !has_release(6, 6) {
            continue;
        }
        let mut f = Fixture::new();
        let lo = f.lo();
        let subject = hook(kind, if kind == Kind::Tcx { attach::TCX_INGRESS } else { 0 }, lo.clone());
        let netns = Some(f.netns_path());
        compare(&f, "net", ((function, slot), &subject), (("count_tc", 1), &ingress(lo)), packets(&f), netns);
    }
}

#[test]
fn xdp_native() {
    let mut f = Fixture::new();
    f.lo();
    let name = f.netns_path().file_name().unwrap().to_string_lossy().into_owned();
    let other = format!("{name}-b");
    run("ip", &["netns", "add", &other]);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        run("ip", &["-n", &name, "link", "add", "v0", "type", "veth", "peer", "name", "v1", "netns", &other]);
        for (netns, device, address) in [(&name, "v0", "10.9.0.1/24"), (&other, "v1", "10.9.0.2/24")] {
            run("ip", &["-n", netns, "address", "add", address, "dev", device]);
            run("ip", &["-n", netns, "link", "set", device, "up"]);
        }
        let v0 = f.interface("v0");
        let mut subject = hook(Kind::Xdp, 0, v0.clone());
        subject.options.xdp_mode = XdpMode::Native;
        let ear = netns::within(Some(&f.netns_path()), || UdpSocket::bind("10.9.0.1:0")).unwrap();
        ear.set_nonblocking(true).unwrap();
        let to = ear.local_addr().unwrap();
        let sender = PathBuf::from("/run/netns").join(&other);
        let mouth = netns::within(Some(&sender), || UdpSocket::bind("10.9.0.2:0")).unwrap();
        let event = move || {
            // A full queue towards the other end is no event.
            let _sent = mouth.send_to(b"hello", to);
            let _heard = ear.recv(&mut [0; 8]);
        };
        compare(&f, "net", (("count_xdp", 0), &subject), (("count_tc", 1), &ingress(v0)), event, Some(sender));
    }));
    let _removed = Command::new("ip").args(["netns", "del", &other]).status();
    outcome.unwrap();
}

#[test]
fn cgroup_kinds() {
    const CONNECT4: u32 = 10;
    const SOCK_CREATE: u32 = 2;
    const SETSOCKOPT: u32 = 22;
    let cases: [(&str, Counter, Kind, u32); 7] = [
        ("net", ("count_cgroup", 2), Kind::CgroupSkb, attach::CGROUP_INET_EGRESS),
        ("net", ("count_connect", 3), Kind::CgroupSockAddr, CONNECT4),
        ("cgroup", ("on_create", 0), Kind::CgroupSock, SOCK_CREATE),
        ("cgroup", ("on_set", 5), Kind::CgroupSockopt, SETSOCKOPT),
        ("cgroup", ("on_sysctl", 6), Kind::CgroupSysctl, 0),
        ("cgroup", ("on_device", 7), Kind::CgroupDevice, 0),
        ("cgroup", ("on_tcp", 8), Kind::SockOps, 0),
    ];
    for (object, counter, kind, attach_type) in cases {
        let mut f = Fixture::new();
        f.lo();
        let subject = hook(kind, attach_type, f.cgroup());
        let _inside = f.enter_cgroup();
        let mut send = packets(&f);
        let within = || UdpSocket::bind("127.0.0.1:0");
        let mouth = netns::within(Some(&f.netns_path()), within).unwrap();
        let event = move || match kind {
            Kind::CgroupSkb => send(),
            Kind::CgroupSockAddr => mouth.connect("127.0.0.1:9").unwrap(),
            Kind::CgroupSock => drop(UdpSocket::bind("127.0.0.1:0").unwrap()),
            Kind::CgroupSockopt => mouth.set_ttl(64).unwrap(),
            Kind::CgroupSysctl => drop(std::fs::read("/proc/sys/kernel/ostype").unwrap()),
            Kind::CgroupDevice => drop(std::fs::File::open("/dev/zero").unwrap()),
            // It hears of who listens, too.
            _ => drop(TcpListener::bind("127.0.0.1:0").unwrap()),
        };
        let netns = Some(f.netns_path());
        compare(&f, object, (counter, &subject), (counter, &subject), event, netns);
    }
}

#[test]
fn kinds_of_a_network_namespace() {
    let mut f = Fixture::new();
    let subject = hook(Kind::SkLookup, 0, f.netns());
    let netns = Some(f.netns_path());
    let counter = ("count_lookup", 4);
    compare(&f, "net", (counter, &subject), (counter, &subject), packets(&f), netns);
    let mut f = Fixture::new();
    let subject = hook(Kind::FlowDissector, 0, f.netns());
    spread_packets(&f);
    let (netns, lo) = (Some(f.netns_path()), f.interface("lo"));
    let counter = ("count_dissected", 6);
    compare(&f, "net", (counter, &subject), (("count_tc", 1), &ingress(lo)), packets(&f), netns);
    if !has_release(6, 4) {
        return;
    }
    let mut f = Fixture::new();
    let target = f.netns();
    let (subject, reference) = (local_in(target.clone(), 10), local_in(target, 100));
    let netns = Some(f.netns_path());
    let counter = ("count_netfilter", 5);
    compare(&f, "net", (counter, &subject), (counter, &reference), packets(&f), netns);
}

#[test]
fn tracing_kinds() {
    let getppid = || {
        std::hint::black_box(std::os::unix::process::parent_id());
    };
    let event = Target::Event("syscalls/sys_enter_getppid".into());
    let tracepoint = hook(Kind::Tracepoint, 0, event);
    let f = Fixture::new();
    let counter = ("on_tracepoint", 0);
    compare(&f, "trace", (counter, &tracepoint), (counter, &tracepoint), getppid, None);

    let raw = hook(Kind::RawTracepoint, 0, Target::Event("sys_enter".into()));
    let f = Fixture::new();
    compare(&f, "trace", (("on_raw", 1), &raw), (("on_raw", 1), &raw), getppid, None);

    let uprobe = hook(Kind::Uprobe, 0, probed_target());
    let f = Fixture::new();
    let call = || {
        std::hint::black_box(super::fires::probed(1));
    };
    compare(&f, "trace", (("on_uprobe", 3), &uprobe), (("on_uprobe", 3), &uprobe), call, None);
}

/// The VM level's: it must run there.
#[test]
fn kprobe() {
    if !std::path::Path::new("/sys/bus/event_source/devices/kprobe").exists() {
        assert!(std::env::var_os("SKEP_TEST_MUST_FIRE").is_none(), "this kernel has no kprobes");
        println!("this kernel has no kprobes; the VM level updates them");
        return;
    }
    let kprobe = hook(Kind::Kprobe, 0, Target::Function { name: "do_sys_openat2".into(), offset: 0 });
    let f = Fixture::new();
    let open = || drop(std::fs::File::open("/proc/self/stat"));
    compare(&f, "trace", (("on_kprobe", 5), &kprobe), (("on_kprobe", 5), &kprobe), open, None);
}

/// `merge: Sum` while fifty thousand packets a second are counted in seven kinds of maps.
#[test]
fn sums_are_exact_while_a_map_changes_its_size() {
    const RESIZES: usize = 20;
    let mut f = Fixture::new();
    let lo = f.lo();
    let (subject, reference) = (hook(Kind::Xdp, 0, lo.clone()), ingress(lo));
    let unchanged = request(&object("net"), &[("count_tc", &reference)], &[]);
    start(&f, REFERENCE, "count_tc", &reference, &unchanged);
    let maps = ["hash", "array", "percpu_hash", "percpu_array", "lru", "lru_percpu", "trie"];
    let sized = |entries: u32| {
        let mut request = request(&object("kept"), &[("count_all", &subject)], &[]);
        for name in maps {
            request.maps.iter_mut().find(|m| m.name == name).unwrap().max_entries = entries;
            request.keep.insert(name.into(), Merge::Sum);
        }
        request
    };
    let first = sized(64);
    f.load("r0", &first);
    let link = f.attach("r0", "count_all", &first, &subject);
    let keep: BTreeSet<String> = first.keep.keys().cloned().collect();
    let mut merged = Settled::default();
    let rate = under_load(Some(f.netns_path()), packets(&f), || {
        for resize in 1..=RESIZES {
            let (old, new) = (format!("r{}", resize - 1), format!("r{resize}"));
            let request = sized(if resize % 2 == 0 { 64 } else { 4096 });
            f.load(&new, &request);
            let id = f.host.observe(&f.uid).unwrap().links[&link].program_id;
            f.host.replace(&f.uid, &link, &subject, id, &at(&new, "count_all", &request)).unwrap();
            for settled in f.host.settle(&f.uid, &new, &keep).unwrap().values() {
                merged.merged += settled.merged;
                merged.raced += settled.raced;
            }
            f.host.remove_load(&f.uid, &old).unwrap();
        }
    });
    let events = hits(&f, REFERENCE, "l1", 1);
    println!("{RESIZES} resizes of 7 maps at {rate} packets/s: {events} packets, {} values merged", merged.merged);
    assert!(events > 1000 && merged.merged > 0 && merged.raced == 0, "{events} {merged:?}");
    let last = format!("r{RESIZES}");
    for name in maps {
        let map = Map::new(f.host.open_map(&f.uid, &last, name).unwrap()).unwrap();
        let stride = map.info().value_size.next_multiple_of(8) as usize;
        let mut total = 0;
        let mut key = map.next_key(None).unwrap();
        while let Some(current) = key {
            let value = map.lookup(&current).unwrap().unwrap_or_default();
            total += value.chunks(stride).map(|v| u64::from_ne_bytes(v[..8].try_into().unwrap())).sum::<u64>();
            key = map.next_key(Some(&current)).unwrap();
        }
        assert_eq!(total, events, "{name}");
    }
}
