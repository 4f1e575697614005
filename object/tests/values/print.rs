//! What is printed is what serde_json makes of what is decoded. A failure names its seed.

use fastrand::Rng;
use serde_json::{Value, json};
use skep_object::btf::desc::TypeDesc;
use skep_object::btf::print::{Layout, Printer};

use crate::inverse::{any, bytes};

/// In every layout.
pub fn check(desc: &TypeDesc, bytes: &[u8], what: &str) {
    let decoded = desc.decode(bytes);
    let printed = |layout| {
        let mut text = b">".to_vec();
        Printer::new(desc, layout).print(bytes, &mut text);
        String::from_utf8(text).unwrap()
    };
    assert_eq!(printed(Layout::Compact), format!(">{decoded}"), "{what}: {desc:#?}");
    assert_eq!(printed(Layout::Indented(0)), format!(">{decoded:#}"), "{what}: {desc:#?}");
    // In a list in a list.
    let deep = serde_json::to_string_pretty(&json!([[decoded]])).unwrap();
    let deep = deep.strip_prefix("[\n  [\n    ").and_then(|rest| rest.strip_suffix("\n  ]\n]")).unwrap();
    assert_eq!(printed(Layout::Indented(2)), format!(">{deep}"), "{what}: {desc:#?}");
    let mut text = b">".to_vec();
    Layout::Indented(2).print(&decoded, &mut text);
    assert_eq!(text, format!(">{deep}").into_bytes(), "{what}: {decoded}");
}

#[test]
fn what_is_printed_is_what_is_decoded() {
    for seed in 0..4_000 {
        let mut rng = Rng::with_seed(seed);
        // Members of one name, too: the last counts.
        let desc = any(&mut rng, 3, true);
        let bytes = bytes(&mut rng, desc.size as usize + 3);
        check(&desc, &bytes, &format!("seed {seed}"));
        check(&desc, &bytes[..rng.usize(..bytes.len())], &format!("seed {seed}, too few bytes"));
    }
}

#[test]
fn names_are_escaped() {
    assert_eq!(Layout::Compact.name("a\"b"), r#""a\"b":"#);
    let around = Layout::Indented(1).around(['{', '}']);
    assert_eq!([around.open, around.between, around.close], ["{\n    ", ",\n    ", "\n  }"]);
    let mut text = Vec::new();
    Layout::Compact.print(&Value::Null, &mut text);
    assert_eq!(text, b"null");
}
