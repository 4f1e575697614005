//! Hooks on network namespaces.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::selector::PodSelector;

/// The lookup of the socket that a packet is for.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SkLookup {
    /// The network namespaces.
    pub network_namespaces: NetworkNamespaces,
}

/// How packets are taken apart.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct FlowDissector {
    /// The network namespaces.
    pub network_namespaces: NetworkNamespaces,
}

/// A place in the path of packets through a network namespace. Linux 6.4 or newer.
///
/// While a program is attached, the kernel keeps a selected pod's network namespace, also after the pod is gone: until
/// the agent learns that it is.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("![-450, -400, -300, -225, -200, -150, -100, 0, 50, 100, 225, 300].exists(own, own == self.priority || own == self.priority + 1)").message("priority and the next number must not be one that the kernel's own hooks or iptables use: -450, -400, -300, -225, -200, -150, -100, 0, 50, 100, 225 or 300; choose another, such as -199 or 1"),
    validation = Rule::new("!has(self.defragment) || !self.defragment || self.priority > -400").message("the kernel puts fragments together at priority -400: with defragment: true give a priority above it, such as -399")
)]
pub struct Netfilter {
    /// The network namespaces.
    pub network_namespaces: NetworkNamespaces,
    /// Which packets: `Ipv4` or `Ipv6`; for both write two entries.
    pub family: Family,
    /// Where in their path.
    pub hook: NetfilterHook,
    /// Order among all that is hooked in there, -10000 to 10000; the lowest runs first. An update attaches the new
    /// program at the next number, the one after that here again: programs on one hook need priorities two apart.
    #[schemars(range(min = -10000, max = 10000))]
    pub priority: i32,
    /// `true`: the kernel puts fragments together before the program sees them. Absent: it sees each fragment, unless
    /// something else on the node has them put together, as connection tracking does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defragment: Option<bool>,
}

/// A family of packets.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    Ipv4,
    Ipv6,
}

/// Where in the path of packets: `PreRouting`: all that were received, before it is known where they go; `LocalIn`: those
/// for the namespace itself; `Forward`: those that go on to another host; `LocalOut`: those that the namespace itself
/// sends; `PostRouting`: all that leave.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NetfilterHook {
    PreRouting,
    LocalIn,
    Forward,
    LocalOut,
    PostRouting,
}

/// Selects network namespaces: exactly one of `host` and `pods`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.host) != has(self.pods)").message("give exactly one of host: true and pods"),
    validation = Rule::new("!has(self.host) || self.host").message("host: false selects nothing: write host: true, or give pods instead"),
    validation = Rule::new("!has(self.pods) || !has(self.pods.containers)").message("the containers of a pod share its network namespace: leave out pods.containers")
)]
pub struct NetworkNamespaces {
    /// `true`: the node's own network namespace, which pods with `hostNetwork` share. Never `false`: give `pods`
    /// instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<bool>,
    /// Those of the selected pods; a pod with `hostNetwork` has none of its own and is not selected. `containers` has no
    /// meaning here and is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<PodSelector>,
}
