//! The eBPF objects of `ebpf/` (Rust) and `examples/c` (C): one `target/bpf/<name>.o` each, with BTF.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{repo, step};

const TARGET: &str = "bpfel-unknown-none";

/// Where the objects are.
pub fn objects() -> PathBuf {
    repo::root().join("target/bpf")
}

pub fn build_all() -> Result<()> {
    std::fs::create_dir_all(objects())?;
    rust()?;
    c()?;
    let mut names: Vec<String> =
        std::fs::read_dir(objects())?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    println!("{}: {}", objects().display(), names.join(" "));
    Ok(())
}

/// `ebpf/` is a workspace of its own: another target, no standard library. `core` is built from source, which a stable
/// compiler does only when told that it is its own bootstrap; the flags for BTF are in `ebpf/.cargo/config.toml`.
fn rust() -> Result<()> {
    let linker = repo::tool("bpf-linker");
    if !linker.is_file() {
        bail!("{} is missing: run `cargo xtask setup --only bpf`", linker.display());
    }
    let out = repo::root().join("target/ebpf");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(repo::tools().join("bin")).chain(std::env::split_paths(&path)))?;
    let mut cargo = Command::new("cargo");
    cargo.current_dir(repo::root().join("ebpf")).args(["build", "--release", "--workspace"]);
    // Flags of the outer build (static linking, a profile's) are not for this target.
    cargo.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS").env_remove("CARGO_BUILD_TARGET");
    cargo.env("RUSTC_BOOTSTRAP", "1").env("CARGO_TARGET_DIR", &out).env("PATH", path);
    step::run("eBPF objects in Rust", &mut cargo)?;
    for entry in std::fs::read_dir(repo::root().join("ebpf"))? {
        let dir = entry?.path();
        let Some(name) = dir.file_name().filter(|_| dir.join("Cargo.toml").is_file()) else { continue };
        let object = out.join(TARGET).join("release").join(name);
        keep(&object, &objects().join(name).with_extension("o"))?;
    }
    Ok(())
}

fn c() -> Result<()> {
    let dir = repo::root().join("examples/c");
    let mut make = Command::new("make");
    make.arg("--directory").arg(dir).arg(format!("OUT={}", objects().display()));
    step::run("eBPF objects in C", &mut make)
}

/// Copies when the bytes differ: an object that did not change keeps its time.
fn keep(from: &Path, to: &Path) -> Result<()> {
    let bytes = std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if std::fs::read(to).ok().as_ref() != Some(&bytes) {
        std::fs::write(to, bytes)?;
    }
    Ok(())
}
