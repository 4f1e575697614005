//! How often the relocation library would call itself on a kernel's types.
//!
//! It goes into members without a name when it looks for one, and into parameters when it compares prototypes, and trusts
//! that both end. A stack that overflows cannot be caught.

use super::{Btf, Kind};
use crate::error::ObjectError;

/// How deep, and how often in all; kernels have less than a tenth.
const MAX_DEPTH: u32 = 64;
const MAX_CALLS: u32 = 1 << 16;

/// What one call with a type comes to, once it is known.
#[derive(Clone, Copy)]
struct Cost {
    depth: u32,
    calls: u32,
}

/// Refuses types that contain themselves, or others too deep or too often.
pub(crate) fn check(btf: &Btf) -> Result<(), ObjectError> {
    let mut known = vec![None; btf.len() as usize];
    for id in 1..btf.len() {
        cost(btf, id, 0, &mut known)?;
    }
    Ok(())
}

fn cost(btf: &Btf, id: u32, depth: u32, known: &mut [Option<Cost>]) -> Result<Cost, ObjectError> {
    if let Some(cost) = known.get(id as usize).copied().flatten() {
        return Ok(cost);
    }
    let too_much = || ObjectError::BadBtf { reason: format!("type [{id}] contains itself, or is nested too deep") };
    if depth > MAX_DEPTH {
        return Err(too_much());
    }
    let mut sum = Cost { depth: 0, calls: 1 };
    let mut add = |inner: u32| -> Result<(), ObjectError> {
        let inner = cost(btf, inner, depth + 1, known)?;
        sum.depth = sum.depth.max(inner.depth + 1);
        sum.calls = sum.calls.saturating_add(inner.calls);
        if sum.depth > MAX_DEPTH || sum.calls > MAX_CALLS { Err(too_much()) } else { Ok(()) }
    };
    match btf.kind(id) {
        Kind::Struct | Kind::Union => {
            for member in btf.members(id).filter(|member| member.name.is_empty()) {
                let inner = btf.resolve(member.type_id);
                if matches!(btf.kind(inner), Kind::Struct | Kind::Union) {
                    add(inner)?;
                }
            }
        }
        Kind::FuncProto => {
            for of in btf.parameters(id).map(|(_, of)| of).chain([btf.target(id)]) {
                if let Some(inner) = prototype(btf, of) {
                    add(inner)?;
                }
            }
        }
        _ => {}
    }
    known[id as usize] = Some(sum);
    Ok(sum)
}

/// The prototype behind pointers and arrays.
fn prototype(btf: &Btf, mut id: u32) -> Option<u32> {
    for _ in 0..MAX_DEPTH {
        id = btf.resolve(id);
        match btf.kind(id) {
            Kind::Ptr | Kind::Array => id = btf.target(id),
            Kind::FuncProto => return Some(id),
            _ => return None,
        }
    }
    None
}
