//! Puts the parts together, and takes them down again.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use skep_image::{Cache, Registry, RegistryConfig};
use skep_kernel::{Host, Kernel, printk, probe};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::actor::Shared;
use crate::checks::{self, Checks};
use crate::config::{Places, Run};
use crate::desired::Store;
use crate::epoch::Epoch;
use crate::features::Features;
use crate::grpc::agent::AgentService;
use crate::grpc::auth::Authorizer;
use crate::grpc::inspector::{InspectorService, LISTED_AT_ONCE, Line, PRINTING_AT_ONCE, READ_AT_ONCE};
use crate::grpc::serve::{self, Services};
use crate::grpc::tls::{Acceptors, Identity};
use crate::images::{Images, blocking};
use crate::neighbours::Neighbours;
use crate::nodeview::Nudged;
use crate::reports::Reports;
use crate::supervisor::Supervisor;
use crate::view::NodeView;
use crate::watches::Watches;
use crate::{discover, health, manifests, nodeview};

/// How long the parts may take to end.
const STOP: Duration = Duration::from_secs(10);

/// Key and certificate, in the state directory.
const IDENTITY: &str = "identity.pem";

/// Runs the agent until SIGTERM or SIGINT. Programs stay attached.
pub async fn run(config: Run) -> anyhow::Result<()> {
    // Before anything is looked at, or taken for left over.
    let store = Store::open(&config.places.state_dir)?;
    let (host, _lock) = open_host(&config.places)?;
    let host = Arc::new(host);
    printk::remove_left();
    let registry = Registry::new(&registry_config(&config)?)?;
    let cache = Cache::open(&config.places.state_dir.join("images"))?;
    let (view_sender, view) = watch::channel(Arc::new(NodeView::default()));
    // Without Kubernetes there are no pods, and that is known.
    let (pods, pods_seen) = watch::channel(config.manifests.as_ref().map(|_| Arc::default()));
    let (check, checks) = watch::channel(0);
    let (resync, resyncs) = watch::channel(0);
    let places = Arc::new(Semaphore::new(config.parallel.max(1)));
    let bpffs = config.places.bpffs.clone();
    let features = blocking(move || Features::probe(&bpffs)).await?;
    let shared = Arc::new(Shared {
        kernel: host.clone(),
        images: Images::new(registry, cache, config.image_cache_mib.saturating_mul(1 << 20), places.clone()),
        reports: Reports::new(uuid::Uuid::new_v4().to_string()),
        store,
        neighbours: Neighbours::default(),
        view,
        places,
        features,
        watches: Watches::open(&config.places.bpffs),
        checks: Checks::default(),
        resyncs: resyncs.clone(),
    });
    let kept = shared.clone();
    let cancel = CancellationToken::new();
    let mut parts = JoinSet::new();
    let stop = cancel.clone();
    let first_look = view_sender.subscribe();
    let host_netns = config.host_netns.clone().unwrap_or_else(discover::host_netns);
    let nudged = Nudged { check, resync: resyncs };
    parts.spawn(async move {
        nodeview::run(host_netns, pods_seen, view_sender, nudged, stop).await;
        Ok(())
    });
    wait_for_view(first_look).await;

    let (watching, stop) = (shared.clone(), cancel.clone());
    parts.spawn(async move {
        watching.watches.run(stop).await;
        Ok(())
    });
    let (checking, stop) = (shared.clone(), cancel.clone());
    parts.spawn(async move {
        checks::run(checking, checks, stop).await;
        Ok(())
    });
    let (supervisor, handle) = Supervisor::new(shared.clone())?;
    let stop = cancel.clone();
    parts.spawn(async move {
        supervisor.run(stop).await;
        Ok(())
    });
    let identity = match &config.node_name {
        Some(node) => {
            let file = config.places.state_dir.join(IDENTITY);
            Some(Arc::new(Identity::open(node, &file, SystemTime::now())?))
        }
        None => None,
    };
    let client = match &config.node_name {
        Some(_) => Some(kube::Client::try_default().await.context("the API server's address and the agent's token")?),
        None => None,
    };
    let services = Services {
        agent: Arc::new(AgentService {
            node_name: config.node_name.clone().unwrap_or_else(|| "standalone".into()),
            identity: identity.clone(),
            token_file: config.token_file.clone(),
            shared: shared.clone(),
            supervisor: handle.clone(),
            pods,
            epoch: Mutex::new(Epoch::open(&config.places.state_dir)),
            cancel: cancel.clone(),
        }),
        inspector: Arc::new(InspectorService {
            shared: shared.clone(),
            host,
            authorizer: Arc::new(Authorizer::new(client)),
            events: Arc::default(),
            line: Arc::new(Line::new(READ_AT_ONCE)),
            trials: Arc::new(Semaphore::new(1)),
            counting: Arc::default(),
            writing: Arc::default(),
            types: Arc::default(),
            listing: Arc::new(Semaphore::new(LISTED_AT_ONCE)),
            printing: Arc::new(Semaphore::new(PRINTING_AT_ONCE)),
        }),
    };
    let (socket, on_socket, stop) = (config.places.socket.clone(), services.clone(), cancel.clone());
    parts.spawn(async move {
        serve::unix(&socket, on_socket, stop).await.with_context(|| format!("serving on {}", socket.display()))
    });
    if let Some(identity) = identity {
        let acceptors = Acceptors::new(identity, config.ca_bundle.clone());
        let (listen, stop) = (config.listen, cancel.clone());
        parts.spawn(async move {
            serve::tls(listen, acceptors, services, stop).await.with_context(|| format!("serving on {listen}"))
        });
    }
    if let Some(dir) = config.manifests.clone() {
        let stop = cancel.clone();
        parts.spawn(async move {
            manifests::run(dir, shared, handle, stop).await;
            Ok(())
        });
    }
    let ready = Arc::new(AtomicBool::new(false));
    if config.node_name.is_some() {
        let (address, ready, stop) = (config.health, ready.clone(), cancel.clone());
        parts.spawn(async move {
            health::serve(address, ready, stop).await.with_context(|| format!("serving health on {address}"))
        });
    }
    ready.store(true, Ordering::Relaxed);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), kernel = probe::kernel_release(), "the agent runs");
    wait(parts, resync, cancel).await?;
    leave_nothing(&config.places, &kept)
}

/// The kernel with the pins, which are locked: an agent with another state directory would take them for nobody's.
fn open_host(places: &Places) -> anyhow::Result<(Host, File)> {
    let lock = || -> anyhow::Result<File> {
        let dir = File::open(&places.bpffs)?;
        match dir.try_lock() {
            Ok(()) => Ok(dir),
            Err(std::fs::TryLockError::WouldBlock) => anyhow::bail!(
                "the pins in {} are another agent's, which runs; give each agent a --bpffs and a --state-dir of its own",
                places.bpffs.display()
            ),
            Err(std::fs::TryLockError::Error(error)) => Err(error).context(places.bpffs.display().to_string()),
        }
    };
    let locked = places.bpffs.exists().then(lock).transpose()?;
    let host = Host::open(&places.bpffs, &places.state_dir)?;
    Ok((host, locked.map_or_else(lock, Ok)?))
}

/// Programs should not be told that the node has no interfaces only because nobody has looked yet.
async fn wait_for_view(mut view: watch::Receiver<Arc<NodeView>>) {
    if tokio::time::timeout(STOP, view.changed()).await.is_err() {
        tracing::warn!("the node could not be looked at yet");
    }
}

/// Until a signal, or until a part ends by itself, which is an error. SIGHUP has everything looked at again.
async fn wait(
    mut parts: JoinSet<anyhow::Result<()>>,
    resync: watch::Sender<u64>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let result = loop {
        tokio::select! {
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            _ = hangup.recv() => {
                tracing::info!("everything is looked at again");
                resync.send_modify(|count| *count += 1);
            }
            ended = parts.join_next() => break match ended {
                Some(Ok(Err(error))) => Err(error),
                _ => Err(anyhow::anyhow!("a part of the agent ended unexpectedly")),
            },
        }
    };
    tracing::info!("stopping; programs stay attached");
    cancel.cancel();
    let all = async { while parts.join_next().await.is_some() {} };
    if tokio::time::timeout(STOP, all).await.is_err() {
        tracing::warn!("some work did not end in time; the next start finishes it");
    }
    result
}

fn registry_config(config: &Run) -> anyhow::Result<RegistryConfig> {
    let mut registry = RegistryConfig { plain_http: config.plain_http_registry.clone(), ..RegistryConfig::default() };
    for file in &config.registry_ca {
        registry.ca_pem.push(std::fs::read(file).with_context(|| format!("--registry-ca {}", file.display()))?);
    }
    Ok(registry)
}

/// Takes everything off the host: `skep-agent purge`.
pub fn purge(places: &Places) -> anyhow::Result<()> {
    // The lock tells whether an agent runs: it would bring everything back.
    let store = Store::open(&places.state_dir)?;
    let (host, _lock) = open_host(places)?;
    let (mut count, mut failures) = (0, Vec::new());
    for uid in host.programs()? {
        match host.remove_program(&uid) {
            Ok(()) => {
                store.remove(&uid)?;
                count += 1;
            }
            // The others go all the same.
            Err(error) => failures.push(format!("{uid}: {error}")),
        }
    }
    if !failures.is_empty() {
        anyhow::bail!("removed {count} programs, but not all: {}", failures.join("; "));
    }
    let (desired, _) = store.load()?;
    for program in desired {
        store.remove(&program.uid)?;
    }
    drop(store);
    printk::remove_left();
    forget(places)?;
    remove_socket(&places.socket);
    println!(
        "removed {count} programs; {} and {} hold nothing of Skep any more",
        places.bpffs.display(),
        places.state_dir.display()
    );
    Ok(())
}

/// Removes what is left when nothing is desired: caches, the epoch, the lock, empty directories.
fn forget(places: &Places) -> anyhow::Result<()> {
    // Not empty means that somebody else keeps something there.
    let _ = std::fs::remove_dir(&places.bpffs);
    for name in ["images", "desired", "tc"] {
        let path = places.state_dir.join(name);
        match std::fs::remove_dir_all(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).with_context(|| path.display().to_string());
            }
            _ => {}
        }
    }
    for name in ["lock", "epoch", IDENTITY] {
        let _ = std::fs::remove_file(places.state_dir.join(name));
    }
    Ok(())
}

/// The socket of an agent that was killed; one at which somebody answers is another agent's.
fn remove_socket(socket: &Path) {
    if std::os::unix::net::UnixStream::connect(socket).is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
    {
        let _ = std::fs::remove_file(socket);
    }
}

/// An agent that is told to stop while nothing is desired and nothing is pinned leaves nothing: that is how an uninstall
/// ends on a node.
fn leave_nothing(places: &Places, shared: &Shared) -> anyhow::Result<()> {
    let (desired, broken) = shared.store.load()?;
    if desired.is_empty() && broken.is_empty() && shared.kernel.programs()?.is_empty() {
        forget(places)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_socket_at_which_nobody_answers_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (dead, alive) = (dir.path().join("dead"), dir.path().join("alive"));
        drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
        let _listener = std::os::unix::net::UnixListener::bind(&alive).unwrap();
        for socket in [&dead, &alive, &dir.path().join("none")] {
            remove_socket(socket);
        }
        assert!(!dead.exists() && alive.exists());
    }
}
