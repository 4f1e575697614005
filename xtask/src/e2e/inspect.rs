//! What people do with maps and events beside looking.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Cluster, NODE_NAME};
use crate::install::{NAMESPACE, chart, until};
use crate::step;

/// What changes in a map is told as it changes, and what grows most is a table.
pub fn watched(c: &Cluster) -> Result<()> {
    c.place.apply(&c.place.example("exec-events")?)?;
    c.ready("exec-events")?;
    let watch = |args: &[&str]| {
        let mut watch = c.place.kubectl_skep(&[&["maps"], args, &["-n", "default", "-o", "json"]].concat());
        watch.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
    };
    let changes = watch(&["watch", "exec-events", "execs", "--interval", "1s", "--looks", "8"])?;
    let top = watch(&["top", "exec-events", "execs", "--looks", "4", "--interval", "2s", "--limit", "50"])?;
    for _ in 0..8 {
        c.exec("web", "for i in 1 2 3; do /bin/ls / > /dev/null; done")?;
        std::thread::sleep(Duration::from_secs(1));
    }
    let lines = |child: std::process::Child| -> Result<Vec<Value>> {
        let output = child.wait_with_output()?;
        let (text, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "{text} {said}");
        Ok(text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
    };
    let (changes, tables) = (lines(changes)?, lines(top)?);
    // The sample's key is 16 bytes.
    let is_ls =
        |row: &Value| row["key"][0] == u32::from(b'l') && row["key"][1] == u32::from(b's') && row["key"][2] == 0;
    ensure!(changes.iter().any(is_ls), "nothing was told of what changed: {changes:?}");
    for change in &changes {
        ensure!(change["node"] == NODE_NAME && change["change"] != "removed", "{change}");
        ensure!(change["rates"].as_f64().is_some_and(|rate| rate > 0.0), "it was told and did not grow: {change}");
    }
    let mut rows = tables.iter().filter_map(Value::as_array).flatten();
    ensure!(rows.any(|row| is_ls(row) && row["rate"].as_f64() > Some(0.0)), "ls grows: {tables:?}");

    let functions: Value =
        serde_json::from_str(&c.skep(&["prog", "ls", "exec-events", "-n", "default", "-o", "json"])?)?;
    let function = &functions[0];
    ensure!(function["node"] == NODE_NAME && function["type"] == "tracepoint", "{functions}");
    ensure!(function["links"][0]["target"].as_str().is_some_and(|t| t.contains("sched_process_exec")), "{function}");
    // What the node's kernel can do came from its agent to the operator, and from there to whoever asks.
    let nodes: Value = serde_json::from_str(&c.skep(&["features", "-o", "json"])?)?;
    ensure!(nodes[0]["btf"] == true && nodes[0]["kinds"]["xdp"]["supported"] == true, "features: {nodes}");
    let verdicts: Value =
        serde_json::from_str(&c.skep(&["features", "--for", "exec-events", "-n", "default", "-o", "json"])?)?;
    ensure!(verdicts[0]["runs"] == true, "it runs there: {verdicts}");
    let log = c.skep(&["prog", "log", "exec-events", "-n", "default"])?;
    let accepted = format!("# count_execs on {NODE_NAME}: accepted");
    ensure!(log.starts_with(&accepted) && log.contains("processed "), "{log}");
    let mut top = c.place.kubectl_skep(&["prog", "top", "exec-events", "-n", "default", "-o", "json", "--looks", "6"]);
    let top = top.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    for _ in 0..5 {
        c.exec("web", "/bin/ls / > /dev/null")?;
        std::thread::sleep(Duration::from_millis(700));
    }
    let tables = lines(top)?;
    let mut rows = tables.iter().filter_map(Value::as_array).flatten();
    let busy = |row: &Value| row["runsPerSecond"].as_f64() > Some(0.0) && row["nsPerRun"].as_f64() > Some(0.0);
    ensure!(rows.any(busy), "it ran: {tables:?}");
    everything(c)
}

/// What is of no one namespace: the viewer may see all of them.
fn everything(c: &Cluster) -> Result<()> {
    for list in [["prog", "ls", "-A"], ["maps", "ls", "-A"]] {
        let rows: Value = serde_json::from_str(&c.skep(&[&list[..], &["-o", "json"]].concat())?)?;
        let own = |row: &Value| row["namespace"] == "default" && row["program"] == "exec-events";
        ensure!(rows.as_array().is_some_and(|rows| rows.iter().any(own)), "{list:?}: {rows}");
        let table = c.skep(&list)?;
        ensure!(table.starts_with("NAMESPACE"), "{table}");
    }
    let top = c.skep(&["top", "-A", "--looks", "2", "--interval", "500ms"])?;
    ensure!(top.lines().next().is_some_and(|titles| titles.contains("NAMESPACE")), "{top}");
    ensure!(top.contains("exec-events"), "{top}");
    // bpf_printk of the whole node; nobody prints anything.
    let mut output = c.place.kubectl_skep(&["output"]);
    let mut output = output.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    std::thread::sleep(Duration::from_secs(4));
    let ended = output.try_wait()?;
    output.kill()?;
    let said = output.wait_with_output()?;
    ensure!(ended.is_none(), "output ended: {}", String::from_utf8_lossy(&said.stderr));
    Ok(())
}

/// Maps are written by who may, which is said in an Event; records are followed while they are written.
pub fn written_and_followed(c: &Cluster) -> Result<()> {
    c.place.apply(&c.place.example("exec-log")?)?;
    c.ready("exec-log")?;
    until("the node reports it", Duration::from_secs(10), || Ok(c.on_node("exec-log").is_ok()))?;
    let set = ["maps", "set", "exec-log", "ignored", "httpd", "true", "-n", "default"];
    let on_all = |more: &[&str]| c.skep(&[&set[..], &["--all-nodes"], more].concat());

    let refused = c.skep(&set).err().context("wrote without being told where")?.to_string();
    ensure!(refused.contains("--node NODE, or --all-nodes"), "{refused}");
    let refused = on_all(&[]).err().context("the editor is not there yet")?.to_string();
    ensure!(refused.contains("ServiceAccount skep-editor") && refused.contains("does not exist"), "{refused}");
    let refused = on_all(&["--service-account", "skep-viewer"]).err().context("the viewer wrote")?.to_string();
    ensure!(refused.contains("may not update ebpfprograms/maps in namespace default"), "{refused}");

    let mut upgrade = c.place.helm(&["upgrade", "skep"]);
    upgrade.arg(chart()).args(["--reuse-values", "--set", "editor.create=true", "--wait", "--timeout", "120s"]);
    step::run("helm upgrade", &mut upgrade)?;
    let mut said = String::new();
    // The API server's authorizer hears of a new role a moment later.
    until("the editor may write", Duration::from_secs(20), || {
        said = on_all(&[])?;
        Ok(true)
    })?;
    ensure!(said == format!("{NODE_NAME}: 1 entry written"), "{said}");
    let got = c.skep(&["maps", "get", "exec-log", "ignored", "httpd", "-n", "default", "-o", "json"])?;
    let got: Value = serde_json::from_str(&got)?;
    ensure!(got[0]["value"] == true && got[0]["key"] == "httpd", "{got}");
    let wanted = format!("system:serviceaccount:{NAMESPACE}:skep-editor wrote 1 entry of map ignored");
    until("an Event says who wrote", Duration::from_secs(10), || {
        let events = c.json(&["get", "events.events.k8s.io"])?;
        let mut events = events["items"].as_array().into_iter().flatten();
        let of_it = |e: &&Value| e["reason"] == "MapWritten" && e["note"].as_str().is_some_and(|n| n.contains(&wanted));
        Ok(events.any(|event| of_it(&event)))
    })?;

    let mut follow = c.place.kubectl_skep(&["events", "exec-log", "execs", "--type", "exec", "-n", "default"]);
    follow.args(["--filter", "comm == ls or comm == httpd", "--limit", "3", "-o", "json"]);
    let follow = follow.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let pid = follow.id();
    let followed = std::thread::spawn(move || follow.wait_with_output());
    until("three records come", Duration::from_secs(30), || {
        c.exec("web", "/bin/httpd --help > /dev/null 2>&1; /bin/ls / > /dev/null")?;
        Ok(followed.is_finished())
    })
    .inspect_err(|_| drop(step::ask(std::process::Command::new("kill").arg(pid.to_string()))))?;
    let output = followed.join().map_err(|_| anyhow::anyhow!("the thread that followed ended by a panic"))??;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "events: {} {}", text, String::from_utf8_lossy(&output.stderr));
    let rows: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    ensure!(rows.len() == 3, "{} records were asked for: {text}", 3);
    for row in &rows {
        ensure!(row["node"] == NODE_NAME && row["event"]["comm"] == "ls", "httpd is ignored, and ls is not: {row}");
        ensure!(row["event"]["pid"].as_u64().is_some_and(|pid| pid > 1), "{row}");
    }

    let del = ["maps", "del", "exec-log", "ignored", "httpd", "-n", "default", "--all-nodes"];
    let said = c.skep(&del)?;
    ensure!(said == format!("{NODE_NAME}: 1 entry deleted"), "{said}");
    let absent = c.place.kubectl_skep(&del).output()?;
    ensure!(absent.status.code() == Some(3), "a key that is not there: {}", absent.status);
    c.kubectl(&["delete", "ebpf", "exec-log", "--timeout=30s"]).map(drop)
}
