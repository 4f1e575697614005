//! Debian's kernels, fetched once and kept beside the tools.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::repo;
use crate::setup::archive::Suite;

/// A test by a part of its name that no other has, or more tests in words, and why they do not run.
type LeftOut = (&'static str, &'static str);

/// What runs on a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runs {
    /// The tests of the kernel crate, and those of the agent and the plugin that are about kernels.
    All,
    /// The tests of the kernel crate.
    Kernel,
    /// Those that say what becomes of a kind.
    Kinds,
}

/// A series of kernels; the newest package of it is used.
#[derive(Debug)]
pub struct Kernel {
    pub series: &'static str,
    /// Where Debian has it.
    suite: &'static str,
    /// A run without it has failed. Of the others Debian's archive takes one away when the next comes.
    pub required: bool,
    pub runs: Runs,
    /// Tests that must have run there, by the end of their names: they cannot on every host.
    pub must_run: &'static [&'static str],
    /// Beside those that run nowhere.
    left_out: &'static [LeftOut],
}

const EMULATED: &str =
    "an emulated processor does not see in time how the kernel rewrites its XDP dispatcher, and oopses";
const AGENT: &str = "it depends little on the kernel, and under emulation an agent of its own takes half a minute";
const SLOW: &str = "the kernel level does it at the full rate; under emulation it takes minutes";

/// What no machine runs.
const NOWHERE: &[LeftOut] = &[
    ("updates::xdp_generic_and_tcx", EMULATED),
    ("updates::xdp_native", EMULATED),
    ("updates::sums_are_exact_while_a_map_changes_its_size", EMULATED),
    ("updates::cgroup_kinds", SLOW),
    ("updates::kinds_of_a_network_namespace", SLOW),
    ("updates::tracing_kinds", SLOW),
    (
        "instructions_are_those_that_libbpf_loads",
        "bpftool loads all programs of an object or none, and there is no compiler that leaves some out",
    ),
    (
        "foreign::objects_are_loaded_as_libbpf_loads_them",
        "the machine has no objects of others; the kernel level loads them",
    ),
    ("dump::a_hash_that_changes_at_full_speed_shows_every_lasting_key_once", SLOW),
];

/// What no machine runs of the agent's.
const NOWHERE_OF_AGENT: &[LeftOut] = &[
    ("programs_that_take_no_packets_run_on_arguments", AGENT),
    ("what_is_drained_is_shown_and_gone", AGENT),
    ("streams_of_programs_are_followed_where_the_kernel_has_them", AGENT),
];

/// Where tests say what becomes of a kind.
const KINDS: [&str; 2] = ["fires::", "functions::"];

const NO_TCX: &str = "it is about tcx, which came with Linux 6.6";

const NO_AGENT: LeftOut = ("those of the agent", "they depend little on the kernel, and run on 6.12");
const MUST_RUN_OF_KERNEL: &[&str] = &["updates::kprobe"];
const MUST_RUN: &[&str] = &[
    "updates::kprobe",
    "programs_that_trace",
    "every_type_and_every_shape_is_what_bpftool_shows",
    "maps_of_aya_are_what_bpftool_shows",
];

/// An unpacked kernel.
#[derive(Debug)]
pub struct Files {
    pub release: String,
    pub vmlinuz: PathBuf,
    pub modules: PathBuf,
    /// What it was built with.
    pub config: PathBuf,
}

impl Kernel {
    /// The oldest and the newest that Debian's archive has, and its two long-lived ones between; what takes longest first.
    pub const ALL: [Self; 4] = [
        Self {
            series: "6.12",
            suite: "bookworm-security",
            required: true,
            runs: Runs::All,
            must_run: MUST_RUN,
            left_out: &[],
        },
        Self {
            series: "7.3",
            suite: "trixie-backports",
            required: false,
            runs: Runs::Kernel,
            must_run: MUST_RUN_OF_KERNEL,
            left_out: &[NO_AGENT],
        },
        Self {
            series: "6.1",
            suite: "bookworm-security",
            required: true,
            runs: Runs::Kernel,
            must_run: MUST_RUN_OF_KERNEL,
            left_out: &[
                ("order::", NO_TCX),
                ("drift::a_link_that_somebody_detached_is_not_alive", NO_TCX),
                ("names::maps_", NO_TCX),
                ("dump::an_arena_shows_the_pages_that_are_there", "arenas came with Linux 6.9"),
                (
                    "kept::contents_move_to_another_size_and_what_is_counted_meanwhile_is_added",
                    "LRU maps of this kernel evict before they are full",
                ),
                (
                    "loading::what_a_map_needs_is_known_before_it_is_made",
                    "this kernel says of a map what its entries need, not what it takes",
                ),
                NO_AGENT,
            ],
        },
        Self {
            series: "5.10",
            suite: "bullseye-security",
            required: false,
            runs: Runs::Kinds,
            must_run: &[],
            left_out: &[
                ("all that is of no kind", "Skep needs Linux 5.15"),
                ("fires::a_gate_lets_only_selected_cgroups_count", "it is about uprobes, which need Linux 5.15"),
            ],
        },
    ];

    /// Tests that do not run there.
    pub fn left_out(&self) -> impl Iterator<Item = &LeftOut> {
        let (kernel, agent) = match self.runs {
            Runs::All => (NOWHERE, NOWHERE_OF_AGENT),
            Runs::Kernel => (NOWHERE, &[][..]),
            Runs::Kinds => (&[][..], &[][..]),
        };
        kernel.iter().chain(agent).chain(self.left_out)
    }

    /// Why none of the tests that somebody asks for is meant to run there.
    pub fn obstacle(&self, filter: Option<&str>) -> Option<String> {
        // The tests' program takes one of several filters, not all of them.
        let other =
            filter.filter(|filter| self.runs == Runs::Kinds && KINDS.iter().all(|kind| !filter.contains(kind)))?;
        Some(format!("it runs no more than {}, and {other:?} may be more", KINDS.join(" and ")))
    }

    /// The programs of tests that it gets.
    pub fn programs(&self) -> usize {
        if self.runs == Runs::All { 4 } else { 1 }
    }

    /// What the tests are told.
    pub fn arguments(&self, filter: Option<&str>) -> String {
        let kinds: &[&str] = if self.runs == Runs::Kinds { &KINDS } else { &[] };
        let only = filter.map_or_else(|| kinds.to_vec(), |filter| vec![filter]);
        // No test has blanks in its name.
        let skip = self.left_out().filter(|(test, _)| !test.contains(' ')).flat_map(|(test, _)| ["--skip", test]);
        only.into_iter().chain(skip).collect::<Vec<_>>().join(" ")
    }

    fn dir(&self) -> PathBuf {
        repo::tools().join("kernels").join(self.series)
    }

    /// The kernel's files; downloads the packages when they are not there.
    pub fn fetch(&self) -> Result<Files> {
        if let Some(files) = self.files() {
            return Ok(files);
        }
        let suite = Suite::open(self.suite)?;
        let pattern = format!("^linux-(image|binary|modules)-{}\\..*-cloud-amd64$", self.series.replace('.', "\\."));
        let found = suite.ask(&["search", "--names-only", &pattern])?;
        let packages = newest(found.lines().filter_map(|line| line.split_whitespace().next()));
        if packages.is_empty() {
            bail!("Debian's {} has no Linux {} any more: name another series in {}", self.suite, self.series, file!());
        }
        suite.unpack(&packages, &self.dir())?;
        self.files().with_context(|| format!("{} hold no kernel", packages.join(", ")))
    }

    fn files(&self) -> Option<Files> {
        // Since 6.19 all of a kernel is below its modules.
        let libs = ["lib/modules", "usr/lib/modules"].map(|lib| entries(&self.dir().join(lib)));
        let lib = libs.into_iter().flatten().find(|lib| lib.join("kernel").is_dir())?;
        let release = name(&lib);
        let boot = self.dir().join(format!("boot/vmlinuz-{release}"));
        let vmlinuz = [lib.join("vmlinuz"), boot].into_iter().find(|path| path.is_file())?;
        let beside = self.dir().join(format!("boot/config-{release}"));
        let config = [lib.join("config"), beside].into_iter().find(|path| path.is_file())?;
        Some(Files { release, vmlinuz, modules: lib.join("kernel"), config })
    }
}

/// The packages that make the newest kernel: an image, or, since Linux 6.19, a binary, modules, and what the
/// kernel was built with (and an image that is empty).
fn newest<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut kernels: BTreeMap<(Vec<u64>, &str), Vec<&str>> = BTreeMap::new();
    for name in names {
        let mut words = name.splitn(3, '-').skip(1);
        let (Some(part), Some(release)) = (words.next(), words.next()) else { continue };
        // 6.12.117+deb13.1: as numbers.
        let numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect();
        kernels.entry((numbers, release)).or_default().push(part);
    }
    let Some(((_, release), parts)) = kernels.pop_last() else { return Vec::new() };
    let parts: &[&str] = if parts.contains(&"binary") { &["binary", "modules", "base"] } else { &["image"] };
    parts.iter().map(|part| format!("linux-{part}-{release}")).collect()
}

pub fn entries(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

pub fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::newest;

    #[test]
    fn the_newest_kernel_is_by_number_and_has_its_modules() {
        let of = |names: &[&str]| newest(names.iter().copied());
        let images = ["linux-image-6.12.90+deb12.1-cloud-amd64", "linux-image-6.12.117+deb12-cloud-amd64"];
        assert_eq!(of(&images), [images[1]]);
        let parts = ["linux-image-7.3.4+deb13-cloud-amd64", "linux-binary-7.3.4+deb13-cloud-amd64"];
        assert_eq!(
            of(&parts),
            [parts[1], "linux-modules-7.3.4+deb13-cloud-amd64", "linux-base-7.3.4+deb13-cloud-amd64"]
        );
        assert!(of(&[]).is_empty());
    }
}
