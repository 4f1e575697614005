//! Parts that die and come back.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Cluster;
use super::samples::{NODE, talk};
use crate::cluster;
use crate::install::{NAMESPACE, until};

/// What must not change: programs and links by their kernel ids.
pub fn identity(c: &Cluster, name: &str) -> Result<Value> {
    let node = c.on_node(name)?;
    Ok(serde_json::json!([node["functions"], node["hooks"], node["revision"]]))
}

fn pod(c: &Cluster, component: &str) -> Result<String> {
    let selector = format!("app.kubernetes.io/component={component}");
    c.kubectl(&["get", "pod", "-n", NAMESPACE, "-l", &selector, "-o", "jsonpath={.items[0].metadata.name}"])
}

/// SIGKILL to the operator or to the agent of this cluster; other agents may run on the machine.
pub fn kill(c: &Cluster, component: &str) -> Result<()> {
    let pod = pod(c, component)?;
    let uid = c.kubectl(&["get", "pod", "-n", NAMESPACE, &pod, "-o", "jsonpath={.metadata.uid}"])?;
    cluster::kill_in_pod(&uid, &format!("/skep-{component}"))
}

fn restarts(c: &Cluster, pod: &str) -> Result<String> {
    c.kubectl(&["get", "pod", "-n", NAMESPACE, pod, "-o", "jsonpath={.status.containerStatuses[0].restartCount}"])
}

pub fn agent_killed(c: &Cluster) -> Result<()> {
    let (before, on_pods) = (identity(c, "xdp-counter")?, identity(c, "tcx-flows")?);
    let tcp = || c.sum("xdp-counter", "counters", "packets", |key| key["proto"] == 6);
    let counted = tcp()?;
    let pod = pod(c, "agent")?;
    let restarted = restarts(c, &pod)?;
    kill(c, "agent")?;
    // While nobody is there to look.
    talk(c, "web", NODE, 7)?;
    until("the agent was restarted", Duration::from_secs(60), || Ok(restarts(c, &pod)? != restarted))?;
    until("its maps can be read again", Duration::from_secs(30), || tcp().map(|_| true))?;
    let after = tcp()?;
    ensure!(after >= counted + 7, "7 packets were sent, {counted} became {after}");
    until("the node reports again", Duration::from_secs(20), || Ok(identity(c, "xdp-counter")? == before))
        .with_context(|| format!("before {before}\nafter  {:?}", identity(c, "xdp-counter")))?;
    // What selects pods is itself again when the operator has told of them.
    until("the pods are known again", Duration::from_secs(20), || Ok(identity(c, "tcx-flows")? == on_pods))
        .with_context(|| format!("before {on_pods}\nafter  {:?}", identity(c, "tcx-flows")))
}

/// Makes the tag of tcx-flows name the object of a sample.
fn move_tag(c: &Cluster, sample: &str) -> Result<()> {
    let connection = crate::image::Connection { ca: c.place.ca.clone(), plain_http: false };
    let object = crate::bpf::objects().join(format!("{sample}.o"));
    let reference = format!("{}/tcx-flows:v1", c.place.registry);
    crate::image::Image::Bytecode { object, reference, connection }.run()
}

pub fn moved_tag(c: &Cluster) -> Result<()> {
    move_tag(c, "xdp-counter")?;
    let result = operator_killed(c);
    move_tag(c, "tcx-flows")?;
    result
}

fn operator_killed(c: &Cluster) -> Result<()> {
    let before = identity(c, "tcx-flows")?;
    let digest = c.program("tcx-flows")?["status"]["image"]["digest"].clone();
    let pod = pod(c, "operator")?;
    let restarted = restarts(c, &pod)?;
    kill(c, "operator")?;
    until("the operator was restarted", Duration::from_secs(60), || Ok(restarts(c, &pod)? != restarted))?;
    c.kubectl(&["rollout", "status", "deployment/skep-operator", "-n", NAMESPACE, "--timeout=60s"])?;
    // It leads, which the status of a new program shows.
    c.place.apply(&c.place.example("exec-events")?.replace("name: exec-events", "name: exec-again"))?;
    c.ready("exec-again")?;
    ensure!(c.program("tcx-flows")?["status"]["image"]["digest"] == digest, "the tag was resolved again");
    let after = identity(c, "tcx-flows")?;
    ensure!(after == before, "the node runs something else\nbefore {before}\nafter  {after}");
    c.kubectl(&["delete", "ebpf", "exec-again", "--timeout=20s"]).map(drop)
}

pub fn api_server_away(c: &Cluster) -> Result<()> {
    let before = identity(c, "xdp-counter")?;
    cluster::signal("kube-apiserver", "STOP")?;
    std::thread::sleep(Duration::from_secs(60));
    cluster::signal("kube-apiserver", "CONT")?;
    until("the API server answers", Duration::from_secs(60), || Ok(c.kubectl(&["get", "node"]).is_ok()))?;
    until("a change is carried out", Duration::from_secs(90), || {
        c.place.apply(&c.place.example("exec-events")?.replace("name: exec-events", "name: exec-later"))?;
        c.ready("exec-later").map(|()| true)
    })?;
    c.kubectl(&["delete", "ebpf", "exec-later", "--timeout=30s"])?;
    ensure!(identity(c, "xdp-counter")? == before, "the node's programs changed");
    Ok(())
}
