//! What people ask of a spool: how it stands, its dead letters, sending again.
//!
//! Reading looks at the state in memory; changing appends records and returns after their sync, so that what a person was
//! told is done survives a power cut. Nothing here reveals content but [`Spool::message`].

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::oneshot;

use super::keeper::{self, Watched};
use super::log::{Effect, Log, State};
use super::reader::{Step, Walker};
use super::record::{self, Data, Dead, Discard, Kind, Replay};
use super::segment::Identity;
use super::storage::erase_small;
use super::writer::{Prepared, Request};
use super::{CommitError, Opened, Place, Spool, SpoolConfig, escrow, index_file, lanes, recovery, source_tag};
use crate::envelope::{BodyError, Class, Envelope, UNREADABLE};
use crate::status::{Alarm, LaneStatus, LogStatus};
use crate::values::{ByteSize, Name, counted};

/// Share of the quota, in percent, above which people are told.
const QUOTA_ALARM_PERCENT: u64 = 80;
/// The reason of dead letters whose upstream was given up.
pub const RETIRED: &str = "the upstream was retired";
/// REPLAY records that are appended at once.
const REPLAY_BATCH: usize = 512;

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
    /// Messages.
    pub messages: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// When the first and the last one were received, wall clock microseconds.
    pub received_us: Option<(i64, i64)>,
    /// The range begins before the oldest message that is still held, and older ones were taken back.
    pub incomplete: bool,
}

impl Spool {
    /// All lanes that are known, with what waits in them.
    pub fn lanes(&self) -> Vec<LaneStatus> {
        let now = self.inner.uptime.ms();
        let mut all = Vec::new();
        for opened in &self.inner.logs {
            let state = opened.log.state();
            for ((source, upstream), lane) in &state.lanes {
                let dead = || state.dead.values().filter(|dead| dead.source == *source && dead.upstream == *upstream);
                all.push(LaneStatus {
                    source: source.clone(),
                    upstream: upstream.clone(),
                    backlog: lane.backlog,
                    backlog_bytes: lane.backlog_bytes,
                    oldest_s: lane
                        .since_uptime_ms
                        .filter(|_| lane.backlog > 0)
                        .map(|since| now.saturating_sub(since) / 1000),
                    dead: dead().count() as u64,
                    dead_retired: dead().filter(|dead| dead.reason == RETIRED).count() as u64,
                    dead_damaged: dead().filter(|dead| dead.reason.starts_with(UNREADABLE)).count() as u64,
                    held: lane.held.clone(),
                });
            }
        }
        all
    }

    /// The three logs.
    pub fn logs(&self) -> Vec<LogStatus> {
        self.inner.logs.iter().map(|opened| log_status(&opened.log)).collect()
    }

    /// What a person must see of the spool itself.
    pub fn alarms(&self) -> Vec<Alarm> {
        let logs = self.inner.logs.iter().flat_map(|opened| log_alarms(&opened.log));
        logs.chain(self.inner.index.alarm()).collect()
    }

    /// Bytes written to the index since the start; what the logs wrote is in [`Spool::logs`].
    pub fn index_written(&self) -> u64 {
        self.inner.index.written()
    }

    /// The classes of logs in which a lane is known; a lane of a source lives in one log.
    pub fn lane_classes(&self) -> Vec<(Class, Name, Name)> {
        let logs = self.inner.logs.iter();
        logs.flat_map(|opened| {
            let state = opened.log.state();
            let keys: Vec<_> = state.lanes.keys().cloned().collect();
            keys.into_iter().map(|(source, upstream)| (opened.log.class, source, upstream))
        })
        .collect()
    }

    /// Whether a changed configuration leaves room for what is held.
    ///
    /// # Errors
    /// In words: which quota is too small, and what is used.
    pub fn check_limits(&self, config: &SpoolConfig) -> Result<(), String> {
        for opened in &self.inner.logs {
            let (class, used) = (opened.log.class, must_stay(&opened.log.state()));
            let quota = config.quota(class);
            if quota < used {
                let (quota, used) = (ByteSize(quota), ByteSize(used));
                return Err(format!("[spool.{class}] quota: {quota} is less than what waits there now ({used})"));
            }
        }
        Ok(())
    }

    /// Takes changed quotas and retention.
    pub fn set_limits(&self, config: &SpoolConfig) {
        for opened in &self.inner.logs {
            opened.log.set_limits(config.limits(opened.log.class));
        }
    }

    /// All dead letters.
    pub fn dead(&self) -> Vec<Dead> {
        self.inner
            .logs
            .iter()
            .flat_map(|opened| opened.log.state().dead.values().cloned().collect::<Vec<_>>())
            .collect()
    }

    /// The message of a dead letter, with its content.
    ///
    /// # Errors
    /// [`BodyError`] when it is damaged.
    pub fn message(&self, dead: &Dead) -> Result<Arc<Envelope>, BodyError> {
        let held = self
            .inner
            .logs
            .iter()
            .find(|opened| opened.log.state().dead.contains_key(&(dead.id, dead.upstream.clone())));
        let opened = held.ok_or_else(|| BodyError("it is no dead letter any more".to_owned()))?;
        let found = opened.log.record(dead.at, None).map_err(|error| BodyError(error.to_string()))?;
        if found.header.kind == Kind::Replay as u8 {
            let replay: Option<Replay> = record::decode(&found.plaintext);
            let replay = replay.ok_or_else(|| BodyError("the record is of an unknown form".to_owned()))?;
            return lanes::load(&opened.log, replay.at);
        }
        lanes::load(&opened.log, dead.at)
    }

    /// Puts dead letters back at the end of their lanes. Durable when it returns; tells how many there were.
    ///
    /// # Errors
    /// [`CommitError`].
    pub async fn retry(&self, chosen: &[Dead], by: Option<u32>) -> Result<u64, CommitError> {
        self.settle_dead(chosen, by, true).await
    }

    /// Gives dead letters up. Durable when it returns; tells how many there were.
    ///
    /// # Errors
    /// [`CommitError`].
    pub async fn discard(&self, chosen: &[Dead], by: Option<u32>) -> Result<u64, CommitError> {
        self.settle_dead(chosen, by, false).await
    }

    /// Puts kept originals at the end of a lane, in their order. Durable when it returns.
    ///
    /// # Errors
    /// [`CommitError`]; what was appended before it stays.
    pub async fn replay(&self, order: &ReplayOrder) -> Result<Replayed, CommitError> {
        let mut done = Replayed::default();
        for opened in &self.inner.logs {
            let (log, wanted) = (Arc::clone(&opened.log), order.clone());
            let search = tokio::task::spawn_blocking(move || originals(&log, &wanted));
            let found = search.await.map_err(|_| CommitError::Failed)?.map_err(|_| CommitError::Failed)?;
            let (found, received): (Vec<Replay>, Vec<i64>) = found.into_iter().unzip();
            for at in received {
                let (first, last) = done.received_us.unwrap_or((at, at));
                done.received_us = Some((first.min(at), last.max(at)));
            }
            done.incomplete |= is_incomplete(&opened.log.state(), order);
            done.messages += found.len() as u64;
            done.bytes += found.iter().map(|replay| replay.length).sum::<u64>();
            if !order.dry_run {
                for batch in found.chunks(REPLAY_BATCH) {
                    let records = batch.iter().map(|replay| prepared_replay(opened, replay.clone())).collect();
                    append(opened, records).await?;
                }
            }
        }
        Ok(done)
    }

    /// Begins a new epoch key: what is written from now on is under it. Tells its number.
    ///
    /// # Errors
    /// In words, when the keyring could not be written; the old one stays in force.
    pub fn rotate(&self) -> Result<u32, String> {
        match self.is_destroyed() {
            true => Err("the keys of this spool were destroyed".to_owned()),
            false => keeper::rotate(&self.watched()),
        }
    }

    /// Seals the root key to these recipients, in place of those it was sealed to before. Blocks.
    ///
    /// # Errors
    /// As the disk gives them.
    pub fn keep_recovery(&self, recipients: &[String]) -> io::Result<()> {
        let [first, ..] = &self.inner.logs;
        let root = first.log.keys().root().clone();
        escrow::keep(&*first.log.storage, &root, recipients)
    }

    /// Destroys the keys, on disk and in memory, after it has closed the spool: nothing in it can be read again. What was not
    /// delivered is lost. Blocks; the root key itself, outside the spool, is the caller's to destroy.
    ///
    /// # Errors
    /// As the disk gives them: intake is off and the memory has forgotten all the same.
    pub fn destroy(&self) -> io::Result<()> {
        self.inner.destroyed.store(true, Ordering::Relaxed);
        for opened in &self.inner.logs {
            opened.log.failed.store(true, Ordering::Relaxed);
        }
        self.close();
        let text = "the keys of this spool were destroyed: what it held can't be read any more, and nothing is stored";
        for opened in &self.inner.logs {
            *opened.log.state() = State { refusing: Some(text.to_owned()), ..State::default() };
        }
        let [first, ..] = &self.inner.logs;
        let storage = &*first.log.storage;
        let erased = first.log.keys().destroy(storage, self.now().wall_us);
        for name in [escrow::RECOVERY_FILE, escrow::RECIPIENTS, index_file::NAME] {
            erase_small(storage, name)?;
        }
        storage.sync_folder("")?;
        erased
    }

    /// Whether its keys were destroyed.
    pub fn is_destroyed(&self) -> bool {
        self.inner.destroyed.load(Ordering::Relaxed)
    }

    pub(super) fn watched(&self) -> Vec<Watched> {
        let logs = self.inner.logs.iter();
        logs.map(|opened| Watched { log: Arc::clone(&opened.log), requests: opened.requests.clone() }).collect()
    }

    async fn settle_dead(&self, chosen: &[Dead], by: Option<u32>, retry: bool) -> Result<u64, CommitError> {
        let mut count = 0;
        for opened in &self.inner.logs {
            let still: Vec<Dead> = {
                let state = opened.log.state();
                let held = chosen.iter().filter_map(|dead| state.dead.get(&(dead.id, dead.upstream.clone())));
                held.cloned().collect()
            };
            for batch in still.chunks(REPLAY_BATCH) {
                let mut records = Vec::new();
                for dead in batch {
                    if retry {
                        records.push(prepared_replay(opened, replay_of(&opened.log, dead)));
                    }
                    let discard = Discard { id: dead.id, upstream: dead.upstream.clone(), by };
                    let (plaintext, effect) = (record::encode(&discard), Effect::Discard(discard));
                    records.push(Prepared { kind: Kind::Discard, tag: 0, plaintext, effect, id: None });
                }
                append(opened, records).await?;
                count += batch.len() as u64;
            }
        }
        Ok(count)
    }
}

async fn append(opened: &Opened, records: Vec<Prepared>) -> Result<(), CommitError> {
    let (reply, told) = oneshot::channel();
    opened.requests.send(Request::Append { records, control: true, reply });
    told.await.unwrap_or(Err(CommitError::Failed)).map(drop)
}

fn prepared_replay(opened: &Opened, replay: Replay) -> Prepared {
    let tag = source_tag(&opened.spool_id, &replay.source);
    Prepared { kind: Kind::Replay, tag, plaintext: record::encode(&replay), effect: Effect::Replay(replay), id: None }
}

/// The REPLAY record of a dead letter. One that was a replay itself points to the same original.
fn replay_of(log: &Log, dead: &Dead) -> Replay {
    let found = log.record(dead.at, None).ok().filter(|found| found.header.kind == Kind::Replay as u8);
    let original = found.and_then(|found| record::decode::<Replay>(&found.plaintext));
    Replay {
        source: dead.source.clone(),
        upstream: dead.upstream.clone(),
        id: dead.id,
        at: original.map_or(dead.at, |original| original.at),
        length: dead.length,
        stamp: log.uptime.stamp(),
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

/// The messages that a replay is about, in their order, and when each was received.
fn originals(log: &Log, order: &ReplayOrder) -> io::Result<Vec<(Replay, i64)>> {
    let segments: Vec<_> = {
        let state = log.state();
        let held = state.segments.values().filter(|held| {
            held.extent.received_us.is_some_and(|(first, last)| first < order.to_us && last >= order.from_us)
        });
        held.map(|held| (Arc::clone(&held.segment), held.end)).collect()
    };
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
                    let replay = replay_to(log, &segment.identity, frame.header.ordinal, &data, &order.upstream);
                    if chosen && !is_owed(&log.state(), &data, &replay) && is_whole(log, &data) {
                        found.push((replay, received));
                    }
                }
            }
        }
    }
    Ok(found)
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

fn log_status(log: &Log) -> LogStatus {
    let state = log.state();
    LogStatus {
        log: log.class.as_str().to_owned(),
        quota: log.limits().quota,
        used: must_stay(&state),
        segments: state.segments.len() as u64,
        refusing: state.refusing.clone(),
        written: log.counters.written.value(),
        syncs: log.counters.syncs.value(),
        groups: log.counters.groups.value(),
        quarantined: state.quarantined.len() as u64,
    }
}

/// Bytes of segments that hold something undelivered, a dead letter or an arriving body.
fn must_stay(state: &State) -> u64 {
    let done = state.done();
    let held = state.segments.iter().filter(|(order, _)| !done.contains(order));
    held.map(|(_, held)| held.segment.bytes).sum()
}

fn log_alarms(log: &Log) -> Vec<Alarm> {
    let (status, foreign) = (log_status(log), log.state().foreign.len());
    let alarm = |code: &str, text: String| Alarm { code: code.to_owned(), about: status.log.clone(), text };
    let mut alarms = Vec::new();
    if let Some(why) = &status.refusing {
        alarms.push(match log.has_failed() {
            true => alarm("spool-failed", format!("new messages are refused: {why}")),
            false => alarm(
                "spool-full",
                format!(
                    "new messages are refused: {why}. Devices are told and try again; it goes on by itself when there is room"
                ),
            ),
        });
    } else if status.used * 100 > status.quota.saturating_mul(QUOTA_ALARM_PERCENT) {
        let share = status.used * 100 / status.quota.max(1);
        alarms.push(alarm(
            "quota",
            format!(
                "{share} % of the quota is used by what is not delivered: mend the upstreams whose backlog grows, or raise \
                 [spool.{}] quota",
                status.log
            ),
        ));
    }
    if status.quarantined > 0 {
        let text = format!(
            "damage was found in {}: \"wardgate spool verify\" says what and in which files; the disk may be failing",
            counted(status.quarantined, "segment")
        );
        alarms.push(alarm("damaged", text));
    }
    if foreign > 0 {
        let text = format!("{} left alone: under a key that is not in this keyring", counted(foreign as u64, "file"));
        alarms.push(alarm("foreign-files", text));
    }
    alarms
}
