//! Who is on its way: of messages with the same id of the device's own, one at a time, in the order in which they came.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Why a message that came with an id known already, and with other bytes, is not taken: what is kept under that id may be the former one.
pub(super) const ANOTHER_IS_KEPT: &str = "it keeps an instance that came before with this UID: the former one, or this one from a try \
     whose answer was lost; let its owner compare, and where it is the former one remove it and retry this, or the device send this one \
     with a UID of its own";

/// The ids that are on their way.
#[derive(Clone, Default)]
pub(super) struct Flights(Arc<Inner>);

/// Those that wait behind the one that is on its way, of each id.
type Lines = HashMap<Vec<u8>, VecDeque<oneshot::Sender<Flight>>>;

#[derive(Default)]
struct Inner {
    lines: Mutex<Lines>,
}

/// An id is on its way until this is dropped.
pub(super) struct Flight {
    id: Vec<u8>,
    flights: Arc<Inner>,
}

/// When a flight may begin.
pub(super) enum Turn {
    /// Nothing else with its id is on its way.
    Now(Flight),
    /// After those before it.
    Later(Waiting),
}

/// A place in a line; given up when it is dropped.
pub(super) struct Waiting(oneshot::Receiver<Flight>);

impl Flights {
    /// Takes a place behind all with this id that came before. Messages without an id do not wait for each other.
    pub(super) fn queue(&self, id: &[u8]) -> Turn {
        let mut lines = self.0.locked();
        match lines.get_mut(id) {
            Some(line) => {
                let (turn, waiting) = oneshot::channel();
                line.push_back(turn);
                Turn::Later(Waiting(waiting))
            }
            None => {
                if !id.is_empty() {
                    lines.insert(id.to_owned(), VecDeque::new());
                }
                Turn::Now(Flight { id: id.to_owned(), flights: Arc::clone(&self.0) })
            }
        }
    }

    /// Waits until nothing else with this id is on its way.
    pub(super) async fn begin(&self, id: &[u8]) -> Flight {
        match self.queue(id) {
            Turn::Now(flight) => flight,
            Turn::Later(waiting) => waiting.turn().await,
        }
    }
}

impl Waiting {
    /// Waits for its turn.
    pub(super) async fn turn(self) -> Flight {
        // Unwrap safety: a line lives as long as its first flight, which hands itself on to the next.
        #[allow(clippy::unwrap_used)]
        self.0.await.unwrap()
    }
}

impl Inner {
    fn locked(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who comes next and still wants to; without any the line ends.
    fn next(&self, id: &[u8]) -> Option<oneshot::Sender<Flight>> {
        let mut lines = self.locked();
        let line = lines.get_mut(id)?;
        let next = std::iter::from_fn(|| line.pop_front()).find(|waiting| !waiting.is_closed());
        if next.is_none() {
            lines.remove(id);
        }
        next
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if let Some(next) = self.flights.next(&self.id) {
            let flight = Self { id: std::mem::take(&mut self.id), flights: Arc::clone(&self.flights) };
            // One that gives up in this very moment hands it on as it drops it.
            drop(next.send(flight));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn two_with_one_id_are_never_on_their_way_together() {
        let flights = Flights::default();
        let first = flights.begin(b"1.2.3").await;
        let other = flights.begin(b"1.2.4").await;
        let mut second = std::pin::pin!(flights.begin(b"1.2.3"));
        assert!(futures_pending(second.as_mut()).await);
        drop(other);
        assert!(futures_pending(second.as_mut()).await, "that was another");
        drop(first);
        second.await;
    }

    #[tokio::test]
    async fn those_with_one_id_go_in_the_order_in_which_they_came_but_for_who_gave_up() {
        let flights = Flights::default();
        let first = flights.begin(b"1.2.3").await;
        let [second, third, fourth] = [(); 3].map(|()| match flights.queue(b"1.2.3") {
            Turn::Now(_) => panic!("the first is on its way"),
            Turn::Later(waiting) => waiting,
        });
        let mut fourth = std::pin::pin!(fourth.turn());
        drop(second);
        drop(first);
        assert!(futures_pending(fourth.as_mut()).await, "it is the third's turn");
        // It was given its turn and never took it.
        drop(third);
        drop(fourth.await);
        assert!(flights.0.locked().is_empty());
    }

    #[tokio::test]
    async fn those_without_an_id_do_not_wait() {
        let flights = Flights::default();
        let _first = flights.begin(b"").await;
        flights.begin(b"").await;
    }

    async fn futures_pending<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> bool {
        tokio::select! {
            biased;
            _ = future => false,
            () = tokio::task::yield_now() => true,
        }
    }
}
