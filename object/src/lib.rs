//! eBPF objects: from bytes to programs that need nothing but descriptors to be loaded.
//!
//! **Guarantees.** No syscall, no file, no `unsafe`. Hostile input ends in an [`ObjectError`], never in a panic. Only
//! what a [`Selection`] names is looked at: a broken or unknown sibling in the same object does not matter.
//!
//! **Assumptions.** The kernel's BTF handed in for CO-RE comes from a kernel.
#![forbid(unsafe_code)]

pub mod btf;
mod bytes;
pub mod core;
pub mod disasm;
pub mod elf;
pub mod error;
pub mod externs;
pub mod function;
pub mod globals;
pub mod insn;
pub mod kind;
pub mod link;
pub mod map;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::btf::Btf;
use crate::btf::ext::BtfExt;
use crate::core::{Relocated, TargetBtf};
use crate::elf::Elf;
pub use crate::error::ObjectError;
use crate::externs::{Extern, What};
use crate::function::{Function, FunctionKey, Reference};
use crate::link::{LinkedProgram, Linker};
use crate::map::MapDef;

/// Most bytes of an object's BTF; the kernel takes no more (BTF_MAX_SIZE).
const MAX_BTF: usize = 16 << 20;

/// A parsed object. Parsing is a matter of microseconds; keep it when several programs are made of it.
#[derive(Clone, Debug)]
pub struct Object {
    elf: Elf,
    btf: Option<Btf>,
    ext: BtfExt,
    maps: Vec<MapDef>,
    externs: Vec<Extern>,
    functions: BTreeMap<FunctionKey, Function>,
    relocated: Relocated,
}

/// Programs of an object, and the maps they need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// The programs to load: those asked for, then those that the program arrays they use hold.
    pub programs: BTreeSet<FunctionKey>,
    /// Indices into [`Object::maps`].
    pub maps: BTreeSet<usize>,
    /// Indices into [`Object::externs`].
    pub externs: BTreeSet<usize>,
    functions: BTreeSet<FunctionKey>,
}

/// An entry that a map starts with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitialEntry {
    /// Index of the outer map or program array.
    pub map: usize,
    pub slot: u32,
    pub value: InitialValue,
}

/// What such an entry holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InitialValue {
    /// An inner map; an index into the object's maps.
    Map(usize),
    /// A program.
    Program(FunctionKey),
}

impl Object {
    /// Parses and validates an object.
    pub fn parse(bytes: impl Into<Arc<[u8]>>) -> Result<Self, ObjectError> {
        let elf = Elf::parse(bytes.into())?;
        let btf = elf.section(".BTF").map(|i| own_types(elf.bytes(i))).transpose()?;
        let ext = match (&btf, elf.section(".BTF.ext")) {
            (Some(btf), Some(i)) => btf::ext::parse(elf.bytes(i), btf)?,
            _ => BtfExt::new(),
        };
        let externs = externs::externs(&elf, btf.as_ref());
        let mut maps = map::maps(&elf, btf.as_ref())?;
        maps.extend(externs::config_map(&externs, btf.as_ref()));
        let functions = function::functions(&elf, &maps, &externs)?;
        Ok(Object { elf, btf, ext, maps, externs, functions, relocated: Relocated::default() })
    }

    /// The license, empty when the object has none.
    pub fn license(&self) -> &str {
        &self.elf.license
    }
    /// The object's type information.
    pub fn btf(&self) -> Option<&Btf> {
        self.btf.as_ref()
    }
    /// The BTF to hand to a kernel with these features.
    pub fn btf_for_kernel(&self, features: btf::sanitize::BtfFeatures) -> Option<Vec<u8>> {
        self.btf.as_ref().map(|b| b.for_kernel(&self.elf, &self.externs, features))
    }
    /// Some function of the object wants to know the kernel's types.
    pub fn wants_types(&self) -> bool {
        self.ext.values().any(|info| !info.relocations.is_empty()) || self.externs.iter().any(Extern::is_typed)
    }
    /// Every map that the object defines, and that of the kernel's configuration if it asks for that.
    pub fn maps(&self) -> &[MapDef] {
        &self.maps
    }
    /// What the object leaves to the kernel to define.
    pub fn externs(&self) -> &[Extern] {
        &self.externs
    }
    /// The map of the kernel's configuration: its bytes are the kernel's to say.
    pub fn config_map(&self) -> Option<usize> {
        self.maps.iter().position(|map| map.name == externs::CONFIG_MAP && map.data.is_some())
    }
    /// Entry functions: everything outside `.text`.
    pub fn programs(&self) -> impl Iterator<Item = &Function> {
        self.functions.values().filter(|f| !self.elf.sections[f.key.0].is_text())
    }
    /// The ELF section of a function.
    pub fn section_of(&self, function: &Function) -> &str {
        &self.elf.sections[function.key.0].name
    }
    /// A function by its place.
    pub fn function(&self, key: FunctionKey) -> Option<&Function> {
        self.functions.get(&key)
    }
    /// A program by its name.
    pub fn program(&self, name: &str) -> Result<&Function, ObjectError> {
        self.programs().find(|f| f.name == name).ok_or_else(|| ObjectError::ProgramUnknown {
            name: name.to_owned(),
            available: self.programs().map(|f| f.name.clone()).collect(),
        })
    }

    /// What these programs need: subprograms, maps, inner maps, and the programs that their program arrays start with. Maps
    /// that no function of the object refers to are among them, whatever is selected: they are for who looks into them from
    /// outside, or for hooks on maps.
    pub fn select<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> Result<Selection, ObjectError> {
        let mut selection = Selection::default();
        let mut queue = Vec::new();
        for name in names {
            let key = self.program(name)?.key;
            selection.programs.insert(key);
            queue.push(key);
        }
        for map in self.of_no_function() {
            self.select_map(map, &mut selection, &mut queue);
        }
        while let Some(key) = queue.pop() {
            let Some(function) = self.functions.get(&key) else { continue };
            if !selection.functions.insert(key) {
                continue;
            }
            for reference in function.references.values() {
                match reference {
                    Reference::Function(callee) => queue.push(*callee),
                    Reference::Map(map) | Reference::Value { map, .. } => {
                        self.select_map(*map, &mut selection, &mut queue)
                    }
                    Reference::Extern(of) => {
                        selection.externs.insert(*of);
                        if let (What::Config(_), Some(map)) = (&self.externs[*of].what, self.config_map()) {
                            self.select_map(map, &mut selection, &mut queue);
                        }
                    }
                }
            }
        }
        Ok(selection)
    }

    /// Maps that neither a function nor another map refers to.
    fn of_no_function(&self) -> Vec<usize> {
        let mut referred: BTreeSet<usize> =
            self.functions.values().flat_map(|f| f.references.values()).filter_map(Reference::map).collect();
        let inner = |map| {
            self.initial_entries(map).into_iter().filter_map(|entry| match entry.value {
                InitialValue::Map(inner) => Some(inner),
                InitialValue::Program(_) => None,
            })
        };
        referred.extend((0..self.maps.len()).flat_map(inner));
        // What is registered with the kernel is made as it is attached.
        let plain = |def: &MapDef| def.data.is_none() && def.map_type != map::map_type::STRUCT_OPS;
        (0..self.maps.len()).filter(|index| plain(&self.maps[*index]) && !referred.contains(index)).collect()
    }

    fn select_map(&self, map: usize, selection: &mut Selection, queue: &mut Vec<FunctionKey>) {
        if !selection.maps.insert(map) {
            return;
        }
        for entry in self.initial_entries(map) {
            match entry.value {
                InitialValue::Map(inner) => self.select_map(inner, selection, queue),
                InitialValue::Program(key) => {
                    selection.programs.insert(key);
                    queue.push(key);
                }
            }
        }
    }

    /// The functions that program arrays start with: they are called, not attached.
    pub fn called_functions(&self) -> BTreeSet<&str> {
        let entries = (0..self.maps.len()).flat_map(|map| self.initial_entries(map));
        let functions = entries.filter_map(|entry| match entry.value {
            InitialValue::Program(key) => self.functions.get(&key),
            InitialValue::Map(_) => None,
        });
        functions.map(|function| function.name.as_str()).collect()
    }

    /// The entries that `.values` of a map gives.
    pub fn initial_entries(&self, map: usize) -> Vec<InitialEntry> {
        let def = &self.maps[map];
        let (Some(values), Some(relocations)) = (def.values_offset, self.elf.relocations.get(&def.section)) else {
            return Vec::new();
        };
        let symbol =
            self.elf.symbols.iter().find(|s| s.section == Some(def.section) && s.is_object() && s.value == def.offset);
        let end = symbol.map_or(0, |s| s.value + s.size) as usize;
        let start = (def.offset + values) as usize;
        let mut entries = Vec::new();
        for (offset, relocation) in relocations.range(start.min(end)..end) {
            let slot = ((offset - start) / 8) as u32;
            let target = &self.elf.symbols[relocation.symbol];
            let inner = self.maps.iter().position(|m| Some(m.section) == target.section && m.offset == target.value);
            let value = match (inner, target.section) {
                (Some(inner), _) if !target.is_function() => InitialValue::Map(inner),
                (_, Some(section)) if target.is_function() => InitialValue::Program((section, target.value)),
                _ => continue,
            };
            entries.push(InitialEntry { map, slot, value });
        }
        entries
    }

    /// Links the selected programs; CO-RE against `target`, which may be absent if nothing needs it.
    pub fn link(
        &self,
        selection: &Selection,
        target: Option<&TargetBtf>,
    ) -> Result<BTreeMap<FunctionKey, LinkedProgram>, ObjectError> {
        let functions: Vec<&Function> = selection.functions.iter().filter_map(|k| self.functions.get(k)).collect();
        let relocated = match (&self.btf, target) {
            (Some(btf), Some(target)) => self.relocated.of(&self.elf, btf, &self.ext, &functions, target)?,
            _ => {
                self.refuse_without_target(&functions)?;
                BTreeMap::new()
            }
        };
        let linker = Linker {
            elf: &self.elf,
            functions: &self.functions,
            ext: &self.ext,
            externs: &self.externs,
            config_map: self.config_map(),
            relocated: &relocated,
        };
        let mut programs = BTreeMap::new();
        let mut slots = 0;
        for function in selection.programs.iter().filter_map(|key| self.functions.get(key)) {
            let program = linker.link(function)?;
            slots += program.insns.len();
            if slots > link::MAX_SLOTS_IN_ALL {
                let reason = format!(
                    "with it the programs have more than {} instructions in all; name fewer of them",
                    link::MAX_SLOTS_IN_ALL
                );
                return Err(ObjectError::Unsupported { function: function.name.clone(), reason });
            }
            programs.insert(function.key, program);
        }
        Ok(programs)
    }

    fn refuse_without_target(&self, functions: &[&Function]) -> Result<(), ObjectError> {
        for function in functions {
            let Some(info) = self.ext.get(&self.elf.sections[function.key.0].name) else { continue };
            if !info.relocations_of(function).is_empty() {
                let reason =
                    "it needs the kernel's types (CO-RE), and this kernel has no /sys/kernel/btf/vmlinux".into();
                return Err(ObjectError::CoreRelocation { function: function.name.clone(), reason });
            }
        }
        Ok(())
    }
}

fn own_types(data: &[u8]) -> Result<Btf, ObjectError> {
    if data.len() > MAX_BTF {
        let reason = format!("it has {} bytes, more than the {MAX_BTF} that the kernel takes", data.len());
        return Err(ObjectError::BadBtf { reason });
    }
    Btf::parse(data)
}
