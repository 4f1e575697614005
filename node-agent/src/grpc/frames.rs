//! Types and values on the wire.

use skep_object::btf::desc::{FieldDesc, TypeDesc, TypeKind};
use skep_object::btf::format::Format;
use skep_proto::v1::r#type::{self, Kind};
use skep_proto::v1::{EnumValue, Field, Type};

/// A type's description as a message.
pub fn type_message(desc: &TypeDesc) -> Type {
    let mut message = Type { name: desc.name.to_string(), size: desc.size, ..Type::default() };
    let kind = match &desc.kind {
        TypeKind::Uint => Kind::Uint,
        TypeKind::Int => Kind::Int,
        TypeKind::Bool => Kind::Bool,
        TypeKind::Char => Kind::Char,
        TypeKind::Float => Kind::Float,
        TypeKind::Pointer => Kind::Pointer,
        TypeKind::Bytes => Kind::Bytes,
        TypeKind::Enum { signed, values } => {
            message.signed = *signed;
            message.values =
                values.iter().map(|(name, value)| EnumValue { name: name.clone(), value: *value }).collect();
            Kind::Enum
        }
        TypeKind::Struct(fields) => {
            message.fields = fields.iter().map(field_message).collect();
            Kind::Struct
        }
        TypeKind::Union(fields) => {
            message.fields = fields.iter().map(field_message).collect();
            Kind::Union
        }
        TypeKind::Array { element, count } => {
            message.element = Some(Box::new(type_message(element)));
            message.count = *count;
            Kind::Array
        }
    };
    message.set_kind(kind);
    message.set_format(format_message(desc.name.format));
    message
}

fn format_message(format: Format) -> r#type::Format {
    match format {
        Format::Plain => r#type::Format::Unspecified,
        Format::NetworkOrder => r#type::Format::NetworkOrder,
        Format::Ipv4 => r#type::Format::Ipv4,
        Format::Ipv6 => r#type::Format::Ipv6,
        Format::Mac => r#type::Format::Mac,
        Format::TimeNs => r#type::Format::TimeNs,
        Format::DurationNs => r#type::Format::DurationNs,
        Format::Interface => r#type::Format::Interface,
        Format::Task => r#type::Format::Task,
        Format::Cgroup => r#type::Format::Cgroup,
    }
}

fn field_message(field: &FieldDesc) -> Field {
    Field {
        name: field.name.clone(),
        r#type: Some(type_message(&field.desc)),
        bit_offset: field.bit_offset,
        bit_size: field.bit_size,
    }
}
