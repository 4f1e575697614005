//! Objects that others built, for the kernel level to load: those of Debian's xdp-tools. Its packages are unpacked beside
//! the tools, not installed.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{repo, step};

/// The library's package has the objects that are files; in the programs are those that libbpf's skeletons carry.
const PACKAGES: [&str; 2] = ["libxdp1", "xdp-tools"];

/// The directory of the objects; fetches them when they are not there.
pub fn objects() -> Result<PathBuf> {
    let place = repo::tools().join("foreign/xdp-tools");
    if place.is_dir() {
        return Ok(place);
    }
    super::announce("xdp-tools", "objects that others built, which Skep has to load as libbpf does");
    // Renamed when it is complete.
    let half = place.with_extension("half");
    let _old = std::fs::remove_dir_all(&half);
    let fetched = fetch(&half).and_then(|()| collect(&half.join("unpacked"), &half.join("objects")));
    let moved = fetched.and_then(|()| Ok(std::fs::rename(half.join("objects"), &place)?));
    let _rest = std::fs::remove_dir_all(&half);
    moved.map(|()| place)
}

fn fetch(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    let download = || {
        let mut apt = Command::new("apt-get");
        apt.current_dir(dir).args(["download", "--quiet"]).args(PACKAGES);
        step::run("fetch xdp-tools", &mut apt)
    };
    if repo::find("apt-get").is_none() {
        bail!("xdp-tools comes from Debian's archive, and there is no apt-get");
    }
    if download().is_err() {
        step::run("apt-get update", Command::new("apt-get").args(["update", "--quiet"]))?;
        download().context("the archive cannot be had")?;
    }
    for package in files(dir)?.iter().filter(|path| path.extension().is_some_and(|e| e == "deb")) {
        step::ask(Command::new("dpkg").arg("-x").arg(package).arg(dir.join("unpacked")))?;
    }
    Ok(())
}

/// Brings all objects below `from` into one directory, each once.
fn collect(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    let (objects, programs): (Vec<_>, Vec<_>) =
        files(from)?.into_iter().partition(|path| path.extension().is_some_and(|e| e == "o"));
    let mut seen = HashSet::new();
    for path in objects {
        let bytes = std::fs::read(&path)?;
        std::fs::write(to.join(path.file_name().unwrap_or_default()), &bytes)?;
        seen.insert(bytes);
    }
    for path in programs {
        let bytes = std::fs::read(&path)?;
        for (n, object) in embedded(&bytes).enumerate() {
            // Every program has those of the library once more.
            if seen.insert(object.to_vec()) {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                std::fs::write(to.join(format!("{name}-{n}.o")), object)?;
            }
        }
    }
    if seen.is_empty() { bail!("{PACKAGES:?} hold no objects") } else { Ok(()) }
}

/// All files below a directory, in the order of their names.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                dirs.push(entry.path());
            } else if kind.is_file() {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Relocatable eBPF ELF files inside of another file; what LLVM writes ends with its section headers.
fn embedded(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    const MAGIC: [u8; 7] = [0x7f, b'E', b'L', b'F', 2, 1, 1];
    const RELOCATABLE_BPF: [u8; 4] = [1, 0, 247, 0];
    let at = bytes.windows(MAGIC.len()).enumerate().filter(|(_, window)| *window == MAGIC).map(|(at, _)| at);
    at.filter_map(move |at| {
        let header = bytes.get(at..at + 64).filter(|header| header[16..20] == RELOCATABLE_BPF)?;
        let sections = u64::from_le_bytes(header[40..48].try_into().ok()?);
        let count = u16::from_le_bytes(header[60..62].try_into().ok()?);
        let size = usize::try_from(sections).ok()?.checked_add(usize::from(count) * 64)?;
        bytes.get(at..at.checked_add(size)?)
    })
}

#[cfg(test)]
mod tests {
    use super::embedded;

    #[test]
    fn objects_are_found_inside_of_programs() {
        let elf = |kind: u8, machine: u8, sections: u8| {
            let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
            bytes.resize(64 + 64 * usize::from(sections), 0);
            (bytes[16], bytes[18], bytes[40], bytes[60]) = (kind, machine, 64, sections);
            bytes
        };
        let (program, one, other) = (elf(3, 62, 0), elf(1, 247, 1), elf(1, 247, 2));
        let cut = &elf(1, 247, 9)[..100];
        let file = [&program[..], b"abc", &one, &[0; 5], &other, cut].concat();
        assert_eq!(embedded(&file).collect::<Vec<_>>(), [&one[..], &other[..]]);
    }
}
