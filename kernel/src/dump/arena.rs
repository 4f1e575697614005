//! Arenas (Linux 6.9): memory that programs and one process share, page by page. An entry is 4096 bytes of it; its key is
//! the address that pointers in it have.
//!
//! **Guarantees.** Reading makes no page: mapping an arena would, and no other process may map it where its owner has it.
//! A program of type `syscall` copies what is there instead; it finds the memory through the map's own description in the
//! kernel (`struct bpf_arena`), and asks in a way that fails where there is no page.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use skep_object::btf::desc::{TypeDesc, TypeKind};
use skep_object::btf::{Btf, Kind};
use skep_object::insn::{Insn, pseudo};
use skep_object::map::{MapDef, map_type};

use crate::sys::map::{self, Map};
use crate::sys::mapping::{Mapping, page_size};
use crate::sys::program::{self, Load};

/// Bytes of an entry.
pub(super) const CHUNK: usize = 4096;
/// Entries a run.
const CHUNKS: usize = 16;
/// Of the window, before the bytes: where to begin, which of the chunks are there, where the arena begins.
const HEAD: usize = 24;

/// BPF_PROG_TYPE_SYSCALL, which must be sleepable, and a helper (include/uapi/linux/bpf.h).
const SYSCALL: u32 = 31;
const SLEEPABLE: u32 = 1 << 4;
const PROBE_READ_KERNEL: i32 = 113;

/// What a key is: an address.
pub(super) fn key() -> TypeDesc {
    TypeDesc { kind: TypeKind::Pointer, name: "address".into(), size: 8 }
}

/// What a value is.
pub(super) fn value() -> TypeDesc {
    TypeDesc::bytes(CHUNK as u32)
}

/// Reads one arena.
#[derive(Debug)]
pub(super) struct Arena {
    program: OwnedFd,
    /// The only value of an array, which the program writes.
    window: Mapping,
    pages: u64,
}

/// Consecutive chunks, those that are there.
struct Run {
    start: u64,
    chunks: Vec<(u64, Vec<u8>)>,
}

impl Arena {
    pub(super) fn open(map: &Map) -> io::Result<Self> {
        let unknown = || io::Error::new(io::ErrorKind::Unsupported, "the kernel does not describe its arenas");
        let vmlinux = Btf::parse(&std::fs::read("/sys/kernel/btf/vmlinux")?).map_err(|_| unknown())?;
        let member = |of: &str, name: &str| -> Option<i16> {
            let found = vmlinux.members(vmlinux.find(of, Kind::Struct)?).find(|member| member.name == name)?;
            i16::try_from(found.bit_offset / 8).ok()
        };
        let at = Offsets {
            user_start: member("bpf_arena", "user_vm_start").ok_or_else(unknown)?,
            area: member("bpf_arena", "kern_vm").ok_or_else(unknown)?,
            address: member("vm_struct", "addr").ok_or_else(unknown)?,
        };
        drop(vmlinux);
        crate::sys::trim_heap();
        let array = map::create(&window(), None, None)?;
        let insns = copy(map, array.as_fd(), &at);
        let load = Load {
            name: "skep_arena",
            program_type: SYSCALL,
            flags: SLEEPABLE,
            insns: &insns,
            license: "GPL",
            ..Load::default()
        };
        let program = load.run().map_err(|refused| match refused.error.raw_os_error() {
            // Nobody can have been there: programs and processes find it by its address.
            Some(libc::EINVAL) if refused.log.contains("user address must be set") => io::Error::new(
                io::ErrorKind::Unsupported,
                "the arena has no address yet: its process has not mapped it",
            ),
            _ => io::Error::new(refused.error.kind(), format!("{}: {}", refused.error, refused.log)),
        })?;
        let pages = u64::from(map.info().max_entries) * (page_size() / CHUNK) as u64;
        let window = Mapping::new(array.as_fd(), 0, HEAD + CHUNKS * CHUNK, true)?;
        Ok(Arena { program, window, pages })
    }

    /// What is at an address; `None` where nothing is, and for one that begins no chunk.
    pub(super) fn lookup(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let address = u64::from_ne_bytes(key.try_into().map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?);
        let start = self.run(0)?.start;
        let offset = address.wrapping_sub(start);
        if !offset.is_multiple_of(CHUNK as u64) || offset / CHUNK as u64 >= self.pages {
            return Ok(None);
        }
        let found = self.run(offset / CHUNK as u64)?.chunks.into_iter().find(|(at, _)| *at == address);
        Ok(found.map(|(_, bytes)| bytes))
    }

    /// All that is there, or what is after an address, in the order of addresses, until `sink` says stop.
    pub(super) fn each(&self, after: Option<u64>, mut sink: impl FnMut(u64, &[u8]) -> bool) -> io::Result<()> {
        let start = self.run(0)?.start;
        let first = after.map_or(0, |address| address.wrapping_sub(start) / CHUNK as u64 + 1);
        for chunk in (first..self.pages).step_by(CHUNKS) {
            for (address, bytes) in self.run(chunk)?.chunks {
                if !sink(address, &bytes) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// From the so manieth chunk on.
    fn run(&self, first: u64) -> io::Result<Run> {
        let offset = first * CHUNK as u64;
        let mut window = vec![0u8; HEAD + CHUNKS * CHUNK];
        self.window.write(0, &offset.to_ne_bytes());
        program::run_on(self.program.as_fd(), &[])?;
        self.window.copy(0, &mut window);
        let word = |at: usize| u64::from_ne_bytes(window[at..at + 8].try_into().unwrap_or_default());
        let (there, start) = (word(8), word(16));
        let bytes = window[HEAD..].chunks_exact(CHUNK).map(<[u8]>::to_vec);
        let chunks = (first..).zip(bytes).enumerate();
        let chunks = chunks.filter(|(bit, (chunk, _))| there >> bit & 1 == 1 && *chunk < self.pages);
        Ok(Run { start, chunks: chunks.map(|(_, (chunk, bytes))| (start + chunk * CHUNK as u64, bytes)).collect() })
    }
}

/// Bytes from the beginning of the kernel's structs.
struct Offsets {
    user_start: i16,
    area: i16,
    address: i16,
}

fn window() -> MapDef {
    MapDef {
        name: "skep_arena".into(),
        map_type: map_type::ARRAY,
        key_size: 4,
        value_size: (HEAD + CHUNKS * CHUNK) as u32,
        max_entries: 1,
        flags: map::MMAPABLE,
        ..MapDef::default()
    }
}

fn copy(map: &Map, window: BorrowedFd<'_>, at: &Offsets) -> Vec<Insn> {
    let insn = |code: u8, dst: u8, src: u8, off: i16, imm: i32| Insn { code, regs: dst | src << 4, off, imm };
    // The kernel's mapping begins in the middle of a guard: the largest offset of an instruction, to both sides.
    let guard = (1usize << 16).next_multiple_of(page_size() * 2) / 2;
    let mut program = vec![
        insn(0x18, 6, pseudo::MAP_VALUE, 0, window.as_raw_fd()), // r6 = window
        insn(0, 0, 0, 0, 0),
        insn(0x18, 7, pseudo::MAP_FD, 0, map.fd().as_raw_fd()),
        insn(0, 0, 0, 0, 0),
        insn(0x79, 8, 7, at.user_start, 0), // r8 = arena->user_vm_start
        insn(0x7b, 6, 8, 16, 0),
        insn(0x79, 7, 7, at.area, 0), // r7 = arena->kern_vm->addr + guard
        insn(0x79, 7, 7, at.address, 0),
        insn(0x07, 7, 0, 0, guard as i32),
        insn(0x79, 1, 6, 0, 0),
        insn(0x0f, 8, 1, 0, 0), // r8 += offset
        insn(0xb7, 9, 0, 0, 0),
    ];
    for chunk in 0..CHUNKS {
        program.extend([
            insn(0xbc, 3, 8, 0, 0), // w3 = w8: the kernel has the lower half of addresses
            insn(0x04, 3, 0, 0, (chunk * CHUNK) as i32),
            insn(0x0f, 3, 7, 0, 0),
            insn(0xbf, 1, 6, 0, 0),
            insn(0x07, 1, 0, 0, (HEAD + chunk * CHUNK) as i32),
            insn(0xb7, 2, 0, 0, CHUNK as i32),
            insn(0x85, 0, 0, 0, PROBE_READ_KERNEL),
            insn(0x55, 0, 0, 1, 0), // no page: next
            insn(0x47, 9, 0, 0, 1 << chunk),
        ]);
    }
    program.extend([insn(0x7b, 6, 9, 8, 0), insn(0xb7, 0, 0, 0, 0), insn(0x95, 0, 0, 0, 0)]);
    program
}
