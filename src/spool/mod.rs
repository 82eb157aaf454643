//! The durable queue: append-only, encrypted logs. It knows bytes, not hospitals.
//!
//! (format document follows)

use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use tokio::sync::Semaphore;

use crate::envelope::{BodyError, Class, Envelope, MessageId, Meta, Stamp};
use crate::status::{Alarm, LaneStatus, LogStatus};
use crate::values::{ByteSize, Name, Problems, SecretRef, Section, Span};

/// `[spool]`: where the logs live, their key, and how large each may grow.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SpoolConfig {
    /// The folder; made with mode 0700 when it is not there.
    pub path: PathBuf,
    /// The root key.
    pub key: SecretRef,
    /// age recipients who can read the disk of a dead box.
    #[serde(default)]
    pub recovery: Vec<String>,
    /// How long a second copy is recognised, counted in uptime.
    #[serde(default = "default_duplicate_window")]
    pub duplicate_window: Span,
    /// HL7, ASTM.
    #[serde(default)]
    pub clinical: LogConfig,
    /// DICOM.
    #[serde(default)]
    pub imaging: LogConfig,
    /// Device telemetry.
    #[serde(default)]
    pub telemetry: LogConfig,
}

/// `[spool.clinical]`, `[spool.imaging]`, `[spool.telemetry]`.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct LogConfig {
    /// Bytes on disk, all files of this log together.
    pub quota: Option<ByteSize>,
    /// How long delivered originals stay for replay, space permitting.
    pub keep_delivered: Option<Span>,
    /// What happens when the log is full; `drop-oldest` is for telemetry only.
    pub when_full: Option<WhenFull>,
}

/// What a full log does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenFull {
    /// New messages are refused; the device is told.
    Refuse,
    /// The oldest segment is dropped, after a GAP record that says so.
    DropOldest,
}

fn default_duplicate_window() -> Span {
    Span(std::time::Duration::from_secs(600))
}

impl Section for SpoolConfig {
    fn check(&self, _problems: &mut Problems) {}

    fn files(&mut self, visit: &mut dyn FnMut(&mut SecretRef)) {
        visit(&mut self.key);
    }
}

/// Why a message was not committed. The source turns it into its protocol's own words; both are for the device to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// The log has no room; it comes back by itself when messages are delivered.
    #[error("the log is full")]
    Full,
    /// The disk failed; intake is off until a person has looked.
    #[error("the spool has failed")]
    Failed,
}

/// How a commit ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Committed {
    /// On stable storage under this id.
    Stored(MessageId),
    /// A second copy of a message that is on stable storage under this id; not stored again.
    Repeat(MessageId),
}

/// The spool, opened. Cheap to clone.
#[derive(Clone)]
pub struct Spool {}

impl Spool {
    /// Begins a message in one of the logs.
    pub fn begin(&self, class: Class) -> Draft {
        let _ = class;
        todo!()
    }

    /// This moment, in wall clock and uptime.
    pub fn now(&self) -> Stamp {
        todo!()
    }

    /// The budget for bytes in memory on their way in, one permit a byte.
    pub fn budget(&self) -> &Arc<Semaphore> {
        todo!()
    }

    /// The lane from a source to an upstream; made when it is new. One holder at a time.
    pub fn lane(&self, class: Class, source: &Name, upstream: &Name) -> Lane {
        let _ = (class, source, upstream);
        todo!()
    }

    /// All lanes that are known, with what waits in them.
    pub fn lanes(&self) -> Vec<LaneStatus> {
        todo!()
    }

    /// The three logs.
    pub fn logs(&self) -> Vec<LogStatus> {
        todo!()
    }

    /// What a person must see of the spool itself.
    pub fn alarms(&self) -> Vec<Alarm> {
        todo!()
    }
}

/// A message on its way into a log. Dropped without a commit, it never existed.
pub struct Draft {}

impl Draft {
    /// Adds bytes; every 256 KiB a fragment goes into the log. Waits while the writer is behind.
    ///
    /// # Errors
    /// [`CommitError`].
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), CommitError> {
        let _ = bytes;
        todo!()
    }

    /// Bytes so far.
    pub fn len(&self) -> u64 {
        todo!()
    }

    /// Whether nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes it durable: Ok only after the sync.
    ///
    /// # Errors
    /// [`CommitError`]; nothing is stored then.
    pub async fn commit(self, meta: Meta) -> Result<Committed, CommitError> {
        let _ = meta;
        todo!()
    }
}

/// A place in a log: segment's order number and the record's number in it. Order of places is order of commits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Place {
    /// The segment's order number.
    pub segment: u64,
    /// The record's number in its segment.
    pub ordinal: u32,
}

/// What a lane holds at one place.
pub struct Entry {
    /// Where; for [`Lane::advance`] and [`Lane::bury`].
    pub place: Place,
    /// The message, or why it can't be read back.
    pub content: Result<Arc<Envelope>, BodyError>,
}

/// The messages of one source for one upstream, in order, with a cursor that moves on receipts only.
pub struct Lane {}

impl Lane {
    /// The source.
    pub fn source(&self) -> &Name {
        todo!()
    }

    /// The upstream.
    pub fn upstream(&self) -> &Name {
        todo!()
    }

    /// The next entry after the one that was handed out last; waits for one. Cancelling loses nothing.
    pub async fn next(&mut self) -> Entry {
        std::future::pending().await
    }

    /// Back to the first entry after the cursor: what was handed out and not advanced over comes again.
    pub fn rewind(&mut self) {
        todo!()
    }

    /// Moves the cursor over `place` and all before it. In memory at once, in the log with the next group.
    pub fn advance(&mut self, place: Place) {
        let _ = place;
        todo!()
    }

    /// Makes the entry a dead letter: durable when this returns Ok; the caller then advances over it.
    ///
    /// # Errors
    /// [`CommitError`] when the record could not be written; [`CommitError::Full`] also when there are too many dead letters:
    /// the lane then holds.
    pub async fn bury(&mut self, place: Place, reason: &str, attempts: u32) -> Result<(), CommitError> {
        let _ = (place, reason, attempts);
        todo!()
    }
}
