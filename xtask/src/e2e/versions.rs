//! Parts of different versions: a chart that is upgraded, and an API that is newer than the operator.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Cluster;
use crate::install::{NAMESPACE, until};
use crate::{install, step};

const CRD: &str = "ebpfprograms.skep.dev";

fn crd_file() -> std::path::PathBuf {
    install::chart().join(format!("crds/{CRD}.yaml"))
}

fn read_crd() -> Result<Value> {
    Ok(serde_yaml_ng::from_str(&std::fs::read_to_string(crd_file())?)?)
}

fn spec_of(crd: &mut Value) -> &mut Value {
    &mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
}

/// Installs an older chart: its CRD has no `spec.globals`.
pub fn install_older(c: &Cluster) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let chart = dir.path().join("skep");
    step::ask(Command::new("cp").arg("-r").arg(install::chart()).arg(&chart))?;
    let mut crd = read_crd()?;
    let fields = spec_of(&mut crd)["properties"].as_object_mut().context("the CRD's spec has no properties")?;
    fields.remove("globals").context("the CRD has no spec.globals")?;
    // The rule that closes an object knows its fields.
    let rules = &mut spec_of(&mut crd)["x-kubernetes-validations"];
    let older = rules.to_string().replace("has(self.globals), ", "").replace("known here: globals, ", "known here: ");
    ensure!(!older.contains("globals") && older.contains("self.maps"), "no rule of the spec names its fields: {older}");
    *rules = older.parse()?;
    std::fs::write(chart.join(format!("crds/{CRD}.yaml")), crd.to_string())?;
    c.place.helm_install(&chart)
}

/// To this chart: its hook brings the new field, and what ran before runs on.
pub fn upgrade(c: &Cluster) -> Result<()> {
    let with_globals = c.place.example("tcx-flows")?;
    ensure!(with_globals.contains("globals:"), "the example sets no globals");
    let refused = c.place.apply(&with_globals).err().context("the older CRD accepts the new field")?;
    ensure!(format!("{refused:#}").contains("known here: image, "), "{refused:#}");
    c.place.apply(&c.place.example("exec-events")?)?;
    c.ready("exec-events")?;
    until("its node shows the program", Duration::from_secs(5), || Ok(c.on_node("exec-events")?["state"] == "Ready"))?;
    let before = super::restart::identity(c, "exec-events")?;

    c.place.helm_install(&install::chart())?;
    c.kubectl(&["rollout", "status", "deployment/skep-operator", "-n", NAMESPACE, "--timeout=60s"])?;
    c.place.apply(&with_globals)?;
    c.ready("tcx-flows")?;
    until("the node reports again", Duration::from_secs(20), || {
        Ok(super::restart::identity(c, "exec-events")? == before)
    })?;
    c.kubectl(&["delete", "ebpf", "exec-events", "tcx-flows", "--timeout=20s"]).map(drop)
}

/// The CRD of a newer Skep, with a hook that this operator has never heard of.
pub fn unknown_kind(c: &Cluster) -> Result<()> {
    let result = with_unknown_kind(c);
    step::ask(&mut c.place.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &path(&crd_file())]))?;
    result?;
    // What can be read again heals.
    c.place.apply(&manifest(c, KNOWN))?;
    c.ready("from-the-future")?;
    c.kubectl(&["delete", "ebpf", "from-the-future", "--timeout=20s"]).map(drop)
}

const KNOWN: &str = "tracepoint: {category: sched, name: sched_process_exec}";

fn manifest(c: &Cluster, hook: &str) -> String {
    let example = c.place.example("exec-events").unwrap_or_default();
    example.replace("name: exec-events", "name: from-the-future").replace(KNOWN, hook)
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

fn with_unknown_kind(c: &Cluster) -> Result<()> {
    c.place.apply(&manifest(c, KNOWN))?;
    c.ready("from-the-future")?;
    // What is on nodes is written a moment after the program is Ready.
    until("its node shows the program", Duration::from_secs(5), || {
        Ok(c.on_node("from-the-future")?["state"] == "Ready")
    })?;
    let before = super::restart::identity(c, "from-the-future")?;

    let mut crd = read_crd()?;
    let attach = &mut spec_of(&mut crd)["properties"]["programs"]["items"]["properties"]["attach"]["items"];
    attach["properties"]["timeTravel"] =
        serde_json::json!({"type": "object", "properties": {"year": {"type": "integer"}}});
    attach.as_object_mut().context("attach has no schema")?.remove("x-kubernetes-validations");
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("crd.json");
    std::fs::write(&file, crd.to_string())?;
    c.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &path(&file)])?;
    until("the new hook is accepted", Duration::from_secs(10), || {
        c.place.apply(&manifest(c, "timeTravel: {year: 2038}")).map(|()| true)
    })?;
    super::bad_input::expect(c, "from-the-future", "ObjectUnreadable", "cannot be decoded")?;
    // Everybody else goes on, under an operator that starts with such an object in its list as well.
    super::restart::kill(c, "operator")?;
    c.place.apply(&c.place.example("exec-events")?.replace("name: exec-events", "name: of-today"))?;
    until("another program becomes Ready", Duration::from_secs(60), || {
        Ok(c.program("of-today")?["status"]["summary"]["ready"] == "1/1")
    })?;
    let now = super::restart::identity(c, "from-the-future")?;
    ensure!(now == before, "the node's state of it changed: {before} became {now}");
    c.kubectl(&["delete", "ebpf", "of-today", "--timeout=20s"]).map(drop)
}
