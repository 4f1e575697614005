//! The source of `core`: eBPF is a target without a prebuilt one. From rustup, or, where rustup has no network, from
//! Debian's `rust-src` of the same version.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::archive::Suite;
use crate::{repo, step};

const SUITES: [&str; 2] = ["trixie-backports", "sid"];

pub fn install() -> Result<()> {
    let sysroot = PathBuf::from(step::ask(Command::new("rustc").args(["--print", "sysroot"]))?);
    let place = sysroot.join("lib/rustlib/src/rust");
    if place.join("library/core/src/lib.rs").is_file() {
        return Ok(());
    }
    super::announce("rust-src", "eBPF objects build `core` from source");
    let mut rustup = Command::new("rustup");
    if step::run("rustup component add rust-src", rustup.args(["component", "add", "rust-src"])).is_ok() {
        return Ok(());
    }
    let version = step::ask(Command::new("rustc").arg("--version"))?;
    let version = version.split_whitespace().nth(1).context("rustc has no version")?.to_owned();
    step::step("rust-src from Debian", |_| from_debian(&version, &place))
}

/// From the first suite that has it.
fn from_debian(version: &str, place: &Path) -> Result<()> {
    let mut seen = Vec::new();
    for name in SUITES {
        let suite = match Suite::open(name) {
            Ok(suite) => suite,
            Err(error) => {
                seen.push(format!("{error:#}"));
                continue;
            }
        };
        let versions = suite.ask(&["madison", "rust-src"])?;
        let mut exact = versions.lines().filter_map(|line| line.split('|').nth(1).map(str::trim));
        let Some(exact) = exact.find(|candidate| candidate.starts_with(&format!("{version}+"))) else {
            seen.push(versions);
            continue;
        };
        let unpacked = tempfile::tempdir_in(repo::tools())?;
        suite.unpack(&[format!("rust-src={exact}")], unpacked.path())?;
        let library = unpacked.path().join(format!("usr/src/rustc-{version}/library"));
        std::fs::create_dir_all(place)?;
        return step::ask(Command::new("cp").arg("-a").arg(&library).arg(place)).map(drop);
    }
    let hint = "`rustup component add rust-src` where there is a network";
    bail!("Debian has no rust-src {version}; {hint}. It has:\n{}", seen.join("\n"))
}
