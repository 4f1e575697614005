//! Types described for decoding: what travels ahead of raw map contents, so that any client can read them.
//!
//! **Guarantees.** A description is bounded in depth, nodes and text, and so is what decoding by it makes of a value,
//! whatever BTF it came from. What lies beyond the bounds is shown as bytes.

use std::fmt;
use std::ops::Deref;

use super::format::{Format, Tags};
use super::{Btf, Kind, Member};

/// How deep types are followed.
const MAX_DEPTH: u32 = 32;
/// Most types in one description.
const MAX_NODES: u32 = 4096;
/// Most bytes of names in one description, with `PART` for each member and enum value.
const MAX_TEXT: usize = 1 << 20;
const PART: usize = 16;
/// Members of unions lie over each other: each shows the same bytes again. So often may a value's bytes be shown, or
/// this many in all; and so often those beyond it, by flexible arrays of a record.
const MAX_SHOWN: (u64, u64) = (16, 1 << 16);

/// A type, described well enough to decode a value's bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct TypeDesc {
    pub kind: TypeKind,
    /// The type's own name, the outermost of its typedefs; empty when it has none.
    pub name: TypeName,
    /// Bytes.
    pub size: u32,
}

/// What a type is called, and what names and tags say about how its values are shown.
///
/// Names are equal when their texts are: a tag that is added to a type does not make it another type, so that a kept
/// map keeps its contents.
#[derive(Clone, Debug, Default)]
pub struct TypeName {
    text: String,
    pub format: Format,
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
        /// 0 for a flexible array member: as many as there is room for.
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

impl TypeName {
    /// The same name, shown in another way.
    pub fn shown_as(self, format: Format) -> Self {
        TypeName { format, ..self }
    }
}

impl<T: Into<String>> From<T> for TypeName {
    fn from(text: T) -> Self {
        TypeName { text: text.into(), format: Format::Plain }
    }
}

impl Deref for TypeName {
    type Target = str;
    fn deref(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for TypeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for TypeName {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl PartialEq<TypeName> for &str {
    fn eq(&self, other: &TypeName) -> bool {
        *self == other.text
    }
}

impl TypeDesc {
    /// `size` bytes of unknown meaning.
    pub fn bytes(size: u32) -> Self {
        TypeDesc { kind: TypeKind::Bytes, name: TypeName::default(), size }
    }

    /// Describes a type, or the type of a variable, of `btf`.
    pub fn of(btf: &Btf, id: u32) -> Self {
        let mut describer = Describer { btf, tags: Tags::of(btf), nodes: MAX_NODES, text: MAX_TEXT };
        describer.describe(id, 0).bounded()
    }

    /// Itself, or bytes where decoding would make far more of a value than it has bytes.
    pub fn bounded(self) -> Self {
        let (times, in_all) = MAX_SHOWN;
        let most = u64::from(self.size).saturating_mul(times).max(in_all);
        // Every byte of an array is shown, however large it is; what is shown more than once is in unions.
        if self.shown() > most || self.flexible() > times { TypeDesc::bytes(self.size) } else { self }
    }

    /// Members that are shown one by one; `None` where the whole is shown as one text, and for what has none.
    pub fn members(&self) -> Option<&[FieldDesc]> {
        match &self.kind {
            TypeKind::Struct(fields) | TypeKind::Union(fields) if self.name.format == Format::Plain => Some(fields),
            _ => None,
        }
    }

    /// A byte as integers go: neither text nor a truth value.
    pub(super) fn is_byte(&self) -> bool {
        self.size == 1 && matches!(self.kind, TypeKind::Uint | TypeKind::Int)
    }

    /// Bytes that decoding shows, each as often as it is shown.
    fn shown(&self) -> u64 {
        match &self.kind {
            TypeKind::Struct(fields) | TypeKind::Union(fields) => {
                let field = |f: &FieldDesc| if f.bit_size > 0 { 1 } else { f.desc.shown() };
                fields.iter().fold(1, |sum: u64, f| sum.saturating_add(field(f)))
            }
            TypeKind::Array { element, count } if element.size > 0 => {
                u64::from(*count).saturating_mul(element.shown()).saturating_add(1)
            }
            TypeKind::Array { .. } => 1,
            _ => u64::from(self.size).max(1),
        }
    }

    /// Arrays that go on to the end of a record.
    fn flexible(&self) -> u64 {
        match &self.kind {
            TypeKind::Array { count: 0, .. } => 1,
            TypeKind::Union(fields) => fields.iter().map(|f| f.desc.flexible()).sum(),
            TypeKind::Struct(fields) => fields.last().map_or(0, |f| f.desc.flexible()),
            _ => 0,
        }
    }

    /// Shows the value in another way, or its elements if it is a list; false where neither can be.
    fn show_as(&mut self, format: Format) -> bool {
        if let TypeKind::Array { element, .. } = &mut self.kind
            && element.show_as(format)
        {
            return true;
        }
        let fits = format.fits(self);
        if fits {
            self.name.format = format;
        }
        fits
    }
}

struct Describer<'a> {
    btf: &'a Btf,
    tags: Tags,
    /// What is left of the bounds.
    nodes: u32,
    text: usize,
}

impl Describer<'_> {
    fn describe(&mut self, id: u32, depth: u32) -> TypeDesc {
        let (resolved, name, formats) = self.unwrap(id);
        let size = self.btf.size(resolved).and_then(|s| u32::try_from(s).ok()).unwrap_or(0);
        if depth > MAX_DEPTH || self.nodes == 0 || !self.charge([name.as_str()]) {
            return TypeDesc::bytes(size);
        }
        self.nodes -= 1;
        let mut desc = TypeDesc { kind: self.kind(resolved, depth), name: name.into(), size };
        let _shown = formats.into_iter().any(|format| desc.show_as(format));
        desc
    }

    /// The type behind typedefs and qualifiers, its outermost name, and how names and tags on the way want it shown.
    fn unwrap(&self, mut id: u32) -> (u32, String, Vec<Format>) {
        let (mut name, mut formats) = ("", Vec::new());
        for _ in 0..64 {
            let kind = self.btf.kind(id);
            formats.extend(self.tags.of_type(id));
            match kind {
                // Their names are not the type's.
                Kind::TypeTag | Kind::Var => {}
                _ => {
                    let own = self.btf.name(id);
                    formats.extend(Format::of_name(kind, own));
                    name = if name.is_empty() { own } else { name };
                }
            }
            match kind {
                Kind::Typedef | Kind::Volatile | Kind::Const | Kind::Restrict | Kind::TypeTag | Kind::Var => {
                    id = self.btf.target(id)
                }
                _ => return (id, name.to_owned(), formats),
            }
        }
        (0, name.to_owned(), Vec::new())
    }

    fn kind(&mut self, id: u32, depth: u32) -> TypeKind {
        let btf = self.btf;
        match btf.kind(id) {
            Kind::Int => match btf.int_encoding(id) {
                (_, _, true, _) => TypeKind::Bool,
                // clang encodes `char` as a signed 8-bit integer of that name.
                (_, is_char, _, _) if (is_char || btf.name(id) == "char") && btf.size(id) == Some(1) => TypeKind::Char,
                (true, ..) => TypeKind::Int,
                _ => TypeKind::Uint,
            },
            Kind::Float => TypeKind::Float,
            Kind::Ptr => TypeKind::Pointer,
            Kind::Enum | Kind::Enum64 => {
                let (values, signed) = btf.enum_values(id);
                if !self.charge(values.iter().map(|(name, _)| *name)) {
                    return TypeKind::Bytes;
                }
                TypeKind::Enum { signed, values: values.into_iter().map(|(n, v)| (n.to_owned(), v)).collect() }
            }
            kind @ (Kind::Struct | Kind::Union) => {
                if !self.charge(btf.members(id).map(|m| m.name)) {
                    return TypeKind::Bytes;
                }
                let fields = (0u32..).zip(btf.members(id));
                let fields = fields.map(|(index, m)| self.field(m, self.tags.of_member(id, index), depth)).collect();
                if kind == Kind::Struct { TypeKind::Struct(fields) } else { TypeKind::Union(fields) }
            }
            Kind::Array => TypeKind::Array {
                element: Box::new(self.describe(btf.target(id), depth + 1)),
                count: btf.array_len(id),
            },
            Kind::Datasec => {
                let vars = btf.section_vars(id);
                if !self.charge(vars.iter().map(|v| btf.name(v.type_id))) {
                    return TypeKind::Bytes;
                }
                let field = |v: super::SectionVar| FieldDesc {
                    name: btf.name(v.type_id).to_owned(),
                    desc: self.describe(v.type_id, depth + 1),
                    bit_offset: v.offset.saturating_mul(8),
                    bit_size: 0,
                };
                TypeKind::Struct(vars.into_iter().map(field).collect())
            }
            _ => TypeKind::Bytes,
        }
    }

    fn field(&mut self, member: Member<'_>, tag: Option<Format>, depth: u32) -> FieldDesc {
        let mut desc = self.describe(member.type_id, depth + 1);
        let _shown = tag.is_some_and(|format| desc.show_as(format));
        let (mut bit_offset, mut bit_size) = (member.bit_offset, member.bit_size);
        // Old compilers describe a bit field by an integer that has fewer bits than its bytes.
        let int = self.btf.resolve(member.type_id);
        let (_, _, _, bits) = self.btf.int_encoding(int);
        if bit_size == 0 && self.btf.kind(int) == Kind::Int && bits != 0 && bits < desc.size.saturating_mul(8) {
            bit_offset = bit_offset.saturating_add(self.btf.int_offset(int));
            bit_size = bits;
        }
        FieldDesc { name: member.name.to_owned(), desc, bit_offset, bit_size }
    }

    /// Takes names off the bounds; false when there is no room for them.
    fn charge<'n>(&mut self, names: impl IntoIterator<Item = &'n str>) -> bool {
        let cost = names.into_iter().fold(0usize, |sum, name| sum.saturating_add(PART + name.len()));
        let left = self.text.checked_sub(cost);
        self.text = left.unwrap_or(0);
        left.is_some()
    }
}
