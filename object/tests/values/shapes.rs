//! What clang makes of tests/c/shapes.bpf.c, against tests/golden/shapes.json. With `SKEP_BLESS=1` it is written anew.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use skep_object::Object;
use skep_object::btf::desc::{TypeDesc, TypeKind};
use skep_object::btf::encode::encode;
use skep_object::btf::sanitize::BtfFeatures;
use skep_object::btf::{Btf, Kind};

use crate::print;

/// The type and the bytes of the data section.
fn data() -> (TypeDesc, Vec<u8>) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c/shapes.bpf.c");
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.o");
    let mut clang = Command::new("clang");
    clang.args(["-g", "-O2", "-Wno-visibility", "-target", "bpf", "-I/usr/include/x86_64-linux-gnu", "-c"]);
    let status = clang.arg(source).arg("-o").arg(&out).status();
    assert!(status.expect("clang; `cargo xtask setup` installs it").success());
    let object = Object::parse(std::fs::read(&out).unwrap()).unwrap();
    // Only what is made for the kernel has the variables' places.
    let btf = Btf::parse(&object.btf_for_kernel(BtfFeatures::ALL).unwrap()).unwrap();
    let desc = TypeDesc::of(&btf, btf.find(".data", Kind::Datasec).unwrap());
    let map = object.maps().iter().find(|map| map.name == ".data").unwrap();
    (desc, map.data.as_ref().unwrap().bytes.clone())
}

#[test]
fn every_shape_is_shown_as_documented() {
    let (desc, bytes) = data();
    let text = format!("{:#}\n", desc.decode(&bytes));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/shapes.json");
    if std::env::var_os("SKEP_BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "if the new output is right, run again with SKEP_BLESS=1");
    print::check(&desc, &bytes, "shapes");
}

#[test]
fn every_shape_is_written_as_it_is_shown() {
    let (desc, mut bytes) = data();
    // Through text, as a script would.
    let shown: Value = serde_json::from_str(&desc.decode(&bytes).to_string()).unwrap();
    let written = encode(&desc, &shown).unwrap();
    // What is left over after a text's end is the one thing that is not written again.
    let left = field(&desc, "after_text");
    bytes[left + 3..left + 7].fill(0);
    assert_eq!(written, bytes);
}

fn field(desc: &TypeDesc, name: &str) -> usize {
    let TypeKind::Struct(fields) = &desc.kind else { panic!("no section") };
    fields.iter().find(|field| field.name == name).unwrap().bit_offset as usize / 8
}
