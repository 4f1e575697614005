//! Perf events, as far as programs are attached through them, or write to them.

use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// struct perf_event_attr, up to `config2` (PERF_ATTR_SIZE_VER1), as far as probes and tracepoints use it.
#[repr(C)]
#[derive(Debug, Default)]
struct PerfEventAttr {
    event_type: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint_type: u32,
    config1: u64,
    config2: u64,
}

/// What a CPU counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// PERF_TYPE_*.
    pub kind: u32,
    /// PERF_COUNT_*.
    pub config: u64,
    /// For people.
    pub name: &'static str,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// How often a counter lets a program run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Every {
    /// So many events.
    Period(u64),
    /// So many times a second, as near as the kernel comes to that.
    Frequency(u64),
}

/// The bit of `flags` that makes `sample_period` a frequency.
const FREQUENCY: u64 = 1 << 10;

/// A counter of one CPU, whatever runs there.
pub fn counter(event: Event, every: Every, cpu: u32) -> io::Result<OwnedFd> {
    let (sample_period, flags) = match every {
        Every::Period(events) => (events, 0),
        Every::Frequency(hertz) => (hertz, FREQUENCY),
    };
    let mut attr = PerfEventAttr {
        event_type: event.kind,
        config: event.config,
        sample_period,
        flags,
        ..PerfEventAttr::default()
    };
    open(&mut attr, cpu)
}

const PERF_TYPE_SOFTWARE: u32 = 1;
const PERF_COUNT_SW_BPF_OUTPUT: u64 = 10;
const PERF_TYPE_TRACEPOINT: u32 = 2;
const PERF_SAMPLE_RAW: u64 = 1 << 10;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;

/// An event on every process, on one CPU.
fn open(attr: &mut PerfEventAttr, cpu: u32) -> io::Result<OwnedFd> {
    attr.size = size_of::<PerfEventAttr>() as u32;
    // SAFETY: `attr` is a live struct that says its own size; strings it points to outlive the call in both callers.
    let fd = unsafe {
        libc::syscall(libc::SYS_perf_event_open, std::ptr::from_mut(attr), -1, cpu, -1, PERF_FLAG_FD_CLOEXEC)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded and returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// A tracepoint by the id that tracefs gives it. Of one CPU in name, but programs run wherever it happens.
pub fn tracepoint(id: u64) -> io::Result<OwnedFd> {
    samples(PERF_TYPE_TRACEPOINT, id, 0)
}

/// What programs write for user space on one CPU; wakes its reader for each record.
pub fn bpf_output(cpu: u32) -> io::Result<OwnedFd> {
    samples(PERF_TYPE_SOFTWARE, PERF_COUNT_SW_BPF_OUTPUT, cpu)
}

fn samples(event_type: u32, config: u64, cpu: u32) -> io::Result<OwnedFd> {
    let mut attr = PerfEventAttr {
        event_type,
        config,
        sample_period: 1,
        sample_type: PERF_SAMPLE_RAW,
        wakeup_events: 1,
        ..PerfEventAttr::default()
    };
    open(&mut attr, cpu)
}

/// A probe of the dynamic PMU `event_type`: on a kernel function and offset in it, or on a file and offset in it. Of one
/// CPU in name.
pub fn probe(event_type: u32, on_return: Option<u32>, name: &str, offset: u64) -> io::Result<OwnedFd> {
    let name = CString::new(name).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let mut attr = PerfEventAttr {
        event_type,
        config: on_return.map_or(0, |bit| 1 << bit),
        config1: name.as_ptr() as u64,
        config2: offset,
        ..PerfEventAttr::default()
    };
    open(&mut attr, 0)
}
