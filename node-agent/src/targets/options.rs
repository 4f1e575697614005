//! The words of attach entries as the kernel's.

use skep_crds::cgroup::{SockAddrHook, SockHook, SockoptHook};
use skep_crds::many::KernelFunctions;
use skep_crds::netns;
use skep_crds::network::{Direction, NetkitEnd, Place as End, Position, ProgramFunction};
use skep_crds::sockets::SkSkbHook;
use skep_crds::tracing::{CpuEvent, PerfEvent};
use skep_kernel::hook::{Family, FunctionSet, Neighbour, Netfilter, NetfilterHook, Order};
use skep_kernel::sys::perf::{Event, Every};
use skep_object::kind::attach as types;

/// The neighbour's uid is not known here.
pub(super) fn order(position: Option<&Position>) -> Order {
    let neighbour = |other: &ProgramFunction| Neighbour {
        uid: None,
        name: other.ebpf_program.clone(),
        function: other.function.clone(),
    };
    match position {
        None | Some(Position::Place(End::Last)) => Order::Last,
        Some(Position::Place(End::First)) => Order::First,
        Some(Position::Before(other)) => Order::Before(neighbour(other)),
        Some(Position::After(other)) => Order::After(neighbour(other)),
    }
}

pub(super) fn tc_type(direction: Direction) -> u32 {
    match direction {
        Direction::Ingress => types::TCX_INGRESS,
        Direction::Egress => types::TCX_EGRESS,
    }
}

pub(super) fn netfilter(entry: &netns::Netfilter) -> Netfilter {
    Netfilter {
        family: match entry.family {
            netns::Family::Ipv4 => Family::Ipv4,
            netns::Family::Ipv6 => Family::Ipv6,
        },
        hook: match entry.hook {
            netns::NetfilterHook::PreRouting => NetfilterHook::PreRouting,
            netns::NetfilterHook::LocalIn => NetfilterHook::LocalIn,
            netns::NetfilterHook::Forward => NetfilterHook::Forward,
            netns::NetfilterHook::LocalOut => NetfilterHook::LocalOut,
            netns::NetfilterHook::PostRouting => NetfilterHook::PostRouting,
        },
        priority: entry.priority,
        defragment: entry.defragment.unwrap_or_default(),
    }
}

/// BPF_CGROUP_* (include/uapi/linux/bpf.h).
pub(super) fn sock_addr_type(hook: SockAddrHook) -> u32 {
    match hook {
        SockAddrHook::Bind4 => 8,
        SockAddrHook::Bind6 => 9,
        SockAddrHook::Connect4 => 10,
        SockAddrHook::Connect6 => 11,
        SockAddrHook::ConnectUnix => 49,
        SockAddrHook::Sendmsg4 => 14,
        SockAddrHook::Sendmsg6 => 15,
        SockAddrHook::SendmsgUnix => 50,
        SockAddrHook::Recvmsg4 => 19,
        SockAddrHook::Recvmsg6 => 20,
        SockAddrHook::RecvmsgUnix => 51,
        SockAddrHook::Getpeername4 => 29,
        SockAddrHook::Getpeername6 => 30,
        SockAddrHook::GetpeernameUnix => 52,
        SockAddrHook::Getsockname4 => 31,
        SockAddrHook::Getsockname6 => 32,
        SockAddrHook::GetsocknameUnix => 53,
    }
}

/// BPF_CGROUP_INET_* (include/uapi/linux/bpf.h).
pub(super) fn sock_type(hook: SockHook) -> u32 {
    match hook {
        SockHook::Create => 2,
        SockHook::Release => 34,
        SockHook::PostBind4 => 12,
        SockHook::PostBind6 => 13,
    }
}

/// BPF_CGROUP_GETSOCKOPT and BPF_CGROUP_SETSOCKOPT.
pub(super) fn sockopt_type(hook: SockoptHook) -> u32 {
    match hook {
        SockoptHook::Getsockopt => 21,
        SockoptHook::Setsockopt => 22,
    }
}

pub(super) fn netkit_type(sender: NetkitEnd) -> u32 {
    match sender {
        NetkitEnd::Primary => types::NETKIT_PRIMARY,
        NetkitEnd::Peer => types::NETKIT_PEER,
    }
}

pub(super) fn sk_skb_type(hook: SkSkbHook) -> u32 {
    match hook {
        SkSkbHook::Verdict => types::SK_SKB_VERDICT,
        SkSkbHook::StreamVerdict => types::SK_SKB_STREAM_VERDICT,
        SkSkbHook::StreamParser => types::SK_SKB_STREAM_PARSER,
    }
}

/// The function that stands for a security hook in the kernel's BTF.
pub(super) fn security_hook(name: &str) -> String {
    format!("bpf_lsm_{name}")
}

pub(super) fn function_set(functions: &KernelFunctions) -> FunctionSet {
    match functions {
        KernelFunctions::Names(names) => FunctionSet::Names(names.0.iter().map(|name| name.0.clone()).collect()),
        KernelFunctions::Pattern(pattern) => FunctionSet::Pattern(pattern.0.clone()),
    }
}

/// The schema has exactly one of the two.
pub(super) fn every(event: &PerfEvent) -> Every {
    match (event.frequency, event.period) {
        (Some(hertz), _) => Every::Frequency(hertz as u64),
        (None, events) => Every::Period(events.unwrap_or(i64::MAX) as u64),
    }
}

/// PERF_TYPE_* and PERF_COUNT_* (include/uapi/linux/perf_event.h).
pub(super) fn cpu_event(event: CpuEvent) -> Event {
    const HARDWARE: u32 = 0;
    const SOFTWARE: u32 = 1;
    let (kind, config, name) = match event {
        CpuEvent::CpuClock => (SOFTWARE, 0, "CpuClock"),
        CpuEvent::TaskClock => (SOFTWARE, 1, "TaskClock"),
        CpuEvent::PageFaults => (SOFTWARE, 2, "PageFaults"),
        CpuEvent::ContextSwitches => (SOFTWARE, 3, "ContextSwitches"),
        CpuEvent::CpuMigrations => (SOFTWARE, 4, "CpuMigrations"),
        CpuEvent::MinorFaults => (SOFTWARE, 5, "MinorFaults"),
        CpuEvent::MajorFaults => (SOFTWARE, 6, "MajorFaults"),
        CpuEvent::AlignmentFaults => (SOFTWARE, 7, "AlignmentFaults"),
        CpuEvent::EmulationFaults => (SOFTWARE, 8, "EmulationFaults"),
        CpuEvent::CpuCycles => (HARDWARE, 0, "CpuCycles"),
        CpuEvent::Instructions => (HARDWARE, 1, "Instructions"),
        CpuEvent::CacheReferences => (HARDWARE, 2, "CacheReferences"),
        CpuEvent::CacheMisses => (HARDWARE, 3, "CacheMisses"),
        CpuEvent::BranchInstructions => (HARDWARE, 4, "BranchInstructions"),
        CpuEvent::BranchMisses => (HARDWARE, 5, "BranchMisses"),
        CpuEvent::BusCycles => (HARDWARE, 6, "BusCycles"),
        CpuEvent::StalledCyclesFrontend => (HARDWARE, 7, "StalledCyclesFrontend"),
        CpuEvent::StalledCyclesBackend => (HARDWARE, 8, "StalledCyclesBackend"),
        CpuEvent::RefCpuCycles => (HARDWARE, 9, "RefCpuCycles"),
    };
    Event { kind, config, name }
}
