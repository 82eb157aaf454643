//! What a source sees of the spool: begin a message, write its bytes as they come, commit it.
//!
//! An [`Intake`] belongs to one source. It knows the source's routes (targets are decided at commit), counts, and holds the
//! one budget for the bytes in flight of all connections. It never acknowledges: that is the source's part, after commit.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::envelope::{Class, Flags, Meta, Stamp};
use crate::spool::{CommitError, Committed, Draft, IN_FLIGHT_BYTES_MAX, Spool};
use crate::status::SourceCounters;
use crate::values::Name;

/// A source's way into the spool. Cheap to clone: one for each connection.
#[derive(Clone)]
pub struct Intake {
    inner: Arc<Inner>,
}

struct Inner {
    source: Name,
    protocol: &'static str,
    class: Class,
    spool: Spool,
    targets: watch::Receiver<Arc<[Name]>>,
    counters: Arc<SourceCounters>,
    budget: Arc<Semaphore>,
}

/// What the protocol's reader found out about a message, by the time it commits.
pub struct About {
    /// Media type, with charset where the device named one.
    pub content_type: String,
    /// The device's own id of the message, verbatim; empty where it has none.
    pub control_id: Vec<u8>,
    /// What was noticed.
    pub flags: Flags,
}

impl Intake {
    /// The intake of one source. `budget` is shared by all sources and counts bytes.
    pub fn new(
        source: Name,
        protocol: &'static str,
        class: Class,
        spool: Spool,
        targets: watch::Receiver<Arc<[Name]>>,
    ) -> Self {
        let budget = Arc::clone(spool.budget());
        let counters = Arc::default();
        Self { inner: Arc::new(Inner { source, protocol, class, spool, targets, counters, budget }) }
    }

    /// The source's name.
    pub fn source(&self) -> &Name {
        &self.inner.source
    }

    /// What the source counts.
    pub fn counters(&self) -> &Arc<SourceCounters> {
        &self.inner.counters
    }

    /// The present uptime, milliseconds.
    pub fn uptime_ms(&self) -> u64 {
        self.inner.spool.now().uptime_ms
    }

    /// Waits until `bytes` more may be held in memory; they are given back when the permit is dropped.
    pub async fn reserve(&self, bytes: usize) -> OwnedSemaphorePermit {
        let count = u32::try_from(bytes.min(IN_FLIGHT_BYTES_MAX)).unwrap_or(u32::MAX);
        // Unwrap safety: the semaphore lives as long as the spool and is never closed.
        #[allow(clippy::unwrap_used)]
        Arc::clone(&self.inner.budget).acquire_many_owned(count).await.unwrap()
    }

    /// Begins a message; its time of reception is now.
    pub fn begin(&self) -> Incoming {
        let inner = &self.inner;
        Incoming {
            intake: self.clone(),
            draft: inner.spool.begin(inner.class, &inner.source),
            received: inner.spool.now(),
        }
    }
}

/// A message that is arriving. Dropped without a commit, it never existed.
pub struct Incoming {
    intake: Intake,
    draft: Draft,
    received: Stamp,
}

impl Incoming {
    /// Adds bytes; long bodies go to disk in fragments meanwhile. Waits when the disk is slower than the device.
    ///
    /// # Errors
    /// [`CommitError`] when the log is full or has failed; the message is then lost to us and the device must be told.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), CommitError> {
        self.draft.write(bytes).await
    }

    /// Bytes so far.
    pub fn len(&self) -> u64 {
        self.draft.len()
    }

    /// Whether nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes a request durable that this box itself must answer later (a DICOM storage commitment): it waits for `upstream`, whatever the
    /// routes say, and does not count as a message of the device.
    ///
    /// # Errors
    /// [`CommitError`] when the log is full or has failed; nothing is stored then.
    pub async fn commit_for(self, upstream: Name, about: About) -> Result<Committed, CommitError> {
        let meta = self.meta(vec![upstream], about);
        self.draft.commit(meta).await
    }

    fn meta(&self, targets: Vec<Name>, about: About) -> Meta {
        let inner = &self.intake.inner;
        Meta {
            source: inner.source.clone(),
            protocol: inner.protocol.to_owned(),
            content_type: about.content_type,
            control_id: about.control_id,
            targets,
            flags: about.flags,
            received: self.received,
        }
    }

    /// Makes the message durable. Ok means: on stable storage, encrypted, with its targets; it may be acknowledged.
    ///
    /// # Errors
    /// [`CommitError`] when the log is full or has failed; nothing is stored then.
    pub async fn commit(self, about: About) -> Result<Committed, CommitError> {
        let inner = &self.intake.inner;
        let counters = &inner.counters;
        let (length, flagged) = (self.draft.len(), about.flags != Flags::default());
        let targets = inner.targets.borrow().to_vec();
        let meta = self.meta(targets, about);
        counters.received.one();
        counters.received_bytes.add(length);
        counters.last_seen_ms.set(i64::try_from(self.received.uptime_ms).unwrap_or(i64::MAX));
        let outcome = self.draft.commit(meta).await;
        match &outcome {
            Ok(Committed::Stored(_) | Committed::Differing(_)) => counters.stored.one(),
            Ok(Committed::Repeat(_)) => counters.repeats.one(),
            Err(_) => counters.refused.one(),
        }
        if outcome.is_ok_and(|how| flagged || matches!(how, Committed::Differing(_))) {
            counters.flagged.one();
        }
        outcome
    }
}
