//! `cargo xtask bench`: figures of Skep on this machine, as a table and as JSON.
//!
//! **Guarantees.** A figure is a median of rounds, and what it is compared with is measured in turns with it, in the
//! same run. What misses its aim is shown as such; what cannot be measured here is shown with the reason. Nothing stays
//! on the machine.
//!
//! **Caveats.** The numbers are those of this machine while it does what else it does; the load is printed with them.

mod apply;
mod beside;
mod cluster;
mod dump;
mod figure;
mod inspect;
mod load;
mod memory;
mod node;
mod object;
mod scale;
mod swap;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::image::Image;
use crate::setup::{Level, Setup};
use crate::{build, repo, step};
use figure::{Aim, Figure, NAMES};

/// As `cargo xtask build` builds, so that both share what is compiled.
const TARGET: &str = "x86_64-unknown-linux-gnu";
const IMAGE_MIB: f64 = 30.0;

/// What measures, in other crates.
const EXAMPLES: [&str; 9] = [
    "bench_load",
    "bench_object",
    "bench_dump",
    "bench_lookup",
    "bench_events",
    "bench_apply",
    "bench_clients",
    "bench_ready",
    "bench_swap",
];

#[derive(Debug, clap::Args)]
#[command(after_help = "Example: cargo xtask bench --only dump_1m_hash_ms --json target/bench.json\n\nNeeds root.")]
pub struct Bench {
    /// Measure one figure, and what is measured together with it
    #[arg(long, value_name = "NAME", value_parser = NAMES)]
    only: Option<String>,
    /// Write the figures as JSON: {"name": {"value": 1.0, "unit": "ms", "note": "..."}}
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Figures that are measured together, and how.
struct Group {
    names: &'static [&'static str],
    measure: fn() -> Result<Vec<Figure>>,
}

const GROUPS: [Group; 11] = [
    Group { names: load::NAMES, measure: load::measure },
    Group { names: object::NAMES, measure: object::measure },
    Group { names: dump::NAMES, measure: dump::measure },
    Group { names: inspect::NAMES, measure: inspect::measure },
    Group { names: memory::NAMES, measure: memory::measure },
    Group { names: &["agent_image_mib", "operator_image_mib"], measure: images },
    Group { names: apply::NAMES, measure: apply::measure },
    Group { names: beside::NAMES, measure: beside::measure },
    Group { names: swap::NAMES, measure: swap::measure },
    Group { names: scale::NAMES, measure: scale::measure },
    Group { names: cluster::NAMES, measure: cluster::measure },
];

impl Bench {
    pub fn run(&self) -> Result<()> {
        if step::ask(Command::new("id").arg("-u"))? != "0" {
            bail!("the figures need root: they load programs and make network namespaces");
        }
        Setup::levels(&[Level::Bpf, Level::Registry]).run()?;
        build()?;
        let before = load_average()?;
        let wanted = |group: &&Group| self.only.as_deref().is_none_or(|name| group.names.contains(&name));
        let mut figures = Vec::new();
        for group in GROUPS.iter().filter(wanted) {
            // One group that fails must not take the others' figures with it.
            let measured = step::step(group.names[0], |_| (group.measure)());
            figures.extend(measured.unwrap_or_else(|error| figure::skipped(group.names, &format!("{error:#}"))));
        }
        print!("{}", figure::table(&figures));
        println!("load of the machine: {before} before, {} after", load_average()?);
        if let Some(file) = &self.json {
            let text = serde_json::to_string_pretty(&figure::json(&figures))?;
            std::fs::write(file, text + "\n").with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(())
    }
}

/// What is shipped, and the examples that measure it.
fn build() -> Result<()> {
    build::binaries()?;
    let mut cargo = Command::new("cargo");
    cargo.current_dir(repo::root()).args(["build", "--release", "--target", TARGET]);
    // All packages that are shipped, although two have the examples: fewer would have other features of the same
    // dependencies, and compile them once more.
    for package in ["skep-operator", "skep-node-agent", "kubectl-skep", "skep-kernel"] {
        cargo.args(["--package", package]);
    }
    for example in EXAMPLES {
        cargo.args(["--example", example]);
    }
    step::run("release benchmarks", cargo.env("RUSTFLAGS", "-C target-feature=+crt-static"))
}

/// A built example.
fn example(name: &str) -> Command {
    Command::new(build::binary("examples").join(name))
}

/// Compiles a C source of the repository.
fn compile(source: &str, object: &Path) -> Result<()> {
    compile_file(&repo::root().join(source), object)
}

fn compile_file(source: &Path, object: &Path) -> Result<()> {
    let mut clang = Command::new("clang");
    clang.args(["-g", "-O2", "-target", "bpf", "-I/usr/include/x86_64-linux-gnu", "-c"]);
    step::ask(clang.arg(source).arg("-o").arg(object)).map(drop)
}

/// A median, of at least one number.
fn median(numbers: &[f64]) -> f64 {
    percentile(numbers, 50)
}

/// The smallest number that `percent` of them do not exceed (nearest rank).
fn percentile(numbers: &[f64], percent: usize) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

fn load_average() -> Result<String> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}

/// A process's memory: `field` as proc_pid_status(5) names it.
fn memory_mib(pid: u32, field: &str) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let mut fields = status.lines().filter_map(|line| line.split_once(':'));
    let (_, size) = fields.find(|(name, _)| *name == field).with_context(|| format!("process {pid} has no {field}"))?;
    let kib: f64 = size.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}

fn images() -> Result<Vec<Figure>> {
    let names = ["skep-agent", "skep-operator"];
    Image::Build { only: names.map(str::to_owned).to_vec() }.run()?;
    let mut figures = Vec::new();
    for (name, figure) in names.into_iter().zip(["agent_image_mib", "operator_image_mib"]) {
        let file = repo::root().join("target/images").join(format!("{name}.tar"));
        let bytes = std::fs::metadata(&file).with_context(|| format!("cannot read {}", file.display()))?.len();
        let mib = bytes as f64 / f64::from(1 << 20);
        figures.push(Figure::new(figure, mib, "MiB", Aim::AtMost(IMAGE_MIB), "the archive, uncompressed"));
    }
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_numbers_that_were_measured() {
        let numbers: Vec<f64> = (1..=50).rev().map(f64::from).collect();
        assert_eq!(percentile(&numbers, 50), 25.0);
        assert_eq!(percentile(&numbers, 99), 50.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
    }

    #[test]
    fn every_figure_is_in_one_group() {
        let grouped: Vec<&str> = GROUPS.iter().flat_map(|group| group.names).copied().collect();
        assert_eq!(grouped, NAMES);
    }
}
