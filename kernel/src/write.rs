//! Writing maps from user space.
//!
//! **Guarantees.** All entries are written, or none: when the kernel refuses one, those before it become what they were.
//! Two things are beyond that: what programs wrote to the same keys meanwhile, and maps without keys, of which what was
//! put in stays.

use std::io;

use crate::sys::map::{Map, MapInfo, types};

/// What a write asks of its keys: BPF_ANY, BPF_NOEXIST, BPF_EXIST (include/uapi/linux/bpf.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Made or replaced.
    Any = 0,
    /// Not there yet.
    Create = 1,
    /// There already.
    Replace = 2,
}

/// Key and value as they lie in memory.
pub type Entry = (Vec<u8>, Vec<u8>);

/// Why entries were not written, or taken out.
#[derive(Debug, thiserror::Error)]
#[error("{source}")]
pub struct WriteError {
    /// Which one was refused.
    pub index: usize,
    /// How many of those before it could not be made what they were.
    pub stay: usize,
    pub source: io::Error,
}

/// Why user space cannot write such a map; `None`: it can.
pub fn refusal(info: &MapInfo) -> Option<&'static str> {
    Some(match info.map_type {
        types::PROG_ARRAY | types::ARRAY_OF_MAPS | types::HASH_OF_MAPS | types::PERF_EVENT_ARRAY => {
            "its values are programs, maps or events, which its owner opens"
        }
        types::CGROUP_ARRAY => "its values are cgroups, which its owner opens",
        types::SOCKMAP | types::SOCKHASH | types::REUSEPORT_SOCKARRAY | types::XSKMAP => {
            "its values are sockets, which their owner opens"
        }
        types::SK_STORAGE | types::INODE_STORAGE | types::TASK_STORAGE | types::CGRP_STORAGE => {
            "its entries belong to sockets, inodes, tasks or cgroups"
        }
        types::RINGBUF | types::STACK_TRACE => "programs alone write it",
        types::USER_RINGBUF => "it takes records, not entries",
        types::STRUCT_OPS => "its value is registered with the kernel",
        types::ARENA => "programs and the process that maps it write it",
        _ => return None,
    })
}

/// Why a value cannot be written, although others can; `None`: it can.
pub fn value_refusal(info: &MapInfo, value: &[u8]) -> Option<&'static str> {
    use types::{CPUMAP, DEVMAP, DEVMAP_HASH};
    // struct bpf_devmap_val and struct bpf_cpumap_val: the second word is a descriptor of whoever writes, which is not what
    // is read there.
    let program = value.get(4..8).is_some_and(|word| word != [0; 4]);
    (matches!(info.map_type, DEVMAP | DEVMAP_HASH | CPUMAP) && program)
        .then_some("bpf_prog: programs of its entries are set by its owner, who opens them; write 0")
}

/// Why the map can have no such key; `None`: it can.
pub fn key_refusal(info: &MapInfo, key: &[u8]) -> Option<String> {
    // struct bpf_lpm_trie_key: how many bits count, then they.
    let bits = u32::from_ne_bytes(key.get(..4)?.try_into().ok()?);
    let most = (key.len() as u32 - 4) * 8;
    (info.map_type == types::LPM_TRIE && bits > most)
        .then(|| format!("a prefix of {bits} bits is outside 0..={most}, of {} bytes", key.len() - 4))
}

/// Why entries of such a map cannot be taken out; `None`: they can.
pub fn deletion_refusal(info: &MapInfo) -> Option<&'static str> {
    match info.map_type {
        types::ARRAY | types::PERCPU_ARRAY => Some("an array has all its entries always; write zeroes instead"),
        types::QUEUE | types::STACK => Some("its entries have no keys; they are taken from its head, by programs"),
        types::BLOOM_FILTER => Some("nothing can be taken out of a bloom filter"),
        _ => refusal(info),
    }
}

/// Writes entries in their order.
pub fn write(map: &Map, entries: &[Entry], mode: Mode) -> Result<(), WriteError> {
    let keyed = map.info().key_size > 0;
    let mut before = Vec::new();
    for (index, (key, value)) in entries.iter().enumerate() {
        let old = if keyed { map.lookup(key) } else { Ok(None) };
        match old.and_then(|old| map.update(key, value, mode as u64).map(|()| old)) {
            Ok(old) => before.push(old),
            Err(source) => {
                let stay = restore(map, &entries[..index], before);
                return Err(WriteError { index, stay, source });
            }
        }
    }
    Ok(())
}

/// Makes entries what they were, the last first; how many could not be.
fn restore(map: &Map, entries: &[Entry], before: Vec<Option<Vec<u8>>>) -> usize {
    if map.info().key_size == 0 {
        return entries.len();
    }
    let back = |((key, _), old): (&Entry, Option<Vec<u8>>)| match old {
        Some(old) => map.update(key, &old, 0),
        None => map.delete(key).map(drop),
    };
    entries.iter().zip(before).rev().map(back).filter(Result::is_err).count()
}

/// Takes entries out; how many there were. Those before one that the kernel refuses to take out stay out.
pub fn delete(map: &Map, keys: &[Vec<u8>]) -> Result<u64, WriteError> {
    let mut deleted = 0;
    for (index, key) in keys.iter().enumerate() {
        match map.delete(key) {
            Ok(was_there) => deleted += u64::from(was_there),
            Err(source) => return Err(WriteError { index, stay: index, source }),
        }
    }
    Ok(deleted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_as_long_as_what_follows_them() {
        let trie = MapInfo { map_type: types::LPM_TRIE, ..MapInfo::default() };
        let key = |bits: u32| [bits.to_ne_bytes(), [10, 0, 0, 0]].concat();
        assert_eq!(key_refusal(&trie, &key(32)), None);
        assert_eq!(key_refusal(&trie, &key(33)).unwrap(), "a prefix of 33 bits is outside 0..=32, of 4 bytes");
        assert_eq!(key_refusal(&MapInfo { map_type: types::HASH, ..MapInfo::default() }, &key(33)), None);
    }

    /// What is read in the second word is an id; what is written there, a descriptor of the writer's.
    #[test]
    fn programs_of_entries_are_their_owners_to_set() {
        let info = |map_type| MapInfo { map_type, ..MapInfo::default() };
        let program = [[1, 0, 0, 0], [5, 0, 0, 0]].concat();
        let none = [[1, 0, 0, 0], [0; 4]].concat();
        for map_type in [types::DEVMAP, types::DEVMAP_HASH, types::CPUMAP] {
            assert!(value_refusal(&info(map_type), &program).is_some_and(|why| why.starts_with("bpf_prog: ")));
            assert_eq!(value_refusal(&info(map_type), &none), None);
            assert_eq!(value_refusal(&info(map_type), &program[..4]), None, "it has no program");
        }
        assert_eq!(value_refusal(&info(types::HASH), &program), None);
    }
}
