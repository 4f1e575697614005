//! Programs.

use std::ffi::CString;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use skep_object::insn::Insn;

use super::attr::{EnableStats, FdById, ProgLoad, StreamRead, TestRun};
use super::{Command, bpf, bpf_fd, field_text, ids, info_by_fd, kernel_name, raw};

/// Bytes of log asked for after a refusal: the kernel keeps the tail, where the reason is (since 6.4; before, it keeps
/// the head).
const LOG_SIZE: usize = 128 << 10;
/// BPF_LOG_LEVEL1.
const LOG_LEVEL: u32 = 1;
/// BPF_LOG_LEVEL1, BPF_LOG_LEVEL2, BPF_LOG_STATS: every instruction on every path, and what it cost.
const LOG_ALL: u32 = 7;
/// Bytes of log of a program that is verified on demand, to begin with and at most.
const VERIFY_LOG_SIZE: usize = 1 << 20;
const MAX_LOG_SIZE: usize = 16 << 20;

/// What to load.
#[derive(Debug, Default)]
pub struct Load<'a> {
    pub name: &'a str,
    pub program_type: u32,
    pub expected_attach_type: u32,
    pub flags: u32,
    pub insns: &'a [Insn],
    pub license: &'a str,
    pub btf: Option<BorrowedFd<'a>>,
    pub func_info: &'a [[u32; 2]],
    pub line_info: &'a [[u32; 4]],
    /// A BTF id of vmlinux, or of the program to attach to; 0: none.
    pub attach_btf_id: u32,
    /// The program to attach to, or the types of the module that `attach_btf_id` is of.
    pub attach_to: Option<BorrowedFd<'a>>,
    /// Types of modules, to which calls of kernel functions refer by number.
    pub fds: &'a [RawFd],
}

/// A refused load.
#[derive(Debug)]
pub struct Refused {
    /// Of the first, silent try: the one that tells the truth.
    pub error: io::Error,
    /// The verifier's log; empty when it was not the verifier.
    pub log: String,
}

impl Load<'_> {
    /// Loads; on refusal once more for the verifier's log.
    pub fn run(&self) -> Result<OwnedFd, Refused> {
        // A signal makes the verifier give up with EAGAIN.
        let mut result = self.once(&mut []);
        for _ in 0..5 {
            match &result {
                Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => result = self.once(&mut []),
                _ => break,
            }
        }
        let error = match result {
            Ok(fd) => return Ok(fd),
            Err(error) => error,
        };
        let mut log = vec![0u8; LOG_SIZE];
        // A load that succeeds now leaves a descriptor that is dropped here: the first error stands.
        let _ = self.once(&mut log);
        Err(Refused { error, log: field_text(&log) })
    }

    /// Whether the verifier takes it, and all that it says on the way, with what it cost. Nothing stays loaded.
    pub fn verify(&self) -> (io::Result<()>, String) {
        let mut size = VERIFY_LOG_SIZE;
        loop {
            let mut log = vec![0u8; size];
            let result = self.once_at(LOG_ALL, &mut log).map(drop);
            match result {
                // Before 6.4 a log that does not fit is a refusal.
                Err(e) if e.raw_os_error() == Some(libc::ENOSPC) && size < MAX_LOG_SIZE => size *= 4,
                // A signal makes the verifier give up.
                Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => {}
                result => return (result, field_text(&log)),
            }
        }
    }

    fn once(&self, log: &mut [u8]) -> io::Result<OwnedFd> {
        self.once_at(LOG_LEVEL, log)
    }

    fn once_at(&self, log_level: u32, log: &mut [u8]) -> io::Result<OwnedFd> {
        let license = CString::new(self.license).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        let mut attr = ProgLoad {
            program_type: self.program_type,
            insn_count: self.insns.len() as u32,
            insns: self.insns.as_ptr() as u64,
            license: license.as_ptr() as u64,
            flags: self.flags,
            name: kernel_name(self.name),
            expected_attach_type: self.expected_attach_type,
            attach_btf_id: self.attach_btf_id,
            attach_fd: self.attach_to.map_or(0, raw),
            ..ProgLoad::default()
        };
        if !self.fds.is_empty() {
            attr.fds = self.fds.as_ptr() as u64;
        }
        if let Some(btf) = self.btf {
            attr.btf_fd = raw(btf);
            attr.func_info_size = 8;
            attr.func_info = self.func_info.as_ptr() as u64;
            attr.func_info_count = self.func_info.len() as u32;
            attr.line_info_size = 16;
            attr.line_info = self.line_info.as_ptr() as u64;
            attr.line_info_count = self.line_info.len() as u32;
        }
        if !log.is_empty() {
            attr.log_level = log_level;
            attr.log_size = log.len() as u32;
            attr.log = log.as_mut_ptr() as u64;
        }
        bpf_fd(Command::ProgLoad, &mut attr)
    }
}

/// Whether programs of a type may call a helper without arguments beyond the context.
pub fn knows_helper(program_type: u32, helper: i32) -> bool {
    let exit = Insn { code: 0x95, regs: 0, off: 0, imm: 0 };
    let load =
        Load { name: "probe", program_type, insns: &[Insn::call(helper), exit], license: "GPL", ..Load::default() };
    load.once(&mut []).is_ok()
}

/// enum bpf_prog_type, in its order (Linux 6.18), as bpftool writes them.
const TYPE_NAMES: [&str; 33] = [
    "unspec",
    "socket_filter",
    "kprobe",
    "sched_cls",
    "sched_act",
    "tracepoint",
    "xdp",
    "perf_event",
    "cgroup_skb",
    "cgroup_sock",
    "lwt_in",
    "lwt_out",
    "lwt_xmit",
    "sock_ops",
    "sk_skb",
    "cgroup_device",
    "sk_msg",
    "raw_tracepoint",
    "cgroup_sock_addr",
    "lwt_seg6local",
    "lirc_mode2",
    "sk_reuseport",
    "flow_dissector",
    "cgroup_sysctl",
    "raw_tracepoint_writable",
    "cgroup_sockopt",
    "tracing",
    "struct_ops",
    "ext",
    "lsm",
    "sk_lookup",
    "syscall",
    "netfilter",
];

/// The name of a program type, e.g. `sched_cls`.
pub fn type_name(program_type: u32) -> String {
    TYPE_NAMES.get(program_type as usize).map_or_else(|| format!("type_{program_type}"), |n| (*n).to_owned())
}

/// What the kernel says of a program (struct bpf_prog_info).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgramInfo {
    pub program_type: u32,
    pub id: u32,
    /// 16 hex digits: equal tags, equal instructions.
    pub tag: String,
    pub name: String,
}

/// struct bpf_prog_info, as far as it is read.
#[repr(C)]
#[derive(Default)]
pub(super) struct Raw {
    pub(super) program_type: u32,
    pub(super) id: u32,
    pub(super) tag: [u8; 8],
    pub(super) jited_len: u32,
    pub(super) xlated_len: u32,
    pub(super) jited: u64,
    pub(super) xlated: u64,
    pub(super) load_time: u64,
    pub(super) uid: u32,
    pub(super) map_count: u32,
    pub(super) map_ids: u64,
    pub(super) name: [u8; 16],
    pub(super) ifindex: u32,
    pub(super) flags: u32,
    pub(super) netns_dev: u64,
    pub(super) netns_ino: u64,
    pub(super) jited_symbol_count: u32,
    pub(super) jited_length_count: u32,
    pub(super) jited_symbols: u64,
    pub(super) jited_lengths: u64,
    pub(super) btf_id: u32,
    pub(super) func_info_size: u32,
    pub(super) func_info: u64,
    pub(super) func_info_count: u32,
    pub(super) line_info_count: u32,
    pub(super) line_info: u64,
    pub(super) jited_line_info: u64,
    pub(super) jited_line_info_count: u32,
    pub(super) line_info_size: u32,
    pub(super) jited_line_info_size: u32,
    pub(super) tag_count: u32,
    pub(super) tags: u64,
    pub(super) run_time_ns: u64,
    pub(super) run_count: u64,
    pub(super) recursion_misses: u64,
    pub(super) verified_insns: u32,
    pub(super) attach_btf_object: u32,
    pub(super) attach_btf_id: u32,
    /// An older kernel wants zeroes in all that it does not know.
    pub(super) _pad: u32,
}

/// More of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgramFacts {
    pub info: ProgramInfo,
    /// Nanoseconds since boot.
    pub loaded_at: u64,
    pub uid: u32,
    pub gpl_compatible: bool,
    /// Bytes of instructions after the verifier, and after the compiler; 0: not compiled.
    pub translated_len: u32,
    pub jited_len: u32,
    pub maps: Vec<u32>,
    pub btf_id: u32,
    /// Instructions that the verifier went through, since Linux 5.16.
    pub verified_insns: u32,
    pub stats: RunStats,
}

/// What a program did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunStats {
    /// Runs, and their time, that were counted: only while somebody has [`count_runs`].
    pub count: u64,
    pub time_ns: u64,
    /// Runs left out since the program was running on that CPU already.
    pub recursion_misses: u64,
}

impl Raw {
    fn stats(&self) -> RunStats {
        RunStats { count: self.run_count, time_ns: self.run_time_ns, recursion_misses: self.recursion_misses }
    }
}

/// All that the kernel says of the program.
pub fn facts(fd: BorrowedFd<'_>) -> io::Result<ProgramFacts> {
    let mut r = Raw::default();
    info_by_fd(fd, &mut r)?;
    Ok(ProgramFacts {
        info: info(fd)?,
        loaded_at: r.load_time,
        uid: r.uid,
        gpl_compatible: r.flags & 1 != 0,
        translated_len: r.xlated_len,
        jited_len: r.jited_len,
        maps: map_ids(fd)?,
        btf_id: r.btf_id,
        verified_insns: r.verified_insns,
        stats: r.stats(),
    })
}

/// What the program did so far.
pub fn stats(fd: BorrowedFd<'_>) -> io::Result<RunStats> {
    let mut r = Raw::default();
    info_by_fd(fd, &mut r)?;
    Ok(r.stats())
}

/// BPF_STATS_RUN_TIME.
const RUN_TIME: u32 = 0;

/// As long as the descriptor is open, the kernel counts the runs of all programs of the host and their time, which costs
/// each run some nanoseconds. Since Linux 5.8.
pub fn count_runs() -> io::Result<OwnedFd> {
    bpf_fd(Command::EnableStats, &mut EnableStats { stats_type: RUN_TIME })
}

/// What the kernel says of the program.
pub fn info(fd: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    let mut r = Raw::default();
    info_by_fd(fd, &mut r)?;
    let tag = r.tag.iter().map(|b| format!("{b:02x}")).collect();
    Ok(ProgramInfo { program_type: r.program_type, id: r.id, tag, name: field_text(&r.name) })
}

/// Ids of the maps that the program uses.
pub fn map_ids(fd: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut r = Raw::default();
    info_by_fd(fd, &mut r)?;
    let mut ids = vec![0u32; r.map_count as usize];
    let mut r = Raw { map_count: r.map_count, map_ids: ids.as_mut_ptr() as u64, ..Raw::default() };
    info_by_fd(fd, &mut r)?;
    ids.truncate(r.map_count as usize);
    Ok(ids)
}

/// The BTF that a program was loaded with, and in it the ids of its functions; `None` if it was loaded without.
pub fn functions(fd: BorrowedFd<'_>) -> io::Result<Option<(u32, Vec<u32>)>> {
    let mut r = Raw::default();
    info_by_fd(fd, &mut r)?;
    if r.btf_id == 0 {
        return Ok(None);
    }
    Ok(Some((r.btf_id, subprograms(fd)?.into_iter().map(|(_, id)| id).collect())))
}

/// The functions of a program: where each begins, in slots of eight bytes, and its id in the program's BTF.
pub fn subprograms(fd: BorrowedFd<'_>) -> io::Result<Vec<(u32, u32)>> {
    let mut r = Raw::default();
    info_by_fd(fd, &mut r)?;
    // struct bpf_func_info.
    let mut all = vec![[0u32; 2]; r.func_info_count as usize];
    let mut r = Raw {
        func_info_size: 8,
        func_info: all.as_mut_ptr() as u64,
        func_info_count: r.func_info_count,
        ..Raw::default()
    };
    info_by_fd(fd, &mut r)?;
    all.truncate(r.func_info_count as usize);
    Ok(all.into_iter().map(|[slot, id]| (slot, id)).collect())
}

/// Opens a program by id.
pub fn by_id(id: u32) -> io::Result<OwnedFd> {
    bpf_fd(Command::ProgFdById, &mut FdById { id, next: 0, flags: 0 })
}

/// Ids of all programs of the host.
pub fn all_ids() -> io::Result<Vec<u32>> {
    ids(Command::ProgNextId)
}

/// What a run on a packet came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PacketRun {
    pub value: u32,
    /// The packet afterwards.
    pub data: Vec<u8>,
    /// Nanoseconds of a run, on average.
    pub duration_ns: u32,
}

/// ENOTSUPP, a number of the kernel's own.
const ENOTSUPP: i32 = 524;
/// Longest packet, with what a program may add to it.
const MAX_PACKET: usize = 1 << 17;

/// Runs a program on a packet, so many times on the same one: what it changes in it, the next run finds. EOPNOTSUPP: the
/// kernel does not run such programs so.
pub fn test_run(fd: BorrowedFd<'_>, packet: &[u8], repeat: u32) -> io::Result<PacketRun> {
    let mut data = vec![0u8; packet.len() + 512];
    loop {
        let mut attr = TestRun {
            prog_fd: raw(fd),
            data_size_in: packet.len() as u32,
            data_size_out: data.len() as u32,
            data_in: packet.as_ptr() as u64,
            data_out: data.as_mut_ptr() as u64,
            repeat,
            ..TestRun::default()
        };
        match bpf(Command::ProgTestRun, &mut attr) {
            Ok(_) => {
                data.truncate(attr.data_size_out as usize);
                return Ok(PacketRun { value: attr.retval, data, duration_ns: attr.duration });
            }
            Err(e) if e.raw_os_error() == Some(libc::ENOSPC) && data.len() < MAX_PACKET => data.resize(MAX_PACKET, 0),
            Err(e) if e.raw_os_error() == Some(ENOTSUPP) => return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
            Err(e) => return Err(e),
        }
    }
}

/// BPF_F_TEST_RUN_ON_CPU.
const ON_CPU: u32 = 1;

/// Runs a raw tracepoint's program once, on that CPU or on any; its return value. ENXIO: there is no such CPU now.
pub fn run(fd: BorrowedFd<'_>, cpu: Option<u32>) -> io::Result<u32> {
    let flags = if cpu.is_some() { ON_CPU } else { 0 };
    let mut attr = TestRun { prog_fd: raw(fd), flags, cpu: cpu.unwrap_or(0), ..TestRun::default() };
    bpf(Command::ProgTestRun, &mut attr)?;
    Ok(attr.retval)
}

/// Longest context of a syscall program: U16_MAX.
pub const MAX_CONTEXT: usize = u16::MAX as usize;

/// Runs a program that takes no packets once: a raw tracepoint's on its arguments, a syscall program on its context. The
/// return value, and the context afterwards. EOPNOTSUPP: the kernel does not run such programs so.
pub fn run_on(fd: BorrowedFd<'_>, context: &[u8]) -> io::Result<(u32, Vec<u8>)> {
    let mut context = context.to_vec();
    let at = if context.is_empty() { 0 } else { context.as_mut_ptr() as u64 };
    let mut attr = TestRun { prog_fd: raw(fd), ctx_size_in: context.len() as u32, ctx_in: at, ..TestRun::default() };
    match bpf(Command::ProgTestRun, &mut attr) {
        Ok(_) => Ok((attr.retval, context)),
        Err(e) if e.raw_os_error() == Some(ENOTSUPP) => Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
        Err(e) => Err(e),
    }
}

/// A program's own text (enum of include/uapi/linux/bpf.h: BPF_STDOUT, BPF_STDERR).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stream {
    Stdout = 1,
    Stderr = 2,
}

/// Takes what is in a program's stream, at most so many bytes. EINVAL: the kernel has no streams; they came with 6.17.
pub fn take_stream(fd: BorrowedFd<'_>, stream: Stream, most: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0u8; most];
    let mut attr = StreamRead {
        buffer: buffer.as_mut_ptr() as u64,
        len: buffer.len() as u32,
        stream_id: stream as u32,
        prog_fd: raw(fd),
        ..StreamRead::default()
    };
    let read = bpf(Command::ProgStreamRead, &mut attr)?;
    buffer.truncate(usize::try_from(read).unwrap_or(0));
    Ok(buffer)
}
