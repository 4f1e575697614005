//! A value's bytes as JSON text, with no [`Value`] in between: maps have millions of them.
//!
//! **Guarantees.** The text is what serde_json prints of [`TypeDesc::decode`], byte for byte. No bytes make it panic.
//! Where everything lies, and all text but the leaves', is found once for each type.
//!
//! **Assumes** that a type's format fits it ([`Format::fits`]).

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::decode::{bit_field, value};
use super::desc::{FieldDesc, TypeDesc, TypeKind};
use super::format::Format;

/// How JSON is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// On one line, without a space.
    Compact,
    /// A line for each member and element, as serde_json indents what is so many levels deep.
    Indented(usize),
}

/// What is around the members of an object, or the elements of a list.
#[derive(Clone, Debug)]
pub struct Around {
    pub open: String,
    pub between: String,
    pub close: String,
}

/// Prints values of one type.
#[derive(Debug)]
pub struct Printer {
    size: usize,
    parts: Vec<Part>,
}

/// A piece of a value's text.
#[derive(Debug)]
enum Part {
    /// The same for all values.
    Text(String),
    Leaf {
        at: usize,
        desc: TypeDesc,
    },
    /// In a struct that ends at `end`.
    Bits {
        at: usize,
        end: usize,
        field: FieldDesc,
    },
    /// One element or more.
    List {
        at: usize,
        count: usize,
        size: usize,
        element: Vec<Part>,
        between: String,
    },
}

impl Layout {
    /// Of what is a level deeper.
    pub fn deeper(self) -> Self {
        match self {
            Layout::Compact => Layout::Compact,
            Layout::Indented(depth) => Layout::Indented(depth + 1),
        }
    }

    /// For `{}` or `[]` that are not empty.
    pub fn around(self, brackets: [char; 2]) -> Around {
        let [open, close] = brackets;
        let (inside, outside) = (self.deeper().line(), self.line());
        Around { open: format!("{open}{inside}"), between: format!(",{inside}"), close: format!("{outside}{close}") }
    }

    /// A member's name, and what is before its value.
    pub fn name(self, name: &str) -> String {
        let space = if self == Layout::Compact { "" } else { " " };
        format!("{}:{space}", Value::from(name))
    }

    /// Whatever serde_json prints.
    pub fn print(self, value: &impl Serialize, out: &mut Vec<u8>) {
        // Into memory, of what is no map with keys that are no texts: nothing can fail. No text in JSON has a line's end.
        let printed = match self {
            Layout::Compact => serde_json::to_string(value),
            Layout::Indented(_) => serde_json::to_string_pretty(value).map(|text| text.replace('\n', &self.line())),
        };
        out.extend(printed.unwrap_or_default().into_bytes());
    }

    /// The end of a line, and the beginning of the next.
    fn line(self) -> String {
        match self {
            Layout::Compact => String::new(),
            Layout::Indented(depth) => format!("\n{}", "  ".repeat(depth)),
        }
    }
}

impl Printer {
    pub fn new(desc: &TypeDesc, layout: Layout) -> Self {
        let (size, mut parts) = (desc.size as usize, Vec::new());
        lay(desc, 0, size, layout, &mut parts);
        Printer { size, parts }
    }

    /// Appends a value's text.
    pub fn print(&self, bytes: &[u8], out: &mut Vec<u8>) {
        match bytes.get(..self.size) {
            Some(own) => self.parts.iter().for_each(|part| part.print(own, out)),
            None => out.extend(b"null"),
        }
    }
}

impl Part {
    /// `bytes`: of the innermost list's element, or of the whole.
    fn print(&self, bytes: &[u8], out: &mut Vec<u8>) {
        let tail = |at: usize| bytes.get(at..).unwrap_or_default();
        match self {
            Part::Text(text) => out.extend(text.as_bytes()),
            Part::Leaf { at, desc } => leaf(&value(desc, tail(*at), false), out),
            Part::Bits { at, end, field } => leaf(&bit_field(field, bytes.get(*at..*end).unwrap_or_default()), out),
            Part::List { at, count, size, element, between } => {
                for (index, bytes) in tail(*at).chunks_exact(*size).take(*count).enumerate() {
                    if index > 0 {
                        out.extend(between.as_bytes());
                    }
                    element.iter().for_each(|part| part.print(bytes, out));
                }
            }
        }
    }
}

fn leaf(value: &Value, out: &mut Vec<u8>) {
    // Into memory: nothing can fail.
    let _ = serde_json::to_writer(out, value);
}

/// A value at `at`, in what ends at `end`.
fn lay(desc: &TypeDesc, at: usize, end: usize, layout: Layout, into: &mut Vec<Part>) {
    let size = desc.size as usize;
    if at + size > end {
        return text("null", into);
    }
    match &desc.kind {
        _ if desc.name.format != Format::Plain => into.push(Part::Leaf { at, desc: desc.clone() }),
        TypeKind::Struct(fields) | TypeKind::Union(fields) => {
            let (mut members, end) = (BTreeMap::new(), at + size);
            collect(fields, at, end, &mut members);
            object(members, end, layout, into);
        }
        TypeKind::Array { element, .. } if element.kind != TypeKind::Char || element.size != 1 => {
            let each = element.size as usize;
            let Some(count @ 1..) = size.checked_div(each) else { return text("[]", into) };
            let (around, mut parts) = (layout.around(['[', ']']), Vec::new());
            lay(element, 0, each, layout.deeper(), &mut parts);
            text(&around.open, into);
            into.push(Part::List { at, count, size: each, element: parts, between: around.between });
            text(&around.close, into);
        }
        _ => into.push(Part::Leaf { at, desc: desc.clone() }),
    }
}

/// Members by their names, in the order of which they are printed, and where each is; of one name the last.
type Members<'a> = BTreeMap<&'a str, (&'a FieldDesc, usize)>;

fn collect<'a>(fields: &'a [FieldDesc], begin: usize, end: usize, into: &mut Members<'a>) {
    for field in fields {
        let bits = field.bit_size > 0;
        // What is beyond the end has no bytes.
        let at = if bits { begin } else { end.min(begin + field.bit_offset as usize / 8) };
        match &field.desc.kind {
            TypeKind::Struct(inner) | TypeKind::Union(inner) if field.name.is_empty() && !bits => {
                collect(inner, at, end, into);
            }
            _ if field.name.is_empty() => {}
            _ => {
                into.insert(&field.name, (field, at));
            }
        }
    }
}

fn object(members: Members<'_>, end: usize, layout: Layout, into: &mut Vec<Part>) {
    if members.is_empty() {
        return text("{}", into);
    }
    let around = layout.around(['{', '}']);
    for (index, (name, (field, at))) in members.into_iter().enumerate() {
        text(if index == 0 { &around.open } else { &around.between }, into);
        text(&layout.name(name), into);
        match field.bit_size {
            0 => lay(&field.desc, at, end, layout.deeper(), into),
            _ => into.push(Part::Bits { at, end, field: field.clone() }),
        }
    }
    text(&around.close, into);
}

fn text(more: &str, into: &mut Vec<Part>) {
    match into.last_mut() {
        Some(Part::Text(text)) => text.push_str(more),
        _ => into.push(Part::Text(more.to_owned())),
    }
}
