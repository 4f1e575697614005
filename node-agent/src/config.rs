//! The command line.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use skep_proto::{AGENT_HEALTH_PORT, AGENT_PORT};

/// Skep's agent: keeps eBPF programs loaded and attached on this node.
#[derive(Debug, Parser)]
#[command(name = "skep-agent", version, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "Examples:
  A host without Kubernetes: programs from manifests in a directory
    skep-agent run --manifests /etc/skep/manifests
  The same, with a registry that has a private certificate authority
    skep-agent run --manifests /etc/skep/manifests --registry-ca /etc/skep/registry-ca.pem
  Take everything of Skep off this host
    skep-agent purge";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent until it is told to stop; programs stay attached when it does.
    Run(Box<Run>),
    /// Detach and unload everything that Skep has on this host, and forget what it should run.
    Purge(Places),
}

/// Where the agent keeps things.
#[derive(Clone, Debug, Args)]
pub struct Places {
    /// Directory for the desired state and the image cache.
    #[arg(long, env = "SKEP_STATE_DIR", default_value = "/var/lib/skep")]
    pub state_dir: PathBuf,
    /// Directory for pins, inside a bpffs.
    #[arg(long, env = "SKEP_BPFFS", default_value = "/sys/fs/bpf/skep")]
    pub bpffs: PathBuf,
    /// Unix socket for this node's root.
    #[arg(long, env = "SKEP_SOCKET", default_value = "/run/skep/agent.sock")]
    pub socket: PathBuf,
}

/// Options of `run`.
#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    pub places: Places,
    /// Standalone: follow the EbpfProgram manifests in this directory; no Kubernetes is needed or used.
    #[arg(long, value_name = "DIR", conflicts_with = "node_name")]
    pub manifests: Option<PathBuf>,
    /// The name of this node in the cluster.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: Option<String>,
    /// Address to serve gRPC on, over TLS.
    #[arg(long, env = "SKEP_LISTEN", default_value_t = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), AGENT_PORT))]
    pub listen: SocketAddr,
    /// Address for /livez and /readyz, in plain HTTP: keep it on loopback.
    #[arg(long, env = "SKEP_HEALTH", default_value_t = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), AGENT_HEALTH_PORT))]
    pub health: SocketAddr,
    /// Certificates of the authority that signs the operator's and the nodes' certificates, PEM.
    #[arg(long, default_value = "/etc/skep/ca/ca.crt")]
    pub ca_bundle: PathBuf,
    /// The projected ServiceAccount token of audience skep-operator, for enrolling.
    #[arg(long, default_value = "/var/run/secrets/skep/token")]
    pub token_file: PathBuf,
    /// Certificate of a private authority that a registry uses, PEM; may be given several times.
    #[arg(long, value_name = "FILE")]
    pub registry_ca: Vec<PathBuf>,
    /// A registry to talk to in plain HTTP, host:port; may be given several times.
    #[arg(long, value_name = "HOST:PORT")]
    pub plain_http_registry: Vec<String>,
    /// Size of the image cache from which unused images are removed, the longest unused first; those that are wanted stay.
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    pub image_cache_mib: u64,
    /// The node's own network namespace, in which interfaces are selected; by default that of process 1.
    #[arg(long, value_name = "PATH")]
    pub host_netns: Option<PathBuf>,
    /// Programs whose kernel work may go on at the same time.
    #[arg(long, default_value_t = 8)]
    pub parallel: usize,
    /// Log as JSON lines.
    #[arg(long)]
    pub log_json: bool,
}
