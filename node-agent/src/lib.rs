//! Skep's agent: one per node. Desired state in, kernel state out, reports back.
//!
//! **Guarantees.** Everything is derived from the desired files and from what the kernel shows: a crash at any point is
//! healed by running again. Nothing that should last hangs on this process.
#![forbid(unsafe_code)]

pub mod actor;
mod apart;
pub mod backoff;
pub mod binaries;
pub mod checks;
pub mod config;
pub mod desired;
pub mod discover;
pub mod drift;
pub mod epoch;
pub mod error;
pub mod events;
pub mod execute;
#[cfg(test)]
mod fake;
pub mod features;
pub mod grpc;
pub mod health;
pub mod images;
pub mod manifests;
pub mod neighbours;
pub mod nodeview;
pub mod pass;
pub mod plan;
#[cfg(test)]
mod plan_property;
pub mod prepare;
pub mod removal;
pub mod report;
pub mod reports;
pub mod runtime;
pub mod sections;
pub mod spec;
pub mod supervisor;
pub mod targets;
pub mod view;
pub mod watches;
