//! Whether this kernel attaches a kind that it loads: they differ.
//!
//! **Guarantees.** Nothing is attached anywhere: what is asked for cannot be there, and by its answer the kernel tells
//! whether it got as far as to look for it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use skep_object::kind::Kind;
use skep_object::map::MapDef;

use super::{missing_security_module, no_pmu};
use crate::age;
use crate::error::KernelError;
use crate::probe::cgroup2_mount;
use crate::sys::link::{self, LinkTarget};
use crate::sys::map;

/// Asks with a program of the kind that was loaded.
pub(super) type Probe = fn(BorrowedFd<'_>, Kind, u32) -> Result<(), KernelError>;

/// No interface has so high a number.
const NO_INTERFACE: u32 = i32::MAX as u32;

/// `looked`: the answers of a kernel that looked for what is not there.
fn told(
    (kind, attach_type): (Kind, u32),
    answer: io::Result<impl Sized>,
    looked: &[i32],
    why: &str,
) -> Result<(), KernelError> {
    match answer {
        Err(e) if !e.raw_os_error().is_some_and(|code| looked.contains(&code)) => {
            let why = age::of_kind(kind, attach_type).unwrap_or_else(|| format!("{why} ({e})"));
            Err(KernelError::KernelUnsupported { what: kind.to_string(), why })
        }
        _ => Ok(()),
    }
}

pub(super) fn ordered(program: BorrowedFd<'_>, kind: Kind, attach_type: u32) -> Result<(), KernelError> {
    let answer = link::create(program, LinkTarget::Ordered(NO_INTERFACE, None), attach_type, 0);
    told((kind, attach_type), answer, &[libc::ENODEV], "this kernel is built without such links on interfaces")
}

pub(super) fn cgroups(_: BorrowedFd<'_>, _: Kind, _: u32) -> Result<(), KernelError> {
    cgroup2_mount()
        .map(drop)
        .ok_or_else(|| not_mounted("the cgroup v2 hierarchy", "mount -t cgroup2 cgroup2 /sys/fs/cgroup"))
}

/// It may come at any time: no reason to say that the kernel lacks the kind.
fn not_mounted(what: &str, remedy: &str) -> KernelError {
    KernelError::TargetNotFound { target: what.to_owned(), why: format!("it is not mounted: {remedy}") }
}

pub(super) fn security_cgroups(program: BorrowedFd<'_>, kind: Kind, attach_type: u32) -> Result<(), KernelError> {
    security(program, kind, attach_type)?;
    cgroups(program, kind, attach_type)
}

pub(super) fn security(_: BorrowedFd<'_>, kind: Kind, _: u32) -> Result<(), KernelError> {
    match missing_security_module() {
        Some(why) => Err(KernelError::KernelUnsupported { what: kind.to_string(), why }),
        None => Ok(()),
    }
}

/// On a map of its own, in which there is no socket.
pub(super) fn sockets(program: BorrowedFd<'_>, kind: Kind, attach_type: u32) -> Result<(), KernelError> {
    let def = MapDef {
        name: "probe".into(),
        map_type: map::types::SOCKMAP,
        key_size: 4,
        value_size: 4,
        max_entries: 1,
        ..MapDef::default()
    };
    let why = "this kernel has no links on maps of sockets";
    match map::create(&def, None, None) {
        Ok(map) => {
            told((kind, attach_type), link::create(program, LinkTarget::Fd(map.as_fd()), attach_type, 0), &[], why)
        }
        Err(e) => told((kind, attach_type), Err::<(), _>(e), &[], "this kernel has no maps of sockets"),
    }
}

pub(super) fn events(_: BorrowedFd<'_>, _: Kind, _: u32) -> Result<(), KernelError> {
    let there = Path::new("/sys/kernel/tracing/events").exists();
    let missing = || not_mounted("tracefs", "mount -t tracefs tracefs /sys/kernel/tracing");
    if there { Ok(()) } else { Err(missing()) }
}

pub(super) fn kprobes(_: BorrowedFd<'_>, kind: Kind, _: u32) -> Result<(), KernelError> {
    probes("kprobe", kind, "CONFIG_KPROBE_EVENTS")
}

pub(super) fn uprobes(_: BorrowedFd<'_>, kind: Kind, _: u32) -> Result<(), KernelError> {
    probes("uprobe", kind, "CONFIG_UPROBE_EVENTS")
}

fn probes(pmu: &str, kind: Kind, config: &str) -> Result<(), KernelError> {
    let there = Path::new("/sys/bus/event_source/devices").join(pmu).exists();
    if there { Ok(()) } else { Err(no_pmu(&kind.to_string(), config)) }
}

pub(super) fn functions(program: BorrowedFd<'_>, kind: Kind, attach_type: u32) -> Result<(), KernelError> {
    let names = [c"skep_no_such_function".to_owned()];
    let target = LinkTarget::Functions(&names, kind == Kind::KretprobeMulti);
    let why = "this kernel is built without CONFIG_FPROBE";
    told((kind, attach_type), link::create(program, target, attach_type, 0), &[libc::ESRCH, libc::ENOENT], why)
}

pub(super) fn symbols(program: BorrowedFd<'_>, kind: Kind, attach_type: u32) -> Result<(), KernelError> {
    // A directory cannot be probed.
    let target = LinkTarget::Offsets(c"/", &[1], kind == Kind::UretprobeMulti);
    let why = "this kernel is built without CONFIG_UPROBE_EVENTS";
    told((kind, attach_type), link::create(program, target, attach_type, 0), &[libc::EBADF], why)
}
