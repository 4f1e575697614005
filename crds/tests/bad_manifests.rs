//! Every rule, enum, bound, pattern, requirement and list type of the generated CRD refuses something and accepts
//! something, in the exact words of the table `bad_manifests.yaml`.
//!
//! The table is data, so that the same rows can be applied to a real API server. See its head for the format.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod table;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use skep_crds::{Violation, validate};

use table::{Row, Table, table};

/// Each constraint of the schema under a name, with the schema paths where it stands. Equal constraints of fields of the
/// same name (the pod selector of seven kinds of hook) are one.
fn constraints() -> BTreeMap<String, BTreeSet<String>> {
    let crd = serde_json::to_value(&skep_crds::crds()[0]).unwrap();
    let schema = crd.pointer("/spec/versions/0/schema/openAPIV3Schema").unwrap().clone();
    let mut found = BTreeMap::new();
    enumerate(&schema, "", &mut found);
    found
}

fn enumerate(schema: &Value, path: &str, found: &mut BTreeMap<String, BTreeSet<String>>) {
    let field = path.rsplit('.').next().unwrap();
    let mut add = |what: String, at: String| {
        found.entry(what).or_default().insert(at);
    };
    for (keyword, value) in schema.as_object().unwrap() {
        match keyword.as_str() {
            "type" | "description" | "format" | "properties" | "items" | "additionalProperties" => {}
            // A null is refused by the rule that closes the object.
            "nullable" => add(format!("{field} nullable"), path.rsplit_once('.').unwrap().0.into()),
            "x-kubernetes-preserve-unknown-fields" | "x-kubernetes-map-type" | "x-kubernetes-list-map-keys" => {}
            "x-kubernetes-validations" => {
                for rule in value.as_array().unwrap() {
                    add(format!("{field} rule {}", rule["message"].as_str().unwrap()), path.into());
                }
            }
            "required" => {
                for name in value.as_array().unwrap() {
                    let name = name.as_str().unwrap();
                    add(
                        format!("{field} required {name}"),
                        if path.is_empty() { name.into() } else { format!("{path}.{name}") },
                    );
                }
            }
            "x-kubernetes-list-type" if value == "atomic" => {}
            "x-kubernetes-list-type" => add(format!("{field} {}", value.as_str().unwrap()), format!("{path}[]")),
            "enum" => add(format!("{field} enum"), path.into()),
            "minItems" | "maxItems" | "minLength" | "maxLength" | "minimum" | "maximum" | "minProperties"
            | "maxProperties" => add(format!("{field} {keyword} {}", value.as_f64().unwrap()), path.into()),
            "pattern" => add(format!("{field} pattern {}", value.as_str().unwrap()), path.into()),
            other => panic!("{path}: the test does not know the keyword {other}: add it here and to structural.rs"),
        }
    }
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        for (name, below) in properties {
            // The status is the operator's; its schema has no constraint to test (see status.rs).
            if path.is_empty() && name == "status" {
                assert_unconstrained(below);
                continue;
            }
            enumerate(below, &if path.is_empty() { name.clone() } else { format!("{path}.{name}") }, found);
        }
    }
    if let Some(below) = schema.get("items") {
        enumerate(below, &format!("{path}[]"), found);
    }
    if let Some(below) = schema.get("additionalProperties") {
        enumerate(below, &format!("{path}.*"), found);
    }
}

fn assert_unconstrained(status: &Value) {
    let text = status.to_string();
    for keyword in ["enum", "pattern", "maxItems", "maxLength", "maximum", "x-kubernetes-validations"] {
        assert!(!text.contains(&format!("\"{keyword}\":")), "the status has a {keyword}");
    }
}

/// `spec.programs[3].attach[0]` and `spec.maps.flows.onUpdate` as they stand in the schema.
fn schema_path(path: &str) -> String {
    let mut out = String::new();
    let mut map = false;
    let path = path.replace("spec.maps[", "spec.maps.").replace("flows]", "flows");
    for part in path.split('.') {
        let part = match part.split_once('[') {
            _ if map => "*".to_string(),
            Some((name, index)) if index.trim_end_matches(']').parse::<usize>().is_ok() => format!("{name}[]"),
            _ => part.to_string(),
        };
        map = ["maps", "globals", "matchLabels"].contains(&part.as_str());
        out = if out.is_empty() { part } else { format!("{out}.{part}") };
    }
    out
}

/// Whether a violation at a path and of these words is one of that constraint.
fn shows(violation: &Violation, constraint: &str, places: &BTreeSet<String>) -> bool {
    let (_, keyword) = constraint.split_once(' ').unwrap();
    let mark = match keyword.split_once(' ').unwrap_or((keyword, "")) {
        ("rule", message) => message.to_string(),
        ("required", _) => "Required value".into(),
        ("nullable", _) => "without a value".into(),
        ("map" | "set", _) => "Duplicate value".into(),
        ("enum", _) => "Unsupported value".into(),
        ("pattern", pattern) => format!("should match '{pattern}'"),
        ("minItems" | "minLength" | "minProperties", n) => format!("at least {n} "),
        ("maxItems" | "maxProperties", n) => format!("must have at most {n} items"),
        ("maxLength", n) => format!("may not be more than {n} bytes"),
        ("minimum", n) => format!("greater than or equal to {n}"),
        ("maximum", n) => format!("less than or equal to {n}"),
        other => panic!("no mark for {other:?}"),
    };
    violation.message.contains(&mark) && places.contains(&schema_path(&violation.path))
}

#[test]
fn each_row_is_refused_in_these_words_and_accepted_without_the_mistake() {
    let Table { base, rows } = table();
    assert_eq!(validate::manifest(&base).map(|_| ()), Ok(()), "the base");
    let constraints = constraints();
    let mut wrong = vec![];
    for row in rows {
        let refused = validate::manifest(&row.refused(&base)).err().unwrap_or_default();
        let said: Vec<String> = refused.iter().map(ToString::to_string).collect();
        if said != row.says {
            wrong.push(format!("{:?}\n  refused: {}\n  says: {}", row.constraints, row.refused(&base), json!(said)));
        }
        if let Err(said) = validate::manifest(&row.accepted(&base)) {
            wrong.push(format!("{:?}\n  accepted: {}\n  is refused: {said:?}", row.constraints, row.accepted(&base)));
        }
        for constraint in &row.constraints {
            match constraints.get(constraint) {
                Some(places) if refused.iter().any(|violation| shows(violation, constraint, places)) => {}
                Some(_) => wrong.push(format!("{constraint}: the refused manifest breaks something else: {said:?}")),
                None if constraint.starts_with("unknown field") || constraint.starts_with("metadata") => {}
                None if constraint.starts_with("type") => {}
                None => wrong.push(format!("{constraint}: not in the CRD")),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_row_that_differs_by_mode_says_something_else_there() {
    for Row { constraints, says, prunes, differs, .. } in table().rows {
        let unknown = says.iter().all(|message| message.starts_with("unknown field"));
        assert_eq!(prunes, unknown, "{constraints:?}: unknown fields are pruned, nothing else is");
        assert!(prunes || differs.warn.is_none(), "{constraints:?}: what else would differ with a warning?");
        for words in [differs.create, differs.warn, differs.apply].into_iter().flatten() {
            assert!(!words.is_empty() && words != says, "{constraints:?}: no difference");
        }
        assert!(differs.apply_of_accepted.is_none_or(|words| !words.is_empty()), "{constraints:?}: no words");
    }
}

#[test]
fn each_constraint_of_the_crd_has_a_row() {
    let covered: BTreeSet<String> = table().rows.into_iter().flat_map(|row| row.constraints).collect();
    let missing: Vec<String> = constraints().into_keys().filter(|name| !covered.contains(name)).collect();
    assert!(missing.is_empty(), "no row for:\n{}", missing.join("\n"));
}
