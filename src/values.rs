//! Small values that come from outside and are checked once, where they enter.
//!
//! Parse, don't validate: whoever holds a [`Name`] or a [`ByteSize`] holds a good one. Nothing here does I/O; a
//! [`SecretRef`] names a secret and never holds it.

use std::fmt;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

mod zone;

pub use zone::Zone;

/// The name that [`Name::storage_commitment`] has.
pub const STORAGE_COMMITMENT: &str = "storage-commitment";
/// The name that [`Name::assembly`] has.
pub const ASSEMBLY: &str = "assembly";
/// Longest [`Name`], in bytes: it becomes part of topics, file names and certificates.
pub const NAME_BYTES_MAX: usize = 48;

/// A count with its thousands apart: `1 234 567`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// So many of something, as people say it: `1 message`, `1 234 messages`. For nouns whose plural ends in s.
pub fn counted(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", count(number), if number == 1 { "" } else { "s" })
}

/// Why a text is not the value it should be. Says what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ValueError(pub String);

/// The name of a source, an upstream, a gateway or a site: 1 to 48 of `a-z`, `0-9` and `-`, beginning with a letter or digit.
///
/// Cheap to clone. It appears in topics, logs and metrics, so it must never hold patient data.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

impl Name {
    /// The upstream that devices' requests for storage commitment are kept for (DICOM PS3.4 annex J). The gateway makes it by
    /// itself; no configured upstream may have this name.
    pub fn storage_commitment() -> Self {
        Self(STORAGE_COMMITMENT.into())
    }

    /// For whom a source keeps parts of messages that it acknowledged before the message was whole: for itself. No configured upstream
    /// may have this name.
    pub fn assembly() -> Self {
        Self(ASSEMBLY.into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if text.is_empty() || text.len() > NAME_BYTES_MAX || !text.chars().all(legal) || text.starts_with('-') {
            return Err(ValueError(format!(
                "\"{text}\" is not a name: use 1 to {NAME_BYTES_MAX} of a-z, 0-9 and -, beginning with a letter or digit"
            )));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A number of bytes, written `"64MiB"`, `"8GiB"`, `"512KiB"`, `"1GB"` or as a bare count.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ByteSize(pub u64);

const BYTE_UNITS: [(&str, u64); 8] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("B", 1),
];

impl FromStr for ByteSize {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = || ValueError(format!("\"{text}\" is not a size: write for example \"64MiB\" or \"8GiB\""));
        let (digits, factor) = BYTE_UNITS
            .iter()
            .find_map(|(unit, factor)| text.strip_suffix(unit).map(|digits| (digits, *factor)))
            .unwrap_or((text, 1));
        let count: u64 = digits.trim().parse().map_err(|_| wrong())?;
        count.checked_mul(factor).map(Self).ok_or_else(wrong)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        match units.iter().find(|(_, factor)| self.0 >= *factor) {
            Some((unit, factor)) if self.0.is_multiple_of(*factor) => write!(f, "{}{unit}", self.0 / factor),
            Some((unit, factor)) => write!(f, "{}.{}{unit}", self.0 / factor, self.0 % factor * 10 / factor),
            None => write!(f, "{}B", self.0),
        }
    }
}

/// A length of time, written `"500ms"`, `"30s"`, `"5m"`, `"12h"` or `"7d"`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong =
            || ValueError(format!("\"{text}\" is not a length of time: write for example \"30s\", \"5m\" or \"7d\""));
        let units = [("ms", 1u64), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
        let (digits, factor) = units
            .iter()
            .find_map(|(unit, factor)| text.strip_suffix(unit).map(|digits| (digits, *factor)))
            .ok_or_else(wrong)?;
        let count: u64 = digits.trim().parse().map_err(|_| wrong())?;
        count.checked_mul(factor).map(|ms| Self(Duration::from_millis(ms))).ok_or_else(wrong)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        let units = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];
        match units.iter().find(|(_, factor)| ms > 0 && ms.is_multiple_of(*factor)) {
            Some((unit, factor)) => write!(f, "{}{unit}", ms / factor),
            None => write!(f, "{ms}ms"),
        }
    }
}

/// Where a listener listens: an IP address and a port. Port 0 lets the system choose (tests).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Listen(pub SocketAddr);

impl FromStr for Listen {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        text.parse().map(Self).map_err(|_| {
            ValueError(format!(
                "\"{text}\" is not an address to listen on: write for example \"10.20.0.1:2575\" or \"[::1]:2575\""
            ))
        })
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A peer to connect to: a host name or IP address, and a port.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct HostPort {
    /// Host name or IP address, without brackets.
    pub host: String,
    /// TCP port, never 0.
    pub port: u16,
}

impl FromStr for HostPort {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = || {
            ValueError(format!(
                "\"{text}\" is not an address: write \"host:port\", for example \"engine.example:2575\""
            ))
        };
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        if bare.is_none() && host.contains(':') {
            return Err(wrong());
        }
        let host = bare.unwrap_or(host);
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        match port.parse() {
            Ok(port) if port != 0 && !host.is_empty() && host.chars().all(legal) => {
                Ok(Self { host: host.to_owned(), port })
            }
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// Where a secret or certificate is found; never the secret itself.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum SecretRef {
    /// A systemd credential: a file of this name in `$CREDENTIALS_DIRECTORY`.
    Credential(String),
    /// A file. A relative path counts from the folder of the configuration file.
    File(PathBuf),
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Credential(name) => write!(f, "credential \"{name}\""),
            Self::File(path) => write!(f, "file \"{}\"", path.display()),
        }
    }
}

/// `"ca.pem"` means a file; `{ file = "..." }` and `{ credential = "..." }` say it in full.
impl<'de> Deserialize<'de> for SecretRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = SecretRef;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"path\", { file = \"path\" } or { credential = \"name\" }")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<SecretRef, E> {
                Ok(SecretRef::File(text.into()))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<SecretRef, A::Error> {
                let wrong = || de::Error::custom("write { file = \"path\" } or { credential = \"name\" }");
                let (key, value): (String, String) = map.next_entry()?.ok_or_else(wrong)?;
                if map.next_entry::<String, String>()?.is_some() {
                    return Err(wrong());
                }
                match key.as_str() {
                    "file" => Ok(SecretRef::File(value.into())),
                    "credential" if value.is_empty() || value.contains('/') || value.starts_with('.') => {
                        Err(de::Error::custom("a credential is named, not given by its path"))
                    }
                    "credential" => Ok(SecretRef::Credential(value)),
                    _ => Err(wrong()),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer)
    }
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer)
    }
}

impl<'de> Deserialize<'de> for HostPort {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer)
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// What is wrong with a configuration, and where: `path` is the key's way from the top, `["source", "monitors", "mllp", "allow"]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Keys from the top of the file; the deepest one that exists there is where the problem is shown.
    pub path: Vec<String>,
    /// What is wrong and what to do about it, for the person at the editor.
    pub text: String,
    /// Only a warning: the configuration may be used.
    pub warning: bool,
}

/// Collects problems while the sections of a configuration are checked, each under its own path.
#[derive(Debug, Default)]
pub struct Problems {
    path: Vec<String>,
    found: Vec<Problem>,
}

impl Problems {
    /// Checks what lies under `key`.
    pub fn under(&mut self, key: &str, check: impl FnOnce(&mut Self)) {
        self.path.push(key.to_owned());
        check(self);
        self.path.pop();
    }

    /// Notes a problem at `key` of the present section (`""`: the section itself).
    pub fn error(&mut self, key: &str, text: impl Into<String>) {
        self.note(key, text.into(), false);
    }

    /// Notes something that may be used but should be known.
    pub fn warn(&mut self, key: &str, text: impl Into<String>) {
        self.note(key, text.into(), true);
    }

    /// All that was found, in order.
    pub fn into_found(self) -> Vec<Problem> {
        self.found
    }

    fn note(&mut self, key: &str, text: String, warning: bool) {
        let mut path = self.path.clone();
        if !key.is_empty() {
            path.push(key.to_owned());
        }
        self.found.push(Problem { path, text, warning });
    }
}

/// A section of the configuration. It lives beside the code that it configures, knows what is unsafe or impossible in
/// itself, and names the files that it depends on (certificates, tokens), so that a changed file counts as a changed section.
pub trait Section {
    /// Notes what serde can't see: combinations, ranges, unsafe choices that were not said aloud.
    fn check(&self, problems: &mut Problems);

    /// Visits each file or credential that the section names.
    fn files(&mut self, visit: &mut dyn FnMut(&mut SecretRef));
}

/// Reads a text and parses it while the deserializer still knows its place: the error stands at the text's own line and
/// column, also inside an array.
fn parsed<'de, D: Deserializer<'de>, T: FromStr<Err = ValueError>>(deserializer: D) -> Result<T, D::Error> {
    struct Text<T>(PhantomData<T>);
    impl<T: FromStr<Err = ValueError>> de::Visitor<'_> for Text<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a text in quotes")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }

        // A bare number is a text without its quotes: a size is meant, or the words for the missing unit are wanted.
        fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
            self.visit_str(&number.to_string())
        }
    }
    deserializer.deserialize_str(Text(PhantomData))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_in_topics_and_file_names() {
        assert!("icu-3-east".parse::<Name>().is_ok());
        for bad in ["", "-a", "Ä", "a/b", "a b", "A", "a+", "#", &"x".repeat(49)] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_and_spans_read_back_as_they_print() {
        for text in ["64MiB", "8GiB", "1KiB", "17B"] {
            assert_eq!(text.parse::<ByteSize>().unwrap().to_string(), text);
        }
        for text in ["500ms", "30s", "5m", "12h", "7d"] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
        }
        assert!("99999999999999999GiB".parse::<ByteSize>().is_err());
        assert!("5".parse::<Span>().is_err());
    }

    #[test]
    fn host_and_port_take_names_and_bracketed_addresses() {
        let v6: HostPort = "[::1]:2575".parse().unwrap();
        assert_eq!((v6.host.as_str(), v6.port), ("::1", 2575));
        assert_eq!(v6.to_string(), "[::1]:2575");
        for bad in ["engine", "engine:0", ":1", "::1:2575", "a b:1", "engine:99999"] {
            assert!(bad.parse::<HostPort>().is_err(), "{bad}");
        }
    }
}
