//! The two hashes that name what a node runs. Opaque to agents.
//!
//! Guarantees: a spec that did not change keeps its hashes over every version of Skep (golden files), since a hash that
//! moves would load every program of a cluster anew. So: canonical JSON, keys sorted, what is absent stays absent, no
//! default is written in, and a field that a later version adds changes nothing for specs that do not use it.

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::ebpfprogram::EbpfProgramSpec;

/// Hash of all that changes a node: image digest, globals, maps, programs with their attach entries, whether they are
/// suspended, and the value of the restart annotation. The unit of status, rollout and rollback.
///
/// `digest` is the image's, `sha256:...`. Node selector, pull policy, pull secrets and the tag's text are not part of it.
pub fn revision_hash(spec: &EbpfProgramSpec, digest: &str, restart: Option<&str>) -> String {
    let mut parts = pick(spec, &["globals", "maps", "programs"]);
    // `false` is what absent means.
    if spec.suspend == Some(true) {
        parts.insert("suspend".into(), true.into());
    }
    finish(parts, digest, restart)
}

/// Hash of what the kernel's program load sees: image digest, globals, map definitions, the names of the functions, and
/// the value of the restart annotation. Names the directory in bpffs; only its change loads anew.
///
/// Not part of it: what the kernel wants to know of an attach point when it loads a function (that makes variants inside
/// of one load), what becomes of a map on update (`onUpdate`, `merge`), and who counts what it has no room for
/// (`dropCounter`).
pub fn load_hash(spec: &EbpfProgramSpec, digest: &str, restart: Option<&str>) -> String {
    let mut parts = pick(spec, &["globals", "maps"]);
    if let Some(Value::Object(maps)) = parts.get_mut("maps") {
        for options in maps.values_mut().filter_map(Value::as_object_mut) {
            options.retain(|option, _| !["onUpdate", "merge", "dropCounter"].contains(&option.as_str()));
        }
        maps.retain(|_, options| options.as_object().is_some_and(|options| !options.is_empty()));
        if maps.is_empty() {
            parts.remove("maps");
        }
    }
    let mut functions: Vec<&str> = spec.programs.iter().map(|program| program.name.as_str()).collect();
    functions.sort_unstable();
    functions.dedup();
    // The second place is that of attributes which once were part of this: hashes stay as they were.
    parts.insert("functions".into(), functions.into_iter().map(|name| Value::from(vec![name, ""])).collect());
    finish(parts, digest, restart)
}

fn finish(mut parts: Map<String, Value>, digest: &str, restart: Option<&str>) -> String {
    parts.insert("digest".into(), digest.into());
    if let Some(restart) = restart {
        parts.insert("restart".into(), restart.into());
    }
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
