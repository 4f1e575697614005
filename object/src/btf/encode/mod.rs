//! JSON as a value's bytes: the inverse of [`super::decode`]. docs/decode.md says how each type may be written.
//!
//! **Guarantees.** What decoding made of a value becomes the same bytes again, but for padding, which is zero, and what
//! follows the end of a text. Nothing is rounded, cut or guessed: what does not fit is an [`EncodeError`] that names the
//! place. No description makes it panic, or allocate more than a value of [`MAX_SIZE`] needs.

mod error;
mod integer;
mod place;
mod spelling;

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::decode::stored;
use super::desc::{FieldDesc, TypeDesc, TypeKind};
use super::format::Format;
pub use error::{EncodeError, Problem};
use error::{brief, not};
use integer::Integer;
use place::Place;
use spelling::{characters, float, octets, unhex};

/// Largest value that can be written, in bytes.
pub const MAX_SIZE: usize = 16 << 20;

/// Encodes a whole value: every member of a struct, every element of an array, one member at least of a union.
/// Longer than the type's size only if a flexible array member has elements.
pub fn encode(desc: &TypeDesc, value: &Value) -> Result<Vec<u8>, EncodeError> {
    Encoder { partial: false }.whole(desc, value)
}

/// The same, but what is not named is zero.
pub fn encode_partial(desc: &TypeDesc, value: &Value) -> Result<Vec<u8>, EncodeError> {
    Encoder { partial: true }.whole(desc, value)
}

struct Encoder {
    partial: bool,
}

impl Encoder {
    fn whole(&self, desc: &TypeDesc, value: &Value) -> Result<Vec<u8>, EncodeError> {
        let mut place = Place::new(desc.size as usize)?;
        self.write(desc, value, &mut place, 0)?;
        Ok(place.into_bytes())
    }

    fn write(&self, desc: &TypeDesc, value: &Value, out: &mut Place, at: usize) -> Result<(), EncodeError> {
        let size = desc.size as usize;
        if formatted(desc, value, out, at)? {
            return Ok(());
        }
        match &desc.kind {
            TypeKind::Uint
            | TypeKind::Int
            | TypeKind::Char
            | TypeKind::Pointer
            | TypeKind::Bool
            | TypeKind::Enum { .. } => out.put(at, &in_bytes(raw(desc, value, None)?, size))?,
            TypeKind::Float => out.put(at, &float(value, size)?)?,
            TypeKind::Array { element, count } => self.array(desc, element, *count, value, out, at)?,
            TypeKind::Struct(_) | TypeKind::Union(_) => {
                let Value::Object(given) = value else {
                    return Err(not(value, &format!("an object of the members of {}", error::named(desc))));
                };
                known(desc, given)?;
                self.members(desc, given, out, at)?;
            }
            TypeKind::Bytes => out.put(at, &unhex(value, size)?)?,
        }
        Ok(())
    }

    fn array(
        &self,
        desc: &TypeDesc,
        element: &TypeDesc,
        count: u32,
        value: &Value,
        out: &mut Place,
        at: usize,
    ) -> Result<(), EncodeError> {
        let items = match value {
            Value::String(text) if element.kind == TypeKind::Char && element.size == 1 => {
                return characters(text, count, out, at);
            }
            Value::String(text) if element.is_byte() => return octets(text, count, out, at),
            Value::Array(items) => items,
            other => return Err(not(other, &format!("a list of {count} elements"))),
        };
        let (given, wanted) =
            (items.len(), if desc.size == 0 { given_or_none(items, element) } else { count as usize });
        if given > wanted {
            return Err(Problem::TooMany { given, most: wanted }.into());
        }
        for (index, item) in items.iter().enumerate() {
            let here = at + index * element.size as usize;
            if count == 0 {
                out.grow(here + element.size as usize)?;
            }
            self.write(element, item, out, here).map_err(|e| e.under(&format!("[{index}]")))?;
        }
        if given < wanted && element.size > 0 && !self.partial {
            return Err(Problem::TooFew { given, wanted }.into());
        }
        Ok(())
    }

    /// Writes the members that are given, and says which are not but should be.
    fn members(
        &self,
        desc: &TypeDesc,
        given: &Map<String, Value>,
        out: &mut Place,
        at: usize,
    ) -> Result<(), EncodeError> {
        let (fields, is_union) = match &desc.kind {
            TypeKind::Struct(fields) => (fields, false),
            TypeKind::Union(fields) => (fields, true),
            _ => return Ok(()),
        };
        let mut any = false;
        for field in fields.iter().filter(|field| !names(field).is_empty()) {
            let mentioned = names(field).iter().any(|name| given.contains_key(*name));
            any |= mentioned;
            let here = at + field.bit_offset as usize / 8;
            match given.get(&field.name) {
                _ if !mentioned && (is_union || self.partial) => {}
                _ if field.name.is_empty() => self.members(&field.desc, given, out, here)?,
                Some(value) if field.bit_size > 0 => {
                    raw(&field.desc, value, Some(field.bit_size))
                        .and_then(|v| out.put_bits(at, field.bit_offset, field.bit_size, v as u64))
                        .map_err(|e| e.under(&field.name))?;
                }
                Some(value) => self.write(&field.desc, value, out, here).map_err(|e| e.under(&field.name))?,
                None => return Err(EncodeError::from(Problem::Missing).under(&field.name)),
            }
        }
        if is_union && !any && !self.partial && fields.iter().any(|field| !names(field).is_empty()) {
            let names = fields.iter().flat_map(names).map(str::to_owned).collect();
            return Err(Problem::NoneOf { names }.into());
        }
        Ok(())
    }
}

/// Names of the members that a field is shown as: its own, or those of an anonymous struct or union.
fn names(field: &FieldDesc) -> Vec<&str> {
    match &field.desc.kind {
        _ if !field.name.is_empty() => vec![field.name.as_str()],
        TypeKind::Struct(inner) | TypeKind::Union(inner) if field.bit_size == 0 => {
            inner.iter().flat_map(names).collect()
        }
        _ => Vec::new(),
    }
}

fn known(desc: &TypeDesc, given: &Map<String, Value>) -> Result<(), EncodeError> {
    let (TypeKind::Struct(fields) | TypeKind::Union(fields)) = &desc.kind else { return Ok(()) };
    let known: HashSet<&str> = fields.iter().flat_map(names).collect();
    match given.keys().find(|name| !known.contains(name.as_str())) {
        None => Ok(()),
        Some(name) => {
            let known = fields.iter().flat_map(names).map(str::to_owned).collect();
            Err(EncodeError::from(Problem::Unknown { of: error::named(desc), known }).under(name))
        }
    }
}

/// A flexible array has as many as are given; one of empty structs is written as an empty list.
fn given_or_none(items: &[Value], element: &TypeDesc) -> usize {
    if element.size > 0 { items.len() } else { 0 }
}

/// Written as its name or tag says; false where its kind has to see to it.
fn formatted(desc: &TypeDesc, value: &Value, out: &mut Place, at: usize) -> Result<bool, EncodeError> {
    let (format, size) = (desc.name.format, desc.size as usize);
    let integer = matches!(desc.kind, TypeKind::Uint | TypeKind::Int);
    let bytes = match (format, value) {
        (Format::Plain | Format::Interface | Format::Task | Format::Cgroup, _) => return Ok(false),
        (Format::TimeNs | Format::DurationNs, Value::String(text)) => {
            let nanoseconds = Integer::of_text(text).or_else(|| format.nanoseconds(text).map(Integer::from));
            let nanoseconds = nanoseconds.ok_or_else(|| not(value, wanted(format)))?;
            in_bytes(checked(desc, value, nanoseconds, None)?, size)
        }
        (Format::TimeNs | Format::DurationNs, _) => return Ok(false),
        (Format::NetworkOrder, Value::String(text)) if size == 4 && Format::Ipv4.octets(text).is_some() => {
            Format::Ipv4.octets(text).unwrap_or_default()
        }
        (Format::Ipv4 | Format::Ipv6 | Format::Mac, Value::String(text)) => {
            let octets = format.octets(text).or_else(|| unhex(value, size).ok());
            octets.filter(|octets| octets.len() == size).ok_or_else(|| not(value, wanted(format)))?
        }
        // A number is the address as one writes it: 0x0a000001 is 10.0.0.1.
        (_, Value::Number(_) | Value::String(_)) if integer => {
            let mut bytes = in_bytes(raw(desc, value, None)?, size);
            bytes.reverse();
            bytes
        }
        _ => return Ok(false),
    };
    out.put(at, &bytes)?;
    Ok(true)
}

fn wanted(format: Format) -> &'static str {
    match format {
        Format::Plain | Format::NetworkOrder | Format::Interface | Format::Task | Format::Cgroup => "an integer",
        Format::Ipv4 => "an IPv4 address such as 10.0.0.1",
        Format::Ipv6 => "an IPv6 address such as 2001:db8::1",
        Format::Mac => "a MAC address such as 00:11:22:33:44:55",
        Format::TimeNs => "a time such as 2026-01-02T03:04:05.6Z, or nanoseconds since 1970",
        Format::DurationNs => "a duration such as 1.5ms, or nanoseconds",
    }
}

/// An integer, truth value or enum in two's complement, of the type's bits or those of a bit field.
fn raw(desc: &TypeDesc, value: &Value, bit_size: Option<u32>) -> Result<u128, EncodeError> {
    let bits = bit_size.unwrap_or(desc.size.saturating_mul(8));
    let integer = match (&desc.kind, value) {
        (TypeKind::Bool, Value::Bool(truth)) => Integer::from(u64::from(*truth)),
        (TypeKind::Bool, Value::Number(_)) => Integer::read(value)?,
        (TypeKind::Bool, other) => return Err(not(other, "true or false")),
        (TypeKind::Enum { signed, values }, Value::String(name)) if Integer::of_text(name).is_none() => {
            let Some((_, v)) = values.iter().find(|(known, _)| known == name) else {
                let known = values.iter().map(|(name, _)| name.clone()).collect();
                return Err(Problem::NotInEnum { given: brief(value), of: desc.name.to_string(), known }.into());
            };
            match stored(*v, *signed, bits) {
                Some(v) => return Ok(v.into()),
                None => Integer::from(i128::from(*v)),
            }
        }
        _ => Integer::read(value)?,
    };
    checked(desc, value, integer, bit_size)
}

fn checked(desc: &TypeDesc, given: &Value, integer: Integer, bit_size: Option<u32>) -> Result<u128, EncodeError> {
    let signed = match &desc.kind {
        TypeKind::Enum { signed, .. } => *signed,
        kind => *kind == TypeKind::Int,
    };
    let bits = bit_size.unwrap_or(desc.size.saturating_mul(8));
    integer.in_bits(bits, signed).map_err(|range| match bit_size {
        Some(bits) => range.broken_in_bits(given, bits),
        None => range.broken(given, desc),
    })
}

/// Least significant first.
fn in_bytes(v: u128, size: usize) -> Vec<u8> {
    v.to_le_bytes().into_iter().chain(std::iter::repeat(0)).take(size).collect()
}
