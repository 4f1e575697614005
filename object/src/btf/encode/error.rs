//! What can be wrong with a value that somebody wrote, and where.

use std::fmt;

use serde_json::Value;

use crate::btf::desc::{TypeDesc, TypeKind};

/// Most characters of a given value in an error.
const BRIEF: usize = 60;

/// Why a value is refused. Shown as `flow.ports[1]: 70000 is outside 0..=65535 (__be16)`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub struct EncodeError {
    /// From the outermost value: `flow.ports[1]`; empty for the value itself.
    pub path: String,
    pub problem: Box<Problem>,
}

/// What is wrong at that place.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("{given} is outside {min}..={max} ({of})")]
    OutOfRange { given: String, min: i128, max: u128, of: String },
    #[error("{given} is not {wanted}")]
    Not { given: String, wanted: String },
    #[error("{given} does not survive JSON; write it as a string, in decimal or 0x hex")]
    Rounded { given: String },
    #[error("{given} is not a value of enum {of}; it has {}", list(.known))]
    NotInEnum { given: String, of: String, known: Vec<String> },
    #[error("{of} has no such member; it has {}", list(.known))]
    Unknown { of: String, known: Vec<String> },
    #[error("it is missing")]
    Missing,
    #[error("one of {} is missing", list(.names))]
    NoneOf { names: Vec<String> },
    #[error("it says otherwise than another member of the same union")]
    Disagrees,
    #[error("the list has {given} elements, the array {most}")]
    TooMany { given: usize, most: usize },
    #[error("the list has {given} elements, the array {wanted}; write all of them")]
    TooFew { given: usize, wanted: usize },
    #[error("the text has {bytes} bytes; there is room for {room}")]
    TooLong { bytes: usize, room: u32 },
    #[error("it lies outside of what it is a part of: the type information is wrong")]
    NoRoom,
    #[error("{bytes} bytes are more than can be written, {} at most", super::MAX_SIZE)]
    TooLarge { bytes: usize },
}

impl EncodeError {
    /// The same error, seen from what encloses it: a member's or map's name, or `[1]`.
    pub fn under(mut self, step: &str) -> Self {
        let dot = if self.path.is_empty() || self.path.starts_with('[') { "" } else { "." };
        self.path = format!("{step}{dot}{}", self.path);
        self
    }
}

impl From<Problem> for EncodeError {
    fn from(problem: Problem) -> Self {
        EncodeError { path: String::new(), problem: problem.into() }
    }
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        self.problem.fmt(f)
    }
}

pub(super) fn not(given: &Value, wanted: &str) -> EncodeError {
    Problem::Not { given: brief(given), wanted: wanted.to_owned() }.into()
}

/// A given value, cut where it is long.
pub(super) fn brief(given: &Value) -> String {
    let text = given.to_string();
    match text.char_indices().nth(BRIEF) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// `struct flow`, `union addr`; a type without a name by what it is.
pub(super) fn named(desc: &TypeDesc) -> String {
    let kind = match &desc.kind {
        TypeKind::Union(_) => "union",
        _ => "struct",
    };
    if desc.name.is_empty() { format!("the {kind}") } else { format!("{kind} {}", desc.name) }
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".into() } else { names.join(", ") }
}
