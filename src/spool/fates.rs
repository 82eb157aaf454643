//! What became of messages that a device asks about by its own ids (DICOM storage commitment): kept in the index.
//!
//! For the latest messages of the imaging log the index knows, under a keyed hash of source and device's id, where each was
//! written and the hashes of the upstreams that it is for; and of each message that a person discarded or put back, what was
//! done. It must never say of a message that was not delivered that it was: what is not known for sure is [`Fate::Unknown`], for which
//! a device keeps its own copy. After a lost index what is older than the duplicate window is unknown.

use std::collections::BTreeMap;

use redb::{ReadTransaction, ReadableTableMetadata, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::duplicates::Key;
use super::index_file::{Outcome, Owner};
use super::record::{self, Discard, Replay};
use super::{Place, Spool, logs_of};
use crate::envelope::{Class, MessageId};
use crate::values::Name;

/// Messages that are known at most; the oldest go first.
pub const KNOWN_MAX: u64 = 50_000;
/// Decisions of people that are known at most; beyond it the lowest ids go, whose messages then count as unknown too.
const DECIDED_MAX: u64 = 20_000;

/// The log whose devices ask.
pub const CLASS: Class = Class::Imaging;

/// Keyed hash of source and device's id: [`Known`] in postcard.
const KNOWN: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("known");
/// Uptime of reception (big endian) and the same hash: in order of time, for what must go first.
const KNOWN_SINCE: TableDefinition<'_, &[u8; 24], ()> = TableDefinition::new("known-since");
/// Id of a message and hash of the upstream: [`Decided`] in postcard.
const DECIDED: TableDefinition<'_, &[u8; 24], &[u8]> = TableDefinition::new("decided");

/// What became of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It was never stored, or so long ago that nothing is known of it.
    Unknown,
    /// It is stored, and some upstream has not taken it yet.
    Underway,
    /// Every upstream that it is for took it.
    Delivered,
    /// An upstream refused it for good (it is a dead letter), or a person discarded it.
    Failed,
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
}

/// What a person did with a dead letter, or with an original that was asked for again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Decided {
    Discarded,
    /// It is in its lane again, at this place.
    Again(Place),
}

/// A message that was found, with what people did about it.
#[derive(Clone, Debug)]
pub struct Trace {
    known: Known,
    decided: Vec<([u8; 8], Decided)>,
}

/// What a stretch of the log says, on its way into the index.
#[derive(Default)]
pub struct Sightings {
    known: BTreeMap<Key, Known>,
    decided: BTreeMap<[u8; 24], Decided>,
}

impl Sightings {
    /// A message, under the hash of its device's id.
    pub fn message(&mut self, key: Key, known: Known) {
        self.known.insert(key, known);
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

    /// Makes the index know it.
    ///
    /// # Errors
    /// As redb gives them.
    pub fn write(&self, change: &WriteTransaction) -> Outcome<()> {
        let (mut known, mut since) = (change.open_table(KNOWN)?, change.open_table(KNOWN_SINCE)?);
        for (key, row) in &self.known {
            let former = known.insert(key, record::encode(row).as_slice())?.map(|former| former.value().to_vec());
            if let Some(former) = former.and_then(|former| record::decode::<Known>(&former)) {
                since.remove(&since_key(former.received_ms, key))?;
            }
            since.insert(&since_key(row.received_ms, key), ())?;
        }
        while known.len()? > KNOWN_MAX {
            let Some(oldest) = since.pop_first()?.map(|(oldest, _)| *oldest.value()) else { break };
            known.remove(&oldest.last_chunk().copied().unwrap_or_default())?;
        }
        let mut decided = change.open_table(DECIDED)?;
        for (key, row) in &self.decided {
            decided.insert(key, record::encode(row).as_slice())?;
        }
        while decided.len()? > DECIDED_MAX {
            decided.pop_first()?;
        }
        Ok(())
    }
}

/// What the index knows under these hashes, in their order.
///
/// # Errors
/// As redb gives them.
pub fn find(read: &ReadTransaction, keys: &[Key]) -> Outcome<Vec<Option<Trace>>> {
    let (known, decided) = (read.open_table(KNOWN)?, read.open_table(DECIDED)?);
    let mut traces = Vec::with_capacity(keys.len());
    for key in keys {
        let row = known.get(key)?.and_then(|row| record::decode::<Known>(row.value()));
        let Some(known) = row else {
            traces.push(None);
            continue;
        };
        let mut found = Vec::new();
        for upstream in &known.upstreams {
            let row = decided.get(&decided_key(known.id, *upstream))?;
            found.extend(row.and_then(|row| record::decode(row.value())).map(|row| (*upstream, row)));
        }
        traces.push(Some(Trace { known, decided: found }));
    }
    Ok(traces)
}

impl Spool {
    /// Looks up messages of a source by the ids that the device gave them; the latest under each id. Blocks: brings the index up
    /// to date first.
    ///
    /// # Errors
    /// In words, when the index is off or can't be read: nothing may then be said of any message.
    pub fn trace(&self, source: &Name, ids: &[&[u8]]) -> Result<Vec<Option<Trace>>, String> {
        let keys: Vec<Key> = ids.iter().map(|id| self.inner.duplicates.name_key(source, id)).collect();
        self.inner.index.traces(&logs_of(&self.inner.logs), &keys)
    }

    /// How a message that was found stands now, as far as memory tells. Before anything is promised it must be traced again: a dead
    /// letter that a person discarded in between is only known to the index.
    pub fn fate(&self, source: &Name, trace: Option<&Trace>) -> Fate {
        let Some(trace) = trace.filter(|trace| !trace.known.upstreams.is_empty()) else { return Fate::Unknown };
        let state = self.opened(CLASS).log.state();
        let mut fate = Fate::Delivered;
        for tag in &trace.known.upstreams {
            let decided = trace.decided.iter().find(|(upstream, _)| upstream == tag).map(|(_, decided)| decided);
            let place = match decided {
                Some(Decided::Discarded) => return Fate::Failed,
                Some(Decided::Again(place)) => (*place).max(trace.known.at),
                None => trace.known.at,
            };
            let lanes = state.lanes.iter().filter(|((from, _), _)| from == source);
            let lane = lanes.into_iter().find(|((_, upstream), _)| self.inner.index.tag(upstream) == *tag);
            // A lane that is not there any more can't tell.
            let Some(((_, upstream), lane)) = lane else { return Fate::Unknown };
            if state.dead.contains_key(&(trace.known.id, upstream.clone())) {
                return Fate::Failed;
            }
            if lane.cursor < place {
                fate = Fate::Underway;
            }
        }
        fate
    }
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
