//! The samples: Ready, and their counters move because of what real pods do, and of those that are selected only.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::Cluster;
use crate::install::until;

fn flow_to(key: &Value, address: &str) -> bool {
    key["destination"] == address
}

fn any(_: &Value) -> bool {
    true
}

/// Connections that nobody takes: each is at least one packet on its way there.
pub fn talk(c: &Cluster, pod: &str, to: &str, count: u32) -> Result<()> {
    let script = format!("i=0; while [ $i -lt {count} ]; do /bin/nc -w 1 {to} 1 < /dev/null; i=$((i+1)); done; true");
    c.exec(pod, &script).map(drop)
}

/// The test cluster's node.
pub const NODE: &str = "10.98.0.1";

/// On pods' own interfaces: the machine's is not the test's to touch.
pub fn xdp_counter_manifest(c: &Cluster) -> Result<String> {
    Ok(c.place.example("xdp-counter")?.replace("primary: true", "match: [\"veth*\"]"))
}

pub fn xdp_counter(c: &Cluster) -> Result<()> {
    c.place.apply(&xdp_counter_manifest(c)?)?;
    c.ready("xdp-counter")?;
    let tcp = || c.sum("xdp-counter", "counters", "packets", |key| key["proto"] == 6);
    let before = tcp()?;
    talk(c, "web", NODE, 5)?;
    let after = tcp()?;
    ensure!(after >= before + 5, "5 packets were sent, {before} became {after}");
    let node = c.on_node("xdp-counter")?;
    ensure!(node["hooks"][0]["targets"].as_u64() >= Some(4), "every pod has an interface: {node}");
    Ok(())
}

pub fn tcx_flows(c: &Cluster) -> Result<()> {
    c.place.apply(&c.place.example("tcx-flows")?)?;
    c.ready("tcx-flows")?;
    let packets = || c.sum("tcx-flows", "flows", "packets", any);
    let before = packets()?;
    let address = |pod: &str| c.kubectl(&["get", "pod", pod, "-o", "jsonpath={.status.podIP}"]);
    let (web, other) = (address("web")?, address("other")?);
    talk(c, "web", &other, 3)?;
    let unselected = c.sum("tcx-flows", "flows", "packets", |key| flow_to(key, &other))?;
    ensure!(unselected == 0, "{unselected} packets into a pod that is not selected counted");
    talk(c, "other", &web, 3)?;
    until("packets into the selected pod are counted", Duration::from_secs(10), || {
        let selected = c.sum("tcx-flows", "flows", "packets", |key| flow_to(key, &web))?;
        Ok(packets()? >= before + 3 && selected >= 3)
    })
}

pub fn exec_events(c: &Cluster) -> Result<()> {
    c.place.apply(&c.place.example("exec-events")?)?;
    c.ready("exec-events")?;
    let count = || c.sum("exec-events", "execs", "", any);
    let before = count()?;
    c.exec("web", "for i in 1 2 3 4 5; do /bin/ls / > /dev/null; done")?;
    let after = count()?;
    ensure!(after >= before + 5, "5 programs were started, {before} became {after}");
    Ok(())
}

pub fn connect_guard(c: &Cluster) -> Result<()> {
    c.place.apply(&c.place.example("connect-guard")?)?;
    c.ready("connect-guard")?;
    let count = || c.sum("connect-guard", "verdicts", "", any);
    let before = count()?;
    talk(c, "other", NODE, 3)?;
    let unselected = count()?;
    ensure!(unselected == before, "connections of a pod that is not selected counted: {before} became {unselected}");
    talk(c, "web", NODE, 3)?;
    let after = count()?;
    ensure!(after >= before + 3, "3 connections were opened, {before} became {after}");
    Ok(())
}

/// Two pods of one image share libc's file; only the selected one counts.
pub fn malloc_sizes(c: &Cluster) -> Result<()> {
    c.place.apply(&c.place.example("malloc-sizes")?)?;
    c.kubectl(&["wait", "--for=jsonpath={.status.summary.ready}=1/1", "ebpf/malloc-sizes", "--timeout=30s"])
        .or_else(|_| c.skep(&["why", "malloc-sizes", "-n", "default"]).and_then(|page| anyhow::bail!("{page}")))?;
    let count = || c.sum("malloc-sizes", "sizes", "", any);
    let work = "i=0; while [ $i -lt 50 ]; do x=$(echo abc$i); i=$((i+1)); done";
    // The selected pod is never quite still: what the other one does must not show in the difference.
    let quiet = || -> Result<u64> {
        let start = count()?;
        c.exec("other-libc", work)?;
        Ok(count()? - start)
    };
    let background = quiet()?;
    let before = count()?;
    c.exec("web-libc", work)?;
    let selected = count()? - before;
    ensure!(selected > 100 && selected > 4 * background, "selected pod: {selected}, the other one: {background}");
    let hist = ["hist", "malloc-sizes", "sizes", "-n", "default", "--scale", "bits"];
    let drawn: Value = serde_json::from_str(&c.skep(&[&hist[..], &["-o", "json"]].concat())?)?;
    let buckets = drawn[0]["buckets"].as_array().cloned().unwrap_or_default();
    let all: f64 = buckets.iter().filter_map(|bucket| bucket["count"].as_f64()).sum();
    ensure!(all >= (before + selected) as f64, "{all} are drawn of {}: {drawn}", before + selected);
    let bars = c.skep(&hist)?;
    ensure!(bars.lines().any(|line| line.ends_with(&"#".repeat(40))), "the longest bar: {bars}");
    Ok(())
}

pub fn changed_global(c: &Cluster) -> Result<()> {
    let map_id = || -> Result<Value> {
        let maps = c.skep(&["maps", "ls", "tcx-flows", "-n", "default", "-o", "json"])?;
        let maps: Value = serde_json::from_str(&maps)?;
        let flows =
            maps.as_array().and_then(|m| m.iter().find(|m| m["name"] == "flows" || m["map"] == "flows")).cloned();
        Ok(flows.map(|m| m["id"].clone()).unwrap_or_default())
    };
    let before = c.program("tcx-flows")?["status"]["revision"].clone();
    let (id, packets) = (map_id()?, c.sum("tcx-flows", "flows", "packets", any)?);
    ensure!(id.is_number(), "maps ls names no id");
    c.place.apply(&c.place.example("tcx-flows")?.replace("sample_rate: 1", "sample_rate: 2"))?;
    until("the new revision is Ready", Duration::from_secs(20), || {
        let now = c.program("tcx-flows")?;
        Ok(now["status"]["revision"] != before && now["status"]["summary"]["ready"] == "1/1")
    })?;
    ensure!(map_id()? == id, "the map was not kept");
    ensure!(c.sum("tcx-flows", "flows", "packets", any)? >= packets, "its contents were not kept");
    Ok(())
}
