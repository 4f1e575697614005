//! Tables as kubectl prints them: columns of equal width, three blanks apart, nothing after the last.

/// Text for one line: what could steer a terminal is escaped. Names and messages come from objects and from kernel memory.
pub fn printable(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

/// A table being filled.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
    indent: usize,
}

impl Table {
    /// With a header, each line indented by `indent` blanks.
    pub fn new<S: AsRef<str>>(header: impl IntoIterator<Item = S>, indent: usize) -> Self {
        Table { rows: vec![header.into_iter().map(|h| printable(h.as_ref())).collect()], indent }
    }

    /// One more row. Empty cells are shown as `-`.
    pub fn row<S: AsRef<str>>(&mut self, cells: impl IntoIterator<Item = S>) {
        let cells = cells.into_iter().map(|cell| match cell.as_ref() {
            "" => "-".to_owned(),
            text => printable(text),
        });
        self.rows.push(cells.collect());
    }

    /// The table's lines.
    pub fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| self.rows.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count()).max();
        let widths: Vec<usize> = (0..columns).map(|c| width(c).unwrap_or(0)).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = " ".repeat(self.indent);
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 3));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_nothing_steers_the_terminal() {
        let mut table = Table::new(["A", "B"], 1);
        table.row(["long", "\u{1b}[31mred"]);
        table.row(["", "x\ny"]);
        assert_eq!(table.render(), " A      B\n long   \\u{1b}[31mred\n -      x\\ny\n");
    }
}
