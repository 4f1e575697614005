//! The `kubectl-skep` binary; everything is in the library.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use kubectl_skep::args::Cli;
use kubectl_skep::error::Error;
use kubectl_skep::output;

#[tokio::main]
async fn main() -> ExitCode {
    // Fails only if a provider is installed already, and nothing ran before this.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = Cli::parse();
    match kubectl_skep::run(&cli).await {
        // There is nobody to whom more could be said.
        Ok(()) | Err(Error::ReaderGone) => ExitCode::SUCCESS,
        Err(error) => {
            output::failure(&error);
            ExitCode::from(error.exit_code())
        }
    }
}
