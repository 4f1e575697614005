//! Names, addresses and paths of the test cluster. All addresses are on a bridge that `up` makes and `down` removes,
//! so nothing listens on the machine's own network.

use std::path::PathBuf;

use crate::repo;

/// The node, and the link that carries its address.
pub const NODE: &str = "skep-node";
/// The node's address: API server, kubelet and registry listen here, pods reach it by their default route.
pub const ADDRESS: &str = "10.98.0.1";
pub const SERVICES: &str = "10.96.0.0/16";
/// The first address of [`SERVICES`]: `kubernetes.default`.
pub const API_SERVICE: &str = "10.96.0.1";
pub const CLUSTER_PODS: &str = "10.244.0.0/16";
pub const NODE_PODS: &str = "10.244.0.0/24";
pub const API_PORT: u16 = 6443;
pub const ETCD: &str = "http://127.0.0.1:12379";
pub const ETCD_PEER: &str = "http://127.0.0.1:12380";
pub const REGISTRY: &str = "10.98.0.1:5000";
pub const PAUSE: &str = "skep.dev/pause:cluster";

/// State, logs, keys and configuration; kept after `down` for reading, replaced by the next `up`.
pub fn dir() -> PathBuf {
    repo::root().join("target/cluster")
}

/// Sockets and the container runtime's mounts: short, since a socket's path has at most 107 bytes.
pub fn run_dir() -> PathBuf {
    PathBuf::from("/run/skep-cluster")
}

pub fn containerd_socket() -> PathBuf {
    run_dir().join("containerd.sock")
}

pub fn pki(name: &str) -> PathBuf {
    dir().join("pki").join(name)
}

pub fn config(name: &str) -> PathBuf {
    dir().join("config").join(name)
}

/// The administrator's kubeconfig.
pub fn kubeconfig() -> PathBuf {
    dir().join("kubeconfig")
}

pub fn log(process: &str) -> PathBuf {
    dir().join("logs").join(format!("{process}.log"))
}

pub fn api_url() -> String {
    format!("https://{ADDRESS}:{API_PORT}")
}
