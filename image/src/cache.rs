//! Objects on disk, by the digest of their image.
//!
//! Guarantees: an entry is whole or not there, after any crash (temporary file, fsync, rename, fsync of the directory);
//! it is read only if its bytes are still the ones that were written (SHA-256 in its head), else dropped, with a warning.
//!
//! Assumptions: one process writes a directory. Blocking: call it from a thread that may block.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::ImageError;
use crate::format::{Bytecode, Format};

/// A directory of objects.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
}

/// An object in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheEntry {
    /// Digest of the image.
    pub digest: Digest,
    /// Size on disk, in bytes.
    pub size: u64,
    /// When it was last written or read.
    pub used: SystemTime,
}

/// The first line of an entry's file; the object follows.
#[derive(Serialize, Deserialize)]
struct Head {
    digest: Digest,
    format: Format,
    object: Digest,
}

const TEMPORARY: &str = "~";

impl Cache {
    /// Opens the directory, making it if need be, and removes what a crash left half written.
    pub fn open(dir: &Path) -> Result<Self, ImageError> {
        let cache = Self { dir: dir.into() };
        let sweep = || -> io::Result<()> {
            fs::create_dir_all(dir)?;
            for file in fs::read_dir(dir)? {
                let file = file?;
                if file.file_name().to_string_lossy().ends_with(TEMPORARY) {
                    fs::remove_file(file.path())?;
                }
            }
            Ok(())
        };
        sweep().map_err(|source| cache.failed(source))?;
        Ok(cache)
    }

    /// The object of the image, if it is here and whole. A damaged entry is removed and is then not here.
    pub fn get(&self, digest: &Digest) -> Result<Option<Bytecode>, ImageError> {
        let path = self.path(digest);
        let mut bytes = vec![];
        let read = File::open(&path).and_then(|mut file| {
            file.read_to_end(&mut bytes)?;
            // Only so that trim() knows; a read-only directory is no reason to fail.
            let _ = file.set_modified(SystemTime::now());
            Ok(())
        });
        match read {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failed(error)),
            Ok(()) => {}
        }
        let found = parse(&bytes).filter(|bytecode| bytecode.digest == *digest);
        if found.is_none() {
            tracing::warn!(%digest, path = %path.display(), "the cached image is damaged: dropped, it will be pulled again");
            self.remove(digest)?;
        }
        Ok(found)
    }

    /// Keeps an object.
    pub fn put(&self, bytecode: &Bytecode) -> Result<(), ImageError> {
        let head =
            Head { digest: bytecode.digest.clone(), format: bytecode.format, object: Digest::of(&bytecode.object) };
        let path = self.path(&bytecode.digest);
        let temporary = self.dir.join(format!("{}{TEMPORARY}", bytecode.digest.hex()));
        let write = || -> io::Result<()> {
            let mut file = File::create(&temporary)?;
            file.write_all(&serde_json::to_vec(&head)?)?;
            file.write_all(b"\n")?;
            file.write_all(&bytecode.object)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(|source| self.failed(source))
    }

    /// Removes an object; one that is not here is no error.
    pub fn remove(&self, digest: &Digest) -> Result<(), ImageError> {
        match fs::remove_file(self.path(digest)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.failed(error)),
            _ => Ok(()),
        }
    }

    /// Every object, the one whose last use is longest ago first.
    pub fn list(&self) -> Result<Vec<CacheEntry>, ImageError> {
        let read = || -> io::Result<Vec<CacheEntry>> {
            let mut entries = vec![];
            for file in fs::read_dir(&self.dir)? {
                let file = file?;
                let Ok(digest) = format!("sha256:{}", file.file_name().to_string_lossy()).parse() else { continue };
                let metadata = file.metadata()?;
                entries.push(CacheEntry { digest, size: metadata.len(), used: metadata.modified()? });
            }
            entries.sort_by(|one, other| (one.used, &one.digest).cmp(&(other.used, &other.digest)));
            Ok(entries)
        };
        read().map_err(|source| self.failed(source))
    }

    /// Removes objects that are not in `keep`, the longest unused first, until the rest has at most `max_bytes`.
    /// Returns what was removed.
    pub fn trim(&self, keep: &HashSet<Digest>, max_bytes: u64) -> Result<Vec<Digest>, ImageError> {
        let entries = self.list()?;
        let mut total: u64 = entries.iter().map(|entry| entry.size).sum();
        let mut removed = vec![];
        for entry in entries.into_iter().filter(|entry| !keep.contains(&entry.digest)) {
            if total <= max_bytes {
                break;
            }
            self.remove(&entry.digest)?;
            total -= entry.size;
            removed.push(entry.digest);
        }
        Ok(removed)
    }

    /// Bytes that all objects take.
    pub fn size(&self) -> Result<u64, ImageError> {
        Ok(self.list()?.iter().map(|entry| entry.size).sum())
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.hex())
    }

    fn failed(&self, source: io::Error) -> ImageError {
        ImageError::Cache { path: self.dir.clone(), source }
    }
}

fn parse(bytes: &[u8]) -> Option<Bytecode> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let head: Head = serde_json::from_slice(&bytes[..end]).ok()?;
    let object = bytes[end + 1..].to_vec();
    (Digest::of(&object) == head.object).then_some(Bytecode { digest: head.digest, object, format: head.format })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytecode(name: &str) -> Bytecode {
        Bytecode { digest: Digest::of(name.as_bytes()), object: name.repeat(100).into(), format: Format::Skep }
    }

    #[test]
    fn what_is_put_is_got_and_what_is_damaged_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        let (one, path) = (bytecode("one"), dir.path().join(Digest::of(b"one").hex()));
        assert_eq!(cache.get(&one.digest).unwrap(), None);
        cache.put(&one).unwrap();
        assert_eq!(cache.get(&one.digest).unwrap(), Some(one.clone()));
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        for damaged in [&whole[..whole.len() - 1], &whole[..10], b"", &flipped] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(cache.get(&one.digest).unwrap(), None);
            assert!(!path.exists());
        }
        // An entry under another image's name is not that image's.
        fs::write(dir.path().join(Digest::of(b"two").hex()), &whole).unwrap();
        assert_eq!(cache.get(&Digest::of(b"two")).unwrap(), None);
    }

    #[test]
    fn what_a_crash_left_is_swept_and_trim_keeps_what_it_must() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(format!("{}~", Digest::of(b"x").hex())), "half").unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let all: Vec<Bytecode> = ["a", "b", "c"].map(bytecode).into();
        for (age, bytecode) in all.iter().enumerate() {
            cache.put(bytecode).unwrap();
            let file = File::options().append(true).open(cache.path(&bytecode.digest)).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(age as u64)).unwrap();
        }
        let listed: Vec<Digest> = cache.list().unwrap().into_iter().map(|entry| entry.digest).collect();
        assert_eq!(listed, all.iter().map(|b| b.digest.clone()).collect::<Vec<_>>());
        let keep = HashSet::from([all[0].digest.clone()]);
        let size = cache.list().unwrap()[0].size;
        assert_eq!(cache.trim(&keep, 2 * size).unwrap(), [all[1].digest.clone()]);
        assert_eq!(cache.trim(&keep, 0).unwrap(), [all[2].digest.clone()]);
        assert_eq!(cache.list().unwrap().len(), 1);
    }
}
