//! Every kind fires on a real trigger, and stops when it is detached. Where this kernel cannot, it says so in the one
//! right way.

use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};

use serde_json::json;
use skep_kernel::hook::{FunctionSet, Hook, Target};
use skep_kernel::seam::Kernel;
use skep_object::kind::{Kind, attach};

use super::fixture::{Fixture, at, hook, local_in, object, request, run};
use super::verdict;

/// Attaches, triggers, detaches, triggers: the counter moves once; by how much. `None`: refused, on a kernel of which a
/// golden file says whether that is right.
fn fires(fixture: &Fixture, source: &str, function: &str, slot: u32, hook: &Hook, trigger: impl Fn()) -> Option<u64> {
    let object = object(source);
    let globals: &[_] =
        if ["trace", "probes"].contains(&source) { &[("tgid", json!(std::process::id()))] } else { &[] };
    let request = request(&object, &[(function, hook)], globals);
    let attached = fixture.host.load(&fixture.uid, "l1", &request).and_then(|_| {
        trigger();
        assert_eq!(fixture.hits("l1", slot), 0, "{function} counted before it was attached");
        fixture.try_attach("l1", function, &request, hook)
    });
    let link = match attached {
        Ok(link) => link,
        Err(error) if verdict::refused(&error) => return None,
        Err(error) => panic!("{error}"),
    };
    trigger();
    let counted = fixture.hits("l1", slot);
    assert!(counted > 0, "{function} did not fire");
    let seen = fixture.host.observe(&fixture.uid).unwrap();
    assert_eq!(seen.links.len(), 1);
    assert!(seen.links[&link].alive);
    fixture.host.detach(&fixture.uid, &link).unwrap();
    // Perf and tracing links go with the last reference, after a grace period.
    std::thread::sleep(std::time::Duration::from_millis(150));
    let before = fixture.hits("l1", slot);
    trigger();
    assert_eq!(fixture.hits("l1", slot), before, "{function} fired after it was detached");
    verdict::fires();
    Some(counted)
}

/// Either it fires, or it is refused with `reason` because `has` says that this kernel lacks it; how often it fired.
fn fires_or(
    fixture: &Fixture,
    (has, reason): (bool, &str),
    source: &str,
    (function, slot): (&str, u32),
    hook: &Hook,
    trigger: impl Fn(),
) -> Option<u64> {
    if has || verdict::wanted() {
        return fires(fixture, source, function, slot, hook, trigger);
    }
    let request = request(&object(source), &[(function, hook)], &[]);
    let refused = fixture
        .host
        .load(&fixture.uid, "l1", &request)
        .and_then(|_| fixture.host.attach(&fixture.uid, "x", hook, &at("l1", function, &request)));
    let error = refused.unwrap_err();
    assert_eq!(error.reason(), reason, "{error}");
    println!("{}: refused here as it should be: {error}", hook.kind);
    None
}

fn getppid() {
    for _ in 0..5 {
        let _ = std::os::unix::process::parent_id();
    }
}

fn open_files() {
    for _ in 0..5 {
        let _ = std::fs::File::open("/proc/self/stat");
    }
}

#[test]
fn xdp() {
    let mut f = Fixture::new();
    let lo = f.lo();
    fires(&f, "net", "count_xdp", 0, &hook(Kind::Xdp, 0, lo), || f.packets(5));
}

#[test]
fn tcx_both_ways() {
    for direction in [attach::TCX_INGRESS, attach::TCX_EGRESS] {
        let mut f = Fixture::new();
        let lo = f.lo();
        let hook = hook(Kind::Tcx, direction, lo);
        fires_or(&f, many_at_once(), "net", ("count_tc", 1), &hook, || f.packets(5));
    }
}

/// A filter is held by a record, not by a link.
#[test]
fn tc_both_ways() {
    for direction in [attach::TCX_INGRESS, attach::TCX_EGRESS] {
        let mut f = Fixture::new();
        let lo = f.lo();
        fires(&f, "net", "count_tc", 1, &hook(Kind::Tc, direction, lo), || f.packets(5));
    }
}

#[test]
fn cgroup_skb_egress() {
    let mut f = Fixture::new();
    let cgroup = f.cgroup();
    let hook = hook(Kind::CgroupSkb, attach::CGROUP_INET_EGRESS, cgroup);
    fires(&f, "net", "count_cgroup", 2, &hook, || f.in_cgroup("ping -q -c 2 -i 0.01 127.0.0.1 >/dev/null"));
}

#[test]
fn cgroup_connect4() {
    const CONNECT4: u32 = 10;
    let mut f = Fixture::new();
    let cgroup = f.cgroup();
    let hook = hook(Kind::CgroupSockAddr, CONNECT4, cgroup);
    // The connection is refused: the hook runs before that.
    fires(&f, "net", "count_connect", 3, &hook, || {
        f.in_cgroup(
            "nc -w 1 127.0.0.1 1 </dev/null >/dev/null 2>&1 || bash -c '</dev/tcp/127.0.0.1/1' 2>/dev/null || true",
        )
    });
}

/// What a process does that such hooks see: sockets, their options, sysctls, devices, TCP.
fn busy() {
    for any in ["127.0.0.1:0", "[::1]:0"] {
        let socket = UdpSocket::bind(any).unwrap();
        socket.set_ttl(socket.ttl().unwrap()).unwrap();
    }
    std::fs::read("/proc/sys/kernel/hostname").unwrap();
    std::fs::File::open("/dev/zero").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    drop((listener.accept().unwrap(), client));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let _listener = UnixListener::bind(&path).unwrap();
    UnixStream::connect(&path).unwrap();
}

fn fires_in_cgroup(kind: Kind, attach_type: u32, function: &str, slot: u32) {
    let mut f = Fixture::new();
    let hook = hook(kind, attach_type, f.cgroup());
    fires(&f, "cgroup", function, slot, &hook, || {
        let _inside = f.enter_cgroup();
        busy();
    });
}

#[test]
fn cgroup_sock() {
    // BPF_CGROUP_INET_SOCK_CREATE, _SOCK_RELEASE, _INET4_POST_BIND, _INET6_POST_BIND.
    for (hook, function, slot) in [(2, "on_create", 0), (34, "on_release", 1), (12, "on_bind4", 2), (13, "on_bind6", 3)]
    {
        fires_in_cgroup(Kind::CgroupSock, hook, function, slot);
    }
}

#[test]
fn cgroup_sockopt() {
    for (hook, function, slot) in [(21, "on_get", 4), (22, "on_set", 5)] {
        fires_in_cgroup(Kind::CgroupSockopt, hook, function, slot);
    }
}

#[test]
fn cgroup_sysctl() {
    fires_in_cgroup(Kind::CgroupSysctl, 0, "on_sysctl", 6);
}

#[test]
fn cgroup_device() {
    fires_in_cgroup(Kind::CgroupDevice, 0, "on_device", 7);
}

#[test]
fn sock_ops() {
    fires_in_cgroup(Kind::SockOps, 0, "on_tcp", 8);
}

#[test]
fn cgroup_connect_unix() {
    const CONNECT_UNIX: u32 = 49;
    let mut f = Fixture::new();
    let hook = hook(Kind::CgroupSockAddr, CONNECT_UNIX, f.cgroup());
    let has = (has_release(6, 7), "KernelUnsupported");
    fires_or(&f, has, "cgroup", ("on_unix", 9), &hook, || {
        let _inside = f.enter_cgroup();
        busy();
    });
}

#[test]
fn sk_lookup() {
    let mut f = Fixture::new();
    let netns = f.netns();
    fires(&f, "net", "count_lookup", 4, &hook(Kind::SkLookup, 0, netns), || f.packets(5));
}

/// Packets that are received are spread over CPUs by what the dissector finds in them.
pub fn spread_packets(f: &Fixture) {
    let netns = f.netns_path();
    let name = netns.file_name().unwrap().to_str().unwrap();
    run("ip", &["netns", "exec", name, "sh", "-c", "echo 1 > /sys/class/net/lo/queues/rx-0/rps_cpus"]);
}

#[test]
fn flow_dissector() {
    let mut f = Fixture::new();
    let netns = f.netns();
    spread_packets(&f);
    fires(&f, "net", "count_dissected", 6, &hook(Kind::FlowDissector, 0, netns), || f.packets(5));
}

/// A connection of which one end is in the map of the load; a message each way. Sockets leave the map as they are closed.
fn exchange(f: &Fixture) {
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    let map = skep_kernel::sys::map::Map::new(f.host.open_map(&f.uid, "l1", "sockets").unwrap()).unwrap();
    map.update(&0u32.to_ne_bytes(), &client.as_raw_fd().to_ne_bytes(), 0).unwrap();
    let mut text = [0; 5];
    client.write_all(b"hello").unwrap();
    server.read_exact(&mut text).unwrap();
    server.write_all(b"there").unwrap();
    client.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"there");
}

fn links_on_maps() -> (bool, &'static str) {
    (has_release(6, 10), "KernelUnsupported")
}

#[test]
fn sk_msg() {
    let f = Fixture::new();
    let hook = hook(Kind::SkMsg, 0, Target::SocketMap("sockets".into()));
    let fired = fires_or(&f, links_on_maps(), "sockets", ("on_message", 0), &hook, || exchange(&f));
    assert!(fired.is_none_or(|fired| fired == 1), "{fired:?} for one message sent");
}

#[test]
fn sk_skb() {
    for (attach_type, function, slot) in
        [(attach::SK_SKB_VERDICT, "on_packet", 1), (attach::SK_SKB_STREAM_VERDICT, "on_stream", 3)]
    {
        let f = Fixture::new();
        let hook = hook(Kind::SkSkb, attach_type, Target::SocketMap("sockets".into()));
        fires_or(&f, links_on_maps(), "sockets", (function, slot), &hook, || exchange(&f));
    }
}

/// A parser runs beside a verdict; alone it does not.
#[test]
fn sk_skb_stream_parser() {
    if !links_on_maps().0 && !verdict::wanted() {
        return println!("SKIPPED: links on maps of sockets came with Linux 6.10");
    }
    let f = Fixture::new();
    let on = |attach_type| hook(Kind::SkSkb, attach_type, Target::SocketMap("sockets".into()));
    let (parser, on_stream) = (on(attach::SK_SKB_STREAM_PARSER), on(attach::SK_SKB_STREAM_VERDICT));
    let request = request(&object("sockets"), &[("on_measured", &parser), ("on_stream", &on_stream)], &[]);
    f.load("l1", &request);
    if let Err(error) = f.try_attach("l1", "on_measured", &request, &parser) {
        return assert!(verdict::refused(&error), "{error}");
    }
    f.attach("l1", "on_stream", &request, &on_stream);
    exchange(&f);
    assert!(f.hits("l1", 2) > 0, "the parser did not fire");
    assert!(f.hits("l1", 3) > 0, "the verdict did not fire");
    verdict::fires();
}

/// A load whose map is another one is attached there: the link of the older map stays with that.
#[test]
fn a_new_map_of_sockets_gets_a_link_of_its_own() {
    if !links_on_maps().0 {
        return println!("SKIPPED: links on maps of sockets came with Linux 6.10");
    }
    let f = Fixture::new();
    let hook = hook(Kind::SkMsg, 0, Target::SocketMap("sockets".into()));
    let mut own = request(&object("sockets"), &[("on_message", &hook)], &[]);
    own.keep.clear();
    f.load("l0", &own);
    let link = f.attach("l0", "on_message", &own, &hook);
    let old = f.host.observe(&f.uid).unwrap().links[&link].program_id;
    f.load("l1", &own);
    f.host.replace(&f.uid, &link, &hook, old, &at("l1", "on_message", &own)).unwrap();
    exchange(&f);
    assert_eq!(f.hits("l1", 0), 1);
    // On the same map a program is swapped in: the link stays.
    let before = f.host.observe(&f.uid).unwrap().links[&link].clone();
    f.host.replace(&f.uid, &link, &hook, before.program_id, &at("l1", "on_message", &own)).unwrap();
    assert_eq!(f.host.observe(&f.uid).unwrap().links[&link].id, before.id);
}

#[test]
fn iter() {
    let f = Fixture::new();
    let target = Target::Objects { function: "bpf_iter_bpf_map".into(), map: None };
    let hook = hook(Kind::Iter, 0, target);
    let request = request(&object("sockets"), &[("on_maps", &hook)], &[]);
    f.load("l1", &request);
    let link = f.attach("l1", "on_maps", &request, &hook);
    assert_eq!(f.hits("l1", 4), 0, "it ran before anybody read");
    let own = f.host.observe(&f.uid).unwrap().loads["l1"].maps["hits"].id;
    let text = read(&f, &link);
    assert!(text.lines().any(|line| line == format!("map {own}")), "{text}");
    assert!(f.hits("l1", 4) > 0);
    f.host.detach(&f.uid, &link).unwrap();
    assert!(f.host.read_iterator(&f.uid, &link).is_err(), "it can be read after it was detached");
    verdict::fires();
}

#[test]
fn iter_over_the_elements_of_a_map() {
    let f = Fixture::new();
    let target = Target::Objects { function: "bpf_iter_bpf_map_elem".into(), map: Some("hits".into()) };
    let hook = hook(Kind::Iter, 0, target);
    let request = request(&object("sockets"), &[("on_elements", &hook)], &[]);
    f.load("l1", &request);
    let link = f.attach("l1", "on_elements", &request, &hook);
    let expected: String = (0..16).map(|slot| format!("slot {slot}\n")).collect();
    assert_eq!(read(&f, &link), expected);
    // Without its map it says what is missing.
    let hook =
        super::fixture::hook(Kind::Iter, 0, Target::Objects { function: "bpf_iter_bpf_map_elem".into(), map: None });
    let error = f.host.attach(&f.uid, "x", &hook, &at("l1", "on_elements", &request)).unwrap_err();
    assert!(error.to_string().contains("name it in map"), "{error}");
    verdict::fires();
}

fn read(f: &Fixture, link: &str) -> String {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::from(f.host.read_iterator(&f.uid, link).unwrap()).read_to_string(&mut text).unwrap();
    text
}

#[test]
fn netfilter() {
    let mut f = Fixture::new();
    let hook = local_in(f.netns(), 10);
    let has = (has_release(6, 4), "KernelUnsupported");
    fires_or(&f, has, "net", ("count_netfilter", 5), &hook, || f.packets(5));
}

#[test]
fn tracepoint() {
    let f = Fixture::new();
    let target = Target::Event("syscalls/sys_enter_getppid".into());
    fires(&f, "trace", "on_tracepoint", 0, &hook(Kind::Tracepoint, 0, target), getppid);
}

#[test]
fn raw_tracepoint() {
    let f = Fixture::new();
    fires(&f, "trace", "on_raw", 1, &hook(Kind::RawTracepoint, 0, Target::Event("sys_enter".into())), getppid);
}

#[test]
fn btf_tracepoint() {
    let f = Fixture::new();
    fires(&f, "trace", "on_btf", 2, &hook(Kind::BtfTracepoint, 0, Target::Event("sys_enter".into())), getppid);
}

#[test]
fn core_relocations_find_the_fields_of_this_kernel() {
    let f = Fixture::new();
    fires(&f, "trace", "on_core", 9, &hook(Kind::RawTracepoint, 0, Target::Event("sys_enter".into())), getppid);
}

#[test]
fn a_field_of_a_size_that_this_kernel_has_not_is_never_read() {
    let f = Fixture::new();
    fires(&f, "trace", "on_sized", 13, &hook(Kind::RawTracepoint, 0, Target::Event("sys_enter".into())), getppid);
}

#[test]
fn an_enum_that_is_wider_in_the_kernel() {
    let f = Fixture::new();
    fires(&f, "trace", "on_enum", 12, &hook(Kind::RawTracepoint, 0, Target::Event("sys_enter".into())), getppid);
}

#[inline(never)]
pub extern "C" fn probed(x: u64) -> u64 {
    std::hint::black_box(x) + 1
}

#[inline(never)]
extern "C" fn probed_too(x: u64) -> u64 {
    std::hint::black_box(x) * 3
}

fn call_probed() {
    for i in 0..5 {
        std::hint::black_box(probed(i));
        std::hint::black_box(probed_too(i));
    }
}

/// This process's own function, as a file and an offset in it.
pub fn probed_target() -> Target {
    let (path, offset) = place_of(probed);
    let identity = skep_kernel::attach::file_identity(&path).unwrap();
    Target::Binary { path, identity, offset, name: "probed".into() }
}

/// Two of this process's own functions.
fn both_probed() -> Target {
    let ((path, first), (_, second)) = (place_of(probed), place_of(probed_too));
    let identity = skep_kernel::attach::file_identity(&path).unwrap();
    let offsets = vec![first.min(second), first.max(second)];
    Target::Symbols { path, identity, offsets, name: "probed*".into() }
}

fn place_of(function: extern "C" fn(u64) -> u64) -> (std::path::PathBuf, u64) {
    let address = function as *const () as usize;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps
        .lines()
        .find(|l| {
            let (start, end) = l.split_whitespace().next().unwrap().split_once('-').unwrap();
            (usize::from_str_radix(start, 16).unwrap()..usize::from_str_radix(end, 16).unwrap()).contains(&address)
        })
        .unwrap();
    let columns: Vec<&str> = line.split_whitespace().collect();
    let start = usize::from_str_radix(columns[0].split_once('-').unwrap().0, 16).unwrap();
    let offset = (address - start) as u64 + u64::from_str_radix(columns[2], 16).unwrap();
    (columns[5].into(), offset)
}

#[test]
fn uprobe() {
    let f = Fixture::new();
    fires(&f, "trace", "on_uprobe", 3, &hook(Kind::Uprobe, 0, probed_target()), call_probed);
}

#[test]
fn uretprobe() {
    let f = Fixture::new();
    fires(&f, "trace", "on_uretprobe", 4, &hook(Kind::Uretprobe, 0, probed_target()), call_probed);
}

#[test]
fn uprobe_multi() {
    let f = Fixture::new();
    let hook = hook(Kind::UprobeMulti, attach::TRACE_UPROBE_MULTI, both_probed());
    let fired = fires_or(&f, many_at_once(), "probes", ("on_entries", 5), &hook, call_probed);
    assert!(fired.is_none_or(|fired| fired == 10), "{fired:?} of 5 calls each of two functions");
}

#[test]
fn uretprobe_multi() {
    let f = Fixture::new();
    let hook = hook(Kind::UretprobeMulti, 0, both_probed());
    let fired = fires_or(&f, many_at_once(), "probes", ("on_returns", 6), &hook, call_probed);
    assert!(fired.is_none_or(|fired| fired == 10), "{fired:?} of 5 returns each of two functions");
}

/// At the entries and at the returns.
#[test]
fn uprobe_session() {
    let f = Fixture::new();
    let hook = hook(Kind::UprobeMulti, attach::TRACE_UPROBE_SESSION, both_probed());
    let has = (has_release(6, 13), "KernelUnsupported");
    let fired = fires_or(&f, has, "probes", ("on_session", 7), &hook, call_probed);
    assert!(fired.is_none_or(|fired| fired == 20), "{fired:?} of 5 calls and returns each of two functions");
}

fn many_at_once() -> (bool, &'static str) {
    (has_release(6, 6), "KernelUnsupported")
}

#[test]
fn perf_event() {
    let f = Fixture::new();
    let clock = skep_kernel::sys::perf::Event { kind: 1, config: 0, name: "CpuClock" };
    let every = skep_kernel::sys::perf::Every::Frequency(1000);
    let hook = hook(Kind::PerfEvent, 0, Target::CpuEvent { event: clock, every, cpu: 0 });
    fires(&f, "probes", "on_sample", 8, &hook, || {
        skep_kernel::cpus::on(0, || {
            let start = std::time::Instant::now();
            while start.elapsed() < std::time::Duration::from_millis(100) {
                std::hint::black_box(probed(1));
            }
        });
    });
}

/// A program that may change what it is given is loaded as one.
#[test]
fn writable_raw_tracepoint() {
    let f = Fixture::new();
    let tried = hook(Kind::CgroupSkb, attach::CGROUP_INET_EGRESS, Target::Event("none".into()));
    let small = f.host.copy(&request(&object("small"), &[("count", &tried)], &[])).unwrap();
    let fd = small.programs.values().next().unwrap();
    let target = Target::Event("bpf_test_finish".into());
    fires(&f, "probes", "on_writable", 9, &hook(Kind::RawTracepoint, 0, target), || {
        skep_kernel::sys::program::test_run(fd.as_fd(), &[0; 64], 1).unwrap();
    });
}

/// Two processes call the same function of the same file; only the one in the gate's cgroup counts.
#[test]
fn a_gate_lets_only_selected_cgroups_count() {
    let mut f = Fixture::new();
    let cgroup = f.cgroup();
    let Target::Cgroup { id, .. } = cgroup else { panic!() };
    let shell = std::fs::canonicalize("/bin/sh").unwrap();
    let identity = skep_kernel::attach::file_identity(&shell).unwrap();
    // The entry point of the shell: run once by each new process.
    let offset = entry_offset(&std::fs::read(&shell).unwrap());
    let target = Target::Binary { path: shell, identity, offset, name: "sh:entry".into() };
    let mut gated = hook(Kind::Uprobe, 0, target);
    gated.gate = Some("web".into());
    let request = request(&object("trace"), &[("on_uprobe", &gated)], &[]);
    f.load("l1", &request);
    f.attach("l1", "on_uprobe", &request, &gated);
    f.in_cgroup("exec /bin/sh -c :");
    assert_eq!(f.hits("l1", 3), 0, "an empty gate lets nobody pass");
    f.host.set_gate(&f.uid, "l1", "web", &[id]).unwrap();
    super::fixture::run("/bin/sh", &["-c", ":"]);
    assert_eq!(f.hits("l1", 3), 0, "a process outside of the cgroup counted");
    f.in_cgroup("exec /bin/sh -c :");
    assert_eq!(f.hits("l1", 3), 1);
    f.host.set_gate(&f.uid, "l1", "web", &[]).unwrap();
    f.in_cgroup("exec /bin/sh -c :");
    assert_eq!(f.hits("l1", 3), 1, "a gate that was shut let somebody pass");
}

/// The file offset of an ELF's entry point: its address, by the segment that it lies in.
fn entry_offset(elf: &[u8]) -> u64 {
    let u64_at = |at: usize| u64::from_le_bytes(elf[at..at + 8].try_into().unwrap());
    let u16_at = |at: usize| usize::from(u16::from_le_bytes(elf[at..at + 2].try_into().unwrap()));
    let (entry, headers) = (u64_at(24), u64_at(32) as usize);
    for i in 0..u16_at(56) {
        let header = headers + i * u16_at(54);
        let (kind, offset, address, size) = (elf[header], u64_at(header + 8), u64_at(header + 16), u64_at(header + 40));
        if kind == 1 && (address..address + size).contains(&entry) {
            return entry - address + offset;
        }
    }
    panic!("no segment holds the entry point");
}

fn has_kprobes() -> bool {
    std::path::Path::new("/sys/bus/event_source/devices/kprobe").exists()
}

fn openat2() -> Target {
    Target::Function { name: "do_sys_openat2".into(), offset: 0 }
}

#[test]
fn kprobe() {
    let f = Fixture::new();
    let hook = hook(Kind::Kprobe, 0, openat2());
    fires_or(&f, (has_kprobes(), "KernelUnsupported"), "trace", ("on_kprobe", 5), &hook, open_files);
}

#[test]
fn kretprobe() {
    let f = Fixture::new();
    let hook = hook(Kind::Kretprobe, 0, openat2());
    fires_or(&f, (has_kprobes(), "KernelUnsupported"), "trace", ("on_kretprobe", 6), &hook, open_files);
}

/// Kernels without kprobes here are also those that refuse to patch their text for trampolines.
#[test]
fn fentry() {
    let f = Fixture::new();
    let hook = hook(Kind::Fentry, 0, openat2());
    fires_or(&f, (has_kprobes(), "PermissionDenied"), "trace", ("on_fentry", 7), &hook, open_files);
}

#[test]
fn fexit() {
    let f = Fixture::new();
    let hook = hook(Kind::Fexit, 0, openat2());
    fires_or(&f, (has_kprobes(), "PermissionDenied"), "trace", ("on_fexit", 8), &hook, open_files);
}

#[test]
fn fmod_ret() {
    let f = Fixture::new();
    let target = Target::Function { name: "security_file_open".into(), offset: 0 };
    let hook = hook(Kind::FmodRet, 0, target);
    fires_or(&f, (has_kprobes(), "PermissionDenied"), "trace", ("on_security", 10), &hook, open_files);
}

#[test]
fn lsm() {
    let f = Fixture::new();
    let target = Target::Function { name: "bpf_lsm_file_open".into(), offset: 0 };
    let hook = hook(Kind::Lsm, 0, target);
    fires_or(&f, (has_kprobes(), "PermissionDenied"), "trace", ("on_open", 11), &hook, open_files);
}

fn openats(kind: Kind, attach_type: u32) -> Hook {
    hook(kind, attach_type, Target::Functions(FunctionSet::Pattern("do_sys_openat*".into())))
}

#[test]
fn kprobe_multi() {
    let f = Fixture::new();
    let hook = openats(Kind::KprobeMulti, attach::TRACE_KPROBE_MULTI);
    let has = (has_kprobes(), "PermissionDenied");
    fires_or(&f, has, "probes", ("on_kernel_entries", 0), &hook, open_files);
}

#[test]
fn kretprobe_multi() {
    let f = Fixture::new();
    let has = (has_kprobes(), "PermissionDenied");
    fires_or(&f, has, "probes", ("on_kernel_returns", 1), &openats(Kind::KretprobeMulti, 0), open_files);
}

/// At the entries and at the returns.
#[test]
fn kprobe_session() {
    let f = Fixture::new();
    let hook = openats(Kind::KprobeMulti, attach::TRACE_KPROBE_SESSION);
    let reason = if has_kprobes() { "KernelUnsupported" } else { "PermissionDenied" };
    let has = (has_kprobes() && has_release(6, 11), reason);
    let fired = fires_or(&f, has, "probes", ("on_kernel_session", 2), &hook, open_files);
    assert!(fired.is_none_or(|fired| fired % 2 == 0 && fired >= 10), "{fired:?} of 5 calls and returns");
}

/// All that are named, or none.
#[test]
fn a_kernel_function_that_is_not_there_is_named() {
    let f = Fixture::new();
    let names = vec!["do_sys_openat2".into(), "no_such_function".into()];
    let hook = hook(Kind::KprobeMulti, attach::TRACE_KPROBE_MULTI, Target::Functions(FunctionSet::Names(names)));
    let request = request(&object("probes"), &[("on_kernel_entries", &hook)], &[]);
    f.load("l1", &request);
    let error = f.host.attach(&f.uid, "x", &hook, &at("l1", "on_kernel_entries", &request)).unwrap_err();
    let said = error.to_string();
    if verdict::wanted() && error.reason() == "KernelUnsupported" {
        return println!("refused: {error}");
    }
    match has_kprobes() {
        true => assert_eq!(
            said,
            "kernel function no_such_function not found: the kernel has no such function; /proc/kallsyms lists them"
        ),
        false => assert_eq!(error.reason(), "KernelUnsupported", "{said}"),
    }
}

#[test]
fn ksyscall() {
    let f = Fixture::new();
    let hook = hook(Kind::Ksyscall, 0, Target::Syscall("getppid".into()));
    let has = (has_kprobes(), "KernelUnsupported");
    let fired = fires_or(&f, has, "probes", ("on_syscall", 3), &hook, getppid);
    assert!(fired.is_none_or(|fired| fired == 5), "{fired:?} of 5 calls");
}

#[test]
fn kretsyscall() {
    let f = Fixture::new();
    let hook = hook(Kind::Kretsyscall, 0, Target::Syscall("getppid".into()));
    let has = (has_kprobes(), "KernelUnsupported");
    let fired = fires_or(&f, has, "probes", ("on_syscall_return", 4), &hook, getppid);
    assert!(fired.is_none_or(|fired| fired == 5), "{fired:?} of 5 returns");
}

#[test]
fn lsm_cgroup() {
    let mut f = Fixture::new();
    let mut hook = hook(Kind::LsmCgroup, 0, f.cgroup());
    hook.options.security_hook = Some("bpf_lsm_socket_create".into());
    let inside = f.enter_cgroup();
    let has = (has_kprobes(), "PermissionDenied");
    fires_or(&f, has, "probes", ("on_socket", 10), &hook, busy);
    drop(inside);
}

#[test]
fn netkit() {
    let mut f = Fixture::new();
    f.lo();
    if !f.link_of_kind("sk0", "netkit") {
        let hook = hook(Kind::Netkit, attach::NETKIT_PRIMARY, f.interface("lo"));
        fires_or(&f, (false, "KernelUnsupported"), "probes", ("on_netkit", 11), &hook, || {});
        return;
    }
    let hook = hook(Kind::Netkit, attach::NETKIT_PRIMARY, f.interface("sk0"));
    fires(&f, "probes", "on_netkit", 11, &hook, || f.packets_to("10.77.0.2", 5));
}

pub fn has_release(major: u32, minor: u32) -> bool {
    let release = skep_kernel::probe::kernel_release();
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).filter_map(|p| p.parse::<u32>().ok());
    (parts.next().unwrap(), parts.next().unwrap()) >= (major, minor)
}
