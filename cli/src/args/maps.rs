//! `maps` and what is below it.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{DumpFormat, MapsFormat, PushFormat, program};

#[derive(Debug, Args)]
pub struct Maps {
    #[command(subcommand)]
    pub command: MapsCommand,
}

#[derive(Debug, Subcommand)]
pub enum MapsCommand {
    /// List the maps of programs.
    Ls(MapsLs),
    /// Print what is in a map; reading changes nothing.
    Dump(MapsDump),
    /// Print one entry of a map.
    Get(MapsGet),
    /// Write entries of a map, while its programs run.
    Set(MapsSet),
    /// Take entries out of a map.
    Del(MapsDel),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kubectl skep maps ls                     Maps of every program of the namespace
  kubectl skep maps ls flows --node node-7")]
pub struct MapsLs {
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
  kubectl skep maps dump flows counts                   On every node that runs flows
  kubectl skep maps dump flows counts --node node-7 --limit 20
  kubectl skep maps dump flows counts -o json | jq '.[] | select(.value.packets > 1000)'
  kubectl skep maps dump flows counts --filter 'value.packets > 1000 and key.source == 10.0.0.1'
  kubectl skep maps dump flows counts --top value.bytes --limit 10
  kubectl-skep maps dump flows .bss --socket /run/skep/agent.sock

The table shows the sum over all CPUs for integers of per-CPU maps; json and yaml show a list with one value per CPU.
raw shows each entry in hexadecimal, as it lies in memory: the key, then its value (one per CPU).")]
pub struct MapsDump {
    /// The program.
    #[arg(value_parser = program)]
    pub name: String,
    /// The map's name in the object.
    pub map: String,
    /// Only on this node; default: every node that runs the program.
    #[arg(long, conflicts_with = "socket")]
    pub node: Option<String>,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = DumpFormat::Table)]
    pub output: DumpFormat,
    /// At most this many entries of each node.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// Only entries that satisfy this, found out on the node: docs/filter.md.
    #[arg(long, value_name = "CONDITION")]
    pub filter: Option<String>,
    /// The entries whose number in this member is largest, in that order; how many is said by --limit.
    #[arg(long, value_name = "MEMBER", requires = "limit")]
    pub top: Option<String>,
}

/// Where a map is written: on a node's own socket there is no choice.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub struct Nodes {
    /// On this node.
    #[arg(long, conflicts_with = "socket")]
    pub node: Option<String>,
    /// On every node that runs the program.
    #[arg(long, conflicts_with = "socket")]
    pub all_nodes: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kubectl skep maps get flows counts 17
  kubectl skep maps get flows counts '{\"source\": \"10.0.0.1\", \"port\": 443}' -o json

A key is JSON as `maps dump -o json` prints it; what is no JSON is taken for a text. docs/decode.md has the spellings.")]
pub struct MapsGet {
    /// The program.
    #[arg(value_parser = program)]
    pub name: String,
    /// The map's name in the object.
    pub map: String,
    /// The key.
    pub key: String,
    /// Only on this node; default: every node that runs the program.
    #[arg(long, conflicts_with = "socket")]
    pub node: Option<String>,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = DumpFormat::Table)]
    pub output: DumpFormat,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kubectl skep maps set firewall blocked 10.0.0.1 true --all-nodes
  kubectl skep maps set limits rates 7 '{\"per_second\": 100, \"burst\": 20}' --node node-7 --create
  kubectl skep maps dump limits rates -o json > rates.json && kubectl skep maps set limits rates -f rates.json --all-nodes

Keys and values are JSON as `maps dump -o json` prints them; what is no JSON is taken for a text. A per-CPU map takes a
list with one value for each possible CPU. All entries are checked against the map's types before the first is written.

The token is that of the ServiceAccount skep-editor (helm: editor.create=true), unless --service-account names another:
it needs update on ebpfprograms/maps.")]
pub struct MapsSet {
    /// The program.
    #[arg(value_parser = program)]
    pub name: String,
    /// The map's name in the object.
    pub map: String,
    /// The key.
    #[arg(required_unless_present = "file", requires = "value")]
    pub key: Option<String>,
    /// The value.
    #[arg(conflicts_with = "file")]
    pub value: Option<String>,
    /// Entries from a file, or - for standard input: a JSON list of {\"key\": ..., \"value\": ...}.
    #[arg(short, long, value_name = "FILE", conflicts_with = "key")]
    pub file: Option<PathBuf>,
    /// Refuse keys that are there already.
    #[arg(long, conflicts_with = "replace")]
    pub create: bool,
    /// Refuse keys that are not there yet.
    #[arg(long)]
    pub replace: bool,
    #[command(flatten)]
    pub nodes: Nodes,
    /// How to print what was done.
    #[arg(short, long, value_enum, default_value_t = PushFormat::Text)]
    pub output: PushFormat,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kubectl skep maps del firewall blocked 10.0.0.1 10.0.0.2 --all-nodes

The token is that of the ServiceAccount skep-editor (helm: editor.create=true), unless --service-account names another:
it needs delete on ebpfprograms/maps.")]
pub struct MapsDel {
    /// The program.
    #[arg(value_parser = program)]
    pub name: String,
    /// The map's name in the object.
    pub map: String,
    /// The keys, as JSON; what is no JSON is taken for a text.
    #[arg(required = true)]
    pub keys: Vec<String>,
    #[command(flatten)]
    pub nodes: Nodes,
    /// How to print what was done.
    #[arg(short, long, value_enum, default_value_t = PushFormat::Text)]
    pub output: PushFormat,
}
