//! One program on many functions by one link, and on system calls, whose functions have other names on each architecture.
//!
//! **Guarantees.** Of functions that are named all are attached, or none: what the kernel does not have is told by name.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::fd::{BorrowedFd, OwnedFd};

use skep_object::kind::Kind;
use wildmatch::WildMatch;

use super::{probe_on, wrong_target};
use crate::error::KernelError;
use crate::hook::{FunctionSet, Hook, Target};
use crate::kallsyms;
use crate::sys::link::{self, LinkTarget};

/// Functions that can be traced, one a line, those of modules with the module behind them.
const TRACEABLE: &str = "/sys/kernel/tracing/available_filter_functions";
/// What ftrace lists where code was thrown away.
const THROWN_AWAY: &str = "__ftrace_invalid_address__";

pub(super) fn functions(program: BorrowedFd<'_>, hook: &Hook) -> Result<OwnedFd, KernelError> {
    let Target::Functions(set) = &hook.target else { return Err(wrong_target(hook)) };
    let what = || format!("{} on {}", hook.kind, hook.target.display());
    let names = match set {
        FunctionSet::Names(names) => names.clone(),
        FunctionSet::Pattern(pattern) => matching(pattern).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => KernelError::KernelUnsupported {
                what: what(),
                why: format!("{TRACEABLE} is not there: tracefs is not mounted, or the kernel is built without CONFIG_DYNAMIC_FTRACE; give functions.names"),
            },
            io::ErrorKind::PermissionDenied => KernelError::PermissionDenied {
                what: format!("{}: reading {TRACEABLE}", what()),
                why: format!("{e} (lockdown, or a sandbox around the node)"),
            },
            _ => KernelError::Io { what: format!("{}: reading {TRACEABLE}", what()), source: e },
        })?,
    };
    let not_found = |name: &str, why: &str| KernelError::TargetNotFound {
        target: format!("kernel function {name}"),
        why: why.into(),
    };
    if names.is_empty() {
        return Err(not_found(&hook.target.display(), &format!("nothing in {TRACEABLE} is like that")));
    }
    let texts: Result<Vec<CString>, _> = names.iter().map(|name| CString::new(name.as_str())).collect();
    let texts = texts.map_err(|_| not_found(&hook.target.display(), "a name holds a zero byte"))?;
    let target = LinkTarget::Functions(&texts, hook.kind == Kind::KretprobeMulti);
    link::create(program, target, hook.attach_type, 0).map_err(|e| match e.raw_os_error() {
        Some(libc::EOPNOTSUPP) => {
            KernelError::KernelUnsupported { what: what(), why: "this kernel is built without CONFIG_FPROBE".into() }
        }
        Some(libc::ESRCH | libc::ENOENT | libc::EINVAL | libc::EADDRNOTAVAIL) => {
            let known = kallsyms::present(&names).unwrap_or_default();
            match names.iter().find(|name| !known.contains(*name)) {
                Some(absent) => not_found(absent, "the kernel has no such function; /proc/kallsyms lists them"),
                None => not_found(
                    &hook.target.display(),
                    &format!("the kernel cannot trace all of them ({e}); those in {TRACEABLE} can be"),
                ),
            }
        }
        _ => KernelError::Io { what: what(), source: e },
    })
}

/// Of those that can be traced. Names that several functions share are taken once: the kernel looks them up itself.
fn matching(pattern: &str) -> io::Result<Vec<String>> {
    let pattern = WildMatch::new(pattern);
    let mut found = BTreeSet::new();
    for line in BufReader::new(File::open(TRACEABLE)?).lines() {
        let line = line?;
        let name = line.split_ascii_whitespace().next().unwrap_or_default();
        if pattern.matches(name) && !name.starts_with(THROWN_AWAY) {
            found.insert(name.to_owned());
        }
    }
    let found: Vec<String> = found.into_iter().collect();
    let known = kallsyms::present(&found)?;
    Ok(found.into_iter().filter(|name| known.contains(name)).collect())
}

pub(super) fn symbols(program: BorrowedFd<'_>, hook: &Hook) -> Result<OwnedFd, KernelError> {
    let Target::Symbols { path, offsets, name, .. } = &hook.target else { return Err(wrong_target(hook)) };
    let not_found = |why: String| KernelError::TargetNotFound { target: name.clone(), why };
    let file = CString::new(path.to_string_lossy().as_bytes()).map_err(|e| not_found(e.to_string()))?;
    let target = LinkTarget::Offsets(&file, offsets, hook.kind == Kind::UretprobeMulti);
    link::create(program, target, hook.attach_type, 0).map_err(|e| match e.raw_os_error() {
        Some(libc::ENOENT | libc::EBADF) => not_found(format!("the file is gone ({e})")),
        Some(libc::EINVAL) => not_found(format!("a place in the file cannot be probed ({e})")),
        Some(libc::EOPNOTSUPP) => KernelError::KernelUnsupported {
            what: hook.kind.to_string(),
            why: "this kernel is built without CONFIG_UPROBE_EVENTS".into(),
        },
        _ => KernelError::Io { what: format!("{} on {name}", hook.kind), source: e },
    })
}

/// The function behind a system call: with the wrapper that takes the registers apart, where there is one.
pub(super) fn syscall(program: BorrowedFd<'_>, hook: &Hook) -> Result<OwnedFd, KernelError> {
    let Target::Syscall(name) = &hook.target else { return Err(wrong_target(hook)) };
    let wrapper = match std::env::consts::ARCH {
        "x86_64" => "x64",
        "aarch64" => "arm64",
        other => other,
    };
    let candidates = [format!("__{wrapper}_sys_{name}"), format!("__se_sys_{name}"), format!("sys_{name}")];
    let reading = KernelError::io(format!("{} on {name}: reading /proc/kallsyms", hook.kind));
    let known = kallsyms::present(&candidates).map_err(reading)?;
    let function = candidates.iter().find(|candidate| known.contains(*candidate));
    match function {
        Some(function) => probe_on(program, hook, function, 0),
        None => Err(KernelError::TargetNotFound {
            target: format!("system call {name}"),
            why: format!("this kernel has no function {}; see syscalls(2) for the names", candidates[0]),
        }),
    }
}
