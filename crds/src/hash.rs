//! The two hashes that name what a node runs. Opaque to agents.
//!
//! Guarantees: a spec that did not change keeps its hashes over every version of Skep (golden files), since a hash that
//! moves would load every program of a cluster anew. So: canonical JSON, keys sorted, what is absent stays absent, no
//! default is written in, and a field that a later version adds changes nothing for specs that do not use it.

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::ebpfprogram::EbpfProgramSpec;

/// Hash of all that changes a node: image digest, globals, maps, programs with their attach entries, and the value of
/// the restart annotation. The unit of status, rollout and rollback.
///
/// `digest` is the image's, `sha256:...`. Node selector, pull policy, pull secrets and the tag's text are not part of it.
pub fn revision_hash(spec: &EbpfProgramSpec, digest: &str, restart: Option<&str>) -> String {
    let mut parts = pick(spec, &["globals", "maps", "programs"]);
    parts.insert("digest".into(), digest.into());
    if let Some(restart) = restart {
        parts.insert("restart".into(), restart.into());
    }
    short_hash(&Value::Object(parts))
}

/// Hash of what the kernel's program load sees: image digest, globals, map definitions, and the functions with their
/// load-time attributes. Names the directory in bpffs; only its change loads anew.
///
/// `functions`: function name and load-time attributes as one string (fentry's target, a cgroup kind's attach type; empty
/// for a kind without any), once per variant; order and repetition do not matter. What becomes of a map on update
/// (`onUpdate`) is not part of its definition.
pub fn load_hash<F, A>(spec: &EbpfProgramSpec, digest: &str, functions: &[(F, A)]) -> String
where
    F: AsRef<str>,
    A: AsRef<str>,
{
    let mut parts = pick(spec, &["globals", "maps"]);
    if let Some(Value::Object(maps)) = parts.get_mut("maps") {
        maps.values_mut().filter_map(Value::as_object_mut).for_each(|options| drop(options.remove("onUpdate")));
        maps.retain(|_, options| options.as_object().is_some_and(|options| !options.is_empty()));
        if maps.is_empty() {
            parts.remove("maps");
        }
    }
    let mut variants: Vec<[&str; 2]> = functions.iter().map(|(f, a)| [f.as_ref(), a.as_ref()]).collect();
    variants.sort_unstable();
    variants.dedup();
    parts.insert("digest".into(), digest.into());
    parts.insert("functions".into(), variants.into_iter().map(|[f, a]| Value::from(vec![f, a])).collect());
    short_hash(&Value::Object(parts))
}

/// The named fields of the spec, as the API would write them.
fn pick(spec: &EbpfProgramSpec, fields: &[&str]) -> Map<String, Value> {
    let spec = serde_json::to_value(spec).unwrap_or_default();
    fields.iter().filter_map(|name| Some((name.to_string(), spec.get(name)?.clone()))).collect()
}

/// The first 10 hexadecimal digits of the SHA-256 of the canonical JSON.
fn short_hash(value: &Value) -> String {
    let mut text = String::new();
    canonical(value, &mut text);
    let sum = Sha256::digest(text.as_bytes());
    sum.iter().take(5).map(|byte| format!("{byte:02x}")).collect()
}

/// JSON without spaces, keys sorted by their bytes, whatever order the map type in use keeps.
fn canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_unstable_by_key(|(name, _)| *name);
            out.push('{');
            for (index, (name, member)) in members.into_iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                out.push_str(&Value::from(name.as_str()).to_string());
                out.push(':');
                canonical(member, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                canonical(item, out);
            }
            out.push(']');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_sorted_and_nothing_is_added() {
        let mut text = String::new();
        canonical(&serde_json::json!({"b": [1, 2.5, "x\"y"], "a": {"d": null, "c": true}}), &mut text);
        assert_eq!(text, r#"{"a":{"c":true,"d":null},"b":[1,2.5,"x\"y"]}"#);
    }
}
