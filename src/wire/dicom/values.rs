//! DICOM's two kinds of names: application entity titles and unique identifiers, with the few identifiers that we speak of.
//!
//! Both keep what a peer sent, also what it should not have sent, so that it can be sent on and stored unchanged. Bytes above
//! 0x7f are held as the characters of ISO 8859-1, which loses none. They must never be used as file names as they stand.

use std::borrow::Cow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use serde::Deserialize;

/// Longest unique identifier, in bytes (PS3.5 section 9.1).
pub const UID_BYTES_MAX: usize = 64;
/// Bytes of an application entity title in a PDU, and the most that it can have (PS3.5 section 6.2, AE).
pub const AE_TITLE_BYTES: usize = 16;

/// A name that DICOM does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// An application entity title has 1 to 16 characters.
    #[error("an AE title has 1 to 16 characters")]
    AeTitleLength,
    /// Control characters, the backslash or characters beyond ASCII in an application entity title.
    #[error("an AE title has no control characters, no backslash and nothing beyond ASCII")]
    AeTitleCharacter,
    /// A unique identifier of more than 64 characters, or with characters that are no bytes.
    #[error("a UID has at most 64 characters of one byte each")]
    Uid,
}

/// An application entity title: who calls, and who is called. Compared without regard to case and to blanks around it.
#[derive(Clone, Default, Deserialize)]
#[serde(try_from = "String")]
pub struct AeTitle(String);

impl AeTitle {
    /// What a peer sent; only the first 16 bytes count, and a NUL ends it. Blanks around it are taken off; it may be empty.
    pub fn read(bytes: &[u8]) -> Self {
        let bytes = bytes.get(..AE_TITLE_BYTES).unwrap_or(bytes);
        let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        Self(from_latin1(text).trim_matches(' ').to_owned())
    }

    /// The title without the blanks around it, as it was sent.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether nothing but blanks was there.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As a PDU has it: 16 bytes, filled up with blanks.
    pub fn field(&self) -> [u8; AE_TITLE_BYTES] {
        let mut field = [b' '; AE_TITLE_BYTES];
        for (place, byte) in field.iter_mut().zip(to_latin1(&self.0)) {
            *place = byte;
        }
        field
    }
}

impl FromStr for AeTitle {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let text = text.trim_matches(' ');
        if text.is_empty() || text.chars().count() > AE_TITLE_BYTES {
            return Err(ValueError::AeTitleLength);
        }
        let plain = text.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b'\\');
        if plain { Ok(Self(text.to_owned())) } else { Err(ValueError::AeTitleCharacter) }
    }
}

impl TryFrom<String> for AeTitle {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        text.parse()
    }
}

impl PartialEq for AeTitle {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl Eq for AeTitle {}

impl Hash for AeTitle {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.to_ascii_lowercase().hash(state);
    }
}

/// For people: what can't be printed is a question mark.
impl fmt::Display for AeTitle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        printable(&self.0).fmt(f)
    }
}

impl fmt::Debug for AeTitle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", printable(&self.0))
    }
}

/// A unique identifier: of a SOP class, an instance, a transfer syntax. At most 64 bytes, of any kind: see [`Uid::is_valid`].
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Uid(Cow<'static, str>);

impl Uid {
    const fn known(text: &'static str) -> Self {
        assert!(text.len() <= UID_BYTES_MAX);
        Self(Cow::Borrowed(text))
    }

    /// What a peer sent, without the NULs and blanks at its end. `None`: more than 64 bytes. It may be empty.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let bytes = trim_end(bytes);
        (bytes.len() <= UID_BYTES_MAX).then(|| Self(Cow::Owned(from_latin1(bytes))))
    }

    /// The identifier as it was sent, without what filled it up.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The bytes that were sent, without what filled them up.
    pub fn to_bytes(&self) -> Vec<u8> {
        to_latin1(&self.0).collect()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it is what PS3.5 section 9.1 allows: numbers without leading zeros, and dots between them.
    pub fn is_valid(&self) -> bool {
        let number = |part: &str| {
            let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            digits && (part.len() == 1 || !part.starts_with('0'))
        };
        self.0.split('.').all(number)
    }

    /// Its name in the standard, for messages, of those few that people meet often; else the identifier itself.
    pub fn name(&self) -> Cow<'_, str> {
        let found = NAMES.iter().find(|(uid, _)| *uid == self.0);
        found.map_or_else(|| printable(&self.0), |(_, name)| Cow::Borrowed(*name))
    }
}

impl FromStr for Uid {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let fits = text.chars().count() <= UID_BYTES_MAX && text.chars().all(|c| u8::try_from(c).is_ok());
        if fits { Ok(Self(Cow::Owned(text.trim_end_matches(['\0', ' ']).to_owned()))) } else { Err(ValueError::Uid) }
    }
}

/// For people: what can't be printed is a question mark.
impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        printable(&self.0).fmt(f)
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", printable(&self.0))
    }
}

/// The DICOM application context (PS3.7 annex A).
pub const APPLICATION_CONTEXT: Uid = Uid::known("1.2.840.10008.3.1.1.1");
/// Verification SOP class: C-ECHO (PS3.4 annex A).
pub const VERIFICATION: Uid = Uid::known("1.2.840.10008.1.1");
/// Storage Commitment Push Model SOP class (PS3.4 annex J).
pub const STORAGE_COMMITMENT: Uid = Uid::known("1.2.840.10008.1.20.1");
/// Its one well-known instance.
pub const STORAGE_COMMITMENT_INSTANCE: Uid = Uid::known("1.2.840.10008.1.20.1.1");
/// Secondary Capture Image Storage.
pub const SECONDARY_CAPTURE: Uid = Uid::known("1.2.840.10008.5.1.4.1.1.7");
/// CT Image Storage.
pub const CT_IMAGE: Uid = Uid::known("1.2.840.10008.5.1.4.1.1.2");
/// Implicit VR Little Endian: the transfer syntax that everybody must know (PS3.5 annex A.1).
pub const IMPLICIT_LITTLE_ENDIAN: Uid = Uid::known("1.2.840.10008.1.2");
/// Explicit VR Little Endian (PS3.5 annex A.2).
pub const EXPLICIT_LITTLE_ENDIAN: Uid = Uid::known("1.2.840.10008.1.2.1");
/// Explicit VR Big Endian, retired.
pub const EXPLICIT_BIG_ENDIAN: Uid = Uid::known("1.2.840.10008.1.2.2");
/// wardgate as an implementation (PS3.7 annex D.3.3.2), made from a random UUID (PS3.5 annex B.2).
pub const IMPLEMENTATION_CLASS: Uid = Uid::known("2.25.112032664137837811562976562504251934147");
/// wardgate's implementation version name: at most 16 characters, the same in every release, so that what is stored of an
/// instance does not depend on who stored it.
pub const IMPLEMENTATION_VERSION: &str = "WARDGATE";

const NAMES: &[(&str, &str)] = &[
    ("1.2.840.10008.1.1", "Verification"),
    ("1.2.840.10008.1.20.1", "Storage Commitment Push Model"),
    ("1.2.840.10008.1.2", "Implicit VR Little Endian"),
    ("1.2.840.10008.1.2.1", "Explicit VR Little Endian"),
    ("1.2.840.10008.1.2.1.99", "Deflated Explicit VR Little Endian"),
    ("1.2.840.10008.1.2.2", "Explicit VR Big Endian"),
    ("1.2.840.10008.1.2.4.50", "JPEG Baseline"),
    ("1.2.840.10008.1.2.4.51", "JPEG Extended"),
    ("1.2.840.10008.1.2.4.57", "JPEG Lossless"),
    ("1.2.840.10008.1.2.4.70", "JPEG Lossless SV1"),
    ("1.2.840.10008.1.2.4.80", "JPEG-LS Lossless"),
    ("1.2.840.10008.1.2.4.81", "JPEG-LS Near-Lossless"),
    ("1.2.840.10008.1.2.4.90", "JPEG 2000 Lossless"),
    ("1.2.840.10008.1.2.4.91", "JPEG 2000"),
    ("1.2.840.10008.1.2.4.100", "MPEG2 Main Profile"),
    ("1.2.840.10008.1.2.4.102", "MPEG-4 AVC/H.264 High Profile"),
    ("1.2.840.10008.1.2.4.201", "HTJ2K Lossless"),
    ("1.2.840.10008.1.2.4.203", "HTJ2K"),
    ("1.2.840.10008.1.2.5", "RLE Lossless"),
    ("1.2.840.10008.5.1.4.1.1.1", "Computed Radiography Image Storage"),
    ("1.2.840.10008.5.1.4.1.1.1.1", "Digital X-Ray Image Storage - For Presentation"),
    ("1.2.840.10008.5.1.4.1.1.1.2", "Digital Mammography X-Ray Image Storage - For Presentation"),
    ("1.2.840.10008.5.1.4.1.1.2", "CT Image Storage"),
    ("1.2.840.10008.5.1.4.1.1.2.1", "Enhanced CT Image Storage"),
    ("1.2.840.10008.5.1.4.1.1.3.1", "Ultrasound Multi-frame Image Storage"),
    ("1.2.840.10008.5.1.4.1.1.4", "MR Image Storage"),
    ("1.2.840.10008.5.1.4.1.1.4.1", "Enhanced MR Image Storage"),
    ("1.2.840.10008.5.1.4.1.1.6.1", "Ultrasound Image Storage"),
    ("1.2.840.10008.5.1.4.1.1.7", "Secondary Capture Image Storage"),
    ("1.2.840.10008.5.1.4.1.1.11.1", "Grayscale Softcopy Presentation State Storage"),
    ("1.2.840.10008.5.1.4.1.1.12.1", "X-Ray Angiographic Image Storage"),
    ("1.2.840.10008.5.1.4.1.1.20", "Nuclear Medicine Image Storage"),
    ("1.2.840.10008.5.1.4.1.1.88.11", "Basic Text SR Storage"),
    ("1.2.840.10008.5.1.4.1.1.88.67", "X-Ray Radiation Dose SR Storage"),
    ("1.2.840.10008.5.1.4.1.1.104.1", "Encapsulated PDF Storage"),
    ("1.2.840.10008.5.1.4.1.1.128", "Positron Emission Tomography Image Storage"),
];

/// A value without the NULs and blanks that fill it up.
pub(super) fn trim_end(bytes: &[u8]) -> &[u8] {
    let length = bytes.iter().rposition(|byte| ![0, b' '].contains(byte)).map_or(0, |last| last + 1);
    bytes.get(..length).unwrap_or_default()
}

/// Each byte as the character of ISO 8859-1.
pub(super) fn from_latin1(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

/// Back again; characters beyond ISO 8859-1 are question marks.
pub(super) fn to_latin1(text: &str) -> impl Iterator<Item = u8> {
    text.chars().map(|c| u8::try_from(c).unwrap_or(b'?'))
}

/// A peer's text for logs and screens: only what can be printed, in ASCII.
pub(super) fn printable(text: &str) -> Cow<'_, str> {
    let plain = |c: char| (' '..='~').contains(&c);
    if text.chars().all(plain) {
        return Cow::Borrowed(text);
    }
    text.chars().map(|c| if plain(c) { c } else { '?' }).collect::<String>().into()
}
