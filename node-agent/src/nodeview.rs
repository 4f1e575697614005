//! Keeps the view of the node current: pods as the operator tells of them, links and filters as netlink does, and a look
//! every 30 s for what nobody tells.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use rtnetlink::MulticastGroup;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::discover::{self, PodRecord};
use crate::images::blocking;
use crate::view::NodeView;

/// The node's pods; `None` until the first list came.
pub type Pods = Option<Arc<BTreeMap<String, PodRecord>>>;

const EVERY: Duration = Duration::from_secs(30);
/// All programs are looked at after a change of a link: at most this often.
const CHECKS: Duration = Duration::from_secs(1);
/// Several changes at once (a pod brings an interface, a cgroup and processes) are one look.
const SETTLE: Duration = Duration::from_millis(50);
/// A container's cgroup may come a moment after the news of it.
const LATE: Duration = Duration::from_millis(300);
const LATE_TRIES: u32 = 10;

/// How the node's programs are told of more than the view shows.
#[derive(Debug)]
pub struct Nudged {
    /// Counts the changes of links after which every program is to be compared with the kernel.
    pub check: watch::Sender<u64>,
    /// Counts the orders to look at everything.
    pub resync: watch::Receiver<u64>,
}

/// Runs until cancelled.
pub async fn run(
    host: PathBuf,
    mut pods: watch::Receiver<Pods>,
    view: watch::Sender<Arc<NodeView>>,
    mut nudged: Nudged,
    cancel: CancellationToken,
) {
    let mut links = link_changes(&host);
    let mut late = 0;
    let (mut stirred, mut checked) = (false, Instant::now());
    loop {
        let now = pods.borrow_and_update().clone();
        let looked = {
            let (now, host) = (now.clone(), host.clone());
            blocking(move || discover::view(&host, now.as_deref())).await
        };
        match looked {
            Ok(seen) => {
                late = if incomplete(now.as_deref(), &seen) { late + 1 } else { 0 };
                view.send_if_modified(|current| {
                    let changed = **current != seen;
                    if changed {
                        *current = Arc::new(seen);
                    }
                    changed
                });
            }
            Err(error) => tracing::error!(%error, "looking at the node"),
        }
        // A link that went and came back under the same name and number leaves no other trace here.
        if stirred && checked.elapsed() >= CHECKS {
            (stirred, checked) = (false, Instant::now());
            nudged.check.send_modify(|count| *count += 1);
        }
        let wait = if (1..=LATE_TRIES).contains(&late) { LATE } else { EVERY };
        let wait = if stirred { CHECKS.saturating_sub(checked.elapsed()).min(wait) } else { wait };
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = pods.changed() => if changed.is_err() { return },
            () = links.changed() => stirred = true,
            changed = nudged.resync.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(wait) => continue,
        }
        tokio::time::sleep(SETTLE).await;
        links.drain();
    }
}

/// Some container that was started was not found.
fn incomplete(pods: Option<&BTreeMap<String, PodRecord>>, view: &NodeView) -> bool {
    let told: usize = pods.into_iter().flat_map(BTreeMap::values).map(|p| p.containers.len()).sum();
    let found: usize = view.pods.iter().map(|p| p.containers.len()).sum();
    found < told
}

/// Changes of links, and of tc filters on them, of the node's network namespace.
struct LinkChanges {
    messages: Option<futures::channel::mpsc::UnboundedReceiver<Message>>,
    /// Reads the socket; ends with this.
    connection: tokio::task::JoinSet<()>,
}

type Message =
    (rtnetlink::packet_core::NetlinkMessage<rtnetlink::packet_route::RouteNetlinkMessage>, rtnetlink::sys::SocketAddr);

fn link_changes(host: &Path) -> LinkChanges {
    let mut connection = tokio::task::JoinSet::new();
    let runtime = tokio::runtime::Handle::current();
    // A socket belongs to the namespace that it was made in.
    let opened = skep_kernel::netns::within(Some(host), || {
        let _entered = runtime.enter();
        rtnetlink::new_multicast_connection(&[MulticastGroup::Link, MulticastGroup::Tc])
    });
    match opened {
        Ok((reader, _handle, messages)) => {
            connection.spawn(reader);
            LinkChanges { messages: Some(messages), connection }
        }
        Err(error) => {
            tracing::warn!(%error, "no netlink: interface changes are seen every 30 s only");
            LinkChanges { messages: None, connection }
        }
    }
}

impl LinkChanges {
    async fn changed(&mut self) {
        match &mut self.messages {
            Some(messages) => {
                if messages.next().await.is_none() {
                    self.messages = None;
                    self.connection.abort_all();
                }
            }
            None => std::future::pending().await,
        }
    }
    fn drain(&mut self) {
        if let Some(messages) = &mut self.messages {
            while messages.try_recv().is_ok() {}
        }
    }
}
