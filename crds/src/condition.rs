//! Conditions, in the shape of `metav1.Condition`, kept as kstatus expects: `Ready` always, `Reconciling` and `Stalled`
//! only while true.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::reason::Reason;

/// `Ready`: whether every desired node that is reachable and able runs the revision.
pub const READY: &str = "Ready";
/// `Reconciling`: there while work is in progress.
pub const RECONCILING: &str = "Reconciling";
/// `Stalled`: there while nothing will change without a change of the spec, the image or a node.
pub const STALLED: &str = "Stalled";

/// One aspect of the object's state.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// `Ready`, `Reconciling` or `Stalled`.
    #[serde(rename = "type")]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: ConditionStatus,
    /// One word, of the closed list of reasons.
    pub reason: Reason,
    /// What happened, to what, and what to do.
    pub message: String,
    /// The `metadata.generation` that this says something about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// When `status` last changed, RFC 3339.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub last_transition_time: Time,
}

/// `True`, `False` or `Unknown`.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConditionStatus {
    /// It is so.
    True,
    /// It is not so.
    False,
    /// Nobody knows.
    #[serde(other)]
    Unknown,
}

impl From<bool> for ConditionStatus {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

// A status is never refused for a word that a newer operator wrote: a plain string, no enum.
impl JsonSchema for ConditionStatus {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ConditionStatus".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string" })
    }
}

/// Puts `new` among `conditions` in place of the one of its type; `lastTransitionTime` becomes `now` only if the status
/// changed. `Reconciling` and `Stalled` that are not true are removed.
pub fn merge_condition(conditions: &mut Vec<Condition>, new: Condition, now: &Time) {
    let old = conditions.iter().position(|condition| condition.type_ == new.type_);
    let abnormal = new.type_ == RECONCILING || new.type_ == STALLED;
    match old {
        Some(index) if abnormal && new.status != ConditionStatus::True => {
            conditions.remove(index);
        }
        None if abnormal && new.status != ConditionStatus::True => {}
        Some(index) => {
            let since = conditions[index].last_transition_time.clone();
            let since = if conditions[index].status == new.status { since } else { now.clone() };
            conditions[index] = Condition { last_transition_time: since, ..new };
        }
        None => conditions.push(Condition { last_transition_time: now.clone(), ..new }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Time {
        serde_json::from_value(text.into()).unwrap()
    }

    fn condition(type_: &str, status: bool, reason: Reason, at: &str) -> Condition {
        Condition {
            type_: type_.into(),
            status: status.into(),
            reason,
            message: String::new(),
            observed_generation: None,
            last_transition_time: time(at),
        }
    }

    #[test]
    fn the_transition_time_moves_with_the_status_only() {
        let (first, later) = ("2024-01-01T00:00:00Z", "2024-01-02T00:00:00Z");
        let mut all = vec![];
        merge_condition(&mut all, condition(READY, false, Reason::Progressing, later), &time(first));
        merge_condition(&mut all, condition(READY, false, Reason::VerifierRejected, later), &time(later));
        assert_eq!(all, [condition(READY, false, Reason::VerifierRejected, first)]);
        merge_condition(&mut all, condition(READY, true, Reason::Ready, first), &time(later));
        assert_eq!(all, [condition(READY, true, Reason::Ready, later)]);
    }

    #[test]
    fn reconciling_and_stalled_are_there_only_while_true() {
        let at = "2024-01-01T00:00:00Z";
        let mut all = vec![];
        merge_condition(&mut all, condition(STALLED, false, Reason::Ready, at), &time(at));
        assert_eq!(all, []);
        merge_condition(&mut all, condition(STALLED, true, Reason::ImageNotFound, at), &time(at));
        merge_condition(&mut all, condition(RECONCILING, true, Reason::Progressing, at), &time(at));
        merge_condition(&mut all, condition(STALLED, false, Reason::Ready, at), &time(at));
        assert_eq!(all, [condition(RECONCILING, true, Reason::Progressing, at)]);
    }
}
