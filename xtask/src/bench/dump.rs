//! A hash of a million entries, read whole: through the Inspector of an agent, and by bpftool.

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::figure::{Aim, Figure};
use super::node::{Node, manifest};
use super::{example, median, memory_mib};
use crate::{repo, step};

pub const NAMES: &[&str] = &["dump_1m_hash_ms", "bpftool_dump_1m_ms"];
const ENTRIES: u64 = 1_000_000;
const ROUNDS: usize = 5;

pub fn measure() -> Result<Vec<Figure>> {
    let bpftool = repo::find("bpftool").context("bpftool is missing: run `cargo xtask setup --only bpf`")?;
    let node = Node::start()?;
    let reference = node.push("xtask/src/bench/flows.bpf.c", "flows")?;
    node.run("flows", &manifest("flows", &reference, "lo"))?;
    let file = node.path("bpftool.json");
    let (mut ours, mut theirs, mut bytes, mut file_bytes) = (Vec::new(), Vec::new(), 0, 0);
    // In turns: what else the machine does hits both.
    for _ in 0..ROUNDS {
        let dump = dump(&node)?;
        ours.push(dump["ms"].as_f64().context("bench_dump printed no time")?);
        bytes = dump["bytes"].as_u64().unwrap_or(0);
        let start = Instant::now();
        let mut command = Command::new(&bpftool);
        command.args(["-j", "map", "dump", "id", &dump["map_id"].to_string()]);
        let status = command.stdin(Stdio::null()).stdout(File::create(&file)?).status()?;
        theirs.push(start.elapsed().as_secs_f64() * 1e3);
        if !status.success() {
            bail!("bpftool ended with {status}");
        }
        file_bytes = std::fs::metadata(&file)?.len();
    }
    let (ours, theirs) = (median(&ours), median(&theirs));
    let note = format!(
        "median of {ROUNDS}; {ENTRIES} entries, {bytes} bytes; {:.1} times as fast as bpftool; agent then {:.0} MiB",
        theirs / ours,
        memory_mib(node.agent_pid()?, "VmRSS")?
    );
    let reference = format!("median of {ROUNDS}, in turns with the above; -j into a file, {file_bytes} bytes");
    Ok(vec![
        Figure::new(NAMES[0], ours, "ms", Aim::AtMost(theirs), note),
        Figure::new(NAMES[1], theirs, "ms", Aim::None, reference),
    ])
}

/// One dump through the agent's socket; the first fills the map.
fn dump(node: &Node) -> Result<Value> {
    let mut client = example("bench_dump");
    client.arg(node.socket()).args(["bench", "flows", "flows", &ENTRIES.to_string()]);
    let dump: Value = serde_json::from_str(&step::ask(&mut client)?)?;
    if dump["entries"] != ENTRIES {
        bail!("the agent sent {} of {ENTRIES} entries", dump["entries"]);
    }
    Ok(dump)
}
