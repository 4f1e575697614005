use super::*;
use crate::btf::desc::TypeName;

fn leaf(kind: TypeKind, size: u32) -> TypeDesc {
    TypeDesc { kind, name: TypeName::default(), size }
}

fn shown(kind: TypeKind, size: u32, format: Format) -> TypeDesc {
    TypeDesc { name: TypeName::default().shown_as(format), ..leaf(kind, size) }
}

fn field(name: &str, byte: u32, desc: TypeDesc) -> FieldDesc {
    FieldDesc { name: name.into(), desc, bit_offset: byte * 8, bit_size: 0 }
}

fn array(element: TypeDesc, count: u32) -> TypeDesc {
    let size = element.size * count;
    leaf(TypeKind::Array { element: Box::new(element), count }, size)
}

/// source 0, port 4, state 6, (flag 7.0, rest 7.1), comm 8, bytes 16, took 24, slots 32, inner { depth } 40, delta 44.
fn flow() -> TypeDesc {
    let state = TypeKind::Enum { signed: false, values: vec![("OPEN".into(), 1), ("CLOSED".into(), 2)] };
    let bit = |name: &str, at: u32, bits: u32| FieldDesc {
        bit_offset: 56 + at,
        bit_size: bits,
        ..field(name, 0, leaf(TypeKind::Uint, 1))
    };
    let inner = leaf(TypeKind::Struct(vec![field("depth", 0, leaf(TypeKind::Int, 4))]), 4);
    let anonymous = leaf(TypeKind::Struct(vec![field("delta", 0, leaf(TypeKind::Int, 4))]), 4);
    let fields = vec![
        field("source", 0, shown(TypeKind::Uint, 4, Format::Ipv4)),
        field("port", 4, shown(TypeKind::Uint, 2, Format::NetworkOrder)),
        field("state", 6, leaf(state, 1)),
        bit("flag", 0, 1),
        bit("rest", 1, 7),
        field("comm", 8, array(leaf(TypeKind::Char, 1), 8)),
        field("bytes", 16, leaf(TypeKind::Uint, 8)),
        field("took", 24, shown(TypeKind::Uint, 8, Format::DurationNs)),
        field("slots", 32, array(leaf(TypeKind::Uint, 4), 2)),
        field("inner", 40, inner),
        field("", 44, anonymous),
    ];
    leaf(TypeKind::Struct(fields), 48)
}

fn value() -> Vec<u8> {
    let mut bytes = vec![10, 0, 0, 1, 1, 187, 2, 0b0000_0111];
    bytes.extend(b"nginx\0zz");
    bytes.extend(u64::MAX.to_le_bytes());
    bytes.extend(1_500_000u64.to_le_bytes());
    bytes.extend([7u32, 9].map(u32::to_le_bytes).concat());
    bytes.extend((-3i32).to_le_bytes());
    bytes.extend((-1i32).to_le_bytes());
    bytes
}

fn holds(text: &str) -> bool {
    let (key, flow) = (leaf(TypeKind::Uint, 4), flow());
    let filter = Filter::parse(text, &[("key", &key), ("value", &flow)]).unwrap_or_else(|e| panic!("{text}: {e}"));
    filter.matches(&[&[&5u32.to_le_bytes()], &[&value()]])
}

#[test]
fn members_of_every_kind_are_compared_as_they_are_shown() {
    for text in [
        "key == 5",
        "key = 5 and value.state == CLOSED",
        "value.state == 2",
        "value.state != OPEN",
        "value.source == 10.0.0.1",
        "value.source != \"10.0.0.2\"",
        "value.source ^= 10.0.",
        "value.port == 443 && value.port > 442 && value.port<=443",
        "value.flag == 1 and value.rest == 3",
        "value.comm == nginx",
        "value.comm == \"nginx\"",
        "value.comm ^= ng",
        "value.bytes == 18446744073709551615",
        "value.bytes > 18446744073709551614",
        "value.took == 1.5ms",
        "value.took >= 1ms and value.took < 2ms",
        "value.slots[0] == 7 and value.slots[1] > 8",
        "value.inner.depth < 0",
        "value.inner.depth == -3",
        "value.delta == -1",
        "not value.port == 80",
        "!(value.port == 80 or key == 6)",
        "key == 6 or key == 7 or key == 5",
        "key == 5 or key == 6 and key == 7",
    ] {
        assert!(holds(text), "{text}");
    }
    for text in [
        "key != 5",
        "key == 5 and key == 6",
        "(key == 5 or key == 6) and key == 7",
        "value.bytes < 18446744073709551615",
        "value.bytes >= 18446744073709551615 and key > 5",
        "value.comm == nginxzz",
        "value.took > 1.5ms",
        "value.state == OPEN",
        "value.source ^= 11.",
        "not key == 5",
    ] {
        assert!(!holds(text), "{text}");
    }
}

#[test]
fn what_cannot_be_meant_is_an_error_that_says_what_there_is() {
    let (key, flow) = (leaf(TypeKind::Uint, 4), flow());
    for (text, said) in [
        ("", "it ends where a member is expected"),
        (
            "value.pakets > 1",
            "value has no member pakets; it has source, port, state, flag, rest, comm, bytes, took, slots, inner, delta",
        ),
        ("packets > 1", "packets: conditions begin with key or value"),
        ("key.x == 1", "key has no members"),
        ("value.port", "it ends where one of == != < <= > >= ^= after value.port is expected"),
        ("value.port ~ 3", "one of == != < <= > >= ^= after value.port is expected at \"~ 3\""),
        ("value.port ==", "it ends where what to compare value.port with is expected"),
        ("value.comm > a", "value.comm is no number, and has no order; compare it by ==, != or ^="),
        ("value.source < 10.0.0.1", "value.source is no number, and has no order; compare it by ==, != or ^="),
        ("value.slots[2] == 1", "value.slots[2]: its elements are 0 to 1"),
        ("value.port[0] == 1", "value.port is no array"),
        ("value.inner == 1", "value.inner is a whole struct; compare its members"),
        ("(key == 5", "it ends where a closing parenthesis is expected"),
        ("key == 5 key == 6", "and, or, or the end is expected at \"key == 6\""),
        ("value.comm == \"a", "a closing \" is missing"),
    ] {
        let error = Filter::parse(text, &[("key", &key), ("value", &flow)]).unwrap_err();
        assert_eq!(error.to_string(), format!("filter: {said}"), "{text}");
    }
    for (text, begin) in [
        ("value.port == 70000", "filter: value.port is never 70000: "),
        ("value.state == OPENED", "filter: value.state is never OPENED: "),
        ("key == five", "filter: key is never five: "),
    ] {
        let error = Filter::parse(text, &[("key", &key), ("value", &flow)]).unwrap_err().to_string();
        assert!(error.starts_with(begin), "{text}: {error}");
    }
    let deep = format!("{}key == 5{}", "(".repeat(100), ")".repeat(100));
    assert!(Filter::parse(&deep, &[("key", &key)]).unwrap_err().to_string().contains("64 levels"));
    assert!(Filter::parse(&"x".repeat(5000), &[("key", &key)]).unwrap_err().to_string().contains("at most 4096"));
}

#[test]
fn a_records_members_are_named_directly_and_short_bytes_satisfy_nothing() {
    let flow = flow();
    let filter = Filter::parse("port == 443", &[("", &flow)]).unwrap();
    assert!(filter.matches(&[&[&value()]]));
    assert!(!filter.matches(&[&[&value()[..5]]]));
    assert!(!Filter::parse("port != 443", &[("", &flow)]).unwrap().matches(&[&[&value()[..5]]]));
    assert!(!filter.matches(&[]));
    // One value for each CPU: any of them.
    let other = [0u8; 48];
    assert!(filter.matches(&[&[&other, &value()]]));
}

#[test]
fn a_member_alone_has_a_number() {
    let (key, flow) = (leaf(TypeKind::Uint, 4), flow());
    let roots = [("key", &key), ("value", &flow)];
    let number = |path: &str| {
        let member = Member::parse(path, &roots).unwrap();
        (member.is_number(), member.number(&[&5u32.to_le_bytes(), &value()]))
    };
    assert_eq!(number("value.port"), (true, Some(443.0)));
    assert_eq!(number("value.took"), (true, Some(1_500_000.0)));
    assert_eq!(number("key"), (true, Some(5.0)));
    assert_eq!(number("value.comm"), (false, None));
    assert!(Member::parse("value.port > 1", &roots).is_err());
}

#[test]
fn wide_integers_have_an_order() {
    for (kind, below, above) in [(TypeKind::Int, i128::MIN, -1), (TypeKind::Uint, 5, i128::MAX)] {
        let wide = leaf(kind, 16);
        let holds = |text: &str, value: i128| {
            Filter::parse(text, &[("value", &wide)]).unwrap().matches(&[&[&value.to_le_bytes()]])
        };
        assert!(holds(&format!("value < {above}"), below) && !holds(&format!("value > {above}"), below));
        assert!(holds(&format!("value >= {below}"), above));
    }
    let largest = leaf(TypeKind::Uint, 16);
    let more = Filter::parse("value > 170141183460469231731687303715884105728", &[("value", &largest)]).unwrap();
    assert!(more.matches(&[&[&u128::MAX.to_le_bytes()]]) && !more.matches(&[&[&1u128.to_le_bytes()]]));
    let member = Member::parse("value", &[("value", &largest)]).unwrap();
    assert_eq!(member.number(&[&u128::MAX.to_le_bytes()]), Some(u128::MAX as f64));
}

#[test]
fn what_begins_is_a_text_or_may_be_written_as_one() {
    let octets = array(leaf(TypeKind::Uint, 1), 4);
    let begins = |text: &str| Filter::parse(text, &[("value", &octets)]).unwrap().matches(&[&[&[0xff, 0xAB, 0, 1]]]);
    assert!(begins("value ^= 0xff") && begins("value ^= 0xFFab") && !begins("value ^= 0xfe"));
    let error = |text: &str| Filter::parse(text, &[("value", &flow())]).unwrap_err().to_string();
    let expected = "filter: value.bytes is no text, and begins with nothing; compare it by == or !=";
    assert_eq!(error("value.bytes ^= 1"), expected);
    assert!(error("value.slots ^= 1").contains("is no text") && error("value.inner ^= 1").contains("is no text"));
    let none = array(leaf(TypeKind::Uint, 4), 0);
    let error = Filter::parse("value[0] == 1", &[("value", &none)]).unwrap_err();
    assert_eq!(error.to_string(), "filter: value[0]: the type has no elements there");
}

#[test]
fn quotes_are_written_in_quotes() {
    let text = array(leaf(TypeKind::Char, 1), 8);
    let filter = Filter::parse(r#"value == "a\"b" or value == "c""#, &[("value", &text)]).unwrap();
    assert!(filter.matches(&[&[b"a\"b\0\0\0\0\0"]]) && filter.matches(&[&[b"c\0\0\0\0\0\0\0"]]));
    assert!(Filter::parse(r#"value == "a\""#, &[("value", &text)]).is_err());
}
