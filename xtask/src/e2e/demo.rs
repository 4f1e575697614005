//! The demo on a cluster of one's own, where Skep is installed already: what it prints is what it promises.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::Cluster;
use crate::install::NAMESPACE;
use crate::{cluster, step};

/// This program, also if it was built anew since it was started.
const SELF: &str = "/proc/self/exe";

const PROGRAM: &str = "xdp-counter";
const DUMP: &str = "$ kubectl skep maps dump xdp-counter counters";

/// The demo, with another path of the registry than that of the other tests.
pub fn own_cluster(c: &Cluster) -> Result<()> {
    let registry = format!("{}/of/my-own", cluster::REGISTRY);
    let result = shows(c, &registry);
    c.kubectl(&["delete", "pod/skep-demo-traffic", "--ignore-not-found", "--timeout=30s"])?;
    c.kubectl(&["delete", "ebpf", PROGRAM, "--ignore-not-found", "--timeout=30s"])?;
    result
}

fn shows(c: &Cluster, registry: &str) -> Result<()> {
    let mut demo = Command::new(SELF);
    demo.arg("demo").arg("--kubeconfig").arg(&c.place.kubeconfig).args(["--registry", registry]);
    if let Some(ca) = &c.place.ca {
        demo.arg("--ca").arg(ca);
    }
    let said = step::ask(&mut demo)?;
    for line in [
        "$ kubectl skep get xdp-counter",
        &format!("  helm --namespace {NAMESPACE} uninstall skep"),
        &format!("  export KUBECONFIG={}", c.place.kubeconfig.display()),
    ] {
        ensure!(said.lines().any(|said| said == line), "the demo did not print {line:?}:\n{said}");
    }
    let listed = after(&said, "$ kubectl skep get xdp-counter", "\n\n")?;
    ensure!(listed.contains("1/1") && listed.contains("Ready"), "it is not shown as Ready:\n{listed}");
    let first = packets(after(&said, &format!("{DUMP}\n"), "\n\n")?)?;
    let second = packets(after(&said, &format!("{DUMP}      # a moment later\n"), "\n\n")?)?;
    ensure!(first > 0 && second > first, "{first} packets became {second}:\n{said}");

    let program = c.program(PROGRAM)?;
    let reference = program["spec"]["image"]["reference"].as_str().unwrap_or_default();
    ensure!(reference.starts_with(registry), "{PROGRAM} is of {reference}, not of {registry}");
    let agent = ["get", "daemonset/skep-agent", "-n", NAMESPACE, "-o"];
    let image = c.kubectl(&[&agent[..], &["jsonpath={.spec.template.spec.containers[0].image}"]].concat())?;
    ensure!(image.starts_with(registry), "the agent is of {image}, not of {registry}");
    Ok(())
}

/// What stands between two texts.
fn after<'t>(said: &'t str, start: &str, end: &str) -> Result<&'t str> {
    let (_, rest) = said.split_once(start).with_context(|| format!("the demo did not print {start:?}:\n{said}"))?;
    Ok(rest.split_once(end).map_or(rest, |(text, _)| text))
}

/// The sum of a table's column PACKETS.
fn packets(table: &str) -> Result<u64> {
    let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let header = lines.next().with_context(|| format!("no table: {table:?}"))?;
    let column = header.iter().position(|name| *name == "PACKETS").context("the table has no column PACKETS")?;
    lines.map(|cells| Ok(cells.get(column).context("a row is too short")?.parse::<u64>()?)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_added_over_the_rows() {
        let table =
            "ACTION     PROTO   PACKETS   BYTES\nXDP_PASS   6       12        840\nXDP_PASS   17      3         270";
        assert_eq!(packets(table).unwrap(), 15);
        assert!(packets("ACTION   BYTES\n2        1").is_err());
    }
}
