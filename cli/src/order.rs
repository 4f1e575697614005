//! An order of JSON values, so that a dump of a hash looks the same twice.

use std::cmp::Ordering;

use serde_json::Value;
use skep_object::btf::desc::{TypeDesc, TypeKind};
use skep_object::btf::format::Format;

/// Numbers by size, texts by bytes, lists and objects member by member; different kinds by kind.
pub fn compare(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => match (x.as_i128(), y.as_i128()) {
            (Some(x), Some(y)) => x.cmp(&y),
            _ => x.as_f64().partial_cmp(&y.as_f64()).unwrap_or(Ordering::Equal),
        },
        (Value::String(x), Value::String(y)) => x.cmp(y),
        (Value::Bool(x), Value::Bool(y)) => x.cmp(y),
        (Value::Array(x), Value::Array(y)) => each(x.iter(), y.iter()),
        (Value::Object(x), Value::Object(y)) => each(x.values(), y.values()),
        _ => rank(a).cmp(&rank(b)),
    }
}

fn each<'a>(mut a: impl Iterator<Item = &'a Value>, mut b: impl Iterator<Item = &'a Value>) -> Ordering {
    loop {
        match (a.next(), b.next()) {
            (Some(x), Some(y)) => match compare(x, y) {
                Ordering::Equal => {}
                other => return other,
            },
            (x, y) => return x.is_some().cmp(&y.is_some()),
        }
    }
}

fn rank(value: &Value) -> u8 {
    match value {
        Value::Null => 0,
        Value::Bool(_) => 1,
        Value::Number(_) => 2,
        Value::String(_) => 3,
        Value::Array(_) => 4,
        Value::Object(_) => 5,
    }
}

/// Numbers that are in the order of a type's values, without decoding them: for integers, and structs and lists of them,
/// of at most 16 bytes.
#[derive(Debug)]
pub struct Ranks(Vec<Part>);

/// An integer of at most eight bytes.
#[derive(Debug)]
struct Part {
    at: usize,
    size: usize,
    signed: bool,
}

impl Ranks {
    /// `None`: values of that type have to be decoded, and compared.
    pub fn of(desc: &TypeDesc) -> Option<Self> {
        let mut parts = Vec::new();
        (desc.size <= 16 && add(desc, 0, &mut parts)).then_some(Ranks(parts))
    }

    /// Of a value with all its bytes.
    pub fn rank(&self, bytes: &[u8]) -> u128 {
        self.0.iter().fold(0, |rank, part| {
            let own = bytes.get(part.at..part.at + part.size).unwrap_or_default();
            let number = own.iter().rev().fold(0u128, |number, byte| number << 8 | u128::from(*byte));
            let bits = part.size * 8;
            // Negative ones first.
            rank << bits | number ^ if part.signed { 1 << (bits - 1) } else { 0 }
        })
    }
}

fn add(desc: &TypeDesc, at: usize, parts: &mut Vec<Part>) -> bool {
    let size = desc.size as usize;
    match &desc.kind {
        _ if !matches!(desc.name.format, Format::Plain | Format::Interface | Format::Task | Format::Cgroup) => false,
        TypeKind::Uint | TypeKind::Int if (1..=8).contains(&size) => {
            parts.push(Part { at, size, signed: desc.kind == TypeKind::Int });
            true
        }
        TypeKind::Struct(fields) => {
            // As objects have their members.
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by(|a, b| a.name.cmp(&b.name));
            fields.into_iter().all(|field| {
                let within = at + field.bit_offset as usize / 8;
                !field.name.is_empty() && field.bit_size == 0 && add(&field.desc, within, parts)
            })
        }
        TypeKind::Array { element, count } => (0..*count as usize).all(|i| {
            let element_at = at + i * element.size as usize;
            element.size > 0 && add(element, element_at, parts)
        }),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use skep_object::btf::desc::FieldDesc;

    fn int(kind: TypeKind, size: u32) -> TypeDesc {
        TypeDesc { kind, name: "".into(), size }
    }

    /// Whatever the bytes: as decoding and comparing has it.
    #[test]
    fn ranks_are_in_the_order_of_values() {
        let field = |name: &str, desc: TypeDesc, at: u32| FieldDesc {
            name: name.into(),
            desc,
            bit_offset: at * 8,
            bit_size: 0,
        };
        let list = TypeKind::Array { element: Box::new(int(TypeKind::Int, 1)), count: 3 };
        let nested = TypeKind::Struct(vec![field("z", int(TypeKind::Int, 2), 0), field("a", int(list, 3), 2)]);
        let keyed = vec![field("last", int(TypeKind::Uint, 4), 0), field("first", int(nested, 6), 6)];
        let types =
            [int(TypeKind::Uint, 8), int(TypeKind::Int, 8), int(TypeKind::Int, 1), int(TypeKind::Struct(keyed), 12)];
        let mut random = fastrand::Rng::with_seed(5);
        for desc in types {
            let ranks = Ranks::of(&desc).unwrap();
            for _ in 0..2000 {
                // Few different bytes: many members are equal.
                let mut bytes =
                    || -> Vec<u8> { (0..desc.size).map(|_| *random.choice(&[0, 1, 127, 128, 255]).unwrap()).collect() };
                let (a, b) = (bytes(), bytes());
                let values = compare(&desc.decode(&a), &desc.decode(&b));
                assert_eq!(ranks.rank(&a).cmp(&ranks.rank(&b)), values, "{desc:?}: {a:?} and {b:?}");
            }
        }
        let texts = TypeKind::Array { element: Box::new(int(TypeKind::Char, 1)), count: 4 };
        assert!(Ranks::of(&int(texts, 4)).is_none());
        let address = TypeDesc {
            name: skep_object::btf::desc::TypeName::from("in_addr").shown_as(Format::Ipv4),
            ..int(TypeKind::Uint, 4)
        };
        assert!(Ranks::of(&address).is_none(), "texts have an order of their own");
    }

    #[test]
    fn the_order_is_that_of_numbers_and_of_members() {
        let mut values =
            vec![json!([2, 1]), json!(10), json!(9), json!(u64::MAX), json!("b"), json!([1, 9]), json!(-1)];
        values.sort_by(compare);
        let sorted = json!([-1, 9, 10, u64::MAX, "b", [1, 9], [2, 1]]);
        assert_eq!(Value::Array(values), sorted);
        assert_eq!(compare(&json!({"a": 1, "b": 2}), &json!({"a": 1, "b": 3})), Ordering::Less);
    }
}
