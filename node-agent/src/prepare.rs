//! From a desired program, its object and a view of the node to what is wanted of the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use skep_crds::{EbpfProgramSpec, OnUpdate};
use skep_kernel::seam::{Group, LoadRequest, Merge, Variant};
use skep_object::kind::mismatch;
use skep_object::map::{MapDef, map_type};
use skep_object::{Object, ObjectError};

use crate::error::ProgramError;
use crate::plan::{Wanted, WantedLink};
use crate::sections;
use crate::targets::{Lookup, Targets, gates, targets};
use crate::view::NodeView;

/// Everything that is needed to act.
#[derive(Clone, Debug)]
pub struct Prepared {
    pub request: LoadRequest,
    pub wanted: Wanted,
    pub targets: Targets,
    /// The cgroups that each gate lets pass.
    pub gates: BTreeMap<String, Vec<u64>>,
    /// Loaded, and on no hook.
    pub suspended: bool,
}

/// Prepares; `load` is the name of the load.
pub fn prepare(
    spec: &EbpfProgramSpec,
    namespace: &str,
    load: &str,
    object: Arc<Object>,
    view: &NodeView,
    lookup: Lookup<'_>,
) -> Result<Prepared, ProgramError> {
    let spec = &*sections::completed(spec, &object)?;
    let mut maps = object.with_globals(spec.globals.iter().flatten())?;
    let mut keep = kept_maps(spec, &object)?;
    let share = shared_maps(spec, namespace);
    // The lasting path of a map that others use too is that of its group.
    keep.retain(|map, _| !share.contains_key(map));
    sized(spec, &mut maps)?;
    for program in &spec.programs {
        object.program(&program.name)?;
    }
    let mut targets = targets(spec, namespace, view, lookup);
    let suspended = spec.suspend == Some(true);
    let mut variants = BTreeSet::new();
    let mut links = BTreeMap::new();
    for found in &targets.hooks {
        let section = object.section_of(object.program(&found.function)?);
        if let Some(reason) = mismatch(found.hook.kind, found.hook.attach_type, section) {
            return Err(ObjectError::Unsupported { function: found.function.clone(), reason }.into());
        }
        let variant = Variant { function: found.function.clone(), attributes: found.hook.load_attributes(section) };
        let link = WantedLink { function: found.function.clone(), hook: found.hook.clone(), pin: variant.pin() };
        if !suspended {
            links.insert(found.hook.link_name(&found.function), link);
        }
        variants.insert(variant);
    }
    if suspended {
        // Nobody misses a target who does not want it now.
        targets.missing.clear();
    }
    let spare = targets.waits_for_pods && !suspended;
    let found: BTreeSet<&String> = targets.hooks.iter().map(|found| &found.function).collect();
    let slips = targets.missing.iter().filter(|missing| missing.named && !found.contains(&missing.function));
    let stay = slips.map(|missing| missing.function.clone()).collect();
    let wanted = Wanted {
        load: load.to_owned(),
        variants: variants.clone(),
        links,
        keep: keep.keys().cloned().collect(),
        maps: used_maps(&object, &variants)?,
        follows: targets.follows.clone(),
        begun: false,
        spare,
        stay,
    };
    let gates = gates(spec, namespace, view);
    Ok(Prepared { request: LoadRequest { object, maps, variants, keep, share }, wanted, targets, gates, suspended })
}

/// The maps that a load of these functions has.
fn used_maps(object: &Object, variants: &BTreeSet<Variant>) -> Result<BTreeSet<String>, ProgramError> {
    let selection = object.select(variants.iter().map(|v| v.function.as_str()))?;
    let own = selection.maps.iter().map(|index| object.maps()[*index].name.clone());
    let gates = variants.iter().filter_map(|v| v.attributes.gate.as_deref()).map(skep_kernel::gate::map_name);
    Ok(own.chain(gates).collect())
}

/// Maps that are those of a group of the namespace; that the object has them is checked with the kept ones.
fn shared_maps(spec: &EbpfProgramSpec, namespace: &str) -> BTreeMap<String, Group> {
    let options = spec.maps.iter().flatten();
    let group = |name: &String| Group { namespace: namespace.to_owned(), name: name.clone() };
    options.filter_map(|(map, options)| Some((map.clone(), options.share.as_ref().map(group)?))).collect()
}

/// The object's maps with the sizes that the spec gives them.
fn sized(spec: &EbpfProgramSpec, maps: &mut [MapDef]) -> Result<(), ProgramError> {
    for (name, options) in spec.maps.iter().flatten() {
        let (Some(entries), Some(map)) = (options.max_entries, maps.iter_mut().find(|m| m.name == *name)) else {
            continue;
        };
        let bad = |reason: &str| ObjectError::BadMap { map: name.clone(), reason: reason.into() };
        if map.data.is_some() {
            return Err(bad("it holds variables, always in one entry; take maxEntries out").into());
        }
        map.max_entries = u32::try_from(entries).map_err(|_| bad("maxEntries is outside 1..=4294967295"))?;
    }
    Ok(())
}

/// Maps whose contents outlive a load: all that programs fill, unless the spec says otherwise; of data sections, only
/// those that the spec names. What belongs to a revision cannot be kept, and naming it is a mistake.
fn kept_maps(spec: &EbpfProgramSpec, object: &Object) -> Result<BTreeMap<String, Merge>, ProgramError> {
    const OF_A_REVISION: [u32; 2] = [map_type::PROG_ARRAY, map_type::STRUCT_OPS];
    let fixed = |map: &MapDef| {
        let name = map.name.as_str();
        name.starts_with(".rodata") || name == ".kconfig" || OF_A_REVISION.contains(&map.map_type)
    };
    for name in spec.maps.iter().flat_map(BTreeMap::keys) {
        let Some(map) = object.maps().iter().find(|m| m.name == *name) else {
            let available = object.maps().iter().map(|m| m.name.clone()).collect();
            return Err(ObjectError::MapUnknown { name: name.clone(), available }.into());
        };
        if fixed(map) {
            let reason = "it belongs to its revision; only maps that programs fill can be kept or reset".to_owned();
            return Err(ObjectError::BadMap { map: name.clone(), reason }.into());
        }
    }
    drop_counters(spec, object)?;
    let options = |name: &str| spec.maps.as_ref().and_then(|maps| maps.get(name));
    let kept = object.maps().iter().filter(|map| !fixed(map)).filter(|map| {
        match options(&map.name).and_then(|o| o.on_update) {
            Some(OnUpdate::Keep) => true,
            Some(OnUpdate::Reset) => false,
            None => map.data.is_none(),
        }
    });
    let merge = |name: &str| match options(name).and_then(|o| o.merge) {
        Some(skep_crds::Merge::Sum) => Merge::Sum,
        None => Merge::Untouched,
    };
    Ok(kept.map(|m| (m.name.clone(), merge(&m.name))).collect())
}

/// That the object has what is to count the records for which a ring buffer has no room.
fn drop_counters(spec: &EbpfProgramSpec, object: &Object) -> Result<(), ProgramError> {
    for (name, options) in spec.maps.iter().flatten() {
        let Some(counter) = &options.drop_counter else { continue };
        let bad = |reason: String| ObjectError::BadMap { map: name.clone(), reason };
        let is_ring = |map: &MapDef| map.name == *name && map.map_type == map_type::RINGBUF;
        if !object.maps().iter().any(is_ring) {
            return Err(
                bad("dropCounter is of ring buffers, and it is none; the kernel counts for others".into()).into()
            );
        }
        let variables = object.variables();
        if !object.maps().iter().any(|map| map.name == *counter) && !variables.contains(&counter.as_str()) {
            let known = variables.join(", ");
            let reason = format!(
                "dropCounter {counter}: the object has no such map and no such global variable; it has {known}"
            );
            return Err(bad(reason).into());
        }
    }
    Ok(())
}
