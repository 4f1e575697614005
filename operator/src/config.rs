//! The command line.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Skep's operator: turns EbpfPrograms into orders to the agents of the nodes, and their reports into statuses.
#[derive(Debug, Parser)]
#[command(name = "skep-operator", version, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// How log lines look. The variable RUST_LOG chooses which: info, or skep_operator=debug.
    #[arg(long, global = true, env = "SKEP_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

const EXAMPLES: &str = "Examples:
  In a cluster (the chart does this)
    skep-operator run
  From a shell, against the cluster of the current kubeconfig context
    skep-operator run --namespace skep-system --apply-crds
  Before Skep is removed from a cluster
    skep-operator uninstall --namespace skep-system --timeout 120s";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the operator until it is told to stop; programs stay on the nodes when it does.
    Run(Box<Run>),
    /// Take every program off every node, release the EbpfPrograms so that they can be deleted, and delete the authority.
    Uninstall(Box<Uninstall>),
    /// Bring the cluster's CustomResourceDefinitions to this version.
    ApplyCrds,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// Where the operator's own things and its agents are.
#[derive(Clone, Debug, Args)]
pub struct Places {
    /// The namespace of the operator and of its agents.
    #[arg(long, env = "POD_NAMESPACE", default_value = "skep-system")]
    pub namespace: String,
    /// Who holds the lease and writes Events: the name of this pod.
    #[arg(long, env = "POD_NAME", default_value = "skep-operator")]
    pub pod_name: String,
    /// The port on which agents serve.
    #[arg(long, env = "SKEP_AGENT_PORT", default_value_t = skep_proto::AGENT_PORT)]
    pub agent_port: u16,
    /// Labels of the agents' pods.
    #[arg(
        long,
        env = "SKEP_AGENT_SELECTOR",
        default_value = "app.kubernetes.io/name=skep,app.kubernetes.io/component=agent"
    )]
    pub agent_selector: String,
    /// The Secret that holds the certificate authority; made if it is missing.
    #[arg(long, default_value = "skep-ca")]
    pub ca_secret: String,
    /// The ConfigMap whose key ca.crt tells agents which authority to trust.
    #[arg(long, default_value = "skep-ca-bundle")]
    pub ca_configmap: String,
    /// The Lease by which one of several operators leads.
    #[arg(long, default_value = "skep-operator")]
    pub lease: String,
}

/// Options of `run`.
#[derive(Clone, Debug, Args)]
pub struct Run {
    #[command(flatten)]
    pub places: Places,
    /// Certificate of a private authority that a registry uses, PEM; may be given several times.
    #[arg(long, value_name = "FILE")]
    pub registry_ca: Vec<PathBuf>,
    /// A registry to talk to in plain HTTP; may be given several times.
    #[arg(long, value_name = "HOST:PORT")]
    pub plain_http_registry: Vec<String>,
    /// Address for /livez, /readyz and /metrics, in plain HTTP. Without one: port 8081 of every address of both families, or of IPv4
    /// alone where the kernel has no IPv6.
    #[arg(long, env = "SKEP_HEALTH", default_value_t = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 8081))]
    pub health_addr: SocketAddr,
    /// First bring the CustomResourceDefinitions to this version.
    #[arg(long)]
    pub apply_crds: bool,
}

/// Options of `uninstall`.
#[derive(Clone, Debug, Args)]
pub struct Uninstall {
    #[command(flatten)]
    pub places: Places,
    /// How long to wait for the nodes: 120s, 2m. Nodes that did not answer by then are named.
    #[arg(long, default_value = "120s", value_parser = duration)]
    pub timeout: Duration,
    /// Leave the programs running on the nodes, and the certificate authority; only release the EbpfPrograms.
    #[arg(long)]
    pub keep_programs: bool,
}

/// `90s`, `2m`, `1h` or a plain number of seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is no duration: write 90s, 2m or 1h");
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u64 = number.parse().map_err(|_| bad())?;
    let seconds = match unit {
        "" | "s" => Some(number),
        "m" => number.checked_mul(60),
        "h" => number.checked_mul(3600),
        _ => None,
    };
    seconds.map(Duration::from_secs).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
        assert!(Cli::try_parse_from(["skep-operator", "run", "--plain-http-registry", "localhost:5000"]).is_ok());
    }

    #[test]
    fn durations_are_read() {
        assert_eq!(duration("120s"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("7"), Ok(Duration::from_secs(7)));
        for bad in ["", "s", "2d", "-1s", "1h30m"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
