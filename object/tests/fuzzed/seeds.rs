//! What the fuzzer begins with: objects that clang makes of tests/c, whole and in parts. With `SKEP_BLESS=1` they are
//! written into tests/corpus.

use std::path::Path;
use std::process::Command;

use skep_object::Object;
use skep_object::btf::ext;
use skep_object::btf::sanitize::BtfFeatures;
use skep_object::elf::Elf;

use crate::{btf, parse, parts, relocate};

/// An object without what only debuggers read.
fn object(source: &str, define: &[&str]) -> Vec<u8> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c").join(source);
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.o");
    let mut clang = Command::new("clang");
    clang.args(["-g", "-O2", "-Wno-visibility", "-target", "bpf", "-I/usr/include/x86_64-linux-gnu", "-c"]);
    // Where the checkout is belongs into no seed.
    clang.arg(concat!("-fdebug-prefix-map=", env!("CARGO_MANIFEST_DIR"), "=/object"));
    let status = clang.args(define).arg(source).arg("-o").arg(&out).status();
    assert!(status.expect("clang; `cargo xtask setup` installs it").success());
    std::fs::read(&out).unwrap()
}

fn keep(target: &str, name: &str, bytes: &[u8]) {
    if std::env::var_os("SKEP_BLESS").is_some() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(target);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(format!("seed-{name}")), bytes).unwrap();
    }
}

/// An object with the sections that matter alone: debuggers' are many times as large.
fn slim(bytes: &[u8]) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let status = Command::new("llvm-strip").arg("--strip-debug").arg(file.path()).status();
    assert!(status.expect("llvm-strip").success());
    std::fs::read(file.path()).unwrap()
}

#[test]
fn whole_objects_are_taken() {
    for source in ["core.bpf.c", "linked.bpf.c", "shapes.bpf.c"] {
        let bytes = object(source, &[]);
        let parsed = Object::parse(bytes.as_slice()).unwrap();
        let names: Vec<&str> = parsed.programs().map(|program| program.name.as_str()).collect();
        let selection = parsed.select(names).unwrap();
        assert!(source == "core.bpf.c" || parsed.link(&selection, None).is_ok(), "{source}");
        parse::run(&bytes);
        if std::env::var_os("SKEP_BLESS").is_some() {
            keep("parse", source.trim_end_matches(".bpf.c"), &slim(&bytes));
        }
    }
}

#[test]
fn relocations_find_what_they_look_for() {
    let kernel = object("core.bpf.c", &["-DKERNEL"]);
    let kernel = Object::parse(kernel).unwrap();
    let (kernel_types, kernel_strings) = parts::of_btf(kernel.btf().unwrap().bytes()).unwrap();
    let bytes = object("core.bpf.c", &[]);
    let elf = Elf::parse(bytes.into()).unwrap();
    let types = skep_object::btf::Btf::parse(elf.bytes(elf.section(".BTF").unwrap())).unwrap();
    let ext = ext::parse(elf.bytes(elf.section(".BTF.ext").unwrap()), &types).unwrap();
    let (own_types, own_strings) = parts::of_btf(types.bytes()).unwrap();
    for section in ["raw_tp/reads", "tp_btf/direct", "raw_tp/asks"] {
        let records = ext[section].relocations.iter().flat_map(|r| [r.offset, r.type_id, r.access, r.kind]);
        let records: Vec<u8> = records.flat_map(u32::to_le_bytes).collect();
        let code = elf.bytes(elf.section(section).unwrap());
        let seed = parts::join(&[own_types, own_strings, code, &records, kernel_types, kernel_strings]);
        assert_eq!(relocate::relocated(&seed).unwrap(), code.len() / 8, "{section}");
        keep("relocate", &section.replace('/', "-"), &seed);
    }
}

#[test]
fn types_and_values_are_shown() {
    for source in ["shapes.bpf.c", "linked.bpf.c"] {
        let object = Object::parse(object(source, &[])).unwrap();
        let kernel = object.btf_for_kernel(BtfFeatures::ALL).unwrap();
        let (types, strings) = parts::of_btf(&kernel).unwrap();
        let data = object.maps().iter().find(|map| map.name == ".data").unwrap().data.as_ref().unwrap();
        let condition = b"value.unsigned_4 >= 7 and (key.letter == \"a\" or not value.address ^= \"10.\")";
        let seed = parts::join(&[types, strings, &data.bytes, condition]);
        btf::run(&seed);
        btf::run(&kernel);
        let name = source.trim_end_matches(".bpf.c");
        keep("btf", name, &seed);
        keep("btf", &format!("{name}-raw"), &kernel);
    }
}
