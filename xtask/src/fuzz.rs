//! `cargo xtask fuzz`: objects, relocations and types that libFuzzer makes up, guided by what code they reach. By hand; the
//! unit tests replay what is kept of it in object/tests/corpus.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};

use crate::setup::{Level, Setup};
use crate::{repo, step};

const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// Seconds for one input, and MiB for the process and for one allocation: more is a finding.
const LIMITS: [&str; 3] = ["-timeout=5", "-rss_limit_mb=512", "-malloc_limit_mb=512"];
/// Bytes that are kept of each target, besides the inputs with names of their own.
const KEPT: u64 = 128 << 10;
/// Bytes of an input: enough for a small object.
const LONGEST: &str = "-max_len=10240";

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Target {
    /// Whole objects: parsed, selected, linked
    Parse,
    /// Types and relocations of an object, against types of a kernel
    Relocate,
    /// Types of a running kernel: values described, decoded, encoded, filtered
    Btf,
}

const TARGETS: [Target; 3] = [Target::Parse, Target::Relocate, Target::Btf];

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  cargo xtask fuzz --minutes 30\n  cargo xtask fuzz --target btf --minutes 5 --keep\n  \
                        cargo xtask fuzz --target parse --input target/fuzz/findings/parse/crash-0123   # once more\n\n\
                        Needs a C++ compiler. A finding ends its target and is written to target/fuzz/findings: 5 seconds, \
                        512 MiB, or a panic. Once repaired it belongs into object/tests/corpus/<target>/found-<what it was>."
)]
pub struct Fuzz {
    /// How long in all: targets share it
    #[arg(long, value_name = "N", default_value_t = 30, conflicts_with = "input")]
    minutes: u32,
    /// One target only
    #[arg(long, value_enum, value_name = "NAME")]
    target: Option<Target>,
    /// Put what reaches most code into object/tests/corpus: few inputs, for the unit tests
    #[arg(long, conflicts_with = "input")]
    keep: bool,
    /// Run this input and no other
    #[arg(long, value_name = "FILE", requires = "target")]
    input: Option<PathBuf>,
}

impl Fuzz {
    pub fn run(&self) -> Result<()> {
        Setup::levels(&[Level::Fuzz]).run()?;
        build()?;
        let targets: Vec<Target> = TARGETS.into_iter().filter(|t| self.target.is_none_or(|only| only == *t)).collect();
        if let (Some(input), [target]) = (&self.input, targets.as_slice()) {
            let status = target.command()?.arg(input).status()?;
            return if status.success() { Ok(()) } else { bail!("{} still does harm: {status}", input.display()) };
        }
        let seconds = u64::from(self.minutes) * 60 / targets.len() as u64;
        let mut findings = 0;
        for target in targets {
            let outcome = step::step(&format!("fuzz {}", target.name()), |progress| target.fuzz(seconds, progress))?;
            println!("{}: {}", target.name(), outcome.stats);
            if !outcome.status.success() {
                findings += 1;
                println!("{}", step::tail(&target.log()));
                println!("  the input is in {}", target.findings().display());
            }
            if self.keep {
                step::step(&format!("keep {}", target.name()), |_| target.keep())?;
            }
        }
        if findings == 0 { Ok(()) } else { bail!("{findings} targets found something") }
    }
}

/// Nothing here is nightly but the compiler's sanitizer, which a stable compiler has when told that it is its own bootstrap.
fn build() -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(repo::tools().join("bin")).chain(std::env::split_paths(&path)))?;
    let mut cargo = Command::new("cargo");
    cargo.current_dir(repo::root().join("object")).args(["fuzz", "build", "--release", "--target", TRIPLE]);
    cargo.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    cargo.env("RUSTC_BOOTSTRAP", "1").env("CARGO_TARGET_DIR", made().join("build")).env("PATH", path);
    step::run("fuzz targets", &mut cargo)
}

/// What is made, and may be thrown away.
fn made() -> PathBuf {
    repo::target().join("fuzz")
}

struct Outcome {
    status: ExitStatus,
    stats: Stats,
}

impl Target {
    fn name(self) -> &'static str {
        match self {
            Self::Parse => "parse",
            Self::Relocate => "relocate",
            Self::Btf => "btf",
        }
    }

    /// Inputs that reached new code; grows from run to run.
    fn corpus(self) -> PathBuf {
        made().join("corpus").join(self.name())
    }

    /// Inputs that the unit tests replay.
    fn kept(self) -> PathBuf {
        repo::root().join("object/tests/corpus").join(self.name())
    }

    fn findings(self) -> PathBuf {
        made().join("findings").join(self.name())
    }

    fn log(self) -> PathBuf {
        repo::logs().join(format!("fuzz-{}.log", self.name()))
    }

    fn command(self) -> Result<Command> {
        for dir in [self.corpus(), self.findings(), repo::logs()] {
            std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        let mut command = Command::new(made().join("build").join(TRIPLE).join("release").join(self.name()));
        // Memory that was given back counts until it leaves the sanitizer's quarantine. Where it was allocated is not asked.
        command.env("ASAN_OPTIONS", "quarantine_size_mb=16:malloc_context_size=1").args(LIMITS).stdin(Stdio::null());
        Ok(command)
    }

    fn fuzz(self, seconds: u64, progress: &step::Progress) -> Result<Outcome> {
        let mut command = self.command()?;
        command.arg(LONGEST).arg(format!("-max_total_time={seconds}")).arg("-print_final_stats=1");
        command.arg(format!("-artifact_prefix={}/", self.findings().display()));
        let mut child =
            command.arg(self.corpus()).arg(self.kept()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let lines = child.stderr.take().context("the fuzzer has no output")?;
        let mut log = File::create(self.log())?;
        let mut stats = Stats::default();
        for line in BufReader::new(lines).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            writeln!(log, "{line}")?;
            stats.read(&line);
            progress.note(&stats.to_string());
        }
        Ok(Outcome { status: child.wait()?, stats })
    }

    /// Replaces the kept inputs by those that reach most with least: the smallest of them. Those with names of their own stay.
    fn keep(self) -> Result<()> {
        let inputs = |dir: &Path| -> Result<Vec<PathBuf>> {
            Ok(std::fs::read_dir(dir)?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?)
        };
        let named = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().contains('-'));
        let merged = tempfile::tempdir()?;
        for path in inputs(&self.kept())?.into_iter().filter(|path| named(path)) {
            std::fs::copy(&path, merged.path().join(path.file_name().unwrap_or_default()))?;
        }
        let mut merge = self.command()?;
        // Which code is reached counts here, not how often: else there would be thousands.
        merge.args(["-set_cover_merge=1", "-use_counters=0", LONGEST]).arg(merged.path());
        step::logged(&format!("merge {}", self.name()), merge.arg(self.corpus()).arg(self.kept()))?;
        for path in inputs(&self.kept())?.into_iter().filter(|path| !named(path)) {
            std::fs::remove_file(path)?;
        }
        let mut rest = KEPT;
        let mut found = inputs(merged.path())?;
        found.retain(|path| !named(path));
        found.sort_by_cached_key(|path| std::fs::metadata(path).map_or(u64::MAX, |file| file.len()));
        for path in found {
            let Some(left) = rest.checked_sub(std::fs::metadata(&path)?.len()) else { break };
            rest = left;
            std::fs::copy(&path, self.kept().join(path.file_name().unwrap_or_default()))?;
        }
        Ok(())
    }
}

/// What libFuzzer says of a run.
#[derive(Debug, Default, PartialEq, Eq)]
struct Stats {
    executions: u64,
    /// Branches reached, of those there are, the libraries' among them.
    reached: u64,
    edges: u64,
    /// Inputs that reach something that no other does.
    corpus: u64,
    peak_mib: u64,
}

impl Stats {
    fn read(&mut self, line: &str) {
        let number = |text: &str| {
            let digits: String = text.trim_start().chars().take_while(char::is_ascii_digit).collect();
            digits.parse().ok()
        };
        let after = |key: &str| line.split_once(key).and_then(|(_, rest)| number(rest));
        let update = |field: &mut u64, value: Option<u64>| *field = value.unwrap_or(*field);
        if let Some(line) = line.strip_prefix('#') {
            update(&mut self.executions, number(line));
            update(&mut self.reached, after("cov: "));
            update(&mut self.corpus, after("corp: "));
            update(&mut self.peak_mib, after("rss: "));
        }
        if line.starts_with("INFO: Loaded 1 modules") {
            update(&mut self.edges, after("("));
        }
        update(&mut self.executions, after("stat::number_of_executed_units: "));
        update(&mut self.peak_mib, after("stat::peak_rss_mb: "));
    }
}

impl std::fmt::Display for Stats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { executions, reached, edges, corpus, peak_mib } = self;
        write!(f, "{executions} executions, {reached} of {edges} edges, {corpus} inputs, {peak_mib} MiB at most")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_fuzzer_prints_is_understood() {
        let mut stats = Stats::default();
        for line in [
            "INFO: Loaded 1 modules   (27525 inline 8-bit counters): 27525 [0x55ae243c9a00, 0x55ae243d0585), ",
            "#34699	NEW    cov: 4185 ft: 15652 corp: 761/3941Kb lim: 12751 exec/s: 219 rss: 163Mb L: 10732/12487 MS: 1 -",
            "stat::number_of_executed_units: 34700",
            "stat::peak_rss_mb:              169",
        ] {
            stats.read(line);
        }
        let expected = Stats { executions: 34_700, reached: 4185, edges: 27_525, corpus: 761, peak_mib: 169 };
        assert_eq!(stats, expected);
    }
}
