//! Where pins are, and how names become paths.
//!
//! ```text
//! <root>/<uid>/<load>/progs/<function>+<hash of load-time attributes>
//! <root>/<uid>/<load>/maps/<map>             every map that the load uses
//! <root>/<uid>/<load>/{base,sums}/<map>      what was copied of a kept map of another size, until it is settled
//! <root>/<uid>/maps/<map>                    kept maps, under a path that survives loads
//! <root>/<uid>/links/<hash of the hook>
//! <root>/<uid>/<load>/shares/<map>/<namespace>/<group>    a directory: the map is that of the group
//! <root>/shared/<namespace>/<group>/<map>    maps of groups
//! ```
//!
//! What ends in `~` is half done: a load is built under `<load>~` and renamed when complete.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::KernelError;

/// BPF_FS_MAGIC (include/uapi/linux/magic.h).
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// Skep's directory in a bpffs.
#[derive(Clone, Debug)]
pub struct Bpffs {
    root: PathBuf,
}

impl Bpffs {
    /// Uses (and makes) the directory `root`, which must lie in a bpffs.
    pub fn open(root: &Path) -> Result<Self, KernelError> {
        let bpffs = Bpffs { root: root.to_owned() };
        bpffs.check()?;
        make_dir(root)?;
        Ok(bpffs)
    }
    /// It may have been unmounted: what is below it then is not what was pinned.
    pub fn check(&self) -> Result<(), KernelError> {
        let parent = self.root.parent().unwrap_or(&self.root);
        match is_bpffs(&self.root) || (!self.root.exists() && is_bpffs(parent)) {
            true => Ok(()),
            false => Err(KernelError::NoBpffs { path: parent.to_owned() }),
        }
    }
    pub fn root(&self) -> &Path {
        &self.root
    }
    pub fn program(&self, uid: &str) -> PathBuf {
        self.root.join(escape(uid))
    }
    pub fn load(&self, uid: &str, load: &str) -> PathBuf {
        self.program(uid).join(escape(load))
    }
    pub fn staged_load(&self, uid: &str, load: &str) -> PathBuf {
        self.program(uid).join(format!("{}~", escape(load)))
    }
    pub fn kept_maps(&self, uid: &str) -> PathBuf {
        self.program(uid).join("maps")
    }
    pub fn links(&self, uid: &str) -> PathBuf {
        self.program(uid).join("links")
    }
    pub fn link(&self, uid: &str, link: &str) -> PathBuf {
        self.links(uid).join(escape(link))
    }
    pub fn shared(&self) -> PathBuf {
        self.root.join("shared")
    }
    /// Loads of a uid, whole or half done (those end in `~`). What lies beside them is named by programs, not by us: a map
    /// may have any name.
    pub fn loads(&self, uid: &str) -> Result<Vec<String>, KernelError> {
        Ok(list(&self.program(uid))?.into_iter().filter(|name| name != "links" && name != "maps").collect())
    }
    /// uids that have a directory.
    pub fn programs(&self) -> Result<Vec<String>, KernelError> {
        Ok(list(&self.root)?.into_iter().filter(|n| n != "shared" && n != "hooks").collect())
    }
}

fn is_bpffs(path: &Path) -> bool {
    let Ok(text) = std::ffi::CString::new(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str())) else {
        return false;
    };
    // SAFETY: an all-zero statfs is a valid value of the plain C struct.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path is NUL-terminated and the buffer is a live statfs.
    let ok = unsafe { libc::statfs(text.as_ptr(), &raw mut stat) } == 0;
    ok && stat.f_type == BPF_FS_MAGIC
}

/// A name as a bpffs takes it (it refuses dots), injectively: `.rodata` is `%2Erodata`. A trailing `~` stays Skep's own.
pub fn escape(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            '.' | '%' | '/' | '~' | '\0' => out.push_str(&format!("%{:02X}", c as u32)),
            c => out.push(c),
        }
    }
    out
}

/// The inverse of [`escape`].
pub fn unescape(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 3).and_then(|h| u8::from_str_radix(h, 16).ok());
        match code {
            Some(code) => {
                out.push(char::from(code));
                rest = &rest[at + 3..];
            }
            None => {
                out.push('%');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    out
}

/// Makes a directory and its parents; one that exists is fine.
pub fn make_dir(path: &Path) -> Result<(), KernelError> {
    std::fs::create_dir_all(path).map_err(KernelError::io(format!("making {}", path.display())))
}

/// Unescaped names in a directory, sorted; none when it does not exist or is none. Names of half-done work keep their `~`.
pub fn list(path: &Path) -> Result<Vec<String>, KernelError> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        // What somebody pinned where we have directories holds nothing of ours.
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(Vec::new()),
        Err(e) => return Err(KernelError::Io { what: format!("listing {}", path.display()), source: e }),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(KernelError::io(format!("listing {}", path.display())))?;
        names.push(unescape(&entry.file_name().to_string_lossy()));
    }
    names.sort();
    Ok(names)
}

/// Removes a pin; one that is not there is fine.
pub fn unpin(path: &Path) -> Result<(), KernelError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(KernelError::Io { what: format!("removing {}", path.display()), source: e })
        }
        _ => Ok(()),
    }
}

/// Renames a pin or a directory, over what has the name.
pub fn rename(from: &Path, to: &Path) -> Result<(), KernelError> {
    std::fs::rename(from, to).map_err(KernelError::io(format!("renaming {} to {}", from.display(), to.display())))
}

/// Removes a directory and all below it; one that is not there is fine.
pub fn remove_tree(path: &Path) -> Result<(), KernelError> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(KernelError::Io { what: format!("removing {}", path.display()), source: e })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaping_is_injective_and_keeps_bpffs_happy() {
        let names = [".rodata", "%2Erodata", "a/b", "a%b", "a~", "a", "f+0123", ""];
        let escaped: std::collections::HashSet<_> = names.iter().map(|n| escape(n)).collect();
        assert_eq!(escaped.len(), names.len());
        for name in names {
            assert_eq!(unescape(&escape(name)), name);
            assert!(!escape(name).contains(['.', '/', '~']), "{name}");
        }
        assert_eq!(escape(".rodata"), "%2Erodata");
    }
}
