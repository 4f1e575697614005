//! What an agent weighs that has one program and nothing to do.

use std::time::Duration;

use anyhow::Result;

use super::figure::{Aim, Figure};
use super::node::{Node, manifest};
use super::{median, rss_mib};

pub const NAMES: &[&str] = &["agent_rss_idle_mib"];
const ROUNDS: usize = 3;
const SETTLE: Duration = Duration::from_secs(5);
const AIM: f64 = 20.0;

pub fn measure() -> Result<Vec<Figure>> {
    let mut sizes = Vec::new();
    for _ in 0..ROUNDS {
        let node = Node::start()?;
        let reference = node.push("kernel/tests/c/net.bpf.c", "net")?;
        node.run("net", &manifest("net", &reference, "lo"))?;
        std::thread::sleep(SETTLE);
        sizes.push(rss_mib(node.agent_pid()?)?);
    }
    let note = format!("VmRSS, median of {ROUNDS} agents, {} s after their one xdp program is Ready", SETTLE.as_secs());
    Ok(vec![Figure::new(NAMES[0], median(&sizes), "MiB", Aim::AtMost(AIM), note)])
}
