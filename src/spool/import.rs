//! Takes an export of another box in: each message once, under the id that it has there.
//!
//! An id that is held already is not stored again, so that an import that broke off is simply begun anew. A message counts
//! only when its body has the length and the SHA-256 that its head names. Its lane is of the source that it came from, which
//! this box need not have; its reception keeps the other box's wall clock, while its age is counted from now on.

use std::io;
use std::ops::ControlFlow;

use bytes::Bytes;

use super::survey::{KNOWN_MAX, Known};
use super::transfer::{Head, Parser, Part, Tail, TransferError};
use super::{CommitError, Draft, Spool};
use crate::digest::Hasher;
use crate::values::Name;

/// What was imported so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Messages that are new here, and durable.
    pub stored: u64,
    /// Messages that were here already.
    pub repeats: u64,
    /// Bytes of the new ones.
    pub bytes: u64,
}

/// Why an import ended early. What was stored stays stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// The bytes are not a whole export.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// A body is not what its head says.
    #[error("the export is damaged: the content of a message does not fit its checksum")]
    Checksum,
    /// The end names other numbers than came.
    #[error("the export is damaged: it should hold {0} messages, but {1} came")]
    Count(u64, u64),
    /// The log takes no more.
    #[error("{0}: import the same file again when there is room; what is here already is then skipped")]
    Commit(#[from] CommitError),
    /// Too many imported messages are held already.
    #[error(
        "more than {KNOWN_MAX} imported messages are held here already: wait until they are delivered and taken back"
    )]
    TooMany,
}

/// An import under way. One at a time: two would not see each other's ids.
pub struct Import {
    spool: Spool,
    upstreams: Vec<Name>,
    known: Known,
    parser: Parser,
    current: Option<Current>,
    seen: Tail,
    done: Imported,
    ended: Option<Tail>,
}

/// The message whose body is coming.
struct Current {
    head: Head,
    /// `None`: it is held here already.
    draft: Option<Draft>,
    digest: Hasher,
    length: u64,
}

impl Spool {
    /// Begins to import for these upstreams: reads which messages are held. Blocks; `progress` is told how many segments of
    /// how many are read, and may break off.
    ///
    /// # Errors
    /// As the disk gives them; `Interrupted` when `progress` broke off, `QuotaExceeded` when more than [`KNOWN_MAX`]
    /// imported messages are held.
    pub fn import(
        &self,
        upstreams: Vec<Name>,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> io::Result<Import> {
        let known = Known::read(&self.logs_held(), progress)?;
        Ok(Import {
            spool: self.clone(),
            upstreams,
            known,
            parser: Parser::default(),
            current: None,
            seen: Tail::default(),
            done: Imported::default(),
            ended: None,
        })
    }
}

impl Import {
    /// Takes the next bytes of the export. Every message that is whole with them is durable when this returns.
    ///
    /// # Errors
    /// [`ImportError`]; the import has then ended.
    pub async fn take(&mut self, bytes: &Bytes) -> Result<(), ImportError> {
        self.parser.feed(bytes);
        while let Some(part) = self.parser.part()? {
            match part {
                Part::Head(head) => self.begin(*head),
                Part::Piece(bytes) => self.piece(&bytes).await?,
                Part::Whole => self.store().await?,
                Part::GivenUp => self.current = None,
                Part::Tail(tail) => self.ended = Some(tail),
            }
        }
        Ok(())
    }

    /// What is done so far.
    pub fn done(&self) -> Imported {
        self.done
    }

    /// All bytes have come.
    ///
    /// # Errors
    /// [`ImportError`] when that was not all.
    pub fn finish(self) -> Result<Imported, ImportError> {
        self.parser.finish()?;
        let named = self.ended.ok_or(TransferError::CutOff)?;
        if named != self.seen {
            return Err(ImportError::Count(named.messages, self.seen.messages));
        }
        Ok(self.done)
    }

    fn begin(&mut self, head: Head) {
        // A request for storage commitment is answered by the box that it came to; older boxes export it all the same.
        let new = !self.known.has(head.id) && !head.meta.asks_for_commitment() && !head.meta.is_part();
        let draft = new.then(|| self.spool.begin(head.class, &head.meta.source));
        self.current = Some(Current { digest: Hasher::new(head.digest.algorithm), head, draft, length: 0 });
    }

    async fn piece(&mut self, bytes: &[u8]) -> Result<(), ImportError> {
        let Some(current) = &mut self.current else { return Ok(()) };
        current.length += bytes.len() as u64;
        if current.length > current.head.length {
            return Err(ImportError::Checksum);
        }
        current.digest.update(bytes);
        if let Some(draft) = &mut current.draft {
            draft.write(bytes).await?;
        }
        Ok(())
    }

    async fn store(&mut self) -> Result<(), ImportError> {
        let Some(Current { head, draft, digest, length }) = self.current.take() else { return Ok(()) };
        if length != head.length || digest.finish() != head.digest {
            return Err(ImportError::Checksum);
        }
        self.seen.messages += 1;
        self.seen.bytes += length;
        let Some(draft) = draft else {
            self.done.repeats += 1;
            return Ok(());
        };
        if self.known.carried() >= KNOWN_MAX {
            return Err(ImportError::TooMany);
        }
        let mut meta = head.meta;
        meta.targets.clone_from(&self.upstreams);
        // The other box's uptime says nothing here, and would set this box's clock forward at the next start.
        meta.received.uptime_ms = self.spool.now().uptime_ms;
        draft.commit_as(meta, head.id).await?;
        self.known.add(head.id);
        self.done.stored += 1;
        self.done.bytes += length;
        Ok(())
    }
}
