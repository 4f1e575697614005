//! Taking everything off the nodes before Skep goes.
//!
//! Guarantees: a running operator is deposed first, so that it puts nothing back; nodes that could not be reached are
//! named; the EbpfPrograms are released whatever the nodes say; what the operator made for itself is taken away, but the
//! authority stays where programs do: their agents trust no other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Resource;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube::core::{DeserializeGuard, PartialObjectMeta};
use serde_json::json;
use skep_crds::{EbpfNode, EbpfProgram, FINALIZER};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::certs::store;
use crate::config::{Places, Uninstall};
use crate::fleet::{Agents, Board, Context, News, What, run as run_fleet};
use crate::leader::{DEADLINE, Elector};
use crate::runtime::candidate;
use crate::token;
use crate::watch::agents::by_node;
use crate::write::Writer;

/// After the end no operator may take the Lease for so long: by then the chart has removed it.
const HOLD_OFF: Duration = Duration::from_secs(30);
/// Labels of the operators' pods; the pod of this process is not among them.
const OPERATORS: &str = "app.kubernetes.io/name=skep,app.kubernetes.io/component=operator";
/// Objects that somebody else changes meanwhile are tried again so often.
const TRIES: usize = 5;

/// Does it. An error only if the API server refuses something.
pub async fn run(client: kube::Client, config: Uninstall) -> anyhow::Result<()> {
    let places = &config.places;
    let mut elector = Elector::new(&client, &places.namespace, candidate(places, true));
    let epoch = elector.acquire().await;
    // By then a deposed operator has noticed, and puts no finalizer back.
    let deposed = tokio::time::Instant::now() + DEADLINE;
    let mut holding = JoinSet::new();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    holding.spawn(async move {
        tokio::select! {
            () = elector.hold() => {}
            _ = stopped => {}
        }
        elector
    });
    if config.keep_programs {
        println!("programs stay on the nodes, as asked");
    } else {
        let left = clean(&client, &config, epoch).await?;
        for (node, why) in &left {
            println!("{}", what_is_left(node, why));
        }
    }
    tokio::time::sleep_until(deposed).await;
    release(&client, &config).await?;
    if !config.keep_programs {
        store::forget(&client, places).await?;
        println!("the certificate authority is deleted");
    }
    drop(stop);
    if let Some(Ok(mut elector)) = holding.join_next().await
        && let Err(error) = elector.release(Some(HOLD_OFF)).await
    {
        tracing::warn!(%error, "the Lease could not be held off");
    }
    part_with_lease(&client, places).await
}

/// The Lease goes with the last operator: without it, one that still runs would lead, and put everything back.
async fn part_with_lease(client: &kube::Client, places: &Places) -> anyhow::Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &places.namespace);
    let operators = pods.list(&ListParams::default().labels(OPERATORS)).await.context("listing the operators")?;
    let leases: Api<Lease> = Api::namespaced(client.clone(), &places.namespace);
    let done = match owners(&operators.items).as_slice() {
        [] => leases.delete(&places.lease, &DeleteParams::default()).await.map(drop),
        owners => {
            let patch = json!({"metadata": {"ownerReferences": owners}});
            leases.patch(&places.lease, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
        }
    };
    done.context("giving the Lease away")
}

fn owners(pods: &[Pod]) -> Vec<OwnerReference> {
    pods.iter().filter_map(|pod| pod.owner_ref(&())).collect()
}

/// Tells all nodes that no program exists, and waits; what is left, by node.
async fn clean(client: &kube::Client, config: &Uninstall, epoch: u64) -> anyhow::Result<BTreeMap<String, String>> {
    let places = &config.places;
    let authority = store::authority(client, places).await?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), &places.namespace);
    let pods = pods.list(&ListParams::default().labels(&places.agent_selector)).await.context("listing the agents")?;
    let agents = by_node(pods.items.iter());
    let unmanned = unmanned(client, &agents).await?;
    println!("removing all programs from {} nodes", agents.len());
    let board = Arc::new(Board::default());
    for node in agents.keys() {
        board.wanted(node, |wanted| !std::mem::replace(&mut wanted.complete, true));
    }
    let (reviews, reviewed) = mpsc::channel(64);
    let context = Arc::new(Context::new(authority, epoch, places.agent_port, reviews)?);
    let (news, heard) = mpsc::channel(1024);
    let (_agents, known) = watch::channel(agents.clone());
    let mut tasks = JoinSet::new();
    tasks.spawn(token::serve(client.clone(), reviewed));
    tasks.spawn(run_fleet(context, known, board, news));
    let mut progress = Progress::new(&agents);
    let waited = tokio::time::timeout(config.timeout, progress.follow(heard)).await;
    if waited.is_err() {
        tracing::warn!("not all nodes are clean after {} s", config.timeout.as_secs());
    }
    tasks.shutdown().await;
    progress.left.extend(unmanned);
    Ok(progress.left)
}

/// Nodes that have programs, and no agent to take them off.
async fn unmanned(client: &kube::Client, agents: &Agents) -> anyhow::Result<BTreeMap<String, String>> {
    let api: Api<DeserializeGuard<EbpfNode>> = Api::all(client.clone());
    let listed = api.list(&ListParams::default()).await.context("listing the EbpfNodes")?;
    let nodes = listed.items.into_iter().filter_map(|guard| guard.0.ok());
    Ok(without_agent(nodes, agents))
}

fn without_agent(nodes: impl Iterator<Item = EbpfNode>, agents: &Agents) -> BTreeMap<String, String> {
    let has_programs = |node: &EbpfNode| node.status.as_ref().is_some_and(|status| !status.programs.is_empty());
    let names = nodes.filter(has_programs).filter_map(|node| node.metadata.name);
    names.filter(|name| !agents.contains_key(name)).map(|name| (name, "it has no agent".to_string())).collect()
}

/// What is said of a node that is not clean when the time is over.
fn what_is_left(node: &str, why: &str) -> String {
    format!("node {node}: {why}; run skep-agent purge there")
}

/// What is left on which node.
#[derive(Debug, PartialEq)]
struct Progress {
    left: BTreeMap<String, String>,
    programs: BTreeMap<String, BTreeSet<String>>,
}

impl Progress {
    fn new(agents: &Agents) -> Self {
        let left = agents.keys().map(|node| (node.clone(), "its agent does not answer".to_string())).collect();
        Self { left, programs: BTreeMap::new() }
    }

    async fn follow(&mut self, mut heard: mpsc::Receiver<News>) {
        while !self.left.is_empty() {
            let Some(news) = heard.recv().await else { return };
            if let Some(line) = self.hear(news) {
                println!("{line}");
            }
        }
    }

    /// What is said of it to who waits.
    fn hear(&mut self, News { node, what }: News) -> Option<String> {
        match what {
            What::Snapshot(reports) => {
                let uids = reports.into_iter().map(|report| report.uid).collect();
                self.programs.insert(node.clone(), uids);
            }
            What::Gone(uid) => drop(self.programs.get_mut(&node).map(|uids| uids.remove(&uid))),
            What::Unreachable(why) => {
                self.left.entry(node).and_modify(|left| *left = why);
                return None;
            }
            What::Connected(_) | What::Report(_) | What::Notice(_) => return None,
        }
        match self.programs.get(&node).map_or(0, BTreeSet::len) {
            // Once: a node that connects again says again that it is.
            0 => self.left.remove(&node).map(|_| format!("node {node} is clean")),
            count => {
                self.left.entry(node).and_modify(|left| *left = format!("{count} programs are still being removed"));
                None
            }
        }
    }
}

/// Takes the finalizer off every EbpfProgram, and deletes the EbpfNodes.
async fn release(client: &kube::Client, config: &Uninstall) -> anyhow::Result<()> {
    let writer = Writer::new(client.clone(), &config.places.pod_name);
    let api: Api<PartialObjectMeta<EbpfProgram>> = Api::all(client.clone());
    let mut tries = 0;
    loop {
        let listed = api.list(&ListParams::default()).await.context("listing the EbpfPrograms")?;
        let held = listed.items.into_iter().map(|object| object.metadata);
        let held = held.filter(|meta| meta.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER));
        let (mut failed, mut count) = (None, 0);
        for meta in held {
            let rest: Vec<String> = meta.finalizers.iter().flatten().filter(|f| *f != FINALIZER).cloned().collect();
            match writer.finalizers(&meta, &rest).await {
                Ok(()) => count += 1,
                Err(error) if error.is_stale() => failed = Some(error),
                Err(error) => return Err(error).context("releasing an EbpfProgram"),
            }
        }
        println!("{count} EbpfPrograms are released");
        let Some(error) = failed else { break };
        tries += 1;
        if tries >= TRIES {
            return Err(error).context("releasing an EbpfProgram");
        }
    }
    let nodes: Api<DeserializeGuard<EbpfNode>> = Api::all(client.clone());
    nodes
        .delete_collection(&DeleteParams::default(), &ListParams::default())
        .await
        .context("deleting the EbpfNodes")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::AgentPod;
    use crate::testing::report;
    use skep_proto::v1::State;

    #[test]
    fn the_lease_ends_with_the_operators() {
        let pod = |name: &str| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": name, "uid": format!("uid-{name}")}})).unwrap()
        };
        let owners = owners(&[pod("skep-operator-1"), pod("skep-operator-2")]);
        let named: Vec<_> = owners.iter().map(|owner| (owner.kind.as_str(), owner.uid.as_str())).collect();
        assert_eq!(named, [("Pod", "uid-skep-operator-1"), ("Pod", "uid-skep-operator-2")]);
        // A blocking owner would need a right on pods.
        assert!(owners.iter().all(|owner| owner.block_owner_deletion.is_none()));
    }

    #[test]
    fn a_node_is_clean_when_it_says_so() {
        let names = ["a", "b"].map(String::from);
        let mut progress = Progress {
            left: names.iter().map(|name| (name.clone(), "its agent does not answer".to_string())).collect(),
            programs: BTreeMap::new(),
        };
        let mut hear = |node: &str, what| progress.hear(News { node: node.into(), what });
        assert_eq!(hear("a", What::Snapshot(vec![report("r", State::Removing, "Progressing", "")])), None);
        assert_eq!(hear("b", What::Unreachable("refused".into())), None);
        assert_eq!(progress.left["a"], "1 programs are still being removed");
        let mut hear = |node: &str, what| progress.hear(News { node: node.into(), what });
        assert_eq!(hear("a", What::Gone("uid-flows".into())).as_deref(), Some("node a is clean"));
        assert_eq!(hear("a", What::Snapshot(vec![])), None, "it was said already");
        assert_eq!(progress.left, [("b".to_string(), "refused".to_string())].into());
    }

    #[test]
    fn nodes_that_keep_programs_are_named_with_what_to_do() {
        let agent = |node: &str| AgentPod {
            node: node.into(),
            namespace: "skep-system".into(),
            service_account: "skep-agent".into(),
            uid: format!("uid-{node}"),
            address: std::net::Ipv4Addr::LOCALHOST.into(),
        };
        let agents: Agents = ["silent", "busy"].map(|node| (node.to_string(), agent(node))).into();
        let mut progress = Progress::new(&agents);
        progress.hear(News { node: "busy".into(), what: What::Snapshot(vec![report("r", State::Ready, "Ready", "")]) });
        let node = |name: &str, programs: serde_json::Value| -> EbpfNode {
            serde_json::from_value(json!({
                "apiVersion": "skep.dev/v1alpha1", "kind": "EbpfNode", "metadata": {"name": name}, "spec": {},
                "status": {"programs": programs},
            }))
            .unwrap()
        };
        let program = json!([{"namespace": "net", "name": "flows", "uid": "uid-flows", "state": "Ready"}]);
        let nodes = [node("silent", program.clone()), node("left", program), node("empty", json!([]))];
        progress.left.extend(without_agent(nodes.into_iter(), &agents));
        let lines: Vec<String> = progress.left.iter().map(|(node, why)| what_is_left(node, why)).collect();
        assert_eq!(
            lines,
            [
                "node busy: 1 programs are still being removed; run skep-agent purge there",
                "node left: it has no agent; run skep-agent purge there",
                "node silent: its agent does not answer; run skep-agent purge there",
            ]
        );
    }
}
