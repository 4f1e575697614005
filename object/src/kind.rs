//! The static columns of the kind table: one row per kind of program. How a target becomes a link is the table's other
//! half, in skep-kernel, keyed by the same rows.

/// A kind of program, named as in `attach` entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Xdp,
    Tcx,
    Tc,
    Netkit,
    CgroupSkb,
    CgroupSockAddr,
    CgroupSock,
    CgroupSockopt,
    CgroupSysctl,
    CgroupDevice,
    SockOps,
    LsmCgroup,
    SkLookup,
    FlowDissector,
    SkMsg,
    SkSkb,
    Netfilter,
    Tracepoint,
    RawTracepoint,
    BtfTracepoint,
    PerfEvent,
    Uprobe,
    Uretprobe,
    UprobeMulti,
    UretprobeMulti,
    Kprobe,
    Kretprobe,
    KprobeMulti,
    KretprobeMulti,
    Ksyscall,
    Kretsyscall,
    Fentry,
    Fexit,
    FmodRet,
    Lsm,
    Iter,
    Freplace,
}

/// How a new revision takes an old one's place on a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdateWay {
    /// One program takes the other's place in one step: nothing missed, nothing doubled.
    Swap,
    /// The new is attached before the old goes: nothing missed; for a moment both run.
    Beside,
    /// As `Beside`, but the kernel takes one program per place, so that the new one is attached next to the old one's:
    /// two places alternate.
    BesideNeighbour,
    /// The kernel takes one program per place, and has no other way: the old one goes before the new one comes, and what
    /// happens in between is missed.
    Gap,
}

/// What an attach point is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetClass {
    Interface,
    Cgroup,
    NetworkNamespace,
    /// A tracepoint: `category/name`, or a name alone.
    Event,
    /// A kernel function, with an offset for kprobes; or a function of another program.
    Function,
    /// A file and an offset in it, or several.
    Binary,
    /// A counter of each CPU.
    Cpu,
    /// Functions of the kernel.
    Functions,
    /// A system call.
    Syscall,
    /// A map of sockets, of the program's own object.
    SocketMap,
    /// All objects of a kind, of the kernel.
    Objects,
}

/// What of the attach point the kernel wants to know when the program is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadTime {
    /// Nothing: one kernel program serves any attach point of the kind.
    Nothing,
    /// `expected_attach_type`: the hook's attach type.
    AttachType,
    /// `attach_btf_id`: the BTF id of the named function, of the kernel or of another program.
    BtfFunction,
    /// `attach_btf_id`: the BTF id of the typedef `btf_trace_<name>`.
    BtfTracepoint,
}

/// A kernel release, major and minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release(pub u16, pub u16);

impl std::fmt::Display for Release {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// One row.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub kind: Kind,
    /// The key in an `attach` entry.
    pub name: &'static str,
    /// ELF section names (before the first `/`) by which libbpf knows the kind.
    pub sections: &'static [&'static str],
    /// BPF_PROG_TYPE_*.
    pub program_type: u32,
    /// BPF_* attach type, for kinds that have just one; kinds with a direction or hook bring it with the target.
    pub attach_type: u32,
    pub load_time: LoadTime,
    pub target: TargetClass,
    pub update: UpdateWay,
    /// First release with the way in which Skep attaches the kind; the support floor is 5.15.
    pub since: Release,
}

const FLOOR: Release = Release(5, 15);

/// BPF_PROG_TYPE_* (include/uapi/linux/bpf.h).
mod program {
    pub const KPROBE: u32 = 2;
    pub const SCHED_CLS: u32 = 3;
    pub const TRACEPOINT: u32 = 5;
    pub const XDP: u32 = 6;
    pub const PERF_EVENT: u32 = 7;
    pub const CGROUP_SKB: u32 = 8;
    pub const CGROUP_SOCK: u32 = 9;
    pub const SOCK_OPS: u32 = 13;
    pub const SK_SKB: u32 = 14;
    pub const CGROUP_DEVICE: u32 = 15;
    pub const SK_MSG: u32 = 16;
    pub const RAW_TRACEPOINT: u32 = 17;
    pub const CGROUP_SOCK_ADDR: u32 = 18;
    pub const FLOW_DISSECTOR: u32 = 22;
    pub const CGROUP_SYSCTL: u32 = 23;
    pub const RAW_TRACEPOINT_WRITABLE: u32 = 24;
    pub const CGROUP_SOCKOPT: u32 = 25;
    pub const TRACING: u32 = 26;
    pub const EXT: u32 = 28;
    pub const LSM: u32 = 29;
    pub const SK_LOOKUP: u32 = 30;
    pub const NETFILTER: u32 = 32;
}

/// BPF attach types (include/uapi/linux/bpf.h).
pub mod attach {
    pub const CGROUP_INET_INGRESS: u32 = 0;
    pub const CGROUP_INET_EGRESS: u32 = 1;
    pub const CGROUP_SOCK_OPS: u32 = 3;
    pub const SK_SKB_STREAM_PARSER: u32 = 4;
    pub const SK_SKB_STREAM_VERDICT: u32 = 5;
    pub const CGROUP_DEVICE: u32 = 6;
    pub const SK_MSG_VERDICT: u32 = 7;
    pub const FLOW_DISSECTOR: u32 = 17;
    pub const CGROUP_SYSCTL: u32 = 18;
    pub const TRACE_RAW_TP: u32 = 23;
    pub const TRACE_FENTRY: u32 = 24;
    pub const TRACE_FEXIT: u32 = 25;
    pub const MODIFY_RETURN: u32 = 26;
    pub const LSM_MAC: u32 = 27;
    pub const TRACE_ITER: u32 = 28;
    pub const SK_LOOKUP: u32 = 36;
    pub const XDP: u32 = 37;
    pub const SK_SKB_VERDICT: u32 = 38;
    pub const PERF_EVENT: u32 = 41;
    pub const TRACE_KPROBE_MULTI: u32 = 42;
    pub const LSM_CGROUP: u32 = 43;
    pub const NETFILTER: u32 = 45;
    pub const TCX_INGRESS: u32 = 46;
    pub const TCX_EGRESS: u32 = 47;
    pub const TRACE_UPROBE_MULTI: u32 = 48;
    pub const NETKIT_PRIMARY: u32 = 54;
    pub const NETKIT_PEER: u32 = 55;
    pub const TRACE_KPROBE_SESSION: u32 = 56;
    pub const TRACE_UPROBE_SESSION: u32 = 57;
}

/// The table.
#[rustfmt::skip] // one row, one line
pub static KINDS: [Row; 37] = [
    row(Kind::Xdp, "xdp", &["xdp", "xdp.frags"], program::XDP, attach::XDP, LoadTime::AttachType, TargetClass::Interface, UpdateWay::Swap, FLOOR),
    row(Kind::Tcx, "tcx", &["tcx", "tc", "classifier"], program::SCHED_CLS, 0, LoadTime::Nothing, TargetClass::Interface, UpdateWay::Swap, Release(6, 6)),
    row(Kind::Tc, "tc", &["tc", "classifier", "tcx"], program::SCHED_CLS, 0, LoadTime::Nothing, TargetClass::Interface, UpdateWay::Swap, FLOOR),
    row(Kind::Netkit, "netkit", &["netkit", "tc", "classifier", "tcx"], program::SCHED_CLS, 0, LoadTime::Nothing, TargetClass::Interface, UpdateWay::Swap, Release(6, 7)),
    row(Kind::CgroupSkb, "cgroupSkb", &["cgroup_skb", "cgroup"], program::CGROUP_SKB, 0, LoadTime::AttachType, TargetClass::Cgroup, UpdateWay::Swap, FLOOR),
    row(Kind::CgroupSockAddr, "cgroupSockAddr", &["cgroup"], program::CGROUP_SOCK_ADDR, 0, LoadTime::AttachType, TargetClass::Cgroup, UpdateWay::Swap, FLOOR),
    row(Kind::CgroupSock, "cgroupSock", &["cgroup"], program::CGROUP_SOCK, 0, LoadTime::AttachType, TargetClass::Cgroup, UpdateWay::Swap, FLOOR),
    row(Kind::CgroupSockopt, "cgroupSockopt", &["cgroup"], program::CGROUP_SOCKOPT, 0, LoadTime::AttachType, TargetClass::Cgroup, UpdateWay::Swap, FLOOR),
    row(Kind::CgroupSysctl, "cgroupSysctl", &["cgroup"], program::CGROUP_SYSCTL, attach::CGROUP_SYSCTL, LoadTime::AttachType, TargetClass::Cgroup, UpdateWay::Swap, FLOOR),
    row(Kind::CgroupDevice, "cgroupDevice", &["cgroup"], program::CGROUP_DEVICE, attach::CGROUP_DEVICE, LoadTime::AttachType, TargetClass::Cgroup, UpdateWay::Swap, FLOOR),
    row(Kind::SockOps, "sockOps", &["sockops"], program::SOCK_OPS, attach::CGROUP_SOCK_OPS, LoadTime::AttachType, TargetClass::Cgroup, UpdateWay::Swap, FLOOR),
    row(Kind::LsmCgroup, "lsmCgroup", &["lsm_cgroup"], program::LSM, attach::LSM_CGROUP, LoadTime::BtfFunction, TargetClass::Cgroup, UpdateWay::Swap, Release(6, 0)),
    row(Kind::SkLookup, "skLookup", &["sk_lookup"], program::SK_LOOKUP, attach::SK_LOOKUP, LoadTime::AttachType, TargetClass::NetworkNamespace, UpdateWay::Swap, FLOOR),
    row(Kind::FlowDissector, "flowDissector", &["flow_dissector"], program::FLOW_DISSECTOR, attach::FLOW_DISSECTOR, LoadTime::AttachType, TargetClass::NetworkNamespace, UpdateWay::Swap, FLOOR),
    row(Kind::SkMsg, "skMsg", &["sk_msg"], program::SK_MSG, attach::SK_MSG_VERDICT, LoadTime::AttachType, TargetClass::SocketMap, UpdateWay::Swap, Release(6, 10)),
    row(Kind::SkSkb, "skSkb", &["sk_skb"], program::SK_SKB, 0, LoadTime::AttachType, TargetClass::SocketMap, UpdateWay::Swap, Release(6, 10)),
    row(Kind::Netfilter, "netfilter", &["netfilter"], program::NETFILTER, attach::NETFILTER, LoadTime::AttachType, TargetClass::NetworkNamespace, UpdateWay::BesideNeighbour, Release(6, 4)),
    row(Kind::Tracepoint, "tracepoint", &["tracepoint", "tp"], program::TRACEPOINT, attach::PERF_EVENT, LoadTime::Nothing, TargetClass::Event, UpdateWay::Beside, FLOOR),
    row(Kind::RawTracepoint, "rawTracepoint", &["raw_tracepoint", "raw_tp", "raw_tracepoint.w", "raw_tp.w"], program::RAW_TRACEPOINT, 0, LoadTime::Nothing, TargetClass::Event, UpdateWay::Beside, FLOOR),
    row(Kind::BtfTracepoint, "btfTracepoint", &["tp_btf"], program::TRACING, attach::TRACE_RAW_TP, LoadTime::BtfTracepoint, TargetClass::Event, UpdateWay::Beside, FLOOR),
    row(Kind::PerfEvent, "perfEvent", &["perf_event"], program::PERF_EVENT, attach::PERF_EVENT, LoadTime::Nothing, TargetClass::Cpu, UpdateWay::Beside, FLOOR),
    row(Kind::Uprobe, "uprobe", &["uprobe", "uprobe.s"], program::KPROBE, attach::PERF_EVENT, LoadTime::Nothing, TargetClass::Binary, UpdateWay::Beside, FLOOR),
    row(Kind::Uretprobe, "uretprobe", &["uretprobe", "uretprobe.s"], program::KPROBE, attach::PERF_EVENT, LoadTime::Nothing, TargetClass::Binary, UpdateWay::Beside, FLOOR),
    row(Kind::UprobeMulti, "uprobeMulti", &["uprobe.multi", "uprobe.multi.s", "uprobe.session", "uprobe.session.s"], program::KPROBE, 0, LoadTime::AttachType, TargetClass::Binary, UpdateWay::Beside, Release(6, 6)),
    row(Kind::UretprobeMulti, "uretprobeMulti", &["uretprobe.multi", "uretprobe.multi.s"], program::KPROBE, attach::TRACE_UPROBE_MULTI, LoadTime::AttachType, TargetClass::Binary, UpdateWay::Beside, Release(6, 6)),
    row(Kind::Kprobe, "kprobe", &["kprobe"], program::KPROBE, attach::PERF_EVENT, LoadTime::Nothing, TargetClass::Function, UpdateWay::Beside, FLOOR),
    row(Kind::Kretprobe, "kretprobe", &["kretprobe"], program::KPROBE, attach::PERF_EVENT, LoadTime::Nothing, TargetClass::Function, UpdateWay::Beside, FLOOR),
    row(Kind::KprobeMulti, "kprobeMulti", &["kprobe.multi", "kprobe.session"], program::KPROBE, 0, LoadTime::AttachType, TargetClass::Functions, UpdateWay::Beside, Release(5, 18)),
    row(Kind::KretprobeMulti, "kretprobeMulti", &["kretprobe.multi"], program::KPROBE, attach::TRACE_KPROBE_MULTI, LoadTime::AttachType, TargetClass::Functions, UpdateWay::Beside, Release(5, 18)),
    row(Kind::Ksyscall, "ksyscall", &["ksyscall"], program::KPROBE, attach::PERF_EVENT, LoadTime::Nothing, TargetClass::Syscall, UpdateWay::Beside, FLOOR),
    row(Kind::Kretsyscall, "kretsyscall", &["kretsyscall"], program::KPROBE, attach::PERF_EVENT, LoadTime::Nothing, TargetClass::Syscall, UpdateWay::Beside, FLOOR),
    row(Kind::Fentry, "fentry", &["fentry", "fentry.s"], program::TRACING, attach::TRACE_FENTRY, LoadTime::BtfFunction, TargetClass::Function, UpdateWay::Beside, FLOOR),
    row(Kind::Fexit, "fexit", &["fexit", "fexit.s"], program::TRACING, attach::TRACE_FEXIT, LoadTime::BtfFunction, TargetClass::Function, UpdateWay::Beside, FLOOR),
    row(Kind::FmodRet, "fmodRet", &["fmod_ret", "fmod_ret.s"], program::TRACING, attach::MODIFY_RETURN, LoadTime::BtfFunction, TargetClass::Function, UpdateWay::Beside, FLOOR),
    row(Kind::Lsm, "lsm", &["lsm", "lsm.s"], program::LSM, attach::LSM_MAC, LoadTime::BtfFunction, TargetClass::Function, UpdateWay::Beside, FLOOR),
    row(Kind::Iter, "iter", &["iter", "iter.s"], program::TRACING, attach::TRACE_ITER, LoadTime::BtfFunction, TargetClass::Objects, UpdateWay::Swap, FLOOR),
    row(Kind::Freplace, "freplace", &["freplace"], program::EXT, 0, LoadTime::BtfFunction, TargetClass::Function, UpdateWay::Gap, FLOOR),
];

#[allow(clippy::too_many_arguments)] // a table's row has as many columns as the table
const fn row(
    kind: Kind,
    name: &'static str,
    sections: &'static [&'static str],
    program_type: u32,
    attach_type: u32,
    load_time: LoadTime,
    target: TargetClass,
    update: UpdateWay,
    since: Release,
) -> Row {
    Row { kind, name, sections, program_type, attach_type, load_time, target, update, since }
}

impl Kind {
    /// The kind's row.
    pub fn row(self) -> &'static Row {
        // The table is in the order of the enum; a test holds it to that.
        &KINDS[self as usize]
    }
    /// Names after `cgroup/` in the sections that libbpf has for the kind.
    pub fn cgroup_sections(self) -> impl Iterator<Item = &'static str> {
        CGROUP_SECTIONS.iter().filter(move |(_, of, _)| *of == self).map(|(name, ..)| *name)
    }
    /// The kind that libbpf has a section for; of those that share one the first of the table.
    pub fn of_section(section: &str) -> Option<Kind> {
        let section = section.trim_start_matches('?');
        let (head, hook) = section.split_once('/').unwrap_or((section, ""));
        match CGROUP_SECTIONS.iter().find(|(name, ..)| head == "cgroup" && *name == hook) {
            Some((_, kind, _)) => Some(*kind),
            None => KINDS.iter().find(|row| row.sections.contains(&head)).map(|row| row.kind),
        }
    }
    /// By the key of an `attach` entry.
    pub fn by_name(name: &str) -> Option<Kind> {
        KINDS.iter().find(|r| r.name == name).map(|r| r.kind)
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.row().name)
    }
}

/// A section `cgroup/<name>` of libbpf: the kind that it is for, and its hook as attach type; `None`: any of the kind.
#[rustfmt::skip] // one section, one line
const CGROUP_SECTIONS: [(&str, Kind, Option<u32>); 27] = [
    ("skb", Kind::CgroupSkb, None),
    ("sock", Kind::CgroupSock, Some(2)),
    ("sock_create", Kind::CgroupSock, Some(2)),
    ("sock_release", Kind::CgroupSock, Some(34)),
    ("post_bind4", Kind::CgroupSock, Some(12)),
    ("post_bind6", Kind::CgroupSock, Some(13)),
    ("dev", Kind::CgroupDevice, None),
    ("sysctl", Kind::CgroupSysctl, None),
    ("getsockopt", Kind::CgroupSockopt, Some(21)),
    ("setsockopt", Kind::CgroupSockopt, Some(22)),
    ("bind4", Kind::CgroupSockAddr, Some(8)),
    ("bind6", Kind::CgroupSockAddr, Some(9)),
    ("connect4", Kind::CgroupSockAddr, Some(10)),
    ("connect6", Kind::CgroupSockAddr, Some(11)),
    ("connect_unix", Kind::CgroupSockAddr, Some(49)),
    ("sendmsg4", Kind::CgroupSockAddr, Some(14)),
    ("sendmsg6", Kind::CgroupSockAddr, Some(15)),
    ("sendmsg_unix", Kind::CgroupSockAddr, Some(50)),
    ("recvmsg4", Kind::CgroupSockAddr, Some(19)),
    ("recvmsg6", Kind::CgroupSockAddr, Some(20)),
    ("recvmsg_unix", Kind::CgroupSockAddr, Some(51)),
    ("getpeername4", Kind::CgroupSockAddr, Some(29)),
    ("getpeername6", Kind::CgroupSockAddr, Some(30)),
    ("getpeername_unix", Kind::CgroupSockAddr, Some(52)),
    ("getsockname4", Kind::CgroupSockAddr, Some(31)),
    ("getsockname6", Kind::CgroupSockAddr, Some(32)),
    ("getsockname_unix", Kind::CgroupSockAddr, Some(53)),
];

/// Why a function that its author put into `section` does not suit a kind and hook; `None`: it may. A section that says
/// nothing to Skep may hold anything: the verifier decides.
pub fn mismatch(kind: Kind, attach_type: u32, section: &str) -> Option<String> {
    let section = section.trim_start_matches('?');
    let (head, hook) = section.split_once('/').unwrap_or((section, ""));
    let suits: Vec<&Row> = KINDS.iter().filter(|row| row.sections.contains(&head)).collect();
    let written = format!("it is in section {section}");
    if !suits.is_empty() && suits.iter().all(|row| row.program_type != kind.row().program_type) {
        let names: Vec<&str> = suits.iter().map(|row| row.name).collect();
        return Some(format!("{written}, which is for {}, not for {kind}", names.join(" or ")));
    }
    if head != "cgroup" {
        return None;
    }
    match CGROUP_SECTIONS.iter().find(|(name, ..)| *name == hook)? {
        (_, of, None) if *of != kind => Some(format!("{written}, which is for {of}, not for {kind}")),
        (name, of, Some(_)) if *of != kind => {
            Some(format!("{written}, which is for {of} with the hook {name}, not for {kind}"))
        }
        (name, _, Some(of)) if *of != attach_type => Some(format!("{written}, which is for the hook {name} alone")),
        _ => None,
    }
}

/// BPF_F_SLEEPABLE.
const SLEEPABLE: u32 = 1 << 4;
/// BPF_F_XDP_HAS_FRAGS.
const XDP_HAS_FRAGS: u32 = 1 << 5;

/// What the kernel fixes when a program is loaded. Two attach points that differ here need two kernel programs of one
/// function.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LoadAttributes {
    pub program_type: u32,
    pub expected_attach_type: u32,
    pub flags: u32,
    pub attach_to: AttachTo,
    /// The set of cgroups whose tasks the program runs for; `None`: for all.
    pub gate: Option<String>,
    /// Tells copies of one program apart that nothing else does.
    pub copy: Option<String>,
}

/// What `attach_btf_id` points at.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AttachTo {
    Nothing,
    Function(String),
    Tracepoint(String),
    /// A function of the program with that id.
    ProgramFunction {
        program: u32,
        function: String,
    },
}

impl LoadAttributes {
    /// For a kind, the attach type of the hook, the name of the target, and the ELF section of the function.
    pub fn new(kind: Kind, attach_type: u32, target: &str, section: &str) -> Self {
        let row = kind.row();
        let head = section.trim_start_matches('?').split('/').next().unwrap_or("");
        let mut flags = 0;
        if head.ends_with(".s") {
            flags |= SLEEPABLE;
        }
        if head == "xdp.frags" && kind == Kind::Xdp {
            flags |= XDP_HAS_FRAGS;
        }
        let expected_attach_type = match row.load_time {
            LoadTime::Nothing => 0,
            LoadTime::AttachType if row.attach_type == 0 => attach_type,
            _ => row.attach_type,
        };
        let attach_to = match row.load_time {
            LoadTime::BtfFunction => AttachTo::Function(target.to_owned()),
            LoadTime::BtfTracepoint => AttachTo::Tracepoint(target.to_owned()),
            LoadTime::Nothing | LoadTime::AttachType => AttachTo::Nothing,
        };
        // One that may write to what it is given is of a type of its own.
        let writable = kind == Kind::RawTracepoint && head.ends_with(".w");
        LoadAttributes {
            program_type: if writable { program::RAW_TRACEPOINT_WRITABLE } else { row.program_type },
            expected_attach_type,
            flags,
            attach_to,
            gate: None,
            copy: None,
        }
    }

    /// What libbpf reads out of a section: kind, hook and target are what it says, or nothing. `None`: no kind has it.
    pub fn of_section(section: &str) -> Option<Self> {
        let kind = Kind::of_section(section)?;
        let (head, rest) = section.trim_start_matches('?').split_once('/').unwrap_or((section, ""));
        let hook = match (kind, rest) {
            (Kind::CgroupSkb, "egress") => attach::CGROUP_INET_EGRESS,
            (Kind::CgroupSkb, _) => attach::CGROUP_INET_INGRESS,
            (Kind::SkSkb, "stream_parser") => attach::SK_SKB_STREAM_PARSER,
            (Kind::SkSkb, "stream_verdict") => attach::SK_SKB_STREAM_VERDICT,
            (Kind::SkSkb, "verdict") => attach::SK_SKB_VERDICT,
            (Kind::KprobeMulti, _) if head.contains(".session") => attach::TRACE_KPROBE_SESSION,
            (Kind::KprobeMulti, _) => attach::TRACE_KPROBE_MULTI,
            (Kind::UprobeMulti, _) if head.contains(".session") => attach::TRACE_UPROBE_SESSION,
            (Kind::UprobeMulti, _) => attach::TRACE_UPROBE_MULTI,
            _ => CGROUP_SECTIONS
                .iter()
                .find(|(name, of, _)| *of == kind && *name == rest)
                .and_then(|row| row.2)
                .unwrap_or(0),
        };
        let target = match kind {
            Kind::Lsm | Kind::LsmCgroup => format!("bpf_lsm_{rest}"),
            Kind::Iter => format!("bpf_iter_{rest}"),
            _ => rest.to_owned(),
        };
        Some(Self::new(kind, hook, &target, section))
    }

    /// A text that two equal attributes share and two different ones do not.
    pub fn canonical(&self) -> String {
        let to = match &self.attach_to {
            AttachTo::Nothing => String::new(),
            AttachTo::Function(name) => format!("func:{name}"),
            AttachTo::Tracepoint(name) => format!("tp:{name}"),
            AttachTo::ProgramFunction { program, function } => format!("prog:{program}:{function}"),
        };
        let gate = self.gate.as_deref().unwrap_or("");
        // Nothing is added where there are no copies: names of pins stay over versions.
        let copy = self.copy.as_ref().map(|copy| format!(".{copy}")).unwrap_or_default();
        format!("{}.{}.{}.{to}.{gate}{copy}", self.program_type, self.expected_attach_type, self.flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum_and_names_are_unique() {
        for (i, row) in KINDS.iter().enumerate() {
            assert_eq!(row.kind as usize, i);
            assert_eq!(Kind::by_name(row.name), Some(row.kind), "{}", row.name);
        }
    }

    #[test]
    fn a_function_is_told_from_one_of_another_kind_by_its_section() {
        let says = |kind, attach_type, section| mismatch(kind, attach_type, section);
        assert_eq!(says(Kind::Xdp, attach::XDP, "?xdp.frags"), None);
        assert_eq!(says(Kind::Tc, attach::TCX_INGRESS, "tcx/ingress"), None);
        assert_eq!(says(Kind::Kprobe, 0, "uprobe/libc:malloc"), None);
        assert_eq!(says(Kind::Xdp, attach::XDP, "anything"), None);
        assert_eq!(says(Kind::CgroupSockAddr, 10, "cgroup/connect4"), None);
        assert_eq!(says(Kind::CgroupSkb, 0, "cgroup/skb"), None);
        let wrong = says(Kind::Tcx, attach::TCX_INGRESS, "xdp").unwrap();
        assert_eq!(wrong, "it is in section xdp, which is for xdp, not for tcx");
        let wrong = says(Kind::CgroupSockAddr, 8, "cgroup/connect4").unwrap();
        assert_eq!(wrong, "it is in section cgroup/connect4, which is for the hook connect4 alone");
        assert!(says(Kind::CgroupSkb, 0, "cgroup/bind4").unwrap().contains("with the hook bind4"));
        let wrong = says(Kind::CgroupSysctl, attach::CGROUP_SYSCTL, "cgroup/dev").unwrap();
        assert_eq!(wrong, "it is in section cgroup/dev, which is for cgroupDevice, not for cgroupSysctl");
        assert_eq!(says(Kind::CgroupSockopt, 22, "cgroup/setsockopt"), None);
        assert_eq!(says(Kind::SockOps, attach::CGROUP_SOCK_OPS, "sockops"), None);
    }

    #[test]
    fn sleepable_and_frags_come_from_the_section() {
        let flags = |kind, section| LoadAttributes::new(kind, 0, "f", section).flags;
        assert_eq!(flags(Kind::Uprobe, "uprobe.s/libc:malloc"), SLEEPABLE);
        assert_eq!(flags(Kind::Xdp, "?xdp.frags"), XDP_HAS_FRAGS);
        assert_eq!(flags(Kind::Xdp, "xdp"), 0);
    }

    #[test]
    fn sections_say_how_their_functions_are_loaded() {
        let read = |section| LoadAttributes::of_section(section).unwrap();
        let shape = |section| {
            let LoadAttributes { program_type, expected_attach_type, flags, .. } = read(section);
            (program_type, expected_attach_type, flags)
        };
        assert_eq!(shape("?xdp.frags"), (program::XDP, attach::XDP, XDP_HAS_FRAGS));
        assert_eq!(shape("tc"), (program::SCHED_CLS, 0, 0));
        assert_eq!(shape("cgroup_skb/egress"), (program::CGROUP_SKB, attach::CGROUP_INET_EGRESS, 0));
        assert_eq!(shape("cgroup/connect6"), (program::CGROUP_SOCK_ADDR, 11, 0));
        assert_eq!(shape("sk_skb/stream_verdict"), (program::SK_SKB, attach::SK_SKB_STREAM_VERDICT, 0));
        assert_eq!(shape("kprobe.multi/tcp_*"), (program::KPROBE, attach::TRACE_KPROBE_MULTI, 0));
        assert_eq!(shape("uprobe.session.s//bin/sh:main"), (program::KPROBE, attach::TRACE_UPROBE_SESSION, SLEEPABLE));
        assert_eq!(read("fentry.s/do_unlinkat").attach_to, AttachTo::Function("do_unlinkat".into()));
        assert_eq!(read("lsm/file_open").attach_to, AttachTo::Function("bpf_lsm_file_open".into()));
        assert_eq!(read("iter/task").attach_to, AttachTo::Function("bpf_iter_task".into()));
        assert_eq!(read("?tp_btf/sched_switch").attach_to, AttachTo::Tracepoint("sched_switch".into()));
        assert_eq!(LoadAttributes::of_section("mine/own"), None);
    }

    #[test]
    fn two_fentry_targets_are_two_programs_and_two_tcx_directions_are_one() {
        let fentry = |f| LoadAttributes::new(Kind::Fentry, 0, f, "fentry").canonical();
        assert_ne!(fentry("a"), fentry("b"));
        let tcx = |a| LoadAttributes::new(Kind::Tcx, a, "", "tc").canonical();
        assert_eq!(tcx(attach::TCX_INGRESS), tcx(attach::TCX_EGRESS));
    }
}
