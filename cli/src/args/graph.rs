//! `graph`.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::maps::interval;
use super::program;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kubectl skep graph flows counts --field value.packets --rate
  kubectl skep graph flows counts --field value.bytes --per-node --limit 20 --interval 5s
  kubectl skep graph flows counts --field value.bytes --rate --for 1m -o svg > bytes.svg
  kubectl-skep graph flows hits --for 10s -o json --socket /run/skep/agent.sock | jq '.series[].points'

A line for each key, those whose number grew most first; the numbers of several nodes are added up unless --per-node is
given. On a terminal the lines move until q is pressed or the time of --for is over; elsewhere, and with svg and json, it
ends after --for or at ^C, and shows what was seen by then.")]
pub struct Graph {
    /// The program.
    #[arg(value_parser = program)]
    pub name: String,
    /// The map's name in the object.
    pub map: String,
    /// The number, e.g. value.packets; value, where it is a number itself.
    #[arg(long, value_name = "MEMBER", default_value = "value")]
    pub field: String,
    /// What the number grows by in a second, instead of the number.
    #[arg(long)]
    pub rate: bool,
    /// A line for each node and key.
    #[arg(long)]
    pub per_node: bool,
    /// Only on this node; default: every node that runs the program.
    #[arg(long)]
    pub node: Option<String>,
    /// Only entries that satisfy this, found out on the node: docs/filter.md.
    #[arg(long, value_name = "CONDITION")]
    pub filter: Option<String>,
    /// How long to look; default: on a terminal until q is pressed, else 30s.
    #[arg(long = "for", value_name = "DURATION", value_parser = interval)]
    pub duration: Option<Duration>,
    /// Between two looks, at least 100ms; not longer than --for.
    #[arg(long, value_name = "DURATION", value_parser = interval, default_value = "1s")]
    pub interval: Duration,
    /// How many lines.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub limit: u16,
    /// How to show it.
    #[arg(short, long, value_enum, default_value_t = GraphFormat::Chart)]
    pub output: GraphFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GraphFormat {
    /// A row of blocks for each line.
    Chart,
    /// A drawing for browsers and documents.
    Svg,
    /// The numbers: points are pairs of seconds since the first look and the number then.
    Json,
}
