//! What each node should have, written by who decides and read by the node's task. The latest counts: there is no queue.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_proto::v1::{ApplyRequest, Pod};
use tokio::sync::watch;

/// One program as a node should run it: the request without the epoch.
pub type Order = ApplyRequest;

/// The programs that a node should have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    /// Whether all programs of the cluster are known. Before that a node is told nothing.
    pub complete: bool,
    /// By uid. `None`: it is meant for the node and it is not known yet how; what runs there stays as it is.
    pub programs: BTreeMap<String, Option<Arc<Order>>>,
    /// uids of objects that cannot be decoded: what runs stays as it is.
    pub unreadable: Arc<BTreeSet<String>>,
    /// uids of which the node should say that nothing is left.
    pub removing: BTreeSet<String>,
}

/// The pods of a node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodePods {
    /// Whether all are known.
    pub complete: bool,
    /// By uid.
    pub pods: BTreeMap<String, Arc<Pod>>,
}

#[derive(Debug, Default)]
struct Entry {
    wanted: watch::Sender<Wanted>,
    pods: watch::Sender<NodePods>,
}

#[derive(Debug, Default)]
struct Entries {
    nodes: HashMap<String, Entry>,
    pods_complete: bool,
}

impl Entries {
    fn node(&mut self, node: &str) -> &Entry {
        if !self.nodes.contains_key(node) {
            let entry = Entry::default();
            entry.pods.send_modify(|pods| pods.complete = self.pods_complete);
            self.nodes.insert(node.into(), entry);
        }
        &self.nodes[node]
    }
}

/// All nodes' entries.
#[derive(Debug, Default)]
pub struct Board {
    entries: Mutex<Entries>,
}

impl Board {
    /// Changes what a node should have; its task hears of it only if `change` says that something changed.
    pub fn wanted(&self, node: &str, change: impl FnOnce(&mut Wanted) -> bool) {
        self.lock().node(node).wanted.send_if_modified(change);
    }

    /// Changes a node's pods, in the same way.
    pub fn pods(&self, node: &str, change: impl FnOnce(&mut NodePods) -> bool) {
        self.lock().node(node).pods.send_if_modified(change);
    }

    /// From now on the pods of every node are completely known.
    pub fn pods_complete(&self) {
        let mut entries = self.lock();
        entries.pods_complete = true;
        for entry in entries.nodes.values() {
            entry.pods.send_if_modified(|pods| !std::mem::replace(&mut pods.complete, true));
        }
    }

    /// For a node's task.
    pub fn subscribe(&self, node: &str) -> (watch::Receiver<Wanted>, watch::Receiver<NodePods>) {
        let mut entries = self.lock();
        let entry = entries.node(node);
        (entry.wanted.subscribe(), entry.pods.subscribe())
    }

    /// Forgets a node.
    pub fn forget(&self, node: &str) {
        self.lock().nodes.remove(node);
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
