//! How long one program takes to take another's place, by kind; and a whole reload, beside libbpf's.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::figure::{Aim, Figure};
use super::scale::Cgroups;
use super::{compile, example, median};
use crate::{repo, step};

pub const NAMES: &[&str] = &[
    "update_swap_us_p50_xdp",
    "update_swap_us_p50_tcx",
    "update_swap_us_p50_tc",
    "update_swap_us_p50_cgroupSkb",
    "update_swap_us_p50_skLookup",
    "update_swap_us_p50_netfilter",
    "update_swap_us_p50_tracepoint",
    "update_swap_us_p50_rawTracepoint",
    "update_swap_us_p50_uprobe",
    "reload_small_program_us",
    "libbpf_reload_small_program_us",
];
const ROUNDS: usize = 3;

pub fn measure() -> Result<Vec<Figure>> {
    let dir = tempfile::tempdir()?;
    let path = |name: &str| dir.path().join(name);
    for name in ["net", "trace", "small"] {
        compile(&format!("kernel/tests/c/{name}.bpf.c"), &path(&format!("{name}.o")))?;
    }
    let theirs = path("reload");
    let source = repo::root().join("xtask/src/bench/reload.c");
    step::ask(Command::new("clang").args(["-O2"]).arg(source).arg("-o").arg(&theirs).args(["-lbpf", "-lelf", "-lz"]))?;
    let cgroups = Cgroups::make(1)?;
    let (mut ours, mut libbpf) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let mut command = example("bench_swap");
        command.args(["net", "trace", "small"].map(|name| path(&format!("{name}.o")))).env("TMPDIR", dir.path());
        ours.push(serde_json::from_str::<Value>(&step::ask(&mut command)?)?);
        libbpf.push(reload(&theirs, &path("small.o"), &cgroups.path(0))?);
    }
    let of = |pointer: String| -> Result<f64> {
        let times: Option<Vec<f64>> = ours.iter().map(|round| round.pointer(&pointer)?.as_f64()).collect();
        Ok(median(&times.with_context(|| format!("bench_swap printed no {pointer}"))?))
    };
    let mut figures = Vec::new();
    for name in &NAMES[..NAMES.len() - 2] {
        let kind = name.trim_start_matches("update_swap_us_p50_");
        let note = format!("one link to and fro 100 times; median of {ROUNDS} processes");
        figures.push(Figure::new(name, of(format!("/swap/{kind}"))?, "us", Aim::None, note));
    }
    let note = "cgroup_skb: parsed, loaded, pinned, swapped, the old one removed; without the agent's report";
    figures.push(Figure::new(NAMES[9], of("/reload".into())?, "us", Aim::None, note));
    let note = "the same by libbpf in one process, in turns with it; nothing is pinned";
    figures.push(Figure::new(NAMES[10], median(&libbpf), "us", Aim::None, note));
    Ok(figures)
}

fn reload(program: &Path, object: &Path, cgroup: &Path) -> Result<f64> {
    Ok(step::ask(Command::new(program).arg(object).arg(cgroup))?.trim().parse()?)
}
