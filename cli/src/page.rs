//! The page of `why`.

use jiff::Timestamp;
use skep_crds::{ConditionStatus, FINALIZER, Reason, condition};

use crate::age::age;
use crate::get::node_table;
use crate::hint::hint;
use crate::table::{Table, printable};
use crate::view::{Deletion, Program};

/// The whole page; sections about which there is nothing to say are left out.
pub fn render(program: &Program, skep_namespace: &str, now: Timestamp) -> String {
    let mut page = headline(program, now);
    section(&mut page, "What to do", &what_to_do(program, skep_namespace));
    section(&mut page, "Facts", &facts(program, now));
    section(&mut page, "Conditions", &conditions(program, now));
    section(&mut page, "Failures", &failures(program));
    if !program.nodes.is_empty() {
        section(&mut page, "Nodes", &node_table(&program.nodes));
    }
    section(&mut page, "Messages of nodes", &messages(program));
    section(&mut page, "Targets that fail", &target_failures(program));
    section(&mut page, "Events", &events(program, now));
    page
}

fn section(page: &mut String, title: &str, body: &str) {
    if !body.is_empty() {
        page.push_str(&format!("\n{title}\n{body}"));
    }
}

fn is_ready(program: &Program) -> bool {
    match program.conditions.iter().find(|c| c.type_ == condition::READY) {
        Some(ready) => ready.status == ConditionStatus::True,
        None => !program.nodes.is_empty() && program.nodes.iter().all(|n| n.state == "Ready"),
    }
}

fn headline(program: &Program, now: Timestamp) -> String {
    if let Some(deletion) = &program.deletion {
        let since = age(Some(deletion.since), now);
        return printable(&format!("EbpfProgram {} is being deleted, since {since}", program.full_name())) + "\n";
    }
    let ready = if is_ready(program) { "ready" } else { "not ready" };
    let reason = if program.reason.is_empty() { String::new() } else { format!(": {}", program.reason) };
    let of = if program.ready.is_empty() { String::new() } else { format!(" ({} nodes)", program.ready) };
    printable(&format!("EbpfProgram {} is {ready}{of}{reason}", program.full_name())) + "\n"
}

fn what_to_do(program: &Program, skep_namespace: &str) -> String {
    if let Some(deletion) = &program.deletion {
        return waits_for(program, deletion, skep_namespace);
    }
    let mut text = String::new();
    if program.reason.is_empty() && program.conditions.is_empty() {
        text.push_str(&format!(
            "  Nothing is said about it yet. Does the operator run? kubectl get pods -n {skep_namespace} -l app.kubernetes.io/component=operator\n"
        ));
    }
    if let (Some(generation), observed) = (program.generation, program.observed_generation.unwrap_or(0))
        && observed < generation
        && program.observed_generation.is_some()
    {
        text.push_str(&format!(
            "  Wait: what is below is about generation {observed}; generation {generation} has not been taken up yet.\n"
        ));
    }
    for reason in reasons(program) {
        let hint = hint(reason, &said(program, reason));
        match reason {
            Reason::Ready => text.push_str(&format!("  {hint}\n")),
            _ => text.push_str(&format!("  {reason}: {hint}\n")),
        }
    }
    text
}

/// What a deletion waits for, and what helps if it lasts.
fn waits_for(program: &Program, deletion: &Deletion, skep_namespace: &str) -> String {
    let mut text = String::new();
    if deletion.finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
        let nodes: Vec<&str> = program.nodes.iter().map(|node| node.node.as_str()).collect();
        text.push_str(&match nodes.len() {
            0 => format!("  Wait: the operator has still to say that it is off all nodes ({FINALIZER}).\n"),
            _ => format!("  Wait: it is being taken off {} ({FINALIZER}).\n", printable(&nodes.join(", "))),
        });
        text.push_str(&format!(
            "  Nodes that do not answer hold it for a few seconds only; if it lasts longer, the operator does not run: kubectl get pods -n {skep_namespace} -l app.kubernetes.io/component=operator\n"
        ));
    }
    for finalizer in deletion.finalizers.iter().filter(|finalizer| *finalizer != FINALIZER) {
        text.push_str(&printable(&format!(
            "  It waits for the owner of the finalizer {finalizer}, which is not Skep's."
        )));
        text.push('\n');
    }
    text
}

/// Every message that gives a reason.
fn said(program: &Program, reason: Reason) -> Vec<&str> {
    let conditions = program.conditions.iter().filter(|c| c.reason == reason).map(|c| c.message.as_str());
    let failures = program.failures.iter().filter(|f| f.reason == reason).map(|f| f.message.as_str());
    let nodes = program.nodes.iter().filter(|n| n.reason == reason.as_str()).map(|n| n.message.as_str());
    let targets = program.nodes.iter().flat_map(|n| &n.hooks).flat_map(|h| &h.failures);
    let targets = targets.filter(|f| f.reason == reason.as_str()).map(|f| f.message.as_str());
    conditions.chain(failures).chain(nodes).chain(targets).collect()
}

/// Each reason that is given anywhere once, the program's own first; `Ready` only where there is no other.
fn reasons(program: &Program) -> Vec<Reason> {
    let conditions = program.conditions.iter().map(|c| c.reason);
    let nodes = program.nodes.iter().filter_map(|n| n.reason.parse().ok());
    let targets =
        program.nodes.iter().flat_map(|n| &n.hooks).flat_map(|h| &h.failures).filter_map(|f| f.reason.parse().ok());
    let own = program.reason.parse().ok().into_iter();
    let all = own.chain(conditions).chain(program.failures.iter().map(|f| f.reason)).chain(nodes).chain(targets);
    let mut unique: Vec<Reason> = Vec::new();
    for reason in all {
        if !unique.contains(&reason) {
            unique.push(reason);
        }
    }
    if unique.len() > 1 {
        unique.retain(|r| *r != Reason::Ready);
    }
    unique
}

fn facts(program: &Program, now: Timestamp) -> String {
    let counts = program.counts.map(|c| {
        let all = [
            (c.desired, "desired"),
            (c.ready, "ready"),
            (c.updating, "updating"),
            (c.failed, "failed"),
            (c.degraded, "degraded"),
            (c.unsupported, "unsupported"),
            (c.unreachable, "unreachable"),
        ];
        let some: Vec<String> = all.iter().filter(|(n, _)| *n > 0).map(|(n, word)| format!("{n} {word}")).collect();
        if some.is_empty() { "none".to_owned() } else { some.join(", ") }
    });
    let generation = program.generation.map(|g| g.to_string()).unwrap_or_default();
    let rows = [
        ("Image", program.image.clone()),
        ("Digest", program.digest.clone()),
        ("Revision", program.revision.clone()),
        ("Generation", generation),
        ("Nodes", counts.unwrap_or_default()),
        ("Age", age(program.created, now)),
    ];
    let lines = rows.iter().filter(|(_, value)| !value.is_empty());
    lines.map(|(name, value)| format!("  {name:<12}{}\n", printable(value))).collect()
}

fn conditions(program: &Program, now: Timestamp) -> String {
    if program.conditions.is_empty() {
        return String::new();
    }
    let mut table = Table::new(["TYPE", "STATUS", "REASON", "SINCE", "MESSAGE"], 2);
    for condition in &program.conditions {
        let status = format!("{:?}", condition.status);
        let since = age(Some(condition.last_transition_time.0), now);
        table.row([condition.type_.as_str(), &status, condition.reason.as_str(), &since, &condition.message]);
    }
    table.render()
}

fn failures(program: &Program) -> String {
    let mut text = String::new();
    for failure in &program.failures {
        let nodes = match failure.count {
            1 => "1 node".to_owned(),
            count => format!("{count} nodes"),
        };
        let more = (failure.count as usize).saturating_sub(failure.nodes.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let names = printable(&failure.nodes.join(", "));
        text.push_str(&format!("  {} on {nodes}: {names}{more}\n", failure.reason));
        text.push_str(&format!("    {}\n", printable(&failure.message)));
        let log = failure.log.as_deref().unwrap_or_default();
        text.extend(log.lines().map(|line| format!("    | {}\n", printable(line))));
    }
    text
}

/// What single nodes say beyond the failure groups.
fn messages(program: &Program) -> String {
    let grouped = |message: &str| program.failures.iter().any(|f| f.message == message);
    let lines = program.nodes.iter().filter(|n| !n.message.is_empty() && !grouped(&n.message));
    lines.map(|n| printable(&format!("  {}: {}", n.node, n.message)) + "\n").collect()
}

fn target_failures(program: &Program) -> String {
    let mut table = Table::new(["NODE", "FUNCTION", "HOOK", "TARGET", "REASON", "MESSAGE"], 2);
    let mut none = true;
    for node in &program.nodes {
        for hook in &node.hooks {
            for failure in &hook.failures {
                none = false;
                let of = [&node.node, &hook.function, &hook.hook];
                table.row(of.into_iter().chain([&failure.target, &failure.reason, &failure.message]));
            }
        }
    }
    if none { String::new() } else { table.render() }
}

fn events(program: &Program, now: Timestamp) -> String {
    if program.events.is_empty() {
        return String::new();
    }
    let mut table = Table::new(["LAST", "COUNT", "TYPE", "REASON", "MESSAGE"], 2);
    for event in &program.events {
        let (last, count) = (age(event.last, now), event.count.to_string());
        table.row([last.as_str(), &count, &event.type_, &event.reason, &event.message]);
    }
    table.render()
}
