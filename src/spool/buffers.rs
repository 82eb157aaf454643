//! Buffers of pieces of long bodies, kept for the next ones: fresh memory costs a page fault for each 4 KiB, which is more than the
//! bytes cost that are put there.

use std::sync::{Mutex, PoisonError};

/// Buffers that are kept at most: 2 MiB.
const KEPT_MAX: usize = 8;

/// See the module.
#[derive(Default)]
pub struct Buffers(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    kept: Vec<Vec<u8>>,
    /// One was asked for since the last look.
    wanted: bool,
}

impl Buffers {
    /// An empty buffer of `capacity` or more, when one is kept.
    pub fn take(&self, capacity: usize) -> Option<Vec<u8>> {
        let mut inner = self.inner();
        inner.wanted = true;
        inner.kept.pop().filter(|buffer| buffer.capacity() >= capacity)
    }

    /// Keeps a buffer that is used no more, when it has room for `capacity` bytes and not many are kept.
    pub fn give(&self, mut buffer: Vec<u8>, capacity: usize) {
        if buffer.capacity() >= capacity {
            let mut inner = self.inner();
            if inner.kept.len() < KEPT_MAX {
                buffer.clear();
                inner.kept.push(buffer);
            }
        }
    }

    /// Lets all go when none was asked for since the last call.
    pub fn rest(&self) {
        let mut inner = self.inner();
        if !std::mem::take(&mut inner.wanted) {
            inner.kept = Vec::new();
        }
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_empty_until_nobody_asks_any_more() {
        let buffers = Buffers::default();
        buffers.give(vec![1; 100], 100);
        assert_eq!(buffers.take(100).map(|buffer| (buffer.len(), buffer.capacity())), Some((0, 100)));
        assert!(buffers.take(100).is_none());
        buffers.give(vec![1; 99], 100);
        assert!(buffers.take(1).is_none(), "too small to be kept");
        buffers.give(vec![1; 100], 100);
        buffers.rest();
        assert!(buffers.take(100).is_some_and(|buffer| buffer.is_empty()), "somebody asked");
        buffers.give(vec![1; 100], 100);
        buffers.rest();
        buffers.rest();
        assert!(buffers.take(100).is_none());
        (0..20).for_each(|_| buffers.give(vec![1; 100], 100));
        assert_eq!((0..20).filter_map(|_| buffers.take(100)).count(), KEPT_MAX);
    }
}
