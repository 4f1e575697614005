//! Unions of which exactly one member is given, said by one rule instead of `oneOf`.
//!
//! A `oneOf` in a CRD answers "must validate one and only one schema (oneOf)" and hides every other message; a rule
//! says which object is wrong and what to write.

use schemars::Schema;
use serde_json::{Map, Value, json};

/// Turns the `oneOf` of an externally tagged enum into plain optional properties and a rule that counts them.
///
/// Each variant's doc comment becomes the description of its property.
pub(crate) fn exactly_one(schema: &mut Schema, message: &str) {
    let object = schema.ensure_object();
    let Some(Value::Array(arms)) = object.remove("oneOf") else { return };
    let mut properties = Map::new();
    for arm in arms {
        let description = arm.get("description").cloned();
        let Some(Value::Object(members)) = arm.get("properties").cloned() else { continue };
        for (name, mut member) in members {
            if let (Some(text), Some(member)) = (&description, member.as_object_mut()) {
                member.insert("description".into(), text.clone());
            }
            properties.insert(name, member);
        }
    }
    let given: Vec<String> = properties.keys().map(|name| format!("has(self.{name})")).collect();
    let rule = format!("[{}].filter(x, x).size() == 1", given.join(", "));
    object.insert("type".into(), "object".into());
    object.insert("properties".into(), Value::Object(properties));
    object.insert("x-kubernetes-validations".into(), json!([{ "rule": rule, "message": message }]));
}
