//! The pods of all nodes, as the agents should know them. Only what an agent uses is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::api::Api;
use kube::runtime::watcher::{Config, Event as Watch};
use skep_proto::v1;

use super::follow;
use crate::fleet::Board;

const CONFIG_HASH: &str = "kubernetes.io/config.hash";

/// Writes them to the board.
pub async fn run(client: kube::Client, board: Arc<Board>) {
    let config = Config::default().fields("spec.nodeName!=");
    let mut stream = std::pin::pin!(follow(Api::<Pod>::all(client), config, "pods"));
    // Where each is: uid to node.
    let mut places: BTreeMap<String, String> = BTreeMap::new();
    let mut listed: BTreeSet<String> = BTreeSet::new();
    while let Some(event) = stream.next().await {
        match event {
            Watch::Init => listed.clear(),
            Watch::InitApply(pod) => {
                listed.extend(pod.metadata.uid.clone());
                put(&board, &mut places, pod);
            }
            Watch::InitDone => {
                let gone: Vec<String> = places.keys().filter(|uid| !listed.contains(*uid)).cloned().collect();
                gone.iter().for_each(|uid| remove(&board, &mut places, uid));
                board.pods_complete();
            }
            Watch::Apply(pod) => put(&board, &mut places, pod),
            Watch::Delete(pod) => remove(&board, &mut places, &pod.metadata.uid.unwrap_or_default()),
        }
    }
}

fn put(board: &Board, places: &mut BTreeMap<String, String>, pod: Pod) {
    let Some((node, pod)) = message(pod) else { return };
    places.insert(pod.uid.clone(), node.clone());
    board.pods(&node, |pods| {
        let same = pods.pods.get(&pod.uid).is_some_and(|known| **known == pod);
        if !same {
            pods.pods.insert(pod.uid.clone(), Arc::new(pod));
        }
        !same
    });
}

fn remove(board: &Board, places: &mut BTreeMap<String, String>, uid: &str) {
    if let Some(node) = places.remove(uid) {
        board.pods(&node, |pods| pods.pods.remove(uid).is_some());
    }
}

/// Node and pod. A pod that has ended has no containers any more.
fn message(pod: Pod) -> Option<(String, v1::Pod)> {
    let (meta, spec) = (pod.metadata, pod.spec?);
    let status = pod.status.unwrap_or_default();
    let statuses = [status.init_container_statuses, status.container_statuses, status.ephemeral_container_statuses];
    let config_hash = meta.annotations.and_then(|mut annotations| annotations.remove(CONFIG_HASH));
    let pod = v1::Pod {
        uid: meta.uid?,
        namespace: meta.namespace?,
        name: meta.name?,
        labels: meta.labels.unwrap_or_default().into_iter().collect(),
        containers: statuses.into_iter().flatten().flatten().filter_map(container).collect(),
        host_network: spec.host_network.unwrap_or(false),
        config_hash: config_hash.unwrap_or_default(),
    };
    Some((spec.node_name?, pod))
}

fn container(status: ContainerStatus) -> Option<v1::Container> {
    status.state.as_ref()?.running.as_ref()?;
    let id = status.container_id?;
    let id = id.split_once("://").map_or(id.as_str(), |(_, id)| id);
    Some(v1::Container { name: status.name, id: id.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_is_told_by_what_runs_in_it() {
        let status = |name: &str, state| {
            json!({
                "name": name, "containerID": format!("containerd://{name}-id"), "state": state,
                "image": "", "imageID": "", "ready": true, "restartCount": 0,
            })
        };
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {
                "name": "web", "namespace": "shop", "uid": "u1", "labels": {"app": "web"},
                "annotations": {CONFIG_HASH: "h1"},
            },
            "spec": {"nodeName": "n1", "hostNetwork": true, "containers": []},
            "status": {
                "initContainerStatuses": [status("setup", json!({"terminated": {"exitCode": 0}}))],
                "containerStatuses": [status("app", json!({"running": {}}))],
            },
        }))
        .unwrap();
        let wanted = v1::Pod {
            uid: "u1".into(),
            namespace: "shop".into(),
            name: "web".into(),
            labels: [("app".to_string(), "web".to_string())].into(),
            containers: vec![v1::Container { name: "app".into(), id: "app-id".into() }],
            host_network: true,
            config_hash: "h1".into(),
        };
        assert_eq!(message(pod), Some(("n1".into(), wanted)));
    }
}
