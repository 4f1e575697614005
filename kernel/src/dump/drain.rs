//! Taking all entries out of a map, each by one step of the kernel's, so that none is lost between a look and a deletion.

use std::io;

use super::{BATCH, MAX_BATCH, MapReader};
use crate::sys::map::{MapInfo, types};

/// Why entries of such a map cannot be taken out so; `None`: they can.
pub fn refusal(info: &MapInfo) -> Option<&'static str> {
    use types::*;
    match info.map_type {
        HASH | PERCPU_HASH | LRU_HASH | LRU_PERCPU_HASH | QUEUE | STACK => None,
        ARRAY | PERCPU_ARRAY => Some("an array has all its entries always"),
        RINGBUF | PERF_EVENT_ARRAY => Some("its records are read as events"),
        _ => Some("the kernel has no step that shows an entry and takes it out"),
    }
}

/// Takes entries until there are none, or so many were taken (0: all; of a hash, whole buckets are), or `sink` says stop;
/// what it was given then is taken already.
pub fn drain(reader: &MapReader, limit: u64, mut sink: impl FnMut(&[u8], &[u8]) -> bool) -> io::Result<()> {
    if let Some(why) = refusal(reader.info()) {
        return Err(io::Error::new(io::ErrorKind::Unsupported, why));
    }
    let room = |taken: u64| if limit == 0 { u64::MAX } else { limit.saturating_sub(taken) };
    if reader.info().key_size == 0 {
        let mut taken = 0;
        // Programs may put in as fast as they are taken out: not more than fit at once.
        let most = room(0).min(u64::from(reader.info().max_entries));
        while taken < most {
            let Some(value) = reader.map().take(&[])? else { return Ok(()) };
            taken += 1;
            if !sink(&[], &value) {
                return Ok(());
            }
        }
        return Ok(());
    }
    let (mut keys, mut values, mut cursor, mut taken) = (Vec::new(), Vec::new(), None, 0u64);
    let mut max = BATCH;
    while room(taken) > 0 {
        let before: Option<Vec<u8>> = cursor.clone();
        let asked = u64::from(max).min(room(taken).max(u64::from(max / BATCH)));
        match reader.map().take_batch(&mut cursor, asked as u32, &mut keys, &mut values) {
            Ok(done) => {
                taken += values.len().checked_div(reader.entry_len()).unwrap_or(0) as u64;
                if !values.is_empty() && !sink(&keys, &values) || done {
                    return Ok(());
                }
            }
            // A bucket is taken whole.
            Err(e) if e.raw_os_error() == Some(libc::ENOSPC) && max < MAX_BATCH => {
                cursor = before;
                max *= 2;
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
