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

/// Bytes of a rank.
const WIDTH: usize = 16;

/// Numbers in the order of a type's values, without decoding them: the first bytes of what would be compared.
#[derive(Debug, Default)]
pub struct Ranks {
    /// The rank's bytes, the most significant one first: where each is, and what is made of it.
    bytes: Vec<(usize, Byte)>,
    /// A text after them, as far as there is room.
    text: Option<(usize, TypeDesc)>,
    /// Values of the same rank are equal.
    exact: bool,
    /// Where the numbers of an address are among all as texts.
    octets: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
enum Byte {
    Same,
    /// The highest of a signed integer: negative ones first.
    Signed,
    /// A decimal text.
    Octet,
}

impl Ranks {
    pub fn of(desc: &TypeDesc) -> Self {
        let mut ranks = Ranks::default();
        ranks.exact = ranks.add(desc, 0) && ranks.bytes.len() <= WIDTH;
        ranks.bytes.truncate(WIDTH);
        if ranks.bytes.iter().any(|(_, byte)| matches!(byte, Byte::Octet)) {
            let mut sorted: Vec<u8> = (0..=u8::MAX).collect();
            sorted.sort_by_key(u8::to_string);
            ranks.octets = vec![0; sorted.len()];
            (0..=u8::MAX).zip(sorted).for_each(|(rank, octet)| ranks.octets[usize::from(octet)] = rank);
        }
        ranks
    }

    /// That many bytes of a rank tell all values apart that are different.
    pub fn fits_in(&self, bytes: usize) -> bool {
        self.exact && self.bytes.len() <= bytes
    }

    /// Of a value with all its bytes.
    pub fn rank(&self, bytes: &[u8]) -> u128 {
        let mut rank = [0; WIDTH];
        for ((at, kind), into) in self.bytes.iter().zip(&mut rank) {
            let byte = bytes.get(*at).copied().unwrap_or(0);
            *into = match kind {
                Byte::Same => byte,
                Byte::Signed => byte ^ 0x80,
                Byte::Octet => self.octets.get(usize::from(byte)).copied().unwrap_or(0),
            };
        }
        // Shorter texts come first, and no text has a NUL.
        if let Some((at, desc)) = &self.text
            && let Value::String(text) = desc.decode(bytes.get(*at..).unwrap_or_default())
        {
            rank[self.bytes.len()..].iter_mut().zip(text.bytes()).for_each(|(into, byte)| *into = byte);
        }
        u128::from_be_bytes(rank)
    }

    /// False: what follows does not count any more, since not all of this does.
    fn add(&mut self, desc: &TypeDesc, at: usize) -> bool {
        if self.bytes.len() >= WIDTH {
            return desc.size == 0;
        }
        let size = desc.size as usize;
        let whole = at..at + size;
        match (&desc.kind, desc.name.format) {
            (TypeKind::Struct(fields), Format::Plain) => {
                // As objects have their members.
                let mut fields: Vec<_> = fields.iter().collect();
                fields.sort_by(|a, b| a.name.cmp(&b.name));
                // Two of one name are one.
                let distinct = fields.windows(2).all(|pair| pair[0].name != pair[1].name);
                distinct
                    && fields.into_iter().all(|field| {
                        let first = field.bit_offset as usize / 8;
                        let plain = !field.name.is_empty() && field.bit_size == 0;
                        plain && first + field.desc.size as usize <= size && self.add(&field.desc, at + first)
                    })
            }
            (TypeKind::Array { element, .. }, Format::Plain) if element.kind != TypeKind::Char => {
                let each = element.size as usize;
                size.checked_div(each).is_some_and(|count| (0..count).all(|i| self.add(element, at + i * each)))
            }
            (TypeKind::Uint | TypeKind::Int, Format::NetworkOrder) => self.integer(desc, whole),
            (TypeKind::Uint | TypeKind::Int, Format::Plain | Format::Interface | Format::Task | Format::Cgroup)
                if size <= 8 =>
            {
                self.integer(desc, whole.rev())
            }
            (TypeKind::Char, Format::Plain) if size == 1 => self.integer(desc, whole),
            // What is no truth value is a number, and numbers come after those.
            (TypeKind::Bool, Format::Plain) if size <= 8 => self.integer(desc, whole.rev()),
            (_, Format::Ipv4) => self.extend(whole, Byte::Octet),
            // As many digits for all.
            (_, Format::Mac) | (TypeKind::Bytes, Format::Plain) => self.extend(whole, Byte::Same),
            (TypeKind::Pointer | TypeKind::Array { .. } | TypeKind::Uint | TypeKind::Int, _) | (_, Format::Ipv6) => {
                self.text = Some((at, desc.clone()));
                false
            }
            _ => false,
        }
    }

    /// `bytes`: the most significant one first.
    fn integer(&mut self, desc: &TypeDesc, bytes: impl Iterator<Item = usize>) -> bool {
        let first = self.bytes.len();
        self.extend(bytes, Byte::Same);
        if let (TypeKind::Int, Some((_, byte))) = (&desc.kind, self.bytes.get_mut(first)) {
            *byte = Byte::Signed;
        }
        true
    }

    fn extend(&mut self, bytes: impl Iterator<Item = usize>, byte: Byte) -> bool {
        self.bytes.extend(bytes.map(|at| (at, byte)));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use skep_object::btf::desc::{FieldDesc, TypeName};

    fn int(kind: TypeKind, size: u32) -> TypeDesc {
        TypeDesc { kind, name: "".into(), size }
    }

    fn list(element: TypeDesc, count: u32) -> TypeDesc {
        let size = element.size * count;
        int(TypeKind::Array { element: Box::new(element), count }, size)
    }

    fn shown(desc: TypeDesc, format: Format) -> TypeDesc {
        TypeDesc { name: TypeName::from("").shown_as(format), ..desc }
    }

    /// One after the other.
    fn members(all: &[(&str, TypeDesc)]) -> TypeDesc {
        let mut size = 0;
        let mut fields = Vec::new();
        for (name, desc) in all {
            let (name, desc) = (name.to_string(), desc.clone());
            fields.push(FieldDesc { bit_offset: size * 8, bit_size: 0, name, desc });
            size += fields.last().map_or(0, |field| field.desc.size);
        }
        int(TypeKind::Struct(fields), size)
    }

    /// Whatever the bytes: as decoding and comparing has it.
    #[test]
    fn ranks_are_in_the_order_of_values() {
        let (uint, signed) = (|size| int(TypeKind::Uint, size), |size| int(TypeKind::Int, size));
        let text = |len| list(int(TypeKind::Char, 1), len);
        let nested = members(&[("z", signed(2)), ("a", list(signed(1), 3))]);
        let keyed = members(&[("last", uint(4)), ("first", nested.clone()), ("hole", list(uint(2), 0))]);
        let address = shown(uint(4), Format::Ipv4);
        let port = shown(uint(2), Format::NetworkOrder);
        let numbers = vec![("ONE".into(), 1), ("ALL".into(), 255)];
        let state = int(TypeKind::Enum { signed: false, values: numbers }, 1);
        let all_told = [
            uint(8),
            signed(8),
            signed(1),
            keyed,
            int(TypeKind::Bool, 2),
            int(TypeKind::Char, 1),
            shown(signed(4), Format::NetworkOrder),
            shown(uint(4), Format::Task),
            address.clone(),
            shown(list(uint(1), 6), Format::Mac),
            TypeDesc::bytes(5),
            members(&[("daddr", address.clone()), ("dport", port.clone()), ("saddr", address), ("sport", port)]),
        ];
        let begun = [
            text(4),
            text(20),
            TypeDesc::bytes(17),
            signed(16),
            uint(16),
            int(TypeKind::Pointer, 8),
            int(TypeKind::Float, 4),
            list(text(2), 2),
            list(int(TypeKind::Char, 2), 2),
            shown(list(uint(4), 4), Format::Ipv6),
            shown(signed(8), Format::TimeNs),
            shown(uint(8), Format::DurationNs),
            list(nested.clone(), 4),
            state.clone(),
            int(TypeKind::Union(vec![]), 4),
            members(&[("a", uint(1)), ("b", text(2)), ("c", uint(1))]),
            members(&[("a", nested), ("b", state), ("c", uint(1))]),
            members(&[("a", uint(1)), ("b", uint(1)), ("a", uint(1))]),
            members(&[("", members(&[("x", uint(1))])), ("b", uint(1))]),
        ];
        let mut random = fastrand::Rng::with_seed(5);
        for (index, desc) in all_told.iter().chain(&begun).enumerate() {
            let ranks = Ranks::of(desc);
            assert_eq!(ranks.fits_in(WIDTH), index < all_told.len(), "{desc:?}");
            for _ in 0..2000 {
                // Few different bytes: many members are equal.
                let some = [0, 1, 9, 10, 127, 128, 255, b'\\', b'x', b'4'];
                let mut bytes = || -> Vec<u8> { (0..desc.size).map(|_| *random.choice(&some).unwrap()).collect() };
                let (a, b) = (bytes(), bytes());
                let values = compare(&desc.decode(&a), &desc.decode(&b));
                let by_rank = ranks.rank(&a).cmp(&ranks.rank(&b));
                if by_rank.is_ne() || ranks.fits_in(WIDTH) {
                    assert_eq!(by_rank, values, "{desc:?}: {a:?} and {b:?}");
                }
            }
        }
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
