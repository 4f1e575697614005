//! What `kubectl skep` changes: suspend, resume, restart.

use anyhow::{Result, ensure};
use serde_json::Value;

use super::samples::{NODE, talk};
use super::{Cluster, bad_input};

const NAME: &str = "xdp-counter";

/// (the function's kernel id, how many targets it is on)
fn kernel(c: &Cluster) -> Result<(Value, u64)> {
    let node = c.on_node(NAME)?;
    Ok((node["functions"].clone(), node["hooks"][0]["targets"].as_u64().unwrap_or_default()))
}

pub fn suspend_resume_restart(c: &Cluster) -> Result<()> {
    let skep = |verb: &str| c.skep(&[verb, NAME, "-n", "default"]);
    let packets = || c.sum(NAME, "counters", "packets", |_| true);
    let before = kernel(c)?;
    ensure!(before.1 > 0, "it is on no interface to begin with");

    skep("suspend")?;
    bad_input::expect(c, NAME, "Suspended", "on no hook")?;
    let suspended = kernel(c)?;
    ensure!(suspended == (before.0.clone(), 0), "it should be loaded, and on no hook: {suspended:?}");
    let still = packets()?;
    talk(c, "web", NODE, 3)?;
    ensure!(packets()? == still, "a suspended program counted");
    ensure!(skep("suspend")?.contains("already"), "it was suspended twice");

    skep("resume")?;
    bad_input::expect(c, NAME, "Ready", "")?;
    ensure!(kernel(c)? == before, "it should be as before: {before:?} became {:?}", kernel(c)?);
    talk(c, "web", NODE, 3)?;
    let resumed = packets()?;
    ensure!(resumed >= still + 3, "a resumed program counts: {still} became {resumed}");

    let revision = c.program(NAME)?["status"]["revision"].clone();
    skep("restart")?;
    crate::install::until("the new revision is Ready", std::time::Duration::from_secs(20), || {
        let status = c.program(NAME)?["status"].clone();
        Ok(status["revision"] != revision && status["summary"]["reason"] == "Ready")
    })?;
    let restarted = kernel(c)?;
    ensure!(restarted.0 != before.0 && restarted.1 == before.1, "it should be loaded anew: {before:?}, {restarted:?}");
    ensure!(packets()? >= resumed, "the map was not kept");
    Ok(())
}
