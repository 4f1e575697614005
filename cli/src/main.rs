//! The `kubectl-skep` binary; everything is in the library.
#![forbid(unsafe_code)]

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use kubectl_skep::args::Cli;

#[tokio::main]
async fn main() -> ExitCode {
    // Fails only if a provider is installed already, and nothing ran before this.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = Cli::parse();
    match kubectl_skep::run(&cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody to tell that telling failed.
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
