//! What an agent weighs that has one program and nothing to do.

use std::time::Duration;

use anyhow::Result;

use super::figure::{Aim, Figure};
use super::node::{Node, manifest};
use super::{median, memory_mib};

pub const NAMES: &[&str] = &["agent_rss_idle_mib"];
const ROUNDS: usize = 3;
const SETTLE: Duration = Duration::from_secs(5);
const AIM: f64 = 20.0;

pub fn measure() -> Result<Vec<Figure>> {
    let (mut sizes, mut anonymous) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let node = Node::start()?;
        let reference = node.push("kernel/tests/c/net.bpf.c", "net")?;
        node.run("net", &manifest("net", &reference, "lo"))?;
        std::thread::sleep(SETTLE);
        let pid = node.agent_pid()?;
        sizes.push(memory_mib(pid, "VmRSS")?);
        anonymous.push(memory_mib(pid, "RssAnon")?);
    }
    let note = format!(
        "VmRSS, median of {ROUNDS} agents, {} s after their one xdp program is Ready; RssAnon {:.1} MiB, the rest is the binary",
        SETTLE.as_secs(),
        median(&anonymous)
    );
    Ok(vec![Figure::new(NAMES[0], median(&sizes), "MiB", Aim::AtMost(AIM), note)])
}
