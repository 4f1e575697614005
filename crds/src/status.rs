//! What the operator says about an `EbpfProgram`.
//!
//! Guarantee: no word in a status makes it unreadable or unwritable. The schema has no enum and no bound here, and
//! unknown words are read as the enum's catch-all, so operators of different versions can follow each other.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::condition::Condition;
use crate::reason::Reason;

/// Failure groups that a status holds at most; more are merged into the last.
pub const MAX_FAILURES: usize = 10;
/// Node names that one failure group holds at most; `count` is the truth.
pub const MAX_FAILURE_NODES: usize = 10;

/// What the operator says about an EbpfProgram.
#[derive(kube::KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EbpfProgramStatus {
    /// The `metadata.generation` that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// In short, for the printed columns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,
    /// The image as it was resolved: once for every change of `spec.image`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ResolvedImage>,
    /// The revision that the nodes should run, 10 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// How many nodes are in which state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodeCounts>,
    /// What failed, grouped by reason and message, the largest group first. At most 10 groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub failures: Vec<Failure>,
    /// `Ready` always; `Reconciling` and `Stalled` only while true.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// A status in two words.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Nodes that run the revision, of the nodes that should: `11/12`.
    pub ready: String,
    /// The reason of the condition `Ready`.
    pub reason: Reason,
}

/// An image as it was resolved.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedImage {
    /// The reference that was resolved.
    pub reference: String,
    /// The digest that it had: `sha256:` and 64 hexadecimal digits.
    pub digest: String,
}

/// Numbers of nodes.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NodeCounts {
    /// That should run the program.
    pub desired: i32,
    /// That run the revision.
    pub ready: i32,
    /// That are on their way to the revision.
    pub updating: i32,
    /// That could not load or attach it; an earlier revision may still run there.
    pub failed: i32,
    /// That run the revision, but not on every target.
    pub degraded: i32,
    /// Whose kernel or agent cannot run it. They do not hold `Ready`.
    pub unsupported: i32,
    /// Whose agent does not answer. They do not hold `Ready`.
    pub unreachable: i32,
}

/// One failure and the nodes that have it.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// One word, of the closed list of reasons.
    pub reason: Reason,
    /// What happened, to what, and what to do.
    pub message: String,
    /// The kernel's own words: the last 2 KiB of the verifier's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    /// How many nodes.
    pub count: i32,
    /// Their names, the first 10.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<String>,
}

/// A point in time as the API writes it, RFC 3339, or nothing; for fields of type `Option<Time>`.
pub(crate) fn time_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": "string", "format": "date-time" })
}
