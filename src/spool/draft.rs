//! A message on its way into a log: pieces of 256 KiB go to disk while it arrives, the last one commits it.
//!
//! The things that cost time run beside each other: the task that brings the bytes takes their digest, the disk is at the piece before
//! them, and so the commit has little left to wait for but its sync. Who seals and writes a piece: the task itself on a quick disk, since
//! it takes less time than to wake another thread; the writer's thread on a slow one, and where several write at once.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::duplicates::{Claim, Duplicates, Verdict};
use super::log::{Effect, Log};
use super::record::{self, Data, FRAGMENT_HEAD, Kind, Piece};
use super::requests::Requests;
use super::writer::{Prepared, Request, Written};
use super::{CommitError, Committed, recovery, source_tag};
use crate::digest::{Digest, Hasher};
use crate::envelope::{Class, Flags, MessageId, Meta};
use crate::values::Name;

/// Bytes of a piece of a body.
pub const FRAGMENT_BYTES: usize = 256 << 10;
/// Pieces of one body: 4 GiB.
const PIECES_MAX: usize = 16_384;
/// Bytes of a full piece with its head.
pub(super) const WHOLE_BYTES: usize = FRAGMENT_HEAD + FRAGMENT_BYTES;
/// A body whose first bytes are so many is taken for a long one.
const LONG_BYTES: usize = 32 << 10;
/// Bytes of which a digest is taken at once: they are in the processor's cache still, and are enough for all its lanes.
const DIGEST_BYTES: usize = 64 << 10;

type Told = oneshot::Receiver<Result<Vec<Written>, CommitError>>;

/// See the module. Dropped without a commit, the message never existed.
pub struct Draft {
    log: Arc<Log>,
    requests: Requests,
    duplicates: Arc<Duplicates>,
    source: Name,
    stream: u64,
    /// The piece that fills, behind the head of a FRAGMENT record: as it is, it goes to the writer.
    buffer: Vec<u8>,
    pieces: Vec<Piece>,
    /// The piece that is being written; at most one, so that memory stays bounded.
    underway: Option<(Told, u32)>,
    length: u64,
    digest: Hasher,
    /// Bytes of the piece that fills of which the digest is taken.
    digested: usize,
    committed: bool,
    /// A piece was given to the writer.
    streamed: bool,
    /// See [`Draft::among_others`].
    crowd: bool,
    /// See [`Draft::also`].
    others: Vec<(Meta, Vec<u8>)>,
    /// Gone as soon as the draft is: what the writer still holds of it then pins nothing.
    alive: Option<Arc<()>>,
}

impl Draft {
    /// An empty message of `source`. `stream` is its number among the bodies that arrive in this run.
    pub(super) fn new(
        log: Arc<Log>,
        requests: Requests,
        duplicates: Arc<Duplicates>,
        source: Name,
        stream: u64,
    ) -> Self {
        Self {
            digest: Hasher::new(log.class.digest()),
            digested: 0,
            log,
            requests,
            duplicates,
            source,
            stream,
            buffer: Vec::new(),
            pieces: Vec::new(),
            underway: None,
            length: 0,
            committed: false,
            streamed: false,
            crowd: false,
            others: Vec::new(),
            alive: Some(Arc::new(())),
        }
    }

    /// Adds bytes; every 256 KiB a fragment goes into the log. Waits while the writer is behind.
    ///
    /// # Errors
    /// [`CommitError`] when the log is full or has failed, the body is longer than 4 GiB, or its first pieces were dropped.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), CommitError> {
        self.length += bytes.len() as u64;
        let mut rest = bytes;
        while rest.len() > self.room() {
            let (now, later) = rest.split_at(self.room());
            self.keep(now);
            rest = later;
            self.flush().await?;
        }
        self.keep(rest);
        if self.body().len() - self.digested >= DIGEST_BYTES {
            self.take_digest();
        }
        Ok(())
    }

    /// Takes the digest of what is buffered.
    fn take_digest(&mut self) {
        let fresh = self.buffer.get(FRAGMENT_HEAD + self.digested..).unwrap_or_default();
        self.digest.update(fresh);
        self.digested += fresh.len();
    }

    /// Buffers bytes, for which there is room in the piece.
    fn keep(&mut self, bytes: &[u8]) {
        // Of a body that has pieces already the next one will be full too, as a rule; a long one is seen by its first bytes.
        if self.buffer.capacity() == 0 && (self.streamed || bytes.len() >= LONG_BYTES) {
            self.buffer = self.log.buffers.take(WHOLE_BYTES).unwrap_or_else(|| Vec::with_capacity(WHOLE_BYTES));
        }
        let (length, capacity) = (self.buffer.len(), self.buffer.capacity());
        let wanted = length.max(FRAGMENT_HEAD) + bytes.len();
        if wanted > capacity {
            self.buffer.reserve_exact(wanted.max(WHOLE_BYTES.min(2 * capacity)) - length);
        }
        if self.buffer.is_empty() {
            self.buffer.extend_from_slice(&record::fragment_head(self.stream));
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes of the body in the piece that fills.
    fn body(&self) -> &[u8] {
        self.buffer.get(FRAGMENT_HEAD..).unwrap_or_default()
    }

    /// Bytes of the body for which there is room in it still.
    fn room(&self) -> usize {
        FRAGMENT_BYTES.saturating_sub(self.body().len())
    }

    /// Others of the same sender follow at once: the commit goes into the queue, so that they share its sync, and is not written at once
    /// by the task that brings it.
    pub fn among_others(&mut self) {
        self.crowd = true;
    }

    /// Another message of the same source, small and never a second copy, that becomes durable with this one: all of them or none.
    /// When this one is a second copy, none of them is stored.
    pub fn also(&mut self, meta: Meta, body: Vec<u8>) {
        self.others.push((meta, body));
    }

    /// Bytes so far.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Makes it durable: Ok only after the sync.
    ///
    /// # Errors
    /// [`CommitError`]; nothing is stored then.
    pub async fn commit(mut self, mut meta: Meta) -> Result<Committed, CommitError> {
        self.take_digest();
        self.settle_piece().await?;
        let digest = self.digest.finish();
        let duplicates = Arc::clone(&self.duplicates);
        let claim = match duplicates.key(&meta.source, &meta.control_id, &digest) {
            None => None,
            Some(key) => loop {
                match duplicates.claim(key, self.log.uptime.ms()) {
                    Verdict::New(claim) => break Some(claim),
                    Verdict::Repeat(id) => return Ok(Committed::Repeat(id)),
                    // Whether it was stored or failed is asked again.
                    Verdict::Wait(mut told) => drop(told.changed().await),
                }
            },
        };
        let differs = self.log.class.has_unique_ids() && claim.as_ref().is_some_and(|claim| claim.differs);
        if differs {
            meta.flags = meta.flags.with(Flags::DUPLICATE);
        }
        let id = self.store(meta, digest, None, claim).await?;
        Ok(if differs { Committed::Differing(id) } else { Committed::Stored(id) })
    }

    /// As [`Draft::commit`], for a message that comes from another box under the id that it has there.
    ///
    /// # Errors
    /// [`CommitError`]; nothing is stored then.
    pub async fn commit_as(mut self, meta: Meta, id: MessageId) -> Result<MessageId, CommitError> {
        self.take_digest();
        self.settle_piece().await?;
        let digest = self.digest.finish();
        self.store(meta, digest, Some(id), None).await
    }

    async fn store(
        &mut self,
        meta: Meta,
        digest: Digest,
        id: Option<MessageId>,
        claim: Option<Claim<'_>>,
    ) -> Result<MessageId, CommitError> {
        let tag = source_tag(&self.log.keys().spool, &meta.source);
        let pieces = std::mem::take(&mut self.pieces);
        let stream = (!pieces.is_empty()).then_some(self.stream);
        let data = Data { id, meta, digest, length: self.length, pieces };
        let effect = recovery::message_effect(&data, stream);
        let plaintext = record::encode_data(&data, self.body());
        let mut records = vec![Prepared { kind: Kind::Data, tag, plaintext, effect, id }];
        records.extend(self.others.drain(..).map(|(meta, body)| whole(self.log.class, meta, &body, tag)));
        let (reply, told) = oneshot::channel();
        let request = Request::Append { records, control: false, reply };
        match self.crowd {
            true => self.requests.send(request),
            false => self.requests.send_and_wait(request),
        }
        let written = told.await.unwrap_or(Err(CommitError::Failed))?;
        self.committed = true;
        let id = written.first().map(|written| written.id).ok_or(CommitError::Failed)?;
        if let Some(claim) = claim {
            claim.settle(id, self.log.uptime.ms());
        }
        Ok(id)
    }

    /// Sends what is buffered as a fragment, after the one before it was written.
    async fn flush(&mut self) -> Result<(), CommitError> {
        self.take_digest();
        self.settle_piece().await?;
        if self.pieces.len() >= PIECES_MAX || !self.is_held() {
            return Err(CommitError::Full);
        }
        let length = self.body().len();
        let plaintext = std::mem::take(&mut self.buffer);
        self.digested = 0;
        let draft = self.alive.as_ref().map(Arc::downgrade).unwrap_or_default();
        let effect = Effect::Fragment { stream: self.stream, length: length as u64, draft };
        let tag = source_tag(&self.log.keys().spool, &self.source);
        let records = vec![Prepared { kind: Kind::Fragment, tag, plaintext, effect, id: None }];
        let (reply, told) = oneshot::channel();
        self.requests.send_and_go_on(Request::Append { records, control: false, reply });
        self.streamed = true;
        self.underway = Some((told, u32::try_from(length).unwrap_or(u32::MAX)));
        Ok(())
    }

    /// Whether all pieces are there: a full log that may lose its oldest has perhaps dropped some.
    fn is_held(&self) -> bool {
        let state = self.log.state();
        self.pieces.iter().all(|piece| state.segments.contains_key(&piece.segment))
    }

    async fn settle_piece(&mut self) -> Result<(), CommitError> {
        let Some((told, length)) = &mut self.underway else { return Ok(()) };
        let written = told.await.unwrap_or(Err(CommitError::Failed));
        let length = *length;
        self.underway = None;
        if let Some(Written { at, group_offset, .. }) = written?.first() {
            let piece = Piece { segment: at.segment, ordinal: at.ordinal, group_offset: *group_offset, length };
            self.pieces.push(piece);
        }
        Ok(())
    }
}

/// The record of a message that has wholly arrived.
pub(super) fn whole(class: Class, meta: Meta, body: &[u8], tag: u16) -> Prepared {
    let digest = Digest::of(class.digest(), body);
    let data = Data { id: None, meta, digest, length: body.len() as u64, pieces: Vec::new() };
    let effect = recovery::message_effect(&data, None);
    Prepared { kind: Kind::Data, tag, plaintext: record::encode_data(&data, body), effect, id: None }
}

impl Drop for Draft {
    fn drop(&mut self) {
        self.log.buffers.give(std::mem::take(&mut self.buffer), WHOLE_BYTES);
        if !self.committed && self.streamed {
            // Its pieces are litter from now on: they go with their segment. In this order, so that a piece which the writer
            // publishes at the same time is either not noted or taken away here.
            self.alive = None;
            self.log.state().streams.remove(&self.stream);
        }
    }
}
