//! Standalone: EbpfPrograms from YAML files in a directory, without Kubernetes.
//!
//! **Guarantees.** A manifest gets the verdict that the API server would give. A file that became unreadable or invalid
//! changes nothing but the report: what ran, runs on. A file that is gone removes its programs; the directory as a whole
//! being unreadable removes nothing.

mod follower;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use serde::Deserialize;
use serde_json::Value;
use skep_crds::{EbpfProgram, validate};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::follower::Follower;
use crate::actor::Shared;
use crate::supervisor::Handle;

/// An editor writes a file in several steps.
const SETTLE: Duration = Duration::from_millis(100);
/// What inotify does not tell (network file systems, a directory that appears) is seen by looking.
const EVERY: Duration = Duration::from_secs(10);

/// The uid of a manifest: the same for the same namespace and name.
pub fn uid(namespace: &str, name: &str) -> String {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("skep.dev/{namespace}/{name}").as_bytes()).to_string()
}

/// A document of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    pub file: String,
    /// Empty, as the name is, where it does not say which program it is about.
    pub namespace: String,
    pub name: String,
    /// Or why it is refused.
    pub program: Result<Box<EbpfProgram>, String>,
}

/// The documents of one file's text.
pub fn parse(file: &str, text: &str) -> Vec<Document> {
    let mut documents = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        match Value::deserialize(document) {
            Ok(Value::Null) => {}
            Ok(value) => documents.push(verdict(file, &value)),
            Err(e) => {
                documents.push(nameless(file, format!("{file}: not YAML: {e}")));
                break;
            }
        }
    }
    if documents.is_empty() {
        // Whoever wants a program gone deletes its file: an empty one is what a crash, or half a write, leaves.
        let message = format!("{file}: it is empty; delete the file to remove its programs");
        documents.push(nameless(file, message));
    }
    documents
}

/// Of what does not say which program it is about.
fn nameless(file: &str, message: String) -> Document {
    Document { file: file.to_owned(), namespace: String::new(), name: String::new(), program: Err(message) }
}

fn verdict(file: &str, value: &Value) -> Document {
    let field = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let namespace = Some(field("/metadata/namespace")).filter(|n| !n.is_empty()).unwrap_or_else(|| "default".into());
    // The names of other kinds are not those of programs.
    let name = if field("/kind") == "EbpfProgram" { field("/metadata/name") } else { String::new() };
    let namespace = if name.is_empty() { String::new() } else { namespace };
    let program = validate::manifest(value).map(Box::new).map_err(|violations| {
        let texts: Vec<String> = violations.iter().map(ToString::to_string).collect();
        format!("{file}: {}", texts.join("; "))
    });
    Document { file: file.to_owned(), namespace, name, program }
}

/// Follows a directory until cancelled.
pub async fn run(dir: PathBuf, shared: std::sync::Arc<Shared>, supervisor: Handle, cancel: CancellationToken) {
    let (poke, mut poked) = mpsc::channel(1);
    let mut watcher = watch(&dir, poke.clone());
    let mut place = place_of(&dir);
    let mut resyncs = shared.resyncs.clone();
    let mut follower = Follower::new(shared, supervisor);
    let mut known = Known::default();
    let (mut told, mut settled) = (true, false);
    loop {
        // Times alone tell of most changes; whoever was told reads.
        let by_times = !told && settled && watcher.is_some();
        let now = place_of(&dir);
        let another = now.is_some() && now != place;
        let looked = match read(&dir, &mut known, by_times && !another) {
            // A mount that comes late, or was taken away, looks like this.
            Ok(Some(documents)) if another && documents.is_empty() && follower.has_applied() => {
                Err(format!("{} is another directory now, and empty", dir.display()))
            }
            looked => looked,
        };
        if another && looked.is_ok() {
            (watcher, place) = (watch(&dir, poke.clone()), now);
        }
        match looked {
            Ok(Some(documents)) => tokio::select! {
                well = follower.apply(documents) => settled = well,
                // A registry that does not answer holds up nobody: what was not taken over is, the next time.
                Some(()) = poked.recv() => {
                    (settled, told) = (false, true);
                    tokio::time::sleep(SETTLE).await;
                    while poked.try_recv().is_ok() {}
                    continue;
                }
            },
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "manifests cannot be read; nothing is changed"),
        }
        told = true;
        tokio::select! {
            () = cancel.cancelled() => return,
            Some(()) = poked.recv() => tokio::time::sleep(SETTLE).await,
            changed = resyncs.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(EVERY) => told = false,
        }
        while poked.try_recv().is_ok() {}
    }
}

/// Which directory it is.
fn place_of(dir: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(dir).ok().map(|meta| (meta.dev(), meta.ino()))
}

fn watch(dir: &Path, poke: mpsc::Sender<()>) -> Option<RecommendedWatcher> {
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading is told of too, and we are who reads.
        let written = EventKind::Access(AccessKind::Close(AccessMode::Write));
        if event.is_ok_and(|event| event.kind.is_access() && event.kind != written) {
            return;
        }
        // One poke waiting is as good as many.
        let _ = poke.try_send(());
    });
    let started = watcher.and_then(|mut watcher| watcher.watch(dir, RecursiveMode::NonRecursive).map(|()| watcher));
    started.inspect_err(|error| tracing::warn!(%error, "no inotify: manifests are looked at every 10 s")).ok()
}

/// Files as they were read last: what did not change is not parsed and validated again.
#[derive(Default)]
struct Known(BTreeMap<PathBuf, (Option<Stamp>, String, Vec<Document>)>);

/// Device, inode, size and time of the last change of a file, behind all links: taken before it was read.
type Stamp = (u64, u64, u64, i64, i64);

fn stamp(file: &Path) -> Option<Stamp> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(file).ok()?;
    Some((meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec()))
}

/// What all files say; `None` where it is asked for by times, and all are those that were read last.
fn read(dir: &Path, known: &mut Known, by_times: bool) -> Result<Option<Vec<Document>>, String> {
    let entries = std::fs::read_dir(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
    files.retain(|p| {
        let hidden = p.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
        !hidden && p.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
    });
    files.sort();
    let as_before = |(file, (before, ..)): (&PathBuf, &(Option<Stamp>, String, Vec<Document>))| {
        before.is_some() && *before == stamp(file)
    };
    if by_times && known.0.keys().eq(&files) && known.0.iter().all(as_before) {
        return Ok(None);
    }
    Ok(Some(documents(files, known)))
}

/// What is in the files of a listing. A listing may lack a file that was renamed over meanwhile, as editors do it: one that
/// was known and is still there is read all the same, since what is missing is taken off the node.
fn documents(mut files: Vec<PathBuf>, known: &mut Known) -> Vec<Document> {
    files.sort();
    let lost = |file: &&PathBuf| files.binary_search(file).is_err() && file.symlink_metadata().is_ok();
    let overlooked: Vec<PathBuf> = known.0.keys().filter(lost).cloned().collect();
    files.extend(overlooked);
    files.sort();
    known.0.retain(|file, _| files.binary_search(file).is_ok());
    let mut documents = Vec::new();
    for file in files {
        let (shown, stamp) = (file.display().to_string(), stamp(&file));
        match std::fs::read_to_string(&file) {
            Ok(text) => match known.0.get_mut(&file) {
                Some((then, before, parsed)) if *before == text => {
                    *then = stamp;
                    documents.extend(parsed.iter().cloned());
                }
                _ => {
                    let parsed = parse(&shown, &text);
                    documents.extend(parsed.iter().cloned());
                    known.0.insert(file, (stamp, text, parsed));
                }
            },
            // It went after it was listed.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && file.symlink_metadata().is_err() => {}
            Err(e) => documents.push(nameless(&shown, format!("{shown}: {e}"))),
        }
    }
    documents
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "apiVersion: skep.dev/v1alpha1\nkind: EbpfProgram\nmetadata: {name: a, namespace: n}\nspec:\n  image: {reference: r.example/x:v1}\n  programs: [{name: f, attach: [{xdp: {interfaces: {primary: true}}}]}]\n";

    #[test]
    fn several_documents_and_mistakes_are_told_apart() {
        let bad = GOOD.replace("primary: true", "primry: true").replace("name: a", "name: b");
        let documents = parse("f.yaml", &format!("{GOOD}---\n{bad}"));
        assert_eq!(documents.len(), 2);
        assert!(documents[0].program.is_ok());
        let Document { namespace, name, program: Err(message), .. } = &documents[1] else { panic!() };
        assert_eq!((namespace.as_str(), name.as_str()), ("n", "b"));
        assert!(message.contains("known here: exclude, match, names, pods, primary"), "{message}");
    }

    #[tokio::test]
    async fn reading_the_directory_is_no_change_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let (poke, mut poked) = mpsc::channel(1);
        std::fs::write(dir.path().join("a.yaml"), GOOD).unwrap();
        let _watcher = watch(dir.path(), poke).unwrap();
        let mut known = Known::default();
        assert_eq!(read(dir.path(), &mut known, false).unwrap().unwrap().len(), 1);
        assert!(tokio::time::timeout(SETTLE, poked.recv()).await.is_err(), "a change is seen where there was none");
        std::fs::write(dir.path().join("a.yaml"), GOOD).unwrap();
        assert!(tokio::time::timeout(EVERY, poked.recv()).await.is_ok());
    }

    #[test]
    fn a_file_that_changed_is_read_anew_and_one_that_went_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a.yaml"), dir.path().join("b.yaml"));
        let mut known = Known::default();
        std::fs::write(&a, GOOD).unwrap();
        std::fs::write(&b, "nonsense").unwrap();
        let first = read(dir.path(), &mut known, false).unwrap().unwrap();
        assert_eq!(read(dir.path(), &mut known, false).unwrap().unwrap(), first);
        assert_eq!(read(dir.path(), &mut known, true), Ok(None), "nothing changed");
        std::fs::write(&b, GOOD).unwrap();
        assert!(read(dir.path(), &mut known, true).unwrap().is_some(), "its time or size tells");
        let second = read(dir.path(), &mut known, false).unwrap().unwrap();
        assert!(second != first && second.iter().all(|document| document.program.is_ok()));
        assert_eq!(documents(vec![], &mut known), second, "a listing that lacks them is no removal");
        assert_eq!(read(dir.path(), &mut known, true), Ok(None), "nor does it make them unknown");
        std::fs::remove_file(&a).unwrap();
        assert_eq!((read(dir.path(), &mut known, false).unwrap().unwrap().len(), known.0.len()), (1, 1));
    }

    #[test]
    fn an_empty_file_removes_nothing() {
        for text in ["", "# nothing yet\n", "---\n"] {
            let [Document { namespace, name, program: Err(message), .. }] = &parse("a.yaml", text)[..] else {
                panic!("{text:?}")
            };
            assert_eq!((namespace.as_str(), name.as_str()), ("", ""));
            assert_eq!(message, "a.yaml: it is empty; delete the file to remove its programs");
        }
    }

    #[test]
    fn another_kinds_name_is_not_a_programs() {
        let config = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: flows, namespace: net}\n";
        let [Document { namespace, name, program: Err(message), .. }] = &parse("a.yaml", config)[..] else { panic!() };
        assert_eq!((namespace.as_str(), name.as_str()), ("", ""));
        assert!(message.contains("kind") && message.starts_with("a.yaml: "), "{message}");
    }

    #[test]
    fn uids_are_stable() {
        assert_eq!(uid("n", "a"), uid("n", "a"));
        assert_ne!(uid("n", "a"), uid("n-a", ""));
    }
}
