//! `cargo xtask soak`: an agent that is never left alone, for as long as one likes. CI runs the short form with the tests.

use std::process::Command;

use anyhow::{Result, bail};

use crate::setup::{Level, Setup};
use crate::{repo, step};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: cargo xtask soak --minutes 30\n\nNeeds root. Prints a seed; SKEP_SEED=... runs the same actions again."
)]
pub struct Soak {
    /// How long, settling and comparing not counted; from 10 on the agent's memory is compared too
    #[arg(long, value_name = "N", default_value_t = 30)]
    minutes: u32,
}

impl Soak {
    pub fn run(&self) -> Result<()> {
        if step::ask(Command::new("id").arg("-u"))? != "0" {
            bail!("a soak needs root: it loads programs and makes network namespaces");
        }
        Setup::levels(&[Level::Bpf, Level::Registry]).run()?;
        let mut cargo = Command::new("cargo");
        cargo.current_dir(repo::root()).env("SKEP_SOAK_MINUTES", self.minutes.to_string());
        cargo.args(["test", "--package", "skep-node-agent", "--test", "soak", "--", "--nocapture"]);
        // Its own lines are the progress.
        let status = cargo.status()?;
        if status.success() { Ok(()) } else { bail!("the soak failed: {status}") }
    }
}
