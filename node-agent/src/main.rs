#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::time::Duration;

use clap::Parser;
use skep_node_agent::config::{Cli, Command};
use skep_node_agent::runtime;
use tracing_subscriber::EnvFilter;

/// Threads for work that blocks. Beyond the places for kernel work only short things use them; each thread has a stack
/// and a cache of freed memory.
const BLOCKING: usize = 24;
/// How long one is kept that has nothing to do: longer than the look for drift takes to come again, so that there is
/// always one, also where no process can be made any more.
const KEPT: Duration = Duration::from_secs(90);

fn main() -> anyhow::Result<()> {
    skep_kernel::sys::few_arenas();
    let _ = rustls::crypto::ring::default_provider().install_default();
    match Cli::parse().command {
        Command::Purge(places) => runtime::purge(&places),
        Command::Run(config) => {
            let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
            let colours = std::io::stderr().is_terminal();
            let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr);
            if config.log_json {
                log.json().init()
            } else {
                log.init()
            }
            // Kernel work blocks on threads of its own; two workers serve everything else.
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .max_blocking_threads(BLOCKING)
                .thread_keep_alive(KEPT)
                .enable_all()
                .build()?;
            runtime.block_on(runtime::run(*config))
        }
    }
}
