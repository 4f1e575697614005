//! Memory that is shared with the kernel.
//!
//! **Guarantees.** Nothing outside of a mapping is read or written. What others write at the same time is bytes without a
//! meaning to the compiler: only atomics and copies look at it.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, AtomicU64};

use super::raw;

/// A mapping of a descriptor.
#[derive(Debug)]
pub struct Mapping {
    at: *mut u8,
    len: usize,
    writable: bool,
}

// SAFETY: it is memory that no thread owns, looked at by atomics and copies only.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps `len` bytes from an offset on; `write`: it is told something there.
    pub fn new(fd: BorrowedFd<'_>, offset: usize, len: usize, write: bool) -> io::Result<Self> {
        let len = len.next_multiple_of(page_size());
        let protection = libc::PROT_READ | if write { libc::PROT_WRITE } else { 0 };
        let (fd, offset) = (raw(fd).cast_signed(), offset as libc::off_t);
        // SAFETY: a new mapping of a live descriptor, placed by the kernel; nothing of ours is touched.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_SHARED, fd, offset) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Mapping { at: at.cast(), len, writable: write })
    }

    /// Copies bytes from an offset on; those beyond the end are left as they are.
    pub fn copy(&self, offset: usize, out: &mut [u8]) {
        let len = out.len().min(self.len.saturating_sub(offset));
        // SAFETY: `offset + len` is inside of the mapping, which lives as long as `self`; `out` is memory of our own.
        unsafe { std::ptr::copy_nonoverlapping(self.at.add(offset.min(self.len)), out.as_mut_ptr(), len) }
    }

    /// Copies bytes into it, from an offset on; false, and nothing is written, where they do not fit or it is read-only.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> bool {
        let fits = self.writable && offset.checked_add(bytes.len()).is_some_and(|end| end <= self.len);
        if fits {
            // SAFETY: the range is inside of the mapping, which was made to be written and lives as long as `self`; `bytes`
            // is memory of our own.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.at.add(offset), bytes.len()) }
        }
        fits
    }

    /// Eight aligned bytes that both sides look at; `None` outside of the mapping.
    pub fn word(&self, offset: usize) -> Option<&AtomicU64> {
        let inside = offset.is_multiple_of(8) && offset.checked_add(8).is_some_and(|end| end <= self.len);
        // SAFETY: aligned (mappings begin at a page) and inside of the mapping, which outlives the reference. It may be
        // a page that cannot be written: who maps it so only loads.
        inside.then(|| unsafe { AtomicU64::from_ptr(self.at.add(offset).cast()) })
    }

    /// Four aligned bytes that both sides look at; `None` outside of the mapping.
    pub fn half(&self, offset: usize) -> Option<&AtomicU32> {
        let inside = offset.is_multiple_of(4) && offset.checked_add(4).is_some_and(|end| end <= self.len);
        // SAFETY: as for `word`.
        inside.then(|| unsafe { AtomicU32::from_ptr(self.at.add(offset).cast()) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is our own, of that length, and nobody has a reference into it.
        let _ = unsafe { libc::munmap(self.at.cast(), self.len) };
    }
}

/// Bytes of a page.
pub fn page_size() -> usize {
    // SAFETY: asks for a constant of the system.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}
