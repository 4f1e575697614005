//! How the screen of `top` looks.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph, Row, Table};

use super::board::Board;
use crate::args::Sort;
use crate::prog::{Busy, cells};
use crate::screen::{first_line, fit};
use crate::table::printable;

const HINT: &str = "q end  ? keys  c CPU  r runs/s  n ns/run  p program";

const KEYS: [&str; 10] = [
    "c      by CPU: the share of one CPU",
    "r      by runs per second",
    "n      by nanoseconds per run",
    "p      by program",
    "       the same key again reverses",
    "",
    "Up Down PgUp PgDn Home End   scroll",
    "?      these keys, and away",
    "q Esc ^C   end",
    "",
];

/// Between two columns.
const GAP: u16 = 2;

pub(super) fn draw(board: &mut Board, frame: &mut Frame<'_>) {
    let status = u16::from(!board.failed.is_empty());
    let parts = [Constraint::Length(1), Constraint::Min(0), Constraint::Length(status), Constraint::Length(1)];
    let [head, body, failed, hint] = Layout::vertical(parts).areas(frame.area());
    // Below the titles.
    let room = usize::from(body.height.saturating_sub(1));
    let count = board.seen.values().map(Vec::len).sum();
    board.scroll.set(count, room);
    frame.render_widget(Line::from(totals(board)).bold(), head);
    frame.render_widget(table(board, body, room), body);
    frame.render_widget(Line::from(failures(board)).red(), failed);
    frame.render_widget(Line::from(HINT).dim(), hint);
    if board.help {
        help(frame, body);
    }
}

/// Of everything, also of what is scrolled away.
fn totals(board: &Board) -> String {
    let rows = board.rows();
    let sum = |of: fn(&Busy) -> f64| rows.iter().map(|row| of(row)).sum::<f64>();
    let nodes = board.seen.len();
    let mut text = format!("skep top   {nodes} node{}", if nodes == 1 { "" } else { "s" });
    if !board.failed.is_empty() {
        text.push_str(&format!(", {} failed", board.failed.len()));
    }
    let (runs, cpu) = (sum(|row| row.runs_per_second), sum(|row| row.cpu_percent));
    text + &format!("   {} functions   {runs:.1} runs/s   {cpu:.2}% CPU", rows.len())
}

/// One line, whatever the errors are.
fn failures(board: &Board) -> String {
    board.failed.values().map(|said| first_line(said)).collect::<Vec<_>>().join("; ")
}

/// A column: its title, by which key it sorts, whether it is a number, and whether it is shown.
type Column = (&'static str, Option<Sort>, bool, bool);

fn table(board: &Board, area: Rect, room: usize) -> Table<'static> {
    let columns: [Column; 9] = [
        ("NODE", None, false, board.several),
        ("NAMESPACE", None, false, true),
        ("PROGRAM", Some(Sort::Program), false, true),
        ("FUNCTION", None, false, true),
        ("ID", None, true, true),
        ("RUNS/S", Some(Sort::Runs), true, true),
        ("NS/RUN", Some(Sort::Ns), true, true),
        ("CPU", Some(Sort::Cpu), true, true),
        ("MISSES", None, true, true),
    ];
    let shown = |cells: Vec<String>| -> Vec<String> {
        cells.into_iter().zip(&columns).filter(|(_, column)| column.3).map(|(cell, _)| cell).collect()
    };
    let title = |column: &Column| match column.1 == Some(board.sort) {
        // Names go up from A by themselves, numbers down.
        true if board.reversed == column.2 => format!("{}▲", column.0),
        true => format!("{}▼", column.0),
        false => column.0.to_owned(),
    };
    let titles = shown(columns.iter().map(title).collect());
    let row = |row: &&Busy| {
        let names = [&row.node, &row.namespace, &row.program, &row.function];
        shown(names.iter().map(|name| printable(name)).chain(cells(row)).collect())
    };
    let all: Vec<Vec<String>> = board.rows().iter().map(row).collect();
    let columns: Vec<&Column> = columns.iter().filter(|column| column.3).collect();
    // Of all rows, so that scrolling moves no column.
    let width = |index: usize| {
        let of = |cells: &Vec<String>| cells.get(index).map_or(0, |cell| Span::raw(cell.as_str()).width());
        std::iter::once(&titles).chain(&all).map(of).max().unwrap_or(0).try_into().unwrap_or(u16::MAX)
    };
    let mut widths: Vec<u16> = (0..columns.len()).map(width).collect();
    let soft: Vec<bool> = columns.iter().map(|column| !column.2).collect();
    fit(&mut widths, &soft, GAP, area.width);
    let aligned = |cells: &[String]| {
        let cell = |(cell, column): (&String, &&Column)| {
            let line = Line::from(cell.clone());
            if column.2 { line.right_aligned() } else { line }
        };
        Row::new(cells.iter().zip(&columns).map(cell).collect::<Vec<_>>())
    };
    let rows = all.iter().skip(board.scroll.first).take(room).map(|cells| aligned(cells));
    Table::new(rows, widths.iter().map(|width| Constraint::Length(*width)))
        .header(aligned(&titles).style(Style::new().add_modifier(Modifier::REVERSED)))
        .column_spacing(GAP)
}

fn help(frame: &mut Frame<'_>, over: Rect) {
    let (width, height) = (44.min(over.width), (KEYS.len() as u16 + 1).min(over.height));
    let area = Rect { x: over.x + (over.width - width) / 2, y: over.y + (over.height - height) / 2, width, height };
    let lines: Vec<Line<'_>> = KEYS.into_iter().map(Line::from).collect();
    frame.render_widget(Clear, area);
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(" Keys ")), area);
}
