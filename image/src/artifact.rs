//! Skep's own artifact: a manifest, a config and one layer, which is the object itself.
//!
//! Guarantee: the same object and annotations give the same bytes, so the same digest, on every machine.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::digest::Digest;

/// `artifactType` of the manifest.
pub const ARTIFACT_TYPE: &str = "application/vnd.skep.bytecode.v1";
/// Media type of the layer: an ELF file, not packed.
pub const LAYER_TYPE: &str = "application/vnd.skep.bytecode.v1.elf";
/// Media type of the config: an empty JSON object.
pub const CONFIG_TYPE: &str = "application/vnd.skep.config.v1+json";
/// Media type of the manifest.
pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

const CONFIG: &[u8] = b"{}";

/// An artifact, ready to be pushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    pub(crate) manifest: Vec<u8>,
    pub(crate) config: Vec<u8>,
    pub(crate) object: Vec<u8>,
}

impl Image {
    /// The manifest's digest: the name of the image.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    /// The manifest, as JSON.
    pub fn manifest(&self) -> &[u8] {
        &self.manifest
    }

    /// The object.
    pub fn object(&self) -> &[u8] {
        &self.object
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest<'a> {
    schema_version: u8,
    media_type: &'a str,
    artifact_type: &'a str,
    config: Descriptor<'a>,
    layers: [Descriptor<'a>; 1],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor<'a> {
    media_type: &'a str,
    digest: Digest,
    size: usize,
}

/// The artifact for `object`, an ELF file, with the manifest's annotations (`org.opencontainers.image.source`, ...).
pub fn build(object: &[u8], annotations: &BTreeMap<String, String>) -> Image {
    let descriptor = |media_type, bytes: &[u8]| Descriptor { media_type, digest: Digest::of(bytes), size: bytes.len() };
    let manifest = Manifest {
        schema_version: 2,
        media_type: MANIFEST_TYPE,
        artifact_type: ARTIFACT_TYPE,
        config: descriptor(CONFIG_TYPE, CONFIG),
        layers: [descriptor(LAYER_TYPE, object)],
        annotations,
    };
    // Strings and numbers only: this cannot fail.
    let manifest = serde_json::to_vec(&manifest).unwrap_or_default();
    Image { manifest, config: CONFIG.into(), object: object.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_always_the_same() {
        let image = build(b"object", &BTreeMap::from([("b".into(), "2".into()), ("a".into(), "1".into())]));
        let text = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","artifactType":"application/vnd.skep.bytecode.v1","config":{"mediaType":"application/vnd.skep.config.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[{"mediaType":"application/vnd.skep.bytecode.v1.elf","digest":"sha256:2958d416d08aa5a472d7b509036cb7eafd542add84527e66a145ea64cb4cdc75","size":6}],"annotations":{"a":"1","b":"2"}}"#;
        assert_eq!(String::from_utf8(image.manifest().to_vec()).unwrap(), text);
        assert_eq!(image.digest(), Digest::of(text.as_bytes()));
    }
}
