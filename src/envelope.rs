//! The one thing that flows: an [`Envelope`] is a stored message with what is known about it and its body as a stream.
//!
//! Sources make a [`Meta`] and hand over bytes; the spool makes envelopes of them; upstreams read envelopes. The body
//! is exactly what the device sent. Nothing here may print content: `Debug` of an envelope shows its id and sizes only.

use std::fmt;
use std::io::{self, ErrorKind};
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::digest::{Algorithm, Digest};
use crate::values::{ASSEMBLY, Name, STORAGE_COMMITMENT, ValueError};

/// Which of the three logs a message lives in. Each has its own directory, quota, writer and policy when full.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// What a person waits for: HL7, ASTM. Refuses when full.
    Clinical,
    /// DICOM. Refuses when full.
    Imaging,
    /// Device telemetry whose oldest part may be dropped when full, with a GAP record that says so.
    Telemetry,
}

impl Class {
    /// All three, in the order in which they are opened and shown.
    pub const ALL: [Self; 3] = [Self::Clinical, Self::Imaging, Self::Telemetry];

    /// The name in folders, topics and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Clinical => "clinical",
            Self::Imaging => "imaging",
            Self::Telemetry => "telemetry",
        }
    }

    /// Whether a control id stands for one message all over the world (SOP instance UIDs), so that two with the same one and
    /// different bytes are worth a person's look. MSH-10 is a counter that begins anew whenever a monitor is switched on.
    pub fn has_unique_ids(self) -> bool {
        self == Self::Imaging
    }

    /// How the digests of its bodies are taken: the larger, the quicker.
    pub fn digest(self) -> Algorithm {
        match self {
            Self::Imaging => Algorithm::Blake3,
            Self::Clinical | Self::Telemetry => Algorithm::Sha256,
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What makes a second copy recognisable: the random id of the segment that first held the message, and its number in it.
///
/// It never changes, whether the message is re-appended after a failed sync, compacted or carried to another box.
/// Printed as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MessageId(pub [u8; 16]);

impl MessageId {
    /// The id of record `ordinal` in the segment whose random id is `segment`.
    pub fn new(segment: [u8; 12], ordinal: u32) -> Self {
        let mut id = [0; 16];
        id[..12].copy_from_slice(&segment);
        id[12..].copy_from_slice(&ordinal.to_be_bytes());
        Self(id)
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MessageId {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok();
        bytes
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or_else(|| ValueError(format!("\"{text}\" is not a message id: it has 32 hexadecimal digits")))
    }
}

/// A moment as the box saw it: the wall clock is data, the uptime is what windows and ages are counted with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Stamp {
    /// Wall clock, microseconds since 1970-01-01 UTC, as it was believed then.
    pub wall_us: i64,
    /// Whether the wall clock was known to be synchronised.
    pub synchronised: bool,
    /// Milliseconds that this spool has been in service: monotonic, kept over restarts.
    pub uptime_ms: u64,
}

/// What was noticed about a message that was stored all the same.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Flags(pub u16);

impl Flags {
    /// No header that the protocol's reader could understand (HL7: no MSH).
    pub const UNREADABLE: Self = Self(1);
    /// The device's own id is missing (HL7: empty MSH-10).
    pub const NO_CONTROL_ID: Self = Self(1 << 1);
    /// Bytes around or inside the message were discarded.
    pub const DISCARDED_BYTES: Self = Self(1 << 2);
    /// The device was told that the message is rejected.
    pub const REJECTED: Self = Self(1 << 3);
    /// A batch (HL7: FHS or BHS).
    pub const BATCH: Self = Self(1 << 4);
    /// Another message with the same id and different bytes came shortly before (DICOM: SOP instance UID). Both are kept.
    pub const DUPLICATE: Self = Self(1 << 5);
    /// Only a part of what the device meant to send: it broke off, and what it was acknowledged is here (ASTM: no L record, or no H).
    pub const INCOMPLETE: Self = Self(1 << 6);

    const NAMES: [(Self, &'static str); 7] = [
        (Self::UNREADABLE, "unreadable"),
        (Self::NO_CONTROL_ID, "no-control-id"),
        (Self::DISCARDED_BYTES, "discarded-bytes"),
        (Self::REJECTED, "rejected"),
        (Self::BATCH, "batch"),
        (Self::DUPLICATE, "duplicate"),
        (Self::INCOMPLETE, "incomplete"),
    ];

    /// Both together.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` is set.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The names of what is set, for metadata and tables.
    pub fn names(self) -> Vec<&'static str> {
        Self::NAMES.iter().filter(|(flag, _)| self.has(*flag)).map(|(_, name)| *name).collect()
    }
}

/// What a person may look for messages by, beside their ids.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Identifier {
    /// The patient's number (DICOM: (0010,0020)).
    PatientId,
    /// The number of the order that an image was made for (DICOM: (0008,0050)).
    AccessionNumber,
}

/// A keyed hash of an [`Identifier`]'s value, cut short: two that are the same stand for the same value, and without the spool's root key
/// it tells nothing. It means nothing in another spool.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Token(pub [u8; 8]);

/// What a source knows about a message beside its bytes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// The source that took it.
    pub source: Name,
    /// The source's protocol: `mllp`, `dicom`, ...
    pub protocol: String,
    /// Media type, with charset where the device named one: `application/hl7-v2; charset=utf-8`.
    pub content_type: String,
    /// The device's own id of the message, verbatim (HL7: MSH-10). May be patient-related: never logged.
    pub control_id: Vec<u8>,
    /// The upstreams that it is routed to, decided at commit.
    pub targets: Vec<Name>,
    /// What was noticed.
    pub flags: Flags,
    /// When its first byte came.
    pub received: Stamp,
    /// By what it can be found. Never leaves this box: neither an export nor an upstream gets them.
    #[serde(skip)]
    pub tokens: Vec<Token>,
}

impl Meta {
    /// Whether it is a device's request for storage commitment, which is no message to pass on.
    pub fn asks_for_commitment(&self) -> bool {
        matches!(self.targets.as_slice(), [only] if only.as_str() == STORAGE_COMMITMENT)
    }

    /// Whether it is part of a message that its source puts together (a frame of ASTM), which goes nowhere by itself.
    pub fn is_part(&self) -> bool {
        matches!(self.targets.as_slice(), [only] if only.as_str() == ASSEMBLY)
    }
}

/// A stored message on its way out.
pub struct Envelope {
    /// The same for every copy of this message.
    pub id: MessageId,
    /// The log that it lives in.
    pub class: Class,
    /// What its source said about it.
    pub meta: Meta,
    /// What its body is known by.
    pub digest: Digest,
    /// The bytes, as often as they are wanted.
    pub body: Body,
}

impl fmt::Debug for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Envelope({} {} {} bytes)", self.id, self.meta.source, self.body.len())
    }
}

/// The bytes of a message: small ones lie in memory, long ones are read piece by piece from where they are stored.
#[derive(Clone)]
pub struct Body {
    length: u64,
    form: Form,
}

#[derive(Clone)]
enum Form {
    Whole(Bytes),
    Pieces(Arc<dyn Pieces>),
}

/// A body that is kept in pieces somewhere (the spool's fragments).
pub trait Pieces: Send + Sync {
    /// How many pieces.
    fn count(&self) -> usize;
    /// Reads one piece. Blocks for a disk read: [`BodyReader`] calls it off the runtime's threads.
    ///
    /// # Errors
    /// When the piece is not there or does not authenticate.
    fn read(&self, index: usize) -> Result<Bytes, BodyError>;
}

/// How the words of a [`BodyError`] begin; also those of a dead letter that came of one.
pub const UNREADABLE: &str = "the stored body can't be read";

/// A body could not be read back; why, in words.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BodyError {
    /// It is not kept any more: everybody has it who should, and its place was needed.
    #[error("the stored body can't be read: {0}")]
    Gone(String),
    /// It is damaged on disk, or the disk failed.
    #[error("the stored body can't be read: {0}")]
    Unreadable(String),
}

/// [`ErrorKind::NotFound`] is a place that is not kept any more.
impl From<io::Error> for BodyError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::NotFound => Self::Gone(error.to_string()),
            _ => Self::Unreadable(error.to_string()),
        }
    }
}

impl Body {
    /// A body that lies in memory.
    pub fn whole(bytes: Bytes) -> Self {
        Self { length: bytes.len() as u64, form: Form::Whole(bytes) }
    }

    /// A body of `length` bytes that is read in pieces.
    pub fn pieces(length: u64, pieces: Arc<dyn Pieces>) -> Self {
        Self { length, form: Form::Pieces(pieces) }
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Reads from the beginning; may be called any number of times.
    pub fn reader(&self) -> BodyReader {
        BodyReader { body: self.clone(), next: 0 }
    }

    /// The bytes, when they lie in memory.
    pub fn as_whole(&self) -> Option<&Bytes> {
        match &self.form {
            Form::Whole(bytes) => Some(bytes),
            Form::Pieces(_) => None,
        }
    }

    /// All bytes at once, for a body that the caller knows to be short enough to hold.
    ///
    /// # Errors
    /// [`BodyError`] when a piece can't be read.
    pub async fn collect(&self) -> Result<Bytes, BodyError> {
        if let Form::Whole(bytes) = &self.form {
            return Ok(bytes.clone());
        }
        let mut all = Vec::with_capacity(usize::try_from(self.length).unwrap_or(0));
        let mut reader = self.reader();
        while let Some(piece) = reader.next().await? {
            all.extend_from_slice(&piece);
        }
        Ok(all.into())
    }
}

/// A reader at some place of a [`Body`].
pub struct BodyReader {
    body: Body,
    next: usize,
}

impl BodyReader {
    /// The next piece, of at most some hundred KiB; `None` at the end.
    ///
    /// # Errors
    /// [`BodyError`] when the piece can't be read; what was returned before it is genuine.
    pub async fn next(&mut self) -> Result<Option<Bytes>, BodyError> {
        let index = self.next;
        self.next += 1;
        match &self.body.form {
            Form::Whole(bytes) => Ok((index == 0 && !bytes.is_empty()).then(|| bytes.clone())),
            Form::Pieces(pieces) if index >= pieces.count() => Ok(None),
            Form::Pieces(pieces) => {
                let pieces = Arc::clone(pieces);
                let read = tokio::task::spawn_blocking(move || pieces.read(index));
                read.await.map_err(|error| BodyError::Unreadable(error.to_string()))?.map(Some)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_id_reads_back_as_it_prints() {
        let id = MessageId::new([7; 12], 513);
        assert_eq!(id.to_string().parse::<MessageId>().unwrap(), id);
        assert!("7".parse::<MessageId>().is_err());
        assert!(BodyError::Unreadable("x".into()).to_string().starts_with(UNREADABLE));
    }

    #[test]
    fn an_envelope_never_prints_what_it_carries() {
        let meta = Meta {
            source: "icu".parse().unwrap(),
            protocol: "mllp".into(),
            content_type: "application/hl7-v2".into(),
            control_id: b"SECRET-CONTROL".to_vec(),
            targets: vec![],
            flags: Flags::default(),
            received: Stamp { wall_us: 0, synchronised: false, uptime_ms: 0 },
            tokens: Vec::new(),
        };
        let body = Body::whole(Bytes::from_static(b"PID|SECRET"));
        let envelope = Envelope {
            id: MessageId([0; 16]),
            class: Class::Clinical,
            meta,
            digest: Digest::of(Algorithm::Sha256, b""),
            body,
        };
        assert!(!format!("{envelope:?}").contains("SECRET"));
    }
}
