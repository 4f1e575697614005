//! Debian packages. Their services are not started: a test starts what it needs, as it needs it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Level;
use crate::{repo, step};

/// (package, a program or file that shows that it is there, for which level, why)
const PACKAGES: [(&str, &str, Level, &str); 24] = [
    ("clang", "clang", Level::Bpf, "compiles eBPF programs in C"),
    ("llvm", "llvm-objdump", Level::Bpf, "shows what is in an object"),
    ("libbpf-dev", "/usr/include/bpf/bpf_helpers.h", Level::Bpf, "headers of eBPF programs in C"),
    ("make", "make", Level::Bpf, "builds examples/c"),
    ("bpftool", "bpftool", Level::Bpf, "second opinion on what the kernel holds"),
    ("iproute2", "ip", Level::Bpf, "network namespaces and links for tests"),
    ("iputils-ping", "ping", Level::Bpf, "test traffic"),
    ("etcd-server", "etcd", Level::Cluster, "the API server's store"),
    ("containerd", "containerd", Level::Cluster, "container runtime"),
    ("runc", "runc", Level::Cluster, "container runtime"),
    ("containernetworking-plugins", "/usr/lib/cni/ptp", Level::Cluster, "network of pods"),
    ("docker-registry", "docker-registry", Level::Registry, "OCI registry"),
    ("apache2-utils", "htpasswd", Level::Registry, "passwords of the registry"),
    ("ca-certificates", "/etc/ssl/certs/ca-certificates.crt", Level::Registry, "public authorities, in the images"),
    ("skopeo", "skopeo", Level::Registry, "pushes images"),
    ("nftables", "nft", Level::Cluster, "kube-proxy's rules"),
    ("conntrack", "conntrack", Level::Cluster, "kube-proxy"),
    ("busybox-static", "busybox", Level::Cluster, "the test pods' image, and init of VMs"),
    ("curl", "curl", Level::Cluster, "asks services"),
    ("openssl", "openssl", Level::Cluster, "shows certificates"),
    ("gcc", "cc", Level::Cluster, "builds the pause container"),
    ("g++", "c++", Level::Fuzz, "builds libFuzzer"),
    ("xz-utils", "xz", Level::Vm, "unpacks kernel modules"),
    ("qemu-system-x86", "qemu-system-x86_64", Level::Vm, "boots other kernels"),
];

const POLICY: &str = "/usr/sbin/policy-rc.d";

pub fn install(levels: &[Level]) -> Result<()> {
    let missing: Vec<_> =
        PACKAGES.iter().filter(|(_, shows, level, _)| levels.contains(level) && !is_there(shows)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for (package, _, _, why) in &missing {
        super::announce(package, why);
    }
    let names: Vec<&str> = missing.iter().map(|(package, ..)| *package).collect();
    if repo::find("apt-get").is_none() || step::ask(Command::new("id").arg("-u"))? != "0" {
        bail!("install these by your package manager (Debian's names): {}", names.join(" "));
    }
    let _policy = NoServices::begin()?;
    step::run("apt-get update", Command::new("apt-get").args(["update", "--quiet"]))?;
    let mut apt = Command::new("apt-get");
    apt.args(["install", "--quiet", "--yes", "--no-install-recommends"]).args(&names);
    step::run("apt-get install", apt.env("DEBIAN_FRONTEND", "noninteractive"))
}

fn is_there(shows: &str) -> bool {
    if shows.starts_with('/') { Path::new(shows).exists() } else { repo::find(shows).is_some() }
}

/// While it lives, packages may not start services (`policy-rc.d` answers 101: not allowed). A policy that is there stays.
struct NoServices(Option<PathBuf>);

impl NoServices {
    fn begin() -> Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        let path = PathBuf::from(POLICY);
        if path.exists() {
            return Ok(Self(None));
        }
        std::fs::write(&path, "#!/bin/sh\nexit 101\n").with_context(|| format!("cannot write {POLICY}"))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        Ok(Self(Some(path)))
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _absent = std::fs::remove_file(path);
        }
    }
}
