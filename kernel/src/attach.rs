//! The kernel's half of the kind table: how a target becomes a link.

mod many;
mod probes;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use skep_object::kind::{KINDS, Kind};

use crate::age;
use crate::bpffs::Bpffs;
use crate::error::{Holder, KernelError};
use crate::functions;
use crate::hook::{Hook, Netfilter, Target, XdpMode};
use crate::netns;
use crate::order;
use crate::sys::link::{self, LinkTarget, NetfilterAt};
use crate::sys::{netlink, perf, program};
use probes::Probe;

type Attach = fn(BorrowedFd<'_>, &Hook) -> Result<OwnedFd, KernelError>;
type AttachInOrder = fn(BorrowedFd<'_>, &Hook, &Bpffs) -> Result<OwnedFd, KernelError>;
type AttachToMap = fn(BorrowedFd<'_>, &Hook, Option<BorrowedFd<'_>>) -> Result<OwnedFd, KernelError>;

/// What holds a program on its hook.
#[derive(Clone, Copy)]
enum Means {
    /// A link, which can be pinned.
    Link(Attach),
    /// A link that may go beside another, which is found in bpffs.
    LinkInOrder(AttachInOrder),
    /// A link on a map of the program's own load.
    LinkToMap(AttachToMap),
    /// A tc filter, which needs a record.
    Filter,
}

/// One entry per row of [`KINDS`], in its order; a test holds it to that. The last column asks whether a kernel that loads
/// the kind attaches it; `None`: it does.
static ATTACH: [(Kind, Means, Option<Probe>); KINDS.len()] = [
    (Kind::Xdp, Means::Link(xdp), None),
    (Kind::Tcx, Means::LinkInOrder(tcx), Some(probes::ordered)),
    (Kind::Tc, Means::Filter, None),
    (Kind::Netkit, Means::LinkInOrder(netkit), Some(probes::ordered)),
    (Kind::CgroupSkb, Means::Link(cgroup), Some(probes::cgroups)),
    (Kind::CgroupSockAddr, Means::Link(cgroup), Some(probes::cgroups)),
    (Kind::CgroupSock, Means::Link(cgroup), Some(probes::cgroups)),
    (Kind::CgroupSockopt, Means::Link(cgroup), Some(probes::cgroups)),
    (Kind::CgroupSysctl, Means::Link(cgroup), Some(probes::cgroups)),
    (Kind::CgroupDevice, Means::Link(cgroup), Some(probes::cgroups)),
    (Kind::SockOps, Means::Link(cgroup), Some(probes::cgroups)),
    (Kind::LsmCgroup, Means::Link(lsm_cgroup), Some(probes::security_cgroups)),
    (Kind::SkLookup, Means::Link(sk_lookup), None),
    (Kind::FlowDissector, Means::Link(flow_dissector), None),
    (Kind::SkMsg, Means::LinkToMap(sockets), Some(probes::sockets)),
    (Kind::SkSkb, Means::LinkToMap(sockets), Some(probes::sockets)),
    (Kind::Netfilter, Means::Link(netfilter), None),
    (Kind::Tracepoint, Means::Link(tracepoint), Some(probes::events)),
    (Kind::RawTracepoint, Means::Link(raw_tracepoint), None),
    (Kind::BtfTracepoint, Means::Link(loaded_target), None),
    (Kind::PerfEvent, Means::Link(counter), None),
    (Kind::Uprobe, Means::Link(uprobe), Some(probes::uprobes)),
    (Kind::Uretprobe, Means::Link(uprobe), Some(probes::uprobes)),
    (Kind::UprobeMulti, Means::Link(many::symbols), Some(probes::symbols)),
    (Kind::UretprobeMulti, Means::Link(many::symbols), Some(probes::symbols)),
    (Kind::Kprobe, Means::Link(kprobe), Some(probes::kprobes)),
    (Kind::Kretprobe, Means::Link(kprobe), Some(probes::kprobes)),
    (Kind::KprobeMulti, Means::Link(many::functions), Some(probes::functions)),
    (Kind::KretprobeMulti, Means::Link(many::functions), Some(probes::functions)),
    (Kind::Ksyscall, Means::Link(many::syscall), Some(probes::kprobes)),
    (Kind::Kretsyscall, Means::Link(many::syscall), Some(probes::kprobes)),
    (Kind::Fentry, Means::Link(loaded_target), None),
    (Kind::Fexit, Means::Link(loaded_target), None),
    (Kind::FmodRet, Means::Link(loaded_target), None),
    (Kind::Lsm, Means::Link(lsm), Some(probes::security)),
    (Kind::Iter, Means::LinkToMap(iterator), None),
    (Kind::Freplace, Means::Link(freplace), None),
];

/// The kind is held by a record, not by a link.
pub fn needs_record(kind: Kind) -> bool {
    matches!(ATTACH[kind as usize].1, Means::Filter)
}

/// Attaches a program; the link lives as long as the descriptor or a pin of it. `map`: the one that the hook's target
/// names.
pub fn attach(
    program: BorrowedFd<'_>,
    hook: &Hook,
    bpffs: &Bpffs,
    map: Option<BorrowedFd<'_>>,
) -> Result<OwnedFd, KernelError> {
    let link = match ATTACH[hook.kind as usize].1 {
        Means::Link(attach) => attach(program, hook),
        Means::LinkToMap(attach) => attach(program, hook, map),
        Means::LinkInOrder(attach) => attach(program, hook, bpffs),
        Means::Filter => Err(wrong_target(hook)),
    };
    link.map_err(|error| age::explain(error, hook))
}

/// Whether this kernel attaches the kind, of which it loaded `program`.
pub(crate) fn probe(kind: Kind, attach_type: u32, program: BorrowedFd<'_>) -> Result<(), KernelError> {
    ATTACH[kind as usize].2.map_or(Ok(()), |probe| probe(program, kind, attach_type))
}

/// The agent built a hook whose target is not of the kind's class: a defect of Skep, not of the node.
fn wrong_target(hook: &Hook) -> KernelError {
    KernelError::KernelUnsupported {
        what: format!("{} on {}", hook.kind, hook.target.display()),
        why: "this kind of target does not fit the kind of program".into(),
    }
}

const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

fn xdp(program: BorrowedFd<'_>, hook: &Hook) -> Result<OwnedFd, KernelError> {
    let Target::Interface { netns, ifindex, name, .. } = &hook.target else { return Err(wrong_target(hook)) };
    let flags = match hook.options.xdp_mode {
        XdpMode::Auto => 0,
        XdpMode::Native => XDP_FLAGS_DRV_MODE,
        XdpMode::Generic => XDP_FLAGS_SKB_MODE,
    };
    let (index, attach_type) = (*ifindex, hook.attach_type);
    let attach =
        |flags| netns::within(Some(netns), || link::create(program, LinkTarget::Interface(index), attach_type, flags));
    let result = attach(flags).or_else(|e| match hook.options.xdp_mode {
        // Left to itself the kernel takes a driver that has XDP, also one that refuses as it is set up now (virtio_net with
        // hardware GRO, veth with a large MTU).
        XdpMode::Auto if is_drivers(&e) => attach(XDP_FLAGS_SKB_MODE).map_err(|_| e),
        _ => Err(e),
    });
    result.map_err(|e| match e.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => {
            KernelError::HookBusy { target: format!("xdp on interface {name}"), holder: xdp_holder(netns, index) }
        }
        Some(libc::EOPNOTSUPP) => KernelError::KernelUnsupported {
            what: format!("xdp on interface {name}"),
            why: "its driver has no native XDP, or not as it is set up; use mode: Generic or Auto".into(),
        },
        _ => interface_error("xdp", name, e),
    })
}

/// Whether a driver may have said it, rather than the kernel of the program or the place.
fn is_drivers(error: &io::Error) -> bool {
    !matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST | libc::EPERM | libc::ENODEV))
}

fn xdp_holder(netns: &Path, ifindex: u32) -> Holder {
    let id = netns::within(Some(netns), || netlink::xdp_program(ifindex)).ok().flatten().unwrap_or(0);
    holder(id)
}

/// Names a program by its id.
fn holder(id: u32) -> Holder {
    let info = program::by_id(id).and_then(|fd| program::info(fd.as_fd()));
    Holder { program_id: id, program_name: info.map(|i| i.name).unwrap_or_default() }
}

fn tcx(program: BorrowedFd<'_>, hook: &Hook, bpffs: &Bpffs) -> Result<OwnedFd, KernelError> {
    in_order(program, hook, bpffs, "tcx came with Linux 6.6; use the kind tc")
}

fn netkit(program: BorrowedFd<'_>, hook: &Hook, bpffs: &Bpffs) -> Result<OwnedFd, KernelError> {
    let why = "it is not the primary end of a netkit pair (`ip -d link` tells), or the kernel is built without CONFIG_NETKIT (Linux 6.7)";
    in_order(program, hook, bpffs, why)
}

/// Among the programs that an interface has in a direction; `refused` is what EINVAL means.
fn in_order(program: BorrowedFd<'_>, hook: &Hook, bpffs: &Bpffs, refused: &str) -> Result<OwnedFd, KernelError> {
    let Target::Interface { netns, ifindex, name, .. } = &hook.target else { return Err(wrong_target(hook)) };
    let (index, attach_type) = (*ifindex, hook.attach_type);
    let place = order::place(bpffs, hook)?;
    let target = LinkTarget::Ordered(index, order::beside(place.as_ref()));
    let result = netns::within(Some(netns), || link::create(program, target, attach_type, 0));
    let kind = hook.kind;
    result.map_err(|e| match e.raw_os_error() {
        Some(libc::ERANGE) => KernelError::LimitReached {
            what: format!("{kind} on interface {name}"),
            limit: "the kernel takes 63 programs per interface and direction".into(),
        },
        // Netkit: no such device (ENXIO), or one that is the peer's (EACCES).
        Some(libc::EINVAL) => unsupported(hook, refused),
        Some(libc::ENXIO | libc::EACCES | libc::EOPNOTSUPP) if kind == Kind::Netkit => unsupported(hook, refused),
        _ => interface_error(kind.row().name, name, e),
    })
}

fn unsupported(hook: &Hook, why: &str) -> KernelError {
    KernelError::KernelUnsupported { what: format!("{} on {}", hook.kind, hook.target.display()), why: why.into() }
}

fn interface_error(what: &str, name: &str, error: io::Error) -> KernelError {
    match error.raw_os_error() {
        Some(libc::ENODEV | libc::ENXIO | libc::ENOENT) => {
            KernelError::TargetNotFound { target: format!("interface {name}"), why: "it disappeared".into() }
        }
        Some(libc::EPERM) => KernelError::PermissionDenied {
            what: format!("{what} on interface {name}"),
            why: "CAP_NET_ADMIN is missing".into(),
        },
        _ => KernelError::Io { what: format!("{what} on interface {name}"), source: error },
    }
}

fn cgroup(program: BorrowedFd<'_>, hook: &Hook) -> Result<OwnedFd, KernelError> {
    let Target::Cgroup { path, .. } = &hook.target else { return Err(wrong_target(hook)) };
    let shown = path.display();
    let what = || format!("{} on cgroup {shown}", hook.kind);
    let gone = |why: &str| KernelError::TargetNotFound { target: format!("cgroup {shown}"), why: why.into() };
    let directory = File::open(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => gone("no such directory below the cgroup v2 mount"),
        _ => KernelError::Io { what: what(), source: e },
    })?;
    link::create(program, LinkTarget::Fd(directory.as_fd()), hook.attach_type, 0).map_err(|e| match e.raw_os_error() {
        Some(libc::EBADF) => gone("it is not a cgroup v2 directory"),
        Some(libc::ENOENT | libc::ENODEV) => gone("it disappeared"),
        Some(libc::E2BIG) => {
            KernelError::LimitReached { what: what(), limit: "the kernel takes 64 programs per cgroup and hook".into() }
        }
        Some(libc::EPERM) => KernelError::HookBusy { target: what(), holder: holder(0) },
        _ => KernelError::Io { what: what(), source: e },
    })
}

fn sk_lookup(program: BorrowedFd<'_>, hook: &Hook) -> Result<OwnedFd, KernelError> {
    let Target::Netns { path, name, .. } = &hook.target else { return Err(wrong_target(hook)) };
    let what = || format!("skLookup in the network namespace of {name}");
    let netns = File::open(path).map_err(|e| netns_error(path, name, what(), e))?;
    link::create(program, LinkTarget::Fd(netns.as_fd()), hook.attach_type, 0).map_err(|e| match e.raw_os_error() {
        Some(libc::E2BIG) => KernelError::LimitReached {
            what: what(),
            limit: "the kernel takes 64 programs per network namespace".into(),
        },
        _ => netns_error(path, name, what(), e),
    })
}

fn flow_dissector(program: BorrowedFd<'_>, hook: &Hook) -> Result<OwnedFd, KernelError> {
    let Target::Netns { path, name, .. } = &hook.target else { return Err(wrong_target(hook)) };
    let what = || format!("flowDissector in the network namespace of {name}");
    let netns = File::open(path).map_err(|e| netns_error(path, name, what(), e))?;
    link::create(program, LinkTarget::Fd(netns.as_fd()), hook.attach_type, 0).map_err(|e| match e.raw_os_error() {
        // The node's own dissects for all namespaces: while it has one, no other may, nor the other way round.
        Some(libc::E2BIG | libc::EEXIST) => KernelError::HookBusy { target: what(), holder: holder(0) },
        _ => netns_error(path, name, what(), e),
    })
}

/// What the sockets of a map send or receive. Those that were in the map before keep the program that they came to.
fn sockets(program: BorrowedFd<'_>, hook: &Hook, map: Option<BorrowedFd<'_>>) -> Result<OwnedFd, KernelError> {
    let (Target::SocketMap(_), Some(map)) = (&hook.target, map) else { return Err(wrong_target(hook)) };
    link::create(program, LinkTarget::Fd(map), hook.attach_type, 0).map_err(|e| match e.raw_os_error() {
        // Of one that has no sockets, the kernel says that it supports no such thing.
        Some(libc::EINVAL | libc::EOPNOTSUPP) => {
            unsupported(hook, "it is no sockmap or sockhash, or the kernel has no links on such maps (Linux 6.10)")
        }
        _ => busy(hook, e),
    })
}

/// Runs when somebody reads it.
fn iterator(program: BorrowedFd<'_>, hook: &Hook, map: Option<BorrowedFd<'_>>) -> Result<OwnedFd, KernelError> {
    let target = match (&hook.target, map) {
        (Target::Objects { map: None, .. }, _) => LinkTarget::Loaded,
        (Target::Objects { .. }, Some(map)) => LinkTarget::Elements(map),
        _ => return Err(wrong_target(hook)),
    };
    link::create(program, target, hook.attach_type, 0).map_err(|e| match e.raw_os_error() {
        Some(libc::EBADF | libc::EINVAL) if hook.target.map().is_none() => KernelError::TargetNotFound {
            target: format!("iter on {}", hook.target.display()),
            why: "it goes through the elements of a map: name it in map".into(),
        },
        Some(libc::EINVAL | libc::EACCES) => unsupported(
            hook,
            "the iterator does not go through maps of that type, or the program expects larger keys or values",
        ),
        _ => KernelError::Io { what: format!("iter on {}", hook.target.display()), source: e },
    })
}

/// At the priority, or, where that is taken, at the next one: of two programs of which one takes the other's place, one
/// has the one and one the other, and the kernel says which is free. A place that is left must be free at once, so that
/// what ends a link says so to the kernel instead of leaving it to the last reference: see [`crate::Host`].
///
/// The link holds the network namespace, which outlives its last process until the link is detached.
fn netfilter(program: BorrowedFd<'_>, hook: &Hook) -> Result<OwnedFd, KernelError> {
    let (Target::Netns { path, name, .. }, Some(place)) = (&hook.target, hook.options.netfilter) else {
        return Err(wrong_target(hook));
    };
    let Netfilter { family, hook: at, priority, defragment } = place;
    let create = |priority| {
        let target = NetfilterAt { family: family as u32, hook: at as u32, priority, defragment };
        link::create(program, LinkTarget::Netfilter(target), hook.attach_type, 0)
    };
    let next = priority.saturating_add(1);
    let taken = |e: &io::Error| e.raw_os_error() == Some(libc::EBUSY);
    let link =
        netns::within(Some(path), || create(priority).or_else(|e| if taken(&e) { create(next) } else { Err(e) }));
    let what = || format!("netfilter {family:?} {at:?} in the network namespace of {name}");
    link.map_err(|e| match e.raw_os_error() {
        Some(libc::EBUSY) => {
            KernelError::HookBusy { target: format!("{}, priority {priority} or {next},", what()), holder: holder(0) }
        }
        Some(libc::ENOENT | libc::EINVAL | libc::EAFNOSUPPORT) if defragment && path.exists() => {
            KernelError::KernelUnsupported {
                what: what(),
                why: format!("this kernel has no nf_defrag_{}", format!("{family:?}").to_lowercase()),
            }
        }
        _ => netns_error(path, name, what(), e),
    })
}

fn netns_error(path: &Path, name: &str, what: String, error: io::Error) -> KernelError {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) if !path.exists() => KernelError::TargetNotFound {
            target: format!("the network namespace of {name}"),
            why: "its process is gone".into(),
        },
        Some(libc::EPERM) => KernelError::PermissionDenied { what, why: "CAP_NET_ADMIN is missing".into() },
        _ => KernelError::Io { what, source: error },
    }
}

fn tracepoint(program: BorrowedFd<'_>, hook: &Hook) -> Result<OwnedFd, KernelError> {
    let Target::Event(name) = &hook.target else { return Err(wrong_target(hook)) };
    let id = Path::new("/sys/kernel/tracing/events").join(name).join("id");
    let text = std::fs::read_to_string(&id).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound if !Path::new("/sys/kernel/tracing/events").exists() => {
            KernelError::KernelUnsupported {
                what: format!("tracepoint {name}"),
                why: "tracefs is not mounted at /sys/kernel/tracing".into(),
            }
        }
        io::ErrorKind::NotFound => KernelError::TargetNotFound {
            target: format!("tracepoint {name}"),
            why: "this kernel has no such event; /sys/kernel/tracing/events lists them".into(),
        },
        _ => KernelError::Io { what: format!("tracepoint {name}: reading its id"), source: e },
    })?;
    let id = text.trim().parse().map_err(|_| KernelError::Io {
        what: format!("tracepoint {name}"),
        source: io::Error::new(io::ErrorKind::InvalidData, "its id is not a number"),
    })?;
    let event = perf::tracepoint(id).map_err(KernelError::io(format!("tracepoint {name}: opening the event")))?;
    perf_link(program, &event, hook)
}

fn perf_link(program: BorrowedFd<'_>, event: &OwnedFd, hook: &Hook) -> Result<OwnedFd, KernelError> {
    link::create(program, LinkTarget::Fd(event.as_fd()), hook.attach_type, 0).map_err(KernelError::io(format!(
        "{} on {}: linking",
        hook.kind,
        hook.target.display()
    )))
}

/// Most samples a second that the kernel takes of one CPU; it lowers the number by itself when they take too long.
const MOST_SAMPLES: &str = "/proc/sys/kernel/perf_event_max_sample_rate";

fn counter(program: BorrowedFd<'_>, hook: &Hook) -> Result<OwnedFd, KernelError> {
    let Target::CpuEvent { event, every, cpu } = &hook.target else { return Err(wrong_target(hook)) };
    let opened = perf::counter(*event, *every, *cpu).map_err(|e| match (e.raw_os_error(), every) {
        (Some(libc::ENOENT | libc::EOPNOTSUPP | libc::ENODEV), _) => {
            unsupported(hook, "this machine's processor, or its virtual one, does not count that event")
        }
        (Some(libc::EINVAL), perf::Every::Frequency(_)) => {
            let most = std::fs::read_to_string(MOST_SAMPLES).unwrap_or_default();
            KernelError::LimitReached {
                what: format!("{} on {}", hook.kind, hook.target.display()),
                limit: format!("the node takes {} samples a second ({MOST_SAMPLES}); lower frequency", most.trim()),
            }
        }
        _ => KernelError::Io { what: format!("{} on {}", hook.kind, hook.target.display()), source: e },
    })?;
    perf_link(program, &opened, hook)
}

fn raw_tracepoint(program: BorrowedFd<'_>, hook: &Hook) -> Result<OwnedFd, KernelError> {
    let Target::Event(name) = &hook.target else { return Err(wrong_target(hook)) };
    link::raw_tracepoint(program, Some(name)).map_err(|e| match e.raw_os_error() {
        Some(libc::ENOENT) => KernelError::TargetNotFound {
            target: format!("raw tracepoint {name}"),
            why: "this kernel has no such tracepoint".into(),
        },
        _ => KernelError::Io { what: format!("raw tracepoint {name}"), source: e },
    })
}

fn loaded_target(program: BorrowedFd<'_>, hook: &Hook) -> Result<OwnedFd, KernelError> {
    link::raw_tracepoint(program, None).map_err(|e| busy(hook, e))
}

/// Active security modules, as securityfs lists them.
const SECURITY_MODULES: &str = "/sys/kernel/security/lsm";

fn lsm(program: BorrowedFd<'_>, hook: &Hook) -> Result<OwnedFd, KernelError> {
    security_hooks_are_called(hook)?;
    loaded_target(program, hook)
}

fn lsm_cgroup(program: BorrowedFd<'_>, hook: &Hook) -> Result<OwnedFd, KernelError> {
    security_hooks_are_called(hook)?;
    cgroup(program, hook)
}

/// The kernel takes programs for security hooks also where it never calls them.
fn security_hooks_are_called(hook: &Hook) -> Result<(), KernelError> {
    missing_security_module().map_or(Ok(()), |why| Err(unsupported(hook, &why)))
}

fn missing_security_module() -> Option<String> {
    let active = std::fs::read_to_string(SECURITY_MODULES).ok()?;
    let active = active.trim();
    let missing = !active.split(',').any(|module| module == "bpf");
    missing.then(|| {
        format!(
            "the kernel was started without the security module bpf: add it to lsm= on its command line ({SECURITY_MODULES} has {active})"
        )
    })
}

fn freplace(program: BorrowedFd<'_>, hook: &Hook) -> Result<OwnedFd, KernelError> {
    let Target::ProgramFunction { program: target, function, .. } = &hook.target else {
        return Err(wrong_target(hook));
    };
    let (target, id) = functions::open(*target, function)?;
    // With its target named, an extension can be attached again, unlike a traced one: see `Hook::attaches_once`.
    link::create(program, LinkTarget::Function(target.as_fd(), id), hook.attach_type, 0).map_err(|e| busy(hook, e))
}

fn busy(hook: &Hook, error: io::Error) -> KernelError {
    let what = format!("{} on {}", hook.kind, hook.target.display());
    match error.raw_os_error() {
        Some(libc::EBUSY) => KernelError::HookBusy { target: what, holder: holder(0) },
        _ => KernelError::Io { what, source: error },
    }
}

fn uprobe(program: BorrowedFd<'_>, hook: &Hook) -> Result<OwnedFd, KernelError> {
    let Target::Binary { path, offset, name, .. } = &hook.target else { return Err(wrong_target(hook)) };
    let shown = path.to_string_lossy();
    let event = probe_event("uprobe", hook, &shown, *offset).map_err(|e| match e {
        ProbeError::NoPmu => no_pmu("uprobe", "CONFIG_UPROBE_EVENTS"),
        ProbeError::Open(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => {
            KernelError::TargetNotFound {
                target: name.clone(),
                why: format!("the file cannot be probed at offset {offset:#x}: {e}"),
            }
        }
        ProbeError::Open(e) => KernelError::Io { what: format!("{} on {name}", hook.kind), source: e },
    })?;
    perf_link(program, &event, hook)
}

fn kprobe(program: BorrowedFd<'_>, hook: &Hook) -> Result<OwnedFd, KernelError> {
    let Target::Function { name, offset } = &hook.target else { return Err(wrong_target(hook)) };
    probe_on(program, hook, name, *offset)
}

/// On a kernel function, or an instruction inside of it.
fn probe_on(program: BorrowedFd<'_>, hook: &Hook, name: &str, offset: u64) -> Result<OwnedFd, KernelError> {
    let event = probe_event("kprobe", hook, name, offset).map_err(|e| match e {
        ProbeError::NoPmu => no_pmu("kprobe", "CONFIG_KPROBE_EVENTS"),
        ProbeError::Open(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EINVAL | libc::EADDRNOTAVAIL)) => {
            KernelError::TargetNotFound {
                target: if offset == 0 {
                    format!("kernel function {name}")
                } else {
                    format!("kernel function {name}+{offset:#x}")
                },
                why: format!("it does not exist or cannot be probed ({e}); /proc/kallsyms lists functions"),
            }
        }
        ProbeError::Open(e) => KernelError::Io { what: format!("{} on {name}", hook.kind), source: e },
    })?;
    perf_link(program, &event, hook)
}

fn no_pmu(what: &str, config: &str) -> KernelError {
    KernelError::KernelUnsupported { what: what.into(), why: format!("this kernel is built without {config}") }
}

enum ProbeError {
    NoPmu,
    Open(io::Error),
}

fn probe_event(pmu: &str, hook: &Hook, name: &str, offset: u64) -> Result<OwnedFd, ProbeError> {
    let on_return = matches!(hook.kind, Kind::Uretprobe | Kind::Kretprobe | Kind::Kretsyscall);
    let device = Path::new("/sys/bus/event_source/devices").join(pmu);
    let read = |file: &str| std::fs::read_to_string(device.join(file));
    let event_type = read("type").ok().and_then(|t| t.trim().parse().ok()).ok_or(ProbeError::NoPmu)?;
    // "config:0": the bit that asks for the return.
    let bit = read("format/retprobe").ok().and_then(|t| t.trim().strip_prefix("config:")?.parse().ok()).unwrap_or(0);
    perf::probe(event_type, on_return.then_some(bit), name, offset).map_err(ProbeError::Open)
}

/// What a file is, whatever its path: its file system's device, inode and birth. A file that is copied again has the
/// same device and inode, but not the same birth.
pub fn file_identity(path: &Path) -> io::Result<String> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(path)?;
    let born = meta.created().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
    let born =
        born.map_or_else(|| format!("c{}.{}", meta.ctime(), meta.ctime_nsec()), |d| format!("b{}", d.as_nanos()));
    Ok(format!("{:x}.{:x}.{born}", meta.dev(), meta.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_rows() {
        for (i, (kind, ..)) in ATTACH.iter().enumerate() {
            assert_eq!(*kind, KINDS[i].kind);
        }
    }
}
