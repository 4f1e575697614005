//! Reading maps, without changing them.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use serde_json::Value;
use skep_object::btf::desc::TypeDesc;

use crate::observe::btf_of;
use crate::sys::map::{Map, MapInfo};

/// Entries asked for at once. A hash returns whole buckets: what does not fit is asked for again with more room.
const BATCH: u32 = 4096;
/// Most entries asked for at once.
const MAX_BATCH: u32 = 1 << 20;

/// Facts of a map that are not in its info.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapFacts {
    /// Bytes charged for the map.
    pub memlock: u64,
    /// User space cannot write it any more.
    pub frozen: bool,
}

/// A map, ready to be read, and what its bytes mean.
#[derive(Debug)]
pub struct MapReader {
    map: Map,
    pub key: TypeDesc,
    pub value: TypeDesc,
    /// Values per entry: one, or one per possible CPU.
    pub values_per_entry: u32,
    /// Bytes from one value to the next in an entry.
    pub value_stride: u32,
}

impl MapReader {
    /// Reads the map's description.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let map = Map::new(fd)?;
        let info = map.info();
        let btf = btf_of(info)?;
        let describe = |id: u32, size: u32| match &btf {
            Some(btf) if id != 0 => TypeDesc::of(btf, id),
            _ => TypeDesc::bytes(size),
        };
        let (key, value) = (describe(info.key_type, info.key_size), describe(info.value_type, info.value_size));
        // An array's key is an index even when nothing says so: data sections have no key type.
        let key = if info.key_type == 0 && info.key_size == 4 && info.map_type == crate::sys::map::types::ARRAY {
            TypeDesc { kind: skep_object::btf::desc::TypeKind::Uint, name: "u32".into(), size: 4 }
        } else {
            key
        };
        let (values_per_entry, value_stride) = if info.is_per_cpu() {
            (crate::cpus::possible()?, info.value_size.next_multiple_of(8))
        } else {
            (1, info.value_size)
        };
        Ok(MapReader { map, key, value, values_per_entry, value_stride })
    }

    pub fn info(&self) -> &MapInfo {
        self.map.info()
    }

    /// Bytes of one entry's values.
    pub fn entry_len(&self) -> usize {
        self.map.value_len()
    }

    /// An entry's values in JSON: one, or a list with one per possible CPU.
    pub fn decode_values(&self, bytes: &[u8]) -> Value {
        if self.info().is_per_cpu() {
            let stride = self.value_stride.max(1) as usize;
            return Value::Array(bytes.chunks(stride).map(|v| self.value.decode(v)).collect());
        }
        self.value.decode(bytes)
    }

    /// What only the descriptor's fdinfo tells.
    pub fn facts(&self) -> MapFacts {
        let path = format!("/proc/self/fdinfo/{}", self.map.fd().as_raw_fd());
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let number = |key: &str| {
            let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
            line.and_then(|v| v.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        MapFacts { memlock: number("memlock"), frozen: number("frozen") != 0 }
    }

    /// The values under a key.
    pub fn lookup(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.map.lookup(key)
    }

    /// Reads all entries, in portions of packed keys and values, until `sink` says stop. By batches where the kernel can,
    /// else key by key.
    pub fn read(&self, mut sink: impl FnMut(&[u8], &[u8]) -> bool) -> io::Result<()> {
        match self.read_batches(&mut sink)? {
            Progress::Done => Ok(()),
            Progress::Unsupported => self.read_keys(&mut sink),
        }
    }

    fn read_batches(&self, sink: &mut impl FnMut(&[u8], &[u8]) -> bool) -> io::Result<Progress> {
        let (mut cursor, mut keys, mut values) = (None, Vec::new(), Vec::new());
        let mut max = BATCH.min(self.info().max_entries.max(1));
        loop {
            let before: Option<Vec<u8>> = cursor.clone();
            match self.map.lookup_batch(&mut cursor, max, &mut keys, &mut values) {
                Ok(done) => {
                    if !keys.is_empty() && !sink(&keys, &values) || done {
                        return Ok(Progress::Done);
                    }
                }
                Err(e) if e.raw_os_error() == Some(libc::ENOSPC) && max < MAX_BATCH => {
                    cursor = before;
                    max *= 2;
                }
                // EINVAL and ENOTSUPP (524): this type, or this kernel, has no batches.
                Err(e)
                    if before.is_none() && matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | 524)) =>
                {
                    return Ok(Progress::Unsupported);
                }
                Err(e) => return Err(e),
            }
        }
    }

    fn read_keys(&self, sink: &mut impl FnMut(&[u8], &[u8]) -> bool) -> io::Result<()> {
        let (mut keys, mut values, mut count) = (Vec::new(), Vec::new(), 0);
        let mut key: Option<Vec<u8>> = None;
        // A key that is deleted under the walk sends it back to the start: more steps than entries mean going round.
        let mut steps = 0u64;
        while let Some(next) = self.map.next_key(key.as_deref())? {
            if let Some(value) = self.map.lookup(&next)? {
                keys.extend_from_slice(&next);
                values.extend_from_slice(&value);
                count += 1;
            }
            if count == BATCH {
                if !sink(&keys, &values) {
                    return Ok(());
                }
                keys.clear();
                values.clear();
                count = 0;
            }
            key = Some(next);
            steps += 1;
            if steps > u64::from(self.info().max_entries).saturating_mul(2).max(1024) {
                return Err(io::Error::other("the map changes faster than it can be read"));
            }
        }
        if count > 0 {
            sink(&keys, &values);
        }
        Ok(())
    }
}

enum Progress {
    Done,
    Unsupported,
}
