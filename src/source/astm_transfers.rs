//! What the lines of a source and its assembly know of each other's transfers: which are under way, which ended, which broke off.
//!
//! It is memory only. All that must survive a restart is in the parts themselves ([`super::astm_part`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::wire::astm::{Frame, Receiver};

/// So long after a transfer broke off its analyser may still go on with it: the time in which a receiver expects the next frame
/// (E1381, 30 s), and a little.
pub const REJOIN_TIME: Duration = Duration::from_secs(35);

/// Where a transfer stands: enough to go on with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// See [`super::astm_part::Part`].
    pub transfer: u64,
    /// The ordinal of the next part.
    pub ordinal: u64,
    /// The part with which the present message began.
    pub start: u64,
    /// The type of the record that has begun.
    pub record: Option<u8>,
    /// Whether a message has begun and not ended.
    pub in_message: bool,
    /// Number and fingerprint of the last frame.
    pub last: Option<(u8, u64)>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Transfers {
    state: Mutex<State>,
    nudge: Notify,
}

#[derive(Debug, Default)]
struct State {
    live: BTreeSet<u64>,
    /// Broken off and perhaps gone on with: by line.
    broken: BTreeMap<String, (Standing, Instant)>,
}

impl Transfers {
    /// A transfer begins on a line: nobody goes on with one that broke off there.
    pub fn begin(&self, line: &str, transfer: u64) {
        let mut state = self.lock();
        state.live.insert(transfer);
        let over = state.broken.remove(line).is_some();
        drop(state);
        if over {
            self.nudge();
        }
    }

    /// A transfer is over: EOT, or ENQ of the next. What it left unfinished stays so.
    pub fn end(&self, transfer: u64) {
        self.lock().live.remove(&transfer);
        self.nudge();
    }

    /// A transfer broke off: the line is gone, or nothing came for too long. An earlier one of the line is over.
    pub fn break_off(&self, line: &str, standing: Standing) {
        let mut state = self.lock();
        state.live.remove(&standing.transfer);
        state.broken.insert(line.to_owned(), (standing, Instant::now()));
        drop(state);
        self.nudge();
    }

    /// The transfer of this line that a frame without ENQ goes on with; it is under way again.
    pub fn rejoin(&self, line: &str, frame: &Frame) -> Option<Standing> {
        let mut state = self.lock();
        let fits = |(standing, since): &(Standing, Instant)| {
            since.elapsed() < REJOIN_TIME && standing.last.is_some_and(|last| Receiver::fits(last, frame))
        };
        if !state.broken.get(line).is_some_and(fits) {
            return None;
        }
        let (standing, _) = state.broken.remove(line)?;
        state.live.insert(standing.transfer);
        Some(standing)
    }

    /// Of these transfers, those that nobody will go on with.
    pub fn abandoned(&self, transfers: impl Iterator<Item = u64>) -> Vec<u64> {
        let mut state = self.lock();
        state.broken.retain(|_, (_, since)| since.elapsed() < REJOIN_TIME);
        let waits = |transfer: &u64| state.broken.values().any(|(standing, _)| standing.transfer == *transfer);
        transfers.filter(|transfer| !state.live.contains(transfer) && !waits(transfer)).collect()
    }

    /// Asks the assembly to look: a message is whole, a transfer over, or much has come.
    pub fn nudge(&self) {
        self.nudge.notify_one();
    }

    /// Returns once [`Self::nudge`] was called after the last return.
    pub async fn nudged(&self) {
        self.nudge.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(transfer: u64, last: (u8, u64)) -> Standing {
        Standing { transfer, ordinal: 4, start: 0, record: None, in_message: true, last: Some(last) }
    }

    fn frame(number: u8) -> Frame {
        Frame { number, text: b"R|1\r".to_vec(), last: true }
    }

    #[tokio::test(start_paused = true)]
    async fn a_transfer_that_broke_off_is_gone_on_with_on_its_own_line_and_in_time_only() {
        let transfers = Transfers::default();
        transfers.begin("10.0.0.5", 7);
        assert_eq!(transfers.abandoned([7].into_iter()), [] as [u64; 0]);
        transfers.break_off("10.0.0.5", standing(7, (3, 1)));
        assert_eq!(transfers.rejoin("10.0.0.6", &frame(4)), None);
        assert_eq!(transfers.rejoin("10.0.0.5", &frame(6)), None, "frames between are missing");
        assert_eq!(transfers.rejoin("10.0.0.5", &frame(4)).unwrap().transfer, 7);
        assert_eq!(transfers.rejoin("10.0.0.5", &frame(4)), None, "it is under way");
        transfers.break_off("10.0.0.5", standing(7, (3, frame(3).fingerprint())));
        tokio::time::advance(REJOIN_TIME).await;
        assert_eq!(transfers.rejoin("10.0.0.5", &frame(3)), None);
        assert_eq!(transfers.abandoned([7, 8].into_iter()), [7, 8]);
        transfers.break_off("10.0.0.5", standing(7, (3, 1)));
        transfers.begin("10.0.0.5", 9);
        assert_eq!(transfers.abandoned([7, 9].into_iter()), [7], "the line was asked for anew");
    }
}
