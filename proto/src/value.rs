//! JSON and `google.protobuf.Value`.
//!
//! A protobuf number is a double: an integer that a double cannot hold travels as a decimal string, as protobuf's own
//! JSON mapping does with 64-bit integers.

use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use serde_json::{Map, Number, Value as Json};

/// Largest integer up to which every one fits a double.
const EXACT: u64 = 1 << 53;

/// JSON to protobuf.
pub fn from_json(json: &Json) -> Value {
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(b) => Kind::BoolValue(*b),
        Json::Number(n) => number(n),
        Json::String(s) => Kind::StringValue(s.clone()),
        Json::Array(items) => Kind::ListValue(ListValue { values: items.iter().map(from_json).collect() }),
        Json::Object(members) => {
            Kind::StructValue(Struct { fields: members.iter().map(|(k, v)| (k.clone(), from_json(v))).collect() })
        }
    };
    Value { kind: Some(kind) }
}

fn number(n: &Number) -> Kind {
    let exact = n.as_u64().is_none_or(|v| v <= EXACT) && n.as_i64().is_none_or(|v| v.unsigned_abs() <= EXACT);
    match n.as_f64().filter(|_| exact) {
        Some(f) => Kind::NumberValue(f),
        None => Kind::StringValue(n.to_string()),
    }
}

/// Protobuf to JSON; whole numbers become integers.
pub fn to_json(value: &Value) -> Json {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Json::Null,
        Some(Kind::BoolValue(b)) => Json::Bool(*b),
        Some(Kind::NumberValue(f)) if f.fract() == 0.0 && f.abs() <= EXACT as f64 => Json::from(*f as i64),
        Some(Kind::NumberValue(f)) => Number::from_f64(*f).map_or(Json::Null, Json::Number),
        Some(Kind::StringValue(s)) => Json::String(s.clone()),
        Some(Kind::ListValue(list)) => Json::Array(list.values.iter().map(to_json).collect()),
        Some(Kind::StructValue(s)) => {
            Json::Object(s.fields.iter().map(|(k, v)| (k.clone(), to_json(v))).collect::<Map<_, _>>())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_survive_and_large_integers_become_strings() {
        for json in [json!({"a": [1, -2, true, null, "x", 1.5]}), json!(9007199254740992u64), json!({})] {
            assert_eq!(to_json(&from_json(&json)), json);
        }
        assert_eq!(to_json(&from_json(&json!(u64::MAX))), json!("18446744073709551615"));
    }
}
