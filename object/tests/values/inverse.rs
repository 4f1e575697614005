//! `encode(decode(x)) == x`, for random types without padding and random bytes. A failure names its seed.

use fastrand::Rng;
use serde_json::Value;
use skep_object::btf::desc::{FieldDesc, TypeDesc, TypeKind, TypeName};
use skep_object::btf::encode::encode;
use skep_object::btf::format::Format;

const CASES: u64 = 4_000;

fn desc(kind: TypeKind, size: u32) -> TypeDesc {
    TypeDesc { kind, name: "t".into(), size }
}

fn list(element: TypeDesc, count: u32) -> TypeDesc {
    let size = element.size * count;
    desc(TypeKind::Array { element: Box::new(element), count }, size)
}

fn field(name: String, desc: TypeDesc, bit_offset: u32, bit_size: u32) -> FieldDesc {
    FieldDesc { name, desc, bit_offset, bit_size }
}

/// Any scalar.
fn scalar(rng: &mut Rng) -> TypeDesc {
    let size = 1 << rng.u32(0..5);
    let float = *rng.choice([2, 4, 8, 16].iter()).unwrap();
    let small = size.min(8);
    match rng.u32(0..9) {
        0 => desc(TypeKind::Uint, size),
        1 => desc(TypeKind::Int, size),
        2 => desc(TypeKind::Bool, size.min(4)),
        3 => desc(TypeKind::Char, 1),
        4 => desc(TypeKind::Float, float),
        5 => desc(TypeKind::Pointer, 8),
        6 => desc(TypeKind::Bytes, rng.u32(0..20)),
        _ => {
            let signed = rng.bool();
            let low = |rng: &mut Rng| if signed { rng.i64(-3..3) } else { rng.i64(0..250) };
            let values = (0..rng.u32(0..9)).map(|i| (format!("V{i}"), low(rng))).collect();
            desc(TypeKind::Enum { signed, values }, small)
        }
    }
}

/// A type that a name or a tag says more about.
fn formatted(rng: &mut Rng) -> TypeDesc {
    let integer = if rng.bool() { TypeKind::Uint } else { TypeKind::Int };
    let bytes = |count| list(desc(TypeKind::Uint, 1), count).kind;
    let (format, kind, size) = match rng.u32(0..11) {
        0 => (Format::NetworkOrder, integer, 1 << rng.u32(1..4)),
        1 => (Format::Ipv4, integer, 4),
        2 => (Format::Ipv4, bytes(4), 4),
        3 => (Format::Ipv6, bytes(16), 16),
        4 => (Format::Ipv6, list(desc(TypeKind::Uint, 4), 4).kind, 16),
        5 => (Format::Mac, bytes(6), 6),
        6 => (Format::TimeNs, integer, 8),
        7 => (Format::Interface, integer, 4),
        8 => (Format::Task, integer, 4),
        9 => (Format::Cgroup, integer, 8),
        _ => (Format::DurationNs, integer, 8),
    };
    TypeDesc { kind, name: TypeName::from("f").shown_as(format), size }
}

/// Bit fields that fill whole bytes, in and across them.
fn bits(rng: &mut Rng) -> TypeDesc {
    let bytes = rng.u32(1..12);
    let (mut fields, mut at) = (Vec::new(), 0);
    while at < bytes * 8 {
        let len = rng.u32(1..=(bytes * 8 - at).min(64));
        let kind = match rng.u32(0..4) {
            0 => TypeKind::Int,
            1 if len == 1 => TypeKind::Bool,
            2 => TypeKind::Enum { signed: rng.bool(), values: vec![("ZERO".into(), 0), ("ONE".into(), 1)] },
            _ => TypeKind::Uint,
        };
        fields.push(field(format!("b{at}"), desc(kind, 8), at, len));
        at += len;
    }
    desc(TypeKind::Struct(fields), bytes)
}

/// `texts`: with texts, which do not write again what follows their end.
pub fn any(rng: &mut Rng, depth: u32, texts: bool) -> TypeDesc {
    match rng.u32(0..if depth == 0 { 3 } else { 7 }) {
        0 => scalar(rng),
        1 => formatted(rng),
        2 => bits(rng),
        3 if texts => list(desc(TypeKind::Char, 1), rng.u32(1..12)),
        3 | 4 => {
            let element = any(rng, depth - 1, texts);
            // Of `char` it would be a text.
            let element = if element.kind == TypeKind::Char { desc(TypeKind::Uint, 1) } else { element };
            list(element, rng.u32(1..4))
        }
        5 => {
            let (mut fields, mut at) = (Vec::new(), 0);
            for _ in 0..rng.u32(0..5) {
                let inner = any(rng, depth - 1, texts);
                let size = inner.size;
                fields.push(field(name(rng, &inner), inner, at * 8, 0));
                at += size;
            }
            desc(TypeKind::Struct(fields), at)
        }
        _ => {
            let members: Vec<TypeDesc> = (0..rng.u32(1..4)).map(|_| any(rng, depth - 1, false)).collect();
            let size = members.iter().map(|member| member.size).max().unwrap();
            let mut fields: Vec<FieldDesc> =
                members.into_iter().map(|member| field(name(rng, &member), member, 0, 0)).collect();
            // One is as large as the whole: else there were padding.
            fields.push(field(name(rng, &TypeDesc::bytes(size)), TypeDesc::bytes(size), 0, 0));
            desc(TypeKind::Union(fields), size)
        }
    }
}

/// Anonymous now and then, where that can be.
fn name(rng: &mut Rng, desc: &TypeDesc) -> String {
    let anonymous = matches!(desc.kind, TypeKind::Struct(_) | TypeKind::Union(_)) && rng.u32(0..3) == 0;
    if anonymous { String::new() } else { format!("m{}", rng.u64(..)) }
}

/// Anonymous members get into their outer ones: their names have to differ.
fn distinct(desc: &mut TypeDesc, next: &mut u32) {
    match &mut desc.kind {
        TypeKind::Struct(fields) | TypeKind::Union(fields) => {
            for field in fields {
                if !field.name.is_empty() {
                    *next += 1;
                    field.name = format!("m{next}");
                }
                distinct(&mut field.desc, next);
            }
        }
        TypeKind::Array { element, .. } => distinct(element, next),
        _ => {}
    }
}

/// Clears what follows the end of texts.
fn tidy(desc: &TypeDesc, bytes: &mut [u8]) {
    match &desc.kind {
        TypeKind::Struct(fields) => {
            for field in fields.iter().filter(|field| field.bit_size == 0) {
                let at = field.bit_offset as usize / 8;
                tidy(&field.desc, &mut bytes[at..at + field.desc.size as usize]);
            }
        }
        TypeKind::Array { element, .. } if element.kind == TypeKind::Char => {
            let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
            bytes[end..].fill(0);
        }
        TypeKind::Array { element, .. } if element.size > 0 => {
            bytes.chunks_mut(element.size as usize).for_each(|chunk| tidy(element, chunk));
        }
        _ => {}
    }
}

/// Bytes of all kinds: random, few, extreme, and ASCII so that texts have backslashes and digits.
pub fn bytes(rng: &mut Rng, len: usize) -> Vec<u8> {
    let alphabet: &[u8] = match rng.u32(0..4) {
        0 => b"\\x41f0\xff\xc3\xa9\0",
        1 => &[0, 1],
        2 => &[0xff, 0x7f, 0x80, 0xf0],
        _ => return (0..len).map(|_| rng.u8(..)).collect(),
    };
    (0..len).map(|_| alphabet[rng.usize(..alphabet.len())]).collect()
}

#[test]
fn what_is_decoded_is_encoded_as_it_was() {
    for seed in 0..CASES {
        let mut rng = Rng::with_seed(seed);
        let mut desc = any(&mut rng, 3, true);
        distinct(&mut desc, &mut 0);
        let mut bytes = bytes(&mut rng, desc.size as usize);
        tidy(&desc, &mut bytes);
        let shown = desc.decode(&bytes);
        // Through text as well: a script's JSON is what comes back.
        let again: Value = serde_json::from_str(&shown.to_string()).unwrap();
        for value in [&shown, &again] {
            let written = encode(&desc, value).unwrap_or_else(|e| panic!("seed {seed}: {e}\n{desc:#?}\n{value}"));
            assert_eq!(written, bytes, "seed {seed}: {desc:#?}\n{value}");
        }
    }
}

#[test]
fn a_record_with_a_flexible_array_is_encoded_as_it_was() {
    for seed in 0..200 {
        let mut rng = Rng::with_seed(seed);
        let mut element = any(&mut rng, 2, true);
        distinct(&mut element, &mut 0);
        if element.size == 0 {
            continue;
        }
        let elements = rng.usize(0..5) * element.size as usize;
        let fields = vec![
            field("n".into(), desc(TypeKind::Uint, 4), 0, 0),
            field("rest".into(), list(element.clone(), 0), 32, 0),
        ];
        let record = desc(TypeKind::Struct(fields), 4);
        let mut bytes = bytes(&mut rng, 4 + elements);
        match element.kind {
            TypeKind::Char => bytes[4..].iter_mut().for_each(|b| *b |= 1),
            _ => bytes[4..].chunks_mut(element.size as usize).for_each(|chunk| tidy(&element, chunk)),
        }
        let shown = record.decode_record(&bytes);
        assert_eq!(encode(&record, &shown).unwrap(), bytes, "seed {seed}: {record:#?}\n{shown}");
        // Of a map's value there is no more than the type's own size: what follows is padding.
        assert!(
            matches!(&record.decode(&bytes)["rest"], Value::Array(a) if a.is_empty())
                || record.decode(&bytes)["rest"] == ""
        );
    }
}
