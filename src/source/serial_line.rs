//! One line of a device with a profile: asks what the profile asks, cuts frames, and stores each as a reading.
//!
//! Reading and storing go on side by side with a short queue between them, so that a slow disk does not lose bytes at once; when it fills,
//! what is lost is counted and told as a gap. Nobody waits for these readings: all lines store at the same moments, so that they share syncs. Frames that can't be read are stored as they came, a bounded number a minute.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::Stop;
use super::intake::{Intake, Share};
use super::profile::{Asking, Profile};
use super::readings::{Reading, Readings};
use crate::envelope::{Flags, Stamp};
use crate::telemetry::record::{Gap, GapReason, Named, Raw};
use crate::wire::serial_frame::{Found, Framer};

/// Bytes of one read.
const READ_BYTES: usize = 2048;
/// Frames between reading and storing.
const QUEUE_FRAMES: usize = 128;
/// Their bytes; they are a part of what all sources may hold in memory together.
const QUEUE_BYTES: usize = 256 << 10;
/// Readings are stored at moments so far apart, the same for all lines of the box.
const BEAT_MS: u64 = 100;
/// Frames that can't be read and are stored all the same, each minute: noise must not fill the log.
const UNREADABLE_A_MINUTE: u32 = 60;
/// A device that does not take what is said to it for so long is not there.
const WRITE_TIME_MAX: Duration = Duration::from_secs(5);

/// A frame on its way to the spool.
pub struct Caught {
    /// All its bytes.
    pub raw: Vec<u8>,
    /// What is between start and end; `None`: it is damaged or too long.
    pub payload: Option<std::ops::Range<usize>>,
    /// When its first byte came.
    pub received: Stamp,
    /// Frames before this one that found no room.
    pub lost: u64,
    /// What the transport says about it.
    pub about: Vec<Named>,
}

/// What the record of a frame takes in memory at most, as a rule: so much, and so many times the frame's own bytes.
const RECORD_BYTES: usize = 512;
const RECORD_FACTOR: usize = 4;

/// What a frame may hold in memory until its record is stored: of its queue, and of all sources.
pub type Room = (OwnedSemaphorePermit, Share);

/// The reading side of a queue, and what is counted there.
pub struct Catcher {
    intake: Intake,
    framer: Framer,
    queue: mpsc::Sender<(Caught, Room)>,
    /// Bytes that the queue may hold yet.
    room: Arc<Semaphore>,
    room_bytes: usize,
    /// When the first byte of what the framer keeps came.
    begun: Option<Stamp>,
    lost: u64,
}

/// Serves one line until it ends or `stop`.
pub async fn serve<L: AsyncRead + AsyncWrite + Send>(
    line: L,
    profile: Arc<Profile>,
    intake: Intake,
    readings: Arc<Mutex<Readings>>,
    stop: Stop,
) {
    let (queue, caught) = mpsc::channel(QUEUE_FRAMES);
    let catcher = Catcher::new(&intake, profile.framer(), queue, QUEUE_BYTES);
    let (reader, writer) = tokio::io::split(line);
    let talking = talk(reader, writer, catcher, &profile, &stop);
    let (lost, ()) = tokio::join!(talking, store_all(caught, &profile, &intake, &readings));
    if lost > 0 {
        // No frame came after them on this line: the first one of the next line tells of them.
        readings.lock().await.lose(lost);
    }
}

/// Ends with the line; the catcher is dropped with it, which ends the storing once the queue is empty. Returns how many frames found no room
/// and were not told of.
async fn talk<L: AsyncRead + AsyncWrite + Send>(
    mut reader: ReadHalf<L>,
    mut writer: WriteHalf<L>,
    mut catcher: Catcher,
    profile: &Profile,
    stop: &Stop,
) -> u64 {
    let mut schedule = Schedule::new(&profile.asking);
    let mut bytes = vec![0; READ_BYTES];
    // Made once: a line that is never still comes here every few milliseconds.
    let mut stopped = pin!(stop.cancelled());
    loop {
        let (due, silent) = (schedule.due(), profile.idle.filter(|_| !catcher.is_empty()));
        let read = tokio::select! {
            () = stopped.as_mut() => break,
            read = reader.read(&mut bytes) => read,
            () = sleep(silent.unwrap_or_default()), if silent.is_some() => {
                catcher.idle();
                continue;
            }
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                let said = schedule.take(Instant::now());
                let written = timeout(WRITE_TIME_MAX, async {
                    for words in said {
                        writer.write_all(&words).await?;
                    }
                    writer.flush().await
                });
                match written.await {
                    Ok(Ok(())) => continue,
                    _ => break,
                }
            }
        };
        match read {
            Ok(0) | Err(_) => break,
            Ok(count) => {
                schedule.heard(Instant::now());
                catcher.push(bytes.get(..count).unwrap_or_default(), &[]);
            }
        }
    }
    catcher.abandon();
    catcher.lost
}

impl Catcher {
    /// Nothing is kept yet. The queue holds `room_bytes` at most, and one frame in any case.
    pub fn new(intake: &Intake, framer: Framer, queue: mpsc::Sender<(Caught, Room)>, room_bytes: usize) -> Self {
        let room = Arc::new(Semaphore::new(room_bytes));
        Self { intake: intake.clone(), framer, queue, room, room_bytes, begun: None, lost: 0 }
    }

    fn is_empty(&self) -> bool {
        self.framer.is_empty()
    }

    /// Takes what came just now.
    pub fn push(&mut self, bytes: &[u8], about: &[Named]) {
        self.look(about, |framer, found| framer.push(bytes, &mut |what| found(what)));
    }

    /// What came belongs together (a datagram).
    pub fn settle(&mut self, about: &[Named]) {
        self.look(about, |framer, found| framer.settle(&mut |what| found(what)));
    }

    fn idle(&mut self) {
        self.look(&[], |framer, found| framer.idle(&mut |what| found(what)));
    }

    fn abandon(&mut self) {
        self.look(&[], |framer, found| framer.abandon(&mut |what| found(what)));
    }

    fn look(&mut self, about: &[Named], step: impl FnOnce(&mut Framer, &mut dyn FnMut(Found<'_>))) {
        let now = self.intake.now();
        let mut received = self.begun.take().unwrap_or(now);
        let (intake, queue, lost) = (&self.intake, &self.queue, &mut self.lost);
        let (counters, room, room_bytes) = (intake.counters(), &self.room, self.room_bytes);
        step(&mut self.framer, &mut |found| {
            let (raw, payload) = match found {
                Found::Frame { raw, payload } => (raw, Some(payload)),
                Found::Damaged(raw) => (raw, None),
                Found::Oversize(raw) => {
                    counters.rejected.one();
                    (raw, None)
                }
                Found::Junk(count) => return counters.discarded_bytes.add(u64::try_from(count).unwrap_or(0)),
            };
            let began = std::mem::replace(&mut received, now); // what follows in the same read has just begun
            let bytes = raw.len() + about.iter().map(|named| named.value.len()).sum::<usize>();
            let ours = u32::try_from(bytes.min(room_bytes)).unwrap_or(u32::MAX);
            let ours = Arc::clone(room).try_acquire_many_owned(ours).ok();
            let room = ours.and_then(|ours| Some((ours, intake.try_share(RECORD_BYTES + RECORD_FACTOR * bytes)?)));
            let caught = || Caught { raw: raw.to_vec(), payload, received: began, lost: *lost, about: about.to_vec() };
            if room.is_some_and(|room| queue.try_send((caught(), room)).is_ok()) {
                *lost = 0;
            } else {
                *lost += 1;
                counters.refused.one();
            }
        });
        self.begun = (!self.framer.is_empty()).then_some(received);
    }
}

/// Stores what was caught, until the catcher is gone.
pub async fn store_all(
    mut caught: mpsc::Receiver<(Caught, Room)>,
    profile: &Profile,
    intake: &Intake,
    readings: &Mutex<Readings>,
) {
    let mut noise = Noise::default();
    loop {
        let next = match caught.try_recv() {
            Ok(next) => Some(next),
            Err(_) => {
                let next = caught.recv().await;
                if next.is_some() {
                    sleep(until_beat(intake.uptime_ms())).await;
                }
                next
            }
        };
        let Some((frame, (_queued, share))) = next else { break };
        let Some(reading) = reading(frame, profile, intake, &mut noise) else { continue };
        // One that can't be stored is counted by the intake, and told by the next one that can.
        if let Err(error) = readings.lock().await.store_holding(reading, share).await {
            tracing::debug!(source = %intake.source(), %error, "a reading could not be stored");
        }
    }
    // Nothing came after what was left out last: the next line's first frame tells of it.
    if let Some(gap) = noise.take_gap(0) {
        readings.lock().await.miss(gap);
    }
}

/// How long it is to the next moment at which readings are stored.
fn until_beat(uptime_ms: u64) -> Duration {
    Duration::from_millis(BEAT_MS - uptime_ms % BEAT_MS)
}

/// The reading of a frame; `None` when it can't be read and too many such were stored in this minute.
fn reading(frame: Caught, profile: &Profile, intake: &Intake, noise: &mut Noise) -> Option<Reading> {
    let payload = frame.payload.and_then(|range| frame.raw.get(range));
    let decoded = payload.map(|payload| profile.decode(&frame.raw, payload, frame.received)).unwrap_or_default();
    let mut flags = Flags::default();
    if !decoded.is_readable {
        intake.counters().plug.unreadable(&frame.raw);
        flags = Flags::UNREADABLE;
        if !noise.admits(Instant::now()) {
            noise.lost += frame.lost;
            intake.counters().discarded_bytes.add(u64::try_from(frame.raw.len()).unwrap_or(0));
            return None;
        }
    }
    let gap = noise.take_gap(frame.lost);
    Some(Reading {
        received: Some(frame.received),
        device_time: decoded.device_time,
        observations: decoded.observations,
        events: decoded.events,
        gap,
        device: decoded.device,
        about: frame.about,
        raw: Some(Raw::of(&frame.raw)),
        flags,
    })
}

/// How many frames that can't be read were stored in this minute.
#[derive(Default)]
struct Noise {
    since: Option<Instant>,
    stored: u32,
    left_out: u64,
    /// Frames that found no room before those that were left out.
    lost: u64,
}

impl Noise {
    fn admits(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|since| now - since >= Duration::from_secs(60)) {
            (self.since, self.stored) = (Some(now), 0);
        }
        self.stored += 1;
        let admitted = self.stored <= UNREADABLE_A_MINUTE;
        self.left_out += u64::from(!admitted);
        admitted
    }

    /// What is missing before a frame that is stored: what was left out, and what found no room, `lost` of it just before.
    fn take_gap(&mut self, lost: u64) -> Option<Gap> {
        let gap = |reason, count| Gap { reason, from: None, to: None, count: Some(count), lasted_ms: None };
        match (std::mem::take(&mut self.lost) + lost, std::mem::take(&mut self.left_out)) {
            (0, 0) => None,
            (0, left_out) => Some(gap(GapReason::Parse, left_out)),
            (lost, left_out) => Some(gap(GapReason::Overflow, lost + left_out)),
        }
    }
}

/// When what is said to the device.
struct Schedule<'a> {
    asking: &'a Asking,
    start_up: Option<Instant>,
    polls: Vec<Instant>,
    heard: Instant,
}

impl<'a> Schedule<'a> {
    fn new(asking: &'a Asking) -> Self {
        let now = Instant::now();
        let start_up = (!asking.start_up.is_empty()).then_some(now);
        Self { asking, start_up, polls: asking.polls.iter().map(|_| now).collect(), heard: now }
    }

    /// The next moment at which something is to be said, if ever.
    fn due(&self) -> Option<Instant> {
        self.polls.iter().copied().chain(self.start_up).chain(self.revival()).min()
    }

    /// A device that was switched off and on must be asked anew.
    fn revival(&self) -> Option<Instant> {
        let quiet = self.asking.quiet_after.filter(|_| !self.asking.start_up.is_empty())?;
        Some(self.heard + quiet)
    }

    fn heard(&mut self, now: Instant) {
        self.heard = now;
    }

    /// What is to be said now.
    fn take(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let mut said = Vec::new();
        let revived = self.revival().is_some_and(|at| at <= now);
        if revived || self.start_up.is_some_and(|at| at <= now) {
            self.start_up = None;
            self.heard = now;
            said.extend(self.asking.start_up.iter().cloned());
        }
        for ((words, every), next) in self.asking.polls.iter().zip(&mut self.polls) {
            if *next <= now {
                *next = now + *every;
                said.push(words.clone());
            }
        }
        said
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_lines_store_at_the_same_moments_and_none_waits_long() {
        let moments: Vec<u128> = (7_001..=7_100).map(|now| u128::from(now) + until_beat(now).as_millis()).collect();
        assert!(moments[..99].iter().all(|moment| *moment == 7_100) && moments[99] == 7_200, "{moments:?}");
    }
}
