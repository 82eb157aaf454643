//! Snapshots for tests: a healthy box and one in trouble.

use crate::status::{LaneStatus, Link, LogStatus, SourceCounters, Status, UpstreamCounters};
use crate::values::Name;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// One source, one upstream, all delivered.
pub(crate) fn healthy() -> Status {
    let source = SourceCounters::default();
    source.received.add(12_345);
    source.stored.add(12_340);
    source.repeats.add(5);
    source.connections.add(4);
    source.last_seen_ms.set(7_199_000);
    let upstream = UpstreamCounters::default();
    upstream.delivered.add(12_340);
    upstream.connects.add(1);
    upstream.last_receipt_ms.set(7_199_500);
    upstream.set_link(Link::Up);
    Status {
        version: "0.1.0".into(),
        gateway: "icu-3-east".into(),
        site: "st-marys".into(),
        running_s: 7_200,
        since: "2026-11-22T12:00:00Z".into(),
        config: "0123456789abcdef".into(),
        sources: [(name("monitors"), source.snapshot("mllp", "10.20.0.1:2575", 7_200_000))].into(),
        upstreams: [(name("engine"), upstream.snapshot("mllp", "engine.st-marys.example:2575", 7_200_000))].into(),
        lanes: vec![lane(0, 0, None, 0)],
        logs: vec![log(64 << 20)],
        cipher: "AES-256-GCM".into(),
        index_written: 5 << 20,
        alarms: vec![],
    }
}

/// A source that can't bind, an upstream that is away, dead letters, a log that is nearly full.
pub(crate) fn troubled() -> Status {
    let mut status = healthy();
    let source = SourceCounters::default();
    source.set_trouble(Some("10.21.0.1:2575 is in use".into()));
    status.sources.insert(name("lab"), source.snapshot("mllp", "10.21.0.1:2575", 7_200_000));
    for upstream in status.upstreams.values_mut() {
        upstream.link = Link::Down("connection refused \"twice\"\nby \\ engine".into());
        upstream.retried = 17;
    }
    status.lanes = vec![lane(1_234, 1_500_000, Some(1_800), 2)];
    status.logs = vec![log(7 << 30)];
    status
}

fn lane(backlog: u64, backlog_bytes: u64, oldest_s: Option<u64>, dead: u64) -> LaneStatus {
    let (source, upstream) = (name("monitors"), name("engine"));
    LaneStatus {
        source,
        upstream,
        backlog,
        backlog_bytes,
        oldest_s,
        dead,
        dead_retired: 0,
        dead_damaged: 0,
        held: None,
    }
}

fn log(used: u64) -> LogStatus {
    LogStatus {
        log: "clinical".into(),
        quota: 8 << 30,
        used,
        segments: used >> 24,
        refusing: None,
        written: 3 << 30,
        syncs: 9_001,
        groups: 9_000,
        quarantined: 0,
    }
}
