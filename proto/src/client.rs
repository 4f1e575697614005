//! Reaching an agent by its unix socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Error};

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(5);

/// Connects to the agent of this node; only root may.
pub async fn unix(socket: &Path) -> Result<Channel, Error> {
    let path: PathBuf = socket.to_owned();
    // The address is for HTTP's sake; the connector goes to the socket.
    let endpoint = Endpoint::from_static("http://localhost").connect_timeout(CONNECT);
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    endpoint.connect_with_connector(connector).await
}
