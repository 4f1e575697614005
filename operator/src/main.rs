#![forbid(unsafe_code)]

use clap::Parser;
use skep_operator::config::Cli;
use skep_operator::runtime;

fn main() -> anyhow::Result<()> {
    // Before anything speaks TLS. It fails only if there is one already.
    let _already = rustls::crypto::ring::default_provider().install_default();
    runtime::main(Cli::parse())
}
