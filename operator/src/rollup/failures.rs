//! Failures of many nodes, as few groups.

use std::collections::BTreeMap;

use skep_crds::Reason;
use skep_crds::status::{Failure, MAX_FAILURE_NODES, MAX_FAILURES};

use super::{Seen, Standing, View, reason_of};

/// Longest log kept: bytes.
const MAX_LOG: usize = 2048;
/// Longest message kept: bytes.
const MAX_MESSAGE: usize = 1024;

/// Groups by reason and message, the largest first; beyond the bound the last group is all others.
pub(super) fn group(view: &View<'_>) -> Vec<Failure> {
    let mut groups: BTreeMap<(Reason, String), Failure> = BTreeMap::new();
    for (node, standing) in &view.nodes {
        let Some((reason, message, log)) = failure(standing, view.revision) else { continue };
        let group = groups.entry((reason, message.clone())).or_insert_with(|| Failure {
            reason,
            message,
            log,
            count: 0,
            nodes: vec![],
        });
        add(group, 1, [node.to_string()]);
    }
    let mut groups: Vec<Failure> = groups.into_values().collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.count));
    let rest = if groups.len() > MAX_FAILURES { groups.split_off(MAX_FAILURES - 1) } else { vec![] };
    let kinds = rest.len();
    let merged = rest.into_iter().reduce(|mut all, next| {
        add(&mut all, next.count, next.nodes);
        all
    });
    groups.extend(merged.map(|mut all| {
        all.message = format!("{} (and {} other failures; kubectl get ebpfnode has them all)", all.message, kinds - 1);
        all
    }));
    groups
}

fn add(group: &mut Failure, count: i32, nodes: impl IntoIterator<Item = String>) {
    group.count += count;
    let room = MAX_FAILURE_NODES.saturating_sub(group.nodes.len());
    group.nodes.extend(nodes.into_iter().take(room));
}

fn failure(standing: &Standing<'_>, revision: &str) -> Option<(Reason, String, Option<String>)> {
    match (standing.seen(revision), standing) {
        (Seen::Failed | Seen::Degraded | Seen::Unsupported, Standing::Report(report)) => {
            let log = Some(tail(&report.log)).filter(|log| !log.is_empty()).map(Into::into);
            Some((reason_of(report), head(&report.message).into(), log))
        }
        // Why differs from node to node and is in its EbpfNode.
        (Seen::Unreachable, _) => {
            let message = "the node's agent does not answer; what runs there goes on, and it is tried again";
            Some((Reason::NodeUnreachable, message.into(), None))
        }
        _ => None,
    }
}

fn tail(text: &str) -> &str {
    let start = text.len().saturating_sub(MAX_LOG);
    let start = (start..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    &text[start..]
}

fn head(text: &str) -> &str {
    let end = (0..=text.len().min(MAX_MESSAGE)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    &text[..end]
}
