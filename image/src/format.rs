//! The formats in which eBPF objects are found in registries, as pure functions on bytes.

use std::io::Read;

use flate2::read::GzDecoder;
use serde::{Deserialize, Serialize};

use crate::artifact::LAYER_TYPE;
use crate::digest::Digest;
use crate::error::Fault;
use crate::{MAX_MANIFEST, MAX_OBJECT};

/// An eBPF object and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bytecode {
    /// Digest of the manifest, or of the index over architectures, that was asked for.
    pub digest: Digest,
    /// The object: an ELF file.
    pub object: Vec<u8>,
    /// The format of the image.
    pub format: Format,
}

/// The format of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    /// Skep's artifact: the layer is the object.
    Skep,
    /// Inspektor Gadget's artifact: one of the layers is the object.
    InspektorGadget,
    /// bpfman's, or any container image whose one layer holds one `.o` file.
    Bpfman,
}

/// What a manifest or an index says to fetch next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The manifest for this architecture.
    Manifest(Digest),
    /// The layer with the object.
    Layer(Layer),
}

/// A layer that holds the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layer {
    pub digest: Digest,
    pub size: u64,
    pub format: Format,
    pub packing: Packing,
}

/// How the object lies in its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Tar,
    TarGzip,
}

const GADGET_TYPE: &str = "application/vnd.gadget.ebpf.program.v1+binary";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: Option<u64>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

/// The architecture that this process runs on, as images name it.
pub(crate) const fn architecture() -> &'static str {
    if cfg!(target_arch = "x86_64") {
        "amd64"
    } else if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        std::env::consts::ARCH
    }
}

/// Reads a manifest or an index.
pub(crate) fn read_manifest(bytes: &[u8], architecture: &'static str) -> Result<Next, Fault> {
    if bytes.len() as u64 > MAX_MANIFEST {
        return Err(Fault::TooLarge { what: "manifest", size: bytes.len() as u64, limit: MAX_MANIFEST });
    }
    let document: Document = serde_json::from_slice(bytes)
        .map_err(|e| Fault::NotAnImage(format!("its manifest is not what the specification says ({e})")))?;
    match (document.schema_version, document.manifests, document.layers) {
        (Some(2), Some(entries), _) => choose(entries, architecture).map(Next::Manifest),
        (Some(2), None, Some(layers)) => select(layers).map(Next::Layer),
        (version, ..) => Err(Fault::NotAnImage(format!(
            "its manifest has schemaVersion {version:?} and neither layers nor manifests"
        ))),
    }
}

fn choose(entries: Vec<Descriptor>, wanted: &'static str) -> Result<Digest, Fault> {
    let fits = |platform: &Platform| platform.os == "linux" && platform.architecture == wanted;
    match entries.iter().find(|entry| entry.platform.as_ref().is_some_and(fits)) {
        Some(entry) => digest(&entry.digest),
        None => {
            let name = |p: &Platform| format!("{}/{}", p.os, p.architecture);
            let found = entries.iter().filter_map(|entry| entry.platform.as_ref().map(name)).collect();
            Err(Fault::NoPlatform { wanted, found })
        }
    }
}

fn select(layers: Vec<Descriptor>) -> Result<Layer, Fault> {
    let types = || layers.iter().map(|layer| layer.media_type.clone()).collect();
    let of_type = |wanted: &str| layers.iter().filter(|layer| layer.media_type == wanted).collect::<Vec<_>>();
    let (layer, format, packing) = match (&of_type(LAYER_TYPE)[..], &of_type(GADGET_TYPE)[..], &layers[..]) {
        ([layer], [], [_]) => (*layer, Format::Skep, Packing::Plain),
        ([], [layer], _) => (*layer, Format::InspektorGadget, Packing::Plain),
        ([], [], [layer]) if is_tar_gzip(&layer.media_type) => (layer, Format::Bpfman, Packing::TarGzip),
        ([], [], [layer]) if is_tar(&layer.media_type) => (layer, Format::Bpfman, Packing::Tar),
        _ => return Err(Fault::Layers(types())),
    };
    if layer.size > MAX_OBJECT {
        return Err(Fault::TooLarge { what: "layer", size: layer.size, limit: MAX_OBJECT });
    }
    Ok(Layer { digest: digest(&layer.digest)?, size: layer.size, format, packing })
}

fn is_tar_gzip(media_type: &str) -> bool {
    ["application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.docker.image.rootfs.diff.tar.gzip"]
        .contains(&media_type)
}

fn is_tar(media_type: &str) -> bool {
    ["application/vnd.oci.image.layer.v1.tar", "application/vnd.docker.image.rootfs.diff.tar"].contains(&media_type)
}

fn digest(text: &str) -> Result<Digest, Fault> {
    text.parse().map_err(|e: crate::digest::InvalidDigest| Fault::NotAnImage(e.to_string()))
}

/// The object in a layer's bytes.
pub(crate) fn read_layer(bytes: Vec<u8>, packing: Packing) -> Result<Vec<u8>, Fault> {
    let object = match packing {
        Packing::Plain => bytes,
        Packing::Tar => unpack(&bytes[..])?,
        Packing::TarGzip => unpack(GzDecoder::new(&bytes[..]))?,
    };
    check_object(&object)?;
    Ok(object)
}

/// The one `.o` file of a tar stream, of which no more than the bound is ever unpacked.
fn unpack(stream: impl Read) -> Result<Vec<u8>, Fault> {
    let broken = |error: std::io::Error| Fault::Unpack(error.to_string());
    let limit = 2 * MAX_OBJECT;
    let mut archive = tar::Archive::new(stream.take(limit));
    let (mut names, mut object) = (vec![], vec![]);
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if !entry.header().entry_type().is_file() || !name.ends_with(".o") {
            continue;
        }
        if entry.size() > MAX_OBJECT {
            return Err(Fault::TooLarge { what: "object", size: entry.size(), limit: MAX_OBJECT });
        }
        names.push(name);
        object.clear();
        entry.read_to_end(&mut object).map_err(broken)?;
    }
    if names.len() == 1 { Ok(object) } else { Err(Fault::Objects(names)) }
}

/// Whether it is an ELF file for eBPF, by its first 20 bytes.
fn check_object(object: &[u8]) -> Result<(), Fault> {
    const EM_BPF: u16 = 247;
    let Some((head, _)) = object.split_first_chunk::<20>().filter(|(head, _)| head.starts_with(b"\x7fELF")) else {
        return Err(Fault::NotBpf(format!("{} bytes that are no ELF file", object.len())));
    };
    let machine =
        if head[5] == 2 { u16::from_be_bytes([head[18], head[19]]) } else { u16::from_le_bytes([head[18], head[19]]) };
    if machine != EM_BPF {
        return Err(Fault::NotBpf(format!("an ELF file for machine {machine}, not for eBPF ({EM_BPF})")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use serde_json::{Value, json};

    use super::*;

    fn object() -> Vec<u8> {
        let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
        bytes.resize(18, 0);
        bytes.extend([247, 0]);
        bytes.resize(64, 7);
        bytes
    }

    fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut archive = tar::Builder::new(vec![]);
        for (name, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, name, *bytes).unwrap();
        }
        archive.into_inner().unwrap()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(vec![], Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn layer(media_type: &str, size: u64) -> Value {
        json!({"mediaType": media_type, "digest": Digest::of(media_type.as_bytes()), "size": size})
    }

    fn manifest(layers: &[Value]) -> Result<Next, Fault> {
        read_manifest(json!({"schemaVersion": 2, "layers": layers}).to_string().as_bytes(), "amd64")
    }

    const TAR: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

    #[test]
    fn each_format_is_known_by_its_layers() {
        let found = |layers: &[Value]| match manifest(layers).unwrap() {
            Next::Layer(layer) => (layer.format, layer.packing),
            Next::Manifest(_) => panic!("not an index"),
        };
        assert_eq!(found(&[layer(LAYER_TYPE, 1)]), (Format::Skep, Packing::Plain));
        assert_eq!(found(&[layer(TAR, 1)]), (Format::Bpfman, Packing::TarGzip));
        let docker = "application/vnd.docker.image.rootfs.diff.tar.gzip";
        assert_eq!(found(&[layer(docker, 1)]), (Format::Bpfman, Packing::TarGzip));
        let wasm = layer("application/vnd.gadget.wasm.program.v1+binary", 1);
        assert_eq!(found(&[wasm, layer(GADGET_TYPE, 1)]), (Format::InspektorGadget, Packing::Plain));
    }

    #[test]
    fn an_image_without_one_object_says_what_it_holds() {
        let said = |layers: &[Value]| manifest(layers).unwrap_err().to_string();
        assert!(said(&[]).starts_with("holds no eBPF object: its layers are none: one is expected"));
        let two = format!("holds no eBPF object: its layers are {TAR}, {TAR}: one is expected");
        assert!(said(&[layer(TAR, 1), layer(TAR, 1)]).starts_with(&two));
        assert!(said(&[layer(LAYER_TYPE, 1), layer(LAYER_TYPE, 1)]).starts_with("holds no eBPF object"));
        assert_eq!(
            said(&[layer(LAYER_TYPE, MAX_OBJECT + 1)]),
            "its layer has 67108865 bytes, more than the 67108864 that are allowed"
        );
        let not_an_image = |text: &str| read_manifest(text.as_bytes(), "amd64").unwrap_err().to_string();
        for text in ["", "<html>", "{}", r#"{"schemaVersion": 1, "layers": []}"#, r#"{"schemaVersion": 2}"#] {
            assert!(not_an_image(text).starts_with("not an OCI image: its manifest"), "{text}");
        }
    }

    #[test]
    fn an_index_gives_the_manifest_for_the_architecture() {
        let entry = |os: &str, arch: &str| {
            let digest = Digest::of(format!("{os}{arch}").as_bytes());
            json!({"mediaType": "m", "digest": digest, "size": 1, "platform": {"os": os, "architecture": arch}})
        };
        let index = json!({"schemaVersion": 2, "manifests": [
            entry("unknown", "unknown"), entry("linux", "amd64"), entry("linux", "arm64")]});
        let index = index.to_string();
        let choose = |arch| read_manifest(index.as_bytes(), arch);
        assert_eq!(choose("arm64"), Ok(Next::Manifest(Digest::of(b"linuxarm64"))));
        assert_eq!(choose("amd64"), Ok(Next::Manifest(Digest::of(b"linuxamd64"))));
        assert_eq!(
            choose("riscv64").unwrap_err().to_string(),
            "has images for unknown/unknown, linux/amd64, linux/arm64, and none for linux/riscv64: push one for this architecture"
        );
    }

    #[test]
    fn a_layer_gives_its_one_object() {
        let object = object();
        assert_eq!(read_layer(object.clone(), Packing::Plain), Ok(object.clone()));
        let files: [(&str, &[u8]); 2] = [("README", b"text"), ("opt/flows.o", &object)];
        assert_eq!(read_layer(tar(&files), Packing::Tar), Ok(object.clone()));
        assert_eq!(read_layer(gzip(&tar(&files)), Packing::TarGzip), Ok(object.clone()));
        let said = |bytes, packing| read_layer(bytes, packing).unwrap_err().to_string();
        let none: [(&str, &[u8]); 1] = [("README", b"text")];
        assert_eq!(said(gzip(&tar(&none)), Packing::TarGzip), "its layer holds no .o file instead of one .o file");
        let two: [(&str, &[u8]); 2] = [("a.o", &object), ("b.o", &object)];
        assert_eq!(said(tar(&two), Packing::Tar), "its layer holds 2 .o files (a.o, b.o) instead of one .o file");
        let whole = gzip(&tar(&files));
        assert!(said(whole[..whole.len() / 2].to_vec(), Packing::TarGzip).starts_with("its layer cannot be unpacked"));
        assert!(said(b"text".to_vec(), Packing::Plain).contains("4 bytes that are no ELF file"));
        let mut x86 = object;
        x86[18] = 62;
        assert!(said(x86, Packing::Plain).contains("an ELF file for machine 62, not for eBPF (247)"));
    }
}
