//! Records for programs: writing user ring buffers.
//!
//! **Guarantees.** All records are put in, or none. A program sees a record when it is whole.
//!
//! **Assumptions.** Nobody else writes the buffer at the same time: its layout has room for one writer.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use crate::sys::map::{Map, types};
use crate::sys::mapping::{Mapping, page_size};

/// BPF_RINGBUF_HDR_SZ.
const HEADER: u64 = 8;

/// Puts records into a BPF_MAP_TYPE_USER_RINGBUF, as kernel/bpf/ringbuf.c lays it out: a page with the programs' position,
/// one with the writer's, the data, and the data once more. StorageFull: there is no room for all of them until programs
/// have taken some out. InvalidInput: one is longer than the buffer.
pub fn write(fd: OwnedFd, records: &[Vec<u8>]) -> io::Result<()> {
    let map = Map::new(fd)?;
    if map.info().map_type != types::USER_RINGBUF {
        return Err(io::Error::from(io::ErrorKind::Unsupported));
    }
    let (page, size) = (page_size(), u64::from(map.info().max_entries));
    let consumer = Mapping::new(map.fd(), 0, page, false)?;
    let producer = Mapping::new(map.fd(), page, page + 2 * size as usize, true)?;
    let damaged = || io::Error::other("the buffer's positions make no sense: another process writes them");
    let taken = consumer.word(0).ok_or_else(damaged)?.load(Ordering::Acquire);
    let position = producer.word(0).ok_or_else(damaged)?;
    let mut at = position.load(Ordering::Acquire);
    let room_of = |record: &Vec<u8>| (record.len() as u64 + HEADER).next_multiple_of(8);
    let used = at.checked_sub(taken).filter(|used| *used <= size).ok_or_else(damaged)?;
    if records.iter().any(|record| room_of(record) > size) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    if records.iter().map(room_of).sum::<u64>() > size - used {
        return Err(io::Error::from(io::ErrorKind::StorageFull));
    }
    for record in records {
        let offset = page + (at & (size - 1)) as usize;
        let header = (record.len() as u64).to_le_bytes();
        if !producer.write(offset, &header) || !producer.write(offset + HEADER as usize, record) {
            return Err(damaged());
        }
        at += room_of(record);
    }
    // All of them at once.
    position.store(at, Ordering::Release);
    Ok(())
}
