//! Debian's kernels, fetched once and kept beside the tools.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{repo, step};

/// A series of kernels; the newest package of it is used.
#[derive(Debug)]
pub struct Kernel {
    pub series: &'static str,
    /// Tests that must have fired there, by the end of their names: they cannot on every host.
    pub must_fire: &'static [&'static str],
    /// Tests that do not run there, by the end of their names, and why.
    pub left_out: &'static [(&'static str, &'static str)],
}

const EMULATED: &str =
    "an emulated processor does not see in time how the kernel rewrites its XDP dispatcher, and oopses";
const AGENT: &str = "it depends little on the kernel, and under emulation an agent of its own takes half a minute";
const SLOW: &str = "the kernel level does it at the full rate; under emulation it takes minutes";

/// An unpacked kernel.
#[derive(Debug)]
pub struct Files {
    pub release: String,
    pub vmlinuz: PathBuf,
    pub modules: PathBuf,
}

impl Kernel {
    pub const ALL: [Self; 1] = [Self {
        series: "6.12",
        must_fire: &[
            "fires::kprobe",
            "fires::kretprobe",
            "fires::fentry",
            "fires::fexit",
            "fires::fmod_ret",
            "fires::lsm",
            "fires::lsm_cgroup",
            "fires::netkit",
            "fires::kprobe_multi",
            "fires::kretprobe_multi",
            "fires::kprobe_session",
            "fires::ksyscall",
            "fires::kretsyscall",
            "updates::kprobe",
            "functions::are_replaced",
            "programs_that_trace",
            "every_type_and_every_shape_is_what_bpftool_shows",
            "maps_of_aya_are_what_bpftool_shows",
        ],
        left_out: &[
            ("updates::xdp_generic_and_tcx", EMULATED),
            ("updates::xdp_native", EMULATED),
            ("updates::sums_are_exact_while_a_map_changes_its_size", EMULATED),
            ("updates::cgroup_kinds", SLOW),
            ("updates::kinds_of_a_network_namespace", SLOW),
            ("updates::tracing_kinds", SLOW),
            (
                "loading::instructions_are_those_that_libbpf_loads",
                "bpftool loads all programs of an object or none, and there is no compiler that leaves some out",
            ),
            (
                "foreign::objects_are_loaded_as_libbpf_loads_them",
                "the machine has no objects of others; the kernel level loads them",
            ),
            ("programs_that_take_no_packets_run_on_arguments", AGENT),
            ("what_is_drained_is_shown_and_gone", AGENT),
            ("streams_of_programs_are_followed_where_the_kernel_has_them", AGENT),
            ("dump::a_hash_that_changes_at_full_speed_shows_every_lasting_key_once", SLOW),
        ],
    }];

    fn dir(&self) -> PathBuf {
        repo::tools().join("kernels").join(self.series)
    }

    /// The kernel's files; downloads the package when they are not there.
    pub fn fetch(&self) -> Result<Files> {
        if let Some(files) = self.files() {
            return Ok(files);
        }
        let package = self.package()?;
        let dir = self.dir();
        std::fs::create_dir_all(&dir)?;
        let mut apt = Command::new("apt-get");
        apt.current_dir(&dir).args(["download", "--quiet", &package]);
        step::run(&format!("fetch {package}"), &mut apt)?;
        let archive = std::fs::read_dir(&dir)?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|e| e == "deb"))
            .with_context(|| format!("apt-get downloaded nothing into {}", dir.display()))?;
        step::ask(Command::new("dpkg").arg("-x").arg(&archive).arg(&dir))?;
        std::fs::remove_file(&archive)?;
        self.files().with_context(|| format!("{package} holds no kernel"))
    }

    fn files(&self) -> Option<Files> {
        let boot = self.dir().join("boot");
        let vmlinuz = entries(&boot).into_iter().find(|p| name(p).starts_with("vmlinuz-"))?;
        let release = name(&vmlinuz).trim_start_matches("vmlinuz-").to_owned();
        let modules = ["lib/modules", "usr/lib/modules"]
            .iter()
            .map(|lib| self.dir().join(lib).join(&release).join("kernel"))
            .find(|path| path.is_dir())?;
        Some(Files { release, vmlinuz, modules })
    }

    /// The newest cloud kernel of the series.
    fn package(&self) -> Result<String> {
        let pattern = format!("^linux-image-{}\\.[0-9.+a-z]*-cloud-amd64$", self.series.replace('.', "\\."));
        let search = || step::ask(Command::new("apt-cache").args(["search", "--names-only", &pattern]));
        let mut found = search()?;
        if found.is_empty() {
            step::run("apt-get update", Command::new("apt-get").args(["update", "--quiet"]))?;
            found = search()?;
        }
        let mut names: Vec<&str> = found.lines().filter_map(|line| line.split_whitespace().next()).collect();
        // Of one length scheme within a series: 6.12.9 before 6.12.117.
        names.sort_by_key(|name| (name.len(), name.to_string()));
        match names.last() {
            Some(name) => Ok((*name).to_owned()),
            None => bail!("Debian offers no linux-image-{}*-cloud-amd64 here", self.series),
        }
    }
}

pub fn entries(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

pub fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
