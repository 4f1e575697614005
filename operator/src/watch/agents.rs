//! The agents' pods, by node.
//!
//! A node keeps its agent for a while after the pod is gone: while a DaemonSet replaces its pods nothing is to change.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use kube::runtime::watcher::{Config, Event as Watch};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::follow;
use crate::config::Places;
use crate::fleet::{AgentPod, Agents};
use crate::index::Event;

/// How long a node without agent's pod counts as one that has an agent.
const LINGER: Duration = Duration::from_secs(60);

/// Tells who decides, then the fleet.
pub async fn run(client: kube::Client, places: Places, events: mpsc::Sender<Event>, agents: watch::Sender<Agents>) {
    let api: Api<Pod> = Api::namespaced(client, &places.namespace);
    let config = Config::default().labels(&places.agent_selector);
    let mut stream = std::pin::pin!(follow(api, config, "the agents' pods"));
    let mut pods: BTreeMap<String, Pod> = BTreeMap::new();
    let mut listed = BTreeMap::new();
    let mut complete = false;
    let mut leaving: BTreeMap<String, Instant> = BTreeMap::new();
    loop {
        let next = leaving.values().min().copied();
        let expiry = async {
            match next {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = stream.next() => match event {
                Some(Watch::Init) => listed.clear(),
                Some(Watch::InitApply(pod)) => listed.extend(keyed(pod)),
                Some(Watch::InitDone) => {
                    pods = std::mem::take(&mut listed);
                    complete = true;
                }
                Some(Watch::Apply(pod)) => pods.extend(keyed(pod)),
                Some(Watch::Delete(pod)) => drop(pods.remove(&pod.metadata.uid.unwrap_or_default())),
                None => return,
            },
            () = expiry => {}
        }
        if !complete {
            continue;
        }
        let mut current = by_node(pods.values());
        let now = Instant::now();
        let before = agents.borrow().clone();
        leaving.retain(|node, at| !current.contains_key(node) && *at > now);
        for (node, pod) in &before {
            if !current.contains_key(node) {
                // One that was in `leaving` and is not any more has expired.
                let expired = !leaving.contains_key(node) && next.is_some_and(|at| at <= now);
                if expired {
                    continue;
                }
                leaving.entry(node.clone()).or_insert(now + LINGER);
                current.insert(node.clone(), pod.clone());
            }
        }
        let first = before.is_empty() && current.is_empty();
        if current != before || first {
            if events.send(Event::Agents(current.clone())).await.is_err() {
                return;
            }
            agents.send_replace(current);
        }
    }
}

fn keyed(pod: Pod) -> Option<(String, Pod)> {
    Some((pod.metadata.uid.clone()?, pod))
}

/// The agent of each node: the newest pod that has an address and has not ended.
pub fn by_node<'p>(pods: impl Iterator<Item = &'p Pod>) -> Agents {
    let mut pods: Vec<&Pod> = pods.collect();
    pods.sort_by(|one, other| {
        let age = |pod: &Pod| (pod.metadata.deletion_timestamp.is_none(), pod.metadata.creation_timestamp.clone());
        age(one).cmp(&age(other))
    });
    pods.into_iter().filter_map(agent).map(|agent| (agent.node.clone(), agent)).collect()
}

fn agent(pod: &Pod) -> Option<AgentPod> {
    let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref()?);
    let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let address = status.pod_ip.as_ref().or(status.host_ip.as_ref())?.parse().ok()?;
    (!ended).then_some(AgentPod {
        node: spec.node_name.clone()?,
        namespace: pod.metadata.namespace.clone()?,
        service_account: spec.service_account_name.clone().unwrap_or_else(|| "default".into()),
        uid: pod.metadata.uid.clone()?,
        address,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(uid: &str, age: u32, phase: &str, ip: Option<&str>) -> Pod {
        serde_json::from_value(json!({
            "metadata": {
                "name": uid, "namespace": "skep-system", "uid": uid,
                "creationTimestamp": format!("2024-01-01T00:00:{age:02}Z"),
            },
            "spec": {"nodeName": "n1", "serviceAccountName": "skep-agent", "containers": []},
            "status": {"phase": phase, "podIP": ip},
        }))
        .unwrap()
    }

    #[test]
    fn the_newest_pod_with_an_address_is_the_agent() {
        let pods = [
            pod("old", 1, "Running", Some("10.0.0.1")),
            pod("new", 2, "Running", Some("10.0.0.2")),
            pod("starting", 3, "Pending", None),
            pod("ended", 4, "Failed", Some("10.0.0.3")),
        ];
        let agents = by_node(pods.iter());
        assert_eq!(agents.keys().collect::<Vec<_>>(), ["n1"]);
        let agent = &agents["n1"];
        assert_eq!((agent.uid.as_str(), agent.address.to_string().as_str()), ("new", "10.0.0.2"));
    }
}
