//! Every wait has an end.

use std::future::Future;
use std::time::Duration;

use crate::error::Error;

/// Waits for at most `limit`.
pub async fn within<T>(
    limit: Duration,
    what: &'static str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::time::timeout(limit, work).await.map_err(|_| Error::Timeout { what })?
}
