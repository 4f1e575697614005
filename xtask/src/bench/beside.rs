//! What other users of a node feel while 200 clients dump a map of a million entries over and over.
//!
//! The clients run when nobody else wants to (SCHED_IDLE): elsewhere they are on other machines, and what is measured is the
//! agent.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::figure::{Aim, Figure};
use super::node::{Node, manifest};
use super::{apply, example, percentile};
use crate::{build, step};

pub const NAMES: &[&str] = &[
    "quiet_lookup_p99_us",
    "beside_200_dumps_lookup_p99_us",
    "quiet_apply_to_ready_ms_p99",
    "beside_200_dumps_apply_to_ready_ms_p99",
];
const CLIENTS: usize = 200;
const ENTRIES: u64 = 1_000_000;
const LOOKUPS: u64 = 20_000;
/// Of the scheduler: the longest that a thread runs while another waits, a tick at 250 Hz.
const QUANTUM_MS: f64 = 4.0;

pub fn measure() -> Result<Vec<Figure>> {
    let node = Node::start()?;
    let flows = node.push("xtask/src/bench/flows.bpf.c", "flows")?;
    node.run("flows", &manifest("flows", &flows, "lo").replace("count_xdp", "count_all"))?;
    let mut fill = example("bench_dump");
    step::ask(fill.arg(node.socket()).args(["bench", "flows", "flows", &ENTRIES.to_string()]))?;
    let net = node.push("kernel/tests/c/net.bpf.c", "net")?;
    node.ip(&["link", "add", "first", "type", "veth", "peer", "name", "firstp"])?;
    node.run("first", &manifest("first", &net, "first"))?;

    let quiet_lookups = percentile(&lookups(&node)?, 99);
    let quiet_applies = percentile(&apply::times(&node, &net, "q")?, 99);
    let clients = Clients::start(&node)?;
    let busy_lookups = percentile(&lookups(&node)?, 99);
    let busy_applies = percentile(&apply::times(&node, &net, "d")?, 99);
    let whole = clients.end()?;

    let note = |what: &str| format!("{what}; {whole} dumps were whole meanwhile");
    let aim = |quiet: f64, quantum: f64| Aim::AtMost(1.2 * quiet + quantum);
    Ok(vec![
        Figure::new(NAMES[0], quiet_lookups, "us", Aim::None, format!("{LOOKUPS} one after the other")),
        Figure::new(NAMES[1], busy_lookups, "us", aim(quiet_lookups, QUANTUM_MS * 1e3), note("the same")),
        Figure::new(NAMES[2], quiet_applies, "ms", Aim::None, "50 in turn, the slowest"),
        Figure::new(NAMES[3], busy_applies, "ms", aim(quiet_applies, QUANTUM_MS), note("the same")),
    ])
}

fn lookups(node: &Node) -> Result<Vec<f64>> {
    let mut client = example("bench_lookup");
    client.arg(node.socket()).args(["bench", "flows", "flows", &LOOKUPS.to_string()]);
    let times: Value = serde_json::from_str(&step::ask(&mut client)?)?;
    Ok(times["us"].as_array().context("bench_lookup printed no times")?.iter().filter_map(Value::as_f64).collect())
}

/// Ended when it is dropped.
struct Clients(Child);

impl Clients {
    fn start(node: &Node) -> Result<Self> {
        let mut clients = Command::new("chrt");
        clients.args(["--idle", "0"]).arg(build::binary("examples").join("bench_clients")).arg(node.socket());
        clients.args(["bench", "flows", "flows", &CLIENTS.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut clients = Clients(clients.spawn().context("bench_clients does not start")?);
        let output = clients.0.stdout.as_mut().context("bench_clients has no output")?;
        let mut line = [0; 6];
        std::io::Read::read_exact(output, &mut line).context("bench_clients ended early")?;
        if &line != b"ready\n" {
            bail!("bench_clients is not ready");
        }
        Ok(clients)
    }

    /// How many dumps were whole.
    fn end(mut self) -> Result<u64> {
        drop(self.0.stdin.take());
        let output = self.0.stdout.take().context("bench_clients has no output")?;
        let line = BufReader::new(output).lines().next().context("bench_clients said nothing")??;
        let said: Value = serde_json::from_str(&line)?;
        said["whole"].as_u64().context("bench_clients printed no number")
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}
