//! What is there: bpffs read back, each object asked what it is.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use skep_object::btf::Btf;
use skep_object::btf::desc::TypeDesc;
use skep_object::map::MapDef;

use crate::bpffs::{self, Bpffs, escape};
use crate::changed::DirectoryStamp;
use crate::error::KernelError;
use crate::kept::Kept;
use crate::load::create_map;
use crate::seam::{LoadRequest, Observed, ObservedLink, ObservedLoad, ObservedMap, ObservedProgram};
use crate::shared;
use crate::sys::map::MapInfo;
use crate::sys::{self, link, map, program};

/// The state of one uid.
pub fn observe(bpffs: &Bpffs, uid: &str) -> Result<Observed, KernelError> {
    let mut observed = Observed::default();
    for name in list(&mut observed, bpffs.program(uid))? {
        match name.as_str() {
            "links" | "maps" => {}
            staged if staged.ends_with('~') => {
                observed.staged.insert(name);
            }
            load => {
                let mut seen = observe_load(&mut observed, &bpffs.load(uid, load))?;
                seen.pending = Kept { bpffs, uid }.is_pending(load);
                seen.shares = shared::of_load(bpffs, &bpffs.load(uid, load))?;
                observed.loads.insert(name, seen);
            }
        }
    }
    for name in list(&mut observed, bpffs.links(uid))? {
        if name.ends_with('~') {
            observed.staged.insert(name);
            continue;
        }
        let info = sys::open_pin(&bpffs.link(uid, &name)).and_then(|fd| link::info(fd.as_fd()));
        if let Some(info) = unless_gone(info, || format!("reading link {name}"))? {
            observed.links.insert(name, ObservedLink::from(&info));
        }
    }
    for name in list(&mut observed, bpffs.kept_maps(uid))? {
        if name.ends_with('~') {
            observed.staged.insert(name);
            continue;
        }
        if let Some(info) = map_info(&bpffs.kept_maps(uid).join(escape(&name)), &name)? {
            observed.kept.insert(name, info.id);
        }
    }
    Ok(observed)
}

/// Names in a directory, whose state before is noted.
fn list(observed: &mut Observed, dir: PathBuf) -> Result<Vec<String>, KernelError> {
    let stamp = DirectoryStamp::of(&dir);
    let names = bpffs::list(&dir);
    observed.directories.insert(dir, stamp);
    names
}

fn observe_load(observed: &mut Observed, dir: &Path) -> Result<ObservedLoad, KernelError> {
    let mut load = ObservedLoad::default();
    // Where it is half brought over, and whose maps it shares.
    observed.directories.insert(dir.to_owned(), DirectoryStamp::of(dir));
    for name in list(observed, dir.join("progs"))? {
        let info = sys::open_pin(&dir.join("progs").join(escape(&name))).and_then(|fd| program::info(fd.as_fd()));
        if let Some(info) = unless_gone(info, || format!("reading program {name}"))? {
            load.programs.insert(name, ObservedProgram { id: info.id, tag: info.tag });
        }
    }
    for name in list(observed, dir.join("maps"))? {
        if let Some(info) = map_info(&dir.join("maps").join(escape(&name)), &name)? {
            load.maps.insert(name, ObservedMap { id: info.id, map_type: info.map_type });
        }
    }
    Ok(load)
}

fn map_info(path: &Path, name: &str) -> Result<Option<MapInfo>, KernelError> {
    let info = sys::open_pin(path).and_then(|fd| map::info(fd.as_fd()));
    unless_gone(info, || format!("reading map {name}"))
}

/// Whether a load has a map of programs.
pub fn has_program_array(dir: &Path) -> Result<bool, KernelError> {
    for name in bpffs::list(&dir.join("maps"))? {
        let info = map_info(&dir.join("maps").join(escape(&name)), &name)?;
        if info.is_some_and(|info| info.map_type == map::types::PROG_ARRAY) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A pin may go between listing and opening.
fn unless_gone<T>(result: io::Result<T>, what: impl FnOnce() -> String) -> Result<Option<T>, KernelError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(KernelError::Io { what: what(), source: e }),
    }
}

/// What keeps an existing map from serving a definition.
#[derive(Debug)]
pub enum Difference {
    /// Nothing but how many entries it has room for.
    Size {
        text: String,
        /// Of the existing map.
        info: MapInfo,
        value: TypeDesc,
    },
    Other(String),
}

/// Compared with what the kernel makes of the definition, since it rounds and adds to what it is asked for.
pub fn difference(
    def: &MapDef,
    request: &LoadRequest,
    existing: BorrowedFd<'_>,
) -> Result<Option<Difference>, KernelError> {
    let failed = |e| KernelError::Io { what: format!("reading map {}", def.name), source: e };
    let btf = request
        .object
        .btf_for_kernel(skep_object::btf::sanitize::BtfFeatures::ALL)
        .and_then(|b| sys::load_btf(&b).ok());
    let fresh = create_map(def, btf.as_ref().map(AsFd::as_fd))?;
    let (new, old) = (map::info(fresh.as_fd()).map_err(failed)?, map::info(existing).map_err(failed)?);
    let changed = |what: &str, before: u32, after: u32| format!("{what} was {before} and is now {after}");
    let differences = [
        ("type", old.map_type, new.map_type),
        ("key size", old.key_size, new.key_size),
        ("value size", old.value_size, new.value_size),
        ("flags", old.flags, new.flags),
        ("extra", old.extra as u32, new.extra as u32),
    ];
    if let Some((what, before, after)) = differences.into_iter().find(|(_, before, after)| before != after) {
        return Ok(Some(Difference::Other(changed(what, before, after))));
    }
    let (before, after) = (layout(&old).map_err(failed)?, layout(&new).map_err(failed)?);
    if before != after {
        return Ok(Some(Difference::Other("the layout of its keys or values changed".to_owned())));
    }
    if old.max_entries == new.max_entries {
        return Ok(None);
    }
    let value = before.map_or_else(|| TypeDesc::bytes(old.value_size), |(_, value)| value);
    let text = changed("maxEntries", old.max_entries, new.max_entries);
    Ok(Some(Difference::Size { text, info: old, value }))
}

/// Key and value described; `None` without BTF.
fn layout(info: &map::MapInfo) -> io::Result<Option<(TypeDesc, TypeDesc)>> {
    Ok(btf_of(info)?.map(|btf| (TypeDesc::of(&btf, info.key_type), TypeDesc::of(&btf, info.value_type))))
}

/// The BTF that a map was made with.
pub fn btf_of(info: &map::MapInfo) -> io::Result<Option<Btf>> {
    if info.btf_id == 0 {
        return Ok(None);
    }
    let data = sys::btf_by_id(info.btf_id)?;
    Btf::parse(&data).map(Some).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))
}
