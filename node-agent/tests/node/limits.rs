//! What a node may run out of: memory, threads, disk, and the file systems that an agent needs.

use std::path::{Path, PathBuf};

use super::{Node, run};

impl Node {
    /// Puts the agent that runs into a cgroup of its own with so much memory; `false` where cgroups have no memory
    /// controller that can be used.
    pub fn limit_memory(&self, bytes: u64) -> bool {
        let (dir, file) = self.memory_cgroup();
        std::fs::create_dir(&dir).is_ok()
            && std::fs::write(dir.join(file), bytes.to_string()).is_ok()
            && std::fs::write(dir.join("cgroup.procs"), self.pid().to_string()).is_ok()
    }

    pub fn raise_memory(&self, bytes: u64) {
        let (dir, file) = self.memory_cgroup();
        std::fs::write(dir.join(file), bytes.to_string()).unwrap();
    }

    /// The most that the agent's cgroup ever used.
    pub fn most_memory(&self) -> u64 {
        let (dir, file) = self.memory_cgroup();
        let peak = if file == "memory.max" { "memory.peak" } else { "memory.max_usage_in_bytes" };
        std::fs::read_to_string(dir.join(peak)).unwrap().trim().parse().unwrap()
    }

    pub(super) fn memory_cgroup(&self) -> (PathBuf, &'static str) {
        let name = format!("{}-memory", self.name);
        let v1 = Path::new("/sys/fs/cgroup/memory");
        if v1.exists() {
            return (v1.join(name), "memory.limit_in_bytes");
        }
        (skep_kernel::probe::cgroup2_mount().unwrap().join(name), "memory.max")
    }

    /// Puts the agent that runs into a cgroup where it may have `more` threads than it has; `false` where cgroups have no
    /// pids controller that can be used.
    pub fn limit_threads(&self, more: usize) -> bool {
        let dir = self.pids_cgroup();
        let has = std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap().count();
        std::fs::create_dir(&dir).is_ok()
            && std::fs::write(dir.join("pids.max"), (has + more).to_string()).is_ok()
            && std::fs::write(dir.join("cgroup.procs"), self.pid().to_string()).is_ok()
    }

    pub fn raise_threads(&self) {
        std::fs::write(self.pids_cgroup().join("pids.max"), "max").unwrap();
    }

    pub(super) fn pids_cgroup(&self) -> PathBuf {
        let v1 = Path::new("/sys/fs/cgroup/pids");
        let root = if v1.exists() { v1.to_owned() } else { skep_kernel::probe::cgroup2_mount().unwrap() };
        root.join(format!("{}-pids", self.name))
    }

    /// Hides the pins of the node behind another file system, as after somebody unmounted the bpffs; or shows them again.
    pub fn hide_bpffs(&self, hide: bool) {
        let root = self.root().to_string_lossy().into_owned();
        match hide {
            true => run("mount", &["-t", "tmpfs", &self.name, &root]),
            false => run("umount", &[&root]),
        }
    }

    /// The state directory on a file system of its own, of so many bytes. Before the agent starts anew.
    pub fn mount_state(&self, bytes: u64) {
        std::fs::create_dir_all(self.state()).unwrap();
        run("mount", &["-t", "tmpfs", "-o", &format!("size={bytes}"), &self.name, &self.state().to_string_lossy()]);
    }

    /// Makes the desired store one that cannot be written, or again one that can: while the agent has its lock open, the
    /// kernel does not let the file system become read-only.
    pub fn forbid_records(&self, forbid: bool) {
        run("chattr", &[if forbid { "+i" } else { "-i" }, &self.state().join("desired").to_string_lossy()]);
    }
}
