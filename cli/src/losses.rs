//! What does not arrive of the records of a node: counted, and told not too often.

use std::time::{Duration, Instant};

use skep_proto::v1::Loss;

use crate::output::counted;

/// Between two times that it is told.
const AGAIN: Duration = Duration::from_secs(1);

/// What was not told yet.
#[derive(Debug, Default)]
pub struct Losses {
    untold: Loss,
    told: Option<Instant>,
}

impl Losses {
    /// More of them.
    pub fn add(&mut self, loss: Loss) {
        let Loss { kernel, client, limited } = &mut self.untold;
        *kernel += loss.kernel;
        *client += loss.client;
        *limited += loss.limited;
    }

    /// When they are to be told; never, if there is nothing to tell.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        let again = self.told.map_or(now, |told| told + AGAIN);
        (self.untold != Loss::default()).then_some(again)
    }

    /// A line for each reason.
    pub fn tell(&mut self, node: &str, now: Instant) -> Vec<String> {
        let Loss { kernel, client, limited } = std::mem::take(&mut self.untold);
        self.told = Some(now);
        let reasons = [
            (kernel, "lost: the map had no room for them"),
            (limited, "left out: --rate"),
            (client, "lost: they came faster than they are printed"),
        ];
        let line = |(count, reason)| format!("{node}: {} {reason}", counted(count, "record is", "records are"));
        reasons.into_iter().filter(|(count, _)| *count > 0).map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_losses_is_a_line_a_second() {
        let (mut losses, start) = (Losses::default(), Instant::now());
        assert_eq!(losses.due(start), None);
        let limited = |limited| Loss { limited, ..Loss::default() };
        losses.add(limited(1));
        assert_eq!(losses.due(start), Some(start));
        assert_eq!(losses.tell("n1", start), ["n1: 1 record is left out: --rate"]);
        assert_eq!(losses.due(start), None, "it is told");
        (0..1000).for_each(|_| losses.add(limited(2)));
        losses.add(Loss { kernel: 3, client: 4, limited: 0 });
        assert_eq!(losses.due(start + AGAIN / 2), Some(start + AGAIN));
        let wanted = [
            "n1: 3 records are lost: the map had no room for them",
            "n1: 2000 records are left out: --rate",
            "n1: 4 records are lost: they came faster than they are printed",
        ];
        assert_eq!(losses.tell("n1", start + AGAIN), wanted);
    }
}
