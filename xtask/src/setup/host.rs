//! File systems that a systemd host has mounted and others have not.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::step;

/// (type, where)
const MOUNTS: [(&str, &str); 2] = [("bpf", "/sys/fs/bpf"), ("tracefs", "/sys/kernel/tracing")];

pub fn prepare() -> Result<()> {
    for (kind, target) in MOUNTS {
        if !is_mounted(kind, target)? {
            super::announce(&format!("{kind} at {target}"), "pins and tracepoints live there");
            step::ask(Command::new("mount").args(["-t", kind, kind]).arg(Path::new(target)))?;
        }
    }
    if !is_shared("/sys/fs/bpf")? {
        step::ask(Command::new("mount").args(["--make-rshared", "/sys/fs/bpf"]))?;
    }
    Ok(())
}

fn is_mounted(kind: &str, target: &str) -> Result<bool> {
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    Ok(mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some(target) && fields.next() == Some(kind)
    }))
}

/// Whether what is mounted there is seen by pods that mount it with propagation.
fn is_shared(target: &str) -> Result<bool> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mounts.lines().any(|line| line.split(' ').nth(4) == Some(target) && line.contains(" shared:")))
}
