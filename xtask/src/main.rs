#![forbid(unsafe_code)]
//! `cargo xtask`: everything that is done to the repository and is not `cargo build`.

mod bench;
mod bpf;
mod build;
mod ci;
mod cluster;
mod codegen;
mod demo;
mod e2e;
mod fuzz;
mod image;
mod install;
mod repo;
mod setup;
mod soak;
mod step;
mod test;
mod vm;

use clap::Parser;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Build, set up, generate, test and measure Skep", max_term_width = 120)]
enum Xtask {
    /// Everything that a change has to pass
    Ci,
    /// Run the tests, by level
    Test(test::Test),
    /// Install what is missing for building and testing
    Setup(setup::Setup),
    /// Build what is shipped: static binaries and eBPF objects
    Build(build::Build),
    /// Container images of the operator and the agent
    #[command(subcommand)]
    Image(image::Image),
    /// A real one-node Kubernetes on this machine
    #[command(subcommand)]
    Cluster(cluster::Cluster),
    /// Show a program from a registry count real packets on a real node
    Demo(demo::Demo),
    /// Measure Skep on this machine
    Bench(bench::Bench),
    /// Run an agent that is never left alone, for leaks and residue
    Soak(soak::Soak),
    /// Make up hostile objects and types, looking for panics, hangs and memory
    Fuzz(fuzz::Fuzz),
    /// Write the generated files: CRDs, gRPC code
    Codegen(codegen::Codegen),
}

fn main() -> std::process::ExitCode {
    match run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    match Xtask::parse() {
        Xtask::Ci => ci::run(),
        Xtask::Test(command) => command.run(),
        Xtask::Setup(command) => command.run(),
        Xtask::Build(command) => command.run(),
        Xtask::Image(command) => command.run(),
        Xtask::Cluster(command) => command.run(),
        Xtask::Demo(command) => command.run(),
        Xtask::Bench(command) => command.run(),
        Xtask::Soak(command) => command.run(),
        Xtask::Fuzz(command) => command.run(),
        Xtask::Codegen(command) => command.run(),
    }
}
