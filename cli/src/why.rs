//! `why`: everything that is known about why a program is not ready.

use futures::stream::{self, StreamExt};
use jiff::Timestamp;

use crate::args::{Global, PageFormat, Why};
use crate::cluster::Cluster;
use crate::connect::Gate;
use crate::error::Error;
use crate::output::{self, note};
use crate::source::Access;
use crate::view::{NodeState, Program};
use crate::{get, page, reports};

/// Degraded nodes whose agents are asked which targets fail; the others most likely say the same.
const ASKED: usize = 8;

/// Runs the command.
pub async fn run(global: &Global, why: &Why) -> Result<(), Error> {
    let program = match &global.socket {
        Some(_) => {
            let found = get::from_socket(global, Some(&why.name)).await?;
            found.into_iter().next().ok_or_else(|| Error::NoProgram(why.name.clone()))?
        }
        None => from_cluster(global, &why.name).await?,
    };
    output::print(&match why.output {
        PageFormat::Text => page::render(&program, &global.skep_namespace, Timestamp::now()),
        PageFormat::Json => output::json(&program),
        PageFormat::Yaml => output::yaml(&program),
    })
}

async fn from_cluster(global: &Global, name: &str) -> Result<Program, Error> {
    let cluster = Cluster::connect(global).await?;
    let (program, uid) = cluster.program(name).await?;
    let mut programs = [program];
    get::states(&cluster, &mut programs).await?;
    let [mut program] = programs;
    match cluster.events(&uid).await {
        Ok(events) => program.events = events,
        Err(e) => note(format_args!("Events are not shown: {e}")),
    }
    if program.nodes.iter().any(|node| node.state == "Degraded")
        && let Err(e) = ask_degraded(&cluster, global, &mut program).await
    {
        note(format_args!("which targets fail is not shown: {e}"));
    }
    Ok(program)
}

/// Only the agents know each target; the statuses in the cluster hold counts.
async fn ask_degraded(cluster: &Cluster, global: &Global, program: &mut Program) -> Result<(), Error> {
    let gate = &Gate::open(cluster, global, Access::Read).await?;
    let (namespace, name) = (program.namespace.as_str(), program.name.as_str());
    let degraded = program.nodes.iter_mut().filter(|node| node.state == "Degraded").take(ASKED);
    let asked = stream::iter(degraded).map(|state| async move {
        if let Err(e) = ask(gate, namespace, name, state).await {
            note(format_args!("{}: {e}", state.node));
        }
    });
    asked.buffer_unordered(ASKED).collect::<()>().await;
    Ok(())
}

async fn ask(gate: &Gate, namespace: &str, name: &str, state: &mut NodeState) -> Result<(), Error> {
    let reports = gate.agent(&state.node).await?.programs(namespace).await?;
    if let Some(report) = reports.iter().find(|r| r.name == name) {
        *state = reports::node_state(&state.node, report);
    }
    Ok(())
}
