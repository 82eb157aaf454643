//! What every part has done and how it stands: counters that the parts move, and one published [`Status`] snapshot.
//!
//! Counting never blocks and never allocates. Nothing here holds patient data: names, numbers, states and causes only.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::values::Name;

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
    /// Open connections.
    pub connections: i64,
    /// Turned away.
    pub turned_away: u64,
    /// Seconds since the last message; `None`: none since the start.
    pub last_seen_s: Option<u64>,
    /// Why it is not running.
    pub trouble: Option<String>,
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
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    /// The program's version.
    pub version: String,
    /// The box's name.
    pub gateway: String,
    /// The site's name.
    pub site: String,
    /// Seconds since the process started.
    pub running_s: u64,
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
    /// What a person must see.
    pub alarms: Vec<Alarm>,
}
