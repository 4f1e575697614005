//! The listeners: TCP with TLS, and the node's unix socket.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use skep_proto::v1::agent_server::AgentServer;
use skep_proto::v1::inspector_server::InspectorServer;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use super::agent::AgentService;
use super::inspector::InspectorService;
use super::tls::Acceptors;

const HANDSHAKE: Duration = Duration::from_secs(5);
/// Connections that may be in their handshake at once.
const HANDSHAKES: usize = 64;
const PING: Duration = Duration::from_secs(20);
/// Largest message taken: a spec is at most 1.5 MiB (etcd), pods come in one message.
const MAX_MESSAGE: usize = 16 << 20;

/// Both services, shared by both listeners.
#[derive(Clone, Debug)]
pub struct Services {
    pub agent: Arc<AgentService>,
    pub inspector: Arc<InspectorService>,
}

type Router = tonic::transport::server::Router;

async fn router(services: &Services) -> Result<Router, tonic_reflection::server::Error> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<AgentServer<AgentService>>().await;
    health.set_serving::<InspectorServer<InspectorService>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(skep_proto::DESCRIPTOR)
        .build_v1()?;
    Ok(Server::builder()
        .http2_keepalive_interval(Some(PING))
        .add_service(health_service)
        .add_service(reflection)
        .add_service(AgentServer::from_arc(services.agent.clone()).max_decoding_message_size(MAX_MESSAGE))
        .add_service(InspectorServer::from_arc(services.inspector.clone())))
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::other(error)
}

/// Serves on a unix socket that only root can open.
pub async fn unix(path: &Path, services: Services, cancel: CancellationToken) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    // What an earlier run left; that it does not run any more the lock on the state directory has shown.
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    let router = router(&services).await.map_err(other)?;
    let served = router.serve_with_incoming_shutdown(UnixListenerStream::new(listener), cancel.cancelled_owned()).await;
    let _ = std::fs::remove_file(path);
    served.map_err(other)
}

/// Serves over TLS.
pub async fn tls(
    address: SocketAddr,
    acceptors: Acceptors,
    services: Services,
    cancel: CancellationToken,
) -> io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    let (sender, receiver) = mpsc::channel(HANDSHAKES);
    let router = router(&services).await.map_err(other)?;
    let mut tasks = JoinSet::new();
    let stop = cancel.clone();
    tasks.spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = accept(listener, acceptors, sender) => {}
        }
    });
    let served = router.serve_with_incoming_shutdown(ReceiverStream::new(receiver), cancel.cancelled_owned()).await;
    tasks.shutdown().await;
    served.map_err(other)
}

/// Accepts and shakes hands, many at once: a caller that does not speak keeps nobody else waiting.
async fn accept(
    listener: TcpListener,
    mut acceptors: Acceptors,
    sender: mpsc::Sender<io::Result<TlsStream<TcpStream>>>,
) {
    let mut handshakes = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if handshakes.len() < HANDSHAKES => match accepted {
                Ok((stream, _)) => {
                    let config = match acceptors.current() {
                        Ok(config) => config,
                        Err(error) => {
                            tracing::error!(%error, "TLS configuration");
                            continue;
                        }
                    };
                    let sender = sender.clone();
                    handshakes.spawn(async move {
                        let _ = stream.set_nodelay(true);
                        match tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(config).accept(stream)).await {
                            Ok(Ok(stream)) => drop(sender.send(Ok(stream)).await),
                            Ok(Err(error)) => tracing::debug!(%error, "TLS handshake"),
                            Err(_) => tracing::debug!("TLS handshake took too long"),
                        }
                    });
                }
                Err(error) => {
                    // Out of descriptors: others must close first.
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = handshakes.join_next() => {}
        }
    }
}
