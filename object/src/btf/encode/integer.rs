//! Integers as people and scripts write them.

use serde_json::Value;

use super::error::{EncodeError, Problem, brief, not};
use crate::btf::desc::TypeDesc;

/// Up to 128 bits, of either sign.
#[derive(Clone, Copy, Debug)]
pub(super) struct Integer {
    negative: bool,
    magnitude: u128,
}

/// What would have fitted.
pub(super) struct Range {
    min: i128,
    max: u128,
}

impl From<u64> for Integer {
    fn from(v: u64) -> Self {
        Integer { negative: false, magnitude: v.into() }
    }
}

impl From<i128> for Integer {
    fn from(v: i128) -> Self {
        Integer { negative: v < 0, magnitude: v.unsigned_abs() }
    }
}

impl Integer {
    /// A JSON number, or a string in decimal or `0x` hex.
    pub(super) fn read(value: &Value) -> Result<Self, EncodeError> {
        let integer = match value {
            Value::Number(n) => match (n.as_u64(), n.as_i64()) {
                (Some(v), _) => Some(Integer::from(v)),
                (None, Some(v)) => Some(Integer::from(i128::from(v))),
                // What went through a double on its way, as numbers do in many tools, is no longer what was written.
                (None, None) if n.as_f64().is_some_and(|f| f.abs() >= 9.2e18) => {
                    return Err(Problem::Rounded { given: brief(value) }.into());
                }
                (None, None) => None,
            },
            Value::String(text) => Integer::of_text(text),
            _ => None,
        };
        integer.ok_or_else(|| not(value, "an integer"))
    }

    pub(super) fn of_text(text: &str) -> Option<Self> {
        let (negative, digits) = text.strip_prefix('-').map_or((false, text), |digits| (true, digits));
        let magnitude = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
            Some(hex) if hex.starts_with(|c: char| c.is_ascii_hexdigit()) => u128::from_str_radix(hex, 16).ok(),
            None if digits.starts_with(|c: char| c.is_ascii_digit()) => digits.parse().ok(),
            _ => None,
        };
        magnitude.map(|magnitude| Integer { negative, magnitude })
    }

    /// In two's complement of so many bits.
    pub(super) fn in_bits(self, bits: u32, signed: bool) -> Result<u128, Range> {
        let bits = bits.min(128);
        let max = if bits == 0 { 0 } else { u128::MAX >> (128 - bits) >> u32::from(signed) };
        let lowest = if signed && bits > 0 { max + 1 } else { 0 };
        match self.negative && self.magnitude > 0 {
            false if self.magnitude <= max => Ok(self.magnitude),
            true if self.magnitude <= lowest => Ok(self.magnitude.wrapping_neg()),
            _ => Err(Range { min: (lowest as i128).wrapping_neg(), max }),
        }
    }
}

impl Range {
    pub(super) fn broken(self, given: &Value, desc: &TypeDesc) -> EncodeError {
        let name = if desc.name.is_empty() { String::new() } else { format!("{}, ", desc.name) };
        let unit = if desc.size == 1 { "byte" } else { "bytes" };
        self.error(given, format!("{name}{} {unit}", desc.size))
    }

    pub(super) fn broken_in_bits(self, given: &Value, bits: u32) -> EncodeError {
        self.error(given, format!("bit field of {bits}"))
    }

    fn error(self, given: &Value, of: String) -> EncodeError {
        Problem::OutOfRange { given: brief(given), min: self.min, max: self.max, of }.into()
    }
}
