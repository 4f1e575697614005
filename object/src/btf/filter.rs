//! Conditions on decoded values, evaluated on their bytes: `value.packets > 1000 and key.source == 10.0.0.1`.
//!
//! **Guarantees.** A condition is checked against the types when it is made: a member that is not there, or a literal that
//! its type cannot have, is an error that names it and says what there is. Evaluating does not fail, and panics on no
//! bytes; what lies outside of a value satisfies nothing. Text and depth are bounded.

use serde_json::Value;

use super::decode::hex;
use super::desc::{FieldDesc, TypeDesc, TypeKind};
use super::encode::encode;
use super::format::Format;

/// Longest condition, in bytes, and how deep parentheses go.
const MAX_TEXT: usize = 4096;
const MAX_DEPTH: u32 = 64;

/// Why a condition cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("filter: {0}")]
pub struct FilterError(String);

/// A condition on the bytes of one or several values.
#[derive(Clone, Debug, PartialEq)]
pub struct Filter(Condition);

#[derive(Clone, Debug, PartialEq)]
enum Condition {
    All(Vec<Condition>),
    Any(Vec<Condition>),
    Not(Box<Condition>),
    Is { member: Member, operator: Operator, literal: Value },
}

/// A member, at any depth, of one of the values.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// Which value.
    root: usize,
    /// Where in it; the offset is from the value's start.
    field: FieldDesc,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    Less,
    AtMost,
    More,
    AtLeast,
    Begins,
}

/// Longer spellings first.
const OPERATORS: [(&str, Operator); 8] = [
    ("==", Operator::Equal),
    ("!=", Operator::NotEqual),
    ("<=", Operator::AtMost),
    (">=", Operator::AtLeast),
    ("^=", Operator::Begins),
    ("=", Operator::Equal),
    ("<", Operator::Less),
    (">", Operator::More),
];

impl Filter {
    /// Parses a condition on values of these names and types; of a value with an empty name members are named directly.
    pub fn parse(text: &str, roots: &[(&str, &TypeDesc)]) -> Result<Self, FilterError> {
        if text.len() > MAX_TEXT {
            return Err(FilterError(format!("{} bytes long; at most {MAX_TEXT}", text.len())));
        }
        let mut parser = Parser { rest: text, roots, depth: 0 };
        let condition = parser.any()?;
        match parser.rest.trim() {
            "" => Ok(Filter(condition)),
            rest => Err(parser.expected("and, or, or the end", rest)),
        }
    }

    /// Whether values satisfy it, in the order in which their types were given. Of a value that comes several times (one
    /// per CPU) any may.
    pub fn matches(&self, values: &[&[&[u8]]]) -> bool {
        self.0.holds(values)
    }
}

impl Condition {
    fn holds(&self, values: &[&[&[u8]]]) -> bool {
        match self {
            Condition::All(all) => all.iter().all(|c| c.holds(values)),
            Condition::Any(any) => any.iter().any(|c| c.holds(values)),
            Condition::Not(not) => !not.holds(values),
            Condition::Is { member, operator, literal } => {
                let mut given = values.get(member.root).copied().unwrap_or_default().iter();
                given.any(|bytes| operator.holds(&member.field.decode(bytes), literal))
            }
        }
    }
}

impl Operator {
    fn holds(self, value: &Value, literal: &Value) -> bool {
        use std::cmp::Ordering::{Equal, Greater, Less};
        let order = || compare(value, literal);
        match self {
            Operator::Equal => value == literal,
            Operator::NotEqual => !value.is_null() && value != literal,
            Operator::Less => order() == Some(Less),
            Operator::AtMost => matches!(order(), Some(Less | Equal)),
            Operator::More => order() == Some(Greater),
            Operator::AtLeast => matches!(order(), Some(Greater | Equal)),
            Operator::Begins => match (value, literal) {
                (Value::String(v), Value::String(l)) => v.starts_with(l.as_str()),
                // A list of bytes, as the hexadecimal that it may be written as.
                (Value::Array(bytes), Value::String(l)) => {
                    let bytes = bytes.iter().map(|byte| byte.as_u64().unwrap_or(0) as u8).collect::<Vec<u8>>();
                    hex(&bytes).starts_with(&l.to_ascii_lowercase())
                }
                _ => false,
            },
        }
    }

    fn is_order(self) -> bool {
        !matches!(self, Operator::Equal | Operator::NotEqual | Operator::Begins)
    }
}

/// The order of two numbers; whole ones are compared without rounding.
fn compare(a: &Value, b: &Value) -> Option<std::cmp::Ordering> {
    // Beyond 64 bits they are decoded as text. Of one type both are within i128, or neither is negative.
    let signed = |value: &Value| match value {
        Value::Number(number) => number.as_i128(),
        Value::String(text) => text.parse::<i128>().ok(),
        _ => None,
    };
    let large = |value: &Value| value.as_str()?.parse::<u128>().ok();
    match (signed(a), signed(b)) {
        (Some(a), Some(b)) => Some(a.cmp(&b)),
        (Some(_), None) if large(b).is_some() => Some(std::cmp::Ordering::Less),
        (None, Some(_)) if large(a).is_some() => Some(std::cmp::Ordering::Greater),
        _ => match (large(a), large(b)) {
            (Some(a), Some(b)) => Some(a.cmp(&b)),
            _ => a.as_f64()?.partial_cmp(&b.as_f64()?),
        },
    }
}

impl Member {
    /// A member by its path, as conditions name it.
    pub fn parse(path: &str, roots: &[(&str, &TypeDesc)]) -> Result<Self, FilterError> {
        let mut parser = Parser { rest: path, roots, depth: 0 };
        let (member, _) = parser.member()?;
        match parser.rest.trim() {
            "" => Ok(member),
            rest => Err(parser.expected("the end of the path", rest)),
        }
    }

    /// Its number in a value, whatever it is shown as; `None` of what is none.
    pub fn number(&self, values: &[&[u8]]) -> Option<f64> {
        match plain(&self.field).decode(values.get(self.root)?) {
            // Beyond 64 bits.
            Value::String(text) => text.parse().ok(),
            other => other.as_f64(),
        }
    }

    /// What it is shown as.
    pub fn decode(&self, values: &[&[u8]]) -> Value {
        values.get(self.root).map(|bytes| self.field.decode(bytes)).unwrap_or_default()
    }

    /// How much it grew from one pair of values to the other; whole numbers without rounding.
    pub fn growth(&self, before: &[&[u8]], after: &[&[u8]]) -> Option<f64> {
        let field = plain(&self.field);
        let of = |values: &[&[u8]]| values.get(self.root).map(|bytes| field.decode(bytes));
        difference(&of(before)?, &of(after)?)
    }

    /// Which of the values it is in.
    pub fn root(&self) -> usize {
        self.root
    }

    /// Whether it has numbers.
    pub fn is_number(&self) -> bool {
        is_number(&plain(&self.field).desc)
    }
}

/// What has to be added to a number for the other one. Beyond 64 bits they are decoded as text.
pub(super) fn difference(before: &Value, after: &Value) -> Option<f64> {
    let whole = |value: &Value| match value {
        Value::Number(number) => number.as_i128(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    match (whole(before), whole(after)) {
        (Some(before), Some(after)) => after.checked_sub(before).map(|difference| difference as f64),
        _ => Some(after.as_f64()? - before.as_f64()?),
    }
}

/// As the number that it is: times and durations have an order, their texts have another.
fn plain(field: &FieldDesc) -> FieldDesc {
    let mut field = field.clone();
    if matches!(field.desc.name.format, Format::TimeNs | Format::DurationNs) {
        field.desc.name.format = Format::Plain;
    }
    field
}

fn is_number(desc: &TypeDesc) -> bool {
    let shown = matches!(desc.name.format, Format::Plain | Format::NetworkOrder);
    match desc.kind {
        TypeKind::Uint | TypeKind::Int => shown && desc.size <= 16,
        TypeKind::Char | TypeKind::Float => shown && desc.size <= 8,
        _ => false,
    }
}

/// Whether values are shown as text, or may be written as one.
fn is_text(desc: &TypeDesc) -> bool {
    match &desc.kind {
        _ if !matches!(desc.name.format, Format::Plain | Format::NetworkOrder) => {
            !matches!(desc.name.format, Format::Interface | Format::Task | Format::Cgroup)
        }
        TypeKind::Array { element, .. } => element.kind == TypeKind::Char || element.is_byte(),
        TypeKind::Bytes | TypeKind::Pointer | TypeKind::Enum { .. } => true,
        _ => false,
    }
}

struct Parser<'a> {
    rest: &'a str,
    roots: &'a [(&'a str, &'a TypeDesc)],
    depth: u32,
}

impl<'a> Parser<'a> {
    fn any(&mut self) -> Result<Condition, FilterError> {
        let mut any = vec![self.all()?];
        while self.word("or") || self.symbol("||") {
            any.push(self.all()?);
        }
        Ok(if any.len() == 1 { any.remove(0) } else { Condition::Any(any) })
    }

    fn all(&mut self) -> Result<Condition, FilterError> {
        let mut all = vec![self.one()?];
        while self.word("and") || self.symbol("&&") {
            all.push(self.one()?);
        }
        Ok(if all.len() == 1 { all.remove(0) } else { Condition::All(all) })
    }

    fn one(&mut self) -> Result<Condition, FilterError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(FilterError(format!("more than {MAX_DEPTH} levels deep")));
        }
        let condition = if self.word("not") || (!self.rest.trim_start().starts_with("!=") && self.symbol("!")) {
            Condition::Not(Box::new(self.one()?))
        } else if self.symbol("(") {
            let inner = self.any()?;
            if !self.symbol(")") {
                return Err(self.expected("a closing parenthesis", self.rest));
            }
            inner
        } else {
            self.comparison()?
        };
        self.depth -= 1;
        Ok(condition)
    }

    fn comparison(&mut self) -> Result<Condition, FilterError> {
        let (member, path) = self.member()?;
        let found = OPERATORS.iter().find(|(text, _)| self.symbol(text)).map(|(_, operator)| *operator);
        let Some(operator) = found else {
            return Err(self.expected(&format!("one of == != < <= > >= ^= after {path}"), self.rest));
        };
        let (text, quoted) = self.literal(&path)?;
        let plain = plain(&member.field);
        if operator.is_order() && !is_number(&plain.desc) {
            return Err(FilterError(format!("{path} is no number, and has no order; compare it by ==, != or ^=")));
        }
        if operator == Operator::Begins && !is_text(&member.field.desc) {
            return Err(FilterError(format!("{path} is no text, and begins with nothing; compare it by == or !=")));
        }
        let literal = match operator {
            Operator::Begins => Value::from(text),
            _ => literal(&member.field, &plain, &path, &text, quoted)?,
        };
        let member = if operator == Operator::Begins { member } else { Member { field: plain, ..member } };
        Ok(Condition::Is { member, operator, literal })
    }

    /// A path from a root to a member, and its text.
    fn member(&mut self) -> Result<(Member, String), FilterError> {
        let mut path = self.name().ok_or_else(|| self.expected("a member", self.rest))?.to_owned();
        let named = self.roots.iter().position(|(name, _)| *name == path);
        let nameless = self.roots.iter().position(|(name, _)| name.is_empty());
        let roots: Vec<&str> = self.roots.iter().map(|(name, _)| *name).filter(|name| !name.is_empty()).collect();
        let unknown = |path: &str| FilterError(format!("{path}: conditions begin with {}", roots.join(" or ")));
        let root = named.or(nameless).ok_or_else(|| unknown(&path))?;
        let whole = FieldDesc { name: String::new(), desc: self.roots[root].1.clone(), bit_offset: 0, bit_size: 0 };
        let mut field = match named {
            Some(_) => whole,
            None => step(&whole, &path, "a record")?,
        };
        loop {
            if let Some(rest) = self.rest.strip_prefix('.') {
                self.rest = rest;
                let name = self.name().ok_or_else(|| self.expected(&format!("a member of {path}"), self.rest))?;
                field = step(&field, name, &path)?;
                path = format!("{path}.{name}");
            } else if let Some((index, rest)) = self.rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
                self.rest = rest;
                field = element(&field, index.trim(), &path)?;
                path = format!("{path}[{}]", index.trim());
            } else {
                return Ok((Member { root, field }, path));
            }
        }
    }

    fn name(&mut self) -> Option<&'a str> {
        let text = self.rest.trim_start();
        let part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$';
        let end = text.find(|c| !part(c)).unwrap_or(text.len());
        self.rest = &text[end..];
        Some(&text[..end]).filter(|name| !name.is_empty())
    }

    /// The text of a literal, and whether it was in quotes, where `\"` is one.
    fn literal(&mut self, path: &str) -> Result<(String, bool), FilterError> {
        let text = self.rest.trim_start();
        if let Some(quoted) = text.strip_prefix('"') {
            let closing = quoted.match_indices('"').find(|(at, _)| !quoted[..*at].ends_with('\\'));
            let (end, _) = closing.ok_or_else(|| FilterError("a closing \" is missing".to_owned()))?;
            self.rest = &quoted[end + 1..];
            return Ok((quoted[..end].replace("\\\"", "\""), true));
        }
        let end = text.find(|c: char| c.is_whitespace() || matches!(c, ')' | '(' | '&' | '|')).unwrap_or(text.len());
        self.rest = &text[end..];
        match &text[..end] {
            "" => Err(self.expected(&format!("what to compare {path} with"), text)),
            word => Ok((word.to_owned(), false)),
        }
    }

    fn symbol(&mut self, symbol: &str) -> bool {
        let rest = self.rest.trim_start().strip_prefix(symbol);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn word(&mut self, word: &str) -> bool {
        let rest = self.rest.trim_start().strip_prefix(word);
        let rest = rest.filter(|rest| !rest.starts_with(|c: char| c.is_ascii_alphanumeric() || "_.[".contains(c)));
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn expected(&self, what: &str, at: &str) -> FilterError {
        match at.trim() {
            "" => FilterError(format!("it ends where {what} is expected")),
            rest => FilterError(format!("{what} is expected at {rest:?}")),
        }
    }
}

/// A member of a struct or union.
fn step(of: &FieldDesc, name: &str, path: &str) -> Result<FieldDesc, FilterError> {
    let Some(fields) = of.desc.members() else {
        return Err(FilterError(format!("{path} has no members")));
    };
    find(fields, name, of.bit_offset).ok_or_else(|| {
        let mut names = Vec::new();
        list(fields, &mut names);
        FilterError(format!("{path} has no member {name}; it has {}", names.join(", ")))
    })
}

/// Through anonymous structs and unions, as their members are shown.
fn find(fields: &[FieldDesc], name: &str, from: u32) -> Option<FieldDesc> {
    fields.iter().find_map(|field| {
        let bit_offset = from.checked_add(field.bit_offset)?;
        match field.desc.members() {
            Some(inner) if field.name.is_empty() => find(inner, name, bit_offset),
            _ => (field.name == name).then(|| FieldDesc { bit_offset, ..field.clone() }),
        }
    })
}

fn list<'f>(fields: &'f [FieldDesc], names: &mut Vec<&'f str>) {
    for field in fields {
        match field.desc.members() {
            Some(inner) if field.name.is_empty() => list(inner, names),
            _ => names.push(&field.name),
        }
    }
    names.retain(|name| !name.is_empty());
}

fn element(of: &FieldDesc, index: &str, path: &str) -> Result<FieldDesc, FilterError> {
    let TypeKind::Array { element, count } = &of.desc.kind else {
        return Err(FilterError(format!("{path} is no array")));
    };
    let outside = || match count {
        0 => FilterError(format!("{path}[{index}]: the type has no elements there")),
        count => FilterError(format!("{path}[{index}]: its elements are 0 to {}", count - 1)),
    };
    let at: u32 = index.parse().ok().filter(|at| at < count).ok_or_else(outside)?;
    let offset = at.checked_mul(element.size).and_then(|bytes| bytes.checked_mul(8));
    let bit_offset = offset.and_then(|bits| bits.checked_add(of.bit_offset));
    let bit_offset = bit_offset.ok_or_else(|| FilterError(format!("{path}[{index}] is too far away")))?;
    Ok(FieldDesc { name: String::new(), desc: (**element).clone(), bit_offset, bit_size: 0 })
}

/// A literal as decoding would show it, so that spellings do not matter.
fn literal(field: &FieldDesc, plain: &FieldDesc, path: &str, text: &str, quoted: bool) -> Result<Value, FilterError> {
    let wrong = |e: &dyn std::fmt::Display| FilterError(format!("{path} is never {text}: {e}"));
    if field.desc.members().is_some() {
        return Err(FilterError(format!("{path} is a whole struct; compare its members")));
    }
    let number = if quoted { None } else { serde_json::from_str(text).ok() };
    let as_text = || encode(&field.desc, &Value::from(text));
    let bytes = match number.filter(|value: &Value| !value.is_array() && !value.is_object()) {
        Some(number) => encode(&field.desc, &number).or_else(|e| as_text().map_err(|_| e)),
        None => as_text(),
    };
    // A bit field has fewer bits than its type; one that does not fit is never equal, and is compared as it is.
    Ok(plain.desc.decode(&bytes.map_err(|e| wrong(&e))?))
}

#[cfg(test)]
mod tests;
