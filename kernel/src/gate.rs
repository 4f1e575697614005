//! A gate before a probe: it lets a program run for tasks of selected cgroups only.
//!
//! A probe sits on a file, and containers of one image share their files: without a gate a program that selects one pod
//! would count for all pods of that image. The gate is a map of cgroup ids that the agent keeps, and a few instructions
//! before the program's own that look the current task's cgroup up in it.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use skep_object::insn::{Insn, pseudo};
use skep_object::link::LinkedProgram;
use skep_object::map::MapDef;

use crate::error::KernelError;
use crate::sys::map::{Map, types};

/// Most cgroups (containers) behind one gate on a node.
const MAX_CGROUPS: u32 = 4096;

/// The name of a gate's map. No object can define it: symbols have no colon.
pub fn map_name(gate: &str) -> String {
    format!(":gate:{gate}")
}

/// The map of a gate: cgroup id to one byte.
pub fn map_def(gate: &str) -> MapDef {
    MapDef {
        name: map_name(gate),
        map_type: types::HASH,
        key_size: 8,
        value_size: 1,
        max_entries: MAX_CGROUPS,
        ..MapDef::default()
    }
}

/// Makes the gate let exactly these cgroups pass.
pub fn set(fd: OwnedFd, ids: &[u64]) -> Result<(), KernelError> {
    let failed = |source| KernelError::Io { what: "setting the cgroups of a gate".into(), source };
    let map = Map::new(fd).map_err(failed)?;
    // First let in, then shut out: a container that stays selected is never locked out.
    for id in ids {
        map.update(&id.to_ne_bytes(), &[1], 0).map_err(failed)?;
    }
    let mut stale = Vec::new();
    let mut key = map.next_key(None).map_err(failed)?;
    while let Some(current) = key {
        let next = map.next_key(Some(&current)).map_err(failed)?;
        if !ids.iter().any(|id| id.to_ne_bytes() == current[..]) {
            stale.push(current);
        }
        key = next;
    }
    for id in stale {
        map.delete(&id).map_err(failed)?;
    }
    Ok(())
}

/// bpf_get_current_cgroup_id and bpf_map_lookup_elem (include/uapi/linux/bpf.h).
const GET_CURRENT_CGROUP_ID: i32 = 80;
const MAP_LOOKUP_ELEM: i32 = 1;

/// The program with the gate before it.
pub fn prepend(program: &LinkedProgram, gate: BorrowedFd<'_>) -> LinkedProgram {
    let insn = |code: u8, dst: u8, src: u8, off: i16, imm: i32| Insn { code, regs: dst | src << 4, off, imm };
    let prologue = [
        insn(0xbf, 6, 1, 0, 0),                             // r6 = r1: the context
        insn(0x85, 0, 0, 0, GET_CURRENT_CGROUP_ID),         // r0 = the task's cgroup
        insn(0x7b, 10, 0, -8, 0),                           // *(u64 *)(r10 - 8) = r0
        insn(0x18, 1, pseudo::MAP_FD, 0, gate.as_raw_fd()), // r1 = the gate's map
        insn(0, 0, 0, 0, 0),
        insn(0xbf, 2, 10, 0, 0), // r2 = r10
        insn(0x07, 2, 0, 0, -8), // r2 -= 8
        insn(0x85, 0, 0, 0, MAP_LOOKUP_ELEM),
        insn(0x55, 0, 0, 2, 0), // in the map: go on
        insn(0xb7, 0, 0, 0, 0), // r0 = 0
        insn(0x95, 0, 0, 0, 0), // exit
        insn(0xbf, 1, 6, 0, 0), // r1 = the context
    ];
    let by = prologue.len() as u32;
    let mut gated = program.clone();
    gated.insns.splice(0..0, prologue);
    gated.maps.iter_mut().for_each(|m| m.slot += prologue.len());
    gated.externs.iter_mut().for_each(|e| e.slot += prologue.len());
    // The first record of each table stands for the start of the program, which is now the gate.
    gated.func_info.iter_mut().skip(1).for_each(|record| record[0] += by);
    gated.line_info.iter_mut().skip(1).for_each(|record| record[0] += by);
    gated
}
