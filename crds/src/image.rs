//! Where a program's bytecode comes from.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The OCI image that holds the eBPF object.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ImageSource {
    /// Image with the eBPF object, by tag or by digest: `registry.example.com/ebpf/flows:v2` or
    /// `registry.example.com/ebpf/flows@sha256:...`. A tag is resolved to a digest once for every change of `image`;
    /// every node runs that digest, and the status shows it. Without tag and digest: the tag `latest`.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = Rule::new("self.matches('^(([A-Za-z0-9.-]+|\\\\[[0-9a-fA-F:]+\\\\])(:[0-9]+)?/)?[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?(@sha256:[a-f0-9]{64})?$')").message("not an image reference: write registry/repository:tag or registry/repository@sha256:<64 hex digits>, in lower case, without https:// and without spaces"))]
    pub reference: String,
    /// When a node asks the registry. `IfNotPresent` (the default): only when the digest is not in the node's cache.
    /// `Always`: for every new load, which proves that the credentials still hold (a reboot makes none). `Never`: the
    /// digest must be in the cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_policy: Option<PullPolicy>,
    /// Secrets of type `kubernetes.io/dockerconfigjson` in this namespace with credentials for the registry; the first
    /// with an entry for it is used. At most 8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub pull_secrets: Option<Vec<PullSecret>>,
}

/// When a node asks the registry: `IfNotPresent` (the default) only when the digest is not in the node's cache;
/// `Always` for every new load, which proves that the credentials still hold; `Never`: the digest must be in the cache.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PullPolicy {
    Always,
    #[default]
    IfNotPresent,
    Never,
}

/// A Secret by name.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PullSecret {
    /// Name of a Secret in the namespace of the EbpfProgram.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
}
