//! The index over the logs: how far it has read each of them, the duplicate window, and what became of the messages that devices
//! ask about (`fates`).
//!
//! It makes a start fast and lets the duplicate window outlive it; nothing else. The logs are the authority: the index
//! reads them behind what was synced, may lag and never leads, and is made again from them when it is missing, damaged,
//! older or newer than they are, or another spool's. Nothing waits for it: an acknowledgement least of all. It holds keyed
//! hashes, ids and places, no content and no names.
//!
//! Wear: a change rewrites some pages, about 75 KB for 500 messages, so it is made when [`APPLY_BYTES`] of log wait for
//! it, at most once a minute, and at a stop. What is not in the index yet is read from the log at the next start. The log
//! itself is the queue of the index: there is nothing that could overflow.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redb::{ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::Place;
use super::duplicates::{Duplicates, Key, REMEMBERED_MAX};
use super::fates::{self, Known, Sightings, Trace};
use super::frame::FrameHeader;
use super::index_file::{IndexFile, Outcome, Owner};
use super::log::{Held, Log};
use super::reader::{Step, Walker};
use super::record::{self, Data, Gap, Kind, Opening};
use super::recovery::id_of;
use super::segment::{FIRST_GROUP, Identity, Segment, class_code};
use super::storage::Storage;
use crate::envelope::MessageId;
use crate::status::{Alarm, Counter};
use crate::values::Name;

/// Least time between two changes.
const APPLY_INTERVAL: Duration = Duration::from_secs(60);
/// Bytes of log that must wait before a change is worth its wear.
const APPLY_BYTES: u64 = 2 << 20;

/// Class of the log: [`Position`] in postcard.
const POSITIONS: TableDefinition<'_, u8, &[u8]> = TableDefinition::new("positions");
/// Uptime (u64, big endian) and hash: id of the message and id of the segment that it is in. In order of time, so that
/// additions and removals each touch few pages.
const WINDOW: TableDefinition<'_, &[u8; 24], &[u8; 28]> = TableDefinition::new("window");

/// How far a log was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Position {
    /// The segment's order number, generation and id.
    order: u64,
    generation: u32,
    id: [u8; 12],
    /// Where the groups end that were read.
    end: u64,
}

/// A message of the window: when it was received and its hash; its id and the id of the segment that it is in.
type Rows = BTreeMap<(u64, Key), (MessageId, [u8; 12])>;
type Positions = BTreeMap<u8, Position>;

/// What a stretch of the logs holds for the index.
#[derive(Default)]
struct Found {
    /// Uptime before which nothing is a second copy.
    since: u64,
    rows: Rows,
    /// Uptime before which nothing is said of a message to its device.
    known_since: u64,
    sightings: Sightings,
}

/// See the module.
pub struct Index {
    storage: Arc<dyn Storage>,
    owner: Owner,
    window: Arc<Duplicates>,
    written: Arc<Counter>,
    applied: Mutex<Applied>,
    /// Why nothing is applied any more. A lock of its own: who asks for alarms must not wait for the disk.
    off: Mutex<Option<String>>,
}

struct Applied {
    /// What the file holds; empty when it must be made anew.
    positions: Positions,
    at: Instant,
}

impl Index {
    /// Fills the duplicate window from the index and from what the logs hold behind it. Writes nothing
    /// of its own.
    pub fn open(storage: Arc<dyn Storage>, owner: Owner, window: Arc<Duplicates>, logs: &[&Log]) -> Self {
        let applied = Mutex::new(Applied { positions: Positions::new(), at: Instant::now() });
        let index = Self { storage, owner, window, written: Arc::default(), applied, off: Mutex::default() };
        let since = logs.first().map_or(0, |log| index.since(log));
        let (rows, positions) = index.load(since, logs).unwrap_or_else(|error| {
            tracing::warn!(%error, "the index can't be read and is made again from the log");
            Default::default()
        });
        let mut found = Found { since, rows, ..Found::default() };
        for log in logs {
            let from = positions.get(&class_code(log.class));
            if let Err(error) = settle(log).and_then(|()| index.scan(log, from, &mut found)) {
                tracing::warn!(log = %log.class, %error, "second copies of some messages will not be recognised");
            }
        }
        for ((at_ms, key), (id, _)) in found.rows {
            index.window.remember(key, id, at_ms);
        }
        index.applied().positions = positions;
        index
    }

    /// Whether it is time for a change and enough of the logs waits for one.
    pub fn is_due(&self, logs: &[Arc<Log>]) -> bool {
        let rested = self.applied().at.elapsed() >= APPLY_INTERVAL;
        rested && self.is_worthwhile(logs)
    }

    /// Whether enough of the logs waits for a change.
    pub fn is_worthwhile(&self, logs: &[Arc<Log>]) -> bool {
        self.off().is_none() && waiting(&self.applied(), logs) >= APPLY_BYTES
    }

    /// Brings the index up to what the logs have synced. After a failure it is off until the next start.
    pub fn apply(&self, logs: &[Arc<Log>]) {
        let mut applied = self.applied();
        if self.off().is_some() || waiting(&applied, logs) == 0 {
            return;
        }
        match self.advance(&applied.positions, logs) {
            Ok(positions) => applied.positions = positions,
            Err(error) => self.turn_off(&error),
        }
        applied.at = Instant::now();
    }

    /// Forgets these messages, also for the next start: when a device sends one of them again, it is no second copy.
    pub fn forget(&self, messages: &HashSet<MessageId>, logs: &[Arc<Log>]) {
        self.window.forget(messages);
        // What the file is about is not read again from the logs.
        self.apply(logs);
        let _applied = self.applied();
        if self.off().is_some() {
            return;
        }
        let forgotten = || match IndexFile::open(&*self.storage, &self.owner, &self.written)? {
            Some(file) => file.change(|change| {
                let mut table = change.open_table(WINDOW)?;
                Ok(table.retain(|_, value| !messages.contains(&split_window_value(value).0))?)
            }),
            None => Ok(()),
        };
        if let Err(error) = forgotten() {
            self.turn_off(&error);
        }
    }

    fn turn_off(&self, error: &redb::Error) {
        tracing::warn!(%error, "the index can't be written: it is off until the next start; no message is in danger");
        *self.off() = Some(error.to_string());
    }

    /// Bytes written to its file since the start.
    pub fn written(&self) -> u64 {
        self.written.value()
    }

    /// What a person must see of it.
    pub fn alarm(&self) -> Option<Alarm> {
        let why = self.off().clone()?;
        let text = format!(
            "the index is off ({why}): nothing is lost, but reports of storage commitment wait and the next start takes longer. \
             Look after the disk, then start the service again"
        );
        Some(Alarm { code: "index".to_owned(), about: "spool".to_owned(), text })
    }

    fn applied(&self) -> MutexGuard<'_, Applied> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn off(&self) -> MutexGuard<'_, Option<String>> {
        self.off.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Uptime before which nothing is a second copy.
    fn since(&self, log: &Log) -> u64 {
        log.uptime.ms().saturating_sub(self.window.window_ms())
    }

    /// What the file holds and the logs bear out; nothing when it is not about these logs as they are.
    fn load(&self, since: u64, logs: &[&Log]) -> Outcome<(Rows, Positions)> {
        let Some(database) = IndexFile::read(&*self.storage, &self.owner, &self.written)? else {
            return Ok(Default::default());
        };
        let read = database.begin_read()?;
        let mut positions = Positions::new();
        for entry in read.open_table(POSITIONS)?.iter()? {
            let (class, bytes) = entry?;
            let log = logs.iter().find(|log| class_code(log.class) == class.value());
            match record::decode::<Position>(bytes.value()) {
                Some(position) if log.is_some_and(|log| position.is_held(log)) => {
                    positions.insert(class.value(), position);
                }
                _ => {
                    tracing::info!("the index is not about the log as it is and is made again");
                    return Ok(Default::default());
                }
            }
        }
        // A message counts as stored only while its segment is there: a restored older log must not be answered for.
        let held: HashSet<[u8; 12]> = logs
            .iter()
            .flat_map(|log| log.state().segments.values().map(|held| held.segment.identity.id).collect::<Vec<_>>())
            .collect();
        let mut rows = Rows::new();
        let from = window_key(since, &[0; 16]);
        for entry in read.open_table(WINDOW)?.range::<&[u8; 24]>(&from..)? {
            let (key, value) = entry?;
            let (at_ms, hash) = split_window_key(key.value());
            let (id, segment) = split_window_value(value.value());
            if held.contains(&segment) {
                rows.insert((at_ms, hash), (id, segment));
            }
        }
        Ok((rows, positions))
    }

    /// Reads the logs on from `positions` and writes what it finds.
    fn advance(&self, positions: &Positions, logs: &[Arc<Log>]) -> Outcome<Positions> {
        let file = match positions.is_empty() {
            true => None,
            false => IndexFile::open(&*self.storage, &self.owner, &self.written)?,
        };
        let mut ahead = if file.is_some() { positions.clone() } else { Positions::new() };
        let since = logs.first().map_or(0, |log| self.since(log));
        let mut found = Found { since, ..Found::default() };
        for log in logs {
            let class = class_code(log.class);
            if let Some(position) = self.scan(log, ahead.get(&class), &mut found)? {
                ahead.insert(class, position);
            }
        }
        let write = |change: &WriteTransaction| write(change, &ahead, &found, since);
        match file {
            Some(file) => file.change(write)?,
            None => IndexFile::make(&*self.storage, &self.owner, &self.written, write)?,
        }
        Ok(ahead)
    }

    /// Adds the messages of a log behind `from` that were received since then; tells how far it has read.
    fn scan(&self, log: &Log, from: Option<&Position>, found: &mut Found) -> io::Result<Option<Position>> {
        let asked = log.class == fates::CLASS;
        let segments: Vec<_> = {
            let state = log.state();
            let newer = state.segments.range(from.map_or(0, |from| from.order)..);
            // What people decided is read wherever it stands.
            let passed = |held: &Held| outdated(held, found.since) && !(asked && from.is_some());
            newer.map(|(_, held)| (Arc::clone(&held.segment), held.end, passed(held))).collect()
        };
        found.known_since = if from.is_some() { 0 } else { known_since(log, found.since) };
        let now = log.uptime.ms();
        let mut last = from.cloned();
        for (segment, end, outdated) in segments {
            let identity = segment.identity;
            let read = from.filter(|from| from.order == identity.order && from.generation == identity.generation);
            let before = last.as_ref().map_or(identity.order, |last| last.order);
            if asked && (outdated || !follows(log, &segment, end, before)?) {
                found.sightings.forget();
            }
            last = Some(Position { order: identity.order, generation: identity.generation, id: identity.id, end });
            if outdated {
                continue;
            }
            let walker = Walker::at(segment, read.map_or(FIRST_GROUP, |read| read.end), 0);
            self.walk(walker, end, now, found)?;
        }
        Ok(last)
    }

    /// Adds what a segment says, up to `end`.
    fn walk(&self, mut walker: Walker, end: u64, now: u64, into: &mut Found) -> io::Result<()> {
        let identity = walker.segment().identity;
        let asked = identity.class == fates::CLASS;
        let wanted = move |header: &FrameHeader| {
            let told = [Kind::Replay, Kind::Discard, Kind::Gap].iter().any(|kind| *kind as u8 == header.kind);
            header.kind == Kind::Data as u8 || asked && told
        };
        loop {
            let frame = match walker.next(end, &wanted)? {
                Step::End => return Ok(()),
                // Damage is found, shown and kept by others; here it only means that a second copy is stored as well, and that
                // devices are told nothing of what came before.
                Step::Damaged { .. } | Step::Skipped { .. } => {
                    if asked {
                        into.sightings.forget();
                    }
                    continue;
                }
                Step::Frame(frame) => frame,
            };
            let at = Place { segment: identity.order, ordinal: frame.header.ordinal };
            if frame.header.kind == Kind::Data as u8 {
                let Some((data, _)) = record::decode_data(&frame.plaintext) else { continue };
                // An imported message has the uptime of another box, which may be in the future.
                let at_ms = data.meta.received.uptime_ms.min(now);
                self.message((id_of(&identity, at.ordinal, &data), identity), at, (at_ms, &data), into);
            } else if frame.header.kind == Kind::Replay as u8 {
                record::decode(&frame.plaintext).inspect(|replay| into.sightings.again(&self.owner, replay, at));
            } else if frame.header.kind == Kind::Gap as u8 {
                record::decode(&frame.plaintext).inspect(|gap: &Gap| into.sightings.damaged(gap.segment));
            } else {
                record::decode(&frame.plaintext).inspect(|discard| into.sightings.ended(&self.owner, discard, at));
            }
        }
    }

    fn message(&self, (id, held): (MessageId, Identity), at: Place, (at_ms, data): (u64, &Data), into: &mut Found) {
        let meta = &data.meta;
        let key = self.window.key(&meta.source, &meta.control_id, &data.digest);
        if let Some(key) = key.filter(|_| at_ms >= into.since) {
            into.rows.insert((at_ms, key), (id, held.id));
        }
        if into.rows.len() > REMEMBERED_MAX {
            into.rows.pop_first();
        }
        let instance = held.class == fates::CLASS && !meta.control_id.is_empty() && !meta.asks_for_commitment();
        if instance && at_ms >= into.known_since {
            let key = self.window.name_key(&meta.source, &meta.control_id);
            into.sightings.message(key, Known::new(&self.owner, (id, at), at_ms, &meta.targets));
        }
    }

    /// The keyed hash of an upstream's name in the index.
    pub fn tag(&self, name: &Name) -> [u8; 8] {
        self.owner.tag(name.as_str())
    }

    /// What became of messages, by the hashes of their devices' ids; brings itself up to date first.
    ///
    /// # Errors
    /// In words, when the index is off or can't be read.
    pub fn traces(&self, logs: &[Arc<Log>], keys: &[Key]) -> Result<Vec<Option<Trace>>, String> {
        self.apply(logs);
        if let Some(why) = self.off().clone() {
            return Err(format!("the index is off ({why})"));
        }
        // Nothing changes it while it is read.
        let _applied = self.applied();
        let read = || match IndexFile::read(&*self.storage, &self.owner, &self.written)? {
            Some(database) => fates::find(&database.begin_read()?, keys),
            None => Ok(vec![None; keys.len()]),
        };
        read().map_err(|error| format!("the index can't be read: {error}"))
    }

    /// How many messages of the window are in the file; `None` when it does not authenticate.
    #[cfg(test)]
    pub fn count(&self) -> Option<u64> {
        let database = IndexFile::read(&*self.storage, &self.owner, &self.written).unwrap()?;
        let read = database.begin_read().unwrap();
        Some(read.open_table(WINDOW).unwrap().len().unwrap())
    }
}

impl Position {
    /// Whether the log has all that was read up to here; when not, an older copy of it was put back.
    fn is_held(&self, log: &Log) -> bool {
        let state = log.state();
        match state.segments.get(&self.order) {
            Some(held) => {
                let identity = held.segment.identity;
                let same = identity.generation == self.generation && held.end >= self.end;
                identity.id == self.id && (same || identity.generation > self.generation)
            }
            // Taken back since, which the newest never is.
            None => state.segments.last_key_value().is_some_and(|(newest, _)| *newest > self.order),
        }
    }
}

/// Makes durable what the last start wrote: a process that was killed leaves groups that are read back from memory and were
/// never synced. Only what is on stable storage may be answered for. It left them in the newest segment: of an older one that was
/// not closed only groups count that were synced before the next one was begun.
fn settle(log: &Log) -> io::Result<()> {
    let newest = {
        let state = log.state();
        state.segments.values().next_back().filter(|held| !held.sealed).map(|held| Arc::clone(&held.segment))
    };
    newest.map_or(Ok(()), |segment| segment.file.sync())
}

/// Uptime before which messages are unknown to an index that is made anew: what was decided about them may have stood in segments
/// that are gone. Nothing has gone from a log that is there from its first segment on.
fn known_since(log: &Log, since: u64) -> u64 {
    let state = log.state();
    match state.segments.first_key_value() {
        _ if !state.foreign.is_empty() => u64::MAX,
        Some((first, _)) if *first == 1 => 0,
        _ => since,
    }
}

/// Whether nothing was ever written between the segment of order `before` and this one.
fn follows(log: &Log, segment: &Arc<Segment>, end: u64, before: u64) -> io::Result<bool> {
    if segment.identity.order <= before.saturating_add(1) {
        return Ok(true);
    }
    // An order number may be passed over by a start whose last segment was still empty.
    let foreign = !log.state().foreign.is_empty();
    let opening = match Walker::new(Arc::clone(segment)).next(end, &|_| true)? {
        Step::Frame(frame) if frame.header.kind == Kind::Opening as u8 => record::decode::<Opening>(&frame.plaintext),
        _ => None,
    };
    let previous = opening.and_then(|opening| opening.previous);
    Ok(!foreign && previous.is_some_and(|(previous, _)| previous == before))
}

/// Whether all of a segment was received before then.
fn outdated(held: &Held, since: u64) -> bool {
    held.sealed && held.extent.closed_uptime_ms < since
}

/// Bytes of the logs behind what was applied.
fn waiting(applied: &Applied, logs: &[Arc<Log>]) -> u64 {
    let logs = logs.iter().map(|log| {
        let from = applied.positions.get(&class_code(log.class));
        let state = log.state();
        let newer = state.segments.range(from.map_or(0, |from| from.order)..);
        newer
            .map(|(order, held)| {
                let read = from.filter(|from| from.order == *order && from.id == held.segment.identity.id);
                held.end.saturating_sub(read.map_or(FIRST_GROUP, |read| read.end))
            })
            .sum::<u64>()
    });
    logs.sum()
}

fn write(change: &WriteTransaction, positions: &Positions, found: &Found, since: u64) -> Outcome<()> {
    let mut table = change.open_table(POSITIONS)?;
    for (class, position) in positions {
        table.insert(class, record::encode(position).as_slice())?;
    }
    let mut table = change.open_table(WINDOW)?;
    for ((at_ms, key), (id, segment)) in &found.rows {
        let mut value = [0; 28];
        join(&mut value, &[&id.0, segment]);
        table.insert(&window_key(*at_ms, key), &value)?;
    }
    let before = window_key(since, &[0; 16]);
    table.retain_in::<&[u8; 24], _>(..&before, |_, _| false)?;
    while table.len()? > REMEMBERED_MAX as u64 {
        table.pop_first()?;
    }
    found.sightings.write(change)?;
    Ok(())
}

fn window_key(at_ms: u64, hash: &Key) -> [u8; 24] {
    let mut key = [0; 24];
    join(&mut key, &[&at_ms.to_be_bytes(), hash]);
    key
}

fn split_window_key(key: &[u8; 24]) -> (u64, Key) {
    let (at_ms, hash) = key.split_first_chunk::<8>().unwrap_or((&[0; 8], &[]));
    (u64::from_be_bytes(*at_ms), hash.first_chunk().copied().unwrap_or_default())
}

fn split_window_value(value: &[u8; 28]) -> (MessageId, [u8; 12]) {
    let (id, segment) = value.split_first_chunk::<16>().unwrap_or((&[0; 16], &[]));
    (MessageId(*id), segment.first_chunk().copied().unwrap_or_default())
}

/// Fills `whole` with `parts`, one after the other.
fn join(whole: &mut [u8], parts: &[&[u8]]) {
    for (to, from) in whole.iter_mut().zip(parts.iter().copied().flatten()) {
        *to = *from;
    }
}
