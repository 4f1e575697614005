//! tc filters (clsact), for kernels without tcx: they have no link that could be pinned, so each has a record in the
//! state directory.
//!
//! **Guarantees.** The record is written before the filter: what a crash leaves behind is found. Another's filter or
//! qdisc is never removed: a filter of ours carries its record's name, and a qdisc goes only if we made it and it is
//! empty. A record of another boot, or of a namespace that is gone, is not alive.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use skep_object::kind::attach;

use crate::error::KernelError;
use crate::hook::{Hook, Target};
use crate::netns;
use crate::probe::boot_id;
use crate::seam::ObservedLink;
use crate::sys::netlink::{self, FilterAt};

/// Where a filter goes that names no priority.
const DEFAULT_PRIORITY: u16 = 50;

/// A filter that should be there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    boot: String,
    netns: PathBuf,
    cookie: u64,
    ifindex: u32,
    parent: u32,
    priority: u16,
    handle: u32,
}

impl Record {
    fn at(&self) -> FilterAt {
        let Record { ifindex, parent, priority, handle, .. } = *self;
        FilterAt { ifindex, parent, priority, handle }
    }
    /// Runs `f` in the record's namespace; `None` when that is gone.
    fn within<T: Send>(&self, f: impl FnOnce() -> io::Result<T> + Send) -> io::Result<Option<T>> {
        if self.boot != boot_id() {
            return Ok(None);
        }
        let cookie = self.cookie;
        let result = netns::within(Some(&self.netns), || {
            // The path may lead to somebody else's namespace by now.
            if netns::cookie()? != cookie { Ok(None) } else { f().map(Some) }
        });
        match result {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            result => result,
        }
    }
}

/// The records of all filters.
#[derive(Clone, Debug)]
pub struct Filters {
    dir: PathBuf,
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> KernelError {
    KernelError::io(what)
}

impl Filters {
    /// Records below the state directory.
    pub fn new(state_dir: &Path) -> Self {
        Filters { dir: state_dir.join("tc") }
    }
    fn path(&self, uid: &str, link: &str) -> PathBuf {
        self.dir.join(uid).join(link)
    }
    fn qdisc_path(&self, record: &Record) -> PathBuf {
        self.dir.join(format!("qdisc-{}-{}", record.cookie, record.ifindex))
    }

    /// uids that have records.
    pub fn programs(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        entries.filter(|e| e.path().is_dir()).map(|e| e.file_name().to_string_lossy().into_owned()).collect()
    }

    /// Link names of a uid.
    pub fn links(&self, uid: &str) -> Vec<String> {
        let entries = fs::read_dir(self.dir.join(uid)).into_iter().flatten().flatten();
        entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
    }

    fn read(&self, uid: &str, link: &str) -> Option<Record> {
        serde_json::from_slice(&fs::read(self.path(uid, link)).ok()?).ok()
    }

    /// What the kernel shows of a filter.
    pub fn observe(&self, uid: &str, link: &str) -> Result<ObservedLink, KernelError> {
        let dead = ObservedLink { id: 0, program_id: 0, alive: false, interface: None };
        let Some(record) = self.read(uid, link) else { return Ok(dead) };
        let found = record.within(|| ours(&record, uid, link)).map_err(failed(format!("reading tc filter {link}")))?;
        let filter = found.flatten();
        Ok(filter.map_or(dead, |f| ObservedLink {
            id: f.at.handle,
            program_id: f.program_id,
            alive: true,
            interface: None,
        }))
    }

    /// Adds a filter.
    pub fn attach(&self, uid: &str, link: &str, hook: &Hook, program: BorrowedFd<'_>) -> Result<(), KernelError> {
        let Target::Interface { netns, cookie, ifindex, name } = &hook.target else {
            return Err(KernelError::TargetNotFound {
                target: hook.target.display(),
                why: "tc needs an interface".into(),
            });
        };
        let record = Record {
            boot: boot_id(),
            netns: netns.clone(),
            cookie: *cookie,
            ifindex: *ifindex,
            parent: if hook.attach_type == attach::TCX_EGRESS { netlink::EGRESS } else { netlink::INGRESS },
            priority: if hook.options.tc_priority == 0 { DEFAULT_PRIORITY } else { hook.options.tc_priority },
            handle: handle(uid, link),
        };
        let text = serde_json::to_vec(&record).unwrap_or_default();
        let path = self.path(uid, link);
        let write = || -> io::Result<()> {
            fs::create_dir_all(self.dir.join(uid))?;
            fs::write(&path, text)
        };
        write().map_err(failed(format!("writing {}", path.display())))?;
        let qdisc = self.qdisc_path(&record);
        let added = record.within(|| {
            if netlink::add_clsact(record.ifindex)? {
                fs::write(&qdisc, boot_id())?;
            }
            netlink::add_filter(record.at(), program, &filter_name(uid, link), false)
        });
        let error = match added {
            Ok(Some(())) => return Ok(()),
            Ok(None) => {
                KernelError::TargetNotFound { target: format!("interface {name}"), why: "it disappeared".into() }
            }
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENODEV)) => {
                KernelError::TargetNotFound { target: format!("interface {name}"), why: "it disappeared".into() }
            }
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => KernelError::PermissionDenied {
                what: format!("tc on interface {name}"),
                why: "CAP_NET_ADMIN is missing".into(),
            },
            Err(source) => KernelError::Io { what: format!("tc on interface {name}"), source },
        };
        self.detach(uid, link)?;
        Err(error)
    }

    /// Puts another program in a filter's place, in one step.
    pub fn replace(
        &self,
        uid: &str,
        link: &str,
        hook: &Hook,
        old: u32,
        program: BorrowedFd<'_>,
    ) -> Result<(), KernelError> {
        let what = || format!("updating tc on {}", hook.target.display());
        let gone = || KernelError::TargetNotFound { target: hook.target.display(), why: "it disappeared".into() };
        let record = self.read(uid, link).ok_or_else(gone)?;
        let replaced = record.within(|| match ours(&record, uid, link)? {
            Some(filter) if filter.program_id == old => {
                netlink::add_filter(record.at(), program, &filter_name(uid, link), true)
            }
            _ => Err(io::Error::from_raw_os_error(libc::EPERM)),
        });
        replaced.map_err(failed(what()))?.ok_or_else(gone)
    }

    /// Takes a filter away, and the qdisc if it was ours and is empty; true when there was a record.
    pub fn detach(&self, uid: &str, link: &str) -> Result<bool, KernelError> {
        let path = self.path(uid, link);
        if !path.exists() {
            return Ok(false);
        }
        if let Some(record) = self.read(uid, link) {
            let qdisc = self.qdisc_path(&record);
            record
                .within(|| {
                    if ours(&record, uid, link)?.is_some() {
                        netlink::remove_filter(record.at())?;
                    }
                    let empty = [netlink::INGRESS, netlink::EGRESS]
                        .iter()
                        .all(|parent| netlink::filters(record.ifindex, *parent).is_ok_and(|f| f.is_empty()));
                    // A marker of another boot is of another qdisc: cookies and indices are counted anew.
                    let marked = fs::read_to_string(&qdisc).ok();
                    if marked.as_ref().is_some_and(|boot| *boot != boot_id()) {
                        fs::remove_file(&qdisc)?;
                    } else if empty && marked.is_some() {
                        match netlink::remove_clsact(record.ifindex) {
                            // Somebody else took it away, or the interface.
                            Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOENT | libc::ENODEV)) => {}
                            removed => removed?,
                        }
                        fs::remove_file(&qdisc)?;
                    }
                    Ok(())
                })
                .map_err(failed(format!("removing tc filter {link}")))?;
        }
        fs::remove_file(&path).map_err(failed(format!("removing {}", path.display())))?;
        // The last record's directory goes with it; one that holds others stays.
        let _ = fs::remove_dir(self.dir.join(uid));
        Ok(true)
    }
}

fn ours(record: &Record, uid: &str, link: &str) -> io::Result<Option<netlink::Filter>> {
    let (filters, name) = (netlink::filters(record.ifindex, record.parent)?, filter_name(uid, link));
    Ok(filters.into_iter().find(|f| f.at == record.at() && f.name == name))
}

/// The filter's name says whose it is: two uids may have the same function on the same hook.
fn filter_name(uid: &str, link: &str) -> String {
    format!("{uid}/{link}")
}

/// A handle of the link's own, so that filters of one priority do not meet.
fn handle(uid: &str, link: &str) -> u32 {
    let [a, b, c, d, ..] = <[u8; 32]>::from(Sha256::digest(filter_name(uid, link)));
    (u32::from_be_bytes([a, b, c, d]) >> 4).max(1)
}
