#![forbid(unsafe_code)]
pub mod assign;
pub mod certs;
pub mod config;
pub mod fleet;
pub mod image;
pub mod index;
pub mod leader;
pub mod nodestatus;
pub mod rollup;
#[cfg(test)]
mod testing;
pub mod token;
/// Field manager of everything that the operator writes.
pub const FIELD_MANAGER: &str = "skep-operator";
