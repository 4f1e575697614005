//! Taking the cluster down: consumers before what they consume, then everything that they leave.

use std::time::Duration;

use anyhow::{Result, bail};

use super::{host, state::State};
use crate::step::step;

pub fn down() -> Result<()> {
    let Some(state) = State::load()? else {
        println!("no cluster runs here");
        return Ok(());
    };
    step("take the cluster down", |progress| {
        take_down(&state, |name| progress.note(name));
        let left = host::left_mounts();
        if host::link_exists() || !left.is_empty() {
            bail!(
                "the machine did not let go of everything: mounts {left:?}; run it again, then look at /proc/self/mounts"
            );
        }
        State::forget()
    })
}

pub fn take_down(state: &State, note: impl Fn(&str)) {
    for process in state.processes.iter().rev() {
        note(&process.name);
        // Nothing here is worth an orderly end but the file systems' consistency, which no process holds.
        let patience = if process.name == "containerd" { 5 } else { 2 };
        process.stop(Duration::from_secs(patience));
    }
    note("pods");
    host::clear();
    note("what agents left");
    state.before.purge();
    state.before.restore();
}
