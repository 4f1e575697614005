//! What names and tags of a type say beyond its kind: byte order, addresses, times.
//!
//! No guesses: a plain integer is shown as a number whatever it is called. Only the kernel's own type names and
//! `btf_decl_tag`s that somebody wrote count (docs/decode.md).

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use jiff::Timestamp;
use serde_json::Value;

use super::decode::{le_i64, le_u64};
use super::desc::{TypeDesc, TypeKind};
use super::{Btf, Kind, duration};

/// How values of a type are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// As the kind says.
    #[default]
    Plain,
    /// An integer in network order, as a number.
    NetworkOrder,
    /// `10.0.0.1`.
    Ipv4,
    /// As RFC 5952 says: `2001:db8::1`.
    Ipv6,
    /// `02:00:00:00:00:01`.
    Mac,
    /// Nanoseconds since 1970 (`CLOCK_REALTIME`), as RFC 3339 says: `2026-01-02T03:04:05.000000006Z`.
    TimeNs,
    /// Nanoseconds, as Go and Kubernetes write durations: `1.5ms`.
    DurationNs,
    /// The index of an interface of the node: a number, and a name for people.
    Interface,
    /// A process or a thread of the node, by its number there.
    Task,
    /// A cgroup, by its id.
    Cgroup,
}

impl Format {
    /// Of a `btf_decl_tag` on a member, a typedef or a variable.
    fn of_tag(tag: &str) -> Option<Self> {
        Some(match tag {
            "be" => Format::NetworkOrder,
            "ipv4" => Format::Ipv4,
            "ipv6" => Format::Ipv6,
            "mac" => Format::Mac,
            "time_ns" => Format::TimeNs,
            "duration_ns" => Format::DurationNs,
            "ifindex" => Format::Interface,
            "pid" => Format::Task,
            "cgroup" => Format::Cgroup,
            _ => return None,
        })
    }

    /// Of a type's name: include/uapi/linux/{types,in,in6}.h, and net/ethernet.h of the C library.
    pub(super) fn of_name(kind: Kind, name: &str) -> Option<Self> {
        Some(match (kind, name) {
            (Kind::Typedef, "__be16" | "__be32" | "__be64") => Format::NetworkOrder,
            (Kind::Struct, "in_addr") => Format::Ipv4,
            (Kind::Struct, "in6_addr") => Format::Ipv6,
            (Kind::Struct, "ether_addr") => Format::Mac,
            _ => return None,
        })
    }

    /// A tag on what it cannot be true of is not followed.
    pub fn fits(self, desc: &TypeDesc) -> bool {
        let integer = matches!(desc.kind, TypeKind::Uint | TypeKind::Int);
        let octets = match &desc.kind {
            TypeKind::Struct(_) | TypeKind::Union(_) | TypeKind::Bytes => true,
            TypeKind::Array { element, .. } => matches!(element.kind, TypeKind::Uint | TypeKind::Int | TypeKind::Char),
            _ => integer,
        };
        match self {
            Format::Plain => true,
            Format::NetworkOrder => integer && matches!(desc.size, 2 | 4 | 8),
            Format::Ipv4 => octets && desc.size == 4,
            Format::Ipv6 => octets && desc.size == 16,
            Format::Mac => octets && desc.size == 6,
            Format::TimeNs | Format::DurationNs | Format::Cgroup => integer && desc.size == 8,
            Format::Interface | Format::Task => integer && matches!(desc.size, 4 | 8),
        }
    }

    /// Shows a value's bytes; `None` where the kind has to.
    pub(super) fn decode(self, kind: &TypeKind, bytes: &[u8]) -> Option<Value> {
        let nanoseconds = || match kind {
            TypeKind::Int => i128::from(le_i64(bytes)),
            _ => i128::from(le_u64(bytes)),
        };
        Some(match self {
            Format::Plain | Format::Interface | Format::Task | Format::Cgroup => return None,
            Format::NetworkOrder => {
                let mut host = [0; 8];
                let host = host.get_mut(..bytes.len())?;
                host.copy_from_slice(bytes);
                host.reverse();
                match kind {
                    TypeKind::Int => Value::from(le_i64(host)),
                    _ => Value::from(le_u64(host)),
                }
            }
            Format::Ipv4 => Value::from(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).to_string()),
            Format::Ipv6 => Value::from(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).to_string()),
            Format::Mac => Value::from(bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":")),
            Format::TimeNs => Value::from(Timestamp::from_nanosecond(nanoseconds()).ok()?.to_string()),
            Format::DurationNs => Value::from(duration::text(nanoseconds())),
        })
    }

    /// The bytes of an address, in memory order; `None` if it is not one of this format.
    pub(super) fn octets(self, text: &str) -> Option<Vec<u8>> {
        match self {
            Format::Ipv4 => text.parse::<Ipv4Addr>().ok().map(|a| a.octets().to_vec()),
            Format::Ipv6 => text.parse::<Ipv6Addr>().ok().map(|a| a.octets().to_vec()),
            Format::Mac => {
                let octet = |p: &str| u8::from_str_radix(p, 16).ok().filter(|_| p.len() == 2);
                let bytes: Option<Vec<u8>> = text.split([':', '-']).map(octet).collect();
                bytes.filter(|b| b.len() == 6)
            }
            _ => None,
        }
    }

    /// Nanoseconds, as written.
    pub(super) fn nanoseconds(self, text: &str) -> Option<i128> {
        match self {
            Format::TimeNs => text.parse::<Timestamp>().ok().map(Timestamp::as_nanosecond),
            Format::DurationNs => duration::parse(text),
            _ => None,
        }
    }
}

/// The tags of a BTF that say how something is shown: on a whole type or variable, or on one of its members.
pub(super) struct Tags(HashMap<(u32, Option<u32>), Format>);

impl Tags {
    pub(super) fn of(btf: &Btf) -> Self {
        let tags = (1..btf.len()).filter(|id| btf.kind(*id) == Kind::DeclTag);
        let known =
            tags.filter_map(|id| Some(((btf.target(id), btf.tagged_member(id)), Format::of_tag(btf.name(id))?)));
        Tags(known.collect())
    }

    pub(super) fn of_type(&self, id: u32) -> Option<Format> {
        self.0.get(&(id, None)).copied()
    }

    pub(super) fn of_member(&self, id: u32, index: u32) -> Option<Format> {
        self.0.get(&(id, Some(index))).copied()
    }
}
