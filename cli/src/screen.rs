//! The whole terminal, drawn by one view and steered by keys.
//!
//! Guarantees: the terminal becomes what it was (cooked, its own screen, its cursor) whichever way [`show`] ends: a key, a
//! signal, an error or a panic. What a view shows is a function of the view alone.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crossterm::event::{Event, EventStream, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use futures::StreamExt;
use ratatui::backend::TestBackend;
use ratatui::buffer::Cell;
use ratatui::{DefaultTerminal, Frame, Terminal};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;

use crate::error::Error;
use crate::table::printable;

/// How often news is drawn, at most: a hundred nodes do not draw a hundred times.
const DRAW: Duration = Duration::from_millis(100);

/// What is on the screen.
pub trait View {
    /// A key other than those that end it.
    fn press(&mut self, key: KeyCode);
    /// Draws all of it.
    fn draw(&mut self, frame: &mut Frame<'_>);
}

/// A view that nodes tell news.
#[derive(Debug, Default)]
pub struct Told<V> {
    view: Mutex<V>,
    news: Notify,
}

impl<V> Told<V> {
    pub fn new(view: V) -> Self {
        Told { view: Mutex::new(view), news: Notify::new() }
    }

    /// Changes the view; it is drawn soon.
    pub fn tell<R>(&self, change: impl FnOnce(&mut V) -> R) -> R {
        let changed = self.with(change);
        self.news.notify_one();
        changed
    }

    fn with<R>(&self, look: impl FnOnce(&mut V) -> R) -> R {
        look(&mut self.view.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The view, when nobody shows it any more.
    pub fn into_view(self) -> V {
        self.view.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The terminal while it is ours.
struct Screen(DefaultTerminal);

impl Screen {
    fn open() -> Result<Self, Error> {
        // Also has panics restore the terminal before they are told.
        ratatui::try_init().map(Screen).map_err(|problem| {
            ratatui::restore();
            Error::Terminal(problem)
        })
    }

    fn draw<V: View>(&mut self, told: &Told<V>) -> Result<(), Error> {
        told.with(|view| self.0.draw(|frame| view.draw(frame)).map(drop)).map_err(Error::Terminal)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A panic was restored from already, and its message would be drawn over. Nobody to tell that restoring failed.
        if !std::thread::panicking() {
            let _ = ratatui::try_restore();
            let _ = self.0.show_cursor();
        }
    }
}

/// Shows the view until `asked` ends, whose result is given, or until the user ends it: nothing is given.
pub async fn show<V: View, T>(
    told: &Told<V>,
    asked: impl Future<Output = Result<T, Error>>,
) -> Result<Option<T>, Error> {
    let mut ends = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()]
        .into_iter()
        .map(signal)
        .collect::<Result<Vec<Signal>, _>>()
        .map_err(Error::Terminal)?;
    let mut asked = std::pin::pin!(asked);
    let mut ticks = tokio::time::interval(DRAW);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut screen = Screen::open()?;
    let mut keys = EventStream::new();
    let mut news = true;
    loop {
        let end = futures::future::select_all(ends.iter_mut().map(|end| Box::pin(end.recv())));
        tokio::select! {
            result = &mut asked => return result.map(Some),
            _ = end => return Ok(None),
            () = told.news.notified(), if !news => news = true,
            _ = ticks.tick(), if news => {
                news = false;
                screen.draw(told)?;
            }
            event = keys.next() => match event {
                Some(Ok(Event::Key(key))) if key.kind != KeyEventKind::Release => {
                    if is_end(key) {
                        return Ok(None);
                    }
                    told.with(|view| view.press(key.code));
                    screen.draw(told)?;
                }
                Some(Ok(Event::Resize(..))) => screen.draw(told)?,
                Some(Ok(_)) => {}
                Some(Err(problem)) => return Err(Error::Terminal(problem)),
                // Nobody can press a key any more.
                None => return Ok(None),
            },
        }
    }
}

/// What a terminal of so many columns and lines shows, as text without colours.
pub fn text(view: &mut impl View, columns: u16, lines: u16) -> String {
    let Ok(mut terminal) = Terminal::new(TestBackend::new(columns, lines));
    let Ok(_) = terminal.draw(|frame| view.draw(frame));
    let buffer = terminal.backend().buffer();
    let line = |cells: &[Cell]| cells.iter().map(Cell::symbol).collect::<String>().trim_end().to_owned() + "\n";
    buffer.content().chunks(usize::from(columns)).map(line).collect()
}

fn is_end(key: KeyEvent) -> bool {
    matches!(key.code, KeyCode::Esc | KeyCode::Char('q'))
        || key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL)
}

/// Rows of which only some fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scroll {
    /// The first that is shown.
    pub first: usize,
    /// How many fit, as far as known: of the last drawing.
    fit: usize,
    of: usize,
}

impl Scroll {
    /// Moves by a key; whether it is one of those.
    pub fn press(&mut self, key: KeyCode) -> bool {
        let first = match key {
            KeyCode::Up => self.first.saturating_sub(1),
            KeyCode::Down => self.first.saturating_add(1),
            KeyCode::PageUp => self.first.saturating_sub(self.fit),
            KeyCode::PageDown => self.first.saturating_add(self.fit),
            KeyCode::Home => 0,
            KeyCode::End => self.of,
            _ => return false,
        };
        self.first = first;
        self.bound();
        true
    }

    /// There are `of` rows, and room for `fit`.
    pub fn set(&mut self, of: usize, fit: usize) {
        (self.of, self.fit) = (of, fit);
        self.bound();
    }

    fn bound(&mut self) {
        self.first = self.first.min(self.of.saturating_sub(self.fit));
    }
}

/// What is said of a node that fails. Some errors begin with its name.
pub fn failure(node: &str, why: &str) -> String {
    format!("{node}: {}", why.strip_prefix(&format!("node {node}: ")).unwrap_or(why))
}

/// The first line of what is said: there is room for one.
pub fn first_line(said: &str) -> String {
    printable(said.lines().next().unwrap_or_default())
}

/// Makes the columns marked as `soft` narrower, the widest first, until all of them and a gap after each fit into
/// `available` characters; none becomes narrower than `least`.
pub fn fit(widths: &mut [u16], soft: &[bool], gap: u16, available: u16) {
    const LEAST: u16 = 4;
    let total = |widths: &[u16]| widths.iter().map(|width| u32::from(width + gap)).sum::<u32>();
    while total(widths) > u32::from(available) + u32::from(gap) {
        let widest =
            widths.iter_mut().zip(soft).filter(|(width, soft)| **soft && **width > LEAST).max_by_key(|(w, _)| **w);
        let Some((width, _)) = widest else { return };
        *width -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_keys_end_it() {
        let key = |code, modifiers| is_end(KeyEvent::new(code, modifiers));
        assert!(key(KeyCode::Char('q'), KeyModifiers::NONE) && key(KeyCode::Esc, KeyModifiers::NONE));
        assert!(key(KeyCode::Char('c'), KeyModifiers::CONTROL));
        assert!(!key(KeyCode::Char('c'), KeyModifiers::NONE), "it sorts");
    }

    #[test]
    fn nobody_scrolls_beyond_the_last_row() {
        let mut scroll = Scroll::default();
        scroll.set(10, 4);
        assert!(scroll.press(KeyCode::PageDown) && scroll.press(KeyCode::Down));
        assert_eq!(scroll.first, 5);
        scroll.press(KeyCode::PageDown);
        assert_eq!(scroll.first, 6);
        scroll.set(5, 4);
        assert_eq!(scroll.first, 1, "rows went away");
        scroll.press(KeyCode::Home);
        scroll.press(KeyCode::Up);
        assert_eq!(scroll.first, 0);
        assert!(!scroll.press(KeyCode::Char('x')));
    }

    #[test]
    fn long_names_make_room_for_numbers() {
        let mut widths = [20, 10, 6];
        fit(&mut widths, &[true, true, false], 1, 30);
        assert_eq!(widths, [12, 10, 6]);
        fit(&mut widths, &[true, true, false], 1, 5);
        assert_eq!(widths, [4, 4, 6], "no narrower");
    }
}
