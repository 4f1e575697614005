//! What `kubectl skep` changes: suspend, resume, restart.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::samples::{NODE, talk};
use super::{Cluster, bad_input, samples};
use crate::install::until;

const NAME: &str = "xdp-counter";
const SHOWN: Duration = Duration::from_secs(5);

/// (the function's kernel id, how many targets it is on)
fn kernel(c: &Cluster) -> Result<(Value, u64)> {
    let node = c.on_node(NAME)?;
    Ok((node["functions"].clone(), node["hooks"][0]["targets"].as_u64().unwrap_or_default()))
}

/// Where a program goes, and what it is called, is no reason to touch it where it stays.
pub fn labels_and_node_selector(c: &Cluster) -> Result<()> {
    let (before, seen) = (super::restart::identity(c, NAME)?, c.program(NAME)?);
    c.kubectl(&["label", "ebpf", NAME, "team=net"])?;
    let patch = r#"{"spec": {"nodeSelector": {"matchLabels": {"kubernetes.io/os": "linux"}}}}"#;
    c.kubectl(&["patch", "ebpf", NAME, "--type=merge", "-p", patch])?;
    until("the new selector is taken up", Duration::from_secs(10), || {
        let now = c.program(NAME)?;
        Ok(now["status"]["observedGeneration"] == now["metadata"]["generation"]
            && now["metadata"]["generation"] != seen["metadata"]["generation"])
    })?;
    let now = c.program(NAME)?;
    ensure!(now["status"]["revision"] == seen["status"]["revision"], "the revision changed: {}", now["status"]);
    ensure!(now["status"]["summary"]["ready"] == "1/1", "{}", now["status"]);
    // Longer than a node's status waits to be written.
    std::thread::sleep(Duration::from_secs(3));
    let after = super::restart::identity(c, NAME)?;
    ensure!(after == before, "{before} became {after}");
    Ok(())
}

pub fn suspend_resume_restart(c: &Cluster) -> Result<()> {
    let skep = |verb: &str| c.skep(&[verb, NAME, "-n", "default"]);
    let packets = || c.sum(NAME, "counters", "packets", |_| true);
    let before = kernel(c)?;
    ensure!(before.1 > 0, "it is on no interface to begin with");

    skep("suspend")?;
    bad_input::expect(c, NAME, "Suspended", "on no hook")?;
    // What is on nodes is written a moment after the program's own status.
    let shown = |what: &str, wanted: &(Value, u64)| {
        until(what, SHOWN, || Ok(kernel(c)? == *wanted)).with_context(|| format!("{wanted:?} became {:?}", kernel(c)))
    };
    shown("loaded, and on no hook", &(before.0.clone(), 0))?;
    let still = packets()?;
    talk(c, "web", NODE, 3)?;
    ensure!(packets()? == still, "a suspended program counted");
    ensure!(skep("suspend")?.contains("already"), "it was suspended twice");

    skep("resume")?;
    bad_input::expect(c, NAME, "Ready", "")?;
    shown("as before", &before)?;
    talk(c, "web", NODE, 3)?;
    let resumed = packets()?;
    ensure!(resumed >= still + 3, "a resumed program counts: {still} became {resumed}");

    // Nor does whoever wants it off its hooks wait for a tag that is not there.
    let manifest = samples::xdp_counter_manifest(c)?;
    let image = c.program(NAME)?["spec"]["image"]["reference"].as_str().unwrap_or_default().to_owned();
    ensure!(manifest.contains(&image), "the sample names {image}");
    c.place.apply(&manifest.replace(&image, &format!("{}/nobody-pushed-it:v1", c.place.registry)))?;
    bad_input::expect(c, NAME, "ImageNotFound", "the registry does not have it")?;
    shown("what ran runs on", &before)?;
    skep("suspend")?;
    shown("off its hooks", &(before.0.clone(), 0))?;
    skep("resume")?;
    shown("on its hooks again", &before)?;
    c.place.apply(&manifest)?;
    bad_input::expect(c, NAME, "Ready", "")?;
    shown("as before, of the same load", &before)?;

    let revision = c.program(NAME)?["status"]["revision"].clone();
    skep("restart")?;
    until("the new revision is Ready", Duration::from_secs(20), || {
        let status = c.program(NAME)?["status"].clone();
        Ok(status["revision"] != revision && status["summary"]["reason"] == "Ready")
    })?;
    until("it is loaded anew", SHOWN, || kernel(c).map(|now| now.0 != before.0 && now.1 == before.1))?;
    ensure!(packets()? >= resumed, "the map was not kept");
    Ok(())
}
