//! What the demo shows: a line each second into a pipe, and in a terminal the numbers with the backlog's last minute as a
//! little mountain range.

use std::collections::VecDeque;
use std::time::Duration;

use super::ledger::{Books, Totals};
use super::status_view;
use super::table::{Column, Table, age, count, cut};
use crate::status::{Link, Status};

/// Looks that the picture of the backlog shows: a minute at four a second, two looks for one column.
const HISTORY_MAX: usize = 240;
/// From nothing to all.
const HEIGHTS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// The numbers of one look.
#[derive(Clone, Debug)]
pub struct Moment {
    /// Since the beginning.
    pub elapsed: Duration,
    /// Whether the upstream is cut now.
    pub cut: bool,
    /// What the gateway received.
    pub received: u64,
    /// What it stored.
    pub stored: u64,
    /// What its upstream took.
    pub delivered: u64,
    /// What waits.
    pub waiting: u64,
    /// Age of the oldest that waits, in seconds.
    pub oldest_s: Option<u64>,
    /// How the gateway sees its upstream.
    pub link: Link,
    /// Of the simulated monitors.
    pub monitors: Simulated,
    /// Of the simulated scanners.
    pub scanners: Simulated,
    /// Of the simulated analyser.
    pub analyser: Simulated,
    /// Of the simulated sensors.
    pub sensors: Simulated,
    /// Of the simulated oximeter.
    pub oximeter: Simulated,
    /// Messages and images of real devices that arrived.
    pub strangers: usize,
}

/// What became of what simulated devices sent.
#[derive(Clone, Copy, Debug)]
pub struct Simulated {
    /// The demo's own book.
    pub totals: Totals,
    /// What waits in the gateway.
    pub waiting: u64,
}

impl Moment {
    /// Takes the numbers out of the gateway's snapshot.
    pub fn new(elapsed: Duration, cut: bool, status: &Status, books: &Books, strangers: usize) -> Self {
        let (waiting, oldest_s) = status.backlog();
        let waiting_of = |name: &str| {
            let lanes = status.lanes.iter().filter(|lane| lane.source.as_str() == name);
            lanes.map(|lane| lane.backlog).sum()
        };
        Self {
            elapsed,
            cut,
            received: status.sources.values().map(|source| source.received).sum(),
            stored: status.sources.values().map(|source| source.stored).sum(),
            delivered: status.upstreams.values().map(|upstream| upstream.delivered).sum(),
            waiting,
            oldest_s,
            link: status.upstreams.values().next().map_or(Link::Idle, |upstream| upstream.link.clone()),
            monitors: Simulated { totals: books.messages.totals(), waiting: waiting_of("monitors") },
            scanners: Simulated { totals: books.images.totals(), waiting: waiting_of("scanners") },
            analyser: Simulated { totals: books.results.totals(), waiting: waiting_of("analyser") },
            sensors: Simulated { totals: books.readings.totals(), waiting: waiting_of("sensors") },
            oximeter: Simulated { totals: books.lines.totals(), waiting: waiting_of("oximeter") },
            strangers,
        }
    }

    fn upstream(&self) -> String {
        match self.cut {
            true => format!("CUT OFF (the gateway says: {})", status_view::link(&self.link)),
            false => status_view::link(&self.link),
        }
    }

    fn oldest(&self) -> String {
        self.oldest_s.map_or_else(|| "-".to_owned(), age)
    }
}

/// One line for a pipe or a file.
pub fn line(moment: &Moment) -> String {
    format!(
        "{:>5} s  received {:>6}  stored {:>6}  delivered {:>6}  waiting {:>5}  oldest {:>6}  images {:>4}  upstream {}",
        moment.elapsed.as_secs(),
        moment.received,
        moment.stored,
        moment.delivered,
        moment.waiting,
        moment.oldest(),
        moment.scanners.totals.arrived,
        if moment.cut { "CUT" } else { short(&moment.link) },
    )
}

fn short(link: &Link) -> &'static str {
    match link {
        Link::Idle => "idle",
        Link::Connecting => "connecting",
        Link::Up => "up",
        Link::Down(_) => "down",
    }
}

/// The picture in a terminal, with what it remembers of the last minute.
pub struct View {
    how_to: String,
    length: Option<Duration>,
    history: VecDeque<u64>,
}

impl View {
    /// Nothing seen yet.
    pub fn new(how_to: String, length: Option<Duration>) -> Self {
        Self { how_to, length, history: VecDeque::new() }
    }

    /// The whole screen, for this width.
    pub fn screen(&mut self, moment: &Moment, width: usize) -> String {
        self.history.push_back(moment.waiting);
        if self.history.len() > HISTORY_MAX {
            self.history.pop_front();
        }
        let end = self.length.map(|length| format!(" of {}", age(length.as_secs()))).unwrap_or_default();
        let mut lines: Vec<String> = self.how_to.lines().map(|line| cut(line, width)).collect();
        lines.push(String::new());
        lines.push(format!("{}{end}   upstream: {}", age(moment.elapsed.as_secs()), moment.upstream()));
        lines.push(String::new());
        lines.push(numbers(moment).render(width));
        lines.push(String::new());
        lines.push(format!("waiting, the last minute (highest {})", count(self.highest())));
        lines.push(self.mountains(width));
        if moment.strangers > 0 {
            lines.push(format!("{} messages and images of real devices have arrived", moment.strangers));
        }
        lines.push(String::new());
        lines.push(promises(moment).render(width));
        lines.push("Ctrl-C ends it: what waits is delivered first, then the verdict".to_owned());
        lines.iter().flat_map(|line| line.lines().map(|line| cut(line, width))).collect::<Vec<_>>().join("\n")
    }

    fn highest(&self) -> u64 {
        self.history.iter().copied().max().unwrap_or(0)
    }

    /// The backlog of the last looks; two looks make one column.
    fn mountains(&self, width: usize) -> String {
        let highest = self.highest().max(1);
        let looks: Vec<u64> = self.history.iter().copied().collect();
        let columns: Vec<char> = looks
            .chunks(2)
            .map(|pair| {
                let waiting = pair.iter().copied().max().unwrap_or(0);
                let height = (waiting * 8).div_ceil(highest);
                usize::try_from(height).ok().and_then(|height| HEIGHTS.get(height)).copied().unwrap_or(' ')
            })
            .collect();
        columns.iter().skip(columns.len().saturating_sub(width)).collect()
    }
}

fn numbers(moment: &Moment) -> Table {
    let titles = ["RECEIVED", "STORED", "DELIVERED", "WAITING", "OLDEST"];
    let mut table = Table::new(titles.map(Column::right));
    table.row([
        count(moment.received),
        count(moment.stored),
        count(moment.delivered),
        count(moment.waiting),
        moment.oldest(),
    ]);
    table
}

fn promises(moment: &Moment) -> Table {
    let titles = ["SENT", "ACKNOWLEDGED", "WAITING", "FOUND AT THE FAR END"];
    let mut table = Table::new(std::iter::once(Column::left("SIMULATED")).chain(titles.map(Column::right)));
    let rows = [
        ("messages", moment.monitors),
        ("CT images", moment.scanners),
        ("results", moment.analyser),
        ("readings", moment.sensors),
    ];
    for (name, Simulated { totals, waiting }) in rows {
        let numbers = [totals.sent, totals.acknowledged, waiting, totals.arrived].map(count);
        table.row(std::iter::once(name.to_owned()).chain(numbers));
    }
    let Simulated { totals, waiting } = moment.oximeter;
    let unanswered = [count(totals.sent), "-".to_owned(), count(waiting), count(totals.arrived)];
    table.row(std::iter::once("oximeter lines".to_owned()).chain(unanswered));
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(second: u64, waiting: u64, cut: bool) -> Moment {
        Moment {
            elapsed: Duration::from_secs(second),
            cut,
            received: 192,
            stored: 192,
            delivered: 192 - waiting,
            waiting,
            oldest_s: (waiting > 0).then_some(2),
            link: if cut { Link::Down("closed".into()) } else { Link::Up },
            monitors: Simulated { totals: Totals { sent: 193, acknowledged: 192, arrived: 192 - waiting }, waiting },
            scanners: Simulated { totals: Totals { sent: 24, acknowledged: 24, arrived: 24 }, waiting: 0 },
            analyser: Simulated { totals: Totals { sent: 6, acknowledged: 6, arrived: 6 }, waiting: 0 },
            sensors: Simulated { totals: Totals { sent: 24, acknowledged: 24, arrived: 24 }, waiting: 0 },
            oximeter: Simulated { totals: Totals { sent: 12, acknowledged: 12, arrived: 12 }, waiting: 0 },
            strangers: 0,
        }
    }

    #[test]
    fn a_line_tells_all_that_matters() {
        let expected = "   12 s  received    192  stored    192  delivered    160  waiting    32  oldest    2 s  images   24  upstream CUT";
        assert_eq!(line(&moment(12, 32, true)), expected);
    }

    #[test]
    fn the_backlog_is_seen_to_grow_and_drain() {
        let mut view = View::new("how to".into(), Some(Duration::from_secs(40)));
        let mut screen = String::new();
        for (second, waiting) in [0, 0, 4, 4, 16, 16, 32, 32, 8, 8, 0, 0].into_iter().enumerate() {
            screen = view.screen(&moment(u64::try_from(second).unwrap(), waiting, false), 80);
        }
        assert!(screen.contains("(highest 32)\n ▁▄█▂"), "{screen}");
        assert!(screen.contains("CT images         24            24        0                    24"), "{screen}");
        assert!(screen.contains("oximeter lines"), "{screen}");
        assert!(screen.lines().all(|line| line.chars().count() <= 80), "{screen}");
    }
}
