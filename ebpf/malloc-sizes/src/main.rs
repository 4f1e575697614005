//! A histogram of the sizes that programs ask malloc for, in powers of two.
#![no_std]
#![no_main]

use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::macros::{btf_map, uprobe};
use aya_ebpf::programs::ProbeContext;

/// Slot n counts requests of 2^(n-1) to 2^n - 1 bytes; slot 0 those of none, slot 32 everything from 2 GiB.
#[btf_map(name = "sizes")]
static SIZES: PerCpuArray<u64, 33> = PerCpuArray::new();

#[uprobe]
pub fn count_mallocs(ctx: ProbeContext) -> u32 {
    let size: u64 = ctx.arg(0).unwrap_or(0);
    if let Some(count) = SIZES.get_ptr_mut(slot(size)) {
        // SAFETY: this CPU's own value; a probe that interrupts this one may cost one count.
        unsafe { *count += 1 };
    }
    0
}

/// The number of bits of `size`, at most 32. By halving: the target has no instruction for leading zeros.
#[inline(always)]
fn slot(size: u64) -> u32 {
    let mut rest = if size > u64::from(u32::MAX) { u64::from(u32::MAX) } else { size };
    let mut bits = 0;
    for shift in [16, 8, 4, 2, 1] {
        if rest >> shift != 0 {
            bits += shift;
            rest >>= shift;
        }
    }
    bits + u32::from(rest != 0)
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
