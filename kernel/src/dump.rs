//! Reading maps, without changing them.

mod arena;
mod described;
pub mod drain;
mod hashes;
mod owners;

pub use self::described::{Said, Types};
pub use self::owners::cgroup_paths;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde_json::Value;
use skep_object::btf::desc::{TypeDesc, TypeKind};

use crate::sys;
use crate::sys::map::{MMAPABLE, Map, MapInfo, types};
use crate::sys::mapping::Mapping;

use self::arena::Arena;
use self::described::{Described, described};
use self::owners::Owners;

/// Entries asked for at once. A hash returns whole buckets: what does not fit is asked for again with more room.
const BATCH: u32 = 4096;
/// Most entries asked for at once.
const MAX_BATCH: u32 = 1 << 20;
/// Bytes of a portion.
pub const PORTION: usize = 1 << 20;

/// How entries are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// From memory.
    Mapped,
    /// Many at once, where this kernel can; else key by key.
    Batches,
    /// Key by key.
    Keys,
    /// The next entry that would be taken out, which stays.
    Head,
    /// Owner by owner.
    Owned(Owners),
    /// Page by page.
    Pages,
    Refused(&'static str),
}

fn way(info: &MapInfo) -> Way {
    match info.map_type {
        types::ARRAY if info.flags & MMAPABLE != 0 => Way::Mapped,
        types::QUEUE | types::STACK => Way::Head,
        types::USER_RINGBUF => Way::Refused("programs take its records out; put some in (kubectl skep maps put)"),
        types::RINGBUF | types::PERF_EVENT_ARRAY => {
            Way::Refused("its records can be read once only; follow them as events (kubectl skep events)")
        }
        types::BLOOM_FILTER => Way::Refused("it answers whether a value may be in it, and cannot list them"),
        types::SOCKMAP | types::SOCKHASH | types::REUSEPORT_SOCKARRAY if info.value_size != 8 => {
            Way::Refused("the kernel shows the cookies of its sockets only in values of 8 bytes")
        }
        types::INODE_STORAGE => Way::Refused("its entries belong to inodes, of which the kernel has no list"),
        map_type if let Some(owners) = Owners::of(map_type) => Way::Owned(owners),
        types::ARENA => Way::Pages,
        types::XSKMAP => Way::Refused("the kernel does not show its sockets"),
        types::CGROUP_ARRAY => Way::Refused("the kernel does not show its cgroups"),
        types::STRUCT_OPS | types::LPM_TRIE => Way::Keys,
        _ => Way::Batches,
    }
}

/// Facts of a map that are not in its info.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapFacts {
    /// Bytes charged for the map.
    pub memlock: u64,
    /// User space cannot write it any more.
    pub frozen: bool,
}

/// Where a reading stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Before this entry of an array.
    Index(u32),
    /// After so many entries of the batch that begins here.
    Cursor { cursor: Option<Vec<u8>>, skip: u32 },
    /// After this key.
    Key(Vec<u8>),
}

impl Place {
    /// As bytes, for those to whom it means nothing.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Place::Index(index) => [&[0][..], &index.to_le_bytes()].concat(),
            Place::Cursor { cursor: None, skip } => [&[1][..], &skip.to_le_bytes()].concat(),
            Place::Cursor { cursor: Some(cursor), skip } => [&[2][..], &skip.to_le_bytes(), cursor].concat(),
            Place::Key(key) => [&[3][..], key].concat(),
        }
    }

    /// The inverse, for a map with such keys; `None` of what is none.
    pub fn from_bytes(bytes: &[u8], key_len: usize) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        let number = || Some(u32::from_le_bytes(rest.get(..4)?.try_into().ok()?));
        // As lookups leave it: as long as a key, and at least eight bytes.
        let cursor_len = key_len.max(8);
        match kind {
            0 if rest.len() == 4 => Some(Place::Index(number()?)),
            1 if rest.len() == 4 => Some(Place::Cursor { cursor: None, skip: number()? }),
            2 if rest.len() == 4 + cursor_len => {
                Some(Place::Cursor { cursor: Some(rest[4..].to_vec()), skip: number()? })
            }
            3 if rest.len() == key_len => Some(Place::Key(rest.to_vec())),
            _ => None,
        }
    }
}

/// Packed entries, and where they are in the map.
#[derive(Debug)]
pub struct Portion<'a> {
    pub keys: &'a [u8],
    pub values: &'a [u8],
    place: Place,
    reader: &'a MapReader,
}

impl Portion<'_> {
    /// The place after its first so many entries.
    pub fn after(&self, count: usize) -> Place {
        match &self.place {
            Place::Index(first) => Place::Index(first.saturating_add(count as u32)),
            Place::Cursor { cursor, skip } => {
                Place::Cursor { cursor: cursor.clone(), skip: skip.saturating_add(count as u32) }
            }
            Place::Key(_) => {
                let size = self.reader.key_len();
                let last = count.saturating_sub(1) * size;
                Place::Key(self.keys.get(last..last + size).unwrap_or_default().to_vec())
            }
        }
    }
}

/// A map, ready to be read, and what its bytes mean.
#[derive(Debug)]
pub struct MapReader {
    map: Map,
    pub key: Arc<TypeDesc>,
    pub value: Arc<TypeDesc>,
    /// Values per entry: one, or one per possible CPU.
    pub values_per_entry: u32,
    /// Bytes from one value to the next in an entry.
    pub value_stride: u32,
}

impl MapReader {
    /// Reads the map's description.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let map = Map::new(fd)?;
        let described = described(map.info(), Said::default())?;
        Self::with(map, described)
    }

    /// The same; what was described before is not described again.
    pub fn known(fd: OwnedFd, types: &Types) -> io::Result<Self> {
        let map = Map::new(fd)?;
        let described = types.of(map.info())?;
        Self::with(map, described)
    }

    fn with(map: Map, (key, value): Described) -> io::Result<Self> {
        let info = map.info();
        let (values_per_entry, value_stride) = if info.is_per_cpu() {
            (crate::cpus::possible()?, info.value_size.next_multiple_of(8))
        } else if info.map_type == types::ARENA {
            (1, value.size)
        } else {
            (1, info.value_size)
        };
        Ok(MapReader { map, key, value, values_per_entry, value_stride })
    }

    pub fn info(&self) -> &MapInfo {
        self.map.info()
    }

    /// Whether nobody has said what its bytes mean.
    pub fn is_untyped(&self) -> bool {
        let bytes = |desc: &TypeDesc| desc.kind == TypeKind::Bytes && desc.size > 0;
        (bytes(&self.key) || bytes(&self.value)) && self.info().map_type != types::ARENA
    }

    pub fn map(&self) -> &Map {
        &self.map
    }

    pub fn into_fd(self) -> OwnedFd {
        self.map.into_fd()
    }

    /// Bytes of a key, as entries are read: an owner's number is not what the kernel takes, and an address nothing that it
    /// looks up.
    pub fn key_len(&self) -> usize {
        match way(self.info()) {
            Way::Owned(_) | Way::Pages => self.key.size as usize,
            _ => self.info().key_size as usize,
        }
    }

    /// Bytes of one value, without padding.
    fn value_size(&self) -> usize {
        if way(self.info()) == Way::Pages { arena::CHUNK } else { self.info().value_size as usize }
    }

    /// The values of an entry, without padding: one, or one per possible CPU.
    pub fn values_of<'a>(&self, entry: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        let size = self.value_size();
        entry.chunks(self.value_stride.max(1) as usize).map(move |value| value.get(..size).unwrap_or(value))
    }

    /// Bytes of one entry's values.
    pub fn entry_len(&self) -> usize {
        if way(self.info()) == Way::Pages { arena::CHUNK } else { self.map.value_len() }
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
        let number = |key| sys::fdinfo(self.map.fd(), key).unwrap_or(0);
        MapFacts { memlock: number("memlock"), frozen: number("frozen") != 0 }
    }

    /// The values under a key.
    pub fn lookup(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        match way(self.info()) {
            Way::Owned(owners) => owners.lookup(&self.map, key),
            Way::Pages => Arena::open(&self.map)?.lookup(key),
            _ => self.map.lookup(key),
        }
    }

    /// Whether a lookup is one call of the kernel's, and not a search among owners or pages.
    pub fn is_quick(&self) -> bool {
        !matches!(way(self.info()), Way::Owned(_) | Way::Pages)
    }

    /// Why the entries of such a map cannot be read; `None`: they can.
    pub fn refusal(&self) -> Option<&'static str> {
        match way(self.info()) {
            Way::Refused(why) => Some(why),
            _ => None,
        }
    }

    /// The kernel shows one entry of several: the next that would be taken out.
    pub fn is_head_only(&self) -> bool {
        way(self.info()) == Way::Head
    }

    /// Reads all entries, in portions of packed keys and values, until `sink` says stop, in the fastest way that the
    /// kernel has for the type. A portion is at most [`PORTION`] bytes long, but for buckets of a hash and for single
    /// entries that are longer.
    pub fn read(&self, mut sink: impl FnMut(&[u8], &[u8]) -> bool) -> io::Result<()> {
        self.read_from(None, |portion| sink(portion.keys, portion.values))
    }

    /// The same by so many threads, where the type has parts that they can share; there is no order then, and no place at
    /// which one could go on.
    pub fn read_by(&self, threads: u32, mut sink: impl FnMut(&Portion<'_>) -> bool) -> io::Result<()> {
        if threads < 2 || !hashes::has_buckets(self.info()) {
            return self.read_from(None, sink);
        }
        let place = || Place::Key(Vec::new());
        hashes::read(&self.map, threads, |keys, values| sink(&Portion { keys, values, place: place(), reader: self }))
    }

    /// The same, from a place on at which an earlier reading stopped. What changed there meanwhile may come twice, or not.
    pub fn read_from(&self, from: Option<Place>, mut sink: impl FnMut(&Portion<'_>) -> bool) -> io::Result<()> {
        let gone = || io::Error::new(io::ErrorKind::InvalidInput, "its entries are not read in that way");
        match (way(self.info()), from) {
            (Way::Refused(why), _) => Err(io::Error::new(io::ErrorKind::Unsupported, why)),
            (Way::Mapped, from @ (None | Some(Place::Index(_)))) if let Ok(mapping) = self.map.mapping() => {
                let first = if let Some(Place::Index(first)) = from { first } else { 0 };
                self.read_mapped(&mapping, first, &mut sink);
                Ok(())
            }
            (Way::Batches, Some(Place::Cursor { cursor, skip })) => {
                self.read_batches(cursor, skip as usize, &mut sink).map(drop)
            }
            (Way::Batches, None) => match self.read_batches(None, 0, &mut sink)? {
                Progress::Done => Ok(()),
                Progress::Unsupported => self.read_keys(None, &mut sink),
            },
            (Way::Head, None) => {
                if let Some(value) = self.map.lookup(&[])? {
                    sink(&Portion { keys: &[], values: &value, place: Place::Index(0), reader: self });
                }
                Ok(())
            }
            (Way::Owned(owners), from @ (None | Some(Place::Index(_)))) => {
                let first = if let Some(Place::Index(first)) = from { first } else { 0 };
                self.read_owned(owners, first, &mut sink)
            }
            (Way::Pages, None) => self.read_pages(None, &mut sink),
            (Way::Pages, Some(Place::Key(key))) => {
                self.read_pages(key.try_into().ok().map(u64::from_ne_bytes), &mut sink)
            }
            // Those that are mapped where they are frozen, or a security module has a rule.
            (Way::Keys | Way::Mapped, None) => self.read_keys(None, &mut sink),
            (Way::Keys | Way::Mapped | Way::Batches, Some(Place::Key(key))) => {
                if self.map.lookup(&key)?.is_none() {
                    let message = "the entry at which it stopped is gone; begin anew";
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
                }
                self.read_keys(Some(key), &mut sink)
            }
            _ => Err(gone()),
        }
    }

    fn read_mapped(&self, mapping: &Mapping, first: u32, sink: &mut impl FnMut(&Portion<'_>) -> bool) {
        let (size, entries) = (self.info().value_size as usize, self.info().max_entries);
        let stride = size.next_multiple_of(8);
        let at_once = (PORTION / (size + 4)).max(1) as u32;
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for first in (first..entries).step_by(at_once as usize) {
            let last = first.saturating_add(at_once).min(entries);
            keys.clear();
            keys.extend((first..last).flat_map(u32::to_ne_bytes));
            values.resize((last - first) as usize * size, 0);
            if size == stride {
                mapping.copy(first as usize * stride, &mut values);
            } else {
                let each = values.chunks_exact_mut(size).zip(first as usize..);
                each.for_each(|(value, index)| mapping.copy(index * stride, value));
            }
            if !sink(&Portion { keys: &keys, values: &values, place: Place::Index(first), reader: self }) {
                return;
            }
        }
    }

    /// From the so manieth entry on: sockets have no order in which the kernel could find a place again.
    fn read_owned(&self, owners: Owners, first: u32, sink: &mut impl FnMut(&Portion<'_>) -> bool) -> io::Result<()> {
        let at_once = (PORTION / (self.key_len() + self.entry_len()).max(1)).max(1);
        let (mut keys, mut values, mut at, mut begin, mut goes_on) = (Vec::new(), Vec::new(), 0u32, first, true);
        owners.each(&self.map, None, &mut |(key, value)| {
            at = at.saturating_add(1);
            if at <= first {
                return true;
            }
            keys.extend(key);
            values.extend(value);
            if (at - begin) as usize == at_once {
                goes_on = sink(&Portion { keys: &keys, values: &values, place: Place::Index(begin), reader: self });
                keys.clear();
                values.clear();
                begin = at;
            }
            goes_on
        })?;
        if goes_on && at > begin {
            sink(&Portion { keys: &keys, values: &values, place: Place::Index(begin), reader: self });
        }
        Ok(())
    }

    fn read_pages(&self, after: Option<u64>, sink: &mut impl FnMut(&Portion<'_>) -> bool) -> io::Result<()> {
        let at_once = PORTION / (self.key_len() + arena::CHUNK);
        let (mut keys, mut values, mut goes_on) = (Vec::new(), Vec::new(), true);
        // Places are told by keys alone.
        let place = || Place::Key(Vec::new());
        Arena::open(&self.map)?.each(after, |address, bytes| {
            keys.extend(address.to_ne_bytes());
            values.extend_from_slice(bytes);
            if values.len() == at_once * arena::CHUNK {
                goes_on = sink(&Portion { keys: &keys, values: &values, place: place(), reader: self });
                keys.clear();
                values.clear();
            }
            goes_on
        })?;
        if goes_on && !keys.is_empty() {
            sink(&Portion { keys: &keys, values: &values, place: place(), reader: self });
        }
        Ok(())
    }

    fn read_batches(
        &self,
        mut cursor: Option<Vec<u8>>,
        mut skip: usize,
        sink: &mut impl FnMut(&Portion<'_>) -> bool,
    ) -> io::Result<Progress> {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let (key_len, value_len) = (self.info().key_size as usize, self.entry_len());
        let mut max = BATCH.min(self.info().max_entries.max(1));
        loop {
            let before: Option<Vec<u8>> = cursor.clone();
            match self.map.lookup_batch(&mut cursor, max, &mut keys, &mut values) {
                Ok(done) => {
                    let from = skip.min(values.len().checked_div(value_len).unwrap_or(0));
                    let place = Place::Cursor { cursor: before, skip: from as u32 };
                    let (keys, values) = (&keys[from * key_len..], &values[from * value_len..]);
                    skip = 0;
                    if !keys.is_empty() && !sink(&Portion { keys, values, place, reader: self }) || done {
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

    fn read_keys(&self, mut key: Option<Vec<u8>>, sink: &mut impl FnMut(&Portion<'_>) -> bool) -> io::Result<()> {
        let (mut keys, mut values, mut count) = (Vec::new(), Vec::new(), 0);
        // Places are told by keys alone.
        let place = || Place::Key(Vec::new());
        // A key that is deleted under the walk sends it back to the start: more steps than entries mean going round.
        let mut steps = 0u64;
        while let Some(next) = self.map.next_key(key.as_deref())? {
            if let Some(value) = self.map.lookup(&next)? {
                keys.extend_from_slice(&next);
                values.extend_from_slice(&value);
                count += 1;
            }
            if count == BATCH {
                if !sink(&Portion { keys: &keys, values: &values, place: place(), reader: self }) {
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
            sink(&Portion { keys: &keys, values: &values, place: place(), reader: self });
        }
        Ok(())
    }
}

enum Progress {
    Done,
    Unsupported,
}
