//! A part: what an analyser was acknowledged before its message was whole, and how it is stored until then.
//!
//! A part is a line of text about it, then the bytes as they came. It says enough to put the message together after a restart without
//! anything else: which transfer, in which order, where in the records it begins. The message takes the place of its parts: it is
//! committed together with a [`Done`], which says up to where. None of these ever leaves this box.

use super::intake::About;
use crate::envelope::Flags;
use crate::wire::astm::fingerprint;

/// The media type of a stored part.
pub const CONTENT_TYPE: &str = "application/vnd.wardgate.astm-part";
/// The first word of a stored part: names the form and its version.
const FORM: &str = "astm-part/2";
/// Of a stored [`Done`].
const DONE_FORM: &str = "astm-done/1";
/// Longest first line.
const HEAD_BYTES_MAX: usize = 200;

/// How a part is committed.
pub fn about() -> About {
    About { content_type: CONTENT_TYPE.to_owned(), control_id: Vec::new(), flags: Flags::default() }
}

/// What the bytes of a part are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The text of a frame; `last`: a record ends with it.
    Frame {
        /// Its number, 0 to 7.
        number: u8,
        /// It ended with ETX.
        last: bool,
    },
    /// Records that came without framing.
    Bare,
    /// Text between STX and ETX that is not ASTM: a message of its own.
    Other,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part<'a> {
    /// Random, for each transfer (from ENQ to EOT).
    pub transfer: u64,
    /// Counts the parts of the transfer, from 0.
    pub ordinal: u64,
    /// The part with which the message began that its first byte belongs to.
    pub start: u64,
    /// The type of the record that its first byte goes on with; `None` at the beginning of a record.
    pub record: Option<u8>,
    /// What it is.
    pub kind: Kind,
    /// Random, for each time that a line was there: tells analysers behind one address apart.
    pub link: u32,
    /// Nobody else was connected from this address.
    pub alone: bool,
    /// The line that it came on: empty where there is one only, else the peer's address.
    pub line: String,
    /// The bytes.
    pub text: &'a [u8],
}

impl<'a> Part<'a> {
    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, number) = match self.kind {
            Kind::Frame { number, last: true } => ('x', number),
            Kind::Frame { number, last: false } => ('b', number),
            Kind::Bare => ('r', 0),
            Kind::Other => ('o', 0),
        };
        let record = self.record.map_or_else(|| "-".to_owned(), |record| format!("{record:02x}"));
        let Self { transfer, ordinal, start, link, line, .. } = self;
        let company = if self.alone { 'a' } else { 's' };
        let head =
            format!("{FORM} {transfer:016x} {ordinal} {start} {record} {kind} {number} {link:08x} {company} {line}\n");
        [head.as_bytes(), self.text].concat()
    }

    /// Reads the stored form; `None` when it is none.
    pub fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (mut words, text) = head(bytes, FORM)?;
        let transfer = u64::from_str_radix(words.next()?, 16).ok()?;
        let (ordinal, start) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let record = match words.next()? {
            "-" => None,
            text => Some(u8::from_str_radix(text, 16).ok()?),
        };
        let (kind, number) = (words.next()?, words.next()?.parse().ok()?);
        let kind = match kind {
            "x" => Kind::Frame { number, last: true },
            "b" => Kind::Frame { number, last: false },
            "r" => Kind::Bare,
            "o" => Kind::Other,
            _ => return None,
        };
        let link = u32::from_str_radix(words.next()?, 16).ok()?;
        let alone = words.next()? == "a";
        let line = words.next()?.to_owned();
        Some(Self { transfer, ordinal, start, record, kind, link, alone, line, text })
    }

    /// Of a frame: its number and what makes a second copy recognisable.
    pub fn identity(&self) -> Option<(u8, u64)> {
        let Kind::Frame { number, .. } = self.kind else { return None };
        Some((number, fingerprint(self.text)))
    }
}

/// What of a transfer needs its parts no more, because it is in messages that are committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// All before a place, but for parts of [`Kind::Other`].
    Until(At),
    /// The part of [`Kind::Other`] that has this ordinal.
    Other(u64),
}

/// A place in a transfer: in the part with this ordinal, before this byte of its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct At {
    /// The part.
    pub ordinal: u64,
    /// The byte.
    pub byte: usize,
}

impl Done {
    /// The stored form.
    pub fn encode(self, transfer: u64) -> Vec<u8> {
        let (kind, At { ordinal, byte }) = match self {
            Self::Until(at) => ('u', at),
            Self::Other(ordinal) => ('o', At { ordinal, byte: 0 }),
        };
        format!("{DONE_FORM} {transfer:016x} {kind} {ordinal} {byte}\n").into_bytes()
    }

    /// Reads the stored form: the transfer, and what of it; `None` when it is none.
    pub fn decode(bytes: &[u8]) -> Option<(u64, Self)> {
        let (mut words, _) = head(bytes, DONE_FORM)?;
        let transfer = u64::from_str_radix(words.next()?, 16).ok()?;
        let kind = words.next()?;
        let at = At { ordinal: words.next()?.parse().ok()?, byte: words.next()?.parse().ok()? };
        match kind {
            "u" => Some((transfer, Self::Until(at))),
            "o" => Some((transfer, Self::Other(at.ordinal))),
            _ => None,
        }
    }
}

/// The words behind the name of the form, and what comes after their line.
fn head<'a>(bytes: &'a [u8], form: &str) -> Option<(std::str::Split<'a, char>, &'a [u8])> {
    let end = bytes.iter().take(HEAD_BYTES_MAX).position(|byte| *byte == b'\n')?;
    let mut words = std::str::from_utf8(bytes.get(..end)?).ok()?.split(' ');
    (words.next()? == form).then_some((words, bytes.get(end + 1..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_reads_back_as_it_was_written() {
        for (kind, record, line) in [
            (Kind::Frame { number: 7, last: true }, None, ""),
            (Kind::Frame { number: 0, last: false }, Some(b'R'), "10.0.0.5"),
            (Kind::Bare, Some(b'\n'), "fe80::1"),
            (Kind::Other, None, ""),
        ] {
            let part = Part {
                transfer: u64::MAX,
                ordinal: 3,
                start: 1,
                record,
                kind,
                link: 7,
                alone: line.is_empty(),
                line: line.into(),
                text: b"R|1\n\r\xff",
            };
            let stored = part.encode();
            assert_eq!(Part::decode(&stored).as_ref(), Some(&part));
            assert_eq!(part.identity().is_some(), matches!(kind, Kind::Frame { .. }));
        }
        for foreign in
            [&b""[..], b"\n", b"astm-part/1 0 0 0 - x 1 0 a \n", b"astm-part/2 0 0 0 - z 1 0 a \n", &[b'x'; 400]]
        {
            assert_eq!((Part::decode(foreign), Done::decode(foreign)), (None, None));
        }
    }

    #[test]
    fn what_is_done_reads_back_as_it_was_written_and_is_no_part() {
        for done in [Done::Until(At { ordinal: 4, byte: 17 }), Done::Other(u64::MAX)] {
            let stored = done.encode(9);
            assert_eq!((Done::decode(&stored), Part::decode(&stored)), (Some((9, done)), None));
        }
    }
}
