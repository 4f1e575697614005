//! Tables that are drawn anew as nodes tell of themselves.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::error::Error;
use crate::output;
use crate::source::Answers;

/// From the top left of an empty screen on.
const CLEAR: &str = "\u{1b}[H\u{1b}[2J";

/// What each node said last, and how all of it is shown.
pub struct Live<T, D> {
    latest: Mutex<BTreeMap<String, T>>,
    draw: D,
    /// One node alone decides when it is drawn; of several nobody waits for the slowest.
    several: bool,
}

impl<T, D> std::fmt::Debug for Live<T, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").field("several", &self.several).finish_non_exhaustive()
    }
}

impl<T, D: Fn(&BTreeMap<String, T>) -> Result<(), Error>> Live<T, D> {
    pub fn new(several: bool, draw: D) -> Self {
        Live { latest: Mutex::default(), draw, several }
    }

    /// A node has something new to say.
    pub fn tell(&self, node: &str, what: T) -> Result<(), Error> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner).insert(node.to_owned(), what);
        if self.several { Ok(()) } else { self.draw() }
    }

    /// A node says nothing more. If it failed, what it said is not true any more.
    pub fn ended(&self, node: &str, how: Result<(), Error>) -> Result<(), Error> {
        if how.is_err() {
            self.latest.lock().unwrap_or_else(PoisonError::into_inner).remove(node);
        }
        how
    }

    fn draw(&self) -> Result<(), Error> {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if latest.is_empty() { Ok(()) } else { (self.draw)(&latest) }
    }

    /// Draws at an interval until all nodes have ended.
    pub async fn run(
        &self,
        interval: Duration,
        asked: impl Future<Output = Result<Answers<()>, Error>>,
    ) -> Result<(), Error> {
        let mut asked = std::pin::pin!(asked);
        let mut ticks = tokio::time::interval(interval);
        let answers = loop {
            tokio::select! {
                answers = &mut asked => break answers?,
                _ = ticks.tick(), if self.several => self.draw()?,
            }
        };
        if self.several {
            self.draw()?;
        }
        answers.complete()
    }
}

/// In the place of the table before, on a terminal; elsewhere after it.
pub fn print(table: &str) -> Result<(), Error> {
    let clear = if std::io::stdout().is_terminal() { CLEAR } else { "" };
    output::print(&format!("{clear}{table}\n"))
}
