//! How long to wait before trying again.

use std::time::Duration;

use skep_crds::Reason;

/// Doubles from half a second to a cap, with up to a quarter of jitter taken off, so that programs that failed together
/// do not try together.
#[derive(Clone, Debug)]
pub struct Backoff {
    next: Duration,
    random: fn() -> f64,
}

const FIRST: Duration = Duration::from_millis(500);
const CAP: Duration = Duration::from_secs(300);

impl Backoff {
    pub fn new(random: fn() -> f64) -> Self {
        Backoff { next: FIRST, random }
    }
    /// Begins anew: something changed.
    pub fn reset(&mut self) {
        self.next = FIRST;
    }
    /// The time to wait now.
    pub fn wait(&mut self) -> Duration {
        let now = self.next;
        self.next = (now * 2).min(CAP);
        now.mul_f64(1.0 - (self.random)().clamp(0.0, 1.0) / 4.0)
    }
}

/// Whether time alone may mend it. What may come free, or come to be, without the agent hearing of it is tried again like
/// what is transient.
pub fn is_worth_another_try(reason: Reason) -> bool {
    use Reason::{HookBusy, ImageNotFound, ImageUnauthorized, LimitReached, PermissionDenied, TargetNotFound};
    let unheard = [HookBusy, TargetNotFound, LimitReached, PermissionDenied, ImageNotFound, ImageUnauthorized];
    reason.is_transient() || unheard.contains(&reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap_and_begin_anew() {
        let mut backoff = Backoff::new(|| 0.0);
        let waits: Vec<u64> = (0..12).map(|_| backoff.wait().as_millis() as u64).collect();
        assert_eq!(waits[..4], [500, 1000, 2000, 4000]);
        assert_eq!(waits[11], 300_000);
        backoff.reset();
        assert_eq!(backoff.wait(), FIRST);
        assert_eq!(Backoff::new(|| 1.0).wait(), Duration::from_millis(375));
    }
}
