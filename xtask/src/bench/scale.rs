//! An agent with 1,000 programs: how long until it has them again, and what it takes while nothing happens.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::figure::{Aim, Figure};
use super::node::Node;
use super::{compile, example, median, memory_mib};
use crate::{repo, step};

pub const NAMES: &[&str] = &[
    "restart_adopt_1000_ms",
    "reboot_restore_1000_ms",
    "drift_check_1000_ms",
    "agent_rss_1000_programs_mib",
    "agent_cpu_idle_1000_programs_percent",
    "reboot_restore_100_tcx_ms",
    "libbpf_load_attach_100_tcx_ms",
    "libbpf_attach_100_tcx_ms",
];
const PROGRAMS: usize = 1000;
/// The kernel takes 63 tcx programs per interface and direction.
const TCX: usize = 100;
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
    let ids = ready(&node, PROGRAMS)?;
    let mut adopted = Vec::new();
    for _ in 0..ROUNDS {
        node.kill_agent()?;
        let start = Instant::now();
        node.start_agent()?;
        let again = ready(&node, PROGRAMS)?;
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
        ready(&node, PROGRAMS)?;
        restored.push(start.elapsed().as_secs_f64() * 1e3);
    }
    drop(node);
    let tcx = tcx()?;
    let checks = watched.as_secs_f64() / CHECK.as_secs_f64();
    let of = format!("{PROGRAMS} cgroup_skb programs over {} cgroups", PROGRAMS.div_ceil(PER_CGROUP));
    let figures = vec![
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
    ];
    Ok(figures.into_iter().chain(tcx).collect())
}

/// The same for tcx, and what libbpf needs for as many programs and nothing else.
fn tcx() -> Result<Vec<Figure>> {
    let mut node = Node::start()?;
    let reference = node.push("kernel/tests/c/net.bpf.c", "net")?;
    for i in 0..TCX {
        let direction = if i % 2 == 0 { "Ingress" } else { "Egress" };
        let attach = format!("tcx: {{interfaces: {{names: [lo]}}, direction: {direction}}}");
        let text = program(&format!("t{i}"), &reference, "count_tc", &attach);
        std::fs::write(node.manifests().join(format!("t{i}.yaml")), text)?;
    }
    ready(&node, TCX)?;
    let dir = tempfile::tempdir()?;
    let (object, theirs) = (dir.path().join("net.o"), dir.path().join("tcx"));
    compile("kernel/tests/c/net.bpf.c", &object)?;
    let source = repo::root().join("xtask/src/bench/tcx.c");
    step::ask(Command::new("clang").args(["-O2"]).arg(source).arg("-o").arg(&theirs).args(["-lbpf", "-lelf", "-lz"]))?;
    let (mut restored, mut attached, mut loaded) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        node.kill_agent()?;
        node.empty_bpffs()?;
        node.stop_registry();
        let printed = node.within(Command::new(&theirs).arg(&object).arg("count_tc"))?;
        let mut times = printed.split_whitespace().map(str::parse::<f64>);
        attached.push(times.next().context("tcx printed nothing")??);
        loaded.push(times.next().context("tcx printed one number")??);
        let start = Instant::now();
        node.start_agent()?;
        ready(&node, TCX)?;
        restored.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let note = format!("{TCX} tcx programs on one interface, half for each direction, as reboot_restore_1000_ms");
    let all = "the same number by libbpf in one process: opened, loaded, attached, nothing pinned; in turns with it";
    let links = "of that, the loop that attaches";
    Ok(vec![
        Figure::new(NAMES[5], median(&restored), "ms", Aim::None, note),
        Figure::new(NAMES[6], median(&loaded), "ms", Aim::None, all),
        Figure::new(NAMES[7], median(&attached), "ms", Aim::None, links),
    ])
}

fn manifest(name: &str, reference: &str, cgroup: &str) -> String {
    program(name, reference, "count", &format!("cgroupSkb: {{cgroups: {{path: {cgroup}}}, direction: Egress}}"))
}

fn program(name: &str, reference: &str, function: &str, attach: &str) -> String {
    format!(
        "apiVersion: skep.dev/v1alpha1\nkind: EbpfProgram\nmetadata: {{name: {name}, namespace: bench}}\nspec:\n  image: {{reference: \"{reference}\"}}\n  programs:\n  - name: {function}\n    attach:\n    - {attach}\n"
    )
}

/// Waits until so many programs are Ready; the sum of their ids.
fn ready(node: &Node, programs: usize) -> Result<u64> {
    let mut client = example("bench_ready");
    let output: Value = serde_json::from_str(&step::ask(client.arg(node.socket()).arg(programs.to_string()))?)?;
    output["ids"].as_u64().context("bench_ready printed no ids")
}

/// User and system time of a process so far (proc_pid_stat(5)), in milliseconds.
pub fn cpu_ms(pid: u32) -> Result<f64> {
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
