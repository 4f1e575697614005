//! Where a program is attached: one variant per kind of hook.

use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};

use crate::cgroup::{CgroupSkb, CgroupSock, CgroupSockAddr, CgroupSockopt, LsmCgroup, OnCgroups};
use crate::many::{KprobeMulti, KretprobeMulti, UprobeMulti, UretprobeMulti};
use crate::netns::{FlowDissector, Netfilter, SkLookup};
use crate::network::{Netkit, ProgramFunction, Tc, Tcx, Xdp};
use crate::sockets::{SkMsg, SkSkb};
use crate::tracing::{
    BtfTracepoint, Function, Iter, KernelTracepoint, Kprobe, Lsm, PerfEvent, RawTracepoint, Syscall, TracedFunction,
    Uprobe,
};
use crate::union::exactly_one;

/// One hook. Exactly one of the kinds is given; every entry of one program must suit the program's type.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = one_hook)]
pub enum Attach {
    /// Packets as the driver receives them, before the kernel has built a socket buffer. One program per interface.
    Xdp(Xdp),
    /// Packets at an interface, received or sent, as socket buffers; several programs per interface. Linux 6.6 or newer.
    Tcx(Tcx),
    /// Packets at an interface, received or sent, by a classic tc filter: for kernels before 6.6.
    Tc(Tc),
    /// Packets between the two ends of a netkit pair, by which pods may be connected instead of by veth. Linux 6.7 or newer.
    Netkit(Netkit),
    /// Packets that the sockets of a cgroup receive or send.
    CgroupSkb(CgroupSkb),
    /// Socket calls (bind, connect, sendmsg, ...) of the processes of a cgroup.
    CgroupSockAddr(CgroupSockAddr),
    /// Sockets of the processes of a cgroup, as they are made, bound and released.
    CgroupSock(CgroupSock),
    /// Options of sockets that the processes of a cgroup ask for or set.
    CgroupSockopt(CgroupSockopt),
    /// Reads and writes of sysctls (files below /proc/sys) by the processes of a cgroup, which may be refused.
    CgroupSysctl(OnCgroups),
    /// Devices that the processes of a cgroup open or make, which may be refused. Container runtimes have such a program
    /// of their own on each container: all must allow.
    CgroupDevice(OnCgroups),
    /// Events of the TCP connections of a cgroup: as they are established and closed, retransmit, or negotiate options.
    SockOps(OnCgroups),
    /// A security hook for the processes of a cgroup: the program may refuse what they are about to do, by returning 0. The
    /// kernel has to be started with `bpf` among its security modules. Linux 6.0 or newer.
    LsmCgroup(LsmCgroup),
    /// The choice of the socket that gets a new connection or a datagram, in a network namespace.
    SkLookup(SkLookup),
    /// How the kernel takes packets apart to spread them, in a network namespace: one program each, and that of the node's
    /// own is used in all.
    FlowDissector(FlowDissector),
    /// What the sockets in a map send, before the kernel takes it apart into packets. Linux 6.10 or newer.
    SkMsg(SkMsg),
    /// What the sockets in a map receive, as a stream or packet by packet. Linux 6.10 or newer.
    SkSkb(SkSkb),
    /// Packets on their path through a network namespace, beside those of iptables and nftables. Linux 6.4 or newer.
    Netfilter(Netfilter),
    /// A static tracepoint of the kernel, with its documented fields.
    Tracepoint(KernelTracepoint),
    /// A tracepoint with its raw arguments.
    RawTracepoint(RawTracepoint),
    /// A tracepoint with arguments typed by the kernel's BTF.
    BtfTracepoint(BtfTracepoint),
    /// An event that each CPU counts, every so often: a sampling profiler's clock, or a counter of the hardware.
    PerfEvent(PerfEvent),
    /// The entry of a function in a binary or library, in user space.
    Uprobe(Uprobe),
    /// The return of a function in a binary or library, in user space.
    Uretprobe(Uprobe),
    /// The entries of many functions of a binary or library at once, by one link. Linux 6.6 or newer.
    UprobeMulti(UprobeMulti),
    /// The returns of many functions of a binary or library at once, by one link. Linux 6.6 or newer.
    UretprobeMulti(UretprobeMulti),
    /// The entry of a kernel function, or an instruction inside of it.
    Kprobe(Kprobe),
    /// The return of a kernel function.
    Kretprobe(Function),
    /// The entries of many kernel functions at once, by one link. Linux 5.18 or newer.
    KprobeMulti(KprobeMulti),
    /// The returns of many kernel functions at once, by one link. Linux 5.18 or newer.
    KretprobeMulti(KretprobeMulti),
    /// The entry of a system call, by the name that it has on every architecture.
    Ksyscall(Syscall),
    /// The return of a system call, by the name that it has on every architecture.
    Kretsyscall(Syscall),
    /// The entry of a function of the kernel or of another EbpfProgram, with arguments typed by its BTF.
    Fentry(TracedFunction),
    /// The return of a function of the kernel or of another EbpfProgram, with arguments and the returned value typed by
    /// its BTF.
    Fexit(TracedFunction),
    /// A kernel function that may be told to fail (those for error injection, and `security_...`): the program sees its
    /// arguments, and what it returns, if it is not 0, is returned instead of calling the function.
    FmodRet(Function),
    /// A security hook: the program may refuse what a process is about to do, by returning a negative errno. The kernel has
    /// to be started with `bpf` among its security modules.
    Lsm(Lsm),
    /// Objects of the kernel, one after the other, whenever somebody reads: tasks, sockets, maps, the elements of a map. Read
    /// with `kubectl skep prog read`.
    Iter(Iter),
    /// A global function of another EbpfProgram of the namespace, which the program takes the place of. A new revision of
    /// either leaves it in place for a moment: the kernel takes one program per function.
    Freplace(ProgramFunction),
}

fn one_hook(schema: &mut Schema) {
    exactly_one(
        schema,
        "an attach entry names exactly one hook, such as {xdp: {interfaces: {primary: true}}}; for more hooks write more entries",
    );
}

impl Attach {
    /// The kind's name in the API, `cgroupSkb`: the key of the kind table, of `EbpfNode`'s `programKinds` and of metrics.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Xdp(_) => "xdp",
            Self::Tcx(_) => "tcx",
            Self::Tc(_) => "tc",
            Self::Netkit(_) => "netkit",
            Self::CgroupSkb(_) => "cgroupSkb",
            Self::CgroupSockAddr(_) => "cgroupSockAddr",
            Self::CgroupSock(_) => "cgroupSock",
            Self::CgroupSockopt(_) => "cgroupSockopt",
            Self::CgroupSysctl(_) => "cgroupSysctl",
            Self::CgroupDevice(_) => "cgroupDevice",
            Self::SockOps(_) => "sockOps",
            Self::LsmCgroup(_) => "lsmCgroup",
            Self::SkLookup(_) => "skLookup",
            Self::FlowDissector(_) => "flowDissector",
            Self::SkMsg(_) => "skMsg",
            Self::SkSkb(_) => "skSkb",
            Self::Netfilter(_) => "netfilter",
            Self::Tracepoint(_) => "tracepoint",
            Self::RawTracepoint(_) => "rawTracepoint",
            Self::BtfTracepoint(_) => "btfTracepoint",
            Self::PerfEvent(_) => "perfEvent",
            Self::Uprobe(_) => "uprobe",
            Self::Uretprobe(_) => "uretprobe",
            Self::UprobeMulti(_) => "uprobeMulti",
            Self::UretprobeMulti(_) => "uretprobeMulti",
            Self::Kprobe(_) => "kprobe",
            Self::Kretprobe(_) => "kretprobe",
            Self::KprobeMulti(_) => "kprobeMulti",
            Self::KretprobeMulti(_) => "kretprobeMulti",
            Self::Ksyscall(_) => "ksyscall",
            Self::Kretsyscall(_) => "kretsyscall",
            Self::Fentry(_) => "fentry",
            Self::Fexit(_) => "fexit",
            Self::FmodRet(_) => "fmodRet",
            Self::Lsm(_) => "lsm",
            Self::Iter(_) => "iter",
            Self::Freplace(_) => "freplace",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_is_the_name_in_the_api() {
        let golden = [
            include_str!("../tests/golden/full.yaml"),
            include_str!("../tests/golden/netns.yaml"),
            include_str!("../tests/golden/cgroups.yaml"),
            include_str!("../tests/golden/hooks.yaml"),
            include_str!("../tests/golden/functions.yaml"),
            include_str!("../tests/golden/probes.yaml"),
            include_str!("../tests/golden/maps.yaml"),
        ];
        let specs: Vec<serde_json::Value> = golden.iter().map(|text| serde_yaml_ng::from_str(text).unwrap()).collect();
        let programs = specs.iter().flat_map(|spec| spec["programs"].as_array().unwrap());
        let entries = programs.flat_map(|program| program["attach"].as_array().unwrap());
        let mut kinds = std::collections::BTreeSet::new();
        for entry in entries {
            let attach: Attach = serde_json::from_value(entry.clone()).unwrap();
            assert_eq!(entry.as_object().unwrap().keys().collect::<Vec<_>>(), [attach.kind()]);
            kinds.insert(attach.kind());
        }
        assert_eq!(kinds.len(), 37, "the golden specs have every kind");
    }
}
