//! The file of the index: redb's pages behind a header that authenticates every one of them.
//!
//! redb verifies checksums only when it repairs, and a damaged page can make it panic, which ends the process where
//! panics abort. So redb never sees a byte that this file has not authenticated first: the header holds an HMAC-SHA256
//! over the spool's id, the length and all pages, under a key derived from the spool's root key. It is written after each
//! change, when redb has closed the file. A file that was changed by anybody else, torn by a power cut in the middle of a
//! change, or made for another spool or key does not authenticate and is simply no index: it is made again from the log.
//!
//! A new file gets its name only when it is whole: temporary name, sync, rename, sync of the folder. Commits are two-phase.
//!
//! ```text
//! 0 ... 4095   "WGINDEX3" · spool id (16) · length of the pages (u64, little endian) · HMAC-SHA256 (32) · zeros
//! 4096 ...     the pages of redb
//! ```

use std::fmt;
use std::io;
use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use redb::backends::InMemoryBackend;
use redb::{Builder, Database, StorageBackend, WriteTransaction};

use super::frame::BLOCK;
use super::storage::{File, Storage};
use crate::status::Counter;

/// A longer file is no index: it is made again.
pub const INDEX_BYTES_MAX: u64 = 64 << 20;
/// Memory that redb may use for pages while a change is made.
const CACHE_BYTES: usize = 4 << 20;
/// Bytes that are read at once for the authentication.
const CHUNK_BYTES: usize = 64 << 10;
/// The name in the spool's folder.
pub const NAME: &str = "index.redb";
const TEMPORARY: &str = "index.redb.tmp";
const MAGIC: &[u8; 8] = b"WGINDEX3";
const PAGES_AT: u64 = BLOCK as u64;
const TAG_BYTES: usize = 32;

/// Any failure of redb or of the disk.
pub type Outcome<T> = Result<T, redb::Error>;

/// Whose index it is: the spool's id and the key of its authentication.
#[derive(Clone)]
pub struct Owner {
    spool: [u8; 16],
    key: hmac::Key,
}

/// The file; nothing of redb is held open between two changes.
pub struct IndexFile {
    file: Arc<dyn File>,
    owner: Owner,
    written: Arc<Counter>,
}

impl Owner {
    /// The spool of that id, with a key that nobody has who has not the spool's root key.
    pub fn new(spool: [u8; 16], key: &[u8; 32]) -> Self {
        Self { spool, key: hmac::Key::new(hmac::HMAC_SHA256, key) }
    }

    /// A short keyed hash of a name, so that no name stands in the file.
    pub fn tag(&self, name: &str) -> [u8; 8] {
        let tag = hmac::sign(&self.key, name.as_bytes());
        tag.as_ref().first_chunk().copied().unwrap_or_default()
    }
}

impl IndexFile {
    /// Opens the index of `owner`; `None` when there is none that authenticates. `written` counts bytes.
    ///
    /// # Errors
    /// As the disk gives them.
    pub fn open(storage: &dyn Storage, owner: &Owner, written: &Arc<Counter>) -> io::Result<Option<Self>> {
        let Some(found) = Self::any(storage, owner, written)? else { return Ok(None) };
        Ok(found.authentic(&mut |_, _| Ok(()))?.then_some(found))
    }

    /// What the index of `owner` held when it was last changed, opened in memory: nothing is written, and redb reads the
    /// very bytes that were authenticated. `None` when there is none that authenticates.
    ///
    /// # Errors
    /// As the disk and redb give them.
    pub fn read(storage: &dyn Storage, owner: &Owner, written: &Arc<Counter>) -> Outcome<Option<Database>> {
        let Some(found) = Self::any(storage, owner, written)? else { return Ok(None) };
        let copy = InMemoryBackend::new();
        copy.set_len(found.file.length()?.saturating_sub(PAGES_AT))?;
        match found.authentic(&mut |offset, bytes| copy.write(offset, bytes))? {
            true => Ok(Some(builder().create_with_backend(copy)?)),
            false => Ok(None),
        }
    }

    /// Makes the index anew with what `fill` writes, in place of whatever has its name.
    ///
    /// # Errors
    /// As the disk, redb and `fill` give them; what had the name is still there then, and the new file is not.
    pub fn make(
        storage: &dyn Storage,
        owner: &Owner,
        written: &Arc<Counter>,
        fill: impl FnOnce(&WriteTransaction) -> Outcome<()>,
    ) -> Outcome<()> {
        remove(storage, TEMPORARY)?;
        let file = storage.create(TEMPORARY)?;
        let made = Self { file, owner: owner.clone(), written: Arc::clone(written) };
        let outcome = made.change(fill).and_then(|()| {
            storage.rename(TEMPORARY, NAME)?;
            Ok(storage.sync_folder("")?)
        });
        if outcome.is_err() {
            // A full disk gets its room back; a disk that fails has told so already.
            remove(storage, TEMPORARY).ok();
        }
        outcome
    }

    /// One change, durable when it returns.
    ///
    /// # Errors
    /// As the disk, redb and `work` give them. The file does not authenticate then, unless nothing of it was changed.
    pub fn change(&self, work: impl FnOnce(&WriteTransaction) -> Outcome<()>) -> Outcome<()> {
        let pages = Pages { file: Arc::clone(&self.file), written: Arc::clone(&self.written) };
        let database = builder().create_with_backend(pages)?;
        let mut change = database.begin_write()?;
        change.set_two_phase_commit(true);
        work(&change)?;
        change.commit()?;
        database.close()?;
        Ok(self.seal()?)
    }

    fn any(storage: &dyn Storage, owner: &Owner, written: &Arc<Counter>) -> io::Result<Option<Self>> {
        match storage.open(NAME) {
            Ok(file) => Ok(Some(Self { file, owner: owner.clone(), written: Arc::clone(written) })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether header and pages belong together and to the owner. `each` gets the pages as they are read, before that is known.
    fn authentic(&self, each: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<bool> {
        let length = self.file.length()?;
        if length <= PAGES_AT || length > INDEX_BYTES_MAX {
            return Ok(false);
        }
        let mut header = [0; BLOCK];
        self.file.read_at(&mut header, 0)?;
        let expected = self.header(length - PAGES_AT, each)?;
        Ok(verify_slices_are_equal(&header, &expected).is_ok())
    }

    /// Writes the header for the pages as they are now.
    fn seal(&self) -> io::Result<()> {
        let pages = self.file.length()?.saturating_sub(PAGES_AT);
        let header = self.header(pages, &mut |_, _| Ok(()))?;
        self.file.write_at(&header, 0)?;
        self.written.add(header.len() as u64);
        self.file.sync()
    }

    fn header(&self, pages: u64, each: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<[u8; BLOCK]> {
        let clear = [MAGIC.as_slice(), &self.owner.spool, &pages.to_le_bytes()].concat();
        let mut context = hmac::Context::with_key(&self.owner.key);
        context.update(&clear);
        let (mut offset, mut chunk) = (0, vec![0; CHUNK_BYTES]);
        while offset < pages {
            let size = usize::try_from(pages - offset).unwrap_or(usize::MAX).min(CHUNK_BYTES);
            chunk.truncate(size);
            self.file.read_at(&mut chunk, PAGES_AT + offset)?;
            context.update(&chunk);
            each(offset, &chunk)?;
            offset += size as u64;
        }
        let tag = context.sign();
        let mut header = [0; BLOCK];
        let parts = clear.iter().chain(tag.as_ref().iter().take(TAG_BYTES));
        for (to, from) in header.iter_mut().zip(parts) {
            *to = *from;
        }
        Ok(header)
    }
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

fn remove(storage: &dyn Storage, name: &str) -> io::Result<()> {
    match storage.remove(name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The pages, as redb sees them.
struct Pages {
    file: Arc<dyn File>,
    written: Arc<Counter>,
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pages(..)")
    }
}

impl StorageBackend for Pages {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.length()?.saturating_sub(PAGES_AT))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_at(out, PAGES_AT + offset)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        if PAGES_AT + length > INDEX_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the index has reached its greatest size"));
        }
        self.file.set_length(PAGES_AT + length)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync()
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.written.add(bytes.len() as u64);
        self.file.write_at(bytes, PAGES_AT + offset)
    }
}
