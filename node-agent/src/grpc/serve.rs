//! The listeners: TCP with TLS, and the node's unix socket.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use skep_proto::v1::agent_server::AgentServer;
use skep_proto::v1::inspector_server::InspectorServer;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;

use super::admit;
use super::agent::AgentService;
use super::auth::Authorizer;
use super::inspector::InspectorService;
use super::places::{Place, Placed, Places};
use super::tls::Acceptors;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(2);
/// TCP connections at once, from all sources and from one: one that says nothing is gone after seconds.
const CONNECTIONS: usize = 1024;
const PER_SOURCE: usize = 256;
/// Connections that wait to be served.
const QUEUE: usize = 64;
/// Calls at once on one connection.
const STREAMS: u32 = 100;
const PING: Duration = Duration::from_secs(20);
/// Largest message taken: a spec is at most 1.5 MiB (etcd), pods come in one message.
const MAX_MESSAGE: usize = 16 << 20;
/// Largest request to the Inspector: entries to write.
const MAX_QUESTION: usize = 4 << 20;

/// Both services, shared by both listeners.
#[derive(Clone, Debug)]
pub struct Services {
    pub agent: Arc<AgentService>,
    pub inspector: Arc<InspectorService>,
}

async fn routes(services: &Services) -> Result<Routes, tonic_reflection::server::Error> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<AgentServer<AgentService>>().await;
    health.set_serving::<InspectorServer<InspectorService>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(skep_proto::DESCRIPTOR)
        .build_v1()?;
    let agent = AgentServer::from_arc(services.agent.clone()).max_decoding_message_size(MAX_MESSAGE);
    let inspector = InspectorServer::from_arc(services.inspector.clone()).max_decoding_message_size(MAX_QUESTION);
    Ok(Routes::new(health_service).add_service(reflection).add_service(agent).add_service(inspector))
}

fn server() -> Server {
    Server::builder().http2_keepalive_interval(Some(PING)).max_concurrent_streams(STREAMS)
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
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another agent answers there; give each a --socket of its own",
        ));
    }
    // What an earlier run left.
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    let router = server().add_routes(routes(&services).await.map_err(other)?);
    let served = router.serve_with_incoming_shutdown(UnixListenerStream::new(listener), cancel.cancelled_owned()).await;
    let _ = std::fs::remove_file(path);
    served.map_err(other)
}

/// Serves over TLS those who are admitted.
pub async fn tls(
    address: SocketAddr,
    acceptors: Acceptors,
    services: Services,
    cancel: CancellationToken,
) -> io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    let authorizer = services.inspector.authorizer.clone();
    admitted(listener, acceptors, routes(&services).await.map_err(other)?, authorizer, cancel).await
}

async fn admitted(
    listener: TcpListener,
    acceptors: Acceptors,
    routes: Routes,
    authorizer: Arc<Authorizer>,
    cancel: CancellationToken,
) -> io::Result<()> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let router = server().layer(admit::layer(authorizer)).add_routes(routes);
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

type Incoming = mpsc::Sender<io::Result<Placed>>;

/// Accepts and shakes hands, many at once: a caller that does not speak keeps nobody else waiting.
async fn accept(listener: TcpListener, mut acceptors: Acceptors, sender: Incoming) {
    let places = Places::new(CONNECTIONS, PER_SOURCE);
    let mut handshakes = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, from)) => match (places.take(from.ip()), acceptors.current()) {
                    (Some(place), Ok(config)) => {
                        handshakes.spawn(handshake(stream, place, config, sender.clone()));
                    }
                    (None, _) => tracing::debug!(%from, "too many connections"),
                    (_, Err(error)) => tracing::error!(%error, "TLS configuration"),
                },
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

async fn handshake(stream: TcpStream, place: Place, config: Arc<ServerConfig>, sender: Incoming) {
    let _ = stream.set_nodelay(true);
    match tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(config).accept(stream)).await {
        Ok(Ok(stream)) => drop(sender.send(Ok(Placed::new(stream, place))).await),
        Ok(Err(error)) => tracing::debug!(%error, "TLS handshake"),
        Err(_) => tracing::debug!("TLS handshake took too long"),
    }
}

#[cfg(test)]
mod tests;
