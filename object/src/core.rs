//! CO-RE: fields and types of the object found again in the running kernel's BTF.
//!
//! The algorithm is aya-obj's. That library trusts its input, so it never sees the user's file: it gets an ELF that
//! this module writes, with nothing in it but the functions at hand, their BTF and their relocations.
//!
//! **Caveats.** Not possible with aya-obj 0.3, refused with a sentence: `bpf_core_type_matches`, relocation against
//! module BTF.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use aya_obj::btf::Btf as AyaBtf;
use object::write::{Object as ElfWriter, StandardSection, Symbol, SymbolSection};
use object::{Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope};

use crate::btf::ext::{BtfExt, CoreRelocation};
use crate::btf::{Btf, Kind, nesting};
use crate::elf::{Elf, INSN};
use crate::error::ObjectError;
use crate::function::{Function, FunctionKey};
use crate::insn::Insn;

/// The kinds of enum bpf_core_relo_kind that aya-obj knows: all before BPF_CORE_TYPE_MATCHES (12).
const KNOWN_KINDS: u32 = 12;
/// Those that are about a type as a whole, as the kernel has it, or about a value of an enum: BPF_CORE_TYPE_ID_TARGET to
/// BPF_CORE_ENUMVAL_VALUE.
const ABOUT_TYPES: std::ops::RangeInclusive<u32> = 7..=11;

/// The types that programs are relocated against: a kernel's. Costly to parse (tens of milliseconds), cheap to share.
#[derive(Debug)]
pub struct TargetBtf {
    relocation: AyaBtf,
    lookup: Btf,
    /// Tells it from any other of this process.
    number: u64,
}

impl TargetBtf {
    /// Parses a kernel's BTF, e.g. the contents of /sys/kernel/btf/vmlinux. Types on which the library would not come
    /// back are refused.
    pub fn parse(data: &[u8]) -> Result<Self, ObjectError> {
        let lookup = Btf::parse(data)?;
        nesting::check(&lookup)?;
        let relocation = contained(|| AyaBtf::parse(data, aya_obj_endianness()).map_err(|e| chain(&e)))
            .map_err(|reason| ObjectError::BadBtf { reason: format!("the kernel's BTF: {reason}") })?;
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Ok(TargetBtf { relocation, lookup, number: NEXT.fetch_add(1, Ordering::Relaxed) })
    }
    /// For looking up types by name.
    pub fn types(&self) -> &Btf {
        &self.lookup
    }
}

fn aya_obj_endianness() -> object::Endianness {
    Endianness::Little
}

/// Functions of one object after relocation, for the kernel that they were relocated for last: finding fields and types again
/// is most of what a load takes. Clones of an object share it.
#[derive(Clone, Debug, Default)]
pub struct Relocated(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    /// The kernel's number.
    target: u64,
    functions: BTreeMap<FunctionKey, Vec<Insn>>,
}

impl Relocated {
    /// The given functions relocated, as far as they have relocations: those that were before are not again.
    pub fn of(
        &self,
        elf: &Elf,
        btf: &Btf,
        ext: &BtfExt,
        functions: &[&Function],
        target: &TargetBtf,
    ) -> Result<BTreeMap<FunctionKey, Vec<Insn>>, ObjectError> {
        // Only whole results are put in, so that a panic elsewhere leaves nothing that is wrong.
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.target != target.number {
            *known = Known { target: target.number, functions: BTreeMap::new() };
        }
        let missing = functions.iter().filter(|f| !known.functions.contains_key(&f.key)).copied();
        let missing: Vec<&Function> = missing.collect();
        known.functions.extend(relocate(elf, btf, ext, &missing, target)?);
        let own = functions.iter().filter_map(|f| known.functions.get_key_value(&f.key));
        Ok(own.map(|(key, insns)| (*key, insns.clone())).collect())
    }
}

/// Relocates the given functions; the result holds those that have relocations.
fn relocate(
    elf: &Elf,
    btf: &Btf,
    ext: &BtfExt,
    functions: &[&Function],
    target: &TargetBtf,
) -> Result<BTreeMap<FunctionKey, Vec<Insn>>, ObjectError> {
    let mut work = Vec::new();
    for function in functions {
        let Some(info) = ext.get(&elf.sections[function.key.0].name) else { continue };
        let relocations = info.relocations_of(function);
        if let Some(unknown) = relocations.iter().find(|r| r.kind >= KNOWN_KINDS) {
            let reason = format!("relocation kind {} (bpf_core_type_matches) is not supported", unknown.kind);
            return Err(ObjectError::Unsupported { function: function.name.clone(), reason });
        }
        if !relocations.is_empty() {
            work.push((*function, relocations.to_vec()));
        }
    }
    if work.is_empty() {
        return Ok(BTreeMap::new());
    }
    let roots: BTreeSet<u32> = work.iter().flat_map(|(_, relocations)| relocations).map(|r| r.type_id).collect();
    let roots = roots.len();
    let mut unreadable = Vec::new();
    loop {
        let all: Vec<Work<'_>> =
            work.iter().map(|(function, relocations)| (*function, relocations.as_slice())).collect();
        let reason = match run(elf, btf, &all, target) {
            Ok(mut done) => {
                for (key, slot) in unreadable {
                    done.entry(key).and_modify(|insns| insns[slot] = NOWHERE);
                }
                return Ok(done);
            }
            Err(reason) => reason,
        };
        let failure = |part: &[Work<'_>]| run(elf, btf, part, target).err();
        let (at, reason) = first_failure(&all, reason, failure);
        let (function, relocations) = all[at];
        let one = first_failing(function, relocations, failure);
        let access = relocations.get(one).and_then(|relocation| accessed(elf, function, relocation));
        let Some(slot) = access.filter(|_| (unreadable.len() + 1) * roots <= MAX_UNREADABLE) else {
            return Err(ObjectError::CoreRelocation { function: function.name.clone(), reason });
        };
        unreadable.push((function.key, slot));
        work[at].1.remove(one);
    }
}

type Work<'a> = (&'a Function, &'a [CoreRelocation]);

/// What libbpf makes of an access to a field that the kernel has with another size, where an access has only one: a call to
/// nowhere. The verifier never comes to it where the program has asked for the size before.
const NOWHERE: Insn = Insn { code: 0x85, regs: 0, off: 0, imm: 0x0bad_2310 };
/// Most such accesses of one selection, times the types that its relocations begin at: to find one takes some more runs, whose
/// cost grows with those.
const MAX_UNREADABLE: usize = 1024;

/// The slot of a relocation of where a field lies, if its instruction loads or stores the field.
fn accessed(elf: &Elf, function: &Function, relocation: &CoreRelocation) -> Option<usize> {
    const BYTE_OFFSET: u32 = 0;
    // BPF_LDX, BPF_ST, BPF_STX.
    let code = elf.bytes(function.key.0)[relocation.offset as usize];
    let access = relocation.kind == BYTE_OFFSET && matches!(code & 7, 1..=3);
    access.then(|| (u64::from(relocation.offset) - function.key.1) as usize / INSN)
}

/// The index of the first function that fails, and why. Halves are tried, not one after the other: there may be a thousand.
fn first_failure(
    work: &[Work<'_>],
    mut reason: String,
    failure: impl Fn(&[Work<'_>]) -> Option<String>,
) -> (usize, String) {
    let mut range = 0..work.len();
    while range.len() > 1 {
        let middle = range.start + range.len() / 2;
        match failure(&work[range.start..middle]) {
            Some(its) => (range, reason) = (range.start..middle, its),
            None => {
                range.start = middle;
                reason = failure(&work[range.clone()]).unwrap_or(reason);
            }
        }
    }
    (range.start, reason)
}

/// The index of the first relocation of a function that fails.
fn first_failing(
    function: &Function,
    relocations: &[CoreRelocation],
    failure: impl Fn(&[Work<'_>]) -> Option<String>,
) -> usize {
    let mut range = 0..relocations.len();
    while range.len() > 1 {
        let middle = range.start + range.len() / 2;
        match failure(&[(function, &relocations[range.start..middle])]) {
            Some(_) => range.end = middle,
            None => range.start = middle,
        }
    }
    range.start
}

fn run(
    elf: &Elf,
    btf: &Btf,
    work: &[Work<'_>],
    target: &TargetBtf,
) -> Result<BTreeMap<FunctionKey, Vec<Insn>>, String> {
    let (bytes, places) = write_elf(elf, btf, work, target)?;
    let relocated = contained(|| {
        let mut object = aya_obj::Object::parse(&bytes).map_err(|e| chain(&e))?;
        object.relocate_btf(&target.relocation).map_err(|e| chain(&e))?;
        Ok(object.functions)
    })?;
    let mut out = BTreeMap::new();
    for ((_, address), function) in relocated {
        let Some(key) = places.get(&address) else { continue };
        let insns = function.instructions.iter().map(|i| Insn {
            code: i.code,
            regs: i.dst_reg() | i.src_reg() << 4,
            off: i.off,
            imm: i.imm,
        });
        out.insert(*key, insns.collect());
    }
    if out.len() == work.len() { Ok(out) } else { Err("a function was lost in relocation".into()) }
}

/// What the library returns, or that it panicked. It is not built for hostile input: what it gets is sane, but what a
/// relocation asks of a type need not be (a bit field where the kernel has none, a bit field of a type without a size).
fn contained<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let gave_up = |_| Err("the relocation library gave up on this object".to_owned());
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(gave_up)
}

/// An ELF with the functions one after the other in `.text`.
fn write_elf(
    elf: &Elf,
    btf: &Btf,
    work: &[Work<'_>],
    target: &TargetBtf,
) -> Result<(Vec<u8>, BTreeMap<u64, FunctionKey>), String> {
    let mut writer = ElfWriter::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
    let text = writer.section_id(StandardSection::Text);
    let mut places = BTreeMap::new();
    let mut records = Vec::new();
    for (i, (function, relocations)) in work.iter().enumerate() {
        let (section, at) = (function.key.0, function.key.1 as usize);
        let offset = writer.append_section_data(text, &elf.bytes(section)[at..at + function.size], 8);
        places.insert(offset, function.key);
        writer.add_symbol(Symbol {
            name: format!("f{i}").into_bytes(),
            value: offset,
            size: function.size as u64,
            kind: SymbolKind::Text,
            scope: SymbolScope::Linkage,
            weak: false,
            section: SymbolSection::Section(text),
            flags: SymbolFlags::None,
        });
        for r in *relocations {
            records.push([(u64::from(r.offset) - function.key.1 + offset) as u32, r.type_id, r.access, r.kind]);
        }
    }
    let others = enums_of_other_width(btf, &records, target);
    for [_, type_id, _, kind] in &mut records {
        if let Some(at) = others.iter().position(|id| id == type_id).filter(|_| ABOUT_TYPES.contains(kind)) {
            *type_id = btf.len() + at as u32;
        }
    }
    let (types, name) = relocation_btf(btf, &others);
    let section = writer.add_section(Vec::new(), b".BTF".to_vec(), SectionKind::Other);
    writer.append_section_data(section, &types, 4);
    let section = writer.add_section(Vec::new(), b".BTF.ext".to_vec(), SectionKind::Other);
    writer.append_section_data(section, &ext_section(name, &records), 4);
    writer.write().map(|bytes| (bytes, places)).map_err(|e| e.to_string())
}

/// Enums that relocations are about, and that the kernel has with values of 64 bits where the object has 32, or the
/// other way round. To libbpf they are the same; aya-obj 0.3 would not find them, and say that they do not exist.
fn enums_of_other_width(btf: &Btf, records: &[[u32; 4]], target: &TargetBtf) -> Vec<u32> {
    let about = records.iter().filter(|[_, _, _, kind]| ABOUT_TYPES.contains(kind)).map(|[_, type_id, ..]| *type_id);
    let enums: BTreeSet<u32> = about.filter(|id| matches!(btf.kind(*id), Kind::Enum | Kind::Enum64)).collect();
    let known = |id: u32, kind: Kind| {
        let types = target.types();
        let plain = flavorless(btf.name(id));
        (1..types.len()).any(|theirs| types.kind(theirs) == kind && flavorless(types.name(theirs)) == plain)
    };
    let other = |kind| if kind == Kind::Enum { Kind::Enum64 } else { Kind::Enum };
    enums.into_iter().filter(|id| !known(*id, btf.kind(*id)) && known(*id, other(btf.kind(*id)))).collect()
}

/// A name without what an object may add to it to have several of one name.
fn flavorless(name: &str) -> &str {
    name.split_once("___").map_or(name, |(plain, _)| plain)
}

/// The BTF with these enums in their other width at the end, with the name `.text` added (its offset is returned), and with
/// flexible arrays made long: aya-obj 0.3 takes an access into an array of length 0 for an error.
fn relocation_btf(btf: &Btf, enums: &[u32]) -> (Vec<u8>, u32) {
    let others: Vec<u8> = enums.iter().flat_map(|id| btf.other_enum(*id)).collect();
    let (mut out, name) = btf.with(&others, ".text");
    for id in 1..btf.len() {
        if btf.kind(id) != Kind::Struct {
            continue;
        }
        if let Some(last) = btf.members(id).last() {
            let array = btf.resolve(last.type_id);
            if btf.kind(array) == Kind::Array && btf.array_len(array) == 0 {
                // The library's sizes have 32 bits.
                let element = btf.size(btf.target(array)).unwrap_or(0).max(1);
                let most = (u64::from(u32::MAX) / element).min(0xffff);
                btf.set_array_len(&mut out, array, most as u32);
            }
        }
    }
    (out, name)
}

fn ext_section(name: u32, records: &[[u32; 4]]) -> Vec<u8> {
    const HEADER: u32 = 32;
    let relocations = 4 + 8 + 16 * records.len() as u32;
    let mut words: Vec<u32> = vec![0x0001_eb9f, HEADER, 0, 0, 0, 0, 0, relocations];
    words.extend([16, name, records.len() as u32]);
    words.extend(records.iter().flatten());
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        text.push_str(": ");
        text.push_str(&e.to_string());
        cause = e.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_function_is_relocated_once_for_a_kernel() {
        let object = crate::Object::parse(&include_bytes!("../tests/corpus/parse/seed-core")[..]).unwrap();
        let selection = object.select(["direct"]).unwrap();
        // Its own types stand for a kernel's, and for another's.
        let kernel = || TargetBtf::parse(object.btf().unwrap().bytes()).unwrap();
        let (one, other) = (kernel(), kernel());
        let first = object.link(&selection, Some(&one)).unwrap();
        let known = |number: u64| {
            let known = object.relocated.0.lock().unwrap();
            (known.target == number).then(|| known.functions.keys().copied().collect::<Vec<_>>())
        };
        let functions = known(one.number).unwrap();
        assert!(!functions.is_empty());
        // What is kept is what is used: it is changed here to tell.
        let exit = Insn { code: 0x95, regs: 0, off: 0, imm: 0 };
        object.relocated.0.lock().unwrap().functions.insert(functions[0], vec![exit]);
        assert_ne!(object.clone().link(&selection, Some(&one)).unwrap(), first, "it was relocated again");
        assert_eq!(object.link(&selection, Some(&other)).unwrap(), first, "what is of one kernel is not another's");
        assert_eq!((known(one.number), known(other.number)), (None, Some(functions)));
    }

    #[test]
    fn the_first_function_that_fails_is_named() {
        let named = |i: u64| {
            let key = (1, i * 8);
            Function { name: format!("f{i}"), key, size: 8, references: BTreeMap::new() }
        };
        let functions: Vec<Function> = (0..9).map(named).collect();
        let work: Vec<Work<'_>> = functions.iter().map(|function| (function, &[][..])).collect();
        for bad in [BTreeSet::from([0]), BTreeSet::from([8]), BTreeSet::from([3, 4, 7])] {
            let failure = |part: &[Work<'_>]| {
                let first = part.iter().map(|(function, _)| function.key.1 / 8).find(|i| bad.contains(i))?;
                Some(format!("reason {first}"))
            };
            let first = bad.first().unwrap();
            let found = first_failure(&work, "of all".to_owned(), failure);
            assert_eq!(found, (*first as usize, format!("reason {first}")));
        }
    }
}
