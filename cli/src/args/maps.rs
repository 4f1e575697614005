//! `maps` and what is below it.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use skep_object::btf::percpu::Reduce;

use super::{DumpFormat, MapsFormat, PushFormat, TopFormat, WatchFormat, program};

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
    /// Print what changes in a map, as it changes.
    Watch(MapsWatch),
    /// Show the entries of a map that grow fastest.
    Top(MapsTop),
    /// Print one entry of a map.
    Get(MapsGet),
    /// Write entries of a map, while its programs run.
    Set(MapsSet),
    /// Take entries out of a map.
    Del(MapsDel),
    /// Take all entries out of a hash, queue or stack, and print them.
    Drain(MapsDrain),
    /// Put records into a user ring buffer, for its programs to take out.
    Put(MapsPut),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kubectl skep maps ls                     Maps of every program of the namespace
  kubectl skep maps ls flows --node node-7")]
pub struct MapsLs {
    /// One program.
    #[arg(value_parser = program)]
    pub name: Option<String>,
    /// Those of all namespaces.
    #[arg(short = 'A', long, conflicts_with_all = ["namespace", "name"])]
    pub all_namespaces: bool,
    /// Only on this node; default: every node that runs the program.
    #[arg(long)]
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
  kubectl skep maps dump flows counts -o csv > counts.csv
  kubectl skep maps dump flows packets --per-cpu max -o json
  kubectl skep maps dump flows counts --node node-7 --limit 1000 --page 2a0000000100000000
  kubectl-skep maps dump flows .bss --socket /run/skep/agent.sock

The table shows the sum over all CPUs for integers of per-CPU maps; json and yaml show a list with one value per CPU.
--per-cpu says otherwise. Of a map of maps, what is in its inner maps is shown too. Keys of task, cgroup and socket storages
are thread ids, cgroup ids and socket cookies. raw shows each entry in hexadecimal, as it lies in memory: the key, then its value (one per CPU).")]
pub struct MapsDump {
    /// The program.
    #[arg(value_parser = program)]
    pub name: String,
    /// The map's name in the object.
    pub map: String,
    /// Only on this node; default: every node that runs the program.
    #[arg(long)]
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
    /// Go on where a dump with --limit stopped, which says how.
    #[arg(long, value_name = "PAGE", requires = "limit", conflicts_with = "top", value_parser = page)]
    pub page: Option<Hex>,
    /// The entries whose number in this member is largest, in that order; how many is said by --limit.
    #[arg(long, value_name = "MEMBER", requires = "limit")]
    pub top: Option<String>,
    /// What the values of all CPUs come to.
    #[arg(long, value_enum, value_name = "HOW")]
    pub per_cpu: Option<PerCpu>,
}

/// Values of per-CPU maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PerCpu {
    /// That of each CPU.
    Each,
    /// Integers are added, in structs and arrays too; what CPUs do not agree on else is null, (differs) in a table.
    Sum,
    /// The largest integers.
    Max,
    /// The smallest, of the CPUs that wrote one.
    Min,
}

impl PerCpu {
    /// How they become one.
    pub fn reduce(self) -> Option<Reduce> {
        match self {
            PerCpu::Each => None,
            PerCpu::Sum => Some(Reduce::Sum),
            PerCpu::Max => Some(Reduce::Max),
            PerCpu::Min => Some(Reduce::Min),
        }
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kubectl skep maps watch flows counts                  Whatever changes, looked at up to ten times a second
  kubectl skep maps watch flows counts --interval 5s --filter 'key.port == 443'
  kubectl skep maps watch flows counts -o json --looks 10 | jq .rates

Each node compares two looks and sends what differs; what comes and goes between two looks is not seen. The first look is
what the second is compared with: --snapshot prints its entries too. Rates are of one second; of a per-CPU map they are
those of the sum.")]
pub struct MapsWatch {
    /// The program.
    #[arg(value_parser = program)]
    pub name: String,
    /// The map's name in the object.
    pub map: String,
    /// Only on this node; default: every node that runs the program.
    #[arg(long)]
    pub node: Option<String>,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = WatchFormat::Text)]
    pub output: WatchFormat,
    /// Between two looks, at least 100ms; default: often while something changes, else once a second.
    #[arg(long, value_name = "DURATION", value_parser = interval)]
    pub interval: Option<Duration>,
    /// Only entries that satisfy this, found out on the node: docs/filter.md.
    #[arg(long, value_name = "CONDITION")]
    pub filter: Option<String>,
    /// At most this many changed entries of each look and node.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// Begin with what is there.
    #[arg(long)]
    pub snapshot: bool,
    /// End after this many looks beyond the first.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub looks: Option<u64>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kubectl skep maps top flows counts value.packets
  kubectl skep maps top flows counts value.bytes --limit 5 --interval 2s --node node-7

On a terminal the table is drawn anew after every look; elsewhere one follows the other. Which entries grow most is found
out on the nodes.")]
pub struct MapsTop {
    /// The program.
    #[arg(value_parser = program)]
    pub name: String,
    /// The map's name in the object.
    pub map: String,
    /// The member that grows, e.g. value.packets; value, where it is a number itself.
    #[arg(default_value = "value")]
    pub member: String,
    /// Only on this node; default: every node that runs the program.
    #[arg(long)]
    pub node: Option<String>,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = TopFormat::Table)]
    pub output: TopFormat,
    /// Between two looks, at least 100ms.
    #[arg(long, value_name = "DURATION", value_parser = interval, default_value = "1s")]
    pub interval: Duration,
    /// Only entries that satisfy this, found out on the node: docs/filter.md.
    #[arg(long, value_name = "CONDITION")]
    pub filter: Option<String>,
    /// How many entries.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub limit: u64,
    /// End after this many tables.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub looks: Option<u64>,
}

/// A number with a unit; without one, seconds.
pub(super) fn interval(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no interval; write 500ms, 2s or 1m, at least 100ms and at most 1h");
    let seconds = text.parse::<u64>().map(Duration::from_secs);
    let given =
        seconds.or_else(|_| Duration::try_from(text.parse::<jiff::SignedDuration>().map_err(drop)?).map_err(drop));
    let fits = |given: &Duration| (Duration::from_millis(100)..=Duration::from_secs(3600)).contains(given);
    given.ok().filter(fits).ok_or_else(wrong)
}

/// Bytes in hexadecimal.
#[derive(Clone, Debug)]
pub struct Hex(pub Vec<u8>);

pub(crate) fn hex(text: &str) -> Option<Hex> {
    let digits = |at: usize| text.get(at..at + 2).and_then(|two| u8::from_str_radix(two, 16).ok());
    let bytes: Option<Vec<u8>> = (0..text.len()).step_by(2).map(digits).collect();
    bytes.filter(|bytes| !bytes.is_empty()).map(Hex)
}

fn page(text: &str) -> Result<Hex, String> {
    hex(text).ok_or_else(|| format!("{text:?} is no page; copy it from the note of the dump before"))
}

/// Where a map is written: on a node's own socket there is no choice.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub struct Nodes {
    /// On this node.
    #[arg(long)]
    pub node: Option<String>,
    /// On every node that runs the program.
    #[arg(long)]
    pub all_nodes: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kubectl skep maps get flows counts 17
  kubectl skep maps get flows counts '{\"source\": \"10.0.0.1\", \"port\": 443}' -o json

A key is JSON as `maps dump -o json` prints it; what is no JSON is taken for a text. A text that looks like JSON is
written '\"true\"'. docs/decode.md has the spellings. Of an LPM trie it is the entry with the longest prefix of KEY.")]
pub struct MapsGet {
    /// The program.
    #[arg(value_parser = program)]
    pub name: String,
    /// The map's name in the object.
    pub map: String,
    /// The key.
    #[arg(allow_negative_numbers = true)]
    pub key: String,
    /// The key is its bytes in hexadecimal, as `maps dump -o raw` prints them: of two keys that look alike, as texts do of
    /// which one has something left over after its end, that one.
    #[arg(long)]
    pub raw: bool,
    /// Only on this node; default: every node that runs the program.
    #[arg(long)]
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
  kubectl skep maps set tracer queue '{\"pid\": 17}' --node node-7

Keys and values are JSON as `maps dump -o json` prints them; what is no JSON is taken for a text. A text that looks like
JSON is written '\"true\"'. A map without keys (queue, stack, bloom filter) takes a value alone. A per-CPU map takes a
list with one value for each possible CPU. All entries are checked against the map's types before the first is written.

The token is that of the ServiceAccount skep-editor (helm: editor.create=true), unless --service-account names another:
it needs update on ebpfprograms/maps.")]
pub struct MapsSet {
    /// The program.
    #[arg(value_parser = program)]
    pub name: String,
    /// The map's name in the object.
    pub map: String,
    /// The key; of a map without keys the value.
    #[arg(required_unless_present = "file", allow_negative_numbers = true)]
    pub key: Option<String>,
    /// The value.
    #[arg(conflicts_with = "file", allow_negative_numbers = true)]
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
    #[arg(required = true, allow_negative_numbers = true)]
    pub keys: Vec<String>,
    /// The keys are their bytes in hexadecimal, as `maps dump -o raw` prints them.
    #[arg(long)]
    pub raw: bool,
    #[command(flatten)]
    pub nodes: Nodes,
    /// How to print what was done.
    #[arg(short, long, value_enum, default_value_t = PushFormat::Text)]
    pub output: PushFormat,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kubectl skep maps drain tracer finished --node node-7 -o jsonl > finished.jsonl
  kubectl-skep maps drain tracer queue --limit 100 --socket /run/skep/agent.sock

Each entry is taken in one step of the kernel's: no program's write to it is lost between a look and a deletion. What is taken
is gone from the map, also if this command is stopped, or its reader goes away, before it is printed. Of a hash the kernel
takes whole buckets: a few more than --limit may be taken, and are printed.

The token is that of the ServiceAccount skep-editor (helm: editor.create=true), unless --service-account names another:
it needs delete on ebpfprograms/maps.")]
pub struct MapsDrain {
    /// The program.
    #[arg(value_parser = program)]
    pub name: String,
    /// The map's name in the object.
    pub map: String,
    /// At most this many entries of each node.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    #[command(flatten)]
    pub nodes: Nodes,
    /// How to print them.
    #[arg(short, long, value_enum, default_value_t = DumpFormat::Table)]
    pub output: DumpFormat,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kubectl skep maps put limiter commands '{\"op\": \"RESET\", \"zone\": 7}' --type command --node node-7
  kubectl-skep maps put limiter commands -f commands.json --type command --socket /run/skep/agent.sock

A record is JSON by its struct's types, or without --type bytes in hexadecimal. All are checked before the first is put in,
and all fit in, or none is. Programs see them when they next look (bpf_user_ringbuf_drain). The buffer's layout has room for
one writer: a map that a process of the node has open is written with --share only.

The token is that of the ServiceAccount skep-editor (helm: editor.create=true), unless --service-account names another:
it needs update on ebpfprograms/maps.")]
pub struct MapsPut {
    /// The program.
    #[arg(value_parser = program)]
    pub name: String,
    /// The user ring buffer.
    pub map: String,
    /// The records.
    #[arg(required_unless_present = "file", value_name = "RECORD")]
    pub records: Vec<String>,
    /// Records from a file, or - for standard input: a JSON list.
    #[arg(short, long, value_name = "FILE", conflicts_with = "records")]
    pub file: Option<PathBuf>,
    /// The struct of the records, in the program's types.
    #[arg(long = "type", value_name = "STRUCT")]
    pub type_: Option<String>,
    /// Write although another process has the map open.
    #[arg(long)]
    pub share: bool,
    #[command(flatten)]
    pub nodes: Nodes,
    /// How to print what was done.
    #[arg(short, long, value_enum, default_value_t = PushFormat::Text)]
    pub output: PushFormat,
}
