//! Maps that the programs of several uids use together, by group.
//!
//! **Guarantees.** A group has one map of a name, however many loads begin at once: who comes second gets the first one's,
//! also after its pin was deleted, as long as a load uses it. A definition that differs is refused, never re-used. The map
//! goes with the last load that uses it.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use skep_object::btf::sanitize::BtfFeatures;
use skep_object::map::MapDef;

use crate::bpffs::{self, Bpffs, escape};
use crate::error::KernelError;
use crate::load::create_map;
use crate::observe::{Difference, difference};
use crate::seam::{Group, LoadRequest};
use crate::sys;

/// Where a load says which of its maps are of a group: `<load>/shares/<map>/<namespace>/<group>`, a directory.
const MARKS: &str = "shares";

/// Keeps loads that begin together apart, and from the removal of what nobody uses.
#[derive(Debug, Default)]
pub struct Shares {
    /// Pins that loads use which have not marked them as their own yet: by how many. Held while a map is found or made,
    /// and while maps that nobody uses are taken away, but not while programs are verified.
    joining: Mutex<BTreeMap<PathBuf, usize>>,
}

/// The maps of groups that a load begins with. While it lives none of them is taken away.
#[derive(Debug)]
pub struct Joined<'a> {
    pub maps: BTreeMap<String, OwnedFd>,
    places: Vec<PathBuf>,
    shares: &'a Shares,
}

impl Drop for Joined<'_> {
    fn drop(&mut self) {
        let mut joining = self.shares.lock();
        for place in &self.places {
            if let Some(loads) = joining.get_mut(place) {
                *loads -= 1;
            }
        }
        joining.retain(|_, loads| *loads > 0);
    }
}

impl Shares {
    /// The maps that a request shares: those that are there, and new ones where there are none.
    pub fn join(&self, bpffs: &Bpffs, request: &LoadRequest) -> Result<Joined<'_>, KernelError> {
        let mut joined = Joined { maps: BTreeMap::new(), places: Vec::new(), shares: self };
        for (name, group) in &request.share {
            // A map that the object does not have is the caller's to refuse.
            let Some(def) = request.maps.iter().find(|def| def.name == *name) else { continue };
            let place = place(bpffs, name, group);
            let mut joining = self.lock();
            let map = find_or_make(bpffs, request, def, group)?;
            *joining.entry(place.clone()).or_default() += 1;
            drop(joining);
            joined.maps.insert(name.clone(), map);
            joined.places.push(place);
        }
        Ok(joined)
    }

    /// Pins the maps of a complete load again whose pins in their groups somebody deleted.
    pub fn pin_again(&self, bpffs: &Bpffs, load: &Path) -> Result<(), KernelError> {
        let _one = self.lock();
        for (name, group) in marks(load)? {
            let path = place(bpffs, &name, &group);
            if !path.exists()
                && let Ok(map) = sys::open_pin(&load.join("maps").join(escape(&name)))
            {
                pin(&map, &path)?;
            }
        }
        Ok(())
    }

    /// Takes away the maps that no load uses any more.
    pub fn collect(&self, bpffs: &Bpffs) -> Result<(), KernelError> {
        let root = bpffs.shared();
        if !root.exists() {
            return Ok(());
        }
        let joining = self.lock();
        let mut used: BTreeSet<PathBuf> = joining.keys().cloned().collect();
        for load in loads(bpffs)? {
            used.extend(marks(&load)?.into_iter().map(|(name, group)| place(bpffs, &name, &group)));
        }
        for namespace in subdirectories(&root)? {
            for group in subdirectories(&namespace)? {
                for name in bpffs::list(&group)? {
                    let path = group.join(escape(&name));
                    if !used.contains(&path) {
                        bpffs::unpin(&path)?;
                    }
                }
                // Only empty ones go.
                let _ = std::fs::remove_dir(&group);
            }
            let _ = std::fs::remove_dir(&namespace);
        }
        let _ = std::fs::remove_dir(&root);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PathBuf, usize>> {
        self.joining.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Marks, in a load that is being built, which of its maps are of a group.
pub fn mark(load: &Path, request: &LoadRequest) -> Result<(), KernelError> {
    for (name, group) in &request.share {
        bpffs::make_dir(&load.join(MARKS).join(escape(name)).join(escape(&group.namespace)).join(escape(&group.name)))?;
    }
    Ok(())
}

/// Maps of a load that are of a group, and whether they are pinned there.
pub fn of_load(bpffs: &Bpffs, load: &Path) -> Result<BTreeMap<String, bool>, KernelError> {
    let pinned = |(name, group): (String, Group)| (place(bpffs, &name, &group).exists(), name);
    Ok(marks(load)?.into_iter().map(pinned).map(|(pinned, name)| (name, pinned)).collect())
}

fn find_or_make(bpffs: &Bpffs, request: &LoadRequest, def: &MapDef, group: &Group) -> Result<OwnedFd, KernelError> {
    let path = place(bpffs, &def.name, group);
    let there = match sys::open_pin(&path) {
        Ok(map) => Some(map),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let found = member(bpffs, &def.name, group)?;
            found.iter().try_for_each(|map| pin(map, &path))?;
            found
        }
        Err(e) => {
            return Err(KernelError::Io {
                what: format!("opening map {} of group {}", def.name, group.name),
                source: e,
            });
        }
    };
    if let Some(map) = there {
        return match difference(def, request, map.as_fd())? {
            None => Ok(map),
            Some(Difference::Size { text, .. } | Difference::Other(text)) => Err(KernelError::MapIncompatible {
                map: def.name.clone(),
                why: format!(
                    "share: group {} of namespace {} has this map already, and {text}; declare it alike in all programs of the group, this one's earlier revisions included, or name another group, whose map starts empty",
                    group.name, group.namespace
                ),
            }),
        };
    }
    let btf = request.object.btf_for_kernel(BtfFeatures::ALL).and_then(|btf| sys::load_btf(&btf).ok());
    let map = create_map(def, btf.as_ref().map(AsFd::as_fd))?;
    pin(&map, &path)?;
    Ok(map)
}

/// A group's map, from a load that uses it.
fn member(bpffs: &Bpffs, name: &str, group: &Group) -> Result<Option<OwnedFd>, KernelError> {
    for load in loads(bpffs)? {
        if marks(&load)?.contains(&(name.to_owned(), group.clone()))
            && let Ok(map) = sys::open_pin(&load.join("maps").join(escape(name)))
        {
            return Ok(Some(map));
        }
    }
    Ok(None)
}

/// Every load of every uid, those that are half done too.
fn loads(bpffs: &Bpffs) -> Result<Vec<PathBuf>, KernelError> {
    let mut found = Vec::new();
    for uid in bpffs.programs()? {
        found.extend(bpffs.loads(&uid)?.into_iter().map(|load| bpffs.program(&uid).join(staged_or_whole(&load))));
    }
    Ok(found)
}

/// The directory of a load: its `~`, if it has one, is Skep's own.
fn staged_or_whole(load: &str) -> String {
    load.strip_suffix('~').map_or_else(|| escape(load), |name| format!("{}~", escape(name)))
}

fn marks(load: &Path) -> Result<Vec<(String, Group)>, KernelError> {
    let mut found = Vec::new();
    for name in bpffs::list(&load.join(MARKS))? {
        for namespace in bpffs::list(&load.join(MARKS).join(escape(&name)))? {
            for group in bpffs::list(&load.join(MARKS).join(escape(&name)).join(escape(&namespace)))? {
                found.push((name.clone(), Group { namespace: namespace.clone(), name: group }));
            }
        }
    }
    Ok(found)
}

fn subdirectories(path: &Path) -> Result<Vec<PathBuf>, KernelError> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(KernelError::Io { what: format!("listing {}", path.display()), source: e }),
    };
    Ok(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect())
}

fn place(bpffs: &Bpffs, name: &str, group: &Group) -> PathBuf {
    bpffs.shared().join(escape(&group.namespace)).join(escape(&group.name)).join(escape(name))
}

fn pin(map: &OwnedFd, path: &Path) -> Result<(), KernelError> {
    bpffs::make_dir(path.parent().unwrap_or(path))?;
    sys::pin(map.as_fd(), path).map_err(KernelError::io(format!("pinning {}", path.display())))
}
