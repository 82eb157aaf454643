//! A segment: one file of a log, with its own random key, its header in two blocks and a trailer when it is full.
//!
//! A file lives several lives: recycled, it gets a new header with a new random incarnation and key, and what it held before
//! is then unreadable. Nothing here decides when: see `compact`.
//!
//! ```text
//! block 0, 1   header: magic "WGSEG001" · spool (16) · class u8 · algorithm u8 · version u16 · epoch u32 · order u64 ·
//!              generation u32 · segment id (12) · incarnation (16) · zeros (24)      = 96 bytes, the AAD context
//!              · key wrapped by the epoch key (60) · CRC-32 u32
//! block 2 ...  groups (see `frame`); the first one is the checkpoint, the last one of a full segment holds the footer
//! last block   trailer, when the segment is full: magic "WGEND001" · incarnation (16) · footer's offset u64 · CRC-32 u32
//! ```

use std::io;
use std::sync::Arc;

use super::frame::{BLOCK, Seal};
use super::keys::Keyring;
use super::seal::{self, Algorithm, Cipher, KEY_BYTES, Secret};
use super::storage::File;
use crate::envelope::Class;

/// Where the first group begins.
pub const FIRST_GROUP: u64 = 2 * BLOCK as u64;
const VERSION: u16 = 1;
const MAGIC: &[u8; 8] = b"WGSEG001";
const TRAILER_MAGIC: &[u8; 8] = b"WGEND001";
const CONTEXT_BYTES: usize = 96;
const WRAPPED_BYTES: usize = seal::NONCE_BYTES + KEY_BYTES + seal::TAG_BYTES;
const HEADER_BYTES: usize = CONTEXT_BYTES + WRAPPED_BYTES;

/// Bytes of a segment file of a log.
pub fn segment_bytes(class: Class) -> u64 {
    match class {
        Class::Clinical | Class::Telemetry => 16 << 20,
        Class::Imaging => 64 << 20,
    }
}

/// Who a segment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The log.
    pub class: Class,
    /// Place of the segment in the log; never used again in the life of a spool.
    pub order: u64,
    /// 0, or how often the segment of this order was compacted.
    pub generation: u32,
    /// Random; part of the ids of the messages that were first stored in it, kept through compaction.
    pub id: [u8; 12],
}

/// An open segment.
pub struct Segment {
    /// Who it is.
    pub identity: Identity,
    /// The epoch whose key wraps this segment's key.
    pub epoch: u32,
    /// The file's name.
    pub name: String,
    /// The file.
    pub file: Arc<dyn File>,
    /// Bytes of the file.
    pub bytes: u64,
    /// Its cipher.
    pub seal: Seal,
}

/// What a file turned out to be.
pub enum Opened {
    /// A segment.
    Segment(Box<Segment>),
    /// A file without a header: free.
    Free,
    /// A whole header that can't be understood, or whose key can't be unwrapped: a newer version's, another spool's, or an epoch that is
    /// gone. It must not be touched.
    Foreign,
}

impl Segment {
    /// Begins a new life of `file`: writes both headers, without a sync (the first group's sync covers them).
    ///
    /// # Errors
    /// As the disk gives them.
    pub fn create(file: Arc<dyn File>, name: String, identity: Identity, keyring: &Keyring) -> io::Result<Self> {
        let (epoch, epoch_key) = keyring.newest();
        let (algorithm, secret, bytes) = (Algorithm::preferred(), Secret::random(), file.length()?);
        let incarnation: [u8; 16] = seal::random();
        let mut header = Vec::with_capacity(BLOCK);
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(&keyring.spool);
        header.extend_from_slice(&[class_code(identity.class), algorithm.code()]);
        header.extend_from_slice(&VERSION.to_le_bytes());
        header.extend_from_slice(&epoch.to_le_bytes());
        header.extend_from_slice(&identity.order.to_le_bytes());
        header.extend_from_slice(&identity.generation.to_le_bytes());
        header.extend_from_slice(&identity.id);
        header.extend_from_slice(&incarnation);
        header.resize(CONTEXT_BYTES, 0);
        let mut context = [0; CONTEXT_BYTES];
        context.copy_from_slice(&header);
        header.extend_from_slice(&seal::wrap(&epoch_key, &context, secret.bytes()));
        header.extend_from_slice(&crc32fast::hash(&header).to_le_bytes());
        header.resize(BLOCK, 0);
        file.write_at(&header, 0)?;
        file.write_at(&header, BLOCK as u64)?;
        let seal = Seal { cipher: Cipher::new(algorithm, &secret), context, incarnation: short(&incarnation) };
        Ok(Self { identity, epoch, name, file, bytes, seal })
    }

    /// Reads what a file is. Where the two headers differ (a power cut while the file was recycled), the later order holds.
    ///
    /// # Errors
    /// As the disk gives them.
    pub fn open(file: Arc<dyn File>, name: String, keyring: &Keyring) -> io::Result<Opened> {
        let bytes = file.length()?;
        let mut best: Option<Self> = None;
        let mut foreign = false;
        for slot in [0, BLOCK as u64] {
            let mut header = [0; HEADER_BYTES + 4];
            match file.read_at(&mut header, slot) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => continue,
                other => other?,
            }
            let Some(whole) = Parsed::whole(&header) else { continue };
            let parsed = Parsed::read(whole);
            match parsed.and_then(|parsed| parsed.unwrap_key(keyring).map(|secret| (parsed, secret))) {
                Some((parsed, secret)) => {
                    let newer = best.as_ref().is_none_or(|best| {
                        (best.identity.order, best.identity.generation)
                            < (parsed.identity.order, parsed.identity.generation)
                    });
                    if newer {
                        best = Some(parsed.into_segment(&secret, Arc::clone(&file), name.clone(), bytes));
                    }
                }
                None => foreign = true,
            }
        }
        Ok(match best {
            Some(segment) => Opened::Segment(Box::new(segment)),
            None if foreign => Opened::Foreign,
            None => Opened::Free,
        })
    }

    /// Ends this life of a file: after this and a sync its key is gone from it.
    ///
    /// # Errors
    /// As the disk gives them.
    pub fn wipe(file: &dyn File) -> io::Result<()> {
        file.write_at(&[0; 2 * BLOCK], 0)
    }

    /// Where the trailer is, which is also where groups must end.
    pub fn groups_end(&self) -> u64 {
        self.bytes.saturating_sub(BLOCK as u64)
    }

    /// Writes the trailer that points to the footer's group, without a sync.
    ///
    /// # Errors
    /// As the disk gives them.
    pub fn write_trailer(&self, footer_offset: u64) -> io::Result<()> {
        let mut trailer = Vec::with_capacity(BLOCK);
        trailer.extend_from_slice(TRAILER_MAGIC);
        trailer.extend_from_slice(&self.seal.incarnation);
        trailer.extend_from_slice(&footer_offset.to_le_bytes());
        trailer.extend_from_slice(&crc32fast::hash(&trailer).to_le_bytes());
        trailer.resize(BLOCK, 0);
        self.file.write_at(&trailer, self.groups_end())
    }

    /// Where the footer's group is, if the segment was closed.
    ///
    /// # Errors
    /// As the disk gives them.
    pub fn footer_offset(&self) -> io::Result<Option<u64>> {
        let mut trailer = [0; 8 + 12 + 8 + 4];
        match self.file.read_at(&mut trailer, self.groups_end()) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let (content, crc) = trailer.split_at(28);
        let ours = content.starts_with(TRAILER_MAGIC) && content.get(8..20) == Some(&self.seal.incarnation);
        if !ours || crc32fast::hash(content).to_le_bytes() != crc {
            return Ok(None);
        }
        let offset = content.last_chunk().map(|chunk| u64::from_le_bytes(*chunk));
        Ok(offset.filter(|offset| *offset >= FIRST_GROUP && *offset < self.groups_end() && offset % BLOCK as u64 == 0))
    }
}

struct Parsed {
    identity: Identity,
    algorithm: Algorithm,
    epoch: u32,
    spool: [u8; 16],
    incarnation: [u8; 16],
    context: [u8; CONTEXT_BYTES],
    wrapped: [u8; WRAPPED_BYTES],
}

impl Parsed {
    /// The header without its checksum; `None` where there is none.
    fn whole(header: &[u8; HEADER_BYTES + 4]) -> Option<&[u8]> {
        let (content, crc) = header.split_last_chunk::<4>()?;
        (content.starts_with(MAGIC) && crc32fast::hash(content).to_le_bytes() == *crc).then_some(content)
    }

    /// What a whole header says; `None` when it is of another version.
    fn read(content: &[u8]) -> Option<Self> {
        let field = |from: usize| content.get(from..).unwrap_or_default();
        if field(26).first_chunk() != Some(&VERSION.to_le_bytes()) {
            return None;
        }
        Some(Self {
            identity: Identity {
                class: class_from_code(*field(24).first()?)?,
                order: u64::from_le_bytes(*field(32).first_chunk()?),
                generation: u32::from_le_bytes(*field(40).first_chunk()?),
                id: *field(44).first_chunk()?,
            },
            algorithm: Algorithm::from_code(*field(25).first()?)?,
            epoch: u32::from_le_bytes(*field(28).first_chunk()?),
            spool: *field(8).first_chunk()?,
            incarnation: *field(56).first_chunk()?,
            context: *content.first_chunk()?,
            wrapped: *field(CONTEXT_BYTES).first_chunk()?,
        })
    }

    fn unwrap_key(&self, keyring: &Keyring) -> Option<Secret> {
        let epoch_key = keyring.epoch(self.epoch).filter(|_| self.spool == keyring.spool)?;
        let plain = seal::unwrap(&epoch_key, &self.context, &self.wrapped).ok()?;
        plain.as_slice().try_into().ok().map(Secret::new)
    }

    fn into_segment(self, secret: &Secret, file: Arc<dyn File>, name: String, bytes: u64) -> Segment {
        let seal = Seal {
            cipher: Cipher::new(self.algorithm, secret),
            context: self.context,
            incarnation: short(&self.incarnation),
        };
        Segment { identity: self.identity, epoch: self.epoch, name, file, bytes, seal }
    }
}

fn short(incarnation: &[u8; 16]) -> [u8; 12] {
    let mut short = [0; 12];
    short.copy_from_slice(&incarnation[..12]);
    short
}

/// The byte that stands for a log on disk.
pub fn class_code(class: Class) -> u8 {
    match class {
        Class::Clinical => 1,
        Class::Imaging => 2,
        Class::Telemetry => 3,
    }
}

fn class_from_code(code: u8) -> Option<Class> {
    Class::ALL.into_iter().find(|class| class_code(*class) == code)
}
