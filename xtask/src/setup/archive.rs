//! A suite of Debian's archive that need not be this machine's own, by an apt state of ours: the machine's lists stay as
//! they are; its mirror and proxies are used. Signatures are checked, against Debian's keys.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{repo, step};

const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

#[derive(Debug)]
pub struct Suite {
    dir: PathBuf,
}

impl Suite {
    /// Fetches the suite's list of packages. `…-security` is in an archive of its own.
    pub fn open(name: &str) -> Result<Self> {
        let suite = Self { dir: repo::tools().join("apt").join(name) };
        for sub in ["lists/partial", "cache/archives/partial"] {
            std::fs::create_dir_all(suite.dir.join(sub))?;
        }
        let mirror = mirror(name.ends_with("-security"))?;
        std::fs::write(suite.dir.join("sources.list"), format!("deb [signed-by={KEYS}] {mirror} {name} main\n"))?;
        let mut update = suite.apt("apt-get");
        // Without this a suite that is not there is a warning.
        update.args(["update", "--quiet", "--error-on=any"]);
        step::ask(&mut update).with_context(|| format!("Debian's suite {name} cannot be reached here"))?;
        Ok(suite)
    }

    /// What apt-cache says.
    pub fn ask(&self, words: &[&str]) -> Result<String> {
        step::ask(self.apt("apt-cache").args(words))
    }

    /// Downloads packages (`name` or `name=version`) and unpacks them into a directory.
    pub fn unpack(&self, packages: &[String], into: &Path) -> Result<()> {
        std::fs::create_dir_all(into)?;
        // Here, so that a download that was cut short is no package.
        let downloads = tempfile::tempdir_in(&self.dir)?;
        let mut apt = self.apt("apt-get");
        apt.current_dir(&downloads).args(["download", "--quiet"]).args(packages);
        step::run(&format!("fetch {}", packages.join(" ")), &mut apt)?;
        for entry in std::fs::read_dir(&downloads)? {
            step::ask(Command::new("dpkg").arg("-x").arg(entry?.path()).arg(into))?;
        }
        Ok(())
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for (key, value) in
            [("Dir::Etc::sourcelist", "sources.list"), ("Dir::State::lists", "lists"), ("Dir::Cache", "cache")]
        {
            command.arg("-o").arg(format!("{key}={}", self.dir.join(value).display()));
        }
        command.args(["-o", "Dir::Etc::sourceparts=-", "-o", "APT::Sandbox::User=root"]);
        command
    }
}

/// Where this machine gets Debian's packages from: other suites are beside its own.
fn mirror(security: bool) -> Result<String> {
    let sites = step::ask(Command::new("apt-get").args(["indextargets", "--format", "$(SITE)"]))?;
    let site = |end: &str| sites.lines().map(|site| site.trim_end_matches('/')).find(|site| site.ends_with(end));
    let debian = site("/debian").map(|site| if security { format!("{site}-security") } else { site.to_owned() });
    let found = if security { site("/debian-security").map(str::to_owned).or(debian) } else { debian };
    found.context("apt knows no Debian mirror here")
}
