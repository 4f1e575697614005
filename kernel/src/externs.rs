//! What an object leaves to the kernel to define, found in the running kernel and in its modules, and written into
//! instructions as libbpf writes it, so that the kernel's tag of a program is the same.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsRawFd, RawFd};

use skep_object::Object;
use skep_object::btf::compat::compatible;
use skep_object::btf::{Btf, Kind};
use skep_object::core::TargetBtf;
use skep_object::externs::{Extern, What};
use skep_object::insn::{Insn, pseudo};
use skep_object::link::ExternReference;

use crate::error::KernelError;
use crate::kallsyms;
use crate::modules::{self, Module};

/// What a call of a function that is not there calls: no helper has so large a number (libbpf's POISON_CALL_KFUNC_BASE).
const MISSING_FUNCTION: i32 = 2_002_000_000;

/// Externs, found.
#[derive(Debug, Default)]
pub struct Externs {
    /// By index.
    found: BTreeMap<usize, Found>,
    modules: Vec<Module>,
    /// Descriptors of modules' types, from 1: number 0 stands for the kernel's own.
    fds: Vec<RawFd>,
}

#[derive(Clone, Copy, Debug)]
enum Found {
    /// By its BTF id, of a module by its index.
    Typed {
        id: u32,
        module: Option<usize>,
    },
    Address(u64),
    /// A program that runs without it.
    Nothing,
}

/// Finds these externs of an object; what is not there is an error unless it is weak. Values of the configuration are
/// [`crate::kconfig`]'s.
pub fn find(object: &Object, of: &BTreeSet<usize>, target: Option<&TargetBtf>) -> Result<Externs, KernelError> {
    let mut externs = Externs::default();
    let wanted: Vec<(usize, &Extern)> = of.iter().map(|index| (*index, &object.externs()[*index])).collect();
    let kernel = target.map(TargetBtf::types);
    let mut elsewhere = Vec::new();
    let mut addresses = BTreeSet::new();
    for (index, wanted) in wanted {
        match (&wanted.what, kernel) {
            (What::Config(_) | What::Unknown(_), _) => {}
            (What::Address, _) => {
                addresses.insert(wanted.name.as_str());
                elsewhere.push((index, wanted));
            }
            (_, Some(kernel)) => match typed(object, wanted, kernel)? {
                Some(id) => externs.put(index, Found::Typed { id, module: None }),
                None => {
                    addresses.insert(wanted.kernel_name());
                    elsewhere.push((index, wanted));
                }
            },
            (_, None) if wanted.weak => externs.put(index, Found::Nothing),
            (_, None) => {
                return Err(missing(wanted, "this kernel has no /sys/kernel/btf/vmlinux (CONFIG_DEBUG_INFO_BTF)"));
            }
        }
    }
    let symbols = kallsyms::symbols(&addresses).map_err(KernelError::io("reading /proc/kallsyms"))?;
    for (index, wanted) in elsewhere {
        let symbol = match wanted.what {
            What::Address => symbols.get(wanted.name.as_str()),
            _ => symbols.get(wanted.kernel_name()),
        };
        let found = match (&wanted.what, symbol, kernel) {
            (What::Address, Some(symbol), _) if symbol.ambiguous => {
                return Err(missing(wanted, "the kernel has several symbols of this name"));
            }
            (What::Address, Some(symbol), _) => Some(Found::Address(symbol.address)),
            (What::Address, ..) => None,
            (_, Some(symbol), Some(kernel)) => externs.in_module(object, wanted, symbol.module.as_deref(), kernel)?,
            _ => None,
        };
        match found {
            Some(found) => externs.put(index, found),
            None if wanted.weak => externs.put(index, Found::Nothing),
            None => {
                let what = if matches!(wanted.what, What::Function(_)) { "function" } else { "variable" };
                let why = format!(
                    "neither this kernel nor a loaded module has such a {what}; declare it __weak if the program can do without"
                );
                return Err(missing(wanted, &why));
            }
        }
    }
    externs.fds = std::iter::once(0).chain(externs.modules.iter().map(|module| module.fd.as_raw_fd())).collect();
    Ok(externs)
}

fn missing(of: &Extern, why: &str) -> KernelError {
    KernelError::KernelUnsupported { what: format!("extern {}", of.name), why: why.to_owned() }
}

/// The BTF id of a function or variable; `None`: there is none of the name, or only one that is another to whoever may do
/// without.
fn typed(object: &Object, of: &Extern, types: &Btf) -> Result<Option<u32>, KernelError> {
    let (kind, local) = match of.what {
        What::Function(prototype) => (Kind::Func, prototype),
        What::Variable(type_id) => (Kind::Var, type_id),
        _ => return Ok(None),
    };
    let (Some(id), Some(own)) = (types.find(of.kernel_name(), kind), object.btf()) else { return Ok(None) };
    if compatible((own, local), (types, types.target(id))) {
        return Ok(Some(id));
    }
    if of.weak {
        return Ok(None);
    }
    Err(missing(of, "the kernel's has other types; compile the program against this kernel's vmlinux.h"))
}

impl Externs {
    fn put(&mut self, index: usize, found: Found) {
        self.found.insert(index, found);
    }

    fn in_module(
        &mut self,
        object: &Object,
        of: &Extern,
        module: Option<&str>,
        kernel: &Btf,
    ) -> Result<Option<Found>, KernelError> {
        let Some(name) = module else { return Ok(None) };
        let index = match self.modules.iter().position(|module| module.name == name) {
            Some(index) => index,
            None => {
                let Some(module) = modules::open(name, kernel)? else { return Ok(None) };
                self.modules.push(module);
                self.modules.len() - 1
            }
        };
        let id = typed(object, of, &self.modules[index].types)?;
        Ok(id.map(|id| Found::Typed { id, module: Some(index) }))
    }

    /// Descriptors that instructions refer to by their numbers; empty if there are none.
    pub fn fds(&self) -> &[RawFd] {
        if self.modules.is_empty() { &[] } else { &self.fds }
    }

    /// Writes what was found into the instructions that refer to it.
    pub fn write(&self, insns: &mut [Insn], references: &[ExternReference]) {
        for reference in references {
            let found = self.found.get(&reference.of).copied().unwrap_or(Found::Nothing);
            if insns[reference.slot].is_call() {
                insns[reference.slot] = call(found, reference.of);
            } else {
                self.load(&mut insns[reference.slot..reference.slot + 2], found);
            }
        }
    }

    fn load(&self, pair: &mut [Insn], found: Found) {
        let (source, low, high) = match found {
            Found::Typed { id, module } => {
                (pseudo::BTF_ID, id as i32, module.map_or(0, |index| self.modules[index].fd.as_raw_fd()))
            }
            Found::Address(address) => (0, address as i32, (address >> 32) as i32),
            Found::Nothing => (0, 0, 0),
        };
        pair[0].set_src(source);
        (pair[0].imm, pair[1].imm) = (low, high);
    }
}

fn call(found: Found, of: usize) -> Insn {
    match found {
        Found::Typed { id, module } => {
            let mut insn = Insn::call(id as i32);
            insn.set_src(pseudo::KFUNC_CALL);
            insn.off = module.map_or(0, |index| index as i16 + 1);
            insn
        }
        Found::Address(_) | Found::Nothing => Insn::call(MISSING_FUNCTION + of as i32),
    }
}
