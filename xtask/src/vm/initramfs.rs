//! The file system of a test machine: busybox, `ip`, `tc`, bpftool and a registry with their libraries, some modules, the tests.

use std::collections::BTreeSet;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::Tests;
use super::kernels::{Files, Kernel, Runs, name};
use crate::{repo, step};

/// Links, queueing and connections that tests use, and that Debian builds as modules.
const MODULES: [&str; 5] = ["veth", "cls_bpf", "act_bpf", "sch_ingress", "nf_conntrack"];

const AUTHORITIES: &str = "etc/ssl/certs/ca-certificates.crt";

pub fn write(
    image: &Path,
    files: &Files,
    tests: &Tests,
    objects: &Path,
    kernel: &Kernel,
    filter: Option<&str>,
) -> Result<()> {
    let root = tempfile::tempdir()?;
    let at = |path: &str| root.path().join(path);
    for dir in ["bin", "sbin", "proc", "sys", "dev", "tmp", "run", "root", "etc", "modules", "var"] {
        std::fs::create_dir(at(dir))?;
    }
    symlink("/run", at("var/run"))?;
    busybox(&at("bin"))?;
    for program in ["ip", "tc", "bpftool"] {
        with_libraries(root.path(), &repo::find(program).with_context(|| format!("{program} is missing"))?)?;
    }
    std::fs::create_dir(at("tests"))?;
    // They run in this order.
    std::fs::copy(&tests.kernel, at("tests/1-kernel"))?;
    if kernel.runs == Runs::All {
        let programs = [
            (&tests.agent, "tests/2-agent"),
            (&tests.same, "tests/3-same"),
            (&tests.verbs, "tests/4-verbs"),
            (&tests.skep_agent, "skep-agent"),
            (&tests.plugin, "kubectl-skep"),
        ];
        for (program, name) in programs {
            std::fs::copy(program, at(name))?;
        }
        with_libraries(root.path(), &repo::find("docker-registry").context("docker-registry is missing")?)?;
    }
    std::fs::create_dir(at("objects"))?;
    for entry in std::fs::read_dir(objects)? {
        let object = entry?.path();
        std::fs::copy(&object, at("objects").join(name(&object)))?;
    }
    // A client for registries wants authorities to trust, whatever registry it is for.
    std::fs::create_dir_all(at("etc/ssl/certs"))?;
    std::fs::copy(Path::new("/").join(AUTHORITIES), at(AUTHORITIES))
        .with_context(|| format!("/{AUTHORITIES} is missing: run `cargo xtask setup --only vm`"))?;
    std::fs::write(at("arguments"), kernel.arguments(filter))?;
    modules(files, &at("modules"))?;
    configuration(files, &at("boot"))?;
    std::fs::write(at("init"), include_str!("init.sh"))?;
    std::fs::set_permissions(at("init"), std::fs::Permissions::from_mode(0o755))?;
    pack(root.path(), image)
}

/// Objects ask what the kernel was built with.
fn configuration(files: &Files, boot: &Path) -> Result<()> {
    std::fs::create_dir(boot)?;
    std::fs::copy(&files.config, boot.join(format!("config-{}", files.release)))?;
    Ok(())
}

fn busybox(bin: &Path) -> Result<()> {
    let busybox = repo::find("busybox").context("busybox is missing: run `cargo xtask setup --only vm`")?;
    std::fs::copy(&busybox, bin.join("busybox"))?;
    for applet in step::ask(Command::new(&busybox).arg("--list"))?.lines() {
        // The real ones know namespaces and filters.
        if !matches!(applet, "busybox" | "ip" | "tc") {
            symlink("busybox", bin.join(applet))?;
        }
    }
    Ok(())
}

/// Copies a dynamic program and what `ldd` says that it needs.
fn with_libraries(root: &Path, program: &Path) -> Result<()> {
    std::fs::copy(program, root.join("bin").join(name(program)))?;
    for word in step::ask(Command::new("ldd").arg(program))?.split_whitespace().filter(|word| word.starts_with('/')) {
        let copy = root.join(word.trim_start_matches('/'));
        std::fs::create_dir_all(copy.parent().unwrap_or(root))?;
        std::fs::copy(word, &copy).with_context(|| format!("cannot copy {word}"))?;
    }
    Ok(())
}

/// Copies modules and those they depend on, and writes the order in which to load them.
fn modules(files: &Files, out: &Path) -> Result<()> {
    let mut all = Vec::new();
    find_modules(&files.modules, &mut all)?;
    let (mut order, mut seen) = (Vec::new(), BTreeSet::new());
    for module in MODULES {
        want(module, &all, out, &mut order, &mut seen)?;
    }
    std::fs::write(out.join("order"), order.join("\n"))?;
    Ok(())
}

fn find_modules(dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            find_modules(&path, found)?;
        } else if name(&path).contains(".ko") {
            found.push(path);
        }
    }
    Ok(())
}

fn module_name(path: &Path) -> String {
    name(path).split(".ko").next().unwrap_or_default().replace('-', "_")
}

fn want(module: &str, all: &[PathBuf], out: &Path, order: &mut Vec<String>, seen: &mut BTreeSet<String>) -> Result<()> {
    // One that is not there is built in.
    let Some(path) = all.iter().find(|path| module_name(path) == module) else { return Ok(()) };
    if !seen.insert(module.to_owned()) {
        return Ok(());
    }
    let bytes = if name(path).ends_with(".xz") {
        let xz = Command::new("xz").arg("-dc").arg(path).output().context("xz does not start")?;
        xz.stdout
    } else {
        std::fs::read(path)?
    };
    for dependency in depends(&bytes) {
        want(&dependency, all, out, order, seen)?;
    }
    std::fs::write(out.join(format!("{module}.ko")), bytes)?;
    order.push(module.to_owned());
    Ok(())
}

/// `depends=a,b` in the module's .modinfo.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value: Vec<u8> = module[at + KEY.len()..].iter().copied().take_while(|byte| *byte != 0).collect();
    let text = String::from_utf8_lossy(&value).replace('-', "_");
    text.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn pack(root: &Path, image: &Path) -> Result<()> {
    let script = "find . | busybox cpio -o -H newc 2>/dev/null | gzip -1";
    let out = std::fs::File::create(image)?;
    let status = Command::new("sh").args(["-c", script]).current_dir(root).stdin(Stdio::null()).stdout(out).status()?;
    if status.success() { Ok(()) } else { bail!("packing {}: {status}", image.display()) }
}
