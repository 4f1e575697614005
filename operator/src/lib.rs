#![forbid(unsafe_code)]
//! Skep's operator: EbpfPrograms and the cluster's nodes in, orders to agents and statuses out.
//!
//! Guarantees: only the holder of the Lease dials agents and writes; everything that a node is told or a status says
//! follows from what the API server and the agents showed, whatever happened before; one program or node that fails
//! delays no other.
//!
//! The way of the data: [`watch`] and [`fleet`] tell the [`index`] what happened; the index decides without I/O, by the
//! pure functions of [`assign`], [`rollup`] and [`nodestatus`]; orders go to the fleet's board, and chores to [`mod@write`].

pub mod assign;
pub mod certs;
pub mod config;
pub mod crds;
pub mod fleet;
pub mod health;
pub mod image;
pub mod index;
pub mod lead;
pub mod leader;
pub mod metrics;
pub mod nodestatus;
pub mod rollup;
pub mod runtime;
#[cfg(test)]
mod testing;
pub mod token;
pub mod uninstall;
pub mod watch;
pub mod write;

/// Field manager of everything that the operator writes.
pub const FIELD_MANAGER: &str = "skep-operator";
