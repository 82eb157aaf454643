//! Lanes: the messages of one source for one upstream, in order, read from the log, with a cursor that moves on receipts.
//!
//! A [`Lane`] reads only what was synced. It hands entries out, remembers which, and forgets them when it is told to rewind.
//! Near the end of the log it reads in place (the pages were just written); further back it reads off the runtime's threads.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::log::{DEAD_LETTERS_MAX, Effect, LaneKey, Log};
use super::reader::{Found, Step, Walker};
use super::record::{self, Data, Dead, Gap, Kind, Piece, Replay};
use super::requests::Requests;
use super::segment::Identity;
use super::writer::{Prepared, Request, Written};
use super::{CommitError, Entry, Place, recovery};
use crate::envelope::{Body, BodyError, Envelope, MessageId, Pieces};
use crate::values::Name;

/// Entries that are read at once.
const BATCH_ENTRIES: usize = 64;
/// Bytes of bodies that are read at once.
const BATCH_BYTES: usize = 256 << 10;
/// How long a lane that has sent all lets what arrives gather: forwarding takes no time from the answers to the devices then, and
/// reads several messages at once.
const GATHER_TIME: Duration = Duration::from_millis(1);
/// Pause after the disk failed to give a segment back.
const READ_RETRY: Duration = Duration::from_secs(5);
/// Longest reason in a dead letter, in bytes.
const REASON_BYTES_MAX: usize = 500;

/// See the module. One holder at a time.
pub struct Lane {
    key: LaneKey,
    tag: u16,
    log: Arc<Log>,
    requests: Requests,
    synced: watch::Receiver<u64>,
    reading: Reading,
    ready: VecDeque<Entry>,
    handed: VecDeque<Handed>,
    rewound: bool,
    /// Damaged segments that were read to their end: what is missing of them is to be recorded.
    passed: VecDeque<u64>,
    losing: Option<Loss>,
    /// All of this damaged segment and those before it is in hand or done, and what is missing is recorded.
    over: Option<u64>,
}

/// Messages that are lost to damage, while the record of it is written.
struct Loss {
    order: u64,
    count: u64,
    bytes: u64,
    told: oneshot::Receiver<Result<Vec<Written>, CommitError>>,
    /// The lane was rewound meanwhile: what was in hand of the segment is to be read again.
    rewound: bool,
}

struct Handed {
    place: Place,
    id: MessageId,
    bytes: u64,
    received_uptime_ms: u64,
}

enum Reading {
    Here(Box<Reader>),
    Away(JoinHandle<(Box<Reader>, io::Result<Vec<Entry>>)>),
    /// Only while a reader changes hands.
    Nowhere,
}

impl Lane {
    /// The lane of `key`, from its cursor on.
    pub(super) fn new(key: LaneKey, log: Arc<Log>, requests: Requests, tag: u16) -> Self {
        let seek = log.state().lanes.entry(key.clone()).or_default().cursor;
        let reader = Reader::new(Arc::clone(&log), key.clone(), tag, seek);
        let synced = log.synced.subscribe();
        let reading = Reading::Here(Box::new(reader));
        Self {
            key,
            tag,
            log,
            requests,
            synced,
            reading,
            ready: VecDeque::new(),
            handed: VecDeque::new(),
            rewound: false,
            passed: VecDeque::new(),
            losing: None,
            over: None,
        }
    }

    /// The source.
    pub fn source(&self) -> &Name {
        &self.key.0
    }

    /// The upstream.
    pub fn upstream(&self) -> &Name {
        &self.key.1
    }

    /// Entries behind the one that was handed out last.
    pub fn waiting(&self) -> u64 {
        let backlog = self.log.state().lanes.get(&self.key).map_or(0, |lane| lane.backlog);
        backlog.saturating_sub(self.handed.len() as u64)
    }

    /// Whether damage is known of a segment that holds entries behind the cursor: some may be missing among those that are read.
    pub fn is_damaged(&self) -> bool {
        let state = self.log.state();
        let cursor = state.lanes.get(&self.key).map(|lane| lane.cursor).unwrap_or_default();
        state.damaged().any(|order| order >= cursor.segment)
    }

    /// The next entry after the one that was handed out last; waits for one. Cancelling loses nothing.
    pub async fn next(&mut self) -> Entry {
        loop {
            self.record_losses().await;
            if let Some(entry) = self.ready.pop_front() {
                let bytes = entry_bytes(&entry);
                let received = entry.content.as_ref().map(|envelope| envelope.meta.received.uptime_ms);
                let received_uptime_ms = received.unwrap_or_else(|_| self.log.uptime.ms());
                self.handed.push_back(Handed { place: entry.place, id: entry.id, bytes, received_uptime_ms });
                return entry;
            }
            self.synced.borrow_and_update();
            match self.fill().await {
                Ok(true) => {}
                // Unwrap safety: the sender lives in the log, which this lane holds.
                Ok(false) => {
                    drop(self.synced.changed().await);
                    tokio::time::sleep(GATHER_TIME).await;
                }
                Err(error) => {
                    let (source, upstream) = (self.source(), self.upstream());
                    tracing::error!(%source, %upstream, %error, "the spool can't be read");
                    tokio::time::sleep(READ_RETRY).await;
                }
            }
        }
    }

    /// Back to the first entry after the cursor: what was handed out and not advanced over comes again.
    pub fn rewind(&mut self) {
        self.ready.clear();
        self.handed.clear();
        self.passed.clear();
        self.over = None;
        if let Some(loss) = &mut self.losing {
            loss.rewound = true;
        }
        match &mut self.reading {
            Reading::Here(reader) => reader.restart(),
            Reading::Away(_) | Reading::Nowhere => self.rewound = true,
        }
    }

    /// Moves the cursor over `place` and all before it. In memory at once, in the log with the next group.
    pub fn advance(&mut self, place: Place) {
        let mut state = self.log.state();
        let Some(lane) = state.lanes.get_mut(&self.key) else { return };
        let (mut count, mut bytes) = (0, 0);
        while let Some(handed) = self.handed.pop_front_if(|handed| handed.place <= place) {
            // What was dropped meanwhile, with its segment, counts no more.
            if handed.place > lane.cursor {
                count += 1;
                bytes += handed.bytes;
            }
        }
        lane.cursor = lane.cursor.max(place);
        let places = self.handed.iter().map(|handed| handed.place).chain(self.ready.iter().map(|entry| entry.place));
        if let Some(order) = self.over.take_if(|order| places.into_iter().all(|place| place.segment > *order)) {
            lane.cursor = lane.cursor.max(Place { segment: order, ordinal: u32::MAX });
        }
        lane.backlog = lane.backlog.saturating_sub(count);
        lane.backlog_bytes = lane.backlog_bytes.saturating_sub(bytes);
        match self.handed.front() {
            Some(next) => lane.since_uptime_ms = Some(next.received_uptime_ms),
            None if lane.backlog == 0 => lane.since_uptime_ms = None,
            None => {}
        }
    }

    /// Makes an entry that was handed out a dead letter: durable when this returns Ok; the caller then advances over it.
    ///
    /// # Errors
    /// [`CommitError::Failed`] for an entry that is not in hand (the lane was rewound). [`CommitError`] when the record could not be written; [`CommitError::Full`] also when there are too many dead letters:
    /// the lane then holds.
    pub async fn bury(&mut self, place: Place, reason: &str, attempts: u32) -> Result<(), CommitError> {
        let Some(handed) = self.handed.iter().find(|handed| handed.place == place) else {
            return Err(CommitError::Failed);
        };
        if self.log.state().dead.len() >= DEAD_LETTERS_MAX {
            return Err(CommitError::Full);
        }
        let reason: String = reason
            .chars()
            .scan(0, |bytes, c| {
                *bytes += c.len_utf8();
                (*bytes <= REASON_BYTES_MAX).then_some(c)
            })
            .collect();
        let dead = Dead {
            id: handed.id,
            source: self.key.0.clone(),
            upstream: self.key.1.clone(),
            at: place,
            length: handed.bytes,
            reason,
            attempts,
            stamp: self.log.uptime.stamp(),
        };
        let (plaintext, effect) = (record::encode(&dead), Effect::Dead(dead));
        let records = vec![Prepared { kind: Kind::Dead, tag: 0, plaintext, effect, id: None }];
        let (reply, told) = oneshot::channel();
        self.requests.send(Request::Append { records, control: true, reply });
        told.await.unwrap_or(Err(CommitError::Failed)).map(drop)
    }

    /// Says why nothing moves, or that it does again; for people.
    pub fn hold(&self, why: Option<String>) {
        if let Some(lane) = self.log.state().lanes.get_mut(&self.key) {
            lane.held = why;
        }
    }

    /// Reads on; false when there is nothing behind what was handed out.
    async fn fill(&mut self) -> io::Result<bool> {
        let (mut reader, outcome) = match std::mem::replace(&mut self.reading, Reading::Nowhere) {
            Reading::Here(mut reader) if !reader.is_cold() => {
                let outcome = reader.batch();
                (reader, outcome)
            }
            Reading::Here(mut reader) => {
                let work = tokio::task::spawn_blocking(move || {
                    let outcome = reader.batch();
                    (reader, outcome)
                });
                self.wait(work).await?
            }
            Reading::Away(work) => self.wait(work).await?,
            Reading::Nowhere => return Err(self.read_anew("the lane's reader is gone")),
        };
        let rewound = std::mem::take(&mut self.rewound);
        if rewound {
            reader.restart();
        }
        let passed = std::mem::take(&mut reader.passed);
        self.reading = Reading::Here(reader);
        self.passed.extend(passed);
        let entries = outcome?;
        if !rewound {
            self.ready.extend(entries);
        }
        Ok(rewound || !self.ready.is_empty() || !self.passed.is_empty())
    }

    /// Records what is missing of the damaged segments that were passed, before anything behind them is handed out: the backlog
    /// is right then, and the cursor can move over them. Cancelling loses nothing.
    async fn record_losses(&mut self) {
        loop {
            if self.losing.is_none() {
                let Some(order) = self.passed.pop_front() else { return };
                self.lose(order);
            }
            let Some(loss) = &mut self.losing else { continue };
            let told = (&mut loss.told).await.unwrap_or(Err(CommitError::Failed));
            let Some(Loss { order, count, bytes, rewound, .. }) = self.losing.take() else { continue };
            let (source, upstream) = (self.source(), self.upstream());
            match told {
                Ok(_) if count == 0 => {}
                Ok(_) => {
                    tracing::error!(%source, %upstream, segment = order, count, "messages are lost to damage on the disk")
                }
                Err(error) => {
                    tracing::error!(%source, %upstream, segment = order, count, %error, "a loss could not be recorded");
                    // The cursor must not pass over it in silence. In a log that has failed no cursor is kept either.
                    if !rewound && !self.log.has_failed() {
                        self.passed.push_front(order);
                        tokio::time::sleep(READ_RETRY).await;
                    }
                    continue;
                }
            }
            self.log.counters.dropped.add(count);
            let mut state = self.log.state();
            if let Some(lane) = state.lanes.get_mut(&self.key) {
                lane.backlog = lane.backlog.saturating_sub(count);
                lane.backlog_bytes = lane.backlog_bytes.saturating_sub(bytes);
                lane.since_uptime_ms = lane.since_uptime_ms.filter(|_| lane.backlog > 0);
            }
            drop(state);
            if !rewound {
                self.pass_over(order);
            }
        }
    }

    /// Counts what is missing of a damaged segment that was read to its end, and has it recorded.
    fn lose(&mut self, order: u64) {
        let ready = self.ready.iter().map(|entry| (entry.place, entry_bytes(entry)));
        let handed = self.handed.iter().map(|handed| (handed.place, handed.bytes));
        let in_hand = ready.chain(handed).filter(|(place, _)| place.segment <= order);
        let (found, found_bytes) = in_hand.fold((0, 0), |(count, sum), (_, bytes)| (count + 1, sum + bytes));
        let state = self.log.state();
        let behind = state.held_behind(order, &self.key);
        let (backlog, backlog_bytes) =
            state.lanes.get(&self.key).map_or((0, 0), |lane| (lane.backlog, lane.backlog_bytes));
        let noted = state.gaps.iter().any(|gap| gap.segment == order && gap.cause == Gap::DAMAGED);
        drop(state);
        let count = backlog.saturating_sub(behind.0 + found);
        let bytes = backlog_bytes.saturating_sub(behind.1 + found_bytes);
        // What was found is recorded also when this lane lost nothing: a start must know of it.
        if count == 0 && noted {
            return self.pass_over(order);
        }
        let lanes = if count == 0 { Vec::new() } else { vec![(self.key.0.clone(), self.key.1.clone(), count)] };
        let gap = Gap { cause: Gap::DAMAGED.to_owned(), segment: order, lanes, stamp: self.log.uptime.stamp() };
        let (plaintext, effect) = (record::encode(&gap), Effect::Gap(gap));
        let records = vec![Prepared { kind: Kind::Gap, tag: 0, plaintext, effect, id: None }];
        let (reply, told) = oneshot::channel();
        self.requests.send(Request::Append { records, control: true, reply });
        self.losing = Some(Loss { order, count, bytes, told, rewound: false });
    }

    /// The cursor may move over a damaged segment as soon as nothing of it is in hand.
    fn pass_over(&mut self, order: u64) {
        self.over = self.over.max(Some(order));
        self.advance(Place::default());
    }

    /// Waits for a reader that is away; when this is cancelled it stays there for the next call.
    async fn wait(
        &mut self,
        work: JoinHandle<(Box<Reader>, io::Result<Vec<Entry>>)>,
    ) -> io::Result<(Box<Reader>, io::Result<Vec<Entry>>)> {
        self.reading = Reading::Away(work);
        let told = match &mut self.reading {
            Reading::Away(work) => work.await.map_err(|error| error.to_string()),
            _ => Err("the lane's reader is gone".to_owned()),
        };
        told.map_err(|error| self.read_anew(&error))
    }

    /// After a reader was lost: another one goes on behind what is in hand, else behind the cursor.
    fn read_anew(&mut self, error: &str) -> io::Error {
        let cursor = self.log.state().lanes.get(&self.key).map(|lane| lane.cursor).unwrap_or_default();
        let handed = self.handed.back().map(|handed| handed.place);
        let seek = self.ready.back().map(|entry| entry.place).or(handed).map_or(cursor, |place| place.max(cursor));
        let reader = Reader::new(Arc::clone(&self.log), self.key.clone(), self.tag, seek);
        (self.reading, self.rewound) = (Reading::Here(Box::new(reader)), false);
        io::Error::other(error)
    }
}

/// Bytes of an entry's body, as far as it can be read.
fn entry_bytes(entry: &Entry) -> u64 {
    entry.content.as_ref().map_or(0, |envelope| envelope.body.len())
}

/// Reads a lane's entries; blocks on the disk.
struct Reader {
    log: Arc<Log>,
    key: LaneKey,
    tag: u16,
    /// The last place that was read.
    seek: Place,
    walker: Option<Walker>,
    /// The segment that is read, when damage was found in it.
    damaged: Option<u64>,
    /// Damaged segments in which nothing is left to read.
    passed: Vec<u64>,
}

impl Reader {
    /// Reads on behind `seek`.
    fn new(log: Arc<Log>, key: LaneKey, tag: u16, seek: Place) -> Self {
        Self { log, key, tag, seek, walker: None, damaged: None, passed: Vec::new() }
    }

    fn restart(&mut self) {
        (self.walker, self.damaged) = (None, None);
        self.passed.clear();
        self.seek = self.log.state().lanes.get(&self.key).map(|lane| lane.cursor).unwrap_or_default();
    }

    /// Whether the next read may have to wait for the disk.
    fn is_cold(&self) -> bool {
        let active = self.log.state().active;
        self.walker.as_ref().is_none_or(|walker| Some(walker.segment().identity.order) != active)
    }

    /// The next entries; none when there are none now.
    fn batch(&mut self) -> io::Result<Vec<Entry>> {
        let (mut entries, mut bytes) = (Vec::new(), 0);
        while entries.len() < BATCH_ENTRIES && bytes < BATCH_BYTES {
            let Some((limit, closed)) = self.locate() else { break };
            let Some(walker) = &mut self.walker else { break };
            let (seek, tag, order) = (self.seek, self.tag, walker.segment().identity.order);
            let wanted = move |header: &super::frame::FrameHeader| {
                Kind::may_be_for_lanes(header.kind)
                    && header.tag == tag
                    && Place { segment: order, ordinal: header.ordinal } > seek
            };
            let identity = walker.segment().identity;
            let step = match walker.next(limit, &wanted) {
                Ok(step) => step,
                // What was read before is handed out; a new walker goes on behind it.
                Err(error) => {
                    self.walker = None;
                    return if entries.is_empty() { Err(error) } else { Ok(entries) };
                }
            };
            match step {
                Step::End if closed => self.leave(order),
                Step::End => break,
                Step::Skipped { .. } | Step::Damaged { .. } if self.replaced() => self.walker = None,
                Step::Skipped { bytes } => self.quarantine(order, bytes),
                Step::Damaged { ordinal } => {
                    self.quarantine(order, 0);
                    self.seek = Place { segment: order, ordinal };
                    let content = Err(BodyError::Unreadable("the record is damaged on disk".to_owned()));
                    entries.push(Entry { place: self.seek, id: MessageId::new(identity.id, ordinal), content });
                }
                Step::Frame(found) => {
                    self.seek = Place { segment: order, ordinal: found.header.ordinal };
                    if let Some(entry) = self.entry(&identity, found) {
                        bytes +=
                            entry.content.as_ref().map_or(0, |envelope| envelope.body.as_whole().map_or(0, Bytes::len));
                        entries.push(entry);
                    }
                }
            }
        }
        Ok(entries)
    }

    /// Makes the walker stand in the segment that is to be read; tells how far it may read and whether no more will come there.
    fn locate(&mut self) -> Option<(u64, bool)> {
        let state = self.log.state();
        let ahead = state.segments.range(self.seek.segment..).find(|(order, held)| {
            let mine = held.extent.lanes.iter().find(|extent| extent.is_of(&self.key));
            mine.is_some_and(|extent| self.seek < Place { segment: **order, ordinal: extent.last })
        });
        let reading = ahead.map(|(order, _)| *order);
        self.passed.extend(self.damaged.take_if(|order| reading != Some(*order) && state.active != Some(*order)));
        let (order, held) = ahead?;
        let same = self.walker.as_ref().is_some_and(|walker| Arc::ptr_eq(walker.segment(), &held.segment));
        if !same {
            self.walker = Some(Walker::new(Arc::clone(&held.segment)));
        }
        Some((held.end, Some(*order) != state.active))
    }

    fn leave(&mut self, order: u64) {
        self.seek = Place { segment: order, ordinal: u32::MAX };
        self.walker = None;
    }

    /// Whether the walker's segment was compacted or taken back meanwhile: what it could not read is elsewhere.
    fn replaced(&self) -> bool {
        let Some(walker) = &self.walker else { return true };
        let state = self.log.state();
        let held = state.segments.get(&walker.segment().identity.order);
        held.is_none_or(|held| !Arc::ptr_eq(&held.segment, walker.segment()))
    }

    fn quarantine(&mut self, order: u64, bytes: u64) {
        self.damaged = Some(order);
        if self.log.state().quarantine(order) {
            tracing::error!(log = %self.log.class, segment = order, bytes, "damage: what was synced can't be read; the segment is quarantined");
        }
    }

    /// The entry of a record, if it is this lane's.
    fn entry(&self, identity: &Identity, found: Found) -> Option<Entry> {
        let place = Place { segment: identity.order, ordinal: found.header.ordinal };
        if recovery::is_unread(&found) {
            let content =
                Err(BodyError::Unreadable("the record is of an unknown form, perhaps of a newer version".to_owned()));
            return Some(Entry { place, id: MessageId::new(identity.id, found.header.ordinal), content });
        }
        if found.header.kind == Kind::Replay as u8 {
            let replay: Replay = record::decode(&found.plaintext)?;
            let mine = replay.source == self.key.0 && replay.upstream == self.key.1;
            let content = mine.then(|| load(&self.log, replay.at))?;
            return Some(Entry { place, id: replay.id, content });
        }
        let ordinal = found.header.ordinal;
        let envelope = envelope(&self.log, identity, ordinal, found.plaintext)?;
        let mine = envelope.meta.source == self.key.0 && envelope.meta.targets.contains(&self.key.1);
        mine.then(|| Entry { place, id: envelope.id, content: Ok(Arc::new(envelope)) })
    }
}

/// Reads the message whose DATA record is at `at`.
///
/// # Errors
/// [`BodyError`] when it is gone or damaged.
pub(super) fn load(log: &Arc<Log>, at: Place) -> Result<Arc<Envelope>, BodyError> {
    let identity = log.state().segments.get(&at.segment).map(|held| held.segment.identity);
    let identity = identity.ok_or_else(|| BodyError::Gone("its segment is not held any more".to_owned()))?;
    let found = log.record(at, None).map_err(BodyError::from)?;
    let envelope = envelope(log, &identity, at.ordinal, found.plaintext);
    envelope.map(Arc::new).ok_or_else(|| BodyError::Unreadable("the record is of an unknown form".to_owned()))
}

/// The envelope of a DATA record.
pub(super) fn envelope(log: &Arc<Log>, identity: &Identity, ordinal: u32, plaintext: Vec<u8>) -> Option<Envelope> {
    let (data, tail) = record::decode_data(&plaintext)?;
    let id = recovery::id_of(identity, ordinal, &data);
    let tail = Bytes::from(plaintext).slice(tail..);
    let Data { meta, digest, length, pieces, .. } = data;
    let body = match pieces.is_empty() {
        true => Body::whole(tail),
        false => Body::pieces(length, Arc::new(Stored { log: Arc::clone(log), pieces, tail })),
    };
    Some(Envelope { id, class: log.class, meta, digest, body })
}

/// A body in fragments; the last piece came with the DATA record.
struct Stored {
    log: Arc<Log>,
    pieces: Vec<Piece>,
    tail: Bytes,
}

impl Pieces for Stored {
    fn count(&self) -> usize {
        self.pieces.len() + usize::from(!self.tail.is_empty())
    }

    fn read(&self, index: usize) -> Result<Bytes, BodyError> {
        let Some(piece) = self.pieces.get(index) else { return Ok(self.tail.clone()) };
        let at = Place { segment: piece.segment, ordinal: piece.ordinal };
        let found = self.log.record(at, Some(piece.group_offset)).map_err(BodyError::from)?;
        let kind = found.header.kind == Kind::Fragment as u8;
        let body =
            record::decode_fragment(&found.plaintext).filter(|(_, body)| kind && body.len() == piece.length as usize);
        body.map(|(_, body)| Bytes::copy_from_slice(body))
            .ok_or_else(|| BodyError::Unreadable("a piece has the wrong length".to_owned()))
    }
}
