//! Functions of an object, and what each of them refers to.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::elf::{Elf, INSN, Relocation};
use crate::error::ObjectError;
use crate::externs::Extern;
use crate::insn::Insn;
use crate::map::{MapDef, is_data_section};

/// A function's place: (section index, byte offset).
pub type FunctionKey = (usize, u64);

/// A function.
#[derive(Clone, Debug)]
pub struct Function {
    pub name: String,
    pub key: FunctionKey,
    /// Bytes.
    pub size: usize,
    /// What instructions refer to, by slot.
    pub references: BTreeMap<usize, Reference>,
}

/// What one instruction refers to.
#[derive(Clone, Debug, PartialEq)]
pub enum Reference {
    /// A call or a callback's address.
    Function(FunctionKey),
    /// A map's descriptor; an index into the object's maps.
    Map(usize),
    /// An address inside a data section's map.
    Value { map: usize, offset: u32 },
    /// What the kernel defines; an index into the object's externs.
    Extern(usize),
}

impl Reference {
    /// The map that is meant, or that the address is in.
    pub fn map(&self) -> Option<usize> {
        match self {
            Reference::Map(map) | Reference::Value { map, .. } => Some(*map),
            Reference::Function(_) | Reference::Extern(_) => None,
        }
    }
}

/// All functions, by place.
pub fn functions(
    elf: &Elf,
    maps: &[MapDef],
    externs: &[Extern],
) -> Result<BTreeMap<FunctionKey, Function>, ObjectError> {
    let mut all = BTreeMap::new();
    for symbol in elf.symbols.iter().filter(|s| s.is_function()) {
        let Some(section) = symbol.section else { continue };
        let key = (section, symbol.value);
        let function =
            Function { name: symbol.name.clone(), key, size: symbol.size as usize, references: BTreeMap::new() };
        all.insert(key, function);
    }
    let keys: BTreeSet<FunctionKey> = all.keys().copied().collect();
    let mut places = Places { maps: HashMap::new(), externs: HashMap::new() };
    for (index, map) in maps.iter().enumerate() {
        places.maps.entry((map.section, map.data.is_none().then_some(map.offset))).or_insert(index);
    }
    places.externs.extend(externs.iter().enumerate().map(|(index, of)| (of.name.as_str(), index)));
    for function in all.values_mut() {
        function.references = references(elf, &places, &keys, function)?;
    }
    Ok(all)
}

/// Indices of what instructions refer to.
struct Places<'a> {
    /// By section, and by offset in it; a data section is one map, whatever the offset.
    maps: HashMap<(usize, Option<u64>), usize>,
    externs: HashMap<&'a str, usize>,
}

fn references(
    elf: &Elf,
    places: &Places<'_>,
    keys: &BTreeSet<FunctionKey>,
    function: &Function,
) -> Result<BTreeMap<usize, Reference>, ObjectError> {
    let (section, start) = (function.key.0, function.key.1 as usize);
    let insns = Insn::read_all(&elf.bytes(section)[start..start + function.size]);
    let unsupported = |reason: String| ObjectError::Unsupported { function: function.name.clone(), reason };
    let mut found = BTreeMap::new();
    let mut slot = 0;
    while slot < insns.len() {
        let insn = insns[slot];
        let offset = start + slot * INSN;
        let reference = if let Some(rel) = elf.relocation(section, offset) {
            Some(relocated(elf, places, insn, rel).map_err(unsupported)?)
        } else if insn.is_local_call() {
            let target = offset as i64 + (i64::from(insn.imm) + 1) * INSN as i64;
            Some(Reference::Function((section, target as u64)))
        } else {
            None
        };
        if let Some(Reference::Function(key)) = &reference
            && !keys.contains(key)
        {
            return Err(unsupported(format!("instruction {slot} calls into the middle of a function")));
        }
        if let Some(reference) = reference {
            found.insert(slot, reference);
        }
        slot += if insn.is_ld_imm64() { 2 } else { 1 };
    }
    Ok(found)
}

fn relocated(elf: &Elf, places: &Places<'_>, insn: Insn, rel: &Relocation) -> Result<Reference, String> {
    let symbol = &elf.symbols[rel.symbol];
    let Some(target) = symbol.section else {
        let index = places.externs.get(symbol.name.as_str()).copied();
        return index
            .map(Reference::Extern)
            .ok_or_else(|| format!("it refers to {:?}, which is no symbol", symbol.name));
    };
    let section = &elf.sections[target];
    if section.is_code() {
        // A named function stands for itself; a section symbol has the distance in the instruction.
        let address = match (symbol.is_section(), insn.is_call()) {
            (false, _) => symbol.value as i64,
            (true, true) => symbol.value as i64 + (i64::from(insn.imm) + 1) * INSN as i64,
            (true, false) => symbol.value as i64 + i64::from(insn.imm),
        };
        return Ok(Reference::Function((target, address as u64)));
    }
    if is_data_section(&section.name) {
        let map = places.maps.get(&(target, None)).copied();
        let map = map.ok_or_else(|| format!("section {} is empty", section.name))?;
        let offset = symbol.value as i64 + i64::from(insn.imm);
        let offset = u32::try_from(offset).ok().filter(|o| *o as usize <= section.size);
        let offset = offset.ok_or_else(|| format!("an address outside {}", section.name))?;
        return Ok(Reference::Value { map, offset });
    }
    let map = places.maps.get(&(target, Some(symbol.value)));
    map.map(|map| Reference::Map(*map))
        .ok_or_else(|| format!("it refers to {} in section {}, which is no map", symbol.name, section.name))
}
