//! What `up` has done so far: written after each thing done, so that `down` knows it whatever happened.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::{host::Before, layout, process::Process};

#[derive(Debug, Serialize, Deserialize)]
pub struct State {
    pub since: jiff::Timestamp,
    pub before: Before,
    pub processes: Vec<Process>,
    /// `up` came to its end.
    #[serde(default)]
    pub complete: bool,
}

impl State {
    fn path() -> PathBuf {
        layout::dir().join("state.json")
    }

    /// The state of a cluster that was started and not taken down.
    pub fn load() -> Result<Option<Self>> {
        match std::fs::read(Self::path()) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).context("target/cluster/state.json is damaged")?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context("cannot read target/cluster/state.json"),
        }
    }

    pub fn save(&self) -> Result<()> {
        let temporary = layout::dir().join("state.json~");
        std::fs::write(&temporary, serde_json::to_vec_pretty(self)?)?;
        Ok(std::fs::rename(temporary, Self::path())?)
    }

    pub fn forget() -> Result<()> {
        Ok(std::fs::remove_file(Self::path())?)
    }

    pub fn start(&mut self, name: &str, program: &std::path::Path, args: &[String]) -> Result<()> {
        let process = Process::start(name, program, args)?;
        self.processes.push(process);
        self.save()
    }

    /// An error with the end of its log for the first process that is gone.
    pub fn check(&self) -> Result<()> {
        self.processes.iter().try_for_each(Process::check)
    }
}
