//! What of a program that was removed the kernel still has, and who holds it.
//!
//! Caveat: of a pin elsewhere, or of a map that holds another, the kernel does not tell.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use crate::bpffs::{self, Bpffs};
use crate::error::KernelError;
use crate::seam::Observed;
use crate::shared;
use crate::sys::map::{Map, types};
use crate::sys::{self, link, map, program};

/// An object of the kernel that outlives its removal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Remain {
    pub what: What,
    /// In the object file; of a link: its pin's.
    pub name: String,
    pub id: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    Program,
    Map,
    Link,
}

impl What {
    /// As in words, and as proc_pid_fdinfo(5) has it.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            What::Program => ("program", "prog_id"),
            What::Map => ("map", "map_id"),
            What::Link => ("link", "link_id"),
        }
    }
}

impl fmt::Display for Remain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} (id {})", self.what.names().0, self.name, self.id)
    }
}

/// Of what was observed, what is still there. Maps of groups are not only the program's.
pub fn remains(before: &Observed) -> Vec<Remain> {
    let mut all = Vec::new();
    for load in before.loads.values() {
        let function = |pin: &String| pin.rsplit_once('+').map_or(pin.clone(), |(function, _)| function.into());
        let programs =
            load.programs.iter().map(|(pin, p)| Remain { what: What::Program, name: function(pin), id: p.id });
        let own = load.maps.iter().filter(|(name, _)| !load.shares.contains_key(*name));
        all.extend(programs);
        all.extend(own.map(|(name, map)| Remain { what: What::Map, name: name.clone(), id: map.id }));
    }
    // A link without an id is a record: its filter goes at once.
    let links = before.links.iter().filter(|(_, seen)| seen.id != 0);
    all.extend(links.map(|(name, seen)| Remain { what: What::Link, name: name.clone(), id: seen.id }));
    all.sort();
    all.dedup_by_key(|remain| (remain.what, remain.id));
    all.retain(|remain| match remain.what {
        What::Program => program::by_id(remain.id).is_ok(),
        What::Map => map::by_id(remain.id).is_ok(),
        What::Link => link::by_id(remain.id).is_ok(),
    });
    all
}

/// Processes, but for this one, that have a map open, as far as can be known: a mapping alone has no name.
pub fn holders_of_map(id: u32) -> Vec<String> {
    let map = [Remain { what: What::Map, name: String::new(), id }];
    let me = std::process::id();
    let others = processes().filter(|(pid, path)| *pid != me && !descriptors(path, &map).is_empty());
    others.map(|(pid, path)| named(pid, &path)).collect()
}

fn processes() -> impl Iterator<Item = (u32, PathBuf)> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|process| Some((process.file_name().to_str()?.parse().ok()?, process.path())))
}

fn named(pid: u32, process: &Path) -> String {
    let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
    format!("{} (pid {pid})", name.trim())
}

/// Each with who holds it, as far as can be known: `map hits (id 7), held by bpftool (pid 12)`.
pub fn held_by(remains: &[Remain]) -> Vec<String> {
    let mut holders: BTreeMap<(What, u32), Vec<String>> = BTreeMap::new();
    for (pid, process) in processes() {
        for remain in descriptors(&process, remains) {
            let who = named(pid, &process);
            let known = holders.entry((remain.what, remain.id)).or_default();
            if !known.contains(&who) {
                known.push(who);
            }
        }
    }
    for (map, who) in users(remains) {
        holders.entry((What::Map, map)).or_default().push(who);
    }
    let unknown = || "something that the kernel does not name, such as a pin elsewhere".to_owned();
    let said = |remain: &Remain| {
        let who = holders.get(&(remain.what, remain.id)).map_or_else(unknown, |all| all.join(", "));
        format!("{remain}, held by {who}")
    };
    remains.iter().map(said).collect()
}

/// Which of them a process has open.
fn descriptors<'r>(process: &Path, remains: &'r [Remain]) -> Vec<&'r Remain> {
    let infos = fs::read_dir(process.join("fdinfo")).into_iter().flatten().flatten();
    let texts = infos.filter_map(|info| fs::read_to_string(info.path()).ok());
    let ids = texts.flat_map(|text| {
        let id = |what: What| {
            let mut lines = text.lines().filter_map(|line| line.split_once(":\t"));
            let (_, id) = lines.find(|(key, _)| *key == what.names().1)?;
            Some((what, id.trim().parse::<u32>().ok()?))
        };
        // A link's has the program's id too, of which it is not a descriptor.
        id(What::Link).or_else(|| id(What::Map)).or_else(|| id(What::Program))
    });
    let held: Vec<(What, u32)> = ids.collect();
    remains.iter().filter(|remain| held.contains(&(remain.what, remain.id))).collect()
}

/// Programs of others that use a map which remains.
fn users(remains: &[Remain]) -> Vec<(u32, String)> {
    let maps: Vec<u32> = remains.iter().filter(|r| r.what == What::Map).map(|r| r.id).collect();
    if maps.is_empty() {
        return Vec::new();
    }
    let mut found = Vec::new();
    for id in program::all_ids().unwrap_or_default() {
        let Ok(fd) = program::by_id(id) else { continue };
        let (Ok(used), Ok(info)) = (program::map_ids(fd.as_fd()), program::info(fd.as_fd())) else { continue };
        let who = format!("program {} (id {id})", info.name);
        found.extend(used.into_iter().filter(|map| maps.contains(map)).map(|map| (map, who.clone())));
    }
    found
}

/// Takes sockets out of the maps of a load that hold some: as long as anybody holds the map they stay under its programs.
pub fn release_sockets(bpffs: &Bpffs, load: &Path) -> Result<(), KernelError> {
    let shared = shared::of_load(bpffs, load)?;
    for name in bpffs::list(&load.join("maps"))?.into_iter().filter(|name| !shared.contains_key(name)) {
        let failed = |e| KernelError::Io { what: format!("map {name}: taking its sockets out"), source: e };
        let Ok(fd) = sys::open_pin(&load.join("maps").join(bpffs::escape(&name))) else { continue };
        if !matches!(map::info(fd.as_fd()).map_err(failed)?.map_type, types::SOCKMAP | types::SOCKHASH) {
            continue;
        }
        let map = Map::new(fd).map_err(failed)?;
        let mut key = map.next_key(None).map_err(failed)?;
        while let Some(this) = key {
            // Its successor first: of a key that is gone the kernel says the first one again.
            key = map.next_key(Some(&this)).map_err(failed)?;
            // An array's key is always there, whether a socket is or not.
            match map.delete(&this) {
                Err(e) if e.raw_os_error() != Some(libc::EINVAL) => return Err(failed(e)),
                _ => {}
            }
        }
    }
    Ok(())
}
