//! `graph`: the numbers of a map over time.
//!
//! [`series`] makes lines of what nodes tell; [`board`] shows them on a terminal, [`svg`] in a file.

pub mod board;
pub mod series;
pub mod svg;

use std::io::IsTerminal;
use std::time::Duration;

use serde::Serialize;
use skep_proto::v1::WatchMapRequest;

use self::board::Board;
use self::series::{POINTS, Series};
use crate::agent::Agent;
use crate::args::{Global, Graph, GraphFormat};
use crate::error::Error;
use crate::follow::{follow, millis};
use crate::output::{self, note};
use crate::screen::{self, Told};
use crate::source;

/// Where nobody says how long.
const DURATION: Duration = Duration::from_secs(30);

/// The shape of `-o json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Numbers<'a> {
    program: &'a str,
    map: &'a str,
    field: &'a str,
    /// Whether they are what the field grows by in a second.
    rate: bool,
    series: &'a [Series],
}

/// Runs the command.
pub async fn run(global: &Global, graph: &Graph) -> Result<(), Error> {
    let screen = graph.output == GraphFormat::Chart && std::io::stdout().is_terminal();
    let looks = match graph.duration {
        None if screen => 0,
        given => looks(given.unwrap_or(DURATION), graph.interval)?,
    };
    let told = Told::new(Board::new(graph));
    let board = &told;
    let ask = |agent: Agent, namespace: String| async move {
        let request = WatchMapRequest {
            program: Some(agent.program(&namespace, &graph.name).await?),
            map: graph.map.clone(),
            interval_ms: millis(graph.interval),
            filter: graph.filter.clone().unwrap_or_default(),
            snapshot: true,
            looks,
            ..WatchMapRequest::default()
        };
        let say = |text: String| board.tell(|board| board.remark(text));
        follow(&agent, request, say, |schema, frame| board.tell(|board| board.hear(&agent.node, schema, frame))).await
    };
    let failed = |node: &str, error: &Error| board.tell(|board| board.fail(node, &error.to_string()));
    let asked = source::follow(global, graph.node.as_deref(), Some(&graph.name), ask, failed);
    let answers = match screen {
        true => match screen::show(board, asked).await? {
            None => return Ok(()),
            ended => ended,
        },
        false => tokio::select! {
            answers = asked => Some(answers?),
            // What was seen is worth its while.
            interrupted = tokio::signal::ctrl_c() => interrupted.map(|()| None).map_err(Error::Terminal)?,
        },
    };
    print(graph, &told.into_view())?;
    answers.map_or(Ok(()), |answers| answers.complete())
}

/// How many looks beyond the first that is.
fn looks(duration: Duration, interval: Duration) -> Result<u64, Error> {
    let looks = duration.as_millis().div_ceil(interval.as_millis().max(1));
    match u64::try_from(looks) {
        Ok(looks) if looks < POINTS as u64 => Ok(looks.max(1)),
        _ => Err(Error::Usage(format!(
            "--for {}s in --interval {}s: {looks} looks, and a line has {POINTS} points at most; choose a longer interval",
            duration.as_secs_f64(),
            interval.as_secs_f64()
        ))),
    }
}

fn print(graph: &Graph, board: &Board) -> Result<(), Error> {
    board.remarks().for_each(note);
    let (series, _) = board.series();
    match graph.output {
        GraphFormat::Json => {
            let Graph { name: program, map, field, rate, .. } = graph;
            output::print(&output::json(&Numbers { program, map, field, rate: *rate, series: &series }))
        }
        _ if series.is_empty() => {
            note("the map has no entries");
            Ok(())
        }
        GraphFormat::Svg => output::print(&board.svg()),
        GraphFormat::Chart => output::print(&board.table()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_an_end() {
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        assert_eq!(looks(minute, second).unwrap(), 60);
        assert_eq!(looks(second, minute).unwrap(), 1);
        assert!(looks(minute * 60, second).unwrap_err().to_string().contains("3600 looks"));
    }
}
