//! Where things are: the repository, its `target/`, the tools that `cargo xtask setup` installs.

use std::path::PathBuf;

/// The root of the checkout.
pub fn root() -> PathBuf {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().map(PathBuf::from).unwrap_or(manifest)
}

/// `target/` of the workspace: everything that is made, nothing that is kept.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Tools that setup builds: `$SKEP_TOOLS`, else `target/tools`. Several checkouts may share one.
pub fn tools() -> PathBuf {
    std::env::var_os("SKEP_TOOLS").map_or_else(|| root().join("target/tools"), PathBuf::from)
}

/// A tool that setup built.
pub fn tool(name: &str) -> PathBuf {
    tools().join("bin").join(name)
}

/// Logs of long steps.
pub fn logs() -> PathBuf {
    root().join("target/logs")
}

/// Whether `program` is on the PATH (or in Debian's sbin directories, which not everyone has on theirs).
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(sbin).map(|dir| dir.join(program)).find(|file| file.is_file())
}
