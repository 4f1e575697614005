//! `maps dump`: what is in a map.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::Value;
use skep_proto::v1::map_frame::Frame;
use skep_proto::v1::{DumpMapRequest, RawEntries};

use crate::agent::Agent;
use crate::args::{DumpFormat, Global, MapsDump};
use crate::columns::{Side, columns};
use crate::deadline::within;
use crate::entries::{Entry, unpack};
use crate::error::Error;
use crate::order::compare;
use crate::output::{self, note};
use crate::schema::Schema;
use crate::source::{self, Access};
use crate::table::Table;

/// A map's contents on one node.
#[derive(Clone, Debug, PartialEq)]
pub struct Contents {
    pub node: String,
    pub schema: Schema,
    pub entries: Vec<Entry>,
}

/// One entry decoded; the shape of `-o json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Row<'a> {
    node: &'a str,
    key: Value,
    /// Of a per-CPU map a list with one value per CPU.
    value: Value,
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
            read(&agent, &namespace, dump, &progress, |schema, frame| {
                let part =
                    Contents { node: agent.node.clone(), schema: schema.clone(), entries: unpack(schema, frame)? };
                progress.suspend(|| output::print(&jsonl(&[part])))
            })
            .await
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
    output::print(&render(&answers.answers, dump.output, answers.several))?;
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
    let mut entries = Vec::new();
    let contents = read(agent, namespace, dump, progress, |schema, frame| {
        entries.extend(unpack(schema, frame)?);
        Ok(())
    })
    .await?;
    Ok(Contents { entries, ..contents })
}

/// Hands on packed entries as they come; returns the contents without them.
async fn read(
    agent: &Agent,
    namespace: &str,
    dump: &MapsDump,
    progress: &ProgressBar,
    mut on: impl FnMut(&Schema, &RawEntries) -> Result<(), Error>,
) -> Result<Contents, Error> {
    let request = DumpMapRequest {
        program: Some(agent.program(namespace, &dump.name).await?),
        map: dump.map.clone(),
        decode: false,
        limit: dump.limit.unwrap_or(0),
        filter: dump.filter.clone().unwrap_or_default(),
        top: dump.top.clone().unwrap_or_default(),
        page: dump.page.as_ref().map(|page| page.0.clone()).unwrap_or_default().into(),
    };
    let mut stream = agent.dump(request).await?;
    let mut schema = None;
    loop {
        let next = within(agent.timeout, "reading the map", async { Ok(stream.message().await?) }).await?;
        match next.and_then(|message| message.frame) {
            Some(Frame::Queued(queued)) => progress.set_message(format!(", {} wait before it", queued.before)),
            Some(Frame::Schema(message)) => {
                progress.set_message("");
                schema = Some(Schema::new(message)?);
            }
            Some(Frame::Raw(frame)) => {
                let schema = schema.as_ref().ok_or(Error::Schema("entries came before the description"))?;
                on(schema, &frame)?;
                progress.inc(u64::from(frame.count));
            }
            Some(Frame::Decoded(_) | Frame::Changes(_)) => {
                return Err(Error::Schema("decoded entries or changes, which nobody asked for"));
            }
            Some(Frame::End(end)) => {
                if end.raced > 0 {
                    note(format_args!(
                        "{}: {} entries changed while they were read and are left out",
                        agent.node, end.raced
                    ));
                }
                let schema = schema.ok_or(Error::Schema("it has no description"))?;
                // Of several nodes each has its own.
                if !end.next_page.is_empty() && (dump.node.is_some() || agent.is_local()) {
                    let page: String = end.next_page.iter().map(|byte| format!("{byte:02x}")).collect();
                    note(format_args!("there may be more: go on with --page {page}"));
                }
                if schema.head_only && end.count > 0 {
                    note(format_args!("{}: of a {} the next entry alone can be seen", agent.node, schema.map.r#type));
                }
                return Ok(Contents { node: agent.node.clone(), schema, entries: Vec::new() });
            }
            None => return Err(Error::Agent(format!("{}: the stream ended too early", agent.node))),
        }
    }
}

impl Contents {
    /// By key: a hash has no order of its own, and the same map should look the same twice.
    fn sort(&mut self) {
        let Contents { schema, entries, .. } = self;
        let mut keyed: Vec<(Value, Entry)> = entries.drain(..).map(|entry| (entry.key(schema), entry)).collect();
        keyed.sort_by(|(a, _), (b, _)| compare(a, b));
        entries.extend(keyed.into_iter().map(|(_, entry)| entry));
    }

    fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        self.entries.iter().map(|entry| {
            let mut values = entry.values(&self.schema);
            let value = match self.schema.is_per_cpu() {
                true => Value::Array(values),
                false => values.pop().unwrap_or_default(),
            };
            Row { node: &self.node, key: entry.key(&self.schema), value }
        })
    }
}

/// The whole output; `nodes`: rows say of which node they are.
pub fn render(all: &[Contents], format: DumpFormat, nodes: bool) -> String {
    match format {
        DumpFormat::Table => table(all, nodes),
        DumpFormat::Json => output::json(&all.iter().flat_map(Contents::rows).collect::<Vec<_>>()),
        DumpFormat::Yaml => output::yaml(&all.iter().flat_map(Contents::rows).collect::<Vec<_>>()),
        DumpFormat::Jsonl => jsonl(all),
        DumpFormat::Csv => csv(all, nodes),
        DumpFormat::Raw => raw(all, nodes),
    }
}

/// An entry a line.
fn jsonl(all: &[Contents]) -> String {
    let mut text = String::new();
    for row in all.iter().flat_map(Contents::rows) {
        text.push_str(&serde_json::to_string(&row).unwrap_or_default());
        text.push('\n');
    }
    text
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
        for entry in &contents.entries {
            if nodes {
                text.push_str(&contents.node);
                text.push(' ');
            }
            text.push_str(&entry.raw(&contents.schema));
            text.push('\n');
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
    let same = |a: &Contents, b: &Contents| a.schema.key == b.schema.key && a.schema.value == b.schema.value;
    let mut rest: Vec<&Contents> = all.iter().collect();
    let mut parts = Vec::new();
    while let Some(first) = rest.first().copied() {
        let (part, others) = rest.into_iter().partition(|c| same(first, c));
        parts.push(part);
        rest = others;
    }
    parts
}

fn titles(of: &Contents, nodes: bool) -> Vec<String> {
    let columns = columns(&of.schema.key, &of.schema.value);
    nodes.then(|| "NODE".to_owned()).into_iter().chain(columns.into_iter().map(|c| c.title)).collect()
}

/// Of per-CPU maps the sums.
fn cells<'a>(alike: &'a [&'a Contents], nodes: bool) -> impl Iterator<Item = Vec<String>> + 'a {
    // They agree on the types.
    let columns = alike.first().map(|first| columns(&first.schema.key, &first.schema.value)).unwrap_or_default();
    let entries = alike.iter().flat_map(|contents| contents.entries.iter().map(move |entry| (contents, entry)));
    entries.map(move |(contents, entry)| {
        let (key, value) = (entry.key(&contents.schema), entry.one(&contents.schema));
        let cells = columns.iter().map(|c| match c.side {
            Side::Key => c.cell(&key),
            Side::Value => c.cell(&value),
        });
        nodes.then(|| contents.node.clone()).into_iter().chain(cells).collect()
    })
}
