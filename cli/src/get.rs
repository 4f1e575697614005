//! `get`: programs in a table, and how each does on every node.

use jiff::Timestamp;

use crate::age::age;
use crate::args::{Get, Global, ListFormat};
use crate::cluster::{Cluster, put_states};
use crate::error::Error;
use crate::output::{self, note};
use crate::table::Table;
use crate::view::{NodeState, Program};
use crate::{reports, socket};

/// Runs the command.
pub async fn run(global: &Global, get: &Get) -> Result<(), Error> {
    let (programs, namespaces) = match &global.socket {
        Some(_) => (from_socket(global, get.name.as_deref()).await?, global.namespace.is_none()),
        None => (from_cluster(global, get).await?, get.all_namespaces),
    };
    let now = Timestamp::now();
    match (get.output, get.name.is_some(), programs.as_slice()) {
        (ListFormat::Json, true, [one]) => output::print(&output::json(one)),
        (ListFormat::Yaml, true, [one]) => output::print(&output::yaml(one)),
        (ListFormat::Json, _, all) => output::print(&output::json(&all)),
        (ListFormat::Yaml, _, all) => output::print(&output::yaml(&all)),
        (_, _, []) => {
            note("no EbpfPrograms found");
            Ok(())
        }
        (format, named, all) => {
            let wide = format == ListFormat::Wide;
            output::print(&render(all, namespaces, wide, wide || named, now))
        }
    }
}

/// The programs of the socket's agent, or the one that is called `name`.
pub async fn from_socket(global: &Global, name: Option<&str>) -> Result<Vec<Program>, Error> {
    let path = global.socket.clone().unwrap_or_default();
    let agent = socket::connect(&path, global.request_timeout).await?;
    let mut reports = agent.programs(global.namespace.as_deref().unwrap_or_default()).await?;
    reports.retain(|r| name.is_none_or(|name| r.name == name));
    reports.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    match (name, reports.len()) {
        (Some(name), 0) => Err(Error::Absent(format!("EbpfProgram {name} does not run on this host"))),
        (Some(name), 2..) => Err(Error::Ambiguous(name.to_owned())),
        _ => Ok(reports.iter().map(|r| reports::program(&agent.node, r)).collect()),
    }
}

async fn from_cluster(global: &Global, get: &Get) -> Result<Vec<Program>, Error> {
    let cluster = Cluster::connect(global).await?;
    let mut programs = match &get.name {
        Some(name) => vec![cluster.program(name).await?.0],
        None => cluster.programs(get.all_namespaces).await?,
    };
    if get.name.is_some() || get.output != ListFormat::Table {
        states(&cluster, &mut programs).await?;
    }
    Ok(programs)
}

/// Puts the states on the nodes; who may not see nodes sees the rest.
pub async fn states(cluster: &Cluster, programs: &mut [Program]) -> Result<(), Error> {
    match cluster.nodes().await {
        Ok(nodes) => put_states(programs, &nodes),
        Err(e @ Error::MayNotView { .. }) => note(format_args!("nodes are not shown: {e}")),
        Err(e) => return Err(e),
    }
    Ok(())
}

/// The table; with `nodes` the states on the nodes below each program.
pub fn render(programs: &[Program], namespaces: bool, wide: bool, nodes: bool, now: Timestamp) -> String {
    let mut header = vec!["NAME", "READY", "REASON", "REVISION", "AGE"];
    if namespaces {
        header.insert(0, "NAMESPACE");
    }
    if wide {
        header.extend(["IMAGE", "DIGEST"]);
    }
    let mut table = Table::new(header, 0);
    for program in programs {
        let age = age(program.created, now);
        let mut cells = vec![&program.name, &program.ready, &program.reason, &program.revision, &age];
        if namespaces {
            cells.insert(0, &program.namespace);
        }
        if wide {
            cells.extend([&program.image, &program.digest]);
        }
        table.row(cells);
    }
    let table = table.render();
    if !nodes {
        return table;
    }
    let mut lines = table.lines();
    let mut text = String::new();
    text.extend(lines.next().map(|header| format!("{header}\n")));
    for (program, line) in programs.iter().zip(lines) {
        text.push_str(line);
        text.push('\n');
        if !program.nodes.is_empty() {
            text.push_str(&node_table(&program.nodes));
        }
    }
    text
}

/// A row for each hook of each node.
pub fn node_table(nodes: &[NodeState]) -> String {
    let mut table = Table::new(["NODE", "STATE", "REASON", "REVISION", "FUNCTION", "HOOK", "TARGETS"], 2);
    for node in nodes {
        let own = [&node.node, &node.state, &node.reason, &node.revision].map(String::as_str);
        if node.hooks.is_empty() {
            table.row(own.into_iter().chain(["", "", ""]));
        }
        for hook in &node.hooks {
            table.row(own.into_iter().chain([hook.function.as_str(), &hook.hook, &hook.targets_text()]));
        }
    }
    table.render()
}
