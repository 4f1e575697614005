//! One connection to one agent, from the first call to the last.

use std::collections::{BTreeSet, VecDeque};
use std::convert::Infallible;
use std::time::Duration;

use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::FuturesUnordered;
use skep_proto::v1::node_event::Event;
use skep_proto::v1::{GetNodeRequest, SyncRequest, WatchRequest};
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::{Status, Streaming};

use super::What;
use super::board::Wanted;
use super::call::{Refusal, refusal, within};
use super::dial::Client;
use super::errand::{self, Done};
use super::ledger::{Action, Ledger};
use super::node::{Inputs, SILENCE};
use super::pods::{Pods, update};

/// Calls about programs that are under way at the same time.
const PARALLEL: usize = 8;
/// Pods change together: wait for the others.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// When what did not work is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// Why a connection ended.
#[derive(thiserror::Error, Debug)]
pub enum SessionError {
    #[error("{what}: {}", status.message())]
    Call { what: &'static str, status: Box<Status> },
    #[error("the agent has said nothing for {} s", SILENCE.as_secs())]
    Silent,
    #[error("the agent ended the stream of its reports")]
    Ended,
    #[error("this is node {found:?}")]
    OtherNode { found: String },
    #[error("shutting down")]
    Closed,
}

fn failed(what: &'static str) -> impl Fn(Status) -> SessionError {
    move |status| SessionError::Call { what, status: Box::new(status) }
}

/// One connection.
pub struct Session<'a> {
    client: Client,
    inputs: &'a mut Inputs,
    ledger: &'a mut Ledger,
    calls: FuturesUnordered<BoxFuture<'static, Done>>,
    queue: VecDeque<Action>,
    busy: BTreeSet<String>,
    pods_told: Option<Pods>,
    pods_busy: bool,
    pods_due: Option<Instant>,
    renew: Option<Instant>,
    retry: Option<Instant>,
    heard: Instant,
}

impl<'a> Session<'a> {
    pub fn new(client: Client, inputs: &'a mut Inputs, ledger: &'a mut Ledger, due: Duration) -> Self {
        let now = Instant::now();
        Self {
            client,
            inputs,
            ledger,
            calls: FuturesUnordered::new(),
            queue: VecDeque::new(),
            busy: BTreeSet::new(),
            pods_told: None,
            pods_busy: false,
            pods_due: None,
            renew: Some(now + due),
            retry: None,
            heard: now,
        }
    }

    /// When the agent was last heard.
    pub fn heard(&self) -> Instant {
        self.heard
    }

    /// Talks until something ends it.
    pub async fn run(&mut self) -> SessionError {
        let result = async {
            let stream = self.begin().await?;
            self.follow(stream).await
        };
        match result.await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    /// Who it is, its pods, which programs exist, and then its reports.
    async fn begin(&mut self) -> Result<Streaming<skep_proto::v1::NodeEvent>, SessionError> {
        let epoch = self.inputs.context.epoch;
        let node = within(self.client.get_node(GetNodeRequest {})).await.map_err(failed("GetNode"))?;
        if node.node_name != self.inputs.pod.node {
            return Err(SessionError::OtherNode { found: node.node_name });
        }
        self.inputs.wanted.wait_for(|wanted| wanted.complete).await.map_err(|_| SessionError::Closed)?;
        let pods = self.inputs.pods.borrow_and_update().clone();
        if pods.complete
            && let Some(request) = update(None, &pods.pods, epoch)
        {
            within(self.client.update_pods(request)).await.map_err(failed("UpdatePods"))?;
            self.pods_told = Some(pods.pods);
        }
        let sync = sync_request(&self.inputs.wanted.borrow(), epoch);
        let removed = within(self.client.sync(sync)).await.map_err(failed("Sync"))?.removed;
        if !removed.is_empty() {
            tracing::info!(node = %self.inputs.pod.node, ?removed, "the node removes programs that are not meant for it");
        }
        let stream = within(self.client.watch(WatchRequest::default())).await.map_err(failed("Watch"))?;
        self.ledger.begin(&node.instance);
        self.heard = Instant::now();
        self.inputs.tell(What::Connected(Box::new(node))).await;
        Ok(stream)
    }

    async fn follow(&mut self, mut stream: Streaming<skep_proto::v1::NodeEvent>) -> Result<Infallible, SessionError> {
        // Nothing is decided before the first snapshot: what the node has is not known.
        let mut snapshot = false;
        loop {
            while snapshot
                && self.busy.len() < PARALLEL
                && let Some(action) = self.queue.pop_front()
            {
                self.start(action);
            }
            tokio::select! {
                event = timeout_at(self.heard + SILENCE, stream.next()) => {
                    let event = event.map_err(|_| SessionError::Silent)?;
                    let event = event.ok_or(SessionError::Ended)?.map_err(failed("Watch"))?;
                    self.heard = Instant::now();
                    if let Some(event) = event.event {
                        snapshot |= matches!(event, Event::Snapshot(_));
                        self.hear(event).await;
                    }
                }
                Some(done) = self.calls.next() => self.finish(done).await?,
                changed = self.inputs.wanted.changed() => {
                    changed.map_err(|_| SessionError::Closed)?;
                    self.plan();
                }
                changed = self.inputs.pods.changed() => {
                    changed.map_err(|_| SessionError::Closed)?;
                    self.pods_due.get_or_insert_with(|| Instant::now() + DEBOUNCE);
                }
                () = at(self.pods_due), if !self.pods_busy => self.send_pods(),
                () = at(self.renew) => self.renew(),
                () = at(self.retry) => {
                    self.retry = None;
                    self.plan();
                }
            }
        }
    }

    fn plan(&mut self) {
        let wanted = self.inputs.wanted.borrow_and_update();
        self.queue = self.ledger.plan(&wanted).into_iter().filter(|a| !self.busy.contains(a.uid())).collect();
    }

    async fn hear(&mut self, event: Event) {
        match event {
            Event::Snapshot(snapshot) => {
                self.ledger.snapshot(&snapshot.programs);
                self.plan();
                self.inputs.tell(What::Snapshot(snapshot.programs)).await;
                for notice in snapshot.notices {
                    self.inputs.tell(What::Notice(notice)).await;
                }
            }
            Event::Notice(notice) => self.inputs.tell(What::Notice(notice)).await,
            Event::Program(report) => {
                self.ledger.report(&report);
                self.inputs.tell(What::Report(Box::new(report))).await;
            }
            Event::Gone(uid) => {
                self.ledger.gone(&uid);
                self.inputs.tell(What::Gone(uid)).await;
            }
            Event::Heartbeat(_) => {}
        }
    }

    fn start(&mut self, action: Action) {
        let (client, epoch) = (self.client.clone(), self.inputs.context.epoch);
        self.busy.insert(action.uid().into());
        self.calls.push(match action {
            Action::Apply(order) => errand::apply(client, epoch, order).boxed(),
            Action::Remove(uid) => errand::remove(client, epoch, uid).boxed(),
        });
    }

    async fn finish(&mut self, done: Done) -> Result<(), SessionError> {
        let uid = match done {
            Done::Applied(order, result) => {
                if let Err(status) = result {
                    if refusal(&status) == Refusal::Session {
                        return Err(failed("Apply")(status));
                    }
                    self.inputs.tell(What::Report(Box::new(errand::refused(&order, &status)))).await;
                    if refusal(&status) == Refusal::Later {
                        self.busy.remove(&order.uid);
                        self.retry.get_or_insert_with(|| Instant::now() + RETRY);
                        return Ok(());
                    }
                }
                self.ledger.applied(order.clone());
                order.uid.clone()
            }
            Done::Removed(uid, Ok(gone)) => {
                if gone {
                    self.ledger.gone(&uid);
                    self.inputs.tell(What::Gone(uid.clone())).await;
                } else {
                    self.ledger.removing(&uid);
                }
                self.busy.remove(&uid);
                // Unless it is wanted again by now, there is nothing more to say.
                let wanted_again = self.inputs.wanted.borrow().programs.contains_key(&uid);
                if !wanted_again {
                    return Ok(());
                }
                uid
            }
            Done::Removed(uid, Err(status)) => {
                if refusal(&status) == Refusal::Session {
                    return Err(failed("Remove")(status));
                }
                self.busy.remove(&uid);
                self.retry.get_or_insert_with(|| Instant::now() + RETRY);
                return Ok(());
            }
            Done::Pods(pods, result) => {
                result.map_err(failed("UpdatePods"))?;
                (self.pods_told, self.pods_busy) = (Some(pods), false);
                return Ok(());
            }
            Done::Renewed(due) => {
                self.renew = Some(Instant::now() + due);
                return Ok(());
            }
        };
        self.busy.remove(&uid);
        let next = self.ledger.next(&self.inputs.wanted.borrow(), &uid);
        self.queue.retain(|action| action.uid() != uid);
        self.queue.extend(next);
        Ok(())
    }

    fn send_pods(&mut self) {
        self.pods_due = None;
        let pods = self.inputs.pods.borrow_and_update().clone();
        if !pods.complete {
            return;
        }
        if let Some(request) = update(self.pods_told.as_ref(), &pods.pods, self.inputs.context.epoch) {
            self.pods_busy = true;
            self.calls.push(errand::pods(self.client.clone(), pods.pods, request).boxed());
        }
    }

    /// A new certificate serves the next handshake; this connection goes on.
    fn renew(&mut self) {
        self.renew = None;
        let (context, pod) = (self.inputs.context.clone(), self.inputs.pod.clone());
        self.calls.push(errand::renew(self.client.clone(), context, pod).boxed());
    }
}

/// The moment, or never.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

fn sync_request(wanted: &Wanted, epoch: u64) -> SyncRequest {
    let unreadable = wanted.unreadable.difference(&wanted.removing).cloned().collect();
    SyncRequest { epoch, uids: wanted.programs.keys().cloned().collect(), unreadable }
}
