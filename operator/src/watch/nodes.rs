//! The cluster's nodes: uid and labels.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, PartialObjectMeta};
use kube::runtime::watcher::{Config, Event as Watch};
use tokio::sync::mpsc;

use super::follow;
use crate::assign::NodeFacts;
use crate::index::Event;

/// Tells of each that changed, and when all are known.
pub async fn run(client: kube::Client, events: mpsc::Sender<Event>) {
    let api: Api<PartialObjectMeta<Node>> = Api::all(client);
    let mut stream = std::pin::pin!(follow(api, Config::default(), "Nodes"));
    let mut known = BTreeSet::new();
    let mut listed = BTreeMap::new();
    while let Some(event) = stream.next().await {
        let told = match event {
            Watch::Init => {
                listed.clear();
                continue;
            }
            Watch::InitApply(node) => {
                listed.extend(facts(node));
                continue;
            }
            Watch::InitDone => {
                let changed = std::mem::take(&mut listed);
                let names: BTreeSet<String> = changed.keys().cloned().collect();
                let gone = known.difference(&names).cloned().collect();
                known = names;
                if events.send(Event::Nodes { changed, gone }).await.is_err() {
                    return;
                }
                Event::NodesEnd
            }
            Watch::Apply(node) => {
                let changed: BTreeMap<_, _> = facts(node).into_iter().collect();
                known.extend(changed.keys().cloned());
                Event::Nodes { changed, gone: vec![] }
            }
            Watch::Delete(node) => {
                let name = node.metadata.name.unwrap_or_default();
                known.remove(&name);
                Event::Nodes { changed: BTreeMap::new(), gone: vec![name] }
            }
        };
        if events.send(told).await.is_err() {
            return;
        }
    }
}

fn facts(node: PartialObjectMeta<Node>) -> Option<(String, NodeFacts)> {
    let labels = node.metadata.labels.unwrap_or_default();
    Some((node.metadata.name?, NodeFacts { uid: node.metadata.uid.unwrap_or_default(), labels, agent: false }))
}
