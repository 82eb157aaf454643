//! Messages of one MQTT client on their way to the disk: committed together, told of in the order in which they came.
//!
//! Each is on its way when it comes here, a long one when it is first polled, in its turn; only the front is waited for after that. So a client
//! with many messages in flight shares syncs, and its acknowledgements keep the order that the standard asks for (MQTT-4.6.0-2, -3). Nothing is told of before its
//! own commit has ended.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::readings::Put;
use crate::spool::CommitError;
use crate::wire::mqtt_answer::Reason;

/// What waits for the end of a flight.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Waiting {
    /// Nobody.
    Nobody,
    /// A PUBACK for this packet id.
    Puback(u16),
    /// A PUBREC for this packet id.
    Pubrec(u16),
}

/// How a flight ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Landing {
    /// On stable storage.
    Stored,
    /// Never sent: what the client is told.
    Refused(Reason),
    /// It could not be stored.
    Failed(CommitError),
}

struct Flight {
    waiting: Waiting,
    state: State,
}

enum State {
    Commit(Put),
    Landed(Landing),
}

/// See the module.
#[derive(Default)]
pub(super) struct Flights {
    queue: VecDeque<Flight>,
    /// How many at the end were not polled yet.
    unstarted: usize,
    /// How many have somebody waiting.
    waited_for: usize,
}

impl Flights {
    /// Sends one off.
    pub(super) fn push(&mut self, waiting: Waiting, commit: Put) {
        self.unstarted += 1;
        self.add(waiting, State::Commit(commit));
    }

    /// Lets a refusal take its place in the order.
    pub(super) fn refuse(&mut self, waiting: Waiting, reason: Reason) {
        self.unstarted += 1;
        self.add(waiting, State::Landed(Landing::Refused(reason)));
    }

    fn add(&mut self, waiting: Waiting, state: State) {
        self.waited_for += usize::from(waiting != Waiting::Nobody);
        self.queue.push_back(Flight { waiting, state });
    }

    /// All that are under way.
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Those that somebody waits for.
    pub(super) fn waited_for(&self) -> usize {
        self.waited_for
    }

    /// Waits until the front has landed and takes it, with those behind it that have landed too, into `landed`. Never ends while there are none.
    /// May be dropped at any time.
    pub(super) async fn land(&mut self, landed: &mut Vec<(Waiting, Landing)>) {
        poll_fn(|context| self.poll_land(context, landed)).await;
    }

    fn poll_land(&mut self, context: &mut Context<'_>, landed: &mut Vec<(Waiting, Landing)>) -> Poll<()> {
        let started = self.queue.len() - self.unstarted;
        for flight in self.queue.iter_mut().skip(started).filter(|flight| flight.must_be_polled()) {
            flight.poll(context);
        }
        self.unstarted = 0;
        while let Some(front) = self.queue.front_mut() {
            let Some(landing) = front.poll(context) else { break };
            landed.push((front.waiting, landing));
            self.waited_for -= usize::from(front.waiting != Waiting::Nobody);
            self.queue.pop_front();
        }
        if self.queue.is_empty() {
            // An idle client holds nothing.
            self.queue = VecDeque::new();
        }
        if landed.is_empty() { Poll::Pending } else { Poll::Ready(()) }
    }
}

impl Flight {
    fn must_be_polled(&self) -> bool {
        matches!(&self.state, State::Commit(commit) if commit.must_be_polled())
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Option<Landing> {
        if let State::Commit(commit) = &mut self.state
            && let Poll::Ready(outcome) = Pin::new(commit).poll(context)
        {
            self.state = State::Landed(match outcome {
                Ok(_) => Landing::Stored,
                Err(error) => Landing::Failed(error),
            });
        }
        match &self.state {
            State::Landed(landing) => Some(*landing),
            State::Commit(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::envelope::MessageId;
    use crate::spool::Committed;

    fn commit() -> (Put, oneshot::Sender<Result<Committed, CommitError>>) {
        let (end, ended) = oneshot::channel::<Result<Committed, CommitError>>();
        (Put::of(async { ended.await.unwrap() }), end)
    }

    #[tokio::test]
    async fn what_is_stored_first_waits_for_what_came_first() {
        let (mut flights, mut landed) = (Flights::default(), Vec::new());
        let (first, end_first) = commit();
        let (second, end_second) = commit();
        flights.push(Waiting::Puback(1), first);
        flights.push(Waiting::Nobody, second);
        flights.refuse(Waiting::Puback(3), Reason::BadTopic);
        assert_eq!((flights.len(), flights.waited_for()), (3, 2));
        end_second.send(Ok(Committed::Stored(MessageId([0; 16])))).unwrap();
        tokio::select! {
            biased;
            () = flights.land(&mut landed) => panic!("out of order"),
            () = tokio::task::yield_now() => {}
        }
        end_first.send(Err(CommitError::Full)).unwrap();
        flights.land(&mut landed).await;
        let expected = [
            (Waiting::Puback(1), Landing::Failed(CommitError::Full)),
            (Waiting::Nobody, Landing::Stored),
            (Waiting::Puback(3), Landing::Refused(Reason::BadTopic)),
        ];
        assert_eq!((landed.as_slice(), flights.len(), flights.waited_for()), (&expected[..], 0, 0));
    }
}
