//! The agent's gRPC servers: over TLS for the operator, people and tools; over a unix socket for the node's root.

pub mod admit;
pub mod agent;
pub mod auth;
pub mod caller;
pub mod frames;
pub mod inspector;
pub mod places;
pub mod serve;
pub mod tls;

use skep_crds::Reason;
use tonic::{Code, Status};

/// A status whose details carry the reason, as `reason: message`.
pub fn refuse(code: Code, reason: Reason, message: impl std::fmt::Display) -> Status {
    Status::new(code, format!("{reason}: {message}"))
}
