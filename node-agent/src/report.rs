//! What the agent says of a program: from what was wanted, what came of it, and what the kernel shows afterwards.

use std::collections::BTreeMap;

use skep_crds::Reason;
use skep_kernel::KernelError;
use skep_kernel::seam::Observed;
use skep_proto::v1::{FunctionReport, HookReport, MapReport, ProgramReport, State, TargetFailure};

use crate::desired::DesiredProgram;
use crate::error::ProgramError;
use crate::execute::Outcome;
use crate::prepare::Prepared;

/// Most bytes of a verifier log in a report.
const MAX_LOG: usize = 2048;

/// A report of nothing but who it is about.
fn blank(desired: &DesiredProgram) -> ProgramReport {
    ProgramReport {
        uid: desired.uid.clone(),
        namespace: desired.namespace.clone(),
        name: desired.name.clone(),
        generation: desired.generation,
        desired_revision: desired.revision.clone(),
        digest: desired.digest.clone(),
        ..ProgramReport::default()
    }
}

/// While work goes on.
pub fn progressing(desired: &DesiredProgram, observed: &Observed, what: &str) -> ProgramReport {
    let mut report = blank(desired);
    show_kernel(&mut report, desired, observed);
    report.set_state(State::Updating);
    report.reason = Reason::Progressing.to_string();
    report.message = what.to_owned();
    report
}

/// A program that could not get as far as the kernel, or that the kernel refused.
/// `owner` tells whose a kernel program is.
pub fn failed(
    desired: &DesiredProgram,
    observed: &Observed,
    error: &ProgramError,
    owner: &dyn Fn(u32) -> Option<String>,
) -> ProgramReport {
    let mut report = blank(desired);
    show_kernel(&mut report, desired, observed);
    let reason = error.reason();
    report.set_state(if reason == Reason::KernelUnsupported { State::Unsupported } else { State::Failed });
    report.reason = reason.to_string();
    report.message = match error {
        ProgramError::Kernel(error) => words(error, owner),
        _ => error.to_string(),
    };
    report.log = tail(error.log(), MAX_LOG);
    report
}

/// After a plan was carried out without a failure that stopped it. `owner` tells whose a kernel program is.
pub fn settled(
    desired: &DesiredProgram,
    prepared: &Prepared,
    outcome: &Outcome,
    observed: &Observed,
    remarks: &[String],
    owner: &dyn Fn(u32) -> Option<String>,
) -> ProgramReport {
    let mut report = blank(desired);
    show_kernel(&mut report, desired, observed);
    report.hooks = hooks(prepared, outcome, observed, owner);
    let failures: Vec<&TargetFailure> = report.hooks.iter().flat_map(|h| &h.failures).collect();
    let alive = prepared.wanted.links.keys().filter(|l| observed.links.get(*l).is_some_and(|l| l.alive)).count();
    let (state, reason, message) = match failures.first() {
        Some(first) => {
            let reason: Reason = first.reason.parse().unwrap_or(Reason::Internal);
            let more = failures.len() - 1;
            let mut message =
                if more == 0 { first.message.clone() } else { format!("{} (and {more} more)", first.message) };
            let unwanted = |link: &&String| !prepared.wanted.links.contains_key(*link);
            if !prepared.wanted.stay.is_empty() && observed.links.keys().any(|link| unwanted(&link)) {
                message.push_str("; what ran elsewhere runs on there");
            }
            let state = match (alive, reason) {
                (0, Reason::KernelUnsupported) => State::Unsupported,
                (0, _) => State::Failed,
                _ => State::Degraded,
            };
            (state, reason, message)
        }
        None if prepared.suspended => {
            (State::Ready, Reason::Suspended, "on no hook; programs and maps stay loaded".to_owned())
        }
        None if prepared.wanted.spare => {
            (State::Updating, Reason::Progressing, "waiting for the list of this node's pods".to_owned())
        }
        None if prepared.wanted.links.is_empty() => {
            (State::Ready, Reason::NoTarget, "the selectors match nothing on this node".to_owned())
        }
        None if alive < prepared.wanted.links.len() => {
            let wanted = prepared.wanted.links.len();
            let message = format!("{alive} of {wanted} targets are attached; the others went meanwhile");
            (State::Updating, Reason::Progressing, message)
        }
        None => (State::Ready, Reason::Ready, remarks.join("; ")),
    };
    report.set_state(state);
    report.reason = reason.to_string();
    report.message = message;
    report
}

/// What runs, whatever is wanted.
fn show_kernel(report: &mut ProgramReport, desired: &DesiredProgram, observed: &Observed) {
    let running = observed.loads.iter().find(|(_, load)| {
        observed.links.values().any(|link| link.alive && load.programs.values().any(|p| p.id == link.program_id))
    });
    // A program with no targets runs by being loaded.
    let loads = std::iter::once(&desired.load).chain(desired.older.as_ref().map(|older| &older.load));
    let running = running.or_else(|| loads.filter_map(|load| observed.loads.get_key_value(load)).next());
    let Some((name, load)) = running else { return };
    report.running_revision = match &desired.older {
        // It may differ in its attach points alone.
        Some(older) if older.load == *name => older.revision.clone(),
        _ if *name == desired.load => desired.revision.clone(),
        _ => desired.loads.get(name).cloned().unwrap_or_default(),
    };
    report.functions = load
        .programs
        .iter()
        .map(|(pin, p)| FunctionReport { name: function_of(pin).to_owned(), id: p.id, tag: p.tag.clone() })
        .collect();
    report.maps = load
        .maps
        .iter()
        .filter(|(name, _)| !name.starts_with(':'))
        .map(|(name, map)| MapReport {
            name: name.clone(),
            id: map.id,
            r#type: skep_kernel::sys::map::type_name(map.map_type),
        })
        .collect();
}

fn function_of(pin: &str) -> &str {
    pin.rsplit_once('+').map_or(pin, |(function, _)| function)
}

fn hooks(
    prepared: &Prepared,
    outcome: &Outcome,
    observed: &Observed,
    owner: &dyn Fn(u32) -> Option<String>,
) -> Vec<HookReport> {
    let mut reports: Vec<HookReport> = prepared
        .targets
        .entries
        .iter()
        .map(|(function, hook)| HookReport { function: function.clone(), hook: hook.clone(), ..HookReport::default() })
        .collect();
    let failed: BTreeMap<&str, _> = outcome.targets.iter().map(|(link, e)| (link.as_str(), e)).collect();
    for found in &prepared.targets.hooks {
        let report = &mut reports[found.entry];
        let link = found.hook.link_name(&found.function);
        let target = found.hook.target.display();
        if let Some(error) = failed.get(link.as_str()) {
            let reason = error.reason().to_owned();
            report.failures.push(TargetFailure { target, reason, message: words(error, owner) });
        } else if let Some(seen) = observed.links.get(&link).filter(|l| l.alive) {
            report.targets += 1;
            report.names.push(target);
            report.link_ids.push(seen.id);
        }
    }
    for missing in &prepared.targets.missing {
        reports[missing.entry].failures.push(TargetFailure {
            target: missing.target.clone(),
            reason: missing.reason.to_string(),
            message: format!("{}: {}", missing.function, missing.message),
        });
    }
    reports
}

/// What happened; who holds a hook by the name that people gave it, if it is one of ours.
fn words(error: &KernelError, owner: &dyn Fn(u32) -> Option<String>) -> String {
    match error {
        KernelError::HookBusy { target, holder } => match owner(holder.program_id) {
            Some(owner) => format!("{target} is held by {owner}; change or delete that one"),
            None => error.to_string(),
        },
        _ => error.to_string(),
    }
}

/// The last bytes of a text, from a whole line on.
fn tail(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let mut start = text.len() - max;
    while !text.is_char_boundary(start) {
        start += 1;
    }
    let cut = &text[start..];
    cut.split_once('\n').map_or(cut, |(_, rest)| rest).to_owned()
}

#[cfg(test)]
mod tests {
    use skep_kernel::error::Holder;

    use super::*;
    use crate::reports::Reports;

    #[test]
    fn a_holder_of_ours_is_called_by_its_name() {
        let reports = Reports::new("i".into());
        let functions = vec![FunctionReport { name: "count_rx".into(), id: 7, tag: String::new() }];
        let (namespace, name) = ("default".into(), "xdp-counter".into());
        reports.put(ProgramReport { namespace, name, functions, ..ProgramReport::default() });
        let said = |program_id| {
            let holder = Holder { program_id, program_name: "count_rx".into() };
            let busy = KernelError::HookBusy { target: "xdp on interface eth0".into(), holder };
            words(&busy, &|id| reports.owner(id))
        };
        let ours = "xdp on interface eth0 is held by EbpfProgram default/xdp-counter (function count_rx); change or delete that one";
        assert_eq!(said(7), ours);
        assert_eq!(
            said(8),
            "xdp on interface eth0 is held by program count_rx (id 8); detach that one (bpftool net, bpftool link), or attach elsewhere"
        );
    }

    #[test]
    fn logs_are_cut_at_the_head_and_at_a_line() {
        assert_eq!(tail("short", 10), "short");
        assert_eq!(tail("first\nsecond\nthird", 14), "second\nthird");
        assert_eq!(tail("first\nsecond\nthird", 10), "third");
    }
}
