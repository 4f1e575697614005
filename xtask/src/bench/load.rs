//! Programs loaded, attached and pinned a second, by the crate that the agent does it with.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::figure::{Aim, Figure};
use super::{compile, example, median};

pub const NAMES: &[&str] = &["load_attach_pin_per_s"];
const ROUNDS: usize = 3;
const PROGRAMS: &str = "1000";
const AIM: f64 = 3500.0;

pub fn measure() -> Result<Vec<Figure>> {
    let dir = tempfile::tempdir()?;
    let object = dir.path().join("small.o");
    compile("kernel/tests/c/small.bpf.c", &object)?;
    let mut rates = Vec::new();
    for _ in 0..ROUNDS {
        let mut command = example("bench_load");
        // What it writes beside the kernel goes with the directory.
        command.arg(&object).arg(PROGRAMS).env("TMPDIR", dir.path());
        rates.push(round(&mut command)?);
    }
    let note = format!("{ROUNDS} processes, 3 rounds of {PROGRAMS} programs each; one thread, one map and link each");
    Ok(vec![Figure::new(NAMES[0], median(&rates), "/s", Aim::AtLeast(AIM), note)])
}

fn round(command: &mut Command) -> Result<f64> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("bench_load does not start")?;
    let _left = Left(child.id());
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("bench_load ended with {}", output.status);
    }
    let value: Value = serde_json::from_slice(&output.stdout)?;
    value["programs_per_s"].as_f64().context("bench_load printed no rate")
}

/// What a `bench_load` that ended by panic leaves: pins and cgroups with its process id in the name.
struct Left(u32);

impl Drop for Left {
    fn drop(&mut self) {
        let name = format!("skep-bench-{}", self.0);
        let _unpinned = std::fs::remove_dir_all(std::path::Path::new("/sys/fs/bpf").join(&name));
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
        for mount in mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()) {
            let [_, path, "cgroup2", ..] = mount[..] else { continue };
            let top = std::path::Path::new(path).join(&name);
            for entry in std::fs::read_dir(&top).into_iter().flatten().flatten() {
                let _removed = std::fs::remove_dir(entry.path());
            }
            let _removed = std::fs::remove_dir(top);
        }
    }
}
