//! The one budget of the bytes in flight: what all connections together may hold in memory before the spool has taken it.
//!
//! Only numbers: who takes which share, and when it is given back, is decided in [`crate::source::intake`]. Messages that have not
//! wholly arrived may hold parts of it only, because their senders can stall: what is left is for those that have.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// Bytes that all connections together may hold in memory before the spool has taken them.
pub const IN_FLIGHT_BYTES_MAX: usize = 8 << 20;
/// Of these, what bodies may hold that are streamed and have not wholly arrived.
pub const STREAMED_BYTES_MAX: usize = IN_FLIGHT_BYTES_MAX / 2;
/// Of these, what bodies may hold that are gathered and have not wholly arrived.
pub const GATHERED_BYTES_MAX: usize = IN_FLIGHT_BYTES_MAX / 4;

/// The budget of one spool; a permit is a byte.
#[derive(Clone)]
pub struct InFlight {
    /// All of it.
    pub all: Arc<Semaphore>,
    /// See [`STREAMED_BYTES_MAX`]; taken beside the same bytes of `all`, and before them.
    pub streamed: Arc<Semaphore>,
    /// See [`GATHERED_BYTES_MAX`]; taken likewise.
    pub gathered: Arc<Semaphore>,
}

impl Default for InFlight {
    fn default() -> Self {
        let of = |bytes| Arc::new(Semaphore::new(bytes));
        Self { all: of(IN_FLIGHT_BYTES_MAX), streamed: of(STREAMED_BYTES_MAX), gathered: of(GATHERED_BYTES_MAX) }
    }
}
