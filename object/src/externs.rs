//! What an object leaves to the kernel to define: functions (kfuncs), variables, addresses, and values of the kernel's
//! configuration, as libbpf's `__ksym` and `__kconfig` declare them.
//!
//! Externs stand in libbpf's order: an instruction that calls a weak function that is not there carries the number of its
//! extern, and the kernel's tag of a program is of all its instructions.

use std::collections::HashMap;

use crate::btf::{Btf, Kind};
use crate::elf::{Elf, Symbol};
use crate::map::{Data, MapDef, map_type};

/// The name of the map that holds the kernel's configuration.
pub const CONFIG_MAP: &str = ".kconfig";
const SYMBOLS: &str = ".ksyms";
/// Longest value of the configuration, in bytes; there may be as many as symbols.
const MAX_VALUE: u32 = 1024;
/// The enum by which libbpf tells a tristate from a number.
const TRISTATE: &str = "libbpf_tristate";

/// Something that the kernel defines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extern {
    pub name: String,
    /// A program runs without it: it reads zero, or must not call.
    pub weak: bool,
    pub what: What,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A value of the kernel's configuration, or about the kernel.
    Config(ConfigValue),
    /// A kernel function; the id of its prototype in the object's BTF.
    Function(u32),
    /// A variable of the kernel; its type's id in the object's BTF.
    Variable(u32),
    /// An address of which nothing is known but the symbol.
    Address,
    /// Nothing that a kernel defines, and why.
    Unknown(&'static str),
}

/// Where a value of the configuration is expected, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigValue {
    /// In the map [`CONFIG_MAP`].
    pub offset: u32,
    /// Bytes.
    pub size: u32,
    align: u32,
    pub form: Form,
}

/// How a value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Bool,
    /// One byte: `y`, `m`, `n`, or a small number.
    Char,
    Integer {
        signed: bool,
    },
    /// 0: n, 1: y, 2: m.
    Tristate,
    /// With a NUL at its end.
    Text,
}

impl ConfigValue {
    /// At the map's begin.
    pub fn new(form: Form, size: u32) -> Self {
        let align = if form == Form::Text { 1 } else { size.next_power_of_two() };
        ConfigValue { offset: 0, size, align, form }
    }
}

impl Extern {
    /// The kernel's name for it: what follows `___` is the object's own.
    pub fn kernel_name(&self) -> &str {
        let bytes = self.name.as_bytes();
        let flavor = bytes.windows(5).rposition(|w| w[0] != b'_' && &w[1..4] == b"___" && w[4] != b'_');
        flavor.map_or(&self.name, |at| &self.name[..=at])
    }

    /// It is found by the kernel's types.
    pub fn is_typed(&self) -> bool {
        matches!(self.what, What::Function(_) | What::Variable(_))
    }
}

/// All externs of an object, in libbpf's order.
pub fn externs(elf: &Elf, btf: Option<&Btf>) -> Vec<Extern> {
    let declared = btf.map(Declared::of);
    let undefined = elf.symbols.iter().filter(|s| s.is_extern());
    let mut externs: Vec<Extern> = undefined.map(|symbol| described(symbol, btf.zip(declared.as_ref()))).collect();
    externs.sort_by(|a, b| rank(a).cmp(&rank(b)).then_with(|| a.name.cmp(&b.name)));
    externs.dedup_by(|a, b| a.name == b.name);
    let mut end = 0u32;
    for value in
        externs.iter_mut().filter_map(|e| if let What::Config(value) = &mut e.what { Some(value) } else { None })
    {
        value.offset = end.next_multiple_of(value.align);
        end = value.offset.saturating_add(value.size);
    }
    externs
}

/// Configuration before symbols; of it what is aligned most, then what is smallest.
fn rank(of: &Extern) -> (u8, std::cmp::Reverse<u32>, u32) {
    match &of.what {
        What::Config(value) => (0, std::cmp::Reverse(value.align), value.size),
        What::Unknown(_) => (2, std::cmp::Reverse(0), 0),
        _ => (1, std::cmp::Reverse(0), 0),
    }
}

/// Declarations of the object's BTF, by name: the type, and the section that it is in.
struct Declared<'a>(HashMap<&'a str, (u32, &'a str)>);

impl<'a> Declared<'a> {
    fn of(btf: &'a Btf) -> Self {
        let mut all = HashMap::new();
        for (section, id) in btf.by_name(Kind::Datasec) {
            for var in btf.section_vars(id).into_iter().filter(|var| btf.is_extern(var.type_id)) {
                all.entry(btf.name(var.type_id)).or_insert((var.type_id, section));
            }
        }
        Declared(all)
    }
}

fn described(symbol: &Symbol, types: Option<(&Btf, &Declared<'_>)>) -> Extern {
    let what = match types {
        None => What::Unknown("the object has no type information; build it with -g"),
        Some((btf, declared)) => match declared.0.get(symbol.name.as_str()) {
            None => What::Unknown("it is declared without `__ksym` or `__kconfig`"),
            Some((id, CONFIG_MAP)) => config_value(btf, btf.target(*id)).map_or(
                What::Unknown("a value of the kernel's configuration is a bool, a char, an integer, an enum libbpf_tristate or up to 1,024 char"),
                What::Config,
            ),
            Some((id, SYMBOLS)) if btf.kind(*id) == Kind::Func => What::Function(btf.target(*id)),
            Some((id, SYMBOLS)) => match btf.resolve(btf.target(*id)) {
                0 => What::Address,
                of => What::Variable(of),
            },
            Some(_) => What::Unknown("it is declared in a section that is neither .ksyms nor .kconfig"),
        },
    };
    Extern { name: symbol.name.clone(), weak: symbol.is_weak(), what }
}

fn config_value(btf: &Btf, type_id: u32) -> Option<ConfigValue> {
    let id = btf.resolve(type_id);
    let size = btf.size(id).and_then(|size| u32::try_from(size).ok()).filter(|size| (1..=MAX_VALUE).contains(size))?;
    let is_char = |id: u32| btf.kind(id) == Kind::Int && !btf.int_encoding(id).2 && btf.size(id) == Some(1);
    let form = match btf.kind(id) {
        Kind::Int if btf.int_encoding(id).2 => Form::Bool,
        Kind::Int if size == 1 => Form::Char,
        Kind::Int if size <= 8 => Form::Integer { signed: btf.int_encoding(id).0 },
        Kind::Enum | Kind::Enum64 if btf.name(id) == TRISTATE => Form::Tristate,
        Kind::Array if is_char(btf.resolve(btf.target(id))) => Form::Text,
        _ => return None,
    };
    Some(ConfigValue::new(form, size))
}

/// The map of the kernel's configuration, all zero; `None`: the object asks for nothing of it.
pub fn config_map(externs: &[Extern], btf: Option<&Btf>) -> Option<MapDef> {
    let values = externs.iter().filter_map(|e| if let What::Config(value) = &e.what { Some(value) } else { None });
    let size = values.map(|value| value.offset.saturating_add(value.size)).max()?;
    Some(MapDef {
        name: CONFIG_MAP.to_owned(),
        // It is in no section of the file.
        section: usize::MAX,
        map_type: map_type::ARRAY,
        key_size: 4,
        value_size: size,
        max_entries: 1,
        flags: Data::READ_ONLY_FLAGS,
        value_type: btf.and_then(|btf| btf.find(CONFIG_MAP, Kind::Datasec)).unwrap_or(0),
        data: Some(Data { bytes: vec![0; size as usize], read_only: true }),
        ..MapDef::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_three_underscores_is_the_objects_own() {
        let of = |name: &str| {
            let of = Extern { name: name.into(), weak: true, what: What::Address };
            of.kernel_name().to_owned()
        };
        for (name, kernel) in [
            ("bpf_rdonly_cast", "bpf_rdonly_cast"),
            ("bpf_x___v2", "bpf_x"),
            ("a___b___c", "a___b"),
            ("____x", "____x"),
            ("x___", "x___"),
            ("x____y", "x____y"),
            ("", ""),
        ] {
            assert_eq!(of(name), kernel);
        }
    }
}
