//! A data set from Implicit to Explicit VR Little Endian and back (PS3.5 sections 7.1, 7.5, A.1 and A.2), while it passes by.
//!
//! [`Converter`] is pushed the bytes as they come. Values stay as they are, byte for byte; what changes is how elements begin:
//! * Every sequence and item gets undefined length, since its own would be known only at its end. Empty ones stay empty.
//! * Group lengths (gggg,0000) are left out: they are retired, and would be wrong.
//! * To explicit: the value representation comes from the dictionary. **UN is written for every element that it does not know**, above
//!   all for private ones (private creators get LO), and for a value that is too long for the two length bytes of its own
//!   representation (PS3.5 section 6.2.2). A private sequence of undefined length becomes UN, with its items as they are, implicit.
//!   Pixels, overlays and waveforms get OW, which is right for all numbers of bits.
//! * To implicit: the value representation is dropped.
//!
//! It holds a dozen bytes and a few for each open sequence, never believes a length further than the sequence around it, and does
//! not recurse. What is compressed, or is no data set, is an error and not guessed at.

use super::dictionary::representation;
use super::element::{
    self as element, Encoding, HEADER_BYTES_MAX, Header, ITEM, ITEM_END, SEQUENCE_END, Step, Tag, UNDEFINED,
};
use super::values::{EXPLICIT_LITTLE_ENDIAN, IMPLICIT_LITTLE_ENDIAN, Uid};

/// Sequences and items in each other.
pub const DEPTH_MAX: usize = 128;
/// Signed or unsigned pixels: decides between US and SS.
const PIXEL_REPRESENTATION: Tag = Tag(0x0028_0103);

/// Why a data set can't be converted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// Its pixels are in pieces.
    #[error("its pixels are compressed")]
    Compressed,
    /// Over [`DEPTH_MAX`].
    #[error("its sequences are nested deeper than {DEPTH_MAX}")]
    TooDeep,
    /// It is not written as its transfer syntax says.
    #[error("it is not written as its transfer syntax says")]
    Nonsense,
    /// It ends in the middle of an element.
    #[error("it ends in the middle of an element")]
    Truncated,
}

/// The other of the two, if this is one of them.
pub fn other(transfer_syntax: &Uid) -> Option<Uid> {
    if *transfer_syntax == IMPLICIT_LITTLE_ENDIAN {
        Some(EXPLICIT_LITTLE_ENDIAN)
    } else if *transfer_syntax == EXPLICIT_LITTLE_ENDIAN {
        Some(IMPLICIT_LITTLE_ENDIAN)
    } else {
        None
    }
}

/// Converts one data set.
#[derive(Debug)]
pub struct Converter {
    from: Encoding,
    to: Encoding,
    state: State,
    /// The beginning of a header.
    held: Vec<u8>,
    /// Bytes of the source up to the end of what was read of it, with the value that is being copied.
    position: u64,
    frames: Vec<Frame>,
    /// Open sequences and items of an element that is copied as it is, in implicit VR.
    untouched: usize,
    is_signed: bool,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Header,
    /// So many bytes of a value that is copied.
    Copy(u32),
    /// So many bytes that are left out.
    Skip(u32),
    /// The two bytes of the pixel representation.
    Sign,
}

/// An open sequence or item.
#[derive(Debug)]
struct Frame {
    is_item: bool,
    /// Where it ends, if its length was given.
    end: Option<u64>,
    /// Where it and all around it end at the latest.
    limit: u64,
    /// As it was around the item.
    is_signed: bool,
}

impl Converter {
    /// For a data set of this transfer syntax; `None`: it is neither of the two.
    pub fn from(transfer_syntax: &Uid) -> Option<Self> {
        other(transfer_syntax)?;
        let (from, to) = match Encoding::of(transfer_syntax)? {
            Encoding::Implicit => (Encoding::Implicit, Encoding::Explicit),
            _ => (Encoding::Explicit, Encoding::Implicit),
        };
        let held = Vec::with_capacity(HEADER_BYTES_MAX);
        let (frames, untouched) = (Vec::new(), 0);
        Some(Self { from, to, state: State::Header, held, position: 0, frames, untouched, is_signed: false })
    }

    /// Converts the next bytes; what is whole of them goes to `out`: at most three times as much.
    ///
    /// # Errors
    /// [`ConvertError`]; the rest can't be converted either.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), ConvertError> {
        let mut input = bytes;
        while !input.is_empty() {
            match self.state {
                State::Header => self.header(&mut input, out)?,
                State::Copy(count) => {
                    let (piece, left) = piece(count, &mut input);
                    out.extend_from_slice(piece);
                    self.went_on(State::Copy(left), left, out);
                }
                State::Skip(count) => {
                    let (_, left) = piece(count, &mut input);
                    self.went_on(State::Skip(left), left, out);
                }
                State::Sign => {
                    if hold(&mut self.held, 2, &mut input) {
                        self.is_signed = self.held == [1, 0];
                        out.append(&mut self.held);
                        self.next(out);
                    }
                }
            }
        }
        Ok(())
    }

    /// The data set has ended.
    ///
    /// # Errors
    /// [`ConvertError::Truncated`].
    pub fn finish(&self) -> Result<(), ConvertError> {
        let whole = matches!(self.state, State::Header) && self.held.is_empty() && self.untouched == 0;
        if whole && self.frames.is_empty() { Ok(()) } else { Err(ConvertError::Truncated) }
    }

    fn went_on(&mut self, state: State, left: u32, out: &mut Vec<u8>) {
        match left {
            0 => self.next(out),
            _ => self.state = state,
        }
    }

    fn header(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<(), ConvertError> {
        let encoding = if self.untouched > 0 { Encoding::Implicit } else { self.from };
        let mut wanted = 8;
        loop {
            if !hold(&mut self.held, wanted, input) {
                return Ok(());
            }
            match element::read(encoding, &self.held) {
                Step::Header(header) => return self.element(&header, out),
                Step::Short(more) if more <= HEADER_BYTES_MAX => wanted = more,
                Step::Short(_) | Step::Nonsense => return Err(ConvertError::Nonsense),
            }
        }
    }

    fn element(&mut self, header: &Header, out: &mut Vec<u8>) -> Result<(), ConvertError> {
        if self.position == 0 && self.from == Encoding::Implicit && looks_explicit(&self.held) {
            return Err(ConvertError::Nonsense);
        }
        self.position += header.bytes as u64;
        if header.length != UNDEFINED {
            self.position += u64::from(header.length);
        }
        if self.frames.last().is_some_and(|frame| self.position > frame.limit) {
            return Err(ConvertError::Nonsense);
        }
        if self.untouched > 0 {
            return self.copy_header(header, out);
        }
        self.held.clear();
        let in_sequence = self.frames.last().is_some_and(|frame| !frame.is_item);
        match header.tag {
            ITEM if in_sequence => self.open(header, b"SQ", true, out),
            SEQUENCE_END if in_sequence => self.close(header, out),
            ITEM_END if !in_sequence => self.close(header, out),
            tag if in_sequence || tag.is_delimiter() || [0, 2].contains(&(tag.0 >> 16)) => Err(ConvertError::Nonsense),
            tag if tag.0 & 0xffff == 0 => self.value(State::Skip(header.length), header, out),
            _ => self.convert(header, out),
        }
    }

    /// A header in an element that is copied as it is.
    fn copy_header(&mut self, header: &Header, out: &mut Vec<u8>) -> Result<(), ConvertError> {
        out.append(&mut self.held);
        match header.tag {
            ITEM_END | SEQUENCE_END if header.length == 0 => self.untouched -= 1,
            ITEM_END | SEQUENCE_END => return Err(ConvertError::Nonsense),
            _ if header.length == UNDEFINED && self.untouched >= DEPTH_MAX => return Err(ConvertError::TooDeep),
            _ if header.length == UNDEFINED => self.untouched += 1,
            _ => return self.value(State::Copy(header.length), header, out),
        }
        self.next(out);
        Ok(())
    }

    /// An element with a value of its own.
    fn convert(&mut self, header: &Header, out: &mut Vec<u8>) -> Result<(), ConvertError> {
        let Header { tag, length, .. } = *header;
        let vr = match header.vr {
            Some(written) => written,
            None => self.implied(tag).unwrap_or(*b"UN"),
        };
        // Without its representation an element is read as the list has it: a sequence there must be one here.
        let is_known_otherwise = |known: [u8; 2]| (known == *b"SQ") != (vr == *b"SQ");
        if self.to == Encoding::Implicit && self.implied(tag).is_some_and(is_known_otherwise) {
            return Err(ConvertError::Nonsense);
        }
        match &vr {
            b"SQ" => self.open(header, &vr, false, out),
            b"UN" if length == UNDEFINED => {
                element::write_header(self.to, (tag, b"UN"), UNDEFINED, out);
                self.untouched = 1;
                self.next(out);
                Ok(())
            }
            _ if length == UNDEFINED => {
                Err(if tag.0 >> 24 == 0x7f { ConvertError::Compressed } else { ConvertError::Nonsense })
            }
            _ => {
                let too_long = element::is_short(vr) && length > u32::from(u16::MAX);
                element::write_header(self.to, (tag, if too_long { b"UN" } else { &vr }), length, out);
                let sign = tag == PIXEL_REPRESENTATION && length == 2;
                self.value(if sign { State::Sign } else { State::Copy(length) }, header, out)
            }
        }
    }

    /// What an element is taken for that does not say its representation.
    fn implied(&self, tag: Tag) -> Option<[u8; 2]> {
        representation(tag, self.is_signed).or_else(|| is_creator(tag).then_some(*b"LO"))
    }

    fn value(&mut self, state: State, header: &Header, out: &mut Vec<u8>) -> Result<(), ConvertError> {
        match header.length {
            UNDEFINED => return Err(ConvertError::Nonsense),
            0 => self.next(out),
            _ => self.state = state,
        }
        Ok(())
    }

    /// A sequence or an item begins; an empty one has ended already.
    fn open(&mut self, header: &Header, vr: &[u8; 2], is_item: bool, out: &mut Vec<u8>) -> Result<(), ConvertError> {
        let Header { tag, length, .. } = *header;
        if length == 0 {
            element::write_header(self.to, (tag, vr), 0, out);
            self.next(out);
            return Ok(());
        }
        if self.frames.len() >= DEPTH_MAX {
            return Err(ConvertError::TooDeep);
        }
        element::write_header(self.to, (tag, vr), UNDEFINED, out);
        let end = (length != UNDEFINED).then_some(self.position);
        if end.is_some() {
            // Its content is read as elements and not as a value.
            self.position -= u64::from(length);
        }
        let around = self.frames.last().map_or(u64::MAX, |frame| frame.limit);
        let limit = end.unwrap_or(around);
        self.frames.push(Frame { is_item, end, limit, is_signed: self.is_signed });
        self.state = State::Header;
        Ok(())
    }

    /// A delimiter, which only a sequence or an item of undefined length has.
    fn close(&mut self, header: &Header, out: &mut Vec<u8>) -> Result<(), ConvertError> {
        match self.frames.last() {
            Some(Frame { end: None, .. }) if header.length == 0 => {
                self.pop(out);
                self.next(out);
                Ok(())
            }
            _ => Err(ConvertError::Nonsense),
        }
    }

    fn pop(&mut self, out: &mut Vec<u8>) {
        if let Some(frame) = self.frames.pop() {
            let delimiter = if frame.is_item { ITEM_END } else { SEQUENCE_END };
            element::write_header(self.to, (delimiter, b"UN"), 0, out);
            self.is_signed = frame.is_signed;
        }
    }

    /// An element has ended, and with it perhaps the items and sequences around it.
    fn next(&mut self, out: &mut Vec<u8>) {
        self.held.clear();
        self.state = State::Header;
        while self.untouched == 0 && self.frames.last().is_some_and(|frame| frame.end == Some(self.position)) {
            self.pop(out);
        }
    }
}

/// Takes bytes until so many are held; whether they are.
fn hold(held: &mut Vec<u8>, wanted: usize, input: &mut &[u8]) -> bool {
    let missing = wanted.saturating_sub(held.len()).min(input.len());
    let (taken, rest) = input.split_at(missing);
    held.extend_from_slice(taken);
    *input = rest;
    held.len() >= wanted
}

/// The part of `count` bytes that is there, and how many are still to come.
fn piece<'a>(count: u32, input: &mut &'a [u8]) -> (&'a [u8], u32) {
    let here = usize::try_from(count).unwrap_or(usize::MAX).min(input.len());
    let (piece, rest) = input.split_at(here);
    *input = rest;
    (piece, count - u32::try_from(here).unwrap_or(count))
}

/// (gggg,0010-00FF) of a private group: whose the elements are.
fn is_creator(tag: Tag) -> bool {
    (tag.0 >> 16) % 2 == 1 && (0x10..=0xff).contains(&(tag.0 & 0xffff))
}

/// Two letters where a length should be: no first element is that long.
fn looks_explicit(header: &[u8]) -> bool {
    header.get(4..6).is_some_and(|vr| vr.iter().all(u8::is_ascii_uppercase))
}
