//! Readings of a device on their way into the spool: numbered without a gap, stamped, and with a word about those that are missing.
//!
//! Every telemetry source stores through this. A reading that could not be stored is not numbered: the next one says how many are
//! missing and why, so that a consumer sees the loss whatever the protocol.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use serde::Deserialize;

use super::intake::{About, Intake, Share, Submission};
use crate::envelope::{Class, Flags, Stamp};
use crate::spool::{CommitError, Committed, FRAGMENT_BYTES};
use crate::status::SourceCounters;
use crate::telemetry::record::{
    CONTENT_TYPE, DeviceTime, Event, Gap, GapReason, Named, Observation, Raw, Record, VERSION,
};

/// Bytes of a record about, beside the device's own and what was observed.
const RECORD_BYTES: usize = 512;
/// Bytes of an observation in it.
const OBSERVATION_BYTES: usize = 192;

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
    /// What all records of the stream have.
    frame: Record,
    numbered: u64,
    /// Lost since the last record; a commit that fails adds to it, wherever its future is by then.
    lost: Arc<Mutex<Option<Gap>>>,
}

impl Readings {
    /// A stream that begins now. `stream` names it within the source and holds no patient data.
    pub fn new(intake: &Intake, stream: impl Into<String>) -> Self {
        let source = intake.source().to_string();
        let frame = Record { source, stream: stream.into(), boot: boot_id(), ..empty() };
        Self { intake: intake.clone(), frame, numbered: 0, lost: Arc::default() }
    }

    /// Makes a reading durable. Ok means: on stable storage; the device may be told.
    ///
    /// # Errors
    /// [`CommitError`] when the log is full or has failed. The reading is then lost to us unless the device says it again, and the next
    /// one that is stored carries a gap of reason `overflow`.
    pub async fn store(&mut self, reading: Reading) -> Result<Committed, CommitError> {
        let prepared = self.prepare(reading);
        let _share = self.intake.share(prepared.body.len()).await;
        self.stored(prepared).await
    }

    /// As [`Readings::store`], for a reading whose frame has had its share of the memory since it was caught. It asks for no other: who holds
    /// one and waits for another waits behind those who wait for his, for ever.
    ///
    /// # Errors
    /// As [`Readings::store`].
    pub async fn store_holding(&mut self, reading: Reading, _share: Share) -> Result<Committed, CommitError> {
        let prepared = self.prepare(reading);
        self.stored(prepared).await
    }

    /// Makes a word of this box itself about the device durable: not counted as the device's, and no sign of life of it.
    ///
    /// # Errors
    /// As [`Readings::store`].
    pub async fn note(&mut self, reading: Reading) -> Result<Committed, CommitError> {
        let prepared = Prepared { of_device: false, ..self.prepare(reading) };
        let _share = self.intake.share(prepared.body.len()).await;
        self.stored(prepared).await
    }

    async fn stored(&mut self, prepared: Prepared) -> Result<Committed, CommitError> {
        let outcome = prepared.commit(false).await;
        if outcome.is_err() {
            // Nobody has seen its number.
            self.numbered -= 1;
        }
        outcome
    }

    /// Numbers a reading now, to be sent off by [`Numbered::send`]: for a device that does not wait for the one to send the next. The number of
    /// a reading that could not be stored is not given again.
    pub fn number(&mut self, reading: Reading) -> Numbered {
        Numbered(self.prepare(reading))
    }

    /// Notes readings that were dropped before they could be put: the next one tells of them.
    pub fn lose(&self, count: u64) {
        self.miss(overflow(count));
    }

    /// Notes a gap that belongs before the next reading, which tells of it.
    pub fn miss(&self, gap: Gap) {
        add(&self.lost, gap);
    }

    fn prepare(&mut self, reading: Reading) -> Prepared {
        let flags = reading.flags;
        let received = reading.received.unwrap_or_else(|| self.intake.now());
        self.numbered += 1;
        // A reading with a gap of its own leaves what is lost besides to the next one.
        let gap = reading.gap.clone().or_else(|| whole(&self.lost).take());
        let body = self.record(reading, received, gap.clone());
        let about = About {
            content_type: CONTENT_TYPE.to_owned(),
            // Numbered here, so no reading is a second copy of another: the duplicate window is left to those who repeat themselves.
            control_id: Vec::new(),
            flags,
        };
        let untold = Untold {
            gap,
            is_stored: false,
            lost: Arc::clone(&self.lost),
            counters: Arc::clone(self.intake.counters()),
        };
        Prepared { intake: self.intake.clone(), received, body, about, untold, of_device: true }
    }

    /// The record of a reading, as it is stored. What all records of the stream have is kept and not made anew for each.
    fn record(&mut self, reading: Reading, received: Stamp, gap: Option<Gap>) -> Vec<u8> {
        let Reading { device_time, observations, events, device, about, raw, .. } = reading;
        let raw_bytes = match &raw {
            Some(Raw::Text(text) | Raw::Base64(text)) => text.len(),
            None => 0,
        };
        let size = RECORD_BYTES + raw_bytes + OBSERVATION_BYTES * observations.len();
        let record = Record {
            seq: self.numbered,
            received: received.into(),
            device_time,
            observations,
            events,
            gap,
            device,
            about,
            raw,
            ..std::mem::replace(&mut self.frame, empty())
        };
        let body = json(&record, size);
        let Record { source, stream, boot, .. } = record;
        self.frame = Record { source, stream, boot, ..empty() };
        body
    }
}

/// A reading that has its number and is not sent off yet. Dropped, it is told as missing by the next one.
pub struct Numbered(Prepared);

impl Numbered {
    /// Sends it off, and gives the future that ends when it is durable. Readings are stored in the order of the calls, but for those of more
    /// than [`FRAGMENT_BYTES`], which are sent when their future is first polled; they share a sync when they were put `among_others`. One
    /// that is not may be written here and now, so hold no lock. The share is what the reading may hold in memory, and is given back at the
    /// end.
    pub fn send(self, share: Share, among_others: bool) -> Put {
        let Self(prepared) = self;
        if prepared.body.len() > FRAGMENT_BYTES {
            let end = prepared.commit(among_others);
            return Put(End::Long(Box::pin(async move {
                let _share = share;
                end.await
            })));
        }
        let Prepared { intake, received, body, about, untold, .. } = prepared;
        let submission = intake.submit(received, &body, about, among_others);
        Put(End::Short { submission, untold, _share: share })
    }
}

/// The end of a reading that was sent off.
pub struct Put(End);

enum End {
    Short { submission: Submission, untold: Untold, _share: Share },
    Long(Pin<Box<dyn Future<Output = Result<Committed, CommitError>> + Send>>),
}

impl Put {
    /// Whether it is not sent off before it is polled.
    pub fn must_be_polled(&self) -> bool {
        matches!(self.0, End::Long(_))
    }
}

#[cfg(test)]
impl Put {
    /// A put with an end of a test's own.
    pub fn of(end: impl Future<Output = Result<Committed, CommitError>> + Send + 'static) -> Self {
        Self(End::Long(Box::pin(end)))
    }
}

impl Future for Put {
    type Output = Result<Committed, CommitError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            End::Long(end) => end.as_mut().poll(context),
            End::Short { submission, untold, .. } => {
                let outcome = Pin::new(submission).poll(context);
                if let Poll::Ready(outcome) = &outcome {
                    untold.is_stored = outcome.is_ok();
                }
                outcome
            }
        }
    }
}

/// A record that has its number.
struct Prepared {
    intake: Intake,
    received: Stamp,
    body: Vec<u8>,
    about: About,
    /// What nobody is told of unless it is stored.
    untold: Untold,
    /// It came from the device, and is not a word of this box about it.
    of_device: bool,
}

impl Prepared {
    async fn commit(mut self, among_others: bool) -> Result<Committed, CommitError> {
        let mut incoming = self.intake.begin_at(self.received);
        if among_others {
            incoming.among_others();
        }
        let outcome = match incoming.write(&self.body).await {
            Ok(()) if self.of_device => incoming.commit(self.about).await,
            Ok(()) => incoming.commit_note(self.about).await,
            Err(error) => Err(error),
        };
        self.untold.is_stored = outcome.is_ok();
        outcome
    }
}

/// What the next record must tell when this one is not stored, because it could not be or because nobody waited for it: the gap of which it
/// would have told, and itself. A commit that nobody waited for may have ended well all the same; a gap too many is better than none.
struct Untold {
    gap: Option<Gap>,
    is_stored: bool,
    lost: Arc<Mutex<Option<Gap>>>,
    counters: Arc<SourceCounters>,
}

impl Drop for Untold {
    fn drop(&mut self) {
        match (self.is_stored, self.gap.take()) {
            (true, Some(_told)) => self.counters.gaps.one(),
            (true, None) => {}
            (false, gap) => gap.into_iter().chain([overflow(1)]).for_each(|gap| add(&self.lost, gap)),
        }
    }
}

fn overflow(count: u64) -> Gap {
    Gap { reason: GapReason::Overflow, from: None, to: None, count: Some(count), lasted_ms: None }
}

/// Makes one gap of those that are not told yet and this one; the first one's reason stays.
fn add(lost: &Mutex<Option<Gap>>, gap: Gap) {
    let sum = |one: Option<u64>, other: Option<u64>| match (one, other) {
        (Some(one), Some(other)) => Some(one.saturating_add(other)),
        (one, other) => one.or(other),
    };
    let mut lost = whole(lost);
    *lost = Some(match lost.take() {
        None => gap,
        Some(before) => Gap {
            reason: before.reason,
            from: before.from.or(gap.from),
            to: gap.to.or(before.to),
            count: sum(before.count, gap.count),
            lasted_ms: sum(before.lasted_ms, gap.lasted_ms),
        },
    });
}

/// A value that is whole even when a thread died while it held the lock.
fn whole<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
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

fn json(record: &Record, size: usize) -> Vec<u8> {
    let mut body = Vec::with_capacity(size);
    // Unwrap safety: only maps with keys that are no strings, and writers that fail, can fail here. A record has neither.
    #[allow(clippy::unwrap_used)]
    serde_json::to_writer(&mut body, record).unwrap();
    body
}

/// A record of nothing and nobody.
fn empty() -> Record {
    Record {
        v: VERSION,
        source: String::new(),
        stream: String::new(),
        boot: String::new(),
        seq: 0,
        received: Stamp { wall_us: 0, synchronised: false, uptime_ms: 0 }.into(),
        device_time: None,
        observations: Vec::new(),
        events: Vec::new(),
        gap: None,
        device: Vec::new(),
        about: Vec::new(),
        subject: Vec::new(),
        raw: None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::watch;

    use super::*;
    use crate::spool::{Disk, Secret, Spool, SpoolConfig};

    impl Prepared {
        /// The record, as if it had been stored.
        fn taken(mut self) -> Record {
            self.untold.is_stored = true;
            serde_json::from_slice(&self.body).unwrap()
        }
    }

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
        assert_eq!(readings.prepare(Reading::default()).taken().seq, 3);
        readings.lose(2);
        let next = readings.prepare(Reading::default()).taken();
        assert_eq!((next.seq, next.gap), (4, Some(overflow(2))));
        assert_eq!(readings.prepare(Reading::default()).taken().gap, None, "it is told once");
        drop(readings.number(Reading::default()));
        assert_eq!(readings.prepare(Reading::default()).taken().gap, Some(overflow(1)), "nobody waited for it");
        assert_ne!(Readings::new(&intake, "numerics").frame.boot, readings.frame.boot);
        let parse = |count| Gap { reason: GapReason::Parse, lasted_ms: Some(7), ..overflow(count) };
        readings.lose(2);
        let own = Reading { gap: Some(parse(3)), ..Reading::default() };
        assert_eq!(readings.prepare(own).taken().gap, Some(parse(3)), "its own gap, and no other");
        assert_eq!(readings.prepare(Reading::default()).taken().gap, Some(overflow(2)), "which the next one tells");
        assert_eq!(intake.counters().stored.value(), 2);
        // Before the clock of this box is trusted a reading is taken like any other, with the time since the start of its service.
        let before = Stamp { wall_us: 5, synchronised: false, uptime_ms: 77 };
        let reading = || Reading { received: Some(before), ..Reading::default() };
        readings.store(reading()).await.unwrap();
        let time = readings.prepare(reading()).taken().received;
        assert_eq!((time.synchronised, time.uptime_ms), (false, 77));
    }

    #[tokio::test]
    async fn a_gap_whose_record_could_not_be_stored_is_told_by_the_next_one_that_can() {
        let folder = tempfile::tempdir().unwrap();
        let config: SpoolConfig = toml::from_str("path = '/unused'\nkey = 'unused'").unwrap();
        let spool = Spool::open(Arc::new(Disk::open(folder.path()).unwrap()), Secret::random(), &config).unwrap();
        let (_targets, routed) = watch::channel(Arc::from(["cloud".parse().unwrap()]));
        let intake = Intake::new("ward".parse().unwrap(), "serial", Class::Telemetry, spool.clone(), routed);
        let mut readings = Readings::new(&intake, "numerics");
        tokio::task::spawn_blocking(move || spool.close()).await.unwrap();
        let unplugged = Gap { reason: GapReason::Unplugged, from: None, to: None, count: Some(4), lasted_ms: Some(9) };
        readings.store(Reading { gap: Some(unplugged.clone()), ..Reading::default() }).await.unwrap_err();
        readings.store(Reading::default()).await.unwrap_err();
        let next = readings.prepare(Reading::default()).taken();
        assert_eq!((next.seq, next.gap), (1, Some(Gap { count: Some(6), ..unplugged })));
    }
}
