//! What the numbers of a value grew by, per second.

use serde_json::{Map, Value};

use super::desc::{FieldDesc, TypeDesc, TypeKind};
use super::filter::difference;
use super::format::Format;

/// The rates of a decoded value's numbers, in its shape; what does not count anything (addresses, ports, times, texts) is
/// left out. `Null` of what has no numbers.
pub fn rates(desc: &TypeDesc, before: &Value, after: &Value, seconds: f64) -> Value {
    match &desc.kind {
        _ if desc.name.format != Format::Plain => Value::Null,
        TypeKind::Uint | TypeKind::Int | TypeKind::Float => {
            difference(before, after).map_or(Value::Null, |grown| Value::from(grown / seconds))
        }
        TypeKind::Struct(fields) | TypeKind::Union(fields) => {
            let mut object = Map::new();
            of_fields(fields, before, after, seconds, &mut object);
            if object.is_empty() { Value::Null } else { Value::Object(object) }
        }
        // Bytes are addresses and names, not counts.
        TypeKind::Array { element, .. } if element.size > 1 => {
            let (Value::Array(before), Value::Array(after)) = (before, after) else { return Value::Null };
            let each = before.iter().zip(after).map(|(before, after)| rates(element, before, after, seconds));
            let each: Vec<Value> = each.collect();
            if each.iter().all(Value::is_null) { Value::Null } else { Value::Array(each) }
        }
        _ => Value::Null,
    }
}

fn of_fields(fields: &[FieldDesc], before: &Value, after: &Value, seconds: f64, into: &mut Map<String, Value>) {
    for field in fields {
        match &field.desc.kind {
            // Decoded as if its members were the outer one's.
            TypeKind::Struct(inner) | TypeKind::Union(inner) if field.name.is_empty() => {
                of_fields(inner, before, after, seconds, into);
            }
            _ => {
                let (Some(before), Some(after)) = (before.get(&field.name), after.get(&field.name)) else { continue };
                let rates = rates(&field.desc, before, after, seconds);
                if !rates.is_null() {
                    into.insert(field.name.clone(), rates);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_have_rates_and_the_rest_is_left_out() {
        let desc = |kind, size| TypeDesc { kind, name: "".into(), size };
        let field = |name: &str, desc| FieldDesc { name: name.into(), desc, bit_offset: 0, bit_size: 0 };
        let count = || desc(TypeKind::Uint, 8);
        let array = |element: TypeDesc| desc(TypeKind::Array { element: Box::new(element), count: 2 }, 16);
        let mut port = desc(TypeKind::Uint, 2);
        port.name.format = Format::NetworkOrder;
        let nameless = desc(TypeKind::Struct(vec![field("hidden", count())]), 8);
        let of = desc(
            TypeKind::Struct(vec![
                field("n", count()),
                field("slots", array(count())),
                field("mac", array(desc(TypeKind::Uint, 1))),
                field("port", port),
                field("up", desc(TypeKind::Bool, 1)),
                field("", nameless),
            ]),
            64,
        );
        let at = |n: u64| json!({"n": n, "slots": [n, 1], "mac": [n, 2], "port": n, "up": true, "hidden": 7 - n});
        let grown = json!({"n": 2.0, "slots": [2.0, 0.0], "hidden": -2.0});
        assert_eq!(rates(&of, &at(1), &at(2), 0.5), grown);
        // Beyond what a double holds exactly.
        let large = json!(u64::MAX - 1);
        assert_eq!(rates(&count(), &large, &json!(u64::MAX), 1.0), json!(1.0));
        assert_eq!(rates(&TypeDesc::bytes(4), &json!("0x00"), &json!("0x01"), 1.0), Value::Null);
    }
}
