//! `maps dump`: what is in a map.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use skep_object::btf::percpu::{self, Reduce};
use skep_proto::v1::map_frame::Frame;
use skep_proto::v1::{DumpMapRequest, End, MapFrame, RawEntries};

use crate::agent::{Agent, Frames};
use crate::args::{DumpFormat, Global, MapsDump, PerCpu};
use crate::columns::{Column, Side, columns};
use crate::deadline::within;
use crate::entries::{Entries, Entry, unpack};
use crate::error::Error;
use crate::names::{self, Names};
use crate::output::{self, counted, note};
use crate::queue::{Queue, place};
use crate::rows::{self, Form, rows};
use crate::schema::Schema;
use crate::source::{self, Access};
use crate::table::Table;

/// A map's contents on one node.
#[derive(Clone, Debug, PartialEq)]
pub struct Contents {
    pub node: String,
    pub schema: Schema,
    pub entries: Entries,
    /// Of a map of maps, what is in them, by the outer map's keys.
    pub inner: BTreeMap<Vec<u8>, Inner>,
    /// How the values of all CPUs are shown, if it was said.
    pub per_cpu: Option<PerCpu>,
    /// What the node calls numbers in them.
    pub names: Names,
}

/// What is in an inner map.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inner {
    /// Absent where it could not be read, for that reason.
    pub schema: Option<Schema>,
    pub entries: Entries,
    pub reason: String,
}

/// Runs the command.
pub async fn run(global: &Global, dump: &MapsDump) -> Result<(), Error> {
    let progress = progress();
    let stream = dump.output == DumpFormat::Jsonl;
    let asked = source::ask(global, Access::Read, dump.node.as_deref(), Some(&dump.name), |agent, namespace| {
        let progress = progress.clone();
        async move {
            if !stream {
                return contents(&agent, &namespace, dump, &progress).await;
            }
            // As they come: a map may have more entries than anybody keeps.
            let whole = read(&agent, &namespace, dump, &progress, |schema, frame, kept| {
                if of_maps(schema) {
                    kept.extend(unpack(schema, frame)?);
                    return Ok(());
                }
                let entries = unpack(schema, frame)?.collect();
                let part = Contents::new(agent.node.clone(), schema.clone(), entries, dump.per_cpu);
                progress.suspend(|| print(&[part], dump.output, false))
            })
            .await?;
            // What is in an inner map comes after its place in the outer one.
            progress.suspend(|| print(std::slice::from_ref(&whole), dump.output, false))?;
            Ok(whole)
        }
    })
    .await;
    progress.finish_and_clear();
    let mut answers = asked?;
    if stream {
        return answers.complete();
    }
    if dump.top.is_none() {
        answers.answers.iter_mut().for_each(Contents::sort);
    }
    print(&answers.answers, dump.output, answers.several)?;
    answers.complete()
}

/// On a terminal's standard error only, which indicatif sees to.
pub fn progress() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {human_pos} entries read{msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// All entries of a node.
pub async fn contents(
    agent: &Agent,
    namespace: &str,
    dump: &MapsDump,
    progress: &ProgressBar,
) -> Result<Contents, Error> {
    let keep = |schema: &Schema, frame: &RawEntries, kept: &mut Entries| {
        kept.extend(unpack(schema, frame)?);
        if dump.top.is_none() {
            kept.presort(&schema.key);
        }
        Ok(())
    };
    let mut contents = read(agent, namespace, dump, progress, keep).await?;
    if dump.output == DumpFormat::Table {
        contents.names = names::ask(agent, &contents.ids()).await;
    }
    Ok(contents)
}

/// Hands on entries as they come, and where those are put that are returned in the end.
async fn read(
    agent: &Agent,
    namespace: &str,
    dump: &MapsDump,
    progress: &ProgressBar,
    on: impl FnMut(&Schema, &RawEntries, &mut Entries) -> Result<(), Error>,
) -> Result<Contents, Error> {
    let request = DumpMapRequest {
        program: Some(agent.program(namespace, &dump.name).await?),
        map: dump.map.clone(),
        decode: false,
        limit: dump.limit.unwrap_or(0),
        filter: dump.filter.clone().unwrap_or_default(),
        top: dump.top.clone().unwrap_or_default(),
        page: dump.page.as_ref().map(|page| page.0.clone()).unwrap_or_default().into(),
        nested: true,
        ..DumpMapRequest::default()
    };
    let stream = agent.dump(request).await?;
    let (contents, end) = receive(agent, stream, progress, dump.per_cpu, on).await?;
    remarks(agent, dump, &contents.schema, &end).into_iter().for_each(note);
    Ok(contents)
}

/// What there is to be said of a dump that ended so.
fn remarks(agent: &Agent, dump: &MapsDump, schema: &Schema, end: &End) -> Vec<String> {
    let (node, mut remarks) = (&agent.node, Vec::new());
    // Of several nodes each has its own.
    if !end.next_page.is_empty() && (dump.node.is_some() || agent.is_local()) {
        let page: String = end.next_page.iter().map(|byte| format!("{byte:02x}")).collect();
        remarks.push(format!("there may be more: go on with --page {page}"));
    }
    if schema.head_only && end.count > 0 {
        remarks.push(format!("{node}: of a {} the next entry alone can be seen", schema.map.r#type));
    }
    if dump.per_cpu.is_some() && !schema.is_per_cpu() {
        let kind = &schema.map.r#type;
        remarks.push(format!("{node}: map {}, a {kind}, has one value for all CPUs: --per-cpu says nothing", dump.map));
    }
    remarks
}

/// The frames of a map, and how they ended.
pub async fn receive(
    agent: &Agent,
    mut stream: Frames<MapFrame>,
    progress: &ProgressBar,
    per_cpu: Option<PerCpu>,
    mut on: impl FnMut(&Schema, &RawEntries, &mut Entries) -> Result<(), Error>,
) -> Result<(Contents, End), Error> {
    let (mut schema, mut queue) = (None, Queue::default());
    let (mut entries, mut inner, mut inside) = (Entries::default(), BTreeMap::<Vec<u8>, Inner>::new(), None);
    loop {
        let next = within(agent.timeout, "reading the map", stream.next()).await;
        match next.map_err(|error| queue.late(&agent.node, error))?.and_then(|message| message.frame) {
            Some(Frame::Queued(queued)) => {
                queue.hear(queued.before);
                progress.set_message(format!(", waits in line, {}", place(queued.before)));
                // Where nobody sees the bar.
                if progress.is_hidden() {
                    queue.note(&agent.node, Instant::now()).into_iter().for_each(note);
                }
            }
            Some(Frame::Schema(message)) => {
                queue.leave();
                progress.set_message("");
                schema = Some(Schema::new(message)?);
            }
            Some(Frame::Raw(frame)) => {
                let schema = schema.as_ref().ok_or(Error::Schema("entries came before the description"))?;
                match inside.as_ref().and_then(|key: &Vec<u8>| inner.get_mut(key)) {
                    Some(inner) => inner.add(&frame)?,
                    None => on(schema, &frame, &mut entries)?,
                }
                progress.inc(u64::from(frame.count));
            }
            Some(Frame::Inner(message)) => {
                let key = message.key.to_vec();
                inside = message.schema.is_some().then(|| key.clone());
                if !key.is_empty() {
                    let schema = message.schema.map(Schema::new).transpose()?;
                    inner.insert(key, Inner { schema, reason: message.reason, ..Inner::default() });
                }
            }
            Some(Frame::Decoded(_) | Frame::Changes(_)) => {
                return Err(Error::Schema("decoded entries or changes, which nobody asked for"));
            }
            Some(Frame::End(end)) => {
                if end.raced > 0 {
                    let left_out = counted(
                        end.raced,
                        "entry that changed while it was read is",
                        "entries that changed while they were read are",
                    );
                    note(format_args!("{}: {left_out} left out", agent.node));
                }
                let schema = schema.ok_or(Error::Schema("it has no description"))?;
                let contents = Contents::new(agent.node.clone(), schema, entries, per_cpu);
                return Ok((Contents { inner, ..contents }, end));
            }
            None => return Err(stream.cut()),
        }
    }
}

impl Inner {
    fn add(&mut self, frame: &RawEntries) -> Result<(), Error> {
        let schema = self.schema.as_ref().ok_or(Error::Schema("entries of an inner map without a description"))?;
        self.entries.extend(unpack(schema, frame)?);
        Ok(())
    }
}

impl Contents {
    pub fn new(node: String, schema: Schema, entries: Entries, per_cpu: Option<PerCpu>) -> Self {
        Contents { node, schema, entries, inner: BTreeMap::new(), per_cpu, names: Names::default() }
    }

    /// Numbers that the node may have names for.
    pub fn ids(&self) -> names::Ids {
        let inner = self.inner.values().flat_map(Inner::each);
        let all = self.entries.iter().map(|entry| (&self.schema, entry)).chain(inner);
        all.flat_map(|(schema, entry)| {
            let all = columns(&schema.key, &schema.value);
            let numbers = all.iter().filter(|column| column.is_id()).filter_map(|column| match column.side {
                Side::Key => column.id(&entry.key(schema)),
                Side::Value => column.id(&entry.one(schema)),
            });
            numbers.collect::<Vec<_>>()
        })
        .collect()
    }

    /// By key.
    pub fn sort(&mut self) {
        self.entries.sort(&self.schema.key);
        for inner in self.inner.values_mut() {
            if let Some(schema) = &inner.schema {
                inner.entries.sort(&schema.key);
            }
        }
    }
}

/// Whether its values are maps.
fn of_maps(schema: &Schema) -> bool {
    schema.map.r#type.ends_with("_of_maps")
}

/// Prints them; `nodes`: rows say of which node they are.
pub fn print(all: &[Contents], format: DumpFormat, nodes: bool) -> Result<(), Error> {
    match format {
        DumpFormat::Json => rows::print(all, Form::List, |piece| output::print_bytes(&piece)),
        DumpFormat::Jsonl => rows::print(all, Form::Lines, |piece| output::print_bytes(&piece)),
        other => output::print(&render(all, other, nodes)),
    }
}

/// The whole output; `nodes`: rows say of which node they are.
pub fn render(all: &[Contents], format: DumpFormat, nodes: bool) -> String {
    match format {
        DumpFormat::Table => table(all, nodes),
        DumpFormat::Json => json(all, Form::List),
        DumpFormat::Yaml => output::yaml(&all.iter().flat_map(rows).collect::<Vec<_>>()),
        DumpFormat::Jsonl => json(all, Form::Lines),
        DumpFormat::Csv => csv(all, nodes),
        DumpFormat::Raw => raw(all, nodes),
    }
}

fn json(all: &[Contents], form: Form) -> String {
    let mut text = Vec::new();
    // Into memory: nothing can fail.
    let _ = rows::print(all, form, |piece| {
        text.extend(piece);
        Ok(())
    });
    String::from_utf8(text).unwrap_or_default()
}

/// The table's cells as RFC 4180 has them. Nodes that do not agree on the types, as during a rollout, have a header each.
fn csv(all: &[Contents], nodes: bool) -> String {
    let mut writer = csv::WriterBuilder::new().flexible(true).from_writer(Vec::new());
    for alike in alike(all) {
        let mut rows = std::iter::once(titles(alike[0], nodes)).chain(cells(&alike, nodes));
        // Into memory: nothing can fail.
        let _ = rows.try_for_each(|row| writer.write_record(row));
    }
    String::from_utf8(writer.into_inner().unwrap_or_default()).unwrap_or_default()
}

fn raw(all: &[Contents], nodes: bool) -> String {
    let mut text = String::new();
    for contents in all {
        for entry in contents.entries.iter() {
            if nodes {
                text.push_str(&contents.node);
                text.push(' ');
            }
            text.push_str(&entry.raw(&contents.schema));
            text.push('\n');
            // Below the outer map's entry, set in.
            let inner = contents.inner.get(entry.key);
            for (schema, entry) in inner.iter().flat_map(|inner| inner.each()) {
                text.push_str(&format!("  {}\n", entry.raw(schema)));
            }
        }
    }
    text
}

/// One table for all nodes that agree on the types; during a rollout they may not, then one for each kind.
fn table(all: &[Contents], nodes: bool) -> String {
    let one = |alike: Vec<&Contents>| {
        let mut table = Table::new(titles(alike[0], nodes), 0);
        cells(&alike, nodes).for_each(|row| table.row(row));
        table.render()
    };
    alike(all).into_iter().map(one).collect::<Vec<_>>().join("\n")
}

/// Contents by the types of their entries; no part is empty.
fn alike(all: &[Contents]) -> Vec<Vec<&Contents>> {
    let types = |c: &Contents| (c.schema.key.clone(), c.schema.value.clone(), c.innermost().cloned());
    let mut rest: Vec<&Contents> = all.iter().collect();
    let mut parts = Vec::new();
    while let Some(first) = rest.first().copied() {
        let (part, others) = rest.into_iter().partition(|c| types(first) == types(c));
        parts.push(part);
        rest = others;
    }
    parts
}

impl Inner {
    /// Its entries, and what they mean.
    fn each(&self) -> impl Iterator<Item = (&Schema, Entry<'_>)> {
        self.schema.iter().flat_map(|schema| self.entries.iter().map(move |entry| (schema, entry)))
    }
}

impl Contents {
    /// What the entries of the inner maps mean: they are made alike.
    fn innermost(&self) -> Option<&Schema> {
        self.inner.values().find_map(|inner| inner.schema.as_ref())
    }
}

fn titles(of: &Contents, nodes: bool) -> Vec<String> {
    let own = columns(&of.schema.key, &of.schema.value).into_iter().map(|c| c.title);
    let inner = of.innermost().map(|schema| columns(&schema.key, &schema.value)).unwrap_or_default();
    let inner = inner.into_iter().map(|c| format!("INNER.{}", c.title));
    nodes.then(|| "NODE".to_owned()).into_iter().chain(own).chain(inner).collect()
}

/// A row for each entry; of a map of maps one for each of an inner map's, and one for an inner map that has none.
fn cells<'a>(alike: &'a [&'a Contents], nodes: bool) -> impl Iterator<Item = Vec<String>> + 'a {
    let entries = alike.iter().flat_map(|contents| contents.entries.iter().map(move |entry| (*contents, entry)));
    entries.flat_map(move |(contents, entry)| {
        let lead = nodes.then(|| contents.node.clone());
        let own: Vec<String> = lead.into_iter().chain(row(&contents.schema, entry, contents)).collect();
        let inner = contents.inner.get(entry.key).into_iter().flat_map(Inner::each);
        let mut rows: Vec<Vec<String>> =
            inner.map(|(schema, entry)| own.iter().cloned().chain(row(schema, entry, contents)).collect()).collect();
        if rows.is_empty() {
            rows.push(own);
        }
        rows
    })
}

/// Stands where the CPUs do not agree on what cannot be reduced.
const DIFFERS: &str = "(differs)";

/// The cells of an entry; of a per-CPU one the sums, if nothing else was said.
fn row(schema: &Schema, entry: Entry<'_>, of: &Contents) -> Vec<String> {
    let how = of.per_cpu.map_or(Some(Reduce::Sum), PerCpu::reduce);
    let (key, per_cpu) = (entry.key(schema), schema.is_per_cpu());
    let one = match how {
        Some(how) if per_cpu => percpu::reduce(&schema.value, how, entry.each(schema)),
        Some(_) => entry.values(schema).pop().unwrap_or_default(),
        None => Value::Null,
    };
    let values = if how.is_none() { entry.values(schema) } else { Vec::new() };
    let named = |c: &Column, whole: &Value| match c.id(whole) {
        Some((kind, id)) => of.names.beside(kind, id, c.cell(whole)),
        None => c.cell(whole),
    };
    let cell = |c: &Column| match (c.side, how) {
        (Side::Key, _) => named(c, &key),
        (Side::Value, None) => values.iter().map(|value| c.cell(value)).collect::<Vec<_>>().join(" "),
        (Side::Value, Some(_)) if per_cpu && c.is_null(&one) => DIFFERS.to_owned(),
        (Side::Value, Some(_)) => named(c, &one),
    };
    columns(&schema.key, &schema.value).iter().map(cell).collect()
}
