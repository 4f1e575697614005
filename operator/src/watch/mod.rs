//! The watches of the API server, as events for who decides. Each lives as long as the leadership.

pub mod agents;
pub mod nodes;
pub mod pods;
pub mod programs;

use std::fmt::Debug;

use futures::{Stream, StreamExt};
use kube::api::{Api, Resource};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Config, Event, watcher};
use serde::de::DeserializeOwned;

/// The events of a watch. Errors are logged, and the watch goes on after a wait.
fn follow<K>(api: Api<K>, config: Config, what: &'static str) -> impl Stream<Item = Event<K>> + Send
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    watcher(api, config).default_backoff().filter_map(move |event| async move {
        event.map_err(|error| tracing::warn!(%error, "watching {what}; trying again")).ok()
    })
}
