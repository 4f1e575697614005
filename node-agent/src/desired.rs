//! What the node should run: one file per uid, exactly what `Apply` carried, without secrets.
//!
//! **Guarantees.** [`Store::put`] returns when the record is safe on disk (written aside, fsynced, renamed, directory
//! fsynced). A file that does not decode is reported and left alone: it is neither wanted nor removed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use skep_crds::Reason;

/// How long an agent that ended may still have its lock.
const PARTING: Duration = Duration::from_secs(2);
/// Older loads whose revision is remembered.
const REMEMBERED_LOADS: usize = 8;

/// One program that the node should run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DesiredProgram {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub generation: i64,
    pub revision: String,
    pub load: String,
    /// `sha256:<64 hex>` of the image's manifest; empty while its reference does not resolve.
    pub digest: String,
    /// Why there is no digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unresolved: Option<Unresolved>,
    pub api_version: String,
    /// The object's spec as it came.
    pub spec: serde_json::Value,
    /// Which revision each load belongs to that may still be on the node: load to revision.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub loads: BTreeMap<String, String>,
    /// The revision that ran when this one came, until this one does: as long as this one is refused, it is looked after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub older: Option<Box<DesiredProgram>>,
}

/// Why an image's reference does not resolve, as whoever asked the registry says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unresolved {
    pub reason: Reason,
    pub message: String,
}

impl DesiredProgram {
    /// The record of what comes after this one. `running`: the revision that runs, if that is known.
    pub fn succeeded_by(self, mut next: DesiredProgram, running: Option<&str>) -> DesiredProgram {
        next.loads = self.loads.clone();
        next.loads.insert(self.load.clone(), self.revision.clone());
        next.loads.remove(&next.load);
        while next.loads.len() > REMEMBERED_LOADS {
            next.loads.pop_first();
        }
        let runs = running.map_or(self.older.is_none(), |running| running == self.revision);
        next.older = match (runs, self.revision == next.revision) {
            (true, true) => None,
            (true, false) => Some(Box::new(DesiredProgram { older: None, loads: BTreeMap::new(), ..self })),
            (false, _) => self.older,
        };
        next
    }
}

/// Why a desired file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{path}: {source}", path = .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: {source}", path = .path.display())]
    Undecodable { path: PathBuf, source: serde_json::Error },
    #[error("{path} is locked by another agent; one agent runs per node", path = .path.display())]
    Locked { path: PathBuf },
}

/// The state directory's `desired` folder.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    /// One record is written at a time.
    writing: Mutex<()>,
    /// Held as long as the agent lives: one agent per state directory.
    _lock: File,
}

impl Store {
    /// Opens (and makes) the store below the state directory, and locks it.
    pub fn open(state_dir: &Path) -> Result<Self, StoreError> {
        let dir = state_dir.join("desired");
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::Io { path, source }
        };
        fs::create_dir_all(&dir).map_err(at(&dir))?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).map_err(at(&dir))?;
        let lock_path = state_dir.join("lock");
        let lock = File::create(&lock_path).map_err(at(&lock_path))?;
        // One that was killed holds it until the kernel has taken all of it apart.
        let start = Instant::now();
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(fs::TryLockError::WouldBlock) if start.elapsed() < PARTING => std::thread::sleep(PARTING / 20),
                Err(fs::TryLockError::WouldBlock) => return Err(StoreError::Locked { path: lock_path }),
                Err(fs::TryLockError::Error(source)) => return Err(StoreError::Io { path: lock_path, source }),
            }
        }
        let store = Store { dir, writing: Mutex::default(), _lock: lock };
        store.sweep()?;
        Ok(store)
    }

    /// A write that a crash cut short was never acknowledged. Only at the start: later one may be under way.
    fn sweep(&self) -> Result<(), StoreError> {
        let entries = fs::read_dir(&self.dir).map_err(|source| StoreError::Io { path: self.dir.clone(), source })?;
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.extension().is_some_and(|extension| extension == "tmp") {
                fs::remove_file(&path).map_err(|source| StoreError::Io { path, source })?;
            }
        }
        Ok(())
    }

    /// All records, and the files that are none.
    pub fn load(&self) -> Result<(Vec<DesiredProgram>, Vec<StoreError>), StoreError> {
        let (mut programs, mut broken) = (Vec::new(), Vec::new());
        let entries = fs::read_dir(&self.dir).map_err(|source| StoreError::Io { path: self.dir.clone(), source })?;
        for entry in entries {
            let path = entry.map_err(|source| StoreError::Io { path: self.dir.clone(), source })?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match read(&path) {
                Ok(program) => programs.push(program),
                Err(e) => broken.push(e),
            }
        }
        programs.sort_by(|a, b| a.uid.cmp(&b.uid));
        Ok((programs, broken))
    }

    /// One record.
    pub fn get(&self, uid: &str) -> Result<Option<DesiredProgram>, StoreError> {
        let path = self.path(uid);
        if path.exists() { read(&path).map(Some) } else { Ok(None) }
    }

    /// Writes a record.
    pub fn put(&self, program: &DesiredProgram) -> Result<(), StoreError> {
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.write(program)
    }

    /// A revision runs: the one before it is not needed any more. A record that is of another by now stays.
    pub fn settle(&self, uid: &str, revision: &str) -> Result<(), StoreError> {
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        match self.get(uid)? {
            Some(program) if program.revision == revision && program.older.is_some() => {
                self.write(&DesiredProgram { older: None, ..program })
            }
            _ => Ok(()),
        }
    }

    fn write(&self, program: &DesiredProgram) -> Result<(), StoreError> {
        let path = self.path(&program.uid);
        let write = || write_secret(&path, &serde_json::to_vec_pretty(program)?);
        write().map_err(|source| StoreError::Io { path: path.clone(), source })
    }

    /// Remembers that the registry let this program have the image for this load: after a reboot it is not asked again, since it may
    /// not be there yet. One that cannot be written is asked for again.
    pub fn admit(&self, uid: &str, load: &str) {
        if let Err(error) = fs::write(self.admitted(uid), load) {
            tracing::warn!(uid, %error, "the registry will be asked again after a reboot");
        }
    }

    /// Whether the registry let this program have the image for this load.
    pub fn is_admitted(&self, uid: &str, load: &str) -> bool {
        fs::read(self.admitted(uid)).is_ok_and(|admitted| admitted == load.as_bytes())
    }

    fn admitted(&self, uid: &str) -> PathBuf {
        self.path(uid).with_extension("admitted")
    }

    /// Removes a record; one that is not there is fine.
    pub fn remove(&self, uid: &str) -> Result<(), StoreError> {
        let _ = fs::remove_file(self.admitted(uid));
        let path = self.path(uid);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(StoreError::Io { path, source }),
            _ => Ok(()),
        }
    }

    fn path(&self, uid: &str) -> PathBuf {
        // uids are UUIDs; anything else must not lead out of the directory.
        let safe: String = uid.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
        self.dir.join(format!("{safe}.json"))
    }
}

/// Replaces a file that only root may read: written aside, fsynced, renamed, directory fsynced.
pub fn write_secret(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let staged = path.with_extension("tmp");
    // One that a crash left may have been made for everybody to read.
    match fs::remove_file(&staged) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let write = || {
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&staged)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&staged, path)
    };
    if let Err(error) = write() {
        // The disk may be full of such.
        let _ = fs::remove_file(&staged);
        return Err(error);
    }
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

fn read(path: &Path) -> Result<DesiredProgram, StoreError> {
    let text = fs::read(path).map_err(|source| StoreError::Io { path: path.to_owned(), source })?;
    serde_json::from_slice(&text).map_err(|source| StoreError::Undecodable { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(uid: &str) -> DesiredProgram {
        DesiredProgram {
            uid: uid.into(),
            namespace: "ns".into(),
            name: "n".into(),
            generation: 1,
            revision: "r".into(),
            load: "l".into(),
            digest: "sha256:0".into(),
            api_version: "skep.dev/v1alpha1".into(),
            spec: serde_json::json!({"image": {"reference": "a/b:c"}}),
            ..DesiredProgram::default()
        }
    }

    #[test]
    fn what_ran_is_remembered_until_what_came_after_it_runs() {
        let of = |revision: &str| DesiredProgram { revision: revision.into(), load: revision.into(), ..program("u1") };
        let older = |program: &DesiredProgram| program.older.as_ref().map(|older| older.revision.clone());
        let second = of("r1").succeeded_by(of("r2"), Some("r1"));
        assert_eq!(older(&second).as_deref(), Some("r1"));
        assert_eq!(second.loads, BTreeMap::from([("r1".to_owned(), "r1".to_owned())]));
        let third = second.clone().succeeded_by(of("r3"), Some("r1"));
        assert_eq!(older(&third).as_deref(), Some("r1"), "the second never ran");
        assert_eq!(older(&second.clone().succeeded_by(of("r3"), Some("r2"))).as_deref(), Some("r2"));
        assert_eq!(
            older(&second.clone().succeeded_by(of("r3"), None)).as_deref(),
            Some("r1"),
            "not known: as recorded"
        );
        assert_eq!(older(&second.clone().succeeded_by(of("r2"), Some("r1"))).as_deref(), Some("r1"), "told again");
        assert_eq!(older(&second.clone().succeeded_by(of("r2"), Some("r2"))), None);
        assert_eq!(older(&of("r1").succeeded_by(of("r2"), Some(""))), None, "nothing ever ran");

        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.put(&second).unwrap();
        store.settle("u1", "r1").unwrap();
        assert_eq!(older(&store.get("u1").unwrap().unwrap()).as_deref(), Some("r1"), "a record of another revision");
        store.settle("u1", "r2").unwrap();
        assert_eq!(older(&store.get("u1").unwrap().unwrap()), None);
        store.settle("u2", "r2").unwrap();
    }

    #[test]
    fn records_survive_and_broken_files_are_told_but_kept() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.put(&program("u1")).unwrap();
        fs::write(dir.path().join("desired/u2.json"), "{").unwrap();
        fs::write(dir.path().join("desired/u3.tmp"), "half").unwrap();
        drop(store);
        let store = Store::open(dir.path()).unwrap();
        let (programs, broken) = store.load().unwrap();
        assert_eq!(programs, [program("u1")]);
        assert_eq!(broken.len(), 1);
        assert!(dir.path().join("desired/u2.json").exists());
        assert!(!dir.path().join("desired/u3.tmp").exists());
        store.remove("u1").unwrap();
        store.remove("u1").unwrap();
        assert!(store.load().unwrap().0.is_empty());
    }

    #[test]
    fn what_the_registry_allowed_is_remembered_for_that_load_and_as_long_as_the_program() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.admit("u1", "l1");
        assert!(store.is_admitted("u1", "l1"));
        assert!(!store.is_admitted("u1", "l2") && !store.is_admitted("u2", "l1"));
        store.remove("u1").unwrap();
        assert!(!store.is_admitted("u1", "l1"));
        assert!(store.load().unwrap().0.is_empty());
    }

    /// Globals may hold what is nobody else's business.
    #[test]
    fn only_root_reads_them() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.put(&program("u1")).unwrap();
        let mode = |path: &str| fs::metadata(dir.path().join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("desired"), mode("desired/u1.json")), (0o700, 0o600));
    }

    #[test]
    fn a_second_agent_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Store::open(dir.path()).unwrap();
        assert!(matches!(Store::open(dir.path()), Err(StoreError::Locked { .. })));
    }

    #[test]
    fn a_uid_cannot_lead_out_of_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.put(&program("../../evil")).unwrap();
        assert!(dir.path().join("desired/______evil.json").exists());
    }
}
