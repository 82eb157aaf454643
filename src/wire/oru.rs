//! The observations of one HL7 v2 message at byte level: OBR groups and the OBX in them, as the sender wrote them (HL7 v2.6, chapter 7.4;
//! IHE DEV TF-2, PCD-01 and PCD-04).
//!
//! Nothing is interpreted and nothing is copied but what is unescaped; a field that is not there is empty. It must never panic on a peer's
//! bytes, and never hold more than [`OBX_MAX`] segments.

use super::hl7::{Header, HeaderError, Separators, segments};

/// Most OBR and OBX together. A monitor's message has some dozens, a whole ward's some hundreds.
pub const OBX_MAX: usize = 4096;

/// Why a body is not one message with observations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OruError {
    /// No header.
    #[error("{0}")]
    Header(HeaderError),
    /// A batch, or several messages in one body.
    #[error("it is a batch of messages")]
    Batch,
    /// Results of several patients or visits in one message: whose an observation is could be mistaken.
    #[error("it has more than one PID or PV1 segment")]
    Patients,
    /// MSH-9 says something else.
    #[error("it is no ORU message")]
    NotOru,
    /// More than [`OBX_MAX`] segments.
    #[error("it has more than {OBX_MAX} observations")]
    TooMany,
}

/// One message.
#[derive(Debug, Clone)]
pub struct Oru<'a> {
    /// MSH.
    pub header: Header<'a>,
    /// PID; empty when there is none.
    pub patient: Segment<'a>,
    /// PV1; empty when there is none.
    pub visit: Segment<'a>,
    /// Each OBR with its OBX, in their order.
    pub groups: Vec<Group<'a>>,
}

/// An OBR and what was observed under it.
#[derive(Debug, Clone)]
pub struct Group<'a> {
    /// The OBR; empty when the first OBX comes without one.
    pub request: Segment<'a>,
    /// The OBX.
    pub observations: Vec<Segment<'a>>,
}

/// One segment.
#[derive(Debug, Clone, Copy)]
pub struct Segment<'a> {
    bytes: &'a [u8],
    separators: Separators,
}

/// A field, one repetition of it, or a component of that.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    bytes: &'a [u8],
    separators: Separators,
}

impl<'a> Oru<'a> {
    /// Reads a whole body.
    ///
    /// # Errors
    /// [`OruError`].
    pub fn read(body: &'a [u8]) -> Result<Self, OruError> {
        let header = Header::read(body).map_err(OruError::Header)?;
        if header.is_batch() {
            return Err(OruError::Batch);
        }
        if header.message_type() != b"ORU" {
            return Err(OruError::NotOru);
        }
        let separators = *header.separators();
        let segment = |bytes| Segment { bytes, separators };
        let mut oru = Self { header, patient: segment(b""), visit: segment(b""), groups: Vec::new() };
        let (mut messages, mut count) = (0, 0);
        for bytes in segments(body) {
            match bytes.get(..3) {
                Some(b"MSH") => messages += 1,
                Some(b"PID") if oru.patient.bytes.is_empty() => oru.patient = segment(bytes),
                Some(b"PV1") if oru.visit.bytes.is_empty() => oru.visit = segment(bytes),
                Some(b"PID" | b"PV1") => return Err(OruError::Patients),
                Some(b"OBR") => oru.groups.push(Group { request: segment(bytes), observations: Vec::new() }),
                Some(b"OBX") => oru.push(segment(bytes)),
                _ => continue,
            }
            count += 1;
            if messages > 1 {
                return Err(OruError::Batch);
            }
            if count > OBX_MAX {
                return Err(OruError::TooMany);
            }
        }
        Ok(oru)
    }

    fn push(&mut self, observation: Segment<'a>) {
        match self.groups.last_mut() {
            Some(group) => group.observations.push(observation),
            None => {
                let request = Segment { bytes: b"", separators: observation.separators };
                self.groups.push(Group { request, observations: vec![observation] });
            }
        }
    }
}

impl<'a> Segment<'a> {
    /// Field `number`, from 1.
    pub fn field(&self, number: usize) -> Part<'a> {
        let bytes = self.bytes.split(|byte| *byte == self.separators.field).nth(number).unwrap_or_default();
        Part { bytes, separators: self.separators }
    }
}

impl<'a> Part<'a> {
    /// The bytes as they stand there, escapes and all.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Whether there is nothing: no bytes, or the two quotation marks that delete (HL7 v2.6, 2.5.3).
    pub fn is_empty(&self) -> bool {
        matches!(self.bytes.trim_ascii(), b"" | b"\"\"")
    }

    /// The repetitions, at least one.
    pub fn repetitions(&self) -> impl Iterator<Item = Self> + use<'a> {
        let separators = self.separators;
        self.bytes.split(move |byte| *byte == separators.repetition).map(move |bytes| Self { bytes, separators })
    }

    /// Component `number`, from 1, of the first repetition.
    pub fn component(&self, number: usize) -> Self {
        let first = self.bytes.split(|byte| *byte == self.separators.repetition).next().unwrap_or_default();
        let nth = first.split(|byte| *byte == self.separators.component).nth(number.saturating_sub(1));
        Self { bytes: nth.unwrap_or_default(), separators: self.separators }
    }

    /// The bytes with the usual separators in place of the sender's own, escapes and all: as a field of another message can have them. What
    /// means nothing to the sender and would separate there is escaped.
    pub fn usual(&self) -> Vec<u8> {
        let own = self.separators;
        let mut out = Vec::with_capacity(self.bytes.len());
        for byte in self.bytes {
            match *byte {
                byte if byte == own.component => out.push(b'^'),
                byte if byte == own.subcomponent => out.push(b'&'),
                byte if byte == own.repetition => out.push(b'~'),
                byte if byte == own.escape => out.push(b'\\'),
                b'|' => out.extend_from_slice(b"\\F\\"),
                b'^' => out.extend_from_slice(b"\\S\\"),
                b'&' => out.extend_from_slice(b"\\T\\"),
                b'~' => out.extend_from_slice(b"\\R\\"),
                b'\\' => out.extend_from_slice(b"\\E\\"),
                byte => out.push(byte),
            }
        }
        out
    }

    /// The bytes with their escapes resolved (HL7 v2.6, 2.7): the five separators and hexadecimal data. An escape that means something
    /// else (highlighting, formatting) stands as it was sent.
    pub fn unescaped(&self) -> Vec<u8> {
        let escape = self.separators.escape;
        let mut out = Vec::with_capacity(self.bytes.len());
        let mut rest = self.bytes;
        while let Some(start) = rest.iter().position(|byte| *byte == escape) {
            let (before, from) = rest.split_at(start);
            out.extend_from_slice(before);
            let inside = from.get(1..).unwrap_or_default();
            let Some(end) = inside.iter().position(|byte| *byte == escape) else {
                out.extend_from_slice(from);
                return out;
            };
            let (code, behind) = inside.split_at(end);
            match self.meant(code) {
                Some(bytes) => out.extend_from_slice(&bytes),
                None => out.extend_from_slice(from.get(..end + 2).unwrap_or_default()),
            }
            rest = behind.get(1..).unwrap_or_default();
        }
        out.extend_from_slice(rest);
        out
    }

    fn meant(&self, code: &[u8]) -> Option<Vec<u8>> {
        let Separators { field, component, repetition, escape, subcomponent } = self.separators;
        match code {
            b"F" => Some(vec![field]),
            b"S" => Some(vec![component]),
            b"T" => Some(vec![subcomponent]),
            b"R" => Some(vec![repetition]),
            b"E" => Some(vec![escape]),
            [b'X', digits @ ..] => hexadecimal(digits),
            _ => None,
        }
    }
}

/// The bytes of pairs of hexadecimal digits; `None` when they are none.
fn hexadecimal(digits: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, rest) = digits.as_chunks::<2>();
    if pairs.is_empty() || !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[high, low]| Some(digit(high)? << 4 | digit(low)?)).collect()
}

/// An HL7 time stamp (DTM) as RFC 3339, with the zone that it names or with none: `20190929092150.25+0800` is
/// `2019-09-29T09:21:50.25+08:00`. `None` when it does not reach the minute, or is no time.
pub fn rfc3339(time: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(time).ok()?.trim();
    let (clock, zone) = match text.find(['+', '-']) {
        Some(at) => text.split_at_checked(at)?,
        None => (text, ""),
    };
    let (whole, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    // Some monitors leave out the point before the milliseconds.
    let (whole, fraction) = match whole.split_at_checked(14) {
        Some((seconds, milliseconds)) if whole.len() == 17 && fraction.is_empty() => (seconds, milliseconds),
        _ => (whole, fraction),
    };
    if !matches!(whole.len(), 12 | 14) || !digits(whole) || !digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let part = |from: usize, to: usize| whole.get(from..to);
    let within = |from: usize, range: std::ops::RangeInclusive<u8>| {
        part(from, from + 2).is_none_or(|digits| digits.parse().is_ok_and(|number| range.contains(&number)))
    };
    if !(within(4, 1..=12) && within(6, 1..=31) && within(8, 0..=23) && within(10, 0..=59) && within(12, 0..=60)) {
        return None;
    }
    let second = part(12, 14).unwrap_or("00");
    let mut out =
        format!("{}-{}-{}T{}:{}:{second}", part(0, 4)?, part(4, 6)?, part(6, 8)?, part(8, 10)?, part(10, 12)?);
    if !fraction.is_empty() {
        out.push('.');
        out.push_str(fraction);
    }
    match zone.split_at_checked(3) {
        None if zone.is_empty() => {}
        Some((hours, minutes)) if minutes.len() == 2 && digits(minutes) && hours.get(1..).is_some_and(digits) => {
            out.push_str(&format!("{hours}:{minutes}"));
        }
        _ => return None,
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: &[u8] =
        b"MSH|^~\\&|MON^00A037^EUI-64|||WG|20190929092150||ORU^R01^ORU_R01|1914|P|2.6|||AL|NE||UNICODE UTF-8\r\
PID|||AB60001^^^A^PI||Invented^Ina\rPV1||I|ICU^1^4\r\
OBR|1|1^MON|1^MON|182777000^monitoring of patient^SCT|||20190929092150\r\
OBX|1||69965^MDC_DEV_MON_PHYSIO_MULTI_PARAM_MDS^MDC|1.0.0.0|||||||X\r\
OBX|2|NM|150456^MDC_PULS_OXIM_SAT_O2^MDC|1.1.1.1|98|262688^MDC_DIM_PERCENT^MDC|||||R\r\
OBX|3|ST|0^MDCX_NOTE^MDC|1.1.1.2|a\\F\\b\\T\\c\\X0D\\d\\H\\e~second||||||R\r";

    #[test]
    fn results_of_two_patients_in_one_message_are_nobodys() {
        let other = b"PID|||AB60002^^^A^PI||Invented^Otto\rOBR|2\rOBX|1|NM|1^A^MDC|1.1.1.1|97||||||R\r";
        assert_eq!(Oru::read(&[MESSAGE, other].concat()).unwrap_err(), OruError::Patients);
    }

    #[test]
    fn a_monitors_message_is_read_group_by_group() {
        let oru = Oru::read(MESSAGE).unwrap();
        assert_eq!((oru.groups.len(), oru.groups[0].observations.len()), (1, 3));
        assert_eq!(oru.visit.field(3).component(1).bytes(), b"ICU");
        assert_eq!(oru.groups[0].request.field(4).component(2).bytes(), b"monitoring of patient");
        let saturation = oru.groups[0].observations[1];
        assert_eq!(
            (saturation.field(5).bytes(), saturation.field(6).component(1).bytes()),
            (&b"98"[..], &b"262688"[..])
        );
        assert!(saturation.field(14).is_empty() && saturation.field(99).is_empty());
        let note = oru.groups[0].observations[2].field(5);
        let texts: Vec<Vec<u8>> = note.repetitions().map(|one| one.unescaped()).collect();
        assert_eq!(texts, [b"a|b&c\rd\\H\\e".to_vec(), b"second".to_vec()]);
    }

    #[test]
    fn what_is_no_message_with_observations_is_told() {
        let other = |body: &[u8]| Oru::read(body).unwrap_err();
        assert_eq!(other(b"MSH|^~\\&|A||||||ADT^A01|1|P|2.6\r"), OruError::NotOru);
        assert_eq!(other(b"BHS|^~\\&|A\rMSH|^~\\&|A||||||ORU^R01|1|P|2.6\r"), OruError::Batch);
        assert_eq!(other(&[MESSAGE, MESSAGE].concat()), OruError::Batch);
        assert_eq!(other(b"hello"), OruError::Header(HeaderError::Missing));
        let many = [MESSAGE, &b"OBX|1|NM|1|1|1\r".repeat(OBX_MAX)].concat();
        assert_eq!(other(&many), OruError::TooMany);
        let bare = Oru::read(b"MSH|^~\\&|A||||||ORU^R01|1|P|2.6\rOBX|1|NM|1^x|1|7\r").unwrap();
        assert_eq!((bare.groups.len(), bare.groups[0].request.field(4).bytes()), (1, &b""[..]));
    }

    #[test]
    fn times_are_read_with_the_zone_that_they_name_or_none() {
        for (time, read) in [
            ("20190929092150", Some("2019-09-29T09:21:50")),
            ("201909290921", Some("2019-09-29T09:21:00")),
            ("20190929092150.25+0800", Some("2019-09-29T09:21:50.25+08:00")),
            ("20190929092150-0500", Some("2019-09-29T09:21:50-05:00")),
            ("20190929092150007", Some("2019-09-29T09:21:50.007")),
            ("20190929", None),
            ("20190929092150+08", None),
            ("2019092909215x", None),
            ("20191329092150", None),
            ("20190929242150", None),
            ("+", None),
            ("", None),
        ] {
            assert_eq!(rfc3339(time.as_bytes()).as_deref(), read, "{time}");
        }
    }

    #[test]
    fn a_field_can_be_had_with_the_usual_separators() {
        let with = |bytes, separators| String::from_utf8(Part { bytes, separators }.usual()).unwrap();
        assert_eq!(with(b"A\\T\\1^^^W&2.999&ISO^MR", Separators::USUAL), "A\\T\\1^^^W&2.999&ISO^MR");
        let odd = Separators { field: b'*', component: b':', repetition: b'!', escape: b'?', subcomponent: b'%' };
        assert_eq!(with(b"A?S?1:W%2^9|a\\b&c~d!e", odd), "A\\S\\1^W&2\\S\\9\\F\\a\\E\\b\\T\\c\\R\\d~e");
    }

    #[test]
    fn broken_escapes_stand_as_they_were_sent() {
        let part = |bytes| Part { bytes, separators: Separators::USUAL };
        for text in ["\\", "a\\F", "\\X0\\", "\\Xzz\\", "\\\\", "\\.br\\"] {
            assert_eq!(part(text.as_bytes()).unescaped(), text.as_bytes());
        }
        assert_eq!(part(b"\\S\\\\E\\").unescaped(), b"^\\");
    }
}
