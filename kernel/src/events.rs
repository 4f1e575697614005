//! Records that programs write for user space: of ring buffers, and of perf event arrays.
//!
//! **Guarantees.** Reading takes: a record that was handed out is gone from its buffer, and no other reader gets it. None
//! is handed out twice, or half written. What a perf event array lost is counted by the kernel and handed on; a ring
//! buffer refuses its writer instead, and only the program can know how often.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use crate::cpus;
use crate::sys::map::{Map, types};
use crate::sys::mapping::{Mapping, page_size};
use crate::sys::{perf, wait_readable};

/// BPF_RINGBUF_BUSY_BIT, BPF_RINGBUF_DISCARD_BIT and BPF_RINGBUF_HDR_SZ (include/uapi/linux/bpf.h).
const BUSY: u32 = 1 << 31;
const DISCARD: u32 = 1 << 30;
const HEADER: u64 = 8;
/// Data pages of each CPU's perf buffer: a power of two.
const PERF_PAGES: usize = 64;
/// PERF_RECORD_LOST and PERF_RECORD_SAMPLE (include/uapi/linux/perf_event.h).
const LOST: u32 = 2;
const SAMPLE: u32 = 9;
/// Offsets in struct perf_event_mmap_page.
const DATA_HEAD: usize = 1024;
const DATA_TAIL: usize = 1032;

/// Records, packed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records {
    /// Bytes of each.
    pub lengths: Vec<u32>,
    /// All of them, one after the other.
    pub data: Vec<u8>,
    /// How many the kernel says were lost before these.
    pub lost: u64,
}

impl Records {
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty() && self.lost == 0
    }

    /// Each record's bytes.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.lengths.iter().scan(0, |at, len| {
            let start = *at;
            *at += *len as usize;
            self.data.get(start..*at)
        })
    }
}

/// A map whose records are taken out.
#[derive(Debug)]
pub struct EventReader {
    buffers: Vec<Buffer>,
    /// Kept open: what is entered in a perf event array goes with the descriptor by which it was.
    map: Map,
}

#[derive(Debug)]
enum Buffer {
    Ring(Ring),
    Perf(Perf),
}

impl EventReader {
    /// Whether a map of this type holds records.
    pub fn reads(map_type: u32) -> bool {
        matches!(map_type, types::RINGBUF | types::PERF_EVENT_ARRAY)
    }

    /// From now on this is the map's reader.
    pub fn open(fd: OwnedFd) -> io::Result<Self> {
        let map = Map::new(fd)?;
        let buffers = match map.info().map_type {
            types::RINGBUF => vec![Buffer::Ring(Ring::open(&map)?)],
            types::PERF_EVENT_ARRAY => {
                let cpus = cpus::online()?.into_iter().filter(|cpu| *cpu < map.info().max_entries);
                cpus.map(|cpu| Perf::open(&map, cpu).map(Buffer::Perf)).collect::<io::Result<_>>()?
            }
            _ => return Err(io::Error::new(io::ErrorKind::Unsupported, "it holds no records")),
        };
        Ok(EventReader { buffers, map })
    }

    /// Takes what is there, about `most` bytes of it; nothing if there is nothing.
    pub fn take(&mut self, most: usize) -> io::Result<Records> {
        let mut records = Records::default();
        for buffer in &mut self.buffers {
            match buffer {
                Buffer::Ring(ring) => ring.take(most, &mut records)?,
                Buffer::Perf(perf) => perf.take(most, &mut records)?,
            }
        }
        Ok(records)
    }

    /// Waits until there is something, at most for that time.
    pub fn wait(&self, patience: Duration) -> io::Result<()> {
        let fds: Vec<BorrowedFd<'_>> = self
            .buffers
            .iter()
            .map(|buffer| match buffer {
                Buffer::Ring(_) => self.map.fd(),
                Buffer::Perf(perf) => perf.event.as_fd(),
            })
            .collect();
        wait_readable(&fds, patience)
    }
}

fn damaged() -> io::Error {
    io::Error::other("the buffer's positions make no sense: another process writes them")
}

/// A BPF_MAP_TYPE_RINGBUF, as kernel/bpf/ringbuf.c lays it out: a page with the reader's position, a page with the
/// writer's, the data, and the data once more, so that no record ends before it is whole.
#[derive(Debug)]
struct Ring {
    consumer: Mapping,
    producer: Mapping,
    size: u64,
}

impl Ring {
    fn open(map: &Map) -> io::Result<Self> {
        let (page, size) = (page_size(), map.info().max_entries as usize);
        let consumer = Mapping::new(map.fd(), 0, page, true)?;
        let producer = Mapping::new(map.fd(), page, page + 2 * size, false)?;
        Ok(Ring { consumer, producer, size: size as u64 })
    }

    fn take(&mut self, most: usize, records: &mut Records) -> io::Result<()> {
        let (page, most) = (page_size(), records.data.len() + most);
        let read = self.consumer.word(0).ok_or_else(damaged)?;
        let written = self.producer.word(0).ok_or_else(damaged)?;
        let mut at = read.load(Ordering::Acquire);
        loop {
            let end = written.load(Ordering::Acquire);
            let before = at;
            while at < end && records.data.len() < most {
                let offset = page + (at & (self.size - 1)) as usize;
                let header = self.producer.half(offset).ok_or_else(damaged)?.load(Ordering::Acquire);
                if header & BUSY != 0 {
                    break;
                }
                let len = header & !DISCARD;
                if u64::from(len) > self.size {
                    return Err(damaged());
                }
                if header & DISCARD == 0 {
                    let start = records.data.len();
                    records.data.resize(start + len as usize, 0);
                    self.producer.copy(offset + HEADER as usize, &mut records.data[start..]);
                    records.lengths.push(len);
                }
                at += (u64::from(len) + HEADER).next_multiple_of(8);
            }
            read.store(at, Ordering::Release);
            // The kernel wakes whoever has read all: what was written before it saw that is looked for once more.
            fence(Ordering::SeqCst);
            if at == before || records.data.len() >= most {
                return Ok(());
            }
        }
    }
}

/// One CPU's buffer of a perf event array: a page with both positions, then the data.
#[derive(Debug)]
struct Perf {
    event: OwnedFd,
    mapping: Mapping,
}

impl Perf {
    fn open(map: &Map, cpu: u32) -> io::Result<Self> {
        use std::os::fd::AsRawFd;
        let event = perf::bpf_output(cpu)?;
        let mapping = Mapping::new(event.as_fd(), 0, (1 + PERF_PAGES) * page_size(), true)?;
        map.update(&cpu.to_ne_bytes(), &event.as_raw_fd().to_ne_bytes(), 0)?;
        Ok(Perf { event, mapping })
    }

    /// Bytes at a position, which may go on at the start.
    fn copy(&self, at: u64, out: &mut [u8]) {
        let (page, size) = (page_size(), PERF_PAGES * page_size());
        let from = (at % size as u64) as usize;
        let (first, rest) = out.split_at_mut(out.len().min(size - from));
        self.mapping.copy(page + from, first);
        self.mapping.copy(page, rest);
    }

    fn take(&mut self, most: usize, records: &mut Records) -> io::Result<()> {
        let most = records.data.len() + most;
        let head = self.mapping.word(DATA_HEAD).ok_or_else(damaged)?.load(Ordering::Acquire);
        let tail = self.mapping.word(DATA_TAIL).ok_or_else(damaged)?;
        let mut at = tail.load(Ordering::Relaxed);
        while at < head && records.data.len() < most {
            let mut header = [0; 8];
            self.copy(at, &mut header);
            let [a, b, c, d, _, _, e, f] = header;
            let (kind, size) = (u32::from_ne_bytes([a, b, c, d]), u64::from(u16::from_ne_bytes([e, f])));
            if size < 8 || size > head - at {
                return Err(damaged());
            }
            match kind {
                SAMPLE => {
                    let mut len = [0; 4];
                    self.copy(at + 8, &mut len);
                    let len = u32::from_ne_bytes(len);
                    let start = records.data.len();
                    records.data.resize(start + u64::from(len).min(size - 12) as usize, 0);
                    self.copy(at + 12, &mut records.data[start..]);
                    records.lengths.push((records.data.len() - start) as u32);
                }
                LOST => {
                    let mut lost = [0; 8];
                    self.copy(at + 16, &mut lost);
                    records.lost += u64::from_ne_bytes(lost);
                }
                _ => {}
            }
            at += size;
        }
        tail.store(at, Ordering::Release);
        Ok(())
    }
}
