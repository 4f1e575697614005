//! An API server's verdict on a manifest, without an API server.
//!
//! Guarantees: reads the same schema and the same rules that the cluster has, in the same order: unknown fields, which hide
//! everything else, then names and structure, then the CEL rules unless the structure forbids to run them. The cluster
//! level compares whole messages with those of a real API server.
//!
//! Caveat: regular expressions are Rust's here and RE2's there; the patterns in use mean the same in both.

use std::fmt;
use std::sync::LazyLock;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::cel::{CompiledSchema, ErrorKind, Validator, compile_schema};
use serde_json::Value;

use crate::ebpfprogram::EbpfProgram;
use crate::{API_VERSION, closed, crd, metadata, structural};

/// One thing that is wrong with a manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Violation {
    /// Where: `spec.programs[0].attach[0]`; empty for the manifest as a whole.
    pub path: String,
    /// What, in the API server's words: `Invalid value: "object": an attach entry names exactly one hook; ...`.
    pub message: String,
}

impl Violation {
    /// What is wrong, and where.
    pub fn new(path: &str, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // An unknown field is named by its message already, as the API server does.
        if self.path.is_empty() || self.message.starts_with("unknown field") {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.path, self.message)
        }
    }
}

struct Rules {
    schema: Value,
    compiled: CompiledSchema,
}

static RULES: LazyLock<Rules> = LazyLock::new(|| {
    let schema = crd::program_schema();
    let mut known = schema.clone();
    without_closing_rules(&mut known);
    let compiled = compile_schema(&known);
    Rules { schema, compiled }
});

/// The program that `manifest` describes, or everything that an API server would find wrong with it. A `status` in it is
/// dropped, as the API server does on create.
pub fn manifest(manifest: &Value) -> Result<EbpfProgram, Vec<Violation>> {
    let mut value = manifest.clone();
    if let Some(members) = value.as_object_mut() {
        members.remove("status");
    }
    let rules = &*RULES;
    let found = identity(&value);
    if !found.is_empty() {
        return Err(found);
    }
    metadata::fill(&mut value);
    let known: ObjectMeta = serde_json::from_value(value["metadata"].clone())
        .map_err(|error| vec![Violation::new("metadata", format!("Invalid value: {error}"))])?;
    let mut body = value.clone();
    if let Some(members) = body.as_object_mut() {
        ["apiVersion", "kind", "metadata"].iter().for_each(|name| drop(members.remove(*name)));
    }
    let mut found: Vec<Violation> = metadata::unknown_fields(&value["metadata"]).collect();
    structural::unknown_fields(&rules.schema, &body, "", &mut found);
    if !found.is_empty() {
        return Err(found);
    }
    structural::drop_nulls(&rules.schema, &mut value);
    structural::drop_nulls(&rules.schema, &mut body);
    let mut found = metadata::check(&known);
    structural::check(&rules.schema, &body, "", &mut found);
    if !found.iter().any(structural::hides_rules) {
        let mut open = vec![];
        structural::open_objects(&rules.schema, &body, "", &mut open);
        let at_rules =
            |found: Violation| Violation { path: structural::rule_path(&rules.schema, &found.path), ..found };
        found.extend(open.into_iter().map(at_rules));
        structural::drop_all_nulls(&rules.schema, &mut value);
        structural::whole_numbers(&mut value);
        found.extend(broken_rules(rules, &value));
    }
    if !found.is_empty() {
        return Err(found);
    }
    structural::whole_numbers(&mut value);
    serde_json::from_value(value).map_err(|error| vec![Violation::new("", error.to_string())])
}

/// Takes out the rules that kube's CEL cannot run; [`structural::open_objects`] stands for them.
fn without_closing_rules(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            if let Some(Value::Array(rules)) = members.get_mut("x-kubernetes-validations") {
                rules.retain(|rule| !closed::closes(rule));
            }
            members.values_mut().for_each(without_closing_rules);
        }
        Value::Array(items) => items.iter_mut().for_each(without_closing_rules),
        _ => {}
    }
}

fn broken_rules(rules: &Rules, value: &Value) -> Vec<Violation> {
    let Err(errors) = Validator::new().validate_compiled(&rules.compiled, value, None) else { return vec![] };
    let said = |error: kube::core::cel::ValidationError| {
        let kind = match at(value, &error.field_path) {
            Some(Value::String(_)) => "string",
            Some(Value::Array(_)) => "array",
            _ => "object",
        };
        let message = match error.kind {
            ErrorKind::ValidationFailure => format!("Invalid value: {kind:?}: {}", error.message),
            // A rule that this build cannot evaluate refuses, as the API server would a rule that fails to run.
            _ => format!("Internal error: rule {:?}: {}", error.rule, error.message),
        };
        Violation { path: structural::rule_path(&rules.schema, &error.field_path), message }
    };
    let mut found: Vec<Violation> = errors.into_vec().into_iter().map(said).collect();
    // The compiled schema keeps its properties in a hash map.
    found.sort_by(|one, other| one.path.cmp(&other.path));
    found
}

/// The value at a path such as `spec.programs[0].attach[1]`.
fn at<'v>(value: &'v Value, path: &str) -> Option<&'v Value> {
    let pointer: String = path.split(['.', '[']).map(|part| format!("/{}", part.trim_end_matches(']'))).collect();
    value.pointer(if path.is_empty() { "" } else { &pointer })
}

/// Which kind of object it is: what comes before any schema.
fn identity(value: &Value) -> Vec<Violation> {
    let wanted = [("apiVersion", API_VERSION), ("kind", "EbpfProgram")];
    let wrong = wanted.into_iter().filter_map(|(field, wanted)| match value.get(field) {
        None | Some(Value::Null) => Some(Violation::new(field, "Required value")),
        Some(given) if given != wanted => {
            Some(Violation::new(field, format!("Unsupported value: {given}: supported values: {wanted:?}")))
        }
        Some(_) => None,
    });
    wrong.collect()
}
