//! What this kernel is and can do.

use std::path::{Path, PathBuf};

/// A feature, and why it is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    pub name: String,
    /// Empty when the kernel has it.
    pub missing: String,
}

/// The kernel's release, e.g. `6.12.107`.
pub fn kernel_release() -> String {
    read("/proc/sys/kernel/osrelease")
}

/// When and by whom the kernel was built, and for whom (`uname -v`).
pub fn kernel_build() -> String {
    read("/proc/sys/kernel/version")
}

/// New with every boot.
pub fn boot_id() -> String {
    read("/proc/sys/kernel/random/boot_id")
}

pub(crate) fn read(path: &str) -> String {
    std::fs::read_to_string(path).map(|t| t.trim().to_owned()).unwrap_or_default()
}

/// Where the cgroup v2 hierarchy is mounted: on hybrid hosts not at /sys/fs/cgroup itself.
pub fn cgroup2_mount() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut columns = line.split(' ');
        let (_, path, kind) = (columns.next()?, columns.next()?, columns.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path.replace("\\040", " ")))
    })
}

/// Features of the host that do not need a probe program.
pub fn host_features(bpffs: &Path) -> Vec<Feature> {
    let feature = |name: &str, there: bool, missing: &str| Feature {
        name: name.into(),
        missing: if there { String::new() } else { missing.into() },
    };
    let lockdown = read("/sys/kernel/security/lockdown");
    let jit = read("/proc/sys/net/core/bpf_jit_enable");
    let mut all = vec![
        feature("btf", Path::new("/sys/kernel/btf/vmlinux").exists(), "built without CONFIG_DEBUG_INFO_BTF"),
        // The file is not there on kernels that always compile.
        feature("jit", jit != "0", "net.core.bpf_jit_enable is 0"),
        feature("bpffs", bpffs.exists(), "no bpffs is mounted"),
        feature("cgroup2", cgroup2_mount().is_some(), "no cgroup v2 hierarchy is mounted"),
        feature("tracefs", Path::new("/sys/kernel/tracing/events").exists(), "no tracefs is mounted"),
    ];
    // Of a kernel that has it: none, or its mode.
    if let Some(mode) = lockdown.split(['[', ']']).nth(1) {
        all.push(feature("lockdown", mode == "none", mode));
    }
    all
}
