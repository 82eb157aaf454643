//! What wardgate says about a message over MQTT: topics, user properties and the collector's receipts.
//!
//! * `<root>/<site>/<gateway>/<source>/<log>`: messages, QoS 1, retain off, the message's bytes as payload.
//! * `<root>/<site>/<gateway>/status`: retained JSON, with a last will.
//! * `<root>/<site>/<gateway>/receipt`: a collector's receipts, one line `<id> <sha256>` for each message.
//!
//! User properties of a message ([`Label`]): `id`, `source`, `protocol`, `received` (RFC 3339), `sha256` of the bytes sent,
//! `encoding` (`age` when sealed), `flags` when any. A message that does not fit into one packet is a *transfer*: each of
//! its publishes has `transfer` (new each time it is sent), `part` (from 1) and `parts`; `sha256` is that of all parts
//! together and is on the last part at least (a long body is sealed while it is sent, so it is not known before).
//! No patient data is in any of them.

use mqtt_protocol_core::mqtt::packet::{ContentType, Property, UserProperty};

/// Most parts of one transfer.
pub const PARTS_MAX: u32 = 1 << 20;
/// Longest value of a property that is read.
pub const VALUE_BYTES_MAX: usize = 256;
/// Most receipts that are read from one publish.
pub const RECEIPTS_MAX: usize = 65_536;

/// Which part of a transfer a publish carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The transfer's id: letters and digits.
    pub transfer: String,
    /// From 1.
    pub part: u32,
    /// How many there are.
    pub parts: u32,
}

/// What is said about a message beside its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// The message's id: 32 hexadecimal digits, the same in every copy.
    pub id: String,
    /// The source that took it.
    pub source: String,
    /// Its protocol.
    pub protocol: String,
    /// When its first byte came, RFC 3339.
    pub received: String,
    /// SHA-256 of the bytes sent, 64 hexadecimal digits.
    pub sha256: Option<String>,
    /// Sealed with age.
    pub sealed: bool,
    /// Names of what was noticed about it, separated by commas.
    pub flags: Option<String>,
    /// Media type of what was sealed or sent.
    pub content_type: String,
    /// Only when it is sent in parts.
    pub part: Option<Part>,
}

/// A label that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// A property that every message has is not there or is not what it should be.
    #[error("the user property \"{0}\" is missing or not usable")]
    Property(&'static str),
    /// A text that MQTT can't carry.
    #[error("\"{0}\" can't be sent over MQTT: it is too long or holds characters that MQTT forbids")]
    Text(&'static str),
}

impl Label {
    /// As properties of a PUBLISH.
    ///
    /// # Errors
    /// [`LabelError::Text`].
    pub fn properties(&self) -> Result<Vec<Property>, LabelError> {
        let mut properties = Vec::with_capacity(12);
        if !self.content_type.is_empty() {
            let text = ContentType::new(self.content_type.as_str()).map_err(|_| LabelError::Text("content type"))?;
            properties.push(text.into());
        }
        let mut add = |name: &'static str, value: &str| {
            let pair = UserProperty::new(name, value).map_err(|_| LabelError::Text(name))?;
            properties.push(pair.into());
            Ok(())
        };
        add("id", &self.id)?;
        add("source", &self.source)?;
        add("protocol", &self.protocol)?;
        add("received", &self.received)?;
        if let Some(sha256) = &self.sha256 {
            add("sha256", sha256)?;
        }
        if self.sealed {
            add("encoding", "age")?;
        }
        if let Some(flags) = &self.flags {
            add("flags", flags)?;
        }
        if let Some(part) = &self.part {
            add("transfer", &part.transfer)?;
            add("part", &part.part.to_string())?;
            add("parts", &part.parts.to_string())?;
        }
        Ok(properties)
    }

    /// Reads the properties of a PUBLISH; those of others are ignored, the first of each name counts.
    ///
    /// # Errors
    /// [`LabelError::Property`].
    pub fn read(properties: &[Property]) -> Result<Self, LabelError> {
        let value = |name: &'static str| user_property(properties, name);
        let id = value("id").filter(|id| is_hex(id, 32)).ok_or(LabelError::Property("id"))?;
        let sha256 = match value("sha256") {
            Some(text) if is_hex(text, 64) => Some(text.to_ascii_lowercase()),
            Some(_) => return Err(LabelError::Property("sha256")),
            None => None,
        };
        let encoding = value("encoding");
        if encoding.is_some_and(|encoding| encoding != "age") {
            return Err(LabelError::Property("encoding"));
        }
        let part = read_part(properties)?;
        if sha256.is_none() && part.as_ref().is_none_or(|part| part.part == part.parts) {
            return Err(LabelError::Property("sha256"));
        }
        let content_type = properties.iter().find_map(|property| match property {
            Property::ContentType(text) => Some(text.val()),
            _ => None,
        });
        let text = |name| value(name).unwrap_or_default().to_owned();
        Ok(Self {
            id: id.to_ascii_lowercase(),
            source: text("source"),
            protocol: text("protocol"),
            received: text("received"),
            sha256,
            sealed: encoding.is_some(),
            flags: value("flags").map(str::to_owned),
            content_type: content_type.filter(|text| text.len() <= VALUE_BYTES_MAX).unwrap_or_default().to_owned(),
            part,
        })
    }
}

/// One line of a collector's receipts: this message, as it was sent, is on the collector's disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// The message's id, 32 hexadecimal digits.
    pub id: String,
    /// SHA-256 of the bytes that were sent, 64 hexadecimal digits.
    pub sha256: String,
}

/// The payload of a publish to `.../receipt`.
pub fn write_receipts(receipts: &[Received]) -> String {
    let mut text = String::with_capacity(receipts.len() * 98);
    for receipt in receipts {
        text.push_str(&receipt.id);
        text.push(' ');
        text.push_str(&receipt.sha256);
        text.push('\n');
    }
    text
}

/// Reads such a payload; lines that are none are passed over.
pub fn read_receipts(payload: &[u8]) -> Vec<Received> {
    let lines = payload.split(|byte| *byte == b'\n').take(RECEIPTS_MAX);
    let read = |line: &[u8]| {
        let (id, sha256) = std::str::from_utf8(line).ok()?.trim_end().split_once(' ')?;
        let genuine = is_hex(id, 32) && is_hex(sha256, 64);
        genuine.then(|| Received { id: id.to_ascii_lowercase(), sha256: sha256.to_ascii_lowercase() })
    };
    lines.filter_map(read).collect()
}

fn read_part(properties: &[Property]) -> Result<Option<Part>, LabelError> {
    let Some(transfer) = user_property(properties, "transfer") else {
        return Ok(None);
    };
    let plain =
        !transfer.is_empty() && transfer.len() <= 64 && transfer.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if !plain {
        return Err(LabelError::Property("transfer"));
    }
    let number = |name: &'static str| {
        let text = user_property(properties, name).and_then(|text| text.parse::<u32>().ok());
        text.filter(|number| (1..=PARTS_MAX).contains(number)).ok_or(LabelError::Property(name))
    };
    let (part, parts) = (number("part")?, number("parts")?);
    match part <= parts {
        true => Ok(Some(Part { transfer: transfer.to_owned(), part, parts })),
        false => Err(LabelError::Property("part")),
    }
}

fn user_property<'a>(properties: &'a [Property], name: &str) -> Option<&'a str> {
    let found = properties.iter().find_map(|property| match property {
        Property::UserProperty(pair) if pair.key() == name => Some(pair.val()),
        _ => None,
    });
    found.filter(|value| value.len() <= VALUE_BYTES_MAX)
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label() -> Label {
        Label {
            id: "0".repeat(32),
            source: "monitors".into(),
            protocol: "mllp".into(),
            received: "2026-01-02T03:04:05.000006Z".into(),
            sha256: Some("a".repeat(64)),
            sealed: true,
            flags: Some("batch".into()),
            content_type: "application/hl7-v2".into(),
            part: Some(Part { transfer: "0f".into(), part: 2, parts: 3 }),
        }
    }

    #[test]
    fn a_label_reads_back_as_it_was_written() {
        assert_eq!(Label::read(&label().properties().unwrap()), Ok(label()));
    }

    #[test]
    fn only_the_last_part_must_have_the_digest() {
        let mut label = Label { sha256: None, ..label() };
        assert!(Label::read(&label.properties().unwrap()).is_ok());
        label.part = Some(Part { transfer: "0f".into(), part: 3, parts: 3 });
        assert_eq!(Label::read(&label.properties().unwrap()), Err(LabelError::Property("sha256")));
        label.part = None;
        assert_eq!(Label::read(&label.properties().unwrap()), Err(LabelError::Property("sha256")));
    }

    #[test]
    fn a_transfer_that_would_name_a_path_is_refused() {
        for transfer in ["../x", "", "a/b", &"a".repeat(65)] {
            let label = Label { part: Some(Part { transfer: transfer.into(), part: 1, parts: 1 }), ..label() };
            assert_eq!(Label::read(&label.properties().unwrap()), Err(LabelError::Property("transfer")), "{transfer}");
        }
    }

    #[test]
    fn receipts_read_back_and_other_lines_are_passed_over() {
        let receipts = [
            Received { id: "1".repeat(32), sha256: "b".repeat(64) },
            Received { id: "2".repeat(32), sha256: "c".repeat(64) },
        ];
        let text = format!("nonsense\n{}\n\u{0}\nx y\n", write_receipts(&receipts));
        assert_eq!(read_receipts(text.as_bytes()), receipts);
    }
}
