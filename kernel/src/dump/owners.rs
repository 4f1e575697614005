//! Maps whose entries belong to tasks, cgroups or sockets: the kernel has no list of them, so that their owners are gone
//! through. An entry's key is its owner's number, not the descriptor that the kernel takes: a thread id, a cgroup's id, a
//! socket's cookie.
//!
//! Threads other than the first of their process are found since Linux 6.9, which opens descriptors for them. Sockets are
//! found by the kernel's own iterator (5.12), in all network namespaces.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use skep_object::btf::desc::{TypeDesc, TypeKind, TypeName};
use skep_object::btf::format::Format;
use skep_object::btf::{Btf, Kind};
use skep_object::insn::Insn;

use crate::probe;
use crate::sys::link::{self, LinkTarget};
use crate::sys::map::{Map, types};
use crate::sys::program::Load;

/// Who has entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owners {
    Tasks,
    Cgroups,
    Sockets,
}

/// An entry's key and value.
type Entry = (Vec<u8>, Vec<u8>);

impl Owners {
    pub(super) fn of(map_type: u32) -> Option<Self> {
        match map_type {
            types::TASK_STORAGE => Some(Owners::Tasks),
            types::CGRP_STORAGE => Some(Owners::Cgroups),
            types::SK_STORAGE => Some(Owners::Sockets),
            _ => None,
        }
    }

    /// What a key is.
    pub(super) fn key(self) -> TypeDesc {
        let (name, size, format) = match self {
            Owners::Tasks => ("tid", 4, Format::Task),
            Owners::Cgroups => ("cgroup id", 8, Format::Cgroup),
            Owners::Sockets => ("socket cookie", 8, Format::Plain),
        };
        TypeDesc { kind: TypeKind::Uint, name: TypeName::from(name).shown_as(format), size }
    }

    /// The entry of one owner.
    pub(super) fn lookup(self, map: &Map, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        match self {
            Owners::Tasks => match key.try_into() {
                Ok(tid) => of_task(map, u32::from_ne_bytes(tid)),
                Err(_) => Err(io::Error::from_raw_os_error(libc::EINVAL)),
            },
            Owners::Cgroups | Owners::Sockets => {
                let mut found = None;
                self.each(map, Some(key), &mut |entry| {
                    found = Some(entry.1);
                    false
                })?;
                Ok(found)
            }
        }
    }

    /// All entries, or the one of an owner, until `sink` says stop. Tasks and cgroups come in the order of their numbers.
    pub(super) fn each(self, map: &Map, only: Option<&[u8]>, sink: &mut impl FnMut(Entry) -> bool) -> io::Result<()> {
        match self {
            Owners::Tasks => {
                for tid in threads()? {
                    if let Some(value) = of_task(map, tid)?
                        && !sink((tid.to_ne_bytes().to_vec(), value))
                    {
                        break;
                    }
                }
                Ok(())
            }
            Owners::Cgroups => {
                let Some(root) = probe::cgroup2_mount() else { return Ok(()) };
                let mut all = Vec::new();
                cgroups(&root, &mut all);
                all.sort_by_key(|(id, _)| *id);
                for (id, path) in all {
                    let key = id.to_ne_bytes();
                    if only.is_some_and(|only| only != key) {
                        continue;
                    }
                    // One that went meanwhile has no entry any more.
                    let Ok(dir) = File::open(path) else { continue };
                    if let Some(value) = by_descriptor(map, dir.as_fd())?
                        && !sink((key.to_vec(), value))
                    {
                        break;
                    }
                }
                Ok(())
            }
            Owners::Sockets => {
                let size = map.info().value_size as usize;
                let mut reader = io::BufReader::with_capacity(1 << 16, File::from(sockets(map)?));
                let (mut key, mut value) = ([0; 8], vec![0; size]);
                loop {
                    match reader.read_exact(&mut key) {
                        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                        result => result?,
                    }
                    reader.read_exact(&mut value)?;
                    if only.is_none_or(|only| only == key) && !sink((key.to_vec(), value.clone())) {
                        return Ok(());
                    }
                }
            }
        }
    }
}

fn of_task(map: &Map, tid: u32) -> io::Result<Option<Vec<u8>>> {
    match pidfd(tid)? {
        Some(fd) => by_descriptor(map, fd.as_fd()),
        None => Ok(None),
    }
}

fn by_descriptor(map: &Map, owner: BorrowedFd<'_>) -> io::Result<Option<Vec<u8>>> {
    match map.lookup(&owner.as_raw_fd().to_ne_bytes()) {
        // The task ended meanwhile.
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        other => other,
    }
}

/// Every thread of the host, in order.
fn threads() -> io::Result<Vec<u32>> {
    let numbers = |dir: &Path| -> Vec<u32> {
        // A process that ended meanwhile has none.
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    };
    let proc = Path::new("/proc");
    std::fs::read_dir(proc)?;
    let mut all: Vec<u32> =
        numbers(proc).into_iter().flat_map(|pid| numbers(&proc.join(pid.to_string()).join("task"))).collect();
    all.sort_unstable();
    Ok(all)
}

/// PIDFD_THREAD (include/uapi/linux/pidfd.h), since Linux 6.9.
const PIDFD_THREAD: libc::c_int = libc::O_EXCL;

/// `None`: there is no such thread any more, or it is not the first of its process and the kernel opens those only.
fn pidfd(tid: u32) -> io::Result<Option<OwnedFd>> {
    let open = |flags: libc::c_int| {
        // SAFETY: the call takes no pointer.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, tid as libc::pid_t, flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call succeeded and returned a new descriptor that nobody else owns.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    };
    let opened = match open(PIDFD_THREAD) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => open(0),
        other => other,
    };
    match opened {
        Ok(fd) => Ok(Some(fd)),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ESRCH | libc::EINVAL | libc::ENOENT)) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Where cgroups of these ids are, below the root of the hierarchy.
pub fn cgroup_paths(ids: &BTreeSet<u64>) -> BTreeMap<u64, PathBuf> {
    let Some(root) = probe::cgroup2_mount().filter(|_| !ids.is_empty()) else { return BTreeMap::new() };
    let mut all = Vec::new();
    cgroups(&root, &mut all);
    all.retain(|(id, _)| ids.contains(id));
    let below = |path: PathBuf| Path::new("/").join(path.strip_prefix(&root).unwrap_or(&path));
    all.into_iter().map(|(id, path)| (id, below(path))).collect()
}

/// A cgroup's id is the inode of its directory.
fn cgroups(dir: &Path, found: &mut Vec<(u64, PathBuf)>) {
    // One that went meanwhile has nothing below it.
    let Ok(metadata) = std::fs::metadata(dir) else { return };
    found.push((metadata.ino(), dir.to_owned()));
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            cgroups(&entry.path(), found);
        }
    }
}

/// BPF_PROG_TYPE_TRACING, BPF_TRACE_ITER and BPF_FUNC_* (include/uapi/linux/bpf.h).
const TRACING: u32 = 26;
const TRACE_ITER: u32 = 28;
const GET_SOCKET_COOKIE: i32 = 46;
const SEQ_WRITE: i32 = 127;

/// The cookie and the value of each entry of a socket storage, one after the other.
fn sockets(map: &Map) -> io::Result<OwnedFd> {
    let unsupported = || io::Error::new(io::ErrorKind::Unsupported, "the kernel has no iterator of socket storages");
    let vmlinux = Btf::parse(&std::fs::read("/sys/kernel/btf/vmlinux")?).map_err(|_| unsupported())?;
    let attach_btf_id = vmlinux.find("bpf_iter_bpf_sk_storage_map", Kind::Func).ok_or_else(unsupported)?;
    drop(vmlinux);
    crate::sys::trim_heap();
    let insns = cookie_and_value(map.info().value_size);
    let load = Load {
        name: "skep_sockets",
        program_type: TRACING,
        expected_attach_type: TRACE_ITER,
        insns: &insns,
        license: "GPL",
        attach_btf_id,
        ..Load::default()
    };
    let program = load.run().map_err(|refused| io::Error::new(refused.error.kind(), refused.log))?;
    let link = link::create(program.as_fd(), LinkTarget::Elements(map.fd()), TRACE_ITER, 0)?;
    link::iterate(link.as_fd())
}

/// `struct bpf_iter__bpf_sk_storage_map`: meta, map, sk, value.
fn cookie_and_value(value_size: u32) -> Vec<Insn> {
    let insn = |code: u8, dst: u8, src: u8, off: i16, imm: i32| Insn { code, regs: dst | src << 4, off, imm };
    let call = |helper: i32| insn(0x85, 0, 0, 0, helper);
    vec![
        insn(0x79, 7, 1, 16, 0), // r7 = ctx->sk
        insn(0x79, 8, 1, 24, 0), // r8 = ctx->value
        insn(0x79, 6, 1, 0, 0),  // r6 = ctx->meta
        insn(0x79, 6, 6, 0, 0),  // r6 = meta->seq
        insn(0x15, 7, 0, 13, 0), // none at the end: leave
        insn(0x15, 8, 0, 12, 0),
        insn(0xbf, 1, 7, 0, 0),
        call(GET_SOCKET_COOKIE),
        insn(0x7b, 10, 0, -8, 0), // *(u64 *)(r10 - 8) = cookie
        insn(0xbf, 1, 6, 0, 0),
        insn(0xbf, 2, 10, 0, 0),
        insn(0x07, 2, 0, 0, -8),
        insn(0xb7, 3, 0, 0, 8),
        call(SEQ_WRITE),
        insn(0xbf, 1, 6, 0, 0),
        insn(0xbf, 2, 8, 0, 0),
        insn(0xb7, 3, 0, 0, value_size as i32),
        call(SEQ_WRITE),
        insn(0xb7, 0, 0, 0, 0),
        insn(0x95, 0, 0, 0, 0),
    ]
}
