//! What the cluster changes on the machine, and how each change is taken back: the undo stands beside the do.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::{layout, process};
use crate::step;

/// Set by the kubelet, the CNI plugin and kube-proxy.
const SYSCTLS: [&str; 6] = [
    "net/ipv4/ip_forward",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
];

/// Paths that the parts make wherever they are told to keep their state.
const HARD_CODED: [&str; 6] = [
    "/var/lib/kubelet",
    "/var/log/containers",
    "/var/lib/cni",
    "/run/containerd",
    "/run/kubernetes",
    "/usr/libexec/kubernetes",
];

const BPFFS: &str = "/sys/fs/bpf";

/// How the machine was before.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Before {
    sysctls: BTreeMap<String, String>,
    /// Of [`HARD_CODED`], those that were not there.
    absent: Vec<PathBuf>,
    /// Whether Skep kept programs on this machine already, by an agent that is not the cluster's.
    #[serde(default)]
    programs: bool,
}

/// Where agents keep things by default, in pods as on a bare host.
const OF_AGENTS: [&str; 3] = ["/sys/fs/bpf/skep", "/var/lib/skep", "/run/skep"];

fn has_programs() -> bool {
    let full = |path: &str| std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some());
    full("/sys/fs/bpf/skep") || full("/var/lib/skep/desired")
}

impl Before {
    pub fn observe() -> Self {
        let sysctls = SYSCTLS.iter().filter_map(|name| {
            let value = std::fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?;
            Some(((*name).to_owned(), value.trim().to_owned()))
        });
        let absent = HARD_CODED.iter().map(PathBuf::from).filter(|path| !path.exists());
        Self { sysctls: sysctls.collect(), absent: absent.collect(), programs: has_programs() }
    }

    /// Programs outlive the agents that keep them: what the cluster's agents left goes with the cluster.
    pub fn purge(&self) {
        if self.programs {
            return;
        }
        let agent = crate::build::binary("skep-agent");
        if agent.is_file() && has_programs() {
            // It knows of tc filters, too; what it cannot do, the next lines do.
            let _purged = step::ask(Command::new(agent).arg("purge"));
        }
        for path in OF_AGENTS {
            let _absent = std::fs::remove_dir_all(path);
        }
    }

    pub fn restore(&self) {
        for (name, value) in &self.sysctls {
            // A sysctl that cannot be written was not changed either.
            let _unchanged = std::fs::write(Path::new("/proc/sys").join(name), value);
        }
        for path in &self.absent {
            unmount_below(path);
            let _absent = std::fs::remove_dir_all(path);
        }
    }
}

/// The link that carries the node's address. A bridge, as not every kernel has dummy links.
pub fn add_link() -> Result<()> {
    let ip = |words: &[&str]| step::ask(Command::new("ip").args(words));
    ip(&["link", "add", layout::NODE, "type", "bridge"])?;
    ip(&["address", "add", &format!("{}/24", layout::ADDRESS), "dev", layout::NODE])?;
    ip(&["link", "set", layout::NODE, "up"])?;
    Ok(())
}

pub fn link_exists() -> bool {
    Path::new("/sys/class/net").join(layout::NODE).exists()
}

fn remove_link() {
    if link_exists() {
        quietly(Command::new("ip").args(["link", "delete", layout::NODE]));
    }
}

/// Pods mount bpffs with propagation from the host: it has to be there and shared.
pub fn share_bpffs() -> Result<()> {
    if !mounts().iter().any(|(target, kind)| target == Path::new(BPFFS) && kind == "bpf") {
        step::ask(Command::new("mount").args(["-t", "bpf", "bpf", BPFFS]))?;
    }
    step::ask(Command::new("mount").args(["--make-rshared", BPFFS])).context("cannot share /sys/fs/bpf with pods")?;
    Ok(())
}

/// Whether pods of some kubelet live on this machine.
pub fn foreign_pods() -> Option<PathBuf> {
    cgroup_roots().into_iter().map(|root| root.join("kubepods")).find(|path| path.exists())
}

/// Ends what is left of pods and takes back everything but [`Before`]. Each part is tried whatever became of the others.
pub fn clear() {
    let socket = layout::containerd_socket().display().to_string();
    for root in cgroup_roots() {
        process::clear_cgroup(&root.join("kubepods"));
    }
    process::kill_where(|line| line.contains("containerd-shim") && line.contains(&socket));
    for dir in [layout::run_dir(), layout::dir()] {
        unmount_below(&dir);
    }
    let _absent = std::fs::remove_dir_all(layout::run_dir());
    for family in ["ip", "ip6"] {
        quietly(Command::new("nft").args(["delete", "table", family, "kube-proxy"]));
    }
    remove_link();
}

fn cgroup_roots() -> Vec<PathBuf> {
    mounts().into_iter().filter(|(_, kind)| kind.starts_with("cgroup")).map(|(target, _)| target).collect()
}

/// (target, file system) of every mount, in the order they were made.
fn mounts() -> Vec<(PathBuf, String)> {
    let text = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let parse = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        Some((PathBuf::from(fields.next()?.replace("\\040", " ")), fields.next()?.to_owned()))
    };
    text.lines().filter_map(parse).collect()
}

fn unmount_below(dir: &Path) {
    for (target, _) in mounts().into_iter().rev().filter(|(target, _)| target.starts_with(dir)) {
        quietly(Command::new("umount").arg("--lazy").arg(target));
    }
}

/// Mounts that are left below the cluster's directories.
pub fn left_mounts() -> Vec<PathBuf> {
    let ours = |target: &PathBuf| target.starts_with(layout::run_dir()) || target.starts_with(layout::dir());
    mounts().into_iter().map(|(target, _)| target).filter(ours).collect()
}

/// For undoing: the absence of what should be removed is no failure.
fn quietly(command: &mut Command) {
    let _gone = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
}
