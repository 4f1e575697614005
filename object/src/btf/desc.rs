//! Types described for decoding: what travels ahead of raw map contents, so that any client can read them.

use serde_json::{Map, Number, Value};

use super::{Btf, Kind};

/// How deep types are followed; deeper parts are shown as bytes.
const MAX_DEPTH: u32 = 32;
/// Most nodes in one description; further parts are shown as bytes.
const MAX_NODES: u32 = 4096;

/// A type, described well enough to decode a value's bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct TypeDesc {
    pub kind: TypeKind,
    /// The type's own name, through typedefs; empty when it has none.
    pub name: String,
    /// Bytes.
    pub size: u32,
}

/// What the bytes mean. All integers are little-endian.
#[derive(Clone, Debug, PartialEq)]
pub enum TypeKind {
    Uint,
    Int,
    Bool,
    Char,
    Float,
    Pointer,
    Enum {
        signed: bool,
        values: Vec<(String, i64)>,
    },
    Struct(Vec<FieldDesc>),
    Union(Vec<FieldDesc>),
    Array {
        element: Box<TypeDesc>,
        count: u32,
    },
    /// Known size, unknown meaning.
    Bytes,
}

/// A member of a struct or union.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldDesc {
    /// Empty for an anonymous struct or union, whose members are shown as if they were the outer one's.
    pub name: String,
    pub desc: TypeDesc,
    pub bit_offset: u32,
    /// 0: not a bit field.
    pub bit_size: u32,
}

impl TypeDesc {
    /// `size` bytes of unknown meaning.
    pub fn bytes(size: u32) -> Self {
        TypeDesc { kind: TypeKind::Bytes, name: String::new(), size }
    }

    /// Describes a type of `btf`.
    pub fn of(btf: &Btf, id: u32) -> Self {
        let mut nodes = MAX_NODES;
        describe(btf, id, 0, &mut nodes)
    }

    /// Decodes one value. Bytes that are missing are taken as absent: the result is then `null` at that place.
    ///
    /// Integers, enums without a matching name and bit fields become numbers; enums their value's name; pointers
    /// `"0x…"`; arrays of `char` strings up to the first NUL (escaped where they are not UTF-8); structs and unions
    /// objects; unknown bytes a hex string. Padding never appears.
    pub fn decode(&self, bytes: &[u8]) -> Value {
        let Some(bytes) = bytes.get(..self.size as usize) else { return Value::Null };
        match &self.kind {
            TypeKind::Uint => unsigned(bytes),
            TypeKind::Int => signed(bytes),
            TypeKind::Bool => Value::Bool(bytes.iter().any(|b| *b != 0)),
            TypeKind::Char => Value::from(bytes.first().copied().unwrap_or(0)),
            TypeKind::Float => float(bytes),
            TypeKind::Pointer => Value::from(format!("{:#x}", le_u64(bytes))),
            TypeKind::Enum { signed: is_signed, values } => {
                let v = if *is_signed { sign_extend(le_u64(bytes), self.size * 8) } else { le_u64(bytes) as i64 };
                match values.iter().find(|(_, value)| *value == v) {
                    Some((name, _)) => Value::from(name.as_str()),
                    None => Value::from(v),
                }
            }
            TypeKind::Struct(fields) | TypeKind::Union(fields) => {
                let mut object = Map::new();
                decode_fields(fields, bytes, &mut object);
                Value::Object(object)
            }
            TypeKind::Array { element, count } => decode_array(element, *count, bytes),
            TypeKind::Bytes => Value::from(hex(bytes)),
        }
    }
}

fn describe(btf: &Btf, id: u32, depth: u32, nodes: &mut u32) -> TypeDesc {
    let resolved = btf.resolve(id);
    let size = btf.size(resolved).and_then(|s| u32::try_from(s).ok()).unwrap_or(0);
    if depth > MAX_DEPTH || *nodes == 0 {
        return TypeDesc::bytes(size);
    }
    *nodes -= 1;
    let kind = match btf.kind(resolved) {
        Kind::Int => match btf.int_encoding(resolved) {
            (_, _, true, _) => TypeKind::Bool,
            // clang encodes `char` as a signed 8-bit integer of that name.
            (_, is_char, _, _) if is_char || btf.name(resolved) == "char" => TypeKind::Char,
            (true, ..) => TypeKind::Int,
            _ => TypeKind::Uint,
        },
        Kind::Float => TypeKind::Float,
        Kind::Ptr => TypeKind::Pointer,
        Kind::Enum | Kind::Enum64 => {
            let (values, signed) = btf.enum_values(resolved);
            TypeKind::Enum { signed, values: values.into_iter().map(|(n, v)| (n.to_owned(), v)).collect() }
        }
        kind @ (Kind::Struct | Kind::Union) => {
            let fields = btf
                .members(resolved)
                .map(|m| FieldDesc {
                    name: m.name.to_owned(),
                    desc: describe(btf, m.type_id, depth + 1, nodes),
                    bit_offset: m.bit_offset,
                    bit_size: m.bit_size,
                })
                .collect();
            if kind == Kind::Struct { TypeKind::Struct(fields) } else { TypeKind::Union(fields) }
        }
        Kind::Array => TypeKind::Array {
            element: Box::new(describe(btf, btf.target(resolved), depth + 1, nodes)),
            count: btf.array_len(resolved),
        },
        Kind::Datasec => TypeKind::Struct(
            btf.section_vars(resolved)
                .into_iter()
                .map(|v| FieldDesc {
                    name: btf.name(v.type_id).to_owned(),
                    desc: describe(btf, btf.target(v.type_id), depth + 1, nodes),
                    bit_offset: v.offset.saturating_mul(8),
                    bit_size: 0,
                })
                .collect(),
        ),
        _ => TypeKind::Bytes,
    };
    let name = if btf.name(id).is_empty() { btf.name(resolved) } else { btf.name(id) };
    TypeDesc { kind, name: name.to_owned(), size }
}

fn decode_fields(fields: &[FieldDesc], bytes: &[u8], into: &mut Map<String, Value>) {
    for field in fields {
        if field.bit_size > 0 {
            into.insert(field.name.clone(), decode_bits(field, bytes));
            continue;
        }
        let tail = bytes.get(field.bit_offset as usize / 8..).unwrap_or(&[]);
        match &field.desc.kind {
            TypeKind::Struct(inner) | TypeKind::Union(inner) if field.name.is_empty() => {
                decode_fields(inner, tail, into)
            }
            _ => {
                into.insert(field.name.clone(), field.desc.decode(tail));
            }
        }
    }
}

fn decode_bits(field: &FieldDesc, bytes: &[u8]) -> Value {
    let (first, shift) = (field.bit_offset as usize / 8, field.bit_offset % 8);
    let last = (field.bit_offset + field.bit_size).div_ceil(8) as usize;
    let Some(raw) = bytes.get(first..last).filter(|_| field.bit_size <= 64) else { return Value::Null };
    let wide = raw.iter().rev().fold(0u128, |acc, b| acc << 8 | u128::from(*b));
    let mask = (1u128 << field.bit_size) - 1;
    let v = (wide >> shift & mask) as u64;
    match &field.desc.kind {
        TypeKind::Int => Value::from(sign_extend(v, field.bit_size)),
        TypeKind::Bool => Value::Bool(v != 0),
        TypeKind::Enum { signed, values } => {
            let v = if *signed { sign_extend(v, field.bit_size) } else { v as i64 };
            values.iter().find(|(_, value)| *value == v).map_or(Value::from(v), |(name, _)| Value::from(name.as_str()))
        }
        _ => Value::from(v),
    }
}

fn decode_array(element: &TypeDesc, count: u32, bytes: &[u8]) -> Value {
    if element.kind == TypeKind::Char && element.size == 1 {
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        return Value::from(String::from_utf8_lossy(&bytes[..end]).into_owned());
    }
    if element.size == 0 {
        return Value::Array(Vec::new());
    }
    Value::Array(bytes.chunks_exact(element.size as usize).take(count as usize).map(|c| element.decode(c)).collect())
}

fn le_u64(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).rev().fold(0, |acc, b| acc << 8 | u64::from(*b))
}

fn le_u128(bytes: &[u8]) -> u128 {
    bytes.iter().take(16).rev().fold(0, |acc, b| acc << 8 | u128::from(*b))
}

fn sign_extend(v: u64, bits: u32) -> i64 {
    let shift = 64u32.saturating_sub(bits);
    ((v << shift) as i64) >> shift
}

/// A JSON number up to 64 bits; beyond, a decimal string: a double cannot hold it.
fn unsigned(bytes: &[u8]) -> Value {
    if bytes.len() <= 8 { Value::from(le_u64(bytes)) } else { Value::from(le_u128(bytes).to_string()) }
}

fn signed(bytes: &[u8]) -> Value {
    if bytes.len() <= 8 {
        Value::from(sign_extend(le_u64(bytes), bytes.len() as u32 * 8))
    } else {
        Value::from((le_u128(bytes) as i128).to_string())
    }
}

fn float(bytes: &[u8]) -> Value {
    let number = match bytes.len() {
        4 => bytes.try_into().ok().map(|b| f64::from(f32::from_le_bytes(b))),
        8 => bytes.try_into().ok().map(f64::from_le_bytes),
        _ => None,
    };
    match number {
        Some(n) => Number::from_f64(n).map_or_else(|| Value::from(n.to_string()), Value::Number),
        None => Value::from(hex(bytes)),
    }
}

/// `0x` and two digits a byte, in memory order.
pub fn hex(bytes: &[u8]) -> String {
    let mut s = String::with_capacity(2 + bytes.len() * 2);
    s.push_str("0x");
    for b in bytes {
        s.push_str(&format!("{b:02x}"));
    }
    s
}
