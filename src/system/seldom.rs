//! Log lines that a stranger could otherwise call forth without end: at most one in a while, with a count of those left out.
//!
//! It only decides whether to speak; what is said stays at the place that says it, and counters count everything.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// One line in so long.
const PAUSE: Duration = Duration::from_secs(60);
/// Things that are spoken about on their own: more would be a way to fill memory, and the log.
const EACH_MAX: usize = 64;

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
        let mut state = whole(&self.state);
        let now = Instant::now();
        if state.is_too_soon(now) {
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.unsaid).saturating_sub(1))
    }

    fn speak_at(&self, now: Instant) -> Option<u64> {
        whole(&self.state).speak(now)
    }
}

impl State {
    fn is_too_soon(&self, now: Instant) -> bool {
        self.last.is_some_and(|last| now.saturating_duration_since(last) < PAUSE)
    }

    fn speak(&mut self, now: Instant) -> Option<u64> {
        if self.is_too_soon(now) {
            self.unsaid += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }
}

/// The right to speak about several things of one kind, so that one does not silence another. [`EACH_MAX`] of them at a time; those
/// beyond share one.
#[derive(Debug)]
pub struct SeldomEach<K> {
    each: Mutex<HashMap<K, State>>,
    others: Seldom,
}

impl<K> Default for SeldomEach<K> {
    fn default() -> Self {
        Self { each: Mutex::default(), others: Seldom::default() }
    }
}

impl<K: Eq + Hash> SeldomEach<K> {
    /// `Some` when it is time to speak about this one: how many times it was not since the last line.
    pub fn speak(&self, about: K) -> Option<u64> {
        self.speak_at(about, Instant::now())
    }

    fn speak_at(&self, about: K, now: Instant) -> Option<u64> {
        let mut each = whole(&self.each);
        if each.len() >= EACH_MAX && !each.contains_key(&about) {
            let mut lost = 0;
            each.retain(|_, state| {
                let stays = state.is_too_soon(now);
                lost += if stays { 0 } else { state.unsaid };
                stays
            });
            whole(&self.others.state).unsaid += lost;
            if each.len() >= EACH_MAX {
                return self.others.speak_at(now);
            }
        }
        each.entry(about).or_default().speak(now)
    }
}

fn whole<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
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

    #[test]
    fn one_thing_does_not_silence_another_and_very_many_make_few_lines() {
        let (seldom, start) = (SeldomEach::default(), Instant::now());
        assert_eq!(seldom.speak_at(("ct", 1), start), Some(0));
        assert_eq!(seldom.speak_at(("ct", 1), start), None);
        assert_eq!(seldom.speak_at(("ct", 2), start), Some(0), "the same for another reason");
        assert_eq!(seldom.speak_at(("mr", 1), start), Some(0));
        let said = (3..10_000).filter(|number| seldom.speak_at(("scan", *number), start).is_some()).count();
        assert_eq!(said, EACH_MAX - 3 + 1);
        assert_eq!(whole(&seldom.each).len(), EACH_MAX);
        assert_eq!(seldom.speak_at(("ct", 1), start + PAUSE), Some(1), "it is still known");
        assert_eq!(seldom.speak_at(("us", 1), start + PAUSE), Some(0), "the old ones made room");
        assert_eq!(whole(&seldom.each).len(), 2);
    }
}
