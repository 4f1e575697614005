//! The programs' side of the index.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{DeserializeGuard, error_boundary::InvalidObject};
use skep_crds::condition::READY;
use skep_crds::{ConditionStatus, EbpfProgram, FINALIZER, ImageSource, closed};

use super::images::ImageState;
use super::{DELETION, Index, Key, Note};
use crate::assign::assign;
use crate::fleet::Order;

/// One program.
#[derive(Debug)]
pub(super) struct Entry {
    pub guard: Result<EbpfProgram, InvalidObject>,
    pub image: ImageState,
    /// What was last asked for.
    pub asked: Option<(ImageSource, i64)>,
    /// The nodes that should run it.
    pub nodes: BTreeSet<String>,
    pub order: Option<Arc<Order>>,
    /// The nodes that may have something of it.
    pub placed: BTreeSet<String>,
    /// Since when it is being deleted.
    pub deleting: Option<Instant>,
    /// A write of it is under way.
    pub busy: bool,
    /// What is still to be said of it, by Events.
    pub notes: VecDeque<Note>,
    /// That its deletion ends without some nodes was said.
    pub parted: bool,
    /// What was last said of it while it could not be decoded.
    pub said: Option<String>,
}

impl Entry {
    pub fn meta(&self) -> &ObjectMeta {
        match &self.guard {
            Ok(object) => &object.metadata,
            Err(invalid) => &invalid.metadata,
        }
    }

    pub fn object(&self) -> Option<&EbpfProgram> {
        self.guard.as_ref().ok()
    }

    pub fn meta_mut(&mut self) -> &mut ObjectMeta {
        match &mut self.guard {
            Ok(object) => &mut object.metadata,
            Err(invalid) => &mut invalid.metadata,
        }
    }

    pub fn has_finalizer(&self) -> bool {
        self.meta().finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER)
    }

    pub fn is_ready(&self) -> bool {
        let status = self.object().and_then(|object| object.status.as_ref());
        let mut conditions = status.into_iter().flat_map(|status| &status.conditions);
        conditions.any(|condition| condition.type_ == READY && condition.status == ConditionStatus::True)
    }
}

/// An object that cannot be acted upon, with the reason in a sentence: one that does not decode, or one that selects more
/// than its author wrote.
#[expect(clippy::result_large_err, reason = "it is what a guarded watch yields")]
fn understood(guard: Result<EbpfProgram, InvalidObject>) -> Result<EbpfProgram, InvalidObject> {
    match guard {
        Ok(object) => match closed::emptied(&object) {
            None => Ok(object),
            Some(path) => Err(InvalidObject {
                error: format!(
                    "{path} was applied without a value, and kubectl left it out, which would select more than was meant: fill it in, or take the key out of the manifest"
                ),
                metadata: object.metadata,
            }),
        },
        Err(invalid) => Err(InvalidObject { error: format!("cannot be decoded: {}", invalid.error), ..invalid }),
    }
}

impl Index {
    pub(super) fn program(&mut self, DeserializeGuard(guard): DeserializeGuard<EbpfProgram>, now: Instant) {
        let guard = understood(guard);
        let meta = match &guard {
            Ok(object) => &object.metadata,
            Err(invalid) => &invalid.metadata,
        };
        let Some(uid) = meta.uid.clone() else { return };
        let (deleted, readable) = (meta.deletion_timestamp.is_some(), guard.is_ok());
        if let Some(listing) = &mut self.listing {
            listing.insert(uid.clone());
        }
        match self.programs.get_mut(&uid) {
            Some(entry) => entry.guard = guard,
            None => drop(self.programs.insert(
                uid.clone(),
                Entry {
                    guard,
                    image: ImageState::default(),
                    asked: None,
                    nodes: BTreeSet::new(),
                    order: None,
                    placed: BTreeSet::new(),
                    deleting: None,
                    busy: false,
                    notes: VecDeque::new(),
                    parted: false,
                    said: None,
                },
            )),
        }
        self.set_unreadable(&uid, !readable && !deleted);
        if deleted {
            self.delete(&uid, now);
        } else {
            self.ask(&uid);
        }
        self.reassign(&uid);
        self.dirty.insert(Key::Program(uid));
    }

    fn set_unreadable(&mut self, uid: &str, unreadable: bool) {
        if self.unreadable.contains(uid) == unreadable {
            return;
        }
        let uids = Arc::make_mut(&mut self.unreadable);
        let _changed = if unreadable { uids.insert(uid.into()) } else { uids.remove(uid) };
        let names: Vec<String> = self.facts.keys().cloned().collect();
        names.iter().for_each(|name| self.complete_node(name));
    }

    /// Every node that may have something of it shall say that nothing is left.
    fn delete(&mut self, uid: &str, now: Instant) {
        let Some(entry) = self.programs.get_mut(uid) else { return };
        if entry.deleting.is_some() {
            return;
        }
        entry.deleting = Some(now);
        self.wake(now + DELETION, Key::Program(uid.into()));
        // Where it was put before this operator led is not known: all agents are asked.
        self.agents.clone().iter().for_each(|node| self.ask_gone(uid, node));
    }

    /// Asks a node whether anything is left of a program that is being deleted.
    pub(super) fn ask_gone(&mut self, uid: &str, node: &str) {
        let Some(entry) = self.programs.get_mut(uid).filter(|entry| entry.deleting.is_some()) else { return };
        if entry.has_finalizer() {
            entry.placed.insert(node.into());
            self.board.wanted(node, |wanted| wanted.removing.insert(uid.into()));
        }
    }

    /// Decides anew for which nodes a program is meant, and how.
    pub(super) fn reassign(&mut self, uid: &str) {
        let Some(entry) = self.programs.get_mut(uid) else { return };
        // While it cannot be decoded, what runs stays as it is.
        let Ok(object) = &entry.guard else {
            if entry.deleting.is_some() {
                let nodes = entry.nodes.clone();
                nodes.iter().for_each(|node| self.place(uid, node, false));
            }
            return;
        };
        let assignment = assign(object, entry.image.seen(), &self.facts);
        let order = assignment.order.filter(|_| entry.has_finalizer());
        if entry.order.as_deref() != order.as_ref() {
            entry.order = order.map(Arc::new);
        }
        let before: Vec<String> = entry.nodes.difference(&assignment.nodes).cloned().collect();
        before.iter().for_each(|node| self.place(uid, node, false));
        assignment.nodes.iter().for_each(|node| self.place(uid, node, true));
    }

    /// Says on the board whether a program is meant for a node.
    pub(super) fn place(&mut self, uid: &str, node: &str, wanted: bool) {
        let Some(entry) = self.programs.get_mut(uid) else { return };
        let changed = match wanted {
            true => entry.nodes.insert(node.into()),
            false => entry.nodes.remove(node),
        };
        if changed {
            self.dirty.insert(Key::Program(uid.into()));
        }
        if wanted {
            let order = entry.order.clone();
            if order.is_some() {
                entry.placed.insert(node.into());
            }
            self.board.wanted(node, |wanted| {
                let again = wanted.removing.remove(uid);
                again | (wanted.programs.insert(uid.into(), order.clone()) != Some(order))
            });
        } else if changed {
            let placed = entry.placed.contains(node);
            self.board.wanted(node, |wanted| {
                let left = placed && wanted.removing.insert(uid.into());
                left | wanted.programs.remove(uid).is_some()
            });
        }
    }

    /// A program is gone from the cluster.
    pub(super) fn forget(&mut self, uid: &str) {
        self.set_unreadable(uid, false);
        let Some(entry) = self.programs.get(uid) else { return };
        let nodes: Vec<String> = entry.nodes.iter().chain(&entry.placed).cloned().collect();
        nodes.iter().for_each(|node| self.place(uid, node, false));
        self.programs.remove(uid);
        self.retries.remove(uid);
    }

    /// The list is complete: who is not in it is gone, and nodes may be told.
    pub(super) fn listed(&mut self) {
        let listed = self.listing.take().unwrap_or_default();
        let gone: Vec<String> = self.programs.keys().filter(|uid| !listed.contains(*uid)).cloned().collect();
        gone.iter().for_each(|uid| self.forget(uid));
        self.programs_complete = true;
        let names: Vec<String> = self.facts.keys().cloned().collect();
        names.iter().for_each(|name| self.complete_node(name));
        self.all_dirty();
    }
}
