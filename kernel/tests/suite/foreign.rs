//! Objects that others built, each loaded by Skep and by libbpf: `kernel/tests/objects/foreign/README.md`.

mod libbpf;
mod verdict;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use skep_kernel::seam::{Kernel, LoadRequest, Variant};
use skep_object::Object;
use skep_object::kind::{AttachTo, Kind, LoadAttributes};

use super::fixture::Fixture;
use verdict::{Exceptions, Outcome, Verdict};

const DIR: &str = "SKEP_FOREIGN_OBJECTS";

/// One line per object, written past the harness: it is what somebody who tries their own objects wants to read.
#[test]
fn objects_are_loaded_as_libbpf_loads_them() {
    let mut out = std::io::stdout().lock();
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else {
        writeln!(out, "SKIPPED: {DIR} names no directory of objects").unwrap();
        return;
    };
    if let Some(reason) = libbpf::obstacle() {
        writeln!(out, "SKIPPED: {reason}").unwrap();
        return;
    }
    let objects = objects_in(&dir);
    assert!(!objects.is_empty(), "{} holds no file that ends in .o", dir.display());
    let mut exceptions = Exceptions::read(include_str!("../objects/foreign/exceptions"));
    let mut sum = Verdict::default();
    writeln!(out).unwrap();
    for path in &objects {
        let name = path.file_name().unwrap().to_string_lossy();
        // First the name: whoever comes to grief over an object is seen with it.
        write!(out, "{name}: ").unwrap();
        out.flush().unwrap();
        let object = Object::parse(std::fs::read(path).unwrap()).map(Arc::new);
        let libbpf = libbpf::load(path, object.as_deref().ok());
        let skep = object.map_err(|e| e.to_string()).and_then(|object| by_skep(&object, libbpf.is_ok()));
        let verdict = Verdict::of(&name, &skep, &libbpf, &mut exceptions);
        write!(out, "{verdict}").unwrap();
        sum.add(&verdict);
    }
    let unused = exceptions.unused();
    for exception in &unused {
        writeln!(out, "the exception of {exception} is needed no longer: take it out").unwrap();
    }
    writeln!(out, "{} objects: {}", objects.len(), sum.figures()).unwrap();
    assert!(sum.failures.is_empty(), "not as libbpf: {:#?}", sum.failures);
    assert!(unused.is_empty(), "exceptions that are needed no longer: {unused:?}");
}

fn objects_in(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut objects: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    objects.retain(|path| path.extension().is_some_and(|extension| extension == "o"));
    objects.sort();
    objects
}

/// What becomes of each program, loaded on its own. Maps without a number of entries are sized by the programs that come
/// with an object, which bpftool does not: where it loads nothing, they have one entry here, as `spec.maps` would say.
fn by_skep(object: &Arc<Object>, as_they_are: bool) -> Outcome {
    let mut maps = object.with_globals([]).map_err(|e| e.to_string())?;
    let sizeless = maps.iter_mut().filter(|def| def.max_entries == 0 && SIZED.contains(&def.map_type));
    sizeless.filter(|_| !as_they_are).for_each(|def| def.max_entries = 1);
    let f = Fixture::new();
    let mut programs = BTreeMap::new();
    for function in object.programs() {
        let section = object.section_of(function);
        let tag = match attributes(section) {
            // Neither loader knows whose function it takes before somebody says it.
            Some(_) if Kind::of_section(section) == Some(Kind::Freplace) => {
                Err("it replaces a function of a program that is named as it is attached".into())
            }
            Some(attributes) => {
                let variants = [Variant { function: function.name.clone(), attributes }].into();
                let (object, maps) = (object.clone(), maps.clone());
                tag_of(&f, &LoadRequest { object, maps, variants, keep: BTreeMap::new(), share: BTreeMap::new() })
            }
            None => Err(format!("Skep has no kind of program for section {section}")),
        };
        programs.insert(function.name.clone(), tag);
    }
    Ok(programs)
}

/// hash, array, percpu_hash, percpu_array, stack_trace, lru_hash, lru_percpu_hash, devmap, sockmap, cpumap, xskmap, sockhash,
/// queue, stack, devmap_hash.
const SIZED: [u32; 15] = [1, 2, 5, 6, 7, 9, 10, 14, 15, 16, 17, 18, 22, 23, 25];

fn tag_of(f: &Fixture, request: &LoadRequest) -> Result<String, String> {
    f.host.load(&f.uid, "l", request).map_err(|e| e.to_string())?;
    let pin = request.variants.first().unwrap().pin();
    let tag = f.host.observe(&f.uid).unwrap().loads["l"].programs[&pin].tag.clone();
    f.host.remove_program(&f.uid).unwrap();
    Ok(tag)
}

fn attributes(section: &str) -> Option<LoadAttributes> {
    let section = section.trim_start_matches('?');
    let head = section.split('/').next().unwrap();
    let named = |name| BEYOND.iter().find(|(own, ..)| *own == name);
    let beyond = named(section).or_else(|| named(head));
    let plain = |(_, program_type, expected_attach_type, flags): &(&str, u32, u32, u32)| LoadAttributes {
        program_type: *program_type,
        expected_attach_type: *expected_attach_type,
        flags: *flags,
        attach_to: AttachTo::Nothing,
        gate: None,
        copy: None,
    };
    beyond.map(plain).or_else(|| LoadAttributes::of_section(section))
}

/// Sections of libbpf whose programs Skep attaches to nothing, but whose instructions its loader makes like any other's:
/// program type, attach type and flags (include/uapi/linux/bpf.h).
const BEYOND: [(&str, u32, u32, u32); 14] = [
    ("socket", 1, 0, 0),
    ("usdt", 2, 0, 0),
    ("usdt.s", 2, 0, 16),
    ("action", 4, 0, 0),
    ("xdp/devmap", 6, 33, 0),
    ("xdp/cpumap", 6, 35, 0),
    ("lwt_in", 10, 0, 0),
    ("lwt_out", 11, 0, 0),
    ("lwt_xmit", 12, 0, 0),
    ("lwt_seg6local", 19, 0, 0),
    ("lirc_mode2", 20, 16, 0),
    ("sk_reuseport", 21, 39, 0),
    ("sk_reuseport/migrate", 21, 40, 0),
    ("syscall", 31, 0, 16),
];
