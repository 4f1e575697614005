//! Waiting for a place among those who read a node's maps: who waits is told so, however long it takes.

use std::time::{Duration, Instant};

use crate::error::Error;

/// Between two notes.
const AGAIN: Duration = Duration::from_secs(3);

/// One's place in the line, as far as it is known.
#[derive(Debug, Default)]
pub struct Queue {
    before: Option<u64>,
    said: Option<Instant>,
}

impl Queue {
    /// So many wait before it, the agent tells.
    pub fn hear(&mut self, before: u64) {
        self.before = Some(before);
    }

    /// Its turn has come.
    pub fn leave(&mut self) {
        self.before = None;
    }

    /// What is to be said of it: at once, then not too often.
    pub fn note(&mut self, node: &str, now: Instant) -> Option<String> {
        let before = self.before?;
        if self.said.is_some_and(|said| now.duration_since(said) < AGAIN) {
            return None;
        }
        self.said = Some(now);
        Some(format!("{node}: it waits in line to read, {}", place(before)))
    }

    /// Of an answer that took too long: it waited in the line.
    pub fn late(&self, node: &str, error: Error) -> Error {
        match (error, self.before) {
            (Error::Timeout { what }, Some(before)) => {
                Error::StillQueued { what, node: node.to_owned(), place: place(before) }
            }
            (other, _) => other,
        }
    }
}

/// Where that is.
pub fn place(before: u64) -> String {
    if before == 0 { "as the next".to_owned() } else { format!("{before} before it") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_is_told_at_once_and_then_not_too_often() {
        let (mut queue, start) = (Queue::default(), Instant::now());
        assert_eq!(queue.note("n1", start), None, "it does not wait");
        queue.hear(3);
        assert_eq!(queue.note("n1", start).as_deref(), Some("n1: it waits in line to read, 3 before it"));
        queue.hear(1);
        assert_eq!(queue.note("n1", start + AGAIN / 2), None);
        assert_eq!(queue.note("n1", start + AGAIN).as_deref(), Some("n1: it waits in line to read, 1 before it"));
        queue.hear(0);
        let late = queue.late("n1", Error::Timeout { what: "reading the map" }).to_string();
        let wanted =
            "node n1: reading the map took longer than the --request-timeout: it still waits in line, as the next\n";
        assert!(late.starts_with(wanted), "{late}");
        queue.leave();
        let late = queue.late("n1", Error::Timeout { what: "reading the map" }).to_string();
        assert_eq!(late, "reading the map took longer than the --request-timeout");
    }
}
