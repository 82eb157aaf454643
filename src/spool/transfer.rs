//! Messages on their way from box to box without a network: the bytes inside a sealed export.
//!
//! This is the plaintext that `age -d` gives (numbers little endian, contents of records in postcard, whose wire format is specified):
//!
//! ```text
//! export    "WGXFER01" · message · message · ... · end
//! message   kind 1, or 3 (u8) · length of the head (u32) · head: id (16 bytes), class, what the source said, SHA-256 of the body (of
//!           kind 3: BLAKE3), its length
//!           piece · piece · ... · 0 (u32): the body is whole
//!                             or 0xFFFFFFFF (u32): the body turned out to be damaged on disk; there is no such message
//! piece     length (u32, 1 to 1 MiB) · bytes
//! end       kind 2 (u8) · length (u32) · number of whole messages, sum of their bodies' lengths
//! ```
//!
//! Nothing follows the end; an export without one was cut off. [`Writing`] makes these bytes, [`Parser`] takes them apart in
//! pieces of any length; neither holds more than one piece of a body. No length is believed above its limit.

use bytes::{Buf, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::record;
use crate::digest::{Algorithm, Digest};
use crate::envelope::{Class, Envelope, MessageId, Meta};

/// How every export begins.
pub const MAGIC: &[u8; 8] = b"WGXFER01";
/// Longest head of a message: names, a media type, a device's own id.
pub const HEAD_BYTES_MAX: usize = 256 << 10;
/// Longest piece of a body.
pub const PIECE_BYTES_MAX: usize = 1 << 20;

const MESSAGE: u8 = 1;
const END: u8 = 2;
const MESSAGE_BLAKE3: u8 = 3;
const WHOLE: u32 = 0;
const GIVEN_UP: u32 = u32::MAX;

/// What is told of a message before its body.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Its id, the same on every box.
    pub id: MessageId,
    /// The log that it lives in.
    pub class: Class,
    /// What its source said. Targets are those of the box that it comes from.
    pub meta: Meta,
    /// What the body is known by.
    pub digest: Digest,
    /// Length of the body.
    pub length: u64,
}

/// How an export ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tail {
    /// Whole messages.
    pub messages: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
}

/// An export that is being written: each call gives the bytes that come next.
#[derive(Debug, Default)]
pub struct Writing {
    tail: Tail,
}

impl Writing {
    /// The first bytes.
    pub fn begin() -> (Self, Vec<u8>) {
        (Self::default(), MAGIC.to_vec())
    }

    /// A message begins.
    pub fn head(&self, envelope: &Envelope) -> Vec<u8> {
        let head = Head {
            id: envelope.id,
            class: envelope.class,
            meta: envelope.meta.clone(),
            digest: envelope.digest,
            length: envelope.body.len(),
        };
        let kind = match head.digest.algorithm {
            Algorithm::Sha256 => MESSAGE,
            Algorithm::Blake3 => MESSAGE_BLAKE3,
        };
        framed(kind, &record::encode(&head))
    }

    /// What goes before each part of a body of at most [`PIECE_BYTES_MAX`]; nothing for an empty one.
    pub fn piece(bytes: &[u8]) -> Vec<u8> {
        let mut all = Vec::with_capacity(bytes.len() + 4);
        for piece in bytes.chunks(PIECE_BYTES_MAX) {
            all.extend_from_slice(&u32::try_from(piece.len()).unwrap_or(WHOLE).to_le_bytes());
            all.extend_from_slice(piece);
        }
        all
    }

    /// The body of `length` bytes is whole.
    pub fn whole(&mut self, length: u64) -> Vec<u8> {
        self.tail.messages += 1;
        self.tail.bytes += length;
        WHOLE.to_le_bytes().to_vec()
    }

    /// The body can't be read to its end: the message is not part of the export.
    pub fn give_up() -> Vec<u8> {
        GIVEN_UP.to_le_bytes().to_vec()
    }

    /// The last bytes, and what is in the export.
    pub fn end(self) -> (Vec<u8>, Tail) {
        (framed(END, &record::encode(&self.tail)), self.tail)
    }
}

fn framed(kind: u8, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap_or(u32::MAX);
    [&[kind], length.to_le_bytes().as_slice(), content].concat()
}

/// What is found in an export.
pub enum Part {
    /// A message begins.
    Head(Box<Head>),
    /// The next bytes of its body.
    Piece(Bytes),
    /// Its body is whole.
    Whole,
    /// It was given up by the box that it comes from.
    GivenUp,
    /// The export ends.
    Tail(Tail),
}

/// Why bytes are not an export. What was found before it is genuine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// Something else.
    #[error("this is not an export of wardgate, or one of a newer version")]
    Foreign,
    /// A length above its limit, an unknown kind, a head that is none.
    #[error("the export is damaged: {0}")]
    Malformed(&'static str),
    /// No end.
    #[error("the export was cut off: its end is missing")]
    CutOff,
}

/// Takes an export apart. Feed bytes, then ask until it wants more.
#[derive(Default)]
pub struct Parser {
    buffer: BytesMut,
    place: Place,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Place {
    #[default]
    Start,
    Between,
    Body,
    After,
}

impl Parser {
    /// More bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next part; `None` when more bytes are needed for it.
    ///
    /// # Errors
    /// [`TransferError`].
    pub fn part(&mut self) -> Result<Option<Part>, TransferError> {
        if self.place == Place::Start {
            if self.buffer.len() < MAGIC.len() {
                return if MAGIC.starts_with(&self.buffer) { Ok(None) } else { Err(TransferError::Foreign) };
            }
            if !self.buffer.starts_with(MAGIC) {
                return Err(TransferError::Foreign);
            }
            self.buffer.advance(MAGIC.len());
            self.place = Place::Between;
        }
        match self.place {
            Place::Body => self.body(),
            Place::After if self.buffer.is_empty() => Ok(None),
            Place::After => Err(TransferError::Malformed("something follows its end")),
            Place::Start | Place::Between => self.frame(),
        }
    }

    /// All bytes have come: was that all?
    ///
    /// # Errors
    /// [`TransferError::CutOff`].
    pub fn finish(&self) -> Result<(), TransferError> {
        if self.place == Place::After { Ok(()) } else { Err(TransferError::CutOff) }
    }

    fn frame(&mut self) -> Result<Option<Part>, TransferError> {
        let Some([kind, length @ ..]) = self.buffer.first_chunk::<5>().copied() else { return Ok(None) };
        let Some(content) = self.content(5, length, HEAD_BYTES_MAX)? else { return Ok(None) };
        let part = match kind {
            MESSAGE | MESSAGE_BLAKE3 => record::decode::<Head>(&content).map(|mut head| {
                if kind == MESSAGE_BLAKE3 {
                    head.digest.algorithm = Algorithm::Blake3;
                }
                (Place::Body, Part::Head(Box::new(head)))
            }),
            END => record::decode::<Tail>(&content).map(|tail| (Place::After, Part::Tail(tail))),
            _ => return Err(TransferError::Malformed("a part of an unknown kind")),
        };
        let (place, part) = part.ok_or(TransferError::Malformed("a head that can't be read"))?;
        self.place = place;
        Ok(Some(part))
    }

    fn body(&mut self) -> Result<Option<Part>, TransferError> {
        let Some(length) = self.buffer.first_chunk::<4>().copied() else { return Ok(None) };
        let part = match u32::from_le_bytes(length) {
            WHOLE => Part::Whole,
            GIVEN_UP => Part::GivenUp,
            _ => return Ok(self.content(4, length, PIECE_BYTES_MAX)?.map(Part::Piece)),
        };
        self.buffer.advance(4);
        self.place = Place::Between;
        Ok(Some(part))
    }

    /// The content behind a clear part of `clear` bytes, both taken away; `None` when it is not there yet.
    fn content(&mut self, clear: usize, length: [u8; 4], longest: usize) -> Result<Option<Bytes>, TransferError> {
        let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
        if length > longest {
            return Err(TransferError::Malformed("a length that can't be true"));
        }
        if self.buffer.len() < clear + length {
            return Ok(None);
        }
        self.buffer.advance(clear);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }
}
