//! How many CPUs the kernel may ever have: per-CPU values have that many parts.

use std::io;
use std::sync::OnceLock;

/// Possible CPUs, from /sys/devices/system/cpu/possible.
pub fn possible() -> io::Result<u32> {
    static POSSIBLE: OnceLock<u32> = OnceLock::new();
    if let Some(n) = POSSIBLE.get() {
        return Ok(*n);
    }
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let count =
        parse(text.trim()).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "cpu/possible is unreadable"))?;
    Ok(*POSSIBLE.get_or_init(|| count))
}

/// CPUs that run, from /sys/devices/system/cpu/online.
pub fn online() -> io::Result<Vec<u32>> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/online")?;
    members(text.trim()).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "cpu/online is unreadable"))
}

/// Runs something on one CPU, if this thread may run there; else where it is.
pub fn on<T>(cpu: u32, what: impl FnOnce() -> T) -> T {
    // SAFETY: an all-zero cpu_set_t is the empty set of the plain C struct.
    let (mut before, mut only): (libc::cpu_set_t, libc::cpu_set_t) = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::cpu_set_t>();
    // SAFETY: both sets are live and of the size that is passed; 0 is the calling thread.
    let moved = unsafe {
        libc::CPU_SET(cpu as usize % (8 * size), &mut only);
        libc::sched_getaffinity(0, size, &raw mut before) == 0 && libc::sched_setaffinity(0, size, &raw const only) == 0
    };
    let result = what();
    if moved {
        // SAFETY: as above; the set is the one that the kernel gave.
        let _restored = unsafe { libc::sched_setaffinity(0, size, &raw const before) };
    }
    result
}

/// Makes this thread one that yields: `niceness` as nice(1) counts, and `slice_ns` is the longest that it runs while another
/// waits, where the kernel goes by that (Linux 6.12; others decide themselves, and take some milliseconds).
pub fn yielding(niceness: i32, slice_ns: u64) -> io::Result<()> {
    /// struct sched_attr (include/uapi/linux/sched/types.h), SCHED_ATTR_SIZE_VER0.
    #[repr(C)]
    #[derive(Default)]
    struct SchedAttr {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    let size = size_of::<SchedAttr>() as u32;
    let policy = libc::SCHED_OTHER.cast_unsigned();
    let attr = SchedAttr { size, policy, nice: niceness, runtime: slice_ns, ..SchedAttr::default() };
    // SAFETY: `attr` is a live struct that says its own size; 0 is the calling thread.
    match unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The kernel's list format: `0-3,8`. Ids need not be contiguous; values are laid out by id.
fn parse(list: &str) -> Option<u32> {
    list.rsplit(['-', ',']).next()?.parse::<u32>().ok()?.checked_add(1)
}

fn members(list: &str) -> Option<Vec<u32>> {
    let range = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.parse::<u32>().ok()?..=last.parse::<u32>().ok()?)
    };
    let ranges: Option<Vec<_>> = list.split(',').map(range).collect();
    Some(ranges?.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    #[test]
    fn lists_are_read_to_their_last_cpu() {
        assert_eq!(super::parse("0"), Some(1));
        assert_eq!(super::parse("0-1"), Some(2));
        assert_eq!(super::parse("0-3,8"), Some(9));
        assert_eq!(super::parse(""), None);
        assert_eq!(super::members("0-3,8"), Some(vec![0, 1, 2, 3, 8]));
        assert_eq!(super::members("0"), Some(vec![0]));
        assert_eq!(super::members(""), None);
    }
}
