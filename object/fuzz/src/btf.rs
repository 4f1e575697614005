//! Types as a running kernel shows them, and bytes of values: all that is done with them on the way to a client.
//!
//! Input that begins as BTF does is BTF, and the bytes of the value too. Otherwise its parts are types, strings, a value,
//! and a condition.

use serde_json::Value;
use skep_object::btf::desc::{FieldDesc, TypeDesc};
use skep_object::btf::encode::encode;
use skep_object::btf::filter::{Filter, Member};
use skep_object::btf::percpu::{self, Reduce};
use skep_object::btf::rate::rates;
use skep_object::btf::signature::signature;
use skep_object::btf::{Btf, Kind};
use skep_object::core::TargetBtf;

use super::parts;

/// Of each type; of very many, of some.
const TYPES: usize = 12;
/// Bytes of a value: enough for any shape.
const VALUE: usize = 1024;

/// Describes types, decodes and encodes values of them, and asks conditions of them.
pub fn run(data: &[u8]) {
    if data.starts_with(&[0x9f, 0xeb]) {
        return types(data, data, "");
    }
    let [types_part, strings, value, condition] = parts::split(data);
    types(&parts::btf(types_part, strings), value, &String::from_utf8_lossy(condition));
}

fn types(blob: &[u8], value: &[u8], condition: &str) {
    let Ok(btf) = Btf::parse(blob) else { return };
    // Of a kernel it would be what programs are relocated against.
    let _ = TargetBtf::parse(blob);
    let value = &value[..value.len().min(VALUE)];
    let every = (btf.len() as usize).div_ceil(TYPES);
    for id in (0..=btf.len()).step_by(every) {
        let _ = (signature(&btf, id), btf.size(id), btf.tagged_member(id), btf.find(btf.name(id), Kind::Struct));
        let desc = TypeDesc::of(&btf, id);
        values(&desc, value);
        conditions(&desc, value, condition);
    }
}

fn values(desc: &TypeDesc, bytes: &[u8]) {
    let _ = desc.decode_record(bytes);
    // As long as the type says, so that there is something to show.
    let mut whole = bytes.to_vec();
    whole.resize((desc.size as usize).clamp(bytes.len(), VALUE), 0xa5);
    for bytes in [bytes, &whole] {
        let shown = desc.decode(bytes);
        if let Ok(written) = encode(desc, &shown) {
            assert_eq!(written.len(), desc.size as usize, "a value of another size");
            let _ = desc.decode(&written);
        }
        let _ = encode(desc, &mangled(&shown));
        let _ = rates(desc, &shown, &desc.decode(&whole), 0.5);
    }
    let _ = percpu::reduce(desc, Reduce::Sum, [bytes, &whole].into_iter());
}

/// Each leaf replaced by something of another type.
fn mangled(value: &Value) -> Value {
    match value {
        Value::Object(members) => members.iter().map(|(name, value)| (name.clone(), mangled(value))).collect(),
        Value::Array(items) => items.iter().map(mangled).collect(),
        Value::Number(_) => Value::from("10.0.0.1"),
        Value::String(_) => Value::from(-1),
        _ => Value::from("0x00"),
    }
}

fn conditions(desc: &TypeDesc, bytes: &[u8], condition: &str) {
    let roots = [("value", desc), ("key", desc)];
    ask(condition, &roots, bytes);
    ask(condition, &[("", desc)], bytes);
    for FieldDesc { name, desc: of, .. } in desc.members().unwrap_or_default().iter().take(8) {
        let literal = of.decode(bytes);
        for operator in ["==", "<", "^="] {
            ask(&format!("value.{name} {operator} {literal} or not key.{name} > 1"), &roots, bytes);
        }
        if let Ok(member) = Member::parse(&format!("value.{name}"), &roots) {
            let _ = (member.number(&[bytes]), member.decode(&[bytes]), member.growth(&[bytes], &[&[0; 64]]));
        }
    }
}

fn ask(condition: &str, roots: &[(&str, &TypeDesc)], bytes: &[u8]) {
    if let Ok(filter) = Filter::parse(condition, roots) {
        let _ = filter.matches(&[&[bytes], &[bytes, &[]]]);
    }
}
