//! What the bytes of maps mean: as the kernel describes them, as an object says, or as the type of map has it.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use skep_object::btf::Btf;
use skep_object::btf::desc::{FieldDesc, TypeDesc, TypeKind, TypeName};
use skep_object::btf::format::Format;

use crate::observe::btf_of;
use crate::sys;
use crate::sys::map::{MapInfo, types};

use super::arena;
use super::owners::Owners;

/// Key and value.
pub(super) type Described = (Arc<TypeDesc>, Arc<TypeDesc>);

/// What the bytes of maps mean, by id: reading types takes ten times as long as looking an entry up.
#[derive(Debug, Default)]
pub struct Types(Mutex<HashMap<u32, Described>>);

/// Maps that are remembered.
const REMEMBERED: usize = 4096;

impl Types {
    /// The kernel gives no id twice while it runs.
    pub(super) fn of(&self, info: &MapInfo) -> io::Result<Described> {
        if let Some(known) = self.lock().get(&info.id) {
            return Ok(known.clone());
        }
        let described = described(info, Said::default())?;
        self.remember(info.id, described.clone());
        Ok(described)
    }

    /// Whether it was looked at before.
    pub fn knows(&self, id: u32) -> bool {
        self.lock().contains_key(&id)
    }

    /// Describes a map by what its object says, where the kernel keeps no types.
    pub fn learn(&self, info: &MapInfo, said: Said) -> io::Result<()> {
        self.remember(info.id, described(info, said)?);
        Ok(())
    }

    fn remember(&self, id: u32, described: Described) {
        let mut known = self.lock();
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(id, described);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u32, Described>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an object says of a map's keys and values: of some types of maps the kernel takes no description.
#[derive(Debug, Default)]
pub struct Said {
    pub key: Option<TypeDesc>,
    pub value: Option<TypeDesc>,
}

pub(super) fn described(info: &MapInfo, said: Said) -> io::Result<Described> {
    let btf = btf_of(info)?;
    let describe = |id: u32, size: u32, said: Option<TypeDesc>| match (&btf, said) {
        (Some(btf), _) if id != 0 => TypeDesc::of(btf, id),
        (_, Some(said)) if said.size == size => said,
        _ => TypeDesc::bytes(size),
    };
    let key = match Owners::of(info.map_type) {
        Some(owners) => owners.key(),
        None if info.map_type == types::ARENA => arena::key(),
        None if info.key_type == 0 && is_indexed(info) => uint("u32", 4),
        None => describe(info.key_type, info.key_size, said.key),
    };
    let value = match kernels_own(info) {
        _ if info.map_type == types::ARENA => arena::value(),
        Some(value) if info.value_type == 0 => value,
        _ if info.kernel_value_type != 0 => kernels_type(info)?,
        _ => describe(info.value_type, info.value_size, said.value),
    };
    Ok((Arc::new(key), Arc::new(value)))
}

fn uint(name: &str, size: u32) -> TypeDesc {
    TypeDesc { kind: TypeKind::Uint, name: name.into(), size }
}

fn shown(name: &str, size: u32, format: Format) -> TypeDesc {
    TypeDesc { name: TypeName::from(name).shown_as(format), ..uint(name, size) }
}

/// Its keys are places, although nothing says so: data sections have no key type, and of these types the kernel takes none.
fn is_indexed(info: &MapInfo) -> bool {
    use types::*;
    let places =
        [ARRAY, PERCPU_ARRAY, PROG_ARRAY, ARRAY_OF_MAPS, DEVMAP, CPUMAP, SOCKMAP, REUSEPORT_SOCKARRAY, STRUCT_OPS];
    info.key_size == 4 && places.contains(&info.map_type)
}

/// A value that is registered with the kernel. That of a module is not described without its base.
fn kernels_type(info: &MapInfo) -> io::Result<TypeDesc> {
    let types = match info.kernel_btf_id {
        // Before Linux 6.9 it is not said, and modules could register nothing.
        0 => std::fs::read("/sys/kernel/btf/vmlinux")?,
        id => sys::btf_by_id(id)?,
    };
    let described = Btf::parse(&types).ok().map(|btf| TypeDesc::of(&btf, info.kernel_value_type));
    sys::trim_heap();
    Ok(described.unwrap_or_else(|| TypeDesc::bytes(info.value_size)))
}

/// What the kernel shows as a value of a type whose values are its own.
fn kernels_own(info: &MapInfo) -> Option<TypeDesc> {
    use types::*;
    let pair = |first: &str, format| {
        let field = |name: &str, desc, at| FieldDesc { name: name.into(), desc, bit_offset: at, bit_size: 0 };
        // The program is shown by its id: struct bpf_devmap_val and struct bpf_cpumap_val.
        let fields = vec![field(first, shown("u32", 4, format), 0), field("bpf_prog", uint("u32", 4), 32)];
        TypeDesc { kind: TypeKind::Struct(fields), name: "".into(), size: 8 }
    };
    match (info.map_type, info.value_size) {
        (PROG_ARRAY, 4) => Some(uint("program id", 4)),
        (ARRAY_OF_MAPS | HASH_OF_MAPS, 4) => Some(uint("map id", 4)),
        (DEVMAP | DEVMAP_HASH, 4) => Some(shown("ifindex", 4, Format::Interface)),
        (DEVMAP | DEVMAP_HASH, 8) => Some(pair("ifindex", Format::Interface)),
        (CPUMAP, 4) => Some(uint("qsize", 4)),
        (CPUMAP, 8) => Some(pair("qsize", Format::Plain)),
        (SOCKMAP | SOCKHASH | REUSEPORT_SOCKARRAY, 8) => Some(uint("socket cookie", 8)),
        (STACK_TRACE, size) if size % 8 == 0 => {
            let element = TypeDesc { kind: TypeKind::Pointer, name: "".into(), size: 8 };
            let kind = TypeKind::Array { element: Box::new(element), count: size / 8 };
            Some(TypeDesc { kind, name: "".into(), size })
        }
        _ => None,
    }
}
