//! What is to be written to the cluster about a program or a node, as values.

use std::time::Instant;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use skep_crds::condition::READY;
use skep_crds::{Condition, EbpfNodeStatus, EbpfProgramStatus, FINALIZER, Reason};

use super::images::ImageState;
use super::nodes::Link;
use super::programs::Entry;
use super::{DELETION, Index, Key, NODE_WRITES, SETTLING, WRITE_RETRY};
use crate::nodestatus;
use crate::rollup::{Image, Standing, View, rollup};

/// Nodes that an Event names, at most: it has room for 1 kB.
const NAMED: usize = 10;

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub enum Chore {
    /// The finalizers of a program, all of them.
    Finalizers { meta: Box<ObjectMeta>, finalizers: Vec<String> },
    /// The status of a program, and what is said of it as an Event.
    Status { meta: Box<ObjectMeta>, status: Box<EbpfProgramStatus>, note: Option<Note> },
    /// The condition of a program that cannot be decoded.
    Unreadable { meta: Box<ObjectMeta>, condition: Box<Condition>, note: Note },
    /// What happened to a program, as an Event.
    Note { meta: Box<ObjectMeta>, note: Note },
    /// The status of an EbpfNode, owned by the Node with that uid.
    Node { name: String, uid: String, status: Box<EbpfNodeStatus> },
}

/// An Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Whether it is something to look at.
    pub warning: bool,
    /// The word.
    pub reason: Reason,
    /// The sentence.
    pub message: String,
}

impl Index {
    /// What is to be written now; it counts as under way until [`Index::done`].
    pub fn chore(&mut self, key: &Key, now: Instant, clock: Timestamp) -> Option<Chore> {
        let chore = match key {
            Key::Program(uid) => self.program_chore(uid, now, &Time(clock))?,
            Key::Node(name) => self.node_chore(name, now, &Time(clock))?,
            Key::Image(uid) => {
                self.requests.extend(self.retries.remove(uid));
                return None;
            }
        };
        match key {
            Key::Program(uid) => self.programs.get_mut(uid)?.busy = true,
            Key::Node(name) => {
                let entry = self.nodes.get_mut(name)?;
                (entry.busy, entry.written) = (true, Some(now));
            }
            Key::Image(_) => {}
        }
        Some(chore)
    }

    /// A write ended.
    pub fn done(&mut self, key: &Key, chore: Chore, ok: bool, now: Instant) {
        match key {
            Key::Program(uid) => {
                let Some(entry) = self.programs.get_mut(uid) else { return };
                entry.busy = false;
                match (chore, &mut entry.guard) {
                    (Chore::Status { status, .. }, Ok(object)) if ok => object.status = Some(*status),
                    (Chore::Unreadable { condition, .. }, Err(_)) if ok => entry.said = Some(condition.message),
                    (Chore::Finalizers { finalizers, .. }, _) if ok => {
                        entry.meta_mut().finalizers = Some(finalizers);
                        self.reassign(uid);
                    }
                    _ => {}
                }
            }
            Key::Node(name) => {
                let Some(entry) = self.nodes.get_mut(name) else { return };
                entry.busy = false;
                if let Chore::Node { status, .. } = chore
                    && ok
                {
                    entry.status = *status;
                }
            }
            Key::Image(_) => return,
        }
        if ok { self.mark(key.clone()) } else { self.wake(now + WRITE_RETRY, key.clone()) }
    }

    fn program_chore(&mut self, uid: &str, now: Instant, clock: &Time) -> Option<Chore> {
        if !self.complete() {
            return None;
        }
        let entry = self.programs.get(uid).filter(|entry| !entry.busy)?;
        if let Some(since) = entry.deleting
            && entry.has_finalizer()
        {
            let due = self.is_clean(entry) || now >= since + DELETION;
            // What nodes had to say of it would have nobody left to be said of.
            if due && entry.notes.is_empty() {
                return self.part(uid);
            }
        } else if entry.deleting.is_some() {
            return None;
        } else if !entry.has_finalizer() && entry.guard.is_ok() {
            let mut finalizers = entry.meta().finalizers.clone().unwrap_or_default();
            finalizers.push(FINALIZER.into());
            return Some(Chore::Finalizers { meta: Box::new(entry.meta().clone()), finalizers });
        }
        if let Some(note) = self.programs.get_mut(uid)?.notes.pop_front() {
            return Some(Chore::Note { meta: Box::new(self.programs.get(uid)?.meta().clone()), note });
        }
        let entry = self.programs.get(uid)?;
        match &entry.guard {
            Ok(_) => self.status_chore(uid, now, clock),
            Err(_) => unreadable(entry, clock),
        }
    }

    /// The end of a deletion: the nodes are named that have not confirmed it, then the finalizer goes.
    fn part(&mut self, uid: &str) -> Option<Chore> {
        let entry = self.programs.get_mut(uid)?;
        if entry.placed.is_empty() || std::mem::replace(&mut entry.parted, true) {
            return Some(without_finalizer(entry));
        }
        let nodes: Vec<&str> = entry.placed.iter().take(NAMED).map(String::as_str).collect();
        let more = match entry.placed.len() - nodes.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let up = |node: &String| self.nodes.get(node).is_some_and(|entry| entry.link == Link::Up);
        let (reason, then) = if entry.placed.iter().any(|node| !up(node)) {
            (Reason::NodeUnreachable, "what still runs there is taken off when the agent is back")
        } else {
            (Reason::Timeout, "its agent is still at it")
        };
        let message = format!("deleted, but its removal is not confirmed by {}{more}: {then}", nodes.join(", "));
        tracing::warn!(uid, "{message}");
        let note = Note { warning: true, reason, message };
        Some(Chore::Note { meta: Box::new(entry.meta().clone()), note })
    }

    fn status_chore(&mut self, uid: &str, now: Instant, clock: &Time) -> Option<Chore> {
        let entry = self.programs.get(uid)?;
        let object = entry.object()?;
        let view = self.view(entry)?;
        let status = rollup(&view, clock);
        let before = object.status.as_ref();
        if before == Some(&status) {
            return None;
        }
        let unheard = view.nodes.iter().any(|(node, _)| self.nodes.get(*node).is_none_or(|n| n.link == Link::Waiting));
        let same = before.is_some_and(|before| {
            before.observed_generation == status.observed_generation
                && (before.revision == status.revision || matches!(view.image, Image::Resolving))
        });
        if (unheard || matches!(view.image, Image::Resolving)) && same && now < self.started + SETTLING {
            self.wake(self.started + SETTLING, Key::Program(uid.into()));
            return None;
        }
        let note = note(before, &status);
        let meta = Box::new(object.metadata.clone());
        Some(Chore::Status { meta, status: Box::new(status), note })
    }

    fn view<'a>(&'a self, entry: &'a Entry) -> Option<View<'a>> {
        let object = entry.object()?;
        let nodes = if entry.deleting.is_some() { self.holding(entry) } else { entry.nodes.iter().collect() };
        let uid = entry.meta().uid.as_deref().unwrap_or_default();
        Some(View {
            program: object,
            image: entry.image.seen(),
            revision: match (&entry.image, &entry.order) {
                (ImageState::Resolved(_), Some(order)) => &order.revision,
                _ => "",
            },
            nodes: nodes.into_iter().map(|node| (node.as_str(), self.standing(node, uid))).collect(),
        })
    }

    fn standing<'a>(&'a self, node: &str, uid: &str) -> Standing<'a> {
        match self.nodes.get(node) {
            Some(entry) => match (&entry.link, entry.reports.get(uid)) {
                (Link::Unreachable(why), _) => Standing::Unreachable(why),
                (Link::Up, Some(report)) => Standing::Report(report),
                _ => Standing::Waiting,
            },
            None => Standing::Waiting,
        }
    }

    /// The reachable nodes that have not said yet that nothing is left.
    fn holding<'a>(&self, entry: &'a Entry) -> Vec<&'a String> {
        let reachable = |node: &String| !self.nodes.get(node).is_none_or(|n| matches!(n.link, Link::Unreachable(_)));
        entry.placed.iter().filter(|node| reachable(node)).collect()
    }

    fn is_clean(&self, entry: &Entry) -> bool {
        self.holding(entry).is_empty()
    }

    fn node_chore(&mut self, name: &str, now: Instant, clock: &Time) -> Option<Chore> {
        let entry = self.nodes.get(name).filter(|entry| !entry.busy)?;
        let uid = self.facts.get(name)?.uid.clone();
        let unreachable = match &entry.link {
            Link::Waiting => return None,
            Link::Up => None,
            Link::Unreachable(why) => Some(why.as_str()),
        };
        if let Some(next) = entry.written.map(|at| at + NODE_WRITES).filter(|next| *next > now) {
            self.wake(next, Key::Node(name.into()));
            return None;
        }
        let (node, reports, previous) =
            (entry.node.as_ref(), Some(&entry.reports).filter(|_| entry.listed), &entry.status);
        let status = nodestatus::status(nodestatus::View { node, unreachable, reports, previous }, clock);
        (!nodestatus::says_the_same(&status, previous)).then(|| Chore::Node {
            name: name.into(),
            uid,
            status: Box::new(status),
        })
    }
}

fn without_finalizer(entry: &Entry) -> Chore {
    let mut finalizers = entry.meta().finalizers.clone().unwrap_or_default();
    finalizers.retain(|finalizer| finalizer != FINALIZER);
    Chore::Finalizers { meta: Box::new(entry.meta().clone()), finalizers }
}

fn unreadable(entry: &Entry, clock: &Time) -> Option<Chore> {
    let Err(invalid) = &entry.guard else { return None };
    let error = &invalid.error;
    let message = format!("{error}: what runs stays as it is; correct the object, or update Skep");
    if entry.said.as_ref() == Some(&message) {
        return None;
    }
    let condition = Condition {
        type_: READY.into(),
        status: false.into(),
        reason: Reason::ObjectUnreadable,
        message: message.clone(),
        observed_generation: invalid.metadata.generation,
        last_transition_time: clock.clone(),
    };
    let note = Note { warning: true, reason: Reason::ObjectUnreadable, message };
    Some(Chore::Unreadable { meta: Box::new(invalid.metadata.clone()), condition: Box::new(condition), note })
}

/// An Event when the reason or the truth of `Ready` changed.
fn note(before: Option<&EbpfProgramStatus>, after: &EbpfProgramStatus) -> Option<Note> {
    let ready = |status: &EbpfProgramStatus| status.conditions.iter().find(|c| c.type_ == READY).cloned();
    let now = ready(after)?;
    let same = before.and_then(ready).is_some_and(|was| was.status == now.status && was.reason == now.reason);
    let quiet = [Reason::Ready, Reason::NoTarget, Reason::Progressing, Reason::Suspended];
    // Every node passes through it; it is no news.
    let passing = now.reason == Reason::WaitingForNode;
    (!same && !passing).then(|| Note {
        warning: !quiet.contains(&now.reason),
        reason: now.reason,
        message: now.message,
    })
}
