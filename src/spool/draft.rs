//! A message on its way into a log: pieces of 256 KiB go to disk while it arrives, the last one commits it.
//!
//! The three things that cost time run beside each other: the task that brings the bytes takes their digest, the writer's thread
//! seals and writes the piece before them, and the disk is at those before that. So the commit has little left to wait for but its sync.

use std::sync::Arc;

use aws_lc_rs::digest;
use tokio::sync::oneshot;

use super::duplicates::{Claim, Duplicates, Verdict};
use super::log::{Effect, Log};
use super::record::{self, Data, FRAGMENT_HEAD, Kind, Piece};
use super::requests::Requests;
use super::writer::{Prepared, Request, Written};
use super::{CommitError, Committed, recovery, source_tag};
use crate::envelope::{Flags, MessageId, Meta};
use crate::values::Name;

/// Bytes of a piece of a body.
pub const FRAGMENT_BYTES: usize = 256 << 10;
/// Pieces of one body: 4 GiB.
const PIECES_MAX: usize = 16_384;

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
    digest: digest::Context,
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
            log,
            requests,
            duplicates,
            source,
            stream,
            buffer: Vec::new(),
            pieces: Vec::new(),
            underway: None,
            length: 0,
            digest: digest::Context::new(&digest::SHA256),
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
        // Last: a piece that went to the writer is sealed and written meanwhile.
        self.digest.update(bytes);
        Ok(())
    }

    /// Buffers bytes, for which there is room in the piece.
    fn keep(&mut self, bytes: &[u8]) {
        let (length, capacity) = (self.buffer.len(), self.buffer.capacity());
        let wanted = length.max(FRAGMENT_HEAD) + bytes.len();
        if wanted > capacity {
            let whole = FRAGMENT_HEAD + FRAGMENT_BYTES;
            // Of a body that has pieces already the next one will be full too, as a rule.
            let likely = if self.streamed { whole } else { whole.min(2 * capacity) };
            self.buffer.reserve_exact(wanted.max(likely) - length);
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
        self.settle_piece().await?;
        let finished = self.digest.clone().finish();
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(finished.as_ref());
        let duplicates = Arc::clone(&self.duplicates);
        let claim = match duplicates.key(&meta.source, &meta.control_id, &sha256) {
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
        let id = self.store(meta, sha256, None, claim).await?;
        Ok(if differs { Committed::Differing(id) } else { Committed::Stored(id) })
    }

    /// As [`Draft::commit`], for a message that comes from another box under the id that it has there.
    ///
    /// # Errors
    /// [`CommitError`]; nothing is stored then.
    pub async fn commit_as(mut self, meta: Meta, id: MessageId) -> Result<MessageId, CommitError> {
        self.settle_piece().await?;
        let finished = self.digest.clone().finish();
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(finished.as_ref());
        self.store(meta, sha256, Some(id), None).await
    }

    async fn store(
        &mut self,
        meta: Meta,
        sha256: [u8; 32],
        id: Option<MessageId>,
        claim: Option<Claim<'_>>,
    ) -> Result<MessageId, CommitError> {
        let tag = source_tag(&self.log.keys().spool, &meta.source);
        let pieces = std::mem::take(&mut self.pieces);
        let stream = (!pieces.is_empty()).then_some(self.stream);
        let data = Data { id, meta, sha256, length: self.length, pieces };
        let effect = recovery::message_effect(&data, stream);
        let plaintext = record::encode_data(&data, self.body());
        let mut records = vec![Prepared { kind: Kind::Data, tag, plaintext, effect, id }];
        records.extend(self.others.drain(..).map(|(meta, body)| whole(meta, &body, tag)));
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
        self.settle_piece().await?;
        if self.pieces.len() >= PIECES_MAX || !self.is_held() {
            return Err(CommitError::Full);
        }
        let length = self.body().len();
        let plaintext = std::mem::take(&mut self.buffer);
        let draft = self.alive.as_ref().map(Arc::downgrade).unwrap_or_default();
        let effect = Effect::Fragment { stream: self.stream, length: length as u64, draft };
        let tag = source_tag(&self.log.keys().spool, &self.source);
        let records = vec![Prepared { kind: Kind::Fragment, tag, plaintext, effect, id: None }];
        let (reply, told) = oneshot::channel();
        self.requests.send(Request::Append { records, control: false, reply });
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
fn whole(meta: Meta, body: &[u8], tag: u16) -> Prepared {
    let mut sha256 = [0; 32];
    sha256.copy_from_slice(digest::digest(&digest::SHA256, body).as_ref());
    let data = Data { id: None, meta, sha256, length: body.len() as u64, pieces: Vec::new() };
    let effect = recovery::message_effect(&data, None);
    Prepared { kind: Kind::Data, tag, plaintext: record::encode_data(&data, body), effect, id: None }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.committed && self.streamed {
            // Its pieces are litter from now on: they go with their segment. In this order, so that a piece which the writer
            // publishes at the same time is either not noted or taken away here.
            self.alive = None;
            self.log.state().streams.remove(&self.stream);
        }
    }
}
