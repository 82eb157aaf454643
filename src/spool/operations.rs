//! What people ask of a spool: how it stands, its dead letters, sending again.
//!
//! Reading looks at the state in memory; changing appends records and returns after their sync, so that what a person was
//! told is done survives a power cut. Nothing here reveals content but [`Spool::message`].

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

use super::keeper::{self, Watched};
use super::log::{Effect, Log, State};
use super::record::{self, Dead, Discard, Gap, Kind, Replay};
use super::seal::Algorithm;
use super::storage::erase_small;
use super::writer::{Prepared, Request};
use super::{CommitError, Opened, Spool, SpoolConfig, escrow, index_file, lanes, logs_of, recovery, source_tag};
use crate::envelope::{BodyError, Class, Envelope, MessageId, UNREADABLE};
use crate::status::{Alarm, LaneStatus, LogStatus, Turns};
use crate::values::{ByteSize, Name, counted};

/// Share of the quota, in percent, above which people are told.
const QUOTA_ALARM_PERCENT: u64 = 80;
/// The reason of dead letters whose upstream was given up.
pub const RETIRED: &str = "the upstream was retired";
/// Records that are appended at once.
pub(super) const REPLAY_BATCH: usize = 512;

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

    /// The turns of each log's writer: one that stands still hangs in a write or a sync.
    pub fn turns(&self) -> Turns {
        let logs = self.inner.logs.iter();
        logs.map(|opened| (format!("the spool's writer of {}", opened.log.class.as_str()), opened.requests.turns()))
            .collect()
    }

    /// The cipher of new segments, as people write it.
    pub fn cipher(&self) -> &'static str {
        Algorithm::preferred().name()
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
            let (class, used) = (opened.log.class, opened.log.state().must_stay());
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
        let opened = held.ok_or_else(|| BodyError::Unreadable("it is no dead letter any more".to_owned()))?;
        let found = opened.log.record(dead.at, None).map_err(BodyError::from)?;
        if found.header.kind == Kind::Replay as u8 {
            let replay: Option<Replay> = record::decode(&found.plaintext);
            let replay = replay.ok_or_else(|| BodyError::Unreadable("the record is of an unknown form".to_owned()))?;
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

    /// Gives dead letters up. Durable when it returns; tells how many there were. Who discards one for all its upstreams at once, and has
    /// it sent again by its device, wants it stored again: it is no second copy then. One that another upstream has, or waits for, is.
    ///
    /// # Errors
    /// [`CommitError`].
    pub async fn discard(&self, chosen: &[Dead], by: Option<u32>) -> Result<u64, CommitError> {
        // Both read and write files.
        let (spool, given) = (self.clone(), chosen.to_vec());
        let forgotten = spawn_blocking(move || spool.given_up_by_all(&given)).await.unwrap_or_default();
        let count = self.settle_dead(chosen, by, false).await?;
        if !forgotten.is_empty() {
            let spool = self.clone();
            let forget = move || spool.inner.index.forget(&forgotten, &logs_of(&spool.inner.logs));
            // A panic there is a fault of ours that costs a message sent again its place at worst, and is in the log.
            spawn_blocking(forget).await.ok();
        }
        Ok(count)
    }

    /// The messages of these dead letters that each of their upstreams gives up by them, as far as they could be taken for second copies.
    fn given_up_by_all(&self, chosen: &[Dead]) -> HashSet<MessageId> {
        let known = self.inner.duplicates.known(&chosen.iter().map(|dead| dead.id).collect());
        let given_up: HashSet<(MessageId, &Name)> = chosen.iter().map(|dead| (dead.id, &dead.upstream)).collect();
        let is_given_up = |dead: &Dead| {
            let gives_up = |target: &Name| given_up.contains(&(dead.id, target));
            self.message(dead).is_ok_and(|envelope| envelope.meta.targets.iter().all(gives_up))
        };
        chosen.iter().filter(|dead| known.contains(&dead.id) && is_given_up(dead)).map(|dead| dead.id).collect()
    }

    /// Takes note of all damage that was found, and of records that only a newer version can read: it is shown no more, and the segments
    /// go when nothing readable of them is needed.
    /// Durable when it returns; tells how many segments there were.
    ///
    /// # Errors
    /// [`CommitError`].
    pub async fn accept_damage(&self) -> Result<u64, CommitError> {
        let mut count = 0;
        for opened in &self.inner.logs {
            let damaged = {
                let state = opened.log.state();
                let unread = state.unread.iter().filter(|order| !state.quarantined.contains(order));
                state.quarantined.iter().chain(unread).copied().collect::<Vec<u64>>()
            };
            let accepted = |segment: &u64| {
                let stamp = opened.log.uptime.stamp();
                let gap = Gap { cause: Gap::ACCEPTED.to_owned(), segment: *segment, lanes: Vec::new(), stamp };
                let (plaintext, effect) = (record::encode(&gap), Effect::Gap(gap));
                Prepared { kind: Kind::Gap, tag: 0, plaintext, effect, id: None }
            };
            for batch in damaged.chunks(REPLAY_BATCH) {
                append(opened, batch.iter().map(accepted).collect()).await?;
                count += batch.len() as u64;
            }
        }
        Ok(count)
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
                    match retry.then(|| retry_of(&opened.log, dead)) {
                        Some(Retry::NotYet) => continue,
                        Some(Retry::Send(replay)) => records.push(prepared_replay(opened, replay)),
                        Some(Retry::Never) | None => {}
                    }
                    count += 1;
                    let discard = Discard { id: dead.id, upstream: dead.upstream.clone(), by };
                    let (plaintext, effect) = (record::encode(&discard), Effect::Discard(discard));
                    records.push(Prepared { kind: Kind::Discard, tag: 0, plaintext, effect, id: None });
                }
                if !records.is_empty() {
                    append(opened, records).await?;
                }
            }
        }
        Ok(count)
    }
}

/// Appends records that may use the reserve; durable when it returns.
///
/// # Errors
/// [`CommitError`].
pub(super) async fn append(opened: &Opened, records: Vec<Prepared>) -> Result<(), CommitError> {
    let (reply, told) = oneshot::channel();
    opened.requests.send(Request::Append { records, control: true, reply });
    told.await.unwrap_or(Err(CommitError::Failed)).map(drop)
}

/// A REPLAY record, ready to be written.
pub(super) fn prepared_replay(opened: &Opened, replay: Replay) -> Prepared {
    let tag = source_tag(&opened.spool_id, &replay.source);
    Prepared { kind: Kind::Replay, tag, plaintext: record::encode(&replay), effect: Effect::Replay(replay), id: None }
}

/// What becomes of a dead letter that is to be tried again.
enum Retry {
    /// It is sent.
    Send(Replay),
    /// It turns out to be no message for this upstream: an earlier version could not read it, and each lane of its source took it for
    /// its own.
    Never,
    /// This version can't read it, nor tell whom it was for.
    NotYet,
}

/// What becomes of a dead letter that is to be tried again. One that was a replay itself points to the same original.
fn retry_of(log: &Log, dead: &Dead) -> Retry {
    let found = log.record(dead.at, None).ok();
    if found.as_ref().is_some_and(recovery::is_unread) {
        return Retry::NotYet;
    }
    let of = |kind: Kind| found.as_ref().filter(|found| found.header.kind == kind as u8);
    let original = of(Kind::Replay).and_then(|found| record::decode::<Replay>(&found.plaintext));
    let data = of(Kind::Data).and_then(|found| record::decode_data(&found.plaintext));
    if data.is_some_and(|(data, _)| data.meta.source != dead.source || !data.meta.targets.contains(&dead.upstream)) {
        return Retry::Never;
    }
    Retry::Send(Replay {
        source: dead.source.clone(),
        upstream: dead.upstream.clone(),
        id: dead.id,
        at: original.map_or(dead.at, |original| original.at),
        length: dead.length,
        stamp: log.uptime.stamp(),
    })
}

fn log_status(log: &Log) -> LogStatus {
    let state = log.state();
    LogStatus {
        log: log.class.as_str().to_owned(),
        quota: log.limits().quota,
        used: state.must_stay(),
        segments: state.segments.len() as u64,
        refusing: state.refusing.clone().filter(|_| !state.has_room_again()),
        written: log.counters.written.value(),
        syncs: log.counters.syncs.value(),
        groups: log.counters.groups.value(),
        quarantined: state.quarantined.len() as u64,
    }
}

fn log_alarms(log: &Log) -> Vec<Alarm> {
    let (status, foreign) = (log_status(log), log.state().foreign.len());
    let alarm = |code: &str, text: String| Alarm { code: code.to_owned(), about: status.log.clone(), text };
    let mut alarms = Vec::new();
    if let Some(why) = &status.refusing {
        alarms.push(match log.has_failed() || log.state().disk_fails() {
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
    let mut damage = Vec::new();
    let unread = log.state().unread.len() as u64;
    if status.quarantined > 0 {
        let state = log.state();
        let lost =
            state.gaps.iter().filter(|gap| gap.cause == Gap::DAMAGED && state.quarantined.contains(&gap.segment));
        let lost: u64 = lost.flat_map(|gap| &gap.lanes).map(|(_, _, count)| count).sum();
        let lost =
            if lost > 0 { format!(" and {lost} messages were lost before they were delivered") } else { String::new() };
        let text = format!(
            "damage was found in {}{lost}: \"wardgate spool verify\" says what and in which files, \"wardgate spool accept-damage\" \
             ends this alarm; the disk may be failing",
            counted(status.quarantined, "segment")
        );
        damage.push(text);
    }
    if unread > 0 {
        damage.push(format!(
            "a newer version stored what this one can't read, in {}: it is kept, and shown as dead letters where lanes come upon it. Go back to \
             the newer version, then try these again; without it, \"wardgate spool accept-damage\" ends this alarm",
            counted(unread, "segment")
        ));
    }
    if !damage.is_empty() {
        alarms.push(alarm("damaged", damage.join("; ")));
    }
    if foreign > 0 {
        let text = format!(
            "{} left alone: under a key that is not in this keyring, or of a newer version, which reads them when it is back",
            counted(foreign as u64, "file")
        );
        alarms.push(alarm("foreign-files", text));
    }
    alarms
}
