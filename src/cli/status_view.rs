//! The snapshot as text for people: what a person must do first, then sources, upstreams, what waits, space.
//!
//! A pure function of the snapshot and the width, so that a terminal, a pipe and a test see the same.

use super::table::{Column, Table, age, bytes, count, counted, cut};
use super::terminal::plain;
use super::{imaging_view, plug_view};
use crate::status::{LaneStatus, Link, LogStatus, SourceStatus, Status, UpstreamStatus};
use crate::values::Name;

/// Characters of the bar that shows how full a log is.
const BAR_WIDTH: u64 = 20;

/// The whole snapshot, for a terminal of this width.
pub fn render(status: &Status, width: usize) -> String {
    let mut parts = vec![headline(status, width)];
    parts.extend(alarms(status, width));
    parts.push(section(sources(status), "no sources are configured", width));
    parts.extend(plug_view::devices(status).map(|table| table.render(width)));
    parts.extend(plug_view::unreadable(status).map(|table| table.render(width)));
    parts.extend(imaging_view::studies(status).map(|table| table.render(width)));
    parts.extend(imaging_view::peers(status).map(|table| table.render(width)));
    parts.push(section(upstreams(status), "no upstreams are configured", width));
    parts.extend(lanes(&status.lanes).map(|table| table.render(width)));
    parts.push(section(logs(&status.logs), "the spool is not open", width));
    parts.push(format!(
        "index: {} written since the start; sealed with {}",
        bytes(status.index_written),
        status.cipher
    ));
    parts.join("\n\n")
}

fn headline(status: &Status, width: usize) -> String {
    let line = format!(
        "wardgate {}  {} at {}  since {} ({})  configuration {}",
        status.version,
        status.gateway,
        status.site,
        status.since,
        age(status.running_s),
        status.config,
    );
    cut(&plain(&line), width)
}

/// What a person must see comes before everything else, and is never cut short.
fn alarms(status: &Status, width: usize) -> Option<String> {
    let texts = status.alarms.iter().map(|alarm| {
        let text = format!("! {} ({}): {}", alarm.about, alarm.code, alarm.text);
        wrap(&plain(&text), width)
    });
    let all: Vec<String> = texts.collect();
    (!all.is_empty()).then(|| all.join("\n"))
}

fn section(table: Table, when_empty: &str, width: usize) -> String {
    if table.is_empty() { when_empty.to_owned() } else { table.render(width) }
}

fn sources(status: &Status) -> Table {
    let mut table = Table::new([
        Column::left("SOURCE"),
        Column::left("AT").shrinking().optional(4),
        Column::right("RECEIVED"),
        Column::right("STORED"),
        Column::right("FLAGGED").optional(7),
        Column::right("REPEATS").optional(6),
        Column::right("REFUSED").optional(2),
        Column::right("REJECTED").optional(3),
        Column::right("AWAY").optional(8),
        Column::right("OPEN").optional(5),
        Column::right("LAST").optional(1),
        Column::left("STATE").shrinking(),
    ]);
    for (name, source) in &status.sources {
        table.row(source_row(name, source));
    }
    table
}

fn source_row(name: &Name, source: &SourceStatus) -> [String; 12] {
    [
        name.to_string(),
        format!("{} {}", source.protocol, source.endpoint),
        count(source.received),
        count(source.stored),
        count(source.flagged),
        count(source.repeats),
        count(source.refused),
        count(source.rejected),
        count(source.turned_away),
        source.connections.to_string(),
        ago(source.last_seen_s),
        source.trouble.as_ref().map_or_else(|| plug_view::state(source), |trouble| format!("NOT RUNNING: {trouble}")),
    ]
}

fn upstreams(status: &Status) -> Table {
    let mut table = Table::new([
        Column::left("UPSTREAM"),
        Column::left("TO").shrinking().optional(4),
        Column::right("DELIVERED"),
        Column::right("RETRIED").optional(3),
        Column::right("DEAD").optional(2),
        Column::right("LAST").optional(1),
        Column::left("LINK").shrinking(),
    ]);
    for (name, upstream) in &status.upstreams {
        table.row(upstream_row(name, upstream));
    }
    table
}

fn upstream_row(name: &Name, upstream: &UpstreamStatus) -> [String; 7] {
    [
        name.to_string(),
        format!("{} {}", upstream.protocol, upstream.endpoint),
        count(upstream.delivered),
        count(upstream.retried),
        count(upstream.dead),
        ago(upstream.last_receipt_s),
        link(&upstream.link),
    ]
}

/// How a connection stands, in words.
pub fn link(link: &Link) -> String {
    match link {
        Link::Idle => "not tried yet".to_owned(),
        Link::Connecting => "connecting".to_owned(),
        Link::Up => "up".to_owned(),
        Link::Down(cause) => format!("DOWN: {cause}"),
    }
}

/// What waits, lane by lane; `None` without lanes.
pub fn lanes(lanes: &[LaneStatus]) -> Option<Table> {
    let mut table = Table::new([
        Column::left("LANE"),
        Column::right("WAITING"),
        Column::right("SIZE").optional(2),
        Column::right("OLDEST"),
        Column::right("DEAD").optional(3),
        Column::left("STATE").shrinking().optional(1),
    ]);
    for lane in lanes {
        table.row([
            format!("{} > {}", lane.source, lane.upstream),
            count(lane.backlog),
            bytes(lane.backlog_bytes),
            lane.oldest_s.map_or_else(|| "-".to_owned(), age),
            count(lane.dead),
            lane.held.as_ref().map_or_else(|| state_of(lane).to_owned(), |why| format!("HELD: {why}")),
        ]);
    }
    (!table.is_empty()).then_some(table)
}

fn state_of(lane: &LaneStatus) -> &'static str {
    match (lane.backlog, lane.dead) {
        (0, 0) => "all delivered",
        (0, _) => "nothing waits, but see dead list",
        _ => "waiting",
    }
}

/// The logs with their bars.
pub fn logs(logs: &[LogStatus]) -> Table {
    let mut table = Table::new([
        Column::left("LOG"),
        Column::left("FULL").optional(1),
        Column::right("USED"),
        Column::right("QUOTA"),
        Column::right("SEGMENTS").optional(4),
        Column::right("WRITTEN").optional(3),
        Column::right("SYNCS").optional(5),
        Column::left("STATE").shrinking(),
    ]);
    for log in logs {
        table.row([
            log.log.clone(),
            bar(log.used, log.quota),
            bytes(log.used),
            bytes(log.quota),
            count(log.segments),
            bytes(log.written),
            count(log.syncs),
            log_state(log),
        ]);
    }
    table
}

fn log_state(log: &LogStatus) -> String {
    match (&log.refusing, log.quarantined) {
        (Some(why), _) => format!("REFUSING: {why}"),
        (None, 0) => "taking".to_owned(),
        (None, damaged) => format!("taking; {} DAMAGED: wardgate spool verify", counted(damaged, "segment")),
    }
}

/// `[####······]  37 %`
pub fn bar(used: u64, quota: u64) -> String {
    let (used, quota) = (u128::from(used), u128::from(quota.max(1)));
    let percent = used * 100 / quota;
    let filled = (used * u128::from(BAR_WIDTH) / quota).min(u128::from(BAR_WIDTH));
    let marks = (0..u128::from(BAR_WIDTH)).map(|at| if at < filled { '#' } else { '.' });
    format!("[{}] {percent:>3} %", marks.collect::<String>())
}

fn ago(seconds: Option<u64>) -> String {
    seconds.map_or_else(|| "never".to_owned(), |seconds| format!("{} ago", age(seconds)))
}

/// Breaks a text between words; further lines are indented.
pub(super) fn wrap(text: &str, width: usize) -> String {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let Some(line) = lines.last_mut() else { break };
        if !line.trim().is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(format!("  {word}"));
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::{alarms, sample};

    #[test]
    fn a_healthy_box_is_told_in_four_short_parts() {
        let expected = "\
wardgate 0.1.0  icu-3-east at st-marys  since 2026-11-22T12:00:00Z (2 h 0 min)  configuration 0123456789abcdef

SOURCE    AT                   RECEIVED  STORED  FLAGGED  REPEATS  REFUSED  REJECTED  AWAY  OPEN     LAST  STATE
monitors  mllp 10.20.0.1:2575    12 345  12 340        0        5        0         0     0     4  1 s ago  listening

UPSTREAM  TO                                 DELIVERED  RETRIED  DEAD     LAST  LINK
engine    mllp engine.st-marys.example:2575     12 340        0     0  0 s ago  up

LANE               WAITING  SIZE  OLDEST  DEAD  STATE
monitors > engine        0   0 B       -     0  all delivered

LOG       FULL                              USED    QUOTA  SEGMENTS  WRITTEN  SYNCS  STATE
clinical  [....................]   0 %  64.0 MiB  8.0 GiB         4  3.0 GiB  9 001  taking

index: 5.0 MiB written since the start; sealed with AES-256-GCM";
        assert_eq!(render(&sample::healthy(), 120), expected);
    }

    #[test]
    fn what_a_person_must_do_comes_first_and_is_never_cut() {
        let mut status = sample::troubled();
        status.alarms = alarms::derive(&status);
        let text = render(&status, 80);
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for alarm in &status.alarms {
            let wanted = plain(&alarm.text).split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(words.contains(&wanted), "{wanted} is not whole in:\n{text}");
        }
        assert!(text.find("! lab (source-down)").unwrap() < text.find("SOURCE ").unwrap(), "{text}");
        assert!(text.contains("DOWN: connection"), "{text}");
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        for width in [80, 100, 132] {
            let mut status = sample::troubled();
            status.alarms = alarms::derive(&status);
            let text = render(&status, width);
            assert!(text.lines().all(|line| line.chars().count() <= width), "{width}:\n{text}");
        }
    }

    #[test]
    fn a_lane_with_dead_letters_is_not_called_delivered() {
        let mut status = sample::healthy();
        status.lanes[0].dead = 1;
        let text = render(&status, 120);
        assert!(!text.contains("all delivered") && text.contains("nothing waits, but see dead list"), "{text}");
    }

    #[test]
    fn the_bar_is_full_when_the_log_is() {
        assert_eq!(bar(7 << 30, 8 << 30), "[#################...]  87 %");
        assert_eq!(bar(9, 8), "[####################] 112 %");
        assert_eq!(bar(0, 0), "[....................]   0 %");
    }
}
