//! Other kernels under QEMU: the kernel crate's tests, and those of the agent that only these kernels can run, in
//! machines that boot from an initramfs and have nothing else. What each does with each kind is held to a golden table.

mod console;
mod initramfs;
mod kernels;
mod table;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{bpf, repo, step};
use console::Console;
use kernels::{Files, Runs};

pub use kernels::Kernel;
pub use table::{Table, refusal};

/// Boot, tests and power-off of one machine, on processors that others use too.
const TIMEOUT: Duration = Duration::from_secs(1500);
/// Machines that run beside each other: tests wait a good part of their time.
const AT_ONCE: usize = 2;
/// The file of a machine's second serial line, in its directory.
const VERDICTS: &str = "verdicts";

/// Fetches what is missing of the kernels; says which cannot be had.
pub fn setup() -> Result<()> {
    for kernel in &Kernel::ALL {
        match kernel.fetch() {
            Err(error) if kernel.required => return Err(error.context(format!("Linux {}", kernel.series))),
            Err(error) => println!("Linux {} is left out: {error:#}", kernel.series),
            Ok(_) => {}
        }
    }
    Ok(())
}

/// What became of a kernel's tests.
#[derive(Debug)]
pub enum Outcome {
    /// Why it could not be had.
    Missing(String),
    /// Why none of its tests is meant.
    NotMeant(String),
    Ran(Ran),
}

#[derive(Debug)]
pub struct Ran {
    /// What the machine printed.
    pub console: String,
    /// What its tests said of the kinds.
    pub table: Table,
    /// Tests in programs that it was not given.
    pub not_given: u64,
    pub took: Duration,
}

/// Runs the tests on all kernels; `said` gets every line of every machine as it comes. A machine that does not come to
/// its end is an error of its kernel's.
pub fn run(
    filter: Option<&str>,
    said: impl Fn(&Kernel, &str) + Sync,
) -> Result<Vec<(&'static Kernel, Result<Outcome>)>> {
    let tests = build_tests()?;
    let of_agent = [&tests.agent, &tests.same, &tests.verbs].map(|tests| listed(tests));
    let of_agent: u64 = of_agent.into_iter().sum::<Result<_>>()?;
    let work = repo::target().join("vm");
    let objects = work.join("objects");
    build_objects(&objects)?;
    let machine = |kernel: &'static Kernel| -> Result<Outcome> {
        if let Some(reason) = kernel.obstacle(filter) {
            return Ok(Outcome::NotMeant(reason));
        }
        let files = match kernel.fetch() {
            Ok(files) => files,
            Err(error) if !kernel.required => return Ok(Outcome::Missing(format!("{error:#}"))),
            Err(error) => return Err(error),
        };
        let dir = work.join(kernel.series);
        std::fs::create_dir_all(&dir)?;
        initramfs::write(&dir.join("initramfs"), &files, &tests, &objects, kernel, filter)?;
        said(kernel, &format!("boots {}", files.release));
        let start = Instant::now();
        let console = boot(&dir, &files, |line| said(kernel, line))?;
        let table = Table::told(&files.release, &std::fs::read_to_string(dir.join(VERDICTS))?);
        let not_given = if kernel.runs == Runs::All { 0 } else { of_agent };
        Ok(Outcome::Ran(Ran { console, table, not_given, took: start.elapsed() }))
    };
    let waiting = Mutex::new(Kernel::ALL.iter());
    let next = || waiting.lock().ok()?.next();
    let worker = || std::iter::from_fn(&next).map(|kernel| (kernel, machine(kernel))).collect::<Vec<_>>();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(worker)).collect();
        let mut all = Vec::new();
        for worker in workers {
            all.extend(worker.join().map_err(|_| anyhow::anyhow!("a machine's thread panicked"))?);
        }
        Ok(all)
    })
}

/// How many tests a program has. They are static, and run here too.
fn listed(tests: &Path) -> Result<u64> {
    let list = step::ask(Command::new(tests).arg("--list"))?;
    Ok(list.lines().filter(|line| line.ends_with(": test")).count() as u64)
}

/// The programs of a machine, all static.
struct Tests {
    /// The kernel crate's.
    kernel: PathBuf,
    /// Those of the agent, and the agent.
    agent: PathBuf,
    skep_agent: PathBuf,
    /// Those of the plugin with a real agent, and the plugin.
    same: PathBuf,
    verbs: PathBuf,
    plugin: PathBuf,
}

fn build_tests() -> Result<Tests> {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(repo::root());
    cargo.args(["test", "--package", "skep-kernel", "--test", "kernel", "--package", "skep-node-agent"]);
    cargo.args(["--test", "functions", "--package", "kubectl-skep", "--test", "same", "--test", "verbs"]);
    cargo.args(["--no-run", "--profile", "vm", "--message-format=json"]);
    cargo.args(["--target", "x86_64-unknown-linux-gnu"]).env("RUSTFLAGS", "-C target-feature=+crt-static");
    let messages = step::step("static tests", |_| step::ask(&mut cargo))?;
    let binary = |name: &str, is_test: bool| {
        let mut binaries = messages.lines().filter_map(|line| {
            let message: serde_json::Value = serde_json::from_str(line).ok()?;
            let is_it = message["target"]["name"] == name && message["profile"]["test"] == is_test;
            message["executable"].as_str().filter(|_| is_it).map(PathBuf::from)
        });
        binaries.next().with_context(|| format!("cargo did not say where {name} is"))
    };
    Ok(Tests {
        kernel: binary("kernel", true)?,
        agent: binary("functions", true)?,
        skep_agent: binary("skep-agent", false)?,
        same: binary("same", true)?,
        verbs: binary("verbs", true)?,
        plugin: binary("kubectl-skep", false)?,
    })
}

/// What the tests would compile for themselves: there is no clang in the machine.
fn build_objects(out: &Path) -> Result<()> {
    std::fs::create_dir_all(out)?;
    let dirs = ["kernel/tests/c", "cli/tests/c"].map(|dir| std::fs::read_dir(repo::root().join(dir)));
    let entries = dirs.into_iter().collect::<std::io::Result<Vec<_>>>()?;
    for entry in entries.into_iter().flatten() {
        let source = entry?.path();
        let name = source.file_name().unwrap_or_default().to_string_lossy().replace(".bpf.c", ".o");
        let mut clang = Command::new("clang");
        clang.args(["-g", "-O2", "-Wno-visibility", "-target", "bpf", "-I/usr/include/x86_64-linux-gnu", "-c"]);
        step::ask(clang.arg(&source).arg("-o").arg(out.join(name)))?;
    }
    // One that aya-ebpf makes.
    bpf::build_all()?;
    std::fs::copy(bpf::objects().join("tcx-flows.o"), out.join("tcx-flows.o"))?;
    Ok(())
}

/// Runs a machine to its end; what it printed.
fn boot(dir: &Path, files: &Files, said: impl Fn(&str)) -> Result<String> {
    let (log, verdicts) = (dir.join("console.log"), dir.join(VERDICTS));
    for old in [&log, &verdicts] {
        std::fs::write(old, "")?;
    }
    let serial = |file: &Path| format!("file:{}", file.display());
    let mut qemu = Command::new("qemu-system-x86_64");
    // Emulation: it needs nothing of the host, and the kernels see the same machine everywhere.
    qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-M", "q35", "-m", "1024", "-smp", "2"]);
    qemu.args(["-nodefaults", "-display", "none", "-no-reboot"]);
    qemu.arg("-serial").arg(serial(&log)).arg("-serial").arg(serial(&verdicts));
    qemu.arg("-kernel").arg(&files.vmlinuz).arg("-initrd").arg(dir.join("initramfs"));
    qemu.args(["-append", "console=ttyS0 rdinit=/init panic=-1 quiet lsm=landlock,lockdown,bpf mitigations=off"]);
    let machine = qemu.stdin(Stdio::null()).stdout(Stdio::null()).spawn().context("qemu does not start")?;
    let mut console = Console::open(&log)?;
    end(machine, &log, || console.lines(&said))?;
    Ok(console.all())
}

/// Waits for the machine, with `look` now and then, and once more when it has ended.
fn end(mut machine: Child, log: &Path, mut look: impl FnMut() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    loop {
        let status = machine.try_wait()?;
        look()?;
        match status {
            Some(status) if status.success() => return Ok(()),
            Some(status) => bail!("qemu ended with {status}"),
            None if start.elapsed() > TIMEOUT => {
                machine.kill()?;
                machine.wait()?;
                bail!("the machine did not end within {TIMEOUT:?}\n{}", step::tail(log));
            }
            None => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}
