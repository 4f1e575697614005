//! Checks a JSON value against a CRD's structural schema, with the API server's words.
//!
//! Guarantees: the same verdict as a strict API server (`--validate=strict`) for every keyword that [`crate::crds`] uses;
//! a test enumerates them. CEL rules are not evaluated here.

use std::sync::Mutex;

use regex::Regex;
use serde_json::{Map, Value};

use crate::closed;
use crate::validate::Violation;

/// Drops nulls of the members that `schema` knows and does not call nullable, as the API server does before it validates.
pub fn drop_nulls(schema: &Value, value: &mut Value) {
    drop_nulls_if(schema, value, &|below| !nullable(below));
}

/// Drops nulls of all members that `schema` knows: rules take them for absent.
pub fn drop_all_nulls(schema: &Value, value: &mut Value) {
    drop_nulls_if(schema, value, &|_| true);
}

fn drop_nulls_if(schema: &Value, value: &mut Value, droppable: &impl Fn(&Value) -> bool) {
    match value {
        Value::Object(members) => {
            members.retain(|name, member| !(member.is_null() && member_schema(schema, name).is_some_and(droppable)));
            for (name, member) in members {
                if let Some(below) = member_schema(schema, name) {
                    drop_nulls_if(below, member, droppable);
                }
            }
        }
        Value::Array(items) => {
            if let Some(below) = schema.get("items") {
                items.iter_mut().for_each(|item| drop_nulls_if(below, item, droppable));
            }
        }
        _ => {}
    }
}

/// Every object below `value` that breaks the rule which closes it, in the API server's words.
pub fn open_objects(schema: &Value, value: &Value, path: &str, found: &mut Vec<Violation>) {
    match value {
        Value::Object(members) => {
            if let Some(message) = closed::open_fields(schema, members) {
                found.push(Violation::new(path, format!("Invalid value: \"object\": {message}")));
            }
            // A rule reads what the server decoded: `1.0` is no integer there.
            let point = |(name, member): (&String, &Value)| {
                member.is_f64() && member_schema(schema, name).is_some_and(|below| below["type"] == "integer")
            };
            if let Some(message) = closed::message(schema).filter(|_| members.iter().any(point)) {
                let why = "invalid data, expected int, got float64 evaluating rule";
                found.push(Violation::new(path, format!("Invalid value: \"object\": {why}: {message}")));
            }
            for (name, member) in members {
                if let Some(below) = member_schema(schema, name) {
                    open_objects(below, member, &join(path, name), found);
                }
            }
        }
        Value::Array(items) => {
            let below = schema.get("items").unwrap_or(&Value::Null);
            for (index, item) in items.iter().enumerate() {
                open_objects(below, item, &format!("{path}[{index}]"), found);
            }
        }
        _ => {}
    }
}

fn nullable(schema: &Value) -> bool {
    schema.get("nullable") == Some(&Value::Bool(true))
}

/// The fields of `value` that `schema` does not know. A list where an object belongs knows none, and the reverse.
pub fn unknown_fields(schema: &Value, value: &Value, path: &str, found: &mut Vec<Violation>) {
    // What is preserved a rule may look at: see `closed`.
    let preserved = schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let at = join(path, name);
                match member_schema(schema, name) {
                    Some(below) => unknown_fields(below, member, &at, found),
                    None if preserved => {}
                    None => found.push(Violation::new(&at, format!("unknown field {at:?}"))),
                }
            }
        }
        Value::Array(items) if !preserved => {
            let below = schema.get("items").unwrap_or(&Value::Null);
            for (index, item) in items.iter().enumerate() {
                unknown_fields(below, item, &format!("{path}[{index}]"), found);
            }
        }
        _ => {}
    }
}

/// Whether the API server runs no CEL rule on an object with this violation: one that lacks a field, or has a value of the
/// wrong type, out of an enum or over a length, could make a rule fail or cost too much.
pub fn hides_rules(violation: &Violation) -> bool {
    let words = &violation.message;
    let kinds = ["Required value", "Unsupported value", "Too long", "Too many"];
    kinds.iter().any(|kind| words.starts_with(kind)) || words.contains(" in body must be of type ")
}

/// Writes `1.0` as `1`, as the API server stores it.
pub fn whole_numbers(value: &mut Value) {
    // Every whole number up to here is exact in a double.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match value {
        Value::Number(number) if number.is_f64() => {
            if let Some(float) = number.as_f64().filter(|float| float.fract() == 0.0 && float.abs() <= EXACT) {
                *value = Value::from(float as i64);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        Value::Object(members) => members.values_mut().for_each(whole_numbers),
        _ => {}
    }
}

/// Everything that `value`, found at `path`, breaks in `schema`, unknown fields aside.
pub fn check(schema: &Value, value: &Value, path: &str, found: &mut Vec<Violation>) {
    if value.is_null() && nullable(schema) {
        return;
    }
    let before = found.len();
    check_type(schema, value, path, found);
    if found.len() > before {
        return;
    }
    match value {
        Value::Object(members) => check_object(schema, members, path, found),
        Value::Array(items) => check_array(schema, items, path, found),
        Value::String(text) => check_string(schema, text, path, found),
        Value::Number(_) => check_number(schema, value, path, found),
        _ => {}
    }
    if let Some(words) = schema.get("enum").and_then(Value::as_array)
        && !words.contains(value)
    {
        let words: Vec<String> = words.iter().map(Value::to_string).collect();
        found.push(Violation::new(path, format!("Unsupported value: {value}: supported values: {}", words.join(", "))));
    }
}

/// The schema below `schema` for the member `name`, unless anything goes there.
fn member_schema<'s>(schema: &'s Value, name: &str) -> Option<&'s Value> {
    schema.get("properties").and_then(|properties| properties.get(name)).or_else(|| schema.get("additionalProperties"))
}

fn check_type(schema: &Value, value: &Value, path: &str, found: &mut Vec<Violation>) {
    let Some(wanted) = schema.get("type").and_then(Value::as_str) else { return };
    let fits = match (wanted, value) {
        ("object", Value::Object(_)) | ("array", Value::Array(_)) | ("string", Value::String(_)) => true,
        ("boolean", Value::Bool(_)) | ("number", Value::Number(_)) => true,
        ("integer", Value::Number(number)) => number.as_f64().is_some_and(|given| given.fract() == 0.0),
        _ => false,
    };
    if !fits {
        let given = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(number) if number.is_f64() => "number",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let text = format!("Invalid value: {given:?}: {path} in body must be of type {wanted}: {given:?}");
        found.push(Violation::new(path, text));
    }
}

fn check_object(schema: &Value, members: &Map<String, Value>, path: &str, found: &mut Vec<Violation>) {
    for name in schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
        if !members.contains_key(name) {
            found.push(Violation::new(&join(path, name), "Required value"));
        }
    }
    check_count(schema, ["minProperties", "maxProperties"], "properties", members.len(), path, found);
    for (name, member) in members {
        if let Some(below) = member_schema(schema, name) {
            check(below, member, &join(path, name), found);
        }
    }
}

fn check_array(schema: &Value, items: &[Value], path: &str, found: &mut Vec<Violation>) {
    check_count(schema, ["minItems", "maxItems"], "items", items.len(), path, found);
    let keys: Option<Vec<&str>> = match schema.get("x-kubernetes-list-type").and_then(Value::as_str) {
        Some("map") => schema
            .get("x-kubernetes-list-map-keys")
            .and_then(Value::as_array)
            .map(|keys| keys.iter().filter_map(Value::as_str).collect()),
        Some("set") => Some(vec![]),
        _ => None,
    };
    for (index, item) in items.iter().enumerate() {
        let at = format!("{path}[{index}]");
        if let Some(below) = schema.get("items") {
            check(below, item, &at, found);
        }
        let Some(keys) = &keys else { continue };
        let identity = |item: &Value| match keys.as_slice() {
            [] => item.clone(),
            keys => keys.iter().filter_map(|key| Some((key.to_string(), item.get(key)?.clone()))).collect(),
        };
        let own = identity(item);
        if items[..index].iter().any(|earlier| identity(earlier) == own) {
            found.push(Violation::new(&at, format!("Duplicate value: {own}")));
        }
    }
}

fn check_count(schema: &Value, keywords: [&str; 2], noun: &str, count: usize, path: &str, found: &mut Vec<Violation>) {
    let [min, max] = keywords.map(|keyword| schema.get(keyword).and_then(Value::as_u64));
    let given = count as u64;
    if let Some(min) = min.filter(|min| given < *min) {
        let text = format!("Invalid value: {count}: {path} in body should have at least {min} {noun}");
        found.push(Violation::new(path, text));
    }
    if let Some(max) = max.filter(|max| given > *max) {
        found.push(Violation::new(path, format!("Too many: {count}: must have at most {max} items")));
    }
}

fn check_string(schema: &Value, text: &str, path: &str, found: &mut Vec<Violation>) {
    let bound = |keyword| schema.get(keyword).and_then(Value::as_u64);
    let length = text.chars().count() as u64;
    // The first that fails is reported, as the API server does.
    let broken = if let Some(max) = bound("maxLength").filter(|max| length > *max) {
        format!("Too long: may not be more than {max} bytes")
    } else if let Some(min) = bound("minLength").filter(|min| length < *min) {
        format!("Invalid value: {text:?}: {path} in body should be at least {min} chars long")
    } else if let Some(pattern) = schema.get("pattern").and_then(Value::as_str).filter(|p| !matches(p, text)) {
        format!("Invalid value: {text:?}: {path} in body should match '{pattern}'")
    } else {
        return;
    };
    found.push(Violation::new(path, broken));
}

fn check_number(schema: &Value, value: &Value, path: &str, found: &mut Vec<Violation>) {
    let given = value.as_f64().unwrap_or_default();
    let mut value = value.clone();
    whole_numbers(&mut value);
    let bound = |keyword| schema.get(keyword).and_then(Value::as_f64);
    if let Some(min) = bound("minimum").filter(|min| given < *min) {
        let text = format!("Invalid value: {value}: {path} in body should be greater than or equal to {min}");
        found.push(Violation::new(path, text));
    }
    if let Some(max) = bound("maximum").filter(|max| given > *max) {
        let text = format!("Invalid value: {value}: {path} in body should be less than or equal to {max}");
        found.push(Violation::new(path, text));
    }
}

/// Whether `text` matches; each pattern is compiled once. A pattern that does not compile matches nothing (a test proves
/// that all do).
fn matches(pattern: &str, text: &str) -> bool {
    static COMPILED: Mutex<Vec<(String, Option<Regex>)>> = Mutex::new(Vec::new());
    let mut compiled = COMPILED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let index = compiled.iter().position(|(known, _)| known == pattern).unwrap_or_else(|| {
        compiled.push((pattern.into(), Regex::new(pattern).ok()));
        compiled.len() - 1
    });
    compiled[index].1.as_ref().is_some_and(|regex| regex.is_match(text))
}

/// `path` as the API server writes it for a rule: a key of a map in brackets, `spec.maps[flows]`. `path` has dots.
pub fn rule_path(schema: &Value, path: &str) -> String {
    let mut out = String::new();
    let mut below = Some(schema);
    for part in path.split('.') {
        let (name, indices) = part.split_at(part.find('[').unwrap_or(part.len()));
        let property = below.and_then(|schema| schema.get("properties")?.get(name));
        out = match property {
            None if below.is_some_and(|schema| schema.get("additionalProperties").is_some()) => {
                format!("{out}[{part}]")
            }
            _ => join(&out, part),
        };
        below = property.or_else(|| below.and_then(|schema| schema.get("additionalProperties")));
        if !indices.is_empty() {
            below = below.and_then(|schema| schema.get("items"));
        }
    }
    out
}

/// `path.name`, or `name` at the root.
pub fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.into() } else { format!("{path}.{name}") }
}
