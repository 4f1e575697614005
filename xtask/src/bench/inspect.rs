//! Looking into maps of a million entries: streams beside the kernel's own batches, the command line beside bpftool.

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::figure::{Aim, Figure};
use super::node::{Node, manifest};
use super::scale::cpu_ms;
use super::{example, median, memory_mib, percentile};
use crate::{build, repo, step};

pub const NAMES: &[&str] = &[
    "dump_1m_hash_stream_ms",
    "dump_1m_array_stream_ms",
    "dump_1m_plain_array_stream_ms",
    "dump_1m_percpu_hash_ms",
    "cli_dump_1m_json_s",
    "cli_dump_1m_jsonl_s",
    "bpftool_dump_1m_json_s",
    "lookup_p50_us",
    "watch_100k_map_cpu_percent",
    "agent_rss_during_8_dumps_mib",
    "events_per_s_to_client",
];
const ENTRIES: u64 = 1_000_000;
const FEW: u64 = 100_000;
const LOOKUPS: u64 = 20_000;
const ROUNDS: usize = 5;
const CLI_ROUNDS: usize = 3;
const WATCHED: u64 = 20;
/// Records that are written while a client follows them.
const RECORDS: u64 = 10_000_000;

pub fn measure() -> Result<Vec<Figure>> {
    let bpftool = repo::find("bpftool").context("bpftool is missing: run `cargo xtask setup --only bpf`")?;
    let node = Node::start()?;
    let reference = node.push("xtask/src/bench/flows.bpf.c", "flows")?;
    node.run("flows", &manifest("flows", &reference, "lo").replace("count_xdp", "count_all"))?;
    let mut figures = Vec::new();
    let mut hash = 0;
    for (index, map, aim, entries) in [
        (0, "flows", 1.3, ENTRIES),
        (1, "slots", 0.1, ENTRIES),
        (2, "plain_slots", 1.3, ENTRIES),
        (3, "cpu_flows", 1.3, ENTRIES),
    ] {
        let (mut ours, mut raw, mut bytes) = (Vec::new(), Vec::new(), 0);
        for _ in 0..ROUNDS {
            let dump = dump(&node, map, entries)?;
            let number = |key: &str| dump[key].as_f64().with_context(|| format!("bench_dump printed no {key}"));
            ours.push(number("ms")?);
            raw.push(number("raw_ms")?);
            bytes = dump["bytes"].as_u64().unwrap_or(0);
            if index == 0 {
                hash = dump["map_id"].as_u64().unwrap_or(0);
            }
        }
        let (ours, raw) = (median(&ours), median(&raw));
        let note = format!("median of {ROUNDS}; {bytes} bytes; the kernel's batches alone, in turns: {raw:.0} ms");
        figures.push(Figure::new(NAMES[index], ours, "ms", Aim::AtMost(aim * raw), note));
    }
    figures.extend(command_line(&node, &bpftool, hash)?);

    let mut client = example("bench_lookup");
    client.arg(node.socket()).args(["bench", "flows", "flows", &LOOKUPS.to_string()]);
    let times: Value = serde_json::from_str(&step::ask(&mut client)?)?;
    let times: Vec<f64> = times["us"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
    let note = format!("{} one after the other over the socket; p99 {:.0} us", times.len(), percentile(&times, 99));
    figures.push(Figure::new(NAMES[7], percentile(&times, 50), "us", Aim::AtMost(100.0), note));

    dump(&node, "few", FEW)?;
    let agent = node.agent_pid()?;
    let (before, start) = (cpu_ms(agent)?, Instant::now());
    let mut watch = Command::new(build::binary("kubectl-skep"));
    watch.args(["maps", "watch", "flows", "few", "--interval", "1s", "--looks", &WATCHED.to_string()]);
    step::ask(watch.arg("--socket").arg(node.socket()))?;
    let percent = (cpu_ms(agent)? - before) / start.elapsed().as_secs_f64() / 10.0;
    let note = format!("of one core; {FEW} entries looked at every second, {WATCHED} times, nothing changes");
    figures.push(Figure::new(NAMES[8], percent, "%", Aim::None, note));

    figures.push(eight(&node)?);
    figures.push(events(&node)?);
    Ok(figures)
}

/// Records of 64 bytes that reach a client while the program that writes them has a core of its own. Those that do not are
/// all told as lost, or this is an error.
fn events(node: &Node) -> Result<Figure> {
    let reference = node.push("xtask/src/bench/records.bpf.c", "records")?;
    let programs = "  - name: emit\n    attach:\n    - tcx: {interfaces: {names: [lo]}, direction: Ingress}\n";
    let text = format!(
        "apiVersion: skep.dev/v1alpha1\nkind: EbpfProgram\nmetadata: {{name: records, namespace: bench}}\nspec:\n  image: {{reference: \"{reference}\"}}\n  maps: {{records: {{dropCounter: dropped}}}}\n  programs:\n{programs}"
    );
    node.run("records", &text)?;
    let mut rates = Vec::new();
    let mut lost = (0, 0);
    for _ in 0..CLI_ROUNDS {
        let mut client = example("bench_events");
        client.arg(node.socket()).args(["bench", "records", "records", "emit", &RECORDS.to_string()]);
        let run: Value = serde_json::from_str(&step::ask(&mut client)?)?;
        let number = |key: &str| run[key].as_u64().with_context(|| format!("bench_events printed no {key}"));
        let (received, client, map) = (number("received")?, number("client_lost")?, number("map_lost")?);
        if received + client + map != RECORDS {
            bail!("{received} records arrived, {client} and {map} are told as lost, {RECORDS} were written");
        }
        lost = (lost.0 + client, lost.1 + map);
        rates.push(received as f64 / run["seconds"].as_f64().unwrap_or(f64::INFINITY));
    }
    let note = format!(
        "median of {CLI_ROUNDS}; {RECORDS} records of 64 bytes each; told as lost: {} the client was too slow for, {} without room",
        lost.0, lost.1
    );
    Ok(Figure::new(NAMES[10], median(&rates), "/s", Aim::AtLeast(2_000_000.0), note))
}

/// One dump through the agent's socket; the first fills the map.
fn dump(node: &Node, map: &str, entries: u64) -> Result<Value> {
    let dump: Value = serde_json::from_str(&step::ask(&mut dumping(node, map, entries))?)?;
    if dump["entries"] != entries {
        bail!("the agent sent {} of {entries} entries of {map}", dump["entries"]);
    }
    Ok(dump)
}

fn dumping(node: &Node, map: &str, entries: u64) -> Command {
    let mut client = example("bench_dump");
    client.arg(node.socket()).args(["bench", "flows", map, &entries.to_string()]);
    client
}

/// What people type, beside bpftool, in turns, each into a file.
fn command_line(node: &Node, bpftool: &std::path::Path, hash: u64) -> Result<Vec<Figure>> {
    let file = node.path("dump.json");
    let timed = |command: &mut Command| -> Result<f64> {
        let start = Instant::now();
        let status = command.stdin(Stdio::null()).stdout(File::create(&file)?).stderr(Stdio::null()).status()?;
        if !status.success() {
            bail!("{command:?} ended with {status}");
        }
        Ok(start.elapsed().as_secs_f64())
    };
    let ours = |format: &str| {
        let mut plugin = Command::new(build::binary("kubectl-skep"));
        plugin.args(["maps", "dump", "flows", "flows", "-o", format]).arg("--socket").arg(node.socket());
        plugin
    };
    let (mut json, mut jsonl, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..CLI_ROUNDS {
        json.push(timed(&mut ours("json"))?);
        jsonl.push(timed(&mut ours("jsonl"))?);
        theirs.push(timed(Command::new(bpftool).args(["-j", "map", "dump", "id", &hash.to_string()]))?);
    }
    let (json, jsonl, theirs) = (median(&json), median(&jsonl), median(&theirs));
    let faster =
        |ours: f64| format!("median of {CLI_ROUNDS}, into a file; {:.1} times as fast as bpftool", theirs / ours);
    Ok(vec![
        Figure::new(NAMES[4], json, "s", Aim::AtMost(theirs / 10.0), faster(json) + "; sorted by key"),
        Figure::new(NAMES[5], jsonl, "s", Aim::AtMost(theirs / 10.0), faster(jsonl)),
        Figure::new(NAMES[6], theirs, "s", Aim::None, format!("median of {CLI_ROUNDS}, in turns with the above; -j")),
    ])
}

/// The agent's memory while it serves as many dumps as go on at once.
fn eight(node: &Node) -> Result<Figure> {
    let agent = node.agent_pid()?;
    let begin = |_| -> Result<Child> {
        let mut client = dumping(node, "flows", ENTRIES);
        Ok(client.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?)
    };
    let mut children = (0..8).map(begin).collect::<Result<Vec<_>>>()?;
    let (mut most, before) = (0.0f64, memory_mib(agent, "VmRSS")?);
    while children.iter_mut().any(|child| matches!(child.try_wait(), Ok(None))) {
        most = most.max(memory_mib(agent, "VmRSS")?);
        std::thread::sleep(Duration::from_millis(10));
    }
    for mut child in children {
        if !child.wait()?.success() {
            bail!("a dump beside seven others failed");
        }
    }
    let note = format!("VmRSS at most, looked at every 10 ms; {before:.0} MiB before");
    Ok(Figure::new(NAMES[9], most, "MiB", Aim::None, note))
}
