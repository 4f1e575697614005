//! `EbpfNode`: what a node's kernel can do and what runs there; named after the node and owned by it.

#![allow(clippy::duplicated_attributes, reason = "every printed column has a type")]

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::condition::Condition;
use crate::reason::Reason;
use crate::status::time_schema;

/// A node is not configured: everything is in the status, which the operator writes.
#[derive(CustomResource, JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "skep.dev",
    version = "v1alpha1",
    kind = "EbpfNode",
    shortname = "ebpfnode",
    category = "skep",
    status = "EbpfNodeStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "What a node's kernel can do and which programs run there. Named after the node; written by the operator.",
    printcolumn(name = "Kernel", type_ = "string", json_path = ".status.kernel.release"),
    printcolumn(name = "Agent", type_ = "string", json_path = ".status.agent.version"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(
        name = "Programs",
        type_ = "integer",
        json_path = ".status.programCount",
        description = "Programs that should run on the node."
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct EbpfNodeSpec {}

/// What the operator knows of a node. At most 256 KiB: beyond that `programs` keeps names only and `truncated` is true.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EbpfNodeStatus {
    /// The agent on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentInfo>,
    /// The node's kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<KernelInfo>,
    /// What the kernel can do, as probed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<Features>,
    /// How many programs should run on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program_count: Option<i32>,
    /// The programs that should run on the node, by namespace and name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub programs: Vec<NodeProgram>,
    /// `true`: there was more than 256 KiB to say, and `programs` holds names only. The agent's Inspector has all of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// `Ready`: the agent answers and is healthy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// The agent on a node.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AgentInfo {
    /// Its version: `0.1.0`.
    pub version: String,
    /// Identifies one start of the agent; changes when it restarts.
    pub instance: String,
    /// Whether it can do its work.
    pub healthy: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When the operator had last heard of it at the last change of this status, RFC 3339. It is not written for its own
    /// sake and may be long ago: whether the agent answers now, the condition `Ready` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "time_schema")]
    pub last_seen: Option<Time>,
}

/// A node's kernel.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct KernelInfo {
    /// As `uname -r` says: `6.12.30-amd64`.
    pub release: String,
    /// As `uname -m` says: `x86_64`, `aarch64`.
    pub architecture: String,
}

/// What a kernel can do, as probed.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Features {
    /// Whether the kernel describes its types (`/sys/kernel/btf/vmlinux`).
    pub btf: bool,
    /// Whether programs are compiled to machine code.
    pub jit: bool,
    /// Whether a bpffs is mounted at `/sys/fs/bpf`.
    pub bpffs: bool,
    /// Whether a cgroup v2 hierarchy is mounted.
    pub cgroup_v2: bool,
    /// The kernel's lockdown mode: `none`, `integrity`, `confidentiality`. Absent: the kernel has no lockdown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lockdown: Option<String>,
    /// For each kind of hook, under its name in `attach`, whether it can be used.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub program_kinds: BTreeMap<String, Support>,
}

/// Whether something can be used.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Support {
    /// Whether it can.
    pub supported: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// One program on a node.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NodeProgram {
    /// Namespace of the EbpfProgram.
    pub namespace: String,
    /// Name of the EbpfProgram.
    pub name: String,
    /// Its `metadata.uid`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// The revision that runs on the node; absent if none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// `Updating`, `Ready`, `Degraded`, `Failed`, `Unsupported` or `Removing`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<NodeProgramState>,
    /// One word, of the closed list of reasons.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// What happened, to what, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The functions as the kernel has them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub functions: Vec<LoadedFunction>,
    /// Where they are attached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<NodeHook>,
}

/// How a program does on a node; the same words as the counts in the status of its EbpfProgram.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeProgramState {
    /// On its way to the revision.
    Updating,
    /// The revision runs on every target.
    Ready,
    /// The revision runs, but not on every target.
    Degraded,
    /// The kernel or the agent cannot run it.
    Unsupported,
    /// Being taken off the node.
    Removing,
    /// It could not be loaded or attached; an earlier revision may still run.
    #[serde(other)]
    Failed,
}

// A status is never refused for a word that a newer operator wrote: a plain string, no enum.
impl JsonSchema for NodeProgramState {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "NodeProgramState".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string" })
    }
}

/// A function as the kernel has it.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct LoadedFunction {
    /// Its name in the object.
    pub name: String,
    /// The kernel's id of the program, as in `bpftool prog show id`.
    pub id: u32,
    /// The kernel's tag of its instructions, 16 hexadecimal digits.
    pub tag: String,
}

/// A hook and how many targets it has on the node.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NodeHook {
    /// The function that is attached.
    pub function: String,
    /// The hook: `xdp`, `tcx/ingress`, `kprobe/tcp_connect`.
    pub hook: String,
    /// How many targets it is attached to.
    pub targets: i32,
    /// The first four of them: `eth0`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub first: Vec<String>,
}
