//! Counts packets and bytes by what XDP did with them and by IP protocol. Passes everything.
#![no_std]
#![no_main]

use aya_ebpf::bindings::{BPF_ANY, xdp_action};
use aya_ebpf::btf_maps::PerCpuHashMap;
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;

const ETH_IPV4: u16 = 0x0800;
const ETH_IPV6: u16 = 0x86dd;
const ETH_HEADER: usize = 14;

/// `action`: `enum xdp_action` of linux/bpf.h. `proto`: the IP protocol number, 0 when the frame is not IP.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CounterKey {
    pub action: u32,
    pub proto: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Counter {
    pub packets: u64,
    pub bytes: u64,
}

#[btf_map(name = "counters")]
static COUNTERS: PerCpuHashMap<CounterKey, Counter, 1024> = PerCpuHashMap::new();

#[xdp]
pub fn count_rx(ctx: XdpContext) -> u32 {
    let action = xdp_action::XDP_PASS;
    let key = CounterKey { action, proto: protocol(&ctx).unwrap_or(0) };
    let bytes = (ctx.data_end() - ctx.data()) as u64;
    match COUNTERS.get_ptr_mut(key) {
        // SAFETY: the value is this CPU's own, and a program is not interrupted by itself.
        Some(counter) => unsafe {
            (*counter).packets += 1;
            (*counter).bytes += bytes;
        },
        None => {
            // A full map counts no new keys; the packet passes all the same.
            let _full = COUNTERS.insert(key, Counter { packets: 1, bytes }, BPF_ANY.into());
        }
    }
    action
}

fn protocol(ctx: &XdpContext) -> Option<u32> {
    match u16::from_be(load(ctx, 12)?) {
        ETH_IPV4 => load::<u8>(ctx, ETH_HEADER + 9).map(u32::from),
        ETH_IPV6 => load::<u8>(ctx, ETH_HEADER + 6).map(u32::from),
        _ => None,
    }
}

#[inline(always)]
fn load<T: Copy>(ctx: &XdpContext, offset: usize) -> Option<T> {
    let start = ctx.data() + offset;
    if start + size_of::<T>() > ctx.data_end() {
        return None;
    }
    // SAFETY: within the packet, as the verifier checks too; header fields may be unaligned.
    Some(unsafe { (start as *const T).read_unaligned() })
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
