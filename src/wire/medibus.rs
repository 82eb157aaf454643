//! MEDIBUS framing: commands `ESC code argument sum CR` and answers `SOH code data sum CR` on a serial line (Draeger, "RS 232 MEDIBUS Protocol
//! Definition", 90 28 258, revisions 4.03 and 6.00: structure of commands, structure of responses, realtime extension).
//!
//! [`Decoder`] is pushed bytes and pulled events. What it must never do: take a frame for whole whose sum does not say so, grow with
//! what a peer sends, or wait for a byte that may not come. Its rules:
//!
//! * Bytes with the highest bit set are the waveforms of the realtime extension, a second stream between the bytes of frames: they are
//!   split off before anything else is looked at, and counted.
//! * XON and XOFF come between any two bytes; they are told and belong to no frame.
//! * The sum is that of all bytes before it, modulo 256, in two hexadecimal digits.
//! * A frame that begins inside another is read first, and the other goes on after it: each side may ask while the other answers. With
//!   the CR of a frame lost, its rest is given up at the second frame after it.
//! * A frame over [`FRAME_BYTES_MAX`] is given up as corrupt and skipped up to the next `ESC` or `SOH`.
//!
//! What the data mean is in [`super::medibus_data`].

/// Bytes of a frame that are kept: many times what a device has to say at once (256 values of 6 bytes).
pub const FRAME_BYTES_MAX: usize = 16 << 10;
/// Bytes of a command's argument at most.
pub const ARGUMENT_BYTES_MAX: usize = 251;
/// A frame has its first byte, its code and its sum at least.
const FRAME_BYTES_MIN: usize = 4;

/// Begins a command.
pub const ESC: u8 = 0x1b;
/// Begins an answer.
pub const SOH: u8 = 0x01;
/// Ends both.
pub const CR: u8 = b'\r';
/// Flow control in band: one of them stops the line, the other lets it go on.
pub const XON: u8 = 0x11;
/// The other one.
pub const XOFF: u8 = 0x13;

/// Codes of commands, and of the answers to them. None of them changes how a device treats its patient.
pub mod code {
    /// Answer to a command whose sum was wrong.
    pub const CORRUPT: u8 = 0x15;
    /// Measured data, code page 1.
    pub const MEASURED_1: u8 = 0x24;
    /// Low alarm limits, code page 1.
    pub const LOW_1: u8 = 0x25;
    /// High alarm limits, code page 1.
    pub const HIGH_1: u8 = 0x26;
    /// Alarms that are present, code page 1.
    pub const ALARMS_1: u8 = 0x27;
    /// The device's clock.
    pub const DATE_TIME: u8 = 0x28;
    /// Settings.
    pub const SETTINGS: u8 = 0x29;
    /// Text messages: modes and states.
    pub const TEXTS: u8 = 0x2a;
    /// Measured data, code page 2.
    pub const MEASURED_2: u8 = 0x2b;
    /// Low alarm limits, code page 2.
    pub const LOW_2: u8 = 0x2c;
    /// High alarm limits, code page 2.
    pub const HIGH_2: u8 = 0x2d;
    /// Alarms that are present, code page 2.
    pub const ALARMS_2: u8 = 0x2e;
    /// Nothing, so that the line does not count as dead.
    pub const NOP: u8 = 0x30;
    /// The device's clock was set.
    pub const TIME_CHANGED: u8 = 0x49;
    /// Which data codes the answers are to hold.
    pub const CONFIGURE: u8 = 0x4a;
    /// Initialise the communication (ICC).
    pub const INITIALISE: u8 = 0x51;
    /// Who are you?
    pub const IDENTIFY: u8 = 0x52;
    /// End of the communication.
    pub const STOP: u8 = 0x55;
}

/// Which of the two kinds a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lead {
    /// `ESC`: it wants an answer.
    Command,
    /// `SOH`: it is one.
    Response,
}

/// A frame whose sum is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its kind.
    pub lead: Lead,
    /// Its code: that of the command, in an answer too.
    pub code: u8,
    /// Argument or data.
    pub data: &'a [u8],
    /// All of it from `ESC` or `SOH` to `CR`, without what was interleaved.
    pub raw: &'a [u8],
}

/// What the decoder found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// A frame.
    Frame(Frame<'a>),
    /// A frame whose sum is wrong, that is too short or too long.
    Corrupt(Lead),
    /// [`XON`] or [`XOFF`].
    Flow(u8),
}

/// What passed by beside frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Bytes of waveforms.
    pub realtime: u64,
    /// Bytes that belong to no whole frame.
    pub junk: u64,
}

/// Takes frames out of a byte stream. See the head of this file for its rules.
#[derive(Debug, Default)]
pub struct Decoder {
    /// The frame that is being read, from its first byte.
    frame: Vec<u8>,
    /// The frame that it interrupted.
    outer: Vec<u8>,
    /// The last one that ended.
    ended: Vec<u8>,
    counts: Counts,
}

impl Decoder {
    /// A decoder at the beginning of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next event in `input`, which moves on behind what was looked at. `None`: all of it was.
    pub fn pull<'a>(&'a mut self, input: &mut &[u8]) -> Option<Event<'a>> {
        while let Some((&byte, rest)) = input.split_first() {
            *input = rest;
            match byte {
                0x80.. => self.counts.realtime += 1,
                XON | XOFF => return Some(Event::Flow(byte)),
                ESC | SOH => self.open(byte),
                CR if !self.frame.is_empty() => {
                    return Some(self.close());
                }
                _ if self.frame.is_empty() => self.counts.junk += 1,
                _ if self.frame.len() == FRAME_BYTES_MAX => {
                    let lead = lead_of(&self.frame);
                    self.give_up();
                    return Some(Event::Corrupt(lead));
                }
                _ => self.frame.push(byte),
            }
        }
        None
    }

    /// Whether a frame has begun and not ended.
    pub fn is_in_frame(&self) -> bool {
        !self.frame.is_empty()
    }

    /// Forgets a frame that has begun: its rest does not come.
    pub fn give_up(&mut self) {
        self.counts.junk += (self.frame.len() + self.outer.len()) as u64;
        self.frame.clear();
        self.outer.clear();
    }

    /// What passed by since the last call.
    pub fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    fn open(&mut self, byte: u8) {
        if !self.frame.is_empty() {
            // Two deep and no more: of three the first will not end.
            self.counts.junk += self.outer.len() as u64;
            self.outer.clear();
            std::mem::swap(&mut self.frame, &mut self.outer);
        }
        self.frame.push(byte);
    }

    fn close(&mut self) -> Event<'_> {
        self.frame.push(CR);
        std::mem::swap(&mut self.frame, &mut self.ended);
        self.frame.clear();
        std::mem::swap(&mut self.frame, &mut self.outer);
        let event = read(&self.ended);
        if matches!(event, Event::Corrupt(_)) {
            self.counts.junk += self.ended.len() as u64;
        }
        event
    }
}

fn lead_of(frame: &[u8]) -> Lead {
    if frame.first() == Some(&ESC) { Lead::Command } else { Lead::Response }
}

/// `raw` begins with `ESC` or `SOH` and ends with `CR`.
fn read(raw: &[u8]) -> Event<'_> {
    let lead = lead_of(raw);
    let body = raw.strip_suffix(&[CR]).unwrap_or(raw);
    let Some((summed, said)) = body.split_last_chunk::<2>() else { return Event::Corrupt(lead) };
    let (Some(&code), Some(data)) = (summed.get(1), summed.get(2..)) else { return Event::Corrupt(lead) };
    if hex(*said) != Some(sum(summed)) {
        return Event::Corrupt(lead);
    }
    Event::Frame(Frame { lead, code, data, raw })
}

/// Writes a command at the end of `out`. What of `argument` is beyond [`ARGUMENT_BYTES_MAX`] is left out.
pub fn command(code: u8, argument: &[u8], out: &mut Vec<u8>) {
    let argument = argument.get(..ARGUMENT_BYTES_MAX).unwrap_or(argument);
    write(ESC, code, argument, out);
}

/// Writes an answer at the end of `out`.
pub fn response(code: u8, data: &[u8], out: &mut Vec<u8>) {
    write(SOH, code, data, out);
}

fn write(lead: u8, code: u8, data: &[u8], out: &mut Vec<u8>) {
    let begin = out.len();
    out.reserve(data.len() + FRAME_BYTES_MIN + 1);
    out.extend_from_slice(&[lead, code]);
    out.extend_from_slice(data);
    let sum = sum(out.get(begin..).unwrap_or_default());
    out.extend_from_slice(&digits(sum));
    out.push(CR);
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
}

/// The byte in two hexadecimal digits.
pub fn digits(byte: u8) -> [u8; 2] {
    const DIGITS: [u8; 16] = *b"0123456789ABCDEF";
    [byte >> 4, byte & 15].map(|digit| DIGITS.get(usize::from(digit)).copied().unwrap_or(b'0'))
}

/// The byte that two hexadecimal digits write; some devices write small letters.
pub fn hex(digits: [u8; 2]) -> Option<u8> {
    let [high, low] = digits.map(|digit| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok()));
    Some(high? << 4 | low?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kind, code and data of each frame; `!` for a corrupt one.
    fn frames(stream: &[u8], chunk: usize) -> Vec<String> {
        let (mut decoder, mut seen) = (Decoder::new(), Vec::new());
        for mut input in stream.chunks(chunk) {
            while let Some(event) = decoder.pull(&mut input) {
                seen.push(match event {
                    Event::Frame(Frame { lead, code, data, .. }) => {
                        let lead = if lead == Lead::Command { "?" } else { "=" };
                        format!("{lead}{code:02X}{}", String::from_utf8_lossy(data))
                    }
                    Event::Corrupt(_) => "!".to_owned(),
                    Event::Flow(byte) => format!("{byte:02X}"),
                });
            }
        }
        seen
    }

    #[test]
    fn the_vectors_of_the_protocol_are_written_and_read() {
        let asked: [(u8, &[u8]); 4] = [
            (code::INITIALISE, &[0x1b, 0x51, 0x36, 0x43, 0x0d]),
            (code::IDENTIFY, &[0x1b, 0x52, 0x36, 0x44, 0x0d]),
            (code::NOP, &[0x1b, 0x30, 0x34, 0x42, 0x0d]),
            (code::MEASURED_1, &[0x1b, 0x24, 0x33, 0x46, 0x0d]),
        ];
        for (code, bytes) in asked {
            let mut out = Vec::new();
            command(code, b"", &mut out);
            assert_eq!(out, bytes);
            assert_eq!(frames(bytes, 1), [format!("?{code:02X}")]);
        }
        let mut out = Vec::new();
        response(code::INITIALISE, b"", &mut out);
        assert_eq!(out, [0x01, 0x51, 0x35, 0x32, 0x0d]);
        let peep = b"\x01\x2478   529\r";
        out.clear();
        response(code::MEASURED_1, b"78   5", &mut out);
        assert_eq!(out, peep);
        assert_eq!(frames(peep, 3), ["=2478   5"]);
    }

    #[test]
    fn waveforms_and_flow_control_between_all_bytes_change_no_frame() {
        let mut stream = Vec::new();
        for &byte in b"\x01\x2478   529\r" {
            stream.extend_from_slice(&[0xd3, 0xc6, 0xc0, 0x85, 0xbf, byte]);
        }
        stream.extend_from_slice(b"\x01\x24\x1378\x11   529\r");
        assert_eq!(frames(&stream, 7), ["=2478   5", "13", "11", "=2478   5"]);
        let mut decoder = Decoder::new();
        let mut input = &stream[..];
        while decoder.pull(&mut input).is_some() {}
        assert_eq!(decoder.take_counts(), Counts { realtime: 5 * 11, junk: 0 });
    }

    #[test]
    fn a_wrong_sum_and_a_frame_too_short_are_corrupt_and_the_next_one_is_read() {
        assert_eq!(frames(b"\x01\x2478   528\r\x01Q52\r", 4), ["!", "=51"]);
        assert_eq!(frames(b"\x01\r\x01Q\r\x01Q5\r\x1b\r", 1), ["!", "!", "!", "!"]);
        assert_eq!(frames(b"?? 29\r\x01Q52\r\r", 5), ["=51"], "what stands between frames is no frame");
        assert_eq!(frames(b"\x01*\x030A2f\r", 9), ["!"]);
        assert_eq!(frames(b"\x1bQ6c\r", 9), ["?51"], "small letters");
    }

    #[test]
    fn a_command_in_the_middle_of_an_answer_and_an_answer_that_never_ends_are_both_understood() {
        assert_eq!(frames(b"\x01\x2478 \x1bR6D\r  529\r", 2), ["?52", "=2478   5"]);
        let cut = b"\x01\x2478 \x01Q52\r\x01Q52\r\x1b04B\r";
        assert_eq!(frames(cut, 1), ["=51", "=51", "?30"]);
    }

    #[test]
    fn an_endless_frame_takes_a_bounded_place_and_is_given_up() {
        let mut stream = vec![SOH];
        stream.resize(3 * FRAME_BYTES_MAX, b'7');
        stream.extend_from_slice(b"\r\x01Q52\r");
        assert_eq!(frames(&stream, 1000), ["!", "=51"]);
        let mut decoder = Decoder::new();
        assert_eq!(decoder.pull(&mut &b"\x01\x24"[..]), None);
        assert!(decoder.is_in_frame());
        decoder.give_up();
        assert_eq!((decoder.is_in_frame(), decoder.take_counts().junk), (false, 2));
    }

    #[test]
    fn an_argument_is_cut_at_its_limit() {
        let mut out = Vec::new();
        command(code::CONFIGURE, &[b'0'; 300], &mut out);
        assert_eq!(out.len(), ARGUMENT_BYTES_MAX + 5);
        assert_eq!(digits(0xaf), *b"AF");
        assert_eq!((hex(*b"aF"), hex(*b" 5"), hex(*b"G0")), (Some(0xaf), None, None));
    }
}
