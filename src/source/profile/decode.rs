//! From a frame to observations, by a profile.
//!
//! A sentinel is never a value; what has no entry in the profile goes on under the device's own name, as questionable, since nobody has said
//! which of its values are none; what is no number where one should be is told as unreadable and goes on as it came. So is what stands under a
//! name that a JSON object has twice: which of the values the device means nobody can tell, so that none is taken.

use std::borrow::Cow;
use std::collections::BTreeSet;

use jiff::civil::{Date, DateTime, Time};
use jiff::fmt::strtime::BrokenDownTime;
use jiff::tz::Offset;
use jiff::{SignedDuration, Timestamp};
use regex::bytes::{Captures, Regex};

use super::number::Decimal;
use super::{Decoding, Field, Kind, Place, Profile, TimeField, TimeFormat};
use crate::envelope::Stamp;
use crate::telemetry::record::{ClockQuality, DeviceTime, Event, Mode, Named, Observation, Validity, Value};
use crate::wire::json_leaves::{self, Leaf, Scalar};

/// Longest text of a field that goes on as a text, in bytes; the frame has all of it.
const TEXT_BYTES_MAX: usize = 500;
/// Columns of one frame that are looked at.
const COLUMNS_MAX: usize = 200;
/// A clock that is so far off was never set, milliseconds.
const NEVER_SET_MS: i64 = 365 * 86_400_000;
/// Devices write whole seconds: half of one is not known.
const RESOLUTION_ERROR_MS: u64 = 500;

/// What a frame holds.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Decoded {
    /// Whether the profile knows this frame and every number in it was one.
    pub is_readable: bool,
    /// What was observed.
    pub observations: Vec<Observation>,
    /// What happened.
    pub events: Vec<Event>,
    /// What the device says of itself.
    pub device: Vec<Named>,
    /// The device's clock.
    pub device_time: Option<DeviceTime>,
}

/// The fields of one frame.
enum Fields<'f> {
    Groups(&'f Regex, Captures<'f>),
    Columns(Vec<&'f [u8]>),
    Bytes(&'f [u8]),
    Leaves(Vec<Leaf>),
}

impl Profile {
    /// Decodes a frame. `received` is when its first byte came.
    pub fn decode(&self, raw: &[u8], payload: &[u8], received: Stamp) -> Decoded {
        let payload = payload.trim_ascii();
        let Some(fields) = self.fields(raw, payload) else {
            let is_readable = payload.is_empty() || self.also.iter().any(|pattern| pattern.is_match(payload));
            return Decoded { is_readable, ..Decoded::default() };
        };
        let mut decoded = Decoded { is_readable: true, ..Decoded::default() };
        for field in &self.values {
            if fields.is_ambiguous(&field.place) {
                decoded.refuse(field);
            } else if let Some(text) = fields.at(&field.place) {
                decoded.take(field, &text);
            }
        }
        self.take_unnamed(&fields, &mut decoded);
        let time = self.time.as_ref().filter(|time| !fields.is_ambiguous(&time.from));
        decoded.is_readable &= time.is_some() || self.time.is_none();
        let said = time.and_then(|time| Some((time, fields.at(&time.from)?)));
        decoded.device_time = said.map(|(time, said)| time.read(&said, received));
        decoded
    }

    fn fields<'f>(&'f self, raw: &'f [u8], payload: &'f [u8]) -> Option<Fields<'f>> {
        match &self.decoding {
            Decoding::Pattern(pattern) => pattern.captures(payload).map(|captures| Fields::Groups(pattern, captures)),
            Decoding::Split(Some(guard), _) if !guard.is_match(payload) => None,
            Decoding::Split(_, _) if payload.is_empty() => None,
            Decoding::Split(_, separator) => Some(Fields::Columns(split(payload, separator))),
            Decoding::Binary => Some(Fields::Bytes(raw)),
            Decoding::Json => json_leaves::leaves(payload).ok().map(Fields::Leaves),
        }
    }

    /// Groups and columns that the profile has no entry for.
    fn take_unnamed(&self, fields: &Fields<'_>, decoded: &mut Decoded) {
        let time = self.time.as_ref().map(|time| &time.from);
        let is_named = |place: &Place| time == Some(place) || self.values.iter().any(|field| field.place == *place);
        let places: Vec<(Place, String)> = match fields {
            Fields::Groups(pattern, _) => {
                pattern.capture_names().flatten().map(|name| (Place::Group(name.into()), name.into())).collect()
            }
            Fields::Columns(columns) => {
                (0..columns.len()).map(|at| (Place::Column(at), format!("column {}", at + 1))).collect()
            }
            Fields::Bytes(_) => Vec::new(),
            Fields::Leaves(leaves) => {
                leaves.iter().map(|leaf| (Place::Pointer(leaf.pointer.clone()), leaf.pointer.clone())).collect()
            }
        };
        let mut refused = BTreeSet::new();
        for (place, label) in places.into_iter().filter(|(place, _)| !is_named(place)) {
            if fields.is_ambiguous(&place) {
                decoded.is_readable = false;
                if refused.insert(label.clone()) {
                    decoded.observations.push(Observation { validity: Validity::Invalid, ..blank(label) });
                }
                continue;
            }
            let Some(text) = fields.at(&place).filter(|text| !text.is_empty()) else { continue };
            if is_placeholder(&text) {
                decoded.observations.push(Observation { validity: Validity::NotAvailable, ..blank(label) });
                continue;
            }
            let value =
                if Decimal::read(&text).is_some() { Value::Number(text) } else { Value::Text(shortened(&text)) };
            // It may be a number that stands for none: only a profile can say so.
            let validity = Validity::Questionable;
            decoded.observations.push(Observation { value: Some(value), validity, ..blank(label) });
        }
    }
}

/// The columns of a line; the last one has the rest when there are too many.
fn split<'f>(payload: &'f [u8], separator: &[u8]) -> Vec<&'f [u8]> {
    let (mut columns, mut rest) = (Vec::new(), payload);
    while columns.len() + 1 < COLUMNS_MAX {
        let Some(at) = memchr::memmem::find(rest, separator) else { break };
        columns.push(&rest[..at]);
        rest = &rest[at + separator.len()..];
    }
    columns.push(rest);
    columns
}

impl Fields<'_> {
    /// Whether the frame has it, and perhaps another one of the same name.
    fn is_ambiguous(&self, place: &Place) -> bool {
        let (Self::Leaves(leaves), Place::Pointer(pointer)) = (self, place) else { return false };
        leaves.iter().any(|leaf| leaf.ambiguous && leaf.pointer == *pointer)
    }

    /// The text of a field, without blanks around it; `None` when the frame does not have it.
    fn at(&self, place: &Place) -> Option<String> {
        let bytes: Cow<'_, [u8]> = match (self, place) {
            (Self::Groups(_, captures), Place::Group(name)) => captures.name(name)?.as_bytes().into(),
            (Self::Columns(columns), Place::Column(at)) => (*columns.get(*at)?).into(),
            (Self::Bytes(raw), Place::Bytes { at, bits, mask, signed }) => {
                number(raw, at, *bits, *mask, *signed)?.into_bytes().into()
            }
            (Self::Leaves(leaves), Place::Pointer(pointer)) => {
                match &leaves.iter().find(|leaf| leaf.pointer == *pointer && !leaf.ambiguous)?.scalar {
                    Scalar::Null => b"".into(),
                    Scalar::Bool(is) => is.to_string().into_bytes().into(),
                    Scalar::Number(text) | Scalar::Text(text) => text.as_bytes().into(),
                }
            }
            _ => return None,
        };
        let bytes = bytes.trim_ascii();
        // Devices that are older than UTF-8 write Latin-1.
        Some(std::str::from_utf8(bytes).map_or_else(|_| bytes.iter().copied().map(char::from).collect(), str::to_owned))
    }
}

/// The bytes at these places, the most significant first, each with its lower `bits`.
fn number(raw: &[u8], at: &[usize], bits: u32, mask: u64, signed: bool) -> Option<String> {
    let part = (1u64 << bits) - 1;
    let value = at.iter().try_fold(0u64, |sum, at| Some(sum << bits | (u64::from(*raw.get(*at)?) & part)))? & mask;
    let width = u64::BITS - mask.leading_zeros();
    if signed && width > 0 && value >> (width - 1) & 1 == 1 {
        return Some((i128::from(value) - (1i128 << width)).to_string());
    }
    Some(value.to_string())
}

impl Decoded {
    /// The frame has several values for it.
    fn refuse(&mut self, field: &Field) {
        self.is_readable &= field.kind == Kind::Ignored;
        if matches!(field.kind, Kind::Number | Kind::Text) {
            self.observations.push(Observation { validity: Validity::Invalid, ..field.observation() });
        }
    }

    fn take(&mut self, field: &Field, text: &str) {
        match field.kind {
            Kind::Ignored => {}
            Kind::Number => self.take_number(field, text),
            Kind::Text | Kind::Event | Kind::Device if text.is_empty() => {}
            Kind::Text => {
                let value = (!field.none.iter().any(|none| none == text)).then(|| Value::Text(shortened(text)));
                let validity = if value.is_some() { Validity::Valid } else { Validity::NotAvailable };
                self.observations.push(Observation { value, validity, ..field.observation() });
            }
            Kind::Event => self.events.push(Event {
                kind: "text".into(),
                vendor_code: Some(field.label.clone()),
                code: field.code.clone(),
                text: Some(shortened(text)),
                priority: None,
                phase: None,
                details: vec![],
            }),
            Kind::Device => {
                self.device.push(Named { name: field.label.clone().into(), value: shortened(text) });
            }
        }
    }

    fn take_number(&mut self, field: &Field, text: &str) {
        // A sentinel that is a number may be written otherwise: -1000 as -1000.0.
        let same = |word: &String| {
            word == text || matches!((word.parse::<f64>(), text.parse::<f64>()), (Ok(one), Ok(other)) if one == other)
        };
        let said = |words: &[String]| words.iter().any(same);
        let number = || field.scaled(text);
        let (value, validity) = match () {
            () if text.is_empty() || said(&field.none) => (None, Validity::NotAvailable),
            () if said(&field.over) => (None, Validity::OverRange),
            () if said(&field.under) => (None, Validity::UnderRange),
            () => match number() {
                Some(number) => (Some(Value::Number(number)), Validity::Valid),
                None => {
                    self.is_readable = false;
                    (None, Validity::Invalid)
                }
            },
        };
        self.observations.push(Observation { value, validity, ..field.observation() });
    }
}

impl Field {
    fn observation(&self) -> Observation {
        Observation {
            code: self.code.clone(),
            unit: self.unit.clone(),
            vendor_unit: self.vendor_unit.clone(),
            mode: self.mode,
            ..blank(self.label.clone())
        }
    }

    /// The number in the device's own digits, or scaled where the profile says so; `None`: it is none.
    fn scaled(&self, text: &str) -> Option<String> {
        let number = Decimal::read(text)?;
        if self.scale.is_none() && self.offset.is_none() {
            return Some(text.strip_prefix('+').unwrap_or(text).to_owned());
        }
        let scaled = self.scale.map_or(Some(number), |scale| number.times(scale))?;
        self.offset.map_or(Some(scaled), |offset| scaled.plus(offset)).map(|number| number.to_string())
    }
}

/// What devices write where a value is missing, also in a field that no profile describes: `---`, `--.-`, `***`, `???`.
fn is_placeholder(text: &str) -> bool {
    text.bytes().all(|byte| b"-.*? ".contains(&byte))
}

fn blank(vendor_code: String) -> Observation {
    Observation {
        vendor_code,
        code: None,
        value: None,
        unit: None,
        vendor_unit: None,
        validity: Validity::Valid,
        mode: Mode::Periodic,
        at: None,
        notes: vec![],
    }
}

fn shortened(text: &str) -> String {
    let end = (0..=text.len().min(TEXT_BYTES_MAX)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.get(..end).unwrap_or_default().to_owned()
}

impl TimeField {
    fn read(&self, said: &str, received: Stamp) -> DeviceTime {
        let unreadable = || DeviceTime {
            said: said.to_owned(),
            read: None,
            offset_ms: None,
            error_ms: None,
            quality: ClockQuality::Unreadable,
        };
        let Ok(ours) = Timestamp::from_microsecond(received.wall_us) else { return unreadable() };
        let offset = Offset::from_seconds(self.utc_offset_min * 60).unwrap_or(Offset::UTC);
        let Some((read, theirs)) = self.moment(said, offset, ours) else { return unreadable() };
        let offset_ms = theirs.as_millisecond() - ours.as_millisecond();
        let quality = match () {
            () if offset_ms.abs() > NEVER_SET_MS => ClockQuality::NeverSet,
            () if received.synchronised => ClockQuality::Measured,
            () => ClockQuality::BoxUnsynchronised,
        };
        DeviceTime {
            said: said.to_owned(),
            read: Some(read),
            offset_ms: Some(offset_ms),
            error_ms: Some(if self.is_fine(said) { 1 } else { RESOLUTION_ERROR_MS }),
            quality,
        }
    }

    /// Whether it tells more than seconds.
    fn is_fine(&self, said: &str) -> bool {
        self.format == TimeFormat::UnixMs || said.contains('.')
    }

    /// The device's time as it is told, and the moment that it means; `offset` is that of a clock which names no zone.
    fn moment(&self, said: &str, offset: Offset, ours: Timestamp) -> Option<(String, Timestamp)> {
        let since_1970 = |seconds: f64| {
            let moment = Timestamp::UNIX_EPOCH.checked_add(SignedDuration::try_from_secs_f64(seconds).ok()?).ok()?;
            Some((moment.to_string(), moment))
        };
        let local = |read: DateTime| Some((read.to_string(), offset.to_timestamp(read).ok()?));
        match &self.format {
            TimeFormat::Unix => since_1970(said.parse().ok()?),
            TimeFormat::UnixMs => match said.parse() {
                Ok(milliseconds) => {
                    let moment = Timestamp::from_millisecond(milliseconds).ok()?;
                    Some((moment.to_string(), moment))
                }
                Err(_) => since_1970(said.parse::<f64>().ok()? / 1000.0),
            },
            TimeFormat::Rfc3339 => match said.parse::<Timestamp>() {
                Ok(moment) => Some((said.to_owned(), moment)),
                Err(_) => local(said.parse().ok()?),
            },
            TimeFormat::Pattern(format) => local(civil(format, said, offset.to_datetime(ours))?),
        }
    }
}

/// The device's local time. A clock without a date means the day on which it is nearest to ours.
fn civil(format: &str, said: &str, ours: DateTime) -> Option<DateTime> {
    let parsed = BrokenDownTime::parse(format, said).ok()?;
    if let Ok(whole) = parsed.to_datetime() {
        return Some(whole);
    }
    let time: Time = parsed.to_time().ok()?;
    let today: Date = ours.date();
    let days = [today.yesterday().ok(), Some(today), today.tomorrow().ok()];
    let near = |date: Date| {
        let at = date.to_datetime(time);
        (at.duration_since(ours).as_secs().abs(), at)
    };
    days.into_iter().flatten().map(near).min().map(|(_, at)| at)
}
