//! Loading: maps are made, programs get their descriptors and go to the verifier. Nothing is pinned here: a failure
//! leaves nothing behind but dropped descriptors.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use skep_object::btf::Kind as BtfKind;
use skep_object::btf::sanitize::BtfFeatures;
use skep_object::core::TargetBtf;
use skep_object::function::{Function, FunctionKey};
use skep_object::kind::{AttachTo, Kind};
use skep_object::link::LinkedProgram;
use skep_object::map::{MapDef, map_type};
use skep_object::{InitialValue, Object, ObjectError, Selection};

use crate::age;
use crate::error::KernelError;
use crate::externs::{self, Externs};
use crate::functions;
use crate::gate;
use crate::seam::{LoadRequest, Variant};
use crate::sys::map::{Map, types};
use crate::sys::{self, program};
use crate::{kconfig, modules};

/// Everything of a load, by descriptor.
#[derive(Debug)]
pub struct Loaded {
    pub maps: BTreeMap<String, OwnedFd>,
    /// By pin name.
    pub programs: BTreeMap<String, OwnedFd>,
}

/// All that programs need before they can be loaded.
struct Made {
    selection: Selection,
    externs: Externs,
    linked: BTreeMap<FunctionKey, LinkedProgram>,
    btf: Option<OwnedFd>,
    /// By index.
    maps: BTreeMap<usize, OwnedFd>,
    /// Of them those that were made.
    fresh: Vec<usize>,
    /// By the name of the gate's map.
    gates: BTreeMap<String, OwnedFd>,
}

/// Makes what the programs of a request need. Maps in `reuse` are taken as they are.
fn make(
    request: &LoadRequest,
    mut reuse: BTreeMap<String, OwnedFd>,
    target: Option<&TargetBtf>,
) -> Result<Made, KernelError> {
    let object = &request.object;
    let selection = object.select(request.variants.iter().map(|v| v.function.as_str()))?;
    let linked = object.link(&selection, target)?;
    let externs = externs::find(object, &selection.externs, target)?;
    let btf = load_btf(request);

    let mut maps: BTreeMap<usize, OwnedFd> = BTreeMap::new();
    let mut fresh = Vec::new();
    for index in &selection.maps {
        let def = &request.maps[*index];
        let fd = match reuse.remove(&def.name) {
            Some(fd) => fd,
            None => {
                fresh.push(*index);
                let configured = (object.config_map() == Some(*index)).then(|| configured(def, object, &selection));
                let def = configured.transpose()?;
                create_map(def.as_ref().unwrap_or(&request.maps[*index]), btf.as_ref().map(AsFd::as_fd))?
            }
        };
        maps.insert(*index, fd);
    }
    for index in &fresh {
        fill_inner_maps(request, *index, &maps)?;
    }

    let mut gates = BTreeMap::new();
    for gate in request.variants.iter().filter_map(|v| v.attributes.gate.as_ref()) {
        let fd = reuse.remove(&gate::map_name(gate)).map_or_else(|| create_map(&gate::map_def(gate), None), Ok)?;
        gates.insert(gate::map_name(gate), fd);
    }

    Ok(Made { selection, externs, linked, btf, maps, fresh, gates })
}

/// The map of the kernel's configuration, with what is asked of it.
fn configured(def: &MapDef, object: &Object, selection: &Selection) -> Result<MapDef, KernelError> {
    let mut def = def.clone();
    if let Some(data) = &mut def.data {
        kconfig::fill(selection.externs.iter().map(|index| &object.externs()[*index]), &mut data.bytes)?;
    }
    Ok(def)
}

impl Made {
    /// Does something with every program of a request.
    fn each(
        &self,
        request: &LoadRequest,
        target: Option<&TargetBtf>,
        mut run: impl FnMut(FunctionKey, &Variant, &program::Load<'_>) -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        for key in &self.selection.programs {
            let Some(function) = request.object.function(*key) else { continue };
            for variant in variants_of(request, function) {
                let gate = variant.attributes.gate.as_ref().and_then(|g| self.gates.get(&gate::map_name(g)));
                let gated = gate.map(|fd| gate::prepend(&self.linked[key], fd.as_fd()));
                let linked = gated.as_ref().unwrap_or(&self.linked[key]);
                let btf = self.btf.as_ref().map(AsFd::as_fd);
                let run = |load: &program::Load<'_>| run(*key, &variant, load);
                with_program(self, request, linked, &variant, btf, target, run)?;
            }
        }
        Ok(())
    }
}

/// What the verifier says of a program.
#[derive(Debug)]
pub struct Verified {
    pub function: String,
    /// Why it refuses it.
    pub refused: Option<KernelError>,
    pub log: String,
}

/// Has all variants of a request verified, and leaves nothing. Maps are made small where their size does not matter.
pub fn verify(request: &LoadRequest, target: Option<&TargetBtf>) -> Result<Vec<Verified>, KernelError> {
    let request = alone(request, 1);
    let mut all = Vec::new();
    make(&request, BTreeMap::new(), target)?.each(&request, target, |_, variant, load| {
        let function = variant.function.clone();
        let (result, log) = load.verify();
        let too_old = || age::of_load(&variant.attributes);
        let refused =
            |error| KernelError::refused_load(&function, program::Refused { error, log: log.clone() }, too_old);
        let refused = result.err().map(refused);
        all.push(Verified { function, refused, log });
        Ok(())
    })?;
    Ok(all)
}

/// Loads the programs of a request beside whatever runs, with maps of their own, to be run on demand. Gates are left out:
/// who runs them is in no pod.
pub fn copy(request: &LoadRequest, target: Option<&TargetBtf>) -> Result<Loaded, KernelError> {
    let ungated = |variant: &Variant| {
        let mut variant = variant.clone();
        variant.attributes.gate = None;
        variant
    };
    let request = alone(request, 1024);
    let variants = request.variants.iter().map(ungated).collect();
    load(&LoadRequest { variants, ..request }, BTreeMap::new(), target)
}

/// A request for something that shares nothing, with maps of so many entries where it does not matter.
fn alone(request: &LoadRequest, entries: u32) -> LoadRequest {
    let mut request = LoadRequest { share: BTreeMap::new(), keep: BTreeMap::new(), ..request.clone() };
    let sizeless = request.maps.iter_mut().filter(|def| SIZELESS.contains(&def.map_type));
    sizeless.for_each(|def| def.max_entries = def.max_entries.min(entries));
    request
}

/// Maps of whose number of entries no program can tell: hash, percpu_hash, lru_hash, lru_percpu_hash, lpm_trie.
const SIZELESS: [u32; 5] = [1, 5, 9, 10, 11];

/// Loads all variants of a request. Maps in `reuse` are taken as they are, the others are made.
pub fn load(
    request: &LoadRequest,
    reuse: BTreeMap<String, OwnedFd>,
    target: Option<&TargetBtf>,
) -> Result<Loaded, KernelError> {
    let made = make(request, reuse, target)?;
    let mut programs = BTreeMap::new();
    let mut by_function = BTreeMap::new();
    made.each(request, target, |key, variant, load| {
        let too_old = || age::of_load(&variant.attributes);
        let fd = load.run().map_err(|refused| KernelError::refused_load(&variant.function, refused, too_old))?;
        by_function.entry(key).or_insert_with(|| variant.pin());
        programs.insert(variant.pin(), fd);
        Ok(())
    })?;
    let Made { maps, fresh, gates, .. } = made;
    let object = &request.object;
    for index in &fresh {
        for entry in object.initial_entries(*index) {
            let InitialValue::Program(key) = entry.value else { continue };
            if let Some(fd) = by_function.get(&key).and_then(|pin| programs.get(pin)) {
                set_slot(&request.maps[*index], &maps[index], entry.slot, fd)?;
            }
        }
    }
    let maps = maps.into_iter().map(|(i, fd)| (request.maps[i].name.clone(), fd)).chain(gates).collect();
    Ok(Loaded { maps, programs })
}

/// A program that was not asked for by name is in a program array: it is loaded like one that may call it, which is of the
/// same type.
fn variants_of(request: &LoadRequest, function: &Function) -> Vec<Variant> {
    let name = &function.name;
    let own: Vec<Variant> = request.variants.iter().filter(|v| v.function == *name).cloned().collect();
    if !own.is_empty() {
        return own;
    }
    let kind = Kind::of_section(request.object.section_of(function));
    let alike = |variant: &&Variant| kind.is_some_and(|k| k.row().program_type == variant.attributes.program_type);
    let like = request.variants.iter().find(alike).or(request.variants.first());
    let variant = |like: &Variant| Variant { function: name.clone(), attributes: like.attributes.clone() };
    like.map(variant).into_iter().collect()
}

/// Type information is a help, not a must: a kernel that refuses it gets none.
fn load_btf(request: &LoadRequest) -> Option<OwnedFd> {
    const OLD: BtfFeatures = BtfFeatures { decl_tag: false, type_tag: false, enum64: false };
    [BtfFeatures::ALL, OLD]
        .into_iter()
        .find_map(|features| sys::load_btf(&request.object.btf_for_kernel(features)?).ok())
}

/// Makes a map and gives it its initial data.
pub fn create_map(def: &MapDef, btf: Option<BorrowedFd<'_>>) -> Result<OwnedFd, KernelError> {
    let inner = def.inner.as_ref().map(|inner| create_map(inner, btf)).transpose()?;
    let fd = crate::memory::room_for(def)
        .and_then(|()| sys::map::create(def, btf, inner.as_ref().map(AsFd::as_fd)))
        .map_err(|e| refused_map(def, e))?;
    if let Some(data) = &def.data {
        let failed = |e| KernelError::Io { what: format!("map {}: writing its initial data", def.name), source: e };
        if data.bytes.iter().any(|b| *b != 0) {
            let map = Map::new(fd.try_clone().map_err(failed)?).map_err(failed)?;
            map.update(&0u32.to_ne_bytes(), &data.bytes, 0).map_err(failed)?;
        }
        if data.read_only {
            sys::map::freeze(fd.as_fd()).map_err(failed)?;
        }
    }
    Ok(fd)
}

/// Storage of cgroups, sockets, inodes and tasks: entries are made as owners get them, and their number must not be given.
const SIZED_BY_OWNERS: [u32; 6] = [
    types::CGROUP_STORAGE,
    types::PERCPU_CGROUP_STORAGE,
    types::SK_STORAGE,
    types::INODE_STORAGE,
    types::TASK_STORAGE,
    types::CGRP_STORAGE,
];

fn refused_map(def: &MapDef, error: io::Error) -> KernelError {
    let bytes = u64::from(def.max_entries) * (u64::from(def.key_size) + u64::from(def.value_size));
    let shape = format!(
        "{} with keys of {} and values of {} bytes, {} entries, flags {:#x}",
        sys::map::type_name(def.map_type),
        def.key_size,
        def.value_size,
        def.max_entries,
        def.flags
    );
    match error.raw_os_error() {
        Some(libc::ENOMEM) => {
            let limit = crate::memory::limit();
            KernelError::NodeFull { map: def.name.clone(), entries: def.max_entries, bytes, limit }
        }
        Some(libc::E2BIG) => KernelError::Object(ObjectError::BadMap {
            map: def.name.clone(),
            reason: format!(
                "{} entries are more than the kernel takes ({shape}); set spec.maps.{}.maxEntries to fewer",
                def.max_entries, def.name
            ),
        }),
        Some(libc::EINVAL) if def.max_entries == 0 && !SIZED_BY_OWNERS.contains(&def.map_type) => {
            KernelError::Object(ObjectError::BadMap {
                map: def.name.clone(),
                reason: format!(
                    "its definition leaves open how many entries it has ({shape}); set spec.maps.{}.maxEntries",
                    def.name
                ),
            })
        }
        Some(libc::EINVAL) => KernelError::Object(ObjectError::BadMap {
            map: def.name.clone(),
            reason: format!("the kernel refuses its definition or does not know its type ({shape}): {error}"),
        }),
        Some(libc::EPERM) => KernelError::PermissionDenied {
            what: format!("map {}: creating a {shape}", def.name),
            why: "CAP_BPF or CAP_SYS_ADMIN is missing".into(),
        },
        _ => KernelError::Io { what: format!("map {}: creating a {shape}", def.name), source: error },
    }
}

fn fill_inner_maps(request: &LoadRequest, index: usize, maps: &BTreeMap<usize, OwnedFd>) -> Result<(), KernelError> {
    for entry in request.object.initial_entries(index) {
        if let InitialValue::Map(inner) = entry.value {
            set_slot(&request.maps[index], &maps[&index], entry.slot, &maps[&inner])?;
        }
    }
    Ok(())
}

/// Sets a slot of an array of descriptors.
fn set_slot(def: &MapDef, map: &OwnedFd, slot: u32, value: &OwnedFd) -> Result<(), KernelError> {
    use std::os::fd::AsRawFd;
    debug_assert!(matches!(def.map_type, map_type::PROG_ARRAY | map_type::ARRAY_OF_MAPS | map_type::HASH_OF_MAPS));
    let failed = |e| KernelError::Io { what: format!("map {}: filling slot {slot}", def.name), source: e };
    let map = Map::new(map.try_clone().map_err(failed)?).map_err(failed)?;
    map.update(&slot.to_ne_bytes(), &value.as_raw_fd().to_ne_bytes(), 0).map_err(failed)
}

/// Hands over what is to be loaded, with descriptors in its instructions.
fn with_program(
    made: &Made,
    request: &LoadRequest,
    linked: &LinkedProgram,
    variant: &Variant,
    btf: Option<BorrowedFd<'_>>,
    target: Option<&TargetBtf>,
    run: impl FnOnce(&program::Load<'_>) -> Result<(), KernelError>,
) -> Result<(), KernelError> {
    use std::os::fd::AsRawFd;
    let mut insns = linked.insns.clone();
    for reference in &linked.maps {
        insns[reference.slot].imm = made.maps[&reference.map].as_raw_fd();
    }
    made.externs.write(&mut insns, &linked.externs);
    let attributes = &variant.attributes;
    let (attach_to, attach_btf_id) = match &attributes.attach_to {
        AttachTo::ProgramFunction { program, function } => {
            let (program, id) = functions::open(*program, function)?;
            (Some(program), id)
        }
        to => attach_btf_id(&variant.function, to, target)?,
    };
    run(&program::Load {
        name: &variant.function,
        program_type: attributes.program_type,
        expected_attach_type: attributes.expected_attach_type,
        flags: attributes.flags,
        insns: &insns,
        license: request.object.license(),
        btf,
        func_info: &linked.func_info,
        line_info: &linked.line_info,
        attach_btf_id,
        attach_to: attach_to.as_ref().map(AsFd::as_fd),
        fds: made.externs.fds(),
    })
}

/// Where a program attaches by the kernel's types: the id, with the types of the module that it is of.
fn attach_btf_id(
    function: &str,
    to: &AttachTo,
    target: Option<&TargetBtf>,
) -> Result<(Option<OwnedFd>, u32), KernelError> {
    // A tracepoint's type has no symbol; the function that runs its programs does.
    let (what, name, symbol, kind) = match to {
        AttachTo::Nothing | AttachTo::ProgramFunction { .. } => return Ok((None, 0)),
        AttachTo::Function(name) => ("kernel function", name.clone(), name.clone(), BtfKind::Func),
        AttachTo::Tracepoint(name) => {
            ("tracepoint", format!("btf_trace_{name}"), format!("__bpf_trace_{name}"), BtfKind::Typedef)
        }
    };
    let Some(target) = target else {
        return Err(KernelError::KernelUnsupported {
            what: format!("{function}: attaching by BTF"),
            why: "this kernel has no /sys/kernel/btf/vmlinux (CONFIG_DEBUG_INFO_BTF)".into(),
        });
    };
    if let Some(id) = target.types().find(&name, kind) {
        return Ok((None, id));
    }
    if let Some(module) = modules::of_symbol(&symbol, target.types())?
        && let Some(id) = module.types.find(&name, kind)
    {
        return Ok((Some(module.fd), id));
    }
    Err(KernelError::TargetNotFound {
        target: format!("{what} {}", name.trim_start_matches("btf_trace_")),
        why: "neither the kernel's BTF nor that of a loaded module names it; it may be inlined, static, or of another release".into(),
    })
}
