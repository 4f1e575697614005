//! Whether anything of a program changed since it was observed.
//!
//! **Guarantees.** What it costs grows with directories and links, not with what is pinned: a directory's time of change
//! tells of pins that came, went or were renamed; only links are asked, since others change them without touching a pin.
//!
//! **Caveats.** File systems keep time in ticks of some milliseconds: of two changes within one, the later is not seen
//! here. Nothing pinned changes by itself, but links.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::bpffs::Bpffs;
use crate::error::KernelError;
use crate::seam::{Observed, ObservedLink};
use crate::shared;
use crate::sys::{self, link};
use crate::tc::Filters;

/// Which directory it is, and when an entry of it came or went last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectoryStamp {
    inode: u64,
    seconds: i64,
    nanoseconds: i64,
}

impl DirectoryStamp {
    /// `None`: it is not there.
    pub fn of(dir: &Path) -> Option<Self> {
        let meta = std::fs::metadata(dir).ok()?;
        Some(DirectoryStamp { inode: meta.ino(), seconds: meta.mtime(), nanoseconds: meta.mtime_nsec() })
    }
}

/// Compares with what there is.
pub fn has_changed(bpffs: &Bpffs, filters: &Filters, uid: &str, seen: &Observed) -> Result<bool, KernelError> {
    if seen.directories.iter().any(|(dir, stamp)| DirectoryStamp::of(dir) != *stamp) {
        return Ok(true);
    }
    for (load, before) in seen.loads.iter().filter(|(_, load)| !load.shares.is_empty()) {
        if shared::of_load(bpffs, &bpffs.load(uid, load))? != before.shares {
            return Ok(true);
        }
    }
    for (name, before) in &seen.links {
        let pinned = sys::open_pin(&bpffs.link(uid, name)).and_then(|fd| link::info(fd.as_fd()));
        let now = match pinned {
            Ok(info) => ObservedLink::from(&info),
            // It has a record instead.
            Err(e) if e.kind() == io::ErrorKind::NotFound => filters.observe(uid, name)?,
            Err(source) => return Err(KernelError::Io { what: format!("reading link {name}"), source }),
        };
        if now != *before {
            return Ok(true);
        }
    }
    Ok(false)
}
