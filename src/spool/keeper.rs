//! The keeper: what the spool does in the background, on one thread for all logs.
//!
//! It keeps a written-through file ready for the next segment of each log in use, takes back delivered originals whose
//! time is over, and lets the index follow the logs. It never does anything that an acknowledgement waits for.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use super::compact;
use super::index::Index;
use super::log::Log;

/// How often it looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// Segments that are taken back at once.
const RECLAIM_MAX: usize = 8;

/// Looks after the logs until it is told to stop.
pub fn run(logs: &[Arc<Log>], index: &Index, stop: &Receiver<()>) {
    while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(INTERVAL) {
        for log in logs {
            let (used, spare) = {
                let state = log.state();
                (state.active.is_some(), !state.free.is_empty() && state.reserve.is_some())
            };
            if used && !spare && !log.has_failed() {
                compact::prepare(log);
            }
            compact::sweep(log, RECLAIM_MAX);
        }
        if index.is_due(logs) {
            index.apply(logs);
        }
    }
}
