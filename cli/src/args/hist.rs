//! `hist`.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::maps::interval;
use super::{TopFormat, program};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kubectl skep hist malloc-sizes sizes --scale bits        Slot n counts values of n bits
  kubectl skep hist runqlat hists --bucket key.slot --by key.pid --live 1s
  kubectl skep hist sizes packets --scale linear --width 64 -o json

Each entry of the map is one bucket: a number that says which, and one that says how many. Buckets of the same number, of
several nodes, CPUs or keys, are added up.")]
pub struct Hist {
    /// The program.
    #[arg(value_parser = program)]
    pub name: String,
    /// The map's name in the object.
    pub map: String,
    /// The member that says which bucket.
    #[arg(long, value_name = "MEMBER", default_value = "key")]
    pub bucket: String,
    /// The member that says how many.
    #[arg(long, value_name = "MEMBER", default_value = "value")]
    pub count: String,
    /// A histogram for each value of this member.
    #[arg(long, value_name = "MEMBER")]
    pub by: Option<String>,
    /// What bucket n stands for.
    #[arg(long, value_enum, default_value_t = Scale::Log2)]
    pub scale: Scale,
    /// Of a linear scale: values in a bucket.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub width: u64,
    /// A histogram for each node.
    #[arg(long)]
    pub per_node: bool,
    /// Only on this node; default: every node that runs the program.
    #[arg(long)]
    pub node: Option<String>,
    /// Only entries that satisfy this, found out on the node: docs/filter.md.
    #[arg(long, value_name = "CONDITION")]
    pub filter: Option<String>,
    /// Draw again and again, with so long between; default: once.
    #[arg(long, value_name = "DURATION", value_parser = interval)]
    pub live: Option<Duration>,
    /// End after this many drawings.
    #[arg(long, value_name = "N", requires = "live", value_parser = clap::value_parser!(u64).range(1..))]
    pub looks: Option<u64>,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = TopFormat::Table)]
    pub output: TopFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scale {
    /// 2^n to 2^(n+1) - 1; bucket 0 has 0 as well.
    Log2,
    /// Values of n bits: 2^(n-1) to 2^n - 1; bucket 0: 0.
    Bits,
    /// n * WIDTH to (n+1) * WIDTH - 1.
    Linear,
}
