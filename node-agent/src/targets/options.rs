//! The words of attach entries as the kernel's.

use skep_crds::cgroup::{SockAddrHook, SockHook, SockoptHook};
use skep_crds::netns;
use skep_crds::network::{Direction, Place as End, Position, ProgramFunction};
use skep_kernel::hook::{Family, Neighbour, Netfilter, NetfilterHook, Order};
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
