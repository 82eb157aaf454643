//! What the records of a log say: typed contents, encoded with postcard (its wire format is specified) inside sealed frames.
//!
//! Fields are only ever added behind a new [`Kind`], or before what is there, behind a first byte that no earlier version wrote there
//! and that it takes for a record of an unknown form ([`encode_data`]); the meaning of a number here never changes.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::Place;
use crate::digest::{Algorithm, Digest};
use crate::envelope::{MessageId, Meta, Stamp, Token};
use crate::values::Name;

/// The kind of a record; stands in the clear in its frame header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// First record of every segment: [`Opening`]. With the CURSOR and DEAD records of the same group it is the checkpoint.
    Opening = 1,
    /// A message, committed: [`Data`] and the last piece of the body.
    Data = 2,
    /// A piece of a body that is still arriving: stream number (u64, little endian) and bytes.
    Fragment = 3,
    /// How far a lane has come: [`Cursor`].
    Cursor = 4,
    /// A message that an upstream will not get unless a person acts: [`Dead`].
    Dead = 5,
    /// A dead letter that is one no more: [`Discard`].
    Discard = 6,
    /// An earlier message that is to be sent (again) to an upstream: [`Replay`].
    Replay = 7,
    /// Messages that are gone: [`Gap`].
    Gap = 8,
    /// Last record of a full segment: [`Footer`].
    Footer = 9,
}

impl Kind {
    /// The kinds from which a start makes cursors, dead letters and known damage, with the one that tells where a checkpoint begins.
    pub const CONTROL: [Self; 5] = [Self::Opening, Self::Cursor, Self::Dead, Self::Discard, Self::Gap];

    /// Whether a record may be an entry of a lane: one of an unknown kind may, as a newer version knows.
    pub fn may_be_for_lanes(code: u8) -> bool {
        matches!(Self::from_code(code), Some(Self::Data | Self::Replay) | None)
    }

    /// From the byte in a frame header.
    pub fn from_code(code: u8) -> Option<Self> {
        use Kind::{Cursor, Data, Dead, Discard, Footer, Fragment, Gap, Opening, Replay};
        [Opening, Data, Fragment, Cursor, Dead, Discard, Replay, Gap, Footer]
            .into_iter()
            .find(|kind| *kind as u8 == code)
    }
}

/// How a segment begins.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// When.
    pub stamp: Stamp,
    /// The segment before it and how many groups of it were synced, as far as that is known.
    pub previous: Option<(u64, u32)>,
    /// Damage that was found and that no person has taken note of yet.
    pub quarantined: Vec<u64>,
}

/// A message.
#[derive(Serialize, Deserialize, Clone)]
pub struct Data {
    /// Its id where it is not this segment's id and this record's number (re-appended, compacted, imported).
    pub id: Option<MessageId>,
    /// What its source said.
    pub meta: Meta,
    /// What the whole body is known by.
    pub digest: Digest,
    /// Length of the whole body.
    pub length: u64,
    /// The pieces before the one that is in this record.
    pub pieces: Vec<Piece>,
}

/// Where a piece of a body is.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The segment's order number.
    pub segment: u64,
    /// The record's number in it.
    pub ordinal: u32,
    /// Where its group began in the file when it was written: a hint, good until the segment is compacted.
    pub group_offset: u32,
    /// Bytes of the body in it.
    pub length: u32,
}

/// A lane's cursor: everything up to and with `at` is done.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The lane's source.
    pub source: Name,
    /// The lane's upstream.
    pub upstream: Name,
    /// The last place that is done.
    pub at: Place,
}

/// A dead letter.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Dead {
    /// The message.
    pub id: MessageId,
    /// Its source.
    pub source: Name,
    /// The upstream that refused it.
    pub upstream: Name,
    /// Where the message's DATA record is.
    pub at: Place,
    /// Bytes of its body.
    pub length: u64,
    /// Why, in words without content.
    pub reason: String,
    /// How often it was tried.
    pub attempts: u32,
    /// When it was given up.
    pub stamp: Stamp,
}

/// A dead letter that was discarded, or taken up again (a REPLAY record then follows in the same group).
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Discard {
    /// The message.
    pub id: MessageId,
    /// The upstream that had refused it.
    pub upstream: Name,
    /// The user id of the person who asked for it; `None`: the service itself.
    pub by: Option<u32>,
}

/// Sends an earlier message to an upstream, at this record's place in the lane.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    /// The lane's source.
    pub source: Name,
    /// The lane's upstream.
    pub upstream: Name,
    /// The message.
    pub id: MessageId,
    /// Where its DATA record is.
    pub at: Place,
    /// Bytes of its body.
    pub length: u64,
    /// When it was asked for.
    pub stamp: Stamp,
}

/// Messages that are gone before they were delivered. One about damage is repeated in each checkpoint while its segment is held.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Why: [`Gap::DROPPED`], [`Gap::DAMAGED`], [`Gap::ACCEPTED`].
    pub cause: String,
    /// The segment that they were in.
    pub segment: u64,
    /// Source, upstream and how many, where it is known.
    pub lanes: Vec<(Name, Name, u64)>,
    /// When it was noticed.
    pub stamp: Stamp,
}

impl Gap {
    /// A full telemetry log lost its oldest segment.
    pub const DROPPED: &str = "dropped";
    /// What a lane could not find in a segment that is damaged on disk.
    pub const DAMAGED: &str = "damaged";
    /// A person took note of the damage in a segment: it is shown no more and holds no file back.
    pub const ACCEPTED: &str = "accepted";
}

/// What a segment holds.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct Footer {
    /// For each lane, what is in this segment for it.
    pub lanes: Vec<LaneExtent>,
    /// Other segments that pieces or replays of this one point to.
    pub refers: Vec<u64>,
    /// Reception time of its messages, wall clock microseconds: first and last.
    pub received_us: Option<(i64, i64)>,
    /// Uptime at which it was closed, milliseconds.
    pub closed_uptime_ms: u64,
    /// Bytes of fragments.
    pub fragment_bytes: u64,
}

/// What a segment holds for one lane.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct LaneExtent {
    /// The lane's source.
    pub source: Name,
    /// The lane's upstream.
    pub upstream: Name,
    /// Messages (and replays).
    pub count: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Number of the first record.
    pub first: u32,
    /// Number of the last record.
    pub last: u32,
    /// Uptime of the first reception, milliseconds.
    pub since_uptime_ms: u64,
}

/// The bytes of a record.
pub fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    // Unwrap safety: writing to memory; postcard fails only for maps of unknown length, which no record has.
    #[allow(clippy::unwrap_used)]
    postcard::to_stdvec(record).unwrap()
}

/// Reads a record back; `None` when the bytes are not one (they authenticated, so that is a bug or another version).
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    postcard::from_bytes(bytes).ok()
}

/// First byte of a DATA record that begins with [`Token`]s. The first form begins with an `Option`, so with 0 or 1.
const WITH_TOKENS: u8 = 2;
/// First byte of one that begins with [`Token`]s, and whose digest is BLAKE3.
const WITH_BLAKE3: u8 = 3;

/// The bytes of a DATA record: by what it can be found, its contents and the last piece of the body.
pub fn encode_data(data: &Data, tail: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(256 + tail.len());
    let form = match data.digest.algorithm {
        Algorithm::Blake3 => Some(WITH_BLAKE3),
        Algorithm::Sha256 => (!data.meta.tokens.is_empty()).then_some(WITH_TOKENS),
    };
    if let Some(form) = form {
        bytes.push(form);
        bytes = postcard::to_extend(&data.meta.tokens, bytes).unwrap_or_default();
    }
    bytes = postcard::to_extend(data, bytes).unwrap_or_default();
    bytes.extend_from_slice(tail);
    bytes
}

/// Reads a DATA record back: its contents and where the last piece of the body begins.
pub fn decode_data(bytes: &[u8]) -> Option<(Data, usize)> {
    let (tokens, rest) = match bytes.split_first() {
        Some((&(WITH_TOKENS | WITH_BLAKE3), rest)) => postcard::take_from_bytes::<Vec<Token>>(rest).ok()?,
        _ => (Vec::new(), bytes),
    };
    let (mut data, tail) = postcard::take_from_bytes::<Data>(rest).ok()?;
    data.meta.tokens = tokens;
    if bytes.first() == Some(&WITH_BLAKE3) {
        data.digest.algorithm = Algorithm::Blake3;
    }
    Some((data, bytes.len() - tail.len()))
}

/// Bytes of a FRAGMENT record before its piece of the body.
pub const FRAGMENT_HEAD: usize = 8;

/// What a FRAGMENT record begins with; a piece of the body follows.
pub fn fragment_head(stream: u64) -> [u8; FRAGMENT_HEAD] {
    stream.to_le_bytes()
}

/// Reads a FRAGMENT record back: the stream and its piece of the body.
pub fn decode_fragment(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (stream, body) = bytes.split_first_chunk::<FRAGMENT_HEAD>()?;
    Some((u64::from_le_bytes(*stream), body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::Flags;

    /// As the first version wrote it: a CT instance whose source is `ct`, with the body `xyz`.
    const FIRST_FORM: &str = "0002637405646963 6f6d116170706c69636174696f6e2f6469636f6d03312e32010470616373 04 02010e 0909090909090909\
                              0909090909090909 0909090909090909 0909090909090909 03 00 78797a";

    fn data(tokens: Vec<Token>) -> Data {
        let meta = Meta {
            source: "ct".parse().unwrap(),
            protocol: "dicom".into(),
            content_type: "application/dicom".into(),
            control_id: b"1.2".to_vec(),
            targets: vec!["pacs".parse().unwrap()],
            flags: Flags::DISCARDED_BYTES,
            received: Stamp { wall_us: 1, synchronised: true, uptime_ms: 14 },
            tokens,
        };
        let digest = Digest { algorithm: Algorithm::Sha256, bytes: [9; 32] };
        Data { id: None, meta, digest, length: 3, pieces: Vec::new() }
    }

    fn first_form() -> Vec<u8> {
        let digits: String = FIRST_FORM.split_whitespace().collect();
        data_encoding::HEXLOWER.decode(digits.as_bytes()).unwrap()
    }

    #[test]
    fn a_message_that_an_earlier_version_stored_is_read_as_it_was() {
        let stored = first_form();
        let (read, tail) = decode_data(&stored).unwrap();
        assert!(read.meta == data(Vec::new()).meta && &stored[tail..] == b"xyz");
        assert_eq!(encode_data(&data(Vec::new()), b"xyz"), stored, "and one without tokens is still written so");
    }

    #[test]
    fn what_a_message_can_be_found_by_stands_before_it_and_is_no_message_to_an_earlier_version() {
        let tokens = vec![Token([7; 8]), Token([8; 8])];
        let stored = encode_data(&data(tokens.clone()), b"xyz");
        let (read, tail) = decode_data(&stored).unwrap();
        assert_eq!((read.meta.tokens, read.digest, &stored[tail..]), (tokens, data(Vec::new()).digest, &b"xyz"[..]));
        assert!(stored.ends_with(&first_form()));
        assert!(postcard::take_from_bytes::<Data>(&stored).is_err(), "an earlier version takes it for another message");
    }

    #[test]
    fn how_the_digest_of_a_message_was_taken_is_read_back_with_it() {
        for tokens in [Vec::new(), vec![Token([7; 8])]] {
            let mut image = data(tokens.clone());
            image.digest.algorithm = Algorithm::Blake3;
            let stored = encode_data(&image, b"xyz");
            let (read, tail) = decode_data(&stored).unwrap();
            assert_eq!((read.meta.tokens, read.digest, &stored[tail..]), (tokens, image.digest, &b"xyz"[..]));
            assert!(
                postcard::take_from_bytes::<Data>(&stored).is_err(),
                "an earlier version takes it for another message"
            );
        }
    }
}
