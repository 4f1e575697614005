//! /livez and /readyz in plain HTTP on loopback: kubelet's gRPC probe cannot do TLS.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio_util::sync::CancellationToken;

/// Set when the agent serves.
pub type Ready = Arc<AtomicBool>;

/// Serves until cancelled.
pub async fn serve(address: SocketAddr, ready: Ready, cancel: CancellationToken) -> io::Result<()> {
    let app = Router::new().route("/livez", get(|| async { "ok\n" })).route("/readyz", get(readyz)).with_state(ready);
    let listener = tokio::net::TcpListener::bind(address).await?;
    axum::serve(listener, app).with_graceful_shutdown(cancel.cancelled_owned()).await
}

async fn readyz(State(ready): State<Ready>) -> (StatusCode, &'static str) {
    if ready.load(Ordering::Relaxed) {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "starting\n")
    }
}
