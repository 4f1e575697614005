//! A map's description, as its agent sent it ahead of the contents: the inverse of the agent's `grpc::frames`.
//!
//! Guarantees: a description that is accepted cannot make decoding panic, nor make far more of a value than it has
//! bytes, whoever sent it. Its depth is bounded by the protobuf decoder (100 levels). Kinds and formats of a newer agent
//! are no errors: such values are shown as bytes, or as their kind says.

use skep_object::btf::desc::{FieldDesc, TypeDesc, TypeKind, TypeName};
use skep_object::btf::format::Format;
use skep_proto::v1::r#type::{self, Kind};
use skep_proto::v1::{Field, MapInfo, MapSchema, Type};

use crate::error::Error;

/// Widest integer, in bytes.
const MAX_INT: u32 = 16;
/// Widest bit field.
const MAX_BITS: u32 = 64;

/// A map and what its bytes mean.
#[derive(Clone, Debug, PartialEq)]
pub struct Schema {
    pub map: MapInfo,
    pub key: TypeDesc,
    pub value: TypeDesc,
    /// Values of one entry: one, or one per possible CPU.
    pub values_per_entry: usize,
    /// Bytes from one value of an entry to the next.
    pub stride: usize,
    /// Of several entries one can be seen: the next.
    pub head_only: bool,
}

impl Schema {
    pub fn new(message: MapSchema) -> Result<Self, Error> {
        let map = message.map.ok_or(Error::Schema("it names no map"))?;
        let described = |message: Option<&Type>, size| match message {
            Some(message) => type_desc(message).map(TypeDesc::bounded),
            None => Ok(TypeDesc::bytes(size)),
        };
        Ok(Schema {
            key: described(message.key.as_ref(), map.key_size)?,
            value: described(message.value.as_ref(), map.value_size)?,
            values_per_entry: message.values_per_entry as usize,
            stride: message.value_stride as usize,
            head_only: message.head_only,
            map,
        })
    }

    /// Has a value for each CPU, even where there is but one CPU.
    pub fn is_per_cpu(&self) -> bool {
        self.map.r#type.contains("percpu")
    }
}

/// A type out of its message.
pub fn type_desc(message: &Type) -> Result<TypeDesc, Error> {
    let size = message.size;
    let integer = || match (1..=MAX_INT).contains(&size) {
        true => Ok(()),
        false => Err(Error::Schema("an integer of impossible size")),
    };
    let kind = match Kind::try_from(message.kind).unwrap_or(Kind::Bytes) {
        Kind::Unspecified => return Err(Error::Schema("a type of unknown kind")),
        Kind::Uint => integer().map(|()| TypeKind::Uint)?,
        Kind::Int => integer().map(|()| TypeKind::Int)?,
        Kind::Bool => TypeKind::Bool,
        Kind::Char => TypeKind::Char,
        Kind::Float => TypeKind::Float,
        Kind::Pointer => TypeKind::Pointer,
        Kind::Bytes => TypeKind::Bytes,
        Kind::Enum => {
            integer()?;
            let values = message.values.iter().map(|v| (v.name.clone(), v.value)).collect();
            TypeKind::Enum { signed: message.signed, values }
        }
        Kind::Struct => TypeKind::Struct(fields(&message.fields)?),
        Kind::Union => TypeKind::Union(fields(&message.fields)?),
        Kind::Array => {
            let element = message.element.as_deref().ok_or(Error::Schema("an array of nothing"))?;
            TypeKind::Array { element: Box::new(type_desc(element)?), count: message.count }
        }
    };
    let mut desc = TypeDesc { kind, name: message.name.as_str().into(), size };
    let format = format(message.format());
    if format.fits(&desc) {
        desc.name = TypeName::from(message.name.as_str()).shown_as(format);
    }
    Ok(desc)
}

fn format(message: r#type::Format) -> Format {
    match message {
        r#type::Format::Unspecified => Format::Plain,
        r#type::Format::NetworkOrder => Format::NetworkOrder,
        r#type::Format::Ipv4 => Format::Ipv4,
        r#type::Format::Ipv6 => Format::Ipv6,
        r#type::Format::Mac => Format::Mac,
        r#type::Format::TimeNs => Format::TimeNs,
        r#type::Format::DurationNs => Format::DurationNs,
        r#type::Format::Interface => Format::Interface,
        r#type::Format::Task => Format::Task,
        r#type::Format::Cgroup => Format::Cgroup,
    }
}

fn fields(messages: &[Field]) -> Result<Vec<FieldDesc>, Error> {
    messages.iter().map(field).collect()
}

fn field(message: &Field) -> Result<FieldDesc, Error> {
    let in_bounds = message.bit_size <= MAX_BITS && message.bit_offset.checked_add(message.bit_size).is_some();
    if !in_bounds {
        return Err(Error::Schema("a bit field beyond all bounds"));
    }
    let desc = type_desc(message.r#type.as_ref().ok_or(Error::Schema("a field without a type"))?)?;
    Ok(FieldDesc { name: message.name.clone(), desc, bit_offset: message.bit_offset, bit_size: message.bit_size })
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_node_agent::grpc::frames::type_message;

    fn desc(kind: TypeKind, name: &str, size: u32) -> TypeDesc {
        TypeDesc { kind, name: name.into(), size }
    }

    fn shown(desc: TypeDesc, format: Format) -> TypeDesc {
        TypeDesc { name: desc.name.shown_as(format), ..desc }
    }

    fn field(name: &str, desc: TypeDesc, bit_offset: u32, bit_size: u32) -> FieldDesc {
        FieldDesc { name: name.into(), desc, bit_offset, bit_size }
    }

    #[test]
    fn every_type_goes_to_the_wire_and_comes_back() {
        let mut all = vec![
            desc(TypeKind::Uint, "__u64", 8),
            desc(TypeKind::Int, "int", 4),
            desc(TypeKind::Bool, "bool", 1),
            desc(TypeKind::Char, "char", 1),
            desc(TypeKind::Float, "double", 8),
            desc(TypeKind::Pointer, "", 8),
            desc(TypeKind::Enum { signed: true, values: vec![("A".into(), -1), ("B".into(), i64::MAX)] }, "e", 4),
            desc(TypeKind::Enum { signed: false, values: vec![] }, "", 8),
            shown(desc(TypeKind::Uint, "__be32", 4), Format::NetworkOrder),
            shown(desc(TypeKind::Uint, "__be32", 4), Format::Ipv4),
            shown(desc(TypeKind::Struct(vec![]), "in6_addr", 16), Format::Ipv6),
            shown(TypeDesc::bytes(6), Format::Mac),
            shown(desc(TypeKind::Uint, "__u64", 8), Format::TimeNs),
            shown(desc(TypeKind::Int, "__s64", 8), Format::DurationNs),
            shown(desc(TypeKind::Uint, "__u32", 4), Format::Interface),
            shown(desc(TypeKind::Uint, "__u32", 4), Format::Task),
            shown(desc(TypeKind::Uint, "__u64", 8), Format::Cgroup),
            TypeDesc::bytes(0),
            TypeDesc::bytes(77),
        ];
        let array = |element: &TypeDesc| TypeKind::Array { element: Box::new(element.clone()), count: 3 };
        all.extend(all.clone().iter().map(|d| desc(array(d), "", d.size * 3)));
        let members: Vec<FieldDesc> =
            all.iter().enumerate().map(|(i, d)| field(&format!("m{i}"), d.clone(), i as u32 * 64, 0)).collect();
        let inner = desc(TypeKind::Union(members.clone()), "", 64);
        let bits = field("flags", desc(TypeKind::Uint, "u32", 4), 3, 5);
        let outer = [vec![field("", inner.clone(), 0, 0), bits], members].concat();
        all.extend([inner, desc(TypeKind::Struct(outer), "outer", 4096), desc(TypeKind::Struct(vec![]), "", 0)]);
        for desc in all {
            let back = type_desc(&type_message(&desc)).unwrap();
            // Equality leaves formats out; the text has them.
            assert_eq!(format!("{back:?}"), format!("{desc:?}"));
            // What the agent decodes, the client decodes alike.
            let bytes: Vec<u8> = (0..=255).cycle().take(desc.size as usize).collect();
            assert_eq!(back.decode(&bytes), desc.decode(&bytes));
        }
    }

    #[test]
    fn what_a_newer_agent_says_is_shown_more_plainly() {
        let mut message = type_message(&desc(TypeKind::Uint, "__u32", 4));
        message.format = 99;
        assert_eq!(type_desc(&message).unwrap().decode(&[1, 0, 0, 0]), 1);
        message.kind = 99;
        assert_eq!(type_desc(&message).unwrap().decode(&[1, 0, 0, 0]), "0x01000000");
    }

    #[test]
    fn a_format_that_does_not_fit_is_left_out() {
        let message = type_message(&shown(desc(TypeKind::Uint, "__u64", 8), Format::Mac));
        assert_eq!(type_desc(&message).unwrap().decode(&[7, 0, 0, 0, 0, 0, 0, 0]), 7);
    }

    #[test]
    fn what_would_break_decoding_is_refused() {
        let mut huge = type_message(&desc(TypeKind::Int, "", 4));
        huge.size = 0;
        assert!(type_desc(&huge).is_err());
        let bits = field("x", desc(TypeKind::Uint, "", 4), u32::MAX, 5);
        assert!(type_desc(&type_message(&desc(TypeKind::Struct(vec![bits]), "", 4))).is_err());
        let mut array = type_message(&desc(TypeKind::Array { element: Box::new(TypeDesc::bytes(1)), count: 1 }, "", 1));
        array.element = None;
        assert!(type_desc(&array).is_err());
        assert!(type_desc(&Type::default()).is_err());
    }
}
