//! /livez, /readyz and /metrics, in plain HTTP.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// Serves until cancelled. An operator that waits for the Lease is ready to take over.
pub async fn serve(address: SocketAddr, metrics: Arc<Metrics>, cancel: CancellationToken) -> io::Result<()> {
    let app = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(|| async { "ok\n" }))
        .route("/metrics", get(|State(metrics): State<Arc<Metrics>>| async move { metrics.text() }))
        .with_state(metrics);
    let listener = match tokio::net::TcpListener::bind(address).await {
        Err(_) if address.ip() == Ipv6Addr::UNSPECIFIED => {
            tokio::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await?
        }
        bound => bound?,
    };
    axum::serve(listener, app).with_graceful_shutdown(cancel.cancelled_owned()).await
}
