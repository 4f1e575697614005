//! What selectors ask for that a view of the node does not have: binaries, and the functions of other programs.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Finds probe points in binaries.
pub trait Binaries {
    /// Opens a binary below a root directory (`/` or `/proc/PID/root`).
    fn open(&self, root: &Path, binary: &str) -> Result<Opened, NotOpened>;
    /// The file offset of a symbol.
    fn symbol(&self, binary: &Opened, symbol: &str) -> Result<u64, String>;
    /// The file offsets of all functions of which a symbol is like the pattern: `*` stands for any characters, `?` for one.
    fn functions(&self, binary: &Opened, pattern: &str) -> Result<Vec<u64>, String>;
}

/// Knows the functions of other EbpfPrograms.
pub trait Functions {
    /// Ids of the loaded programs of an EbpfProgram that have the function; why there is none, in words.
    fn programs_with(&self, namespace: &str, ebpf_program: &str, function: &str) -> Result<Vec<u32>, String>;
}

/// Looks up what a view does not have.
#[derive(Clone, Copy)]
pub struct Lookup<'a> {
    pub binaries: &'a dyn Binaries,
    pub functions: &'a dyn Functions,
}

impl std::fmt::Debug for Lookup<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lookup").finish_non_exhaustive()
    }
}

/// A binary that was found. It is held open until it is probed: a path could lead elsewhere by then.
#[derive(Clone, Debug)]
pub struct Opened {
    pub file: Arc<OwnedFd>,
    /// What the file is, whatever its path.
    pub identity: String,
}

impl Opened {
    /// A path to the file, as long as it is held.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }
}

/// Why a binary was not opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotOpened {
    /// The root directory is not there: its container ended.
    NoRoot,
    /// In words that name the binary.
    NoFile(String),
}
