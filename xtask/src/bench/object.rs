//! A large object of many programs that are relocated by the kernel's types, beside libbpf; and how long the kernel is asked
//! what it can do, beside bpftool.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::figure::{Aim, Figure};
use super::{compile_file, example, median};
use crate::step;

pub const NAMES: &[&str] = &[
    "load_700k_object_ms",
    "load_700k_object_again_ms",
    "libbpf_load_700k_object_ms",
    "features_probe_ms",
    "bpftool_feature_probe_ms",
];
const ROUNDS: usize = 5;
const PROGRAMS: usize = 48;
/// Reads of each program.
const READS: usize = 34;
/// What the issue allows the probes.
const PROBE_AIM: f64 = 200.0;

/// Structs that every kernel has, with a member.
const MEMBERS: [(&str, &str, &str); 20] = [
    ("task_struct", "int", "pid"),
    ("file", "unsigned int", "f_flags"),
    ("inode", "unsigned long", "i_ino"),
    ("dentry", "unsigned int", "d_flags"),
    ("sock", "unsigned short", "sk_type"),
    ("sk_buff", "unsigned int", "len"),
    ("net_device", "int", "ifindex"),
    ("super_block", "unsigned long", "s_magic"),
    ("mm_struct", "unsigned long", "task_size"),
    ("vm_area_struct", "unsigned long", "vm_pgoff"),
    ("pid", "unsigned int", "level"),
    ("socket", "short", "type"),
    ("cgroup", "int", "level"),
    ("bpf_prog", "unsigned int", "len"),
    ("bpf_map", "unsigned int", "max_entries"),
    ("signal_struct", "int", "nr_threads"),
    ("files_struct", "unsigned int", "next_fd"),
    ("fs_struct", "int", "umask"),
    ("timer_list", "unsigned long", "expires"),
    ("rq", "int", "cpu"),
];

pub fn measure() -> Result<Vec<Figure>> {
    let dir = tempfile::tempdir()?;
    let (source, object) = (dir.path().join("large.bpf.c"), dir.path().join("large.o"));
    std::fs::write(&source, large())?;
    compile_file(&source, &object)?;
    let size = std::fs::metadata(&object)?.len() / 1000;
    let (mut first, mut again, mut types, mut features) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut libbpf, mut bpftool) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let said = step::ask(example("bench_object").arg(&object).env("TMPDIR", dir.path()))?;
        let said: Value = serde_json::from_str(&said)?;
        ensure!(said["programs"] == PROGRAMS, "bench_object loaded {} programs", said["programs"]);
        let number = |name: &str| said[name].as_f64().with_context(|| format!("bench_object printed no {name}"));
        first.push(number("first_ms")?);
        again.push(number("again_ms")?);
        types.push(number("types_ms")?);
        features.push(number("features_ms")?);
        libbpf.push(loadall(&object)?);
        bpftool.push(timed(Command::new("bpftool").args(["-j", "feature", "probe", "kernel"]))?);
    }
    let reference = median(&libbpf);
    let shape = format!("{size} kB, {PROGRAMS} programs, {READS} reads by CO-RE each");
    let types = format!("; the kernel's types, read once by an agent, not in it: {:.0} ms", median(&types));
    Ok(vec![
        Figure::new(NAMES[0], median(&first), "ms", Aim::AtMost(reference), format!("{shape}{types}")),
        Figure::new(
            NAMES[1],
            median(&again),
            "ms",
            Aim::None,
            "another program of the same image, in the same process",
        ),
        Figure::new(NAMES[2], reference, "ms", Aim::None, "bpftool prog loadall of the same object, a process each"),
        Figure::new(NAMES[3], median(&features), "ms", Aim::AtMost(PROBE_AIM), "all kinds, loaded and asked for"),
        Figure::new(NAMES[4], median(&bpftool), "ms", Aim::None, "types, helpers and map types; nothing is attached"),
    ])
}

/// Its pins go when it ends.
struct Pins(PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        let _unpinned = std::fs::remove_dir_all(&self.0);
    }
}

fn loadall(object: &Path) -> Result<f64> {
    let pins = Pins(Path::new("/sys/fs/bpf").join(format!("skep-bench-{}-libbpf", std::process::id())));
    timed(Command::new("bpftool").args(["prog", "loadall"]).arg(object).arg(&pins.0))
}

fn timed(command: &mut Command) -> Result<f64> {
    let start = Instant::now();
    step::ask(command)?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// Its source.
fn large() -> String {
    let mut text = "#include <linux/bpf.h>\n#include <bpf/bpf_helpers.h>\n".to_owned();
    for (name, of, member) in MEMBERS {
        let _ = writeln!(text, "struct {name} {{ {of} {member}; }} __attribute__((preserve_access_index));");
    }
    for program in 0..PROGRAMS {
        let _ = writeln!(text, "SEC(\"raw_tp/sys_enter\") int program_{program}(unsigned long *ctx) {{ long sum = 0;");
        for read in 0..READS {
            let (name, of, member) = MEMBERS[(program + read) % MEMBERS.len()];
            let _ = writeln!(
                text,
                "{{ {of} value = 0; bpf_probe_read_kernel(&value, sizeof(value), &((struct {name} *)ctx[0])->{member}); sum += value; }}"
            );
        }
        let _ = writeln!(text, "return sum; }}");
    }
    text + "char LICENSE[] SEC(\"license\") = \"GPL\";\n"
}
