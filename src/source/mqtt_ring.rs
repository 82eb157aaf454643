//! Messages of QoS 0 that wait for the disk: a ring for each connection, and one limit for the rings of all.
//!
//! QoS 0 has no acknowledgement that could slow its sender down. When more comes than the disk takes, the oldest go: each is counted, and the next
//! record of the stream tells how many are missing. Nothing here waits.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::readings::Reading;

/// Messages in the ring of one connection.
const MESSAGES_MAX: usize = 256;
/// Their bytes.
const BYTES_MAX: usize = 256 << 10;
/// Bytes in all rings of a source.
const ALL_BYTES_MAX: usize = 4 << 20;

/// A message that waits, and about how many bytes it holds.
struct Held {
    reading: Reading,
    bytes: usize,
}

/// See the module.
pub(super) struct Ring {
    held: VecDeque<Held>,
    bytes: usize,
    all: Arc<AtomicUsize>,
}

impl Ring {
    /// An empty one. `all` counts the bytes in the rings of the source.
    pub(super) fn new(all: Arc<AtomicUsize>) -> Self {
        Self { held: VecDeque::new(), bytes: 0, all }
    }

    /// Adds a message; returns how many were dropped for it, itself perhaps among them.
    pub(super) fn push(&mut self, reading: Reading, bytes: usize) -> u64 {
        let mut dropped = 0;
        loop {
            let fits = self.held.len() < MESSAGES_MAX && (self.bytes + bytes <= BYTES_MAX || self.held.is_empty());
            if fits && self.all.fetch_add(bytes, Ordering::Relaxed) + bytes <= ALL_BYTES_MAX {
                self.bytes += bytes;
                self.held.push_back(Held { reading, bytes });
                return dropped;
            }
            if fits {
                self.all.fetch_sub(bytes, Ordering::Relaxed);
            }
            dropped += 1;
            if self.pop().is_none() {
                return dropped;
            }
        }
    }

    /// Bytes of the one that has waited longest.
    pub(super) fn front_bytes(&self) -> Option<usize> {
        self.held.front().map(|held| held.bytes)
    }

    /// The one that has waited longest.
    pub(super) fn pop(&mut self) -> Option<Reading> {
        let Held { reading, bytes } = self.held.pop_front()?;
        self.bytes -= bytes;
        self.all.fetch_sub(bytes, Ordering::Relaxed);
        if self.held.is_empty() {
            // An idle client holds nothing.
            self.held = VecDeque::new();
        }
        Some(reading)
    }

    /// Messages that wait.
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::record::Raw;

    fn reading(number: usize) -> Reading {
        Reading { raw: Some(Raw::Text(number.to_string())), ..Reading::default() }
    }

    #[test]
    fn a_full_ring_loses_its_oldest_and_says_how_many() {
        let all = Arc::<AtomicUsize>::default();
        let mut ring = Ring::new(Arc::clone(&all));
        let dropped: u64 = (0..MESSAGES_MAX + 10).map(|number| ring.push(reading(number), 100)).sum();
        assert_eq!((dropped, ring.len(), ring.pop()), (10, MESSAGES_MAX, Some(reading(10))));
        assert_eq!(ring.push(reading(0), BYTES_MAX - 100), MESSAGES_MAX as u64 - 2);
        assert_eq!(all.load(Ordering::Relaxed), BYTES_MAX);
        drop(ring);
        assert_eq!(all.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn when_the_rings_of_others_hold_all_that_there_is_the_new_one_goes() {
        let all = Arc::new(AtomicUsize::new(ALL_BYTES_MAX - 50));
        let mut ring = Ring::new(Arc::clone(&all));
        assert_eq!((ring.push(reading(1), 100), ring.len()), (1, 0));
        assert_eq!((ring.push(reading(2), 50), ring.front_bytes()), (0, Some(50)));
        assert_eq!(ring.push(reading(3), 40), 1, "its own oldest makes room");
        assert_eq!((ring.pop(), ring.pop()), (Some(reading(3)), None));
        assert_eq!(all.load(Ordering::Relaxed), ALL_BYTES_MAX - 50);
    }
}
