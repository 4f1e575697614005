//! Numbers in maps: whole ones are exact, also of several nodes and CPUs added up.

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, Sub};

use serde::{Serialize, Serializer};
use serde_json::Value;
use skep_object::btf::desc::{TypeDesc, TypeKind};
use skep_object::btf::filter::Member;
use skep_object::btf::format::Format;

use crate::error::Error;
use crate::schema::Schema;

/// A number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    Whole(i128),
    Float(f64),
}

impl Number {
    pub const ZERO: Number = Number::Whole(0);

    /// Of a decoded value; none of what is no number.
    pub fn of(value: &Value) -> Option<Self> {
        let Value::Number(number) = value else { return None };
        number.as_i128().map(Number::Whole).or_else(|| number.as_f64().map(Number::Float))
    }

    /// Rounded to what a double holds: for drawing.
    pub fn as_f64(self) -> f64 {
        match self {
            Number::Whole(number) => number as f64,
            Number::Float(number) => number,
        }
    }

    /// By size.
    pub fn order(&self, other: &Number) -> Ordering {
        match (self, other) {
            (Number::Whole(a), Number::Whole(b)) => a.cmp(b),
            (a, b) => a.as_f64().total_cmp(&b.as_f64()),
        }
    }

    fn with(self, other: Number, whole: fn(i128, i128) -> Option<i128>, float: fn(f64, f64) -> f64) -> Number {
        let exact = match (self, other) {
            (Number::Whole(a), Number::Whole(b)) => whole(a, b),
            _ => None,
        };
        exact.map_or_else(|| Number::Float(float(self.as_f64(), other.as_f64())), Number::Whole)
    }
}

impl Add for Number {
    type Output = Number;
    fn add(self, other: Number) -> Number {
        self.with(other, i128::checked_add, f64::add)
    }
}

impl Sub for Number {
    type Output = Number;
    fn sub(self, other: Number) -> Number {
        self.with(other, i128::checked_sub, f64::sub)
    }
}

impl std::iter::Sum for Number {
    fn sum<I: Iterator<Item = Number>>(all: I) -> Number {
        all.fold(Number::ZERO, Number::add)
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Number::Whole(number) => number.fmt(f),
            Number::Float(number) => number.fmt(f),
        }
    }
}

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match *self {
            Number::Whole(number) => serializer.serialize_i128(number),
            Number::Float(number) => serializer.serialize_f64(number),
        }
    }
}

/// A number in two words, for those of whom many are kept.
#[derive(Clone, Debug)]
pub enum Kept {
    Whole(i64),
    Wide(Box<i128>),
    Float(f64),
}

impl From<Number> for Kept {
    fn from(number: Number) -> Self {
        match number {
            Number::Whole(number) => i64::try_from(number).map_or_else(|_| Kept::Wide(Box::new(number)), Kept::Whole),
            Number::Float(number) => Kept::Float(number),
        }
    }
}

impl From<&Kept> for Number {
    fn from(kept: &Kept) -> Self {
        match kept {
            Kept::Whole(number) => Number::Whole((*number).into()),
            Kept::Wide(number) => Number::Whole(**number),
            Kept::Float(number) => Number::Float(*number),
        }
    }
}

/// A member of a map's keys or values that has numbers.
#[derive(Debug)]
pub struct Counter(Member);

impl Counter {
    /// By its path; `option` is where the path was given.
    pub fn parse(option: &str, path: &str, schema: &Schema) -> Result<Self, Error> {
        let (key, value) = (plain(&schema.key), plain(&schema.value));
        let member =
            Member::parse(path, &[("key", &key), ("value", &value)]).map_err(|e| Error::Usage(e.to_string()))?;
        match member.is_number() {
            true => Ok(Counter(member)),
            false => Err(Error::Usage(format!("--{option}: {path} is no number"))),
        }
    }

    /// Its number in an entry.
    pub fn number(&self, key: &[u8], value: &[u8]) -> Option<Number> {
        Number::of(&self.0.decode(&[key, value]))
    }
}

/// Times and durations as the numbers that they are, not as texts.
fn plain(desc: &TypeDesc) -> TypeDesc {
    let mut desc = desc.clone();
    if matches!(desc.name.format, Format::TimeNs | Format::DurationNs) {
        desc.name.format = Format::Plain;
    }
    match &mut desc.kind {
        TypeKind::Struct(fields) | TypeKind::Union(fields) => {
            fields.iter_mut().for_each(|field| field.desc = plain(&field.desc));
        }
        TypeKind::Array { element, .. } => **element = plain(element),
        _ => {}
    }
    desc
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_object::btf::desc::TypeName;
    use skep_proto::v1::MapInfo;

    #[test]
    fn whole_numbers_stay_whole_and_exact() {
        let large = Number::of(&Value::from(u64::MAX)).unwrap();
        let sum: Number = [large, large, Number::Whole(1)].into_iter().sum();
        assert_eq!(serde_json::to_string(&sum).unwrap(), "36893488147419103231");
        assert_eq!((sum - large).to_string(), "18446744073709551616");
        assert_eq!(Number::of(&Value::from(0.5)).unwrap() + Number::Whole(1), Number::Float(1.5));
        assert_eq!(Number::Whole(i128::MAX) + Number::Whole(1), Number::Float(i128::MAX as f64 + 1.0));
        assert_eq!(Number::of(&Value::from("7")), None);
        assert_eq!(Number::Whole((1 << 53) + 1).order(&Number::Whole(1 << 53)), Ordering::Greater);
        for number in [Number::Whole(-1), sum, Number::Float(0.5)] {
            assert_eq!(Number::from(&Kept::from(number)), number);
        }
        assert_eq!(size_of::<Option<Kept>>(), 16);
    }

    #[test]
    fn durations_are_numbers_too() {
        let name = TypeName::from("__u64").shown_as(Format::DurationNs);
        let value = TypeDesc { kind: TypeKind::Uint, name, size: 8 };
        let map = MapInfo { value_size: 8, ..MapInfo::default() };
        let key = TypeDesc::bytes(4);
        let schema = Schema { map, key, value, values_per_entry: 1, stride: 8, head_only: false };
        let counter = Counter::parse("count", "value", &schema).unwrap();
        let number = (1u64 << 53) + 1;
        assert_eq!(counter.number(&[0; 4], &number.to_le_bytes()), Some(Number::Whole(number.into())));
        assert_eq!(Counter::parse("count", "key", &schema).unwrap_err().to_string(), "--count: key is no number");
    }
}
