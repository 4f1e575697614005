//! How long a program takes to take another's place, by kind, and how long a whole reload of a small program takes: for
//! `cargo xtask bench`. Prints one JSON object, microseconds. Arguments: the objects made from kernel/tests/c/net.bpf.c,
//! trace.bpf.c and small.bpf.c.
#![allow(clippy::unwrap_used, clippy::panic)] // a benchmark may end by panic

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use skep_kernel::hook::{Family, Hook, Netfilter, NetfilterHook, Options, Target, XdpMode};
use skep_kernel::seam::{Kernel, LoadRequest, ProgramAt, Variant};
use skep_kernel::{Host, attach::file_identity, bpffs, netns, probe};
use skep_object::Object;
use skep_object::kind::{Kind, attach};

const ROUNDS: usize = 100;

/// A network namespace, a cgroup and a directory in bpffs that go with it.
struct Place {
    name: String,
    host: Host,
    state: PathBuf,
}

impl Place {
    fn new() -> Self {
        let name = format!("skep-bench-{}", std::process::id());
        let state = std::env::temp_dir().join(&name);
        std::fs::create_dir_all(&state).unwrap();
        ip(&["netns", "add", &name]);
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        std::fs::create_dir(cgroup(&name)).unwrap();
        let host = Host::open(&Path::new("/sys/fs/bpf").join(&name), &state).unwrap();
        Self { name, host, state }
    }

    fn netns(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    fn lo(&self) -> Target {
        let view = netns::view(&self.netns()).unwrap();
        let ifindex = view.interfaces.iter().find(|i| i.name == "lo").unwrap().index;
        Target::Interface { netns: self.netns(), cookie: view.cookie, ifindex, name: "lo".into() }
    }

    fn space(&self) -> Target {
        let cookie = netns::view(&self.netns()).unwrap().cookie;
        Target::Netns { path: self.netns(), cookie, name: "bench".into() }
    }

    fn cgroup(&self) -> Target {
        let path = cgroup(&self.name);
        Target::Cgroup { id: std::fs::metadata(&path).unwrap().ino(), path }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.host.remove_program("u");
        let _ = bpffs::remove_tree(&Path::new("/sys/fs/bpf").join(&self.name));
        let _ = std::fs::remove_dir(cgroup(&self.name));
        let _ = std::fs::remove_dir_all(&self.state);
        ip(&["netns", "del", &self.name]);
    }
}

fn cgroup(name: &str) -> PathBuf {
    probe::cgroup2_mount().unwrap().join(name)
}

fn ip(args: &[&str]) {
    assert!(Command::new("ip").args(args).status().unwrap().success());
}

fn main() {
    let files: Vec<Vec<u8>> = std::env::args().skip(1).map(|path| std::fs::read(path).unwrap()).collect();
    let [net, trace, small] = &files[..] else { panic!("three objects") };
    let [net, trace] = [net, trace].map(|bytes| Arc::new(Object::parse(bytes.as_slice()).unwrap()));
    let place = Place::new();
    let plain =
        |kind: Kind, attach_type, target| Hook { kind, attach_type, target, options: Options::default(), gate: None };
    let mut generic = plain(Kind::Xdp, attach::XDP, place.lo());
    generic.options.xdp_mode = XdpMode::Generic;
    let mut netfilter = plain(Kind::Netfilter, attach::NETFILTER, place.space());
    let (family, hook) = (Family::Ipv4, NetfilterHook::LocalIn);
    netfilter.options.netfilter = Some(Netfilter { family, hook, priority: 10, defragment: false });
    let own = std::env::current_exe().unwrap();
    let identity = file_identity(&own).unwrap();
    let binary = Target::Binary { path: own, identity, offset: 0x1000, name: "bench".into() };
    let event = |name: &str| Target::Event(name.into());
    let cases = [
        ("xdp", "count_xdp", &net, generic),
        ("tcx", "count_tc", &net, plain(Kind::Tcx, attach::TCX_INGRESS, place.lo())),
        ("tc", "count_tc", &net, plain(Kind::Tc, attach::TCX_EGRESS, place.lo())),
        ("cgroupSkb", "count_cgroup", &net, plain(Kind::CgroupSkb, attach::CGROUP_INET_EGRESS, place.cgroup())),
        ("skLookup", "count_lookup", &net, plain(Kind::SkLookup, attach::SK_LOOKUP, place.space())),
        ("netfilter", "count_netfilter", &net, netfilter),
        (
            "tracepoint",
            "on_tracepoint",
            &trace,
            plain(Kind::Tracepoint, attach::PERF_EVENT, event("syscalls/sys_enter_getppid")),
        ),
        ("rawTracepoint", "on_raw", &trace, plain(Kind::RawTracepoint, 0, event("sys_enter"))),
        ("uprobe", "on_uprobe", &trace, plain(Kind::Uprobe, attach::PERF_EVENT, binary)),
    ];
    let mut swaps = Vec::new();
    for (name, function, object, hook) in &cases {
        swaps.push(format!("\"{name}\": {:.1}", swap(&place.host, object, function, hook)));
    }
    let reload = reload(&place.host, small, &plain(Kind::CgroupSkb, attach::CGROUP_INET_EGRESS, place.cgroup()));
    println!("{{\"swap\": {{{}}}, \"reload\": {reload:.1}}}", swaps.join(", "));
}

fn request(object: &Arc<Object>, function: &str, hook: &Hook) -> (LoadRequest, String) {
    let section = object.section_of(object.program(function).unwrap());
    let variant = Variant { function: function.into(), attributes: hook.load_attributes(section) };
    let pin = variant.pin();
    let (maps, variants) = (object.maps().to_vec(), [variant].into());
    (LoadRequest { object: object.clone(), maps, variants, keep: [].into(), share: [].into() }, pin)
}

/// One link, moved to and fro between two loads.
fn swap(host: &Host, object: &Arc<Object>, function: &str, hook: &Hook) -> f64 {
    let (request, pin) = request(object, function, hook);
    let at = ["a", "b"].map(|load| ProgramAt { load: load.into(), pin: pin.clone() });
    let ids = ["a", "b"].map(|load| {
        host.load("u", load, &request).unwrap();
        host.observe("u").unwrap().loads[load].programs[&pin].id
    });
    let link = hook.link_name(function);
    host.attach("u", &link, hook, &at[0]).unwrap();
    let times = (0..ROUNDS).map(|round| {
        let (from, to) = (round % 2, (round + 1) % 2);
        let start = Instant::now();
        host.replace("u", &link, hook, ids[from], &at[to]).unwrap();
        start.elapsed().as_secs_f64() * 1e6
    });
    let median = median(times.collect());
    host.remove_program("u").unwrap();
    median
}

/// A new load in the place of an old one: parsed, loaded, pinned, swapped, and the old one gone.
fn reload(host: &Host, bytes: &[u8], hook: &Hook) -> f64 {
    let parsed = || request(&Arc::new(Object::parse(bytes).unwrap()), "count", hook);
    let (first, pin) = parsed();
    let at = |round: usize| ProgramAt { load: format!("l{round}"), pin: pin.clone() };
    let link = hook.link_name("count");
    host.load("u", "l0", &first).unwrap();
    host.attach("u", &link, hook, &at(0)).unwrap();
    let times = (1..=ROUNDS).map(|round| {
        let start = Instant::now();
        let load = at(round).load;
        let old = host.observe("u").unwrap().links[&link].program_id;
        host.load("u", &load, &parsed().0).unwrap();
        host.replace("u", &link, hook, old, &at(round)).unwrap();
        host.settle("u", &load, &[].into()).unwrap();
        host.remove_load("u", &at(round - 1).load).unwrap();
        start.elapsed().as_secs_f64() * 1e6
    });
    let median = median(times.collect());
    host.remove_program("u").unwrap();
    median
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
