//! Which of several operators leads.
//!
//! Guarantees: at most one holder at a time, by the API server's optimistic concurrency; every new holder has an epoch
//! higher than every earlier one, even if the Lease was deleted meanwhile; who cannot renew stops before another may take
//! over.
//!
//! Assumption: clocks run at about the same speed; they need not agree.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, PostParams};

/// How long a Lease holds without being renewed.
pub const DURATION: Duration = Duration::from_secs(15);
/// How often it is renewed.
pub const RENEW: Duration = Duration::from_secs(5);
/// Without a renewal for this long the holder stops.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// A renewal may take this long, and is tried again so soon.
const ATTEMPT: Duration = Duration::from_secs(3);
const RETRY: Duration = Duration::from_secs(1);

/// A Lease as it was last seen to change.
#[derive(Clone, Debug)]
pub struct Observed {
    lease: Lease,
    since: Instant,
}

/// What to do about the Lease.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Make it.
    Create(Lease),
    /// Write it: take over, or renew.
    Replace(Lease),
    /// Another holds it.
    Wait,
}

/// A candidate.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Who this is; different for every start of every process.
    pub identity: String,
    /// The Lease's name.
    pub lease: String,
    /// Take over from a holder that lives. Its epoch is over at once.
    pub by_force: bool,
}

impl Candidate {
    /// What `observed` asks for.
    pub fn decide(&self, observed: Option<&Observed>, now: Instant, clock: Timestamp) -> Step {
        let Some(Observed { lease, since }) = observed else {
            // Minutes since 1970: higher than what any deleted Lease had reached, by less than one takeover a minute.
            let epoch = i32::try_from(clock.as_second() / 60).unwrap_or(i32::MAX);
            return Step::Create(self.held(Lease::default(), epoch, clock));
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        let term = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let over = now.duration_since(*since) >= term.map_or(DURATION, Duration::from_secs);
        let epoch = spec.lease_transitions.unwrap_or(0);
        match holder {
            holder if holder == self.identity => Step::Replace(self.held(lease.clone(), epoch, clock)),
            holder if holder.is_empty() || over || self.by_force => {
                Step::Replace(self.held(lease.clone(), epoch.saturating_add(1), clock))
            }
            _ => Step::Wait,
        }
    }

    fn held(&self, lease: Lease, epoch: i32, clock: Timestamp) -> Lease {
        let spec = lease.spec.unwrap_or_default();
        let mine = spec.holder_identity.as_deref() == Some(&self.identity);
        let acquired = if mine { spec.acquire_time } else { Some(MicroTime(clock)) };
        Lease {
            metadata: ObjectMeta { name: Some(self.lease.clone()), ..lease.metadata },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
                acquire_time: acquired,
                renew_time: Some(MicroTime(clock)),
                lease_transitions: Some(epoch),
                ..LeaseSpec::default()
            }),
        }
    }
}

/// The Lease in the cluster, and a candidate for it.
#[derive(Debug)]
pub struct Elector {
    api: Api<Lease>,
    candidate: Candidate,
    observed: Option<Observed>,
}

impl Elector {
    /// Takes part for the Lease in `namespace`.
    pub fn new(client: &kube::Client, namespace: &str, candidate: Candidate) -> Self {
        Self { api: Api::namespaced(client.clone(), namespace), candidate, observed: None }
    }

    /// One attempt to take or renew the Lease: the epoch, if it is held now.
    pub async fn attempt(&mut self) -> Result<Option<u64>, kube::Error> {
        let seen = self.api.get_opt(&self.candidate.lease).await?;
        self.observe(seen);
        let written = match self.candidate.decide(self.observed.as_ref(), Instant::now(), Timestamp::now()) {
            Step::Create(lease) => self.api.create(&PostParams::default(), &lease).await,
            Step::Replace(lease) => self.api.replace(&self.candidate.lease, &PostParams::default(), &lease).await,
            Step::Wait => return Ok(None),
        };
        match written {
            Ok(lease) => {
                let epoch = lease.spec.as_ref().and_then(|spec| spec.lease_transitions).unwrap_or(0);
                self.observe(Some(lease));
                Ok(Some(u64::try_from(epoch).unwrap_or(0)))
            }
            // Somebody else was quicker.
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits until the Lease is held; the epoch.
    pub async fn acquire(&mut self) -> u64 {
        loop {
            match tokio::time::timeout(RENEW, self.attempt()).await {
                Ok(Ok(Some(epoch))) => return epoch,
                Ok(Ok(None)) => tracing::debug!("another operator leads"),
                Ok(Err(error)) => tracing::warn!(%error, "the Lease cannot be read or written; trying again"),
                Err(_) => tracing::warn!("the API server does not answer about the Lease; trying again"),
            }
            tokio::time::sleep(RENEW.mul_f32(0.4 + 0.2 * fastrand::f32())).await;
        }
    }

    /// Renews until the Lease is lost.
    pub async fn hold(&mut self) {
        let (mut renewed, mut wait) = (Instant::now(), RENEW);
        loop {
            tokio::time::sleep(wait).await;
            wait = RETRY;
            match tokio::time::timeout(ATTEMPT, self.attempt()).await {
                Ok(Ok(Some(_))) => (renewed, wait) = (Instant::now(), RENEW),
                Ok(Ok(None)) => return tracing::warn!("another operator has taken the Lease"),
                Ok(Err(error)) => tracing::warn!(%error, "the Lease cannot be renewed"),
                Err(_) => tracing::warn!("the API server does not answer about the Lease"),
            }
            if renewed.elapsed() + RETRY >= DEADLINE {
                return tracing::error!("the Lease could not be renewed in time");
            }
        }
    }

    /// Gives the Lease up, so that another need not wait; with `hold_off`, nobody may take it for that long.
    pub async fn release(&mut self, hold_off: Option<Duration>) -> Result<(), kube::Error> {
        let Some(observed) = &self.observed else { return Ok(()) };
        let mut lease = observed.lease.clone();
        let Some(spec) = &mut lease.spec else { return Ok(()) };
        if spec.holder_identity.as_deref() != Some(&self.candidate.identity) {
            return Ok(());
        }
        match hold_off {
            Some(time) => spec.lease_duration_seconds = i32::try_from(time.as_secs()).ok(),
            None => spec.holder_identity = Some(String::new()),
        }
        self.api.replace(&self.candidate.lease, &PostParams::default(), &lease).await.map(drop)
    }

    fn observe(&mut self, lease: Option<Lease>) {
        let unchanged = self.observed.as_ref().map(|observed| &observed.lease.spec) == lease.as_ref().map(|l| &l.spec);
        let since = self.observed.as_ref().filter(|_| unchanged).map_or_else(Instant::now, |observed| observed.since);
        self.observed = lease.map(|lease| Observed { lease, since });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(identity: &str, by_force: bool) -> Candidate {
        Candidate { identity: identity.into(), lease: "skep-operator".into(), by_force }
    }

    fn epoch_of(step: Step) -> Option<(String, i32)> {
        let (Step::Create(lease) | Step::Replace(lease)) = step else { return None };
        let spec = lease.spec.unwrap();
        Some((spec.holder_identity.unwrap(), spec.lease_transitions.unwrap()))
    }

    #[test]
    fn only_an_expired_released_or_own_lease_is_taken() {
        let (clock, start) = (Timestamp::from_second(1_800_000_000).unwrap(), Instant::now());
        let Step::Create(lease) = candidate("a", false).decide(None, start, clock) else { panic!("creates") };
        assert_eq!(lease.spec.as_ref().unwrap().lease_transitions, Some(30_000_000));
        let observed = Observed { lease: lease.clone(), since: start };
        let (soon, late) = (start + Duration::from_secs(14), start + Duration::from_secs(15));
        let decide = |who: &str, force, at| epoch_of(candidate(who, force).decide(Some(&observed), at, clock));
        assert_eq!(decide("a", false, soon), Some(("a".into(), 30_000_000)));
        assert_eq!(decide("b", false, soon), None);
        assert_eq!(decide("b", true, soon), Some(("b".into(), 30_000_001)));
        assert_eq!(decide("b", false, late), Some(("b".into(), 30_000_001)));
        let mut released = lease;
        released.spec.as_mut().unwrap().holder_identity = Some(String::new());
        let observed = Observed { lease: released, since: start };
        assert_eq!(
            epoch_of(candidate("b", false).decide(Some(&observed), soon, clock)),
            Some(("b".into(), 30_000_001))
        );
    }

    #[test]
    fn a_lease_made_again_has_a_higher_epoch() {
        let (clock, later) =
            (Timestamp::from_second(1_800_000_000).unwrap(), Timestamp::from_second(1_800_000_120).unwrap());
        let first = epoch_of(candidate("a", false).decide(None, Instant::now(), clock)).unwrap();
        let again = epoch_of(candidate("b", false).decide(None, Instant::now(), later)).unwrap();
        assert!(again.1 > first.1);
    }
}
