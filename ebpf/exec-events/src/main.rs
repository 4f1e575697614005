//! Counts started programs by command name.
#![no_std]
#![no_main]
// The target has no AtomicU64::fetch_add; the kernel has had the instruction from the start.
#![feature(core_intrinsics)]
#![allow(internal_features, reason = "the only way to an atomic addition on this target")]

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::btf_maps::HashMap;
use aya_ebpf::helpers::bpf_get_current_comm;
use aya_ebpf::macros::{btf_map, tracepoint};
use aya_ebpf::programs::TracePointContext;

/// By the first 15 bytes of the command's name, zero padded, as `/proc/PID/comm` has it.
#[btf_map(name = "execs")]
static EXECS: HashMap<[u8; 16], u64, 4096> = HashMap::new();

#[tracepoint(category = "sched", name = "sched_process_exec")]
pub fn count_execs(_ctx: TracePointContext) -> u32 {
    let Ok(name) = bpf_get_current_comm() else { return 0 };
    // Whoever comes second finds the entry of the first and adds to it.
    let _exists = EXECS.insert(name, 0, BPF_NOEXIST.into());
    if let Some(count) = EXECS.get_ptr_mut(name) {
        // SAFETY: aligned, and allocated while the program runs; other CPUs add too.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(count, 1) };
    }
    0
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
