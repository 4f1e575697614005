//! Entries of maps as JSON: a list of all, or one on each line.
//!
//! Guarantees: the text is what serde_json makes of [`Row`]s. Several threads make text, of which a few pieces are kept at a
//! time: large maps are text by gigabytes.

use std::ops::Range;
use std::sync::mpsc::sync_channel;

use serde::Serialize;
use serde_json::Value;
use skep_object::btf::percpu;
use skep_object::btf::print::{Around, Layout, Printer};

use crate::args::PerCpu;
use crate::dump::{Contents, Inner};
use crate::entries::Entry;
use crate::error::Error;
use crate::schema::Schema;

/// Entries of which one thread makes text at once.
const AT_ONCE: usize = 8192;

/// One entry decoded; the shape of `-o json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row<'a> {
    node: &'a str,
    key: Value,
    /// Of a per-CPU map a list with one value per CPU; of a map of maps an object with the id and the entries.
    value: Value,
}

/// How entries are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// An indented list.
    List,
    /// An entry a line.
    Lines,
}

/// All entries, decoded.
pub fn rows(of: &Contents) -> impl Iterator<Item = Row<'_>> {
    of.entries.iter().map(|entry| Row { node: &of.node, key: entry.key(&of.schema), value: value(of, entry) })
}

/// Hands on the text of all entries, piece by piece.
pub fn print(all: &[Contents], form: Form, mut take: impl FnMut(Vec<u8>) -> Result<(), Error>) -> Result<(), Error> {
    let layout = if form == Form::List { Layout::Indented(0) } else { Layout::Compact };
    let Around { open, between, close } = layout.around(['[', ']']);
    let texts: Vec<Text<'_>> = all.iter().map(|of| Text::new(of, layout.deeper())).collect();
    let pieces: Vec<(&Text<'_>, Range<usize>)> =
        texts.iter().flat_map(|text| parts(text.of.entries.len()).map(move |part| (text, part))).collect();
    let make = |index: usize| {
        let ((text, part), mut out) = (&pieces[index], Vec::new());
        for entry in text.of.entries.part(part.clone()).iter() {
            match form {
                Form::List if index == 0 && out.is_empty() => out.extend(open.as_bytes()),
                Form::List => out.extend(between.as_bytes()),
                Form::Lines => {}
            }
            text.entry(entry, &mut out);
            if form == Form::Lines {
                out.push(b'\n');
            }
        }
        out
    };
    in_order(pieces.len(), make, &mut take)?;
    match form {
        Form::List if pieces.is_empty() => take(b"[]\n".to_vec()),
        Form::List => take((close + "\n").into_bytes()),
        Form::Lines => Ok(()),
    }
}

fn parts(len: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(AT_ONCE).map(move |from| from..len.min(from + AT_ONCE))
}

/// Makes so many pieces, each thread every so manieth, and hands them on one after the other.
fn in_order(
    pieces: usize,
    make: impl Fn(usize) -> Vec<u8> + Sync,
    mut take: impl FnMut(Vec<u8>) -> Result<(), Error>,
) -> Result<(), Error> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(pieces);
    if threads <= 1 {
        return (0..pieces).try_for_each(|index| take(make(index)));
    }
    let make = &make;
    std::thread::scope(|scope| {
        let begin = |first: usize| {
            let (sender, made) = sync_channel(1);
            // When nobody takes them any more, no more are made.
            scope.spawn(move || (first..pieces).step_by(threads).try_for_each(|index| sender.send(make(index))));
            made
        };
        let threads: Vec<_> = (0..threads).map(begin).collect();
        // One that panicked hands on nothing, and the scope goes on with its panic.
        threads.iter().cycle().take(pieces).try_for_each(|made| made.recv().map_or(Ok(()), &mut take))
    })
}

/// What the entries of a node have in common as text.
struct Text<'a> {
    of: &'a Contents,
    /// To the key.
    open: String,
    key: Printer,
    /// From the key to the value.
    between: String,
    value: Printer,
    close: String,
    /// Of the value.
    layout: Layout,
    /// Around the values of all CPUs, if each is shown.
    each: Option<Around>,
}

impl<'a> Text<'a> {
    fn new(of: &'a Contents, layout: Layout) -> Self {
        let Around { open, between, close } = layout.around(['{', '}']);
        let (schema, layout) = (&of.schema, layout.deeper());
        let each = schema.is_per_cpu() && reduction(of).is_none();
        let each = each.then(|| layout.around(['[', ']']));
        let node = format!("{}{}", layout.name("node"), Value::from(of.node.as_str()));
        Text {
            open: format!("{open}{node}{between}{}", layout.name("key")),
            key: Printer::new(&schema.key, layout),
            between: format!("{between}{}", layout.name("value")),
            value: Printer::new(&schema.value, if each.is_some() { layout.deeper() } else { layout }),
            close,
            layout,
            each,
            of,
        }
    }

    fn entry(&self, entry: Entry<'_>, out: &mut Vec<u8>) {
        let schema = &self.of.schema;
        out.extend(self.open.as_bytes());
        self.key.print(entry.key, out);
        out.extend(self.between.as_bytes());
        let decoded = self.of.inner.contains_key(entry.key) || entry.values.is_empty();
        match &self.each {
            _ if decoded => self.layout.print(&value(self.of, entry), out),
            Some(Around { open, between, close }) => {
                for (index, value) in entry.each(schema).enumerate() {
                    out.extend(if index == 0 { open } else { between }.as_bytes());
                    self.value.print(value, out);
                }
                out.extend(close.as_bytes());
            }
            None if schema.is_per_cpu() => self.layout.print(&value(self.of, entry), out),
            None => self.value.print(entry.each(schema).last().unwrap_or_default(), out),
        }
        out.extend(self.close.as_bytes());
    }
}

/// How the values of all CPUs become one, if they do.
fn reduction(of: &Contents) -> Option<percpu::Reduce> {
    of.per_cpu.unwrap_or(PerCpu::Each).reduce()
}

fn value(of: &Contents, entry: Entry<'_>) -> Value {
    let value = own(&of.schema, entry, reduction(of));
    match of.inner.get(entry.key) {
        Some(inner) => nested(inner, value, reduction(of)),
        None => value,
    }
}

/// A value; of a per-CPU map those of all CPUs, or what they come to.
fn own(schema: &Schema, entry: Entry<'_>, reduction: Option<percpu::Reduce>) -> Value {
    let mut values = entry.values(schema);
    match reduction {
        _ if !schema.is_per_cpu() => values.pop().unwrap_or_default(),
        None => Value::Array(values),
        Some(how) => percpu::reduce(&schema.value, how, entry.each(schema)),
    }
}

/// An inner map, with the id under which the kernel has it.
fn nested(inner: &Inner, id: Value, reduction: Option<percpu::Reduce>) -> Value {
    let entry = |schema: &Schema, entry: Entry<'_>| serde_json::json!({"key": entry.key(schema), "value": own(schema, entry, reduction)});
    match &inner.schema {
        Some(schema) if inner.reason.is_empty() => {
            let entries: Vec<Value> = inner.entries.iter().map(|one| entry(schema, one)).collect();
            serde_json::json!({"id": id, "entries": entries})
        }
        _ => serde_json::json!({"id": id, "reason": inner.reason}),
    }
}
