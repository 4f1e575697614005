//! `prog` and what is below it.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::maps::{Hex, hex};
use super::{MapsFormat, PageFormat, PushFormat, Top, TopFormat, WatchFormat, program};

#[derive(Debug, Args)]
pub struct Prog {
    #[command(subcommand)]
    pub command: ProgCommand,
}

#[derive(Debug, Subcommand)]
pub enum ProgCommand {
    /// List the functions of programs as the kernel has them loaded.
    Ls(ProgLs),
    /// Print all that is known of functions: links, maps, subprograms, memory, what the verifier went through.
    Show(ProgShow),
    /// Print the instructions of functions, with the lines of source that they come from.
    Insns(ProgInsns),
    /// Print what the verifier says of functions: the whole log, of refused ones too.
    Log(ProgLog),
    /// Run a function on packets or contexts, and see what it makes of them.
    Test(ProgTest),
    /// Print what iterators write about the objects that they go through, run now.
    Read(ProgRead),
    /// The same as `kubectl skep top`.
    Top(Top),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kubectl skep prog ls                     Functions of every program of the namespace
  kubectl skep prog ls -A                  Of every namespace
  kubectl skep prog ls flows --node node-7 -o yaml

json and yaml have all that is known: maps, links, memory, what the verifier went through.")]
pub struct ProgLs {
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
  kubectl skep prog show flows
  kubectl skep prog show flows count_rx --node node-7")]
pub struct ProgShow {
    /// The program.
    #[arg(value_parser = program)]
    pub name: String,
    /// One function; default: all that are loaded.
    pub function: Option<String>,
    /// Only on this node; default: every node that runs the program.
    #[arg(long)]
    pub node: Option<String>,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = PageFormat::Text)]
    pub output: PageFormat,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kubectl skep prog insns flows count_rx --node node-7
  kubectl skep prog insns flows count_rx --node node-7 --jited | less
  kubectl skep prog insns flows -o json | jq '.[].instructions[].text'

These are the instructions as the verifier left them: with its checks, its inlined helpers, and without what is never
reached. Numbers on the left count slots of eight bytes. --jited shows the machine code that the CPU runs, which a kernel
with kernel.kptr_restrict=2 does not show; that of other processors than x86-64 in hexadecimal.")]
pub struct ProgInsns {
    /// The program.
    #[arg(value_parser = program)]
    pub name: String,
    /// One function; default: all that are loaded.
    pub function: Option<String>,
    /// As the CPU runs them.
    #[arg(long)]
    pub jited: bool,
    /// Leave the lines of source out.
    #[arg(long)]
    pub no_source: bool,
    /// Only on this node; default: every node that runs the program.
    #[arg(long)]
    pub node: Option<String>,
    /// How to print it; json has both, with their bytes.
    #[arg(short, long, value_enum, default_value_t = PushFormat::Text)]
    pub output: PushFormat,
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
    #[arg(long)]
    pub node: Option<String>,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = PushFormat::Text)]
    pub output: PushFormat,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kubectl skep prog test firewall check --pcap attack.pcap
  kubectl skep prog test firewall check --packet ffffffffffff0242ac1100020800 --node node-7 -o json
  kubectl skep prog test audit on_sys_enter --ctx 00000000000000003b00000000000000

A copy of the function runs, with maps of its own that are empty; --live runs the one that is loaded, which writes its maps,
and needs update on ebpfprograms/maps. Packets begin with the link layer. For xdp, tc, tcx, cgroupSkb and other types that
the kernel runs on packets. A raw tracepoint's program runs on --ctx instead, which is its arguments of eight bytes each; a
syscall program on whatever context it reads.")]
pub struct ProgTest {
    /// The program.
    #[arg(value_parser = program)]
    pub name: String,
    /// The function.
    pub function: String,
    /// A packet in hexadecimal; may be given several times.
    #[arg(long, value_name = "HEX", required_unless_present_any = ["pcap", "ctx"], value_parser = packet)]
    pub packet: Vec<Hex>,
    /// A context in hexadecimal, as it lies in memory, for functions that take no packets; may be given several times.
    #[arg(long, value_name = "HEX", conflicts_with_all = ["packet", "pcap", "repeat"], value_parser = packet)]
    pub ctx: Vec<Hex>,
    /// Packets from a file, as tcpdump writes them.
    #[arg(long, value_name = "FILE", conflicts_with = "packet")]
    pub pcap: Option<PathBuf>,
    /// Runs on each packet, of which the mean time is shown; what a run changes in the packet, the next one finds.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub repeat: u32,
    /// Run the function that is loaded, with its maps.
    #[arg(long)]
    pub live: bool,
    /// Only on this node; default: every node that runs the program.
    #[arg(long)]
    pub node: Option<String>,
    /// How to print it; json has the packets afterwards.
    #[arg(short, long, value_enum, default_value_t = TopFormat::Table)]
    pub output: TopFormat,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kubectl skep prog read tasks                          On every node that runs the program
  kubectl skep prog read tasks dump_task --node node-7
  kubectl skep prog read tasks -o json | jq -r .line

An iterator is a function with the hook iter: it runs once for each object of its kind whenever somebody reads, and writes
what it likes. On several nodes each line says of which it is.")]
pub struct ProgRead {
    /// The program.
    #[arg(value_parser = program)]
    pub name: String,
    /// One function; default: all that are iterators, one after the other.
    pub function: Option<String>,
    /// Only on this node; default: every node that runs the program.
    #[arg(long)]
    pub node: Option<String>,
    /// How to print it; json: an object a line.
    #[arg(short, long, value_enum, default_value_t = WatchFormat::Text)]
    pub output: WatchFormat,
}

fn packet(text: &str) -> Result<Hex, String> {
    hex(text).ok_or_else(|| "not hexadecimal: write two digits for each byte".to_owned())
}
