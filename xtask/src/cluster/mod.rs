//! `cargo xtask cluster`: a real Kubernetes of one node on this machine: etcd, API server, controller manager, scheduler,
//! containerd, kubelet, kube-proxy and a registry.
//!
//! Guarantees: `down` takes back all that `up` did, also after an `up` that failed half way or was interrupted.
//! Assumptions: root; `cargo xtask setup --only cluster` has run. One cluster per machine.

mod config;
mod down;
mod host;
mod layout;
mod pki;
mod process;
mod state;
mod status;
mod up;

use anyhow::{Context, Result, ensure};

pub use layout::{REGISTRY, kubeconfig};

/// The authority of the registry's certificate.
pub fn registry_ca() -> std::path::PathBuf {
    layout::pki("ca.crt")
}

/// The configuration of one more registry on the same files: it asks for a password.
pub fn private_registry(address: &str, htpasswd: &std::path::Path) -> String {
    config::private_registry(address, htpasswd).to_string()
}

/// Whether the cluster was started, and all of it runs.
pub fn is_up() -> bool {
    matches!(state::State::load(), Ok(Some(state)) if state.complete && state.check().is_ok())
}

/// A signal for one of the cluster's own processes: `kube-apiserver`.
pub fn signal(name: &str, signal: &str) -> Result<()> {
    let state = state::State::load()?.context("no cluster runs")?;
    let process = state.processes.iter().find(|process| process.name == name);
    process.with_context(|| format!("the cluster has no process {name}"))?.signal(signal);
    Ok(())
}

/// SIGKILL to a program in the pod with that uid.
pub fn kill_in_pod(uid: &str, program: &str) -> Result<()> {
    ensure!(process::kill_in_pod(uid, program), "pod {uid} runs no {program}");
    Ok(())
}

#[derive(Debug, clap::Subcommand)]
#[command(
    after_help = "Example: cargo xtask cluster up && export KUBECONFIG=$PWD/target/cluster/kubeconfig && kubectl get node"
)]
pub enum Cluster {
    /// Start the cluster and wait until its node is ready
    Up,
    /// End the cluster and remove all that it made on the machine
    Down,
    /// Show the cluster's processes
    Status {
        /// How to print it
        #[arg(short, long, value_enum, default_value = "table")]
        output: status::Format,
    },
    /// Import an image archive (docker or OCI) into the node's container runtime
    Import {
        /// As `cargo xtask image build` writes it
        archive: std::path::PathBuf,
    },
}

impl Cluster {
    pub fn run(&self) -> Result<()> {
        match self {
            Self::Up => up::up(),
            Self::Down => down::down(),
            Self::Status { output } => status::show(*output),
            Self::Import { archive } => up::import(archive),
        }
    }
}
