//! The connections to the agents: one task per node.
//!
//! Guarantees: nothing is sent to a node before it has proved who it is; a node is told of the complete set of programs
//! (`Sync`) before anything else changes there, and never before that set is complete; every call that changes something
//! carries the leader's epoch; every call has a deadline; at rest nothing is sent and nothing computed.
//!
//! Assumption: the tasks end when the leadership does (the future of [`run`] is dropped).

mod board;
mod call;
mod connect;
mod dial;
mod enroll;
mod errand;
mod ledger;
mod node;
mod pods;
mod session;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use skep_proto::v1::{Node, Notice, ProgramReport};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

pub use board::{Board, NodePods, Order, Wanted};

use crate::certs::authority::{Credential, LEAF};
use crate::certs::{Authority, CertError};
use crate::token::Review;

/// Nodes that are dialled at the same time.
const DIALLING: usize = 64;

/// The agent's pod on a node, as the API server shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentPod {
    /// The node's name.
    pub node: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The ServiceAccount that it runs as.
    pub service_account: String,
    /// `metadata.uid`.
    pub uid: String,
    /// Where it serves.
    pub address: IpAddr,
}

/// The agents, by node.
pub type Agents = BTreeMap<String, AgentPod>;

/// What a node's task has to say.
#[derive(Clone, Debug, PartialEq)]
pub struct News {
    /// The node's name.
    pub node: String,
    /// What.
    pub what: What,
}

/// What happened on a node.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// The agent answers, and has been told which programs exist.
    Connected(Box<Node>),
    /// Everything it knows of.
    Snapshot(Vec<ProgramReport>),
    /// How one program does.
    Report(Box<ProgramReport>),
    /// Nothing is left of a program.
    Gone(String),
    /// Something happened to a program.
    Notice(Notice),
    /// It has not answered for 30 s; why.
    Unreachable(String),
}

/// What all connections share.
#[derive(Debug)]
pub struct Context {
    authority: Authority,
    credential: Mutex<Credential>,
    epoch: u64,
    port: u16,
    reviews: mpsc::Sender<Review>,
    dialling: Semaphore,
}

impl Context {
    /// For the leader of `epoch`; agents serve on `port`, and `reviews` answers whose a token is.
    pub fn new(authority: Authority, epoch: u64, port: u16, reviews: mpsc::Sender<Review>) -> Result<Self, CertError> {
        let credential = Mutex::new(authority.operator(SystemTime::now())?);
        Ok(Self { authority, credential, epoch, port, reviews, dialling: Semaphore::new(DIALLING) })
    }

    /// The operator's certificate, made anew at half of its validity.
    fn credential(&self) -> Result<Credential, CertError> {
        let now = SystemTime::now();
        let mut current = self.credential.lock().unwrap_or_else(PoisonError::into_inner);
        if current.not_after.duration_since(now).unwrap_or_default() < LEAF / 2 {
            *current = self.authority.operator(now)?;
        }
        Ok(current.clone())
    }
}

/// Keeps one task per agent, until the agents' sender is gone.
pub async fn run(
    context: Arc<Context>,
    mut agents: watch::Receiver<Agents>,
    board: Arc<Board>,
    news: mpsc::Sender<News>,
) {
    let mut tasks = JoinSet::new();
    let mut running: BTreeMap<String, (AgentPod, AbortHandle)> = BTreeMap::new();
    loop {
        let wanted = agents.borrow_and_update().clone();
        running.retain(|node, (pod, task)| {
            let keep = wanted.get(node) == Some(pod) && !task.is_finished();
            if !keep {
                task.abort();
            }
            keep
        });
        for (node, pod) in wanted {
            running.entry(node).or_insert_with_key(|node| {
                let (wanted, pods) = board.subscribe(node);
                let inputs =
                    node::Inputs { context: context.clone(), pod: pod.clone(), wanted, pods, news: news.clone() };
                (pod, tasks.spawn(node::run(inputs)))
            });
        }
        tokio::select! {
            changed = agents.changed() => if changed.is_err() { return },
            Some(ended) = tasks.join_next() => if let Err(error) = ended && error.is_panic() {
                tracing::error!(%error, "a node's task broke; it is started again");
            },
        }
    }
}
