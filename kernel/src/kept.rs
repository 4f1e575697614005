//! Maps whose contents outlive a load: what a new load gets of them, and when they become its own.
//!
//! **Guarantees.** The lasting path of a kept map changes only when links run the load whose map it shows next, so a
//! load that is given up leaves it as it was. Every step can be cut short and run again.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use skep_object::btf::desc::TypeDesc;

use crate::bpffs::{self, Bpffs, escape};
use crate::error::KernelError;
use crate::load::create_map;
use crate::migrate::{self, Migration, Settled};
use crate::observe::{Difference, difference};
use crate::seam::{LoadOutcome, LoadRequest, Merge};
use crate::sys::{self, map};

/// Where the base of a migration is pinned in a load, by how it is settled.
const BASES: [(Merge, &str); 2] = [(Merge::Untouched, "base"), (Merge::Sum, "sums")];

/// The kept maps of a uid.
#[derive(Clone, Copy, Debug)]
pub struct Kept<'a> {
    pub bpffs: &'a Bpffs,
    pub uid: &'a str,
}

/// What a new load gets.
#[derive(Debug, Default)]
pub struct Inherited {
    /// Maps to use instead of new ones: kept ones, and ones filled from them.
    pub maps: BTreeMap<String, OwnedFd>,
    /// What was copied, to be pinned beside them.
    pub bases: Vec<(Merge, String, OwnedFd)>,
    pub outcome: LoadOutcome,
}

impl Kept<'_> {
    /// Kept maps as far as they suit a request. Nothing that is pinned changes.
    pub fn inherit(&self, request: &LoadRequest) -> Result<Inherited, KernelError> {
        check_sums(request)?;
        let mut inherited = Inherited::default();
        let selection = request.object.select(request.variants.iter().map(|v| v.function.as_str()))?;
        for name in bpffs::list(&self.bpffs.kept_maps(self.uid))? {
            let wanted = |m: &&skep_object::map::MapDef| m.name == name && request.keep.contains_key(&name);
            // One that this load's functions do not use stays as it is, for the load that will use it again.
            let Some(def) = selection.maps.iter().map(|index| &request.maps[*index]).find(wanted) else { continue };
            let old = self.open(&self.path(&name), &name)?;
            match difference(def, request, old.as_fd())? {
                None => {
                    inherited.maps.insert(name, old);
                }
                Some(Difference::Size { info, value, .. }) if migrate::obstacle(&info, &value).is_none() => {
                    let new = create_map(def, load_btf(request).as_ref().map(AsFd::as_fd))?;
                    let target = new.try_clone().map_err(KernelError::io(format!("map {name}")))?;
                    let (base, dropped) = Migration::copy(&name, old, target)?;
                    inherited.maps.insert(name.clone(), new);
                    inherited.bases.push((request.keep[&name], name.clone(), base));
                    inherited.outcome.resized.insert(name, dropped);
                }
                Some(Difference::Size { info, value, text }) => {
                    let why = migrate::obstacle(&info, &value).unwrap_or_default();
                    inherited.outcome.reset.insert(name, format!("{text}, and {why}"));
                }
                Some(Difference::Other(text)) => {
                    inherited.outcome.reset.insert(name, text);
                }
            }
        }
        Ok(inherited)
    }

    /// Pins what was copied, in a load that is being built.
    pub fn stage(&self, dir: &std::path::Path, inherited: &Inherited) -> Result<(), KernelError> {
        if !inherited.outcome.reset.is_empty() {
            // With nothing in it, it still says that this load's maps wait for their turn.
            bpffs::make_dir(&dir.join(directory(Merge::Untouched)))?;
        }
        for (merge, name, base) in &inherited.bases {
            let dir = dir.join(directory(*merge));
            bpffs::make_dir(&dir)?;
            pin(base, &dir.join(escape(name)))?;
        }
        Ok(())
    }

    /// Kept maps that no load had before: nothing is lost by keeping them at once.
    pub fn publish_new(&self, load: &str, request: &LoadRequest) -> Result<(), KernelError> {
        let kept = self.bpffs.kept_maps(self.uid);
        bpffs::make_dir(&kept)?;
        let before = bpffs::list(&kept)?;
        for name in bpffs::list(&self.bpffs.load(self.uid, load).join("maps"))? {
            if request.keep.contains_key(&name) && !before.contains(&name) {
                self.publish(load, &name, false)?;
            }
        }
        Ok(())
    }

    /// Makes the maps of `load` the kept ones; see [`crate::seam::Kernel::settle`].
    pub fn settle(&self, load: &str, keep: &BTreeSet<String>) -> Result<BTreeMap<String, Settled>, KernelError> {
        let settled = self.bring_over(load, Way::ToLoad)?;
        let kept = self.bpffs.kept_maps(self.uid);
        bpffs::make_dir(&kept)?;
        let before = bpffs::list(&kept)?;
        for name in bpffs::list(&self.bpffs.load(self.uid, load).join("maps"))? {
            if keep.contains(&name) {
                self.publish(load, &name, before.contains(&name))?;
            }
        }
        for name in before.iter().filter(|name| !keep.contains(*name)) {
            bpffs::unpin(&self.path(name))?;
        }
        for (_, dir) in BASES {
            bpffs::remove_tree(&self.bpffs.load(self.uid, load).join(dir))?;
        }
        Ok(settled)
    }

    /// What a load that is given up counted in copied maps goes back to the kept ones.
    pub fn give_back(&self, load: &str) -> Result<(), KernelError> {
        self.bring_over(load, Way::FromLoad).map(drop)
    }

    /// Whether maps of a load are to take the place of kept ones, and have not.
    pub fn is_pending(&self, load: &str) -> bool {
        BASES.iter().any(|(_, dir)| self.bpffs.load(self.uid, load).join(dir).exists())
    }

    /// Copied maps of a load that are not settled yet.
    fn unsettled(&self, load: &str) -> Result<Vec<(Merge, String)>, KernelError> {
        let mut all = Vec::new();
        for (merge, dir) in BASES {
            let names = bpffs::list(&self.bpffs.load(self.uid, load).join(dir))?;
            all.extend(names.into_iter().map(|name| (merge, name)));
        }
        Ok(all)
    }

    fn bring_over(&self, load: &str, way: Way) -> Result<BTreeMap<String, Settled>, KernelError> {
        let mut settled = BTreeMap::new();
        for (merge, name) in self.unsettled(load)? {
            let dir = self.bpffs.load(self.uid, load);
            let Ok(kept) = sys::open_pin(&self.path(&name)) else { continue };
            let own = self.open(&dir.join("maps").join(escape(&name)), &name)?;
            let id = |fd: &OwnedFd| map::info(fd.as_fd()).map(|i| i.id).map_err(KernelError::io(format!("map {name}")));
            // It is this load's already: a crash came between publishing and taking the base away.
            if id(&kept)? == id(&own)? {
                continue;
            }
            if settled.is_empty() {
                migrate::wait_for_programs()?;
            }
            let base = self.open(&dir.join(directory(merge)).join(escape(&name)), &name)?;
            let (from, to) = if way == Way::ToLoad { (kept, own) } else { (own, kept) };
            let result = Migration::resume(&name, from, to, base)?.settle(merge == Merge::Sum)?;
            settled.insert(name, result);
        }
        Ok(settled)
    }

    fn publish(&self, load: &str, name: &str, there: bool) -> Result<(), KernelError> {
        let own = self.open(&self.bpffs.load(self.uid, load).join("maps").join(escape(name)), name)?;
        let path = self.path(name);
        if !there {
            return pin(&own, &path);
        }
        let staged = PathBuf::from(format!("{}~", path.display()));
        bpffs::unpin(&staged)?;
        pin(&own, &staged)?;
        bpffs::rename(&staged, &path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.bpffs.kept_maps(self.uid).join(escape(name))
    }

    fn open(&self, path: &std::path::Path, name: &str) -> Result<OwnedFd, KernelError> {
        sys::open_pin(path).map_err(KernelError::io(format!("opening map {name}")))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    ToLoad,
    FromLoad,
}

fn directory(merge: Merge) -> &'static str {
    BASES.iter().find(|(m, _)| *m == merge).map_or("base", |(_, dir)| dir)
}

fn pin(fd: &OwnedFd, path: &std::path::Path) -> Result<(), KernelError> {
    sys::pin(fd.as_fd(), path).map_err(KernelError::io(format!("pinning {}", path.display())))
}

/// That sums are possible is known from the object: not only when the size changes one day.
fn check_sums(request: &LoadRequest) -> Result<(), KernelError> {
    for (name, _) in request.keep.iter().filter(|(_, merge)| **merge == Merge::Sum) {
        let def = request.maps.iter().find(|m| m.name == *name);
        let btf = request.object.btf();
        let value = match (def, btf) {
            (Some(def), Some(btf)) if def.value_type != 0 => TypeDesc::of(btf, def.value_type),
            _ => TypeDesc::bytes(def.map_or(0, |d| d.value_size)),
        };
        migrate::summands(&value)
            .map_err(|why| KernelError::MapIncompatible { map: name.clone(), why: format!("merge: Sum: {why}") })?;
    }
    Ok(())
}

/// The object's types, for a map that is made like the load's own.
fn load_btf(request: &LoadRequest) -> Option<OwnedFd> {
    let btf = request.object.btf_for_kernel(skep_object::btf::sanitize::BtfFeatures::ALL)?;
    sys::load_btf(&btf).ok()
}
