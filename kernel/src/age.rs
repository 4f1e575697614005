//! What a kernel is too old for. It is asked after a refusal, never before: vendors bring features to older kernels, and
//! an old kernel's words for what it does not know are no help (`Invalid argument`).

use skep_object::kind::{KINDS, Kind, LoadAttributes, Release, Row, attach};

use crate::error::KernelError;
use crate::hook::Hook;
use crate::probe;

/// Hooks that came later than their kind.
const LATER: [(u32, Release, &str); 7] = [
    (attach::TRACE_KPROBE_SESSION, Release(6, 11), "kprobe.session"),
    (attach::TRACE_UPROBE_SESSION, Release(6, 13), "uprobe.session"),
    (49, Release(6, 7), "cgroup/connect_unix"),
    (50, Release(6, 7), "cgroup/sendmsg_unix"),
    (51, Release(6, 7), "cgroup/recvmsg_unix"),
    (52, Release(6, 7), "cgroup/getpeername_unix"),
    (53, Release(6, 7), "cgroup/getsockname_unix"),
];

/// Says that the kernel is too old for the hook, if it is and that can be what the error means.
pub(crate) fn explain(error: KernelError, hook: &Hook) -> KernelError {
    // What an old kernel does not know looks to it like a wrong value, or like a target that is not there. Of a kind that
    // every kernel has that Skep supports, a target may be missing on an older one as well.
    let vague = match error {
        KernelError::TargetNotFound { .. } => hook.kind.row().since > Release(5, 15),
        KernelError::Io { .. } => true,
        _ => false,
    };
    let what = || format!("{} on {}", hook.kind, hook.target.display());
    match too_old(&running(), hook.kind, hook.attach_type) {
        Some(why) if vague => KernelError::KernelUnsupported { what: what(), why },
        _ => error,
    }
}

/// Why a kernel may not know a program by what it is loaded as.
pub(crate) fn of_load(attributes: &LoadAttributes) -> Option<String> {
    let attach_type = attributes.expected_attach_type;
    let loads_as = |row: &&Row, hooks: u32| {
        let like = LoadAttributes::new(row.kind, hooks, "", "");
        (like.program_type, like.expected_attach_type) == (attributes.program_type, attach_type)
    };
    // A kind that takes its attach type from the hook fits any: it comes after one that is always of this type.
    let row = KINDS
        .iter()
        .find(|row| loads_as(row, u32::MAX))
        .or_else(|| KINDS.iter().find(|row| loads_as(row, attach_type)));
    too_old(&running(), row?.kind, attach_type)
}

/// Why a kernel may not have a kind.
pub(crate) fn of_kind(kind: Kind, attach_type: u32) -> Option<String> {
    too_old(&running(), kind, attach_type)
}

fn too_old(running: &str, kind: Kind, attach_type: u32) -> Option<String> {
    let later = LATER.iter().find(|(later, ..)| *later == attach_type);
    let (since, what) = later.map_or((kind.row().since, kind.row().name), |(_, since, what)| (*since, *what));
    let this = release(running)?;
    (this < since).then(|| format!("{what} needs Linux {since}, and this is {this}"))
}

fn running() -> String {
    probe::kernel_release()
}

/// Major and minor.
fn release(text: &str) -> Option<Release> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some(Release(numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_kernel_is_told_by_kind_and_by_hook() {
        let says = |running: &str, kind, attach_type| too_old(running, kind, attach_type);
        let netfilter = says("6.1.0-56-cloud-amd64", Kind::Netfilter, attach::NETFILTER);
        assert_eq!(netfilter.as_deref(), Some("netfilter needs Linux 6.4, and this is 6.1"));
        assert_eq!(says("6.4.1", Kind::Netfilter, attach::NETFILTER), None);
        assert_eq!(says("6.18-fc", Kind::UprobeMulti, attach::TRACE_UPROBE_SESSION), None);
        let session = says("6.12.117+deb12", Kind::UprobeMulti, attach::TRACE_UPROBE_SESSION);
        assert_eq!(session.as_deref(), Some("uprobe.session needs Linux 6.13, and this is 6.12"));
        assert_eq!(says("strange", Kind::Tcx, attach::TCX_INGRESS), None);
    }
}
