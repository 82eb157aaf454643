//! Reads everything that is held, segment by segment: for a check of all seals, an export, an import, a rescue.
//!
//! It changes nothing, blocks on the disk, and goes on while messages come, are delivered and compacted: a segment that was
//! compacted under its eyes is read on in its new file, and what was read of the old one is not taken for damage.

use std::collections::{HashMap, HashSet};
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::log::{By, Log};
use super::reader::{Step, Walker};
use super::record::{self, Kind, Replay};
use super::segment::{Identity, Segment};
use super::{Place, Spool, lanes};
use crate::envelope::{BodyError, Class, Envelope, MessageId};
use crate::values::Name;

/// Messages that wait by a REPLAY record and are known apart from the others; more are told of as not waiting.
pub const REPLAYS_MAX: usize = 500_000;
/// Ids that are not derived from their place and are kept in memory during an import: some 40 MB.
pub const KNOWN_MAX: usize = 1_000_000;

/// Something that a check or a reading of all messages came upon.
pub enum Sight {
    /// So many segments of so many are read.
    Segments {
        /// Read.
        done: u64,
        /// All.
        total: u64,
    },
    /// A message, readable.
    Message(Box<Seen>),
    /// Something that should be there can't be read.
    Damage(Damaged),
}

/// A message and how it stands.
pub struct Seen {
    /// The message; its body is read when it is wanted.
    pub envelope: Envelope,
    /// Upstreams that it still waits for.
    pub waiting: Vec<Name>,
    /// Upstreams for which it is a dead letter.
    pub dead: Vec<Name>,
}

impl Seen {
    /// Whether an upstream waits for it, or would if a person acted.
    pub fn is_owed(&self) -> bool {
        !self.waiting.is_empty() || !self.dead.is_empty()
    }

    /// Whether the body that can't be read for this reason is no damage: nobody waits for it, and its place was needed meanwhile.
    pub fn is_let_go(&self, error: &BodyError) -> bool {
        matches!(error, BodyError::Gone(_)) && !self.is_owed()
    }
}

/// A damaged place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damaged {
    /// The log.
    pub class: Class,
    /// The segment's order number.
    pub segment: u64,
    /// Its file, from the spool's folder; empty when it is gone meanwhile.
    pub file: String,
    /// What is wrong and what it means.
    pub text: String,
}

/// What a check of all records found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Segments read.
    pub segments: u64,
    /// Records whose seal was right.
    pub records: u64,
    /// Bytes read.
    pub bytes: u64,
    /// What is damaged.
    pub damage: Vec<Damaged>,
}

impl Spool {
    /// Reads every record of every segment. Blocks; `progress` is told how many segments of how many are read, and may
    /// break off.
    ///
    /// # Errors
    /// As the disk gives them; `Interrupted` when `progress` broke off.
    pub fn verify(&self, progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>) -> io::Result<Verified> {
        let orders = orders(&self.logs_held());
        let mut verified = Verified::default();
        let total = orders.len() as u64;
        for (done, (log, order)) in (0u64..).zip(orders) {
            if progress(done, total).is_break() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            verify_segment(&log, order, &mut verified)?;
        }
        Ok(verified)
    }

    /// Shows every message that is held to `see`, log by log in the order of commits. Blocks. `see` may break off.
    ///
    /// # Errors
    /// As the disk gives them.
    pub fn survey(&self, see: &mut dyn FnMut(Sight) -> ControlFlow<()>) -> io::Result<()> {
        survey(&self.logs_held(), see)
    }

    pub(super) fn logs_held(&self) -> Vec<Arc<Log>> {
        self.inner.logs.iter().map(|opened| Arc::clone(&opened.log)).collect()
    }
}

/// As [`Spool::survey`], for logs that no spool has open.
///
/// # Errors
/// As the disk gives them.
pub fn survey(logs: &[Arc<Log>], see: &mut dyn FnMut(Sight) -> ControlFlow<()>) -> io::Result<()> {
    let orders = orders(logs);
    let total = orders.len() as u64;
    let mut special: HashMap<Class, Special> = HashMap::new();
    for log in logs {
        special.insert(log.class, Special::read(log)?);
    }
    let none = Special::default();
    for (done, (log, order)) in (0u64..).zip(orders) {
        if see(Sight::Segments { done, total }).is_break() {
            return Ok(());
        }
        let special = special.get(&log.class).unwrap_or(&none);
        let ended = read_segment(&log, order, &|kind| kind == Kind::Data, &mut |found| {
            let Some(sight) = sight(&log, order, found, special) else { return ControlFlow::Continue(()) };
            see(sight)
        })?;
        if ended.is_break() {
            return Ok(());
        }
    }
    Ok(())
}

/// What reading on in a segment gave.
pub enum Read {
    /// A record.
    Record {
        /// The segment that it is in.
        identity: Identity,
        /// Its number there.
        ordinal: u32,
        /// Its contents.
        plaintext: Vec<u8>,
    },
    /// Damage, in words.
    Damage(String),
}

/// Reads the records of one segment whose kind is `wanted`, in order, wherever the segment is meanwhile.
///
/// # Errors
/// As the disk gives them.
pub fn read_segment(
    log: &Arc<Log>,
    order: u64,
    wanted: &dyn Fn(Kind) -> bool,
    each: &mut dyn FnMut(Read) -> ControlFlow<()>,
) -> io::Result<ControlFlow<()>> {
    let mut seen: Option<u32> = None;
    let Some((segment, end)) = held(log, order) else { return Ok(ControlFlow::Continue(())) };
    let mut walker = Walker::new(segment);
    let mut end = end;
    loop {
        let after = seen;
        let header = move |header: &super::frame::FrameHeader| {
            after.is_none_or(|seen| header.ordinal > seen) && Kind::from_code(header.kind).is_some_and(wanted)
        };
        let step = walker.next(end, &header);
        let troubled = !matches!(step, Ok(Step::Frame(_) | Step::End));
        if troubled && let Some(renewed) = renewed(log, order, walker.segment()) {
            let Some((segment, until)) = renewed else { return Ok(ControlFlow::Continue(())) };
            (walker, end) = (Walker::new(segment), until);
            continue;
        }
        let read = match step? {
            Step::End => return Ok(ControlFlow::Continue(())),
            Step::Skipped { bytes } => {
                Read::Damage(format!("{bytes} bytes hold no records: what was stored there is lost"))
            }
            Step::Damaged { ordinal } => {
                seen = Some(ordinal);
                Read::Damage(format!("record {ordinal} does not authenticate: it is lost"))
            }
            Step::Frame(found) => {
                seen = Some(found.header.ordinal);
                let identity = walker.segment().identity;
                Read::Record { identity, ordinal: found.header.ordinal, plaintext: found.plaintext }
            }
        };
        if each(read).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
}

/// All segments that are held, log by log.
pub fn orders(logs: &[Arc<Log>]) -> Vec<(Arc<Log>, u64)> {
    let mut all = Vec::new();
    for log in logs {
        let state = log.state();
        all.extend(state.segments.keys().map(|order| (Arc::clone(log), *order)));
    }
    all
}

fn held(log: &Log, order: u64) -> Option<(Arc<Segment>, u64)> {
    log.state().segments.get(&order).map(|held| (Arc::clone(&held.segment), held.end))
}

/// Where a segment is now, when it is not in `segment` any more: `Some(None)` when it is gone, with all that it held.
fn renewed(log: &Log, order: u64, segment: &Arc<Segment>) -> Option<Option<(Arc<Segment>, u64)>> {
    match held(log, order) {
        Some((now, _)) if Arc::ptr_eq(&now, segment) => None,
        now => Some(now),
    }
}

fn verify_segment(log: &Arc<Log>, order: u64, verified: &mut Verified) -> io::Result<()> {
    let Some((_, end)) = held(log, order) else { return Ok(()) };
    let damaged = |text: String| damaged(log, order, text);
    let before = verified.damage.len();
    let ended = read_segment(log, order, &|_| true, &mut |read| {
        match read {
            Read::Record { .. } => verified.records += 1,
            Read::Damage(text) => verified.damage.push(damaged(text)),
        }
        ControlFlow::Continue(())
    });
    match ended {
        Ok(_) => {}
        // The rest is still looked at: a disk that is going is read as far as it can be.
        Err(error) => verified.damage.push(damaged(format!("the disk does not give it back: {error}"))),
    }
    verified.segments += 1;
    verified.bytes += end;
    if log.state().unread.contains(&order) {
        verified.damage.push(damaged(
            "records in it are of a newer version and can't be read by this one: they are kept".to_owned(),
        ));
    }
    if verified.damage.len() == before && log.state().quarantined.contains(&order) {
        let text = "records that were synced are missing at its end, as the segment after it tells; the rest is sound";
        verified.damage.push(damaged(text.to_owned()));
    }
    Ok(())
}

fn damaged(log: &Log, order: u64, text: String) -> Damaged {
    let file = held(log, order).map(|(segment, _)| segment.name.clone()).unwrap_or_default();
    Damaged { class: log.class, segment: order, file, text }
}

fn sight(log: &Arc<Log>, order: u64, read: Read, special: &Special) -> Option<Sight> {
    let damaged = |text: String| Some(Sight::Damage(damaged(log, order, text)));
    match read {
        Read::Damage(text) => damaged(text),
        Read::Record { identity, ordinal, plaintext, .. } => {
            let Some(envelope) = lanes::envelope(log, &identity, ordinal, plaintext) else {
                return damaged(format!("record {ordinal} is of an unknown form: perhaps of a newer version"));
            };
            let (waiting, dead) = special.standing(log, Place { segment: order, ordinal }, &envelope);
            Some(Sight::Message(Box::new(Seen { envelope, waiting, dead })))
        }
    }
}

/// Messages that are not where their lanes look for them first.
#[derive(Default)]
struct Special {
    /// Upstreams that a message waits for by a REPLAY record.
    replays: HashMap<MessageId, Vec<Name>>,
    /// Upstreams for which it is a dead letter.
    dead: HashMap<MessageId, Vec<Name>>,
}

impl Special {
    fn read(log: &Arc<Log>) -> io::Result<Self> {
        let mut special = Self::default();
        let orders: Vec<u64> = {
            let state = log.state();
            for (id, upstream) in state.dead.keys() {
                special.dead.entry(*id).or_default().push(upstream.clone());
            }
            let wanted = state.segments.iter().filter(|(order, held)| state.wanted_by_lanes(By::Memory, **order, held));
            wanted.map(|(order, _)| *order).collect()
        };
        for order in orders {
            let _ended = read_segment(log, order, &|kind| kind == Kind::Replay, &mut |read| {
                special.note(log, order, read);
                if special.replays.len() >= REPLAYS_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
        }
        Ok(special)
    }

    fn note(&mut self, log: &Log, order: u64, read: Read) {
        let Read::Record { ordinal, plaintext, .. } = read else { return };
        let Some(replay) = record::decode::<Replay>(&plaintext) else { return };
        let lane = log.state().lanes.get(&(replay.source, replay.upstream.clone())).map(|lane| lane.cursor);
        if lane.is_none_or(|cursor| cursor < Place { segment: order, ordinal }) {
            self.replays.entry(replay.id).or_default().push(replay.upstream);
        }
    }

    /// The upstreams that a message waits for, and those for which it is dead.
    fn standing(&self, log: &Log, at: Place, envelope: &Envelope) -> (Vec<Name>, Vec<Name>) {
        let dead = self.dead.get(&envelope.id).cloned().unwrap_or_default();
        let state = log.state();
        let waits = |upstream: &&Name| {
            let lane = state.lanes.get(&(envelope.meta.source.clone(), (*upstream).clone()));
            lane.is_none_or(|lane| lane.cursor < at)
        };
        let again = self.replays.get(&envelope.id).into_iter().flatten();
        let mut waiting: Vec<Name> = envelope.meta.targets.iter().filter(waits).chain(again).cloned().collect();
        drop(state);
        waiting.sort();
        waiting.dedup();
        waiting.retain(|upstream| !dead.contains(upstream));
        (waiting, dead)
    }
}

/// Which messages are held, by id: what an import must not store again.
///
/// Ids that were made here cost a bit each; those that came with an import or were written again cost some 40 bytes each,
/// and there may be at most [`KNOWN_MAX`] of them.
#[derive(Default)]
pub struct Known {
    /// For each segment's random id, a bit for each record that is a message.
    native: HashMap<[u8; 12], Vec<u64>>,
    carried: HashSet<MessageId>,
}

impl Known {
    /// Reads all ids that are held in `logs`. Blocks.
    ///
    /// # Errors
    /// As the disk gives them; `QuotaExceeded` above [`KNOWN_MAX`]; `Interrupted` when `progress` broke off.
    pub fn read(logs: &[Arc<Log>], progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>) -> io::Result<Self> {
        let mut known = Self::default();
        let orders = orders(logs);
        let total = orders.len() as u64;
        for (done, (log, order)) in (0u64..).zip(orders) {
            if progress(done, total).is_break() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let _ended = read_segment(&log, order, &|kind| kind == Kind::Data, &mut |read| {
                if let Read::Record { identity, ordinal, plaintext, .. } = read
                    && let Some((data, _)) = record::decode_data(&plaintext)
                {
                    known.note(data.id, &identity, ordinal);
                }
                if known.carried.len() > KNOWN_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            if known.carried.len() > KNOWN_MAX {
                return Err(io::ErrorKind::QuotaExceeded.into());
            }
        }
        Ok(known)
    }

    /// Whether a message with this id is held.
    pub fn has(&self, id: MessageId) -> bool {
        self.carried.contains(&id) || self.has_native(id).unwrap_or(false)
    }

    /// From now on this one is held as well.
    pub fn add(&mut self, id: MessageId) {
        self.carried.insert(id);
    }

    /// Ids that are not derived from their place.
    pub fn carried(&self) -> usize {
        self.carried.len()
    }

    fn has_native(&self, id: MessageId) -> Option<bool> {
        let (segment, ordinal) = id.0.split_first_chunk::<12>()?;
        let ordinal = u32::from_be_bytes(*ordinal.first_chunk()?);
        let word = self.native.get(segment)?.get(usize::try_from(ordinal / 64).ok()?)?;
        Some(word >> (ordinal % 64) & 1 == 1)
    }

    fn note(&mut self, id: Option<MessageId>, identity: &Identity, ordinal: u32) {
        if let Some(id) = id {
            self.carried.insert(id);
            return;
        }
        let words = self.native.entry(identity.id).or_default();
        let Ok(at) = usize::try_from(ordinal / 64) else { return };
        if words.len() <= at {
            words.resize(at + 1, 0);
        }
        if let Some(word) = words.get_mut(at) {
            *word |= 1 << (ordinal % 64);
        }
    }
}
