//! bpf(2) and its neighbours as safe functions: descriptors are owned, buffers are checked, errors are errno.
//!
//! Attribute layouts are those of include/uapi/linux/bpf.h; each struct ends at the last field that Skep sets, which
//! every kernel accepts: it takes what is missing for zero.

mod attr;
pub mod instructions;
pub mod link;
pub mod map;
pub mod mapping;
pub mod netlink;
pub mod perf;
pub mod program;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use attr::{BtfLoad, FdById, InfoByFd, NextId, ObjectPath};

/// Commands of bpf(2): enum bpf_cmd.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
enum Command {
    MapCreate = 0,
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    MapNextKey = 4,
    ProgLoad = 5,
    ObjPin = 6,
    ObjGet = 7,
    ProgTestRun = 10,
    ProgNextId = 11,
    MapNextId = 12,
    ProgFdById = 13,
    MapFdById = 14,
    InfoByFd = 15,
    ProgQuery = 16,
    RawTracepointOpen = 17,
    BtfLoad = 18,
    BtfFdById = 19,
    MapLookupAndDelete = 21,
    MapFreeze = 22,
    BtfNextId = 23,
    MapLookupBatch = 24,
    MapLookupAndDeleteBatch = 25,
    LinkCreate = 28,
    LinkUpdate = 29,
    LinkFdById = 30,
    LinkNextId = 31,
    EnableStats = 32,
    IterCreate = 33,
    LinkDetach = 34,
    ProgStreamRead = 37,
}

/// Runs one command; the result is its return value.
fn bpf<A>(command: Command, attr: &mut A) -> io::Result<i32> {
    // SAFETY: `attr` is a live, exclusively borrowed struct whose layout is that of the command's part of the union,
    // and the size passed is its own; pointers in it point into buffers that its maker keeps alive over the call.
    let ret =
        unsafe { libc::syscall(libc::SYS_bpf, command as libc::c_long, std::ptr::from_mut(attr), size_of::<A>()) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret as i32) }
}

/// As [`bpf`], for commands that return a descriptor.
fn bpf_fd<A>(command: Command, attr: &mut A) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: the command succeeded and returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

fn path_string(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// A name as the kernel takes it: at most 15 of `[A-Za-z0-9_.]`.
fn kernel_name(name: &str) -> [u8; 16] {
    let mut out = [0; 16];
    for (slot, byte) in out.iter_mut().zip(name.bytes().take(15)) {
        *slot = if byte.is_ascii_alphanumeric() || byte == b'.' { byte } else { b'_' };
    }
    out
}

/// The text of a NUL-terminated field.
fn field_text(field: &[u8]) -> String {
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

/// Pins an object under a path of a bpffs.
pub fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = path_string(path)?;
    bpf(Command::ObjPin, &mut ObjectPath { path: path.as_ptr() as u64, fd: raw(fd), flags: 0 }).map(drop)
}

/// Opens a pinned object.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = path_string(path)?;
    bpf_fd(Command::ObjGet, &mut ObjectPath { path: path.as_ptr() as u64, fd: 0, flags: 0 })
}

/// Loads type information.
pub fn load_btf(data: &[u8]) -> io::Result<OwnedFd> {
    let size = u32::try_from(data.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
    bpf_fd(Command::BtfLoad, &mut BtfLoad { btf: data.as_ptr() as u64, size, ..BtfLoad::default() })
}

/// Waits until one of some descriptors can be read, at most for that time. A signal ends it early.
pub fn wait_readable(fds: &[BorrowedFd<'_>], patience: std::time::Duration) -> io::Result<()> {
    let wanted = |fd: &BorrowedFd<'_>| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let mut wanted: Vec<libc::pollfd> = fds.iter().map(wanted).collect();
    let millis = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the list is live and of the length that is passed; its descriptors are borrowed for the call.
    let ret = unsafe { libc::poll(wanted.as_mut_ptr(), wanted.len() as libc::nfds_t, millis) };
    if ret < 0 && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// MEMBARRIER_CMD_GLOBAL (include/uapi/linux/membarrier.h).
const MEMBARRIER_GLOBAL: libc::c_long = 1;

/// Waits for an RCU grace period: what ran in the kernel when it began has ended. Programs that may sleep are not waited
/// for.
pub fn grace_period() -> io::Result<()> {
    // SAFETY: the command takes no pointer and changes nothing.
    let ret = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_GLOBAL, 0, 0) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Lets all threads allocate from two arenas. The C library would make eight per core, each with what its busiest moment
/// left in it. To be called before there are threads.
pub fn few_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes no pointer; it sets a bound that the allocator reads when it makes an arena.
    let _set = unsafe { libc::mallopt(libc::M_ARENA_MAX, 2) };
}

/// Gives memory that was freed back to the kernel. The C library keeps it otherwise: megabytes after a pull or a parse,
/// for as long as the agent runs.
///
/// At most once a second: it takes milliseconds, and many programs may be loaded in a row.
pub fn trim_heap() {
    static LAST: std::sync::Mutex<Option<std::time::Instant>> = std::sync::Mutex::new(None);
    let mut last = LAST.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if last.is_some_and(|last| last.elapsed() < std::time::Duration::from_secs(1)) {
        return;
    }
    *last = Some(std::time::Instant::now());
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes no pointer; it only releases pages that the allocator does not use.
    let _released = unsafe { libc::malloc_trim(0) };
}

/// The BTF of the kernel (`vmlinux`) or of a module, by its name; `None`: there is none.
pub fn kernel_btf(name: &str) -> io::Result<Option<OwnedFd>> {
    let mut id = 0;
    while let Some(next) = next_id(Command::BtfNextId, id)? {
        id = next;
        let mut text = [0u8; 64];
        let mut info = BtfInfo { name: text.as_mut_ptr() as u64, name_len: text.len() as u32, ..BtfInfo::default() };
        let fd = match bpf_fd(Command::BtfFdById, &mut FdById { id, next: 0, flags: 0 }) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        // A name that does not fit is no module's.
        let told = info_by_fd(std::os::fd::AsFd::as_fd(&fd), &mut info);
        if told.is_ok() && info.is_kernels != 0 && field_text(&text) == name {
            return Ok(Some(fd));
        }
    }
    Ok(None)
}

/// struct bpf_btf_info (Linux 5.11).
#[repr(C)]
#[derive(Default)]
struct BtfInfo {
    btf: u64,
    size: u32,
    id: u32,
    name: u64,
    name_len: u32,
    is_kernels: u32,
}

/// The raw BTF data with that id.
pub fn btf_by_id(id: u32) -> io::Result<Vec<u8>> {
    let fd = bpf_fd(Command::BtfFdById, &mut FdById { id, next: 0, flags: 0 })?;
    let fd = std::os::fd::AsFd::as_fd(&fd);
    let mut info = BtfInfo::default();
    info_by_fd(fd, &mut info)?;
    let mut data = vec![0u8; info.size as usize];
    let mut info = BtfInfo { btf: data.as_mut_ptr() as u64, size: info.size, ..BtfInfo::default() };
    info_by_fd(fd, &mut info)?;
    Ok(data)
}

/// A number that only the descriptor's fdinfo tells.
pub fn fdinfo(fd: BorrowedFd<'_>, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line?.trim().parse().ok()
}

/// BPF_OBJ_GET_INFO_BY_FD into a struct laid out like the kernel's.
fn info_by_fd<T>(fd: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let size = size_of::<T>() as u32;
    bpf(Command::InfoByFd, &mut InfoByFd { fd: raw(fd), size, info: std::ptr::from_mut(info) as u64 }).map(drop)
}

/// The id after `start` of a kind of object; `None` at the end.
fn next_id(command: Command, start: u32) -> io::Result<Option<u32>> {
    let mut attr = NextId { start, next: 0, flags: 0 };
    match bpf(command, &mut attr) {
        Ok(_) => Ok(Some(attr.next)),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

fn ids(command: Command) -> io::Result<Vec<u32>> {
    let mut ids = Vec::new();
    let mut last = 0;
    while let Some(id) = next_id(command, last)? {
        ids.push(id);
        last = id;
    }
    Ok(ids)
}
