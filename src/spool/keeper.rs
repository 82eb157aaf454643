//! The keeper: what the spool does in the background, on one thread for all logs.
//!
//! It keeps a written-through file ready for the next segment of each log in use, takes back delivered originals whose
//! time is over, lets the index follow the logs, and makes a new epoch key for each day. It never does anything that an
//! acknowledgement waits for.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use super::compact;
use super::index::Index;
use super::log::Log;
use super::requests::Requests;
use super::writer::Request;

/// How often it looks.
const INTERVAL: Duration = Duration::from_secs(1);
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
    let followed: Vec<Arc<Log>> = logs.iter().map(|watched| Arc::clone(&watched.log)).collect();
    while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(INTERVAL) {
        for Watched { log, .. } in logs {
            let (used, spare) = {
                let state = log.state();
                (state.active.is_some(), !state.free.is_empty() && state.reserve.is_some())
            };
            if used && !spare && !log.has_failed() {
                compact::prepare(log);
            }
            compact::sweep(log, RECLAIM_MAX);
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
