//! What is written as text: floats that JSON has no number for, `char` arrays, addresses, hex.

use serde_json::Value;

use super::error::{EncodeError, Problem, not};
use super::place::Place;
use crate::btf::decode::escaped;
use crate::btf::format::Format;

pub(super) fn float(value: &Value, size: usize) -> Result<Vec<u8>, EncodeError> {
    let wanted = "a number, \"NaN\", \"inf\" or \"-inf\"";
    let bits = |text: &str| {
        let digits = text.strip_prefix("NaN(0x")?.strip_suffix(')')?;
        let bits = u64::from_str_radix(digits, 16).ok()?;
        let nan =
            if size == 4 { f32::from_bits(u32::try_from(bits).ok()?).is_nan() } else { f64::from_bits(bits).is_nan() };
        nan.then(|| bits.to_le_bytes().into_iter().take(size).collect::<Vec<u8>>())
    };
    let number = match value {
        _ if size != 4 && size != 8 => return unhex(value, size),
        Value::Number(n) => n.as_f64(),
        Value::String(text) => match (text.as_str(), bits(text)) {
            (_, Some(bytes)) => return Ok(bytes),
            ("NaN", _) => Some(f64::NAN),
            ("inf", _) => Some(f64::INFINITY),
            ("-inf", _) => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    };
    let number = number.ok_or_else(|| not(value, wanted))?;
    let narrow = number as f32;
    match size {
        4 if narrow.is_infinite() && number.is_finite() => Err(not(value, "a number that 4 bytes can hold")),
        4 if number.is_nan() => Ok(f32::NAN.to_le_bytes().to_vec()),
        4 => Ok(narrow.to_le_bytes().to_vec()),
        _ => Ok(number.to_le_bytes().to_vec()),
    }
}

/// A text, and its NUL if there is room for one. What follows stays as it is.
pub(super) fn characters(text: &str, count: u32, out: &mut Place, at: usize) -> Result<(), EncodeError> {
    let mut bytes = Vec::with_capacity(text.len() + 1);
    let mut rest = text.as_bytes();
    while let Some((byte, tail)) = rest.split_first() {
        let (byte, tail) = escaped(rest).map_or((*byte, tail), |byte| (byte, &rest[4..]));
        bytes.push(byte);
        rest = tail;
    }
    if bytes.contains(&0) {
        return Err(not(&Value::from(text), "a text: it has a NUL in it"));
    }
    if count == 0 {
        out.grow(at + bytes.len())?;
    } else if bytes.len() > count as usize {
        return Err(Problem::TooLong { bytes: bytes.len(), room: count }.into());
    } else if bytes.len() < count as usize {
        bytes.push(0);
    }
    out.put(at, &bytes)
}

/// A byte array by an address or hex.
pub(super) fn octets(text: &str, count: u32, out: &mut Place, at: usize) -> Result<(), EncodeError> {
    let given = Value::from(text);
    let (format, wanted) = match count {
        4 => (Format::Ipv4, "an IPv4 address, hex, or a list of 4 numbers"),
        6 => (Format::Mac, "a MAC address such as 00:11:22:33:44:55, hex, or a list of 6 numbers"),
        16 => (Format::Ipv6, "an IPv6 address, hex, or a list of 16 numbers"),
        0 => (Format::Plain, "hex, or a list of numbers"),
        _ => (Format::Plain, "hex of the array's length, or a list of numbers"),
    };
    let size = if count == 0 { text.len().saturating_sub(2) / 2 } else { count as usize };
    let bytes = format.octets(text).or_else(|| unhex(&given, size).ok()).ok_or_else(|| not(&given, wanted))?;
    if count == 0 {
        out.grow(at + bytes.len())?;
    }
    out.put(at, &bytes)
}

/// `0x` and two digits a byte, in memory order.
pub(super) fn unhex(value: &Value, size: usize) -> Result<Vec<u8>, EncodeError> {
    let digits = value.as_str().and_then(|text| text.strip_prefix("0x")).filter(|digits| digits.len() == size * 2);
    let pairs = digits.and_then(|digits| {
        let nibble = |c: &u8| char::from(*c).to_digit(16);
        let pair = |p: &[u8]| match p {
            [high, low] => u8::try_from(nibble(high)? << 4 | nibble(low)?).ok(),
            _ => None,
        };
        digits.as_bytes().chunks(2).map(pair).collect()
    });
    pairs.ok_or_else(|| not(value, &format!("0x and {} hex digits: {size} bytes in memory order", size * 2)))
}
