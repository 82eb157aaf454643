//! Groups and frames: how records become blocks of a segment file, and back.
//!
//! A group is what one write brings. It begins on a 4 KiB boundary, is padded to the next one with zeros, and is written once.
//! Pieces of a body that is still arriving are not synced by themselves: the next group that somebody waits for syncs all before
//! it, and says how many of them were not synced yet when it was written. All numbers are little endian.
//!
//! ```text
//! group    magic "WGGR" · group u32 · bytes u32 (this header and the frames) · frames u16 · unsynced before it u16 · incarnation (12) · CRC-32 of these (u32)
//! frame    length u32 (plaintext) · kind u8 · check u8 (of the other 11) · lane tag u16 · ordinal u32 · ciphertext (length) · tag (16)
//! nonce    group u32 · frame u32 · 0 u32
//! AAD      segment header's first 96 bytes (spool, log, order, generation, ids ...) · group · bytes · frames and unsynced · frame · frame header (12)
//! ```
//!
//! The header in the clear is only a way to find the frames: its numbers are authenticated with each frame.

use super::seal::{Cipher, TAG_BYTES, Unauthentic};

/// Groups begin on multiples of this.
pub const BLOCK: usize = 4096;
/// Bytes of a group's header.
pub const GROUP_HEADER: usize = 32;
/// Bytes of a frame's header.
pub const FRAME_HEADER: usize = 12;
/// Longest plaintext of a frame: a piece of 256 KiB with its metadata, or a DATA record with many pieces.
pub const PLAINTEXT_MAX: usize = 512 << 10;
const MAGIC: &[u8; 4] = b"WGGR";

/// A segment's cipher with what its frames are tied to.
pub struct Seal {
    /// The key, ready.
    pub cipher: Cipher,
    /// The part of the associated data that is the same for all frames of the file.
    pub context: [u8; 96],
    /// First bytes of the random id of this life of the file: stale groups of an earlier life don't match.
    pub incarnation: [u8; 12],
}

/// What a frame says in the clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Bytes of plaintext.
    pub length: u32,
    /// See [`super::record::Kind`].
    pub kind: u8,
    /// Which source it belongs to, as a short keyed hash, so that lanes need not open what is not theirs; 0: none.
    pub tag: u16,
    /// The record's number in its segment, counted from 0, kept through compaction.
    pub ordinal: u32,
}

/// What a group says in the clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupHeader {
    /// Its number in this life of the file, counted from 0.
    pub group: u32,
    /// Bytes of header and frames, without padding.
    pub bytes: u32,
    /// How many frames.
    pub frames: u16,
    /// How many groups directly before it were not synced when it was written: when one of them is missing, no sync was lost.
    pub unsynced: u16,
}

/// A record on its way into a group.
pub struct Outgoing {
    /// See [`FrameHeader::kind`].
    pub kind: u8,
    /// See [`FrameHeader::tag`].
    pub tag: u16,
    /// See [`FrameHeader::ordinal`].
    pub ordinal: u32,
    /// Plaintext, at most [`PLAINTEXT_MAX`].
    pub plaintext: Vec<u8>,
}

/// Bytes that a record takes in a group.
pub fn framed_bytes(plaintext: usize) -> usize {
    FRAME_HEADER + plaintext + TAG_BYTES
}

/// Bytes on disk of a group whose frames take `framed` bytes.
pub fn group_bytes(framed: usize) -> usize {
    (GROUP_HEADER + framed).next_multiple_of(BLOCK)
}

/// Builds a group in `buffer` (cleared first) and tells where each frame begins in it. Plaintexts are sealed on the way.
pub fn build_group(seal: &Seal, (group, unsynced): (u32, u16), records: &[Outgoing], buffer: &mut Vec<u8>) -> Vec<u32> {
    let framed: usize = records.iter().map(|record| framed_bytes(record.plaintext.len())).sum();
    let header = GroupHeader {
        group,
        bytes: length_u32(GROUP_HEADER + framed),
        // The writer takes fewer requests into one group.
        frames: u16::try_from(records.len()).unwrap_or(u16::MAX),
        unsynced,
    };
    buffer.clear();
    buffer.reserve(group_bytes(framed));
    header.write(&seal.incarnation, buffer);
    let mut offsets = Vec::with_capacity(records.len());
    for (frame, record) in (0u32..).zip(records) {
        offsets.push(length_u32(buffer.len()));
        let at = buffer.len();
        let frame_header = FrameHeader {
            length: length_u32(record.plaintext.len()),
            kind: record.kind,
            tag: record.tag,
            ordinal: record.ordinal,
        };
        let clear = frame_header.to_bytes();
        buffer.extend_from_slice(&clear);
        buffer.extend_from_slice(&record.plaintext);
        let (_, in_out) = buffer.split_at_mut(at + FRAME_HEADER);
        let tag = seal.cipher.seal(nonce(group, frame), &associated(seal, header, frame, clear), in_out);
        buffer.extend_from_slice(&tag);
    }
    buffer.resize(group_bytes(framed), 0);
    offsets
}

/// Opens one frame in place: `sealed` is ciphertext and tag, the plaintext is at its front afterwards.
///
/// # Errors
/// [`Unauthentic`].
pub fn open_frame<'a>(
    seal: &Seal,
    group: GroupHeader,
    frame: u32,
    clear: [u8; FRAME_HEADER],
    sealed: &'a mut [u8],
) -> Result<&'a mut [u8], Unauthentic> {
    seal.cipher.open(nonce(group.group, frame), &associated(seal, group, frame, clear), sealed)
}

impl GroupHeader {
    /// Reads a header; `None` when there is none of this life of the file.
    pub fn read(bytes: &[u8], incarnation: &[u8; 12]) -> Option<Self> {
        let bytes = bytes.first_chunk::<GROUP_HEADER>()?;
        let (content, crc) = bytes.split_last_chunk::<4>()?;
        let known = content.starts_with(MAGIC) && content.ends_with(incarnation);
        if !known || crc32fast::hash(content).to_le_bytes() != *crc {
            return None;
        }
        let counts = read_u32(content, 12).to_le_bytes();
        let header = Self {
            group: read_u32(content, 4),
            bytes: read_u32(content, 8),
            frames: u16::from_le_bytes([counts[0], counts[1]]),
            unsynced: u16::from_le_bytes([counts[2], counts[3]]),
        };
        (header.bytes as usize >= GROUP_HEADER).then_some(header)
    }

    /// Bytes on disk, padding included.
    pub fn padded(&self) -> u64 {
        u64::from(self.bytes).next_multiple_of(BLOCK as u64)
    }

    fn counts(&self) -> [u8; 4] {
        let ([a, b], [c, d]) = (self.frames.to_le_bytes(), self.unsynced.to_le_bytes());
        [a, b, c, d]
    }

    fn write(&self, incarnation: &[u8; 12], buffer: &mut Vec<u8>) {
        let at = buffer.len();
        buffer.extend_from_slice(MAGIC);
        buffer.extend_from_slice(&self.group.to_le_bytes());
        buffer.extend_from_slice(&self.bytes.to_le_bytes());
        buffer.extend_from_slice(&self.counts());
        buffer.extend_from_slice(incarnation);
        let crc = crc32fast::hash(buffer.get(at..).unwrap_or_default());
        buffer.extend_from_slice(&crc.to_le_bytes());
    }
}

impl FrameHeader {
    /// Reads a header; `None` when it is damaged or the length is above [`PLAINTEXT_MAX`].
    pub fn read(bytes: [u8; FRAME_HEADER]) -> Option<Self> {
        let [_, _, _, _, kind, check, tag_low, tag_high, ..] = bytes;
        let header = Self {
            length: read_u32(&bytes, 0),
            kind,
            tag: u16::from_le_bytes([tag_low, tag_high]),
            ordinal: read_u32(&bytes, 8),
        };
        (header.length as usize <= PLAINTEXT_MAX && check == header_check(&bytes)).then_some(header)
    }

    /// Bytes of the whole frame.
    pub fn framed(&self) -> usize {
        framed_bytes(self.length as usize)
    }

    fn to_bytes(self) -> [u8; FRAME_HEADER] {
        let mut bytes = [0; FRAME_HEADER];
        bytes[..4].copy_from_slice(&self.length.to_le_bytes());
        bytes[4] = self.kind;
        bytes[6..8].copy_from_slice(&self.tag.to_le_bytes());
        bytes[8..].copy_from_slice(&self.ordinal.to_le_bytes());
        bytes[5] = header_check(&bytes);
        bytes
    }
}

/// A byte that tells a damaged header: a frame that nobody wants is passed over by its header alone, and must not be one that
/// somebody wanted. CRC-8 (polynomial 0x07) over all bytes but its own place.
fn header_check(bytes: &[u8; FRAME_HEADER]) -> u8 {
    let others = bytes.iter().enumerate().filter(|(at, _)| *at != 5);
    others.fold(0xFF, |crc, (_, byte)| {
        (0..8).fold(crc ^ byte, |crc: u8, _| if crc & 0x80 == 0 { crc << 1 } else { (crc << 1) ^ 0x07 })
    })
}

fn nonce(group: u32, frame: u32) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[..4].copy_from_slice(&group.to_le_bytes());
    nonce[4..8].copy_from_slice(&frame.to_le_bytes());
    nonce
}

fn associated(seal: &Seal, group: GroupHeader, frame: u32, clear: [u8; FRAME_HEADER]) -> [u8; 96 + 16 + FRAME_HEADER] {
    let mut aad = [0; 96 + 16 + FRAME_HEADER];
    aad[..96].copy_from_slice(&seal.context);
    aad[96..100].copy_from_slice(&group.group.to_le_bytes());
    aad[100..104].copy_from_slice(&group.bytes.to_le_bytes());
    aad[104..108].copy_from_slice(&group.counts());
    aad[108..112].copy_from_slice(&frame.to_le_bytes());
    aad[112..].copy_from_slice(&clear);
    aad
}

/// The number at `at`; 0 where there are too few bytes, which every caller has excluded.
fn read_u32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |chunk| u32::from_le_bytes(*chunk))
}

/// Lengths inside a group: groups are far below 4 GiB.
fn length_u32(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::seal::{Algorithm, Secret};
    use super::*;

    fn seal() -> Seal {
        let cipher = Cipher::new(Algorithm::preferred(), &Secret::random());
        Seal { cipher, context: [3; 96], incarnation: [4; 12] }
    }

    fn records() -> Vec<Outgoing> {
        (0..3)
            .map(|n| Outgoing { kind: 2, tag: 7, ordinal: 10 + n, plaintext: vec![b'x'; 1000 * n as usize] })
            .collect()
    }

    #[test]
    fn a_group_reads_back_and_fills_whole_blocks() {
        let (seal, mut buffer) = (seal(), Vec::new());
        let offsets = build_group(&seal, (5, 2), &records(), &mut buffer);
        assert_eq!(buffer.len(), BLOCK);
        let group = GroupHeader::read(&buffer, &seal.incarnation).unwrap();
        assert_eq!((group.group, group.frames, group.unsynced), (5, 3, 2));
        for (frame, offset) in (0u32..).zip(offsets) {
            let at = offset as usize;
            let clear: [u8; FRAME_HEADER] = buffer[at..at + FRAME_HEADER].try_into().unwrap();
            let header = FrameHeader::read(clear).unwrap();
            assert_eq!((header.ordinal, header.length), (10 + frame, 1000 * frame));
            let mut sealed = buffer[at + FRAME_HEADER..at + header.framed()].to_vec();
            let mut copy = sealed.clone();
            let moved = GroupHeader { group: 6, ..group };
            assert_eq!(open_frame(&seal, moved, frame, clear, &mut copy), Err(Unauthentic));
            let plain = open_frame(&seal, group, frame, clear, &mut sealed).unwrap();
            assert!(plain.len() == header.length as usize && plain.iter().all(|byte| *byte == b'x'));
        }
    }

    #[test]
    fn no_flipped_bit_of_a_frame_header_makes_another_header() {
        let header = FrameHeader { length: 1000, kind: 2, tag: 4711, ordinal: 99 }.to_bytes();
        assert!(FrameHeader::read(header).is_some());
        for bit in 0..FRAME_HEADER * 8 {
            let mut flipped = header;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(FrameHeader::read(flipped).is_none(), "bit {bit}");
        }
    }

    #[test]
    fn a_group_of_another_life_of_the_file_is_not_seen() {
        let (seal, mut buffer) = (seal(), Vec::new());
        build_group(&seal, (0, 0), &records(), &mut buffer);
        assert!(GroupHeader::read(&buffer, &[5; 12]).is_none());
        buffer[6] ^= 1;
        assert!(GroupHeader::read(&buffer, &seal.incarnation).is_none());
    }
}
