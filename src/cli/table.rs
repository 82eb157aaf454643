//! Tables of text that fit the width they are given: the columns that may shrink do, then the least important go.
//!
//! Widths are counted in characters; names here are ASCII, and a wide letter in a peer's words costs at most a ragged edge.

use super::terminal::plain;
pub use crate::values::{count, counted};

/// Narrowest that a column that may shrink becomes before another one goes.
const SHRUNK_MIN: usize = 12;
/// Between two columns.
const GAP: usize = 2;

/// One column.
#[derive(Clone, Debug)]
pub struct Column {
    title: &'static str,
    right: bool,
    shrinks: bool,
    rank: u8,
}

impl Column {
    /// A column of words.
    pub fn left(title: &'static str) -> Self {
        Self { title, right: false, shrinks: false, rank: 0 }
    }

    /// A column of numbers.
    pub fn right(title: &'static str) -> Self {
        Self { right: true, ..Self::left(title) }
    }

    /// It may be cut short with an ellipsis.
    #[must_use]
    pub fn shrinking(mut self) -> Self {
        self.shrinks = true;
        self
    }

    /// It may go when there is no room; the highest rank goes first.
    #[must_use]
    pub fn optional(mut self, rank: u8) -> Self {
        self.rank = rank;
        self
    }
}

/// Rows under columns.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Without rows yet.
    pub fn new(columns: impl IntoIterator<Item = Column>) -> Self {
        Self { columns: columns.into_iter().collect(), rows: Vec::new() }
    }

    /// One more row, with a cell for each column. Cells may hold a peer's words: they are made harmless here.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| plain(&cell)).collect());
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Titles and rows as lines of at most `width` characters (unless even the columns that must stay are wider).
    pub fn render(&self, width: usize) -> String {
        let mut shown: Vec<usize> = (0..self.columns.len()).collect();
        let widths = loop {
            let widths = self.fitted(&shown, width);
            let total: usize = widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1);
            let least = shown.iter().enumerate().max_by_key(|(_, column)| self.rank(**column));
            match least {
                Some((at, column)) if total > width && self.rank(*column) > 0 => shown.remove(at),
                _ => break widths,
            };
        };
        let titles: Vec<String> = self.columns.iter().map(|column| column.title.to_owned()).collect();
        let lines = std::iter::once(&titles).chain(&self.rows).map(|cells| self.line(cells, &shown, &widths));
        lines.collect::<Vec<_>>().join("\n")
    }

    fn rank(&self, column: usize) -> u8 {
        self.columns.get(column).map_or(0, |column| column.rank)
    }

    /// Natural widths, less what the shrinking columns can give, from the left: the words at the end of a row matter more.
    fn fitted(&self, shown: &[usize], width: usize) -> Vec<usize> {
        let mut widths: Vec<usize> = shown.iter().map(|column| self.natural(*column)).collect();
        let total: usize = widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1);
        let mut excess = total.saturating_sub(width);
        for (at, column) in shown.iter().enumerate() {
            let shrinks = self.columns.get(*column).is_some_and(|column| column.shrinks);
            if let (true, Some(own)) = (shrinks, widths.get_mut(at)) {
                let given = excess.min(own.saturating_sub(SHRUNK_MIN));
                *own -= given;
                excess -= given;
            }
        }
        widths
    }

    fn natural(&self, column: usize) -> usize {
        let title = self.columns.get(column).map_or(0, |column| column.title.len());
        let cells = self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.max().unwrap_or(0).max(title)
    }

    fn line(&self, cells: &[String], shown: &[usize], widths: &[usize]) -> String {
        let mut line = String::new();
        for (column, width) in shown.iter().zip(widths) {
            let cell = cut(cells.get(*column).map_or("", String::as_str), *width);
            let right = self.columns.get(*column).is_some_and(|column| column.right);
            if !line.is_empty() {
                line.push_str(&" ".repeat(GAP));
            }
            line.push_str(&if right { format!("{cell:>width$}") } else { format!("{cell:<width$}") });
        }
        line.truncate(line.trim_end().len());
        line
    }
}

/// The text in at most `width` characters.
pub fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// Bytes for people: `3.1 MiB`.
pub fn bytes(number: u64) -> String {
    let units = [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.iter().find(|(_, unit)| number >= *unit) {
        Some((name, unit)) => format!("{}.{} {name}", number / unit, number % unit * 10 / unit),
        None => format!("{number} B"),
    }
}

/// A length of time for people: `4 s`, `12 min`, `3 h 20 min`, `5 d 2 h`.
pub fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{minutes} min"),
        3_600..86_400 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstreams() -> Table {
        let columns = [
            Column::left("UPSTREAM"),
            Column::right("DELIVERED"),
            Column::right("RETRIED").optional(1),
            Column::left("LINK").shrinking(),
        ];
        let mut table = Table::new(columns);
        table.row(["engine", "1 204", "3", "up"].map(String::from));
        table.row(["cloud", "17", "0", "down: the broker's certificate ended on 2026-11-01"].map(String::from));
        table
    }

    #[test]
    fn a_wide_terminal_shows_everything() {
        let expected = "\
UPSTREAM  DELIVERED  RETRIED  LINK
engine        1 204        3  up
cloud            17        0  down: the broker's certificate ended on 2026-11-01";
        assert_eq!(upstreams().render(100), expected);
    }

    #[test]
    fn a_narrow_one_cuts_the_words_first() {
        let expected = "\
UPSTREAM  DELIVERED  RETRIED  LINK
engine        1 204        3  up
cloud            17        0  down: the broker's…";
        assert_eq!(upstreams().render(49), expected);
    }

    #[test]
    fn a_very_narrow_one_gives_up_the_least_important_column() {
        let expected = "\
UPSTREAM  DELIVERED  LINK
engine        1 204  up
cloud            17  down: the b…";
        assert_eq!(upstreams().render(33), expected);
    }

    #[test]
    fn a_peers_words_are_made_harmless() {
        let mut table = Table::new([Column::left("CAUSE")]);
        table.row(["\x1b[31mred\n".to_owned()]);
        assert_eq!(table.render(80), "CAUSE\n\u{fffd}[31mred\u{fffd}");
    }

    #[test]
    fn numbers_read_as_people_write_them() {
        assert_eq!([count(7), count(1_234), count(1_234_567)], ["7", "1 234", "1 234 567"]);
        let messages = [0, 1, 1_234].map(|number| counted(number, "message"));
        assert_eq!(messages, ["0 messages", "1 message", "1 234 messages"]);
        assert_eq!([bytes(512), bytes(1_536), bytes(3 << 30)], ["512 B", "1.5 KiB", "3.0 GiB"]);
        assert_eq!([age(4), age(725), age(12_000), age(439_200)], ["4 s", "12 min", "3 h 20 min", "5 d 2 h"]);
    }
}
