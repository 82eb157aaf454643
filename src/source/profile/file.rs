//! The form of a profile in its file, and everything that can be wrong with one, each at its line and column.

use std::ops::Range;
use std::str::FromStr;

use regex::bytes::{Regex, RegexBuilder};
use serde::Deserialize;
use serde_spanned::Spanned;

use super::number::Decimal;
use super::{Asking, Decoding, Field, Kind, LineSettings, Place, Profile, TimeField, TimeFormat};
use crate::telemetry::codes;
use crate::telemetry::record::Mode;
use crate::values::{Span, ValueError};
use crate::wire::checksum::Checksum;
use crate::wire::serial_frame::{Framing, Mask, Packet};

/// Longest frame that a profile may ask for, in bytes.
const FRAME_BYTES_MAX: usize = 64 << 10;
/// Longest frame of a fixed length: each byte out of step costs a look at a whole frame.
const FIXED_BYTES_MAX: usize = 1024;
/// Frames of a packet.
const PACKET_FRAMES_MAX: usize = 100;
/// What a compiled pattern may take, in bytes.
const PATTERN_BYTES_MAX: usize = 1 << 20;
/// Silence between two frames.
const IDLE_MS: (u128, u128) = (2, 5_000);
/// Bytes that are said to the device at once.
const SAID_BYTES_MAX: usize = 256;
/// The shortest time between two polls.
const POLL_MS_MIN: u128 = 50;

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct File {
    name: String,
    #[serde(default = "default_stream")]
    stream: Spanned<String>,
    #[serde(default)]
    line: LineFile,
    quiet_after: Option<Span>,
    #[serde(default)]
    start_up: Vec<Spanned<Bytes>>,
    #[serde(default)]
    poll: Vec<PollFile>,
    frame: Option<Spanned<FrameFile>>,
    #[serde(default)]
    json: bool,
    pattern: Option<Spanned<String>>,
    #[serde(default)]
    also: Vec<Spanned<String>>,
    split: Option<Spanned<Bytes>>,
    time: Option<TimeFile>,
    #[serde(default)]
    value: Vec<Spanned<ValueFile>>,
}

fn default_stream() -> Spanned<String> {
    Spanned::new(0..0, "numerics".to_owned())
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct LineFile {
    baud: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct PollFile {
    say: Spanned<Bytes>,
    every: Spanned<Span>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct FrameFile {
    delimiter: Option<Spanned<Bytes>>,
    start: Option<Spanned<Bytes>>,
    end: Option<Spanned<Bytes>>,
    #[serde(default)]
    after: usize,
    length: Option<Spanned<usize>>,
    #[serde(default)]
    sync: Vec<MaskFile>,
    packet: Option<Spanned<PacketFile>>,
    idle: Option<Spanned<Span>>,
    #[serde(default = "default_max")]
    max_bytes: Spanned<usize>,
    #[serde(default)]
    checksum: ChecksumFile,
}

fn default_max() -> Spanned<usize> {
    Spanned::new(0..0, 1024)
}

/// What a profile of JSON texts that says nothing of frames has: a text in each line.
fn lines_of_json() -> Spanned<FrameFile> {
    let nowhere = 0..0;
    let frame = FrameFile {
        delimiter: Some(Spanned::new(nowhere.clone(), Bytes(vec![b'\n']))),
        start: None,
        end: None,
        after: 0,
        length: None,
        sync: Vec::new(),
        packet: None,
        idle: None,
        max_bytes: Spanned::new(nowhere.clone(), FRAME_BYTES_MAX),
        checksum: ChecksumFile::default(),
    };
    Spanned::new(nowhere, frame)
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct MaskFile {
    byte: usize,
    mask: u8,
    is: u8,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct PacketFile {
    frames: usize,
    first: MaskFile,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct ChecksumFile {
    #[serde(default)]
    kind: ChecksumKind,
    /// The first byte of a frame that it covers.
    skip: Option<usize>,
}

#[derive(Deserialize, Default, Clone, Copy, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum ChecksumKind {
    #[default]
    None,
    Sum8,
    Xor8,
    Sum8Hex,
    Crc16Modbus,
    Crc16X25,
    Crc16Ccitt,
    Crc16Xmodem,
    /// Two hexadecimal digits behind the end, of all after the start.
    Astm,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct TimeFile {
    group: Option<Spanned<String>>,
    column: Option<Spanned<usize>>,
    pointer: Option<Spanned<String>>,
    format: Spanned<String>,
    utc_offset: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct ValueFile {
    group: Option<Spanned<String>>,
    column: Option<Spanned<usize>>,
    pointer: Option<Spanned<String>>,
    bytes: Option<Spanned<Vec<usize>>>,
    #[serde(default = "default_bits")]
    bits: u32,
    mask: Option<u64>,
    #[serde(default)]
    signed: bool,
    label: Option<String>,
    #[serde(default)]
    kind: Kind,
    code: Option<Spanned<String>>,
    unit: Option<String>,
    vendor_unit: Option<String>,
    scale: Option<Spanned<f64>>,
    offset: Option<Spanned<f64>>,
    #[serde(default)]
    none: Vec<String>,
    #[serde(default)]
    over: Vec<String>,
    #[serde(default)]
    under: Vec<String>,
    #[serde(default)]
    mode: Mode,
}

fn default_bits() -> u32 {
    8
}

/// Bytes in a text: `\r`, `\n`, `\t`, `\\` and `\x02` stand for bytes, all else for itself.
#[derive(Clone, PartialEq, Debug)]
struct Bytes(Vec<u8>);

impl FromStr for Bytes {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = || ValueError(format!("\"{text}\" has a \\ that is none of \\r \\n \\t \\0 \\\\ \\x02"));
        let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
        while let Some((first, behind)) = rest.split_first() {
            rest = behind;
            if *first != b'\\' {
                bytes.push(*first);
                continue;
            }
            let (kind, behind) = rest.split_first().ok_or_else(wrong)?;
            rest = behind;
            bytes.push(match kind {
                b'r' => b'\r',
                b'n' => b'\n',
                b't' => b'\t',
                b'0' => 0,
                b'\\' => b'\\',
                b'x' => {
                    let (digits, behind) = rest.split_at_checked(2).ok_or_else(wrong)?;
                    rest = behind;
                    let digits = std::str::from_utf8(digits).map_err(|_| wrong())?;
                    u8::from_str_radix(digits, 16).map_err(|_| wrong())?
                }
                _ => return Err(wrong()),
            });
        }
        Ok(Self(bytes))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What is wrong with a profile, gathered while it is read.
struct Reader<'t> {
    text: &'t str,
    file: &'t str,
    found: Vec<String>,
}

/// Reads a profile.
pub fn read(text: &str, file: &str) -> Result<Profile, Vec<String>> {
    let mut reader = Reader { text, file, found: Vec::new() };
    let parsed: File = match toml::from_str(text) {
        Ok(parsed) => parsed,
        Err(error) => {
            reader.note(error.span().unwrap_or(0..0), error.message());
            return Err(reader.found);
        }
    };
    let profile = reader.profile(parsed);
    match (profile, reader.found.is_empty()) {
        (Some(profile), true) => Ok(profile),
        _ => Err(reader.found),
    }
}

impl Reader<'_> {
    fn note(&mut self, span: Range<usize>, what: impl AsRef<str>) {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        // serde's longer messages go over several lines.
        let what = what.as_ref().split_whitespace().collect::<Vec<_>>().join(" ");
        self.found.push(format!("{}:{line}:{column}: {what}", self.file));
    }

    fn profile(&mut self, mut file: File) -> Option<Profile> {
        let stream = file.stream.get_ref().clone();
        if stream.is_empty() || stream.len() > 40 || !stream.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
            self.note(file.stream.span(), "stream must be 1 to 40 of letters, digits and -");
        }
        let asking = self.asking(&file);
        let Some(frame) = file.frame.take().or_else(|| file.json.then(lines_of_json)) else {
            self.note(
                0..0,
                "say how frames are told apart: add [frame] with one of delimiter, start and end, length, idle",
            );
            return None;
        };
        let checksum = self.checksum(&frame);
        let framing = self.framing(&frame);
        let decoding = self.decoding(&file);
        let also = file.also.iter().filter_map(|pattern| self.pattern(pattern)).collect();
        let decoding = decoding?;
        let values = file.value.iter().filter_map(|value| self.field(value, &decoding)).collect();
        let time = file.time.as_ref().and_then(|time| self.time(time, &decoding));
        let framing = framing?;
        let skip = match (&framing, frame.get_ref().checksum.skip, frame.get_ref().checksum.kind) {
            (_, Some(skip), _) => skip,
            (Framing::StartEnd { start, .. }, None, ChecksumKind::Astm) => start.len(),
            _ => 0,
        };
        Some(Profile {
            name: file.name,
            stream,
            line: LineSettings { baud: file.line.baud },
            asking,
            framing,
            checksum,
            skip,
            frame_bytes_max: *frame.get_ref().max_bytes.get_ref(),
            idle: frame.get_ref().idle.as_ref().map(|idle| idle.get_ref().0),
            decoding,
            also,
            time,
            values,
        })
    }

    fn asking(&mut self, file: &File) -> Asking {
        for said in file.start_up.iter().chain(file.poll.iter().map(|poll| &poll.say)) {
            if !(1..=SAID_BYTES_MAX).contains(&said.get_ref().0.len()) {
                self.note(said.span(), format!("must be 1 to {SAID_BYTES_MAX} bytes"));
            }
        }
        for every in file.poll.iter().map(|poll| &poll.every) {
            if every.get_ref().0.as_millis() < POLL_MS_MIN {
                self.note(every.span(), format!("must be at least {POLL_MS_MIN}ms"));
            }
        }
        Asking {
            start_up: file.start_up.iter().map(|said| said.get_ref().0.clone()).collect(),
            polls: file.poll.iter().map(|poll| (poll.say.get_ref().0.clone(), poll.every.get_ref().0)).collect(),
            quiet_after: file.quiet_after.map(|quiet| quiet.0),
        }
    }

    fn checksum(&mut self, frame: &Spanned<FrameFile>) -> Checksum {
        use ChecksumKind as K;
        let (kind, after) = (frame.get_ref().checksum.kind, frame.get_ref().after);
        if kind == K::Astm && (frame.get_ref().start.is_none() || after < 2) {
            self.note(frame.span(), "checksum astm goes with start, end and after = 2 (4 with CR LF behind it)");
        }
        match kind {
            K::None => Checksum::None,
            K::Sum8 => Checksum::Sum8,
            K::Xor8 => Checksum::Xor8,
            K::Sum8Hex | K::Astm => Checksum::Sum8Hex,
            K::Crc16Modbus => Checksum::Crc16Modbus,
            K::Crc16X25 => Checksum::Crc16X25,
            K::Crc16Ccitt => Checksum::Crc16Ccitt,
            K::Crc16Xmodem => Checksum::Crc16Xmodem,
        }
    }

    fn framing(&mut self, frame: &Spanned<FrameFile>) -> Option<Framing> {
        let FrameFile { delimiter, start, end, after, length, sync, packet, idle, max_bytes, .. } = frame.get_ref();
        if !(2..=FRAME_BYTES_MAX).contains(max_bytes.get_ref()) {
            self.note(max_bytes.span(), format!("max-bytes must be from 2 to {FRAME_BYTES_MAX}"));
        }
        for bytes in [delimiter, start, end].into_iter().flatten() {
            if !(1..=16).contains(&bytes.get_ref().0.len()) {
                self.note(bytes.span(), "must be 1 to 16 bytes");
            }
        }
        let bytes = |bytes: &Spanned<Bytes>| bytes.get_ref().0.clone();
        match (delimiter, start, end, length, idle) {
            (Some(delimiter), None, None, None, None) => Some(Framing::Delimiter(bytes(delimiter))),
            (None, Some(start), Some(end), None, None) => {
                Some(Framing::StartEnd { start: bytes(start), end: bytes(end), after: (*after).min(16) })
            }
            (None, None, None, Some(length), None) => {
                if !(1..=FIXED_BYTES_MAX).contains(length.get_ref()) {
                    self.note(length.span(), format!("length must be from 1 to {FIXED_BYTES_MAX}"));
                }
                let packet = packet.as_ref().map(|packet| self.packet(packet));
                let sync = sync.iter().map(|mask| (*mask).into()).collect();
                Some(Framing::Fixed { length: (*length.get_ref()).max(1), sync, packet })
            }
            (None, None, None, None, Some(idle)) => {
                if !(IDLE_MS.0..=IDLE_MS.1).contains(&idle.get_ref().0.as_millis()) {
                    self.note(idle.span(), format!("idle must be from {}ms to {}ms", IDLE_MS.0, IDLE_MS.1));
                }
                Some(Framing::Idle)
            }
            _ => {
                let text = "say how frames are told apart: one of delimiter, start and end, length, idle";
                self.note(frame.span(), text);
                None
            }
        }
    }

    fn packet(&mut self, packet: &Spanned<PacketFile>) -> Packet {
        let PacketFile { frames, first } = packet.get_ref();
        if !(1..=PACKET_FRAMES_MAX).contains(frames) {
            self.note(packet.span(), format!("frames must be from 1 to {PACKET_FRAMES_MAX}"));
        }
        Packet { frames: *frames, first: (*first).into() }
    }

    fn decoding(&mut self, file: &File) -> Option<Decoding> {
        let pattern = match &file.pattern {
            None => None,
            Some(pattern) => Some(self.pattern(pattern)?),
        };
        if let Some(split) = file.split.as_ref().filter(|split| split.get_ref().0.is_empty()) {
            self.note(split.span(), "must be 1 byte or more");
            return None;
        }
        if file.json && (pattern.is_some() || file.split.is_some()) {
            let span = file.pattern.as_ref().map(Spanned::span).or_else(|| file.split.as_ref().map(Spanned::span));
            self.note(span.unwrap_or(0..0), "json = true reads the whole frame: take pattern or split out");
            return None;
        }
        Some(match (pattern, &file.split) {
            _ if file.json => Decoding::Json,
            (guard, Some(split)) => Decoding::Split(guard, split.get_ref().0.clone()),
            (Some(pattern), None) => Decoding::Pattern(pattern),
            (None, None) => Decoding::Binary,
        })
    }

    fn pattern(&mut self, pattern: &Spanned<String>) -> Option<Regex> {
        let built = RegexBuilder::new(pattern.get_ref())
            .unicode(false)
            .size_limit(PATTERN_BYTES_MAX)
            .dfa_size_limit(PATTERN_BYTES_MAX)
            .build();
        built.map_err(|error| self.note(pattern.span(), format!("this is no pattern: {error}"))).ok()
    }

    fn field(&mut self, value: &Spanned<ValueFile>, decoding: &Decoding) -> Option<Field> {
        let file = value.get_ref();
        let (place, named) = self.place(value, decoding)?;
        let code = file.code.as_ref().and_then(|name| {
            let code = codes::by_name(name.get_ref());
            if code.is_none() {
                self.note(name.span(), "is no MDC reference id that is known here: leave it out, the label goes on");
            }
            code
        });
        Some(Field {
            place,
            label: file.label.clone().unwrap_or(named),
            kind: file.kind,
            code,
            unit: file.unit.clone(),
            vendor_unit: file.vendor_unit.clone(),
            scale: self.decimal(file.scale.as_ref()),
            offset: self.decimal(file.offset.as_ref()),
            none: file.none.clone(),
            over: file.over.clone(),
            under: file.under.clone(),
            mode: file.mode,
        })
    }

    /// Where the field is, and how it is called when it has no label.
    fn place(&mut self, value: &Spanned<ValueFile>, decoding: &Decoding) -> Option<(Place, String)> {
        let file = value.get_ref();
        if let (Decoding::Json, None, None, Some(pointer), None) =
            (decoding, &file.group, &file.column, &file.pointer, &file.bytes)
        {
            return Some((self.pointer(pointer)?, pointer.get_ref().clone()));
        }
        match (decoding, &file.group, &file.column, &file.bytes) {
            (Decoding::Json, ..) => {
                self.note(value.span(), "say which value of the JSON this is: pointer = \"/room/temperature\"");
                None
            }
            (Decoding::Pattern(pattern), Some(group), None, None) => {
                let place = self.group(group, pattern)?;
                Some((place, group.get_ref().clone()))
            }
            (Decoding::Split(..), None, Some(column), None) => {
                let place = self.column(column)?;
                Some((place, format!("column {}", column.get_ref())))
            }
            (Decoding::Binary, None, None, Some(bytes)) => {
                let at = bytes.get_ref().clone();
                let width = usize::try_from(file.bits).unwrap_or(0) * at.len();
                if !(1..=8).contains(&file.bits) || !(1..=63).contains(&width) {
                    self.note(bytes.span(), "must be 1 to 7 places of 1 to 8 bits each");
                    return None;
                }
                let named = format!("bytes {at:?}");
                let mask = file.mask.unwrap_or((1 << width) - 1);
                Some((Place::Bytes { at, bits: file.bits, mask, signed: file.signed }, named))
            }
            (Decoding::Pattern(_), ..) => {
                self.note(value.span(), "say which group of the pattern this is: group = \"...\"");
                None
            }
            (Decoding::Split(..), ..) => {
                self.note(value.span(), "say which column this is: column = 1");
                None
            }
            (Decoding::Binary, ..) => {
                self.note(
                    value.span(),
                    "say which bytes these are (bytes = [3]), or add pattern or split to the profile",
                );
                None
            }
        }
    }

    fn group(&mut self, group: &Spanned<String>, pattern: &Regex) -> Option<Place> {
        if pattern.capture_names().flatten().any(|name| name == group.get_ref()) {
            return Some(Place::Group(group.get_ref().clone()));
        }
        let known: Vec<&str> = pattern.capture_names().flatten().collect();
        self.note(group.span(), format!("the pattern has no such group: it has {}", known.join(", ")));
        None
    }

    fn pointer(&mut self, pointer: &Spanned<String>) -> Option<Place> {
        let text = pointer.get_ref();
        let is_escape = |rest: &str| rest.starts_with(['0', '1']);
        let is_good = (text.is_empty() || text.starts_with('/')) && text.split('~').skip(1).all(is_escape);
        if !is_good {
            self.note(
                pointer.span(),
                "is no JSON pointer: it begins with /, as in \"/room/0/temperature\"; ~0 is ~ and ~1 is /",
            );
        }
        is_good.then(|| Place::Pointer(text.clone()))
    }

    fn column(&mut self, column: &Spanned<usize>) -> Option<Place> {
        let place = column.get_ref().checked_sub(1).map(Place::Column);
        if place.is_none() {
            self.note(column.span(), "columns count from 1");
        }
        place
    }

    fn decimal(&mut self, number: Option<&Spanned<f64>>) -> Option<Decimal> {
        let number = number?;
        // The shortest digits that mean this number are those that stand in the file.
        let read = Decimal::read(&number.get_ref().to_string());
        if read.is_none() {
            self.note(number.span(), "is no number to calculate with");
        }
        read
    }

    fn time(&mut self, time: &TimeFile, decoding: &Decoding) -> Option<TimeField> {
        let from = match (decoding, &time.group, &time.column, &time.pointer) {
            (Decoding::Pattern(pattern), Some(group), None, None) => self.group(group, pattern)?,
            (Decoding::Split(..), None, Some(column), None) => self.column(column)?,
            (Decoding::Json, None, None, Some(pointer)) => self.pointer(pointer)?,
            _ => {
                let text = "say where the time is: group with a pattern, column with split, pointer with json";
                self.note(time.format.span(), text);
                return None;
            }
        };
        let format = match time.format.get_ref().as_str() {
            "unix" => TimeFormat::Unix,
            "unix-ms" => TimeFormat::UnixMs,
            "rfc-3339" => TimeFormat::Rfc3339,
            pattern => TimeFormat::Pattern(pattern.to_owned()),
        };
        if jiff::fmt::strtime::format(time.format.get_ref(), jiff::civil::date(2026, 1, 1).at(0, 0, 0, 0)).is_err() {
            let text = "is no format: write it as for strptime, \"%d-%b-%y %H:%M:%S\", or \"rfc-3339\", \"unix\" or \"unix-ms\"";
            self.note(time.format.span(), text);
        }
        let utc_offset_min = match &time.utc_offset {
            None => 0,
            Some(text) => minutes(text.get_ref()).unwrap_or_else(|| {
                self.note(text.span(), "write the offset as \"+01:00\"");
                0
            }),
        };
        Some(TimeField { from, format, utc_offset_min })
    }
}

fn minutes(text: &str) -> Option<i32> {
    let (sign, rest) = match text.split_at_checked(1)? {
        ("+", rest) => (1, rest),
        ("-", rest) => (-1, rest),
        _ => return None,
    };
    let (hours, minutes) = rest.split_once(':')?;
    let (hours, minutes): (i32, i32) = (hours.parse().ok()?, minutes.parse().ok()?);
    ((0..=14).contains(&hours) && (0..60).contains(&minutes)).then_some(sign * (hours * 60 + minutes))
}

impl From<MaskFile> for Mask {
    fn from(file: MaskFile) -> Self {
        Self { byte: file.byte, mask: file.mask, is: file.is }
    }
}
