//! A kept map of another size: its contents move to a new map while programs go on using the old one.
//!
//! **Guarantees.** The old map is only read. [`Migration::copy`] happens before any program uses the new map; what the
//! old one still counted until then is brought over by [`Migration::settle`], when no program uses the old one any more.
//! Settling may be cut short anywhere and run again: what was brought over once is not brought over twice, because a
//! third map, the base, holds what the new map knows of the old one, and for sums one run of a kernel program moves
//! both. Sums are exact: programs add to the new map while it is settled, and nobody's addition is lost.

mod adder;

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use skep_object::btf::desc::{TypeDesc, TypeKind};
use skep_object::map::MapDef;

use crate::dump::MapReader;
use crate::error::KernelError;
use crate::sys::map::{self, Map, MapInfo, types};
use crate::sys::{self, program};

use adder::Adder;

/// BPF_NOEXIST and BPF_EXIST (include/uapi/linux/bpf.h).
const NOEXIST: u64 = 1;
const EXIST: u64 = 2;
/// Instructions address a value by 16 bits, signed.
const MAX_SUMMED_VALUE: u32 = i16::MAX as u32;

/// What became of values that changed in the old map after they were copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Entries of the old map that were missing in the new one, and were inserted.
    pub inserted: u64,
    /// Changed values that were brought over: by addition, or because nobody had touched the new one.
    pub merged: u64,
    /// Changed values that were not: programs had changed the new ones as well, or there was no room.
    pub raced: u64,
    /// Entries that were deleted in the old map, and then in the new one.
    pub deleted: u64,
}

/// Why a map of this kind keeps its contents at equal size only; `None`: it can have another one.
pub fn obstacle(info: &MapInfo, value: &TypeDesc) -> Option<String> {
    use types::*;
    let moves =
        [HASH, ARRAY, PERCPU_HASH, PERCPU_ARRAY, LRU_HASH, LRU_PERCPU_HASH, LPM_TRIE, DEVMAP, DEVMAP_HASH, CPUMAP];
    if !moves.contains(&info.map_type) {
        return Some(format!("contents of a map of type {} cannot be moved", map::type_name(info.map_type)));
    }
    bound_to_its_map(value).map(|name| format!("its values hold a {name}, which cannot be moved"))
}

/// A field that belongs to the place it is at.
fn bound_to_its_map(desc: &TypeDesc) -> Option<&'static str> {
    const BOUND: [&str; 6] = ["bpf_timer", "bpf_wq", "bpf_task_work", "bpf_list_head", "bpf_rb_root", "bpf_refcount"];
    if let Some(name) = BOUND.into_iter().find(|name| *name == desc.name) {
        return Some(name);
    }
    match &desc.kind {
        TypeKind::Struct(fields) | TypeKind::Union(fields) => fields.iter().find_map(|f| bound_to_its_map(&f.desc)),
        TypeKind::Array { element, .. } => bound_to_its_map(element),
        // A pointer in a map's value is the kernel's own: to an object that the map holds.
        TypeKind::Pointer => Some("kernel pointer"),
        _ => None,
    }
}

/// Offset and size of every integer of a value, for adding; an error names what cannot be added.
pub fn summands(value: &TypeDesc) -> Result<Vec<(u32, u32)>, String> {
    if value.size > MAX_SUMMED_VALUE {
        return Err(format!(
            "values of {} bytes are too large to be added, {MAX_SUMMED_VALUE} is the most",
            value.size
        ));
    }
    if let Some(name) = bound_to_its_map(value) {
        return Err(format!("its values hold a {name}"));
    }
    let mut found = Vec::new();
    summands_of(value, 0, "", &mut found)?;
    Ok(found)
}

fn summands_of(desc: &TypeDesc, at: u32, path: &str, found: &mut Vec<(u32, u32)>) -> Result<(), String> {
    let refuse = |what: &str| {
        let name = if path.is_empty() { "the value" } else { path };
        Err(format!("{name} is {what}: only integers of 4 or 8 bytes can be added"))
    };
    match &desc.kind {
        TypeKind::Uint | TypeKind::Int if desc.size == 4 || desc.size == 8 => found.push((at, desc.size)),
        TypeKind::Uint | TypeKind::Int => return refuse(&format!("an integer of {} bytes", desc.size)),
        TypeKind::Struct(fields) => {
            for field in fields {
                let path = if path.is_empty() { field.name.clone() } else { format!("{path}.{}", field.name) };
                if field.bit_size != 0 {
                    return Err(format!("{path} is a bit field: only integers of 4 or 8 bytes can be added"));
                }
                summands_of(&field.desc, at + field.bit_offset / 8, &path, found)?;
            }
        }
        TypeKind::Array { element, count } => {
            for index in 0..*count {
                summands_of(element, at + index * element.size, &format!("{path}[{index}]"), found)?;
            }
        }
        TypeKind::Bytes => return refuse("of a type that nothing describes"),
        TypeKind::Union(_) => return refuse("a union"),
        TypeKind::Bool => return refuse("a boolean"),
        TypeKind::Char => return refuse("a character"),
        TypeKind::Float => return refuse("a floating-point number"),
        TypeKind::Pointer => return refuse("a pointer"),
        TypeKind::Enum { .. } => return refuse("an enumeration"),
    }
    Ok(())
}

/// The definition of the map that remembers what was copied: all CPUs' values of an entry in one. Programs go on meanwhile:
/// when the old map is read again, all of its keys may be others.
fn base_def(name: &str, old: &Map) -> MapDef {
    let fixed = [types::ARRAY, types::PERCPU_ARRAY, types::DEVMAP, types::CPUMAP].contains(&old.info().map_type);
    let times = if fixed { 1 } else { 2 };
    MapDef {
        name: name.to_owned(),
        map_type: types::HASH,
        key_size: old.info().key_size,
        value_size: old.value_len() as u32,
        max_entries: old.info().max_entries.saturating_mul(times),
        ..MapDef::default()
    }
}

/// One map on the way from one size to another.
#[derive(Debug)]
pub struct Migration {
    name: String,
    old: MapReader,
    new: Map,
    base: Map,
}

impl Migration {
    /// Takes up a migration that was begun.
    pub fn resume(name: &str, old: OwnedFd, new: OwnedFd, base: OwnedFd) -> Result<Self, KernelError> {
        let failed = || KernelError::io(format!("map {name}: reading its sizes"));
        Ok(Migration {
            name: name.to_owned(),
            old: MapReader::new(old).map_err(failed())?,
            new: Map::new(new).map_err(failed())?,
            base: Map::new(base).map_err(failed())?,
        })
    }

    /// Fills `new` with what is in `old`; the base map, and how many entries the new map did not keep, which only
    /// happens where the kernel drops the oldest.
    pub fn copy(name: &str, old: OwnedFd, new: OwnedFd) -> Result<(OwnedFd, u64), KernelError> {
        let failed = || KernelError::io(format!("map {name}: copying its contents"));
        let sizes = Map::new(old.try_clone().map_err(failed())?).map_err(failed())?;
        let def = base_def(name, &sizes);
        let made = crate::memory::room_for(&def).and_then(|()| map::create(&def, None, None));
        let base = made.map_err(|e| match e.raw_os_error() {
            Some(libc::ENOMEM) => KernelError::NodeFull {
                map: format!("{name} (what its migration remembers)"),
                entries: def.max_entries,
                bytes: u64::from(def.max_entries) * u64::from(def.key_size + def.value_size),
                limit: crate::memory::limit(),
            },
            _ => failed()(e),
        })?;
        let migration = Self::resume(name, old, new, base.try_clone().map_err(failed())?)?;
        let copied = migration.fill()?;
        let kept = if migration.drops_oldest() { migration.count_new()? } else { copied };
        Ok((base, copied.saturating_sub(kept)))
    }

    fn failed(&self) -> impl FnOnce(io::Error) -> KernelError + use<> {
        KernelError::io(format!("map {}: moving its contents", self.name))
    }

    fn drops_oldest(&self) -> bool {
        matches!(self.new.info().map_type, types::LRU_HASH | types::LRU_PERCPU_HASH)
    }

    fn is_array(&self) -> bool {
        matches!(self.new.info().map_type, types::ARRAY | types::PERCPU_ARRAY)
    }

    /// An index that the new map is too short for.
    fn outside(&self, key: &[u8]) -> bool {
        let indexed = [types::ARRAY, types::PERCPU_ARRAY, types::DEVMAP, types::CPUMAP];
        let index = key.first_chunk().map_or(0, |k| u32::from_ne_bytes(*k));
        indexed.contains(&self.new.info().map_type) && index >= self.new.info().max_entries
    }

    fn too_many(&self) -> KernelError {
        KernelError::MapIncompatible {
            map: self.name.clone(),
            why: format!(
                "its contents do not fit into maxEntries: {}; give it more, remove entries, or write onUpdate: Reset",
                self.new.info().max_entries
            ),
        }
    }

    fn fill(&self) -> Result<u64, KernelError> {
        let (mut copied, mut failure) = (0, None);
        let (key_len, value_len) = (self.old.info().key_size as usize, self.old.entry_len());
        self.old
            .read(|keys, values| {
                for (key, value) in keys.chunks_exact(key_len).zip(values.chunks_exact(value_len)) {
                    match self.fill_one(key, value) {
                        Ok(()) => copied += 1,
                        Err(e) => failure = Some(e),
                    }
                    if failure.is_some() {
                        return false;
                    }
                }
                true
            })
            .map_err(self.failed())?;
        failure.map_or(Ok(copied), Err)
    }

    fn fill_one(&self, key: &[u8], value: &[u8]) -> Result<(), KernelError> {
        if self.outside(key) {
            // An array has all its entries from the start: those that nobody set are no loss.
            return if self.is_array() && value.iter().all(|b| *b == 0) { Ok(()) } else { Err(self.too_many()) };
        }
        self.put(key, value, 0).map_err(|e| if is_full(&e) { self.too_many() } else { self.failed()(e) })?;
        self.remember(key, value, 0).map(drop)
    }

    /// Writes down what the new map knows of the old one; false where there is no room for it. Then it is not brought over
    /// when the map settles, which is said.
    fn remember(&self, key: &[u8], value: &[u8], flags: u64) -> Result<bool, KernelError> {
        match self.base.update(key, value, flags) {
            Ok(()) => Ok(true),
            Err(e) if is_full(&e) => Ok(false),
            Err(e) => Err(self.failed()(e)),
        }
    }

    /// Writes to the new map. What is read from a map of devices or CPUs names programs by id; what is written, by
    /// descriptor.
    fn put(&self, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
        let by_id = matches!(self.new.info().map_type, types::DEVMAP | types::DEVMAP_HASH | types::CPUMAP);
        let id = value.get(4..8).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_ne_bytes(*b));
        if !by_id || id == 0 {
            return self.new.update(key, value, flags);
        }
        let program = program::by_id(id)?;
        let fd = program.as_raw_fd().to_ne_bytes();
        self.new.update(key, &[&value[..4], &fd].concat(), flags)
    }

    fn count_new(&self) -> Result<u64, KernelError> {
        let reader =
            MapReader::new(self.new.fd().try_clone_to_owned().map_err(self.failed())?).map_err(self.failed())?;
        let (mut count, key_len) = (0, self.new.info().key_size as usize);
        reader
            .read(|keys, _| {
                count += (keys.len() / key_len) as u64;
                true
            })
            .map_err(self.failed())?;
        Ok(count)
    }

    /// Brings over what changed in the old map since it was copied. Nothing may use it any more: programs that still
    /// run with it are waited for by the caller ([`sys::grace_period`]).
    pub fn settle(&self, sum: bool) -> Result<Settled, KernelError> {
        let adder = if sum { Some(self.adder()?) } else { None };
        let (mut settled, mut failure) = (Settled::default(), None);
        let mut seen: BTreeSet<Vec<u8>> = BTreeSet::new();
        let (key_len, value_len) = (self.old.info().key_size as usize, self.old.entry_len());
        self.old
            .read(|keys, values| {
                for (key, value) in keys.chunks_exact(key_len).zip(values.chunks_exact(value_len)) {
                    // A batch may give a key twice.
                    if !seen.insert(key.to_vec()) {
                        continue;
                    }
                    failure = self.settle_one(key, value, adder.as_ref(), &mut settled).err();
                    if failure.is_some() {
                        return false;
                    }
                }
                true
            })
            .map_err(self.failed())?;
        if let Some(failure) = failure {
            return Err(failure);
        }
        // Where the kernel drops the oldest, an entry that is gone was not necessarily deleted.
        if !self.drops_oldest() && !self.is_array() {
            self.delete_gone(&seen, &mut settled)?;
        }
        Ok(settled)
    }

    fn settle_one(
        &self,
        key: &[u8],
        value: &[u8],
        adder: Option<&Adder>,
        settled: &mut Settled,
    ) -> Result<(), KernelError> {
        let before = self.base.lookup(key).map_err(self.failed())?;
        if before.as_deref() == Some(value) {
            return Ok(());
        }
        if self.outside(key) {
            settled.raced += u64::from(value.iter().any(|b| *b != 0));
            return Ok(());
        }
        if let Some(adder) = adder {
            let nothing = vec![0; value.len()];
            if before.is_none() && !self.remember(key, &nothing, NOEXIST)? {
                settled.raced += 1;
                return Ok(());
            }
            match self.new.update(key, &nothing, NOEXIST) {
                Ok(()) => settled.inserted += 1,
                Err(e) if e.raw_os_error() == Some(libc::EEXIST) => settled.merged += 1,
                Err(e) if is_full(&e) => {
                    settled.raced += 1;
                    return Ok(());
                }
                Err(e) => return Err(self.failed()(e)),
            }
            return adder.add(key, value).map_err(self.failed());
        }
        self.settle_value(key, value, before.as_deref(), settled).map_err(self.failed())?;
        self.remember(key, value, 0).map(drop)
    }

    /// Without sums: what programs did in the new map wins.
    fn settle_value(&self, key: &[u8], value: &[u8], before: Option<&[u8]>, settled: &mut Settled) -> io::Result<()> {
        let Some(before) = before else {
            match self.put(key, value, NOEXIST) {
                Ok(()) => settled.inserted += 1,
                // Programs made it in the new map too, or filled that up.
                Err(e) if e.raw_os_error() == Some(libc::EEXIST) || is_full(&e) => settled.raced += 1,
                Err(e) => return Err(e),
            }
            return Ok(());
        };
        match self.new.lookup(key)? {
            Some(now) if now == before => match self.put(key, value, EXIST) {
                Ok(()) => settled.merged += 1,
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => settled.raced += 1,
                Err(e) => return Err(e),
            },
            // Changed there, or deleted.
            _ => settled.raced += 1,
        }
        Ok(())
    }

    fn delete_gone(&self, seen: &BTreeSet<Vec<u8>>, settled: &mut Settled) -> Result<(), KernelError> {
        let mut gone = Vec::new();
        let mut key = self.base.next_key(None).map_err(self.failed())?;
        while let Some(current) = key {
            key = self.base.next_key(Some(&current)).map_err(self.failed())?;
            if !seen.contains(&current) {
                gone.push(current);
            }
        }
        for key in gone {
            if self.new.delete(&key).map_err(self.failed())? {
                settled.deleted += 1;
            }
            self.base.delete(&key).map_err(self.failed())?;
        }
        Ok(())
    }

    fn adder(&self) -> Result<Adder, KernelError> {
        let why = |why| KernelError::MapIncompatible { map: self.name.clone(), why: format!("merge: Sum: {why}") };
        let fields = summands(&self.old.value).map_err(why)?;
        Adder::new(self, &fields)
    }
}

/// A map takes no more entries.
fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC))
}

/// Waits until no program runs any more that ran before.
pub fn wait_for_programs() -> Result<(), KernelError> {
    sys::grace_period().map_err(KernelError::io("waiting for running programs"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_object::btf::desc::FieldDesc;

    fn desc(kind: TypeKind, name: &str, size: u32) -> TypeDesc {
        TypeDesc { kind, name: name.into(), size }
    }

    fn record(fields: Vec<(&str, TypeDesc, u32)>) -> TypeDesc {
        let fields = fields.into_iter().map(|(name, desc, at)| FieldDesc {
            name: name.into(),
            desc,
            bit_offset: at * 8,
            bit_size: 0,
        });
        desc(TypeKind::Struct(fields.collect()), "record", 32)
    }

    #[test]
    fn integers_of_four_and_eight_bytes_are_added_and_nothing_else() {
        let (u64_, u32_) = (desc(TypeKind::Uint, "u64", 8), desc(TypeKind::Int, "int", 4));
        let pair = desc(TypeKind::Array { element: Box::new(u32_.clone()), count: 2 }, "", 8);
        let good = record(vec![("packets", u64_.clone(), 0), ("errors", pair, 8)]);
        assert_eq!(summands(&good), Ok(vec![(0, 8), (8, 4), (12, 4)]));
        let flag = record(vec![("packets", u64_, 0), ("up", desc(TypeKind::Bool, "bool", 1), 8)]);
        assert_eq!(summands(&flag).unwrap_err(), "up is a boolean: only integers of 4 or 8 bytes can be added");
        assert!(
            summands(&TypeDesc::bytes(8)).unwrap_err().starts_with("the value is of a type that nothing describes")
        );
    }

    #[test]
    fn what_belongs_to_its_place_does_not_move() {
        let hash = MapInfo { map_type: types::HASH, ..MapInfo::default() };
        assert_eq!(obstacle(&hash, &desc(TypeKind::Uint, "u64", 8)), None);
        let timer = record(vec![("t", desc(TypeKind::Struct(vec![]), "bpf_timer", 16), 0)]);
        assert!(obstacle(&hash, &timer).unwrap().contains("bpf_timer"));
        let ring = MapInfo { map_type: types::RINGBUF, ..MapInfo::default() };
        assert!(obstacle(&ring, &desc(TypeKind::Uint, "u64", 8)).unwrap().contains("ringbuf"));
    }
}
