//! Who is on its way: of messages with the same id of the device's own, one at a time.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

/// The ids that are on their way.
#[derive(Clone, Default)]
pub(super) struct Flights(Arc<Inner>);

#[derive(Default)]
struct Inner {
    ids: Mutex<HashSet<Vec<u8>>>,
    ended: Notify,
}

/// An id is on its way until this is dropped.
pub(super) struct Flight {
    id: Vec<u8>,
    flights: Arc<Inner>,
}

impl Flights {
    /// Waits until nothing else with this id is on its way. Messages without an id do not wait for each other.
    pub(super) async fn begin(&self, id: &[u8]) -> Flight {
        loop {
            // Listens before it looks, so that an end in between is heard.
            let ended = self.0.ended.notified();
            let mut ended = std::pin::pin!(ended);
            ended.as_mut().enable();
            if id.is_empty() || self.0.ids.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned()) {
                return Flight { id: id.to_owned(), flights: Arc::clone(&self.0) };
            }
            ended.await;
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.flights.ids.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
        self.flights.ended.notify_waiters();
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
