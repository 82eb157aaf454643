//! Sending kept originals again: which there are, and the records that bring them back into a lane.
//!
//! An original that was delivered is held by nothing: its segment may be taken back or compacted at any moment. So all that a
//! replay may need is pinned before it is searched, until its records are synced and hold it themselves. A log that is full takes
//! it all the same, as what comes in is worth more; what was lost that way is counted and told.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::log::{Held, Log, State};
use super::operations::{REPLAY_BATCH, append, prepared_replay};
use super::reader::{Step, Walker};
use super::record::{self, Data, Kind, Replay};
use super::segment::{Identity, Segment};
use super::{CommitError, Opened, Place, Spool, recovery};
use crate::values::Name;

/// Messages that are to be sent again.
#[derive(Clone, Debug)]
pub struct ReplayOrder {
    /// Of this source.
    pub source: Name,
    /// Received at or after, wall clock microseconds.
    pub from_us: i64,
    /// Received before.
    pub to_us: i64,
    /// To this upstream.
    pub upstream: Name,
    /// Only count them.
    pub dry_run: bool,
}

/// What a replay did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Messages that come again.
    pub messages: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// When the first and the last one were received, wall clock microseconds.
    pub received_us: Option<(i64, i64)>,
    /// The range begins before the oldest message that is still held, and older ones were taken back.
    pub incomplete: bool,
    /// Messages that were found, and given up by a full log before they could be sent.
    pub missing: u64,
}

impl Spool {
    /// Puts kept originals at the end of a lane, in their order. Durable when it returns.
    ///
    /// # Errors
    /// [`CommitError`]; what was appended before it stays.
    pub async fn replay(&self, order: &ReplayOrder) -> Result<Replayed, CommitError> {
        let mut done = Replayed::default();
        for opened in &self.inner.logs {
            let number = self.inner.streams.fetch_add(1, Ordering::Relaxed);
            let (log, wanted) = (Arc::clone(&opened.log), order.clone());
            let search = tokio::task::spawn_blocking(move || {
                let (pin, segments) = Pin::new(log, number, &wanted);
                let mut found = originals(&pin.log, segments, &wanted)?;
                pin.narrow(&mut found);
                io::Result::Ok((pin, found))
            });
            let (pin, found) = search.await.map_err(|_| CommitError::Failed)?.map_err(|_| CommitError::Failed)?;
            done.incomplete |= is_incomplete(&opened.log.state(), order);
            for original in &found {
                done.count(original);
            }
            if !order.dry_run {
                for batch in found.chunks(REPLAY_BATCH) {
                    done.put(opened, batch).await?;
                }
            }
            drop(pin);
        }
        Ok(done)
    }
}

impl Replayed {
    fn count(&mut self, original: &Original) {
        let at = original.received_us;
        let (first, last) = self.received_us.unwrap_or((at, at));
        self.received_us = Some((first.min(at), last.max(at)));
        self.messages += 1;
        self.bytes += original.replay.length;
    }

    /// Appends the records of what is still there, and looks again once they are synced.
    async fn put(&mut self, opened: &Opened, batch: &[Original]) -> Result<(), CommitError> {
        let (held, gone): (Vec<_>, Vec<_>) = batch.iter().partition(|original| original.is_held(&opened.log));
        append(opened, held.iter().map(|original| prepared_replay(opened, original.replay.clone())).collect()).await?;
        let dropped = held.into_iter().filter(|original| !original.is_held(&opened.log));
        for original in gone.into_iter().chain(dropped) {
            self.messages -= 1;
            self.bytes -= original.replay.length;
            self.missing += 1;
        }
        Ok(())
    }
}

/// A message that is to be sent again.
struct Original {
    replay: Replay,
    received_us: i64,
    /// The segments that hold it, its record and earlier pieces, and their generations when it was found.
    segments: BTreeMap<u64, u32>,
}

impl Original {
    /// Whether it can still be sent.
    fn is_held(&self, log: &Log) -> bool {
        let generation = |order: &u64| log.state().segments.get(order).map(|held| held.segment.identity.generation);
        if self.segments.iter().all(|(order, found)| generation(order) == Some(*found)) {
            return true;
        }
        // Compacted meanwhile, which is rare: perhaps without it, and perhaps after its record held it.
        let found = log.record(self.replay.at, None).ok();
        let data = found.and_then(|found| record::decode_data(&found.plaintext));
        data.is_some_and(|(data, _)| is_whole(log, &data))
    }
}

/// Segments that a replay may need: neither compacted nor taken back until this is dropped.
struct Pin {
    log: Arc<Log>,
    number: u64,
}

impl Pin {
    /// Pins the segments with messages of the time that is asked for, and those that hold pieces of them; tells the former and
    /// where each ends.
    fn new(log: Arc<Log>, number: u64, order: &ReplayOrder) -> (Self, Vec<(Arc<Segment>, u64)>) {
        // What is being compacted now is chosen already: it must be over.
        let space = log.space.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = log.state();
        let in_time = |held: &&Held| {
            held.extent.received_us.is_some_and(|(first, last)| first < order.to_us && last >= order.from_us)
        };
        let chosen: Vec<&Held> = state.segments.values().filter(in_time).collect();
        let own = chosen.iter().map(|held| held.segment.identity.order);
        let pinned = own.chain(chosen.iter().flat_map(|held| held.extent.refers.iter().copied())).collect();
        let segments = chosen.into_iter().map(|held| (Arc::clone(&held.segment), held.end)).collect();
        state.replays.insert(number, pinned);
        drop((state, space));
        (Self { log, number }, segments)
    }

    /// Lets go of what was not found to be needed.
    fn narrow(&self, found: &mut [Original]) {
        let needed = found.iter().flat_map(|original| original.segments.keys().copied()).collect();
        match self.log.state().replays.get_mut(&self.number) {
            Some(pinned) => *pinned = needed,
            // A full log took it meanwhile: what was found is looked for again.
            None => {
                found.iter_mut().flat_map(|original| original.segments.values_mut()).for_each(|found| *found = u32::MAX)
            }
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.log.state().replays.remove(&self.number);
    }
}

/// Whether messages of the source that the order names may have been taken back or compacted away.
fn is_incomplete(state: &State, order: &ReplayOrder) -> bool {
    let oldest = state.segments.values().filter_map(|held| held.extent.received_us).map(|(first, _)| first).min();
    let whole = state.segments.first_key_value().is_none_or(|(first, _)| *first == 1)
        && state.segments.values().all(|held| held.segment.identity.generation == 0);
    let known = state.lanes.keys().any(|(source, _)| *source == order.source);
    known && !whole && oldest.is_none_or(|oldest| order.from_us < oldest)
}

/// The messages that a replay is about, in their order.
fn originals(log: &Log, segments: Vec<(Arc<Segment>, u64)>, order: &ReplayOrder) -> io::Result<Vec<Original>> {
    let mut found = Vec::new();
    for (segment, end) in segments {
        let mut walker = Walker::new(Arc::clone(&segment));
        loop {
            match walker.next(end, &|header| header.kind == Kind::Data as u8)? {
                Step::End => break,
                Step::Damaged { .. } | Step::Skipped { .. } => {}
                Step::Frame(frame) => {
                    let Some((data, _)) = record::decode_data(&frame.plaintext) else { continue };
                    let received = data.meta.received.wall_us;
                    let chosen = data.meta.source == order.source && (order.from_us..order.to_us).contains(&received);
                    // Requests for storage commitment are for nobody else, and nothing else is for who answers them.
                    let fits = data.meta.asks_for_commitment() == (order.upstream == Name::storage_commitment());
                    let chosen = chosen && fits && !data.meta.is_part();
                    let replay = replay_to(log, &segment.identity, frame.header.ordinal, &data, &order.upstream);
                    if chosen && !is_owed(&log.state(), &data, &replay) && is_whole(log, &data) {
                        let pieces = data.pieces.iter().map(|piece| piece.segment);
                        let segments = generations(log, pieces.chain([replay.at.segment]));
                        found.push(Original { replay, received_us: received, segments });
                    }
                }
            }
        }
    }
    Ok(found)
}

/// These segments and their generations; 0 for one that is gone, so that what needs it counts as gone.
fn generations(log: &Log, orders: impl Iterator<Item = u64>) -> BTreeMap<u64, u32> {
    let state = log.state();
    let generation = |order| state.segments.get(&order).map_or(0, |held| held.segment.identity.generation);
    orders.map(|order| (order, generation(order))).collect()
}

/// Whether a message still waits for the upstream, or is dead for it: it is not sent twice.
fn is_owed(state: &State, data: &Data, replay: &Replay) -> bool {
    let waits = data.meta.targets.contains(&replay.upstream) && {
        let lane = state.lanes.get(&(replay.source.clone(), replay.upstream.clone()));
        lane.is_none_or(|lane| lane.cursor < replay.at)
    };
    waits || state.dead.contains_key(&(replay.id, replay.upstream.clone()))
}

/// Whether all pieces of a message are there: those of one that was delivered may have gone before its record.
fn is_whole(log: &Log, data: &Data) -> bool {
    data.pieces.iter().all(|piece| {
        let generation = log.state().segments.get(&piece.segment).map(|held| held.segment.identity.generation);
        let at = Place { segment: piece.segment, ordinal: piece.ordinal };
        // Only compaction takes single records out of a segment.
        generation.is_some_and(|generation| generation == 0 || log.record(at, Some(piece.group_offset)).is_ok())
    })
}

fn replay_to(log: &Log, identity: &Identity, ordinal: u32, data: &Data, upstream: &Name) -> Replay {
    Replay {
        source: data.meta.source.clone(),
        upstream: upstream.clone(),
        id: recovery::id_of(identity, ordinal, data),
        at: Place { segment: identity.order, ordinal },
        length: data.length,
        stamp: log.uptime.stamp(),
    }
}
