//! Functions as C declares them.

use super::{Btf, Kind};

/// How deep types are followed.
const MAX_DEPTH: u32 = 32;

/// E.g. `int count(struct xdp_md *ctx)`; `None`: the id is no function's.
pub fn signature(btf: &Btf, function: u32) -> Option<String> {
    if btf.kind(function) != Kind::Func {
        return None;
    }
    let declared = |id: u32, name: &str| declaration(btf, id, name.to_owned(), 0);
    let proto = btf.target(function);
    let parameters: Vec<String> = btf
        .parameters(proto)
        // Nothing and of no type: more of any.
        .map(|(name, id)| if name.is_empty() && id == 0 { "...".to_owned() } else { declared(id, name) })
        .collect();
    let parameters = if parameters.is_empty() { "void".to_owned() } else { parameters.join(", ") };
    Some(declared(btf.target(proto), &format!("{}({parameters})", btf.name(function))))
}

/// What is declared stands between a type's parts: `char (*x)[4]`.
fn declaration(btf: &Btf, id: u32, inner: String, depth: u32) -> String {
    let spaced = |before: &str| if inner.is_empty() { before.to_owned() } else { format!("{before} {inner}") };
    let named = |keyword: &str| {
        let name = btf.name(id);
        spaced(&format!("{keyword}{}", if name.is_empty() { "{...}" } else { name }))
    };
    if depth == MAX_DEPTH {
        return spaced("...");
    }
    let target = || btf.target(id);
    match btf.kind(id) {
        Kind::Void => spaced("void"),
        Kind::Struct => named("struct "),
        Kind::Union => named("union "),
        Kind::Fwd => named("struct "),
        Kind::Enum | Kind::Enum64 => named("enum "),
        Kind::Const => qualified(btf, target(), "const", inner, depth),
        Kind::Volatile => qualified(btf, target(), "volatile", inner, depth),
        Kind::Restrict | Kind::TypeTag => declaration(btf, target(), inner, depth + 1),
        Kind::Ptr => {
            let pointed = skip_qualifiers(btf, target());
            let around = matches!(btf.kind(pointed), Kind::Array | Kind::FuncProto);
            let star = format!("*{inner}");
            declaration(btf, target(), if around { format!("({star})") } else { star }, depth + 1)
        }
        Kind::Array => declaration(btf, target(), format!("{inner}[{}]", btf.array_len(id)), depth + 1),
        Kind::FuncProto => {
            let parameters = btf.parameters(id).map(|(name, id)| declaration(btf, id, name.to_owned(), depth + 1));
            let parameters = parameters.collect::<Vec<_>>().join(", ");
            declaration(btf, target(), format!("{inner}({parameters})"), depth + 1)
        }
        _ => named(""),
    }
}

fn skip_qualifiers(btf: &Btf, mut id: u32) -> u32 {
    for _ in 0..MAX_DEPTH {
        match btf.kind(id) {
            Kind::Const | Kind::Volatile | Kind::Restrict | Kind::TypeTag => id = btf.target(id),
            _ => break,
        }
    }
    id
}

/// Of a pointer a qualifier is after the star, of anything else before the type.
fn qualified(btf: &Btf, target: u32, word: &str, inner: String, depth: u32) -> String {
    match btf.kind(skip_qualifiers(btf, target)) {
        Kind::Ptr if inner.is_empty() => declaration(btf, target, word.to_owned(), depth + 1),
        Kind::Ptr => declaration(btf, target, format!("{word} {inner}"), depth + 1),
        _ => format!("{word} {}", declaration(btf, target, inner, depth + 1)),
    }
}
