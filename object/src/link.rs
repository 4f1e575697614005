//! From functions to the instructions of one program: subprograms appended, calls resolved, maps left as references
//! for whoever has their descriptors.
//!
//! The order of subprograms is libbpf's (each is appended at its first use, depth first), so that the kernel's tag of
//! a program is the same whichever loader loaded it.

use std::collections::{BTreeMap, HashMap};

use crate::btf::ext::BtfExt;
use crate::elf::{Elf, INSN};
use crate::error::ObjectError;
use crate::externs::{Extern, What};
use crate::function::{Function, FunctionKey, Reference};
use crate::insn::{Insn, pseudo};

/// Longest program accepted, in slots; the kernel's own limit for privileged users (BPF_COMPLEXITY_LIMIT_INSNS).
const MAX_SLOTS: usize = 1_000_000;
/// Longest programs of one selection together: each has a copy of every subprogram that it calls.
pub(crate) const MAX_SLOTS_IN_ALL: usize = 8 << 20;

/// A program that needs only its map descriptors to be loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkedProgram {
    pub name: String,
    pub insns: Vec<Insn>,
    pub maps: Vec<MapReference>,
    /// Instructions that need what the kernel defines.
    pub externs: Vec<ExternReference>,
    /// `struct bpf_func_info` records: slot, BTF type id. Empty when a function lacks them.
    pub func_info: Vec<[u32; 2]>,
    /// `struct bpf_line_info` records: slot, file name, line, line and column.
    pub line_info: Vec<[u32; 4]>,
}

/// A `ld_imm64` whose `imm` becomes a map's descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapReference {
    pub slot: usize,
    /// Index into the object's maps.
    pub map: usize,
}

/// A call or a `ld_imm64` of something that the kernel defines, as the compiler left it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExternReference {
    pub slot: usize,
    /// Index into the object's externs.
    pub of: usize,
}

/// What linking reads.
#[derive(Clone, Copy, Debug)]
pub struct Linker<'a> {
    pub elf: &'a Elf,
    pub functions: &'a BTreeMap<FunctionKey, Function>,
    pub ext: &'a BtfExt,
    pub externs: &'a [Extern],
    /// The map of the kernel's configuration.
    pub config_map: Option<usize>,
    /// Instructions after CO-RE; where a function is missing, the object's own.
    pub relocated: &'a BTreeMap<FunctionKey, Vec<Insn>>,
}

impl Linker<'_> {
    /// Links the program that starts at `entry`.
    pub fn link(&self, entry: &Function) -> Result<LinkedProgram, ObjectError> {
        let mut program = Building::default();
        self.append(&mut program, entry, &entry.name)?;
        let (func_info, line_info) = self.info(&program);
        let Building { insns, maps, externs, .. } = program;
        Ok(LinkedProgram { name: entry.name.clone(), insns, maps, externs, func_info, line_info })
    }

    fn append(&self, program: &mut Building, function: &Function, entry: &str) -> Result<usize, ObjectError> {
        let start = program.insns.len();
        match self.relocated.get(&function.key) {
            Some(insns) => program.insns.extend_from_slice(insns),
            None => {
                let (section, at) = (function.key.0, function.key.1 as usize);
                program.insns.extend(Insn::read_all(&self.elf.bytes(section)[at..at + function.size]));
            }
        }
        if program.insns.len() > MAX_SLOTS {
            let reason = format!("it has more than {MAX_SLOTS} instructions with its subprograms");
            return Err(ObjectError::Unsupported { function: entry.to_owned(), reason });
        }
        program.placed.insert(function.key, start);
        program.order.push((start, function.key));
        for (slot, reference) in &function.references {
            let slot = start + slot;
            match reference {
                Reference::Function(key) => {
                    let target = match program.placed.get(key) {
                        Some(placed) => *placed,
                        None => self.append(program, &self.functions[key], entry)?,
                    };
                    let insn = &mut program.insns[slot];
                    insn.set_src(if insn.is_call() { pseudo::CALL } else { pseudo::FUNC });
                    insn.imm = (target as i64 - slot as i64 - 1) as i32;
                }
                Reference::Map(map) => {
                    program.insns[slot].set_src(pseudo::MAP_FD);
                    program.insns[slot].imm = 0;
                    program.maps.push(MapReference { slot, map: *map });
                }
                Reference::Value { map, offset } => program.value(slot, *map, *offset),
                Reference::Extern(of) => {
                    let Extern { name, what, .. } = &self.externs[*of];
                    let unsupported = |why: &str| {
                        let reason = format!("it uses the extern {name}: {why}");
                        ObjectError::Unsupported { function: entry.to_owned(), reason }
                    };
                    let is_call = program.insns[slot].is_call();
                    match (what, self.config_map) {
                        (What::Unknown(why), _) => return Err(unsupported(why)),
                        (What::Function(_), _) => program.externs.push(ExternReference { slot, of: *of }),
                        _ if is_call => return Err(unsupported("it is called, and is no function")),
                        (What::Config(value), Some(map)) => program.value(slot, map, value.offset),
                        _ => program.externs.push(ExternReference { slot, of: *of }),
                    }
                }
            }
        }
        Ok(start)
    }

    /// The kernel wants information for every function of a program, or none.
    fn info(&self, program: &Building) -> (Vec<[u32; 2]>, Vec<[u32; 4]>) {
        let (mut functions, mut lines) = (Vec::new(), Vec::new());
        for (start, key) in &program.order {
            let function = &self.functions[key];
            let Some(info) = self.ext.get(&self.elf.sections[key.0].name) else { return (Vec::new(), Vec::new()) };
            let Some(record) = info.function_at(key.1) else {
                return (Vec::new(), Vec::new());
            };
            functions.push([*start as u32, record.type_id]);
            let before = lines.len();
            for line in info.lines_of(function) {
                let slot = *start as u32 + (u64::from(line.offset) - key.1) as u32 / INSN as u32;
                lines.push([slot, line.file, line.line, line.line_col]);
            }
            if lines.get(before).is_none_or(|l| l[0] != *start as u32) {
                // Lines must begin with the function; without, none are better than a refused load.
                return (functions_only(self, program), Vec::new());
            }
        }
        (functions, lines)
    }
}

fn functions_only(linker: &Linker<'_>, program: &Building) -> Vec<[u32; 2]> {
    let record = |(start, key): &(usize, FunctionKey)| {
        let info = linker.ext.get(&linker.elf.sections[key.0].name)?;
        let record = info.function_at(key.1)?;
        Some([*start as u32, record.type_id])
    };
    program.order.iter().map(record).collect::<Option<Vec<_>>>().unwrap_or_default()
}

#[derive(Default)]
struct Building {
    placed: HashMap<FunctionKey, usize>,
    order: Vec<(usize, FunctionKey)>,
    insns: Vec<Insn>,
    maps: Vec<MapReference>,
    externs: Vec<ExternReference>,
}

impl Building {
    /// An address inside a map's value.
    fn value(&mut self, slot: usize, map: usize, offset: u32) {
        self.insns[slot].set_src(pseudo::MAP_VALUE);
        self.insns[slot].imm = 0;
        self.insns[slot + 1].imm = offset as i32;
        self.maps.push(MapReference { slot, map });
    }
}
