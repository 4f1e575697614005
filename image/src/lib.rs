#![forbid(unsafe_code)]
//! eBPF bytecode as OCI images: read, build, push, pull, cache.
//!
//! Guarantees: bytes that leave this crate have the digest by which they were asked for, or come from a manifest that
//! has it; nothing larger than [`MAX_OBJECT`] is kept; credentials of one call are never used for another; every error
//! says of which image, what happened and what to do, and its [`ImageError::reason`] is one word of the API's closed list.
//!
//! Assumption: the caller has installed a rustls crypto provider (`rustls::crypto::ring::default_provider()`).

pub mod artifact;
pub mod auth;
pub mod cache;
pub mod digest;
pub mod error;
pub mod format;
pub mod reference;
pub mod registry;

pub use artifact::{Image, build};
pub use auth::{Auth, auth_from_docker_config};
pub use cache::{Cache, CacheEntry};
pub use digest::Digest;
pub use error::{Fault, ImageError};
pub use format::{Bytecode, Format};
pub use registry::{Registry, RegistryConfig, registry_of};

/// The largest eBPF object, and the largest layer, in bytes: 64 MiB.
pub const MAX_OBJECT: u64 = 64 * 1024 * 1024;
/// The largest manifest or index, in bytes: 4 MiB, as the OCI distribution specification asks registries to accept.
pub const MAX_MANIFEST: u64 = 4 * 1024 * 1024;
