//! One data element's header in each of DICOM's encodings (PS3.5 section 7.1), read and written.
//!
//! Nothing here looks at values or trusts a length: whoever reads decides what to do with the claim.

use super::values::{EXPLICIT_BIG_ENDIAN, IMPLICIT_LITTLE_ENDIAN, Uid};

/// A length that says: until the delimiter.
pub const UNDEFINED: u32 = u32::MAX;
/// The longest header of an element, in bytes.
pub const HEADER_BYTES_MAX: usize = 12;
/// Begins an item of a sequence.
pub const ITEM: Tag = Tag(0xfffe_e000);
/// Ends an item of undefined length.
pub const ITEM_END: Tag = Tag(0xfffe_e00d);
/// Ends a sequence of undefined length.
pub const SEQUENCE_END: Tag = Tag(0xfffe_e0dd);

/// Group in the upper half, element in the lower.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(pub u32);

impl Tag {
    /// Whether it is one of the three that have no value representation.
    pub fn is_delimiter(self) -> bool {
        [ITEM, ITEM_END, SEQUENCE_END].contains(&self)
    }
}

impl std::fmt::Display for Tag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "({:04X},{:04X})", self.0 >> 16, self.0 & 0xffff)
    }
}

impl std::fmt::Debug for Tag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

/// How elements are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Implicit VR, little endian.
    Implicit,
    /// Explicit VR, little endian: also every encapsulated transfer syntax.
    Explicit,
    /// Explicit VR, big endian.
    ExplicitBig,
}

/// Transfer syntaxes whose data sets are deflated as a whole: nothing in them can be read as it stands.
const DEFLATED: [&str; 3] = ["1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"];
/// Beside the standard's: GE's private one with big endian pixels, Papyrus 3.
const IMPLICIT: [&str; 2] = ["1.2.840.113619.5.2", "1.2.840.10008.1.20"];

impl Encoding {
    /// How data sets of a transfer syntax are written; `None`: deflated. A private one that is not known is taken for explicit,
    /// as every one that compresses pixels must be (PS3.5 annex A.4).
    pub fn of(transfer_syntax: &Uid) -> Option<Self> {
        if DEFLATED.contains(&transfer_syntax.as_str()) {
            None
        } else if *transfer_syntax == IMPLICIT_LITTLE_ENDIAN || IMPLICIT.contains(&transfer_syntax.as_str()) {
            Some(Self::Implicit)
        } else if *transfer_syntax == EXPLICIT_BIG_ENDIAN {
            Some(Self::ExplicitBig)
        } else {
            Some(Self::Explicit)
        }
    }

    fn u16(self, bytes: [u8; 2]) -> u16 {
        if self == Self::ExplicitBig { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) }
    }

    fn u32(self, bytes: [u8; 4]) -> u32 {
        if self == Self::ExplicitBig { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    }

    /// A number of two bytes, in this encoding's order.
    pub fn number(self, value: u16) -> [u8; 2] {
        if self == Self::ExplicitBig { value.to_be_bytes() } else { value.to_le_bytes() }
    }

    /// Reads a number of two bytes; `None`: the value is shorter.
    pub fn read_number(self, value: &[u8]) -> Option<u16> {
        value.first_chunk().map(|bytes| self.u16(*bytes))
    }
}

/// The header of an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Which element.
    pub tag: Tag,
    /// Its value representation, where it is written; items and delimiters have none.
    pub vr: Option<[u8; 2]>,
    /// Bytes of its value as claimed, or [`UNDEFINED`].
    pub length: u32,
    /// Bytes of the header itself: 8 or 12.
    pub bytes: usize,
}

/// What the beginning of some bytes is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A header.
    Header(Header),
    /// The beginning of one: so many bytes must be there.
    Short(usize),
    /// No element begins like this.
    Nonsense,
}

/// Reads the header of the element that begins at `bytes`.
pub fn read(encoding: Encoding, bytes: &[u8]) -> Step {
    let Some(&[a, b, c, d, e, f, g, h]) = bytes.first_chunk::<8>() else { return Step::Short(8) };
    let tag = Tag(u32::from(encoding.u16([a, b])) << 16 | u32::from(encoding.u16([c, d])));
    if encoding == Encoding::Implicit || tag.is_delimiter() {
        return Step::Header(Header { tag, vr: None, length: encoding.u32([e, f, g, h]), bytes: 8 });
    }
    let vr = [e, f];
    if !vr.iter().all(u8::is_ascii_uppercase) {
        return Step::Nonsense;
    }
    if is_short(vr) {
        return Step::Header(Header { tag, vr: Some(vr), length: encoding.u16([g, h]).into(), bytes: 8 });
    }
    match bytes.get(8..).and_then(<[u8]>::first_chunk) {
        Some(length) => Step::Header(Header { tag, vr: Some(vr), length: encoding.u32(*length), bytes: 12 }),
        None => Step::Short(12),
    }
}

/// Value representations with a length of two bytes; all others, also those to come, have four (PS3.5 section 7.1.2).
pub fn is_short(vr: [u8; 2]) -> bool {
    const SHORT: [&[u8; 2]; 21] = [
        b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS",
        b"ST", b"TM", b"UI", b"UL", b"US",
    ];
    SHORT.contains(&&vr)
}

/// Writes the header of an element whose value has `length` bytes, or [`UNDEFINED`]. A length that its value representation
/// can't carry is not this function's to see: it belongs to texts of which we choose the size.
pub fn write_header(encoding: Encoding, (tag, vr): (Tag, &[u8; 2]), length: u32, out: &mut Vec<u8>) {
    let (group, element) = (tag.0.to_be_bytes(), tag.0.to_be_bytes());
    let number = |bytes: [u8; 2]| encoding.number(u16::from_be_bytes(bytes));
    out.extend_from_slice(&number([group[0], group[1]]));
    out.extend_from_slice(&number([element[2], element[3]]));
    let long = if encoding == Encoding::ExplicitBig { length.to_be_bytes() } else { length.to_le_bytes() };
    if encoding == Encoding::Implicit || tag.is_delimiter() {
        out.extend_from_slice(&long);
    } else if is_short(*vr) {
        out.extend_from_slice(vr);
        out.extend_from_slice(&encoding.number(u16::try_from(length).unwrap_or(u16::MAX)));
    } else {
        out.extend_from_slice(vr);
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(&long);
    }
}

/// Writes an element, with a byte more where the value's length is odd: NUL for identifiers and bytes, else a blank.
pub fn write(encoding: Encoding, (tag, vr): (Tag, &[u8; 2]), value: &[u8], out: &mut Vec<u8>) {
    let odd = value.len() % 2;
    write_header(encoding, (tag, vr), u32::try_from(value.len() + odd).unwrap_or(UNDEFINED - 1), out);
    out.extend_from_slice(value);
    if odd == 1 {
        out.push(if [b"UI", b"OB"].contains(&vr) { 0 } else { b' ' });
    }
}
