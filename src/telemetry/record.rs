//! The record of one reading: observations, events or a gap of one stream of one device, with both times and the raw bytes.
//!
//! It is stored as compact JSON, keys in kebab-case, absent members left out. It never changes once it is stored: what was not known when
//! it was taken stays unknown.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::envelope::Stamp;

/// The media type of a stored [`Record`].
pub const CONTENT_TYPE: &str = "application/vnd.wardgate.record+json";
/// The version of the form, the member `v`.
pub const VERSION: u8 = 1;

/// One reading of one device.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Record {
    /// [`VERSION`].
    pub v: u8,
    /// The source that took it, which is the device's name for people. No patient data.
    pub source: String,
    /// Which of a source's streams: the unit id of a Modbus bus, a client id, `numerics`, `alarms`. No patient data.
    pub stream: String,
    /// Random for each start of the source: [`Self::seq`] begins anew with it.
    pub boot: String,
    /// Counts the records of this stream since `boot`, from 1, without a gap: what is missing upstream was lost on the way.
    pub seq: u64,
    /// When its first byte came to this box.
    pub received: Time,
    /// The device's own clock, when it sends one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_time: Option<DeviceTime>,
    /// What was observed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub observations: Vec<Observation>,
    /// What happened: an alarm of the device, a text, a will, a question that nobody answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<Event>,
    /// Readings that are missing before this record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap: Option<Gap>,
    /// The device, as it names itself: model, serial number, software. Said once after each start and when it changes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub device: Vec<Named>,
    /// What the protocol said about the bytes: topic, peer, unit. No patient data.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub about: Vec<Named>,
    /// Whom and where it was measured, when the message that it came in says so: `patient-id` and `location`, as HL7 writes them with
    /// the usual separators: components apart by `^`, subcomponents by `&`, escapes such as `\T\`. Patient data: it goes upstream and nowhere else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subject: Vec<Named>,
    /// The device's own bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw: Option<Raw>,
}

/// A moment by this box's clocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Time {
    /// Microseconds since 1970-01-01 UTC, as it was believed then.
    pub utc_us: i64,
    /// Whether the wall clock was known to be synchronised; otherwise only `uptime_ms` can be trusted.
    pub synchronised: bool,
    /// Milliseconds of service of this box: monotonic, kept over restarts.
    pub uptime_ms: u64,
}

impl From<Stamp> for Time {
    fn from(stamp: Stamp) -> Self {
        Self { utc_us: stamp.wall_us, synchronised: stamp.synchronised, uptime_ms: stamp.uptime_ms }
    }
}

/// What the device says of the time, and how far off its clock is. Nothing is corrected with it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DeviceTime {
    /// As the device wrote it.
    pub said: String,
    /// Read as a local or zoned time, RFC 3339 without zone where the device names none; absent when it can't be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read: Option<String>,
    /// Device clock minus this box's clock, milliseconds; absent when either is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset_ms: Option<i64>,
    /// How sure the offset is: half of the resolution of the device's clock and the time that its bytes took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_ms: Option<u64>,
    /// What is known about the offset.
    pub quality: ClockQuality,
}

/// How much a device's clock offset can be trusted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClockQuality {
    /// Measured against a synchronised clock of this box.
    Measured,
    /// Measured, but this box's own clock was not synchronised.
    BoxUnsynchronised,
    /// The device's clock is more than a year off: it was never set.
    NeverSet,
    /// The device's time can't be read.
    Unreadable,
    /// The device names no zone, and none is known: how far off it is can't be told.
    ZoneUnknown,
}

/// One observation.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Observation {
    /// The vendor's own code or label, always.
    pub vendor_code: String,
    /// The ISO/IEEE 11073-10101 (MDC) or site code, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
    /// The value; absent when there is none (see [`Self::validity`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
    /// UCUM unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// The unit in the device's own words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vendor_unit: Option<String>,
    /// Whether the value is one.
    pub validity: Validity,
    /// Periodic or episodic.
    #[serde(default)]
    pub mode: Mode,
    /// When it was measured, by the device, where it says so: RFC 3339, without a zone where none is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// Flags, limits, body site and the like, in the device's own words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<Named>,
}

/// A code and the system that it belongs to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Code {
    /// `urn:iso:std:iso:11073:10101` for MDC, the site's own URI otherwise.
    pub system: Cow<'static, str>,
    /// MDC: the 32-bit code in decimal digits.
    pub code: Cow<'static, str>,
    /// MDC: the reference id, `MDC_PULS_OXIM_SAT_O2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Cow<'static, str>>,
}

/// A value, in the form that the device gave it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Value {
    /// A number in decimal digits with the device's own precision: `"98"`, `"36.70"`.
    Number(String),
    /// Text.
    Text(String),
}

/// Whether a value may be used. A sentinel (`---`, -100, 8388607) is never a value: it is `NotAvailable` or what it stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Validity {
    /// The device says nothing against it.
    Valid,
    /// A person has confirmed it.
    Validated,
    /// The device doubts it, or nobody has said what it means: a field that no profile describes.
    Questionable,
    /// The device is calibrating or testing.
    Calibrating,
    /// There is none: no probe, sentinel, blank.
    NotAvailable,
    /// Above what the device can measure.
    OverRange,
    /// Below what the device can measure.
    UnderRange,
    /// The device says that it is wrong.
    Invalid,
}

/// How a value comes about.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Sampled in equal steps.
    #[default]
    Periodic,
    /// Measured now and then: a cuff pressure, a laboratory result.
    Episodic,
}

/// Something that happened.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Event {
    /// What: `alarm`, `text`, `unplugged`, `plugged`, `will`, `retained`, `query-unanswered`, `setting`.
    pub kind: Cow<'static, str>,
    /// The vendor's code, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vendor_code: Option<String>,
    /// The code, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
    /// In the device's words, or in ours what happened and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Of an alarm: how urgent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// Of an alarm: whether it begins, goes on or ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// What else is known, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<Named>,
}

/// How urgent an alarm is (IEC 60601-1-8).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Priority {
    /// Information only.
    Information,
    /// Low.
    Low,
    /// Medium.
    Medium,
    /// High.
    High,
}

/// Where an alarm stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// It begins.
    Start,
    /// It is still there.
    Continue,
    /// It has ended.
    End,
}

/// Readings that are missing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Gap {
    /// Why.
    pub reason: GapReason,
    /// The device's own number of the first missing reading, where it counts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<u64>,
    /// The last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<u64>,
    /// How many readings or frames are missing, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// For how long nothing could be taken, milliseconds, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lasted_ms: Option<u64>,
}

/// Why readings are missing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GapReason {
    /// The device was not plugged in or not reachable.
    Unplugged,
    /// Bytes that could not be understood.
    Parse,
    /// More came than could be stored.
    Overflow,
    /// The clock jumped.
    Clock,
}

/// A name and its value.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Named {
    /// Name.
    pub name: Cow<'static, str>,
    /// Value.
    pub value: String,
}

impl Named {
    /// A name and its value.
    pub fn new(name: impl Into<Cow<'static, str>>, value: impl Into<String>) -> Self {
        Self { name: name.into(), value: value.into() }
    }
}

/// The device's own bytes: as text when they are printable ASCII (with CR, LF and tabs), else in base64.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Raw {
    /// Printable.
    Text(String),
    /// Base64 of anything else (RFC 4648, section 4).
    Base64(String),
}

impl Observation {
    /// Whether it has a value that may be used: of [`Validity::Valid`] and [`Validity::Validated`] only.
    pub fn usable(&self) -> Option<&Value> {
        self.value.as_ref().filter(|_| matches!(self.validity, Validity::Valid | Validity::Validated))
    }
}

impl Raw {
    /// The bytes, in the form that people can read where there is one.
    pub fn of(bytes: &[u8]) -> Self {
        let printable = |byte: &u8| matches!(byte, b' '..=b'~' | b'\r' | b'\n' | b'\t');
        match std::str::from_utf8(bytes) {
            Ok(text) if bytes.iter().all(printable) => Self::Text(text.to_owned()),
            _ => Self::Base64(data_encoding::BASE64.encode(bytes)),
        }
    }

    /// The bytes as the device sent them; `None` when the record was altered and its base64 is none.
    pub fn bytes(&self) -> Option<Vec<u8>> {
        match self {
            Self::Text(text) => Some(text.clone().into_bytes()),
            Self::Base64(text) => data_encoding::BASE64.decode(text.as_bytes()).ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn oximeter() -> Record {
        let code = Code {
            system: "urn:iso:std:iso:11073:10101".into(),
            code: "150456".into(),
            name: Some("MDC_PULS_OXIM_SAT_O2".into()),
        };
        let observation = Observation {
            vendor_code: "SPO2".into(),
            code: Some(code),
            value: Some(Value::Number("098".into())),
            unit: Some("%".into()),
            vendor_unit: None,
            validity: Validity::Valid,
            mode: Mode::Periodic,
            at: None,
            notes: vec![],
        };
        Record {
            v: VERSION,
            source: "oximeter".into(),
            stream: "numerics".into(),
            boot: "5f".into(),
            seq: 1,
            received: Time { utc_us: 1_790_000_000_000_000, synchronised: true, uptime_ms: 12 },
            device_time: None,
            observations: vec![observation],
            events: vec![],
            gap: None,
            device: vec![],
            about: vec![],
            subject: vec![],
            raw: Some(Raw::of(b"SPO2=098 HR=061\r\n")),
        }
    }

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        let record = oximeter();
        let json = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&json).unwrap(), record);
        assert!(
            json.contains(r#""value":{"number":"098"}"#) && json.contains(r#""text":"SPO2=098 HR=061\r\n""#),
            "{json}"
        );
    }

    #[test]
    fn the_devices_bytes_come_back_whatever_they_are() {
        for bytes in [&b"SPO2=--- \r\n"[..], b"\x01\x80\xff\x00", b"", "\u{b5}l".as_bytes()] {
            assert_eq!(Raw::of(bytes).bytes().unwrap(), bytes);
        }
    }
}
