//! The cluster's processes: started in sessions of their own, recorded with their start time, and ended only if both
//! still match: a pid that was used again is somebody else's.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::layout;
use crate::step;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Process {
    pub name: String,
    pub pid: u32,
    /// Field 22 of `/proc/<pid>/stat`: clock ticks after boot.
    started: u64,
}

impl Process {
    /// Starts `program`, its output in the cluster's log directory.
    pub fn start(name: &str, program: &Path, args: &[String]) -> Result<Self> {
        let path = layout::log(name);
        let log = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        // setsid(1) becomes the program without a fork, as it is no group leader: the pid stays.
        let child = Command::new("setsid")
            .arg(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("{name} does not start"))?;
        let pid = child.id();
        let started = start_time(pid).with_context(|| format!("{name} ended at once"))?;
        Ok(Self { name: name.to_owned(), pid, started })
    }

    pub fn runs(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }

    /// An error with the end of the log when the process is gone.
    pub fn check(&self) -> Result<()> {
        if self.runs() {
            return Ok(());
        }
        bail!("{} ended:\n{}", self.name, step::tail(&layout::log(&self.name)))
    }

    /// TERM, then KILL after `patience`.
    pub fn stop(&self, patience: Duration) {
        self.signal("TERM");
        let end = Instant::now() + patience;
        while self.runs() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
        }
        self.signal("KILL");
    }

    pub fn signal(&self, signal: &str) {
        if self.runs() {
            kill(self.pid, signal);
        }
    }

    pub fn resident_mib(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib / 1024)
    }
}

/// The start time of a living process; a zombie is dead.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    if fields.first() == Some(&"Z") {
        return None;
    }
    fields.get(19)?.parse().ok()
}

fn kill(pid: u32, signal: &str) {
    let mut command = Command::new("kill");
    command.arg(format!("-{signal}")).arg(pid.to_string()).stderr(Stdio::null());
    // A process that is gone already is what was asked for.
    let _gone = command.status();
}

/// Ends every process whose command line satisfies `ours`; used for the runtime's shims, which have left their parent.
pub fn kill_where(ours: impl Fn(&str) -> bool) {
    for (pid, command) in processes() {
        if ours(&command) {
            kill(pid, "KILL");
        }
    }
}

/// Ends a program in a pod, known by the pod's uid in the name of its cgroup; whether it was there.
pub fn kill_in_pod(uid: &str, program: &str) -> bool {
    let of_pod = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|all| all.contains(uid));
    let of_program = |command: &str| command.split(' ').next() == Some(program);
    let pids: Vec<u32> = processes().filter(|(_, command)| of_program(command)).map(|(pid, _)| pid).collect();
    let ours: Vec<u32> = pids.into_iter().filter(of_pod).collect();
    ours.iter().for_each(|pid| kill(*pid, "KILL"));
    !ours.is_empty()
}

/// Every process of the machine: its pid and command line.
fn processes() -> impl Iterator<Item = (u32, String)> {
    let paths = std::fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    paths.filter_map(|path| {
        let pid = path.file_name()?.to_str()?.parse().ok()?;
        let bytes = std::fs::read(path.join("cmdline")).unwrap_or_default();
        Some((pid, String::from_utf8_lossy(&bytes).replace('\0', " ")))
    })
}

/// Ends every process of a cgroup and of those below it, then removes them.
pub fn clear_cgroup(dir: &Path) {
    let below: Vec<PathBuf> = std::fs::read_dir(dir)
        .map(|entries| entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect())
        .unwrap_or_default();
    for child in below {
        clear_cgroup(&child);
    }
    for _ in 0..40 {
        let pids = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        for pid in pids.lines().filter_map(|line| line.parse().ok()) {
            kill(pid, "KILL");
        }
        if std::fs::remove_dir(dir).is_ok() || !dir.exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
