//! An agent with 1,000 programs: how long until it has them again, and what it takes while nothing happens.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::figure::{Aim, Figure};
use super::node::Node;
use super::{example, median, memory_mib};
use crate::step;

pub const NAMES: &[&str] = &[
    "restart_adopt_1000_ms",
    "reboot_restore_1000_ms",
    "drift_check_1000_ms",
    "agent_rss_1000_programs_mib",
    "agent_cpu_idle_1000_programs_percent",
];
const PROGRAMS: usize = 1000;
/// The kernel takes 64 programs per cgroup and hook.
const PER_CGROUP: usize = 50;
const ROUNDS: usize = 3;
/// How often the agent checks for drift, and how long it is watched: two checks of each program.
const CHECK: Duration = Duration::from_secs(30);
const WATCHED: Duration = Duration::from_secs(60);

pub fn measure() -> Result<Vec<Figure>> {
    let mut node = Node::start()?;
    let cgroups = Cgroups::make(PROGRAMS.div_ceil(PER_CGROUP))?;
    let reference = node.push("kernel/tests/c/small.bpf.c", "small")?;
    for i in 0..PROGRAMS {
        let (name, cgroup) = (format!("p{i}"), cgroups.below(i / PER_CGROUP));
        std::fs::write(node.manifests().join(format!("{name}.yaml")), manifest(&name, &reference, &cgroup))?;
    }
    let ids = ready(&node)?;
    let mut adopted = Vec::new();
    for _ in 0..ROUNDS {
        node.kill_agent()?;
        let start = Instant::now();
        node.start_agent()?;
        let again = ready(&node)?;
        adopted.push(start.elapsed().as_secs_f64() * 1e3);
        ensure!(again == ids, "programs were loaded again, not adopted");
    }
    // Two checks by each program's own clock: the first begin when it was Ready.
    std::thread::sleep(CHECK);
    let pid = node.agent_pid()?;
    let (before, start) = (cpu_ms(pid)?, Instant::now());
    std::thread::sleep(WATCHED);
    let (spent, watched) = (cpu_ms(pid)? - before, start.elapsed());
    let (rss, anonymous) = (memory_mib(pid, "VmRSS")?, memory_mib(pid, "RssAnon")?);
    let mut restored = Vec::new();
    for _ in 0..ROUNDS {
        node.kill_agent()?;
        node.empty_bpffs()?;
        node.stop_registry();
        let start = Instant::now();
        node.start_agent()?;
        ready(&node)?;
        restored.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let checks = watched.as_secs_f64() / CHECK.as_secs_f64();
    let of = format!("{PROGRAMS} cgroup_skb programs over {} cgroups", PROGRAMS.div_ceil(PER_CGROUP));
    Ok(vec![
        Figure::new(
            NAMES[0],
            median(&adopted),
            "ms",
            Aim::AtMost(500.0),
            format!(
                "{of}; SIGKILL, then from the start of the agent until all are Ready, same ids; median of {ROUNDS}"
            ),
        ),
        Figure::new(
            NAMES[1],
            median(&restored),
            "ms",
            Aim::AtMost(3000.0),
            format!(
                "{of}; bpffs emptied, no registry: from the start of the agent until all are Ready; median of {ROUNDS}"
            ),
        ),
        Figure::new(
            NAMES[2],
            spent / checks,
            "ms",
            Aim::AtMost(50.0),
            format!("CPU time of the agent for a check of all, over {} s with nothing else to do", WATCHED.as_secs()),
        ),
        Figure::new(NAMES[3], rss, "MiB", Aim::AtMost(80.0), format!("VmRSS; RssAnon {anonymous:.1} MiB")),
        Figure::new(
            NAMES[4],
            spent / watched.as_secs_f64() / 10.0,
            "%",
            Aim::AtMost(0.5),
            format!("of one core, over {} s", WATCHED.as_secs()),
        ),
    ])
}

fn manifest(name: &str, reference: &str, cgroup: &str) -> String {
    format!(
        "apiVersion: skep.dev/v1alpha1\nkind: EbpfProgram\nmetadata: {{name: {name}, namespace: bench}}\nspec:\n  image: {{reference: \"{reference}\"}}\n  programs:\n  - name: count\n    attach:\n    - cgroupSkb: {{cgroups: {{path: {cgroup}}}, direction: Egress}}\n"
    )
}

/// Waits until all programs are Ready; the sum of their ids.
fn ready(node: &Node) -> Result<u64> {
    let mut client = example("bench_ready");
    let output: Value = serde_json::from_str(&step::ask(client.arg(node.socket()).arg(PROGRAMS.to_string()))?)?;
    output["ids"].as_u64().context("bench_ready printed no ids")
}

/// User and system time of a process so far (proc_pid_stat(5)), in milliseconds.
fn cpu_ms(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Fields are counted from behind the name, which may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(") ").context("no stat")?.1.split(' ').collect();
    let ticks: f64 = fields.get(11).context("no utime")?.parse::<f64>()? + fields[12].parse::<f64>()?;
    // USER_HZ is 100 on every architecture that Linux has for servers.
    Ok(ticks * 10.0)
}

/// cgroups of the run's own.
pub struct Cgroups {
    top: PathBuf,
    count: usize,
}

impl Cgroups {
    pub fn make(count: usize) -> Result<Self> {
        let mounts = std::fs::read_to_string("/proc/mounts")?;
        let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let mount = fields.into_iter().find(|f| f.get(2) == Some(&"cgroup2")).context("no cgroup v2 is mounted")?;
        let cgroups = Self { top: PathBuf::from(mount[1]).join(format!("skep-bench-{}", std::process::id())), count };
        for i in 0..count {
            std::fs::create_dir_all(cgroups.top.join(i.to_string()))?;
        }
        Ok(cgroups)
    }

    pub fn path(&self, index: usize) -> PathBuf {
        self.top.join(index.to_string())
    }

    /// The path of one of them below the mount.
    fn below(&self, index: usize) -> String {
        let name = self.top.file_name().unwrap_or_default().to_string_lossy();
        format!("/{name}/{index}")
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for i in 0..self.count {
            let _removed = std::fs::remove_dir(self.top.join(i.to_string()));
        }
        let _removed = std::fs::remove_dir(&self.top);
    }
}
