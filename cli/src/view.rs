//! A program as it is shown, whether the cluster or one agent told of it. Also the shape of `-o json` and `-o yaml`.

use jiff::Timestamp;
use serde::Serialize;
use skep_crds::Condition;
use skep_crds::status::{Failure, NodeCounts};

/// A program and how it does everywhere.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Program {
    pub namespace: String,
    pub name: String,
    /// Nodes that run the revision, of those that should: `11/12`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ready: String,
    /// A word out of the closed list of reasons, or one that a newer version wrote.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub revision: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<Timestamp>,
    /// It was deleted, and is still there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deletion: Option<Deletion>,
    /// As the spec names it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub image: String,
    /// What it was resolved to.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub digest: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// The generation that all of this is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counts: Option<NodeCounts>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<Failure>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<NodeState>,
    /// The last Events of the object, the newest last; only `why` asks for them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<Event>,
}

/// A deletion that is under way.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Deletion {
    pub since: Timestamp,
    /// What it waits for: each goes when its owner is done.
    pub finalizers: Vec<String>,
}

/// How a program does on one node.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeState {
    pub node: String,
    /// `Updating`, `Ready`, `Degraded`, `Failed`, `Unsupported` or `Removing`; empty: the node's status is too long to say.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub state: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// What runs there; empty: nothing does.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub revision: String,
    pub hooks: Vec<Hook>,
}

/// One hook on one node.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Hook {
    pub function: String,
    pub hook: String,
    /// How many targets it is attached to.
    pub targets: u32,
    /// Their names; out of the cluster, the first four.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<TargetFailure>,
}

/// A target on which a hook could not be attached.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetFailure {
    pub target: String,
    pub reason: String,
    pub message: String,
}

/// An Event of the object.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// When it happened last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<Timestamp>,
    pub count: i32,
    /// `Normal` or `Warning`.
    #[serde(rename = "type")]
    pub type_: String,
    pub reason: String,
    pub message: String,
}

impl Program {
    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

impl Hook {
    /// Targets in a few words: `lo, eth0 and 3 more`.
    pub fn targets_text(&self) -> String {
        const SHOWN: usize = 4;
        let names = &self.names[..self.names.len().min(SHOWN)];
        let more = (self.targets as usize).saturating_sub(names.len());
        match (names.len(), more) {
            (0, count) => count.to_string(),
            (_, 0) => names.join(", "),
            (_, more) => format!("{} and {more} more", names.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_named_as_far_as_known() {
        let hook = |targets, names: &[&str]| {
            let names = names.iter().map(|n| n.to_string()).collect();
            Hook { targets, names, ..Hook::default() }.targets_text()
        };
        assert_eq!(hook(0, &[]), "0");
        assert_eq!(hook(7, &[]), "7");
        assert_eq!(hook(2, &["lo", "eth0"]), "lo, eth0");
        assert_eq!(hook(5, &["a", "b", "c", "d", "e"]), "a, b, c, d and 1 more");
    }
}
