//! A value's bytes as JSON. docs/decode.md says what each type becomes.
//!
//! **Guarantees.** No bytes and no description make it panic. Padding never appears. [`super::encode`] is the inverse.

use serde_json::{Map, Number, Value};

use super::desc::{FieldDesc, TypeDesc, TypeKind};

impl TypeDesc {
    /// Decodes one value. Bytes that are missing are taken as absent: the result is then `null` at that place. Bytes
    /// beyond the type's size are not looked at: of a per-CPU value they are padding.
    pub fn decode(&self, bytes: &[u8]) -> Value {
        bytes.get(..self.size as usize).map_or(Value::Null, |bytes| value(self, bytes, false))
    }

    /// Decodes a record: all of `bytes` is its own, and a flexible array member has what is beyond the type's size.
    pub fn decode_record(&self, bytes: &[u8]) -> Value {
        value(self, bytes, true)
    }
}

impl FieldDesc {
    /// Decodes a member, out of the bytes of what has it; `null` where they end too early.
    pub fn decode(&self, bytes: &[u8]) -> Value {
        match self.bit_size {
            0 => bytes.get(self.bit_offset as usize / 8..).map_or(Value::Null, |tail| self.desc.decode(tail)),
            _ => bit_field(self, bytes),
        }
    }
}

/// `record`: a flexible array at the end goes on to the end of `bytes`.
pub(super) fn value(desc: &TypeDesc, bytes: &[u8], record: bool) -> Value {
    let Some(own) = bytes.get(..desc.size as usize) else { return Value::Null };
    if let Some(shown) = desc.name.format.decode(&desc.kind, own) {
        return shown;
    }
    match &desc.kind {
        TypeKind::Uint => unsigned(own),
        TypeKind::Int => signed(own),
        TypeKind::Bool => boolean(own),
        TypeKind::Char => Value::from(own.first().copied().unwrap_or(0)),
        TypeKind::Float => float(own),
        TypeKind::Pointer => Value::from(format!("{:#x}", le_u64(own))),
        TypeKind::Enum { signed, values } => enumerator(values, *signed, le_u64(own), bits(own)),
        TypeKind::Struct(fields) | TypeKind::Union(fields) => {
            let mut object = Map::new();
            let is_union = matches!(desc.kind, TypeKind::Union(_));
            members(fields, is_union, if record { bytes } else { own }, record, &mut object);
            Value::Object(object)
        }
        TypeKind::Array { element, count: 0 } if record => array(element, bytes),
        TypeKind::Array { element, .. } => array(element, own),
        TypeKind::Bytes => Value::from(hex(own)),
    }
}

fn members(fields: &[FieldDesc], is_union: bool, bytes: &[u8], record: bool, into: &mut Map<String, Value>) {
    for (index, field) in fields.iter().enumerate() {
        if field.bit_size > 0 {
            // One without a name is padding.
            if !field.name.is_empty() {
                into.insert(field.name.clone(), bit_field(field, bytes));
            }
            continue;
        }
        let tail = bytes.get(field.bit_offset as usize / 8..).unwrap_or(&[]);
        let record = record && (is_union || index + 1 == fields.len());
        match &field.desc.kind {
            TypeKind::Struct(inner) | TypeKind::Union(inner) if field.name.is_empty() => {
                let is_union = matches!(field.desc.kind, TypeKind::Union(_));
                members(inner, is_union, tail, record, into);
            }
            _ if field.name.is_empty() => {}
            _ => {
                into.insert(field.name.clone(), value(&field.desc, tail, record));
            }
        }
    }
}

pub(super) fn bit_field(field: &FieldDesc, bytes: &[u8]) -> Value {
    let (size, first, shift) = (field.bit_size, field.bit_offset as usize / 8, field.bit_offset % 8);
    let last = (u64::from(field.bit_offset) + u64::from(size)).div_ceil(8) as usize;
    let Some(raw) = bytes.get(first..last).filter(|_| size <= 64) else { return Value::Null };
    let wide = raw.iter().rev().fold(0u128, |acc, b| acc << 8 | u128::from(*b));
    let v = (wide >> shift & ((1u128 << size) - 1)) as u64;
    match &field.desc.kind {
        TypeKind::Int => Value::from(sign_extend(v, size)),
        TypeKind::Bool if v <= 1 => Value::Bool(v == 1),
        TypeKind::Enum { signed, values } => enumerator(values, *signed, v, size),
        _ => Value::from(v),
    }
}

fn enumerator(values: &[(String, i64)], signed: bool, v: u64, bits: u32) -> Value {
    match values.iter().find(|(_, value)| stored(*value, signed, bits) == Some(v)) {
        Some((name, _)) => Value::from(name.as_str()),
        None if signed => Value::from(sign_extend(v, bits)),
        None => Value::from(v),
    }
}

/// What so many bits hold of an enum's value; `None` if they cannot.
pub(super) fn stored(value: i64, signed: bool, bits: u32) -> Option<u64> {
    let low = value as u64 & u64::MAX.checked_shr(64u32.saturating_sub(bits)).unwrap_or(0);
    let back = if signed { sign_extend(low, bits) } else { low as i64 };
    // Compilers before clang 15 do not say that an enum has negative values: they look like large 32-bit ones.
    let negative = || !signed && u32::try_from(value).is_ok_and(|v| i64::from(v as i32) == sign_extend(low, bits));
    (back == value || negative()).then_some(low)
}

fn array(element: &TypeDesc, bytes: &[u8]) -> Value {
    match element.size as usize {
        0 => Value::Array(Vec::new()),
        1 if element.kind == TypeKind::Char => Value::from(text(bytes)),
        size => Value::Array(bytes.chunks_exact(size).map(|chunk| value(element, chunk, false)).collect()),
    }
}

/// Up to the first NUL; what follows it is left over from earlier texts. Bytes that are no UTF-8 are `\xff`, and a
/// backslash that would read as the beginning of one is `\x5c`.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    let mut out = String::with_capacity(end);
    for chunk in bytes[..end].utf8_chunks() {
        let mut rest = chunk.valid();
        while let Some(at) = rest.find('\\') {
            out.push_str(&rest[..at]);
            let escapes = escaped(&rest.as_bytes()[at..]).is_some();
            out.push_str(if escapes { "\\x5c" } else { "\\" });
            rest = &rest[at + 1..];
        }
        out.push_str(rest);
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

/// The byte that `\xff` at the beginning stands for.
pub(super) fn escaped(text: &[u8]) -> Option<u8> {
    let [b'\\', b'x', high, low, ..] = text else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(*high)? << 4 | digit(*low)?).ok()
}

pub(super) fn le_u64(bytes: &[u8]) -> u64 {
    let (mut wide, own) = ([0; 8], bytes.len().min(8));
    wide[..own].copy_from_slice(&bytes[..own]);
    u64::from_le_bytes(wide)
}

/// By the bytes' own sign.
pub(super) fn le_i64(bytes: &[u8]) -> i64 {
    sign_extend(le_u64(bytes), bits(bytes))
}

fn le_u128(bytes: &[u8]) -> u128 {
    bytes.iter().take(16).rev().fold(0, |acc, b| acc << 8 | u128::from(*b))
}

fn bits(bytes: &[u8]) -> u32 {
    bytes.len().min(8) as u32 * 8
}

fn sign_extend(v: u64, bits: u32) -> i64 {
    let shift = 64u32.saturating_sub(bits).min(63);
    ((v << shift) as i64) >> shift
}

/// A JSON number up to 64 bits; beyond, a decimal string: hardly any reader of JSON has integers that wide.
fn unsigned(bytes: &[u8]) -> Value {
    if bytes.len() <= 8 { Value::from(le_u64(bytes)) } else { Value::from(le_u128(bytes).to_string()) }
}

fn signed(bytes: &[u8]) -> Value {
    if bytes.len() <= 8 { Value::from(le_i64(bytes)) } else { Value::from((le_u128(bytes) as i128).to_string()) }
}

/// Memory that holds no boolean is shown as what it holds.
fn boolean(bytes: &[u8]) -> Value {
    match le_u128(bytes) {
        v @ (0 | 1) => Value::Bool(v == 1),
        _ => unsigned(bytes),
    }
}

fn float(bytes: &[u8]) -> Value {
    let (number, canonical) = match *bytes {
        [a, b, c, d] => {
            let float = f32::from_le_bytes([a, b, c, d]);
            (f64::from(float), float.to_bits() == f32::NAN.to_bits())
        }
        [a, b, c, d, e, f, g, h] => {
            let float = f64::from_le_bytes([a, b, c, d, e, f, g, h]);
            (float, float.to_bits() == f64::NAN.to_bits())
        }
        _ => return Value::from(hex(bytes)),
    };
    match Number::from_f64(number) {
        Some(finite) => Value::Number(finite),
        None if number.is_nan() && !canonical => Value::from(format!("NaN({:#x})", le_u64(bytes))),
        None => Value::from(number.to_string()),
    }
}

/// `0x` and two digits a byte, in memory order.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut s = String::with_capacity(2 + bytes.len() * 2);
    s.push_str("0x");
    for b in bytes {
        s.push(DIGITS[usize::from(b >> 4)].into());
        s.push(DIGITS[usize::from(b & 15)].into());
    }
    s
}
