//! The nodes' side of the index.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use skep_crds::{EbpfNodeStatus, Reason};
use skep_proto::v1::{Node, Notice, ProgramReport};

use super::{Index, Key, Note};
use crate::assign::{NodeFacts, selects};
use crate::fleet::{Agents, News, What};

/// Events that wait for one program, at most; the oldest go first.
const MAX_NOTES: usize = 32;

/// Whether a node's agent answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Link {
    /// It was not heard yet.
    #[default]
    Waiting,
    /// It does.
    Up,
    /// It does not; why.
    Unreachable(String),
}

/// One node.
#[derive(Debug, Default)]
pub(super) struct Entry {
    pub link: Link,
    pub node: Option<Node>,
    pub reports: BTreeMap<String, ProgramReport>,
    /// Whether the agent has said which programs it has, since this operator started.
    pub listed: bool,
    /// The status of its EbpfNode.
    pub status: EbpfNodeStatus,
    pub busy: bool,
    pub written: Option<Instant>,
}

impl Index {
    pub(super) fn cluster_nodes(&mut self, changed: BTreeMap<String, NodeFacts>, gone: Vec<String>) {
        for name in gone {
            self.facts.remove(&name);
            self.nodes.remove(&name);
            let uids: Vec<String> = self.programs.keys().cloned().collect();
            for uid in uids {
                self.place(&uid, &name, false);
                if let Some(entry) = self.programs.get_mut(&uid)
                    && entry.placed.remove(&name)
                {
                    self.dirty.insert(Key::Program(uid));
                }
            }
            self.complete_node(&name);
            self.forget_node(&name);
        }
        for (name, new) in changed {
            let new = NodeFacts { agent: self.agents.contains(&name), ..new };
            if self.facts.get(&name) != Some(&new) {
                self.facts.insert(name.clone(), new);
                self.node_changed(&name);
            }
        }
    }

    pub(super) fn agents(&mut self, agents: &Agents) {
        if !self.agents_complete {
            self.agents_complete = true;
            self.all_dirty();
        }
        let agents: BTreeSet<String> = agents.keys().cloned().collect();
        let before = std::mem::replace(&mut self.agents, agents);
        let changed: Vec<String> = before.symmetric_difference(&self.agents).cloned().collect();
        for name in changed {
            let agent = self.agents.contains(&name);
            let entry = self.nodes.entry(name.clone()).or_default();
            match (agent, &entry.link) {
                (true, Link::Unreachable(_)) => entry.link = Link::Waiting,
                (true, _) => {}
                (false, _) => entry.link = Link::Unreachable("no agent runs on the node".into()),
            }
            self.dirty.insert(Key::Node(name.clone()));
            match self.facts.get_mut(&name) {
                Some(facts) => {
                    facts.agent = agent;
                    self.node_changed(&name);
                }
                None => self.forget_node(&name),
            }
        }
    }

    /// A node that is neither in the cluster nor has an agent.
    fn forget_node(&mut self, name: &str) {
        if !self.facts.contains_key(name) && !self.agents.contains(name) {
            self.nodes.remove(name);
            self.board.forget(name);
        }
    }

    /// Which programs a node should have may have changed.
    fn node_changed(&mut self, name: &str) {
        let Some(facts) = self.facts.get(name) else { return };
        if facts.agent {
            self.nodes.entry(name.into()).or_default();
        }
        // Of a program that cannot be decoded nothing changes.
        let readable = self.programs.iter().filter_map(|(uid, entry)| Some((uid, entry.object()?)));
        let wanted: Vec<(String, bool)> = readable.map(|(uid, object)| (uid.clone(), selects(object, facts))).collect();
        for (uid, wanted) in wanted {
            self.place(&uid, name, wanted);
        }
        if self.agents.contains(name) {
            let uids: Vec<String> = self.programs.keys().cloned().collect();
            uids.iter().for_each(|uid| self.ask_gone(uid, name));
        }
        self.complete_node(name);
    }

    /// From here on the node may be told, if all is known.
    pub(super) fn complete_node(&self, name: &str) {
        let complete = self.programs_complete && self.facts.contains_key(name);
        let unreadable = self.unreadable.clone();
        self.board.wanted(name, |wanted| {
            let changed = wanted.complete != complete || wanted.unreadable != unreadable;
            (wanted.complete, wanted.unreadable) = (complete, unreadable);
            changed
        });
    }

    pub(super) fn news(&mut self, news: News, now: Instant) {
        let name = news.node;
        let Some(entry) = self.nodes.get_mut(&name) else { return };
        match news.what {
            What::Connected(node) => {
                entry.link = Link::Up;
                entry.node = Some(*node);
            }
            What::Snapshot(reports) => {
                let reports = reports.into_iter().map(|report| (report.uid.clone(), report)).collect();
                let before = std::mem::replace(&mut entry.reports, reports);
                entry.listed = true;
                let known: Vec<String> = before.into_keys().chain(entry.reports.keys().cloned()).collect();
                self.dirty.extend(known.into_iter().map(Key::Program));
                self.dirty_programs_of(&name);
            }
            What::Report(report) => {
                let uid = report.uid.clone();
                let refused = report.reason == Reason::ImageUnauthorized.as_str();
                entry.reports.insert(uid.clone(), *report);
                if refused {
                    self.read_secrets_again(&uid, now);
                }
                self.dirty.insert(Key::Program(uid));
            }
            What::Gone(uid) => {
                entry.reports.remove(&uid);
                self.gone(&uid, &name);
            }
            What::Notice(notice) => {
                self.notice(&name, notice);
                return;
            }
            What::Unreachable(why) => {
                entry.link = Link::Unreachable(why);
                self.dirty_programs_of(&name);
            }
        }
        self.dirty.insert(Key::Node(name));
    }

    /// What happened to a program on a node, for an Event.
    fn notice(&mut self, node: &str, notice: Notice) {
        let Some(entry) = self.programs.get_mut(&notice.uid) else { return };
        if entry.notes.len() == MAX_NOTES {
            entry.notes.pop_front();
        }
        entry.notes.push_back(Note {
            warning: notice.warning,
            reason: notice.reason.parse().unwrap_or(Reason::Internal),
            message: format!("on {node}: {}", notice.message),
        });
        self.dirty.insert(Key::Program(notice.uid));
    }

    /// Nothing is left of a program on a node.
    fn gone(&mut self, uid: &str, node: &str) {
        self.board.wanted(node, |wanted| wanted.removing.remove(uid));
        if let Some(entry) = self.programs.get_mut(uid) {
            if !entry.nodes.contains(node) {
                entry.placed.remove(node);
            }
            self.dirty.insert(Key::Program(uid.into()));
        }
    }

    fn dirty_programs_of(&mut self, node: &str) {
        let concerned =
            self.programs.iter().filter(|(_, entry)| entry.nodes.contains(node) || entry.placed.contains(node));
        self.dirty.extend(concerned.map(|(uid, _)| Key::Program(uid.clone())));
    }
}
