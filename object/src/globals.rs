//! Global variables of an object, set from JSON and checked against the object's BTF.

use serde_json::Value;

use crate::btf::desc::{FieldDesc, TypeDesc, TypeKind};

/// Encodes a JSON value as a type's bytes. The error says what would be accepted.
///
/// * integers: JSON numbers, or strings in decimal or `0x…` hex (for what a JSON number cannot hold)
/// * enums: a value's name, or its number
/// * `bool`: `true` or `false`
/// * `char` arrays: strings with room for the final NUL
/// * byte arrays: lists of numbers; of 6 bytes also a MAC address, of 4 and 16 also an IP address (network order)
/// * arrays: lists of at most the array's length, the rest is zero
/// * structs: objects; what is not named is zero
pub fn encode(desc: &TypeDesc, value: &Value) -> Result<Vec<u8>, String> {
    let mut out = vec![0; desc.size as usize];
    write(desc, value, &mut out)?;
    Ok(out)
}

fn write(desc: &TypeDesc, value: &Value, out: &mut [u8]) -> Result<(), String> {
    let size = desc.size as usize;
    let Some(out) = out.get_mut(..size) else { return Err("it has no room in its section".into()) };
    match &desc.kind {
        TypeKind::Uint => put(out, unsigned(value, size)?),
        TypeKind::Int => put(out, signed(value, size)? as u128),
        TypeKind::Char => put(out, unsigned(value, size)?),
        TypeKind::Bool => match value {
            Value::Bool(b) => put(out, u128::from(*b)),
            other => return Err(format!("{other} is not true or false")),
        },
        TypeKind::Enum { values, signed: is_signed } => match value {
            Value::String(name) if !name.starts_with(|c: char| c.is_ascii_digit() || c == '-') => {
                let found = values.iter().find(|(n, _)| n == name);
                let known = || values.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>().join(", ");
                let (_, v) =
                    found.ok_or_else(|| format!("{name} is not a value of enum {}; it has {}", desc.name, known()))?;
                put(out, *v as u128);
            }
            number if *is_signed => put(out, signed(number, size)? as u128),
            number => put(out, unsigned(number, size)?),
        },
        TypeKind::Float => float(value, out)?,
        TypeKind::Array { element, count } => array(element, *count, value, out)?,
        TypeKind::Struct(fields) => object(desc, fields, value, out)?,
        TypeKind::Union(_) | TypeKind::Pointer | TypeKind::Bytes => {
            return Err("its type cannot be written as JSON (a union, a pointer, or no type at all)".into());
        }
    }
    Ok(())
}

fn put(out: &mut [u8], v: u128) {
    let bytes = v.to_le_bytes();
    for (slot, byte) in out.iter_mut().zip(bytes) {
        *slot = byte;
    }
}

/// An integer as written: a JSON number or a string in decimal or hex.
fn integer(value: &Value) -> Result<i128, String> {
    let parsed = match value {
        Value::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(v), _) => Some(i128::from(v)),
            // The API server stores a number of 2^63 or more as a float: what arrives is no longer what was written.
            (None, Some(_)) => return Err(format!("{n} does not survive JSON; write it as a string, \"{n}\"")),
            (None, None) if n.as_f64().is_some_and(|f| f.abs() >= 9.2e18) => {
                return Err(format!("{n} does not survive JSON; write it as a string, in decimal or 0x hex"));
            }
            (None, None) => None,
        },
        Value::String(s) => {
            let (negative, digits) = s.strip_prefix('-').map_or((false, s.as_str()), |d| (true, d));
            let magnitude = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
                Some(hex) => u64::from_str_radix(hex, 16).ok(),
                None if digits.starts_with(|c: char| c.is_ascii_digit()) => digits.parse::<u64>().ok(),
                None => None,
            };
            magnitude.map(|m| if negative { -i128::from(m) } else { i128::from(m) })
        }
        _ => None,
    };
    parsed.ok_or_else(|| format!("{value} is not an integer"))
}

fn unsigned(value: &Value, size: usize) -> Result<u128, String> {
    let v = integer(value)?;
    let max = if size >= 8 { i128::from(u64::MAX) } else { (1i128 << (size * 8)) - 1 };
    if (0..=max).contains(&v) {
        Ok(v as u128)
    } else {
        Err(format!("{value} is outside 0..={max} ({size} bytes, unsigned)"))
    }
}

fn signed(value: &Value, size: usize) -> Result<i128, String> {
    let v = integer(value)?;
    let bits = size.min(8) * 8;
    let (min, max) = (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1);
    if (min..=max).contains(&v) {
        Ok(v)
    } else {
        Err(format!("{value} is outside {min}..={max} ({size} bytes, signed)"))
    }
}

fn float(value: &Value, out: &mut [u8]) -> Result<(), String> {
    let v = value.as_f64().ok_or_else(|| format!("{value} is not a number"))?;
    match out.len() {
        4 => out.copy_from_slice(&(v as f32).to_le_bytes()),
        8 => out.copy_from_slice(&v.to_le_bytes()),
        n => return Err(format!("a float of {n} bytes cannot be set")),
    }
    Ok(())
}

fn array(element: &TypeDesc, count: u32, value: &Value, out: &mut [u8]) -> Result<(), String> {
    let bytes = element.size == 1 && matches!(element.kind, TypeKind::Uint | TypeKind::Int | TypeKind::Char);
    match value {
        Value::String(text) if element.kind == TypeKind::Char => {
            if text.len() >= count as usize {
                return Err(format!(
                    "{text:?} has {} bytes; there is room for {} and a NUL",
                    text.len(),
                    count.saturating_sub(1)
                ));
            }
            out[..text.len()].copy_from_slice(text.as_bytes());
        }
        Value::String(text) if bytes => {
            let address = address_bytes(text, count as usize);
            let hint = match count {
                4 | 16 => "an IP address",
                6 => "a MAC address such as 00:11:22:33:44:55",
                _ => "a list of numbers",
            };
            out.copy_from_slice(&address.ok_or_else(|| format!("{text:?} does not fit {count} bytes; write {hint}"))?);
        }
        Value::Array(items) => {
            if items.len() > count as usize {
                return Err(format!("the list has {} elements, the array {count}", items.len()));
            }
            for (i, item) in items.iter().enumerate() {
                let at = i * element.size as usize;
                write(element, item, &mut out[at..]).map_err(|e| format!("[{i}]: {e}"))?;
            }
        }
        other => return Err(format!("{other} is not a list; the array has {count} elements")),
    }
    Ok(())
}

fn address_bytes(text: &str, count: usize) -> Option<Vec<u8>> {
    match count {
        4 => text.parse::<std::net::Ipv4Addr>().ok().map(|a| a.octets().to_vec()),
        16 => text.parse::<std::net::Ipv6Addr>().ok().map(|a| a.octets().to_vec()),
        6 => {
            let bytes: Option<Vec<u8>> =
                text.split(':').map(|p| u8::from_str_radix(p, 16).ok().filter(|_| p.len() == 2)).collect();
            bytes.filter(|b| b.len() == 6)
        }
        _ => None,
    }
}

fn object(desc: &TypeDesc, fields: &[FieldDesc], value: &Value, out: &mut [u8]) -> Result<(), String> {
    let Value::Object(given) = value else {
        return Err(format!("{value} is not an object; its type is struct {}", desc.name));
    };
    for (name, value) in given {
        let field = fields.iter().find(|f| f.name == *name);
        let known = || fields.iter().map(|f| f.name.as_str()).collect::<Vec<_>>().join(", ");
        let field = field.ok_or_else(|| format!("struct {} has no field {name}; it has {}", desc.name, known()))?;
        if field.bit_size > 0 {
            return Err(format!("{name} is a bit field, which cannot be set"));
        }
        let at = field.bit_offset as usize / 8;
        let slot = out.get_mut(at..).ok_or_else(|| format!("{name} lies outside its struct"))?;
        write(&field.desc, value, slot).map_err(|e| format!(".{name}: {e}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn uint(size: u32) -> TypeDesc {
        TypeDesc { kind: TypeKind::Uint, name: "u".into(), size }
    }
    fn list(element: TypeDesc, count: u32) -> TypeDesc {
        let size = element.size * count;
        TypeDesc { kind: TypeKind::Array { element: Box::new(element), count }, name: String::new(), size }
    }

    #[test]
    fn integers_are_checked_against_their_range() {
        assert_eq!(encode(&uint(1), &json!(255)), Ok(vec![255]));
        assert_eq!(encode(&uint(1), &json!(256)), Err("256 is outside 0..=255 (1 bytes, unsigned)".into()));
        assert_eq!(encode(&uint(4), &json!(-1)), Err("-1 is outside 0..=4294967295 (4 bytes, unsigned)".into()));
        assert_eq!(encode(&uint(8), &json!("0xffffffffffffffff")), Ok(vec![255; 8]));
        assert_eq!(encode(&uint(8), &json!("18446744073709551615")), Ok(vec![255; 8]));
        let int = TypeDesc { kind: TypeKind::Int, name: "i".into(), size: 2 };
        assert_eq!(encode(&int, &json!(-2)), Ok(vec![0xfe, 0xff]));
        assert!(encode(&int, &json!(32768)).is_err());
        assert!(encode(&uint(4), &json!(1.5)).is_err());
    }

    #[test]
    fn numbers_that_json_loses_are_refused_not_rounded() {
        for lost in [json!(u64::MAX), json!(1.8446744073709552e19)] {
            let error = encode(&uint(8), &lost).unwrap_err();
            assert!(error.contains("write it as a string"), "{error}");
        }
        assert_eq!(encode(&uint(8), &json!(i64::MAX)), Ok(i64::MAX.to_le_bytes().to_vec()));
    }

    #[test]
    fn addresses_fill_byte_arrays() {
        assert_eq!(encode(&list(uint(1), 6), &json!("00:11:22:33:44:55")), Ok(vec![0, 0x11, 0x22, 0x33, 0x44, 0x55]));
        assert_eq!(encode(&list(uint(1), 4), &json!("10.0.0.1")), Ok(vec![10, 0, 0, 1]));
        assert!(encode(&list(uint(1), 6), &json!("0:1:2:3:4:5")).is_err());
    }

    #[test]
    fn lists_may_be_shorter_but_not_longer() {
        assert_eq!(encode(&list(uint(2), 3), &json!([80, 443])), Ok(vec![80, 0, 0xbb, 1, 0, 0]));
        assert_eq!(encode(&list(uint(2), 1), &json!([1, 2])), Err("the list has 2 elements, the array 1".into()));
    }

    #[test]
    fn strings_need_room_for_their_end() {
        let char_type = TypeDesc { kind: TypeKind::Char, name: "char".into(), size: 1 };
        assert_eq!(encode(&list(char_type.clone(), 4), &json!("abc")), Ok(b"abc\0".to_vec()));
        assert!(encode(&list(char_type, 3), &json!("abc")).is_err());
    }
}
