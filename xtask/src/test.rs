//! `cargo xtask test`: the tests by level, each with what it needs. A level that cannot run is skipped, says why, and is
//! counted; the last line sums up.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::setup::foreign;
use crate::{e2e, repo, step, vm};

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Level {
    /// Pure logic; needs nothing
    Unit,
    /// bpf(2) of this host; needs root
    Kernel,
    /// The same on Debian's kernels under QEMU
    Vm,
    /// A real Kubernetes with the chart installed; needs root
    Cluster,
}

/// The test that loads objects which others built, and how it is told where they are.
const OBJECTS_TEST: &str = "suite::foreign::objects_are_loaded_as_libbpf_loads_them";
const OBJECTS_DIR: &str = "SKEP_FOREIGN_OBJECTS";

const LEVELS: [Level; 4] = [Level::Unit, Level::Kernel, Level::Vm, Level::Cluster];

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cargo xtask test --only unit rollout        # the unit tests with `rollout` in their name
  cargo xtask test --only kernel objects DIR  # load every .o of DIR by Skep and by libbpf, and compare")]
pub struct Test {
    /// Run one level only
    #[arg(long, value_enum)]
    only: Option<Level>,
    /// Run the tests whose name has this in it
    filter: Option<String>,
    /// With `--only kernel objects`: the directory whose objects are loaded, instead of those of Debian's xdp-tools
    dir: Option<PathBuf>,
}

impl Test {
    pub fn all() -> Self {
        Self { only: None, filter: None, dir: None }
    }

    pub fn run(&self) -> Result<()> {
        if let Some(dir) = &self.dir {
            return self.objects(dir);
        }
        let mut sum = Count::default();
        for level in LEVELS.into_iter().filter(|level| self.only.is_none_or(|only| only == *level)) {
            let start = Instant::now();
            let count = match level.obstacle()? {
                Some(reason) => {
                    println!("{}: SKIPPED: {reason}", level.name());
                    Count { skipped: 1, ..Count::default() }
                }
                None => level.run(self.filter.as_deref())?,
            };
            println!("{}: {count} ({:.1} s)", level.name(), start.elapsed().as_secs_f64());
            sum.add(&count);
        }
        if let Some(filter) = self.filter.as_ref().filter(|_| sum.passed + sum.failed == 0) {
            bail!("no test that can run here has {filter:?} in its name");
        }
        // Alone on the last line: machines read it.
        println!("{sum}");
        if sum.failed > 0 { bail!("{} tests failed", sum.failed) } else { Ok(()) }
    }

    /// Objects of somebody's own: kernel/tests/objects/foreign/README.md.
    fn objects(&self, dir: &Path) -> Result<()> {
        if self.only != Some(Level::Kernel) || self.filter.as_deref() != Some("objects") {
            bail!("a directory is for `cargo xtask test --only kernel objects DIR`");
        }
        if let Some(reason) = Level::Kernel.obstacle()? {
            bail!("objects cannot be loaded: {reason}");
        }
        let dir = dir.canonicalize().with_context(|| format!("cannot read {}", dir.display()))?;
        let mut cargo = Command::new("cargo");
        cargo.current_dir(repo::root()).args(["test", "--quiet", "--package", "skep-kernel", "--test", "kernel"]);
        let count = count(cargo.args(["--", "--exact", OBJECTS_TEST]).env(OBJECTS_DIR, dir))?;
        if count.failed > 0 { bail!("libbpf and Skep differ") } else { Ok(()) }
    }
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Kernel => "kernel",
            Self::Vm => "vm",
            Self::Cluster => "cluster",
        }
    }

    /// Why this level cannot run here.
    fn obstacle(self) -> Result<Option<String>> {
        Ok(match self {
            Self::Unit => None,
            Self::Kernel | Self::Cluster if step::ask(Command::new("id").arg("-u"))? != "0" => {
                Some("needs root".into())
            }
            Self::Kernel => None,
            Self::Cluster if !repo::tool("skep-cluster").is_file() => {
                Some("the cluster binary is not built: run `cargo xtask setup --only bpf registry cluster`".into())
            }
            Self::Cluster => None,
            Self::Vm if repo::find("qemu-system-x86_64").is_none() => {
                Some("qemu-system-x86_64 is not installed: run `cargo xtask setup --only vm`".into())
            }
            Self::Vm => None,
        })
    }

    fn run(self, filter: Option<&str>) -> Result<Count> {
        if self == Self::Vm {
            return vm_level(filter);
        }
        if self == Self::Cluster {
            let (passed, failed) = e2e::run(filter)?;
            return Ok(Count { passed, failed, skipped: 0 });
        }
        let mut cargo = Command::new("cargo");
        cargo.current_dir(repo::root()).args(["test", "--no-fail-fast"]);
        match self {
            // The kernel crate's integration tests are the kernel level.
            Self::Unit => cargo.args(["--workspace", "--exclude", "skep-kernel"]),
            Self::Kernel | Self::Vm | Self::Cluster => cargo.args(["--package", "skep-kernel"]),
        };
        cargo.arg("--").args(filter);
        let mut skipped = 0;
        if self == Self::Kernel {
            // They share the host's links and bpffs.
            cargo.arg("--test-threads=1");
            if filter.is_none_or(|filter| OBJECTS_TEST.contains(filter)) {
                match foreign::objects() {
                    Ok(dir) => cargo.env(OBJECTS_DIR, dir),
                    Err(error) => {
                        println!("test {OBJECTS_TEST} ... SKIPPED: {error:#}");
                        skipped = 1;
                        cargo.args(["--skip", OBJECTS_TEST])
                    }
                };
            }
        }
        let mut count = count(&mut cargo)?;
        count.skipped += skipped;
        Ok(count)
    }
}

/// The kernel tests in a machine for each kernel, and what becomes of each kind there against the golden tables.
fn vm_level(filter: Option<&str>) -> Result<Count> {
    let mut sum = Count::default();
    let said = |kernel: &vm::Kernel, line: &str| println!("{}: {line}", kernel.series);
    for (kernel, outcome) in vm::run(filter, said)? {
        let count = match outcome {
            Err(error) => {
                said(kernel, &format!("FAILED: {error:#}"));
                Count { failed: 1, ..Count::default() }
            }
            Ok(vm::Outcome::Missing(reason) | vm::Outcome::NotMeant(reason)) => {
                said(kernel, &format!("SKIPPED: {reason}"));
                Count { skipped: 1, ..Count::default() }
            }
            Ok(vm::Outcome::Ran(ran)) => {
                let count = of_kernel(kernel, filter.is_none(), &ran)?;
                if filter.is_none() {
                    said(kernel, &ran.table.to_string());
                }
                said(kernel, &format!("{count} ({:.1} s)", ran.took.as_secs_f64()));
                count
            }
        };
        sum.add(&count);
    }
    Ok(sum)
}

/// `whole`: of all its tests.
fn of_kernel(kernel: &vm::Kernel, whole: bool, vm::Ran { console, table, not_given, .. }: &vm::Ran) -> Result<Count> {
    let say = |line: String| println!("{}: {line}", kernel.series);
    let mut count = Count::default();
    let results: Vec<Count> = console.lines().filter_map(Count::parse).collect();
    results.iter().for_each(|result| count.add(result));
    // One that cannot come to its end, since the kernel refuses what it is about, has done what it is for.
    for test in says(console, "ended by a refusal: ").into_iter().filter(|test| table.refuses(test)) {
        say(format!("test {test} ended where the kernel refuses"));
        count.failed = count.failed.saturating_sub(1);
        count.passed += 1;
    }
    // Its harness knows no test that finds, when it runs, that it cannot.
    for test in says(console, "SKIPPED: ") {
        say(format!("test {test} ... SKIPPED, as it says above"));
        count.passed = count.passed.saturating_sub(1);
        count.skipped += 1;
    }
    if whole {
        kernel.left_out().for_each(|(test, reason)| say(format!("test {test} ... SKIPPED: {reason}")));
        let left_out = console.lines().filter_map(Count::filtered_out);
        count.skipped += left_out.sum::<u64>() + not_given;
    }
    // A program that died, or whose machine did, has no result.
    for _ in results.len()..kernel.programs() {
        say("a program of tests ended without a result".into());
        count.failed += 1;
    }
    for test in kernel.must_run.iter().filter(|test| whole && !console.contains(*test)) {
        say(format!("{test} did not run"));
        count.failed += 1;
    }
    if std::env::var_os("SKEP_BLESS").is_some() {
        table.bless(kernel, whole)?;
        say("its table is now the golden one; `cargo xtask codegen` writes docs/kernels.md".into());
        return Ok(count);
    }
    for difference in table.differences(&vm::Table::golden(kernel)?, whole) {
        say(format!("kind {difference}; SKEP_BLESS=1 if that is right"));
        count.failed += 1;
    }
    Ok(count)
}

/// The tests that said something that begins so, in what the harness shows of them.
fn says<'a>(console: &'a str, words: &str) -> Vec<&'a str> {
    let (mut test, mut tests) = (None, Vec::new());
    for line in console.lines() {
        if let Some(name) = line.strip_prefix("---- ").and_then(|line| line.strip_suffix(" stdout ----")) {
            test = Some(name.trim_start_matches("suite::"));
        } else if line.starts_with("test result: ") {
            test = None;
        } else if line.starts_with(words) {
            tests.extend(test.take());
        }
    }
    tests
}

/// Runs a test command, passing its output on, and sums up the result lines in it.
fn count(cargo: &mut Command) -> Result<Count> {
    let mut child = cargo.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cargo does not start")?;
    let output = child.stdout.take().context("cargo has no output")?;
    let mut count = Count::default();
    for line in BufReader::new(output).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        writeln!(std::io::stdout(), "{line}")?;
        if let Some(result) = Count::parse(&line) {
            count.add(&result);
        }
    }
    let status = child.wait()?;
    if !status.success() && count.failed == 0 {
        // A crate that does not compile, or a test binary that died, reports no number.
        count.failed = 1;
    }
    Ok(count)
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Count {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Count {
    /// Of a line `test result: ok. 5 passed; 0 failed; 1 ignored; ...`.
    fn parse(line: &str) -> Option<Self> {
        let of = |what: &str| Self::number(line, what);
        Some(Self { passed: of(" passed")?, failed: of(" failed")?, skipped: of(" ignored")? })
    }

    /// Tests that the program has and was told not to run, of such a line.
    fn filtered_out(line: &str) -> Option<u64> {
        Self::number(line, " filtered out")
    }

    fn number(line: &str, what: &str) -> Option<u64> {
        let (_, numbers) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let part = numbers.split("; ").find(|part| part.ends_with(what))?;
        part.split(' ').next()?.parse().ok()
    }

    fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl std::fmt::Display for Count {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_summed() {
        let line = "test result: FAILED. 5 passed; 2 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.02s";
        assert_eq!(Count::parse(line), Some(Count { passed: 5, failed: 2, skipped: 1 }));
        assert_eq!(Count::parse("test foo ... ok"), None);
        assert_eq!(Count::filtered_out(&line.replace("0 measured", "0 measured; 7 filtered out")), Some(7));
    }

    #[test]
    fn what_a_test_said_is_its_own() {
        let console = "SKIPPED: of no test\n---- suite::fires::xdp stdout ----\n\nthread 'x' panicked at f.rs:1:1:\n\
                       ended by a refusal: no\n\n---- suite::fires::tc stdout ----\nSKIPPED: a\nSKIPPED: b\n\n\
                       test result: ok. 1 passed\nended by a refusal: of no test\n";
        assert_eq!(says(console, "ended by a refusal: "), ["fires::xdp"]);
        assert_eq!(says(console, "SKIPPED: "), ["fires::tc"]);
    }
}
