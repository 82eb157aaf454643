//! One log: its segments, its lanes, its dead letters, and what each record does to them.
//!
//! [`Log`] is shared by the writer thread, the lanes and the keeper. [`State`] is all that is known in memory; it changes
//! only by [`State::apply`] (a record that was synced, or read at start) and by lanes that advance. It is rebuilt from the
//! log at every start and holds no content of messages.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::watch;

use super::Place;
use super::buffers::Buffers;
use super::keys::Keyring;
use super::reader::{Found, record_at};
use super::record::{Cursor, Dead, Discard, Footer, Gap, LaneExtent, Replay};
use super::segment::Segment;
use super::storage::{File, Storage};
use super::uptime::Uptime;
use crate::envelope::{Class, MessageId};
use crate::status::Counter;
use crate::values::{ASSEMBLY, Name};

/// Dead letters that a log keeps; when there are more, lanes hold instead.
pub const DEAD_LETTERS_MAX: usize = 10_000;

/// Source and upstream.
pub type LaneKey = (Name, Name);

/// A log, shared.
pub struct Log {
    /// Which one.
    pub class: Class,
    /// The disk.
    pub storage: Arc<dyn Storage>,
    /// The keys of the spool.
    pub keyring: Arc<Mutex<Keyring>>,
    /// The clock of the spool.
    pub uptime: Arc<Uptime>,
    /// How large it may grow, and so on.
    limits: Mutex<Limits>,
    /// Moves whenever something was synced that a lane may wait for.
    pub synced: watch::Sender<u64>,
    /// For pieces of long bodies.
    pub buffers: Buffers,
    /// What it did.
    pub counters: LogCounters,
    /// Intake is off until a person has looked: two writes or syncs failed.
    pub failed: AtomicBool,
    /// Held while space is looked for or made: by one thread at a time.
    pub space: Mutex<()>,
    state: Mutex<State>,
}

/// What the configuration says about a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all its files.
    pub quota: u64,
    /// Bytes of a segment file.
    pub segment_bytes: u64,
    /// How long delivered originals stay, space permitting.
    pub keep_delivered: Duration,
    /// Whether the oldest segment is dropped when it is full.
    pub drop_oldest: bool,
}

/// What a log counts.
#[derive(Default, Debug)]
pub struct LogCounters {
    /// Bytes written to its files.
    pub written: Counter,
    /// Syncs of its files.
    pub syncs: Counter,
    /// Groups written.
    pub groups: Counter,
    /// Messages that were dropped with their segment, or lost to damage.
    pub dropped: Counter,
}

/// What is known of a log.
#[derive(Default)]
pub struct State {
    /// Segments by order.
    pub segments: BTreeMap<u64, Held>,
    /// The order of the segment that is being written.
    pub active: Option<u64>,
    /// Files without a life, ready for the next segment.
    pub free: Vec<FreeFile>,
    /// One that is being written through, and how far that is; the next one to be taken when there is no other.
    pub unfinished: Option<(FreeFile, u64)>,
    /// Messages are to be expected, though none came yet.
    pub expected: bool,
    /// The file that compaction writes into; never used for anything else, so that space can always be made.
    pub reserve: Option<FreeFile>,
    /// Lanes.
    pub lanes: BTreeMap<LaneKey, LaneState>,
    /// Dead letters.
    pub dead: BTreeMap<(MessageId, Name), Dead>,
    /// Bodies that are arriving, and the segments that hold pieces of each.
    pub streams: HashMap<u64, Vec<u64>>,
    /// Replays that are being made, and the segments that each needs.
    pub replays: HashMap<u64, BTreeSet<u64>>,
    /// Why intake is refused.
    pub refusing: Option<String>,
    /// Bytes that had to stay when a message found no room; 0: none did since there was.
    pub full_at: u64,
    /// Why the disk gave no file for another segment though the quota allowed one, if that is so.
    pub disk_short: Option<Short>,
    /// Files whose key can't be had: never touched.
    pub foreign: Vec<String>,
    /// Segments in which damage was found and that no person has taken note of yet; changed by [`State::quarantine`] only.
    pub quarantined: Vec<u64>,
    /// Segments with records in a form of a newer version, which this one can't read: they and what they may point to are left as they are,
    /// until that version is back or a person took note of it.
    pub unread: Vec<u64>,
    /// What is recorded about damage in segments that are held.
    pub gaps: Vec<Gap>,
}

/// Why the disk gave no file.
pub struct Short {
    /// In the system's words.
    pub error: String,
    /// Whether it has no room; else something is wrong with it: it fails, or can't be written to any more.
    pub is_full: bool,
}

impl From<&io::Error> for Short {
    fn from(error: &io::Error) -> Self {
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded, io::ErrorKind::FileTooLarge];
        Self { error: error.to_string(), is_full: full.contains(&error.kind()) }
    }
}

/// A segment that is held.
pub struct Held {
    /// The file and its key.
    pub segment: Arc<Segment>,
    /// Where its synced groups end.
    pub end: u64,
    /// How many groups were synced.
    pub groups: u32,
    /// What it holds.
    pub extent: Footer,
    /// Whether it has a footer on disk.
    pub sealed: bool,
    /// Bytes that were thought to be live in it just after it was compacted; `None`: it was not, in this run.
    pub estimate: Option<u64>,
}

/// A file of full size without a life.
pub struct FreeFile {
    /// Its name.
    pub name: String,
    /// The file.
    pub file: Arc<dyn File>,
}

/// A lane, as the log sees it.
#[derive(Clone, Debug, Default)]
pub struct LaneState {
    /// The last place that is done.
    pub cursor: Place,
    /// The last place that is done according to the log.
    pub logged: Place,
    /// Messages behind the cursor.
    pub backlog: u64,
    /// Their bytes.
    pub backlog_bytes: u64,
    /// Uptime of the reception of the oldest of them, as near as is known.
    pub since_uptime_ms: Option<u64>,
    /// Why it is held, for people.
    pub held: Option<String>,
}

/// By which cursor of a lane it is asked what the lane still needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum By {
    /// The one in the log. Space is made by this one only: a start goes back to it and gives the lane all that is held behind it. Were a
    /// later segment gone then and an earlier one not, it would say old messages again without the newer ones behind them, and an
    /// assembly would take the rest of a message for the whole.
    Log,
    /// The one in memory: what really was not delivered, for people and for what could come free.
    Memory,
}

impl LaneState {
    /// Whether all up to a place is done.
    pub fn has_done(&self, by: By, at: Place) -> bool {
        at <= match by {
            By::Log => self.logged,
            By::Memory => self.cursor,
        }
    }
}

/// What a record does to the state once it is synced.
#[derive(Clone)]
pub enum Effect {
    /// Nothing (a checkpoint's head, a gap).
    None,
    /// A message.
    Message {
        /// Its source.
        source: Name,
        /// The upstreams that it waits for.
        targets: Vec<Name>,
        /// Bytes of its body.
        length: u64,
        /// Segments that hold earlier pieces of it.
        refers: Vec<u64>,
        /// When it was received: wall clock microseconds and uptime milliseconds.
        received: (i64, u64),
        /// The stream whose pieces it takes over.
        stream: Option<u64>,
    },
    /// A piece of a body.
    Fragment {
        /// The stream.
        stream: u64,
        /// Bytes.
        length: u64,
        /// Ends with the draft: pieces of a body that nobody finishes are litter and hold nothing.
        draft: Weak<()>,
    },
    /// See [`Cursor`].
    Cursor(Cursor),
    /// See [`Dead`].
    Dead(Dead),
    /// See [`Discard`].
    Discard(Discard),
    /// See [`Replay`].
    Replay(Replay),
    /// See [`Gap`].
    Gap(Gap),
}

impl Effect {
    /// Whether there is something to read for a lane that may wait for it. A source looks by itself for what it keeps for itself, and a
    /// forwarder that was woken for each part of it would do little else.
    pub fn wakes(&self) -> bool {
        match self {
            Self::Message { targets, .. } => targets.iter().any(|upstream| upstream.as_str() != ASSEMBLY),
            Self::Replay(_) => true,
            _ => false,
        }
    }
}

impl Log {
    /// A log with the state that was found at start.
    pub fn new(parts: Parts, state: State) -> Self {
        Self {
            class: parts.class,
            storage: parts.storage,
            keyring: parts.keyring,
            uptime: parts.uptime,
            limits: Mutex::new(parts.limits),
            synced: watch::Sender::new(0),
            buffers: Buffers::default(),
            counters: LogCounters::default(),
            failed: AtomicBool::new(false),
            space: Mutex::new(()),
            state: Mutex::new(state),
        }
    }

    /// The state, locked. Held for moments only: no I/O, no waiting.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The keys, locked.
    pub fn keys(&self) -> MutexGuard<'_, Keyring> {
        self.keyring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the configuration says about it.
    pub fn limits(&self) -> Limits {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a changed configuration.
    pub fn set_limits(&self, limits: Limits) {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    /// Whether two writes or syncs failed and intake is off.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Reads one record, wherever its segment is now.
    ///
    /// # Errors
    /// As the disk gives them; `NotFound` when the segment is gone, `InvalidData` when the record is damaged.
    pub fn record(&self, at: Place, hint: Option<u32>) -> io::Result<Found> {
        let mut last = None;
        loop {
            let held = self.state().segments.get(&at.segment).map(|held| (Arc::clone(&held.segment), held.end));
            let Some((segment, end)) = held else {
                let text = format!("segment {} is not held any more", at.segment);
                return Err(io::Error::new(io::ErrorKind::NotFound, text));
            };
            // A segment that was compacted while it was read is read again, from its new file.
            if let Some((before, error)) = last
                && Arc::ptr_eq(&before, &segment)
            {
                return Err(error);
            }
            match record_at(&segment, at.ordinal, hint, end) {
                Ok(found) => return Ok(found),
                Err(error) => last = Some((segment, error)),
            }
        }
    }
}

/// What a log is made of.
pub struct Parts {
    /// Which one.
    pub class: Class,
    /// The disk.
    pub storage: Arc<dyn Storage>,
    /// The keys of the spool.
    pub keyring: Arc<Mutex<Keyring>>,
    /// The clock of the spool.
    pub uptime: Arc<Uptime>,
    /// How large it may grow, and so on.
    pub limits: Limits,
}

impl State {
    /// A record at `at` is on stable storage: take note of what it does.
    pub fn apply(&mut self, at: Place, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Message { source, targets, length, refers, received, stream } => {
                if let Some(stream) = stream {
                    self.streams.remove(&stream);
                }
                for upstream in targets {
                    self.enqueue(at, (source.clone(), upstream), length, received.1);
                }
                if let Some(held) = self.segments.get_mut(&at.segment) {
                    held.extent.receive(received.0);
                    held.extent.refer(at.segment, refers);
                }
            }
            Effect::Fragment { stream, length, draft } => {
                if draft.strong_count() > 0 {
                    let segments = self.streams.entry(stream).or_default();
                    if segments.last() != Some(&at.segment) {
                        segments.push(at.segment);
                    }
                }
                if let Some(held) = self.segments.get_mut(&at.segment) {
                    held.extent.fragment_bytes += length;
                }
            }
            Effect::Cursor(cursor) => {
                let lane = self.lanes.entry((cursor.source, cursor.upstream)).or_default();
                lane.logged = lane.logged.max(cursor.at);
                lane.cursor = lane.cursor.max(cursor.at);
            }
            Effect::Dead(dead) => {
                self.dead.insert((dead.id, dead.upstream.clone()), dead);
            }
            Effect::Discard(discard) => {
                self.dead.remove(&(discard.id, discard.upstream));
            }
            Effect::Replay(replay) => {
                self.enqueue(at, (replay.source, replay.upstream), replay.length, replay.stamp.uptime_ms);
                if let Some(held) = self.segments.get_mut(&at.segment) {
                    held.extent.refer(at.segment, vec![replay.at.segment]);
                }
            }
            Effect::Gap(gap) => self.note(gap),
        }
    }

    fn note(&mut self, gap: Gap) {
        if gap.cause == Gap::ACCEPTED {
            self.quarantined.retain(|order| *order != gap.segment);
            self.unread.retain(|order| *order != gap.segment);
        }
        if gap.cause == Gap::DAMAGED && self.segments.contains_key(&gap.segment) {
            self.quarantine(gap.segment);
        }
        if gap.cause == Gap::DROPPED && !self.segments.contains_key(&gap.segment) {
            self.dead.retain(|_, dead| dead.at.segment != gap.segment);
        }
        if gap.cause != Gap::DROPPED && !self.gaps.contains(&gap) {
            self.gaps.push(gap);
        }
    }

    /// Damage was found in a segment: its file is left as it is. False when that was known.
    pub fn quarantine(&mut self, order: u64) -> bool {
        let new = !self.is_damaged(order);
        if new {
            self.quarantined.push(order);
        }
        new
    }

    /// Whether damage was found in a segment, accepted or not.
    pub fn is_damaged(&self, order: u64) -> bool {
        self.quarantined.contains(&order)
            || self.gaps.iter().any(|gap| gap.segment == order && gap.cause == Gap::ACCEPTED)
    }

    /// The segments in which damage was found, accepted or not, as far as they are remembered.
    pub fn damaged(&self) -> impl Iterator<Item = u64> {
        let noted = self.gaps.iter().filter(|gap| gap.cause != Gap::DROPPED).map(|gap| gap.segment);
        self.quarantined.iter().copied().chain(noted)
    }

    /// Messages that a lane lost to damage in a segment, as far as that is recorded.
    pub fn lost(&self, order: u64, (source, upstream): &LaneKey) -> u64 {
        let damaged = self.gaps.iter().filter(|gap| gap.segment == order && gap.cause == Gap::DAMAGED);
        let own = damaged.flat_map(|gap| &gap.lanes).filter(|(from, to, _)| from == source && to == upstream);
        own.map(|(_, _, count)| count).sum()
    }

    /// Messages, and their bytes, that segments behind `order` hold for a lane whose cursor is not behind `order` itself.
    pub fn held_behind(&self, order: u64, key: &LaneKey) -> (u64, u64) {
        let behind = self.segments.range(order.saturating_add(1)..).flat_map(|(_, held)| &held.extent.lanes);
        let own = behind.filter(|extent| extent.is_of(key));
        own.fold((0, 0), |(count, bytes), extent| (count + extent.count, bytes + extent.bytes))
    }

    /// Whether a lane still needs something of a segment.
    pub fn wanted_by_lanes(&self, by: By, order: u64, held: &Held) -> bool {
        held.extent.lanes.iter().any(|extent| {
            let lane = self.lanes.get(&(extent.source.clone(), extent.upstream.clone()));
            lane.is_none_or(|lane| !lane.has_done(by, Place { segment: order, ordinal: extent.last }))
        })
    }

    /// Orders of the segments that nothing needs any more, oldest first. Delivered originals that are only kept for replay
    /// are among them.
    pub fn done(&self, by: By) -> Vec<u64> {
        let mut pinned: Vec<u64> = self.dead.values().map(|dead| dead.at.segment).collect();
        pinned.extend(self.quarantined.iter().chain(&self.unread));
        let kept_for_now = |order: u64| self.active == Some(order) || self.is_in_use(order);
        let mut done = Vec::new();
        // From the newest back: a segment that must stay keeps those that its pieces and replays point to. One that stays only
        // because it is written to, or because a body is arriving or a replay is made, needs no others.
        for (order, held) in self.segments.iter().rev() {
            if pinned.contains(order) || self.wanted_by_lanes(by, *order, held) {
                pinned.extend(&held.extent.refers);
            } else if !kept_for_now(*order) {
                done.push(*order);
            }
        }
        done.reverse();
        done
    }

    /// A record that this version can't read was found in a segment.
    pub fn leave_alone(&mut self, order: u64) {
        if !self.unread.contains(&order) {
            tracing::error!(
                segment = order,
                "records of a newer version, which this one can't read: the segment is kept"
            );
            self.unread.push(order);
        }
    }

    /// Whether a segment is never compacted: it is damaged, or holds what this version can't read or what such a record may point to.
    pub fn is_left_alone(&self, order: u64) -> bool {
        let points = |unread: &u64| self.segments.get(unread).is_some_and(|held| held.extent.refers.contains(&order));
        self.is_damaged(order) || self.unread.iter().any(|unread| *unread == order || points(unread))
    }

    /// Whether a segment holds pieces of a body that is arriving, or what a replay that is being made needs.
    pub fn is_in_use(&self, order: u64) -> bool {
        let arriving = self.streams.values().any(|segments| segments.contains(&order));
        arriving || self.replays.values().any(|segments| segments.contains(&order))
    }

    /// Messages of a segment that a lane has not done, and their bytes.
    pub fn undone(&self, order: u64, extent: &LaneExtent) -> (u64, u64) {
        let key = (extent.source.clone(), extent.upstream.clone());
        let all = (extent.count, extent.bytes);
        let Some(lane) = self.lanes.get(&key) else { return all };
        if lane.cursor >= (Place { segment: order, ordinal: extent.last }) {
            return (0, 0);
        }
        if lane.cursor < (Place { segment: order, ordinal: extent.first }) {
            return all;
        }
        // The cursor stands in it: what is not behind it is done.
        let (behind, behind_bytes) = self.held_behind(order, &key);
        let (count, bytes) = (lane.backlog.saturating_sub(behind), lane.backlog_bytes.saturating_sub(behind_bytes));
        (count.min(all.0), bytes.min(all.1))
    }

    /// Bytes of segments that hold something undelivered, a dead letter or an arriving body.
    pub fn must_stay(&self) -> u64 {
        let done = self.done(By::Memory);
        let held = self.segments.iter().filter(|(order, _)| !done.contains(order));
        held.map(|(_, held)| held.segment.bytes).sum()
    }

    /// Whether less must stay than when a message found no room. Until then a short one may fit all the same, which is no room.
    pub fn has_room_again(&self) -> bool {
        self.full_at > 0 && self.must_stay() < self.full_at
    }

    /// Whether there is a file for the next segment.
    pub fn has_spare(&self) -> bool {
        !self.free.is_empty() || self.unfinished.is_some()
    }

    /// Files that hold nothing.
    pub fn spare(&self) -> usize {
        self.free.len() + usize::from(self.reserve.is_some()) + usize::from(self.unfinished.is_some())
    }

    /// Whether the disk gave no file, and not for want of room.
    pub fn disk_fails(&self) -> bool {
        self.disk_short.as_ref().is_some_and(|short| !short.is_full)
    }

    /// Names of all files that are known.
    pub fn names(&self) -> Vec<String> {
        let held = self.segments.values().map(|held| held.segment.name.clone());
        let unfinished = self.unfinished.iter().map(|(file, _)| file);
        let spare = self.free.iter().chain(&self.reserve).chain(unfinished).map(|file| file.name.clone());
        held.chain(spare).chain(self.foreign.iter().cloned()).collect()
    }

    fn enqueue(&mut self, at: Place, key: LaneKey, length: u64, since_uptime_ms: u64) {
        let lane = self.lanes.entry(key.clone()).or_default();
        if lane.cursor < at {
            if lane.backlog == 0 {
                lane.since_uptime_ms = Some(since_uptime_ms);
            }
            lane.backlog += 1;
            lane.backlog_bytes += length;
        }
        if let Some(held) = self.segments.get_mut(&at.segment) {
            held.extent.enqueue(at.ordinal, &key, length, since_uptime_ms);
        }
    }
}

impl LaneExtent {
    /// Whether it is about this lane.
    pub fn is_of(&self, (source, upstream): &LaneKey) -> bool {
        self.source == *source && self.upstream == *upstream
    }
}

impl Footer {
    /// One more message for a lane.
    pub fn enqueue(&mut self, ordinal: u32, key: &LaneKey, length: u64, since_uptime_ms: u64) {
        let (source, upstream) = key;
        let known = self.lanes.iter_mut().find(|extent| extent.is_of(key));
        match known {
            Some(extent) => {
                extent.count += 1;
                extent.bytes += length;
                (extent.first, extent.last) = (extent.first.min(ordinal), extent.last.max(ordinal));
            }
            None => self.lanes.push(LaneExtent {
                source: source.clone(),
                upstream: upstream.clone(),
                count: 1,
                bytes: length,
                first: ordinal,
                last: ordinal,
                since_uptime_ms,
            }),
        }
    }

    /// A message that was received then.
    pub fn receive(&mut self, wall_us: i64) {
        let (first, last) = self.received_us.unwrap_or((wall_us, wall_us));
        self.received_us = Some((first.min(wall_us), last.max(wall_us)));
    }

    /// Other segments that a record points to.
    pub fn refer(&mut self, own: u64, segments: Vec<u64>) {
        for segment in segments {
            if segment != own && !self.refers.contains(&segment) {
                self.refers.push(segment);
            }
        }
    }
}
