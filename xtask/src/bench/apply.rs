//! A standalone agent: from the write of a manifest to Ready.

use anyhow::{Context, Result};
use serde_json::Value;

use super::figure::{Aim, Figure};
use super::node::{Node, manifest};
use super::{example, percentile};
use crate::step;

pub const NAMES: &[&str] = &["standalone_apply_to_ready_ms_p50", "standalone_apply_to_ready_ms_p99"];
const MANIFESTS: usize = 50;

pub fn measure() -> Result<Vec<Figure>> {
    let node = Node::start()?;
    let reference = node.push("kernel/tests/c/net.bpf.c", "net")?;
    // Pulls the image: what is measured is the agent and the kernel, not the registry.
    node.run("first", &manifest("first", &reference, "lo"))?;
    let times = times(&node, &reference, "b")?;
    let note = format!("{MANIFESTS} in turn, xdp on a veth each, image cached; rename to Ready, asked every ms");
    Ok(vec![
        Figure::new(NAMES[0], percentile(&times, 50), "ms", Aim::None, note.as_str()),
        Figure::new(NAMES[1], percentile(&times, 99), "ms", Aim::None, format!("of {} the slowest", times.len())),
    ])
}

/// Manifests one after the other, each on a new interface whose name begins so: milliseconds until Ready.
pub fn times(node: &Node, reference: &str, prefix: &str) -> Result<Vec<f64>> {
    let mut client = example("bench_apply");
    client.arg(node.socket()).arg(node.manifests());
    for i in 0..MANIFESTS {
        let interface = format!("{prefix}{i}");
        node.ip(&["link", "add", &interface, "type", "veth", "peer", "name", &format!("{prefix}p{i}")])?;
        let file = node.path(&format!("{interface}.yaml"));
        std::fs::write(&file, manifest(&interface, reference, &interface))?;
        client.arg(file);
    }
    let output: Value = serde_json::from_str(&step::ask(&mut client)?)?;
    let times = output["ms"].as_array().context("bench_apply printed no times")?;
    Ok(times.iter().filter_map(Value::as_f64).collect())
}
