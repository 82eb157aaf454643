//! What a device's frames look like and what is in them: a profile, built in or in a file of its own.
//!
//! A profile is read and checked whole before it is used; its problems stand at their line and column. Decoding never fails: a frame that
//! does not fit is told to be unreadable and goes on in its own bytes.

use std::fmt;
use std::time::Duration;

use regex::bytes::Regex;
use serde::{Deserialize, Deserializer};

use crate::system::credentials;
use crate::telemetry::record::{Code, Mode};
use crate::values::SecretRef;
use crate::wire::checksum::Checksum;
use crate::wire::serial_frame::{Framer, Framing};

pub mod decode;
mod file;
pub mod number;
#[cfg(test)]
mod tests;

/// The profiles that are built in, by name.
pub const BUILT_IN: [(&str, &str); 7] = [
    ("nonin-ascii", include_str!("../../config/profiles/nonin-ascii.toml")),
    ("nonin-frames", include_str!("../../config/profiles/nonin-frames.toml")),
    ("masimo-ascii-1", include_str!("../../config/profiles/masimo-ascii-1.toml")),
    ("nellcor-n595", include_str!("../../config/profiles/nellcor-n595.toml")),
    ("ge-giraffe", include_str!("../../config/profiles/ge-giraffe.toml")),
    ("csv", include_str!("../../config/profiles/csv.toml")),
    ("json", include_str!("../../config/profiles/json.toml")),
];
/// A longer file is no profile.
const FILE_BYTES_MAX: usize = 256 << 10;

/// `profile = "nonin-ascii"` is built in, `profile = "scale.toml"` a file. A relative path counts from the folder of the configuration file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ProfileRef {
    /// The name of one of [`BUILT_IN`].
    BuiltIn(String),
    /// A file.
    File(SecretRef),
}

impl<'de> Deserialize<'de> for ProfileRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let is_file = text.ends_with(".toml") || text.contains('/');
        Ok(if is_file { Self::File(SecretRef::File(text.into())) } else { Self::BuiltIn(text) })
    }
}

impl fmt::Display for ProfileRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn(name) => f.write_str(name),
            Self::File(SecretRef::File(path)) => write!(f, "{}", path.display()),
            Self::File(other) => write!(f, "{other}"),
        }
    }
}

impl ProfileRef {
    /// Visits the file, where there is one.
    pub fn files(&mut self, visit: &mut dyn FnMut(&mut SecretRef)) {
        if let Self::File(file) = self {
            visit(file);
        }
    }

    /// Reads the profile.
    ///
    /// # Errors
    /// All that is wrong with it, each in words with what to do, as `file:line:column: text`.
    pub fn load(&self) -> Result<Profile, Vec<String>> {
        match self {
            Self::BuiltIn(name) => {
                let found = BUILT_IN.iter().find(|(known, _)| known == name);
                let known = || BUILT_IN.map(|(name, _)| name).join(", ");
                let unknown =
                    || vec![format!("\"{name}\" is none of the built-in profiles {}; a file ends with .toml", known())];
                found.ok_or_else(unknown).and_then(|(name, text)| Profile::parse(text, name))
            }
            Self::File(file) => {
                let bytes = credentials::read(file).map_err(|error| vec![error.to_string()])?;
                let whole = Some(&bytes[..]).filter(|bytes| bytes.len() <= FILE_BYTES_MAX);
                let text = whole.and_then(|bytes| std::str::from_utf8(bytes).ok());
                let text = text.ok_or_else(|| vec![format!("{self} is no profile: it is no text, or too long")])?;
                Profile::parse(text, &self.to_string())
            }
        }
    }
}

/// A profile, ready to be used.
#[derive(Clone, Debug)]
pub struct Profile {
    /// For people.
    pub name: String,
    /// The stream that its readings belong to.
    pub stream: String,
    /// The device's usual settings of the line.
    pub line: LineSettings,
    /// What the device must be asked, and when.
    pub asking: Asking,
    framing: Framing,
    checksum: Checksum,
    skip: usize,
    frame_bytes_max: usize,
    /// How long the line is silent between two frames, where silence ends a frame.
    pub idle: Option<Duration>,
    decoding: Decoding,
    /// Frames that are known to hold no values: headings.
    also: Vec<Regex>,
    time: Option<TimeField>,
    values: Vec<Field>,
}

/// Settings of the line that a device has when it is delivered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LineSettings {
    /// Bits a second.
    pub baud: Option<u32>,
}

/// What is said to the device.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Asking {
    /// Said when the device is plugged in, and again when it is silent for [`Self::quiet_after`].
    pub start_up: Vec<Vec<u8>>,
    /// Said again and again.
    pub polls: Vec<(Vec<u8>, Duration)>,
    /// Silence after which the device is taken to have been switched off and on.
    pub quiet_after: Option<Duration>,
}

#[derive(Clone, Debug)]
enum Decoding {
    Pattern(Regex),
    /// A frame that fits the pattern, where there is one, is split at this byte sequence.
    Split(Option<Regex>, Vec<u8>),
    Binary,
    /// A frame is a JSON text.
    Json,
}

#[derive(Clone, Debug)]
struct TimeField {
    from: Place,
    format: TimeFormat,
    utc_offset_min: i32,
}

/// How a device writes the time.
#[derive(Clone, PartialEq, Eq, Debug)]
enum TimeFormat {
    /// Seconds since 1970 UTC.
    Unix,
    /// Milliseconds since 1970 UTC.
    UnixMs,
    /// RFC 3339, with a zone or without.
    Rfc3339,
    /// As for strptime.
    Pattern(String),
}

/// Where in a frame a field is.
#[derive(Clone, PartialEq, Debug)]
enum Place {
    Group(String),
    /// From 0.
    Column(usize),
    /// RFC 6901.
    Pointer(String),
    Bytes {
        at: Vec<usize>,
        bits: u32,
        mask: u64,
        signed: bool,
    },
}

#[derive(Clone, Debug)]
struct Field {
    place: Place,
    label: String,
    kind: Kind,
    code: Option<Code>,
    unit: Option<String>,
    vendor_unit: Option<String>,
    scale: Option<number::Decimal>,
    offset: Option<number::Decimal>,
    none: Vec<String>,
    over: Vec<String>,
    under: Vec<String>,
    mode: Mode,
}

/// What a field becomes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    /// An observation with a number.
    #[default]
    Number,
    /// An observation with a text.
    Text,
    /// An event, when the field is there and not blank.
    Event,
    /// A word about the device itself: model, serial number.
    Device,
    /// Nothing: it is known to mean nothing.
    Ignored,
}

impl Profile {
    /// Reads a profile from the text of a file.
    ///
    /// # Errors
    /// All that is wrong with it, as `file:line:column: text`.
    pub fn parse(text: &str, file: &str) -> Result<Self, Vec<String>> {
        file::read(text, file)
    }

    /// A new framer for a line of this device.
    pub fn framer(&self) -> Framer {
        Framer::new(self.framing.clone(), self.checksum, self.skip, self.frame_bytes_max)
    }

    /// Whether frames tell themselves from noise: a pattern that must fit, or a checksum.
    pub fn is_telling(&self) -> bool {
        self.checksum != Checksum::None || matches!(self.decoding, Decoding::Pattern(_) | Decoding::Split(Some(_), _))
    }
}
