//! CO-RE: the types of an object, its relocations, and the types of a kernel, all made up. The parts are the object's
//! types and strings, its code, its relocations (16 bytes each), and the kernel's types and strings.

use object::write::{Object as ElfWriter, Symbol, SymbolSection};
use object::{Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope};
use skep_object::core::TargetBtf;
use skep_object::{Object, ObjectError};

use super::parts;

/// Builds the object around the parts, and links it against the kernel's.
pub fn run(data: &[u8]) {
    let _ = relocated(data);
}

/// How many instructions come of it.
pub fn relocated(data: &[u8]) -> Result<usize, ObjectError> {
    let [types, strings, code, relocations, kernel_types, kernel_strings] = parts::split(data);
    let kernel = TargetBtf::parse(&parts::btf(kernel_types, kernel_strings))?;
    // Under this name the relocations know the section.
    let section = strings.len() as u32 + 2;
    let strings = [strings, b"\0xdp"].concat();
    let types = parts::btf(types, &strings);
    let elf = elf(&types, code, &ext(section, relocations));
    let object = Object::parse(elf.map_err(|e| ObjectError::NotAnObject { reason: e.to_string() })?)?;
    let linked = object.link(&object.select(["program"])?, Some(&kernel))?;
    Ok(linked.values().map(|program| program.insns.len()).sum())
}

fn elf(types: &[u8], code: &[u8], ext: &[u8]) -> Result<Vec<u8>, object::write::Error> {
    let code = &code[..code.len() / 8 * 8];
    let mut writer = ElfWriter::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
    let section = writer.add_section(Vec::new(), b"xdp".to_vec(), SectionKind::Text);
    writer.append_section_data(section, code, 8);
    writer.add_symbol(Symbol {
        name: b"program".to_vec(),
        value: 0,
        size: code.len() as u64,
        kind: SymbolKind::Text,
        scope: SymbolScope::Linkage,
        weak: false,
        section: SymbolSection::Section(section),
        flags: SymbolFlags::None,
    });
    for (name, data) in [(".BTF", types), (".BTF.ext", ext)] {
        let section = writer.add_section(Vec::new(), name.into(), SectionKind::Other);
        writer.append_section_data(section, data, 4);
    }
    writer.write()
}

fn ext(section: u32, relocations: &[u8]) -> Vec<u8> {
    let count = (relocations.len() / 16) as u32;
    let relocations = &relocations[..count as usize * 16];
    let length = if count == 0 { 0 } else { 12 + relocations.len() as u32 };
    let mut words = vec![0x0001_eb9f, 32, 0, 0, 0, 0, 0, length];
    if count > 0 {
        words.extend([16, section, count]);
    }
    words.into_iter().flat_map(u32::to_le_bytes).chain(relocations.iter().copied()).collect()
}
