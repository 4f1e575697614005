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
    let (interval, looks) = match graph.duration {
        None if screen => (graph.interval, 0),
        given => pace(given, graph.interval)?,
    };
    let told = Told::new(Board::new(graph));
    let board = &told;
    let ask = |agent: Agent, namespace: String| async move {
        let request = WatchMapRequest {
            program: Some(agent.program(&namespace, &graph.name).await?),
            map: graph.map.clone(),
            interval_ms: millis(interval),
            filter: graph.filter.clone().unwrap_or_default(),
            snapshot: true,
            looks,
            ..WatchMapRequest::default()
        };
        // Where nothing is drawn until the end, what there is to be said does not wait for it.
        let say = |text: String| if screen { board.tell(|board| board.remark(text)) } else { note(text) };
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

/// The time between two looks, and how many fit beyond the first: none comes after the time that was given.
fn pace(duration: Option<Duration>, interval: Duration) -> Result<(Duration, u64), Error> {
    let duration = duration.unwrap_or(DURATION.max(interval));
    let interval = interval.min(duration);
    let looks = duration.as_millis() / interval.as_millis().max(1);
    match u64::try_from(looks) {
        Ok(looks) if looks < POINTS as u64 => Ok((interval, looks)),
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
        assert_eq!(pace(Some(minute), second).unwrap(), (second, 60));
        assert_eq!(pace(Some(second), minute).unwrap(), (second, 1), "no longer than was said");
        assert_eq!(pace(Some(second * 5), second * 2).unwrap(), (second * 2, 2));
        assert_eq!(pace(None, minute).unwrap(), (minute, 1), "nobody said how long");
        assert!(pace(Some(minute * 60), second).unwrap_err().to_string().contains("3600 looks"));
    }
}
