//! The node as selectors see it, at one moment. Plain data: where it comes from is [`crate::discover`]'s business.

use std::collections::BTreeMap;
use std::path::PathBuf;

use skep_kernel::netns::Interface;

/// Everything that targets are chosen from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeView {
    /// The node's own network namespace; absent if it could not be looked into.
    pub host: Option<Netns>,
    /// The node's own file system; absent if it could not be looked into.
    pub root: Option<PathBuf>,
    /// Where the cgroup v2 hierarchy is mounted.
    pub cgroup_root: Option<PathBuf>,
    /// Those that run.
    pub cpus: Vec<u32>,
    pub pods: Vec<PodView>,
    /// False until the first list of pods came: then pods are unknown, not absent.
    pub pods_known: bool,
}

/// A network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Netns {
    pub path: PathBuf,
    pub cookie: u64,
    pub interfaces: Vec<Interface>,
}

/// A pod of this node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodView {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub host_network: bool,
    /// Absent while no process of it runs.
    pub netns: Option<Netns>,
    /// The pod's own cgroup, above its containers'.
    pub cgroup: Option<Cgroup>,
    /// Those that run.
    pub containers: Vec<ContainerView>,
}

/// A container that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerView {
    pub name: String,
    pub cgroup: Cgroup,
    /// A process of it: its file system is below /proc/PID/root.
    pub pid: u32,
}

/// A cgroup v2 directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    pub path: PathBuf,
    /// Its inode number, which the kernel does not use again.
    pub id: u64,
}
