//! The task of one node: connect, talk, and connect again.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::board::{NodePods, Wanted};
use super::connect::{Backoff, ConnectError, connect};
use super::dial::Client;
use super::ledger::Ledger;
use super::session::{Session, SessionError};
use super::{AgentPod, Context, News, What};

/// A node that has not been heard for this long is unreachable.
pub const SILENCE: Duration = Duration::from_secs(30);

/// What the task works with.
#[derive(Debug)]
pub struct Inputs {
    pub context: Arc<Context>,
    pub pod: AgentPod,
    pub wanted: watch::Receiver<Wanted>,
    pub pods: watch::Receiver<NodePods>,
    pub news: mpsc::Sender<News>,
}

impl Inputs {
    /// Says what happened. Who listened may be gone: then this task is about to end too.
    pub async fn tell(&self, what: What) {
        let _shutting_down = self.news.send(News { node: self.pod.node.clone(), what }).await;
    }
}

/// Until it is aborted.
pub async fn run(mut inputs: Inputs) {
    let (mut backoff, mut ledger) = (Backoff::default(), Ledger::default());
    let mut heard = Instant::now();
    let mut unreachable = false;
    loop {
        let (client, due) = reach(&inputs, &mut backoff, heard, &mut unreachable).await;
        let started = Instant::now();
        let mut session = Session::new(client, &mut inputs, &mut ledger, due);
        let error = session.run().await;
        heard = session.heard();
        if heard > started {
            unreachable = false;
        }
        let node = &inputs.pod.node;
        tracing::info!(%node, %error, "the connection to the agent ended; connecting again");
        if matches!(error, SessionError::Silent) && !unreachable {
            unreachable = true;
            inputs.tell(What::Unreachable(error.to_string())).await;
        }
        if started.elapsed() > SILENCE {
            backoff.reset();
        }
        sleep(backoff.next(fastrand::f32())).await;
    }
}

/// Tries until there is a connection; says once that the node is unreachable, when it has been silent for too long.
async fn reach(inputs: &Inputs, backoff: &mut Backoff, heard: Instant, unreachable: &mut bool) -> (Client, Duration) {
    let mut why = String::from("no connection was made yet");
    loop {
        let attempt = attempt(inputs, backoff);
        tokio::pin!(attempt);
        let result = loop {
            tokio::select! {
                result = &mut attempt => break result,
                () = sleep_until(heard + SILENCE), if !*unreachable => {
                    *unreachable = true;
                    inputs.tell(What::Unreachable(why.clone())).await;
                }
            }
        };
        match result {
            Ok(connected) => return connected,
            Err(error) => {
                let error = error.to_string();
                // Said once, not at every attempt.
                if error != why {
                    tracing::info!(node = %inputs.pod.node, %error, "no connection to the agent; trying again");
                }
                why = error;
            }
        }
    }
}

/// One attempt; after a failure, the wait before the next.
async fn attempt(inputs: &Inputs, backoff: &mut Backoff) -> Result<(Client, Duration), ConnectError> {
    let result = connect(&inputs.context, &inputs.pod).await;
    if result.is_err() {
        sleep(backoff.next(fastrand::f32())).await;
    }
    result
}
