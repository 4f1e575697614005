//! `prog` and what is below it.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::maps::interval;
use super::{MapsFormat, PushFormat, TopFormat, program};

#[derive(Debug, Args)]
pub struct Prog {
    #[command(subcommand)]
    pub command: ProgCommand,
}

#[derive(Debug, Subcommand)]
pub enum ProgCommand {
    /// List the functions of programs as the kernel has them loaded.
    Ls(ProgLs),
    /// Print what the verifier says of functions: the whole log, of refused ones too.
    Log(ProgLog),
    /// Show how often functions run, and how much of a CPU they take.
    Top(ProgTop),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kubectl skep prog ls                     Functions of every program of the namespace
  kubectl skep prog ls flows --node node-7 -o yaml

json and yaml have all that is known: maps, links, memory, what the verifier went through.")]
pub struct ProgLs {
    /// One program.
    #[arg(value_parser = program)]
    pub name: Option<String>,
    /// Only on this node; default: every node that runs the program.
    #[arg(long, conflicts_with = "socket")]
    pub node: Option<String>,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = MapsFormat::Table)]
    pub output: MapsFormat,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kubectl skep prog log flows
  kubectl skep prog log flows count_rx --node node-7 | less

The verifier looks once more at the revision that is wanted, on the node, beside whatever runs there; nothing stays loaded.")]
pub struct ProgLog {
    /// The program.
    #[arg(value_parser = program)]
    pub name: String,
    /// One function; default: all that the program loads.
    pub function: Option<String>,
    /// Only on this node; default: every node that runs the program.
    #[arg(long, conflicts_with = "socket")]
    pub node: Option<String>,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = PushFormat::Text)]
    pub output: PushFormat,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kubectl skep prog top
  kubectl skep prog top flows --interval 5s --looks 3 -o json

As long as it runs, the kernels of those nodes count the runs of all of their programs, which costs each run some
nanoseconds. CPU is the share of one CPU. On a terminal the table is drawn anew after every look.")]
pub struct ProgTop {
    /// One program.
    #[arg(value_parser = program)]
    pub name: Option<String>,
    /// Only on this node; default: every node that runs the program.
    #[arg(long, conflicts_with = "socket")]
    pub node: Option<String>,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = TopFormat::Table)]
    pub output: TopFormat,
    /// Between two looks, at least 100ms.
    #[arg(long, value_name = "DURATION", value_parser = interval, default_value = "1s")]
    pub interval: Duration,
    /// End after this many tables.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub looks: Option<u64>,
}
