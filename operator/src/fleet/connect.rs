//! From an address to an agent that has proved who it is.

use std::time::Duration;

use super::dial::{Client, DialError, Trust, dial};
use super::enroll::{EnrollError, When, enroll};
use super::{AgentPod, Context};

/// Dialling, enrolling and dialling again, at most.
const ATTEMPT: Duration = Duration::from_secs(20);
/// The first wait after a failure, and the longest.
const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(5);

/// Why there is no connection.
#[derive(thiserror::Error, Debug)]
pub enum ConnectError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error(transparent)]
    Enroll(#[from] EnrollError),
    #[error("connecting took longer than {} s", ATTEMPT.as_secs())]
    Timeout,
}

/// Grows with every failure in a row.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The next wait: doubled each time, capped, with up to half of it taken off at random.
    pub fn next(&mut self, random: f32) -> Duration {
        let wait = FIRST.saturating_mul(1 << self.failures.min(10)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        wait.mul_f32(1.0 - random.clamp(0.0, 1.0) / 2.0)
    }

    /// It worked.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// A verified connection, and in how long the agent's certificate is due.
pub async fn connect(context: &Context, pod: &AgentPod) -> Result<(Client, Duration), ConnectError> {
    let Ok(_turn) = context.dialling.acquire().await else { return Err(ConnectError::Timeout) };
    tokio::time::timeout(ATTEMPT, verified(context, pod)).await.unwrap_or(Err(ConnectError::Timeout))
}

async fn verified(context: &Context, pod: &AgentPod) -> Result<(Client, Duration), ConnectError> {
    let mut client = match dial(context, pod, Trust::Node).await {
        Err(DialError::Untrusted { detail, .. }) => {
            tracing::info!(node = %pod.node, %detail, "the agent has no certificate yet: enrolling it");
            let mut anyone = dial(context, pod, Trust::Anyone).await?;
            enroll(&mut anyone, context, pod, When::Always).await?;
            dial(context, pod, Trust::Node).await?
        }
        dialled => dialled?,
    };
    let due = enroll(&mut client, context, pod, When::Due).await?;
    Ok((client, due))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_up_to_a_bound() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> = (0..9).map(|_| backoff.next(0.0).as_millis()).collect();
        assert_eq!(waits, [250, 500, 1000, 2000, 4000, 5000, 5000, 5000, 5000]);
        assert_eq!(backoff.next(1.0), LONGEST / 2);
        backoff.reset();
        assert_eq!(backoff.next(0.0), FIRST);
    }
}
