//! What can go wrong with an image.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::digest::Digest;

/// What went wrong with an image. Each text names the image, what happened, and what to do.
#[derive(thiserror::Error, Debug)]
pub enum ImageError {
    /// The registry answers and does not have it.
    #[error("image {reference}: the registry does not have it ({detail}): check repository and tag, or push the image")]
    NotFound { reference: String, detail: String },
    /// The node is not to pull it.
    #[error(
        "image {reference}: pullPolicy is Never, and this node does not have it: set spec.image.pullPolicy to IfNotPresent, or run a program of this image here once that may pull it"
    )]
    NotCached { reference: String },
    /// The registry answers and does not let us have it.
    #[error(
        "image {reference}: the registry refuses access ({detail}): name a Secret with its credentials in spec.image.pullSecrets, or check the one that is named"
    )]
    Unauthorized { reference: String, detail: String },
    /// A pull secret that cannot be read.
    #[error(
        "the credentials for registry {registry} cannot be read: {detail}: make the Secret with kubectl create secret docker-registry"
    )]
    BadCredentials { registry: String, detail: String },
    /// The image is there, and is not one that holds an eBPF object.
    #[error("image {reference}: {fault}")]
    Invalid { reference: String, fault: Fault },
    /// The registry does not answer, or answers that it cannot now.
    #[error(
        "image {reference}: its registry cannot be reached: {detail}: check its name, the network and, for a registry with a private CA, the CA bundle (push: --ca, chart: registries.ca)"
    )]
    Unreachable { reference: String, detail: String },
    /// The registry did not finish in time.
    #[error("image {reference}: its registry did not answer within {} s: check the network, and whether the registry is overloaded", after.as_secs_f32())]
    Timeout { reference: String, after: Duration },
    /// The cache directory failed.
    #[error("image cache {}: {source}: check that the directory can be written and has space", path.display())]
    Cache { path: PathBuf, source: io::Error },
    /// The registry client cannot be made.
    #[error("the registry client cannot be made: {detail}: check the CA bundle, which is PEM")]
    Client { detail: String },
}

impl ImageError {
    /// The word for it in conditions, Events and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotFound { .. } | Self::NotCached { .. } => "ImageNotFound",
            Self::Unauthorized { .. } | Self::BadCredentials { .. } => "ImageUnauthorized",
            Self::Invalid { .. } => "ImageInvalid",
            Self::Unreachable { .. } | Self::Timeout { .. } => "RegistryUnreachable",
            Self::Cache { .. } | Self::Client { .. } => "Internal",
        }
    }
}

/// Why an image is not one that holds an eBPF object.
#[derive(thiserror::Error, Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The reference itself.
    #[error("not an image reference ({0}): write registry/repository:tag")]
    Reference(String),
    /// Neither manifest nor index.
    #[error("not an OCI image: {0}: push an object with kubectl skep push")]
    NotAnImage(String),
    /// An index without this architecture.
    #[error("has {}, and none for linux/{wanted}: push one for this architecture", images(found))]
    NoPlatform { wanted: &'static str, found: Vec<String> },
    /// Layers of which none can hold an object, or too many.
    #[error("holds no eBPF object: its layers are {}: one is expected, of type application/vnd.skep.bytecode.v1.elf, application/vnd.gadget.ebpf.program.v1+binary or tar+gzip", list(.0))]
    Layers(Vec<String>),
    /// A tar layer without an object, or with several.
    #[error("its layer holds {} instead of one .o file", if .0.is_empty() { "no .o file".into() } else { format!("{} .o files ({})", .0.len(), .0.join(", ")) })]
    Objects(Vec<String>),
    /// A layer that cannot be unpacked.
    #[error("its layer cannot be unpacked: {0}")]
    Unpack(String),
    /// Not an ELF file for eBPF.
    #[error("its layer is no eBPF object: {0}: compile with clang -target bpf or bpf-linker")]
    NotBpf(String),
    /// Larger than the bound.
    #[error("its {what} has {size} bytes, more than the {limit} that are allowed")]
    TooLarge { what: &'static str, size: u64, limit: u64 },
    /// The registry gave other bytes than the ones named.
    #[error(
        "the registry gave bytes of digest {found} for {wanted}: the image is damaged in the registry or on the way: push it again"
    )]
    Digest { wanted: String, found: String },
}

fn images(platforms: &[String]) -> String {
    if platforms.is_empty() { "no image".into() } else { format!("images for {}", platforms.join(", ")) }
}

fn list(layers: &[String]) -> String {
    if layers.is_empty() { "none".into() } else { layers.join(", ") }
}

impl Fault {
    /// Nothing, if `bytes` have the digest.
    pub(crate) fn unless_named(bytes: &[u8], wanted: &Digest) -> Result<(), Fault> {
        let found = Digest::of(bytes);
        if found == *wanted {
            return Ok(());
        }
        Err(Fault::Digest { wanted: wanted.to_string(), found: found.to_string() })
    }

    /// The error for the image that has this fault.
    pub(crate) fn of(self, reference: &str) -> ImageError {
        ImageError::Invalid { reference: reference.into(), fault: self }
    }
}
