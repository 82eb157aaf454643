//! Readings of a device on their way into the spool: numbered without a gap, stamped, and with a word about those that are missing.
//!
//! Every telemetry source stores through this. A reading that could not be stored is not numbered: the next one says how many are
//! missing and why, so that a consumer sees the loss whatever the protocol.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::intake::{About, Incoming, Intake, Share};
use crate::envelope::{Class, Flags, Stamp};
use crate::spool::{CommitError, Committed};
use crate::status::SourceCounters;
use crate::telemetry::record::{
    CONTENT_TYPE, DeviceTime, Event, Gap, GapReason, Named, Observation, Raw, Record, VERSION,
};

/// `log`: which log a telemetry source's readings belong to.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TelemetryLog {
    /// The oldest may be dropped when the log is full, with a record that says so.
    #[default]
    Telemetry,
    /// Refused when full, like results that a person waits for.
    Clinical,
}

impl TelemetryLog {
    /// The log's class.
    pub fn class(self) -> Class {
        match self {
            Self::Telemetry => Class::Telemetry,
            Self::Clinical => Class::Clinical,
        }
    }
}

/// What was read at once. [`Default`] is an empty reading of no time: fill in what is known.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Reading {
    /// When its first byte came; `None`: now.
    pub received: Option<Stamp>,
    /// The device's own clock.
    pub device_time: Option<DeviceTime>,
    /// What was observed.
    pub observations: Vec<Observation>,
    /// What happened.
    pub events: Vec<Event>,
    /// Readings that are missing before this one.
    pub gap: Option<Gap>,
    /// The device, as it names itself, when it has just done so.
    pub device: Vec<Named>,
    /// What the protocol said about the bytes: topic, peer, unit.
    pub about: Vec<Named>,
    /// The device's own bytes.
    pub raw: Option<Raw>,
    /// What was noticed.
    pub flags: Flags,
}

/// One stream of readings of one source. Not shared: its order is the order of the calls.
pub struct Readings {
    intake: Intake,
    stream: String,
    boot: String,
    numbered: u64,
    /// Lost since the last record; a commit that fails adds to it, wherever its future is by then.
    lost: Arc<AtomicU64>,
}

impl Readings {
    /// A stream that begins now. `stream` names it within the source and holds no patient data.
    pub fn new(intake: &Intake, stream: impl Into<String>) -> Self {
        let (boot, lost) = (boot_id(), Arc::default());
        Self { intake: intake.clone(), stream: stream.into(), boot, numbered: 0, lost }
    }

    /// Makes a reading durable. Ok means: on stable storage; the device may be told.
    ///
    /// # Errors
    /// [`CommitError`] when the log is full or has failed. The reading is then lost to us unless the device says it again, and the next
    /// one that is stored carries a gap of reason `overflow`.
    pub async fn store(&mut self, reading: Reading) -> Result<Committed, CommitError> {
        self.stored(reading, true).await
    }

    /// Makes a word of this box itself about the device durable: not counted as the device's, and no sign of life of it.
    ///
    /// # Errors
    /// As [`Readings::store`].
    pub async fn note(&mut self, reading: Reading) -> Result<Committed, CommitError> {
        self.stored(reading, false).await
    }

    async fn stored(&mut self, reading: Reading, of_device: bool) -> Result<Committed, CommitError> {
        let prepared = Prepared { of_device, ..self.prepare(reading) };
        let _share = self.intake.share(prepared.body.len()).await;
        let outcome = prepared.commit().await;
        if outcome.is_err() {
            // Nobody has seen its number.
            self.numbered -= 1;
        }
        outcome
    }

    /// Numbers a reading now, and gives the future that makes it durable: for a device that does not wait for the one to send the next.
    /// Futures that are first polled in the order of the calls are stored in it, and share a sync when they were put `among_others`.
    /// The share is what the reading may hold in memory, and is given back at the end.
    ///
    /// The number of a reading that could not be stored is not given again.
    pub fn put(
        &mut self,
        reading: Reading,
        share: Share,
        among_others: bool,
    ) -> impl Future<Output = Result<Committed, CommitError>> + Send + use<> {
        let mut prepared = self.prepare(reading);
        if among_others {
            prepared.incoming.among_others();
        }
        async move {
            let _share = share;
            prepared.commit().await
        }
    }

    /// Notes readings that were dropped before they could be put: the next one tells of them.
    pub fn lose(&self, count: u64) {
        self.lost.fetch_add(count, Ordering::Relaxed);
    }

    fn prepare(&mut self, reading: Reading) -> Prepared {
        let flags = reading.flags;
        let received = reading.received.unwrap_or_else(|| self.intake.now());
        self.numbered += 1;
        let lost = if reading.gap.is_none() { self.lost.swap(0, Ordering::Relaxed) } else { 0 };
        let record = self.record(reading, received, lost);
        let about = About {
            content_type: CONTENT_TYPE.to_owned(),
            // Numbered here, so no reading is a second copy of another: the duplicate window is left to those who repeat themselves.
            control_id: Vec::new(),
            flags,
        };
        Prepared {
            incoming: self.intake.begin_at(received),
            counters: Arc::clone(self.intake.counters()),
            body: json(&record),
            about,
            told: lost,
            tells_gap: record.gap.is_some(),
            lost: Arc::clone(&self.lost),
            of_device: true,
        }
    }

    fn record(&self, reading: Reading, received: Stamp, lost: u64) -> Record {
        let overflow = || Gap { reason: GapReason::Overflow, from: None, to: None, count: Some(lost), lasted_ms: None };
        Record {
            v: VERSION,
            source: self.intake.source().to_string(),
            stream: self.stream.clone(),
            boot: self.boot.clone(),
            seq: self.numbered,
            received: received.into(),
            device_time: reading.device_time,
            observations: reading.observations,
            events: reading.events,
            gap: reading.gap.or_else(|| (lost > 0).then(overflow)),
            device: reading.device,
            about: reading.about,
            subject: Vec::new(),
            raw: reading.raw,
        }
    }
}

/// A record that has its number.
struct Prepared {
    incoming: Incoming,
    counters: Arc<SourceCounters>,
    body: Vec<u8>,
    about: About,
    /// Lost readings of which it tells.
    told: u64,
    /// It tells of something missing.
    tells_gap: bool,
    lost: Arc<AtomicU64>,
    /// It came from the device, and is not a word of this box about it.
    of_device: bool,
}

impl Prepared {
    async fn commit(mut self) -> Result<Committed, CommitError> {
        let outcome = match self.incoming.write(&self.body).await {
            Ok(()) if self.of_device => self.incoming.commit(self.about).await,
            Ok(()) => self.incoming.commit_note(self.about).await,
            Err(error) => Err(error),
        };
        if outcome.is_err() {
            self.lost.fetch_add(self.told + 1, Ordering::Relaxed);
        } else if self.tells_gap {
            self.counters.gaps.one();
        }
        outcome
    }
}

/// Told apart from the start before it by chance alone, so that no state is needed over a power cut.
fn boot_id() -> String {
    let mut random = [0; 6];
    if aws_lc_rs::rand::fill(&mut random).is_err() {
        // No random numbers: the moment tells two starts apart nearly as well.
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        random.copy_from_slice(&since.as_micros().to_be_bytes()[10..]);
    }
    data_encoding::HEXLOWER.encode(&random)
}

fn json(record: &impl Serialize) -> Vec<u8> {
    // Unwrap safety: only maps with keys that are no strings, and writers that fail, can fail here. A record has neither.
    #[allow(clippy::unwrap_used)]
    serde_json::to_vec(record).unwrap()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::watch;

    use super::*;
    use crate::spool::{Disk, Secret, Spool, SpoolConfig};

    #[tokio::test]
    async fn readings_are_numbered_without_a_gap_and_the_next_one_tells_of_those_that_were_refused() {
        let folder = tempfile::tempdir().unwrap();
        let config: SpoolConfig = toml::from_str("path = '/unused'\nkey = 'unused'").unwrap();
        let spool = Spool::open(Arc::new(Disk::open(folder.path()).unwrap()), Secret::random(), &config).unwrap();
        let (_targets, routed) = watch::channel(Arc::from(["cloud".parse().unwrap()]));
        let intake = Intake::new("ward".parse().unwrap(), "serial", Class::Telemetry, spool, routed);
        let mut readings = Readings::new(&intake, "numerics");
        for _ in 0..2 {
            readings.store(Reading { raw: Some(Raw::of(b"SPO2=98")), ..Reading::default() }).await.unwrap();
        }
        let next = readings.prepare(Reading::default());
        assert!(String::from_utf8(next.body).unwrap().contains("\"seq\":3,"));
        readings.lose(2);
        let next: Record = serde_json::from_slice(&readings.prepare(Reading::default()).body).unwrap();
        let gap = next.gap.unwrap();
        assert_eq!((next.seq, gap.reason, gap.count), (4, GapReason::Overflow, Some(2)));
        let after: Record = serde_json::from_slice(&readings.prepare(Reading::default()).body).unwrap();
        assert_eq!(after.gap, None, "it is told once");
        assert_ne!(Readings::new(&intake, "numerics").boot, readings.boot);
        assert_eq!(intake.counters().stored.value(), 2);
    }
}
