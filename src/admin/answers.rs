//! What the running service answers over the control socket.
//!
//! No answer holds patient data: a dead letter is shown by id, reason and sizes, never by control id or content. That messages are a
//! patient's is told to those only who know the patient's number and may change things (`spool-find`). Content leaves only as the `data` lines of `dead-body`, a change, and of `spool-export`, sealed to its recipients.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::ids::IdPattern;
use crate::envelope::{Class, MessageId, Stamp};
use crate::status::{LaneStatus, LogStatus};
use crate::values::{Name, ValueError};

/// A message that an upstream refused for good: kept until someone retries or discards it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DeadLetter {
    /// Which message.
    #[serde(with = "as_text")]
    pub id: MessageId,
    /// The log that holds it.
    pub log: Class,
    /// Where it came from.
    pub source: Name,
    /// Who refused it.
    pub upstream: Name,
    /// Why, in the upstream's words, without content.
    pub reason: String,
    /// How often it was tried.
    pub attempts: u32,
    /// When it was received.
    pub received: When,
    /// When it was given up.
    pub given_up: When,
    /// Length of its body.
    pub bytes: u64,
    /// Media type.
    pub content_type: String,
    /// What was noticed when it was received.
    pub flags: Vec<String>,
}

/// The newest dead letters, and how many there are.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DeadList {
    /// How many match, listed or not.
    pub total: u64,
    /// The newest first.
    pub letters: Vec<DeadLetter>,
}

/// How many were changed, and which of those named are not there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Count {
    /// Changed.
    pub changed: u64,
    /// Named, but not (or no longer) a dead letter.
    pub unknown: Vec<IdPattern>,
}

/// The lanes that a decision has set going.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Released {
    /// Their sources; at least one.
    pub sources: Vec<Name>,
}

/// What the spool holds and what its disk still has.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SpoolUsage {
    /// Its folder.
    pub path: String,
    /// Free bytes of the file system.
    pub disk_free: u64,
    /// All bytes of the file system.
    pub disk_total: u64,
    /// The logs.
    pub logs: Vec<LogStatus>,
    /// The lanes.
    pub lanes: Vec<LaneStatus>,
}

/// What a full reading of the spool found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VerifyReport {
    /// Segments read.
    pub segments: u64,
    /// Records whose seal was right.
    pub records: u64,
    /// Bytes read.
    pub bytes: u64,
    /// What is damaged; empty when all is well.
    pub damage: Vec<Damage>,
}

/// A damaged place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Damage {
    /// The log.
    pub log: Class,
    /// The segment's order number.
    pub segment: u64,
    /// Its file.
    #[serde(default)]
    pub file: String,
    /// What is wrong and what it means, in words.
    pub text: String,
}

/// What was exported.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ExportReport {
    /// Messages.
    pub messages: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Messages that can't be read any more and are not in the export: see `spool verify`.
    pub damaged: u64,
    /// Named, but not kept here.
    pub unknown: Vec<IdPattern>,
}

/// What was found of a patient or an order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FindReport {
    /// The newest first.
    pub messages: Vec<FoundMessage>,
    /// How many there are, also those beyond the limit.
    pub total: u64,
    /// Images whose headers had to be read, because no hash of these numbers is kept with them.
    pub headers_read: u64,
    /// Damaged places: what was stored there is not among them.
    pub damaged: u64,
}

/// A message that was found, and how it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FoundMessage {
    /// Which.
    #[serde(with = "as_text")]
    pub id: MessageId,
    /// The log that holds it.
    pub log: Class,
    /// Its source.
    pub source: Name,
    /// When its first byte came.
    pub received: When,
    /// Bytes of its body.
    pub bytes: u64,
    /// Its media type.
    pub content_type: String,
    /// What was noticed about it.
    pub flags: Vec<String>,
    /// Upstreams that it waits for.
    pub waiting: Vec<Name>,
    /// Upstreams that refused it for good.
    pub dead: Vec<Name>,
}

/// What was imported.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImportReport {
    /// Messages that are new here, and durable.
    pub stored: u64,
    /// Messages that were already here.
    pub repeats: u64,
    /// Bytes of the new ones.
    pub bytes: u64,
}

/// What is, or would be, sent again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ReplayReport {
    /// Messages.
    pub messages: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// The first one was received then.
    pub first: Option<When>,
    /// The last one was received then.
    pub last: Option<When>,
    /// Whether the range begins before the oldest original that is still kept.
    pub incomplete: bool,
    /// Found, but dropped by a full log before they could be sent; they are not among the messages.
    #[serde(default)]
    pub missing: u64,
}

/// How the keys stand after a change.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct KeysReport {
    /// The epoch in force; 0 when the root key was destroyed.
    pub epoch: u64,
    /// In words, with what happens next.
    pub text: String,
}

/// How far a long job is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Progress {
    /// What is counted: `segments`, `messages`.
    pub what: String,
    /// So many are done.
    pub done: u64,
    /// Of so many, where that is known.
    pub total: Option<u64>,
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
#[error("{text}")]
pub struct Refusal {
    /// The kind.
    pub code: Code,
    /// In words, with what to do.
    pub text: String,
}

impl Refusal {
    /// A refusal of this kind.
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    /// The request itself is wrong.
    pub fn bad(text: impl Into<String>) -> Self {
        Self::new(Code::BadRequest, text)
    }
}

/// The kinds of refusal.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// Not a request, one that contradicts itself, or one that names a source or upstream that is not known here.
    BadRequest,
    /// The peer's uid and groups do not allow it.
    NotPermitted,
    /// There is no such message.
    NotFound,
    /// Can't be done now (starting, stopping, too many connections, full): try again.
    Unavailable,
    /// It was tried and failed: the disk, damaged data.
    Failed,
}

/// A point in time: RFC 3339 on the line.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct When(pub jiff::Timestamp);

impl From<Stamp> for When {
    /// The wall clock's part of it. A clock that was beyond all reason is shown as 1970.
    fn from(stamp: Stamp) -> Self {
        Self(jiff::Timestamp::from_microsecond(stamp.wall_us).unwrap_or(jiff::Timestamp::UNIX_EPOCH))
    }
}

/// Seconds are enough for people.
impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0}", self.0)
    }
}

impl FromStr for When {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        text.parse()
            .map(Self)
            .map_err(|_| ValueError(format!("\"{text}\" is not a time: write for example \"2026-11-22T14:00:00Z\"")))
    }
}

impl Serialize for When {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for When {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        as_text::deserialize(deserializer)
    }
}

/// A value that is written as text, as people read it.
pub(super) mod as_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::{fmt::Display, str::FromStr};

    pub fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr<Err = crate::values::ValueError>,
        D: Deserializer<'de>,
    {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}
