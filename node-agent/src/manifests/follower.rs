//! From what the manifests say to what the supervisor is told: only what differs from what it was told last.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use futures::StreamExt;
use serde_json::Value;
use skep_crds::{API_VERSION, EbpfProgram, Reason, load_hash, revision_hash};
use skep_image::Auth;
use skep_proto::v1::{ProgramReport, State};

use super::{Document, uid};
use crate::actor::Shared;
use crate::desired::DesiredProgram;
use crate::error::ProgramError;
use crate::supervisor::Handle;

/// Registries that are asked at once.
const RESOLVED_AT_ONCE: usize = 32;

pub(super) struct Follower {
    shared: Arc<Shared>,
    supervisor: Handle,
    /// What was last taken over, by uid.
    applied: BTreeMap<String, Applied>,
    /// By uid, the refusal that was logged last: one that stays is said once.
    said: BTreeMap<String, String>,
    /// Files that say nothing readable, by the uid under which that is reported.
    unread: BTreeSet<String>,
    first: bool,
}

struct Applied {
    spec: Value,
    /// The value of the restart annotation.
    restart: Option<String>,
}

impl Follower {
    pub(super) fn new(shared: Arc<Shared>, supervisor: Handle) -> Self {
        let (applied, said, unread) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        Follower { shared, supervisor, applied, said, unread, first: true }
    }

    /// Whether anything was taken over yet.
    pub(super) fn has_applied(&self) -> bool {
        !self.applied.is_empty()
    }

    /// Whether all went well: what did not is tried again.
    pub(super) async fn apply(&mut self, documents: Vec<Document>) -> bool {
        let mut well = true;
        // A file that says nothing readable may be the one that names any of the programs: none is taken away.
        let unread = self.report_unread(&documents);
        let (mut seen, mut valid) = (BTreeSet::new(), Vec::new());
        for document in documents {
            let (namespace, name) = document.identity();
            let uid = uid(&namespace, &name);
            if !name.is_empty() && !seen.insert(uid.clone()) {
                well = false;
                let words = "two manifests have this name; the first counts, rename or delete the other";
                if self.said.insert(format!("{uid} twice"), words.to_owned()).is_none() {
                    tracing::error!(namespace, name, "{words}");
                }
                continue;
            }
            match document {
                Document::Valid(program) => valid.push((uid, *program)),
                Document::Invalid { .. } if name.is_empty() => well = false,
                Document::Invalid { message, .. } => {
                    well = false;
                    self.refuse(uid, namespace, name, Reason::ObjectUnreadable, message).await;
                }
            }
        }
        // What is to go does not wait for what is to come.
        if !unread {
            well &= self.remove_missing(&seen).await;
        }
        let changed = valid.into_iter().filter_map(|(uid, program)| Change::new(uid, program, &self.applied));
        let resolved: Vec<_> = changed.map(|change| change.resolve(self.shared.clone())).collect();
        let mut resolved = futures::stream::iter(resolved).buffer_unordered(RESOLVED_AT_ONCE);
        while let Some((change, digest)) = resolved.next().await {
            let (uid, namespace, name) = change.identity();
            match self.take(change, digest).await {
                Ok(()) => drop(self.said.remove(&uid)),
                Err((reason, message)) => {
                    well = false;
                    self.refuse(uid, namespace, name, reason, message).await;
                }
            }
        }
        self.first = false;
        well
    }

    async fn refuse(&mut self, uid: String, namespace: String, name: String, reason: Reason, message: String) {
        if self.said.insert(uid.clone(), message.clone()).as_ref() != Some(&message) {
            tracing::error!(namespace, name, %reason, message, "manifest refused");
        }
        self.applied.remove(&uid);
        let program = blank(&uid, &namespace, &name);
        let _ = self.supervisor.refuse(program, reason, message).await;
    }

    /// Reports files of which nobody knows whose they are, by their own names; whether there are any.
    fn report_unread(&mut self, documents: &[Document]) -> bool {
        let mut unread = BTreeSet::new();
        for document in documents {
            let Document::Invalid { file, name, message, .. } = document else { continue };
            if !name.is_empty() {
                continue;
            }
            let uid = uid("", file);
            let message =
                format!("{message}; as long as it cannot be read, programs whose manifests go are not removed");
            if self.said.insert(uid.clone(), message.clone()).as_ref() != Some(&message) {
                tracing::error!(file, message, "manifest refused");
            }
            let name = Path::new(file).file_name().unwrap_or_default().to_string_lossy().into_owned();
            let mut report = ProgramReport { uid: uid.clone(), name, ..ProgramReport::default() };
            report.set_state(State::Failed);
            (report.reason, report.message) = (Reason::ObjectUnreadable.to_string(), message);
            self.shared.reports.put(report);
            unread.insert(uid);
        }
        for mended in self.unread.difference(&unread) {
            self.said.remove(mended);
            self.shared.reports.gone(mended);
        }
        self.unread = unread;
        !self.unread.is_empty()
    }

    /// At the first look, and after a restart, the store holds what earlier runs were told.
    async fn remove_missing(&mut self, seen: &BTreeSet<String>) -> bool {
        if self.first || self.shared.reports.all().iter().any(|r| !seen.contains(&r.uid)) {
            self.applied.retain(|uid, _| seen.contains(uid));
            if let Err(error) = self.supervisor.sync(seen.clone()).await {
                tracing::error!(%error, "removing programs whose manifests are gone");
                return false;
            }
        }
        true
    }

    async fn take(&mut self, change: Change, digest: Result<String, (Reason, String)>) -> Result<(), (Reason, String)> {
        let digest = digest?;
        let (uid, namespace, name) = change.identity();
        let Change { program, spec, restart, .. } = change;
        let desired = DesiredProgram {
            revision: revision_hash(&program.spec, &digest, restart.as_deref()),
            load: load_hash(&program.spec, &digest, restart.as_deref()),
            spec: spec.clone(),
            digest,
            ..blank(&uid, &namespace, &name)
        };
        self.supervisor.apply(desired, Auth::Anonymous).await.map_err(|e| (e.reason(), e.to_string()))?;
        self.applied.insert(uid, Applied { spec, restart });
        Ok(())
    }
}

/// A manifest that says something else than what was last taken over.
struct Change {
    uid: String,
    program: EbpfProgram,
    spec: Value,
    restart: Option<String>,
}

impl Change {
    fn new(uid: String, program: EbpfProgram, applied: &BTreeMap<String, Applied>) -> Option<Self> {
        let spec = serde_json::to_value(&program.spec).unwrap_or_default();
        let restart = program.metadata.annotations.as_ref().and_then(|a| a.get(skep_crds::RESTARTED_AT)).cloned();
        let same = applied.get(&uid).is_some_and(|before| (&before.spec, &before.restart) == (&spec, &restart));
        (!same).then_some(Change { uid, program, spec, restart })
    }

    /// uid, namespace and name.
    fn identity(&self) -> (String, String, String) {
        let (namespace, name) = Document::Valid(Box::new(self.program.clone())).identity();
        (self.uid.clone(), namespace, name)
    }

    /// A tag is resolved once: as long as the manifest names the same image, its digest stays.
    async fn resolve(self, shared: Arc<Shared>) -> (Self, Result<String, (Reason, String)>) {
        let reference = &self.program.spec.image.reference;
        let stored = shared.store.get(&self.uid).ok().flatten();
        if let Some(stored) = stored
            && stored.spec.pointer("/image/reference").and_then(Value::as_str) == Some(reference)
        {
            return (self, Ok(stored.digest));
        }
        if let Some((_, digest)) = reference.split_once("@sha256:") {
            let digest = format!("sha256:{digest}");
            return (self, Ok(digest));
        }
        let resolved = shared.images.registry().resolve(reference, &Auth::Anonymous).await;
        let digest = resolved.map(|d| d.to_string()).map_err(|e| {
            let error = ProgramError::from(e);
            (error.reason(), error.to_string())
        });
        (self, digest)
    }
}

fn blank(uid: &str, namespace: &str, name: &str) -> DesiredProgram {
    DesiredProgram {
        uid: uid.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        api_version: API_VERSION.to_owned(),
        ..DesiredProgram::default()
    }
}
