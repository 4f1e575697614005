//! Counts the connections that pods open, by whether a list allows them; refuses the others when told to enforce.
#![no_std]
#![no_main]

use aya_ebpf::btf_maps::{HashMap, PerCpuArray};
use aya_ebpf::macros::{btf_map, cgroup_sock_addr};
use aya_ebpf::programs::SockAddrContext;

/// An IPv6 address in network byte order (IPv4 as `::ffff:a.b.c.d`) and a port; port 0 allows every port.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Peer {
    pub addr: [u8; 16],
    pub port: u32,
}

#[btf_map(name = "allow")]
static ALLOW: HashMap<Peer, u8, 1024> = HashMap::new();

/// 0: allowed by the list. 1: not in the list, counted only. 2: refused.
#[btf_map(name = "verdicts")]
static VERDICTS: PerCpuArray<u64, 3> = PerCpuArray::new();

/// 0 counts, 1 refuses what the list does not hold. Set before the load by `spec.globals`.
#[allow(non_upper_case_globals, reason = "the name is the API: spec.globals.enforce")]
#[unsafe(no_mangle)]
static enforce: u32 = 0;

const PERMIT: i32 = 1;
const REFUSE: i32 = 0;

#[cgroup_sock_addr(connect4)]
pub fn guard4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the context is the kernel's, and the verifier allows these fields at this hook.
    let (ip, port) = unsafe { ((*ctx.sock_addr).user_ip4, (*ctx.sock_addr).user_port) };
    let mut addr = [0; 16];
    addr[10] = 0xff;
    addr[11] = 0xff;
    // In network byte order already: memory order is what is wanted.
    let [a, b, c, d] = ip.to_ne_bytes();
    (addr[12], addr[13], addr[14], addr[15]) = (a, b, c, d);
    decide(addr, port)
}

#[cgroup_sock_addr(connect6)]
pub fn guard6(ctx: SockAddrContext) -> i32 {
    // SAFETY: the context is the kernel's, and the verifier allows these fields at this hook, one word at a time.
    let (words, port) = unsafe {
        let ip = &raw const (*ctx.sock_addr).user_ip6;
        let word = |index: usize| core::ptr::read_volatile(ip.cast::<u32>().add(index));
        ([word(0), word(1), word(2), word(3)], (*ctx.sock_addr).user_port)
    };
    let mut addr = [0; 16];
    for (index, word) in words.iter().enumerate() {
        let bytes = word.to_ne_bytes();
        addr[index * 4] = bytes[0];
        addr[index * 4 + 1] = bytes[1];
        addr[index * 4 + 2] = bytes[2];
        addr[index * 4 + 3] = bytes[3];
    }
    decide(addr, port)
}

#[inline(always)]
fn decide(addr: [u8; 16], port: u32) -> i32 {
    let port = u32::from(u16::from_be(port as u16));
    if allowed(Peer { addr, port }) || allowed(Peer { addr, port: 0 }) {
        return verdict(0, PERMIT);
    }
    // SAFETY: a static; volatile, as the loader writes another value into the object than the compiler saw.
    match unsafe { core::ptr::read_volatile(&raw const enforce) } {
        0 => verdict(1, PERMIT),
        _ => verdict(2, REFUSE),
    }
}

#[inline(always)]
fn allowed(peer: Peer) -> bool {
    ALLOW.get_ptr(peer).is_some()
}

#[inline(always)]
fn verdict(index: u32, answer: i32) -> i32 {
    if let Some(count) = VERDICTS.get_ptr_mut(index) {
        // SAFETY: this CPU's own value.
        unsafe { *count += 1 };
    }
    answer
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
