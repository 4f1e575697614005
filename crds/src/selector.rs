//! Label selectors, bounded so that rules below `attach` stay within the API server's cost budget.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Selects by labels: every entry of `matchLabels` and of `matchExpressions` must hold. At least one is given.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.matchLabels) || has(self.matchExpressions)").message("an empty selector would select everything: give matchLabels, such as {app: web}, or matchExpressions"))]
pub struct LabelSelector {
    /// Labels with exactly these values: `{app: web}`. 1 to 16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "match_labels")]
    pub match_labels: Option<BTreeMap<String, String>>,
    /// Conditions on labels; all must hold. 1 to 16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    pub match_expressions: Option<Vec<LabelRequirement>>,
}

/// One condition on one label.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.operator in ['In', 'NotIn'] ? has(self.values) : !has(self.values)").message("operators In and NotIn need values; Exists and DoesNotExist take none"))]
pub struct LabelRequirement {
    /// The label's key: `app` or `example.com/team`.
    #[schemars(
        length(min = 1, max = 317),
        regex(pattern = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")
    )]
    pub key: String,
    /// How the label is compared.
    pub operator: LabelOperator,
    /// Values for `In` and `NotIn`; absent for the other operators. 1 to 16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "label_values")]
    pub values: Option<Vec<String>>,
}

/// How a label is compared: `In`: it has one of the values; `NotIn`: it is absent or has another value; `Exists`: it is
/// there; `DoesNotExist`: it is not there.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum LabelOperator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

/// Selects pods, and containers in them, of the EbpfProgram's own namespace. Pods of other namespaces are never
/// selected.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PodSelector {
    /// Labels of the pods, all of the EbpfProgram's own namespace.
    pub selector: LabelSelector,
    /// Names of containers, init containers included. Absent: every container of the pod. 1 to 16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 16),
        inner(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub containers: Option<Vec<String>>,
}

impl LabelSelector {
    /// Whether an object with `labels` is selected. Without any condition nothing is selected: the API refuses such a
    /// selector, and a hole in that refusal must not widen.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let equal = self.match_labels.iter().flatten().map(|(key, value)| labels.get(key) == Some(value));
        let hold = self.match_expressions.iter().flatten().map(|requirement| requirement.matches(labels));
        let mut conditions = equal.chain(hold).peekable();
        conditions.peek().is_some() && conditions.all(|holds| holds)
    }
}

impl LabelRequirement {
    fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let label = labels.get(&self.key);
        let listed = label.is_some_and(|value| self.values.iter().flatten().any(|wanted| wanted == value));
        match self.operator {
            LabelOperator::In => listed,
            LabelOperator::NotIn => !listed,
            LabelOperator::Exists => label.is_some(),
            LabelOperator::DoesNotExist => label.is_none(),
        }
    }
}

const LABEL_VALUE: &str = r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$";

fn match_labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object", "minProperties": 1, "maxProperties": 16,
        "additionalProperties": { "type": "string", "maxLength": 63, "pattern": LABEL_VALUE },
    })
}

fn label_values(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array", "minItems": 1, "maxItems": 16, "x-kubernetes-list-type": "set",
        "items": { "type": "string", "maxLength": 63, "pattern": LABEL_VALUE },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selects(selector: serde_json::Value, labels: &[(&str, &str)]) -> bool {
        let selector: LabelSelector = serde_json::from_value(selector).unwrap();
        selector.matches(&labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect())
    }

    #[test]
    fn a_selector_selects_what_kubernetes_would() {
        use serde_json::json;
        let web = [("app", "web"), ("tier", "front")];
        assert!(selects(json!({"matchLabels": {"app": "web"}}), &web));
        assert!(!selects(json!({"matchLabels": {"app": "web", "tier": "back"}}), &web));
        assert!(!selects(json!({}), &web));
        let expression = |e: serde_json::Value| selects(json!({"matchExpressions": [e]}), &web);
        assert!(expression(json!({"key": "app", "operator": "In", "values": ["web", "api"]})));
        assert!(!expression(json!({"key": "app", "operator": "NotIn", "values": ["web"]})));
        assert!(expression(json!({"key": "absent", "operator": "NotIn", "values": ["web"]})));
        assert!(expression(json!({"key": "tier", "operator": "Exists"})));
        assert!(!expression(json!({"key": "tier", "operator": "DoesNotExist"})));
    }
}
