//! The sign of life of a task: it beats as long as the task is run and nothing in it blocks.
//!
//! The beat is given by the very task that does the work, between two steps of it: a task beside it would go on beating for a
//! dead one.

use std::pin::pin;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

/// How often a stage shows that it moves, at least.
pub const BEAT: Duration = Duration::from_secs(1);

/// Does `work`, and calls `beat` at once and then every [`BEAT`] while it goes on.
pub async fn beating<F: Future>(work: F, beat: impl Fn()) -> F::Output {
    let mut work = pin!(work);
    let mut ticks = interval(BEAT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            _ = ticks.tick() => beat(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_beats_while_the_work_waits_and_ends_with_it() {
        let beats = AtomicU32::new(0);
        let work = async {
            tokio::time::sleep(BEAT * 5 + BEAT / 2).await;
            7
        };
        assert_eq!(beating(work, || drop(beats.fetch_add(1, Ordering::Relaxed))).await, 7);
        assert_eq!(beats.into_inner(), 6);
    }
}
