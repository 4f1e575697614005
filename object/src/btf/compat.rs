//! Whether a type of an object may stand for one of a kernel: libbpf's `bpf_core_types_are_compat`, by which it tells that
//! a kernel function or variable is the one that was meant.

use super::{Btf, Kind};

/// Deepest nesting looked at, as in libbpf.
const MAX_DEPTH: u32 = 32;

/// The same kind of type all the way down; names, and members of structs, do not matter.
pub fn compatible(local: (&Btf, u32), target: (&Btf, u32)) -> bool {
    compatible_at(local, target, MAX_DEPTH)
}

fn compatible_at(local: (&Btf, u32), target: (&Btf, u32), depth: u32) -> bool {
    let (mine, theirs) = (local.0.resolve(local.1), target.0.resolve(target.1));
    let (kind, other) = (local.0.kind(mine), target.0.kind(theirs));
    let is_enum = |kind: Kind| matches!(kind, Kind::Enum | Kind::Enum64);
    if kind != other && !(is_enum(kind) && is_enum(other)) {
        return false;
    }
    let below = |mine: u32, theirs: u32| depth > 0 && compatible_at((local.0, mine), (target.0, theirs), depth - 1);
    match kind {
        Kind::Int => local.0.int_offset(mine) == 0 && target.0.int_offset(theirs) == 0,
        Kind::Ptr | Kind::Array => below(local.0.target(mine), target.0.target(theirs)),
        Kind::FuncProto => {
            let (own, its) = (local.0.parameters(mine), target.0.parameters(theirs));
            own.len() == its.len()
                && own.zip(its).all(|((_, mine), (_, theirs))| below(mine, theirs))
                && below(local.0.target(mine), target.0.target(theirs))
        }
        Kind::Void | Kind::Struct | Kind::Union | Kind::Enum | Kind::Enum64 | Kind::Fwd => true,
        _ => false,
    }
}
