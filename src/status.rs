//! What every part has done and how it stands: counters that the parts move, and one published [`Status`] snapshot.
//!
//! Counting never blocks and never allocates. Nothing here holds patient data: names, numbers, states and causes only.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::values::Name;
use imaging::{Imaging, ImagingStatus};
use plug::{PlugStatus, Plugged};

pub mod imaging;
pub mod plug;

/// What each stage of the service has turned so far, by the stage's name.
pub type Turns = BTreeMap<String, u64>;
/// The stage that stands for what can only be looked at while no configuration is being applied.
pub const PARTS_STAGE: &str = "the gateway's parts";

/// A number that only grows.
#[derive(Default, Debug)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn one(&self) {
        self.add(1);
    }

    /// `count` more.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// The present value.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Default, Debug)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Adds, or takes away.
    pub fn add(&self, count: i64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// Sets.
    pub fn set(&self, value: i64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The present value.
    pub fn value(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a source counts.
#[derive(Default, Debug)]
pub struct SourceCounters {
    /// Messages that arrived whole.
    pub received: Counter,
    /// Their bytes.
    pub received_bytes: Counter,
    /// Messages that were committed.
    pub stored: Counter,
    /// Second copies within the duplicate window: acknowledged, not stored again.
    pub repeats: Counter,
    /// Messages that this box could not store (full, failed).
    pub refused: Counter,
    /// Messages that the device was told are rejected (over a limit, can't be correlated).
    pub rejected: Counter,
    /// Messages that were stored with a flag.
    pub flagged: Counter,
    /// Bytes around messages that were thrown away.
    pub discarded_bytes: Counter,
    /// Connections now open.
    pub connections: Gauge,
    /// Connections that were turned away (allow list, limit, TLS).
    pub turned_away: Counter,
    /// Uptime of the last message, milliseconds; 0: none since the start.
    pub last_seen_ms: Gauge,
    /// Why the source is not running, if it is not.
    pub trouble: Mutex<Option<String>>,
    /// Peers and studies of a DICOM source.
    pub imaging: Imaging,
    /// The plug of a local device.
    pub plug: Plugged,
    /// Questions of a device that nobody answers (ASTM: Q records).
    pub queries: Counter,
    /// Uptime of the last one, milliseconds; 0: none since the start.
    pub last_query_ms: Gauge,
    /// Grows while the source's task moves.
    pub turns: Counter,
    /// Records that told of something missing before them.
    pub gaps: Counter,
    /// Folders in a watched one that can't be looked into.
    pub closed_folders: Gauge,
}

impl SourceCounters {
    /// Says why the source is not running, or that it is (`None`).
    pub fn set_trouble(&self, trouble: Option<String>) {
        *whole(&self.trouble) = trouble;
    }

    /// The source in the snapshot. `endpoint` is where it is bound, `now_ms` the present uptime, in milliseconds.
    pub fn snapshot(&self, protocol: &str, endpoint: &str, now_ms: u64) -> SourceStatus {
        SourceStatus {
            protocol: protocol.to_owned(),
            endpoint: endpoint.to_owned(),
            received: self.received.value(),
            received_bytes: self.received_bytes.value(),
            stored: self.stored.value(),
            repeats: self.repeats.value(),
            refused: self.refused.value(),
            rejected: self.rejected.value(),
            flagged: self.flagged.value(),
            discarded_bytes: self.discarded_bytes.value(),
            connections: self.connections.value(),
            turned_away: self.turned_away.value(),
            last_seen_s: seconds_since(&self.last_seen_ms, now_ms),
            trouble: whole(&self.trouble).clone(),
            imaging: self.imaging.snapshot(now_ms),
            plug: self.plug.snapshot(now_ms),
            queries: self.queries.value(),
            last_query_s: seconds_since(&self.last_query_ms, now_ms),
            gaps: self.gaps.value(),
            closed_folders: u64::try_from(self.closed_folders.value()).unwrap_or(0),
        }
    }
}

/// What an upstream's forwarder counts.
#[derive(Default, Debug)]
pub struct UpstreamCounters {
    /// Messages that the upstream took responsibility for.
    pub delivered: Counter,
    /// Their bytes.
    pub delivered_bytes: Counter,
    /// Sends that had to be repeated.
    pub retried: Counter,
    /// Messages that became dead letters.
    pub dead: Counter,
    /// Connections that were made.
    pub connects: Counter,
    /// Uptime of the last receipt, milliseconds; 0: none since the start.
    pub last_receipt_ms: Gauge,
    /// How the connection stands.
    pub link: Mutex<Link>,
    /// Grows while the forwarder moves.
    pub turns: Counter,
    /// The lanes that run, each by its source, with what grows while it moves.
    lanes: Mutex<Vec<(Name, Weak<Counter>)>>,
    /// Since when it has been down, attempts between included.
    down_since: Mutex<Option<Instant>>,
}

impl UpstreamCounters {
    /// A lane begins to run; it does as long as the counter lives that is its own.
    pub fn lane(&self, source: &Name) -> Arc<Counter> {
        let turns = Arc::default();
        let mut lanes = whole(&self.lanes);
        lanes.retain(|(_, turns)| turns.strong_count() > 0);
        lanes.push((source.clone(), Arc::downgrade(&turns)));
        turns
    }

    /// The turns of the lanes that run.
    pub fn lanes(&self) -> Vec<(Name, u64)> {
        let lanes = whole(&self.lanes);
        lanes.iter().filter_map(|(source, turns)| Some((source.clone(), turns.upgrade()?.value()))).collect()
    }

    /// Says how the connection stands now.
    pub fn set_link(&self, link: Link) {
        let mut down_since = whole(&self.down_since);
        match &link {
            Link::Down(_) => *down_since = down_since.or_else(|| Some(Instant::now())),
            Link::Up | Link::Idle => *down_since = None,
            Link::Connecting => {}
        }
        *whole(&self.link) = link;
    }

    /// The upstream in the snapshot. `endpoint` is where it sends to, `now_ms` the present uptime, in milliseconds.
    pub fn snapshot(&self, protocol: &str, endpoint: &str, now_ms: u64) -> UpstreamStatus {
        UpstreamStatus {
            protocol: protocol.to_owned(),
            endpoint: endpoint.to_owned(),
            delivered: self.delivered.value(),
            delivered_bytes: self.delivered_bytes.value(),
            retried: self.retried.value(),
            dead: self.dead.value(),
            connects: self.connects.value(),
            last_receipt_s: seconds_since(&self.last_receipt_ms, now_ms),
            down_s: whole(&self.down_since).map(|since| since.elapsed().as_secs()),
            link: whole(&self.link).clone(),
        }
    }
}

/// How a connection to an upstream stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state", content = "cause")]
pub enum Link {
    /// Not tried yet.
    #[default]
    Idle,
    /// Being made.
    Connecting,
    /// Usable.
    Up,
    /// Failed; the cause in words. It is tried again.
    Down(String),
}

/// A source in the snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SourceStatus {
    /// Its protocol.
    pub protocol: String,
    /// Where it listens or what it reads, as it is bound.
    pub endpoint: String,
    /// See [`SourceCounters`].
    pub received: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Committed.
    pub stored: u64,
    /// Second copies.
    pub repeats: u64,
    /// Could not be stored.
    pub refused: u64,
    /// Rejected.
    pub rejected: u64,
    /// Stored with a flag.
    pub flagged: u64,
    /// Bytes around messages that were thrown away.
    pub discarded_bytes: u64,
    /// Open connections.
    pub connections: i64,
    /// Turned away.
    pub turned_away: u64,
    /// Seconds since the last message; `None`: none since the start.
    pub last_seen_s: Option<u64>,
    /// Why it is not running.
    pub trouble: Option<String>,
    /// Peers and studies; only of a DICOM source that was called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imaging: Option<ImagingStatus>,
    /// The plug; only of a source whose device plugs in locally.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plug: Option<PlugStatus>,
    /// Questions of the device that nobody answers.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub queries: u64,
    /// Seconds since the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_query_s: Option<u64>,
    /// Records that told of something missing before them: unplugged, unreadable, dropped.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub gaps: u64,
    /// Folders in a watched one that can't be looked into.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub closed_folders: u64,
}

// Serde hands over a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// An upstream in the snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct UpstreamStatus {
    /// Its protocol.
    pub protocol: String,
    /// Where it sends to.
    pub endpoint: String,
    /// Taken by the upstream.
    pub delivered: u64,
    /// Bytes taken.
    pub delivered_bytes: u64,
    /// Sent again.
    pub retried: u64,
    /// Became dead letters.
    pub dead: u64,
    /// Connections made.
    pub connects: u64,
    /// Seconds since the last receipt; `None`: none since the start.
    pub last_receipt_s: Option<u64>,
    /// For how long it can't be reached, seconds; `None`: it can, or was not tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down_s: Option<u64>,
    /// The connection.
    pub link: Link,
}

/// A lane (source and upstream) in the snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LaneStatus {
    /// The source.
    pub source: Name,
    /// The upstream.
    pub upstream: Name,
    /// Messages that wait.
    pub backlog: u64,
    /// Their bytes.
    pub backlog_bytes: u64,
    /// Age of the oldest that waits, seconds of uptime.
    pub oldest_s: Option<u64>,
    /// Dead letters that are kept.
    pub dead: u64,
    /// Of these, such whose upstream was retired.
    #[serde(default)]
    pub dead_retired: u64,
    /// Of these, such that can't be read back: damaged on this box's disk.
    #[serde(default)]
    pub dead_damaged: u64,
    /// Why it is held, if it is.
    pub held: Option<String>,
}

/// A log of the spool in the snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LogStatus {
    /// `clinical`, `imaging` or `telemetry`.
    pub log: String,
    /// Bytes that it may use.
    pub quota: u64,
    /// Bytes of segments that hold something that must stay.
    pub used: u64,
    /// Segments on disk.
    pub segments: u64,
    /// Whether intake is refused, and why.
    pub refusing: Option<String>,
    /// Bytes written since the start, all files of the log.
    pub written: u64,
    /// Syncs since the start.
    pub syncs: u64,
    /// Groups of records since the start.
    pub groups: u64,
    /// Segments in which damage was found.
    pub quarantined: u64,
}

/// Something that a person must see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Alarm {
    /// A stable code: `backlog-age`, `dead-letters`, `quota`, `silence`, `spool-failed`, `certificate`, ...
    pub code: String,
    /// What it is about: a source, an upstream, a log.
    pub about: String,
    /// In words, with what to do.
    pub text: String,
}

/// The snapshot of the whole gateway.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    /// The program's version.
    pub version: String,
    /// The box's name.
    pub gateway: String,
    /// The site's name.
    pub site: String,
    /// Seconds since the process started; all counters count from then.
    pub running_s: u64,
    /// When that was: RFC 3339, by the box's clock as it is now.
    #[serde(default)]
    pub since: String,
    /// SHA-256 of the configuration in force, first 16 hexadecimal digits.
    pub config: String,
    /// Sources by name.
    pub sources: BTreeMap<Name, SourceStatus>,
    /// Upstreams by name.
    pub upstreams: BTreeMap<Name, UpstreamStatus>,
    /// Lanes.
    pub lanes: Vec<LaneStatus>,
    /// Logs.
    pub logs: Vec<LogStatus>,
    /// The cipher of new segments: what this CPU does fastest.
    #[serde(default)]
    pub cipher: String,
    /// Bytes written to the index since the start; what the logs wrote is told by each of them.
    #[serde(default)]
    pub index_written: u64,
    /// What a person must see.
    pub alarms: Vec<Alarm>,
}

impl Status {
    /// Messages that wait, all lanes together, and the age of the oldest, in seconds.
    pub fn backlog(&self) -> (u64, Option<u64>) {
        let waiting = self.lanes.iter().map(|lane| lane.backlog).sum();
        (waiting, self.lanes.iter().filter_map(|lane| lane.oldest_s).max())
    }
}

/// A value that is whole even when a thread died while it held the lock: it is replaced in one step.
fn whole<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whole seconds from a moment of the uptime to now; `None` when there was no such moment.
fn seconds_since(then_ms: &Gauge, now_ms: u64) -> Option<u64> {
    let then_ms = u64::try_from(then_ms.value()).ok().filter(|then_ms| *then_ms > 0)?;
    Some(now_ms.saturating_sub(then_ms) / 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_tells_how_long_ago_the_last_message_came() {
        let counters = SourceCounters::default();
        assert_eq!(counters.snapshot("mllp", "127.0.0.1:2575", 90_000).last_seen_s, None);
        counters.last_seen_ms.set(60_000);
        counters.received.one();
        counters.set_trouble(Some("address in use".into()));
        let snapshot = counters.snapshot("mllp", "127.0.0.1:2575", 90_000);
        assert_eq!((snapshot.received, snapshot.last_seen_s), (1, Some(30)));
        assert_eq!(snapshot.trouble.as_deref(), Some("address in use"));
    }

    #[test]
    fn a_link_keeps_its_cause_on_the_way_to_the_snapshot_and_back() {
        let counters = UpstreamCounters::default();
        counters.set_link(Link::Down("refused".into()));
        let json = serde_json::to_string(&counters.snapshot("mqtt", "broker:8883", 0)).unwrap();
        assert!(json.contains(r#""link":{"state":"down","cause":"refused"}"#), "{json}");
        assert_eq!(serde_json::from_str::<UpstreamStatus>(&json).unwrap().link, Link::Down("refused".into()));
    }
}
