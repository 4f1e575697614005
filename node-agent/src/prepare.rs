//! From a desired program, its object and a view of the node to what is wanted of the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use skep_crds::{EbpfProgramSpec, OnUpdate};
use skep_kernel::seam::{LoadRequest, Variant};
use skep_object::map::map_type;
use skep_object::{Object, ObjectError};

use crate::error::ProgramError;
use crate::plan::{Wanted, WantedLink};
use crate::targets::{Binaries, Targets, gates, targets};
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
    binaries: &dyn Binaries,
) -> Result<Prepared, ProgramError> {
    let maps = object.with_globals(spec.globals.iter().flatten())?;
    let keep = kept_maps(spec, &object)?;
    for program in &spec.programs {
        object.program(&program.name)?;
    }
    let mut targets = targets(spec, namespace, view, binaries);
    let suspended = spec.suspend == Some(true);
    let mut variants = BTreeSet::new();
    let mut links = BTreeMap::new();
    for found in &targets.hooks {
        let section = object.section_of(object.program(&found.function)?);
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
    let wanted = Wanted { load: load.to_owned(), variants: variants.clone(), links, spare };
    let gates = gates(spec, namespace, view);
    Ok(Prepared { request: LoadRequest { object, maps, variants, keep }, wanted, targets, gates, suspended })
}

/// Maps whose contents outlive a load: all that programs fill, unless the spec says otherwise; of data sections, only
/// those that the spec names. What belongs to a revision cannot be kept, and naming it is a mistake.
fn kept_maps(spec: &EbpfProgramSpec, object: &Object) -> Result<BTreeSet<String>, ProgramError> {
    let fixed = |name: &str, kind: u32| name.starts_with(".rodata") || kind == map_type::PROG_ARRAY;
    for name in spec.maps.iter().flat_map(BTreeMap::keys) {
        let Some(map) = object.maps().iter().find(|m| m.name == *name) else {
            let available = object.maps().iter().map(|m| m.name.clone()).collect();
            return Err(ObjectError::MapUnknown { name: name.clone(), available }.into());
        };
        if fixed(name, map.map_type) {
            let reason = "it belongs to its revision; only maps that programs fill can be kept or reset".to_owned();
            return Err(ObjectError::BadMap { map: name.clone(), reason }.into());
        }
    }
    let wanted = |name: &str| spec.maps.as_ref().and_then(|maps| maps.get(name)).and_then(|o| o.on_update);
    let kept = object.maps().iter().filter(|m| !fixed(&m.name, m.map_type)).filter(|m| match wanted(&m.name) {
        Some(OnUpdate::Keep) => true,
        Some(OnUpdate::Reset) => false,
        None => m.data.is_none(),
    });
    Ok(kept.map(|m| m.name.clone()).collect())
}
