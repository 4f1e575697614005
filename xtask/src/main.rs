#![forbid(unsafe_code)]
//! `cargo xtask`: everything that is done to the repository and is not `cargo build`.

mod codegen;
mod repo;
mod step;

use clap::Parser;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Build, set up, generate, test and measure Skep", max_term_width = 120)]
enum Xtask {
    /// Write the generated files: CRDs, gRPC code
    Codegen(codegen::Codegen),
}

fn main() -> anyhow::Result<()> {
    match Xtask::parse() {
        Xtask::Codegen(command) => command.run(),
    }
}
