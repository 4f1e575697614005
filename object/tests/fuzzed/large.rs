//! Objects that are large, which the fuzzer's never are: what is made of one must not grow with the square of its size.

use std::time::{Duration, Instant};

use skep_object::btf::Btf;
use skep_object::btf::desc::{TypeDesc, TypeKind};
use skep_object::core::TargetBtf;
use skep_object::{Object, ObjectError};

use crate::parts;

const PROGBITS: u32 = 1;
const STRTAB: u32 = 3;
const EXIT: [u8; 8] = [0x95, 0, 0, 0, 0, 0, 0, 0];

/// Sections after the empty first one; the second holds all names, the third is the symbol table.
#[derive(Default)]
struct Elf {
    names: Vec<u8>,
    symbols: Vec<u8>,
    sections: Vec<(u32, u32, u64, Vec<u8>)>,
}

impl Elf {
    fn name(&mut self, name: &str) -> u32 {
        self.names.extend_from_slice(name.as_bytes());
        self.names.push(0);
        (self.names.len() - name.len()) as u32
    }

    fn section(&mut self, name: &str, flags: u64, bytes: Vec<u8>) -> u16 {
        let name = self.name(name);
        self.sections.push((name, PROGBITS, flags, bytes));
        self.sections.len() as u16 + 2
    }

    fn code(&mut self, name: &str, bytes: Vec<u8>) -> u16 {
        self.section(name, 4, bytes)
    }

    /// `kind`: 1 object, 2 function.
    fn symbol(&mut self, name: u32, kind: u8, section: u16, value: usize, size: usize) {
        self.symbols.extend_from_slice(&name.to_le_bytes());
        self.symbols.extend_from_slice(&[0x10 | kind, 0]);
        self.symbols.extend_from_slice(&section.to_le_bytes());
        self.symbols.extend([value as u64, size as u64].iter().flat_map(|word| word.to_le_bytes()));
    }

    fn build(&self) -> Vec<u8> {
        let names = [&[0], &self.names[..]].concat();
        let table = [(0, 0, 0, Vec::new()), (0, STRTAB, 0, names), (0, 2, 0, self.symbols.clone())];
        let (mut bodies, mut headers) = (vec![0u8; 64], Vec::new());
        for (name, kind, flags, bytes) in table.iter().chain(&self.sections) {
            headers.extend([*name, *kind].iter().flat_map(|word| word.to_le_bytes()));
            for word in [*flags, 0, bodies.len() as u64, bytes.len() as u64] {
                headers.extend_from_slice(&word.to_le_bytes());
            }
            headers.extend([1u32, 0].iter().flat_map(|word| word.to_le_bytes()));
            headers.extend([1u64, 24].iter().flat_map(|word| word.to_le_bytes()));
            bodies.extend_from_slice(bytes);
        }
        bodies[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bodies[16..20].copy_from_slice(&[1, 0, 247, 0]);
        let at = bodies.len() as u64;
        bodies[40..48].copy_from_slice(&at.to_le_bytes());
        bodies[58..60].copy_from_slice(&64u16.to_le_bytes());
        bodies[60..62].copy_from_slice(&(self.sections.len() as u16 + 3).to_le_bytes());
        bodies[62..64].copy_from_slice(&1u16.to_le_bytes());
        bodies.extend_from_slice(&headers);
        bodies
    }
}

fn refused(bytes: Vec<u8>, why: &str) {
    let start = Instant::now();
    let error = Object::parse(bytes).expect_err(why).to_string();
    assert!(error.contains(why), "{error}");
    assert!(start.elapsed() < Duration::from_secs(10), "it took {:?}", start.elapsed());
}

fn words(words: impl IntoIterator<Item = u32>) -> Vec<u8> {
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}

#[test]
fn bytes_that_stand_for_many_are_not_copied_for_each() {
    // A name of a megabyte, for 60,000 symbols.
    let mut elf = Elf::default();
    let name = elf.name(&"n".repeat(1 << 20));
    (0..60_000).for_each(|_| elf.symbol(name, 0, 0, 0, 0));
    refused(elf.build(), "no end within 1024 bytes");
    // The whole file, as the data of many sections.
    let mut elf = Elf::default();
    for i in 0..1_000 {
        elf.section(&format!(".data.{i}"), 0, Vec::new());
    }
    elf.section("filler", 0, vec![0; 1 << 20]);
    let mut bytes = elf.build();
    let headers = bytes.len() - 64 * 1_004;
    for i in 3..1_003 {
        let at = headers + 64 * i;
        bytes[at + 24..at + 40].copy_from_slice(&[64u64, 1 << 20].map(u64::to_le_bytes).concat());
    }
    refused(bytes, "sections overlap");
}

#[test]
fn what_there_is_too_much_of_is_counted() {
    let mut elf = Elf::default();
    (0..70_000).for_each(|_| elf.symbol(0, 0, 0, 0, 0));
    refused(elf.build(), "more than 65,536 symbols");
    let mut elf = Elf::default();
    for _ in 0..5_000 {
        elf.section("s", 0, Vec::new());
    }
    refused(elf.build(), "more than 4096");
    let mut elf = Elf::default();
    let section = elf.section("maps", 0, vec![0; 20 * 2_000]);
    for i in 0..2_000 {
        let name = elf.name(&format!("m{i}"));
        elf.symbol(name, 1, section, i * 20, 20);
    }
    refused(elf.build(), "more than 1024 maps");
    let mut elf = Elf::default();
    elf.section(".BTF", 0, vec![0; 17 << 20]);
    refused(elf.build(), "that the kernel takes");
}

#[test]
fn lines_are_looked_up_not_searched() {
    let mut elf = Elf::default();
    let (programs, lines) = (1_000, 500_000);
    let section = elf.code("xdp", EXIT.repeat(programs));
    for i in 0..programs {
        let name = elf.name(&format!("p{i}"));
        elf.symbol(name, 2, section, i * 8, 8);
    }
    let types = words([0, 13 << 24, 0, 1, 12 << 24 | 1, 1]);
    elf.section(".BTF", 0, parts::btf(&types, b"f\0xdp"));
    let functions = [8, 3, programs as u32].into_iter().chain((0..programs as u32).flat_map(|i| [i * 8, 2]));
    let lines = [16, 3, lines].into_iter().chain((0..lines).flat_map(|i| [i % programs as u32 * 8, 1, 1, 1024]));
    let (functions, lines) = (words(functions), words(lines));
    let header = words([0x0001_eb9f, 24, 0, functions.len() as u32, functions.len() as u32, lines.len() as u32]);
    elf.section(".BTF.ext", 0, [header, functions, lines].concat());
    let start = Instant::now();
    let object = Object::parse(elf.build()).unwrap();
    let names: Vec<&str> = object.programs().map(|program| program.name.as_str()).collect();
    let linked = object.link(&object.select(names).unwrap(), None).unwrap();
    assert!(linked.values().all(|program| program.line_info == [[0, 1, 1, 1024]]));
    assert!(start.elapsed() < Duration::from_secs(10), "it took {:?}", start.elapsed());
}

#[test]
fn subprograms_are_not_copied_without_end() {
    let mut elf = Elf::default();
    let long = EXIT.repeat(900_000);
    let size = long.len();
    let text = elf.code(".text", long);
    let name = elf.name("long");
    elf.symbol(name, 2, text, 0, size);
    // Each program calls it, by a relocation.
    let call = [0x85, 0x10, 0, 0, 0xff, 0xff, 0xff, 0xff];
    let section = elf.code("xdp", [call, EXIT].concat().repeat(12));
    for i in 0..12 {
        let name = elf.name(&format!("p{i}"));
        elf.symbol(name, 2, section, i * 16, 16);
    }
    let relocations: Vec<u8> = (0..12u64).flat_map(|i| [i * 16, 10].map(u64::to_le_bytes)).flatten().collect();
    let name = elf.name(".relxdp");
    elf.sections.push((name, 9, 0, relocations));
    let mut bytes = elf.build();
    let header = bytes.len() - 64;
    bytes[header + 40..header + 48].copy_from_slice(&[2u32, u32::from(section)].map(u32::to_le_bytes).concat());
    let object = Object::parse(bytes).unwrap();
    let names: Vec<&str> = object.programs().map(|program| program.name.as_str()).collect();
    let error = object.link(&object.select(names).unwrap(), None).unwrap_err();
    assert!(matches!(error, ObjectError::Unsupported { .. }) && error.to_string().contains("name fewer"), "{error}");
    assert!(object.link(&object.select(["p0", "p1"]).unwrap(), None).is_ok());
}

#[test]
fn a_kernels_types_that_never_end_are_refused() {
    // A struct with a member of its own type, without a name.
    let own = words([1, 4 << 24 | 1, 8, 0, 1, 0]);
    // A function that takes a pointer to a function such as it is.
    let prototype = words([0, 13 << 24 | 1, 0, 0, 2, 0, 2 << 24, 1]);
    // Each struct has the one before it twice: looked through, the last is 2^40 structs.
    let twice = words((0..40).flat_map(|i| [1, 4 << 24 | 2, 8, 0, i, 0, 0, i, 32]));
    let chain = words((0..100).flat_map(|i| [1, 4 << 24 | 1, 8, 0, i, 0]));
    for (types, which) in [(own, 1), (prototype, 1), (twice, 17), (chain, 66)] {
        let error = TargetBtf::parse(&parts::btf(&types, b"s")).unwrap_err().to_string();
        assert!(error.contains(&format!("[{which}] contains itself")), "{error}");
    }
}

#[test]
fn a_record_is_not_shown_by_many_flexible_arrays() {
    let byte = [1, 1 << 24, 1, 8];
    let array = [0, 3 << 24, 0, 1, 1, 0];
    let union = |members: u32| {
        let types = byte.into_iter().chain(array).chain([1, 5 << 24 | members, 0]);
        let types = words(types.chain((0..members).flat_map(|_| [1, 2, 0])));
        TypeDesc::of(&Btf::parse(&parts::btf(&types, b"u")).unwrap(), 3)
    };
    assert!(matches!(union(16).kind, TypeKind::Union(_)));
    assert_eq!(union(17).kind, TypeKind::Bytes);
}
