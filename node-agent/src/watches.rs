//! What others do to our pins and to the cgroups that manifests name, as inotify tells of it: bpffs and cgroupfs both
//! do, since what user space makes and removes there goes through the VFS.
//!
//! **Guarantees.** Whoever is told looks for himself: an event says where, never what to do. Events in a row are one.
//!
//! **Caveats.** What the kernel takes away by itself (a link whose target ends) is not told here; neither is anything
//! where inotify cannot be had. The look every 30 s sees it.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use skep_kernel::bpffs::escape;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Wakes a program's actor.
#[derive(Debug, Default)]
pub struct Stir {
    /// A pin went, by whose doing ever.
    pub pins: Notify,
    /// A cgroup that the program names came or went.
    pub cgroups: Notify,
}

#[derive(Debug)]
struct Watch {
    uid: String,
    /// The one name in a cgroup's parent that matters; `None` for a directory of pins.
    name: Option<OsString>,
    stir: Arc<Stir>,
}

/// The node's watched directories.
#[derive(Debug, Default)]
pub struct Watches {
    /// Skep's directory in the bpffs.
    root: PathBuf,
    inotify: Option<AsyncFd<OwnedFd>>,
    /// By watch descriptor.
    watched: Mutex<HashMap<i32, Vec<Watch>>>,
}

impl Watches {
    /// In a runtime. `root` is Skep's directory in the bpffs.
    pub fn open(root: &Path) -> Self {
        let opened = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).map_err(io::Error::from);
        #[expect(deprecated, reason = "unsound for types that lend or change their descriptor; OwnedFd does neither")]
        let inotify = opened
            .and_then(|fd| AsyncFd::with_interest(fd, tokio::io::Interest::READABLE))
            .inspect_err(|error| tracing::warn!(%error, "no inotify: deleted pins are seen every 30 s only"))
            .ok();
        Watches { root: root.to_owned(), inotify, watched: Mutex::default() }
    }

    /// Watches the directories of a program that there are now, and its cgroups. Blocks.
    pub fn follow(&self, uid: &str, stir: &Arc<Stir>, cgroups: &BTreeSet<PathBuf>) {
        let Some(inotify) = &self.inotify else { return };
        let add = |dir: &Path, name: Option<&OsStr>, flags| {
            // One that went meanwhile has nothing to tell.
            let Ok(wd) = inotify::add_watch(inotify, dir, flags | WatchFlags::ONLYDIR) else { return };
            let mut watched = self.lock();
            let of = watched.entry(wd).or_default();
            if !of.iter().any(|w| w.uid == uid && w.name.as_deref() == name) {
                of.push(Watch { uid: uid.to_owned(), name: name.map(OsStr::to_owned), stir: stir.clone() });
                // What went before the watch was there was told to nobody.
                stir.pins.notify_one();
            }
        };
        let mut dirs = vec![self.root.join(escape(uid))];
        while let Some(dir) = dirs.pop() {
            add(&dir, None, WatchFlags::DELETE | WatchFlags::MOVED_FROM);
            let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
            dirs.extend(entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()));
        }
        for (dir, name) in cgroups.iter().filter_map(|path| anchor(path)) {
            add(&dir, Some(&name), WatchFlags::DELETE | WatchFlags::CREATE);
        }
    }

    /// Nobody is to be told of this program any more.
    pub fn forget(&self, uid: &str) {
        let Some(inotify) = &self.inotify else { return };
        self.lock().retain(|wd, of| {
            of.retain(|watch| watch.uid != uid);
            if of.is_empty() {
                // A directory that is gone took its watch along.
                let _ = inotify::remove_watch(inotify, *wd);
            }
            !of.is_empty()
        });
    }

    /// Tells those whom it concerns, until cancelled.
    pub async fn run(&self, cancel: CancellationToken) {
        let Some(inotify) = &self.inotify else { return cancel.cancelled().await };
        loop {
            let ready = tokio::select! {
                () = cancel.cancelled() => return,
                ready = inotify.readable() => ready,
            };
            match ready {
                Ok(mut ready) => {
                    let _ = ready.try_io(|fd| self.read(fd.get_ref()));
                }
                Err(error) => {
                    tracing::warn!(%error, "inotify ended: deleted pins are seen every 30 s only");
                    return cancel.cancelled().await;
                }
            }
        }
    }

    /// All that there is to read; always ends with `WouldBlock`.
    fn read(&self, fd: &OwnedFd) -> io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = Reader::new(fd, &mut buffer);
        loop {
            let event = events.next()?;
            let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
            self.tell(event.wd(), event.events(), name);
        }
    }

    fn tell(&self, wd: i32, events: ReadFlags, name: Option<&OsStr>) {
        let mut watched = self.lock();
        if events.contains(ReadFlags::QUEUE_OVERFLOW) {
            watched.values().flatten().for_each(Watch::wake);
        } else if events.contains(ReadFlags::IGNORED) {
            watched.remove(&wd);
        } else {
            let of = watched.get(&wd).into_iter().flatten();
            of.filter(|w| w.name.is_none() || w.name.as_deref() == name).for_each(Watch::wake);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i32, Vec<Watch>>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch {
    fn wake(&self) {
        if self.name.is_some() { self.stir.cgroups.notify_one() } else { self.stir.pins.notify_one() }
    }
}

/// The deepest directory above a path that is there, and the name below it that leads to the path.
fn anchor(path: &Path) -> Option<(PathBuf, OsString)> {
    path.ancestors().find_map(|at| {
        let (dir, name) = (at.parent()?, at.file_name()?);
        dir.is_dir().then(|| (dir.to_owned(), name.to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_that_is_not_there_is_waited_for_where_its_path_ends() {
        let dir = tempfile::tempdir().unwrap();
        let name = |name: &str| OsString::from(name);
        assert_eq!(anchor(&dir.path().join("a/b/c")), Some((dir.path().to_owned(), name("a"))));
        std::fs::create_dir(dir.path().join("a")).unwrap();
        assert_eq!(anchor(&dir.path().join("a/b/c")), Some((dir.path().join("a"), name("b"))));
        assert_eq!(anchor(&dir.path().join("a")), Some((dir.path().to_owned(), name("a"))));
        assert_eq!(anchor(Path::new("/")), None);
    }
}
