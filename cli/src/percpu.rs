//! One value for a table out of the values of all CPUs (that wrote one: zeroes add nothing).

use serde_json::{Map, Value};
use skep_object::btf::desc::{FieldDesc, TypeDesc, TypeKind};
use skep_object::btf::format::Format;

/// Stands where the CPUs do not agree on what cannot be added.
pub const DIFFERS: &str = "(differs)";

/// Integers are added, in structs and arrays too; anything else is shown if all CPUs have the same.
pub fn sum(desc: &TypeDesc, values: &[Value]) -> Value {
    match &desc.kind {
        // Ports, addresses and times are no counts. Durations are, but are text by now.
        _ if desc.name.format != Format::Plain => common(values),
        TypeKind::Uint | TypeKind::Int => add(values),
        TypeKind::Struct(fields) | TypeKind::Union(fields) => {
            let mut object = Map::new();
            sum_fields(fields, values, &mut object);
            Value::Object(object)
        }
        // Bytes are addresses and names, not counts.
        TypeKind::Array { element, .. } if element.size > 1 => sum_elements(element, values),
        _ => common(values),
    }
}

fn sum_fields(fields: &[FieldDesc], values: &[Value], into: &mut Map<String, Value>) {
    for field in fields {
        match &field.desc.kind {
            TypeKind::Struct(inner) | TypeKind::Union(inner) if field.name.is_empty() => {
                sum_fields(inner, values, into)
            }
            _ => {
                let of_field: Vec<Value> =
                    values.iter().map(|v| v.get(&field.name).cloned().unwrap_or_default()).collect();
                into.insert(field.name.clone(), sum(&field.desc, &of_field));
            }
        }
    }
}

fn sum_elements(element: &TypeDesc, values: &[Value]) -> Value {
    let arrays: Option<Vec<&Vec<Value>>> = values.iter().map(Value::as_array).collect();
    let Some(arrays) = arrays else { return common(values) };
    let len = arrays.iter().map(|a| a.len()).min().unwrap_or(0);
    let at = |index: usize| arrays.iter().map(|a| a[index].clone()).collect::<Vec<_>>();
    Value::Array((0..len).map(|index| sum(element, &at(index))).collect())
}

/// The sum as a number; beyond 64 bits as a decimal text, as such integers are decoded.
fn add(values: &[Value]) -> Value {
    let mut total = 0i128;
    for value in values {
        let number = match value {
            Value::Number(n) => n.as_i128(),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        match number.and_then(|n| total.checked_add(n)) {
            Some(sum) => total = sum,
            None => return common(values),
        }
    }
    match (u64::try_from(total), i64::try_from(total)) {
        (Ok(n), _) => Value::from(n),
        (_, Ok(n)) => Value::from(n),
        _ => Value::from(total.to_string()),
    }
}

fn common(values: &[Value]) -> Value {
    match values {
        [] => Value::Null,
        [first, rest @ ..] if rest.iter().all(|v| v == first) => first.clone(),
        _ => Value::from(DIFFERS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use skep_object::btf::desc::TypeName;

    fn desc(kind: TypeKind, size: u32) -> TypeDesc {
        TypeDesc { kind, name: "".into(), size }
    }

    #[test]
    fn integers_are_added_wherever_they_are() {
        let field = |name: &str, desc| FieldDesc { name: name.into(), desc, bit_offset: 0, bit_size: 0 };
        let uint = desc(TypeKind::Uint, 8);
        let array = |element: TypeDesc| desc(TypeKind::Array { element: Box::new(element), count: 2 }, 16);
        let inner = desc(TypeKind::Struct(vec![field("hidden", uint.clone())]), 8);
        let outer = desc(
            TypeKind::Struct(vec![
                field("n", uint.clone()),
                field("slots", array(uint.clone())),
                field("mac", array(desc(TypeKind::Uint, 1))),
                field("flag", desc(TypeKind::Bool, 1)),
                field("", inner),
            ]),
            64,
        );
        let cpu = |n: u64, flag: bool| json!({"n": n, "slots": [n, 1], "mac": [1, 2], "flag": flag, "hidden": 1});
        let expected = json!({"n": 7, "slots": [7, 2], "mac": [1, 2], "flag": "(differs)", "hidden": 2});
        assert_eq!(sum(&outer, &[cpu(3, true), cpu(4, false)]), expected);
        assert_eq!(sum(&uint, &[json!(u64::MAX), json!(1)]), json!("18446744073709551616"));
        assert_eq!(sum(&desc(TypeKind::Int, 4), &[json!(-3), json!(1)]), json!(-2));
    }

    #[test]
    fn ports_and_addresses_are_not_added() {
        let shown = |kind, size, format| TypeDesc { kind, name: TypeName::from("").shown_as(format), size };
        let port = shown(TypeKind::Uint, 2, Format::NetworkOrder);
        assert_eq!(sum(&port, &[json!(80), json!(80)]), json!(80));
        assert_eq!(sum(&port, &[json!(80), json!(443)]), json!(DIFFERS));
        let address = shown(TypeKind::Struct(vec![]), 4, Format::Ipv4);
        assert_eq!(sum(&address, &[json!("10.0.0.1")]), json!("10.0.0.1"));
    }
}
