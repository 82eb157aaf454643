//! ASTM E1381 framing (CLSI LIS01-A2), the receiver's side: an analyser asks for the line with ENQ, sends frames
//! `STX number text (ETB|ETX) C1 C2 CR LF` and ends with EOT; we answer ACK or NAK. We never ask for the line ourselves, so there is
//! no contention that we could lose, and never interrupt.
//!
//! [`Receiver`] is pushed bytes and pulled events, each with the answer that is due ([`Event::answer`]). The same bytes give the same
//! events however they were cut into reads. It holds one frame, at most [`TEXT_BYTES_MAX`], and must never panic on a peer's bytes,
//! nor take a frame for a second copy that is none:
//!
//! * A frame is good when its checksum is (sum from the number up to and with ETB or ETX, modulo 256, two hexadecimal digits of either
//!   case) and its number is the next one (modulo 8, from 1 after each ENQ). The caller stores it, then says [`Receiver::accept`].
//! * The number **and the text** of the frame before: our ACK was lost; it is acknowledged again and nothing more ([`Event::Repeat`]).
//!   The same number with another text, or a header under the number 1, is a device that counts in its own way: taken.
//! * A frame that is not good is refused once it is over, behind its CR LF: what is said while it is sent, a device may not hear.
//! * CR LF at the end may be missing: [`Receiver::settle`] ends such a frame when nothing more comes for a moment.
//! * ENQ begins a transfer anew, EOT ends it; ENQ EOT is a keep-alive; STX inside a frame begins the frame anew. ENQ or EOT inside a
//!   frame is one only when nothing follows it for a moment, or another of these three: else it is a damaged byte of the frame, and an
//!   answer to it would be taken for the frame's.
//! * Text between STX and ETX that does not begin with a frame number is not ASTM: handed out as [`Event::Other`]. It is a damaged
//!   frame where its sender has sent good ones in this transfer, or where a record begins behind the first byte.
//! * A line that begins with `H` and three delimiters outside of frames is E1394 without framing: handed out as
//!   [`Event::Bare`] up to its L record; nothing answers it.
//! * What follows a frame that is not good, up to the next STX, ENQ or EOT or, outside of transfers, up to a pause, is the rest of it: a byte
//!   of it was damaged to ETX. It is never read as records.
//! * A frame without ENQ before it is [`Event::Stray`]: after a restart of ours it may go on where a transfer was.

/// Longest text of a frame, in bytes: E1381 knows 240, LIS01-A2 64 000 over TCP.
pub const TEXT_BYTES_MAX: usize = 64 << 10;

/// Start of a frame.
pub const STX: u8 = 0x02;
/// End of the last frame of a record.
pub const ETX: u8 = 0x03;
/// End of a transfer.
pub const EOT: u8 = 0x04;
/// Asks for the line.
pub const ENQ: u8 = 0x05;
/// Taken.
pub const ACK: u8 = 0x06;
/// Not taken; or, after ENQ, busy.
pub const NAK: u8 = 0x15;
/// End of a frame whose record goes on in the next.
pub const ETB: u8 = 0x17;

/// A frame whose checksum is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// 0 to 7.
    pub number: u8,
    /// Between the number and ETB or ETX, usually with the CR of its records.
    pub text: Vec<u8>,
    /// It ended with ETX: a record ends with it.
    pub last: bool,
}

impl Frame {
    /// What makes a second copy recognisable together with the number.
    pub fn fingerprint(&self) -> u64 {
        fingerprint(&self.text)
    }
}

/// FNV-1a, 64 bits: texts of one device that follow each other are compared with it, nothing else.
pub fn fingerprint(text: &[u8]) -> u64 {
    text.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Why a frame is not good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The sum is another one.
    Checksum,
    /// No two hexadecimal digits behind ETB or ETX.
    Malformed,
    /// Neither the next number nor a repetition, or none at all.
    Number,
    /// Over [`TEXT_BYTES_MAX`].
    TooLong,
}

impl Fault {
    /// In words, for logs.
    pub fn words(self) -> &'static str {
        match self {
            Self::Checksum => "its checksum is wrong",
            Self::Malformed => "it has no checksum",
            Self::Number => "its number is not the next one",
            Self::TooLong => "it is too long",
        }
    }
}

/// What the receiver found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A transfer begins. `cut`: another was under way, which never ends now.
    Enquiry {
        /// See above.
        cut: bool,
    },
    /// A good frame: store it, then [`Receiver::accept`] it; its answer is due after that.
    Frame(Frame),
    /// A frame with a right checksum, and no ENQ before it. [`Receiver::judge`] after [`Receiver::resume`] makes another event of it.
    Stray(Frame),
    /// The frame before again: it is stored already.
    Repeat,
    /// A frame that the sender must repeat.
    BadFrame(Fault),
    /// EOT: the transfer is over, or there was none.
    End {
        /// Frames that were accepted in it; 0 after ENQ is a keep-alive.
        frames: u64,
    },
    /// Text between STX and ETX that is not ASTM: store it, then answer.
    Other(Vec<u8>),
    /// Records without framing: some bytes of them, in order; up to and with an L record at most.
    Bare(Vec<u8>),
    /// So many bytes that belong to nothing.
    Junk(u64),
}

impl Event {
    /// What the analyser is told when all went well: ACK, NAK or nothing.
    pub fn answer(&self) -> Option<u8> {
        match self {
            Self::Enquiry { .. } | Self::Frame(_) | Self::Repeat | Self::Other(_) => Some(ACK),
            Self::Stray(_) | Self::BadFrame(_) => Some(NAK),
            Self::End { .. } | Self::Bare(_) | Self::Junk(_) => None,
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Receiver {
    place: Place,
    text: Vec<u8>,
    /// Bytes that belong to nothing since the last event.
    junk: u64,
    /// ENQ or EOT inside a frame, before what follows tells what it is.
    held: Option<u8>,
    transfer: Option<Transfer>,
}

/// Between ENQ and EOT.
#[derive(Debug, Clone, Copy, Default)]
struct Transfer {
    frames: u64,
    /// Number and fingerprint of the frame that was accepted last.
    last: Option<(u8, u64)>,
}

/// Each is a place in the stream at which a read may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Place {
    /// Outside of frames, at the beginning of a line.
    #[default]
    LineStart,
    /// Outside of frames.
    Between,
    /// Behind STX.
    Number,
    /// In a frame.
    Text(Head),
    /// Behind ETB or ETX; the first digit of the checksum if it came.
    Check(Head, bool, Option<u8>),
    /// Behind the checksum: CR LF may follow. Whether CR did.
    Tail(Head, bool, bool),
    /// In a frame that is too long.
    Overlong,
    /// Behind a frame that is not good: what comes may be the rest of it.
    Damaged,
    /// Between STX and ETX in text that is not ASTM.
    Other,
    /// Behind it: so many digits of a checksum may follow.
    OtherTail(u8),
    /// In the `H` and its delimiters, which are in `text`.
    Opening,
    /// In records without framing: the type of the present one, 0 before it is known.
    Bare(u8),
}

/// What is known of a frame before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    number: u8,
    sum: u8,
    /// Why it is not good, as far as is known.
    fault: Option<Fault>,
}

impl Receiver {
    /// The next event in `input`, which moves on behind what was looked at. `None`: all of it was.
    pub fn pull(&mut self, input: &mut &[u8]) -> Option<Event> {
        while let Some((&byte, rest)) = input.split_first() {
            if let Some(control) = self.held.take() {
                if is_control(byte) {
                    return Some(self.control(control));
                }
                self.within(control);
            }
            if let Some(event) = self.ended_without(byte) {
                return Some(event);
            }
            // What belongs to nothing is told before what comes after it.
            if self.junk > 0 && is_control(byte) {
                return self.scrap();
            }
            *input = rest;
            if let Some(event) = self.step(byte) {
                return Some(event);
            }
        }
        if matches!(self.place, Place::LineStart | Place::Between | Place::Damaged) { self.scrap() } else { None }
    }

    /// Nothing more comes for a moment: a frame of which only CR LF is missing is over, and ENQ or EOT inside a frame is one.
    pub fn settle(&mut self) -> Option<Event> {
        if let Some(control) = self.held.take() {
            return Some(self.control(control));
        }
        match self.place {
            Place::Tail(head, last, _) | Place::Check(head @ Head { fault: Some(_), .. }, last, _) => {
                Some(self.whole(head, last))
            }
            // In a transfer its sender is to say the frame again, and may pause before it does.
            Place::Damaged if self.transfer.is_none() => {
                self.place = Place::LineStart;
                self.scrap()
            }
            _ => None,
        }
    }

    /// Nothing more comes for long: what has begun is given up. Records without framing are handed out as they are; the transfer is over.
    pub fn give_up(&mut self) -> Option<Event> {
        let settled = self.settle();
        if settled.is_some() {
            return settled;
        }
        let text = std::mem::take(&mut self.text);
        let place = std::mem::take(&mut self.place);
        self.transfer = None;
        match place {
            Place::Bare(_) if !text.is_empty() => Some(Event::Bare(text)),
            _ => {
                self.junk += text.len() as u64;
                self.scrap()
            }
        }
    }

    /// The frame of the last event is stored.
    pub fn accept(&mut self, number: u8, fingerprint: u64) {
        let transfer = self.transfer.get_or_insert_default();
        transfer.frames += 1;
        transfer.last = Some((number, fingerprint));
    }

    /// A transfer goes on behind the frame that was accepted last, `None`: with its first.
    pub fn resume(&mut self, last: Option<(u8, u64)>) {
        self.transfer = Some(Transfer { frames: u64::from(last.is_some()), last });
    }

    /// Whether a frame of this number and fingerprint goes on behind `last` or repeats it: for deciding on an [`Event::Stray`].
    pub fn fits(last: (u8, u64), frame: &Frame) -> bool {
        frame.number == (last.0 + 1) % 8 || (frame.number, frame.fingerprint()) == last
    }

    /// What a frame is in the present transfer.
    pub fn judge(&self, frame: Frame) -> Event {
        let Some(transfer) = &self.transfer else { return Event::Stray(frame) };
        let is_header = frame.number == 1 && frame.text.first() == Some(&b'H');
        match transfer.last {
            None if frame.number <= 1 => Event::Frame(frame),
            Some(last) if last == (frame.number, frame.fingerprint()) => Event::Repeat,
            // With the number of the one before it is another frame: it must not get lost.
            Some((last, _)) if [last, (last + 1) % 8].contains(&frame.number) || is_header => Event::Frame(frame),
            _ => Event::BadFrame(Fault::Number),
        }
    }

    /// Whether a transfer is under way.
    pub fn is_in_transfer(&self) -> bool {
        self.transfer.is_some()
    }

    /// Whether a frame, or records without framing, have begun and not ended.
    pub fn is_in_frame(&self) -> bool {
        !matches!(self.place, Place::LineStart | Place::Between | Place::Damaged | Place::OtherTail(_))
    }

    /// Bytes of text that are held.
    pub fn held(&self) -> usize {
        self.text.len()
    }

    /// Whether it matters that nothing more comes for a moment: see [`Self::settle`].
    pub fn is_undecided(&self) -> bool {
        let is_over = matches!(self.place, Place::Tail(..) | Place::Check(Head { fault: Some(_), .. }, ..));
        is_over || self.held.is_some() || self.place == Place::Damaged && self.transfer.is_none()
    }

    /// What `byte` ends without being part of it: a frame that has no CR LF, records without framing that have no L record.
    fn ended_without(&mut self, byte: u8) -> Option<Event> {
        if matches!(self.place, Place::Bare(_)) && is_control(byte) {
            self.place = Place::LineStart;
            let text = std::mem::take(&mut self.text);
            return (!text.is_empty()).then_some(Event::Bare(text));
        }
        let Place::Tail(head, last, after_cr) = self.place else { return None };
        let expected = if after_cr { byte == b'\n' } else { matches!(byte, b'\r' | b'\n') };
        (!expected).then(|| self.whole(head, last))
    }

    fn step(&mut self, byte: u8) -> Option<Event> {
        match (self.place, byte) {
            (Place::Number | Place::Text(_) | Place::Check(..) | Place::Overlong | Place::Other, ENQ | EOT) => {
                self.held = Some(byte);
                None
            }
            (Place::Check(..) | Place::Tail(..) | Place::Number | Place::OtherTail(_), _) => self.around(byte),
            (_, ENQ | EOT) => Some(self.control(byte)),
            (_, STX) => {
                self.drop_text();
                self.place = Place::Number;
                self.scrap()
            }
            (Place::Text(head), _) => self.in_text(head, byte),
            (Place::Overlong, ETX | ETB) => {
                self.place = Place::Check(Head::bad(Fault::TooLong), true, None);
                None
            }
            (Place::Overlong, _) => None,
            (Place::Other, ETX | ETB) => self.other(),
            (Place::Other, _) => {
                self.keep(byte);
                None
            }
            (Place::Bare(kind), _) => self.bare(kind, byte),
            (Place::Damaged, _) => {
                // CR and LF may be the end of the frame itself.
                self.junk += u64::from(!matches!(byte, b'\r' | b'\n' | 0 | 0xff | ACK | NAK));
                None
            }
            (Place::Opening, _) => {
                self.opening(byte);
                None
            }
            _ => {
                self.between(byte);
                None
            }
        }
    }

    /// The bytes around a frame's text.
    fn around(&mut self, byte: u8) -> Option<Event> {
        match (self.place, byte) {
            // A frame that was cut behind ETX and is sent again at once.
            (Place::Check(..), STX) => {
                self.drop_text();
                self.place = Place::Number;
            }
            (Place::Check(head, last, first), _) => return self.check(head, last, first, byte),
            (Place::OtherTail(_), ENQ | EOT) => return Some(self.control(byte)),
            (Place::Number, b'0'..=b'7') => {
                self.place = Place::Text(Head { number: byte - b'0', sum: byte, fault: None });
            }
            // Of several only the last is the beginning.
            (_, STX) => self.place = Place::Number,
            (Place::Number, ETX | ETB) => self.place = Place::OtherTail(2),
            (Place::Number, _) => {
                self.place = Place::Other;
                self.keep(byte);
            }
            (Place::Tail(head, last, false), b'\r') => self.place = Place::Tail(head, last, true),
            (Place::Tail(head, last, _), _) => return Some(self.whole(head, last)),
            (Place::OtherTail(left), _) if left > 0 && byte.is_ascii_hexdigit() => {
                self.place = Place::OtherTail(left - 1);
            }
            _ => {
                self.place = Place::Between;
                self.between(byte);
            }
        }
        None
    }

    /// ENQ or EOT.
    fn control(&mut self, byte: u8) -> Event {
        self.drop_text();
        self.place = Place::LineStart;
        if byte == EOT {
            return Event::End { frames: self.transfer.take().map_or(0, |transfer| transfer.frames) };
        }
        let cut = self.transfer.replace(Transfer::default()).is_some_and(|transfer| transfer.frames > 0);
        Event::Enquiry { cut }
    }

    /// ENQ or EOT that was a damaged byte of a frame.
    fn within(&mut self, control: u8) {
        match self.place {
            Place::Text(head) => drop(self.in_text(head, control)),
            Place::Check(head, last, first) => drop(self.check(head, last, first, control)),
            Place::Number | Place::Other => {
                self.place = Place::Other;
                self.keep(control);
            }
            _ => {}
        }
    }

    /// Text between STX and ETX that has no frame number.
    fn other(&mut self) -> Option<Event> {
        let text = std::mem::take(&mut self.text);
        let speaks_astm = self.transfer.is_some_and(|transfer| transfer.last.is_some());
        if speaks_astm || is_record(text.get(1..).unwrap_or_default()) {
            self.junk += text.len() as u64;
            self.place = Place::Check(Head::bad(Fault::Number), true, None);
            return None;
        }
        self.place = Place::OtherTail(2);
        if text.is_empty() { None } else { Some(Event::Other(text)) }
    }

    fn in_text(&mut self, head: Head, byte: u8) -> Option<Event> {
        let head = Head { sum: head.sum.wrapping_add(byte), ..head };
        self.place = match byte {
            ETX | ETB => Place::Check(head, byte == ETX, None),
            _ if self.text.len() >= TEXT_BYTES_MAX => {
                self.drop_text();
                Place::Overlong
            }
            _ => {
                self.text.push(byte);
                Place::Text(head)
            }
        };
        None
    }

    fn check(&mut self, mut head: Head, last: bool, first: Option<u8>, byte: u8) -> Option<Event> {
        let digit = char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        if digit.is_none() {
            head.fault = head.fault.or(Some(Fault::Malformed));
            if matches!(byte, b'\r' | b'\n') {
                self.place = Place::Tail(head, last, byte == b'\r');
                return if byte == b'\n' { Some(self.whole(head, last)) } else { None };
            }
        }
        let digit = digit.unwrap_or_default();
        let Some(first) = first else {
            self.place = Place::Check(head, last, Some(digit));
            return None;
        };
        if first << 4 | digit != head.sum {
            head.fault = head.fault.or(Some(Fault::Checksum));
        }
        self.place = Place::Tail(head, last, false);
        None
    }

    fn whole(&mut self, head: Head, last: bool) -> Event {
        if let Some(fault) = head.fault {
            self.drop_text();
            self.place = Place::Damaged;
            return Event::BadFrame(fault);
        }
        self.place = Place::LineStart;
        let frame = Frame { number: head.number, text: std::mem::take(&mut self.text), last };
        self.judge(frame)
    }

    fn between(&mut self, byte: u8) {
        self.place = match byte {
            b'\r' | b'\n' => Place::LineStart,
            b'H' if self.place == Place::LineStart => {
                self.text.push(byte);
                Place::Opening
            }
            // Idle lines: serial adapters and terminal servers make these by themselves.
            0 | 0xff | ACK | NAK => self.place,
            _ => {
                self.junk += 1;
                Place::Between
            }
        };
    }

    fn opening(&mut self, byte: u8) {
        if !byte.is_ascii_punctuation() {
            self.drop_text();
            self.place = Place::Between;
            return self.between(byte);
        }
        self.text.push(byte);
        if self.text.len() > 3 {
            self.place = Place::Bare(b'H');
        }
    }

    fn bare(&mut self, kind: u8, byte: u8) -> Option<Event> {
        self.text.push(byte);
        let is_end = matches!(byte, b'\r' | b'\n');
        if is_end && kind == b'L' {
            self.place = Place::LineStart;
            return Some(Event::Bare(std::mem::take(&mut self.text)));
        }
        self.place = Place::Bare(match kind {
            _ if is_end => 0,
            0 => byte,
            kind => kind,
        });
        (self.text.len() >= TEXT_BYTES_MAX).then(|| Event::Bare(std::mem::take(&mut self.text)))
    }

    /// A byte of text that is not ASTM; over the limit the rest is not kept.
    fn keep(&mut self, byte: u8) {
        if self.text.len() >= TEXT_BYTES_MAX {
            self.drop_text();
            self.place = Place::Overlong;
        } else {
            self.text.push(byte);
        }
    }

    /// A frame that its sender gave up.
    fn drop_text(&mut self) {
        self.junk += self.text.len() as u64;
        self.text.clear();
    }

    fn scrap(&mut self) -> Option<Event> {
        let junk = std::mem::take(&mut self.junk);
        (junk > 0).then_some(Event::Junk(junk))
    }
}

impl Head {
    /// Of a frame that is not good, whatever its checksum says.
    fn bad(fault: Fault) -> Self {
        Self { number: 0, sum: 0, fault: Some(fault) }
    }
}

fn is_control(byte: u8) -> bool {
    matches!(byte, STX | ENQ | EOT)
}

/// Whether a record begins here: its type, then a delimiter.
fn is_record(text: &[u8]) -> bool {
    let [kind, delimiter, ..] = text else { return false };
    b"HPORCQMSL".contains(kind) && delimiter.is_ascii_punctuation()
}

/// Writes a frame as a device does, at the end of `out`.
pub fn encode(number: u8, text: &[u8], last: bool, out: &mut Vec<u8>) {
    let digit = b'0' + number % 8;
    let end = if last { ETX } else { ETB };
    let sum = text.iter().chain([&digit, &end]).fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    out.extend_from_slice(&[STX, digit]);
    out.extend_from_slice(text);
    out.push(end);
    out.extend_from_slice(format!("{sum:02X}\r\n").as_bytes());
}
