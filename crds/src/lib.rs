#![forbid(unsafe_code)]
//! Skep's Kubernetes API, `skep.dev/v1alpha1`: types, validation rules, and pure functions on them.
//!
//! Guarantees: what [`validate::manifest`] accepts an API server accepts, and the other way round (both read the schema
//! that [`crds`] gives); [`hash::revision_hash`] and [`hash::load_hash`] never change between versions of Skep for a
//! spec that did not change; nothing here reads a clock, a file or a network.
//!
//! Assumption: the CRDs of a cluster are the ones that [`crds`] gives (the chart applies them before the operator runs).

pub mod attach;
pub mod cgroup;
pub mod closed;
pub mod condition;
pub mod crd;
pub mod ebpfnode;
pub mod ebpfprogram;
pub mod hash;
pub mod image;
pub mod many;
mod metadata;
pub mod netns;
pub mod network;
pub mod reason;
pub mod selector;
pub mod sockets;
pub mod status;
pub mod structural;
pub mod tracing;
mod union;
pub mod validate;

pub use attach::Attach;
pub use condition::{Condition, ConditionStatus, merge_condition};
pub use crd::crds;
pub use ebpfnode::{EbpfNode, EbpfNodeSpec, EbpfNodeStatus};
pub use ebpfprogram::{EbpfProgram, EbpfProgramSpec, MapOptions, Merge, OnUpdate, Program};
pub use hash::{load_hash, revision_hash};
pub use image::{ImageSource, PullPolicy, PullSecret};
pub use reason::Reason;
pub use selector::{LabelOperator, LabelRequirement, LabelSelector, PodSelector};
pub use status::EbpfProgramStatus;
pub use validate::Violation;

/// API group of every Skep resource.
pub const GROUP: &str = "skep.dev";
/// `apiVersion` of every Skep resource.
pub const API_VERSION: &str = "skep.dev/v1alpha1";
/// Finalizer that the operator puts on an [`EbpfProgram`] until its nodes are clean.
pub const FINALIZER: &str = "skep.dev/cleanup";
/// Annotation whose value, when it changes, loads a program anew without any other change.
pub const RESTARTED_AT: &str = "skep.dev/restartedAt";
