//! What `top` shows: the functions that nodes told of, in an order, and the nodes that failed.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use crossterm::event::KeyCode;
use ratatui::Frame;

use super::draw::draw;
use crate::args::Sort;
use crate::prog::Busy;
use crate::screen::{Scroll, View, failure};

/// The state of the screen.
#[derive(Clone, Debug)]
pub struct Board {
    /// Rows may be of several nodes.
    pub several: bool,
    /// What each node said last.
    pub(super) seen: BTreeMap<String, Vec<Busy>>,
    /// What is said of a node that says nothing more.
    pub(super) failed: BTreeMap<String, String>,
    pub(super) sort: Sort,
    pub(super) reversed: bool,
    pub(super) scroll: Scroll,
    /// Whether the keys are shown.
    pub(super) help: bool,
}

impl Board {
    /// Before anybody said anything.
    pub fn new(several: bool, sort: Sort) -> Self {
        Board {
            several,
            seen: BTreeMap::new(),
            failed: BTreeMap::new(),
            sort,
            reversed: false,
            scroll: Scroll::default(),
            help: false,
        }
    }

    /// A node's new look.
    pub fn hear(&mut self, node: &str, rows: Vec<Busy>) {
        self.failed.remove(node);
        self.seen.insert(node.to_owned(), rows);
    }

    /// A node fails: what it said is not true any more.
    pub fn fail(&mut self, node: &str, why: &str) {
        self.seen.remove(node);
        self.failed.insert(node.to_owned(), failure(node, why));
    }

    /// All functions in the order that is wanted.
    pub fn rows(&self) -> Vec<&Busy> {
        sorted(self.seen.values().flatten(), self.sort, self.reversed)
    }
}

impl View for Board {
    fn press(&mut self, key: KeyCode) {
        let sort = match key {
            KeyCode::Char('?' | 'h') => {
                self.help = !self.help;
                return;
            }
            KeyCode::Char('c') => Sort::Cpu,
            KeyCode::Char('r') => Sort::Runs,
            KeyCode::Char('n') => Sort::Ns,
            KeyCode::Char('p') => Sort::Program,
            other => {
                self.scroll.press(other);
                return;
            }
        };
        self.reversed = sort == self.sort && !self.reversed;
        self.sort = sort;
    }

    fn draw(&mut self, frame: &mut Frame<'_>) {
        draw(self, frame);
    }
}

/// Numbers from the largest down, names from A on; what is equal stays in the order of nodes and ids.
pub(super) fn sorted<'a>(rows: impl Iterator<Item = &'a Busy>, sort: Sort, reversed: bool) -> Vec<&'a Busy> {
    let order = |a: &Busy, b: &Busy| match sort {
        Sort::Cpu => b.cpu_percent.total_cmp(&a.cpu_percent),
        Sort::Runs => b.runs_per_second.total_cmp(&a.runs_per_second),
        Sort::Ns => b.ns_per_run.total_cmp(&a.ns_per_run),
        Sort::Program => names(a).cmp(&names(b)),
    };
    let turned = |order: Ordering| if reversed { order.reverse() } else { order };
    let mut rows: Vec<&Busy> = rows.collect();
    rows.sort_by(|a, b| turned(order(a, b)).then_with(|| (&a.node, a.id).cmp(&(&b.node, b.id))));
    rows
}

fn names(row: &Busy) -> (&str, &str, &str) {
    (&row.namespace, &row.program, &row.function)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::screen::text;

    fn row(node: &str, program: &str, runs: f64, ns: f64) -> Busy {
        Busy {
            node: node.into(),
            namespace: "net".into(),
            program: program.into(),
            function: "f".into(),
            id: 7,
            runs_per_second: runs,
            ns_per_run: ns,
            cpu_percent: runs * ns / 1e7,
            recursion_misses: 0,
        }
    }

    fn board() -> Board {
        let mut board = Board::new(true, Sort::Cpu);
        board.hear("n1", vec![row("n1", "flows", 10.0, 900.0), row("n1", "dns", 1000.0, 5.0)]);
        board.hear("n2", vec![row("n2", "flows", 100.0, 200.0)]);
        board
    }

    fn order(board: &Board) -> Vec<String> {
        board.rows().iter().map(|row| format!("{}/{}", row.node, row.program)).collect()
    }

    #[test]
    fn keys_sort_and_the_same_again_reverses() {
        let mut board = board();
        assert_eq!(order(&board), ["n2/flows", "n1/flows", "n1/dns"]);
        board.press(KeyCode::Char('r'));
        assert_eq!(order(&board), ["n1/dns", "n2/flows", "n1/flows"]);
        board.press(KeyCode::Char('r'));
        assert_eq!(order(&board), ["n1/flows", "n2/flows", "n1/dns"]);
        board.press(KeyCode::Char('n'));
        assert_eq!(order(&board), ["n1/flows", "n2/flows", "n1/dns"], "another key begins anew");
        board.press(KeyCode::Char('p'));
        assert_eq!(order(&board), ["n1/dns", "n1/flows", "n2/flows"]);
        board.press(KeyCode::Char('p'));
        assert_eq!(order(&board), ["n1/flows", "n2/flows", "n1/dns"], "equal ones stay");
    }

    #[test]
    fn a_screen_has_totals_columns_and_what_failed() {
        let mut board = board();
        board.fail("n3", "the connection is gone\nDo this");
        let wanted = "\
skep top   2 nodes, 1 failed   3 functions   1110.0 runs/s   0.00% CPU
NODE  NAMESPACE  PROGRAM  FUNCTION  ID  RUNS/S  NS/RUN   CPU▼  MISSES
n2    net        flows    f          7   100.0     200  0.00%       0
n1    net        flows    f          7    10.0     900  0.00%       0
n1    net        dns      f          7  1000.0       5  0.00%       0
n3: the connection is gone
q end  ? keys  c CPU  r runs/s  n ns/run  p program
";
        assert_eq!(text(&mut board, 72, 7), wanted);
        // One row fits.
        text(&mut board, 72, 5);
        board.press(KeyCode::Down);
        board.press(KeyCode::Down);
        assert!(text(&mut board, 72, 5).contains("dns"), "{}", text(&mut board, 72, 5));
        board.press(KeyCode::Char('?'));
        assert!(text(&mut board, 72, 20).contains("the same key again reverses"));
        // No terminal is too small.
        text(&mut board, 1, 1);
        text(&mut board, 10, 3);
    }

    #[test]
    fn a_node_that_fails_is_said_and_its_rows_are_gone() {
        let mut board = board();
        board.fail("n1", "the connection is gone");
        assert_eq!(order(&board), ["n2/flows"]);
        assert_eq!(board.failed["n1"], "n1: the connection is gone");
        board.hear("n1", vec![]);
        assert!(board.failed.is_empty());
    }
}
