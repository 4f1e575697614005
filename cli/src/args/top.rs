//! `top`.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::maps::interval;
use super::{TopFormat, program};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kubectl skep top                                     All functions of the namespace, on every node
  kubectl skep top -A                                  Those of all namespaces: the whole fleet
  kubectl skep top flows --node node-7 --sort runs
  kubectl skep top flows --interval 5s --looks 3 -o json
  kubectl-skep top --socket /run/skep/agent.sock       All functions of this node

On a terminal it takes the whole screen: c, r, n and p sort by CPU, runs, ns per run and program, the same key again
reverses, ? shows all keys, and q ends. Elsewhere, with --looks and with -o json tables or lines follow one another.

As long as it runs, the kernels of those nodes count the runs of all of their programs, which costs each run some
nanoseconds. CPU is the share of one CPU.")]
pub struct Top {
    /// One program.
    #[arg(value_parser = program)]
    pub name: Option<String>,
    /// Those of all namespaces.
    #[arg(short = 'A', long, conflicts_with_all = ["namespace", "name"])]
    pub all_namespaces: bool,
    /// Only on this node; default: every node that runs the program.
    #[arg(long)]
    pub node: Option<String>,
    /// What comes first.
    #[arg(long, value_enum, default_value_t = Sort::Cpu)]
    pub sort: Sort,
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

/// An order of functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sort {
    /// The largest share of a CPU.
    Cpu,
    /// The most runs per second.
    Runs,
    /// The longest runs.
    Ns,
    /// Programs by name.
    Program,
}
