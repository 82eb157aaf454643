//! Space: where the next segment's file comes from, and what makes room when the quota is used up.
//!
//! In this order: a free file; delivered originals whose time is over; a new file within the quota; delivered originals that
//! were only kept for replay; compaction, which replaces a segment under the same order number by one that holds only its
//! live records and what was true when it ended: a start goes back to it when the newest checkpoint is damaged. Nothing that
//! a lane or a dead letter needs is ever dropped here. Compaction writes into a file that was
//! kept for it, so it needs no space on a full disk.
//!
//! What a lane needs is told by its cursor in the log ([`By::Log`]). So before space is made the writer brings the cursors there:
//! into what is left of the active segment, where other records leave some room for them, else with the checkpoint of a new segment. That
//! one is begun in the reserve when a whole segment comes free then, which is the next reserve; else in a small file
//! ([`make_small`]), for which the quota may be passed over. Nothing is wiped before the cursors that have passed it are synced, but in one
//! case: a log that was started again and again while it was full, on a disk that is full as well, has no file at all; see
//! [`take_delivered`].

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, PoisonError};

use super::Place;
use super::frame::{BLOCK, Outgoing, build_group, framed_bytes};
use super::live::{is_live, is_live_replay, live_bytes, waits, wanted_records};
use super::log::{By, FreeFile, Held, Log, Short, State};
use super::reader::{Found, Step, Walker};
use super::record::{self, Data, Footer, Gap, Kind, LaneExtent, Replay};
use super::recovery::is_unread;
use super::segment::{FIRST_GROUP, Identity, Segment};
use super::storage::File;
use crate::envelope::Class;

/// A segment is worth compacting when at most so much of it, in percent, is live.
const LIVE_PERCENT_MAX: u64 = 60;
/// ... and when at least this share of a full segment comes free.
const GAIN_SHARE: u64 = 16;
/// A small file has room for a checkpoint and this share of a full segment.
const SMALL_SHARE: u64 = 16;
/// Bytes of frames in a group of a compacted segment.
const GROUP_BYTES: usize = 64 << 10;
/// Zeros that are written at once into a new file.
const ZEROS_BYTES: usize = 1 << 20;

/// When a new file is written through.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fill {
    /// Before it is used.
    Now,
    /// By [`prepare`], or never.
    Later,
}

impl Fill {
    /// Of a file that is needed at once. Nobody waits for 64 MiB of zeros.
    fn at_need(class: Class) -> Self {
        match class {
            Class::Imaging => Self::Later,
            Class::Clinical | Class::Telemetry => Self::Now,
        }
    }
}

/// A file for the next segment, if room can be found or made.
pub fn next_file(log: &Log) -> Option<FreeFile> {
    let _one_at_a_time = log.space.lock().unwrap_or_else(PoisonError::into_inner);
    let size = log.limits().segment_bytes;
    // What was passed over the quota for: see `make_small`.
    reclaim(log, By::Log, |held| is_small(held, size), usize::MAX);
    let first = log.state().segments.is_empty();
    if !first {
        ensure_reserve(log);
    }
    let file = take_free(log).or_else(|| {
        reclaim_expired(log, 1);
        take_free(log)
    });
    let file = file.or_else(|| make_within_quota(log, Fill::at_need(log.class))).or_else(|| make_room(log));
    // What comes in is worth more than a replay, which counts what it loses.
    file.or_else(|| let_replays_go(log).then(|| make_room(log)).flatten())
}

/// A file by giving up originals that are only kept for replay, else by compaction.
fn make_room(log: &Log) -> Option<FreeFile> {
    while reclaim(log, By::Log, |_| true, 1) > 0 {
        // One that was compacted gives back no file, but room.
        if let Some(file) = take_free(log).or_else(|| make_within_quota(log, Fill::at_need(log.class))) {
            return Some(file);
        }
    }
    make_up_reserve(log);
    while compact_one(log) {
        // One that was compacted before gives back no file that could be the reserve: the room that it made goes there first.
        ensure_reserve(log);
        if let Some(file) = make_within_quota(log, Fill::at_need(log.class)) {
            return Some(file);
        }
    }
    None
}

/// A compaction that the power cut short costs the file that it wrote into, and a full quota gives no other: it is passed over by one
/// segment when a compaction is worth it, which soon gives more back.
fn make_up_reserve(log: &Log) {
    let size = log.limits().segment_bytes;
    let missing = {
        let state = log.state();
        state.reserve.is_none() && most_worth(&state, By::Log, size).is_some()
    };
    if missing {
        let made = make_file(log, size, Fill::at_need(log.class)).ok();
        log.state().reserve = made;
    }
}

/// What comes free once the cursors that are only in memory are in the log, or another checkpoint is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gain {
    /// Nothing that is worth it.
    Nothing,
    /// Parts of segments, or files that are not of full size.
    Some,
    /// A whole segment, of full size.
    Segment,
}

/// See [`Gain`].
pub fn gain_of_cursors(log: &Log) -> Gain {
    let size = log.limits().segment_bytes;
    let state = log.state();
    let (free, last) = (state.done(By::Log), state.segments.last_key_value().map(|(order, _)| *order));
    let is_whole = |order: &u64| {
        let full = state.segments.get(order).is_some_and(|held| held.segment.bytes == size);
        full && Some(*order) != last && !state.is_damaged(*order)
    };
    // There is one to be had without them.
    if free.iter().any(is_whole) {
        return Gain::Nothing;
    }
    let mut freed = state.done(By::Memory);
    // After a start the last segment may be there for its checkpoint only: with the next one it comes free, as a reserve.
    let checkpoint_only = state.active.is_none() && freed.iter().any(|order| Some(*order) == last);
    let mut gain = if checkpoint_only { Gain::Some } else { Gain::Nothing };
    if state.lanes.values().all(|lane| lane.has_done(By::Log, lane.cursor)) {
        return gain;
    }
    freed.retain(|order| !free.contains(order) && Some(*order) != last);
    if freed.iter().any(is_whole) {
        return Gain::Segment;
    }
    if !freed.is_empty() {
        gain = Gain::Some;
    }
    let compacted = |by| most_worth(&state, by, size).map_or(0, |(gain, _)| gain);
    if state.reserve.is_some() && compacted(By::Memory) >= compacted(By::Log) + size / GAIN_SHARE {
        gain = Gain::Some;
    }
    gain
}

/// A file of its own for a checkpoint of `bytes` and some control records, whatever the quota is: it is given back when nothing in it is
/// needed and a file is looked for. All of them together take no more than a full segment; `None` when they would.
pub fn make_small(log: &Log, bytes: u64) -> Option<FreeFile> {
    let full = log.limits().segment_bytes;
    let size = (full / SMALL_SHARE + FIRST_GROUP + bytes).next_multiple_of(BLOCK as u64);
    let small: u64 = {
        let state = log.state();
        state.segments.values().filter(|held| is_small(held, full)).map(|held| held.segment.bytes).sum()
    };
    // However often it is started while it is full.
    (small + size <= full).then(|| make_file(log, size, Fill::at_need(log.class)).ok()).flatten()
}

/// Whether a segment is in a file that [`make_small`] made, and not in a part of one because it was compacted. It takes nothing of the quota.
fn is_small(held: &Held, size: u64) -> bool {
    held.segment.bytes < size && held.segment.identity.generation == 0
}

/// The last resort of a log that has no file to write a cursor into and can have none: the oldest segment that is delivered, though
/// the log does not know it before the next checkpoint, which is to be written at once, is synced. Were the power to go
/// before that, lanes could say again what is older than what was in it. Without it the log would refuse messages until a person
/// freed space on the disk.
pub fn take_delivered(log: &Log) -> Option<FreeFile> {
    let _one_at_a_time = log.space.lock().unwrap_or_else(PoisonError::into_inner);
    let size = log.limits().segment_bytes;
    reclaim(log, By::Memory, |held| held.segment.bytes == size, 1);
    take_free(log)
}

/// Makes a segment that nothing needs the reserve, when there is none.
pub fn refill_reserve(log: &Log) {
    let _one_at_a_time = log.space.lock().unwrap_or_else(PoisonError::into_inner);
    let size = log.limits().segment_bytes;
    loop {
        ensure_reserve(log);
        let there = log.state().reserve.is_some();
        if there || reclaim(log, By::Log, |held| held.segment.bytes == size, 1) == 0 {
            return;
        }
    }
}

/// Takes from replays what they hold until their records are written; false when there was nothing.
fn let_replays_go(log: &Log) -> bool {
    !std::mem::take(&mut log.state().replays).is_empty()
}

/// A step towards the reserve and as many free files as are to be [`ready`], written through: the first write to a block that never
/// was costs its sync more than every later one. Holds the writer up for the time of one step only.
pub fn prepare(log: &Log) -> Prepared {
    let _one_at_a_time = log.space.lock().unwrap_or_else(PoisonError::into_inner);
    ensure_reserve(log);
    reclaim_expired(log, 1);
    let unfinished = {
        let mut state = log.state();
        if state.free.len() >= ready(log.class) {
            return Prepared::All;
        }
        state.unfinished.take()
    };
    let unfinished = unfinished.or_else(|| make_within_quota(log, Fill::Later).map(|file| (file, 0)));
    let Some((file, from)) = unfinished else { return Prepared::NoRoom };
    let to = (from + ZEROS_BYTES as u64).min(log.limits().segment_bytes);
    if let Err(error) = write_zeros(log, &*file.file, from, to).and_then(|()| file.file.sync()) {
        // It is made again, and on a disk that is that bad the writer will be heard of.
        tracing::warn!(log = %log.class, file = %file.name, %error, "a file could not be written through");
        drop(log.storage.remove(&file.name));
        return Prepared::NoRoom;
    }
    log.counters.syncs.one();
    let mut state = log.state();
    match to < log.limits().segment_bytes {
        true => state.unfinished = Some((file, to)),
        false => state.free.push(file),
    }
    Prepared::Some
}

/// What a step of [`prepare`] came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Prepared {
    /// There is more to do.
    Some,
    /// All is ready.
    All,
    /// The quota or the disk gives no more for now.
    NoRoom,
}

/// Whether [`prepare`] has nothing to do.
pub fn is_prepared(log: &Log) -> bool {
    let state = log.state();
    state.reserve.is_some() && state.free.len() >= ready(log.class)
}

/// How many free files are kept ready. A study of images fills more than one faster than it could be written through.
fn ready(class: Class) -> usize {
    match class {
        Class::Imaging => 4,
        Class::Clinical | Class::Telemetry => 1,
    }
}

/// Makes the file that compaction writes into, while there is room for it.
fn ensure_reserve(log: &Log) {
    let missing = log.state().reserve.is_none();
    if missing {
        let file = take_free(log).or_else(|| make_within_quota(log, Fill::at_need(log.class)));
        log.state().reserve = file;
    }
}

fn take_free(log: &Log) -> Option<FreeFile> {
    let (free, unfinished) = {
        let mut state = log.state();
        match state.free.pop() {
            None => (None, state.unfinished.take()),
            free => (free, None),
        }
    };
    let Some((file, from)) = unfinished else { return free };
    let rest = match Fill::at_need(log.class) {
        // Not every file system can reserve blocks: a segment must not be begun in a file that has none.
        Fill::Now => write_zeros(log, &*file.file, from, log.limits().segment_bytes).and_then(|()| file.file.sync()),
        Fill::Later => Ok(()),
    };
    rest.inspect_err(|_| drop(log.storage.remove(&file.name))).ok().map(|()| file)
}

/// Takes back the files of delivered originals whose time is over, at most `count`, and wipes their keys.
fn reclaim_expired(log: &Log, count: usize) {
    let now = log.uptime.ms();
    let keep = u64::try_from(log.limits().keep_delivered.as_millis()).unwrap_or(u64::MAX);
    reclaim(log, By::Log, |held| held.extent.closed_uptime_ms.saturating_add(keep) <= now, count);
}

/// Takes back what [`reclaim_expired`] would, from a thread that holds nothing.
pub fn sweep(log: &Log, count: usize) {
    let _one_at_a_time = log.space.lock().unwrap_or_else(PoisonError::into_inner);
    reclaim_expired(log, count);
}

/// The oldest segment that is not being written, as the GAP record that must be synced before [`drop_segment`].
pub fn oldest_as_gap(log: &Log) -> Option<Gap> {
    let state = log.state();
    let (order, held) = state.segments.iter().find(|(order, _)| Some(**order) != state.active)?;
    let lanes = held.extent.lanes.iter().map(|extent| {
        let (count, _) = state.undone(*order, extent);
        (extent.source.clone(), extent.upstream.clone(), count)
    });
    let lanes = lanes.filter(|(_, _, count)| *count > 0).collect();
    Some(Gap { cause: Gap::DROPPED.to_owned(), segment: *order, lanes, stamp: log.uptime.stamp() })
}

/// Drops a segment whose GAP record is synced: its lanes go on behind it. A body that is arriving and has pieces in it is refused
/// by the writer when it is to be committed.
pub fn drop_segment(log: &Log, gap: &Gap) {
    let mut state = log.state();
    let Some(held) = state.segments.get(&gap.segment) else { return };
    let undone = |extent: &LaneExtent| {
        let key = (extent.source.clone(), extent.upstream.clone());
        (key, state.undone(gap.segment, extent))
    };
    let undone: Vec<_> = held.extent.lanes.iter().map(undone).collect();
    for (key, (count, bytes)) in undone {
        let behind = Place { segment: gap.segment, ordinal: u32::MAX };
        if let Some(lane) = state.lanes.get_mut(&key).filter(|lane| lane.cursor < behind) {
            lane.cursor = behind;
            lane.backlog = lane.backlog.saturating_sub(count);
            lane.backlog_bytes = lane.backlog_bytes.saturating_sub(bytes);
            log.counters.dropped.add(count);
        }
    }
    let held = state.segments.remove(&gap.segment);
    state.dead.retain(|_, dead| dead.at.segment != gap.segment);
    state.unread.retain(|order| *order != gap.segment);
    drop(state);
    if let Some(held) = held {
        give_back(log, held);
    }
    log.synced.send_modify(|version| *version += 1);
}

/// Takes back done segments that satisfy `which`, oldest first, at most `count`; tells how many.
fn reclaim(log: &Log, by: By, which: impl Fn(&Held) -> bool, count: usize) -> usize {
    let mut taken = Vec::new();
    {
        let mut state = log.state();
        let done = state.done(by);
        // Until a newer segment holds a checkpoint, the last one is the only place of the cursors and dead letters.
        let last = state.segments.last_key_value().map(|(order, _)| *order);
        let chosen = done.into_iter().filter(|order| Some(*order) != last);
        let chosen: Vec<u64> =
            chosen.filter(|order| state.segments.get(order).is_some_and(&which)).take(count).collect();
        for order in chosen {
            taken.extend(state.segments.remove(&order));
        }
    }
    let count = taken.len();
    for held in taken {
        give_back(log, held);
    }
    count
}

/// The file of a segment that is held no more: wiped, then free when it has full size and was never damaged, else removed.
fn give_back(log: &Log, held: Held) {
    let segment = held.segment;
    let wiped = Segment::wipe(&*segment.file).and_then(|()| segment.file.sync());
    log.counters.written.add(FIRST_GROUP);
    log.counters.syncs.one();
    if let Err(error) = wiped {
        tracing::warn!(log = %log.class, file = %segment.name, %error, "a file could not be wiped and is left out of use");
        return;
    }
    let sound = !log.state().is_damaged(segment.identity.order);
    if segment.bytes == log.limits().segment_bytes && sound {
        log.state().free.push(FreeFile { name: segment.name.clone(), file: Arc::clone(&segment.file) });
    } else if let Err(error) =
        log.storage.remove(&segment.name).and_then(|()| log.storage.sync_folder(log.class.as_str()))
    {
        tracing::warn!(log = %log.class, file = %segment.name, %error, "a file could not be removed");
    }
}

/// A new file, when the quota and the disk have room for it.
fn make_within_quota(log: &Log, fill: Fill) -> Option<FreeFile> {
    let size = log.limits().segment_bytes;
    let used = {
        let state = log.state();
        let held = state.segments.values().filter(|held| !is_small(held, size));
        let spare = size * u64::try_from(state.spare()).unwrap_or(u64::MAX);
        held.map(|held| held.segment.bytes).sum::<u64>() + spare
    };
    if used + size > log.limits().quota {
        log.state().disk_short = None;
        return None;
    }
    let made = make_file(log, size, fill);
    let short = made.as_ref().err().map(Short::from);
    match short.as_ref().filter(|_| log.state().disk_short.is_none()) {
        Some(Short { error, is_full: true }) => {
            tracing::warn!(log = %log.class, error, "no room on the disk for another segment, though the quota allows it");
        }
        Some(Short { error, is_full: false }) => {
            tracing::error!(log = %log.class, error, "no file for another segment could be written on the disk");
        }
        None => {}
    }
    log.state().disk_short = short;
    made.ok()
}

fn file_name(log: &Log, number: u32) -> String {
    format!("{}/{number:06}.seg", log.class)
}

/// Makes a file of this size, under a name that none has.
fn make_file(log: &Log, size: u64, fill: Fill) -> io::Result<FreeFile> {
    let held = log.state().names();
    // A file that was just taken for a segment is in no list for a moment, but on the disk.
    let taken =
        |made: &io::Result<FreeFile>| matches!(made, Err(error) if error.kind() == io::ErrorKind::AlreadyExists);
    let names = (1u32..).map(|number| file_name(log, number)).filter(|name| !held.contains(name));
    let mut made = names.map(|name| make_named(log, name, size, fill));
    made.find(|made| !taken(made)).unwrap_or_else(|| Err(io::ErrorKind::AlreadyExists.into()))
}

/// Makes a file whose blocks are all there, so that writing to it later needs no allocation.
fn make_named(log: &Log, name: String, size: u64, fill: Fill) -> io::Result<FreeFile> {
    let file = log.storage.create(&name)?;
    let fill = || {
        file.allocate(size)?;
        if fill == Fill::Now {
            write_zeros(log, &*file, 0, size)?;
        }
        file.sync()?;
        log.storage.sync_folder(log.class.as_str())
    };
    if let Err(error) = fill() {
        drop(log.storage.remove(&name));
        return Err(error);
    }
    Ok(FreeFile { name, file })
}

/// Writes zeros, and no more than that: not synced.
fn write_zeros(log: &Log, file: &dyn File, from: u64, to: u64) -> io::Result<()> {
    // From the heap and not a `static`: these would be a megabyte of the executable.
    let zeros = vec![0; ZEROS_BYTES];
    for at in (from..to).step_by(ZEROS_BYTES) {
        let length = usize::try_from(to - at).unwrap_or(ZEROS_BYTES).min(ZEROS_BYTES);
        file.write_at(zeros.get(..length).unwrap_or_default(), at)?;
    }
    log.counters.written.add(to - from);
    Ok(())
}

/// Compacts the segment that gains most; false when none is worth it or it could not be done.
fn compact_one(log: &Log) -> bool {
    let candidate = most_worth(&log.state(), By::Log, log.limits().segment_bytes);
    let Some((_, order)) = candidate else { return false };
    match compact(log, order) {
        Ok(done) => done,
        Err(error) => {
            tracing::warn!(log = %log.class, segment = order, %error, "a segment could not be compacted");
            false
        }
    }
}

/// The segment by whose compaction most comes free, and how much, where a full one has `size` bytes.
fn most_worth(state: &State, by: By, size: u64) -> Option<(u64, u64)> {
    let last = state.segments.last_key_value().map(|(order, _)| *order);
    let worth = state.segments.iter().filter_map(|(order, held)| {
        // The last segment has the checkpoint: without it cursors and dead letters would be lost.
        let usable = Some(*order) != last && !state.is_in_use(*order) && !state.is_left_alone(*order);
        let live = live_bytes(state, by, *order, held);
        // What was compacted already is worth it again only when less is live than then: an estimate that is too
        // low would find the same gain for ever.
        let bytes = held.estimate.unwrap_or(u64::MAX).min(held.segment.bytes);
        let gain = bytes.saturating_sub(live);
        let small = live * 100 <= bytes * LIVE_PERCENT_MAX && gain >= size / GAIN_SHARE;
        (usable && small).then_some((gain, *order))
    });
    worth.max()
}

/// Writes what is live of a segment to the reserve and puts that in its place; the old file becomes the reserve.
pub(super) fn compact(log: &Log, order: u64) -> io::Result<bool> {
    let source = log.state().segments.get(&order).map(|held| (Arc::clone(&held.segment), held.end));
    let Some((source, end)) = source else { return Ok(false) };
    let wanted = wanted_records(log, order)?;
    let Some(target) = take_reserve(log) else { return Ok(false) };
    let (name, file) = (target.name.clone(), Arc::clone(&target.file));
    let copied = copy_live(log, &source, end, target, &wanted);
    let mut held = copied.inspect_err(|error| match error.kind() {
        // The source can't be copied; nothing was wrong with the file, and it was not synced.
        io::ErrorKind::InvalidData => log.state().reserve = Some(FreeFile { name, file }),
        // It may be cut already, and a file whose sync failed is not used again: another one is made in its place.
        _ => drop(log.storage.remove(&name)),
    })?;
    let gained = source.bytes.saturating_sub(held.segment.bytes);
    let mut state = log.state();
    held.estimate = Some(live_bytes(&state, By::Log, order, &held));
    state.segments.insert(order, held);
    drop(state);
    // Its key must be gone before the file can be taken for anything again: a start would else find an old generation.
    Segment::wipe(&*source.file).and_then(|()| source.file.sync())?;
    if source.bytes == log.limits().segment_bytes {
        log.state().reserve = Some(FreeFile { name: source.name.clone(), file: Arc::clone(&source.file) });
    } else {
        log.storage.remove(&source.name)?;
        log.storage.sync_folder(log.class.as_str())?;
    }
    log.synced.send_modify(|version| *version += 1);
    tracing::debug!(log = %log.class, segment = order, gained, "a segment was compacted");
    Ok(gained >= log.limits().segment_bytes / GAIN_SHARE)
}

/// Copies what is live of a segment into `target`; nothing has changed when it fails.
fn copy_live(log: &Log, source: &Arc<Segment>, end: u64, target: FreeFile, wanted: &BTreeSet<u32>) -> io::Result<Held> {
    let identity = Identity { generation: source.identity.generation + 1, ..source.identity };
    let mut copy = Copy::begin(log, target, identity)?;
    let mut walker = Walker::new(Arc::clone(source));
    loop {
        match walker.next(end, &|_| true)? {
            Step::End => return copy.finish(log),
            Step::Damaged { .. } | Step::Skipped { .. } => {
                log.state().quarantine(identity.order);
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the segment is damaged"));
            }
            Step::Frame(found) if is_unread(&found) => {
                log.state().leave_alone(identity.order);
                return Err(io::Error::new(io::ErrorKind::InvalidData, "records of a newer version"));
            }
            Step::Frame(found) => copy.take(log, identity.order, found, wanted)?,
        }
    }
}

/// The file that was kept for compaction.
pub fn take_reserve(log: &Log) -> Option<FreeFile> {
    log.state().reserve.take()
}

/// A compacted segment that is being written.
struct Copy {
    segment: Segment,
    offset: u64,
    group: u32,
    pending: Vec<Outgoing>,
    pending_bytes: usize,
    extent: Footer,
    buffer: Vec<u8>,
    last: u32,
}

impl Copy {
    fn begin(log: &Log, target: FreeFile, identity: Identity) -> io::Result<Self> {
        let segment = Segment::create(target.file, target.name, identity, &log.keys())?;
        Ok(Self {
            segment,
            offset: FIRST_GROUP,
            group: 0,
            pending: Vec::new(),
            pending_bytes: 0,
            extent: Footer::default(),
            buffer: Vec::new(),
            last: 0,
        })
    }

    /// Copies a record when it is live. Numbers stay, so places and ids stay.
    fn take(&mut self, log: &Log, order: u64, found: Found, wanted: &BTreeSet<u32>) -> io::Result<()> {
        let at = Place { segment: order, ordinal: found.header.ordinal };
        let keep = match Kind::from_code(found.header.kind) {
            Some(Kind::Data) => match record::decode_data(&found.plaintext) {
                Some((data, _)) => self.message(log, at, &data, wanted.contains(&at.ordinal)),
                None => true,
            },
            Some(Kind::Fragment) => {
                let keep = wanted.contains(&at.ordinal);
                self.extent.fragment_bytes += if keep { u64::from(found.header.length) } else { 0 };
                keep
            }
            Some(Kind::Replay) => match record::decode::<Replay>(&found.plaintext) {
                Some(replay) => self.replay(log, at, &replay),
                None => true,
            },
            Some(Kind::Opening | Kind::Cursor | Kind::Dead | Kind::Discard) => wanted.contains(&at.ordinal),
            Some(Kind::Footer) => false,
            // What a newer version wrote is left alone.
            Some(Kind::Gap) | None => true,
        };
        if keep {
            self.pending_bytes += framed_bytes(found.plaintext.len());
            let header = found.header;
            self.pending.push(Outgoing {
                kind: header.kind,
                tag: header.tag,
                ordinal: header.ordinal,
                plaintext: found.plaintext,
            });
            self.last = header.ordinal;
        }
        if self.pending_bytes >= GROUP_BYTES { self.flush() } else { Ok(()) }
    }

    fn message(&mut self, log: &Log, at: Place, data: &Data, wanted: bool) -> bool {
        let state = log.state();
        let source = &data.meta.source;
        let waiting: Vec<_> = data.meta.targets.iter().filter(|upstream| waits(&state, source, upstream, at)).collect();
        let keep = wanted || is_live(&state, &self.segment.identity, at, data);
        if keep {
            for upstream in waiting {
                let key = (source.clone(), upstream.clone());
                self.extent.enqueue(at.ordinal, &key, data.length, data.meta.received.uptime_ms);
            }
            self.extent.receive(data.meta.received.wall_us);
            self.extent.refer(at.segment, data.pieces.iter().map(|piece| piece.segment).collect());
        }
        keep
    }

    fn replay(&mut self, log: &Log, at: Place, replay: &Replay) -> bool {
        let state = log.state();
        if waits(&state, &replay.source, &replay.upstream, at) {
            let key = (replay.source.clone(), replay.upstream.clone());
            self.extent.enqueue(at.ordinal, &key, replay.length, replay.stamp.uptime_ms);
        }
        let keep = is_live_replay(&state, at, replay);
        if keep {
            self.extent.refer(at.segment, vec![replay.at.segment]);
        }
        keep
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        build_group(&self.segment.seal, (self.group, 0), &self.pending, &mut self.buffer);
        self.segment.file.write_at(&self.buffer, self.offset)?;
        self.offset += self.buffer.len() as u64;
        self.group += 1;
        self.pending.clear();
        self.pending_bytes = 0;
        Ok(())
    }

    /// Closes the copy: footer, cut to its size, trailer, sync. Only then it counts.
    fn finish(mut self, log: &Log) -> io::Result<Held> {
        self.flush()?;
        self.extent.closed_uptime_ms = log.uptime.ms();
        let (end, groups) = (self.offset, self.group);
        let plaintext = record::encode(&self.extent);
        self.pending.push(Outgoing {
            kind: Kind::Footer as u8,
            tag: 0,
            ordinal: self.last.saturating_add(1),
            plaintext,
        });
        self.flush()?;
        self.segment.bytes = self.offset + BLOCK as u64;
        self.segment.file.set_length(self.segment.bytes)?;
        self.segment.write_trailer(end)?;
        self.segment.file.sync()?;
        log.counters.written.add(self.segment.bytes);
        log.counters.syncs.one();
        Ok(Held { segment: Arc::new(self.segment), end, groups, extent: self.extent, sealed: true, estimate: None })
    }
}
