//! Functions of programs, as what other programs attach to: they are known to the kernel by a loaded program and a BTF id.
//!
//! Assumptions: the program was compiled with type information (`clang -g`), else the kernel cannot tell its functions
//! apart.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use skep_object::btf::{Btf, Kind};

use crate::bpffs::{self, Bpffs, escape};
use crate::error::KernelError;
use crate::sys::{self, program};

/// Ids of the loaded programs of a uid that have the function, in every complete load: while it is updated, in two.
pub fn programs_with(bpffs: &Bpffs, uid: &str, function: &str) -> Result<Vec<u32>, KernelError> {
    let mut found = Vec::new();
    for load in bpffs.loads(uid)?.into_iter().filter(|load| !load.ends_with('~')) {
        let dir = bpffs.load(uid, &load).join("progs");
        for pin in bpffs::list(&dir)? {
            let failed = || KernelError::io(format!("reading the functions of {pin}"));
            let fd = match sys::open_pin(&dir.join(escape(&pin))) {
                // It went between listing and opening.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(failed())?,
            };
            if btf_id(fd.as_fd(), function).map_err(failed())?.is_some() {
                found.push(program::info(fd.as_fd()).map_err(failed())?.id);
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// A loaded program, and the BTF id that a function has in it.
pub fn open(program: u32, function: &str) -> Result<(OwnedFd, u32), KernelError> {
    let gone = || KernelError::TargetNotFound {
        target: format!("function {function} of program {program}"),
        why: "the program was replaced or removed just now".into(),
    };
    let fd = match program::by_id(program) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(gone()),
        other => other.map_err(KernelError::io(format!("opening program {program}")))?,
    };
    let id = btf_id(fd.as_fd(), function).map_err(KernelError::io(format!("reading program {program}")))?;
    Ok((fd, id.ok_or_else(gone)?))
}

/// The types of a loaded program; `None` of one that was loaded without.
pub fn btf_of(program: u32) -> io::Result<Option<Btf>> {
    let Some((btf, _)) = program::functions(program::by_id(program)?.as_fd())? else { return Ok(None) };
    parsed(btf).map(Some)
}

fn parsed(btf: u32) -> io::Result<Btf> {
    Btf::parse(&sys::btf_by_id(btf)?).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))
}

fn btf_id(program: BorrowedFd<'_>, function: &str) -> io::Result<Option<u32>> {
    let Some((btf, own)) = program::functions(program)? else { return Ok(None) };
    let btf = parsed(btf)?;
    Ok(btf.find(function, Kind::Func).filter(|id| own.contains(id)))
}
