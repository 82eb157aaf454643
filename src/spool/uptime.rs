//! The spool's own clock: milliseconds in service, monotonic and kept over restarts.
//!
//! Windows, retention and ages count with it, because the wall clock of a box may be wrong by years and may jump. It stands
//! still while the box is off. The wall clock is only data, with its quality beside it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::envelope::Stamp;
use crate::system::clock;

/// Uptime, counted on from where the log ended.
pub struct Uptime {
    base_ms: AtomicU64,
    started: Instant,
}

impl Uptime {
    /// Begins at `base_ms`, the greatest uptime that the log knows.
    pub fn new(base_ms: u64) -> Self {
        Self { base_ms: AtomicU64::new(base_ms), started: Instant::now() }
    }

    /// Goes on from `base_ms` when that is later: another log knew of a later time.
    pub fn at_least(&self, base_ms: u64) {
        self.base_ms.fetch_max(base_ms, Ordering::Relaxed);
    }

    /// Milliseconds in service.
    pub fn ms(&self) -> u64 {
        let running = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.base_ms.load(Ordering::Relaxed).saturating_add(running)
    }

    /// This moment.
    pub fn stamp(&self) -> Stamp {
        let wall = clock::wall();
        Stamp { wall_us: wall.us, synchronised: wall.synchronised, uptime_ms: self.ms() }
    }
}
