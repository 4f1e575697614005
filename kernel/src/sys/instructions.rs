//! A program's instructions: as the verifier left them, and as the CPU runs them, with where they come from.

use std::io;
use std::os::fd::BorrowedFd;

use super::info_by_fd;
use super::program::Raw;

/// All that the kernel shows of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Instructions {
    /// Eight bytes each.
    pub translated: Vec<u8>,
    /// The machine code of its functions, one after the other; empty where the program is interpreted, or the kernel does
    /// not show addresses (kernel.kptr_restrict).
    pub jited: Vec<u8>,
    /// Address and bytes of each function of it.
    pub jited_functions: Vec<(u64, u32)>,
    pub btf_id: u32,
    /// Slot and BTF id of each function, in order.
    pub functions: Vec<(u32, u32)>,
    pub lines: Vec<Line>,
    /// The address of each line, if all are known.
    pub jited_lines: Vec<u64>,
}

/// A line of source (struct bpf_line_info), by offsets into the strings of the BTF.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Line {
    /// The slot at which it begins.
    pub slot: u32,
    pub file: u32,
    pub text: u32,
    /// Line and column: the upper 22 and the lower 10 bits.
    pub place: u32,
}

/// Reads them. What changes between the two looks that it takes, no program does.
pub fn instructions(fd: BorrowedFd<'_>) -> io::Result<Instructions> {
    let mut counts = Raw::default();
    info_by_fd(fd, &mut counts)?;
    let mut found = Instructions {
        translated: vec![0; counts.xlated_len as usize],
        jited: vec![0; counts.jited_len as usize],
        btf_id: counts.btf_id,
        functions: vec![(0, 0); counts.func_info_count as usize],
        lines: vec![Line::default(); counts.line_info_count as usize],
        jited_lines: vec![0; counts.jited_line_info_count as usize],
        ..Instructions::default()
    };
    let mut addresses = vec![0u64; counts.jited_symbol_count as usize];
    let mut lengths = vec![0u32; counts.jited_length_count as usize];
    let mut functions = vec![[0u32; 2]; found.functions.len()];
    let mut raw = Raw {
        xlated_len: counts.xlated_len,
        xlated: found.translated.as_mut_ptr() as u64,
        jited_len: counts.jited_len,
        jited: found.jited.as_mut_ptr() as u64,
        jited_symbol_count: counts.jited_symbol_count,
        jited_symbols: addresses.as_mut_ptr() as u64,
        jited_length_count: counts.jited_length_count,
        jited_lengths: lengths.as_mut_ptr() as u64,
        func_info_count: counts.func_info_count,
        func_info_size: 8,
        func_info: functions.as_mut_ptr() as u64,
        line_info_count: counts.line_info_count,
        line_info_size: size_of::<Line>() as u32,
        line_info: found.lines.as_mut_ptr() as u64,
        jited_line_info_count: counts.jited_line_info_count,
        jited_line_info_size: 8,
        jited_line_info: found.jited_lines.as_mut_ptr() as u64,
        ..Raw::default()
    };
    info_by_fd(fd, &mut raw)?;
    found.functions = functions.into_iter().map(|[slot, id]| (slot, id)).collect();
    // What the kernel does not show it leaves zero, or says so by the address of the buffer.
    if raw.xlated == 0 {
        found.translated.clear();
    }
    if raw.jited == 0 || raw.jited_len == 0 {
        found.jited.clear();
    }
    if raw.jited_symbols != 0 && addresses.len() == lengths.len() {
        found.jited_functions = addresses.into_iter().zip(lengths).collect();
    }
    if raw.jited_line_info == 0 || found.jited_lines.len() != found.lines.len() {
        found.jited_lines.clear();
    }
    Ok(found)
}
