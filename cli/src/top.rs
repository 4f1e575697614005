//! `top`: how often functions run, and how much of a CPU they take, on all nodes.
//!
//! On a terminal a screen (`board`, drawn by `draw`), elsewhere tables or JSON, one after the other.

pub mod board;
mod draw;

use std::collections::BTreeMap;
use std::io::IsTerminal;

use skep_proto::v1::WatchStatsRequest;

use self::board::{Board, sorted};
use crate::agent::Agent;
use crate::args::{Global, Top, TopFormat};
use crate::error::Error;
use crate::follow::millis;
use crate::live::{self, Live};
use crate::output::{self, note};
use crate::prog::{Busy, busy, table};
use crate::screen::{self, Told};
use crate::source::{self, Access, Of};

/// Runs the command.
pub async fn run(global: &Global, top: &Top) -> Result<(), Error> {
    // What ends by itself is to be read afterwards.
    let screen = top.output == TopFormat::Table && top.looks.is_none() && std::io::stdout().is_terminal();
    if screen { on_screen(global, top).await } else { in_lines(global, top).await }
}

fn of(top: &Top) -> Of<'_> {
    if top.all_namespaces { Of::Everything } else { top.name.as_ref().into() }
}

async fn on_screen(global: &Global, top: &Top) -> Result<(), Error> {
    let (node, of) = (top.node.as_deref(), of(top));
    let board = &Told::new(Board::new(global.socket.is_none() && node.is_none(), top.sort));
    let ask = |agent: Agent, namespace| async move {
        let tell = |rows| {
            board.tell(|board| board.hear(&agent.node, rows));
            Ok(())
        };
        follow(&agent, namespace, top, tell).await
    };
    let failed = |node: &str, error: &Error| board.tell(|board| board.fail(node, &error.to_string()));
    match screen::show(board, source::follow(global, node, of, ask, failed)).await? {
        // Every node ended, which none does by itself.
        Some(answers) if answers.answers.is_empty() => {
            note("no functions found");
            answers.complete()
        }
        Some(answers) => answers.complete(),
        None => Ok(()),
    }
}

async fn in_lines(global: &Global, top: &Top) -> Result<(), Error> {
    let (node, of) = (top.node.as_deref(), of(top));
    let several = global.socket.is_none() && node.is_none();
    let live = &Live::new(several, |seen: &BTreeMap<String, Vec<Busy>>| print(seen, top, several));
    let ask = |agent: Agent, namespace| async move {
        live.ended(&agent.node, follow(&agent, namespace, top, |rows| live.tell(&agent.node, rows)).await)
    };
    live.run(top.interval, source::ask(global, Access::Follow, node, of, ask)).await
}

/// Hands on what each look finds, until as many as were asked for were taken.
async fn follow(
    agent: &Agent,
    namespace: String,
    top: &Top,
    mut on: impl FnMut(Vec<Busy>) -> Result<(), Error>,
) -> Result<(), Error> {
    let request = WatchStatsRequest {
        namespace: namespace.clone(),
        name: top.name.clone().unwrap_or_default(),
        interval_ms: millis(top.interval),
        frames: top.looks.unwrap_or(0),
    };
    let mut stream = agent.stats(request).await?;
    let mut before = Vec::new();
    while let Some(frame) = stream.next().await? {
        if let Some(name) = top.name.as_ref().filter(|_| frame.functions.is_empty()) {
            there(agent, &namespace, name).await?;
        }
        if frame.elapsed_us > 0 {
            on(busy(&agent.node, &before, &frame))?;
        }
        before = frame.functions;
    }
    match top.looks {
        Some(_) => Ok(()),
        None => Err(stream.cut()),
    }
}

/// One that has nothing loaded may be about to load something; one that is not there is not waited for.
async fn there(agent: &Agent, namespace: &str, name: &str) -> Result<(), Error> {
    match agent.programs(namespace).await?.iter().any(|program| program.name == name) {
        true => Ok(()),
        false => Err(agent.absent(name)),
    }
}

fn print(seen: &BTreeMap<String, Vec<Busy>>, top: &Top, several: bool) -> Result<(), Error> {
    let rows = sorted(seen.values().flatten(), top.sort, false);
    if top.output == TopFormat::Json {
        return output::print(&(serde_json::to_string(&rows).unwrap_or_default() + "\n"));
    }
    live::print(&table(&rows, several, top.all_namespaces))
}
