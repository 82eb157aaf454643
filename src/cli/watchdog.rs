//! The watchdog of systemd, fed by the progress of each stage: the writers of the spool, each source, each forwarder and its lanes.
//!
//! Each stage counts its own turns. Nothing is fed while one of them stands still for longer than the unit's `WatchdogSec=`:
//! systemd then ends the process and starts it anew, which loses nothing that was acknowledged. It must never be fed for any
//! other reason than that it has seen all of them move.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::interval;
use tokio_util::sync::CancellationToken;

use crate::admin::events;
use crate::gateway::Gateway;
use crate::status::{PARTS_STAGE, Turns};
use crate::system::systemd;

/// How long a stage may stand still when no watchdog says it.
const LIMIT_DEFAULT: Duration = Duration::from_secs(60);
/// The parts are out of sight while a configuration is applied, which waits for connections to end: so many limits.
const PARTS_LIMITS: u32 = 10;

/// What was seen of the stages.
struct Watchdog {
    limit: Duration,
    seen: BTreeMap<String, Seen>,
    looked: Option<Instant>,
}

struct Seen {
    turns: u64,
    moved: Instant,
    /// It was said that it stands still.
    told: bool,
}

/// Looks at the stages, and feeds the watchdog while all of them move, until `stop`.
pub async fn feed(gateway: Arc<Gateway>, stop: CancellationToken) {
    let period = systemd::watchdog_period();
    let limit = period.map_or(LIMIT_DEFAULT, |period| period * 2);
    let mut watchdog = Watchdog::new(limit);
    // Twice as often as it must be fed: a stage that stands still is found soon.
    let mut looks = interval(limit / 4);
    let mut told = String::new();
    while stop.run_until_cancelled(looks.tick()).await.is_some() {
        if watchdog.look(gateway.turns(), Instant::now()) {
            systemd::alive();
        }
        if let Some(line) = gateway.headline().filter(|line| *line != told) {
            systemd::status(&line);
            told = line;
        }
    }
}

impl Watchdog {
    fn new(limit: Duration) -> Self {
        Self { limit, seen: BTreeMap::new(), looked: None }
    }

    /// Whether all stages have moved lately. One that has not is named in the log, once.
    fn look(&mut self, turns: Turns, now: Instant) -> bool {
        self.forget(&turns, now);
        let mut well = true;
        for (stage, turns) in turns {
            let limit = if stage == PARTS_STAGE { self.limit * PARTS_LIMITS } else { self.limit };
            let seen = self.seen.entry(stage.clone()).or_insert(Seen { turns, moved: now, told: false });
            if seen.turns != turns {
                if seen.told {
                    tracing::info!(target: events::TARGET, message_id = events::MOVES_AGAIN, wardgate_stage = stage, "{stage} moves again");
                }
                *seen = Seen { turns, moved: now, told: false };
            }
            let still = now.saturating_duration_since(seen.moved);
            if still < limit {
                continue;
            }
            well = false;
            if !seen.told {
                seen.told = true;
                tracing::error!(
                    target: events::TARGET, message_id = events::STANDS_STILL, wardgate_stage = stage, wardgate_still_s = still.as_secs(),
                    "{stage} stands still: the watchdog is not fed, and systemd will start the service anew"
                );
            }
        }
        well
    }

    /// Forgets the stages that are gone. While the parts are out of sight their stages are not there either: those are kept as they were
    /// seen last, and this time does not count. Else a stage that hangs would be a new one after each look that found the parts locked.
    fn forget(&mut self, turns: &Turns, now: Instant) {
        let since = self.looked.replace(now).map_or(Duration::ZERO, |looked| now.saturating_duration_since(looked));
        let looks = self.seen.get(PARTS_STAGE).map(|seen| seen.turns);
        let out_of_sight = looks.is_some() && turns.get(PARTS_STAGE).copied() == looks;
        self.seen.retain(|stage, seen| {
            let here = turns.contains_key(stage);
            if !here {
                seen.moved += since;
            }
            here || out_of_sight
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    fn turns(spool: u64, source: u64) -> Turns {
        Turns::from([("spool clinical".to_owned(), spool), ("source monitors".to_owned(), source)])
    }

    #[test]
    fn one_stage_that_stands_still_is_enough_and_it_is_well_again_when_it_moves() {
        let mut watchdog = Watchdog::new(LIMIT);
        let start = Instant::now();
        assert!(watchdog.look(turns(1, 1), start));
        assert!(watchdog.look(turns(1, 2), start + LIMIT / 2), "it has time");
        assert!(!watchdog.look(turns(1, 3), start + LIMIT), "the spool stands still");
        assert!(!watchdog.look(turns(1, 4), start + LIMIT * 2));
        assert!(watchdog.look(turns(2, 4), start + LIMIT * 2));
    }

    #[test]
    fn a_stage_that_is_gone_is_not_waited_for_and_a_new_one_has_its_time() {
        let mut watchdog = Watchdog::new(LIMIT);
        let start = Instant::now();
        watchdog.look(turns(1, 1), start);
        assert!(watchdog.look(Turns::from([("spool clinical".to_owned(), 2)]), start + LIMIT * 2));
        assert!(watchdog.look(turns(3, 1), start + LIMIT * 2));
    }

    #[test]
    fn a_stage_that_is_out_of_sight_now_and_then_is_still_found_to_stand_still() {
        let mut watchdog = Watchdog::new(LIMIT);
        let start = Instant::now();
        let in_sight = |looks| Turns::from([(PARTS_STAGE.to_owned(), looks), ("source monitors".to_owned(), 7)]);
        let out_of_sight = |looks| Turns::from([(PARTS_STAGE.to_owned(), looks)]);
        assert!(watchdog.look(in_sight(1), start));
        assert!(watchdog.look(in_sight(2), start + LIMIT / 2));
        assert!(watchdog.look(out_of_sight(2), start + LIMIT), "what can't be seen is not judged");
        assert!(watchdog.look(in_sight(3), start + LIMIT), "nor was it seen long enough");
        assert!(watchdog.look(out_of_sight(3), start + LIMIT * 2));
        assert!(watchdog.look(in_sight(4), start + LIMIT * 2), "the time out of sight does not count");
        assert!(
            !watchdog.look(in_sight(5), start + LIMIT * 5 / 2),
            "it was seen at the same turn for as long as the limit"
        );
    }

    #[test]
    fn a_configuration_that_is_applied_has_more_time() {
        let mut watchdog = Watchdog::new(LIMIT);
        let start = Instant::now();
        let parts = || Turns::from([(PARTS_STAGE.to_owned(), 1)]);
        watchdog.look(parts(), start);
        assert!(watchdog.look(parts(), start + LIMIT * 2));
        assert!(!watchdog.look(parts(), start + LIMIT * PARTS_LIMITS));
    }
}
