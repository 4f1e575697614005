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
use crate::desired::{DesiredProgram, Unresolved};
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
        let twice = of_one_name(&documents);
        for Document { namespace, name, program, .. } in documents {
            if name.is_empty() {
                well = false;
                continue;
            }
            let uid = uid(&namespace, &name);
            seen.insert(uid.clone());
            // Which of them is meant is not for us to say.
            let program = match twice.get(&(namespace.clone(), name.clone())) {
                Some(message) => Err(message.clone()),
                None => program,
            };
            match program {
                Ok(program) => valid.push((uid, *program)),
                Err(message) => {
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
            well &= digest.is_ok();
            match self.take(change, digest).await {
                Ok(()) => drop(self.said.remove(&uid)),
                Err(error) => {
                    well = false;
                    self.refuse(uid, namespace, name, error.reason(), error.to_string()).await;
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
            let Document { file, name, program: Err(message), .. } = document else { continue };
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

    /// One whose image cannot be had is taken over as well: what ran before is looked after, off its hooks if the manifest
    /// says so.
    async fn take(&mut self, change: Change, digest: Result<String, Unresolved>) -> Result<(), ProgramError> {
        let (uid, namespace, name) = change.identity();
        let (digest, unresolved) = match digest {
            Ok(digest) => (digest, None),
            Err(why) => (String::new(), Some(why)),
        };
        let Change { program, spec, restart, .. } = change;
        let desired = DesiredProgram {
            revision: revision_hash(&program.spec, &digest, restart.as_deref()),
            load: load_hash(&program.spec, &digest, restart.as_deref()),
            spec: spec.clone(),
            digest,
            unresolved,
            ..blank(&uid, &namespace, &name)
        };
        // What does not resolve is asked for again.
        let whole = desired.unresolved.is_none();
        self.supervisor.apply(desired, Auth::Anonymous).await?;
        match whole {
            true => drop(self.applied.insert(uid, Applied { spec, restart })),
            false => drop(self.applied.remove(&uid)),
        }
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
        let meta = &self.program.metadata;
        let namespace = meta.namespace.clone().unwrap_or_else(|| "default".into());
        (self.uid.clone(), namespace, meta.name.clone().unwrap_or_default())
    }

    /// A tag is resolved once: as long as the manifest names the same image, its digest stays.
    async fn resolve(self, shared: Arc<Shared>) -> (Self, Result<String, Unresolved>) {
        let reference = &self.program.spec.image.reference;
        let stored = shared.store.get(&self.uid).ok().flatten();
        if let Some(digest) = stored.and_then(|stored| known_digest(&stored, reference)) {
            return (self, Ok(digest));
        }
        if let Some((_, digest)) = reference.split_once("@sha256:") {
            let digest = format!("sha256:{digest}");
            return (self, Ok(digest));
        }
        let resolved = shared.images.registry().resolve(reference, &Auth::Anonymous).await;
        let digest = resolved.map(|d| d.to_string()).map_err(|e| {
            let error = ProgramError::from(e);
            Unresolved { reason: error.reason(), message: error.to_string() }
        });
        (self, digest)
    }
}

/// What a reference was resolved to, for the record's revision or the one that ran before.
fn known_digest(stored: &DesiredProgram, reference: &str) -> Option<String> {
    let of =
        |stored: &&DesiredProgram| stored.spec.pointer("/image/reference").and_then(Value::as_str) == Some(reference);
    let mut known = std::iter::once(stored).chain(stored.older.as_deref());
    known.find(|stored| of(stored) && !stored.digest.is_empty()).map(|stored| stored.digest.clone())
}

/// Programs that several documents are about, and what to say of it.
fn of_one_name(documents: &[Document]) -> BTreeMap<(String, String), String> {
    let mut files: BTreeMap<(String, String), Vec<&str>> = BTreeMap::new();
    for document in documents.iter().filter(|document| !document.name.is_empty()) {
        let identity = (document.namespace.clone(), document.name.clone());
        files.entry(identity).or_default().push(&document.file);
    }
    files.retain(|_, files| files.len() > 1);
    let message = |files: &[&str]| {
        let files = files.join(" and ");
        format!(
            "several manifests have this name, in {files}: rename or delete all but one; until then nothing is changed"
        )
    };
    files.into_iter().map(|(identity, files)| (identity, message(&files))).collect()
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
