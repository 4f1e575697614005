//! Values and their bytes: decoding and encoding by BTF, as docs/decode.md describes both.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod builder;
mod hostile;
mod inverse;
mod print;
mod shapes;
mod write;
