//! The spool's own clock: milliseconds in service, monotonic and kept over restarts.
//!
//! Windows, retention and ages count with it, because the wall clock of a box may be wrong by years and may jump. It stands
//! still while the box is off. The wall clock is only data, with its quality beside it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::envelope::Stamp;
use crate::system::clock;

/// How long an answer about the quality of the wall clock holds: the question is a system call or, in a sandbox, two, which is more than a
/// small message costs otherwise; and a clock that a server has set is no worse a moment later.
const QUALITY_MS: u64 = 100;
/// Nobody was asked yet: in place of an [`answer`].
const UNASKED: u64 = u64::MAX;

/// Uptime, counted on from where the log ended.
pub struct Uptime {
    base_ms: AtomicU64,
    started: Instant,
    /// The last answer about the quality of the wall clock (see [`answer`]).
    quality: AtomicU64,
}

impl Uptime {
    /// Begins at `base_ms`, the greatest uptime that the log knows.
    pub fn new(base_ms: u64) -> Self {
        Self { base_ms: AtomicU64::new(base_ms), started: Instant::now(), quality: AtomicU64::new(UNASKED) }
    }

    /// Goes on from `base_ms` when that is later: another log knew of a later time.
    pub fn at_least(&self, base_ms: u64) {
        self.base_ms.fetch_max(base_ms, Ordering::Relaxed);
    }

    /// Milliseconds in service.
    pub fn ms(&self) -> u64 {
        let running = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.base_ms.load(Ordering::Relaxed).saturating_add(running)
    }

    /// This moment. Whether the wall clock may be believed was asked within the last [`QUALITY_MS`].
    pub fn stamp(&self) -> Stamp {
        let uptime_ms = self.ms();
        let last = self.quality.load(Ordering::Relaxed);
        let synchronised = held_answer(last, uptime_ms).unwrap_or_else(|| {
            let synchronised = clock::synchronised();
            self.quality.store(answer(synchronised, uptime_ms), Ordering::Relaxed);
            synchronised
        });
        Stamp { wall_us: clock::wall_us(), synchronised, uptime_ms }
    }
}

/// An answer, and the uptime at which it was given.
fn answer(synchronised: bool, uptime_ms: u64) -> u64 {
    uptime_ms << 1 | u64::from(synchronised)
}

/// What `last` says, if it still holds.
fn held_answer(last: u64, uptime_ms: u64) -> Option<bool> {
    (last != UNASKED && uptime_ms.wrapping_sub(last >> 1) < QUALITY_MS).then_some(last & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quality_of_the_wall_clock_is_asked_again_when_the_last_answer_is_old() {
        assert_eq!(held_answer(UNASKED, 0), None);
        for synchronised in [true, false] {
            let last = answer(synchronised, 5_000);
            assert_eq!(held_answer(last, 5_000 + QUALITY_MS - 1), Some(synchronised));
            assert_eq!(held_answer(last, 5_000 + QUALITY_MS), None);
            assert_eq!(held_answer(last, 4_999), None, "an answer from the future is none");
        }
        let uptime = Uptime::new(7);
        assert_eq!(uptime.stamp().synchronised, clock::synchronised());
        assert_eq!(uptime.stamp().synchronised, clock::synchronised());
    }
}
