//! The ELF container of an eBPF object.
//!
//! **Guarantees.** [`Elf::parse`] accepts 64-bit little-endian relocatable eBPF objects only. Past it every section lies
//! inside the file, every symbol inside its section, every relocation on an instruction of a function; functions do not
//! overlap. The rest of the crate indexes without checking again.
//!
//! **Caveats.** Sizes are bounded: 64 MiB of file, 64 MiB of zero-initialised data, 4,096 sections that do not overlap,
//! 65,536 symbols, 1,024 functions, 1,024 bytes of a name. What is made of an object is no more than some times its size.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use crate::bytes::{Reader, cstr};
use crate::error::ObjectError;

/// Largest object accepted, in bytes.
pub const MAX_OBJECT: usize = 64 << 20;
/// Largest sum of zero-initialised sections, in bytes: they take no room in the file, but do in the kernel.
pub const MAX_NOBITS: u64 = 64 << 20;
/// Most sections: a function, its relocations and data of its own may each have one.
const MAX_SECTIONS: usize = 4096;
/// Most symbols; labels are among them.
const MAX_SYMBOLS: usize = 1 << 16;
/// Most functions in one object.
pub const MAX_FUNCTIONS: usize = 1024;

const EM_BPF: u16 = 247;
const ET_REL: u16 = 1;
const SHT_PROGBITS: u32 = 1;
const SHT_SYMTAB: u32 = 2;
const SHT_STRTAB: u32 = 3;
const SHT_RELA: u32 = 4;
const SHT_NOBITS: u32 = 8;
const SHT_REL: u32 = 9;
const SHF_EXECINSTR: u64 = 4;
const SHF_COMPRESSED: u64 = 0x800;
const SHN_ABS: usize = 0xfff1;
const SHN_LORESERVE: usize = 0xff00;
const STT_OBJECT: u8 = 1;
const STT_FUNC: u8 = 2;
const STT_SECTION: u8 = 3;
/// A 64-bit address in a `ld_imm64` pair.
pub const R_BPF_64_64: u32 = 1;
/// A call.
pub const R_BPF_64_32: u32 = 10;
/// Bytes of one instruction.
pub const INSN: usize = 8;

/// A section header, and where its bytes are.
#[derive(Clone, Debug)]
pub struct Section {
    pub name: String,
    kind: u32,
    flags: u64,
    offset: usize,
    pub size: usize,
    link: usize,
    info: usize,
}

impl Section {
    /// Holds instructions.
    pub fn is_code(&self) -> bool {
        self.flags & SHF_EXECINSTR != 0 && self.kind == SHT_PROGBITS
    }
    /// Holds subprograms, not programs: `.text` and what the compiler splits off it.
    pub fn is_text(&self) -> bool {
        self.is_code() && (self.name == ".text" || self.name.starts_with(".text."))
    }
    /// Zero-initialised.
    pub fn is_nobits(&self) -> bool {
        self.kind == SHT_NOBITS
    }
}

/// A symbol.
#[derive(Clone, Debug)]
pub struct Symbol {
    pub name: String,
    /// Index into [`Elf::sections`]; `None` for an undefined symbol (an extern).
    pub section: Option<usize>,
    pub value: u64,
    pub size: u64,
    kind: u8,
    bind: u8,
    visibility: u8,
}

impl Symbol {
    pub fn is_function(&self) -> bool {
        self.kind == STT_FUNC && self.section.is_some()
    }
    pub fn is_object(&self) -> bool {
        self.kind == STT_OBJECT
    }
    pub fn is_section(&self) -> bool {
        self.kind == STT_SECTION
    }
    pub fn is_weak(&self) -> bool {
        self.bind == 2
    }
    /// Defined by the kernel, if at all.
    pub fn is_extern(&self) -> bool {
        self.section.is_none() && self.is_global() && !self.name.is_empty()
    }
    pub fn is_global(&self) -> bool {
        self.bind != 0
    }
    /// `__hidden` or internal: verified as static by the kernel, whatever the symbol's binding.
    pub fn is_hidden(&self) -> bool {
        matches!(self.visibility, 1 | 2)
    }
}

/// A relocation of a section.
#[derive(Clone, Copy, Debug)]
pub struct Relocation {
    /// Byte offset in the section.
    pub offset: usize,
    /// Index into [`Elf::symbols`].
    pub symbol: usize,
    pub kind: u32,
}

/// A validated object.
#[derive(Clone, Debug)]
pub struct Elf {
    data: Arc<[u8]>,
    pub sections: Vec<Section>,
    pub symbols: Vec<Symbol>,
    /// Section index to its relocations, by offset.
    pub relocations: BTreeMap<usize, BTreeMap<usize, Relocation>>,
    /// Empty when the object has no `license` section, as the kernel wants it then.
    pub license: String,
}

impl Elf {
    /// Parses and validates; see the module's guarantees.
    pub fn parse(bytes: Arc<[u8]>) -> Result<Self, ObjectError> {
        let data = &*bytes;
        let header = Header::parse(data)?;
        let sections = parse_sections(data, &header)?;
        let symtab = one_symbol_table(&sections)?;
        let symbols = parse_symbols(data, &sections, symtab)?;
        check_functions(&sections, &symbols)?;
        let relocations = parse_relocations(data, &sections, &symbols, symtab)?;
        let license =
            sections.iter().find(|s| s.name == "license" && s.kind == SHT_PROGBITS).map_or_else(String::new, |s| {
                let bytes = &data[s.offset..s.offset + s.size];
                let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
                String::from_utf8_lossy(&bytes[..end]).into_owned()
            });
        Ok(Elf { sections, symbols, relocations, license, data: bytes })
    }

    /// The bytes of a section in the file; empty for a zero-initialised one.
    pub fn bytes(&self, section: usize) -> &[u8] {
        let s = &self.sections[section];
        if s.kind == SHT_NOBITS { &[] } else { &self.data[s.offset..s.offset + s.size] }
    }

    /// The first section of that name that has bytes in the file.
    pub fn section(&self, name: &str) -> Option<usize> {
        self.sections.iter().position(|s| s.name == name && s.kind == SHT_PROGBITS)
    }

    /// The relocation at a byte offset of a section.
    pub fn relocation(&self, section: usize, offset: usize) -> Option<&Relocation> {
        self.relocations.get(&section)?.get(&offset)
    }
}

struct Header {
    sections_at: usize,
    section_count: usize,
    names: usize,
}

impl Header {
    fn parse(data: &[u8]) -> Result<Self, ObjectError> {
        let bad = |reason: String| ObjectError::NotAnObject { reason };
        if data.len() > MAX_OBJECT {
            return Err(bad(format!("it has {} bytes, more than the {MAX_OBJECT} that are accepted", data.len())));
        }
        if data.len() < 64 || &data[..4] != b"\x7fELF" {
            return Err(bad("it is not an ELF file; compile it with `clang -target bpf` or `bpf-linker`".into()));
        }
        if data[4] != 2 {
            return Err(bad("it is a 32-bit ELF file; eBPF objects are 64-bit".into()));
        }
        if data[5] != 1 {
            return Err(bad("it is big-endian (bpfeb); compile it for bpfel".into()));
        }
        let r = Reader::new(data);
        let (kind, machine) = (r.u16(16)?, r.u16(18)?);
        if machine != EM_BPF {
            return Err(bad(format!("it is code for machine {machine}, not eBPF (247)")));
        }
        if kind != ET_REL {
            return Err(bad(format!("ELF type {kind} is not a relocatable object (1)")));
        }
        let header = Header {
            sections_at: usize::try_from(r.u64(40)?).unwrap_or(usize::MAX),
            section_count: usize::from(r.u16(60)?),
            names: usize::from(r.u16(62)?),
        };
        if header.section_count > MAX_SECTIONS {
            return Err(bad(format!("it has {} sections, more than {MAX_SECTIONS}", header.section_count)));
        }
        let end = header.sections_at.checked_add(header.section_count * 64);
        if r.u16(58)? != 64 || header.names >= header.section_count || end.is_none_or(|e| e > data.len()) {
            return Err(bad("its section table does not lie inside the file; it may be truncated".into()));
        }
        Ok(header)
    }
}

fn parse_sections(data: &[u8], header: &Header) -> Result<Vec<Section>, ObjectError> {
    let r = Reader::new(data);
    let malformed = |reason: String| ObjectError::Malformed { reason };
    let at = |i: usize| header.sections_at + i * 64;
    let range = |i: usize| -> Result<(usize, usize), ObjectError> {
        let (offset, size) = (r.u64(at(i) + 24)?, r.u64(at(i) + 32)?);
        let (Ok(offset), Ok(size)) = (usize::try_from(offset), usize::try_from(size)) else {
            return Err(malformed(format!("section {i} lies outside the file")));
        };
        Ok((offset, size))
    };
    let inside = |offset: usize, size: usize| offset.checked_add(size).is_some_and(|e| e <= data.len());
    let (names_at, names_size) = range(header.names)?;
    if !inside(names_at, names_size) {
        return Err(malformed("the section names lie outside the file".into()));
    }
    let names = &data[names_at..names_at + names_size];

    let mut sections = Vec::with_capacity(header.section_count);
    let (mut nobits, mut stored) = (0u64, 0u64);
    let mut seen = HashSet::new();
    for i in 0..header.section_count {
        let (offset, size) = range(i)?;
        let section = Section {
            name: cstr(names, r.u32(at(i))? as usize)?.to_owned(),
            kind: r.u32(at(i) + 4)?,
            flags: r.u64(at(i) + 8)?,
            offset,
            size,
            link: r.u32(at(i) + 40)? as usize,
            info: r.u32(at(i) + 44)? as usize,
        };
        let name = &section.name;
        if section.kind == SHT_NOBITS {
            nobits = nobits.saturating_add(size as u64);
            if nobits > MAX_NOBITS {
                return Err(malformed(format!("zero-initialised data of {nobits} bytes, more than {MAX_NOBITS}")));
            }
        } else if section.kind != 0 {
            if !inside(offset, size) {
                return Err(malformed(format!("section {name} lies outside the file; it may be truncated")));
            }
            // A byte that is in many sections would be read, and kept, as often.
            stored += size as u64;
            if stored > data.len() as u64 {
                return Err(malformed("its sections overlap".into()));
            }
        }
        if r.u64(at(i) + 16)? != 0 {
            return Err(malformed(format!("section {name} has an address; link with `-r` only")));
        }
        if section.flags & SHF_COMPRESSED != 0 {
            return Err(malformed(format!("section {name} is compressed; strip debug sections instead")));
        }
        let code = section.flags & SHF_EXECINSTR != 0;
        if code && (section.kind != SHT_PROGBITS || size % INSN != 0) {
            return Err(malformed(format!("code section {name} is not a whole number of instructions")));
        }
        let keyed = code || [".data", ".bss", ".rodata", ".maps", ".BTF"].iter().any(|p| name.starts_with(p));
        if keyed && !seen.insert(name.clone()) {
            return Err(malformed(format!("two sections are named {name}")));
        }
        sections.push(section);
    }
    Ok(sections)
}

fn one_symbol_table(sections: &[Section]) -> Result<usize, ObjectError> {
    let malformed = |reason: &str| ObjectError::Malformed { reason: reason.into() };
    let mut tables = sections.iter().enumerate().filter(|(_, s)| s.kind == SHT_SYMTAB);
    let (index, table) = tables.next().ok_or_else(|| malformed("it has no symbol table; do not strip it"))?;
    if tables.next().is_some() {
        return Err(malformed("it has more than one symbol table"));
    }
    if table.size % 24 != 0 || sections.get(table.link).is_none_or(|s| s.kind != SHT_STRTAB) {
        return Err(malformed("its symbol table is damaged"));
    }
    if table.size / 24 > MAX_SYMBOLS {
        return Err(malformed("it has more than 65,536 symbols"));
    }
    Ok(index)
}

fn parse_symbols(data: &[u8], sections: &[Section], symtab: usize) -> Result<Vec<Symbol>, ObjectError> {
    let r = Reader::new(data);
    let table = &sections[symtab];
    let strings = &sections[table.link];
    let strings = &data[strings.offset..strings.offset + strings.size];
    let mut symbols = Vec::with_capacity(table.size / 24);
    for at in (table.offset..table.offset + table.size).step_by(24) {
        let index = usize::from(r.u16(at + 6)?);
        let symbol = Symbol {
            name: cstr(strings, r.u32(at)? as usize)?.to_owned(),
            section: (index != 0 && index < SHN_LORESERVE).then_some(index),
            value: r.u64(at + 8)?,
            size: r.u64(at + 16)?,
            kind: data[at + 4] & 15,
            bind: data[at + 4] >> 4,
            visibility: data[at + 5] & 3,
        };
        let name = &symbol.name;
        let malformed = |reason: String| Err(ObjectError::Malformed { reason });
        match symbol.section {
            Some(i) => {
                let Some(section) = sections.get(i) else {
                    return malformed(format!("symbol {name} is in section {i}, which does not exist"));
                };
                if symbol.value.checked_add(symbol.size).is_none_or(|e| e > section.size as u64) {
                    return malformed(format!("symbol {name} reaches past its section {}", section.name));
                }
                if symbol.kind == STT_FUNC
                    && (!section.is_code()
                        || symbol.size == 0
                        || !symbol.value.is_multiple_of(8)
                        || !symbol.size.is_multiple_of(8))
                {
                    return malformed(format!(
                        "function {name} is not a whole number of instructions of a code section"
                    ));
                }
            }
            None if index != 0 && index != SHN_ABS => {
                return malformed(format!("symbol {name} has the special section index {index:#x}"));
            }
            None => {}
        }
        symbols.push(symbol);
    }
    Ok(symbols)
}

fn check_functions(sections: &[Section], symbols: &[Symbol]) -> Result<(), ObjectError> {
    let mut ranges: Vec<(usize, u64, u64, &str)> = symbols
        .iter()
        .filter(|s| s.is_function())
        .filter_map(|s| Some((s.section?, s.value, s.value + s.size, s.name.as_str())))
        .collect();
    if ranges.len() > MAX_FUNCTIONS {
        let reason = format!("it has {} functions, more than {MAX_FUNCTIONS}", ranges.len());
        return Err(ObjectError::Malformed { reason });
    }
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        let ((section, _, end, first), (next_section, start, _, second)) = (pair[0], pair[1]);
        if section == next_section && start < end {
            let reason = format!("functions {first} and {second} overlap in section {}", sections[section].name);
            return Err(ObjectError::Malformed { reason });
        }
    }
    Ok(())
}

fn parse_relocations(
    data: &[u8],
    sections: &[Section],
    symbols: &[Symbol],
    symtab: usize,
) -> Result<BTreeMap<usize, BTreeMap<usize, Relocation>>, ObjectError> {
    let r = Reader::new(data);
    let mut all: BTreeMap<usize, BTreeMap<usize, Relocation>> = BTreeMap::new();
    for section in sections {
        let malformed = || ObjectError::Malformed { reason: format!("relocations {} are damaged", section.name) };
        if section.kind == SHT_RELA {
            return Err(ObjectError::Malformed { reason: format!("{} has addends, which eBPF has not", section.name) });
        }
        if section.kind != SHT_REL {
            continue;
        }
        let target = sections.get(section.info).ok_or_else(malformed)?;
        if section.size % 16 != 0 || section.link != symtab {
            return Err(malformed());
        }
        for at in (section.offset..section.offset + section.size).step_by(16) {
            let offset = usize::try_from(r.u64(at)?).map_err(|_| malformed())?;
            let rel = Relocation { offset, kind: r.u32(at + 8)?, symbol: r.u32(at + 12)? as usize };
            let symbol = symbols.get(rel.symbol).ok_or_else(malformed)?;
            if target.is_code() {
                let wide = rel.kind == R_BPF_64_64;
                let need = if wide { 2 * INSN } else { INSN };
                if offset % INSN != 0 || offset.checked_add(need).is_none_or(|e| e > target.size) {
                    return Err(malformed());
                }
                let opcode = data[target.offset + offset];
                if !(wide && opcode == 0x18 || rel.kind == R_BPF_64_32 && opcode == 0x85) {
                    return Err(malformed());
                }
                let into_code = symbol.section.is_some_and(|s| sections[s].is_code());
                if into_code && !(symbol.kind == STT_FUNC || symbol.kind == STT_SECTION) {
                    return Err(malformed());
                }
            }
            all.entry(section.info).or_default().insert(offset, rel);
        }
    }
    Ok(all)
}
