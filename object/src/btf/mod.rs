//! BTF, the kernel's type information (Documentation/bpf/btf.rst), read in place.
//!
//! **Guarantees.** After [`Btf::parse`] every type id and name offset in the data is in range, so that lookups need no
//! further checks. Walks along types are bounded: chains of modifiers at 64, nesting at 32.

pub mod compat;
pub mod decode;
pub mod desc;
mod duration;
pub mod encode;
pub mod ext;
pub mod filter;
pub mod format;
pub(crate) mod nesting;
pub mod percpu;
pub mod print;
pub mod rate;
pub mod sanitize;
pub mod signature;

use std::collections::HashMap;

use crate::bytes::{Reader, cstr};
use crate::error::ObjectError;

/// BTF kinds, numbered as in include/uapi/linux/btf.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    Void = 0,
    Int = 1,
    Ptr = 2,
    Array = 3,
    Struct = 4,
    Union = 5,
    Enum = 6,
    Fwd = 7,
    Typedef = 8,
    Volatile = 9,
    Const = 10,
    Restrict = 11,
    Func = 12,
    FuncProto = 13,
    Var = 14,
    Datasec = 15,
    Float = 16,
    DeclTag = 17,
    TypeTag = 18,
    Enum64 = 19,
}

impl Kind {
    fn from_info(info: u32) -> Option<Self> {
        use Kind::*;
        const ALL: [Kind; 20] = [
            Void, Int, Ptr, Array, Struct, Union, Enum, Fwd, Typedef, Volatile, Const, Restrict, Func, FuncProto, Var,
            Datasec, Float, DeclTag, TypeTag, Enum64,
        ];
        ALL.get((info >> 24 & 31) as usize).copied()
    }
    /// Bytes that follow the 12 of the common header.
    fn trailer(self, vlen: usize) -> usize {
        match self {
            Kind::Int | Kind::Var | Kind::DeclTag => 4,
            Kind::Array => 12,
            Kind::Struct | Kind::Union | Kind::Datasec | Kind::Enum64 => 12 * vlen,
            Kind::Enum | Kind::FuncProto => 8 * vlen,
            _ => 0,
        }
    }
    /// Not a type of a value: cannot stand where a type is referred to.
    fn is_declaration(self) -> bool {
        matches!(self, Kind::Func | Kind::Var | Kind::Datasec | Kind::DeclTag)
    }
}

/// A member of a struct or union.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    /// Empty for an anonymous struct or union.
    pub name: &'a str,
    pub type_id: u32,
    pub bit_offset: u32,
    /// 0 when it is not a bit field.
    pub bit_size: u32,
}

/// A variable of a data section.
#[derive(Clone, Copy, Debug)]
pub struct SectionVar {
    /// A `Var`, or a `Func` in `.ksyms`.
    pub type_id: u32,
    pub offset: u32,
    pub size: u32,
}

/// Parsed BTF data. Type id 0 is `void`.
#[derive(Clone, Debug)]
pub struct Btf {
    data: Vec<u8>,
    /// Where each type starts in `data`; [0] is unused.
    offsets: Vec<u32>,
    types_end: usize,
    strings: std::ops::Range<usize>,
}

impl Btf {
    /// Parses and validates.
    pub fn parse(data: &[u8]) -> Result<Self, ObjectError> {
        let bad = |reason: String| ObjectError::BadBtf { reason };
        let r = Reader::new(data);
        if r.u16(0)? != 0xeb9f || data.get(2) != Some(&1) {
            return Err(bad("the magic or version is wrong".into()));
        }
        let header = r.u32(4)? as usize;
        let [types, types_len, strings, strings_len] =
            [r.u32(8)?, r.u32(12)?, r.u32(16)?, r.u32(20)?].map(|v| v as usize);
        let end = |offset: usize, len: usize| header.checked_add(offset).and_then(|v| v.checked_add(len));
        let (Some(types_end), Some(strings_end)) = (end(types, types_len), end(strings, strings_len)) else {
            return Err(bad("its sections lie outside of it".into()));
        };
        if header < 24 || types_end > data.len() || strings_end > data.len() || strings_len == 0 {
            return Err(bad("its sections lie outside of it".into()));
        }
        let strings = header + strings..strings_end;
        if data[strings.start] != 0 || data[strings.end - 1] != 0 {
            return Err(bad("its strings do not begin and end with NUL".into()));
        }
        let mut offsets = vec![0u32];
        let mut at = header + types;
        while at < types_end {
            let info = r.u32(at + 4)?;
            let kind = Kind::from_info(info)
                .filter(|k| *k != Kind::Void)
                .ok_or_else(|| bad(format!("type [{}] has the unknown kind {}", offsets.len(), info >> 24 & 31)))?;
            offsets.push(at as u32);
            at += 12 + kind.trailer((info & 0xffff) as usize);
        }
        if at != types_end {
            return Err(bad("its last type reaches past the types' end".into()));
        }
        let btf = Btf { data: data.to_vec(), offsets, types_end, strings };
        for id in 1..btf.len() {
            btf.check(id)?;
        }
        Ok(btf)
    }

    fn check(&self, id: u32) -> Result<(), ObjectError> {
        let bad = |what: &str| Err(ObjectError::BadBtf { reason: format!("type [{id}] {what}") });
        let at = self.at(id);
        let strings = &self.data[self.strings.clone()];
        let name_ok = |offset: u32| cstr(strings, offset as usize).is_ok();
        let is_type = |t: u32| t == 0 || t < self.len() && !self.kind(t).is_declaration();
        if !name_ok(self.word(at)) {
            return bad("has a name outside the strings");
        }
        let vlen = self.vlen(id);
        let ok = match self.kind(id) {
            Kind::Void | Kind::Fwd | Kind::Float => true,
            Kind::Int => matches!(self.word(at + 8), 1 | 2 | 4 | 8 | 16),
            Kind::Ptr | Kind::Typedef | Kind::Volatile | Kind::Const | Kind::Restrict | Kind::TypeTag | Kind::Var => {
                is_type(self.word(at + 8))
            }
            Kind::Array => is_type(self.word(at + 12)) && is_type(self.word(at + 16)),
            Kind::Func => {
                let proto = self.word(at + 8);
                proto < self.len() && self.kind(proto) == Kind::FuncProto
            }
            Kind::DeclTag => self.word(at + 8) < self.len(),
            Kind::FuncProto => {
                is_type(self.word(at + 8))
                    && (0..vlen).all(|i| name_ok(self.word(at + 12 + 8 * i)) && is_type(self.word(at + 16 + 8 * i)))
            }
            Kind::Struct | Kind::Union => {
                (0..vlen).all(|i| name_ok(self.word(at + 12 + 12 * i)) && is_type(self.word(at + 16 + 12 * i)))
            }
            Kind::Enum => {
                matches!(self.word(at + 8), 1 | 2 | 4 | 8) && (0..vlen).all(|i| name_ok(self.word(at + 12 + 8 * i)))
            }
            Kind::Enum64 => {
                matches!(self.word(at + 8), 1 | 2 | 4 | 8) && (0..vlen).all(|i| name_ok(self.word(at + 12 + 12 * i)))
            }
            Kind::Datasec => (0..vlen).all(|i| {
                let var = self.word(at + 12 + 12 * i);
                var < self.len() && matches!(self.kind(var), Kind::Var | Kind::Func)
            }),
        };
        if ok { Ok(()) } else { bad("refers to what is not there") }
    }

    /// The raw data.
    pub fn bytes(&self) -> &[u8] {
        &self.data
    }
    /// Number of types, `void` included: ids are `0..len`.
    pub fn len(&self) -> u32 {
        self.offsets.len() as u32
    }
    /// No types at all.
    pub fn is_empty(&self) -> bool {
        self.offsets.len() <= 1
    }

    fn at(&self, id: u32) -> usize {
        self.offsets.get(id as usize).map_or(0, |o| *o as usize)
    }
    fn word(&self, at: usize) -> u32 {
        Reader::new(&self.data).u32(at).unwrap_or(0)
    }
    fn info(&self, id: u32) -> u32 {
        if id == 0 { 0 } else { self.word(self.at(id) + 4) }
    }
    fn vlen(&self, id: u32) -> usize {
        (self.info(id) & 0xffff) as usize
    }
    /// The kind; `Void` for ids out of range.
    pub fn kind(&self, id: u32) -> Kind {
        Kind::from_info(self.info(id)).unwrap_or(Kind::Void)
    }
    /// The string at an offset of the string section.
    pub fn string(&self, offset: u32) -> &str {
        cstr(&self.data[self.strings.clone()], offset as usize).unwrap_or("")
    }
    /// The type's name; empty for `void` and anonymous types.
    pub fn name(&self, id: u32) -> &str {
        if id == 0 { "" } else { self.string(self.word(self.at(id))) }
    }
    /// What a pointer, typedef, modifier, variable or function refers to; the element of an array.
    pub fn target(&self, id: u32) -> u32 {
        let at = self.at(id);
        match self.kind(id) {
            Kind::Array => self.word(at + 12),
            Kind::Void
            | Kind::Struct
            | Kind::Union
            | Kind::Int
            | Kind::Float
            | Kind::Enum
            | Kind::Enum64
            | Kind::Datasec => 0,
            _ => self.word(at + 8),
        }
    }
    /// The type behind typedefs, qualifiers and type tags.
    pub fn resolve(&self, mut id: u32) -> u32 {
        for _ in 0..64 {
            match self.kind(id) {
                Kind::Typedef | Kind::Volatile | Kind::Const | Kind::Restrict | Kind::TypeTag => id = self.target(id),
                _ => return id,
            }
        }
        0
    }
    /// Number of elements of an array.
    pub fn array_len(&self, id: u32) -> u32 {
        if self.kind(id) == Kind::Array { self.word(self.at(id) + 20) } else { 0 }
    }
    /// A variable or function that is declared here and defined elsewhere (BTF_VAR_GLOBAL_EXTERN, BTF_FUNC_EXTERN).
    pub fn is_extern(&self, id: u32) -> bool {
        match self.kind(id) {
            Kind::Var => self.word(self.at(id) + 12) == 2,
            Kind::Func => self.vlen(id) == 2,
            _ => false,
        }
    }
    /// Bytes of a value of this type; `None` when it has no size.
    pub fn size(&self, id: u32) -> Option<u64> {
        let mut factor = 1u64;
        let mut id = self.resolve(id);
        for _ in 0..32 {
            match self.kind(id) {
                Kind::Array => {
                    factor = factor.checked_mul(u64::from(self.array_len(id)))?;
                    id = self.resolve(self.target(id));
                }
                Kind::Int | Kind::Struct | Kind::Union | Kind::Enum | Kind::Enum64 | Kind::Float | Kind::Datasec => {
                    return factor.checked_mul(u64::from(self.word(self.at(id) + 8)));
                }
                Kind::Ptr => return factor.checked_mul(8),
                _ => return None,
            }
        }
        None
    }
    /// Integer encoding: (signed, char, bool, bits).
    pub fn int_encoding(&self, id: u32) -> (bool, bool, bool, u32) {
        let word = self.word(self.at(id) + 12);
        let encoding = word >> 24;
        (encoding & 1 != 0, encoding & 2 != 0, encoding & 4 != 0, word & 0xff)
    }
    /// Where an integer's bits begin in its bytes: not at 0 in bit fields of old compilers.
    pub fn int_offset(&self, id: u32) -> u32 {
        self.word(self.at(id) + 12) >> 16 & 0xff
    }
    /// The member or parameter that a declaration tag is on; `None` when it is on the whole.
    pub fn tagged_member(&self, id: u32) -> Option<u32> {
        (self.kind(id) == Kind::DeclTag).then(|| self.word(self.at(id) + 12)).filter(|index| *index != u32::MAX)
    }
    /// Members of a struct or union, in order.
    pub fn members(&self, id: u32) -> impl Iterator<Item = Member<'_>> {
        let at = self.at(id);
        let info = self.info(id);
        let count = if matches!(self.kind(id), Kind::Struct | Kind::Union) { self.vlen(id) } else { 0 };
        let bitfields = info >> 31 == 1;
        (0..count).map(move |i| {
            let m = at + 12 + 12 * i;
            let offset = self.word(m + 8);
            Member {
                name: self.string(self.word(m)),
                type_id: self.word(m + 4),
                bit_offset: if bitfields { offset & 0xff_ffff } else { offset },
                bit_size: if bitfields { offset >> 24 } else { 0 },
            }
        })
    }
    /// Names and types of a prototype's parameters.
    pub fn parameters(&self, id: u32) -> impl ExactSizeIterator<Item = (&str, u32)> {
        let at = self.at(id);
        let count = if self.kind(id) == Kind::FuncProto { self.vlen(id) } else { 0 };
        (0..count).map(move |i| (self.string(self.word(at + 12 + 8 * i)), self.word(at + 16 + 8 * i)))
    }
    /// Enum values: (name, value); the second of the pair says whether they are signed.
    pub fn enum_values(&self, id: u32) -> (Vec<(&str, i64)>, bool) {
        let at = self.at(id);
        let signed = self.info(id) >> 31 == 1;
        let values = match self.kind(id) {
            Kind::Enum => (0..self.vlen(id))
                .map(|i| {
                    let v = self.word(at + 16 + 8 * i);
                    (self.string(self.word(at + 12 + 8 * i)), if signed { i64::from(v as i32) } else { i64::from(v) })
                })
                .collect(),
            Kind::Enum64 => (0..self.vlen(id))
                .map(|i| {
                    let e = at + 12 + 12 * i;
                    let v = u64::from(self.word(e + 4)) | u64::from(self.word(e + 8)) << 32;
                    (self.string(self.word(e)), v as i64)
                })
                .collect(),
            _ => Vec::new(),
        };
        (values, signed)
    }
    /// Variables of a data section.
    pub fn section_vars(&self, id: u32) -> Vec<SectionVar> {
        let at = self.at(id);
        let count = if self.kind(id) == Kind::Datasec { self.vlen(id) } else { 0 };
        (0..count)
            .map(|i| {
                let v = at + 12 + 12 * i;
                SectionVar { type_id: self.word(v), offset: self.word(v + 4), size: self.word(v + 8) }
            })
            .collect()
    }
    /// The first type of that name and kind.
    pub fn find(&self, name: &str, kind: Kind) -> Option<u32> {
        (1..self.len()).find(|id| self.kind(*id) == kind && self.name(*id) == name)
    }
    /// The first type of each name, of that kind.
    pub(crate) fn by_name(&self, kind: Kind) -> HashMap<&str, u32> {
        let mut ids = HashMap::new();
        for id in (1..self.len()).filter(|id| self.kind(*id) == kind) {
            ids.entry(self.name(id)).or_insert(id);
        }
        ids
    }
    /// An enum as one of 64-bit values, and the other way round, for [`Btf::with`]: same name, same names of values. Values
    /// are cut where they have to be.
    pub(crate) fn other_enum(&self, id: u32) -> Vec<u8> {
        let (values, signed) = self.enum_values(id);
        let wide = self.kind(id) == Kind::Enum;
        let kind = if wide { Kind::Enum64 } else { Kind::Enum } as u32;
        let stride = if wide { 8 } else { 12 };
        let info = u32::from(signed) << 31 | kind << 24 | values.len() as u32;
        let mut words = vec![self.word(self.at(id)), info, if wide { 8 } else { 4 }];
        for (i, (_, value)) in values.iter().enumerate() {
            words.extend([self.word(self.at(id) + 12 + stride * i), *value as u32]);
            words.extend(wide.then_some((*value >> 32) as u32));
        }
        words.into_iter().flat_map(u32::to_le_bytes).collect()
    }
    /// The data with more types at the end, and one more string; its offset among the strings is returned.
    pub(crate) fn with(&self, more: &[u8], text: &str) -> (Vec<u8>, u32) {
        (self.followed_by(more, &[text.as_bytes(), &[0]].concat()), self.strings.len() as u32)
    }
    /// These types with those of a kernel module after them, whose ids and names count on from these.
    pub fn extended(&self, module: &[u8]) -> Result<Btf, ObjectError> {
        let bad = || ObjectError::BadBtf { reason: "a module's sections lie outside of it".into() };
        let r = Reader::new(module);
        let header = r.u32(4)? as usize;
        let section = |at: usize| -> Result<&[u8], ObjectError> {
            let start = header.checked_add(r.u32(at)? as usize).ok_or_else(bad)?;
            let end = start.checked_add(r.u32(at + 4)? as usize).ok_or_else(bad)?;
            module.get(start..end).ok_or_else(bad)
        };
        Btf::parse(&self.followed_by(section(8)?, section(16)?))
    }
    /// The data with more types and strings.
    fn followed_by(&self, more_types: &[u8], more_strings: &[u8]) -> Vec<u8> {
        const HEADER: usize = 24;
        let types = &self.data[self.offsets.get(1).map_or(self.types_end, |o| *o as usize)..self.types_end];
        let strings = &self.data[self.strings.clone()];
        let types_len = (types.len() + more_types.len()) as u32;
        let strings_len = (strings.len() + more_strings.len()) as u32;
        let mut out = Vec::with_capacity(HEADER + types_len as usize + strings_len as usize);
        for word in [0x0001_eb9f, HEADER as u32, 0, types_len, types_len, strings_len] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        for part in [types, more_types, strings, more_strings] {
            out.extend_from_slice(part);
        }
        out
    }
    /// Changes an array's length in data made by [`Btf::with`].
    pub(crate) fn set_array_len(&self, data: &mut [u8], array: u32, len: u32) {
        let first = self.offsets.get(1).map_or(0, |o| *o as usize);
        let at = 24 + self.at(array) - first + 20;
        if let Some(slot) = data.get_mut(at..at + 4) {
            slot.copy_from_slice(&len.to_le_bytes());
        }
    }
}
