//! The head of a DICOM file (PS3.10 section 7): 128 bytes that mean nothing, `DICM`, and group 2, which says what follows.
//!
//! What we write depends on the instance and its sender alone, so that two copies of one instance are the same bytes. The data
//! set behind it is never touched.

use super::element::{self as element, Encoding, Step, Tag, UNDEFINED};
use super::values::{AeTitle, IMPLEMENTATION_CLASS, IMPLEMENTATION_VERSION, Uid, to_latin1};

/// Bytes before `DICM`.
const PREAMBLE_BYTES: usize = 128;
const MAGIC: [u8; 4] = *b"DICM";
/// So many bytes of a file's beginning hold every head that we wrote: see [`FileMeta::bytes`].
pub const HEAD_BYTES_MAX: usize = 512;
/// Elements of group 2 that are looked at, for files of others.
const ELEMENTS_MAX: usize = 64;

const META_LENGTH: Tag = Tag(0x0002_0000);
const META_VERSION: Tag = Tag(0x0002_0001);
const SOP_CLASS: Tag = Tag(0x0002_0002);
const SOP_INSTANCE: Tag = Tag(0x0002_0003);
const TRANSFER_SYNTAX: Tag = Tag(0x0002_0010);
const IMPLEMENTATION_CLASS_UID: Tag = Tag(0x0002_0012);
const IMPLEMENTATION_VERSION_NAME: Tag = Tag(0x0002_0013);
const SOURCE_AE_TITLE: Tag = Tag(0x0002_0016);
const RECEIVING_AE_TITLE: Tag = Tag(0x0002_0018);

/// Why some bytes are not the head of a DICOM file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// No `DICM` where it must be.
    #[error("this is no DICOM file: there is no DICM at byte 128")]
    NotDicom,
    /// The bytes end within the head.
    #[error("the head of this DICOM file is longer than what is there")]
    Truncated,
    /// An element that can't be.
    #[error("group 2 of this DICOM file can't be read")]
    Nonsense,
    /// An element that must be there and is not, or holds no UID.
    #[error("this DICOM file has no usable {0} in group 2")]
    Missing(Tag),
}

/// What group 2 says of the data set behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileMeta {
    /// (0002,0002)
    pub sop_class: Uid,
    /// (0002,0003)
    pub sop_instance: Uid,
    /// (0002,0010): how the data set is written.
    pub transfer_syntax: Uid,
    /// (0002,0016): who sent it; empty when that is not known.
    pub source_ae: AeTitle,
    /// (0002,0018): whom they called; empty when that does not matter.
    pub receiving_ae: AeTitle,
}

impl FileMeta {
    /// The head: preamble, `DICM` and group 2. At most [`HEAD_BYTES_MAX`] bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut group = Vec::with_capacity(256);
        let mut add = |tag, vr, value: &[u8]| element::write(Encoding::Explicit, (tag, vr), value, &mut group);
        add(META_VERSION, b"OB", &[0, 1]);
        add(SOP_CLASS, b"UI", &self.sop_class.to_bytes());
        add(SOP_INSTANCE, b"UI", &self.sop_instance.to_bytes());
        add(TRANSFER_SYNTAX, b"UI", &self.transfer_syntax.to_bytes());
        add(IMPLEMENTATION_CLASS_UID, b"UI", &IMPLEMENTATION_CLASS.to_bytes());
        add(IMPLEMENTATION_VERSION_NAME, b"SH", IMPLEMENTATION_VERSION.as_bytes());
        for (tag, title) in [(SOURCE_AE_TITLE, &self.source_ae), (RECEIVING_AE_TITLE, &self.receiving_ae)] {
            if !title.is_empty() {
                add(tag, b"AE", &to_latin1(title.as_str()).collect::<Vec<u8>>());
            }
        }
        let mut head = Vec::with_capacity(HEAD_BYTES_MAX);
        head.resize(PREAMBLE_BYTES, 0);
        head.extend_from_slice(&MAGIC);
        let length = u32::try_from(group.len()).unwrap_or(u32::MAX).to_le_bytes();
        element::write(Encoding::Explicit, (META_LENGTH, b"UL"), &length, &mut head);
        head.extend_from_slice(&group);
        head
    }

    /// Reads the head of a file, and the number of bytes it has: there the data set begins. `head` is the beginning of the file;
    /// [`HEAD_BYTES_MAX`] bytes are enough for what we wrote.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn read(head: &[u8]) -> Result<(Self, usize), FileError> {
        let mut at = PREAMBLE_BYTES + MAGIC.len();
        if head.get(PREAMBLE_BYTES..at) != Some(&MAGIC[..]) {
            return Err(FileError::NotDicom);
        }
        let (mut class, mut instance, mut syntax) = (None, None, None);
        let (mut source_ae, mut receiving_ae) = (AeTitle::default(), AeTitle::default());
        let mut end = None;
        for count in 0.. {
            let rest = head.get(at..).unwrap_or_default();
            // The group's own length is not always right, so the first element of another group ends it as well.
            if end == Some(at) || rest.first_chunk().is_some_and(|group| *group != [2, 0]) {
                break;
            }
            if count >= ELEMENTS_MAX {
                return Err(FileError::Nonsense);
            }
            let (tag, value) = take(rest, &mut at)?;
            match tag {
                META_LENGTH => {
                    let length = value.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
                    end = length.and_then(|length| at.checked_add(usize::try_from(length).ok()?));
                }
                SOP_CLASS => class = uid(value),
                SOP_INSTANCE => instance = uid(value),
                TRANSFER_SYNTAX => syntax = uid(value),
                SOURCE_AE_TITLE => source_ae = AeTitle::read(value),
                RECEIVING_AE_TITLE => receiving_ae = AeTitle::read(value),
                _ => {}
            }
        }
        let sop_class = class.ok_or(FileError::Missing(SOP_CLASS))?;
        let sop_instance = instance.ok_or(FileError::Missing(SOP_INSTANCE))?;
        let transfer_syntax = syntax.ok_or(FileError::Missing(TRANSFER_SYNTAX))?;
        Ok((Self { sop_class, sop_instance, transfer_syntax, source_ae, receiving_ae }, at))
    }
}

/// The element at the beginning of `rest`; `at` moves on behind it.
fn take<'a>(rest: &'a [u8], at: &mut usize) -> Result<(Tag, &'a [u8]), FileError> {
    let header = match element::read(Encoding::Explicit, rest) {
        Step::Header(header) if header.length != UNDEFINED => header,
        Step::Short(_) => return Err(FileError::Truncated),
        Step::Header(_) | Step::Nonsense => return Err(FileError::Nonsense),
    };
    let length = usize::try_from(header.length).map_err(|_| FileError::Truncated)?;
    let value = rest.get(header.bytes..).and_then(|rest| rest.get(..length)).ok_or(FileError::Truncated)?;
    *at += header.bytes + length;
    Ok((header.tag, value))
}

fn uid(value: &[u8]) -> Option<Uid> {
    Uid::read(value).filter(|uid| !uid.is_empty())
}
