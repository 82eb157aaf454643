//! What a log is after a start: read from its files alone, never from the index.
//!
//! Closed segments tell what they hold by their footers. Every other one is scanned whole: a group at its end that is not
//! complete is an ordinary power cut (nobody was told that it is stored); a valid group behind one that is not valid and
//! was synced before it, or fewer groups than the next segment's checkpoint names, is damage, and the segment is quarantined: what authenticates
//! is still delivered, the rest is shown, and the file is never used again, also when a person has taken note of it.
//!
//! A record that authenticates and that this version can't read was written by a newer one, before the box went back to this: it is told, its
//! segment is kept, and each known lane of its source, as any may be meant, finds it in its place and makes it a dead letter, which can be
//! sent when the newer version is back. A control record of an unknown kind is kept in the same way, and does nothing. (A closed segment is
//! not read at a start: its lanes come upon such a record by themselves.)

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Weak};

use super::frame::BLOCK;
use super::keys::Keyring;
use super::log::{Effect, FreeFile, Held, LaneKey, State};
use super::reader::{Found, Step, Walker};
use super::record::{self, Data, Footer, Kind, LaneExtent, Opening, Replay};
use super::segment::{FIRST_GROUP, Identity, Opened, Segment};
use super::storage::Storage;
use super::{Place, source_tag};
use crate::envelope::{Class, MessageId};

/// The pieces of a body are in segments that ended within this time of the beginning of the one with its DATA record, in milliseconds of
/// uptime: so much is kept for a record that can't be read and does not tell where they are.
const ARRIVAL_MS: u64 = 3_600_000;

/// A log as it was found.
pub struct Recovered {
    /// Segments, lanes, dead letters.
    pub state: State,
    /// The order of the next segment.
    pub next_order: u64,
    /// The latest uptime that it knows, milliseconds.
    pub uptime_ms: u64,
    /// Bytes of a segment file of full size.
    full: u64,
    /// Random id of the spool.
    spool: [u8; 16],
    /// Records that this version can't read, and the tags of their sources.
    unread: Vec<(Place, u16)>,
}

/// Whether a spool has segment files at all, of whatever kind.
///
/// # Errors
/// As the disk gives them.
pub fn has_segments(storage: &dyn Storage) -> io::Result<bool> {
    for class in Class::ALL {
        if !storage.list(class.as_str())?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reads a log whose segment files have `full` bytes when they are not compacted.
///
/// # Errors
/// As the disk gives them. Damage is not an error: it is in the state, for a person to see.
pub fn recover(storage: &dyn Storage, class: Class, full: u64, keyring: &Keyring) -> io::Result<Recovered> {
    let (state, spool, unread) = (State::default(), keyring.spool, Vec::new());
    let mut found = Recovered { state, next_order: 1, uptime_ms: 0, full, spool, unread };
    let segments = choose(storage, sort_files(storage, class, keyring, &mut found)?, &mut found)?;
    let mut openings = BTreeMap::new();
    for (order, segment) in &segments {
        if let Some(opening) = opening_of(segment)? {
            found.uptime_ms = found.uptime_ms.max(opening.stamp.uptime_ms);
            openings.insert(*order, opening);
        }
    }
    let mut promised: BTreeMap<u64, u32> = BTreeMap::new();
    promised.extend(openings.values().filter_map(|opening| opening.previous));
    for (order, segment) in segments {
        let groups_known = promised.get(&order).copied().filter(|_| segment.identity.generation == 0);
        let held = hold(segment, groups_known, &mut found)?;
        found.uptime_ms = found.uptime_ms.max(held.extent.closed_uptime_ms);
        if held.groups == 0 && !found.state.quarantined.contains(&order) {
            // The power went before the first group was synced: it holds nothing.
            spare(storage, &held.segment, &mut found)?;
        } else {
            found.state.segments.insert(order, held);
        }
    }
    // One that was not closed ended at the latest when the next one was begun; counted from this start, its time would never be over.
    let begun = |opening: &Opening| Some((opening.previous?.0, opening.stamp.uptime_ms));
    let ended: BTreeMap<u64, u64> = openings.values().filter_map(begun).collect();
    for (order, held) in found.state.segments.iter_mut().filter(|(_, held)| !held.sealed) {
        held.extent.closed_uptime_ms = ended.get(order).copied().unwrap_or(found.uptime_ms);
    }
    restore_checkpoint(&openings, &mut found)?;
    keep_unread(&openings, &mut found);
    count_backlogs(&mut found)?;
    Ok(found)
}

/// What a record does, as it is read from disk.
pub fn effect_of(identity: &Identity, found: &Found) -> Effect {
    let bytes = found.plaintext.as_slice();
    match Kind::from_code(found.header.kind) {
        Some(Kind::Data) => record::decode_data(bytes).map_or(Effect::None, |(data, _)| message_effect(&data, None)),
        Some(Kind::Fragment) => match record::decode_fragment(bytes) {
            // Its stream ended with the process that received it.
            // Whoever was sending it is gone.
            Some((_, body)) => Effect::Fragment { stream: 0, length: body.len() as u64, draft: Weak::new() },
            None => Effect::None,
        },
        Some(Kind::Cursor) => record::decode(bytes).map_or(Effect::None, Effect::Cursor),
        Some(Kind::Dead) => record::decode(bytes).map_or(Effect::None, Effect::Dead),
        Some(Kind::Discard) => record::decode(bytes).map_or(Effect::None, Effect::Discard),
        Some(Kind::Replay) => record::decode(bytes).map_or(Effect::None, Effect::Replay),
        Some(Kind::Gap) => record::decode(bytes).map_or(Effect::None, Effect::Gap),
        Some(Kind::Opening | Kind::Footer) => Effect::None,
        None => {
            tracing::warn!(
                segment = identity.order,
                kind = found.header.kind,
                "a record of an unknown kind is left alone"
            );
            Effect::None
        }
    }
}

/// Whether a record that is, or may be, for lanes is in a form that this version can't read.
pub fn is_unread(found: &Found) -> bool {
    match Kind::from_code(found.header.kind) {
        None => true,
        Some(Kind::Data) => record::decode_data(&found.plaintext).is_none(),
        Some(Kind::Replay) => record::decode::<Replay>(&found.plaintext).is_none(),
        Some(_) => false,
    }
}

/// Puts each record that this version can't read before the lanes of its source, and keeps what it may point to.
fn keep_unread(openings: &BTreeMap<u64, Opening>, found: &mut Recovered) {
    let state = &mut found.state;
    let in_segments = state.segments.values().flat_map(|held| &held.extent.lanes);
    let in_segments = in_segments.map(|extent| (extent.source.clone(), extent.upstream.clone()));
    let keys: BTreeSet<LaneKey> = state.lanes.keys().cloned().chain(in_segments).collect();
    for (at, tag) in std::mem::take(&mut found.unread) {
        let begun = openings.get(&at.segment).map_or(0, |opening| opening.stamp.uptime_ms);
        let near = |held: &Held| held.extent.closed_uptime_ms.saturating_add(ARRIVAL_MS) >= begun;
        let pieces =
            state.segments.range(..at.segment).filter(|(_, held)| held.extent.fragment_bytes > 0 && near(held));
        let pieces: Vec<u64> = pieces.map(|(order, _)| *order).collect();
        let Some(held) = state.segments.get_mut(&at.segment) else { continue };
        held.extent.refer(at.segment, pieces);
        for key in keys.iter().filter(|(source, _)| source_tag(&found.spool, source) == tag) {
            held.extent.enqueue(at.ordinal, key, 0, found.uptime_ms);
        }
    }
}

/// What a message does once it is synced.
pub fn message_effect(data: &Data, stream: Option<u64>) -> Effect {
    let mut refers: Vec<u64> = data.pieces.iter().map(|piece| piece.segment).collect();
    refers.dedup();
    Effect::Message {
        source: data.meta.source.clone(),
        targets: data.meta.targets.clone(),
        length: data.length,
        refers,
        received: (data.meta.received.wall_us, data.meta.received.uptime_ms),
        stream,
    }
}

/// The id of the message in a DATA record.
pub fn id_of(identity: &Identity, ordinal: u32, data: &Data) -> MessageId {
    data.id.unwrap_or_else(|| MessageId::new(identity.id, ordinal))
}

/// Opens every file of the log and sorts out what is no segment.
fn sort_files(
    storage: &dyn Storage,
    class: Class,
    keyring: &Keyring,
    found: &mut Recovered,
) -> io::Result<Vec<Segment>> {
    let mut segments = Vec::new();
    for name in storage.list(class.as_str())? {
        if !name.ends_with(".seg") {
            continue;
        }
        let name = format!("{class}/{name}");
        let file = storage.open(&name)?;
        match Segment::open(Arc::clone(&file), name.clone(), keyring)? {
            Opened::Segment(segment) => segments.push(*segment),
            Opened::Free if file.length()? == found.full => found.state.free.push(FreeFile { name, file }),
            Opened::Free if storage.is_writable() => storage.remove(&name)?,
            Opened::Free => {}
            Opened::Foreign => found.state.foreign.push(name),
        }
    }
    Ok(segments)
}

/// One segment for each order: of a compacted one and its source, the newest that was closed.
fn choose(
    storage: &dyn Storage,
    segments: Vec<Segment>,
    found: &mut Recovered,
) -> io::Result<BTreeMap<u64, Arc<Segment>>> {
    let mut chosen: BTreeMap<u64, Arc<Segment>> = BTreeMap::new();
    for segment in segments {
        let identity = segment.identity;
        found.next_order = found.next_order.max(identity.order + 1);
        let segment = Arc::new(segment);
        let Some(other) = chosen.remove(&identity.order) else {
            chosen.insert(identity.order, segment);
            continue;
        };
        let (older, newer) =
            if other.identity.generation < identity.generation { (other, segment) } else { (segment, other) };
        let (winner, loser) = if is_whole(&newer)? { (newer, older) } else { (older, newer) };
        if storage.is_writable() {
            // Its trailer may have been read from memory only, when the service was killed before the sync.
            winner.file.sync()?;
        }
        chosen.insert(identity.order, winner);
        spare(storage, &loser, found)?;
    }
    Ok(chosen)
}

/// Whether a compacted segment is there to its footer. When the power went before its sync, header and trailer may be on the disk and what
/// is between them not.
fn is_whole(segment: &Arc<Segment>) -> io::Result<bool> {
    if segment.footer_offset()?.is_none() {
        return Ok(false);
    }
    let (mut walker, mut ended) = (Walker::new(Arc::clone(segment)), false);
    loop {
        match walker.next(segment.groups_end(), &|_| true)? {
            Step::End => return Ok(ended),
            Step::Damaged { .. } | Step::Skipped { .. } => return Ok(false),
            Step::Frame(found) => ended = found.header.kind == Kind::Footer as u8,
        }
    }
}

/// Puts a file that holds nothing of worth among the free ones.
fn spare(storage: &dyn Storage, segment: &Segment, found: &mut Recovered) -> io::Result<()> {
    if !storage.is_writable() {
        return Ok(());
    }
    Segment::wipe(&*segment.file)?;
    if segment.bytes == found.full {
        found.state.free.push(FreeFile { name: segment.name.clone(), file: Arc::clone(&segment.file) });
        return Ok(());
    }
    storage.remove(&segment.name)
}

fn opening_of(segment: &Arc<Segment>) -> io::Result<Option<Opening>> {
    let mut walker = Walker::new(Arc::clone(segment));
    let limit = FIRST_GROUP + BLOCK as u64;
    // The first group may be longer than a block; only its first frame is wanted, and the limit is about whole groups.
    let limit = segment.groups_end().max(limit);
    match walker.next(limit, &|_| true)? {
        Step::Frame(found) if found.header.kind == Kind::Opening as u8 => Ok(record::decode(&found.plaintext)),
        _ => Ok(None),
    }
}

/// What a segment holds: by its footer, else by a scan.
fn hold(segment: Arc<Segment>, groups_known: Option<u32>, found: &mut Recovered) -> io::Result<Held> {
    if let Some(offset) = segment.footer_offset()? {
        let mut walker = Walker::at(Arc::clone(&segment), offset, 0);
        if let Step::Frame(footer) = walker.next(segment.groups_end(), &|_| true)?
            && footer.header.kind == Kind::Footer as u8
            && let Some(extent) = record::decode::<Footer>(&footer.plaintext)
        {
            let groups = walker.group_boundary().1.saturating_sub(1);
            return Ok(Held { segment, end: offset, groups, extent, sealed: true, estimate: None });
        }
    }
    scan(segment, groups_known, found)
}

/// Reads all of a segment that was not closed.
fn scan(segment: Arc<Segment>, groups_known: Option<u32>, found: &mut Recovered) -> io::Result<Held> {
    let Groups { end, count: groups, damaged } = whole_groups(&segment, groups_known)?;
    let order = segment.identity.order;
    if damaged {
        found.state.quarantine(order);
        tracing::error!(segment = order, file = %segment.name, "damage: groups that were synced can't be read; the segment is quarantined");
    }
    let mut state = State::default();
    let held =
        Held { segment: Arc::clone(&segment), end, groups, extent: Footer::default(), sealed: false, estimate: None };
    state.segments.insert(order, held);
    let mut walker = Walker::new(Arc::clone(&segment));
    loop {
        match walker.next(end, &|_| true)? {
            Step::End => break,
            Step::Damaged { .. } | Step::Skipped { .. } => {}
            Step::Frame(frame) => {
                let at = Place { segment: order, ordinal: frame.header.ordinal };
                let effect = effect_of(&segment.identity, &frame);
                if is_unread(&frame) {
                    found.unread.push((at, frame.header.tag));
                }
                if let Effect::Message { received, .. } = &effect {
                    found.uptime_ms = found.uptime_ms.max(received.1);
                }
                state.apply(at, effect);
            }
        }
    }
    if found.unread.iter().any(|(at, _)| at.segment == order) {
        found.state.leave_alone(order);
    }
    // Unwrap safety: it was put there above and nothing takes it away.
    #[allow(clippy::unwrap_used)]
    Ok(state.segments.remove(&order).unwrap())
}

/// What a scan of groups found.
#[derive(Default)]
struct Groups {
    /// Where the last whole group ends.
    end: u64,
    /// How many groups there are up to there.
    count: u32,
    /// A whole group stands behind something that is none, or there are fewer than were promised.
    damaged: bool,
}

/// Finds the whole groups of a segment that was not closed. `known`: how many the next segment's checkpoint names.
fn whole_groups(segment: &Arc<Segment>, known: Option<u32>) -> io::Result<Groups> {
    let mut groups = Groups { end: FIRST_GROUP, ..Groups::default() };
    let limit = segment.groups_end();
    let mut walker = Walker::new(Arc::clone(segment));
    // The group whose frames are being read: its number plus one, whether all of them were good, and where it ends.
    let (mut current, mut whole, mut boundary) = (0, true, FIRST_GROUP);
    let (mut unsynced, mut gap) = (0, false);
    loop {
        // Nothing behind what the next segment's checkpoint names can count: the empty rest of the file is not read at each start.
        let until = if known.is_some_and(|known| current > 0 && current >= known) { boundary } else { limit };
        let step = walker.next(until, &|_| true)?;
        let (next_boundary, number) = walker.group_boundary();
        // Nothing behind the last group is no gap: what was read of it counts before the rest is looked at.
        if number != current || matches!(step, Step::End | Step::Skipped { .. }) {
            let counts = current > 0 && whole && known.is_none_or(|known| current <= known);
            // Behind a gap, a group counts only when it was written after the first that is missing was synced.
            let proves = counts && gap && groups.count < (current - 1).saturating_sub(unsynced);
            if counts && (!gap || proves) {
                groups.damaged |= proves;
                (groups.end, groups.count, gap) = (boundary, current, false);
            }
            gap |= !whole;
            (current, whole) = (if number == current { 0 } else { number }, true);
            unsynced = walker.unsynced();
        }
        boundary = next_boundary;
        match step {
            Step::End => break,
            Step::Frame(_) => {}
            Step::Damaged { .. } => whole = false,
            Step::Skipped { .. } => gap = true,
        }
    }
    groups.damaged |= known.is_some_and(|known| groups.count < known);
    Ok(groups)
}

/// Cursors and dead letters: the newest checkpoint that is whole, and all that came after it.
fn restore_checkpoint(openings: &BTreeMap<u64, Opening>, found: &mut Recovered) -> io::Result<()> {
    let newest = openings.iter().rev().find(|(order, _)| found.state.segments.contains_key(order));
    for order in newest.map(|(_, opening)| opening.quarantined.as_slice()).unwrap_or_default() {
        if found.state.segments.contains_key(order) {
            found.state.quarantine(*order);
        }
    }
    let held: Vec<(u64, Arc<Segment>, u64)> =
        found.state.segments.iter().rev().map(|(order, held)| (*order, Arc::clone(&held.segment), held.end)).collect();
    let mut newer = Vec::new();
    for (order, segment, end) in held {
        let (effects, whole) = control_effects(segment, end)?;
        newer.push(effects);
        if !whole && found.state.quarantine(order) {
            tracing::error!(
                segment = order,
                "damage: what lanes and dead letters had come to is read from an older segment"
            );
        }
        if whole && openings.contains_key(&order) {
            break;
        }
    }
    for effect in newer.into_iter().rev().flatten() {
        found.state.apply(Place::default(), effect);
    }
    Ok(())
}

/// What the control records of a segment do, and whether all of them could be read.
fn control_effects(segment: Arc<Segment>, end: u64) -> io::Result<(Vec<Effect>, bool)> {
    let identity = segment.identity;
    let mut walker = Walker::new(segment);
    let (mut effects, mut whole) = (Vec::new(), true);
    loop {
        match walker.next(end, &|header| Kind::CONTROL.iter().any(|kind| *kind as u8 == header.kind))? {
            Step::End => return Ok((effects, whole)),
            Step::Damaged { .. } | Step::Skipped { .. } => whole = false,
            Step::Frame(frame) => effects.push(effect_of(&identity, &frame)),
        }
    }
}

/// What waits in each lane: whole segments by their footers, the one in which a cursor stands by counting.
fn count_backlogs(found: &mut Recovered) -> io::Result<()> {
    let state = &mut found.state;
    for lane in state.lanes.values_mut() {
        (lane.backlog, lane.backlog_bytes, lane.since_uptime_ms) = (0, 0, None);
    }
    let held: Vec<(u64, Arc<Segment>, u64, Footer)> = state
        .segments
        .iter()
        .map(|(order, held)| (*order, Arc::clone(&held.segment), held.end, held.extent.clone()))
        .collect();
    for (order, segment, end, extent) in held {
        for lane_extent in extent.lanes {
            let key = (lane_extent.source, lane_extent.upstream);
            let lost = state.lost(order, &key);
            let lane = state.lanes.entry(key.clone()).or_default();
            let (first, last) = (
                Place { segment: order, ordinal: lane_extent.first },
                Place { segment: order, ordinal: lane_extent.last },
            );
            if lane.cursor >= last {
                continue;
            }
            let (count, bytes, since) = match lane.cursor < first {
                true => {
                    let LaneExtent { count, bytes, since_uptime_ms, .. } = lane_extent;
                    (count.saturating_sub(lost), bytes, Some(since_uptime_ms))
                }
                // Not that of the segment's first message, which may have been delivered long ago.
                false => count_behind(&segment, end, lane.cursor.ordinal, (&key, source_tag(&found.spool, &key.0)))?,
            };
            lane.backlog += count;
            lane.backlog_bytes += bytes;
            lane.since_uptime_ms = lane.since_uptime_ms.or(since);
        }
    }
    Ok(())
}

/// Messages behind a cursor and their bytes, and the uptime of the reception of the first.
fn count_behind(
    segment: &Arc<Segment>,
    end: u64,
    ordinal: u32,
    ((source, upstream), tag): (&LaneKey, u16),
) -> io::Result<(u64, u64, Option<u64>)> {
    let mut walker = Walker::new(Arc::clone(segment));
    let (mut count, mut total, mut since) = (0, 0, None);
    loop {
        match walker.next(end, &|header| header.ordinal > ordinal && Kind::may_be_for_lanes(header.kind))? {
            Step::End => return Ok((count, total, since)),
            Step::Damaged { .. } | Step::Skipped { .. } => {}
            Step::Frame(frame) if is_unread(&frame) => count += u64::from(frame.header.tag == tag),
            Step::Frame(frame) => {
                let (bytes, received_ms) = match effect_of(&segment.identity, &frame) {
                    Effect::Message { source: from, targets, length, received, .. }
                        if from == *source && targets.contains(upstream) =>
                    {
                        (length, received.1)
                    }
                    Effect::Replay(replay) if replay.source == *source && replay.upstream == *upstream => {
                        (replay.length, replay.stamp.uptime_ms)
                    }
                    _ => continue,
                };
                count += 1;
                total += bytes;
                since = since.or(Some(received_ms));
            }
        }
    }
}
