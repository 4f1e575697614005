//! Probe points in binaries: files below a root, symbols to file offsets.
//!
//! A container's file system is read below /proc/PID/root, where absolute symbolic links would lead out into the node's:
//! they are followed by hand, with the root as their `/`.

use std::fs;
use std::path::{Component, Path, PathBuf};

use object::read::ReadCache;
use object::{Object, ObjectSegment, ObjectSymbol};

use crate::targets::{Binaries, Located};

/// Where libraries are looked for, by file name.
const LIBRARY_DIRS: [&str; 8] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
];

/// As many links as the kernel follows (MAXSYMLINKS).
const MAX_LINKS: u32 = 40;

/// This host's files.
#[derive(Clone, Copy, Debug)]
pub struct HostBinaries;

impl Binaries for HostBinaries {
    fn locate(&self, root: &Path, binary: &str) -> Result<Located, String> {
        let candidates: Vec<PathBuf> = if binary.starts_with('/') {
            vec![PathBuf::from(binary)]
        } else {
            LIBRARY_DIRS.iter().map(|dir| Path::new(dir).join(binary)).collect()
        };
        let found = candidates.iter().find_map(|path| resolve(root, path).filter(|p| p.is_file()));
        let path = found.ok_or_else(|| {
            if binary.starts_with('/') {
                format!("no file {binary}")
            } else {
                format!("no library {binary} in {}", LIBRARY_DIRS.join(", "))
            }
        })?;
        let identity = skep_kernel::attach::file_identity(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(Located { path, identity })
    }

    fn symbol(&self, path: &Path, symbol: &str) -> Result<u64, String> {
        let file = fs::File::open(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let cache = ReadCache::new(file);
        let elf = object::File::parse(&cache).map_err(|e| format!("{} is not an ELF binary: {e}", path.display()))?;
        let mut symbols = elf.dynamic_symbols().chain(elf.symbols());
        let found = symbols.find(|s| s.is_definition() && s.name() == Ok(symbol));
        let address = found.ok_or_else(|| format!("no symbol {symbol} in {}", path.display()))?.address();
        let segment = elf.segments().find(|s| (s.address()..s.address() + s.size()).contains(&address));
        let segment = segment.ok_or_else(|| format!("symbol {symbol} lies outside of every segment"))?;
        Ok(address - segment.address() + segment.file_range().0)
    }
}

/// Follows symbolic links below `root`, never out of it; `None` when something is missing or goes round.
fn resolve(root: &Path, path: &Path) -> Option<PathBuf> {
    let mut links = 0;
    let mut pending: Vec<PathBuf> = vec![path.to_owned()];
    let mut inside = PathBuf::new();
    while let Some(next) = pending.pop() {
        let mut components = next.components();
        while let Some(component) = components.next() {
            match component {
                Component::RootDir | Component::Prefix(_) => inside.clear(),
                Component::CurDir => {}
                Component::ParentDir => drop(inside.pop()),
                Component::Normal(name) => {
                    let candidate = root.join(&inside).join(name);
                    match fs::read_link(&candidate) {
                        Ok(target) => {
                            links += 1;
                            if links > MAX_LINKS {
                                return None;
                            }
                            pending.push(components.as_path().to_owned());
                            pending.push(target);
                            break;
                        }
                        // Not a link, or not there: the last step tells.
                        Err(_) => inside.push(name),
                    }
                }
            }
        }
    }
    let full = root.join(inside);
    full.exists().then_some(full)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_stay_below_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("usr/lib")).unwrap();
        fs::write(root.join("usr/lib/libc-2.so"), "x").unwrap();
        symlink("/usr/lib", root.join("lib")).unwrap();
        symlink("libc-2.so", root.join("usr/lib/libc.so.6")).unwrap();
        symlink("../../../../usr/lib/libc-2.so", root.join("usr/lib/up")).unwrap();
        symlink("/loop", root.join("loop")).unwrap();
        let expected = Some(root.join("usr/lib/libc-2.so"));
        for path in ["/usr/lib/libc-2.so", "/lib/libc.so.6", "/usr/lib/up", "/lib/../lib/./libc.so.6"] {
            assert_eq!(resolve(root, Path::new(path)), expected, "{path}");
        }
        assert_eq!(resolve(root, Path::new("/loop")), None);
        assert_eq!(resolve(root, Path::new("/nope")), None);
    }

    #[test]
    fn malloc_is_found_in_libc() {
        let libc = HostBinaries.locate(Path::new("/"), "libc.so.6").unwrap();
        assert!(HostBinaries.symbol(&libc.path, "malloc").unwrap() > 0);
        let error = HostBinaries.symbol(&libc.path, "no_such_symbol").unwrap_err();
        assert!(error.starts_with("no symbol no_such_symbol in /"), "{error}");
    }
}
