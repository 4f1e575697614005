//! A whole object, as it comes out of somebody's image.

use skep_object::Object;
use skep_object::btf::Btf;
use skep_object::btf::desc::TypeDesc;
use skep_object::btf::sanitize::BtfFeatures;
use skep_object::core::TargetBtf;
use skep_object::disasm::{self, Names};
use skep_object::link::LinkedProgram;

/// Does what the agent does with an object, up to the kernel: parse, select, link, describe.
pub fn run(data: &[u8]) {
    let Ok(object) = Object::parse(data) else { return };
    let names: Vec<&str> = object.programs().map(|program| program.name.as_str()).collect();
    let target = object.btf().and_then(|btf| TargetBtf::parse(btf.bytes()).ok());
    // Each on its own too: one that cannot be linked must not hide the others.
    let each = names.iter().map(std::slice::from_ref).take(16);
    for chosen in each.chain([&names[..]]) {
        let Ok(selection) = object.select(chosen.iter().copied()) else { continue };
        for target in [None, target.as_ref()] {
            let linked = object.link(&selection, target).unwrap_or_default();
            linked.values().for_each(|program| check(&object, program));
        }
    }
    describe(&object);
}

/// What the kernel crate takes for granted.
fn check(object: &Object, program: &LinkedProgram) {
    let slots = program.insns.len();
    for reference in &program.maps {
        assert!(reference.slot + 1 < slots && reference.map < object.maps().len(), "{reference:?} is not there");
    }
    for (slot, insn) in program.insns.iter().enumerate() {
        let _ = disasm::text(*insn, program.insns.get(slot + 1).copied(), slot, &Nameless);
    }
    let starts = program.func_info.iter().map(|[slot, _]| slot).chain(program.line_info.iter().map(|[slot, ..]| slot));
    assert!(starts.into_iter().all(|slot| (*slot as usize) < slots), "information lies outside of the program");
}

fn describe(object: &Object) {
    let [all, none] = [BtfFeatures::ALL, BtfFeatures { decl_tag: false, type_tag: false, enum64: false }]
        .map(|features| object.btf_for_kernel(features));
    for bytes in [all, none].into_iter().flatten() {
        let loaded = Btf::parse(&bytes);
        assert!(loaded.is_ok(), "what goes to the kernel is no BTF: {loaded:?}");
    }
    let Some(btf) = object.btf() else { return };
    for (index, map) in object.maps().iter().enumerate().take(64) {
        let _ = object.initial_entries(index);
        let (_, value) = (TypeDesc::of(btf, map.key_type), TypeDesc::of(btf, map.value_type));
        let data = map.data.as_ref().map_or(&[][..], |data| &data.bytes);
        let _ = value.decode(&data[..data.len().min(4096)]);
    }
    for name in object.variables().into_iter().take(64) {
        for value in [serde_json::json!(1), serde_json::json!({})] {
            let _ = object.with_globals([(&name.to_owned(), &value)]);
        }
    }
}

struct Nameless;

impl Names for Nameless {
    fn call(&self, _: i32) -> Option<String> {
        None
    }
    fn map(&self, _: u32) -> Option<String> {
        None
    }
    fn function(&self, _: usize) -> Option<String> {
        None
    }
}
