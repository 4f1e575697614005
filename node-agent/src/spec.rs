//! The spec as the agent understands it: a field or a kind that this version does not know is refused, never ignored.

use serde_json::Value;
use skep_crds::{API_VERSION, EbpfProgramSpec};

use crate::error::ProgramError;

/// Decodes a spec of an apiVersion.
pub fn decode(api_version: &str, json: &Value) -> Result<EbpfProgramSpec, ProgramError> {
    if api_version != API_VERSION {
        return Err(ProgramError::AgentTooOld { what: format!("apiVersion {api_version}") });
    }
    let spec: EbpfProgramSpec = serde_json::from_value(json.clone()).map_err(|e| {
        let text = e.to_string();
        if text.contains("unknown variant") {
            ProgramError::AgentTooOld { what: text }
        } else {
            ProgramError::Undecodable { why: text }
        }
    })?;
    // What was not taken over was not understood.
    let again = serde_json::to_value(&spec).map_err(|e| ProgramError::Internal(e.to_string()))?;
    match unknown(json, &again, "spec") {
        Some(path) => Err(ProgramError::AgentTooOld { what: format!("the field {path}") }),
        None => Ok(spec),
    }
}

/// The first field of `given` that `understood` lacks.
fn unknown(given: &Value, understood: &Value, path: &str) -> Option<String> {
    match (given, understood) {
        (Value::Object(g), Value::Object(u)) => g.iter().find_map(|(key, value)| match u.get(key) {
            Some(other) => unknown(value, other, &format!("{path}.{key}")),
            None if value.is_null() => None,
            None => Some(format!("{path}.{key}")),
        }),
        (Value::Array(g), Value::Array(u)) => {
            g.iter().zip(u).enumerate().find_map(|(i, (a, b))| unknown(a, b, &format!("{path}[{i}]")))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec() -> Value {
        json!({
            "image": {"reference": "a/b:c"},
            "programs": [{"name": "f", "attach": [{"xdp": {"interfaces": {"primary": true}}}]}],
        })
    }

    #[test]
    fn what_is_known_decodes() {
        assert!(decode(API_VERSION, &spec()).is_ok());
    }

    #[test]
    fn what_is_not_known_is_named_not_ignored() {
        let mut newer = spec();
        newer["programs"][0]["attach"][0]["xdp"]["chain"] = json!(1);
        let error = decode(API_VERSION, &newer).unwrap_err();
        assert_eq!(error.reason().to_string(), "AgentTooOld");
        assert!(error.to_string().contains("spec.programs[0].attach[0].xdp.chain"), "{error}");
        let mut kind = spec();
        kind["programs"][0]["attach"][0] = json!({"kindOfTheFuture": {}});
        assert_eq!(decode(API_VERSION, &kind).unwrap_err().reason().to_string(), "AgentTooOld");
        assert_eq!(decode("skep.dev/v2", &spec()).unwrap_err().reason().to_string(), "AgentTooOld");
    }
}
