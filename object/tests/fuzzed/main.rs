//! What the fuzzer made up (`cargo xtask fuzz`), once more: no panic, and no more time and memory than it is worth.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod corpus;
mod large;
mod seeds;

#[path = "../../fuzz/src/btf.rs"]
mod btf;
#[path = "../../fuzz/src/parse.rs"]
mod parse;
#[path = "../../fuzz/src/parts.rs"]
mod parts;
#[path = "../../fuzz/src/relocate.rs"]
mod relocate;
