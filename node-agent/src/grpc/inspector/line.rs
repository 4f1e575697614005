//! The line in which dumps wait: so many go on at once that lookups and the work on programs always have a thread.
//!
//! **Guarantees.** First come, first served; who waits can be told how many are before it, and who leaves is not counted.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How often the position is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// A number of places, and those who wait for one.
#[derive(Debug)]
pub struct Line {
    all: usize,
    places: Arc<Semaphore>,
    waiting: Mutex<VecDeque<u64>>,
}

/// Somebody who waits; leaves when dropped.
struct Waiting<'a> {
    line: &'a Line,
    number: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.line.lock().retain(|number| *number != self.number);
    }
}

impl Line {
    pub fn new(places: usize) -> Self {
        Line { all: places, places: Arc::new(Semaphore::new(places)), waiting: Mutex::default() }
    }

    /// A place, when it is one's turn. `tell` hears how many are before, as often as that changes; false ends the wait.
    pub async fn enter<F: Future<Output = bool>>(
        &self,
        mut tell: impl FnMut(u64) -> F,
    ) -> Option<OwnedSemaphorePermit> {
        let waiting = self.wait();
        let mut turn = std::pin::pin!(self.places.clone().acquire_owned());
        let mut told = None;
        loop {
            tokio::select! {
                biased;
                place = &mut turn => return place.ok(),
                () = tokio::time::sleep(if told.is_none() { Duration::ZERO } else { LOOK }) => {
                    let before = self.before(waiting.number);
                    if told != Some(before) && !tell(before).await {
                        return None;
                    }
                    told = Some(before);
                }
            }
        }
    }

    /// Whether more than one place is taken.
    pub fn has_several(&self) -> bool {
        self.places.available_permits() + 1 < self.all
    }

    fn wait(&self) -> Waiting<'_> {
        let mut waiting = self.lock();
        let number = waiting.back().map_or(0, |last| last + 1);
        waiting.push_back(number);
        Waiting { line: self, number }
    }

    /// How many wait before that one.
    fn before(&self, number: u64) -> u64 {
        self.lock().iter().take_while(|waiting| **waiting != number).count() as u64
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<u64>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_sees_its_position_and_comes_in_turn() {
        let line = Arc::new(Line::new(1));
        let first = line.enter(|_| async { panic!("there is room") }).await.unwrap();
        let (sender, mut told) = tokio::sync::mpsc::unbounded_channel();
        let wait = |name: &'static str, stays: bool| {
            let (line, sender) = (line.clone(), sender.clone());
            tokio::spawn(async move {
                let place = line.enter(|before| {
                    sender.send((name, before)).unwrap();
                    async move { stays }
                });
                place.await.map(|_place| name)
            })
        };
        let second = wait("second", true);
        assert_eq!(told.recv().await, Some(("second", 0)));
        assert!(!line.has_several(), "one is taken");
        let leaver = wait("leaver", false);
        assert_eq!(told.recv().await, Some(("leaver", 1)));
        assert_eq!(leaver.await.unwrap(), None);
        let third = wait("third", true);
        assert_eq!(told.recv().await, Some(("third", 1)), "who left is not counted");
        drop(first);
        assert_eq!((second.await.unwrap(), third.await.unwrap()), (Some("second"), Some("third")));
        assert!(line.lock().is_empty());
    }
}
