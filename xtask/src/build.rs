//! `cargo xtask build`: what is shipped. Release binaries that need no library of their host, and the eBPF objects.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::{bpf, repo, step};

const TARGET: &str = "x86_64-unknown-linux-gnu";
const PACKAGES: [&str; 3] = ["skep-operator", "skep-node-agent", "kubectl-skep"];

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum What {
    Binaries,
    Ebpf,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: cargo xtask build --only ebpf   # the objects in target/bpf")]
pub struct Build {
    /// Build one kind only
    #[arg(long, value_enum)]
    only: Option<What>,
}

impl Build {
    pub fn run(&self) -> Result<()> {
        if !matches!(self.only, Some(What::Binaries)) {
            bpf::build_all()?;
        }
        if !matches!(self.only, Some(What::Ebpf)) {
            binaries()?;
        }
        Ok(())
    }
}

/// The static release binaries of operator, agent and plugin.
pub fn binaries() -> Result<()> {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(repo::root()).args(["build", "--release", "--target", TARGET]);
    for package in PACKAGES {
        cargo.args(["--package", package]);
    }
    step::run("release binaries", cargo.env("RUSTFLAGS", "-C target-feature=+crt-static"))
}

pub fn binary(name: &str) -> PathBuf {
    repo::target().join(TARGET).join("release").join(name)
}
