//! Counts packets and bytes of every IPv4 TCP and UDP flow that passes a link, one in `sample_rate` packets.
#![no_std]
#![no_main]
// The target has no AtomicU64::fetch_add; the kernel has had the instruction from the start.
#![feature(core_intrinsics)]
#![allow(internal_features, reason = "the only way to an atomic addition on this target")]

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::bindings::{BPF_ANY, TC_ACT_UNSPEC};
use aya_ebpf::btf_maps::LruHashMap;
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use aya_ebpf::macros::{btf_map, classifier};
use aya_ebpf::programs::TcContext;

const ETH_IPV4: u16 = 0x0800;
const ETH_HEADER: usize = 14;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// By its name whoever reads the map knows it as an IPv4 address, in network byte order.
#[allow(non_camel_case_types, reason = "the kernel's own name (docs/decode.md)")]
#[repr(C)]
#[derive(Clone, Copy)]
pub struct in_addr {
    pub s_addr: [u8; 4],
}

/// Ports in host byte order.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct FlowKey {
    pub source: in_addr,
    pub destination: in_addr,
    pub source_port: u16,
    pub destination_port: u16,
    pub proto: u32,
}

/// What was seen, times `sample_rate`. `last_seen_ns`: nanoseconds since boot.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Flow {
    pub packets: u64,
    pub bytes: u64,
    pub last_seen_ns: u64,
}

/// Full means that the flow longest unused goes: a scan of ports cannot stop the counting.
#[btf_map(name = "flows")]
static FLOWS: LruHashMap<FlowKey, Flow, 65536> = LruHashMap::new();

/// One in so many packets is looked at; 0 and 1 mean every one. Set before the load by `spec.globals`.
#[allow(non_upper_case_globals, reason = "the name is the API: spec.globals.sample_rate")]
#[unsafe(no_mangle)]
static sample_rate: u32 = 1;

#[classifier]
pub fn count_flows(ctx: TcContext) -> i32 {
    // SAFETY: a static; volatile, as the loader writes another value into the object than the compiler saw.
    let rate = unsafe { core::ptr::read_volatile(&raw const sample_rate) }.max(1);
    // SAFETY: a helper without arguments.
    if rate == 1 || (unsafe { bpf_get_prandom_u32() }) % rate == 0 {
        count(&ctx, u64::from(rate));
    }
    // Lets the next program of the hook decide.
    TC_ACT_UNSPEC
}

fn count(ctx: &TcContext, weight: u64) {
    let Some(key) = flow(ctx) else { return };
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let bytes = u64::from(ctx.len()) * weight;
    if let Some(flow) = FLOWS.get_ptr_mut(key) {
        // SAFETY: the value stays allocated while the program runs; other CPUs add too, so additions are atomic.
        unsafe {
            add(&raw mut (*flow).packets, weight);
            add(&raw mut (*flow).bytes, bytes);
            (*flow).last_seen_ns = now;
        }
        return;
    }
    let _raced = FLOWS.insert(key, Flow { packets: weight, bytes, last_seen_ns: now }, BPF_ANY.into());
}

/// # Safety
/// `cell` points to a map value's field.
#[inline(always)]
unsafe fn add(cell: *mut u64, amount: u64) {
    // SAFETY: aligned and alive, as the caller says.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(cell, amount) };
}

fn flow(ctx: &TcContext) -> Option<FlowKey> {
    if u16::from_be(ctx.load(12).ok()?) != ETH_IPV4 {
        return None;
    }
    let version: u8 = ctx.load(ETH_HEADER).ok()?;
    let proto: u8 = ctx.load(ETH_HEADER + 9).ok()?;
    if proto != TCP && proto != UDP {
        return None;
    }
    let ports = ETH_HEADER + usize::from(version & 0x0f) * 4;
    Some(FlowKey {
        source: ctx.load(ETH_HEADER + 12).ok()?,
        destination: ctx.load(ETH_HEADER + 16).ok()?,
        source_port: u16::from_be(ctx.load(ports).ok()?),
        destination_port: u16::from_be(ctx.load(ports + 2).ok()?),
        proto: u32::from(proto),
    })
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
