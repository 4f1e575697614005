//! The kernel crate against a real kernel: needs root. Objects come from clang at run time, or, where there is no
//! compiler (a test VM), from the directory that SKEP_TEST_OBJECTS names.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod suite;
