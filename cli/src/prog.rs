//! `prog ls` and `prog log`: the functions of programs, as the kernel has them.

use serde::Serialize;
use skep_proto::v1::{FunctionFacts, FunctionStats, FunctionVerdict, StatsFrame, VerifyProgramRequest};

use crate::args::{Global, MapsFormat, ProgLog, ProgLs, PushFormat};
use crate::deadline::within;
use crate::error::Error;
use crate::maps::bytes;
use crate::output::{self, note};
use crate::source::{self, Access, Answers, Of};
use crate::table::{Table, printable};

/// A function on a node; also the shape of `-o json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    pub node: String,
    pub namespace: String,
    pub program: String,
    pub function: String,
    /// The kernel's id, as in `bpftool prog show id`.
    pub id: u32,
    pub tag: String,
    /// The kernel's name of the type: `sched_cls`.
    #[serde(rename = "type")]
    pub type_: String,
    pub loaded_at: String,
    pub uid: u32,
    pub gpl_compatible: bool,
    /// Bytes of instructions, as the verifier left them.
    pub translated_bytes: u32,
    /// As the CPU runs them; 0: interpreted.
    pub jited_bytes: u32,
    /// Bytes charged.
    pub memlock: u64,
    pub maps: Vec<Map>,
    pub links: Vec<Link>,
    pub btf_id: u32,
    pub verified_insns: u32,
    /// As far as anybody watched them.
    pub run_count: u64,
    pub run_time_ns: u64,
    pub recursion_misses: u64,
    /// It and the functions that it calls.
    pub subprograms: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Map {
    pub name: String,
    pub id: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Link {
    pub id: u32,
    pub hook: String,
    pub target: String,
}

/// One of a function's functions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Part {
    pub name: String,
    pub signature: String,
    /// Its first instruction, in slots of eight bytes.
    pub offset: u32,
}

impl Row {
    fn new(node: &str, facts: FunctionFacts) -> Self {
        let (program, stats) = (facts.program.unwrap_or_default(), facts.stats.unwrap_or_default());
        let link = |link: skep_proto::v1::FunctionLink| Link { id: link.id, hook: link.hook, target: link.target };
        let part =
            |part: skep_proto::v1::Subprogram| Part { name: part.name, signature: part.signature, offset: part.offset };
        Row {
            node: node.to_owned(),
            namespace: program.namespace,
            program: program.name,
            function: facts.function,
            id: facts.id,
            tag: facts.tag,
            type_: facts.r#type,
            loaded_at: facts.loaded_at,
            uid: facts.uid,
            gpl_compatible: facts.gpl_compatible,
            translated_bytes: facts.translated_bytes,
            jited_bytes: facts.jited_bytes,
            memlock: facts.memlock,
            maps: facts.maps.into_iter().map(|map| Map { name: map.name, id: map.id }).collect(),
            links: facts.links.into_iter().map(link).collect(),
            btf_id: facts.btf_id,
            verified_insns: facts.verified_insns,
            run_count: stats.run_count,
            run_time_ns: stats.run_time_ns,
            recursion_misses: stats.recursion_misses,
            subprograms: facts.subprograms.into_iter().map(part).collect(),
        }
    }
}

/// What is loaded of a program, or of all, on each node.
pub async fn functions(global: &Global, of: Of<'_>, node: Option<&str>) -> Result<Answers<Vec<Row>>, Error> {
    let name = if let Of::Program(name) = of { name } else { "" };
    let asked = |agent: crate::agent::Agent, namespace: String| async move {
        let functions = agent.functions(&namespace, name).await?;
        Ok(functions.into_iter().map(|facts| Row::new(&agent.node, facts)).collect::<Vec<_>>())
    };
    source::ask(global, Access::Read, node, of, asked).await
}

/// `prog ls`.
pub async fn ls(global: &Global, ls: &ProgLs) -> Result<(), Error> {
    let name = ls.name.as_deref().unwrap_or_default();
    let of = if ls.all_namespaces { Of::Everything } else { ls.name.as_ref().into() };
    let answers = functions(global, of, ls.node.as_deref()).await?;
    let mut rows: Vec<&Row> = answers.answers.iter().flatten().collect();
    let order =
        |row: &Row| (row.namespace.clone(), row.program.clone(), row.function.clone(), row.node.clone(), row.id);
    rows.sort_by_cached_key(|row| order(row));
    if rows.is_empty() && ls.name.is_some() {
        return Err(Error::Absent(format!("EbpfProgram {name} has nothing loaded there")));
    }
    let namespaces = ls.all_namespaces || global.socket.is_some() && global.namespace.is_none();
    match ls.output {
        MapsFormat::Json => output::print(&output::json(&rows))?,
        MapsFormat::Yaml => output::print(&output::yaml(&rows))?,
        MapsFormat::Table | MapsFormat::Wide if rows.is_empty() => note("no functions found"),
        format => output::print(&render(&rows, namespaces, answers.several, format == MapsFormat::Wide))?,
    }
    answers.complete()
}

fn render(rows: &[&Row], namespaces: bool, nodes: bool, wide: bool) -> String {
    let titles =
        ["PROGRAM", "FUNCTION", "TYPE", "ID", "TAG", "MEMORY", "INSNS VERIFIED", "LINKS", "LOADED", "ON", "MAPS"];
    let shown = if wide { titles.len() } else { titles.len() - 2 };
    let titles = titles.into_iter().take(shown);
    let lead = |namespace, node| [(namespaces, namespace), (nodes, node)].into_iter().filter(|(wanted, _)| *wanted);
    let mut table = Table::new(lead("NAMESPACE", "NODE").map(|(_, title)| title).chain(titles), 0);
    for row in rows {
        let numbers = [row.id, row.verified_insns].map(|number| number.to_string());
        let (memory, links) = (bytes(row.memlock), row.links.len().to_string());
        // Seconds are enough.
        let loaded = row.loaded_at.split_once('.').map_or(row.loaded_at.clone(), |(seconds, _)| format!("{seconds}Z"));
        let [id, verified] = numbers.each_ref().map(String::as_str);
        let on: Vec<String> = row.links.iter().map(|link| format!("{} {}", link.hook, link.target)).collect();
        let maps: Vec<&str> = row.maps.iter().map(|map| map.name.as_str()).collect();
        let (on, maps) = (on.join(", "), maps.join(", "));
        let first = [row.program.as_str(), &row.function, &row.type_, id, &row.tag, &memory, verified, &links, &loaded];
        let own = first.into_iter().chain([on.as_str(), &maps]).take(shown);
        table.row(lead(row.namespace.as_str(), row.node.as_str()).map(|(_, cell)| cell).chain(own));
    }
    table.render()
}

/// What the verifier says of a function on a node; the shape of `-o json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Verdict {
    node: String,
    function: String,
    accepted: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    log: String,
}

/// `prog log`.
pub async fn log(global: &Global, log: &ProgLog) -> Result<(), Error> {
    let asked = |agent: crate::agent::Agent, namespace: String| async move {
        let program = Some(agent.program(&namespace, &log.name).await?);
        let request = VerifyProgramRequest { program, function: log.function.clone().unwrap_or_default() };
        let mut stream = agent.verify(request).await?;
        let mut verdicts: Vec<Verdict> = Vec::new();
        let mut more = false;
        while let Some(frame) = within(agent.timeout, "reading the log", stream.next()).await? {
            let FunctionVerdict { function, accepted, reason, message, log, .. } = frame;
            match verdicts.last_mut().filter(|_| more) {
                Some(last) => last.log.push_str(&log),
                None => verdicts.push(Verdict { node: agent.node.clone(), function, accepted, reason, message, log }),
            }
            more = frame.more;
        }
        Ok(verdicts)
    };
    let answers = source::ask(global, Access::Read, log.node.as_deref(), Some(&log.name), asked).await?;
    let verdicts: Vec<&Verdict> = answers.answers.iter().flatten().collect();
    output::print(&match log.output {
        PushFormat::Json => output::json(&verdicts),
        PushFormat::Text => verdicts.iter().map(|verdict| verdict.text()).collect::<Vec<_>>().join("\n"),
    })?;
    answers.complete()
}

impl Verdict {
    fn text(&self) -> String {
        let Verdict { node, function, reason, message, .. } = self;
        let head = match self.accepted {
            true => format!("# {function} on {node}: accepted"),
            false => format!("# {function} on {node}: {reason}: {}", printable(message)),
        };
        let lines = self.log.lines().map(printable);
        std::iter::once(head).chain(lines).map(|line| line + "\n").collect()
    }
}

/// How busy a function is.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Busy {
    pub node: String,
    pub namespace: String,
    pub program: String,
    pub function: String,
    pub id: u32,
    pub runs_per_second: f64,
    pub ns_per_run: f64,
    /// Of one CPU.
    pub cpu_percent: f64,
    /// Since the look before.
    pub recursion_misses: u64,
}

/// What happened between two frames. A function that is new in the second has nothing to be compared with.
pub(crate) fn busy(node: &str, before: &[FunctionStats], frame: &StatsFrame) -> Vec<Busy> {
    let seconds = frame.elapsed_us as f64 / 1e6;
    let of = |now: &FunctionStats| {
        let was = before.iter().find(|was| was.id == now.id)?.stats.unwrap_or_default();
        let (is, program) = (now.stats.unwrap_or_default(), now.program.clone().unwrap_or_default());
        let runs = is.run_count.saturating_sub(was.run_count) as f64;
        let time = is.run_time_ns.saturating_sub(was.run_time_ns) as f64;
        Some(Busy {
            node: node.to_owned(),
            namespace: program.namespace,
            program: program.name,
            function: now.function.clone(),
            id: now.id,
            runs_per_second: runs / seconds,
            ns_per_run: if runs > 0.0 { time / runs } else { 0.0 },
            cpu_percent: time / seconds / 1e7,
            recursion_misses: is.recursion_misses.saturating_sub(was.recursion_misses),
        })
    };
    frame.functions.iter().filter_map(of).collect()
}

/// What comes after the names.
pub(crate) fn cells(row: &Busy) -> [String; 5] {
    [
        row.id.to_string(),
        format!("{:.1}", row.runs_per_second),
        format!("{:.0}", row.ns_per_run),
        format!("{:.2}%", row.cpu_percent),
        row.recursion_misses.to_string(),
    ]
}

pub(crate) fn table(rows: &[&Busy], nodes: bool, namespaces: bool) -> String {
    let titles = ["PROGRAM", "FUNCTION", "ID", "RUNS/S", "NS/RUN", "CPU", "MISSES"];
    let lead = |node, namespace| nodes.then_some(node).into_iter().chain(namespaces.then_some(namespace));
    let mut table = Table::new(lead("NODE", "NAMESPACE").chain(titles), 0);
    for row in rows {
        let cells = cells(row);
        let own = [row.program.as_str(), &row.function].into_iter().chain(cells.iter().map(String::as_str));
        table.row(lead(row.node.as_str(), row.namespace.as_str()).chain(own));
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_proto::v1::{ProgramRef, RunStats};

    #[test]
    fn what_happened_between_two_frames_is_a_rate() {
        let function = |id, run_count, run_time_ns| {
            let program = Some(ProgramRef { namespace: "net".into(), name: "flows".into() });
            let stats = Some(RunStats { run_count, run_time_ns, recursion_misses: 0 });
            FunctionStats { program, function: "count".into(), id, stats }
        };
        let before = [function(1, 100, 1_000)];
        let frame = StatsFrame { elapsed_us: 500_000, functions: vec![function(1, 600, 101_000), function(2, 9, 9)] };
        let rows = busy("n1", &before, &frame);
        let shown = table(&rows.iter().collect::<Vec<_>>(), true, false);
        let wanted = "NODE   PROGRAM   FUNCTION   ID   RUNS/S   NS/RUN   CPU     MISSES\n\
                      n1     flows     count      1    1000.0   200      0.02%   0\n";
        assert_eq!(shown, wanted, "one that is new has no rate yet");
    }
}
