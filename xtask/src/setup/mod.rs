//! `cargo xtask setup`: installs what is missing for building and testing, and says what and why. Quick when nothing is.

mod apt;
pub mod archive;
pub mod foreign;
mod host;
mod rust_src;

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::{repo, step};

/// What somebody wants to do; each needs its own tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Level {
    /// Checks of the code: licences
    Build,
    /// eBPF objects, and loading them
    Bpf,
    /// A real OCI registry
    Registry,
    /// A real Kubernetes
    Cluster,
    /// Other kernels under QEMU
    Vm,
    /// Hostile input made up; only when named, since nothing else needs it
    Fuzz,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: cargo xtask setup --only bpf   # what `cargo xtask build --only ebpf` needs")]
pub struct Setup {
    /// Install for these only; all when absent
    #[arg(long, value_enum, num_args = 1..)]
    only: Vec<Level>,
}

const BPF_LINKER: &str = "0.10.3";
const CARGO_DENY: &str = "0.20.2";
const CARGO_FUZZ: &str = "0.13.2";
const HELM: &str = "v4.3.1";

impl Setup {
    /// What everything needs.
    pub fn all() -> Self {
        Self { only: Vec::new() }
    }

    /// What these levels need.
    pub fn levels(levels: &[Level]) -> Self {
        Self { only: levels.to_vec() }
    }

    pub fn run(&self) -> Result<()> {
        let wants = |level: Level| (self.only.is_empty() && level != Level::Fuzz) || self.only.contains(&level);
        let levels: Vec<Level> = [Level::Build, Level::Bpf, Level::Registry, Level::Cluster, Level::Vm, Level::Fuzz]
            .into_iter()
            .filter(|level| wants(*level))
            .collect();
        std::fs::create_dir_all(repo::tools().join("bin"))?;
        apt::install(&levels)?;
        if wants(Level::Build) {
            cargo_tool("cargo-deny", CARGO_DENY, "checks the licences of dependencies")?;
        }
        if wants(Level::Bpf) {
            rust_src::install()?;
            cargo_tool("bpf-linker", BPF_LINKER, "links eBPF objects and writes their BTF")?;
            if let Err(error) = foreign::objects() {
                println!("tests of objects that others built will be skipped: {error:#}");
            }
        }
        if wants(Level::Fuzz) {
            cargo_tool("cargo-fuzz", CARGO_FUZZ, "builds fuzz targets")?;
        }
        if wants(Level::Cluster) {
            helm()?;
            kubernetes()?;
        }
        if wants(Level::Vm) {
            crate::vm::setup()?;
        }
        if wants(Level::Bpf) || wants(Level::Cluster) {
            host::prepare()?;
        }
        println!("all is there: {}", repo::tools().display());
        Ok(())
    }
}

/// A file beside the tool says which version it is: the tool itself need not be asked.
fn has(name: &str, version: &str) -> bool {
    repo::tool(name).is_file() && std::fs::read_to_string(mark(name)).is_ok_and(|installed| installed.trim() == version)
}

fn remember(name: &str, version: &str) -> Result<()> {
    Ok(std::fs::write(mark(name), format!("{version}\n"))?)
}

fn mark(name: &str) -> PathBuf {
    repo::tools().join(format!("{name}.version"))
}

fn announce(what: &str, why: &str) {
    println!("{what} is missing: {why}");
}

fn cargo_tool(name: &str, version: &str, why: &str) -> Result<()> {
    if has(name, version) {
        return Ok(());
    }
    announce(&format!("{name} {version}"), why);
    let mut cargo = Command::new("cargo");
    cargo.args(["install", name, "--version", version, "--locked", "--force", "--root"]).arg(repo::tools());
    // Its own directory: the workspace's lock would make every other build wait.
    cargo.env("CARGO_TARGET_DIR", repo::tools().join("build")).env_remove("RUSTFLAGS");
    step::run(&format!("install {name}"), &mut cargo)?;
    let _rebuildable = std::fs::remove_dir_all(repo::tools().join("build"));
    remember(name, version)
}

fn helm() -> Result<()> {
    if has("helm", HELM) {
        return Ok(());
    }
    announce(&format!("helm {HELM}"), "installs the chart");
    let mut go = Command::new("go");
    go.args(["install", &format!("helm.sh/helm/v4/cmd/helm@{HELM}")]);
    go.env("GOBIN", repo::tools().join("bin")).env("CGO_ENABLED", "0");
    step::run("install helm", &mut go)?;
    remember("helm", HELM)
}

/// Built again when a file of `xtask/cluster` is newer: Go's cache makes that seconds.
fn kubernetes() -> Result<()> {
    let source = repo::root().join("xtask/cluster");
    let program = repo::tool("skep-cluster");
    let built = std::fs::metadata(&program).and_then(|file| file.modified()).ok();
    let changed = ["main.go", "go.mod", "go.sum"].iter().any(|name| {
        let time = std::fs::metadata(source.join(name)).and_then(|file| file.modified()).ok();
        time > built
    });
    if changed || built.is_none() {
        announce("the cluster binary", "a Kubernetes node and control plane; about 6 minutes the first time");
        let version = "k8s.io/component-base/version";
        let flags = format!("-s -w -X {version}.gitVersion=v1.34.4 -X {version}.gitMajor=1 -X {version}.gitMinor=34");
        let mut go = Command::new("go");
        go.current_dir(source).env("CGO_ENABLED", "0").args(["build", "-trimpath", "-ldflags", &flags, "-o"]);
        step::run("build Kubernetes", go.arg(&program).arg("."))?;
    }
    let kubectl = repo::tool("kubectl");
    if !kubectl.exists() {
        std::os::unix::fs::symlink("skep-cluster", kubectl)?;
    }
    Ok(())
}
