//! What is done with input that somebody made to hurt. Each target takes any bytes, and must come back: no panic, no more
//! than seconds, no more memory than the input is worth.
//!
//! The fuzzer runs them on what it makes up, the unit tests (`object/tests/fuzzed`) on what it once found.
#![forbid(unsafe_code)]

pub mod btf;
pub mod parse;
pub mod parts;
pub mod relocate;

/// Lets panics pass that the relocation library begins: where they can happen they are caught, and the object is refused.
/// One that nothing catches still ends the fuzzer, and so does any other.
pub fn expect_panics_of_the_relocation_library() {
    let end = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !panic.location().is_some_and(|at| at.file().contains("/aya-obj-")) {
            end(panic);
        }
    }));
}
