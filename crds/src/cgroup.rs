//! Hooks on cgroups.

use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};

use crate::network::Direction;
use crate::selector::PodSelector;
use crate::union::exactly_one;

/// Packets of a cgroup's sockets.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct CgroupSkb {
    /// The cgroups.
    pub cgroups: Cgroups,
    /// Which packets: those received or those sent.
    pub direction: Direction,
}

/// Socket calls of a cgroup's processes.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct CgroupSockAddr {
    /// The cgroups.
    pub cgroups: Cgroups,
    /// Which call, and for which family of addresses.
    pub hook: SockAddrHook,
}

/// Sockets of a cgroup's processes, as they come and go.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct CgroupSock {
    /// The cgroups.
    pub cgroups: Cgroups,
    /// When: as a socket is made or released, or after it was bound.
    pub hook: SockHook,
}

/// A moment in the life of a socket for IPv4 or IPv6: `Create`, which may be refused; `Release`; `PostBind4` and
/// `PostBind6`: a port was found for it, and may be refused.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SockHook {
    Create,
    Release,
    PostBind4,
    PostBind6,
}

/// Options of sockets that a cgroup's processes ask for or set.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct CgroupSockopt {
    /// The cgroups.
    pub cgroups: Cgroups,
    /// Which call.
    pub hook: SockoptHook,
}

/// A call: `Getsockopt`: the program sees what the kernel answers, and may change it; `Setsockopt`: it sees what is asked
/// for before the kernel does.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SockoptHook {
    Getsockopt,
    Setsockopt,
}

/// A security hook, for a cgroup's processes.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct LsmCgroup {
    /// The cgroups.
    pub cgroups: Cgroups,
    /// The hook's name, as `include/linux/lsm_hook_defs.h` of the kernel has it: `socket_bind`, `socket_connect`.
    #[schemars(length(min = 1, max = 119), regex(pattern = r"^[a-z0-9_]+$"))]
    pub hook: String,
}

/// A hook that cgroups have one of.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct OnCgroups {
    /// The cgroups.
    pub cgroups: Cgroups,
}

/// A socket call, for IPv4 (`...4`) or IPv6 (`...6`) addresses, or paths of unix sockets (`...Unix`, Linux 6.7 or newer).
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SockAddrHook {
    Bind4,
    Bind6,
    Connect4,
    Connect6,
    ConnectUnix,
    Sendmsg4,
    Sendmsg6,
    SendmsgUnix,
    Recvmsg4,
    Recvmsg6,
    RecvmsgUnix,
    Getpeername4,
    Getpeername6,
    GetpeernameUnix,
    Getsockname4,
    Getsockname6,
    GetsocknameUnix,
}

/// Selects cgroups: exactly one of `path` and `pods`. A program on a cgroup also sees the cgroups below it.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = one_choice)]
pub enum Cgroups {
    /// A cgroup by its absolute path below the cgroup v2 mount: `/` is the root, `/system.slice/sshd.service` a service.
    Path(CgroupPath),
    /// The cgroups of the selected pods; with `containers`, those of these containers.
    Pods(PodSelector),
}

/// The absolute path of a cgroup below the cgroup v2 mount, without `..`. At most 512 characters.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "self.startsWith('/') && !self.matches('(^|/)[.][.](/|$)')",
    "message": "a cgroup path starts with / (the cgroup v2 mount) and holds no ..: write /system.slice/sshd.service",
}]))]
pub struct CgroupPath(#[schemars(length(min = 1, max = 512))] pub String);

fn one_choice(schema: &mut Schema) {
    exactly_one(schema, "give exactly one of path, such as /system.slice, and pods");
}
