//! How lines look on a terminal: a row of blocks for each.

use std::collections::BTreeSet;

use crossterm::event::KeyCode;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style, Stylize};
use ratatui::symbols::bar;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Row, Table};
use skep_proto::v1::Changes;

use super::series::{Looks, Series, label};
use super::svg;
use crate::args::Graph;
use crate::error::Error;
use crate::schema::Schema;
use crate::screen::{Scroll, View, failure, first_line, fit};
use crate::table::{self, printable};

const HINT: &str = "q end  r rate or number  Up Down PgUp PgDn scroll";
/// Blocks of a line that is printed.
const PRINTED: usize = 40;
/// Blocks of a line on a screen that has room for no more.
const LEAST: u16 = 8;
/// Between two columns.
const GAP: u16 = 2;

/// The state of the screen.
#[derive(Clone, Debug)]
pub struct Board {
    program: String,
    map: String,
    field: String,
    rate: bool,
    per_node: bool,
    limit: usize,
    looks: Looks,
    /// Nodes that say nothing more.
    failed: BTreeSet<String>,
    /// What else there is to be said; the last is shown.
    remarks: Vec<String>,
    scroll: Scroll,
}

impl Board {
    /// Before anybody said anything.
    pub fn new(graph: &Graph) -> Self {
        Board {
            program: graph.name.clone(),
            map: graph.map.clone(),
            field: graph.field.clone(),
            rate: graph.rate,
            per_node: graph.per_node,
            limit: usize::from(graph.limit),
            looks: Looks::default(),
            failed: BTreeSet::new(),
            remarks: Vec::new(),
            scroll: Scroll::default(),
        }
    }

    /// A node's frame.
    pub fn hear(&mut self, node: &str, schema: &Schema, frame: &Changes) -> Result<(), Error> {
        self.failed.remove(node);
        self.looks.hear(node, &self.field, schema, frame)
    }

    /// A node fails: it is left out.
    pub fn fail(&mut self, node: &str, why: &str) {
        self.looks.forget(node);
        self.failed.insert(node.to_owned());
        self.remark(failure(node, why));
    }

    /// Something to be read.
    pub fn remark(&mut self, text: String) {
        self.remarks.push(text);
    }

    pub fn remarks(&self) -> impl Iterator<Item = &String> {
        self.remarks.iter()
    }

    /// The lines to be shown, and how many there are.
    pub fn series(&self) -> (Vec<Series>, usize) {
        self.looks.series(self.rate, self.per_node, self.limit)
    }

    /// The lines as a drawing.
    pub fn svg(&self) -> String {
        svg::chart(&self.title(), &self.unit(), self.rate, &self.series().0)
    }

    fn title(&self) -> String {
        format!("{} of {}: {}", printable(&self.map), printable(&self.program), self.unit())
    }

    /// What the numbers are.
    fn unit(&self) -> String {
        let field = printable(&self.field);
        if self.rate { format!("{field} per second") } else { field }
    }

    /// Titles of the columns before the blocks.
    fn titles(&self) -> Vec<String> {
        let number = self.field.strip_prefix("value.").unwrap_or(&self.field).to_uppercase();
        let number = if self.rate { format!("{number}/S") } else { number };
        let node = self.per_node.then(|| "NODE".to_owned());
        node.into_iter().chain(["KEY".to_owned(), printable(&number), "GROWTH".to_owned()]).collect()
    }

    fn cells(series: &Series) -> Vec<String> {
        let last = series.points.last().map_or_else(|| "-".to_owned(), |(_, number)| short(number.as_f64()));
        let node = series.node.as_deref().map(printable);
        node.into_iter().chain([label(&series.key), last, short(series.growth.as_f64())]).collect()
    }

    /// The lines as text.
    pub fn table(&self) -> String {
        let (series, _) = self.series();
        let seconds = series.iter().filter_map(|s| Some(s.points.last()?.0 - s.points.first()?.0)).fold(0.0, f64::max);
        let blocks = format!("{seconds:.0} SECONDS");
        let mut table = table::Table::new(self.titles().into_iter().chain([blocks]), 0);
        for series in &series {
            table.row(Board::cells(series).into_iter().chain([spark(&numbers(series), self.rate, PRINTED)]));
        }
        format!("{}\n{}", self.title(), table.render())
    }

    fn head(&self, shown: usize, of: usize) -> String {
        let nodes = self.looks.nodes();
        let failed = match self.failed.len() {
            0 => String::new(),
            failed => format!(", {failed} failed"),
        };
        let s = if nodes == 1 { "" } else { "s" };
        format!("{}   {nodes} node{s}{failed}   {shown} of {of} lines", self.title())
    }

    fn lines(&self, series: &[Series], area: Rect, room: usize) -> Table<'static> {
        let titles = self.titles();
        let all: Vec<Vec<String>> = series.iter().map(Board::cells).collect();
        let width = |index: usize| {
            let of = |cells: &Vec<String>| cells.get(index).map_or(0, |cell| Span::raw(cell.as_str()).width());
            std::iter::once(&titles).chain(&all).map(of).max().unwrap_or(0).try_into().unwrap_or(u16::MAX)
        };
        let mut widths: Vec<u16> = (0..titles.len()).map(width).collect();
        let numbers_from = titles.len() - 2;
        let soft: Vec<bool> = (0..titles.len()).map(|index| index < numbers_from).collect();
        fit(&mut widths, &soft, GAP, area.width.saturating_sub(LEAST + GAP));
        let used: u16 = widths.iter().map(|width| width + GAP).sum();
        let blocks = area.width.saturating_sub(used).max(1);
        widths.push(blocks);
        let aligned = |cells: &[String], blocks: String| {
            let cell = |(index, cell): (usize, &String)| {
                let line = Line::from(cell.clone());
                if index < numbers_from { line } else { line.right_aligned() }
            };
            Row::new(cells.iter().enumerate().map(cell).chain([Line::from(blocks)]).collect::<Vec<_>>())
        };
        let row = |(series, cells): (&Series, &Vec<String>)| {
            // A block for each look, the last at the right end: they move to the left.
            let numbers = numbers(series);
            let last = numbers.len().saturating_sub(usize::from(blocks));
            aligned(
                cells,
                format!("{:>1$}", spark(&numbers[last..], self.rate, usize::from(blocks)), usize::from(blocks)),
            )
        };
        let rows: Vec<Row<'static>> = series.iter().zip(&all).skip(self.scroll.first).take(room).map(row).collect();
        Table::new(rows, widths.into_iter().map(Constraint::Length))
            .header(aligned(&titles, String::new()).style(Style::new().add_modifier(Modifier::REVERSED)))
            .column_spacing(GAP)
    }
}

impl View for Board {
    fn press(&mut self, key: KeyCode) {
        match key {
            KeyCode::Char('r') => self.rate = !self.rate,
            other => drop(self.scroll.press(other)),
        }
    }

    fn draw(&mut self, frame: &mut Frame<'_>) {
        let status = u16::from(!self.remarks.is_empty());
        let parts = [Constraint::Length(1), Constraint::Min(0), Constraint::Length(status), Constraint::Length(1)];
        let [head, body, remark, hint] = Layout::vertical(parts).areas(frame.area());
        let room = usize::from(body.height.saturating_sub(1));
        let (series, of) = self.series();
        self.scroll.set(series.len(), room);
        frame.render_widget(Line::from(self.head(series.len(), of)).bold(), head);
        frame.render_widget(self.lines(&series, body, room), body);
        let last = self.remarks.last().map(|said| first_line(said)).unwrap_or_default();
        frame.render_widget(Line::from(last).red(), remark);
        frame.render_widget(Line::from(HINT).dim(), hint);
    }
}

fn numbers(series: &Series) -> Vec<f64> {
    series.points.iter().map(|(_, number)| number.as_f64()).collect()
}

/// A block for each number, as high as it is between the lowest (`from_zero`: or zero) and the highest; of more than
/// `width` each block is the mean of some.
fn spark(numbers: &[f64], from_zero: bool, width: usize) -> String {
    let mean = |some: &[f64]| some.iter().sum::<f64>() / some.len().max(1) as f64;
    let columns = numbers.len().min(width);
    let part = |column: usize| &numbers[column * numbers.len() / columns..(column + 1) * numbers.len() / columns];
    let means: Vec<f64> = (0..columns).map(|column| mean(part(column))).collect();
    let lowest = means.iter().copied().fold(if from_zero { 0.0 } else { f64::INFINITY }, f64::min);
    let highest = means.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let levels = [
        bar::ONE_EIGHTH,
        bar::ONE_QUARTER,
        bar::THREE_EIGHTHS,
        bar::HALF,
        bar::FIVE_EIGHTHS,
        bar::THREE_QUARTERS,
        bar::SEVEN_EIGHTHS,
        bar::FULL,
    ];
    let block = |number: &f64| {
        let height = if highest > lowest { (number - lowest) / (highest - lowest) } else { 0.0 };
        levels[((height * 7.0).round() as usize).min(7)]
    };
    means.iter().map(block).collect()
}

/// A number of at most five digits: `950`, `1.25M`.
pub fn short(number: f64) -> String {
    const UNITS: [(f64, &str); 5] = [(1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    let size = number.abs();
    match UNITS.iter().find(|(unit, _)| size >= unit * 10.0 || (size >= *unit && *unit > 1e3)) {
        Some((unit, name)) => format!("{}{name}", plain(number / unit, 2)),
        None => plain(number, 1),
    }
}

/// Without zeroes at the end.
fn plain(number: f64, places: usize) -> String {
    let text = format!("{number:.places$}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::super::series::tests::{look, schema};
    use super::*;
    use crate::args::GraphFormat;
    use crate::screen::text;
    use std::time::Duration;

    fn board(per_node: bool) -> Board {
        let graph = Graph {
            name: "flows".into(),
            map: "counts".into(),
            field: "value".into(),
            rate: false,
            per_node,
            node: None,
            filter: None,
            duration: None,
            interval: Duration::from_secs(1),
            limit: 2,
            output: GraphFormat::Chart,
        };
        let mut board = Board::new(&graph);
        for (number, value) in [0, 1, 2, 9].into_iter().enumerate() {
            let frame = look(number as u64, &[(7, value * 10_000), (8, 5), (9, 1)], &[]);
            board.hear("n1", &schema(), &frame).unwrap();
        }
        board
    }

    #[test]
    fn a_screen_has_a_row_of_blocks_for_each_line() {
        let mut board = board(false);
        let wanted = "\
counts of flows: value   1 node   2 of 3 lines
KEY  VALUE  GROWTH
7      90k     90k                            ▁▂▃█
8        5       0                            ▁▁▁▁
q end  r rate or number  Up Down PgUp PgDn scroll
";
        assert_eq!(text(&mut board, 50, 5), wanted);
        board.press(KeyCode::Char('r'));
        board.fail("n2", "gone\nDo this");
        let shown = text(&mut board, 70, 6);
        assert!(shown.contains("value per second   1 node, 1 failed   2 of 3 lines"), "{shown}");
        assert!(
            shown.contains("KEY  VALUE/S  GROWTH") && shown.contains("140k") && shown.contains("n2: gone"),
            "{shown}"
        );
        text(&mut board, 1, 1);
        text(&mut board, 12, 3);
    }

    #[test]
    fn elsewhere_lines_are_a_table() {
        let board = board(true);
        let wanted = "\
counts of flows: value
NODE   KEY   VALUE   GROWTH   2 SECONDS
n1     7     90k     90k      ▁▂▃█
n1     8     5       0        ▁▁▁▁
";
        assert_eq!(board.table(), wanted);
    }

    #[test]
    fn blocks_are_means_and_numbers_are_short() {
        assert_eq!(spark(&[0.0, 0.0, 7.0, 7.0, 3.5, 3.5], true, 3), "▁█▅");
        assert_eq!(spark(&[5.0, 6.0], true, 2), "▇█");
        assert_eq!((spark(&[], false, 3), spark(&[5.0, 6.0], false, 3)), (String::new(), "▁█".into()));
        let texts = [950.0, 9_500.0, 12_345.0, 1_250_000.0, -0.01, -20_000.0, 0.25].map(short);
        assert_eq!(texts, ["950", "9500", "12.35k", "1.25M", "0", "-20k", "0.2"]);
    }
}
