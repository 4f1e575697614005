//! Map definitions: BTF-defined ones in `.maps`, legacy ones in `maps`, and the data sections that become maps.

use std::collections::HashMap;

use crate::btf::{Btf, Kind};
use crate::bytes::Reader;
use crate::elf::Elf;
use crate::error::ObjectError;

/// BPF_MAP_TYPE_* of include/uapi/linux/bpf.h that this crate itself needs to know.
pub mod map_type {
    pub const ARRAY: u32 = 2;
    pub const PROG_ARRAY: u32 = 3;
    pub const PERF_EVENT_ARRAY: u32 = 4;
    pub const ARRAY_OF_MAPS: u32 = 12;
    pub const HASH_OF_MAPS: u32 = 13;
    pub const STRUCT_OPS: u32 = 26;
    pub const RINGBUF: u32 = 27;
}

/// Most maps of one object; one program can use 64.
const MAX_MAPS: usize = 1024;

const BPF_F_MMAPABLE: u32 = 1 << 10;
const BPF_F_RDONLY_PROG: u32 = 1 << 7;

/// A map that an object defines.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MapDef {
    pub name: String,
    /// Index of the section that holds the definition or the data.
    pub section: usize,
    /// Offset of the definition in its section; 0 for a data section.
    pub offset: u64,
    /// BPF_MAP_TYPE_*.
    pub map_type: u32,
    /// Bytes.
    pub key_size: u32,
    /// Bytes.
    pub value_size: u32,
    pub max_entries: u32,
    /// BPF_F_*.
    pub flags: u32,
    pub extra: u64,
    pub numa_node: Option<u32>,
    /// BTF type ids in the object's BTF; 0: none.
    pub key_type: u32,
    pub value_type: u32,
    /// The definition of the maps that this map of maps holds.
    pub inner: Option<Box<MapDef>>,
    /// What a data section's map starts with.
    pub data: Option<Data>,
    /// Offset of `.values` in the definition, where entries are given.
    pub values_offset: Option<u64>,
}

/// Initial contents of a data section.
#[derive(Clone, Debug, PartialEq)]
pub struct Data {
    pub bytes: Vec<u8>,
    /// Frozen before the programs are loaded, so that the verifier knows the values.
    pub read_only: bool,
}

impl Data {
    /// Flags of the map when it is read-only.
    pub(crate) const READ_ONLY_FLAGS: u32 = BPF_F_MMAPABLE | BPF_F_RDONLY_PROG;
}

/// Every map of the object.
pub fn maps(elf: &Elf, btf: Option<&Btf>) -> Result<Vec<MapDef>, ObjectError> {
    let mut maps = Vec::new();
    match (elf.section(".maps"), btf) {
        (Some(section), Some(btf)) => btf_maps(elf, section, btf, &mut maps)?,
        (Some(_), None) => {
            let reason = "it defines maps by BTF but carries none; build with -g (Rust: debuginfo=2 and --btf)";
            return Err(ObjectError::BadBtf { reason: reason.into() });
        }
        (None, _) => {}
    }
    let datasecs = btf.map(|btf| btf.by_name(Kind::Datasec)).unwrap_or_default();
    for (index, section) in elf.sections.iter().enumerate() {
        if section.name == "maps" || section.name.starts_with("maps/") {
            legacy_maps(elf, index, &mut maps)?;
        } else if let Some(map) = data_map(elf, index, &datasecs) {
            maps.push(map);
            few_enough(maps.len())?;
        }
    }
    Ok(maps)
}

fn few_enough(count: usize) -> Result<(), ObjectError> {
    if count <= MAX_MAPS {
        return Ok(());
    }
    Err(ObjectError::Malformed { reason: format!("it defines more than {MAX_MAPS} maps") })
}

/// Definitions that share bytes would share the entries in them too.
fn apart(elf: &Elf, section: usize) -> Result<(), ObjectError> {
    let symbols = elf.symbols.iter().filter(|s| s.section == Some(section) && s.is_object());
    let mut ranges: Vec<(u64, u64, &str)> = symbols.map(|s| (s.value, s.value + s.size, s.name.as_str())).collect();
    ranges.sort_unstable();
    match ranges.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        Some(pair) => {
            let reason = format!("its definition overlaps with that of {}", pair[1].2);
            Err(ObjectError::BadMap { map: pair[0].2.to_owned(), reason })
        }
        None => Ok(()),
    }
}

/// The section becomes a map of one value: `.data`, `.rodata`, `.bss` and what is named after them.
pub fn is_data_section(name: &str) -> bool {
    [".data", ".rodata", ".bss"].iter().any(|p| name == *p || name.strip_prefix(p).is_some_and(|r| r.starts_with('.')))
}

fn data_map(elf: &Elf, index: usize, datasecs: &HashMap<&str, u32>) -> Option<MapDef> {
    let section = &elf.sections[index];
    if !is_data_section(&section.name) || section.is_code() || section.size == 0 {
        return None;
    }
    let bytes = if section.is_nobits() { vec![0; section.size] } else { elf.bytes(index).to_vec() };
    let read_only = section.name.starts_with(".rodata");
    Some(MapDef {
        name: section.name.clone(),
        section: index,
        map_type: map_type::ARRAY,
        key_size: 4,
        value_size: u32::try_from(section.size).ok()?,
        max_entries: 1,
        flags: if read_only { Data::READ_ONLY_FLAGS } else { BPF_F_MMAPABLE },
        value_type: datasecs.get(section.name.as_str()).copied().unwrap_or(0),
        data: Some(Data { bytes, read_only }),
        ..MapDef::default()
    })
}

fn btf_maps(elf: &Elf, section: usize, btf: &Btf, maps: &mut Vec<MapDef>) -> Result<(), ObjectError> {
    let Some(datasec) = btf.find(".maps", Kind::Datasec) else {
        return Err(ObjectError::BadBtf { reason: "it has a .maps section that its BTF does not describe".into() });
    };
    apart(elf, section)?;
    let vars = btf.section_vars(datasec);
    few_enough(vars.len())?;
    for var in vars {
        let name = btf.name(var.type_id).to_owned();
        let bad = |reason: &str| ObjectError::BadMap { map: name.clone(), reason: reason.into() };
        let symbol = elf.symbols.iter().find(|s| s.section == Some(section) && s.is_object() && s.name == name);
        let symbol = symbol.ok_or_else(|| bad("it has no symbol"))?;
        if maps.iter().any(|m| m.name == name) {
            return Err(bad("it is defined twice"));
        }
        let mut map = definition(btf, btf.resolve(btf.target(var.type_id)), &name, false)?;
        map.section = section;
        map.offset = symbol.value;
        maps.push(map);
    }
    Ok(())
}

/// Reads one definition: a struct whose members' types carry the numbers (libbpf's convention).
fn definition(btf: &Btf, id: u32, name: &str, inner: bool) -> Result<MapDef, ObjectError> {
    let bad = |reason: String| ObjectError::BadMap { map: name.to_owned(), reason };
    let mut map = MapDef { name: name.to_owned(), ..MapDef::default() };
    if btf.kind(id) != Kind::Struct {
        return Err(bad("its definition is not a struct".into()));
    }
    for member in btf.members(id) {
        let field = member.name;
        let number = || number(btf, member.type_id).ok_or_else(|| bad(format!("its field {field} is not a number")));
        let number32 =
            || number().and_then(|n| u32::try_from(n).map_err(|_| bad(format!("its field {field} is too large"))));
        let pointee = || {
            let p = btf.resolve(member.type_id);
            if btf.kind(p) == Kind::Ptr {
                Ok(btf.target(p))
            } else {
                Err(bad(format!("its field {field} is not a pointer")))
            }
        };
        let sized = |id: u32| {
            btf.size(id)
                .and_then(|s| u32::try_from(s).ok())
                .ok_or_else(|| bad(format!("the type of its {field} has no size")))
        };
        match field {
            "type" => map.map_type = number32()?,
            "max_entries" => map.max_entries = number32()?,
            "map_flags" => map.flags = number32()?,
            "map_extra" => map.extra = number()?,
            "numa_node" => map.numa_node = Some(number32()?),
            "key_size" => map.key_size = number32()?,
            "value_size" => map.value_size = number32()?,
            "key" => {
                map.key_type = pointee()?;
                map.key_size = sized(map.key_type)?;
            }
            "value" => {
                map.value_type = pointee()?;
                map.value_size = sized(map.value_type)?;
            }
            // 1 asks for a pin under a name that all objects share; Skep pins every map, under the program's own name.
            "pinning" => match number()? {
                0 | 1 => {}
                n => return Err(bad(format!("its pinning {n} is unknown"))),
            },
            "values" if !inner => values(btf, member.type_id, member.bit_offset, &mut map)?,
            other => return Err(bad(format!("its definition has the unknown field {other}"))),
        }
    }
    if map.map_type == 0 {
        return Err(bad("its definition has no type".into()));
    }
    Ok(map)
}

/// `.values`: the definition of inner maps, or the programs of a program array.
fn values(btf: &Btf, type_id: u32, bit_offset: u32, map: &mut MapDef) -> Result<(), ObjectError> {
    let bad = |reason: &str| ObjectError::BadMap { map: map.name.clone(), reason: reason.into() };
    let array = btf.resolve(type_id);
    let pointer = btf.resolve(btf.target(array));
    if btf.kind(array) != Kind::Array || btf.kind(pointer) != Kind::Ptr {
        return Err(bad("its values are not an array of pointers"));
    }
    let element = btf.resolve(btf.target(pointer));
    if btf.kind(element) == Kind::FuncProto {
        if map.map_type != map_type::PROG_ARRAY {
            return Err(bad("only a program array can hold functions"));
        }
    } else {
        map.inner = Some(Box::new(definition(btf, element, &format!("{}.inner", map.name), true)?));
    }
    map.values_offset = Some(u64::from(bit_offset / 8));
    map.value_size = 4;
    if map.key_size == 0 {
        map.key_size = 4;
    }
    Ok(())
}

/// A number is encoded as the length of an array behind a pointer, or (enum style) as an enum's only value.
fn number(btf: &Btf, id: u32) -> Option<u64> {
    let id = btf.resolve(id);
    match btf.kind(id) {
        Kind::Ptr => {
            let array = btf.resolve(btf.target(id));
            (btf.kind(array) == Kind::Array).then(|| u64::from(btf.array_len(array)))
        }
        Kind::Enum | Kind::Enum64 => match btf.enum_values(id).0.as_slice() {
            [(_, value)] => u64::try_from(*value).ok(),
            _ => None,
        },
        _ => None,
    }
}

/// `struct bpf_map_def`: type, key size, value size, entries, flags; later fields are other loaders' own.
fn legacy_maps(elf: &Elf, section: usize, maps: &mut Vec<MapDef>) -> Result<(), ObjectError> {
    let bytes = elf.bytes(section);
    for symbol in elf.symbols.iter().filter(|s| s.section == Some(section) && s.is_object()) {
        let bad = |reason: String| ObjectError::BadMap { map: symbol.name.clone(), reason };
        if symbol.size < 20 {
            return Err(bad(format!("its legacy definition has {} bytes, fewer than 20", symbol.size)));
        }
        if maps.iter().any(|m| m.name == symbol.name) {
            return Err(bad("it is defined twice".into()));
        }
        few_enough(maps.len() + 1)?;
        let at = symbol.value as usize;
        let r = Reader::new(bytes);
        maps.push(MapDef {
            name: symbol.name.clone(),
            section,
            offset: symbol.value,
            map_type: r.u32(at)?,
            key_size: r.u32(at + 4)?,
            value_size: r.u32(at + 8)?,
            max_entries: r.u32(at + 12)?,
            flags: r.u32(at + 16)?,
            ..MapDef::default()
        });
    }
    Ok(())
}
