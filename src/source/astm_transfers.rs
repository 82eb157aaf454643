//! What the lines of a source and its assembly know of each other's transfers: which are under way, which ended, which broke off.
//!
//! It is memory only. All that must survive a restart is in the parts themselves ([`super::astm_part`]).
//!
//! A frame without ENQ goes on with a transfer that broke off only where it can't be another analyser's: several can share one address
//! (behind NAT, or a terminal server), and one patient's results must never end in another's. So the line must be the only one
//! that there is (a serial port, an analyser that is dialled), or nobody else may have been connected from its address when the last
//! frame came, and nothing else have broken off there. In doubt nothing is joined: the analyser begins anew.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::wire::astm::{Frame, Receiver};

/// So long after a transfer broke off its analyser may still go on with it: the time in which a receiver expects the next frame
/// (E1381, 30 s), and a little.
pub const REJOIN_TIME: Duration = Duration::from_secs(35);
/// Transfers that broke off and may be gone on with; more of them, and the oldest is over.
const BROKEN_MAX: usize = 1024;

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
    /// The link that it came on last: see [`super::astm_part::Part`].
    pub link: u32,
    /// Nobody else was connected from its address when the last frame came.
    pub alone: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Transfers {
    state: Mutex<State>,
    nudge: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Under way.
    live: BTreeSet<u64>,
    /// Connections that are there, by line.
    connected: BTreeMap<String, usize>,
    /// Broken off and perhaps gone on with, the oldest first.
    broken: Vec<Broken>,
}

#[derive(Debug)]
struct Broken {
    line: String,
    standing: Standing,
    since: Instant,
}

impl Transfers {
    /// Somebody is there on a line.
    pub fn connected(&self, line: &str) {
        *self.lock().connected.entry(line.to_owned()).or_default() += 1;
    }

    /// He is gone.
    pub fn disconnected(&self, line: &str) {
        let mut state = self.lock();
        match state.connected.get_mut(line) {
            Some(count) if *count > 1 => *count -= 1,
            _ => _ = state.connected.remove(line),
        }
    }

    /// Whether what comes on this line now can only be of one device.
    pub fn is_alone(&self, line: &str) -> bool {
        line.is_empty() || self.lock().connected.get(line).is_none_or(|count| *count <= 1)
    }

    /// How many are under way.
    pub fn live(&self) -> usize {
        self.lock().live.len()
    }

    /// A transfer begins on a line: nobody goes on with one that broke off there.
    pub fn begin(&self, line: &str, transfer: u64) {
        let mut state = self.lock();
        state.live.insert(transfer);
        let before = state.broken.len();
        state.broken.retain(|broken| broken.line != line);
        let over = state.broken.len() < before;
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

    /// A transfer broke off: the line is gone, or nothing came for too long. An earlier one of the same link, or of a line that is the
    /// only one, is over.
    pub fn break_off(&self, line: &str, standing: Standing) {
        let mut state = self.lock();
        state.live.remove(&standing.transfer);
        let same = |broken: &Broken| broken.standing.link == standing.link || line.is_empty();
        state.broken.retain(|broken| broken.line != line || !same(broken));
        if state.broken.len() >= BROKEN_MAX {
            state.broken.remove(0);
        }
        state.broken.push(Broken { line: line.to_owned(), standing, since: Instant::now() });
        drop(state);
        self.nudge();
    }

    /// Nobody goes on with what broke off before: where that was is not known.
    pub fn forget_broken(&self) {
        self.lock().broken.clear();
    }

    /// The transfer of this line that a frame without ENQ goes on with, when that is sure; it is under way again.
    pub fn rejoin(&self, line: &str, frame: &Frame) -> Option<Standing> {
        let mut state = self.lock();
        state.forget();
        let of_line = |broken: &Broken| broken.line == line;
        let at = state.broken.iter().position(of_line)?;
        let others = state.broken.iter().filter(|broken| of_line(broken)).count() - 1;
        let Broken { standing, .. } = state.broken.get(at)?;
        let sure = line.is_empty() || standing.alone && others == 0;
        let repeats = standing.last == Some((frame.number, frame.fingerprint()));
        // Another header begins a message, whoever sends it.
        let begins = frame.number == 1 && frame.text.first() == Some(&b'H') && !repeats;
        if !sure || begins || !standing.last.is_some_and(|last| Receiver::fits(last, frame)) {
            return None;
        }
        let Broken { standing, .. } = state.broken.remove(at);
        state.live.insert(standing.transfer);
        Some(standing)
    }

    /// Of these transfers, those that nobody will go on with.
    pub fn abandoned(&self, transfers: impl Iterator<Item = u64>) -> Vec<u64> {
        let mut state = self.lock();
        state.forget();
        let waits = |transfer: &u64| state.broken.iter().any(|broken| broken.standing.transfer == *transfer);
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

impl State {
    fn forget(&mut self) {
        self.broken.retain(|broken| broken.since.elapsed() < REJOIN_TIME);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "10.0.0.5";

    fn standing(transfer: u64, last: (u8, u64)) -> Standing {
        let link = u32::try_from(transfer).unwrap();
        Standing { transfer, ordinal: 4, start: 0, record: None, in_message: true, last: Some(last), link, alone: true }
    }

    fn frame(number: u8) -> Frame {
        Frame { number, text: b"R|1\r".to_vec(), last: true }
    }

    #[tokio::test(start_paused = true)]
    async fn a_transfer_that_broke_off_is_gone_on_with_on_its_own_line_and_in_time_only() {
        let transfers = Transfers::default();
        transfers.begin(LINE, 7);
        assert_eq!(transfers.abandoned([7].into_iter()), [] as [u64; 0]);
        transfers.break_off(LINE, standing(7, (3, 1)));
        assert_eq!(transfers.rejoin("10.0.0.6", &frame(4)), None);
        assert_eq!(transfers.rejoin(LINE, &frame(6)), None, "frames between are missing");
        assert_eq!(transfers.rejoin(LINE, &frame(4)).unwrap().transfer, 7);
        assert_eq!(transfers.rejoin(LINE, &frame(4)), None, "it is under way");
        transfers.break_off(LINE, standing(7, (3, frame(3).fingerprint())));
        tokio::time::advance(REJOIN_TIME).await;
        assert_eq!(transfers.rejoin(LINE, &frame(3)), None);
        assert_eq!(transfers.abandoned([7, 8].into_iter()), [7, 8]);
        transfers.break_off(LINE, standing(7, (3, 1)));
        transfers.begin(LINE, 9);
        assert_eq!(transfers.abandoned([7, 9].into_iter()), [7], "the line was asked for anew");
    }

    #[tokio::test]
    async fn of_several_devices_behind_one_address_none_goes_on_with_what_may_be_anothers() {
        let transfers = Transfers::default();
        transfers.break_off(LINE, standing(7, (3, 1)));
        transfers.break_off(LINE, standing(8, (5, 1)));
        assert_eq!((transfers.rejoin(LINE, &frame(4)), transfers.rejoin(LINE, &frame(6))), (None, None));
        assert_eq!(transfers.abandoned([7, 8].into_iter()), [] as [u64; 0], "each waits for its own end");
        let transfers = Transfers::default();
        transfers.break_off(LINE, Standing { alone: false, ..standing(7, (3, 1)) });
        assert_eq!(transfers.rejoin(LINE, &frame(4)), None, "another was connected, of which nothing is known");
        // The next transfer of the same link is no other device.
        let transfers = Transfers::default();
        transfers.break_off(LINE, standing(7, (3, 1)));
        transfers.break_off(LINE, Standing { link: 7, ..standing(8, (5, 1)) });
        assert_eq!(transfers.rejoin(LINE, &frame(6)).unwrap().transfer, 8);
        // Of a serial port there is one, whatever it sent before.
        transfers.break_off("", standing(7, (3, 1)));
        transfers.break_off("", standing(8, (5, 1)));
        assert_eq!(transfers.rejoin("", &frame(6)).unwrap().transfer, 8);
    }

    #[test]
    fn who_is_connected_from_an_address_is_counted() {
        let transfers = Transfers::default();
        transfers.connected(LINE);
        assert!(transfers.is_alone(LINE) && transfers.is_alone("10.0.0.6"));
        transfers.connected(LINE);
        assert!(!transfers.is_alone(LINE));
        transfers.disconnected(LINE);
        assert!(transfers.is_alone(LINE));
        transfers.disconnected(LINE);
        assert_eq!(transfers.lock().connected.len(), 0);
    }
}
