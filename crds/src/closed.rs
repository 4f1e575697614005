//! Objects that have the fields of their schema and no others, under every mode of validation.
//!
//! Guarantees: a field that is misspelt, or that narrows a selection and was left without a value (`nodeSelector:` with
//! nothing below it, which is null), is refused by one rule of the object. An API server alone drops both before it looks,
//! the first unless it validates strictly, and what is left selects more than was meant.
//!
//! `kubectl apply` without `--server-side` drops nulls itself, so that the server never sees them; the annotation in which
//! it keeps what was applied has them, and [`emptied`] finds them there.
//!
//! How, on Kubernetes 1.30 and later: unknown fields are preserved, so that they are still there when rules run. A rule
//! cannot name them, and `has()` is false for a null, but `size()` of the object counts both.

use serde_json::{Map, Value, json};

use crate::ebpfprogram::EbpfProgram;

/// Fields without which more is selected. Optional ones are refused when they are null.
const NARROWING: [&str; 6] = ["nodeSelector", "pods", "containers", "exclude", "matchLabels", "matchExpressions"];

/// How the rule begins, and no other does. The API server's CEL has `dyn`, kube's has not: [`crate::validate`] takes this
/// rule out and asks [`open_fields`] instead.
pub(crate) const RULE: &str = "size(dyn(self)) == ";

/// Words that CEL keeps for itself and that a field of ours is called.
const ESCAPED: [&str; 2] = ["function", "namespace"];

/// Closes `schema` and every object below it that names its fields.
pub(crate) fn close(schema: &mut Value) {
    let Some(schema) = schema.as_object_mut() else { return };
    for below in ["items", "additionalProperties"] {
        if let Some(below) = schema.get_mut(below) {
            close(below);
        }
    }
    let required = schema.get("required").cloned().unwrap_or_default();
    let optional = |name: &str| !required.as_array().is_some_and(|names| names.iter().any(|required| required == name));
    let Some(Value::Object(properties)) = schema.get_mut("properties") else { return };
    for (name, below) in properties.iter_mut() {
        close(below);
        if NARROWING.contains(&name.as_str()) && optional(name) {
            below["nullable"] = true.into();
        }
    }
    let (rule, message) = rule(properties);
    schema.insert("x-kubernetes-preserve-unknown-fields".into(), true.into());
    let rules = schema.entry("x-kubernetes-validations").or_insert_with(|| json!([]));
    if let Some(rules) = rules.as_array_mut() {
        rules.insert(0, json!({ "rule": rule, "message": message }));
    }
}

fn rule(properties: &Map<String, Value>) -> (String, String) {
    let has = |name: &String| match ESCAPED.contains(&name.as_str()) {
        true => format!("has(self.__{name}__)"),
        false => format!("has(self.{name})"),
    };
    let given: Vec<String> = properties.keys().map(has).collect();
    let known: Vec<&str> = properties.keys().map(String::as_str).collect();
    let rule = format!("{RULE}[{}].filter(x, x).size()", given.join(", "));
    let message = format!("a field is misspelt, misplaced or without a value; known here: {}", known.join(", "));
    (rule, message)
}

/// Where client-side `kubectl apply` keeps the manifest that was applied last.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// A narrowing field that was applied without a value, and that kubectl left out: `spec.nodeSelector`.
pub fn emptied(program: &EbpfProgram) -> Option<String> {
    let text = program.metadata.annotations.as_ref()?.get(LAST_APPLIED)?;
    let applied: Value = serde_json::from_str(text).ok()?;
    let stored = serde_json::to_value(&program.spec).ok()?;
    emptied_below(applied.get("spec")?, &stored, "spec")
}

fn emptied_below(applied: &Value, stored: &Value, path: &str) -> Option<String> {
    match applied {
        Value::Object(members) => members.iter().find_map(|(name, member)| {
            let (at, now) = (format!("{path}.{name}"), stored.get(name));
            match now {
                None => (member.is_null() && NARROWING.contains(&name.as_str())).then_some(at),
                Some(now) => emptied_below(member, now, &at),
            }
        }),
        Value::Array(items) => items.iter().enumerate().find_map(|(index, item)| {
            // Items with a name are merged by it, whatever their place.
            let same = |other: &&Value| item.get("name").is_some() && other.get("name") == item.get("name");
            let now = stored.as_array()?.iter().find(same).or_else(|| stored.get(index))?;
            emptied_below(item, now, &format!("{path}[{index}]"))
        }),
        _ => None,
    }
}

/// The message of the rule that closes `schema`, if it is closed.
pub(crate) fn message(schema: &Value) -> Option<&str> {
    let closing = schema.get("x-kubernetes-validations")?.as_array()?.iter().find(|rule| closes(rule))?;
    closing.get("message").and_then(Value::as_str)
}

/// The message, if `object` breaks the rule. Nulls that the API server drops are dropped already.
pub(crate) fn open_fields<'s>(schema: &'s Value, object: &Map<String, Value>) -> Option<&'s str> {
    let properties = schema.get("properties")?.as_object()?;
    let open = object.iter().any(|(name, member)| member.is_null() || !properties.contains_key(name));
    message(schema).filter(|_| open)
}

/// Whether a rule is one that closes an object.
pub(crate) fn closes(rule: &Value) -> bool {
    rule.get("rule").and_then(Value::as_str).is_some_and(|text| text.starts_with(RULE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(applied: Value, spec: Value) -> EbpfProgram {
        let annotations = json!({LAST_APPLIED: json!({"spec": applied}).to_string()});
        let metadata = json!({"name": "flows", "annotations": annotations});
        serde_json::from_value(json!({
            "apiVersion": "skep.dev/v1alpha1", "kind": "EbpfProgram", "metadata": metadata, "spec": spec,
        }))
        .unwrap()
    }

    #[test]
    fn what_kubectl_dropped_is_found_in_what_was_applied() {
        let image = json!({"reference": "a/b:c"});
        let uprobe = |pods: Value| {
            let mut probe = json!({"binary": "libc.so.6", "symbol": "malloc", "pods": pods});
            probe.as_object_mut().unwrap().retain(|_, member| *member != json!("absent"));
            json!([{"name": "g", "attach": [{"uprobe": probe}]}])
        };
        let stored = json!({"image": image, "programs": uprobe("absent".into())});
        let of = |applied: Value| emptied(&program(applied, stored.clone()));
        let sound = json!({"image": image, "programs": uprobe("absent".into())});
        assert_eq!(of(sound.clone()), None);
        let mut applied = sound.clone();
        applied["nodeSelector"] = Value::Null;
        assert_eq!(of(applied).as_deref(), Some("spec.nodeSelector"));
        let mut applied = sound.clone();
        applied["programs"] = uprobe(Value::Null);
        assert_eq!(of(applied).as_deref(), Some("spec.programs[0].attach[0].uprobe.pods"));
        // What narrows nothing is Kubernetes's usual absence, and what somebody filled in since is there.
        let mut applied = sound;
        applied["suspend"] = Value::Null;
        assert_eq!(of(applied.clone()), None);
        applied["nodeSelector"] = Value::Null;
        let selector = json!({"matchLabels": {"a": "b"}});
        let filled = json!({"image": image, "programs": uprobe("absent".into()), "nodeSelector": selector});
        assert_eq!(emptied(&program(applied, filled)), None);
    }
}
