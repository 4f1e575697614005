//! The commands.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use skep_image::RegistryConfig;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::config::{Cli, Command, LogFormat, Places, Run};
use crate::lead::{Leader, lead};
use crate::leader::{Candidate, Elector};
use crate::metrics::Metrics;
use crate::{crds, health, uninstall};

/// A leader that fails begins again after this long.
const AGAIN: Duration = Duration::from_secs(2);
const RELEASE: Duration = Duration::from_secs(3);

/// Does what the command line says.
pub fn main(cli: Cli) -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let terminal = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(terminal);
    match cli.log_format {
        LogFormat::Json => log.json().init(),
        LogFormat::Text => log.init(),
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = kube::Client::try_default().await.context(
            "no cluster: run it in a pod, or set KUBECONFIG to the file that kubectl uses and check the current context",
        )?;
        match cli.command {
            Command::Run(config) => run(client, *config).await,
            Command::Uninstall(config) => uninstall::run(client, *config).await,
            Command::ApplyCrds => crds::apply(&client).await,
        }
    })
}

/// Takes part in the election, and leads while elected, until SIGTERM or SIGINT.
async fn run(client: kube::Client, config: Run) -> anyhow::Result<()> {
    let registry = registry(&config).await?;
    if config.apply_crds {
        crds::apply(&client).await?;
    }
    let (cancel, metrics) = (CancellationToken::new(), Arc::new(Metrics::default()));
    let mut health = tokio::spawn(health::serve(config.health_addr, metrics.clone(), cancel.clone()));
    let candidate = candidate(&config.places, false);
    let mut elector = Elector::new(&client, &config.places.namespace, candidate);
    let leader = Leader { client, places: config.places, registry, metrics };
    let (mut term, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let result = tokio::select! {
        () = elect(&mut elector, &leader) => Ok(()),
        served = &mut health => served?.with_context(|| format!("serving on {}", config.health_addr)),
        _ = term.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    // All of the leader's tasks are gone by now: another may lead.
    match tokio::time::timeout(RELEASE, elector.release(None)).await {
        Ok(Ok(())) => tracing::info!("the Lease is released"),
        Ok(Err(error)) => tracing::warn!(%error, "the Lease could not be released; it runs out"),
        Err(_) => tracing::warn!("the Lease could not be released in time; it runs out"),
    }
    cancel.cancel();
    result
}

/// For ever: acquire, lead while the Lease is held.
async fn elect(elector: &mut Elector, leader: &Leader) {
    loop {
        let epoch = elector.acquire().await;
        leader.metrics.leads(true);
        tokio::select! {
            () = elector.hold() => {}
            () = begin_again(leader, epoch) => {}
        }
        leader.metrics.leads(false);
    }
}

async fn begin_again(leader: &Leader, epoch: u64) {
    loop {
        match lead(leader, epoch).await {
            Ok(never) => match never {},
            Err(error) => tracing::error!(%error, "cannot lead; trying again"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// This process as a candidate: its name and something that no other has.
pub fn candidate(places: &Places, by_force: bool) -> Candidate {
    let identity = format!("{}_{:016x}", places.pod_name, fastrand::u64(..));
    Candidate { identity, lease: places.lease.clone(), by_force }
}

async fn registry(config: &Run) -> anyhow::Result<RegistryConfig> {
    let mut ca_pem = vec![];
    for path in &config.registry_ca {
        let pem = tokio::fs::read(path).await.with_context(|| format!("--registry-ca {}", path.display()))?;
        ca_pem.push(pem);
    }
    let config = RegistryConfig { ca_pem, plain_http: config.plain_http_registry.clone(), ..RegistryConfig::default() };
    skep_image::Registry::new(&config).context("--registry-ca")?;
    Ok(config)
}
