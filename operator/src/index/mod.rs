//! Everything the leader knows, and what follows from it. No I/O: events go in, orders go to the board, and chores come
//! out for whoever asks.
//!
//! Guarantees: a node is told of programs only when all programs and the node's own labels are known; an object that
//! cannot be decoded changes nothing on any node; a program is put on a node only after the object has the finalizer.
//!
//! Cost: an event about one program costs its nodes, one about a node its programs; at rest nothing happens.

mod chores;
mod images;
mod nodes;
mod programs;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::core::DeserializeGuard;
use skep_crds::{EbpfNodeStatus, EbpfProgram};

pub use chores::{Chore, Note};

use crate::assign::NodeFacts;
use crate::fleet::{Agents, Board, News};
use crate::image::{Problem, Request, Resolution};

/// After the start, how long a status that is still right waits for nodes that were not heard yet.
const SETTLING: Duration = Duration::from_secs(5);
/// How long a deletion waits for nodes that can be reached.
const DELETION: Duration = Duration::from_secs(13);
/// Between two writes of one EbpfNode, at least.
const NODE_WRITES: Duration = Duration::from_secs(2);
/// A write that failed is tried again after this long.
const WRITE_RETRY: Duration = Duration::from_secs(2);

/// What can happen.
#[derive(Debug)]
pub enum Event {
    /// A list of all programs begins.
    ProgramsBegin,
    /// A program is there, or has changed.
    Program(Box<DeserializeGuard<EbpfProgram>>),
    /// A program is gone: its uid.
    ProgramGone(String),
    /// The list is complete.
    ProgramsEnd,
    /// Nodes of the cluster that are there or have changed (uid and labels), and those that are gone.
    Nodes { changed: BTreeMap<String, NodeFacts>, gone: Vec<String> },
    /// All nodes are known.
    NodesEnd,
    /// All agents.
    Agents(Agents),
    /// From a node's task.
    News(News),
    /// What became of a program's image: uid, question and answer.
    Image(Box<Request>, Result<Resolution, Problem>),
}

/// What is to be looked at again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// A program, by uid.
    Program(String),
    /// A node, by name.
    Node(String),
    /// The image of a program, by uid: to be asked for again.
    Image(String),
}

/// What the leader knows.
#[derive(Debug)]
pub struct Index {
    board: Arc<Board>,
    facts: BTreeMap<String, NodeFacts>,
    agents: BTreeSet<String>,
    nodes: BTreeMap<String, nodes::Entry>,
    programs: BTreeMap<String, programs::Entry>,
    unreadable: Arc<BTreeSet<String>>,
    listing: Option<BTreeSet<String>>,
    programs_complete: bool,
    nodes_complete: bool,
    agents_complete: bool,
    started: Instant,
    dirty: BTreeSet<Key>,
    later: BTreeSet<(Instant, Key)>,
    requests: Vec<Request>,
    /// What to ask next about an image, by uid, when its time comes.
    retries: BTreeMap<String, Request>,
}

impl Index {
    /// Knows nothing but the statuses that EbpfNodes have.
    pub fn new(board: Arc<Board>, statuses: BTreeMap<String, EbpfNodeStatus>, now: Instant) -> Self {
        let entry = |(name, status)| (name, nodes::Entry { status, ..nodes::Entry::default() });
        Self {
            board,
            facts: BTreeMap::new(),
            agents: BTreeSet::new(),
            nodes: statuses.into_iter().map(entry).collect(),
            programs: BTreeMap::new(),
            unreadable: Arc::default(),
            listing: None,
            programs_complete: false,
            nodes_complete: false,
            agents_complete: false,
            started: now,
            dirty: BTreeSet::new(),
            later: BTreeSet::new(),
            requests: vec![],
            retries: BTreeMap::new(),
        }
    }

    /// Takes an event in.
    pub fn handle(&mut self, event: Event, now: Instant) {
        match event {
            Event::ProgramsBegin => self.listing = Some(BTreeSet::new()),
            Event::Program(object) => self.program(*object, now),
            Event::ProgramGone(uid) => self.forget(&uid),
            Event::ProgramsEnd => self.listed(),
            Event::Nodes { changed, gone } => self.cluster_nodes(changed, gone),
            Event::NodesEnd => {
                self.nodes_complete = true;
                self.all_dirty();
            }
            Event::Agents(agents) => self.agents(&agents),
            Event::News(news) => self.news(news, now),
            Event::Image(request, answer) => self.image(*request, answer, now),
        }
    }

    /// Images to be asked for.
    pub fn take_requests(&mut self) -> Vec<Request> {
        std::mem::take(&mut self.requests)
    }

    /// What is to be looked at now.
    pub fn take_dirty(&mut self, now: Instant) -> BTreeSet<Key> {
        while let Some((at, key)) = self.later.first().cloned()
            && at <= now
        {
            self.later.remove(&(at, key.clone()));
            self.dirty.insert(key);
        }
        std::mem::take(&mut self.dirty)
    }

    /// Whether something is to be looked at.
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// When something is to be looked at that need not be looked at now.
    pub fn next_wake(&self) -> Option<Instant> {
        self.later.first().map(|(at, _)| *at)
    }

    /// Look at it again.
    pub fn mark(&mut self, key: Key) {
        self.dirty.insert(key);
    }

    /// Programs, those of them that are ready, nodes that answer, and nodes that do not.
    pub fn figures(&self) -> [i64; 4] {
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let ready = self.programs.values().filter(|entry| entry.is_ready()).count();
        let up = self.nodes.values().filter(|node| node.link == nodes::Link::Up).count();
        let down = self.nodes.values().filter(|node| matches!(node.link, nodes::Link::Unreachable(_))).count();
        [count(self.programs.len()), count(ready), count(up), count(down)]
    }

    /// Whether enough is known to say anything.
    fn complete(&self) -> bool {
        self.programs_complete && self.nodes_complete && self.agents_complete
    }

    fn all_dirty(&mut self) {
        self.dirty.extend(self.programs.keys().cloned().map(Key::Program));
    }

    fn wake(&mut self, at: Instant, key: Key) {
        self.later.insert((at, key));
    }
}

#[cfg(test)]
mod tests;
