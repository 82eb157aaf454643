//! The answer of a DICOMweb server to a STOW-RS request: which instances it stored and which not (PS3.18, 10.5.3 and annex I).
//!
//! It comes as DICOM JSON (PS3.18, annex F) or as XML (PS3.19, annex A.1). Only UIDs and codes are taken out of it; all other text, which
//! may quote patients, is passed over. Servers differ in what they send, so reading is lenient: unknown elements are skipped, a
//! data set in an array is taken, numbers may be texts. Never recursive in what comes, and never holding more than
//! [`ENTRIES_MAX`] results of each kind.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Results of each kind that are kept; those beyond are passed over.
pub const ENTRIES_MAX: usize = 256;
/// Longest UID (PS3.5, 9.1); a longer one names nothing.
pub const UID_BYTES_MAX: usize = 64;

/// The server's result for one instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It was stored; a warning reason (0008,1196) if there was one.
    Stored(Option<u16>),
    /// It was not, with the failure reason (0008,1197) if there was one.
    Failed(Option<u16>),
}

/// What an answer says.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Report {
    referenced: Vec<Entry>,
    failed: Vec<Entry>,
    others: Vec<Entry>,
}

/// An item of one of the sequences.
#[derive(Clone, PartialEq, Eq, Default, Debug, Deserialize)]
struct Entry {
    /// Referenced SOP Instance UID.
    #[serde(rename = "00081155", default)]
    instance: Element,
    #[serde(rename = "00081197", default)]
    failure: Element,
    #[serde(rename = "00081196", default)]
    warning: Element,
}

impl Report {
    /// Reads an answer's body; `None` when it is neither DICOM JSON nor DICOM's XML. An object without members is a data set without results;
    /// one that has members, and none of such an answer, is somebody else's JSON.
    pub fn read(body: &[u8]) -> Option<Self> {
        match body.trim_ascii_start().first()? {
            b'{' => {
                let data_set = serde_json::from_slice::<DataSet>(body).ok()?;
                let known = data_set.is_an_answer() || serde_json::from_slice::<Empty>(body).is_ok();
                known.then(|| data_set.report())
            }
            b'[' => {
                let data_set = serde_json::from_slice::<Few<DataSet>>(body).ok()?.0.into_iter().next()?;
                let known = data_set.is_an_answer() || serde_json::from_slice::<Few<Empty>>(body).is_ok();
                known.then(|| data_set.report())
            }
            _ => from_xml(body),
        }
    }

    /// The result for `instance`, which was the only one in its request: a failure is its own whatever UID the server gives it.
    pub fn of(&self, instance: &[u8]) -> Option<Outcome> {
        let named = |entries: &[Entry]| entries.iter().find(|entry| entry.is_of(instance)).cloned();
        let failed = |entry: &Entry| Outcome::Failed(entry.failure.number());
        if let Some(entry) = named(&self.failed) {
            return Some(failed(&entry));
        }
        if let Some(entry) = named(&self.referenced) {
            return Some(Outcome::Stored(entry.warning.number()));
        }
        self.failed.first().or_else(|| self.others.first()).map(failed)
    }
}

impl Entry {
    fn is_of(&self, instance: &[u8]) -> bool {
        !instance.is_empty() && trimmed(self.instance.0.as_bytes()) == trimmed(instance)
    }
}

/// UIDs of odd length are padded with NUL, by some with a blank (PS3.5, 9.1).
fn trimmed(uid: &[u8]) -> &[u8] {
    let end = uid.iter().rposition(|byte| !matches!(byte, 0 | b' ')).map_or(0, |last| last + 1);
    uid.get(..end).unwrap_or_default()
}

/// What a failure reason means (PS3.18, table I.2-2, the C-STORE codes of PS3.4, and those of servers that are known to differ).
pub fn failure_words(reason: u16) -> &'static str {
    match reason {
        0x0110 => "it failed to process the instance",
        0x0111 | 0xb00e => "it has this instance already",
        0x0117 => "it takes the instance's UID for invalid",
        0x0122 => "it does not support the SOP class",
        0x0124 => "it does not let this box store it",
        0xa700..=0xa7ff => "it is out of resources",
        0xa900 | 0xa902..=0xa9ff => "the data set does not match its SOP class",
        0xa901 => "the study is not the one that the URL names",
        0xb00f => "another request is storing the same instance",
        0xc122 => "it does not support the transfer syntax",
        0xc000..=0xcfff => "it cannot understand the instance",
        _ => "it did not store it",
    }
}

/// An object without members.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Empty {}

#[derive(Default, Deserialize)]
struct DataSet {
    /// Retrieve URL.
    #[serde(rename = "00081190", default)]
    retrieve: Option<IgnoredAny>,
    #[serde(rename = "00081199", default)]
    referenced: Option<Sequence>,
    #[serde(rename = "00081198", default)]
    failed: Option<Sequence>,
    #[serde(rename = "0008119A", default)]
    others: Option<Sequence>,
}

#[derive(Deserialize)]
struct Sequence {
    #[serde(rename = "Value", default)]
    items: Option<Few<Entry>>,
}

impl DataSet {
    /// Whether it has an element of such an answer.
    fn is_an_answer(&self) -> bool {
        self.retrieve.is_some() || self.referenced.is_some() || self.failed.is_some() || self.others.is_some()
    }

    fn report(self) -> Report {
        let items = |sequence: Option<Sequence>| sequence.and_then(|found| found.items).map(|few| few.0);
        Report {
            referenced: items(self.referenced).unwrap_or_default(),
            failed: items(self.failed).unwrap_or_default(),
            others: items(self.others).unwrap_or_default(),
        }
    }
}

/// The first elements of an array; the others are read over without being kept.
struct Few<T>(Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Few<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Kept<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Kept<T> {
            type Value = Few<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Few<T>, A::Error> {
                let mut kept = Vec::new();
                while kept.len() < ENTRIES_MAX {
                    match seq.next_element()? {
                        Some(element) => kept.push(element),
                        None => return Ok(Few(kept)),
                    }
                }
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Few(kept))
            }
        }
        deserializer.deserialize_seq(Kept(PhantomData))
    }
}

/// The first value of a data element as text, empty when it has none or one that is too long.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
struct Element(String);

impl Element {
    fn of(text: &str) -> Self {
        Self(if text.len() <= UID_BYTES_MAX { text.to_owned() } else { String::new() })
    }

    fn number(&self) -> Option<u16> {
        self.0.trim().parse().ok()
    }
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Values {
            #[serde(rename = "Value", default)]
            values: Option<Few<Scalar>>,
        }
        let values = Option::<Values>::deserialize(deserializer)?.and_then(|found| found.values);
        Ok(values.and_then(|few| few.0.into_iter().next()).map_or_else(Self::default, |scalar| scalar.0))
    }
}

/// Any JSON value; only texts and whole numbers are kept.
struct Scalar(Element);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Scalar, E> {
                Ok(Scalar(Element::of(text)))
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Scalar, E> {
                Ok(Scalar(Element(number.to_string())))
            }

            fn visit_i64<E: Error>(self, _: i64) -> Result<Scalar, E> {
                Ok(Scalar(Element::default()))
            }

            fn visit_f64<E: Error>(self, _: f64) -> Result<Scalar, E> {
                Ok(Scalar(Element::default()))
            }

            fn visit_bool<E: Error>(self, _: bool) -> Result<Scalar, E> {
                Ok(Scalar(Element::default()))
            }

            fn visit_unit<E: Error>(self) -> Result<Scalar, E> {
                Ok(Scalar(Element::default()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Scalar, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Scalar(Element::default()))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Scalar, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Scalar(Element::default()))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// Reads the native DICOM model tag by tag: no entities, no namespaces, no document type.
fn from_xml(body: &[u8]) -> Option<Report> {
    let mut reader = XmlReader::default();
    let mut rest = body;
    while let Some(open) = memchr::memchr(b'<', rest) {
        let (text, tag) = rest.split_at_checked(open)?;
        reader.text(text);
        let Some((tag, after)) = tag_and_after(tag) else { break };
        reader.tag(tag);
        rest = after;
    }
    reader.is_dicom.then_some(reader.report)
}

/// What stands between `<` and `>`, and what follows; comments and character data are passed over whole.
fn tag_and_after(from: &[u8]) -> Option<(&[u8], &[u8])> {
    for (begin, end) in [(&b"<!--"[..], &b"-->"[..]), (b"<![CDATA[", b"]]>")] {
        if let Some(inside) = from.strip_prefix(begin) {
            let at = memchr::memmem::find(inside, end)?;
            return Some((b"!", inside.get(at + end.len()..)?));
        }
    }
    let close = memchr::memchr(b'>', from)?;
    Some((from.get(1..close)?, from.get(close + 1..)?))
}

#[derive(Default)]
struct XmlReader {
    report: Report,
    is_dicom: bool,
    /// How many `DicomAttribute` are open.
    depth: usize,
    /// Tag of the one at depth 1.
    sequence: [u8; 8],
    /// Tag of the one at depth 2.
    element: [u8; 8],
    /// Inside the first `Value` of the one at depth 2.
    in_value: bool,
}

impl XmlReader {
    fn tag(&mut self, tag: &[u8]) {
        self.in_value = false;
        let (closing, tag) = match tag.strip_prefix(b"/") {
            Some(tag) => (true, tag),
            None => (false, tag),
        };
        let name = tag.split(|byte| byte.is_ascii_whitespace() || *byte == b'/').next().unwrap_or_default();
        let name = name.rsplit(|byte| *byte == b':').next().unwrap_or_default();
        match (name, closing, tag.ends_with(b"/")) {
            (b"NativeDicomModel", ..) => self.is_dicom = true,
            (b"DicomAttribute", true, _) => self.depth = self.depth.saturating_sub(1),
            (b"DicomAttribute", false, false) => self.opened(tag),
            (b"Item", false, false) if self.depth == 1 => self.begin(),
            (b"Value", false, false) if self.depth == 2 => self.in_value = true,
            _ => {}
        }
    }

    fn opened(&mut self, tag: &[u8]) {
        self.is_dicom = true;
        self.depth += 1;
        let number = attribute(tag).unwrap_or_default();
        match self.depth {
            1 => self.sequence = number,
            2 => self.element = number,
            _ => {}
        }
    }

    /// A new item of the sequence.
    fn begin(&mut self) {
        if let Some(entries) = self.entries().filter(|entries| entries.len() < ENTRIES_MAX) {
            entries.push(Entry::default());
        }
    }

    fn text(&mut self, text: &[u8]) {
        if !self.in_value {
            return;
        }
        let value = str::from_utf8(text.trim_ascii()).map(Element::of).unwrap_or_default();
        let element = self.element;
        let Some(entry) = self.entries().and_then(|entries| entries.last_mut()) else { return };
        let place = match &element {
            b"00081155" => &mut entry.instance,
            b"00081197" => &mut entry.failure,
            b"00081196" => &mut entry.warning,
            _ => return,
        };
        if place.0.is_empty() {
            *place = value;
        }
    }

    fn entries(&mut self) -> Option<&mut Vec<Entry>> {
        match &self.sequence {
            b"00081199" => Some(&mut self.report.referenced),
            b"00081198" => Some(&mut self.report.failed),
            b"0008119A" => Some(&mut self.report.others),
            _ => None,
        }
    }
}

/// The value of `tag="..."`.
fn attribute(tag: &[u8]) -> Option<[u8; 8]> {
    let at = memchr::memmem::find(tag, b"tag=")?;
    let value = tag.get(at + 5..)?.first_chunk::<8>()?;
    Some(value.to_ascii_uppercase().try_into().unwrap_or(*value))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &[u8] = b"1.2.826.0.1.3680043.8.498.1";

    fn json(sequence: &str, uid: &str, reason: &str) -> String {
        format!(
            r#"{{"00081190":{{"vr":"UR","Value":["http://a/studies/1"]}},"{sequence}":{{"vr":"SQ","Value":[
            {{"00081150":{{"vr":"UI","Value":["1.2.840.10008.5.1.4.1.1.2"]}},"00081155":{{"vr":"UI","Value":["{uid}"]}}{reason}}}]}}}}"#
        )
    }

    fn said(body: &str) -> Option<Outcome> {
        Report::read(body.as_bytes()).unwrap().of(UID)
    }

    #[test]
    fn an_instance_that_is_named_as_stored_is_stored() {
        let uid = str::from_utf8(UID).unwrap();
        assert_eq!(said(&json("00081199", uid, "")), Some(Outcome::Stored(None)));
        let warned = json("00081199", uid, r#","00081196":{"vr":"US","Value":[45063]}"#);
        assert_eq!(said(&warned), Some(Outcome::Stored(Some(0xb007))));
        assert_eq!(said(&format!(" [{warned}]")), Some(Outcome::Stored(Some(0xb007))), "in an array");
        assert_eq!(said(&json("00081199", &format!("{uid}\\u0000"), "")), Some(Outcome::Stored(None)), "padded");
        assert_eq!(said(&json("00081199", "1.2.3", "")), None, "another one");
    }

    #[test]
    fn a_failure_is_that_of_the_one_instance_whatever_it_is_called() {
        let reason = r#","00081197":{"vr":"US","Value":[272]}"#;
        for uid in [str::from_utf8(UID).unwrap(), "1.2.3", ""] {
            assert_eq!(said(&json("00081198", uid, reason)), Some(Outcome::Failed(Some(0x0110))), "{uid}");
        }
        assert_eq!(said(&json("0008119A", "", reason)), Some(Outcome::Failed(Some(0x0110))));
        let text = r#","00081197":{"vr":"US","Value":["42752"]}"#;
        assert_eq!(said(&json("00081198", "", text)), Some(Outcome::Failed(Some(0xa700))));
        for odd in ["", r#","00081197":null"#, r#","00081197":{"Value":[{}]}"#, r#","00081197":{"Value":[-1.5]}"#] {
            assert_eq!(said(&json("00081198", "", odd)), Some(Outcome::Failed(None)), "{odd}");
        }
    }

    #[test]
    fn the_same_is_read_from_xml() {
        let uid = str::from_utf8(UID).unwrap();
        let xml = |sequence: &str, more: &str| {
            format!(
                r#"<?xml version="1.0"?><!-- <Item> --><NativeDicomModel xmlns="http://dicom.nema.org/PS3.19/models/NativeDICOM">
                <DicomAttribute tag="00081190" vr="UR"><Value number="1">http://a</Value></DicomAttribute>
                <DicomAttribute keyword="x" tag='{sequence}' vr="SQ"><Item number="1">
                <DicomAttribute tag="00081155" vr="UI" keyword="ReferencedSOPInstanceUID"><Value number="1">{uid}</Value></DicomAttribute>
                <DicomAttribute tag="00081140" vr="SQ"><Item number="1"><DicomAttribute tag="00081197" vr="US"><Value number="1">1</Value>
                </DicomAttribute></Item></DicomAttribute>{more}</Item></DicomAttribute></NativeDicomModel>"#
            )
        };
        assert_eq!(said(&xml("00081199", "")), Some(Outcome::Stored(None)));
        let reason = r#"<DicomAttribute tag="00081197" vr="US"><Value number="1">49442</Value></DicomAttribute>"#;
        assert_eq!(said(&xml("00081198", reason)), Some(Outcome::Failed(Some(0xc122))));
        assert_eq!(said(&xml("0008119a", reason)), Some(Outcome::Failed(Some(0xc122))));
        assert_eq!(said("<NativeDicomModel/>"), None);
    }

    #[test]
    fn what_is_no_answer_of_a_dicomweb_server_is_not_taken_for_one() {
        for body in ["", "OK", "<html><body>log in</body></html>", "{", "{\"00081199\": 7}", "<", "<!--", "[]", "[7]"] {
            assert_eq!(Report::read(body.as_bytes()), None, "{body}");
        }
        let others = [r#"{"error":"session expired"}"#, r#"[{"error":{"code":7}},{}]"#, r#"{"00080005":{"vr":"CS"}}"#];
        for body in others {
            assert_eq!(Report::read(body.as_bytes()), None, "{body}");
        }
        for body in [r#"{"00081190":{"vr":"UR"}}"#, r#"{"00081199":{"vr":"SQ"},"x":1}"#, " { } ", "[{}]"] {
            assert_eq!(Report::read(body.as_bytes()), Some(Report::default()), "{body}");
        }
        assert_eq!(Report::read(b"{}"), Some(Report::default()));
    }

    #[test]
    fn a_hostile_answer_costs_little() {
        let items = "{},".repeat(300_000) + "{}";
        let many = format!(r#"{{"00081198":{{"Value":[{items}]}}}}"#);
        assert_eq!(Report::read(many.as_bytes()).unwrap().failed.len(), ENTRIES_MAX);
        let deep = format!(r#"{{"x":{}"#, "[".repeat(1 << 20));
        assert_eq!(Report::read(deep.as_bytes()), None);
        let deep = "<DicomAttribute tag=\"00081198\"><Item>".repeat(20_000);
        assert_eq!(Report::read(deep.as_bytes()).unwrap().failed.len(), 1);
        let long = json("00081199", &"1".repeat(1 << 20), "");
        assert_eq!(said(&long), None);
    }
}
