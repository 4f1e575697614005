//! The CustomResourceDefinitions, as they are applied to a cluster.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::Value;

use crate::closed;
use crate::ebpfnode::EbpfNode;
use crate::ebpfprogram::EbpfProgram;

/// Every CRD of Skep, in the order in which to apply them.
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![normalised(EbpfProgram::crd()), normalised(EbpfNode::crd())]
}

/// The OpenAPI schema of `EbpfProgram`, as in its CRD.
pub(crate) fn program_schema() -> Value {
    let crd = serde_json::to_value(normalised(EbpfProgram::crd())).unwrap_or_default();
    crd.pointer("/spec/versions/0/schema/openAPIV3Schema").cloned().unwrap_or_default()
}

/// Takes out what schemars writes and an API server should not read: `nullable` (without it the API server drops nulls
/// before it validates; [`closed`] puts it where a null must not go unseen), and integer formats that Kubernetes does not
/// know. Closes the objects of the spec of an EbpfProgram.
fn normalised(crd: CustomResourceDefinition) -> CustomResourceDefinition {
    let Ok(mut value) = serde_json::to_value(&crd) else { return crd };
    if let Some(schema) = value.pointer_mut("/spec/versions/0/schema/openAPIV3Schema") {
        walk(schema);
        // Only what people write is closed; nodes are written by the operator.
        if crd.spec.names.kind == "EbpfProgram"
            && let Some(spec) = schema.pointer_mut("/properties/spec")
        {
            closed::close(spec);
        }
    }
    serde_json::from_value(value).unwrap_or(crd)
}

fn walk(schema: &mut Value) {
    let Some(schema) = schema.as_object_mut() else { return };
    schema.remove("nullable");
    if let Some(Value::Array(words)) = schema.get_mut("enum") {
        words.retain(|word| !word.is_null());
    }
    schema.remove("title");
    if schema.get("format").and_then(Value::as_str).is_some_and(|format| format.starts_with("uint")) {
        schema.remove("format");
    }
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        properties.values_mut().for_each(walk);
    }
    for below in ["items", "additionalProperties"] {
        if let Some(below) = schema.get_mut(below) {
            walk(below);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crds_are_small_and_hold_no_unions_of_schemas() {
        for crd in crds() {
            let text = serde_json::to_string(&crd).unwrap();
            let name = crd.metadata.name.unwrap();
            assert!(text.len() < 200 * 1024, "{name}: {} bytes", text.len());
            for word in ["\"oneOf\"", "\"anyOf\"", "\"allOf\"", "\"not\"", "\"$ref\"", "\"uint"] {
                assert!(!text.contains(word), "{name} holds {word}");
            }
        }
    }
}
