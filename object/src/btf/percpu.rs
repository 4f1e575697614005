//! One value out of the values of all CPUs.

use serde_json::{Map, Value};

use super::desc::{FieldDesc, TypeDesc, TypeKind};
use super::format::Format;

/// How integers become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduce {
    Sum,
    Max,
    Min,
}

/// One value of a per-CPU entry, out of the bytes of each CPU's: of those that wrote one, since the kernel starts each with
/// zeroes. If none did, of all.
pub fn reduce<'a>(desc: &TypeDesc, how: Reduce, each: impl Iterator<Item = &'a [u8]>) -> Value {
    let all: Vec<&[u8]> = each.collect();
    let written = |value: &&&[u8]| value.iter().any(|byte| *byte != 0);
    let some = all.iter().any(|value| written(&value));
    let values: Vec<Value> =
        all.iter().filter(|value| !some || written(value)).map(|value| desc.decode(value)).collect();
    reduce_values(desc, how, &values)
}

/// Integers are reduced, in structs and arrays too; anything else is shown if all CPUs have the same, and is null else.
fn reduce_values(desc: &TypeDesc, how: Reduce, values: &[Value]) -> Value {
    match &desc.kind {
        // Ports, addresses and times are no counts. Durations are, but are text by now.
        _ if desc.name.format != Format::Plain => common(values),
        TypeKind::Uint | TypeKind::Int => number(how, values),
        TypeKind::Struct(fields) | TypeKind::Union(fields) => {
            let mut object = Map::new();
            fields_of(fields, how, values, &mut object);
            Value::Object(object)
        }
        // Bytes are addresses and names, not counts.
        TypeKind::Array { element, .. } if element.size > 1 => elements_of(element, how, values),
        _ => common(values),
    }
}

fn fields_of(fields: &[FieldDesc], how: Reduce, values: &[Value], into: &mut Map<String, Value>) {
    for field in fields {
        match &field.desc.kind {
            TypeKind::Struct(inner) | TypeKind::Union(inner) if field.name.is_empty() => {
                fields_of(inner, how, values, into)
            }
            _ => {
                let of_field: Vec<Value> =
                    values.iter().map(|v| v.get(&field.name).cloned().unwrap_or_default()).collect();
                into.insert(field.name.clone(), reduce_values(&field.desc, how, &of_field));
            }
        }
    }
}

fn elements_of(element: &TypeDesc, how: Reduce, values: &[Value]) -> Value {
    let arrays: Option<Vec<&Vec<Value>>> = values.iter().map(Value::as_array).collect();
    let Some(arrays) = arrays else { return common(values) };
    let len = arrays.iter().map(|a| a.len()).min().unwrap_or(0);
    let at = |index: usize| arrays.iter().map(|a| a[index].clone()).collect::<Vec<_>>();
    Value::Array((0..len).map(|index| reduce_values(element, how, &at(index))).collect())
}

/// Beyond 64 bits a decimal text, as such integers are decoded.
fn number(how: Reduce, values: &[Value]) -> Value {
    let number = |value: &Value| match value {
        Value::Number(n) => n.as_i128(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    let numbers: Option<Vec<i128>> = values.iter().map(number).collect();
    let reduced = numbers.and_then(|numbers| match how {
        Reduce::Sum => numbers.into_iter().try_fold(0, i128::checked_add),
        Reduce::Max => numbers.into_iter().max(),
        Reduce::Min => numbers.into_iter().min(),
    });
    let Some(reduced) = reduced else { return common(values) };
    match (u64::try_from(reduced), i64::try_from(reduced)) {
        (Ok(n), _) => Value::from(n),
        (_, Ok(n)) => Value::from(n),
        _ => Value::from(reduced.to_string()),
    }
}

fn common(values: &[Value]) -> Value {
    match values {
        [] => Value::Null,
        [first, rest @ ..] if rest.iter().all(|v| v == first) => first.clone(),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::btf::desc::TypeName;
    use serde_json::json;

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
        let expected = json!({"n": 7, "slots": [7, 2], "mac": [1, 2], "flag": null, "hidden": 2});
        assert_eq!(reduce_values(&outer, Reduce::Sum, &[cpu(3, true), cpu(4, false)]), expected);
        assert_eq!(reduce_values(&uint, Reduce::Sum, &[json!(u64::MAX), json!(1)]), json!("18446744073709551616"));
        assert_eq!(reduce_values(&desc(TypeKind::Int, 4), Reduce::Sum, &[json!(-3), json!(1)]), json!(-2));
        let largest = |how| reduce_values(&outer, how, &[cpu(3, true), cpu(4, true)]);
        assert_eq!(largest(Reduce::Max)["n"], 4);
        assert_eq!(largest(Reduce::Min)["slots"], json!([3, 1]));
    }

    #[test]
    fn cpus_that_wrote_nothing_do_not_count() {
        let uint = desc(TypeKind::Uint, 4);
        let of = |how, each: &[[u8; 4]]| reduce(&uint, how, each.iter().map(<[u8; 4]>::as_slice));
        assert_eq!(of(Reduce::Min, &[[0; 4], [7, 0, 0, 0], [9, 0, 0, 0]]), json!(7));
        assert_eq!(of(Reduce::Min, &[[0; 4], [0; 4]]), json!(0));
    }

    #[test]
    fn ports_and_addresses_are_not_added() {
        let shown = |kind, size, format| TypeDesc { kind, name: TypeName::from("").shown_as(format), size };
        let port = shown(TypeKind::Uint, 2, Format::NetworkOrder);
        assert_eq!(reduce_values(&port, Reduce::Sum, &[json!(80), json!(80)]), json!(80));
        assert_eq!(reduce_values(&port, Reduce::Sum, &[json!(80), json!(443)]), json!(null));
        let address = shown(TypeKind::Struct(vec![]), 4, Format::Ipv4);
        assert_eq!(reduce_values(&address, Reduce::Sum, &[json!("10.0.0.1")]), json!("10.0.0.1"));
    }
}
