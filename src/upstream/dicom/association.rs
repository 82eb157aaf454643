//! One association that we ask for (DICOM PS3.8): dialling, contexts, messages out and in, release, abort.
//!
//! It knows no service: who uses it says what a message means (storing, echo, commitment). A frame is judged by its first
//! six bytes before its body is read, a message is bounded, and a data set goes out piece by piece and is never held whole.
//! Commands and data go in PDUs of their own, since some archives choke on both in one. Nothing here tries again, and after an
//! error the association must not be used any more: a late answer could be taken for another message's.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::archive::{Archive, AssociationError};
use super::pieces::{Assembly, Outgoing};
use crate::system::fault;
use crate::system::stream::Stream;
use crate::upstream::link;
use crate::wire::dicom::dimse::Command;
use crate::wire::dicom::pdu::{self, Abort, HEADER_BYTES, Header, Kind, Pdvs, Reject};
use crate::wire::dicom::pdu_associate::{
    AssociateAccept, AssociateRequest, CONTEXTS_MAX, ContextResult, ProposedContext, Role, UserInformation,
};
use crate::wire::dicom::values::{APPLICATION_CONTEXT, IMPLEMENTATION_CLASS, IMPLEMENTATION_VERSION, Uid};

/// Whole PDUs are handed to the network when there are so many bytes of them.
const FLUSH_BYTES: usize = 64 << 10;
/// What is written at once: `write-timeout` is about this much.
const WRITE_BYTES: usize = 64 << 10;
/// Bytes of one read.
const READ_BYTES: usize = 8 << 10;
/// How long a release may take.
const RELEASE_MAX: Duration = Duration::from_secs(2);
/// After a failed write: how long the peer's reason is looked for.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// A context to propose: one transfer syntax each, so that the archive can't choose another one than the instance has.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Pair {
    /// The SOP class.
    pub abstract_syntax: Uid,
    /// How its data sets are encoded.
    pub transfer_syntax: Uid,
}

/// What became of a proposed context.
#[derive(Clone, Debug)]
pub struct Negotiated {
    /// What was proposed.
    pub pair: Pair,
    /// The context's id, or why it was refused.
    pub outcome: Result<u8, ContextResult>,
}

/// A whole DIMSE message from the peer.
#[derive(Debug)]
pub struct Message {
    /// The context that it came in.
    pub context: u8,
    /// Its command set.
    pub command: Command,
    /// Its data set; empty when it has none.
    pub data: Vec<u8>,
}

/// An association that the archive accepted.
pub struct Association {
    stream: Stream,
    archive: Archive,
    contexts: Vec<Negotiated>,
    peer: UserInformation,
    fragment_bytes: usize,
    outgoing: Outgoing,
    received: BytesMut,
    assembly: Assembly,
    message_id: u16,
    /// A message came before ours had ended.
    pub early: bool,
    /// Whether an A-ABORT may be written: we are between two PDUs.
    whole: bool,
}

impl Association {
    /// Dials, asks for an association with these contexts (at most [`CONTEXTS_MAX`], no two alike), and has the answer.
    ///
    /// # Errors
    /// [`AssociationError`].
    pub async fn open(archive: &Archive, pairs: &[Pair]) -> Result<Self, AssociationError> {
        Self::open_with(archive, pairs, request(archive, pairs)).await
    }

    /// As [`Association::open`], for a service that we provide and the peer uses: events are reported by the side that provides, and
    /// says so by role selection (PS3.7 D.3.3.4).
    ///
    /// # Errors
    /// [`AssociationError`].
    pub async fn open_as_provider(archive: &Archive, pairs: &[Pair]) -> Result<Self, AssociationError> {
        let mut request = request(archive, pairs);
        for pair in pairs {
            if !request.user.roles.iter().any(|role| role.sop_class == pair.abstract_syntax) {
                request.user.roles.push(Role { sop_class: pair.abstract_syntax.clone(), scu: false, scp: true });
            }
        }
        Self::open_with(archive, pairs, request).await
    }

    async fn open_with(archive: &Archive, pairs: &[Pair], request: AssociateRequest) -> Result<Self, AssociationError> {
        let limit = archive.connect_timeout;
        let dialled = link::dial(&archive.address, archive.tls.as_ref(), &[], limit).await;
        let stream = dialled.map_err(|error| AssociationError::Dial(error.to_string()))?;
        let mut association = Self::over(stream, archive);
        let pairs = pairs.get(..CONTEXTS_MAX).unwrap_or(pairs);
        association.outgoing.bytes = request.bytes();
        association.flush().await?;
        let what = "did not answer the request for an association";
        let answered = timeout(limit, association.answer(pairs)).await;
        answered.map_err(|_| AssociationError::Silent { what, limit })??;
        Ok(association)
    }

    fn over(stream: Stream, archive: &Archive) -> Self {
        Self {
            stream,
            archive: archive.clone(),
            contexts: Vec::new(),
            peer: UserInformation::default(),
            fragment_bytes: 0,
            outgoing: Outgoing::default(),
            received: BytesMut::new(),
            assembly: Assembly::default(),
            message_id: 0,
            early: false,
            whole: true,
        }
    }

    /// The other way round: the archive has connected to us and asks for an association. `decide` makes the answer.
    ///
    /// # Errors
    /// [`AssociationError`], also when `decide` rejects it.
    pub async fn accept(
        stream: Stream,
        archive: &Archive,
        decide: impl FnOnce(&AssociateRequest) -> Result<AssociateAccept, Reject>,
    ) -> Result<Self, AssociationError> {
        let mut association = Self::over(stream, archive);
        let limit = archive.connect_timeout;
        let what = "did not ask for an association";
        let asked = timeout(limit, association.pdu()).await;
        let (kind, body) = asked.map_err(|_| AssociationError::Silent { what, limit })??;
        if kind != Kind::AssociateRequest {
            return Err(association.unexpected(kind, &body));
        }
        let request = AssociateRequest::read(&body)?;
        match decide(&request) {
            Ok(accept) => {
                association.fragment_bytes = pdu::fragment_bytes_max(request.user.max_length)?;
                association.outgoing.bytes = accept.bytes();
                association.flush().await?;
                Ok(association)
            }
            Err(reject) => {
                association.outgoing.bytes = reject.bytes().to_vec();
                association.flush().await?;
                association.whole = false;
                Err(association.rejected(&reject.bytes()[HEADER_BYTES..]))
            }
        }
    }

    async fn answer(&mut self, pairs: &[Pair]) -> Result<(), AssociationError> {
        let (kind, body) = self.pdu().await?;
        let accept = match kind {
            Kind::AssociateAccept => AssociateAccept::read(&body)?,
            Kind::AssociateReject => return Err(self.rejected(&body)),
            _ => return Err(self.unexpected(kind, &body)),
        };
        self.contexts = pairs.iter().enumerate().map(|(nth, pair)| negotiated(&accept, nth, pair)).collect();
        self.fragment_bytes = pdu::fragment_bytes_max(accept.user.max_length)?;
        self.peer = accept.user;
        Ok(())
    }

    /// What became of the context of this pair; `None`: it was not proposed.
    pub fn context(&self, pair: &Pair) -> Option<Result<u8, ContextResult>> {
        self.contexts.iter().find(|negotiated| negotiated.pair == *pair).map(|negotiated| negotiated.outcome)
    }

    /// What the archive says of itself: its longest PDU, its implementation.
    pub fn peer(&self) -> &UserInformation {
        &self.peer
    }

    /// All contexts that were proposed.
    pub fn contexts(&self) -> &[Negotiated] {
        &self.contexts
    }

    /// The id of the next message of ours.
    pub fn next_message_id(&mut self) -> u16 {
        self.message_id = self.message_id.wrapping_add(1).max(1);
        self.message_id
    }

    /// Sends a message whose data set, if it has one, is short.
    ///
    /// # Errors
    /// [`AssociationError`].
    pub async fn send(&mut self, context: u8, command: &[u8], data: Option<&[u8]>) -> Result<(), AssociationError> {
        self.command(context, command).await?;
        if let Some(data) = data {
            self.data(context, data).await?;
            self.end_of_data(context).await?;
        }
        self.flush().await
    }

    /// Puts a command set on its way. A data set that follows goes with [`Self::data`] and [`Self::end_of_data`].
    ///
    /// # Errors
    /// [`AssociationError`].
    pub async fn command(&mut self, context: u8, command: &[u8]) -> Result<(), AssociationError> {
        self.early = false;
        self.put(context, true, command).await?;
        self.outgoing.seal(context, true, true);
        Ok(())
    }

    /// The next piece of a data set, of any length.
    ///
    /// # Errors
    /// [`AssociationError`].
    pub async fn data(&mut self, context: u8, piece: &[u8]) -> Result<(), AssociationError> {
        self.put(context, false, piece).await
    }

    /// The data set is complete.
    ///
    /// # Errors
    /// [`AssociationError`].
    pub async fn end_of_data(&mut self, context: u8) -> Result<(), AssociationError> {
        self.outgoing.seal(context, false, true);
        self.flush().await
    }

    async fn put(&mut self, context: u8, is_command: bool, mut bytes: &[u8]) -> Result<(), AssociationError> {
        while !bytes.is_empty() {
            // The last piece is sealed by whoever knows that it is the last.
            if self.outgoing.room(self.fragment_bytes) == 0 {
                self.outgoing.seal(context, is_command, false);
                if self.outgoing.bytes.len() >= FLUSH_BYTES {
                    self.flush().await?;
                    self.notice().await?;
                }
            }
            let (piece, rest) = bytes.split_at(bytes.len().min(self.outgoing.room(self.fragment_bytes)));
            self.outgoing.add(piece);
            bytes = rest;
        }
        Ok(())
    }

    /// Hands whole PDUs to the network.
    async fn flush(&mut self) -> Result<(), AssociationError> {
        self.whole = false;
        let limit = self.archive.write_timeout;
        let stream = &mut self.stream;
        let write = async {
            for piece in self.outgoing.bytes.chunks(WRITE_BYTES) {
                timeout(limit, stream.write_all(piece)).await??;
            }
            timeout(limit, stream.flush()).await?
        };
        let written: io::Result<()> = write.await;
        self.outgoing.bytes.clear();
        match written {
            Ok(()) => {
                self.whole = true;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                Err(AssociationError::Silent { what: "took nothing more (write-timeout)", limit })
            }
            Err(error) => Err(self.last_words().await.unwrap_or_else(|| closed(&error))),
        }
    }

    /// Why the peer takes nothing more: an A-ABORT may have come before the connection broke.
    async fn last_words(&mut self) -> Option<AssociationError> {
        let words = async {
            loop {
                match self.pdu().await {
                    Ok((Kind::Data, _)) => {}
                    Ok((kind, body)) => return Some(self.unexpected(kind, &body)),
                    Err(_) => return None,
                }
            }
        };
        timeout(LAST_WORDS, words).await.ok()?
    }

    /// Looks, without waiting, whether the peer speaks before our message has ended: an abort is then known at once.
    async fn notice(&mut self) -> Result<(), AssociationError> {
        if self.early {
            return Ok(());
        }
        // Asked once, and without a timer: the shortest one takes a millisecond, and this is asked with every few PDUs.
        let polled = {
            let mut filled = pin!(self.fill(HEADER_BYTES));
            poll_fn(|context| Poll::Ready(filled.as_mut().poll(context))).await
        };
        match polled {
            Poll::Ready(filled) => filled?,
            Poll::Pending => return Ok(()),
        }
        match self.header()?.kind {
            Kind::Data => self.early = true,
            _ => {
                let (kind, body) = self.pdu().await?;
                return Err(self.unexpected(kind, &body));
            }
        }
        Ok(())
    }

    /// The next message of the peer, within `response-timeout`.
    ///
    /// # Errors
    /// [`AssociationError`].
    pub async fn receive(&mut self) -> Result<Message, AssociationError> {
        let limit = self.archive.response_timeout;
        let received = timeout(limit, self.receive_unlimited()).await;
        received.map_err(|_| AssociationError::Silent { what: "did not answer", limit })?
    }

    /// The next message of the peer, whenever it comes. Cancelling loses nothing.
    ///
    /// # Errors
    /// [`AssociationError`]; [`AssociationError::Released`] after the peer's release was answered.
    pub async fn receive_unlimited(&mut self) -> Result<Message, AssociationError> {
        loop {
            let (kind, body) = self.pdu().await?;
            if kind != Kind::Data {
                if kind == Kind::ReleaseRequest {
                    self.outgoing.bytes.extend_from_slice(&pdu::RELEASE_RESPONSE);
                    self.flush().await.ok();
                }
                return Err(self.unexpected(kind, &body));
            }
            for pdv in Pdvs::new(&body) {
                if let Some(message) = self.assembly.take(&pdv?)? {
                    return Ok(message);
                }
            }
        }
    }

    /// Says goodbye: A-RELEASE, also when the peer says it at the same time.
    pub async fn release(mut self) {
        let goodbye = async {
            self.outgoing.bytes.extend_from_slice(&pdu::RELEASE_REQUEST);
            self.flush().await?;
            loop {
                match self.pdu().await?.0 {
                    Kind::ReleaseRequest => {
                        self.outgoing.bytes.extend_from_slice(&pdu::RELEASE_RESPONSE);
                        self.flush().await?;
                    }
                    Kind::Data => {}
                    _ => return Ok::<(), AssociationError>(()),
                }
            }
        };
        // A peer that does not answer is left all the same.
        drop(timeout(RELEASE_MAX, goodbye).await);
        self.whole = false;
        drop(timeout(RELEASE_MAX, self.stream.shutdown()).await);
    }

    /// The next PDU, its body bounded before it is read. Cancelling loses nothing.
    async fn pdu(&mut self) -> Result<(Kind, BytesMut), AssociationError> {
        self.fill(HEADER_BYTES).await?;
        let header = self.header()?;
        let length = usize::try_from(header.length).unwrap_or(usize::MAX);
        self.fill(HEADER_BYTES.saturating_add(length)).await?;
        self.received.advance(HEADER_BYTES);
        Ok((header.kind, self.received.split_to(length)))
    }

    fn header(&self) -> Result<Header, AssociationError> {
        let bytes = self.received.first_chunk().copied().unwrap_or_default();
        Ok(Header::read(bytes, self.archive.max_pdu)?)
    }

    /// Reads until there are so many bytes.
    async fn fill(&mut self, bytes: usize) -> Result<(), AssociationError> {
        while self.received.len() < bytes {
            // Linux forgets it: without it, a sender with Nagle's algorithm waits 40 ms for each answer.
            self.stream.tcp().set_quickack(true).ok();
            self.received.reserve((bytes - self.received.len()).clamp(1, READ_BYTES));
            let read = self.stream.read_buf(&mut self.received).await.map_err(|error| closed(&error))?;
            if read == 0 {
                return Err(AssociationError::Closed("the archive closed it".into()));
            }
        }
        Ok(())
    }

    fn rejected(&self, body: &[u8]) -> AssociationError {
        let (calling, called) = (self.archive.calling.clone(), self.archive.called.clone());
        let reject = Reject::read(body).unwrap_or(Reject::NO_REASON);
        AssociationError::Rejected { reject, calling, called }
    }

    /// The end of the association, by a PDU that is none of what is waited for.
    fn unexpected(&mut self, kind: Kind, body: &[u8]) -> AssociationError {
        match kind {
            Kind::Abort => {
                self.whole = false;
                AssociationError::Aborted(Abort::read(body).unwrap_or(Abort::NO_REASON))
            }
            Kind::ReleaseRequest => AssociationError::Released,
            _ => AssociationError::Broken(format!("{kind} came when it can't")),
        }
    }
}

/// Whoever gives an association up says so when it can be said at once; over TLS the end of the connection must do.
impl Drop for Association {
    fn drop(&mut self) {
        if self.whole && !self.stream.is_tls() {
            self.stream.tcp().try_write(&Abort::BY_USER.bytes()).ok();
        }
    }
}

fn closed(error: &io::Error) -> AssociationError {
    AssociationError::Closed(fault::in_words(error))
}

fn request(archive: &Archive, pairs: &[Pair]) -> AssociateRequest {
    let context = |(nth, pair): (usize, &Pair)| ProposedContext {
        id: context_id(nth),
        abstract_syntax: pair.abstract_syntax.clone(),
        transfer_syntaxes: vec![pair.transfer_syntax.clone()],
    };
    AssociateRequest {
        protocol_version: 1,
        called: archive.called.clone(),
        calling: archive.calling.clone(),
        application_context: APPLICATION_CONTEXT,
        contexts: pairs.iter().enumerate().map(context).collect(),
        // No asynchronous window: one message at a time is what everybody understands.
        user: UserInformation {
            max_length: archive.max_pdu,
            implementation_class: Some(IMPLEMENTATION_CLASS),
            implementation_version: Some(IMPLEMENTATION_VERSION.to_owned()),
            ..UserInformation::default()
        },
    }
}

fn context_id(nth: usize) -> u8 {
    u8::try_from(2 * nth + 1).unwrap_or(u8::MAX)
}

fn negotiated(accept: &AssociateAccept, nth: usize, pair: &Pair) -> Negotiated {
    let id = context_id(nth);
    let answer = accept.contexts.iter().find(|context| context.id == id);
    let outcome = match answer.map_or(ContextResult::NoReason, |context| context.result) {
        // Some leave the syntax out, since there was one to choose from; another one was never proposed.
        ContextResult::Accepted => {
            let chosen = answer.and_then(|context| context.transfer_syntax.as_ref()).filter(|uid| !uid.is_empty());
            let same = chosen.is_none_or(|chosen| *chosen == pair.transfer_syntax);
            if same { Ok(id) } else { Err(ContextResult::TransferSyntaxes) }
        }
        refused => Err(refused),
    };
    Negotiated { pair: pair.clone(), outcome }
}
