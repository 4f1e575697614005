//! Other kernels under QEMU: the kernel crate's tests, and those of the agent that only these kernels can run, in a
//! machine that boots from an initramfs and has nothing else.

mod initramfs;
mod kernels;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{bpf, repo, step};

pub use kernels::Kernel;

/// Boot, tests and power-off under emulation take eleven minutes on two processors that do nothing else.
const TIMEOUT: Duration = Duration::from_secs(1500);

/// Fetches what is missing of the kernels.
pub fn setup() -> Result<()> {
    Kernel::ALL.iter().try_for_each(|kernel| kernel.fetch().map(drop))
}

/// Runs the kernel tests on one kernel; what the machine printed.
pub fn run(kernel: &Kernel, filter: Option<&str>) -> Result<String> {
    let files = kernel.fetch()?;
    let tests = build_tests()?;
    let work = repo::target().join("vm").join(kernel.series);
    std::fs::create_dir_all(&work)?;
    let objects = work.join("objects");
    build_objects(&objects)?;
    let image = work.join("initramfs.cpio.gz");
    step::step(&format!("initramfs for {}", kernel.series), |_| {
        initramfs::write(&image, &files, &tests, &objects, &arguments(kernel, filter))
    })?;
    let log = work.join("console.log");
    step::step(&format!("tests on {}", files.release), |_| boot(&files.vmlinuz, &image, &log))?;
    std::fs::read_to_string(&log).with_context(|| format!("cannot read {}", log.display()))
}

/// What the test binary is told.
fn arguments(kernel: &Kernel, filter: Option<&str>) -> String {
    let skip = kernel.left_out.iter().map(|(test, _)| format!("--skip {test}"));
    filter.map(str::to_owned).into_iter().chain(skip).collect::<Vec<_>>().join(" ")
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
    cargo.args(["--no-run", "--message-format=json"]);
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

fn boot(vmlinuz: &Path, initramfs: &Path, log: &Path) -> Result<()> {
    let _old = std::fs::remove_file(log);
    let mut qemu = Command::new("qemu-system-x86_64");
    // Emulation: it needs nothing of the host, and the kernels see the same machine everywhere.
    qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-M", "q35", "-m", "1024", "-smp", "2"]);
    qemu.args(["-nodefaults", "-display", "none", "-no-reboot", "-serial"]).arg(format!("file:{}", log.display()));
    qemu.arg("-kernel").arg(vmlinuz).arg("-initrd").arg(initramfs);
    qemu.args(["-append", "console=ttyS0 rdinit=/init panic=-1 quiet lsm=landlock,lockdown,bpf mitigations=off"]);
    let mut machine = qemu.stdin(Stdio::null()).stdout(Stdio::null()).spawn().context("qemu does not start")?;
    let start = Instant::now();
    loop {
        match machine.try_wait()? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => bail!("qemu ended with {status}"),
            None if start.elapsed() > TIMEOUT => {
                machine.kill()?;
                machine.wait()?;
                bail!("the machine did not end within {TIMEOUT:?}\n{}", step::tail(log));
            }
            None => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}
