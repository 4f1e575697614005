//! How values may be written, and what is said of those that are wrong.

use serde_json::{Value, json};
use skep_object::btf::Btf;
use skep_object::btf::desc::{FieldDesc, TypeDesc, TypeKind, TypeName};
use skep_object::btf::encode::{encode, encode_partial};
use skep_object::btf::format::Format;

use crate::builder::Builder;

fn desc(kind: TypeKind, name: &str, size: u32) -> TypeDesc {
    TypeDesc { kind, name: name.into(), size }
}

fn uint(size: u32) -> TypeDesc {
    desc(TypeKind::Uint, "", size)
}

fn list(element: TypeDesc, count: u32) -> TypeDesc {
    let size = element.size * count;
    desc(TypeKind::Array { element: Box::new(element), count }, "", size)
}

fn shown(desc: TypeDesc, name: &str, format: Format) -> TypeDesc {
    TypeDesc { name: TypeName::from(name).shown_as(format), ..desc }
}

fn field(name: &str, desc: TypeDesc, byte: u32) -> FieldDesc {
    FieldDesc { name: name.into(), desc, bit_offset: byte * 8, bit_size: 0 }
}

fn error(desc: &TypeDesc, value: Value) -> String {
    encode(desc, &value).unwrap_err().to_string()
}

#[test]
fn integers_are_checked_against_their_range() {
    assert_eq!(encode(&uint(1), &json!(255)), Ok(vec![255]));
    assert_eq!(error(&uint(1), json!(256)), "256 is outside 0..=255 (1 byte)");
    assert_eq!(error(&desc(TypeKind::Uint, "__u32", 4), json!(-1)), "-1 is outside 0..=4294967295 (__u32, 4 bytes)");
    assert_eq!(encode(&uint(8), &json!("0xffffffffffffffff")), Ok(vec![255; 8]));
    assert_eq!(encode(&uint(8), &json!("18446744073709551615")), Ok(vec![255; 8]));
    assert_eq!(encode(&uint(8), &json!(u64::MAX)), Ok(vec![255; 8]));
    assert_eq!(encode(&uint(16), &json!("0x10000000000000000")).unwrap()[8], 1);
    let int = desc(TypeKind::Int, "__s16", 2);
    assert_eq!(encode(&int, &json!(-2)), Ok(vec![0xfe, 0xff]));
    assert_eq!(encode(&int, &json!("-0x8000")), Ok(vec![0, 0x80]));
    assert_eq!(error(&int, json!(32768)), "32768 is outside -32768..=32767 (__s16, 2 bytes)");
    assert_eq!(error(&uint(4), json!(1.5)), "1.5 is not an integer");
    assert_eq!(error(&uint(4), json!("0x+1")), "\"0x+1\" is not an integer");
    let rounded = error(&uint(8), json!(1.8446744073709552e19));
    assert!(rounded.ends_with("does not survive JSON; write it as a string, in decimal or 0x hex"), "{rounded}");
}

#[test]
fn addresses_and_hex_fill_byte_arrays() {
    let mac = Ok(vec![0, 0x11, 0x22, 0x33, 0x44, 0x55]);
    for spelling in ["00:11:22:33:44:55", "00-11-22-33-44-55", "0x001122334455"] {
        assert_eq!(encode(&list(uint(1), 6), &json!(spelling)), mac);
    }
    assert_eq!(encode(&list(uint(1), 4), &json!("10.0.0.1")), Ok(vec![10, 0, 0, 1]));
    assert_eq!(encode(&list(uint(1), 16), &json!("::1")).unwrap()[15], 1);
    assert_eq!(encode(&list(uint(1), 3), &json!("0x010203")), Ok(vec![1, 2, 3]));
    assert_eq!(encode(&TypeDesc::bytes(2), &json!("0xA0ff")), Ok(vec![0xa0, 0xff]));
    assert!(error(&list(uint(1), 6), json!("0:1:2:3:4:5")).contains("a MAC address such as"));
    assert!(error(&TypeDesc::bytes(2), json!("0xa0")).ends_with("is not 0x and 4 hex digits: 2 bytes in memory order"));
}

#[test]
fn addresses_are_in_network_order_however_they_are_written() {
    let v4 = shown(uint(4), "__u32", Format::Ipv4);
    for spelling in [json!("10.0.0.1"), json!("0x0a000001"), json!(0x0a00_0001)] {
        assert_eq!(encode(&v4, &spelling), Ok(vec![10, 0, 0, 1]), "{spelling}");
    }
    let word = shown(uint(4), "__be32", Format::NetworkOrder);
    for spelling in [json!("10.0.0.1"), json!("0xa000001"), json!(0x0a00_0001)] {
        assert_eq!(encode(&word, &spelling), Ok(vec![10, 0, 0, 1]), "{spelling}");
    }
    let member = field("s_addr", word.clone(), 0);
    let in_addr = shown(desc(TypeKind::Struct(vec![member]), "", 4), "in_addr", Format::Ipv4);
    for spelling in [json!("10.0.0.1"), json!({"s_addr": "10.0.0.1"}), json!({"s_addr": 0x0a00_0001})] {
        assert_eq!(encode(&in_addr, &spelling), Ok(vec![10, 0, 0, 1]), "{spelling}");
    }
    let v6 = shown(list(uint(1), 16), "in6_addr", Format::Ipv6);
    assert_eq!(encode(&v6, &json!("fe80::1")).unwrap()[..2], [0xfe, 0x80]);
    assert_eq!(error(&v4, json!("10.0.0")), "\"10.0.0\" is not an IPv4 address such as 10.0.0.1");
    assert_eq!(error(&v6, json!("10.0.0.1")), "\"10.0.0.1\" is not an IPv6 address such as 2001:db8::1");
    // Of a plain integer nobody knows the byte order.
    assert_eq!(error(&uint(4), json!("10.0.0.1")), "\"10.0.0.1\" is not an integer");
}

#[test]
fn times_are_texts_or_nanoseconds() {
    let time = shown(uint(8), "__u64", Format::TimeNs);
    let expected = Ok(1_500_000_000u64.to_le_bytes().to_vec());
    let spellings = [
        json!("1970-01-01T00:00:01.5Z"),
        json!("1970-01-01T01:00:01.5+01:00"),
        json!(1_500_000_000),
        json!("1500000000"),
    ];
    for spelling in spellings {
        assert_eq!(encode(&time, &spelling), expected, "{spelling}");
    }
    assert!(error(&time, json!("yesterday")).contains("is not a time such as"));
    assert!(error(&time, json!("1969-12-31T23:59:59Z")).contains("is outside 0..=18446744073709551615"));
    let duration = shown(uint(8), "__u64", Format::DurationNs);
    for spelling in [json!("1.5s"), json!("1500ms"), json!(1_500_000_000)] {
        assert_eq!(encode(&duration, &spelling), expected, "{spelling}");
    }
    assert!(error(&duration, json!("1.5")).contains("is not a duration such as 1.5ms"));
    assert!(error(&duration, json!("-1s")).contains("is outside 0..="));
}

#[test]
fn the_place_of_what_is_wrong_is_named() {
    let port = shown(uint(2), "__be16", Format::NetworkOrder);
    let inner =
        desc(TypeKind::Struct(vec![field("port", port.clone(), 0), field("ports", list(port, 2), 2)]), "ends", 6);
    let hidden = desc(TypeKind::Union(vec![field("a", uint(2), 0), field("b", uint(1), 0)]), "", 2);
    let key = desc(TypeKind::Struct(vec![field("to", list(inner, 1), 0), field("", hidden, 6)]), "key", 8);
    let value = |port: u32, rest: Value| json!({"to": [{"port": port, "ports": rest}], "a": 1});
    assert_eq!(encode(&key, &value(443, json!([1, 2]))), Ok(vec![1, 0xbb, 0, 1, 0, 2, 1, 0]));
    let wrong = encode(&key, &value(70000, json!([1, 2]))).unwrap_err().under("key").under("flows");
    assert_eq!(wrong.to_string(), "flows.key.to[0].port: 70000 is outside 0..=65535 (__be16, 2 bytes)");
    assert_eq!(error(&key, value(1, json!([1, -1]))), "to[0].ports[1]: -1 is outside 0..=65535 (__be16, 2 bytes)");
    let few = "to[0].ports: the list has 1 elements, the array 2; write all of them";
    assert_eq!(error(&key, value(1, json!([1]))), few);
    assert_eq!(error(&key, value(1, json!([1, 2, 3]))), "to[0].ports: the list has 3 elements, the array 2");
    let missing = json!({"to": [{"port": 1}], "a": 1});
    assert_eq!(error(&key, missing), "to[0].ports: it is missing");
    let unknown = json!({"to": [{"prot": 1}], "a": 1});
    assert_eq!(error(&key, unknown), "to[0].prot: struct ends has no such member; it has port, ports");
    let neither = json!({"to": [{"port": 1, "ports": [1, 2]}]});
    assert_eq!(error(&key, neither), "one of a, b is missing");
    assert_eq!(error(&key, json!(7)), "7 is not an object of the members of struct key");
}

#[test]
fn what_a_global_does_not_name_is_zero() {
    let point = desc(TypeKind::Struct(vec![field("x", uint(1), 0), field("y", list(uint(2), 3), 2)]), "point", 8);
    assert_eq!(encode_partial(&point, &json!({"y": [80, 443]})), Ok(vec![0, 0, 80, 0, 0xbb, 1, 0, 0]));
    assert_eq!(encode_partial(&point, &json!({})), Ok(vec![0; 8]));
    assert!(encode_partial(&point, &json!({"z": 1})).is_err());
}

#[test]
fn a_text_fits_or_is_refused() {
    let text = |count| list(desc(TypeKind::Char, "char", 1), count);
    assert_eq!(encode(&text(4), &json!("abc")), Ok(b"abc\0".to_vec()));
    // As in C, an array that is full has no NUL.
    assert_eq!(encode(&text(3), &json!("abc")), Ok(b"abc".to_vec()));
    assert_eq!(error(&text(2), json!("abc")), "the text has 3 bytes; there is room for 2");
    assert_eq!(encode(&text(4), &json!("\\xff\\n")), Ok(b"\xff\\n\0".to_vec()));
    assert_eq!(error(&text(4), json!("a\0b")), "\"a\\u0000b\" is not a text: it has a NUL in it");
}

#[test]
fn enums_go_by_name_or_number() {
    let values = vec![("DROP".into(), 1), ("PASS".into(), 2)];
    let verdict = desc(TypeKind::Enum { signed: false, values }, "verdict", 4);
    for spelling in [json!("PASS"), json!(2), json!("0x2")] {
        assert_eq!(encode(&verdict, &spelling), Ok(vec![2, 0, 0, 0]));
    }
    assert_eq!(encode(&verdict, &json!(77)), Ok(vec![77, 0, 0, 0]));
    assert_eq!(error(&verdict, json!("PAS")), "\"PAS\" is not a value of enum verdict; it has DROP, PASS");
    assert!(error(&verdict, json!(-1)).contains("is outside 0..=4294967295 (verdict, 4 bytes)"));
}

#[test]
fn members_of_a_union_may_confirm_but_not_contradict_each_other() {
    let text = list(desc(TypeKind::Char, "char", 1), 4);
    let members = vec![field("word", uint(4), 0), field("byte", uint(1), 0), field("text", text, 0)];
    let either = desc(TypeKind::Union(members), "either", 4);
    assert_eq!(encode(&either, &json!({"word": 0x6261})), Ok(b"ab\0\0".to_vec()));
    assert_eq!(encode(&either, &json!({"byte": 0x61, "text": "ab"})), Ok(b"ab\0\0".to_vec()));
    assert_eq!(
        error(&either, json!({"word": 1, "byte": 2})),
        "byte: it says otherwise than another member of the same union"
    );
    // What follows a text's end is some other member's.
    let bytes = b"a\0cd";
    assert_eq!(encode(&either, &either.decode(bytes)), Ok(bytes.to_vec()));
}

#[test]
fn bit_fields_are_checked_by_their_bits() {
    let bits = |name: &str, kind, at, len| FieldDesc {
        name: name.into(),
        desc: desc(kind, "__u32", 4),
        bit_offset: at,
        bit_size: len,
    };
    let flags =
        vec![bits("low", TypeKind::Uint, 0, 3), bits("", TypeKind::Uint, 3, 2), bits("high", TypeKind::Int, 5, 3)];
    let flags = desc(TypeKind::Struct(flags), "flags", 4);
    assert_eq!(encode(&flags, &json!({"low": 7, "high": -1})), Ok(vec![0xe7, 0, 0, 0]));
    // Bits without a name are padding.
    assert_eq!(flags.decode(&[0xff, 0xff, 0xff, 0xff]), json!({"low": 7, "high": -1}));
    assert_eq!(error(&flags, json!({"low": 8, "high": 0})), "low: 8 is outside 0..=7 (bit field of 3)");
}

#[test]
fn enums_of_64_bits_keep_all_of_them() {
    let mut btf = Builder::default();
    let (big, low) = (btf.string("BIG"), btf.string("LOW"));
    let unsigned = btf.raw("wide", 19 << 24 | 2, 8, &[big, 0, 0x8000_0000, low, 1, 0]);
    let signed = btf.raw("deep", 1 << 31 | 19 << 24 | 1, 8, &[low, 0xffff_fffe, 0xffff_ffff]);
    let btf = Btf::parse(&btf.build()).unwrap();
    let (wide, deep) = (TypeDesc::of(&btf, unsigned), TypeDesc::of(&btf, signed));
    assert_eq!(wide.decode(&(1u64 << 63).to_le_bytes()), "BIG");
    assert_eq!(wide.decode(&u64::MAX.to_le_bytes()), u64::MAX);
    assert_eq!(deep.decode(&(-2i64).to_le_bytes()), "LOW");
    assert_eq!(deep.decode(&(-3i64).to_le_bytes()), -3);
    assert_eq!(encode(&wide, &json!("BIG")), Ok((1u64 << 63).to_le_bytes().to_vec()));
    assert_eq!(encode(&deep, &json!("LOW")), Ok((-2i64).to_le_bytes().to_vec()));
}

#[test]
fn bit_fields_of_old_compilers_are_integers_with_fewer_bits() {
    let mut btf = Builder::default();
    let three = btf.raw("unsigned int", 1 << 24, 4, &[3]);
    let two_at_3 = btf.raw("int", 1 << 24, 4, &[1 << 24 | 3 << 16 | 2]);
    let flags = btf.record(4, "flags", 4, &[("a", three, 0), ("b", two_at_3, 0), ("c", three, 5)]);
    let btf = Btf::parse(&btf.build()).unwrap();
    let flags = TypeDesc::of(&btf, flags);
    let value = json!({"a": 5, "b": -1, "c": 2});
    assert_eq!(flags.decode(&[0b0101_1101, 0, 0, 0]), value);
    assert_eq!(encode(&flags, &value), Ok(vec![0b0101_1101, 0, 0, 0]));
}
