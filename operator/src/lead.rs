//! What a leader does. All of it ends when the future is dropped: every task is owned by a set in it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ListParams};
use kube::core::DeserializeGuard;
use skep_crds::{EbpfNode, EbpfNodeStatus};
use skep_image::RegistryConfig;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::certs::store;
use crate::config::Places;
use crate::fleet::{Agents, Board, Context, News, run as run_fleet};
use crate::image::Resolver;
use crate::index::{Chore, Event, Index, Key};
use crate::metrics::Metrics;
use crate::write::{WriteError, Writer};
use crate::{token, watch as watches};

/// Events that wait for who decides.
const QUEUE: usize = 1024;
/// Events that are taken in at a time.
const BATCH: usize = 256;
/// Reports come in crowds: what follows from them is written together.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// Writes to the API server under way at the same time.
const WRITES: usize = 16;
/// Images that are looked up at the same time.
const RESOLVES: usize = 16;

/// What a leader works with.
#[derive(Clone)]
pub struct Leader {
    pub client: kube::Client,
    pub places: Places,
    pub registry: RegistryConfig,
    pub metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Leader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leader").field("places", &self.places).finish_non_exhaustive()
    }
}

/// Why a leader cannot begin, or had to end.
#[derive(thiserror::Error, Debug)]
pub enum LeadError {
    #[error(transparent)]
    Authority(#[from] store::StoreError),
    #[error(transparent)]
    Certificate(#[from] crate::certs::CertError),
    #[error("the EbpfNodes cannot be listed: {0}")]
    List(Box<kube::Error>),
    #[error("a task of the leader ended")]
    Ended,
}

type Written = (Key, Chore, Result<(), WriteError>);

/// Leads in `epoch`. Ends only by an error.
pub async fn lead(leader: &Leader, epoch: u64) -> Result<std::convert::Infallible, LeadError> {
    let (client, places) = (&leader.client, &leader.places);
    let authority = store::authority(client, places).await?;
    let statuses = node_statuses(client).await?;
    let (reviews, reviewed) = mpsc::channel(QUEUE);
    let context = Arc::new(Context::new(authority, epoch, places.agent_port, reviews)?);
    let board = Arc::new(Board::default());
    let (events, inbox) = mpsc::channel(QUEUE);
    let (news, heard) = mpsc::channel(QUEUE);
    let (agents, known) = watch::channel(Agents::new());
    let mut tasks = JoinSet::new();
    tasks.spawn(token::serve(client.clone(), reviewed));
    tasks.spawn(watches::programs::run(client.clone(), events.clone()));
    tasks.spawn(watches::nodes::run(client.clone(), events.clone()));
    tasks.spawn(watches::pods::run(client.clone(), board.clone()));
    tasks.spawn(watches::agents::run(client.clone(), places.clone(), events, agents));
    tasks.spawn(run_fleet(context, known, board.clone(), news));
    tracing::info!(epoch, "leading");
    let index = Index::new(board, statuses, Instant::now());
    tokio::select! {
        () = decide(leader, index, inbox, heard) => Err(LeadError::Ended),
        ended = tasks.join_next() => {
            tracing::error!(?ended, "a task of the leader ended");
            Err(LeadError::Ended)
        }
    }
}

/// Takes events in, and has done what follows.
async fn decide(leader: &Leader, mut index: Index, mut inbox: mpsc::Receiver<Event>, mut heard: mpsc::Receiver<News>) {
    let writer = Writer::new(leader.client.clone(), &leader.places.pod_name);
    let resolver = Resolver::new(leader.client.clone(), leader.registry.clone());
    let mut writes: JoinSet<Written> = JoinSet::new();
    let mut resolves: JoinSet<Event> = JoinSet::new();
    let mut requests = std::collections::VecDeque::new();
    let mut flush: Option<Instant> = None;
    let mut events = Vec::with_capacity(BATCH);
    let mut reports = Vec::with_capacity(BATCH);
    loop {
        let wake = [flush, index.next_wake()].into_iter().flatten().min();
        tokio::select! {
            count = inbox.recv_many(&mut events, BATCH) => {
                if count == 0 {
                    return;
                }
                let now = Instant::now();
                events.drain(..).for_each(|event| index.handle(event, now));
                flush = Some(now);
            }
            count = heard.recv_many(&mut reports, BATCH) => {
                if count == 0 {
                    return;
                }
                let now = Instant::now();
                reports.drain(..).for_each(|news| index.handle(Event::News(news), now));
                flush.get_or_insert(now + DEBOUNCE);
            }
            Some(Ok(event)) = resolves.join_next() => {
                leader.metrics.resolved(matches!(event, Event::Image(_, Ok(_))));
                index.handle(event, Instant::now());
                flush = Some(Instant::now());
            }
            Some(Ok((key, chore, result))) = writes.join_next() => {
                settle(&mut index, &leader.metrics, key, chore, result);
                flush.get_or_insert(Instant::now() + DEBOUNCE);
            }
            () = at(wake) => {
                flush = None;
                let now = Instant::now();
                for key in index.take_dirty(now) {
                    if writes.len() >= WRITES {
                        index.mark(key);
                    } else if let Some(chore) = index.chore(&key, now, Timestamp::now()) {
                        let writer = writer.clone();
                        writes.spawn(async move {
                            let result = writer.write(&chore).await;
                            (key, chore, result)
                        });
                    }
                }
                leader.metrics.figures(index.figures());
            }
        }
        requests.extend(index.take_requests());
        while resolves.len() < RESOLVES
            && let Some(request) = requests.pop_front()
        {
            let resolver = resolver.clone();
            resolves.spawn(async move {
                let answer = resolver.resolve(&request).await;
                Event::Image(Box::new(request), answer)
            });
        }
    }
}

fn settle(index: &mut Index, metrics: &Metrics, key: Key, chore: Chore, result: Result<(), WriteError>) {
    metrics.written(result.is_ok());
    match &result {
        Ok(()) => {}
        Err(error) if error.is_stale() => tracing::debug!(?key, %error, "the object has changed meanwhile"),
        Err(error) => tracing::warn!(?key, %error, "a write failed; trying again"),
    }
    index.done(&key, chore, result.is_ok(), Instant::now());
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

/// What the EbpfNodes say now, so that nothing is written again that is right.
async fn node_statuses(client: &kube::Client) -> Result<BTreeMap<String, EbpfNodeStatus>, LeadError> {
    let api: Api<DeserializeGuard<EbpfNode>> = Api::all(client.clone());
    let listed = api.list(&ListParams::default()).await.map_err(|error| LeadError::List(Box::new(error)))?;
    let readable = listed.items.into_iter().filter_map(|DeserializeGuard(node)| node.ok());
    Ok(readable.filter_map(|node| Some((node.metadata.name?, node.status.unwrap_or_default()))).collect())
}
