//! `maps dump`: what is in a map.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::Value;
use skep_proto::v1::DumpMapRequest;
use skep_proto::v1::map_frame::Frame;

use crate::agent::Agent;
use crate::args::{DumpFormat, Global, MapsDump};
use crate::columns::{Side, columns};
use crate::deadline::within;
use crate::entries::{Entry, unpack};
use crate::error::Error;
use crate::order::compare;
use crate::output::{self, note};
use crate::percpu;
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
    let asked = source::ask(global, Access::Read, dump.node.as_deref(), Some(&dump.name), |agent, namespace| {
        let progress = progress.clone();
        async move { contents(&agent, &namespace, dump, &progress).await }
    })
    .await;
    progress.finish_and_clear();
    let mut answers = asked?;
    if dump.top.is_none() {
        answers.answers.iter_mut().for_each(Contents::sort);
    }
    output::print(&render(&answers.answers, dump.output, answers.several))?;
    answers.complete()
}

/// On a terminal's standard error only, which indicatif sees to.
fn progress() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {human_pos} entries read{msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

async fn contents(agent: &Agent, namespace: &str, dump: &MapsDump, progress: &ProgressBar) -> Result<Contents, Error> {
    let request = DumpMapRequest {
        program: Some(agent.program(namespace, &dump.name).await?),
        map: dump.map.clone(),
        decode: false,
        limit: dump.limit.unwrap_or(0),
        filter: dump.filter.clone().unwrap_or_default(),
        top: dump.top.clone().unwrap_or_default(),
    };
    let mut stream = agent.dump(request).await?;
    let (mut schema, mut entries) = (None, Vec::new());
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
                entries.extend(unpack(schema, &frame)?);
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
                if schema.head_only && !entries.is_empty() {
                    note(format_args!("{}: of a {} the next entry alone can be seen", agent.node, schema.map.r#type));
                }
                return Ok(Contents { node: agent.node.clone(), schema, entries });
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
        DumpFormat::Raw => raw(all, nodes),
    }
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
    let same = |a: &Contents, b: &Contents| a.schema.key == b.schema.key && a.schema.value == b.schema.value;
    let mut rest: Vec<&Contents> = all.iter().collect();
    let mut tables = Vec::new();
    while let Some(first) = rest.first().copied() {
        let (alike, others) = rest.into_iter().partition(|c| same(first, c));
        tables.push(one_table(first, alike, nodes));
        rest = others;
    }
    tables.join("\n")
}

fn one_table(first: &Contents, alike: Vec<&Contents>, nodes: bool) -> String {
    let columns = columns(&first.schema.key, &first.schema.value);
    let node = nodes.then_some("NODE");
    let mut table = Table::new(node.into_iter().chain(columns.iter().map(|c| c.title.as_str())), 0);
    for contents in alike {
        for entry in &contents.entries {
            let key = entry.key(&contents.schema);
            let value = match contents.schema.is_per_cpu() {
                true => percpu::sum(&contents.schema.value, &entry.written(&contents.schema)),
                false => entry.values(&contents.schema).pop().unwrap_or_default(),
            };
            let cells = columns.iter().map(|c| match c.side {
                Side::Key => c.cell(&key),
                Side::Value => c.cell(&value),
            });
            table.row(nodes.then(|| contents.node.clone()).into_iter().chain(cells));
        }
    }
    table.render()
}
