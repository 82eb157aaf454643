//! Which lanes of an upstream wait for a person, and what the person decided.
//!
//! Why a lane stands still is shown by the spool with the lane itself; here is only the way back: "try again" or "set the message
//! aside". A decision is taken once.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::values::Name;

/// What a person decides about a lane that is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// The cause is gone: send the message again, with all its attempts.
    Retry,
    /// Make the message a dead letter and go on with the next.
    DeadLetter,
}

/// The lanes of one upstream that wait for a person, by source. Shared by the forwarder and the admin side.
#[derive(Default)]
pub struct Holds {
    lanes: Mutex<BTreeMap<Name, Option<Decision>>>,
    decided: Notify,
}

impl Holds {
    /// Decides about the lane from `source`; false when it does not wait for a person (any more).
    pub fn decide(&self, source: &Name, decision: Decision) -> bool {
        let mut lanes = self.locked();
        let Some(hold) = lanes.get_mut(source) else { return false };
        *hold = Some(decision);
        self.decided.notify_waiters();
        true
    }

    /// The sources whose lanes wait for a person.
    pub fn waiting(&self) -> Vec<Name> {
        self.locked().iter().filter(|(_, decision)| decision.is_none()).map(|(source, _)| source.clone()).collect()
    }

    /// Waits for a person's decision about the lane from `source`. Cancelling ends the hold.
    pub(super) async fn decision(&self, source: &Name) -> Decision {
        self.locked().entry(source.clone()).or_default();
        let _held = Held { holds: self, source };
        loop {
            // Registered before the look, so that a decision between look and wait is not missed.
            let mut decided = std::pin::pin!(self.decided.notified());
            decided.as_mut().enable();
            let decision = self.locked().get_mut(source).and_then(Option::take);
            match decision {
                Some(decision) => return decision,
                None => decided.await,
            }
        }
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<Name, Option<Decision>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A lane is held as long as this lives.
struct Held<'a> {
    holds: &'a Holds,
    source: &'a Name,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.holds.locked().remove(self.source);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test]
    async fn a_held_lane_goes_on_when_a_person_decides() {
        let (holds, source) = (Arc::new(Holds::default()), "icu".parse::<Name>().unwrap());
        assert!(!holds.decide(&source, Decision::Retry), "nothing is held");
        let waiting = tokio::spawn({
            let (holds, source) = (Arc::clone(&holds), source.clone());
            async move { holds.decision(&source).await }
        });
        while holds.waiting() != [source.clone()] {
            tokio::task::yield_now().await;
        }
        assert!(holds.decide(&source, Decision::DeadLetter) && holds.waiting().is_empty());
        assert_eq!(waiting.await.unwrap(), Decision::DeadLetter);
        assert!(!holds.decide(&source, Decision::Retry), "it is decided");
    }
}
