//! An OCI image of one static binary, as an archive that `skopeo` and `ctr` read. No daemon, and the same input gives
//! the same bytes: no clock, no owner, one order.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// A binary and how it is run.
#[derive(Debug)]
pub struct Binary<'a> {
    pub file: &'a Path,
    /// Its absolute path in the image, and the entry point.
    pub path: &'a str,
    pub user: &'a str,
    /// Further names of the same file (busybox's applets), as hard links.
    pub links: &'a [&'a str],
    /// Further files: on this host, and in the image. A dynamic binary's libraries.
    pub files: Vec<(std::path::PathBuf, String)>,
}

/// Writes the image as an OCI archive (a tar of an OCI layout) that knows itself as `reference`.
pub fn write_archive(binary: &Binary<'_>, reference: &str, archive: &Path) -> Result<()> {
    let bytes = std::fs::read(binary.file).with_context(|| format!("cannot read {}", binary.file.display()))?;
    let layer = layer(binary, &bytes)?;
    let config = serde_json::to_vec(&json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Entrypoint": [binary.path], "User": binary.user, "Env": ["PATH=/bin:/"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
    }))?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
    }))?;
    let mut named = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    named["annotations"] =
        json!({"io.containerd.image.name": reference, "org.opencontainers.image.ref.name": reference});
    let index = serde_json::to_vec(&json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [named]}))?;
    if let Some(dir) = archive.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let file = std::fs::File::create(archive).with_context(|| format!("cannot write {}", archive.display()))?;
    let mut tar = tar::Builder::new(file);
    add(&mut tar, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    add(&mut tar, "index.json", 0o644, &index)?;
    for blob in [&manifest, &config, &layer] {
        add(&mut tar, &digest(blob).replace("sha256:", "blobs/sha256/"), 0o644, blob)?;
    }
    tar.finish().context("cannot finish the archive")
}

fn layer(binary: &Binary<'_>, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let path = binary.path.trim_start_matches('/');
    for dir in Path::new(path).ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty()) {
        directory(&mut tar, dir, 0o755)?;
    }
    directory(&mut tar, Path::new("tmp"), 0o1777)?;
    add(&mut tar, path, 0o755, bytes)?;
    for (file, path) in &binary.files {
        let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        add(&mut tar, path.trim_start_matches('/'), 0o755, &bytes)?;
    }
    for link in binary.links {
        let mut header = header(tar::EntryType::Link, 0o755);
        tar.append_link(&mut header, link.trim_start_matches('/'), path)?;
    }
    Ok(tar.into_inner()?)
}

fn header(kind: tar::EntryType, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    header
}

fn directory(tar: &mut tar::Builder<Vec<u8>>, dir: &Path, mode: u32) -> Result<()> {
    let mut header = header(tar::EntryType::Directory, mode);
    Ok(tar.append_data(&mut header, dir, std::io::empty())?)
}

fn add<W: std::io::Write>(tar: &mut tar::Builder<W>, path: &str, mode: u32, bytes: &[u8]) -> Result<()> {
    let mut header = header(tar::EntryType::Regular, mode);
    header.set_size(bytes.len() as u64);
    Ok(tar.append_data(&mut header, path, bytes)?)
}

fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(blob), "size": blob.len()})
}

fn digest(blob: &[u8]) -> String {
    let hex: String = Sha256::digest(blob).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_binary_gives_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tool");
        std::fs::write(&file, b"ELF").unwrap();
        let binary = Binary { file: &file, path: "/bin/tool", user: "0", links: &["/bin/other"], files: Vec::new() };
        let (one, two) = (dir.path().join("one.tar"), dir.path().join("two.tar"));
        write_archive(&binary, "example.com/tool:v1", &one).unwrap();
        write_archive(&binary, "example.com/tool:v1", &two).unwrap();
        assert_eq!(std::fs::read(one).unwrap(), std::fs::read(two).unwrap());
    }
}
