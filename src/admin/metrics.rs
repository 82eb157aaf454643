//! The snapshot as Prometheus text (exposition format 0.0.4): the same numbers as `wardgate status`, for machines.
//!
//! Labels are names from the configuration and states, never a peer's words and never patient data, so that the number of
//! series is bounded by the configuration.

use std::fmt::Write;

use crate::status::{LaneStatus, Link, LogStatus, SourceStatus, Status, UpstreamStatus};

/// Media type of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The whole page.
pub fn render(status: &Status) -> String {
    let mut page = Page::default();
    about(&mut page, status);
    sources(&mut page, status);
    upstreams(&mut page, status);
    lanes(&mut page, &status.lanes);
    logs(&mut page, &status.logs);
    page.family(COUNTER, INDEX_WRITTEN, "Bytes written to the index, beside those of the logs.");
    page.sample(INDEX_WRITTEN, &[], status.index_written);
    page.0
}

fn about(page: &mut Page, status: &Status) {
    let labels = [
        ("version", status.version.as_str()),
        ("gateway", status.gateway.as_str()),
        ("site", status.site.as_str()),
        ("config", status.config.as_str()),
    ];
    page.family(GAUGE, "wardgate_info", "Version and configuration in force; always 1.");
    page.sample("wardgate_info", &labels, 1);
    page.family(GAUGE, "wardgate_uptime_seconds", "Time since the process started.");
    page.sample("wardgate_uptime_seconds", &[], status.running_s);
    page.family(GAUGE, "wardgate_alarm", "What a person must see; 1 for each alarm that is raised.");
    for alarm in &status.alarms {
        page.sample("wardgate_alarm", &[("code", &alarm.code), ("about", &alarm.about)], 1);
    }
}

/// What is read from one part of the snapshot for one family of samples.
type Reading<T> = (&'static str, &'static str, &'static str, fn(&T) -> Option<u64>);

const INDEX_WRITTEN: &str = "wardgate_index_written_bytes_total";
const COUNTER: &str = "counter";
const GAUGE: &str = "gauge";

const SOURCE: [Reading<SourceStatus>; 14] = [
    (COUNTER, "wardgate_source_received_total", "Messages that arrived whole.", |s| Some(s.received)),
    (COUNTER, "wardgate_source_received_bytes_total", "Their bytes.", |s| Some(s.received_bytes)),
    (COUNTER, "wardgate_source_stored_total", "Messages that are on stable storage.", |s| Some(s.stored)),
    (COUNTER, "wardgate_source_repeats_total", "Second copies, acknowledged and not stored again.", |s| {
        Some(s.repeats)
    }),
    (COUNTER, "wardgate_source_refused_total", "Messages that could not be stored.", |s| Some(s.refused)),
    (COUNTER, "wardgate_source_rejected_total", "Messages that the device was told are rejected.", |s| {
        Some(s.rejected)
    }),
    (COUNTER, "wardgate_source_flagged_total", "Messages that were stored with a flag.", |s| Some(s.flagged)),
    (COUNTER, "wardgate_source_gaps_total", "Records that told of something missing before them.", |s| Some(s.gaps)),
    (COUNTER, "wardgate_source_queries_total", "Questions of the device that nobody answers.", |s| Some(s.queries)),
    (GAUGE, "wardgate_source_closed_folders", "Folders in a watched one that can't be looked into.", |s| {
        Some(s.closed_folders)
    }),
    (COUNTER, "wardgate_source_turned_away_total", "Connections that were turned away.", |s| Some(s.turned_away)),
    (GAUGE, "wardgate_source_connections", "Connections now open.", |s| u64::try_from(s.connections).ok()),
    (GAUGE, "wardgate_source_silent_seconds", "Time since the last message.", |s| s.last_seen_s),
    (GAUGE, "wardgate_source_up", "1 when the source runs.", |s| Some(s.trouble.is_none().into())),
];

const UPSTREAM: [Reading<UpstreamStatus>; 7] = [
    (COUNTER, "wardgate_upstream_delivered_total", "Messages that the upstream took.", |u| Some(u.delivered)),
    (COUNTER, "wardgate_upstream_delivered_bytes_total", "Their bytes.", |u| Some(u.delivered_bytes)),
    (COUNTER, "wardgate_upstream_retried_total", "Sends that had to be repeated.", |u| Some(u.retried)),
    (COUNTER, "wardgate_upstream_dead_total", "Messages that became dead letters.", |u| Some(u.dead)),
    (COUNTER, "wardgate_upstream_connects_total", "Connections that were made.", |u| Some(u.connects)),
    (GAUGE, "wardgate_upstream_receipt_age_seconds", "Time since the last receipt.", |u| u.last_receipt_s),
    (GAUGE, "wardgate_upstream_up", "1 when the connection is usable.", |u| Some((u.link == Link::Up).into())),
];

const LANE: [Reading<LaneStatus>; 5] = [
    (GAUGE, "wardgate_lane_backlog_messages", "Messages that wait.", |l| Some(l.backlog)),
    (GAUGE, "wardgate_lane_backlog_bytes", "Their bytes.", |l| Some(l.backlog_bytes)),
    (GAUGE, "wardgate_lane_oldest_seconds", "Age of the oldest that waits; 0: none.", |l| {
        Some(l.oldest_s.unwrap_or(0))
    }),
    (GAUGE, "wardgate_lane_dead_letters", "Dead letters that are kept.", |l| Some(l.dead)),
    (GAUGE, "wardgate_lane_held", "1 when the lane is held.", |l| Some(l.held.is_some().into())),
];

const LOG: [Reading<LogStatus>; 8] = [
    (GAUGE, "wardgate_log_quota_bytes", "Bytes that the log may use.", |l| Some(l.quota)),
    (GAUGE, "wardgate_log_used_bytes", "Bytes that must stay.", |l| Some(l.used)),
    (GAUGE, "wardgate_log_segments", "Segments on disk.", |l| Some(l.segments)),
    (GAUGE, "wardgate_log_refusing", "1 when new messages are refused.", |l| Some(l.refusing.is_some().into())),
    (COUNTER, "wardgate_log_written_bytes_total", "Bytes written to the disk, all files of the log.", |l| {
        Some(l.written)
    }),
    (COUNTER, "wardgate_log_syncs_total", "Syncs.", |l| Some(l.syncs)),
    (COUNTER, "wardgate_log_groups_total", "Groups of records that were written together.", |l| Some(l.groups)),
    (GAUGE, "wardgate_log_quarantined_segments", "Segments in which damage was found.", |l| Some(l.quarantined)),
];

fn sources(page: &mut Page, status: &Status) {
    for (kind, name, help, read) in SOURCE {
        page.family(kind, name, help);
        for (source, part) in &status.sources {
            let labels = [("source", source.as_str()), ("protocol", part.protocol.as_str())];
            page.optional(name, &labels, read(part));
        }
    }
}

fn upstreams(page: &mut Page, status: &Status) {
    for (kind, name, help, read) in UPSTREAM {
        page.family(kind, name, help);
        for (upstream, part) in &status.upstreams {
            let labels = [("upstream", upstream.as_str()), ("protocol", part.protocol.as_str())];
            page.optional(name, &labels, read(part));
        }
    }
}

fn lanes(page: &mut Page, lanes: &[LaneStatus]) {
    for (kind, name, help, read) in LANE {
        page.family(kind, name, help);
        for lane in lanes {
            page.optional(name, &[("source", lane.source.as_str()), ("upstream", lane.upstream.as_str())], read(lane));
        }
    }
}

fn logs(page: &mut Page, logs: &[LogStatus]) {
    for (kind, name, help, read) in LOG {
        page.family(kind, name, help);
        for log in logs {
            page.optional(name, &[("log", log.log.as_str())], read(log));
        }
    }
}

/// The text as it grows. Writing to a `String` can't fail.
#[derive(Default)]
struct Page(String);

impl Page {
    fn family(&mut self, kind: &str, name: &str, help: &str) {
        writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}").ok();
    }

    fn optional(&mut self, name: &str, labels: &[(&str, &str)], value: Option<u64>) {
        if let Some(value) = value {
            self.sample(name, labels, value);
        }
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        let labels: Vec<String> = labels.iter().map(|(key, text)| format!("{key}=\"{}\"", escaped(text))).collect();
        let braced = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        writeln!(self.0, "{name}{braced} {value}").ok();
    }
}

/// A label's value, with the three characters escaped that the format names.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::admin::{alarms, sample};

    /// An independent reading of the format: each sample with its labels and value, under a family that was announced.
    fn parse(page: &str) -> BTreeMap<String, f64> {
        let mut family = String::new();
        let mut samples = BTreeMap::new();
        for line in page.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert!(["counter", "gauge"].contains(&kind) && name.starts_with("wardgate_"), "{line}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
                name.clone_into(&mut family);
            } else if !line.starts_with("# HELP ") {
                let (series, value) = line.rsplit_once(' ').unwrap();
                let name = series.split('{').next().unwrap();
                assert_eq!(name, family, "a sample outside its family");
                assert!(samples.insert(series.to_owned(), value.parse().unwrap()).is_none(), "twice: {series}");
            }
        }
        samples
    }

    #[test]
    fn every_number_of_the_snapshot_is_on_the_page() {
        let samples = parse(&render(&sample::troubled()));
        let value = |series: &str| samples[series];
        assert_eq!(value("wardgate_source_received_total{source=\"monitors\",protocol=\"mllp\"}"), 12_345.0);
        assert_eq!(value("wardgate_source_up{source=\"lab\",protocol=\"mllp\"}"), 0.0);
        assert_eq!(value("wardgate_upstream_up{upstream=\"engine\",protocol=\"mllp\"}"), 0.0);
        assert_eq!(value("wardgate_lane_oldest_seconds{source=\"monitors\",upstream=\"engine\"}"), 1_800.0);
        assert_eq!(value("wardgate_log_used_bytes{log=\"clinical\"}"), 7_516_192_768.0);
        assert_eq!(value("wardgate_index_written_bytes_total"), 5_242_880.0);
        assert!(!samples.keys().any(|series| series.starts_with("wardgate_source_silent_seconds{source=\"lab\"")));
    }

    #[test]
    fn what_a_device_left_out_what_it_asks_and_what_lies_closed_are_on_the_page() {
        let mut status = sample::troubled();
        let source = status.sources.get_mut(&"lab".parse().unwrap()).unwrap();
        (source.gaps, source.queries, source.closed_folders) = (3, 5, 2);
        let samples = parse(&render(&status));
        let value = |name: &str| samples[&format!("wardgate_source_{name}{{source=\"lab\",protocol=\"mllp\"}}")];
        assert_eq!([value("gaps_total"), value("queries_total"), value("closed_folders")], [3.0, 5.0, 2.0]);
    }

    #[test]
    fn alarms_are_on_the_page_without_a_peers_words() {
        let mut status = sample::troubled();
        status.alarms = alarms::derive(&status);
        let page = render(&status);
        assert!(page.contains("wardgate_alarm{code=\"dead-letters\",about=\"monitors > engine\"} 1\n"), "{page}");
        assert!(!page.contains("refused \"twice\""));
    }

    #[test]
    fn a_label_cannot_break_its_line() {
        assert_eq!(escaped("a\"b\\c\nd"), r#"a\"b\\c\nd"#);
    }
}
