//! MLLP: frames `VT body FS CR` around HL7 v2 messages on a byte stream (HL7 Implementation Guide, appendix C; MLLP release 1).
//!
//! [`Decoder`] is pushed bytes and pulled events. It looks at each byte once, keeps at most four of them back, and hands out a
//! body while it arrives, so memory does not grow with a frame. The same bytes give the same frames however they were cut into
//! reads. It must never lose a byte of a body, never panic on a peer's bytes, and never wait for a byte that may not come:
//!
//! * `FS CR` ends a frame, always. `FS LF` and `FS` before the next `VT` end it too, as quirks.
//! * `FS` before any other byte belongs to the body (MLLP can't escape it, yet some devices send it).
//! * A lone `FS` as the last byte for now is undecided ([`Decoder::is_undecided`]). When its caller sees that nothing more comes
//!   for a moment, [`Decoder::settle`] takes it for the end; a `CR` that comes later is swallowed with the white space.
//! * `VT` inside a frame belongs to the body, unless `MSH`, `FHS` or `BHS` follows: then the sender began anew, the frame so far is
//!   [`Event::Cut`], and the new one counts its bytes as discarded.
//! * Between frames white space is skipped, a line that begins with `MSH`, `FHS` or `BHS` begins a frame whose `VT` was lost, and all
//!   else is junk, counted. Junk before a `VT` does no harm to the frame after it; junk before a lost `VT` may be part of it and
//!   counts as discarded.
//! * A frame over the limit is announced once ([`Event::Oversize`]) and skipped up to its end.

use std::fmt;

/// Largest body unless the caller says otherwise, in bytes.
pub const BODY_BYTES_MAX: u64 = 64 << 20;

/// Start of block.
pub const VT: u8 = 0x0b;
/// End of block, the first of two bytes.
pub const FS: u8 = 0x1c;
/// End of block, both bytes.
pub const END: [u8; 2] = [FS, b'\r'];

/// Writes `body` as one frame at the end of `out`.
pub fn encode(body: &[u8], out: &mut Vec<u8>) {
    out.reserve(body.len() + 3);
    out.push(VT);
    out.extend_from_slice(body);
    out.extend_from_slice(&END);
}

/// What the decoder found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// The next bytes of the body of the present frame; the first of them begins a message. Never empty.
    Body(&'a [u8]),
    /// The frame is complete.
    End(End),
    /// The frame so far, of so many bytes, was abandoned by its sender: forget it. A new one follows.
    Cut(u64),
    /// The frame is larger than the limit: forget it; its remaining bytes are not handed out. Its [`Event::End`] follows.
    Oversize,
    /// So many bytes between frames were thrown away.
    Junk(u64),
}

/// How a frame ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Bytes of its body; 0 for an empty frame, which some devices send to keep the connection alive.
    pub length: u64,
    /// What was not as it should be.
    pub quirks: Quirks,
    /// Bytes that may have been part of the message and were thrown away: it can't be accepted.
    pub discarded: u64,
}

/// What was not as it should be about a frame, each with a stable code for logs.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Quirks(u16);

impl Quirks {
    /// The frame began with its header, without `VT`.
    pub const MISSING_VT: Self = Self(1);
    /// `FS` without `CR`.
    pub const FS_WITHOUT_CR: Self = Self(1 << 1);
    /// `FS LF` instead of `FS CR`.
    pub const FS_LF: Self = Self(1 << 2);
    /// `FS` as a byte of the body.
    pub const FS_IN_BODY: Self = Self(1 << 3);
    /// `VT` as a byte of the body.
    pub const VT_IN_BODY: Self = Self(1 << 4);
    /// Bytes between the frame before and this one.
    pub const JUNK_BEFORE: Self = Self(1 << 5);
    /// White space before the header.
    pub const LEADING_WHITE_SPACE: Self = Self(1 << 6);
    /// No body.
    pub const EMPTY_FRAME: Self = Self(1 << 7);
    /// The sender began the frame anew before it had ended.
    pub const BEGUN_ANEW: Self = Self(1 << 8);
    /// Larger than the limit.
    pub const OVERSIZE: Self = Self(1 << 9);

    const CODES: [(Self, &'static str); 10] = [
        (Self::MISSING_VT, "missing-vt"),
        (Self::FS_WITHOUT_CR, "fs-without-cr"),
        (Self::FS_LF, "fs-lf"),
        (Self::FS_IN_BODY, "fs-in-body"),
        (Self::VT_IN_BODY, "vt-in-body"),
        (Self::JUNK_BEFORE, "junk-before"),
        (Self::LEADING_WHITE_SPACE, "leading-white-space"),
        (Self::EMPTY_FRAME, "empty-frame"),
        (Self::BEGUN_ANEW, "begun-anew"),
        (Self::OVERSIZE, "oversize"),
    ];

    /// Both together.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is set here and not in `other`.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether all of `other` is set.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether the frame was as it should be.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// The codes, separated by commas.
impl fmt::Display for Quirks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (_, code) in Self::CODES.iter().filter(|(quirk, _)| self.has(*quirk)) {
            write!(f, "{separator}{code}")?;
            separator = ",";
        }
        Ok(())
    }
}

impl fmt::Debug for Quirks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{self}]")
    }
}

/// Takes frames out of a byte stream. See the head of this file for its rules.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    limit: u64,
    frame: End,
    /// Junk since the last frame.
    junk: u64,
}

/// Each state is one place in the stream at which a read may end.
#[derive(Debug, Clone, Copy)]
enum State {
    /// Outside of frames; whether only white space came since the line or the connection began.
    Between {
        line_start: bool,
    },
    /// Outside of frames, with the beginning of a header in hand.
    Opening(Prefix),
    Body,
    /// In a frame, with an `FS` in hand.
    AfterFs,
    /// In a frame, with a `VT` and perhaps the beginning of a header in hand.
    AfterVt(Prefix),
    /// The same, all but the last byte of the header, and the frame before it is cut.
    Anew(Prefix),
}

/// The first bytes of `VT MSH`, `VT FHS` or `VT BHS` that have been seen.
#[derive(Debug, Clone, Copy)]
struct Prefix {
    text: &'static [u8; 4],
    /// How many, counting the `VT` (which between frames is not there).
    held: usize,
}

const STARTS: [&[u8; 4]; 3] = [b"\x0bMSH", b"\x0bFHS", b"\x0bBHS"];

impl Prefix {
    /// The prefix that `byte` makes of a `VT` alone.
    fn of(byte: u8) -> Option<Self> {
        STARTS.iter().find(|text| text[1] == byte).map(|text| Self { text, held: 2 })
    }

    fn longer_by(self, byte: u8) -> Option<Self> {
        (self.text.get(self.held) == Some(&byte)).then_some(Self { held: self.held + 1, ..self })
    }

    fn is_whole(self) -> bool {
        self.held == self.text.len()
    }

    fn with_vt(self) -> &'static [u8] {
        &self.text[..self.held]
    }

    fn without_vt(self) -> &'static [u8] {
        &self.text[1..self.held]
    }
}

const NOTHING: End = End { length: 0, quirks: Quirks(0), discarded: 0 };

impl Decoder {
    /// A decoder at the beginning of a stream; bodies of more than `limit` bytes are skipped.
    pub fn new(limit: u64) -> Self {
        Self { state: State::Between { line_start: true }, limit, frame: NOTHING, junk: 0 }
    }

    /// The next event in `input`, which moves on behind what was looked at. `None`: all of it was.
    pub fn pull<'a>(&mut self, input: &mut &'a [u8]) -> Option<Event<'a>> {
        while let Some((&byte, rest)) = input.split_first() {
            let event = match self.state {
                State::Body => self.body(input),
                State::Between { line_start } => self.between(line_start, input),
                State::AfterFs => self.after_fs(byte, rest, input),
                State::Opening(prefix) => self.opening(prefix, byte, rest, input),
                State::AfterVt(prefix) => self.after_vt(prefix, byte, rest, input),
                State::Anew(prefix) => {
                    *input = rest;
                    self.state = State::Body;
                    self.take(prefix.without_vt())
                }
            };
            if event.is_some() {
                return event;
            }
        }
        None
    }

    /// Nothing more comes for now, or ever: a lone `FS` is the end of its frame.
    pub fn settle(&mut self) -> Option<End> {
        self.is_undecided().then(|| self.end(Quirks::FS_WITHOUT_CR))
    }

    /// Whether the last byte was an `FS` that may or may not end its frame.
    pub fn is_undecided(&self) -> bool {
        matches!(self.state, State::AfterFs)
    }

    /// Whether a frame has begun and not ended.
    pub fn is_in_frame(&self) -> bool {
        !matches!(self.state, State::Between { .. } | State::Opening(_))
    }

    /// Bytes of the present frame's body so far.
    pub fn length(&self) -> u64 {
        self.frame.length
    }

    fn between<'a>(&mut self, mut line_start: bool, input: &mut &'a [u8]) -> Option<Event<'a>> {
        let mut junk = 0;
        self.state = loop {
            let Some((&byte, rest)) = input.split_first() else { break State::Between { line_start } };
            if byte != VT && junk > 0 && line_start && Prefix::of(byte).is_some() {
                break State::Between { line_start }; // tell of the junk before what follows it
            }
            *input = rest;
            match byte {
                VT => {
                    self.begin(junk);
                    break State::Body;
                }
                b'\r' | b'\n' => line_start = true,
                b' ' | b'\t' => {}
                _ => match Prefix::of(byte).filter(|_| line_start) {
                    Some(prefix) => break State::Opening(prefix),
                    None => (junk, line_start) = (junk + 1, false),
                },
            }
        };
        self.scrap(junk)
    }

    /// A frame begins with its `VT`: what was thrown away before it was not part of it.
    fn begin(&mut self, junk: u64) {
        let quirks = if self.junk + junk > 0 { Quirks::JUNK_BEFORE } else { Quirks(0) };
        self.frame = End { quirks, ..NOTHING };
    }

    fn scrap<'a>(&mut self, junk: u64) -> Option<Event<'a>> {
        self.junk += junk;
        (junk > 0).then_some(Event::Junk(junk))
    }

    fn opening<'a>(&mut self, prefix: Prefix, byte: u8, rest: &'a [u8], input: &mut &'a [u8]) -> Option<Event<'a>> {
        let Some(prefix) = prefix.longer_by(byte) else {
            self.state = State::Between { line_start: false };
            return self.scrap(prefix.without_vt().len() as u64);
        };
        *input = rest;
        if !prefix.is_whole() {
            self.state = State::Opening(prefix);
            return None;
        }
        self.begin(0);
        self.frame.quirks = self.frame.quirks.with(Quirks::MISSING_VT);
        self.frame.discarded = self.junk;
        self.state = State::Body;
        self.take(prefix.without_vt())
    }

    fn body<'a>(&mut self, input: &mut &'a [u8]) -> Option<Event<'a>> {
        let run = memchr::memchr2(FS, VT, input).unwrap_or(input.len());
        let (body, rest) = input.split_at(run);
        *input = rest;
        if let Some((&byte, rest)) = rest.split_first() {
            *input = rest;
            self.state = if byte == FS { State::AfterFs } else { State::AfterVt(Prefix { text: STARTS[0], held: 1 }) };
        }
        self.take(body)
    }

    fn after_fs<'a>(&mut self, byte: u8, rest: &'a [u8], input: &mut &'a [u8]) -> Option<Event<'a>> {
        let quirk = match byte {
            b'\r' => Quirks(0),
            b'\n' => Quirks::FS_LF,
            VT => return Some(Event::End(self.end(Quirks::FS_WITHOUT_CR))),
            _ => {
                // The byte itself is looked at again, unless it is an FS, which takes the place of the one in hand.
                if byte == FS {
                    *input = rest;
                } else {
                    self.state = State::Body;
                }
                return self.take_odd(&[FS], Quirks::FS_IN_BODY);
            }
        };
        *input = rest;
        Some(Event::End(self.end(quirk)))
    }

    fn after_vt<'a>(&mut self, prefix: Prefix, byte: u8, rest: &'a [u8], input: &mut &'a [u8]) -> Option<Event<'a>> {
        let longer = if prefix.held == 1 { Prefix::of(byte) } else { prefix.longer_by(byte) };
        match longer {
            None => {
                self.state = State::Body;
                self.take_odd(prefix.with_vt(), Quirks::VT_IN_BODY)
            }
            Some(longer) if longer.is_whole() => {
                let lost = self.frame.length;
                let discarded = self.frame.discarded + lost;
                self.frame = End { length: 0, quirks: Quirks::BEGUN_ANEW, discarded };
                self.state = State::Anew(longer);
                (lost > 0).then_some(Event::Cut(lost)) // VT VT MSH lost nothing
            }
            Some(longer) => {
                *input = rest;
                self.state = State::AfterVt(longer);
                None
            }
        }
    }

    fn take_odd<'a>(&mut self, bytes: &'a [u8], quirk: Quirks) -> Option<Event<'a>> {
        self.frame.quirks = self.frame.quirks.with(quirk);
        self.take(bytes)
    }

    /// Counts bytes of the body and hands them out, within the limit.
    fn take<'a>(&mut self, bytes: &'a [u8]) -> Option<Event<'a>> {
        let first = bytes.first()?;
        if self.frame.length == 0 && first.is_ascii_whitespace() {
            self.frame.quirks = self.frame.quirks.with(Quirks::LEADING_WHITE_SPACE);
        }
        self.frame.length += bytes.len() as u64;
        if self.frame.length <= self.limit {
            return Some(Event::Body(bytes));
        }
        let known = self.frame.quirks.has(Quirks::OVERSIZE);
        self.frame.quirks = self.frame.quirks.with(Quirks::OVERSIZE);
        (!known).then_some(Event::Oversize)
    }

    fn end(&mut self, quirk: Quirks) -> End {
        let mut end = self.frame;
        end.quirks = end.quirks.with(quirk);
        if end.length == 0 {
            end.quirks = end.quirks.with(Quirks::EMPTY_FRAME);
        }
        self.frame = NOTHING;
        self.junk = 0;
        self.state = State::Between { line_start: true };
        end
    }
}
