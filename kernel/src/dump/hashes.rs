//! Hashes that are read by several threads, each in its own range of buckets.
//!
//! The cursor of a batch is a bucket's number, and there are as many as entries fit, rounded up to a power of two
//! (kernel/bpf/hashtab.c, Linux 5.6 and later). A batch goes on over the end of a range: what is beyond is the next
//! thread's, and is taken off by reading it once more.
//!
//! **Guarantees.** What is there throughout is seen exactly once, whatever happens around it. Memory is that of a few
//! batches for each thread.

use std::collections::HashSet;
use std::io;
use std::ops::Range;
use std::sync::mpsc::{SyncSender, sync_channel};

use crate::sys::map::{Map, MapInfo, types};

use super::{BATCH, MAX_BATCH};

/// Packed keys and values.
type Packed = (Vec<u8>, Vec<u8>);

/// Whether a map has buckets.
pub(super) fn has_buckets(info: &MapInfo) -> bool {
    matches!(info.map_type, types::HASH | types::LRU_HASH | types::PERCPU_HASH | types::LRU_PERCPU_HASH)
}

/// Reads all entries until `sink` says stop; in no order.
pub(super) fn read(map: &Map, threads: u32, mut sink: impl FnMut(&[u8], &[u8]) -> bool) -> io::Result<()> {
    let buckets = map.info().max_entries.next_power_of_two();
    let share = buckets.div_ceil(threads.max(1));
    let (sender, receiver) = sync_channel(threads as usize);
    std::thread::scope(|scope| {
        for first in (0..buckets).step_by(share as usize) {
            let (sender, last) = (sender.clone(), first.saturating_add(share).min(buckets));
            scope.spawn(move || {
                if let Err(e) = read_range(map, first..last, buckets, &sender) {
                    let _nobody = sender.send(Err(e));
                }
            });
        }
        drop(sender);
        // Whoever still reads when this one goes ends with its next batch.
        for packed in receiver {
            let (keys, values) = packed?;
            if !sink(&keys, &values) {
                break;
            }
        }
        Ok(())
    })
}

fn read_range(map: &Map, range: Range<u32>, buckets: u32, sender: &SyncSender<io::Result<Packed>>) -> io::Result<()> {
    let mut at = range.start;
    while at < range.end {
        let (next, (mut keys, mut values)) = batch(map, at, buckets)?;
        if next > range.end {
            let beyond = keys_of(map, range.end..next, buckets)?;
            (keys, values) = without(map, &keys, &values, &beyond);
        }
        at = next;
        if !keys.is_empty() && sender.send(Ok((keys, values))).is_err() {
            break;
        }
    }
    Ok(())
}

/// Whole buckets from one on, and the bucket after them.
fn batch(map: &Map, at: u32, buckets: u32) -> io::Result<(u32, Packed)> {
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    let mut max = BATCH;
    loop {
        let mut cursor = (at > 0).then(|| {
            let mut cursor = vec![0; map.info().key_size.max(8) as usize];
            cursor[..4].copy_from_slice(&at.to_ne_bytes());
            cursor
        });
        match map.lookup_batch(&mut cursor, max, &mut keys, &mut values) {
            Ok(true) => return Ok((buckets, (keys, values))),
            Ok(false) => {
                let next = cursor.and_then(|cursor| Some(u32::from_ne_bytes(*cursor.first_chunk()?)));
                return Ok((next.unwrap_or(buckets), (keys, values)));
            }
            Err(e) if e.raw_os_error() == Some(libc::ENOSPC) && max < MAX_BATCH => max *= 2,
            Err(e) => return Err(e),
        }
    }
}

/// The keys in these buckets, and in some after them.
fn keys_of(map: &Map, range: Range<u32>, buckets: u32) -> io::Result<HashSet<Vec<u8>>> {
    let mut found = HashSet::new();
    let mut at = range.start;
    while at < range.end {
        let (next, (keys, _)) = batch(map, at, buckets)?;
        found.extend(keys.chunks_exact(map.info().key_size as usize).map(<[u8]>::to_vec));
        at = next;
    }
    Ok(found)
}

fn without(map: &Map, keys: &[u8], values: &[u8], others: &HashSet<Vec<u8>>) -> Packed {
    let own = keys.chunks_exact(map.info().key_size as usize).zip(values.chunks_exact(map.value_len().max(1)));
    let own = own.filter(|(key, _)| !others.contains(*key));
    own.fold((Vec::new(), Vec::new()), |(mut keys, mut values), (key, value)| {
        keys.extend_from_slice(key);
        values.extend_from_slice(value);
        (keys, values)
    })
}
