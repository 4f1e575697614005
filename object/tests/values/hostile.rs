//! BTF that somebody made to hurt: no panic, and no more memory than the value is worth.

use fastrand::Rng;
use serde_json::{Value, json};
use skep_object::btf::Btf;
use skep_object::btf::desc::{TypeDesc, TypeKind};
use skep_object::btf::encode::encode;

use crate::builder::Builder;
use crate::print;

/// Decodes, encodes what came out, and decodes records: whatever comes of it.
fn exercise(desc: &TypeDesc, bytes: &[u8]) {
    let shown = desc.decode(bytes);
    let _ = desc.decode_record(bytes);
    print::check(desc, bytes, "hostile");
    let _ = encode(desc, &shown);
    let _ = encode(desc, &mangled(shown));
}

/// Each leaf replaced by something of another type.
fn mangled(value: Value) -> Value {
    match value {
        Value::Object(members) => members.into_iter().map(|(name, value)| (name, mangled(value))).collect(),
        Value::Array(items) => items.into_iter().map(mangled).collect(),
        Value::Number(_) => json!("10.0.0.1"),
        Value::String(_) => json!(-1),
        _ => json!("0x00"),
    }
}

fn described(builder: &Builder, id: u32) -> TypeDesc {
    TypeDesc::of(&Btf::parse(&builder.build()).unwrap(), id)
}

#[test]
fn random_types_and_bytes_do_no_harm() {
    let (mut parsed, kinds) = (0, [1u32, 2, 3, 4, 5, 6, 8, 10, 14, 15, 16, 17, 18, 19]);
    for seed in 0..2_000 {
        let mut rng = Rng::with_seed(seed);
        let mut builder = Builder::default();
        let names = ["", "a", "in_addr", "in6_addr", "__be16", "__be32", "ipv4", "mac", "time_ns", "char"];
        let count = rng.u32(1..12);
        for _ in 0..count {
            let kind = kinds[rng.usize(..kinds.len())];
            let parts = rng.u32(0..4);
            let odd = |rng: &mut Rng| match rng.u32(0..8) {
                0 => rng.u32(..),
                1 => rng.u32(..) >> rng.u32(..32),
                _ => rng.u32(0..20),
            };
            let mut words = Vec::new();
            match kind {
                1 => words.push(rng.u32(0..8) << 24 | rng.u32(0..40) << 16 | rng.u32(0..130)),
                3 => words.extend([rng.u32(0..=count), rng.u32(0..=count), odd(&mut rng)]),
                4 | 5 => (0..parts).for_each(|_| {
                    let name = builder.string(names[rng.usize(..names.len())]);
                    words.extend([name, rng.u32(0..=count), odd(&mut rng)]);
                }),
                6 => (0..parts).for_each(|_| words.extend([0, odd(&mut rng)])),
                14 => words.push(0),
                15 => (0..parts).for_each(|_| words.extend([rng.u32(0..=count), odd(&mut rng), odd(&mut rng)])),
                17 => words.push(if rng.bool() { u32::MAX } else { rng.u32(0..4) }),
                19 => (0..parts).for_each(|_| words.extend([0, odd(&mut rng), odd(&mut rng)])),
                _ => {}
            }
            let vlen = if matches!(kind, 4 | 5 | 6 | 15 | 19) { parts } else { 0 };
            let size_or_type = match kind {
                1 | 6 | 16 | 19 => 1 << rng.u32(0..5),
                2 | 8 | 10 | 14 | 17 | 18 => rng.u32(0..=count),
                _ => odd(&mut rng),
            };
            let flag = u32::from(rng.bool()) << 31;
            builder.raw(names[rng.usize(..names.len())], flag | kind << 24 | vlen, size_or_type, &words);
        }
        let Ok(btf) = Btf::parse(&builder.build()) else { continue };
        parsed += 1;
        let bytes: Vec<u8> = (0..rng.usize(0..64)).map(|_| rng.u8(..)).collect();
        for id in 0..btf.len() + 1 {
            exercise(&TypeDesc::of(&btf, id), &bytes);
        }
    }
    assert!(parsed > 300, "only {parsed} of the random types were BTF at all");
}

#[test]
fn a_type_within_itself_ends() {
    let mut btf = Builder::default();
    let own = btf.record(4, "own", 8, &[("a", 1, 0), ("b", 1, 32)]);
    exercise(&described(&btf, own), &[0; 8]);
    let mut btf = Builder::default();
    let looped = btf.raw("looped", 8 << 24, 1, &[]);
    assert_eq!(described(&btf, looped).kind, TypeKind::Bytes);
}

#[test]
fn members_by_the_million_are_shown_as_bytes() {
    let mut btf = Builder::default();
    let byte = btf.int("u8", 1, 0);
    let many: Vec<(&str, u32, u32)> = (0..60_000).map(|_| ("member", byte, 0)).collect();
    let wide = btf.record(4, "wide", 1, &many);
    let outer: Vec<(&str, u32, u32)> = (0..4_000).map(|_| ("w", wide, 0)).collect();
    let outer = btf.record(4, "outer", 1, &outer);
    let desc = described(&btf, outer);
    assert!(format!("{desc:?}").len() < 16 << 20);
    exercise(&desc, &[1]);
    // A long name counts each time that it is used.
    let mut btf = Builder::default();
    let byte = btf.int("u8", 1, 0);
    let name = "n".repeat(1_000);
    let fields: Vec<(&str, u32, u32)> = (0..2_000).map(|_| (name.as_str(), byte, 0)).collect();
    let long = btf.record(4, "long", 1, &fields);
    assert_eq!(described(&btf, long).kind, TypeKind::Bytes);
}

#[test]
fn a_value_is_not_shown_many_thousand_times() {
    let mut btf = Builder::default();
    let byte = btf.int("u8", 1, 0);
    let all = btf.array(byte, 1 << 20);
    let members: Vec<String> = (0..2_000).map(|i| format!("m{i}")).collect();
    let members: Vec<(&str, u32, u32)> = members.iter().map(|name| (name.as_str(), all, 0)).collect();
    let union = btf.record(5, "all", 1 << 20, &members);
    let desc = described(&btf, union);
    assert_eq!((&desc.kind, desc.size), (&TypeKind::Bytes, 1 << 20));
    // Nor is a union of some variants of a small record taken for one.
    let record = btf.array(byte, 64);
    let members: Vec<String> = (0..40).map(|i| format!("m{i}")).collect();
    let members: Vec<(&str, u32, u32)> = members.iter().map(|name| (name.as_str(), record, 0)).collect();
    let union = btf.record(5, "some", 64, &members);
    assert!(described(&btf, union).members().is_some());
}

#[test]
fn places_outside_of_the_value_are_null_and_cannot_be_written() {
    let mut btf = Builder::default();
    let word = btf.int("u32", 4, 0);
    let flagged = 1 << 31;
    let members = [("far", word, 0xff_ffff), ("wide", word, 200 << 24), ("over", word, 7 << 24 | 30)];
    let record = btf.record(4, "record", 4, &members);
    // The kind flag makes of offsets also sizes of bit fields.
    let (name, fields) = (btf.string("x"), [0xff_ff00u32, 200 << 24, 7 << 24 | 30]);
    let words: Vec<u32> = fields.iter().flat_map(|offset| [name, word, *offset]).collect();
    let bits = btf.raw("bits", flagged | 4 << 24 | 3, 4, &words);
    let beyond = described(&btf, record);
    assert_eq!(beyond.decode(&[0; 4]), json!({"far": null, "wide": null, "over": null}));
    assert!(encode(&beyond, &json!({"far": 1, "wide": 1, "over": 1})).is_err());
    let bits = described(&btf, bits);
    assert_eq!(bits.decode(&[0; 4]), json!({"x": null}));
    assert!(encode(&bits, &json!({"x": 1})).is_err());
}

#[test]
fn sizes_without_bounds_are_refused_before_they_are_allocated() {
    let mut btf = Builder::default();
    let byte = btf.int("u8", 1, 0);
    let huge = btf.array(byte, u32::MAX);
    let empty = btf.record(4, "empty", 0, &[]);
    let nothings = btf.array(empty, u32::MAX);
    let desc = described(&btf, huge);
    assert!(encode(&desc, &json!([])).unwrap_err().to_string().contains("more than can be written"));
    assert_eq!(desc.decode(&[0; 16]), Value::Null);
    let desc = described(&btf, nothings);
    assert_eq!(desc.decode(&[0; 16]), json!([]));
    assert_eq!(encode(&desc, &json!([])), Ok(vec![]));
}
