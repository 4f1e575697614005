//! An object's BTF made acceptable to the kernel's BPF_BTF_LOAD.
//!
//! Compilers leave section sizes and variable offsets for the loader to fill in, describe externs in a way that the
//! kernel refuses, and use kinds that older kernels do not know. All edits are in place: type ids stay what they are.

use std::collections::{HashMap, HashSet};

use super::{Btf, Kind, SectionVar};
use crate::elf::Elf;
use crate::externs::{CONFIG_MAP, Extern, What};

/// Which BTF kinds the running kernel knows beyond those of Linux 5.15.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BtfFeatures {
    /// Linux 5.16.
    pub decl_tag: bool,
    /// Linux 5.17.
    pub type_tag: bool,
    /// Linux 6.0.
    pub enum64: bool,
}

impl BtfFeatures {
    /// What a kernel of 6.0 or later knows.
    pub const ALL: BtfFeatures = BtfFeatures { decl_tag: true, type_tag: true, enum64: true };
}

/// What is asked of an object for each of its types, which may be a million.
struct Places<'a> {
    elf: &'a Elf,
    sections: HashMap<&'a str, usize>,
    /// Offsets of variables, by section and name.
    variables: HashMap<(usize, &'a str), u64>,
    hidden: HashSet<&'a str>,
    /// Offsets of the kernel's configuration values.
    config: HashMap<&'a str, u32>,
}

impl<'a> Places<'a> {
    fn of(elf: &'a Elf, externs: &'a [Extern]) -> Self {
        let (mut sections, mut variables) = (HashMap::new(), HashMap::new());
        for (index, section) in elf.sections.iter().enumerate() {
            sections.entry(section.name.as_str()).or_insert(index);
        }
        for symbol in elf.symbols.iter().filter(|s| s.is_object()) {
            if let Some(section) = symbol.section {
                variables.entry((section, symbol.name.as_str())).or_insert(symbol.value);
            }
        }
        let hidden = elf.symbols.iter().filter(|s| s.is_function() && s.is_hidden()).map(|s| s.name.as_str());
        let config = externs.iter().filter_map(|of| match &of.what {
            What::Config(value) => Some((of.name.as_str(), value.offset)),
            _ => None,
        });
        Places { elf, sections, variables, hidden: hidden.collect(), config: config.collect() }
    }
}

impl Btf {
    /// The bytes to load into a kernel with `features`, for the object `elf` that this BTF came from.
    pub fn for_kernel(&self, elf: &Elf, externs: &[Extern], features: BtfFeatures) -> Vec<u8> {
        let mut out = self.data.clone();
        let places = Places::of(elf, externs);
        let int = (1..self.len()).find(|id| self.kind(*id) == Kind::Int).unwrap_or(0);
        for id in 1..self.len() {
            match self.kind(id) {
                Kind::Datasec if self.name(id) == CONFIG_MAP && self.config_section(&mut out, id, &places) => {}
                Kind::Datasec if matches!(self.name(id), ".ksyms" | CONFIG_MAP) => {
                    self.blank_section(&mut out, id, int)
                }
                Kind::Datasec => self.complete_section(&mut out, id, &places),
                Kind::Func => self.fix_linkage(&mut out, id, &places),
                // Variables are the program's own to the kernel, and have a size.
                Kind::Var if self.is_extern(id) => {
                    self.put(&mut out, id, 12, 1);
                    if self.size(self.target(id)).is_none_or(|size| size == 0) {
                        self.put(&mut out, id, 8, int);
                    }
                }
                Kind::DeclTag if !features.decl_tag => {
                    // An integer has the same trailer of four bytes.
                    self.put(&mut out, id, 0, 0);
                    self.put(&mut out, id, 4, 1 << 24);
                    self.put(&mut out, id, 8, 4);
                    self.put(&mut out, id, 12, 32);
                }
                Kind::TypeTag if !features.type_tag => {
                    self.put(&mut out, id, 0, 0);
                    self.put(&mut out, id, 4, 10 << 24);
                }
                Kind::Enum64 if !features.enum64 => self.enum64_to_struct(&mut out, id, int),
                _ => {}
            }
        }
        out
    }

    fn put(&self, out: &mut [u8], id: u32, offset: usize, value: u32) {
        let at = self.at(id) + offset;
        if let Some(slot) = out.get_mut(at..at + 4) {
            slot.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// The kernel wants every section's size, and its variables' offsets, in order.
    fn complete_section(&self, out: &mut [u8], id: u32, places: &Places<'_>) {
        let name = self.name(id);
        let Some(index) = places.sections.get(name).copied() else { return };
        let mut vars = self.section_vars(id);
        for var in &mut vars {
            let name = self.name(var.type_id);
            if let Some(offset) = places.variables.get(&(index, name)) {
                var.offset = *offset as u32;
            }
            if var.size == 0 {
                var.size = self.size(self.target(var.type_id)).unwrap_or(0) as u32;
            }
        }
        self.put_section(out, id, vars, places.elf.sections[index].size as u32);
    }

    /// The kernel's configuration is a section that the loader lays out; `false`: not all of it is known.
    fn config_section(&self, out: &mut [u8], id: u32, places: &Places<'_>) -> bool {
        let mut vars = self.section_vars(id);
        for var in &mut vars {
            let size = self.size(self.target(var.type_id)).and_then(|size| u32::try_from(size).ok());
            let (Some(offset), Some(size)) = (places.config.get(self.name(var.type_id)), size) else { return false };
            (var.offset, var.size) = (*offset, size);
        }
        let end = vars.iter().map(|var| var.offset.saturating_add(var.size)).max().unwrap_or(0);
        self.put_section(out, id, vars, end);
        true
    }

    fn put_section(&self, out: &mut [u8], id: u32, mut vars: Vec<SectionVar>, size: u32) {
        vars.sort_by_key(|v| v.offset);
        self.put(out, id, 8, size);
        for (i, var) in vars.iter().enumerate() {
            self.put(out, id, 12 + 12 * i, var.type_id);
            self.put(out, id, 16 + 12 * i, var.offset);
            self.put(out, id, 20 + 12 * i, var.size);
        }
    }

    /// Sections of externs do not exist in the object: a struct of the same length takes their place.
    fn blank_section(&self, out: &mut [u8], id: u32, int: u32) {
        let count = self.vlen(id);
        self.put(out, id, 0, 0);
        self.put(out, id, 4, (4 << 24) | count as u32);
        self.put(out, id, 8, 16);
        for i in 0..count {
            self.put(out, id, 12 + 12 * i, 0);
            self.put(out, id, 16 + 12 * i, int);
            self.put(out, id, 20 + 12 * i, 0);
        }
    }

    fn fix_linkage(&self, out: &mut [u8], id: u32, places: &Places<'_>) {
        let name = self.name(id);
        match self.vlen(id) {
            // Extern: the kernel knows static and global only, and wants names for all parameters.
            2 => self.put(out, id, 4, 8 << 24),
            // A hidden function is not an entry of its own: verified as global it might be refused.
            1 if places.hidden.contains(name) => self.put(out, id, 4, 12 << 24),
            _ => {}
        }
    }

    fn enum64_to_struct(&self, out: &mut [u8], id: u32, int: u32) {
        let count = self.vlen(id);
        let size = self.size(id).unwrap_or(8).max(16) as u32;
        self.put(out, id, 4, (4 << 24) | count as u32);
        self.put(out, id, 8, size);
        for i in 0..count {
            self.put(out, id, 16 + 12 * i, int);
            self.put(out, id, 20 + 12 * i, 0);
        }
    }
}
