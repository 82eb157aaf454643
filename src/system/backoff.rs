//! How long to wait before the next attempt: doubling from a floor to a cap, with full jitter.
//!
//! A connection that is made and lost again at once (a second client with the same id, a peer that hangs up after the
//! greeting) must not count as success: the pause is reset only after a stable period. Nothing here sleeps or reads a clock.

use std::time::Duration;

/// The pause before the first new attempt is at most this.
pub const FLOOR: Duration = Duration::from_secs(1);
/// No pause is longer.
pub const CAP: Duration = Duration::from_secs(60);
/// What worked for this long counts as well again.
pub const STABLE: Duration = Duration::from_secs(30);

/// The pauses between attempts of one thing that may fail: a connection, a listener, a serial port.
#[derive(Clone, Debug)]
pub struct Backoff {
    floor: Duration,
    cap: Duration,
    stable: Duration,
    ceiling: Duration,
}

impl Default for Backoff {
    /// 1 s, doubling to 60 s, well again after 30 s.
    fn default() -> Self {
        Self::new(FLOOR, CAP, STABLE)
    }
}

impl Backoff {
    /// Pauses of at most `floor` at first, at most `cap` in the end; `stable` is how long a success must last to start anew.
    pub fn new(floor: Duration, cap: Duration, stable: Duration) -> Self {
        let cap = cap.max(floor);
        Self { floor, cap, stable, ceiling: floor }
    }

    /// The pause after a failure. `worked_for` is how long the thing had worked before it failed: zero when it never did.
    ///
    /// Full jitter: anything from nothing to the present ceiling, so that a thousand boxes do not come back in one instant.
    pub fn pause(&mut self, worked_for: Duration) -> Duration {
        let mut random = [0; 4];
        // A failing random generator (never seen on Linux) leaves zeros: then all of the ceiling is waited.
        let filled = aws_lc_rs::rand::fill(&mut random).is_ok();
        let drawn = if filled { u32::from_be_bytes(random) } else { u32::MAX };
        self.pause_drawn(worked_for, drawn)
    }

    /// The longest that the next pause can be.
    pub fn ceiling(&self) -> Duration {
        self.ceiling
    }

    fn pause_drawn(&mut self, worked_for: Duration, drawn: u32) -> Duration {
        if worked_for >= self.stable {
            self.ceiling = self.floor;
        }
        let pause = self.ceiling.mul_f64(f64::from(drawn) / f64::from(u32::MAX));
        self.ceiling = self.ceiling.saturating_mul(2).min(self.cap);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEVER: Duration = Duration::ZERO;

    #[test]
    fn pauses_double_from_the_floor_to_the_cap_and_stay_there() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(10), Duration::from_secs(30));
        let longest: Vec<u64> = (0..6).map(|_| backoff.pause_drawn(NEVER, u32::MAX).as_secs()).collect();
        assert_eq!(longest, [1, 2, 4, 8, 10, 10]);
    }

    #[test]
    fn a_short_success_does_not_reset_and_a_stable_one_does() {
        let mut backoff = Backoff::default();
        for _ in 0..10 {
            backoff.pause_drawn(NEVER, 0);
        }
        assert_eq!(backoff.pause_drawn(STABLE - Duration::from_millis(1), u32::MAX), CAP);
        assert_eq!(backoff.pause_drawn(STABLE, u32::MAX), FLOOR);
    }

    #[test]
    fn jitter_spreads_over_the_whole_range() {
        let mut backoff = Backoff::new(CAP, CAP, STABLE);
        let pauses: Vec<Duration> = (0..200).map(|_| backoff.pause(NEVER)).collect();
        assert!(pauses.iter().all(|pause| *pause <= CAP));
        // Each fails once in 2^200 runs.
        assert!(pauses.iter().any(|pause| *pause < CAP / 2));
        assert!(pauses.iter().any(|pause| *pause > CAP / 2));
    }
}
