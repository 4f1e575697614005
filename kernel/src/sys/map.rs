//! Maps.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use skep_object::map::MapDef;

use super::attr::{FdById, MapBatch, MapCreate, MapElement, OneFd};
use super::mapping::Mapping;
use super::{Command, bpf, bpf_fd, field_text, ids, info_by_fd, kernel_name, raw};

const BPF_F_NUMA_NODE: u32 = 1 << 2;
/// BPF_MAP_TYPE_* (include/uapi/linux/bpf.h).
pub mod types {
    pub const HASH: u32 = 1;
    pub const ARRAY: u32 = 2;
    pub const PROG_ARRAY: u32 = 3;
    pub const PERF_EVENT_ARRAY: u32 = 4;
    pub const PERCPU_HASH: u32 = 5;
    pub const PERCPU_ARRAY: u32 = 6;
    pub const STACK_TRACE: u32 = 7;
    pub const CGROUP_ARRAY: u32 = 8;
    pub const LRU_HASH: u32 = 9;
    pub const LRU_PERCPU_HASH: u32 = 10;
    pub const LPM_TRIE: u32 = 11;
    pub const ARRAY_OF_MAPS: u32 = 12;
    pub const HASH_OF_MAPS: u32 = 13;
    pub const DEVMAP: u32 = 14;
    pub const SOCKMAP: u32 = 15;
    pub const CPUMAP: u32 = 16;
    pub const SOCKHASH: u32 = 18;
    pub const CGROUP_STORAGE: u32 = 19;
    pub const PERCPU_CGROUP_STORAGE: u32 = 21;
    pub const QUEUE: u32 = 22;
    pub const STACK: u32 = 23;
    pub const SK_STORAGE: u32 = 24;
    pub const DEVMAP_HASH: u32 = 25;
    pub const STRUCT_OPS: u32 = 26;
    pub const RINGBUF: u32 = 27;
    pub const INODE_STORAGE: u32 = 28;
    pub const TASK_STORAGE: u32 = 29;
    pub const BLOOM_FILTER: u32 = 30;
    pub const USER_RINGBUF: u32 = 31;
    pub const CGRP_STORAGE: u32 = 32;
    pub const ARENA: u32 = 33;
    pub const REUSEPORT_SOCKARRAY: u32 = 20;
    pub const XSKMAP: u32 = 17;
}

/// BPF_F_MMAPABLE: user space may map the values of an array into its memory.
pub const MMAPABLE: u32 = 1 << 10;

/// bpftool's names of map types, by number.
const TYPE_NAMES: [&str; 35] = [
    "unspec",
    "hash",
    "array",
    "prog_array",
    "perf_event_array",
    "percpu_hash",
    "percpu_array",
    "stack_trace",
    "cgroup_array",
    "lru_hash",
    "lru_percpu_hash",
    "lpm_trie",
    "array_of_maps",
    "hash_of_maps",
    "devmap",
    "sockmap",
    "cpumap",
    "xskmap",
    "sockhash",
    "cgroup_storage",
    "reuseport_sockarray",
    "percpu_cgroup_storage",
    "queue",
    "stack",
    "sk_storage",
    "devmap_hash",
    "struct_ops",
    "ringbuf",
    "inode_storage",
    "task_storage",
    "bloom_filter",
    "user_ringbuf",
    "cgrp_storage",
    "arena",
    "insn_array",
];

/// Types whose keys and values the kernel refuses to describe by BTF.
const WITHOUT_BTF: [u32; 15] = [3, 4, 7, 8, 12, 13, 14, 15, 16, 17, 18, 22, 23, 25, 33];

/// The name of a map type, e.g. `percpu_hash`.
pub fn type_name(map_type: u32) -> String {
    TYPE_NAMES.get(map_type as usize).map_or_else(|| format!("type_{map_type}"), |n| (*n).to_owned())
}

/// The same with its article: `an array`, `a hash`.
pub fn a_type(map_type: u32) -> String {
    let name = type_name(map_type);
    // No name of a type that begins with another vowel is spoken with one.
    format!("{} {name}", if name.starts_with(['a', 'i']) { "an" } else { "a" })
}

/// What the kernel says of a map (struct bpf_map_info).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapInfo {
    pub map_type: u32,
    pub id: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub flags: u32,
    pub name: String,
    pub btf_id: u32,
    pub key_type: u32,
    pub value_type: u32,
    /// Of values whose type is the kernel's own, in the BTF of that id.
    pub kernel_btf_id: u32,
    pub kernel_value_type: u32,
    pub extra: u64,
}

impl MapInfo {
    /// A value per possible CPU.
    pub fn is_per_cpu(&self) -> bool {
        use types::*;
        matches!(self.map_type, PERCPU_HASH | PERCPU_ARRAY | LRU_PERCPU_HASH | PERCPU_CGROUP_STORAGE)
    }
}

/// Creates a map of an object's definition. With type information where the kernel takes it for this type.
pub fn create(def: &MapDef, btf: Option<BorrowedFd<'_>>, inner: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
    let typed = btf.filter(|_| (def.key_type != 0 || def.value_type != 0) && !WITHOUT_BTF.contains(&def.map_type));
    match create_with(def, typed, inner) {
        // Some kernels know the type, but not its description.
        Err(e) if typed.is_some() && e.raw_os_error() == Some(libc::EINVAL) => create_with(def, None, inner),
        result => result,
    }
}

fn create_with(def: &MapDef, btf: Option<BorrowedFd<'_>>, inner: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
    let ring = matches!(def.map_type, types::RINGBUF | types::USER_RINGBUF);
    let perf = def.map_type == types::PERF_EVENT_ARRAY;
    let or = |value: u32, default: u32| if value == 0 { default } else { value };
    let mut attr = MapCreate {
        map_type: def.map_type,
        key_size: if ring {
            0
        } else if perf {
            or(def.key_size, 4)
        } else {
            def.key_size
        },
        value_size: if ring {
            0
        } else if perf {
            or(def.value_size, 4)
        } else {
            def.value_size
        },
        // As many entries as CPUs: libbpf's reading of 0.
        max_entries: if perf { or(def.max_entries, crate::cpus::possible()?) } else { def.max_entries },
        flags: def.flags | if def.numa_node.is_some() { BPF_F_NUMA_NODE } else { 0 },
        inner_fd: inner.map_or(0, raw),
        numa_node: def.numa_node.unwrap_or(0),
        name: kernel_name(&def.name),
        extra: def.extra,
        ..MapCreate::default()
    };
    if let Some(btf) = btf {
        (attr.btf_fd, attr.key_type, attr.value_type) = (raw(btf), def.key_type, def.value_type);
    }
    bpf_fd(Command::MapCreate, &mut attr)
}

/// What the kernel says of the map.
pub fn info(fd: BorrowedFd<'_>) -> io::Result<MapInfo> {
    #[repr(C)]
    #[derive(Default)]
    struct Raw {
        map_type: u32,
        id: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        flags: u32,
        name: [u8; 16],
        ifindex: u32,
        kernel_value_type: u32,
        netns_dev: u64,
        netns_ino: u64,
        btf_id: u32,
        key_type: u32,
        value_type: u32,
        kernel_btf_id: u32,
        extra: u64,
    }
    let mut r = Raw::default();
    info_by_fd(fd, &mut r)?;
    Ok(MapInfo {
        map_type: r.map_type,
        id: r.id,
        key_size: r.key_size,
        value_size: r.value_size,
        max_entries: r.max_entries,
        flags: r.flags,
        name: field_text(&r.name),
        btf_id: r.btf_id,
        key_type: r.key_type,
        value_type: r.value_type,
        kernel_btf_id: r.kernel_btf_id,
        kernel_value_type: r.kernel_value_type,
        extra: r.extra,
    })
}

/// Whether a map can be one that was made from a definition: by name (which the kernel cuts) and shape.
pub fn is_of(info: &MapInfo, def: &MapDef) -> bool {
    // What a definition leaves open is the kernel's choice.
    let sized = |is: u32, said: u32| said == 0 || is == said;
    info.name == field_text(&kernel_name(&def.name))
        && info.map_type == def.map_type
        && sized(info.key_size, def.key_size)
        && sized(info.value_size, def.value_size)
}

/// Opens a map by id.
pub fn by_id(id: u32) -> io::Result<OwnedFd> {
    bpf_fd(Command::MapFdById, &mut FdById { id, next: 0, flags: 0 })
}

/// Ids of all maps of the host.
pub fn all_ids() -> io::Result<Vec<u32>> {
    ids(Command::MapNextId)
}

/// Refuses further writes from user space.
pub fn freeze(fd: BorrowedFd<'_>) -> io::Result<()> {
    bpf(Command::MapFreeze, &mut OneFd { fd: raw(fd) }).map(drop)
}

/// Of a map without keys the kernel wants to be given none.
fn address(key: &[u8]) -> u64 {
    if key.is_empty() { 0 } else { key.as_ptr() as u64 }
}

/// An open map with its sizes: keys and values are checked against them.
#[derive(Debug)]
pub struct Map {
    fd: OwnedFd,
    info: MapInfo,
    /// Bytes of one entry's values as the kernel copies them: per-CPU values are padded and repeated.
    value_len: usize,
}

impl Map {
    /// Reads the map's sizes.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let info = info(fd.as_fd())?;
        let value_len = if info.is_per_cpu() {
            info.value_size.next_multiple_of(8) as usize * crate::cpus::possible()? as usize
        } else {
            info.value_size as usize
        };
        Ok(Map { fd, info, value_len })
    }
    pub fn info(&self) -> &MapInfo {
        &self.info
    }
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }
    /// The values of an array with [`MMAPABLE`], eight-byte aligned, one after the other. Programs write them meanwhile:
    /// what is copied out is as new as each of its words, and no more than that is promised by a lookup either.
    pub fn mapping(&self) -> io::Result<Mapping> {
        let stride = self.info.value_size.next_multiple_of(8) as usize;
        Mapping::new(self.fd(), 0, stride.saturating_mul(self.info.max_entries as usize), false)
    }
    /// Bytes of one entry's values.
    pub fn value_len(&self) -> usize {
        self.value_len
    }

    fn check(&self, key: &[u8]) -> io::Result<()> {
        if key.len() == self.info.key_size as usize { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EINVAL)) }
    }

    /// The value under a key.
    pub fn lookup(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.look(Command::MapLookup, key)
    }

    fn look(&self, command: Command, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.check(key)?;
        let mut value = vec![0u8; self.value_len];
        let mut attr = MapElement {
            map_fd: raw(self.fd()),
            key: address(key),
            value: value.as_mut_ptr() as u64,
            ..MapElement::default()
        };
        match bpf(command, &mut attr) {
            Ok(_) => Ok(Some(value)),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The value under a key, taken out in the same step. EOPNOTSUPP or ENOTSUPP (524): not of such a map.
    pub fn take(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.look(Command::MapLookupAndDelete, key)
    }

    /// Sets a value; `flags` as BPF_ANY (0), BPF_NOEXIST (1), BPF_EXIST (2).
    pub fn update(&self, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
        self.check(key)?;
        if value.len() != self.value_len {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let mut attr = MapElement {
            map_fd: raw(self.fd()),
            key: address(key),
            value: value.as_ptr() as u64,
            flags,
            ..MapElement::default()
        };
        bpf(Command::MapUpdate, &mut attr).map(drop)
    }

    /// Removes an entry; false when there was none.
    pub fn delete(&self, key: &[u8]) -> io::Result<bool> {
        self.check(key)?;
        let mut attr = MapElement { map_fd: raw(self.fd()), key: address(key), ..MapElement::default() };
        match bpf(Command::MapDelete, &mut attr) {
            Ok(_) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The key after `key`, or the first; `None` at the end.
    pub fn next_key(&self, key: Option<&[u8]>) -> io::Result<Option<Vec<u8>>> {
        key.map_or(Ok(()), |k| self.check(k))?;
        let mut next = vec![0u8; self.info.key_size as usize];
        let mut attr = MapElement {
            map_fd: raw(self.fd()),
            key: key.map_or(0, |k| k.as_ptr() as u64),
            value: next.as_mut_ptr() as u64,
            ..MapElement::default()
        };
        match bpf(Command::MapNextKey, &mut attr) {
            Ok(_) => Ok(Some(next)),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Reads up to `max` entries from a cursor on, into `keys` and `values`, and moves the cursor; true at the end.
    /// ENOSPC: the entries at the cursor do not fit; ask for more.
    pub fn lookup_batch(
        &self,
        cursor: &mut Option<Vec<u8>>,
        max: u32,
        keys: &mut Vec<u8>,
        values: &mut Vec<u8>,
    ) -> io::Result<bool> {
        self.batch(Command::MapLookupBatch, cursor, max, keys, values)
    }

    /// The same, and takes them out.
    pub fn take_batch(
        &self,
        cursor: &mut Option<Vec<u8>>,
        max: u32,
        keys: &mut Vec<u8>,
        values: &mut Vec<u8>,
    ) -> io::Result<bool> {
        self.batch(Command::MapLookupAndDeleteBatch, cursor, max, keys, values)
    }

    fn batch(
        &self,
        command: Command,
        cursor: &mut Option<Vec<u8>>,
        max: u32,
        keys: &mut Vec<u8>,
        values: &mut Vec<u8>,
    ) -> io::Result<bool> {
        keys.resize(max as usize * self.info.key_size as usize, 0);
        values.resize(max as usize * self.value_len, 0);
        // Hashes keep a bucket number here, arrays a key: four bytes, or the key's own length.
        let mut next = vec![0u8; self.info.key_size.max(8) as usize];
        let mut attr = MapBatch {
            in_batch: cursor.as_ref().map_or(0, |c| c.as_ptr() as u64),
            out_batch: next.as_mut_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: max,
            map_fd: raw(self.fd()),
            ..MapBatch::default()
        };
        let done = match bpf(command, &mut attr) {
            Ok(_) => false,
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => true,
            Err(e) => return Err(e),
        };
        let count = attr.count.min(max) as usize;
        keys.truncate(count * self.info.key_size as usize);
        values.truncate(count * self.value_len);
        *cursor = Some(next);
        Ok(done)
    }
}
