//! A program's own stream (Linux 6.17), written by a program that is made here: no compiler of today knows the function.

use std::os::fd::{AsFd, AsRawFd};

use skep_kernel::load::create_map;
use skep_kernel::printk;
use skep_kernel::sys::map::{self, Map, types};
use skep_kernel::sys::program::{self, Load, Stream, take_stream};
use skep_object::btf::{Btf, Kind};
use skep_object::insn::{Insn, pseudo};
use skep_object::map::MapDef;

const TEXT: &[u8] = b"seven is %d\n\0";
/// BPF_F_RDONLY_PROG.
const READ_ONLY: u32 = 1 << 7;
const RAW_TRACEPOINT: u32 = 17;
/// BPF_PSEUDO_KFUNC_CALL.
const KERNEL_FUNCTION: u8 = 2;

/// As a killed agent leaves it: its number is nobody's, and its memory would stay until the host is started again.
#[test]
fn trace_instances_of_the_dead_are_removed() {
    let instances = std::path::Path::new("/sys/kernel/tracing/instances");
    let pid_max: u32 = std::fs::read_to_string("/proc/sys/kernel/pid_max").unwrap().trim().parse().unwrap();
    let (dead, alive) = (format!("skep-{}-0", pid_max + 1), format!("skep-{}-99", std::process::id()));
    for name in [&dead, &alive] {
        std::fs::create_dir(instances.join(name)).unwrap();
    }
    printk::remove_left();
    let left = [&dead, &alive].map(|name| instances.join(name).exists());
    std::fs::remove_dir(instances.join(alive)).unwrap();
    assert_eq!(left, [false, true]);
}

#[test]
fn what_a_program_prints_is_taken_once() {
    let vmlinux = Btf::parse(&std::fs::read("/sys/kernel/btf/vmlinux").unwrap()).unwrap();
    let function =
        vmlinux.find("bpf_stream_vprintk", Kind::Func).or_else(|| vmlinux.find("bpf_stream_vprintk_impl", Kind::Func));
    let Some(function) = function else {
        // Before 6.17 the command is none.
        let map = create_map(&definition(), None).unwrap();
        assert_eq!(take_stream(map.as_fd(), Stream::Stdout, 64).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        println!("this kernel has no streams: refused, as it must be");
        return;
    };
    let text = create_map(&definition(), None).unwrap();
    let map = Map::new(text).unwrap();
    let mut value = vec![0; map.value_len()];
    value[..TEXT.len()].copy_from_slice(TEXT);
    map.update(&0u32.to_ne_bytes(), &value, 0).unwrap();
    map::freeze(map.fd()).unwrap();

    let insn = |code: u8, dst: u8, src: u8, off: i16, imm: i32| Insn { code, regs: dst | src << 4, off, imm };
    let insns = [
        insn(0x7a, 10, 0, -8, 7), // *(u64 *)(r10 - 8) = 7
        insn(0xb7, 1, 0, 0, Stream::Stdout as i32),
        insn(0x18, 2, pseudo::MAP_VALUE, 0, map.fd().as_raw_fd()),
        insn(0, 0, 0, 0, 0),
        insn(0xbf, 3, 10, 0, 0),
        insn(0x07, 3, 0, 0, -8),
        insn(0xb7, 4, 0, 0, 8),
        insn(0xb7, 5, 0, 0, 0),
        insn(0x85, 0, KERNEL_FUNCTION, 0, function as i32),
        insn(0x95, 0, 0, 0, 0),
    ];
    let load = Load { name: "prints", program_type: RAW_TRACEPOINT, insns: &insns, license: "GPL", ..Load::default() };
    let program = load.run().unwrap_or_else(|refused| panic!("{}: {}", refused.error, refused.log));
    let take = |stream, most| take_stream(program.as_fd(), stream, most).unwrap();
    assert!(take(Stream::Stdout, 0).is_empty() && take(Stream::Stdout, 64).is_empty());
    let print = || program::run(program.as_fd(), None).unwrap().cast_signed();
    if print() == -libc::ENOMEM {
        // Seen on a 6.18 of a virtual machine, at every call: its allocator gives nothing to who may not wait.
        assert!(take(Stream::Stdout, 64).is_empty());
        println!(
            "SKIPPED: this kernel has no memory for streams (bpf_stream_vprintk returns ENOMEM): nothing can be read"
        );
        return;
    }
    assert_eq!(print(), 0, "what the function returned");
    assert!(take(Stream::Stderr, 64).is_empty(), "it is another stream");
    assert!(take(Stream::Stdout, 0).is_empty(), "asking for nothing takes nothing");
    let taken = take(Stream::Stdout, 1024);
    assert_eq!(String::from_utf8(taken).unwrap(), "seven is 7\nseven is 7\n");
    assert!(take(Stream::Stdout, 64).is_empty(), "it was taken");
}

fn definition() -> MapDef {
    MapDef {
        name: "text".into(),
        map_type: types::ARRAY,
        key_size: 4,
        value_size: 16,
        max_entries: 1,
        flags: READ_ONLY,
        ..MapDef::default()
    }
}
