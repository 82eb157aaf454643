//! What became of messages that a device asks about by its own ids (DICOM storage commitment): kept in the index.
//!
//! For the latest messages of the imaging log the index knows, under a keyed hash of source and device's id, where each was
//! written and the hashes of the upstreams that it is for; and of each message that a person discarded or put back, what was
//! done. It must never say of a message that was not delivered that it was: what is not known for sure is [`Fate::Unknown`], for which
//! a device keeps its own copy. So everything is forgotten when a stretch of the log could not be read, as a person's decision may
//! have stood there; what was in a damaged segment is unknown; and after a lost index what is older than the duplicate window is,
//! unless the log is there from its first segment on.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use redb::{ReadTransaction, ReadableTable, ReadableTableMetadata, Table, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::duplicates::Key;
use super::index_file::{Outcome, Owner};
use super::record::{self, Discard, Replay};
use super::{Place, Spool, logs_of};
use crate::envelope::{Class, MessageId};
use crate::values::Name;

/// Ids of devices that are known at most; the oldest go first.
pub const KNOWN_MAX: u64 = 50_000;
/// Decisions of people that are known at most. Beyond it those go first whose messages are not known any more, then others, and
/// their messages with them.
pub const DECIDED_MAX: u64 = 20_000;
/// So many decisions stay when some must go.
const DECIDED_KEPT: u64 = DECIDED_MAX - DECIDED_MAX / 4;
/// Messages with the same id of a device that are followed at once, each on its way to other upstreams; of more nothing is said.
const VERSIONS_MAX: usize = 4;

/// The log whose devices ask.
pub const CLASS: Class = Class::Imaging;

/// Keyed hash of source and device's id: [`Versions`] in postcard.
const KNOWN: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("known");
/// Uptime of the latest reception (big endian) and the same hash: in order of time, for what must go first.
const KNOWN_SINCE: TableDefinition<'_, &[u8; 24], ()> = TableDefinition::new("known-since");
/// Id of a message and hash of the upstream: [`Decided`] in postcard.
const DECIDED: TableDefinition<'_, &[u8; 24], &[u8]> = TableDefinition::new("decided");

type KnownTable<'a> = Table<'a, &'static [u8; 16], &'static [u8]>;
type SinceTable<'a> = Table<'a, &'static [u8; 24], ()>;
type DecidedTable<'a> = Table<'a, &'static [u8; 24], &'static [u8]>;

/// What became of a message.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fate {
    /// Every upstream that it is for took it.
    Delivered,
    /// It is stored, and some upstream has not taken it yet.
    Underway,
    /// An upstream refused it for good (it is a dead letter), or a person discarded it.
    Failed,
    /// It was never stored, or so long ago that nothing is known of it; or damage makes it doubtful.
    Unknown,
}

/// Where a message is and who must take it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    id: MessageId,
    at: Place,
    received_ms: u64,
    upstreams: Vec<[u8; 8]>,
}

impl Known {
    /// A message that was written at a place.
    pub fn new(owner: &Owner, (id, at): (MessageId, Place), received_ms: u64, targets: &[Name]) -> Self {
        let upstreams = targets.iter().map(|name| owner.tag(name.as_str())).collect();
        Self { id, at, received_ms, upstreams }
    }

    /// Whether all that waited for the other one waits for this, which came later.
    fn replaces(&self, other: &Self) -> bool {
        self.at >= other.at && other.upstreams.iter().all(|upstream| self.upstreams.contains(upstream))
    }
}

/// The messages that a device gave one id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Versions {
    /// In order of places.
    all: Vec<Known>,
    /// There were others.
    too_many: bool,
}

impl Versions {
    /// One more. It takes the place of earlier ones that were for the same upstreams: a device that sends again after a refusal
    /// asks about what it sent last.
    fn add(&mut self, known: Known) {
        self.all.retain(|former| former.id != known.id && !known.replaces(former));
        if self.all.iter().any(|former| former.replaces(&known)) {
            return;
        }
        self.all.push(known);
        self.all.sort_by_key(|known| known.at);
        if self.all.len() > VERSIONS_MAX {
            self.all.remove(0);
            self.too_many = true;
        }
    }

    fn join(&mut self, newer: &Self) {
        newer.all.iter().for_each(|known| self.add(known.clone()));
        self.too_many |= newer.too_many;
    }

    fn received_ms(&self) -> u64 {
        self.all.iter().map(|known| known.received_ms).max().unwrap_or(0)
    }
}

/// What a person did with a dead letter, or with an original that was asked for again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Decided {
    Discarded,
    /// It is in its lane again, at this place.
    Again(Place),
}

/// What was found under an id, with what people did about it.
#[derive(Clone, Debug)]
pub struct Trace {
    versions: Versions,
    decided: HashMap<[u8; 24], Decided>,
}

#[cfg(test)]
impl Trace {
    /// Whether people did something about it.
    pub fn is_decided(&self) -> bool {
        !self.decided.is_empty()
    }
}

/// What a stretch of the log says, on its way into the index.
#[derive(Default)]
pub struct Sightings {
    known: BTreeMap<Key, Versions>,
    decided: BTreeMap<[u8; 24], Decided>,
    /// Segments of which something is lost.
    damaged: BTreeSet<u64>,
    /// What was known before is void.
    anew: bool,
}

impl Sightings {
    /// Something of the log could not be read: what was decided there is not known, so nothing earlier is.
    pub fn forget(&mut self) {
        *self = Self { anew: true, ..Self::default() };
    }

    /// A message, under the hash of its device's id.
    pub fn message(&mut self, key: Key, known: Known) {
        self.known.entry(key).or_default().add(known);
    }

    /// A message that was put into a lane again.
    pub fn again(&mut self, owner: &Owner, replay: &Replay, at: Place) {
        self.decided.insert(decided_key(replay.id, owner.tag(replay.upstream.as_str())), Decided::Again(at));
    }

    /// A dead letter that ended. One that was put back has its REPLAY just before; any earlier one was for another time.
    pub fn ended(&mut self, owner: &Owner, discard: &Discard, at: Place) {
        let key = decided_key(discard.id, owner.tag(discard.upstream.as_str()));
        let put_back = self.decided.get(&key).is_some_and(|decided| match decided {
            Decided::Again(place) => place.segment == at.segment && place.ordinal.checked_add(1) == Some(at.ordinal),
            Decided::Discarded => false,
        });
        if !put_back {
            self.decided.insert(key, Decided::Discarded);
        }
    }

    /// Something of a segment is lost. The memory of damage goes with the segment: its messages must be forgotten before.
    pub fn damaged(&mut self, segment: u64) {
        self.damaged.insert(segment);
    }

    /// Makes the index know it.
    ///
    /// # Errors
    /// As redb gives them.
    pub fn write(&self, change: &WriteTransaction) -> Outcome<()> {
        if self.anew {
            change.delete_table(KNOWN)?;
            change.delete_table(KNOWN_SINCE)?;
            change.delete_table(DECIDED)?;
        }
        let (mut known, mut since) = (change.open_table(KNOWN)?, change.open_table(KNOWN_SINCE)?);
        for (key, row) in &self.known {
            let former = known.get(key)?.and_then(|former| record::decode::<Versions>(former.value()));
            let mut versions = former.unwrap_or_default();
            since.remove(&since_key(versions.received_ms(), key))?;
            versions.join(row);
            known.insert(key, record::encode(&versions).as_slice())?;
            since.insert(&since_key(versions.received_ms(), key), ())?;
        }
        while known.len()? > KNOWN_MAX {
            let Some(oldest) = since.pop_first()?.map(|(oldest, _)| *oldest.value()) else { break };
            known.remove(&oldest.last_chunk().copied().unwrap_or_default())?;
        }
        let mut decided = change.open_table(DECIDED)?;
        for (key, row) in &self.decided {
            decided.insert(key, record::encode(row).as_slice())?;
        }
        self.forget_damaged(&mut known, &mut since, &decided)?;
        if decided.len()? > DECIDED_MAX {
            forget_decided(&mut known, &mut since, &mut decided)?;
        }
        Ok(())
    }

    /// Forgets the messages that are, or were put back, in segments of which something is lost.
    fn forget_damaged(
        &self,
        known: &mut KnownTable<'_>,
        since: &mut SinceTable<'_>,
        decided: &DecidedTable<'_>,
    ) -> Outcome<()> {
        if self.damaged.is_empty() {
            return Ok(());
        }
        let mut doubtful = HashSet::new();
        for entry in decided.iter()? {
            let (key, row) = entry?;
            if let Some(Decided::Again(place)) = record::decode(row.value())
                && self.damaged.contains(&place.segment)
            {
                doubtful.insert(message_of(key.value()));
            }
        }
        forget_known(known, since, |known| self.damaged.contains(&known.at.segment) || doubtful.contains(&known.id))
    }
}

/// Makes room for decisions.
fn forget_decided(
    known: &mut KnownTable<'_>,
    since: &mut SinceTable<'_>,
    decided: &mut DecidedTable<'_>,
) -> Outcome<()> {
    let mut ids = HashSet::new();
    for entry in known.iter()? {
        let versions = record::decode::<Versions>(entry?.1.value()).unwrap_or_default();
        ids.extend(versions.all.iter().map(|known| known.id));
    }
    decided.retain(|key, _| ids.contains(&message_of(key)))?;
    if decided.len()? <= DECIDED_KEPT {
        return Ok(());
    }
    let mut gone = HashSet::new();
    while decided.len()? > DECIDED_KEPT {
        let Some((key, _)) = decided.pop_first()? else { break };
        gone.insert(message_of(key.value()));
    }
    forget_known(known, since, |known| gone.contains(&known.id))
}

/// Forgets all ids with a message of which `doubtful` says yes.
fn forget_known(
    known: &mut KnownTable<'_>,
    since: &mut SinceTable<'_>,
    doubtful: impl Fn(&Known) -> bool,
) -> Outcome<()> {
    let mut gone = Vec::new();
    for entry in known.iter()? {
        let (key, row) = entry?;
        let versions = record::decode::<Versions>(row.value()).unwrap_or_default();
        if versions.all.iter().any(&doubtful) {
            gone.push((*key.value(), versions.received_ms()));
        }
    }
    for (key, received_ms) in gone {
        known.remove(&key)?;
        since.remove(&since_key(received_ms, &key))?;
    }
    Ok(())
}

/// What the index knows under these hashes, in their order.
///
/// # Errors
/// As redb gives them.
pub fn find(read: &ReadTransaction, keys: &[Key]) -> Outcome<Vec<Option<Trace>>> {
    let (known, decided) = (read.open_table(KNOWN)?, read.open_table(DECIDED)?);
    let mut traces = Vec::with_capacity(keys.len());
    for key in keys {
        let row = known.get(key)?.and_then(|row| record::decode::<Versions>(row.value()));
        let Some(versions) = row else {
            traces.push(None);
            continue;
        };
        let mut found = HashMap::new();
        for known in &versions.all {
            for upstream in &known.upstreams {
                let key = decided_key(known.id, *upstream);
                let row = decided.get(&key)?;
                found.extend(row.and_then(|row| record::decode(row.value())).map(|row| (key, row)));
            }
        }
        traces.push(Some(Trace { versions, decided: found }));
    }
    Ok(traces)
}

/// How the lanes of a source and the segments of the log stand at one moment.
pub struct Standing {
    /// The cursor of each lane, by the hash of its upstream.
    cursors: HashMap<[u8; 8], Place>,
    /// Dead letters: message and hash of the upstream.
    dead: HashSet<[u8; 24]>,
    held: BTreeSet<u64>,
    damaged: BTreeSet<u64>,
    /// There are files that can't be read.
    foreign: bool,
}

impl Standing {
    /// What became of what was found. To promise anything, the trace must be of a later moment than this: a dead letter that a
    /// person discarded in between is then known as discarded.
    pub fn fate(&self, trace: Option<&Trace>) -> Fate {
        let Some(trace) = trace.filter(|trace| !trace.versions.too_many) else { return Fate::Unknown };
        let fates = trace.versions.all.iter().map(|known| self.fate_of(known, trace));
        fates.max().unwrap_or(Fate::Unknown)
    }

    fn fate_of(&self, known: &Known, trace: &Trace) -> Fate {
        let fates = known.upstreams.iter().map(|upstream| {
            let key = decided_key(known.id, *upstream);
            let place = match trace.decided.get(&key) {
                Some(Decided::Discarded) => return Fate::Failed,
                Some(Decided::Again(place)) => (*place).max(known.at),
                None => known.at,
            };
            match self.cursors.get(upstream) {
                _ if self.is_doubtful(known.at.segment) || self.is_doubtful(place.segment) => Fate::Unknown,
                // A lane that is not there any more can't tell.
                None => Fate::Unknown,
                Some(_) if self.dead.contains(&key) => Fate::Failed,
                Some(cursor) if *cursor < place => Fate::Underway,
                Some(_) => Fate::Delivered,
            }
        });
        fates.max().unwrap_or(Fate::Unknown)
    }

    /// Whether a cursor may have passed over messages of a segment that nobody got.
    fn is_doubtful(&self, segment: u64) -> bool {
        self.damaged.contains(&segment) || self.foreign && !self.held.contains(&segment)
    }
}

impl Spool {
    /// Looks up messages of a source by the ids that the device gave them. Blocks: brings the index up to date first.
    ///
    /// # Errors
    /// In words, when the index is off or can't be read: nothing may then be said of any message.
    pub fn trace(&self, source: &Name, ids: &[&[u8]]) -> Result<Vec<Option<Trace>>, String> {
        let keys: Vec<Key> = ids.iter().map(|id| self.inner.duplicates.name_key(source, id)).collect();
        self.inner.index.traces(&logs_of(&self.inner.logs), &keys)
    }

    /// How the lanes of a source stand now.
    pub fn standing(&self, source: &Name) -> Standing {
        let tag = |upstream: &Name| self.inner.index.tag(upstream);
        let state = self.opened(CLASS).log.state();
        let lanes = state.lanes.iter().filter(|((from, _), _)| from == source);
        let dead = state.dead.values().filter(|dead| dead.source == *source);
        Standing {
            cursors: lanes.map(|((_, upstream), lane)| (tag(upstream), lane.cursor)).collect(),
            dead: dead.map(|dead| decided_key(dead.id, tag(&dead.upstream))).collect(),
            held: state.segments.keys().copied().collect(),
            damaged: state.damaged().collect(),
            foreign: !state.foreign.is_empty(),
        }
    }
}

fn message_of(key: &[u8; 24]) -> MessageId {
    MessageId(key.first_chunk().copied().unwrap_or_default())
}

fn decided_key(id: MessageId, upstream: [u8; 8]) -> [u8; 24] {
    let mut key = [0; 24];
    key[..16].copy_from_slice(&id.0);
    key[16..].copy_from_slice(&upstream);
    key
}

fn since_key(received_ms: u64, hash: &Key) -> [u8; 24] {
    let mut key = [0; 24];
    key[..8].copy_from_slice(&received_ms.to_be_bytes());
    key[8..].copy_from_slice(hash);
    key
}
