//! The source of `core`: eBPF is a target without a prebuilt one. From rustup, or, where rustup has no network, from
//! Debian's `rust-src` of the same version, by an apt state of our own that leaves the system's lists alone.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

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

/// Where this machine gets Debian's packages from: the newer suites are beside its own.
fn mirror() -> Result<String> {
    let sites = step::ask(Command::new("apt-get").args(["indextargets", "--format", "$(SITE)"]))?;
    let debian = sites.lines().find(|site| site.trim_end_matches('/').ends_with("/debian"));
    debian.map(str::to_owned).context("apt knows no Debian mirror; install rust-src by `rustup component add rust-src`")
}

fn from_debian(version: &str, place: &Path) -> Result<()> {
    let dir = repo::tools().join("apt");
    for sub in ["lists/partial", "cache/archives/partial", "unpacked"] {
        std::fs::create_dir_all(dir.join(sub))?;
    }
    let mirror = mirror()?;
    let source = |suite: &&str| {
        format!("deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {mirror} {suite} main\n")
    };
    std::fs::write(dir.join("sources.list"), SUITES.iter().map(source).collect::<String>())?;
    let apt = |program: &str, words: &[&str]| -> Result<()> {
        step::logged(&format!("rust-src {program} {}", words[0]), private(program, &dir).args(words))
    };
    apt("apt-get", &["update"])?;
    let policy = step::ask(private("apt-cache", &dir).args(["madison", "rust-src"]))?;
    let versions = policy.lines().filter_map(|line| line.split('|').nth(1).map(str::trim));
    let Some(exact) = versions.into_iter().find(|candidate| candidate.starts_with(&format!("{version}+"))) else {
        bail!(
            "Debian has no rust-src {version}; `rustup component add rust-src` where there is a network. It has:\n{policy}"
        );
    };
    apt("apt-get", &["download", &format!("rust-src={exact}")])?;
    let package = std::fs::read_dir(&dir)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get downloaded nothing")?;
    step::ask(Command::new("dpkg").arg("-x").arg(&package).arg(dir.join("unpacked")))?;
    let library = dir.join("unpacked/usr/src").join(format!("rustc-{version}/library"));
    std::fs::create_dir_all(place)?;
    step::ask(Command::new("cp").arg("-a").arg(&library).arg(place)).map(drop)
}

/// apt with its own state; proxies and the like stay as the machine has them.
fn private(program: &str, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(dir);
    for (key, value) in
        [("Dir::Etc::sourcelist", "sources.list"), ("Dir::State::lists", "lists"), ("Dir::Cache", "cache")]
    {
        command.arg("-o").arg(format!("{key}={}", dir.join(value).display()));
    }
    command.args(["-o", "Dir::Etc::sourceparts=-", "-o", "APT::Sandbox::User=root"]);
    command
}
