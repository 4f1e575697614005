//! Hooks on network interfaces.

use kube::KubeSchema;
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};

use crate::selector::PodSelector;
use crate::union::exactly_one;

/// An XDP hook.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Xdp {
    /// The interfaces.
    pub interfaces: Interfaces,
    /// Where in the receive path the program runs. Absent: `Auto`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<XdpMode>,
}

/// Where in the receive path an XDP program runs: `Native`: in the driver, refused where the driver cannot; `Generic`:
/// in the kernel's stack, on every interface, slower; `Auto` (the default): in the driver where it can, else in the
/// stack.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum XdpMode {
    #[default]
    Auto,
    Native,
    Generic,
}

/// A tcx hook.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Tcx {
    /// The interfaces.
    pub interfaces: Interfaces,
    /// Which packets: those received or those sent.
    pub direction: Direction,
    /// Where among the programs of the interface and direction. Absent: after those that are there when it is attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
}

/// Where a program stands among those of its hook; exactly one of the three.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = one_position)]
pub enum Position {
    /// `First`: before those that are there when it is attached; `Last`: after them.
    Place(Place),
    /// Directly before another program, which is on the same hook. One that is not there is reported as
    /// `TargetNotFound`, and waited for.
    Before(ProgramFunction),
    /// Directly after another program, as with `before`.
    After(ProgramFunction),
}

/// An end of the row of programs on a hook.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    First,
    Last,
}

/// A function of another EbpfProgram of the same namespace.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ProgramFunction {
    /// The EbpfProgram's name.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub ebpf_program: String,
    /// The function's name in its object: `check`.
    #[schemars(length(min = 1, max = 127), regex(pattern = r"^[A-Za-z_.$][A-Za-z0-9_.$]*$"))]
    pub function: String,
}

fn one_position(schema: &mut Schema) {
    exactly_one(schema, "give exactly one of place: First or Last, before and after");
}

/// An end of a netkit pair.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Netkit {
    /// The primary interfaces of the pairs: both ends are governed from them. Others are refused.
    pub interfaces: Interfaces,
    /// Which packets: those that the primary end sends, or those that its peer does.
    pub sender: NetkitEnd,
    /// Where among the programs of the end. Absent: after those that are there when it is attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
}

/// An end of a netkit pair: `Primary`: that which stays on the node; `Peer`: that which a pod has.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetkitEnd {
    Primary,
    Peer,
}

/// A classic tc filter on the interface's clsact qdisc.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Tc {
    /// The interfaces.
    pub interfaces: Interfaces,
    /// Which packets: those received or those sent.
    pub direction: Direction,
    /// Order among the filters of the interface and direction, 1 to 65535; the lowest runs first. Absent: the kernel
    /// chooses, after those that are there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub priority: Option<u16>,
}

/// Which packets: `Ingress`: those received; `Egress`: those sent.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    Ingress,
    Egress,
}

/// Selects network interfaces: those that `names`, `match` or `primary` select (at least one of them is given), less
/// those that `exclude` selects; looked up in the node's own network namespace, or, with `pods`, in those of the
/// selected pods.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.names) || has(self.match) || has(self.primary)").message("no interface is selected: give names, match or primary: true; exclude only takes away from these"),
    validation = Rule::new("!has(self.primary) || self.primary").message("primary: false selects nothing: leave it out, or write primary: true"),
    validation = Rule::new("!has(self.pods) || !has(self.pods.containers)").message("the containers of a pod share its interfaces: leave out pods.containers")
)]
pub struct Interfaces {
    /// Interfaces by name: `[eth0]`. One that is not there is attached when it appears; until then it is reported as
    /// `TargetNotFound` on the node, and in pods it selects nothing. 1 to 32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32), inner(length(min = 1, max = 15), regex(pattern = r"^[^/:,\s]+$")))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub names: Option<Vec<String>>,
    /// Interfaces by pattern: `["veth*", "eth?"]`; `*` stands for any characters, `?` for one. 1 to 32.
    #[serde(rename = "match", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32), inner(length(min = 1, max = 32), regex(pattern = r"^[^/:,\s\[\]{}\\]+$")))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub matching: Option<Vec<String>>,
    /// Interfaces to leave out, by pattern as in `match`. 1 to 32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32), inner(length(min = 1, max = 32), regex(pattern = r"^[^/:,\s\[\]{}\\]+$")))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub exclude: Option<Vec<String>>,
    /// `true`: the interface of the default route (IPv4, else IPv6). Never `false`: leave it out instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary: Option<bool>,
    /// Look the interfaces up inside the selected pods, each in its own network namespace (`primary` is then the pod's
    /// default route). Absent: in the node's network namespace. `containers` has no meaning here and is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<PodSelector>,
}
