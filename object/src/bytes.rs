//! Little-endian reads that cannot leave their buffer.

use std::ffi::CStr;

use crate::error::ObjectError;

/// A bounds-checked view of bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(data: &'a [u8]) -> Self {
        Reader(data)
    }
    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N], ObjectError> {
        at.checked_add(N)
            .and_then(|end| self.0.get(at..end))
            .and_then(|b| b.try_into().ok())
            .ok_or_else(|| ObjectError::Malformed { reason: format!("it ends inside a field at byte {at:#x}") })
    }
    pub(crate) fn u16(&self, at: usize) -> Result<u16, ObjectError> {
        self.array(at).map(u16::from_le_bytes)
    }
    pub(crate) fn u32(&self, at: usize) -> Result<u32, ObjectError> {
        self.array(at).map(u32::from_le_bytes)
    }
    pub(crate) fn u64(&self, at: usize) -> Result<u64, ObjectError> {
        self.array(at).map(u64::from_le_bytes)
    }
}

/// Longest name, in bytes. The kernel takes 511 (KSYM_NAME_LEN), and thousands of symbols may share one.
pub(crate) const MAX_NAME: usize = 1024;

/// The NUL-terminated UTF-8 string at an offset.
pub(crate) fn cstr(data: &[u8], at: usize) -> Result<&str, ObjectError> {
    let malformed = |reason: String| ObjectError::Malformed { reason };
    let tail = data.get(at..).ok_or_else(|| malformed(format!("a name at {at:#x} lies outside its table")))?;
    let tail = &tail[..tail.len().min(MAX_NAME + 1)];
    let name = CStr::from_bytes_until_nul(tail)
        .map_err(|_| malformed(format!("the name at {at:#x} has no end within {MAX_NAME} bytes")))?;
    name.to_str().map_err(|_| malformed(format!("the name at {at:#x} is not UTF-8")))
}
