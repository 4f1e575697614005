//! The command line.

mod features;
mod graph;
mod hist;
mod maps;
mod prog;
mod top;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use self::features::Features;
pub use self::graph::{Graph, GraphFormat};
pub use self::hist::{Hist, Scale};
pub(crate) use self::maps::hex;
pub use self::maps::{
    Maps, MapsCommand, MapsDel, MapsDrain, MapsDump, MapsGet, MapsLs, MapsPut, MapsSet, MapsTop, MapsWatch, Nodes,
    PerCpu,
};
pub use self::prog::{Prog, ProgCommand, ProgInsns, ProgLog, ProgLs, ProgRead, ProgShow, ProgTest};
pub use self::top::{Sort, Top};

/// eBPF programs, why they are not ready, and what is in their maps, on every node.
#[derive(Debug, Parser)]
#[command(name = "kubectl-skep", bin_name = "kubectl skep", version, after_help = EXAMPLES)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "Examples:
  kubectl skep get -A                     All programs, and how many nodes run them
  kubectl skep why flows -n observability What keeps a program from being ready, and what to do
  kubectl skep maps dump flows counts     A map's contents on every node
  kubectl skep features --for flows.bpf.o Which nodes can run an object, and why others cannot
  kubectl skep top                        Which functions take how much CPU, on every node
  kubectl skep push flows.bpf.o registry.example.com/ebpf/flows:v1

On a node, as root and without Kubernetes:
  kubectl-skep --socket /run/skep/agent.sock get

Exit codes: 0 done, 1 error, 2 wrong usage, 3 not found.
What only reads ends at once, quietly and with 0, when nobody reads its output any more (`| head`).";

/// Options of every command.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Connection")]
pub struct Global {
    /// The kubeconfig file, instead of $KUBECONFIG or ~/.kube/config.
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context, instead of the current one.
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// Namespace of the programs; default: the context's (with --socket: all).
    #[arg(short, long, global = true, value_name = "NS")]
    pub namespace: Option<String>,
    /// ServiceAccount by whose rights maps are read and written; a ten-minute token is minted for it. Default:
    /// skep-viewer to read, skep-editor to write.
    #[arg(long, global = true, value_name = "NAME")]
    pub service_account: Option<String>,
    /// Namespace in which Skep is installed.
    #[arg(long, global = true, value_name = "NS", default_value = "skep-system")]
    pub skep_namespace: String,
    /// Ask the agent of this host by its unix socket instead of the cluster; needs root.
    #[arg(long, global = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// How long one answer may take: 30s, 2m; 0 means for ever.
    #[arg(long, global = true, value_name = "TIME", default_value = "30s", value_parser = timeout)]
    pub request_timeout: Duration,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List programs; with a name or -o wide also how each does on every node.
    Get(Get),
    /// Say on one page why a program is not ready, and what to do.
    Why(Why),
    /// Look into the maps of programs.
    Maps(Maps),
    /// Draw a map of counters as histograms.
    Hist(Hist),
    /// Draw how the numbers of a map change over time.
    Graph(Graph),
    /// Show how often functions run on all nodes, and how much of a CPU they take.
    Top(Top),
    /// See what the kernel says of the functions that run.
    Prog(Prog),
    /// Print the records that programs write into a ring buffer or perf event array, as they come.
    Events(Events),
    /// Print what programs print: bpf_printk of all of them, or one's own stream.
    Output(Printed),
    /// See what the kernels of the nodes can do, and which of them can run a program, an object or an image.
    Features(Features),
    /// Load a program anew on all its nodes, without a gap; maps keep what they hold.
    #[command(after_help = "Examples:\n  kubectl skep restart flows -n observability")]
    Restart(Change),
    /// Take a program off its hooks; it stays loaded, and its maps keep what they hold.
    #[command(after_help = "Examples:\n  kubectl skep suspend flows -n observability")]
    Suspend(Change),
    /// Put a suspended program back on its hooks.
    #[command(after_help = "Examples:\n  kubectl skep resume flows -n observability")]
    Resume(Change),
    /// Put an eBPF object into a registry, as an image that agents load.
    Push(Push),
    /// Print a completion script.
    Completion(Completion),
    /// Print the version.
    Version,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kubectl skep get
  kubectl skep get -A -o wide
  kubectl skep get flows -o json
  kubectl-skep get --socket /run/skep/agent.sock")]
pub struct Get {
    /// One program.
    #[arg(value_parser = program)]
    pub name: Option<String>,
    /// The programs of all namespaces.
    #[arg(short = 'A', long, conflicts_with_all = ["namespace", "name"])]
    pub all_namespaces: bool,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = ListFormat::Table)]
    pub output: ListFormat,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kubectl skep why flows -n observability
  kubectl-skep why flows --socket /run/skep/agent.sock
  kubectl skep why flows -o json | jq '.failures[].nodes'")]
pub struct Why {
    /// The program.
    #[arg(value_parser = program)]
    pub name: String,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = PageFormat::Text)]
    pub output: PageFormat,
}

#[derive(Debug, Args)]
pub struct Change {
    /// The program.
    #[arg(value_parser = program)]
    pub name: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kubectl skep events exec-log events --type event
  kubectl skep events flows drops --type drop --filter 'reason == NO_ROUTE and bytes > 1000' -o json
  kubectl-skep events exec-log events --limit 10 --socket /run/skep/agent.sock

Records are taken out of their buffer when they are read; the agent reads for all who ask, and who asks first gets what
had piled up in a ring buffer. A map that a process of the node has open is read with --consume only: it would miss what
is read here. What is lost on the way is said on standard error; what a ring buffer had no room for, only its program
knows: name its counter in the spec (maps.<map>.dropCounter). Stop with ^C.")]
pub struct Events {
    /// The program.
    #[arg(value_parser = program)]
    pub name: String,
    /// The ring buffer or perf event array.
    pub map: String,
    /// The struct of the records, in the program's types; without it they are shown in hexadecimal.
    #[arg(long = "type", value_name = "STRUCT")]
    pub type_: Option<String>,
    /// Only records that satisfy this, found out on the node: docs/filter.md.
    #[arg(long, value_name = "CONDITION", requires = "type_")]
    pub filter: Option<String>,
    /// Stop after this many of each node.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// One of so many.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub one_in: Option<u32>,
    /// At most so many of each node in a second; the others are counted as lost.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: Option<u32>,
    /// Take records although another process has the map open.
    #[arg(long)]
    pub consume: bool,
    /// Only on this node; default: every node that runs the program.
    #[arg(long)]
    pub node: Option<String>,
    /// How to print them: text has the node and the record, json an object on a line of its own.
    #[arg(short, long, value_enum, default_value_t = EventFormat::Text)]
    pub output: EventFormat,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kubectl skep output                         bpf_printk of every program of every node
  kubectl skep output --node node-7
  kubectl skep output flows count_rx --stderr What the kernel has to say of a function (Linux 6.17)
  kubectl-skep output --socket /run/skep/agent.sock

bpf_printk is read from a trace instance of one's own: whoever reads the trace pipe of the node misses nothing. Its lines may
be any program's of the node, and need get on ebpfprograms/events in all namespaces (a ClusterRoleBinding). Since Linux
6.17 a program has streams of its own, which are taken by whoever reads them: bpf_stream_printk writes into them, and the
kernel reports faults of the program on --stderr. Stop with ^C.")]
pub struct Printed {
    /// The program whose stream is read; default: bpf_printk of all.
    #[arg(value_parser = program)]
    pub name: Option<String>,
    /// One function; default: all of the program's.
    pub function: Option<String>,
    /// The stream for errors.
    #[arg(long, requires = "name")]
    pub stderr: bool,
    /// Only on this node; default: every node that runs the program.
    #[arg(long)]
    pub node: Option<String>,
    /// How to print it: text has the node and the line, json an object on a line of its own.
    #[arg(short, long, value_enum, default_value_t = WatchFormat::Text)]
    pub output: WatchFormat,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kubectl skep push flows.bpf.o registry.example.com/ebpf/flows:v1
  kubectl skep push flows.bpf.o localhost:5000/flows:v1 --plain-http
  kubectl skep push flows.bpf.o registry.example.com/ebpf/flows:v1 --annotation org.opencontainers.image.source=https://example.com/flows

The object is read first: what no agent could load is not pushed. Credentials are those of docker login and podman login:
$REGISTRY_AUTH_FILE, $DOCKER_CONFIG/config.json or ~/.docker/config.json.")]
pub struct Push {
    /// The object, as clang or aya-ebpf make it.
    pub object: PathBuf,
    /// Where to: registry/repository:tag.
    pub reference: String,
    /// Certificates (PEM) of the registry's private authority.
    #[arg(long, value_name = "FILE", conflicts_with = "plain_http")]
    pub ca: Option<PathBuf>,
    /// Speak HTTP to the registry.
    #[arg(long)]
    pub plain_http: bool,
    /// Annotation of the image's manifest; may be given several times.
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    pub annotation: Vec<(String, String)>,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = PushFormat::Text)]
    pub output: PushFormat,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  source <(kubectl-skep completion bash)
  kubectl-skep completion zsh > ~/.zfunc/_kubectl-skep
  kubectl-skep completion fish > ~/.config/fish/completions/kubectl-skep.fish")]
pub struct Completion {
    #[arg(value_enum)]
    pub shell: Shell,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Shell {
    pub fn generator(self) -> clap_complete::Shell {
        match self {
            Shell::Bash => clap_complete::Shell::Bash,
            Shell::Zsh => clap_complete::Shell::Zsh,
            Shell::Fish => clap_complete::Shell::Fish,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ListFormat {
    Table,
    Wide,
    Json,
    Yaml,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PageFormat {
    Text,
    Json,
    Yaml,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MapsFormat {
    Table,
    /// With more columns.
    Wide,
    Json,
    Yaml,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DumpFormat {
    Table,
    Json,
    /// An entry a line, as they come and in no order: for maps that are larger than anybody keeps.
    Jsonl,
    Yaml,
    /// The table's cells.
    Csv,
    Raw,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EventFormat {
    Text,
    Json,
    Raw,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PushFormat {
    /// What came of it: the reference by digest; how many entries on each node.
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TopFormat {
    Table,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WatchFormat {
    /// Lines. Of changes: + new, ~ changed, - gone; then key, value, and what its numbers grow by in a second.
    Text,
    Json,
}

/// A program's name, with or without the resource before it, as kubectl prints and takes it.
fn program(text: &str) -> Result<String, String> {
    const RESOURCES: [&str; 4] = ["ebpf", "ebpfprogram", "ebpfprograms", "ebpfprograms.skep.dev"];
    match text.split_once('/') {
        None => Ok(text.to_owned()),
        Some((resource, name)) if RESOURCES.contains(&resource) && !name.contains('/') => Ok(name.to_owned()),
        Some(_) => Err("write NAME or ebpfprogram/NAME, and the namespace by -n".into()),
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or("write KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// As kubectl takes it: a number with a unit; without one, seconds; 0 is no limit.
fn timeout(text: &str) -> Result<Duration, String> {
    let given = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => text
            .parse::<jiff::SignedDuration>()
            .ok()
            .and_then(|d| Duration::try_from(d).ok())
            .ok_or_else(|| format!("{text:?} is no duration; write 30s, 2m, or 0 for no limit"))?,
    };
    Ok(if given.is_zero() { Duration::MAX } else { given })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound_and_every_command_has_an_example() {
        Cli::command().debug_assert();
        let mut cli = Cli::command();
        cli.build();
        fn check(command: &clap::Command, path: &str) {
            for below in command.get_subcommands().filter(|below| !["help", "version"].contains(&below.get_name())) {
                let path = format!("{path} {}", below.get_name());
                match below.has_subcommands() {
                    true => check(below, &path),
                    false => assert!(below.clone().render_help().to_string().contains("Examples:"), "{path}"),
                }
            }
        }
        check(&cli, "skep");
    }

    #[test]
    fn a_program_is_named_as_kubectl_names_it() {
        for text in ["flows", "ebpf/flows", "ebpfprogram/flows", "ebpfprograms.skep.dev/flows"] {
            assert_eq!(program(text), Ok("flows".to_owned()));
        }
        assert!(program("net/flows").is_err());
        assert!(program("ebpf/net/flows").is_err());
    }

    #[test]
    fn timeouts_are_kubectls() {
        assert_eq!(timeout("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(timeout("7"), Ok(Duration::from_secs(7)));
        assert_eq!(timeout("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(timeout("0"), Ok(Duration::MAX));
        assert!(timeout("soon").is_err());
        assert!(timeout("-1s").is_err());
    }
}
