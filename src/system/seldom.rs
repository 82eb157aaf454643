//! Log lines that a stranger could otherwise call forth without end: at most one in a while, with a count of those left out.
//!
//! It only decides whether to speak; what is said stays at the place that says it, and counters count everything.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// One line in so long.
const PAUSE: Duration = Duration::from_secs(60);

/// The right to speak about one kind of thing.
#[derive(Debug, Default)]
pub struct Seldom {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last: Option<Instant>,
    unsaid: u64,
}

impl Seldom {
    /// `Some` when it is time to speak: how many times it was not since the last line.
    pub fn speak(&self) -> Option<u64> {
        self.speak_at(Instant::now())
    }

    /// The same for what was counted already and still waits to be said.
    pub fn speak_yet(&self) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let now = Instant::now();
        if state.last.is_some_and(|last| now.saturating_duration_since(last) < PAUSE) {
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.unsaid).saturating_sub(1))
    }

    fn speak_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if state.last.is_some_and(|last| now.saturating_duration_since(last) < PAUSE) {
            state.unsaid += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_makes_one_line_a_minute_that_counts_the_rest() {
        let (seldom, start) = (Seldom::default(), Instant::now());
        assert_eq!(seldom.speak_at(start), Some(0));
        for second in 1..60 {
            assert_eq!(seldom.speak_at(start + Duration::from_secs(second)), None);
        }
        assert_eq!(seldom.speak_at(start + PAUSE), Some(59));
    }
}
