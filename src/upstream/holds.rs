//! What a person sees and decides about lanes that do not move: the reason, and whether to try again or to set the message aside.
//!
//! A lane never waits in silence: whatever keeps its first message from being delivered stands here until it was
//! delivered or buried. Reasons hold no patient data.

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

/// The lanes of one upstream that do not move, by source. Shared by the forwarder, the status and the admin side.
#[derive(Default)]
pub struct Holds {
    lanes: Mutex<BTreeMap<Name, Hold>>,
    decided: Notify,
}

struct Hold {
    reason: String,
    for_a_person: bool,
    decision: Option<Decision>,
}

impl Holds {
    /// Why the lane from `source` does not move, if it does not.
    pub fn reason(&self, source: &Name) -> Option<String> {
        self.locked().get(source).map(|hold| hold.reason.clone())
    }

    /// Decides about a lane that waits for a person; false when it does not (any more).
    pub fn decide(&self, source: &Name, decision: Decision) -> bool {
        let mut lanes = self.locked();
        let Some(hold) = lanes.get_mut(source).filter(|hold| hold.for_a_person) else {
            return false;
        };
        hold.decision = Some(decision);
        self.decided.notify_waiters();
        true
    }

    /// The lane waits and will go on by itself.
    pub(super) fn waits(&self, source: &Name, reason: String) {
        let hold = Hold { reason, for_a_person: false, decision: None };
        self.locked().insert(source.clone(), hold);
    }

    /// The lane waits for a person's decision; a decision that is already there is kept.
    pub(super) async fn wait_for_a_person(&self, source: &Name, reason: &str) -> Decision {
        loop {
            // Registered before the look, so that a decision between look and wait is not missed.
            let mut decided = std::pin::pin!(self.decided.notified());
            decided.as_mut().enable();
            if let Some(decision) = self.look(source, reason) {
                return decision;
            }
            decided.await;
        }
    }

    /// The lane moves.
    pub(super) fn moves(&self, source: &Name) {
        self.locked().remove(source);
    }

    fn look(&self, source: &Name, reason: &str) -> Option<Decision> {
        let mut lanes = self.locked();
        match lanes.get_mut(source).filter(|hold| hold.for_a_person) {
            Some(hold) => hold.decision.take(),
            None => {
                let hold = Hold { reason: reason.to_owned(), for_a_person: true, decision: None };
                lanes.insert(source.clone(), hold);
                None
            }
        }
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<Name, Hold>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
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
            async move { holds.wait_for_a_person(&source, "AE").await }
        });
        while holds.reason(&source).is_none() {
            tokio::task::yield_now().await;
        }
        assert!(holds.decide(&source, Decision::DeadLetter));
        assert_eq!(waiting.await.unwrap(), Decision::DeadLetter);
    }
}
