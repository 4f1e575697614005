//! Types of kernel modules: BTF that counts on from the kernel's own, and a descriptor by which it is named to bpf(2).

use std::os::fd::OwnedFd;
use std::path::Path;

use skep_object::btf::Btf;

use crate::error::KernelError;
use crate::{kallsyms, sys};

/// A loaded module that has types.
#[derive(Debug)]
pub struct Module {
    pub name: String,
    /// The kernel's types with the module's after them.
    pub types: Btf,
    pub fd: OwnedFd,
}

/// The types of the module that a symbol is of; `None`: it is of none that has types.
pub fn of_symbol(symbol: &str, kernel: &Btf) -> Result<Option<Module>, KernelError> {
    let failed = KernelError::io("reading /proc/kallsyms");
    let found = kallsyms::symbols(&[symbol].into()).map_err(failed)?;
    match found.get(symbol).and_then(|symbol| symbol.module.as_deref()) {
        Some(module) => open(module, kernel),
        None => Ok(None),
    }
}

/// Opens a module's types; `None`: the module has none, or is not loaded.
pub fn open(name: &str, kernel: &Btf) -> Result<Option<Module>, KernelError> {
    let failed = || KernelError::io(format!("reading the types of the module {name}"));
    let data = match std::fs::read(Path::new("/sys/kernel/btf").join(name)) {
        Ok(data) => data,
        Err(_) => return Ok(None),
    };
    let Some(fd) = sys::kernel_btf(name).map_err(failed())? else { return Ok(None) };
    let types = kernel.extended(&data)?;
    Ok(Some(Module { name: name.to_owned(), types, fd }))
}
