//! Where a view of the node comes from: /proc, cgroupfs, and the pods that the operator told of. No container runtime's
//! socket, no API access.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use skep_kernel::{cpus, netns, probe};

use crate::view::{Cgroup, ContainerView, Netns, NodeView, PodView};

/// The node's network namespace: that of process 1, whatever the agent's own is. Where process 1 may not be looked into
/// (a sandbox around the node), the agent's own, which in the chart's pod is the node's too.
pub fn host_netns() -> PathBuf {
    let init = Path::new("/proc/1/ns/net");
    match fs::File::open(init) {
        Ok(_) => init.to_owned(),
        Err(error) => {
            tracing::warn!(%error, "process 1 may not be looked into; the agent's own network namespace is taken for the node's");
            PathBuf::from("/proc/self/ns/net")
        }
    }
}

/// The node's file system: that of process 1. Where process 1 may not be looked into (a sandbox around the node), the
/// agent's own, unless that is the image of its container.
fn host_root() -> Option<PathBuf> {
    let init = Path::new("/proc/1/root");
    let readable = fs::read_dir(init).is_ok();
    // Without hostPID, process 1 is the pod's own.
    let own =
        fs::read_link("/proc/1/ns/mnt").is_ok_and(|m| fs::read_link("/proc/self/ns/mnt").is_ok_and(|own| m == own));
    root_of(readable, own, in_pod()).map(PathBuf::from)
}

fn root_of(init_readable: bool, init_is_in_our_container: bool, in_pod: bool) -> Option<&'static str> {
    match (init_readable, in_pod) {
        (true, true) if init_is_in_our_container => None,
        (true, _) => Some("/proc/1/root"),
        (false, true) => None,
        (false, false) => Some("/"),
    }
}

/// The kubelet tells every container where the API server is.
fn in_pod() -> bool {
    std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
        || Path::new("/var/run/secrets/kubernetes.io/serviceaccount").exists()
}

/// How deep cgroups are searched for containers: kubepods, QoS class, pod, container, with room for nested managers.
const MAX_DEPTH: u32 = 8;

/// A pod as the operator tells of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodRecord {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub host_network: bool,
    /// Name and id of each container that was started.
    pub containers: Vec<(String, String)>,
}

/// Looks at the node, whose own network namespace is at `host`. `pods` is `None` until the first list came. Blocks.
pub fn view(host: &Path, pods: Option<&BTreeMap<String, PodRecord>>) -> NodeView {
    let cgroup_root = probe::cgroup2_mount();
    let by_name = cgroup_root.as_deref().filter(|_| pods.is_some_and(|p| !p.is_empty())).map(index).unwrap_or_default();
    NodeView {
        host: netns(host),
        root: host_root(),
        cgroup_root,
        cpus: cpus::online().unwrap_or_default(),
        pods_known: pods.is_some(),
        pods: pods.into_iter().flat_map(BTreeMap::values).map(|p| pod(p, &by_name)).collect(),
    }
}

fn netns(path: &Path) -> Option<Netns> {
    let view = netns::view(path).ok()?;
    Some(Netns { path: path.to_owned(), cookie: view.cookie, interfaces: view.interfaces })
}

fn pod(record: &PodRecord, index: &Index) -> PodView {
    let containers: Vec<ContainerView> = record
        .containers
        .iter()
        .filter_map(|(name, id)| {
            let path = index.container(id)?;
            let pid = first_process(path)?;
            Some(ContainerView { name: name.clone(), cgroup: cgroup(path)?, pid })
        })
        .collect();
    let netns = containers.first().and_then(|c| netns(&Path::new("/proc").join(c.pid.to_string()).join("ns/net")));
    let own = containers.first().and_then(|c| c.cgroup.path.parent()).filter(|p| names_pod(p, &record.uid));
    PodView {
        uid: record.uid.clone(),
        namespace: record.namespace.clone(),
        name: record.name.clone(),
        labels: record.labels.clone(),
        host_network: record.host_network,
        netns,
        cgroup: own.and_then(cgroup),
        containers,
    }
}

/// The pod's directory is named after its uid, with `_` for `-` under the systemd driver.
fn names_pod(path: &Path, uid: &str) -> bool {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    name.contains(uid) || name.contains(&uid.replace('-', "_"))
}

/// A cgroup directory, if it is there.
pub fn cgroup(path: &Path) -> Option<Cgroup> {
    let meta = fs::metadata(path).ok().filter(fs::Metadata::is_dir)?;
    Some(Cgroup { path: path.to_owned(), id: meta.ino() })
}

/// A process of a cgroup or of one below it.
fn first_process(path: &Path) -> Option<u32> {
    let own = fs::read_to_string(path.join("cgroup.procs")).ok();
    own.and_then(|text| text.lines().next()?.parse().ok())
        .or_else(|| children(path).into_iter().find_map(|child| first_process(&child)))
}

fn children(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

/// Cgroup directories by the 64 hex digits in their names, which are container ids with every runtime and driver.
#[derive(Default)]
struct Index(BTreeMap<String, PathBuf>);

impl Index {
    fn container(&self, id: &str) -> Option<&PathBuf> {
        self.0.get(id)
    }
}

fn index(root: &Path) -> Index {
    let mut found = Index::default();
    let mut queue = vec![(root.to_owned(), 0)];
    while let Some((path, depth)) = queue.pop() {
        if let Some(id) = path.file_name().and_then(|n| container_id(&n.to_string_lossy()).map(str::to_owned)) {
            found.0.insert(id, path.clone());
            continue;
        }
        if depth < MAX_DEPTH {
            queue.extend(children(&path).into_iter().map(|child| (child, depth + 1)));
        }
    }
    found
}

/// `<id>`, `cri-containerd-<id>.scope`, `crio-<id>.scope`, `docker-<id>.scope`.
fn container_id(name: &str) -> Option<&str> {
    let bare = name.strip_suffix(".scope").unwrap_or(name);
    let id = bare.rsplit('-').next()?;
    (id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit())).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_own_image_is_never_taken_for_the_node() {
        assert_eq!(root_of(true, false, true), Some("/proc/1/root"));
        assert_eq!(root_of(true, true, true), None, "a pod without hostPID");
        assert_eq!(root_of(false, false, true), None);
        assert_eq!(root_of(true, true, false), Some("/proc/1/root"), "a service of the host");
        assert_eq!(root_of(false, false, false), Some("/"), "a sandbox around the host");
    }

    #[test]
    fn container_ids_are_found_in_every_drivers_names() {
        let id = "0123456789abcdef".repeat(4);
        for name in [id.clone(), format!("cri-containerd-{id}.scope"), format!("crio-{id}.scope")] {
            assert_eq!(container_id(&name), Some(id.as_str()));
        }
        assert_eq!(container_id("kubepods.slice"), None);
        assert_eq!(container_id("pod0c3e8c5e-1d4f-4b7e-9f38-aaaaaaaaaaaa"), None);
    }

    #[test]
    fn pods_are_found_by_uid_with_both_drivers() {
        let uid = "0c3e8c5e-1d4f";
        assert!(names_pod(Path::new("/x/pod0c3e8c5e-1d4f"), uid));
        assert!(names_pod(Path::new("/x/kubepods-besteffort-pod0c3e8c5e_1d4f.slice"), uid));
        assert!(!names_pod(Path::new("/x/besteffort"), uid));
    }
}
