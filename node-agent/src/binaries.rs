//! Probe points in binaries: files below a root, symbols to file offsets.
//!
//! A container's file system is read below /proc/PID/root, and whoever is in the container may change it at any time: the
//! kernel resolves paths with that directory as their `/` (openat2(2), Linux 5.6), and what it found is held open, so that
//! what was looked into is what is probed.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use object::read::ReadCache;
use object::{Object, ObjectSegment, ObjectSymbol, SymbolKind};
use wildmatch::WildMatch;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::Errno;

use crate::targets::{Binaries, NotOpened, Opened};

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

/// How often the kernel is asked again when something was renamed while it looked.
const TRIES: u32 = 16;

/// This host's files.
#[derive(Clone, Copy, Debug)]
pub struct HostBinaries;

impl Binaries for HostBinaries {
    fn open(&self, root: &Path, binary: &str) -> Result<Opened, NotOpened> {
        let root = File::open(root).map_err(|_| NotOpened::NoRoot)?;
        if binary.starts_with('/') {
            return regular(&root, Path::new(binary)).map_err(|e| NotOpened::NoFile(absent(binary, e)));
        }
        for dir in LIBRARY_DIRS {
            match regular(&root, &Path::new(dir).join(binary)) {
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                found => return found.map_err(|e| NotOpened::NoFile(absent(binary, e))),
            }
        }
        Err(NotOpened::NoFile(format!("no library {binary} in {}", LIBRARY_DIRS.join(", "))))
    }

    fn symbol(&self, binary: &Opened, symbol: &str) -> Result<u64, String> {
        with_elf(binary, |elf| {
            let mut symbols = elf.dynamic_symbols().chain(elf.symbols());
            let found = symbols.find(|s| s.is_definition() && s.name() == Ok(symbol));
            let address = found.ok_or_else(|| format!("no symbol {symbol}"))?.address();
            file_offset(elf, address).ok_or_else(|| format!("symbol {symbol} lies outside of every segment"))
        })
    }

    fn functions(&self, binary: &Opened, pattern: &str) -> Result<Vec<u64>, String> {
        let like = WildMatch::new(pattern);
        with_elf(binary, |elf| {
            let symbols = elf.dynamic_symbols().chain(elf.symbols());
            let functions = symbols.filter(|s| s.is_definition() && s.kind() == SymbolKind::Text);
            let alike = functions.filter(|s| s.name().is_ok_and(|name| like.matches(name)));
            let offsets: Vec<u64> = alike.filter_map(|s| file_offset(elf, s.address())).collect();
            if offsets.is_empty() { Err(format!("no function {pattern}")) } else { Ok(offsets) }
        })
    }
}

type Elf<'a> = object::File<'a, &'a ReadCache<File>>;

fn with_elf<T>(binary: &Opened, look: impl FnOnce(&Elf<'_>) -> Result<T, String>) -> Result<T, String> {
    let file = File::open(binary.path()).map_err(|e| e.to_string())?;
    let cache = ReadCache::new(file);
    let elf = object::File::parse(&cache).map_err(|e| format!("it is not an ELF binary ({e})"))?;
    look(&elf)
}

fn file_offset(elf: &Elf<'_>, address: u64) -> Option<u64> {
    let segment = elf.segments().find(|s| (s.address()..s.address() + s.size()).contains(&address))?;
    Some(address - segment.address() + segment.file_range().0)
}

/// A regular file below a root, where links and `..` end; nothing of it is read, and no device is opened.
fn regular(root: &File, path: &Path) -> Result<Opened, Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mut tries = 0;
    let file = loop {
        match openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN) if tries < TRIES => tries += 1,
            opened => break opened?,
        }
    };
    if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(Errno::ISDIR);
    }
    let mut opened = Opened { file: Arc::new(file), identity: String::new() };
    let identity = skep_kernel::attach::file_identity(&opened.path());
    opened.identity = identity.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    Ok(opened)
}

fn absent(binary: &str, error: Errno) -> String {
    match error {
        Errno::NOENT | Errno::NOTDIR => format!("no file {binary}"),
        Errno::ISDIR => format!("{binary} is no regular file"),
        Errno::LOOP => format!("{binary} leads round, or through a link of /proc"),
        other => format!("{binary} cannot be opened ({other})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn opened(root: &Path, path: &str) -> Result<String, NotOpened> {
        HostBinaries.open(root, path).map(|opened| opened.identity)
    }

    fn no_file(text: &str) -> Result<String, NotOpened> {
        Err(NotOpened::NoFile(text.into()))
    }

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
        symlink("/etc/passwd", root.join("out")).unwrap();
        let expected = skep_kernel::attach::file_identity(&root.join("usr/lib/libc-2.so")).unwrap();
        for path in ["/usr/lib/libc-2.so", "/lib/libc.so.6", "/usr/lib/up", "/lib/../lib/./libc.so.6", "libc.so.6"] {
            assert_eq!(opened(root, path), Ok(expected.clone()), "{path}");
        }
        assert_eq!(opened(root, "/loop"), no_file("/loop leads round, or through a link of /proc"));
        assert_eq!(opened(root, "/nope"), no_file("no file /nope"));
        assert_eq!(opened(root, "/out"), no_file("no file /out"));
        assert_eq!(opened(root, "/usr/lib"), no_file("/usr/lib is no regular file"));
        assert_eq!(opened(&root.join("gone"), "/lib"), Err(NotOpened::NoRoot));
    }

    /// Where they lead depends on who asks: out of the container that was selected.
    #[test]
    fn links_of_proc_are_not_followed() {
        for path in ["/proc/self/exe", "/proc/self/root/bin/sh"] {
            let expected = no_file(&format!("{path} leads round, or through a link of /proc"));
            assert_eq!(opened(Path::new("/"), path), expected, "{path}");
        }
    }

    #[test]
    fn malloc_is_found_in_libc() {
        let libc = HostBinaries.open(Path::new("/"), "libc.so.6").unwrap();
        assert!(HostBinaries.symbol(&libc, "malloc").unwrap() > 0);
        assert_eq!(HostBinaries.symbol(&libc, "no_such_symbol"), Err("no symbol no_such_symbol".into()));
    }

    #[test]
    fn functions_are_found_by_pattern() {
        let libc = HostBinaries.open(Path::new("/"), "libc.so.6").unwrap();
        let malloc = HostBinaries.symbol(&libc, "malloc").unwrap();
        assert!(HostBinaries.functions(&libc, "mal*").unwrap().contains(&malloc));
        assert!(!HostBinaries.functions(&libc, "cal*").unwrap().contains(&malloc));
        // Of data there is no function.
        assert_eq!(HostBinaries.functions(&libc, "environ"), Err("no function environ".into()));
    }
}
