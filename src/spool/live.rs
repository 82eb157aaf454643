//! What of a segment is live: needed by a lane, a dead letter, or a record elsewhere that is.
//!
//! Compaction keeps what these functions name and nothing else, so they must never say no to something that is owed, or would be
//! after a crash: see [`By::Log`]. They only read.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use super::frame::BLOCK;
use super::log::{By, Held, LaneKey, Log, State};
use super::reader::{Found, Step, Walker};
use super::record::{self, Cursor, Data, Dead, Kind, Replay};
use super::segment::{Identity, Segment};
use super::{Place, recovery};
use crate::values::Name;

/// What a record costs beside its body, for estimates.
const RECORD_OVERHEAD: u64 = 256;

/// How much of a segment must stay, estimated from what it and those that point to it hold for each lane.
pub fn live_bytes(state: &State, by: By, order: u64, held: &Held) -> u64 {
    let pointing = state.segments.iter().filter(|(at, other)| **at != order && other.extent.refers.contains(&order));
    let elsewhere: u64 = pointing.map(|(at, other)| live_messages(state, by, *at, other)).sum();
    live_messages(state, by, order, held) + elsewhere.min(held.extent.fragment_bytes) + 4 * BLOCK as u64
}

/// Bytes of the live messages whose records are in a segment, wherever their pieces are.
fn live_messages(state: &State, by: By, order: u64, held: &Held) -> u64 {
    let waiting = held.extent.lanes.iter().filter(|extent| {
        let lane = state.lanes.get(&(extent.source.clone(), extent.upstream.clone()));
        lane.is_none_or(|lane| !lane.has_done(by, Place { segment: order, ordinal: extent.last }))
    });
    // Upstreams of one source mostly wait for the same messages; those of two sources are never the same.
    let mut sources: BTreeMap<&Name, u64> = BTreeMap::new();
    for extent in waiting {
        let most = sources.entry(&extent.source).or_default();
        *most = (*most).max(extent.bytes + extent.count * RECORD_OVERHEAD);
    }
    let dead = state.dead.values().filter(|dead| dead.at.segment == order);
    sources.into_values().sum::<u64>() + dead.map(|dead| dead.length + RECORD_OVERHEAD).sum::<u64>()
}

/// Numbers of the records in segment `order` that something live, there or in another segment, points to: pieces of
/// messages, and originals that are to be sent again; and of the control records that a start may need.
pub fn wanted_records(log: &Log, order: u64) -> io::Result<BTreeSet<u32>> {
    let near = pointing_to(log, &BTreeSet::from([order]));
    let far = pointing_to(log, &near.keys().copied().collect());
    // Originals first: one that is only there to be sent again needs its pieces too.
    let mut originals = BTreeSet::new();
    for held in far.into_values() {
        each_record(held, &|kind| kind == Kind::Replay as u8, &mut |identity, found| {
            originals.extend(original(log, identity, &found))
        })?;
    }
    let mut wanted: BTreeSet<u32> =
        originals.iter().filter(|at| at.segment == order).map(|original| original.ordinal).collect();
    for held in near.into_values() {
        each_record(held, &Kind::may_be_for_lanes, &mut |identity, found| {
            if recovery::is_unread(&found) {
                log.state().leave_alone(identity.order);
            }
            let data = record::decode_data(&found.plaintext).filter(|_| found.header.kind == Kind::Data as u8);
            let Some((data, _)) = data else { return };
            let at = Place { segment: identity.order, ordinal: found.header.ordinal };
            if originals.contains(&at) || is_live(&log.state(), identity, at, &data) {
                wanted.extend(data.pieces.iter().filter(|piece| piece.segment == order).map(|piece| piece.ordinal));
            }
        })?;
    }
    if log.state().is_left_alone(order) {
        let text = "a record of a newer version may point to it";
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let own = log.state().segments.get(&order).map(|held| (Arc::clone(&held.segment), held.end));
    if let Some(held) = own {
        wanted.append(&mut wanted_controls(log, held)?);
    }
    Ok(wanted)
}

/// Numbers of the control records of a segment that a start goes back to when a later checkpoint is damaged: how it began, the
/// last cursor of each lane, the dead letters that still are, and every discard, as an older checkpoint may hold what it ended.
fn wanted_controls(log: &Log, held: (Arc<Segment>, u64)) -> io::Result<BTreeSet<u32>> {
    let mut wanted = BTreeSet::new();
    let mut cursors: BTreeMap<LaneKey, (Place, u32)> = BTreeMap::new();
    each_record(held, &|kind| Kind::CONTROL.iter().any(|control| *control as u8 == kind), &mut |_, found| {
        let ordinal = found.header.ordinal;
        match Kind::from_code(found.header.kind) {
            Some(Kind::Cursor) => {
                let Some(Cursor { source, upstream, at }) = record::decode(&found.plaintext) else { return };
                let last = cursors.entry((source, upstream)).or_insert((at, ordinal));
                *last = (*last).max((at, ordinal));
            }
            Some(Kind::Dead) => {
                let Some(dead) = record::decode::<Dead>(&found.plaintext) else { return };
                if log.state().dead.get(&(dead.id, dead.upstream.clone())) == Some(&dead) {
                    wanted.insert(ordinal);
                }
            }
            _ => {
                wanted.insert(ordinal);
            }
        }
    })?;
    wanted.extend(cursors.into_values().map(|(_, ordinal)| ordinal));
    Ok(wanted)
}

/// These segments and those that point to one of them, with where each ends; without those that nothing needs.
fn pointing_to(log: &Log, orders: &BTreeSet<u64>) -> BTreeMap<u64, (Arc<Segment>, u64)> {
    let state = log.state();
    let done = state.done(By::Log);
    let points = |(at, held): &(&u64, &Held)| {
        !done.contains(at) && (orders.contains(at) || held.extent.refers.iter().any(|to| orders.contains(to)))
    };
    let pointing = state.segments.iter().filter(points);
    pointing.map(|(at, held)| (*at, (Arc::clone(&held.segment), held.end))).collect()
}

/// Shows every record of these kinds in a segment that ends at the given offset.
fn each_record(
    (segment, end): (Arc<Segment>, u64),
    kinds: &dyn Fn(u8) -> bool,
    see: &mut dyn FnMut(&Identity, Found),
) -> io::Result<()> {
    let identity = segment.identity;
    let mut walker = Walker::new(segment);
    loop {
        match walker.next(end, &|header| kinds(header.kind))? {
            Step::End => return Ok(()),
            Step::Damaged { .. } | Step::Skipped { .. } => {}
            Step::Frame(found) => see(&identity, found),
        }
    }
}

/// The place of the original that a REPLAY record needs, while it is live.
fn original(log: &Log, identity: &Identity, found: &Found) -> Option<Place> {
    let replay = record::decode::<Replay>(&found.plaintext)?;
    let at = Place { segment: identity.order, ordinal: found.header.ordinal };
    is_live_replay(&log.state(), at, &replay).then_some(replay.at)
}

/// Whether a lane or a dead letter needs a message for itself.
pub fn is_live(state: &State, identity: &Identity, at: Place, data: &Data) -> bool {
    let id = recovery::id_of(identity, at.ordinal, data);
    let needs = |upstream: &Name| {
        waits(state, &data.meta.source, upstream, at) || state.dead.contains_key(&(id, upstream.clone()))
    };
    // A dead letter of a replay may be for an upstream that the message was not meant for; that replay keeps it.
    data.meta.targets.iter().any(needs)
}

/// Whether a lane or a dead letter needs a REPLAY record. Refused again, its own place is what its dead letter knows.
pub fn is_live_replay(state: &State, at: Place, replay: &Replay) -> bool {
    let dead = || state.dead.get(&(replay.id, replay.upstream.clone())).is_some_and(|dead| dead.at == at);
    waits(state, &replay.source, &replay.upstream, at) || dead()
}

/// Whether a lane needs what is at a place, or would after a crash.
pub fn waits(state: &State, source: &Name, upstream: &Name, at: Place) -> bool {
    state.lanes.get(&(source.clone(), upstream.clone())).is_none_or(|lane| !lane.has_done(By::Log, at))
}
