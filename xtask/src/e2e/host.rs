//! What the host holds of eBPF, by bpftool and `tc`: compared before and after.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use serde_json::Value;

use crate::step;

/// What may stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Except {
    Nothing,
    /// Files of a running agent.
    Files,
}

/// One line for each thing.
#[derive(Debug, Clone, Default)]
pub struct Snapshot(BTreeSet<String>);

impl Snapshot {
    pub fn take() -> Result<Self> {
        let mut all = BTreeSet::new();
        for kind in ["prog", "map", "link"] {
            let text = step::ask(Command::new("bpftool").args(["-j", kind, "show"]))?;
            let list: Value = serde_json::from_str(&text).unwrap_or_default();
            for item in list.as_array().into_iter().flatten() {
                // containerd and kubelet attach device filters to cgroups of pods that come and go.
                if item["type"] != "cgroup_device" && item["attach_type"] != "cgroup_device" {
                    all.insert(format!("{kind} {} {}", item["id"], item["name"].as_str().unwrap_or_default()));
                }
            }
        }
        let qdiscs = step::ask(Command::new("tc").args(["qdisc", "show"]))?;
        all.extend(qdiscs.lines().filter(|line| line.contains("clsact")).map(|line| format!("qdisc {line}")));
        for root in ["/sys/fs/bpf/skep", "/var/lib/skep", "/run/skep"] {
            files(Path::new(root), &mut all);
        }
        Ok(Self(all))
    }

    /// What is here now and was not before.
    pub fn difference(&self, before: &Self, except: Except) -> Vec<String> {
        let of_agent = |line: &str| line.starts_with("file /var/lib/skep") || line.starts_with("file /run/skep");
        let stays = |line: &str| except == Except::Files && of_agent(line);
        // bpftool itself loads a program to iterate, which is gone when it ends.
        let own = |line: &str| line.ends_with(" iter") || line.ends_with("pid_iter.rodata");
        self.0.difference(&before.0).filter(|line| !stays(line) && !own(line)).cloned().collect()
    }
}

fn files(path: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.insert(format!("file {}", path.display()));
        }
    }
}
