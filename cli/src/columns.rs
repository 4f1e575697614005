//! A map's key and value as columns of a table.

use serde_json::Value;
use skep_object::btf::decode::hex;
use skep_object::btf::desc::{FieldDesc, TypeDesc, TypeKind};

use crate::names::Kind;

/// Whether a column is of the key or of the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Key,
    Value,
}

/// One leaf of the key's or the value's type.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    pub title: String,
    pub side: Side,
    /// Member names from the outermost struct inwards; empty: the whole.
    path: Vec<String>,
    desc: TypeDesc,
}

/// The columns of the key, then those of the value. A title that both have is told apart by a prefix.
pub fn columns(key: &TypeDesc, value: &TypeDesc) -> Vec<Column> {
    let mut all = Vec::new();
    collect(Side::Key, key, &mut Vec::new(), &mut all);
    let keys = all.len();
    collect(Side::Value, value, &mut Vec::new(), &mut all);
    for index in keys..all.len() {
        if let Some(same) = all[..keys].iter().position(|c| c.title == all[index].title) {
            all[same].title = format!("KEY.{}", all[same].title);
            all[index].title = format!("VALUE.{}", all[index].title);
        }
    }
    all
}

fn collect(side: Side, desc: &TypeDesc, path: &mut Vec<String>, into: &mut Vec<Column>) {
    match desc.members() {
        Some(fields) if !fields.is_empty() => collect_fields(side, fields, path, into),
        _ => {
            let title = match (path.is_empty(), side) {
                (true, Side::Key) => "KEY".to_owned(),
                (true, Side::Value) => "VALUE".to_owned(),
                _ => path.join(".").to_uppercase(),
            };
            into.push(Column { title, side, path: path.clone(), desc: desc.clone() });
        }
    }
}

fn collect_fields(side: Side, fields: &[FieldDesc], path: &mut Vec<String>, into: &mut Vec<Column>) {
    for field in fields {
        match &field.desc.kind {
            // Decoded as if its members were the outer one's.
            TypeKind::Struct(inner) | TypeKind::Union(inner) if field.name.is_empty() => {
                collect_fields(side, inner, path, into);
            }
            _ => {
                path.push(field.name.clone());
                collect(side, &field.desc, path, into);
                path.pop();
            }
        }
    }
}

impl Column {
    /// The cell of a decoded key or value.
    pub fn cell(&self, whole: &Value) -> String {
        text(&self.desc, self.of(whole))
    }

    /// Whether its numbers may be of something of the node's.
    pub fn is_id(&self) -> bool {
        Kind::of(self.desc.name.format).is_some()
    }

    /// The number of something of the node's, if the column has such.
    pub fn id(&self, whole: &Value) -> Option<(Kind, u64)> {
        Some((Kind::of(self.desc.name.format)?, self.of(whole).as_u64()?))
    }

    /// Nothing can be said of it.
    pub fn is_null(&self, whole: &Value) -> bool {
        self.of(whole).is_null()
    }

    fn of<'a>(&self, whole: &'a Value) -> &'a Value {
        self.path.iter().fold(whole, |value, name| value.get(name).unwrap_or(&Value::Null))
    }
}

fn text(desc: &TypeDesc, value: &Value) -> String {
    if let (TypeKind::Array { element, .. }, Value::Array(items)) = (&desc.kind, value)
        && element.size == 1
        && matches!(element.kind, TypeKind::Uint | TypeKind::Int)
    {
        return bytes(items);
    }
    match value {
        Value::Null => String::new(),
        Value::String(text) if text.is_empty() => "\"\"".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Text where it is text, else hexadecimal.
fn bytes(items: &[Value]) -> String {
    // Two's complement: what `s8` shows as -1 is the byte 0xff.
    let bytes: Vec<u8> = items.iter().map(|v| v.as_i64().unwrap_or(0) as u8).collect();
    let end = bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
    match &bytes[..end] {
        visible @ [_, ..] if visible.iter().all(|b| (0x20..0x7f).contains(b)) => {
            String::from_utf8_lossy(visible).into_owned()
        }
        _ => hex(&bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn desc(kind: TypeKind, size: u32) -> TypeDesc {
        TypeDesc { kind, name: "".into(), size }
    }
    fn uint(size: u32) -> TypeDesc {
        desc(TypeKind::Uint, size)
    }
    fn field(name: &str, desc: TypeDesc) -> FieldDesc {
        FieldDesc { name: name.into(), desc, bit_offset: 0, bit_size: 0 }
    }
    fn titles(columns: &[Column]) -> Vec<&str> {
        columns.iter().map(|c| c.title.as_str()).collect()
    }

    #[test]
    fn nested_members_have_dots_and_anonymous_ones_no_level() {
        let inner = desc(TypeKind::Struct(vec![field("a", uint(4)), field("b", uint(4))]), 8);
        let key =
            desc(TypeKind::Struct(vec![field("in", inner.clone()), field("", inner), field("port", uint(2))]), 18);
        let value = desc(TypeKind::Struct(vec![field("port", uint(8)), field("n", uint(8))]), 16);
        let columns = columns(&key, &value);
        assert_eq!(titles(&columns), ["IN.A", "IN.B", "A", "B", "KEY.PORT", "VALUE.PORT", "N"]);
        let whole = json!({"in": {"a": 1, "b": 2}, "a": 3, "b": 4, "port": 5});
        let cells: Vec<String> = columns[..5].iter().map(|c| c.cell(&whole)).collect();
        assert_eq!(cells, ["1", "2", "3", "4", "5"]);
    }

    #[test]
    fn plain_keys_and_values_have_plain_titles() {
        assert_eq!(titles(&columns(&uint(4), &TypeDesc::bytes(3))), ["KEY", "VALUE"]);
    }

    #[test]
    fn bytes_are_text_where_they_are_text() {
        let array = desc(TypeKind::Array { element: Box::new(uint(1)), count: 4 }, 4);
        assert_eq!(text(&array, &json!([0x65, 0x74, 0x68, 0])), "eth");
        assert_eq!(text(&array, &json!([1, 2, 0xff, 0])), "0x0102ff00");
        assert_eq!(text(&array, &json!([0, 0, 0, 0])), "0x00000000");
        assert_eq!(text(&array, &json!([0x65, 0, 0x65, 0])), "0x65006500");
        assert_eq!(text(&uint(4), &json!(7)), "7");
        assert_eq!(text(&array, &Value::Null), "");
    }
}
