//! Exact sums: what an old map counted more is added in the kernel, where programs count on meanwhile.
//!
//! **Guarantees.** An addition is one atomic instruction per field; per-CPU values are added to on their own CPU.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use skep_object::insn::{Insn, pseudo};
use skep_object::map::MapDef;

use super::Migration;
use crate::cpus;
use crate::error::KernelError;
use crate::sys::map::{self, Map, types};
use crate::sys::program::{self, Load};

/// A program in the kernel that adds to the new map what the old one counted more than the base knows, and tells the
/// base, in one run.
pub(super) struct Adder {
    /// Key and the value of one CPU, where the program finds them.
    scratch: Map,
    /// One for each CPU's part of a value; a single one where values are not per CPU.
    programs: Vec<OwnedFd>,
    key_room: usize,
    stride: usize,
}

impl Adder {
    pub(super) fn new(migration: &Migration, fields: &[(u32, u32)]) -> Result<Self, KernelError> {
        let key_room = (migration.old.info().key_size as usize).next_multiple_of(8);
        let stride = migration.old.value_stride as usize;
        let scratch = map::create(
            &MapDef {
                name: "skep_scratch".into(),
                map_type: types::ARRAY,
                key_size: 4,
                value_size: (key_room + stride.next_multiple_of(8)) as u32,
                max_entries: 1,
                ..MapDef::default()
            },
            None,
            None,
        );
        let scratch = scratch.and_then(Map::new).map_err(migration.failed())?;
        let parts = if migration.old.info().is_per_cpu() { cpus::possible().map_err(migration.failed())? } else { 1 };
        let mut programs = Vec::new();
        for part in 0..parts {
            let insns = adding(migration, &scratch, key_room, part as usize * stride, fields);
            let load = Load {
                name: "skep_add",
                program_type: RAW_TRACEPOINT,
                insns: &insns,
                license: "GPL",
                ..Load::default()
            };
            programs.push(load.run().map_err(|refused| KernelError::refused_load("skep_add", refused, || None))?);
        }
        Ok(Adder { scratch, programs, key_room, stride })
    }

    pub(super) fn add(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let mut room = vec![0u8; self.scratch.value_len()];
        room[..key.len()].copy_from_slice(key);
        for (cpu, (program, part)) in self.programs.iter().zip(value.chunks(self.stride)).enumerate() {
            room[self.key_room..self.key_room + part.len()].copy_from_slice(part);
            self.scratch.update(&0u32.to_ne_bytes(), &room, 0)?;
            // A program sees its own CPU's part of a per-CPU value.
            let result = match self.programs.len() {
                1 => program::run(program.as_fd(), None)?,
                // From there, since an interrupt from elsewhere could come between another program's load and store.
                _ => match cpus::on(cpu as u32, || program::run(program.as_fd(), Some(cpu as u32))) {
                    // A CPU that is not there counts nothing: its part does not change.
                    Err(e) if e.raw_os_error() == Some(libc::ENXIO) => 0,
                    other => other?,
                },
            };
            if result != 0 {
                return Err(io::Error::other("an entry disappeared while it was added to"));
            }
        }
        Ok(())
    }
}

/// BPF_PROG_TYPE_RAW_TRACEPOINT: the one type that BPF_PROG_TEST_RUN runs on a CPU of choice (5.10).
const RAW_TRACEPOINT: u32 = 17;
const MAP_LOOKUP_ELEM: i32 = 1;

/// Adds `current - base` to the new map's value and makes `current` the base; returns 1 when an entry is missing.
fn adding(migration: &Migration, scratch: &Map, key_room: usize, part: usize, fields: &[(u32, u32)]) -> Vec<Insn> {
    let insn = |code: u8, dst: u8, src: u8, off: i16, imm: i32| Insn { code, regs: dst | src << 4, off, imm };
    let map = |fd: i32| [insn(0x18, 1, pseudo::MAP_FD, 0, fd), insn(0, 0, 0, 0, 0)];
    let call = insn(0x85, 0, 0, 0, MAP_LOOKUP_ELEM);
    // There is an entry: skip the exit.
    let or_exit = [insn(0x55, 0, 0, 2, 0), insn(0xb7, 0, 0, 0, 1), insn(0x95, 0, 0, 0, 0)];
    let mut out = vec![insn(0x62, 10, 0, -4, 0)]; // *(u32 *)(r10 - 4) = 0
    out.extend(map(scratch.fd().as_raw_fd()));
    out.extend([insn(0xbf, 2, 10, 0, 0), insn(0x07, 2, 0, 0, -4), call]); // r2 = r10 - 4
    out.extend(or_exit);
    out.push(insn(0xbf, 7, 0, 0, 0)); // r7: key and current value
    for (fd, register) in [(migration.base.fd(), 8), (migration.new.fd(), 9)] {
        out.extend(map(fd.as_raw_fd()));
        out.extend([insn(0xbf, 2, 7, 0, 0), call]);
        out.extend(or_exit);
        out.push(insn(0xbf, register, 0, 0, 0));
    }
    out.push(insn(0x07, 7, 0, 0, key_room as i32)); // r7 += key_room
    out.push(insn(0x07, 8, 0, 0, part as i32)); // r8 += this CPU's part
    for (at, size) in fields {
        let at = *at as i16;
        // Of 4 and 8 bytes: load, store, subtract, atomic add.
        let (load, store, sub, add) = if *size == 4 { (0x61, 0x63, 0x1c, 0xc3) } else { (0x79, 0x7b, 0x1f, 0xdb) };
        out.extend([
            insn(load, 1, 7, at, 0),
            insn(load, 2, 8, at, 0),
            insn(store, 8, 1, at, 0),
            insn(sub, 1, 2, 0, 0),
            insn(add, 9, 1, at, 0),
        ]);
    }
    out.extend([insn(0xb7, 0, 0, 0, 0), insn(0x95, 0, 0, 0, 0)]);
    out
}
