//! The bytes that a value is written to, and which of them were.

use super::MAX_SIZE;
use super::error::{EncodeError, Problem};

/// Members of a union lie over each other: what one has written, another may only confirm.
pub(super) struct Place {
    bytes: Vec<u8>,
    /// The bits that were written.
    written: Vec<u8>,
}

impl Place {
    pub(super) fn new(size: usize) -> Result<Self, EncodeError> {
        let mut place = Place { bytes: Vec::new(), written: Vec::new() };
        place.grow(size)?;
        Ok(place)
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Makes room for what ends there.
    pub(super) fn grow(&mut self, end: usize) -> Result<(), EncodeError> {
        if end > MAX_SIZE {
            return Err(Problem::TooLarge { bytes: end }.into());
        }
        let len = self.bytes.len().max(end);
        self.bytes.resize(len, 0);
        self.written.resize(len, 0);
        Ok(())
    }

    pub(super) fn put(&mut self, at: usize, bytes: &[u8]) -> Result<(), EncodeError> {
        bytes.iter().enumerate().try_for_each(|(i, byte)| self.merge(at + i, *byte, 0xff))
    }

    /// Writes the low `len` bits of `v`, the first of them `offset` bits after the byte `at`.
    pub(super) fn put_bits(&mut self, at: usize, offset: u32, len: u32, v: u64) -> Result<(), EncodeError> {
        if len > 64 {
            return Err(Problem::NoRoom.into());
        }
        let (first, shift) = (at + offset as usize / 8, offset % 8);
        let mask = ((1u128 << len) - 1) << shift;
        let value = u128::from(v) << shift & mask;
        let bytes = (len + shift).div_ceil(8) as usize;
        let pairs = value.to_le_bytes().into_iter().zip(mask.to_le_bytes()).take(bytes);
        pairs.enumerate().try_for_each(|(i, (byte, mask))| self.merge(first + i, byte, mask))
    }

    fn merge(&mut self, at: usize, byte: u8, mask: u8) -> Result<(), EncodeError> {
        let (Some(slot), Some(written)) = (self.bytes.get_mut(at), self.written.get_mut(at)) else {
            return Err(Problem::NoRoom.into());
        };
        if (*slot ^ byte) & mask & *written != 0 {
            return Err(Problem::Disagrees.into());
        }
        *slot |= byte & mask;
        *written |= mask;
        Ok(())
    }
}
