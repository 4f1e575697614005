//! What the node calls the interfaces, tasks and cgroups whose numbers are in maps.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use skep_kernel::dump::cgroup_paths;
use skep_proto::v1::{NameIdsRequest, NameIdsResponse};
use tonic::Status;

use super::{InspectorService, failed};
use crate::images::blocking;
use crate::view::NodeView;

/// Numbers of one call.
const MOST: usize = 10_000;

impl InspectorService {
    pub(super) async fn names(&self, request: NameIdsRequest) -> Result<NameIdsResponse, Status> {
        let count = request.interfaces.len() + request.tasks.len() + request.cgroups.len();
        if count > MOST {
            return Err(Status::invalid_argument(format!("{count} ids in one call; at most {MOST}")));
        }
        let view = self.shared.view.borrow().clone();
        blocking(move || named(&view, &request)).await.map_err(failed)
    }
}

fn named(view: &NodeView, request: &NameIdsRequest) -> NameIdsResponse {
    let pods = pods(view);
    let interfaces = view.host.iter().flat_map(|host| &host.interfaces);
    let interfaces = interfaces.filter(|interface| request.interfaces.contains(&interface.index));
    let rest: BTreeSet<u64> = request.cgroups.iter().copied().filter(|id| !pods.contains_key(id)).collect();
    let paths = cgroup_paths(&rest).into_iter().map(|(id, path)| (id, path.display().to_string()));
    let of_pods = request.cgroups.iter().filter_map(|id| Some((*id, pods.get(id)?.clone())));
    NameIdsResponse {
        interfaces: interfaces.map(|interface| (interface.index, interface.name.clone())).collect(),
        tasks: request.tasks.iter().filter_map(|tid| Some((*tid, task(view, *tid)?))).collect(),
        cgroups: of_pods.chain(paths).collect(),
    }
}

/// Names of pods and containers by their cgroups.
fn pods(view: &NodeView) -> HashMap<u64, String> {
    let mut all = HashMap::new();
    for pod in &view.pods {
        let name = format!("{}/{}", pod.namespace, pod.name);
        let containers = pod.containers.iter().map(|one| (one.cgroup.id, format!("{name}/{}", one.name)));
        all.extend(containers);
        all.extend(pod.cgroup.as_ref().map(|cgroup| (cgroup.id, name.clone())));
    }
    all
}

/// `None`: it has ended.
fn task(view: &NodeView, tid: u32) -> Option<String> {
    let dir = Path::new("/proc").join(tid.to_string());
    let command = std::fs::read_to_string(dir.join("comm")).ok()?.trim_end().to_owned();
    let groups = std::fs::read_to_string(dir.join("cgroup")).unwrap_or_default();
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    let inside = |path: &Path| {
        let root = view.cgroup_root.as_deref()?;
        Some(Path::new(own?).starts_with(path.strip_prefix(root).ok()?))
    };
    let containers = view.pods.iter().flat_map(|pod| pod.containers.iter().map(move |container| (pod, container)));
    let mut found = containers.filter(|(_, container)| inside(&container.cgroup.path) == Some(true));
    Some(match found.next() {
        Some((pod, container)) => format!("{command} in {}/{}/{}", pod.namespace, pod.name, container.name),
        None => command,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::{Cgroup, ContainerView, PodView};

    #[test]
    fn pods_are_named_by_their_cgroups_and_tasks_by_their_command() {
        let cgroup = |id| Cgroup { path: "/sys/fs/cgroup/kubepods/a".into(), id };
        let container = ContainerView { name: "server".into(), cgroup: cgroup(8), pid: 1 };
        let (namespace, name) = ("default".to_owned(), "web-0".to_owned());
        let (cgroup, containers) = (Some(cgroup(7)), vec![container]);
        let view = NodeView {
            pods: vec![PodView { namespace, name, cgroup, containers, ..PodView::default() }],
            ..NodeView::default()
        };
        let me = std::process::id();
        let request = NameIdsRequest { interfaces: vec![1], tasks: vec![me, u32::MAX], cgroups: vec![7, 8, u64::MAX] };
        let names = named(&view, &request);
        let of = |id: u64| names.cgroups.get(&id).map(String::as_str);
        assert_eq!((of(7), of(8), of(u64::MAX)), (Some("default/web-0"), Some("default/web-0/server"), None));
        let command = std::fs::read_to_string("/proc/self/comm").unwrap();
        assert_eq!(names.tasks.get(&me).map(String::as_str), Some(command.trim_end()));
        assert_eq!((names.tasks.len(), names.interfaces.len()), (1, 0));
    }
}
