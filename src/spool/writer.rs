//! The one writer of a log: takes what is waiting, writes it as one group, syncs once, then tells all who wait.
//!
//! No timer stands in the way of a lone message. Nobody is told Ok of a message before the sync returned; pieces of a body that is
//! still arriving are written without one (the disk is only told to begin with them), and the commit that takes them over syncs
//! them. After a failed write or sync the segment is given up: what was in the group is written again, under the same ids, to a
//! fresh segment, and only that sync counts; when that fails too, intake is off. A sync is never tried again on the same file.

mod room;

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::batch::Batch;
use super::draft::WHOLE_BYTES;
use super::frame::{self, GROUP_HEADER, Outgoing, build_group, framed_bytes, group_bytes};
use super::log::{Effect, FreeFile, Held, LaneKey, Log, State};
use super::record::{self, Cursor, Kind, Opening};
use super::segment::{FIRST_GROUP, Identity, Segment};
use super::{CommitError, Place, compact, seal};
use crate::envelope::MessageId;
use room::Need;

/// Bytes of records that go into one group; a single longer record still makes one.
const GROUP_BYTES_MAX: usize = 512 << 10;
/// Pieces of bodies that may be written and not synced: what one sync makes durable must not keep a message waiting for long.
const UNSYNCED_BYTES_MAX: u64 = 8 << 20;
/// A disk that syncs within this time is not waited for on another thread.
const QUICK_SYNC: Duration = Duration::from_millis(1);
/// Requests that go into one group.
const GROUP_REQUESTS_MAX: usize = 2048;
/// Cursors that changed are written this often when nothing else is.
const CURSOR_INTERVAL: Duration = Duration::from_secs(60);
/// Cursors that don't fit into the padding of a group wait at most so long while there is traffic.
const CURSOR_RIDE_MAX: Duration = Duration::from_secs(2);

/// A record that is ready to be written.
pub struct Prepared {
    /// Its kind.
    pub kind: Kind,
    /// See [`frame::FrameHeader::tag`].
    pub tag: u16,
    /// Its bytes.
    pub plaintext: Vec<u8>,
    /// What it does once it is synced.
    pub effect: Effect,
    /// The id that it already has (re-appended, imported).
    pub id: Option<MessageId>,
}

/// Where a record was written.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    /// Its place.
    pub at: Place,
    /// Where its group begins in the file.
    pub group_offset: u32,
    /// The id that a message has by it.
    pub id: MessageId,
}

/// What the writer is told.
pub enum Request {
    /// Write these in one group; all or none.
    Append {
        /// The records.
        records: Vec<Prepared>,
        /// Whether they may use the reserve: all but messages and pieces of them.
        control: bool,
        /// Told after the sync.
        reply: oneshot::Sender<Result<Vec<Written>, CommitError>>,
    },
    /// Begin a new segment with the next write (a new epoch key).
    Roll,
    /// Write the cursors and the footer, then end.
    Stop,
}

/// The writer of one log, asked by way of [`super::requests`].
pub struct Writer {
    log: Arc<Log>,
    active: Option<Active>,
    /// The order of the next segment.
    next_order: u64,
    /// The segment before the active one and its groups, for the checkpoint.
    previous: Option<(u64, u32)>,
    buffer: Vec<u8>,
    cursors_at: Instant,
    /// Segments that were given up with pieces of bodies in them that had not been synced: what refers to them is refused.
    lost: Vec<u64>,
    /// The last sync took less than [`QUICK_SYNC`].
    quick: bool,
    /// Several asked for the last group.
    shared: bool,
    /// What comes now is refused.
    stopped: bool,
}

struct Active {
    segment: Arc<Segment>,
    offset: u64,
    group: u32,
    ordinal: u32,
    /// Groups and bytes at the end that are not synced: pieces of bodies that are still arriving.
    unsynced: (u16, u64),
}

impl Writer {
    /// A writer that has no segment yet: it takes one with the first record, always a new one.
    pub fn new(log: Arc<Log>, next_order: u64) -> Self {
        let previous = log.state().segments.last_key_value().map(|(order, held)| (*order, held.groups));
        Self {
            log,
            active: None,
            next_order,
            previous,
            buffer: Vec::new(),
            cursors_at: Instant::now(),
            lost: Vec::new(),
            quick: false,
            shared: false,
            stopped: false,
        }
    }

    /// Writes one request, now, on the thread that asks.
    pub fn serve(&mut self, request: Request) {
        self.gather(request, || None);
    }

    /// Writes `first` and what `more` has waiting in one group.
    pub fn gather(&mut self, first: Request, mut more: impl FnMut() -> Option<Request>) {
        let (mut messages, mut controls) = (Batch::default(), Batch::default());
        let mut next = Some(first);
        let (mut stop, mut roll) = (false, false);
        while let Some(request) = next.take() {
            match request {
                Request::Append { records, control, reply } => {
                    let batch = if control { &mut controls } else { &mut messages };
                    batch.add(records, reply);
                }
                Request::Roll => roll = true,
                Request::Stop => stop = true,
            }
            let count = messages.waiters.len() + controls.waiters.len();
            let full = messages.bytes + controls.bytes >= GROUP_BYTES_MAX || count >= GROUP_REQUESTS_MAX;
            if !full && !stop && !roll {
                next = more();
            }
        }
        self.shared = messages.waiters.len() > 1;
        self.write_batches(messages, controls);
        if stop {
            self.stop();
        }
        if roll {
            self.retire();
        }
    }

    /// Writes the cursors and the footer; what comes later is refused.
    pub fn stop(&mut self) {
        self.write_cursors();
        self.retire();
        self.stopped = true;
    }

    /// Whether several asked for the last group: then they soon will again, and a queue brings them together.
    pub fn is_shared(&self) -> bool {
        self.shared
    }

    /// Whether the disk syncs so quickly that it hardly holds up a thread.
    pub fn is_quick(&self) -> bool {
        self.quick
    }

    /// Whether the next piece of a body may be the one with which all before it are synced.
    pub fn syncs_soon(&self) -> bool {
        let next = group_bytes(framed_bytes(WHOLE_BYTES)) as u64;
        self.active.as_ref().is_some_and(|active| active.unsynced.1 + next > UNSYNCED_BYTES_MAX)
    }

    /// For tests: as if the last sync had been quick, or slow.
    #[cfg(test)]
    pub fn pretend(&mut self, quick: bool) {
        self.quick = quick;
    }

    /// Whether it was told to stop.
    pub fn has_stopped(&self) -> bool {
        self.stopped
    }

    /// When cursors that changed must be written if nothing else is.
    pub fn cursors_due_in(&self) -> Duration {
        CURSOR_INTERVAL.saturating_sub(self.cursors_at.elapsed())
    }

    fn write_batches(&mut self, mut messages: Batch, mut controls: Batch) {
        if self.stopped || self.log.has_failed() {
            messages.join(controls).refuse(CommitError::Failed);
            return;
        }
        if !messages.records.is_empty() && !self.room(messages.bytes + controls.bytes, Need::Message) {
            messages.refuse(self.refusal());
            messages = Batch::default();
        }
        if !controls.records.is_empty() && !self.room(messages.bytes + controls.bytes, Need::Control) {
            controls.refuse(self.refusal());
            controls = Batch::default();
        }
        // Finding room, for either, may have dropped or lost pieces of what is to be committed.
        messages = messages.refuse_torn(&self.log.state(), &self.lost).join(controls);
        if !messages.records.is_empty() {
            if !messages.is_pieces_only() {
                self.ride_cursors(&mut messages);
            }
            self.write(messages);
        }
    }

    fn refusal(&self) -> CommitError {
        let fails = self.log.has_failed() || self.log.state().disk_fails();
        if fails { CommitError::Failed } else { CommitError::Full }
    }

    /// Begins a segment in `file`, or, when that fails, in another one.
    fn begin_somewhere(&mut self, file: FreeFile) -> io::Result<()> {
        self.begin(file).or_else(|error| {
            tracing::error!(log = %self.log.class, %error, "a segment could not be begun: another file is tried");
            let other = compact::next_file(&self.log).ok_or(error)?;
            self.begin(other)
        })
    }

    /// Gives the active segment up after a failed write or sync: nothing more is written to it under its key.
    fn give_up(&mut self, error: &io::Error) -> Option<Active> {
        let active = self.active.take()?;
        let order = active.segment.identity.order;
        tracing::error!(log = %self.log.class, segment = order, %error, "a write failed: the segment gets no more");
        self.previous = Some((order, active.synced_groups()));
        if active.unsynced.0 > 0 {
            self.lost.push(order);
        }
        active.disown();
        let mut state = self.log.state();
        state.active = None;
        if let Some(held) = state.segments.get_mut(&order) {
            held.extent.closed_uptime_ms = self.log.uptime.ms();
        }
        drop(state);
        Some(active)
    }

    fn fail(&self, error: &io::Error) -> bool {
        self.log.failed.store(true, Ordering::Relaxed);
        let text = format!(
            "the disk failed twice ({error}): intake is off until the service is started again on a sound disk"
        );
        tracing::error!(log = %self.log.class, %error, "the spool can't write: intake is off");
        self.log.state().refusing = Some(text);
        false
    }

    /// Begins a segment in `file` with its checkpoint: all cursors, all dead letters, and known damage.
    fn begin(&mut self, file: FreeFile) -> io::Result<()> {
        let log = Arc::clone(&self.log);
        // Spent even when this fails: what a failed attempt left in its file must never be taken for the segment that follows.
        let order = self.next_order;
        self.next_order += 1;
        let identity = Identity { class: log.class, order, generation: 0, id: seal::random() };
        let segment = Segment::create(file.file, file.name, identity, &log.keys())?;
        let segment = Arc::new(segment);
        let (mut records, cursors) = self.checkpoint();
        for (ordinal, record) in (0u32..).zip(&mut records) {
            record.ordinal = ordinal;
        }
        build_group(&segment.seal, (0, 0), &records, &mut self.buffer);
        segment.file.write_at(&self.buffer, FIRST_GROUP)?;
        segment.file.sync()?;
        let written = self.buffer.len() as u64;
        log.counters.written.add(written + FIRST_GROUP);
        log.counters.syncs.one();
        let (end, ordinal) = (FIRST_GROUP + written, u32::try_from(records.len()).unwrap_or(u32::MAX));
        let held = Held {
            segment: Arc::clone(&segment),
            end,
            groups: 1,
            extent: Default::default(),
            sealed: false,
            estimate: None,
        };
        let mut state = log.state();
        state.segments.insert(order, held);
        state.active = Some(order);
        for cursor in cursors {
            state.apply(Place::default(), Effect::Cursor(cursor));
        }
        drop(state);
        self.active = Some(Active { segment, offset: end, group: 1, ordinal, unsynced: (0, 0) });
        Ok(())
    }

    /// What a segment begins with, and the cursors in it.
    fn checkpoint(&self) -> (Vec<Outgoing>, Vec<Cursor>) {
        let mut state = self.log.state();
        let opening =
            Opening { stamp: self.log.uptime.stamp(), previous: self.previous, quarantined: state.quarantined.clone() };
        let mut records = vec![outgoing(Kind::Opening, record::encode(&opening), 0)];
        let State { gaps, segments, .. } = &mut *state;
        gaps.retain(|gap| segments.contains_key(&gap.segment));
        let cursors: Vec<Cursor> = state.lanes.iter().filter_map(|(key, lane)| cursor(key, lane.cursor)).collect();
        records.extend(cursors.iter().map(|cursor| outgoing(Kind::Cursor, record::encode(cursor), 0)));
        records.extend(state.dead.values().map(|dead| outgoing(Kind::Dead, record::encode(dead), 0)));
        records.extend(state.gaps.iter().map(|gap| outgoing(Kind::Gap, record::encode(gap), 0)));
        (records, cursors)
    }

    /// Ends the active segment with its footer; a footer that can't be written only costs a scan at the next start.
    fn retire(&mut self) {
        let Some(active) = self.active.take() else { return };
        let order = active.segment.identity.order;
        let mut footer = match self.log.state().segments.get(&order) {
            Some(held) => held.extent.clone(),
            None => return,
        };
        footer.closed_uptime_ms = self.log.uptime.ms();
        let mut last = outgoing(Kind::Footer, record::encode(&footer), 0);
        last.ordinal = active.ordinal;
        build_group(&active.segment.seal, active.number(), &[last], &mut self.buffer);
        let fits = active.offset + self.buffer.len() as u64 <= active.segment.groups_end();
        let write = || {
            active.segment.file.write_at(&self.buffer, active.offset)?;
            active.segment.write_trailer(active.offset)?;
            active.segment.file.sync()
        };
        let outcome = match fits {
            true => write(),
            // What is not synced yet must be, before anything that refers to it is in another file.
            false if active.unsynced.0 > 0 => active.segment.file.sync(),
            false => Ok(()),
        };
        let synced = outcome.is_ok();
        let outcome = if fits { outcome } else { Err(io::Error::other("no room for the footer")) };
        self.log.counters.syncs.one();
        self.log.counters.written.add(self.buffer.len() as u64 + frame::BLOCK as u64);
        let mut state = self.log.state();
        state.active = None;
        if let Some(held) = state.segments.get_mut(&order) {
            held.extent.closed_uptime_ms = footer.closed_uptime_ms;
            held.sealed = outcome.is_ok();
            if synced {
                (held.end, held.groups) = (active.offset, active.group);
            }
        }
        self.previous = Some((order, if synced { active.group } else { active.synced_groups() }));
        if !synced && active.unsynced.0 > 0 {
            self.lost.push(order);
        }
        drop(state);
        self.log.synced.send_modify(|version| *version += 1);
        if let Err(error) = outcome {
            tracing::warn!(log = %self.log.class, segment = order, %error, "a full segment could not be closed");
        }
    }

    /// Adds cursors that changed, when they fit into the padding or have waited long enough.
    fn ride_cursors(&mut self, batch: &mut Batch) {
        let changed = self.changed_cursors();
        if changed.is_empty() {
            self.cursors_at = Instant::now();
            return;
        }
        let encoded: Vec<Vec<u8>> = changed.iter().map(record::encode).collect();
        let framed: usize = encoded.iter().map(|bytes| framed_bytes(bytes.len())).sum();
        let fits = group_bytes(batch.bytes + framed) == group_bytes(batch.bytes);
        if fits || self.cursors_at.elapsed() >= CURSOR_RIDE_MAX {
            batch.add_cursors(changed, encoded);
            self.cursors_at = Instant::now();
        }
    }

    /// Writes the cursors that changed, with nothing else.
    pub fn write_cursors(&mut self) {
        self.cursors_at = Instant::now();
        let batch = Batch::of_cursors(self.changed_cursors());
        if batch.records.is_empty() || self.log.has_failed() {
            return;
        }
        if self.room(batch.bytes, Need::Cursors) {
            self.write(batch);
        }
    }

    fn changed_cursors(&self) -> Vec<Cursor> {
        let state = self.log.state();
        let changed = state.lanes.iter().filter(|(_, lane)| lane.cursor > lane.logged);
        changed.filter_map(|(key, lane)| cursor(key, lane.cursor)).collect()
    }

    /// Writes a batch as one group; on failure once more, to a fresh segment.
    fn write(&mut self, batch: Batch) {
        let pieces_only = batch.is_pieces_only();
        let mut records = Vec::with_capacity(batch.records.len());
        let mut effects = Vec::with_capacity(batch.records.len());
        for prepared in batch.records {
            records.push(Outgoing {
                kind: prepared.kind as u8,
                tag: prepared.tag,
                ordinal: 0,
                plaintext: prepared.plaintext,
            });
            effects.push((prepared.effect, prepared.id));
        }
        let mut ids: Vec<Option<MessageId>> = effects.iter().map(|(_, id)| *id).collect();
        let unsynced = self.active.as_ref().map_or(0, |active| active.unsynced.1);
        let sync = !pieces_only || unsynced + batch.bytes as u64 > UNSYNCED_BYTES_MAX;
        let written = match self.write_group(&mut records, &ids, sync) {
            Ok(written) => written,
            Err(error) => {
                let Some(written) = self.write_elsewhere(&error, &mut records, &mut ids) else {
                    Batch { waiters: batch.waiters, ..Batch::default() }.refuse(CommitError::Failed);
                    return;
                };
                written
            }
        };
        self.publish(effects, &written, sync);
        for record in records.into_iter().filter(|record| record.kind == Kind::Fragment as u8) {
            self.log.buffers.give(record.plaintext, WHOLE_BYTES);
        }
        let mut rest = written.as_slice();
        for waiter in batch.waiters {
            let (own, others) = rest.split_at(waiter.count.min(rest.len()));
            rest = others;
            // A waiter that went away (its connection broke) leaves a stored message that nobody was told about.
            drop(waiter.reply.send(Ok(own.to_vec())));
        }
    }

    fn write_group(
        &mut self,
        records: &mut [Outgoing],
        ids: &[Option<MessageId>],
        sync: bool,
    ) -> io::Result<Vec<Written>> {
        let active = self.active.as_mut().ok_or_else(|| io::Error::other("no segment"))?;
        let first = active.ordinal;
        for (ordinal, record) in (first..).zip(records.iter_mut()) {
            record.ordinal = ordinal;
        }
        build_group(&active.segment.seal, active.number(), records, &mut self.buffer);
        if active.offset + self.buffer.len() as u64 > active.segment.groups_end() {
            return Err(io::Error::other("the group does not fit"));
        }
        active.segment.file.write_at(&self.buffer, active.offset)?;
        match sync {
            true => {
                let began = Instant::now();
                active.segment.file.sync()?;
                self.quick = began.elapsed() < QUICK_SYNC;
            }
            // While the rest of the body arrives: the sync of its commit then has little left to wait for.
            false => active.segment.file.start_writing(active.offset, self.buffer.len() as u64),
        }
        let (identity, offset) = (active.segment.identity, active.offset);
        active.offset += self.buffer.len() as u64;
        active.group += 1;
        active.unsynced = match sync {
            true => (0, 0),
            false => (active.unsynced.0.saturating_add(1), active.unsynced.1 + self.buffer.len() as u64),
        };
        active.ordinal += u32::try_from(records.len()).unwrap_or(u32::MAX);
        let counters = &self.log.counters;
        counters.written.add(self.buffer.len() as u64);
        if sync {
            counters.syncs.one();
        }
        counters.groups.one();
        let group_offset = u32::try_from(offset).unwrap_or(u32::MAX);
        Ok((first..)
            .zip(ids)
            .map(|(ordinal, id)| Written {
                at: Place { segment: identity.order, ordinal },
                group_offset,
                id: id.unwrap_or(MessageId::new(identity.id, ordinal)),
            })
            .collect())
    }

    /// Gives the active segment up and writes the group to a fresh one, under the ids that it would have had.
    fn write_elsewhere(
        &mut self,
        error: &io::Error,
        records: &mut [Outgoing],
        ids: &mut [Option<MessageId>],
    ) -> Option<Vec<Written>> {
        let active = self.give_up(error)?;
        if active.unsynced.0 > 0 {
            // What it holds of bodies that are arriving is gone with it, and with them what this group would have committed.
            return None;
        }
        for ((ordinal, record), id) in (active.ordinal..).zip(records.iter_mut()).zip(ids.iter_mut()) {
            if record.kind == Kind::Data as u8 && id.is_none() {
                let fixed = MessageId::new(active.segment.identity.id, ordinal);
                record.plaintext = with_id(&record.plaintext, fixed)?;
                *id = Some(fixed);
            }
        }
        let again = compact::next_file(&self.log)
            .ok_or_else(|| io::Error::other("no free segment"))
            .and_then(|file| self.begin(file))
            .and_then(|()| self.write_group(records, ids, true));
        let error = match again {
            Ok(written) => return Some(written),
            Err(error) => error,
        };
        self.give_up(&error);
        self.fail(&error);
        None
    }

    /// Takes note of what was written, and makes what was synced visible to the lanes.
    fn publish(&self, effects: Vec<(Effect, Option<MessageId>)>, written: &[Written], synced: bool) {
        let Some(active) = &self.active else { return };
        let wakes = effects.iter().any(|(effect, _)| effect.wakes());
        let mut state = self.log.state();
        if synced && let Some(held) = state.segments.get_mut(&active.segment.identity.order) {
            held.end = active.offset;
            held.groups = active.group;
        }
        for ((effect, _), written) in effects.into_iter().zip(written) {
            state.apply(written.at, effect);
        }
        drop(state);
        if synced && wakes {
            self.log.synced.send_modify(|version| *version += 1);
        }
    }
}

impl Active {
    /// The number of the next group, and how many before it are not synced.
    fn number(&self) -> (u32, u16) {
        (self.group, self.unsynced.0)
    }

    fn synced_groups(&self) -> u32 {
        self.group.saturating_sub(u32::from(self.unsynced.0))
    }

    /// Takes back a group that failed. After a failed sync its pages count as clean: the next start could read from memory
    /// what is not on the disk, and take a message for stored that is not. Whether this reaches the disk does not matter.
    fn disown(&self) {
        self.segment.file.write_at(&[0; frame::BLOCK], self.offset).ok();
    }
}

fn outgoing(kind: Kind, plaintext: Vec<u8>, ordinal: u32) -> Outgoing {
    Outgoing { kind: kind as u8, tag: 0, ordinal, plaintext }
}

fn cursor(key: &LaneKey, at: Place) -> Option<Cursor> {
    (at > Place::default()).then(|| Cursor { source: key.0.clone(), upstream: key.1.clone(), at })
}

/// A DATA record that carries its id.
fn with_id(plaintext: &[u8], id: MessageId) -> Option<Vec<u8>> {
    let (mut data, tail) = record::decode_data(plaintext)?;
    data.id = Some(id);
    Some(record::encode_data(&data, plaintext.get(tail..)?))
}

const _: () = assert!(GROUP_HEADER < frame::BLOCK);
