//! Trust between the operator and its agents.
//!
//! Guarantees: the authority's key is in one Secret and in the memory of the leader; it is never replaced while that
//! Secret is there; a node's certificate says what the operator knows of the node, never what a request asks for.
//!
//! Caveat: the authority is valid for ten years and not rotated yet.

pub mod authority;
pub mod store;

pub use authority::{Authority, CertError};
