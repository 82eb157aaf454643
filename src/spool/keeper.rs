//! The keeper: what the spool does in the background, on one thread for all logs.
//!
//! It keeps written-through files ready for the next segments of each log in use, takes back delivered originals whose
//! time is over, lets the index follow the logs, and makes a new epoch key for each day. It never does anything that an
//! acknowledgement waits for.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::compact::{self, Prepared};
use super::index::Index;
use super::log::Log;
use super::requests::Requests;
use super::writer::Request;
use crate::envelope::Class;

/// How often it looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// Files are made ready for so long at once.
const PREPARE_MAX: Duration = Duration::from_millis(250);
/// Where there was no room for one, it is looked for again after this time: a disk that fails or is full is not written to each second.
const PREPARE_AGAIN: Duration = Duration::from_secs(30);
/// Segments that are taken back at once.
const RECLAIM_MAX: usize = 8;
/// Uptime after which a new epoch key is made.
const EPOCH_MS: u64 = 86_400_000;

/// A log and its writer.
#[derive(Clone)]
pub struct Watched {
    /// The log.
    pub log: Arc<Log>,
    /// Its writer.
    pub(super) requests: Requests,
}

/// Looks after the logs until it is told to stop.
pub fn run(logs: &[Watched], index: &Index, stop: &Receiver<()>) {
    // The groups that each had at the last look, and when files are made ready again.
    let mut seen: Vec<(u64, Instant)> = logs.iter().map(|_| (u64::MAX, Instant::now())).collect();
    let followed: Vec<Arc<Log>> = logs.iter().map(|watched| Arc::clone(&watched.log)).collect();
    while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(INTERVAL) {
        for (Watched { log, .. }, (groups, not_before)) in logs.iter().zip(&mut seen) {
            let used = log.state().active.is_some() || log.state().expected;
            let quiet = std::mem::replace(groups, log.counters.groups.value()) == *groups;
            // A busy log that makes its files in no time itself is left in peace.
            let calm = (quiet || log.class != Class::Imaging) && !log.has_failed();
            if used && calm && *not_before <= Instant::now() && !compact::is_prepared(log) {
                let began = Instant::now();
                let mut step = Prepared::Some;
                while step == Prepared::Some && began.elapsed() < PREPARE_MAX {
                    step = compact::prepare(log);
                }
                if step == Prepared::NoRoom {
                    *not_before = Instant::now() + PREPARE_AGAIN;
                }
            }
            compact::sweep(log, RECLAIM_MAX);
            log.buffers.rest();
        }
        if index.is_due(&followed) {
            index.apply(&followed);
        }
        rotate_in_time(logs);
    }
}

/// Makes a new epoch when the newest is a day old and something was written under it.
pub(super) fn rotate_in_time(logs: &[Watched]) {
    let in_use = logs.iter().any(|watched| watched.log.state().active.is_some() && !watched.log.has_failed());
    let made = logs.first().map(|watched| (watched.log.keys().newest_made_uptime_ms(), watched.log.uptime.ms()));
    if in_use && made.is_some_and(|(made, now)| now.saturating_sub(made) >= EPOCH_MS) {
        match rotate(logs) {
            Ok(epoch) => tracing::info!(epoch, "a new epoch key is in force"),
            Err(error) => tracing::warn!(%error, "no new epoch key could be made; the old one stays in force"),
        }
    }
}

/// Makes a new epoch: each log begins a new segment under it with its next record. Tells its number.
///
/// # Errors
/// In words, when the keyring could not be written; the old one stays in force.
pub fn rotate(logs: &[Watched]) -> Result<u32, String> {
    let mut used = Vec::new();
    for Watched { log, .. } in logs {
        used.extend(log.state().segments.values().map(|held| held.segment.epoch));
    }
    let Some(Watched { log, .. }) = logs.first() else { return Err("there is no log".to_owned()) };
    let now = log.uptime.stamp();
    let rotated = log.keys().rotate(&*log.storage, &used, (now.wall_us, now.uptime_ms));
    let epoch = rotated.map_err(|error| error.to_string())?;
    for watched in logs {
        watched.requests.send(Request::Roll);
    }
    Ok(epoch)
}
