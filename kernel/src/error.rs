//! Why the kernel did not do what was asked, in words for the person who asked.

use std::io;
use std::path::PathBuf;

use skep_object::ObjectError;

/// [`KernelError::reason`] is the word that status, Events and metrics use.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error(transparent)]
    Object(#[from] ObjectError),
    #[error("{function}: {message}")]
    VerifierRejected { function: String, message: String, log: String },
    #[error("{what}: {why}")]
    KernelUnsupported { what: String, why: String },
    #[error("{what}: permission denied: {why}")]
    PermissionDenied { what: String, why: String },
    #[error("{target} not found: {why}")]
    TargetNotFound { target: String, why: String },
    #[error("{target} is held by {holder}; detach that one (bpftool net, bpftool link), or attach elsewhere")]
    HookBusy { target: String, holder: Holder },
    #[error("{what}: {limit}")]
    LimitReached { what: String, limit: String },
    #[error(
        "map {map}: no memory for {entries} entries ({bytes} bytes of keys and values), {}",
        limit.map_or_else(
            || "the node has not so much left; lower maxEntries".to_owned(),
            |limit| format!("the agent's memory limit is {limit} bytes; lower maxEntries or raise the agent's memory limit")
        )
    )]
    NodeFull { map: String, entries: u32, bytes: u64, limit: Option<u64> },
    #[error("map {map}: {why}")]
    MapIncompatible { map: String, why: String },
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    #[error("{path} is not a bpffs; mount one with `mount -t bpf bpf {path}`", path = .path.display())]
    NoBpffs { path: PathBuf },
}

/// Who is on a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub program_id: u32,
    pub program_name: String,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.program_id == 0 {
            return f.write_str("another program");
        }
        write!(f, "program {} (id {})", self.program_name, self.program_id)
    }
}

impl KernelError {
    /// The reason out of Skep's closed list.
    pub fn reason(&self) -> &'static str {
        match self {
            KernelError::Object(e) => e.reason(),
            KernelError::VerifierRejected { .. } => "VerifierRejected",
            KernelError::KernelUnsupported { .. } => "KernelUnsupported",
            KernelError::PermissionDenied { .. } => "PermissionDenied",
            KernelError::TargetNotFound { .. } => "TargetNotFound",
            KernelError::HookBusy { .. } => "HookBusy",
            KernelError::LimitReached { .. } => "LimitReached",
            KernelError::NodeFull { .. } => "NodeFull",
            KernelError::MapIncompatible { .. } => "MapIncompatible",
            // It comes and goes with mounts.
            KernelError::NoBpffs { .. } => "TargetNotFound",
            KernelError::Io { source, .. } if is_limit(source) => "LimitReached",
            KernelError::Io { .. } => "Internal",
        }
    }

    /// The verifier's log; empty for all but its refusals.
    pub fn log(&self) -> &str {
        if let KernelError::VerifierRejected { log, .. } = self { log } else { "" }
    }

    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> KernelError {
        let what = what.into();
        move |source| KernelError::Io { what, source }
    }

    /// A refused program load: the verifier's doing if it left a log, else the kernel's policy or age.
    /// `too_old`: what the kernel may not know about it.
    pub(crate) fn refused_load(
        function: &str,
        refused: crate::sys::program::Refused,
        too_old: impl FnOnce() -> Option<String>,
    ) -> KernelError {
        let log = refused.log;
        if let Some(message) = verdict(&log) {
            return KernelError::VerifierRejected { function: function.to_owned(), message, log };
        }
        let what = format!("{function}: loading");
        match refused.error.raw_os_error() {
            Some(libc::EPERM) => KernelError::PermissionDenied {
                what,
                why: "the kernel refuses this kind of program without a word (missing capability, lockdown, or a patched kernel)".into(),
            },
            Some(libc::EINVAL | libc::EOPNOTSUPP) => {
                let unknown = || format!("this kernel does not know this kind of program ({})", refused.error);
                KernelError::KernelUnsupported { what, why: too_old().unwrap_or_else(unknown) }
            }
            Some(libc::E2BIG) => KernelError::LimitReached { what, limit: "it has more instructions than the kernel takes".into() },
            _ => KernelError::Io { what, source: refused.error },
        }
    }
}

/// No more threads, or no more descriptors.
fn is_limit(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EMFILE | libc::ENFILE))
}

/// What the verifier says of an instruction whose CO-RE relocation found nothing: it became a call to 0xbad2310, as with libbpf.
const UNRESOLVED: &str = "invalid func unknown#195896080";

/// The verifier's reason, with the source line it stands at when the log has one.
fn verdict(log: &str) -> Option<String> {
    // Linux 7.3 explains the reason once more after it, and ends with advice.
    let log = match log.split_once("\nVerification failed: ") {
        Some((before, _)) if !before.trim().is_empty() => before,
        _ => log,
    };
    // After the reason: what it cost, and, of an endless loop, how little changed in a round of it.
    let trailer = [
        "processed ",
        "verification time",
        "stack depth",
        "max_states",
        "-- BEGIN",
        "-- END",
        "cur state:",
        "old state:",
    ];
    let lines: Vec<&str> =
        log.lines().filter(|l| !l.trim().is_empty() && !trailer.iter().any(|t| l.starts_with(t))).collect();
    let mut reason = lines.last()?.trim();
    if reason.ends_with(UNRESOLVED) {
        reason = "it uses a field, type or enum value that this kernel's own types do not have (those of modules are not looked \
                  at), or have in another shape, and does not ask before (bpf_core_field_exists and the like)";
    }
    let source = lines.iter().rev().find_map(|l| l.strip_prefix("; "));
    Some(match source.map(|s| s.rsplit_once(" @ ").map_or(s, |(_, place)| place)) {
        Some(place) if place != reason => format!("{reason} at {}", place.trim()),
        _ => reason.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::verdict;

    #[test]
    fn the_verdict_names_reason_and_source_line() {
        let log = "0: R1=ctx() R10=fp0\n; return *(int *)p; @ flows.bpf.c:22\n3: (61) r0 = *(u32 *)(r1 +0)\n\
                   R1 invalid mem access 'scalar'\nprocessed 4 insns (limit 1000000) max_states_per_insn 0\n";
        assert_eq!(verdict(log).as_deref(), Some("R1 invalid mem access 'scalar' at flows.bpf.c:22"));
    }

    #[test]
    fn what_core_did_not_find_is_told() {
        let log = "0: R1=ctx() R10=fp0\n; return BPF_CORE_READ(p, gone); @ flows.bpf.c:22\n\
                   3: (85) call unknown#195896080\ninvalid func unknown#195896080\nprocessed 4 insns (limit 1000000)\n";
        let said = verdict(log).unwrap();
        assert!(
            said.starts_with("it uses a field, type or enum value that this kernel's own types do not have"),
            "{said}"
        );
        assert!(said.ends_with(" at flows.bpf.c:22"), "{said}");
    }

    #[test]
    fn of_an_endless_loop_the_reason_is_told() {
        let log = "; for (;;) @ loop.bpf.c:5\n4: (05) goto pc-3\ninfinite loop detected at insn 2\n\
                   cur state: R1=1 R10=fp0\nold state: R1=1 R10=fp0\nprocessed 4 insns (limit 1000000)\n";
        assert_eq!(verdict(log).as_deref(), Some("infinite loop detected at insn 2 at loop.bpf.c:5"));
    }

    #[test]
    fn a_report_after_the_reason_is_no_part_of_it() {
        let log = "; return (int)*value; @ trace.bpf.c:79\n7: (79) r0 = *(u64 *)(r0 +0)\n\
                   R0 invalid mem access 'map_value_or_null'\n\n\
                   Verification failed: Register Type Safety: Invalid dereference\n\nAt:\n  on_bad @ trace.bpf.c:79:14\n\n\
                   Suggestion:\n  Add a NULL check before the access.\n\nprocessed 7 insns (limit 1000000)\n";
        assert_eq!(verdict(log).as_deref(), Some("R0 invalid mem access 'map_value_or_null' at trace.bpf.c:79"));
    }

    #[test]
    fn no_log_is_no_verdict() {
        assert_eq!(verdict(""), None);
        assert_eq!(verdict("processed 0 insns (limit 1000000)\n"), None);
    }
}
