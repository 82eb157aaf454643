//! The body of a request, fed from a stored message piece by piece as the socket takes it; its length is known beforehand.
//!
//! A [`Pump`] reads the message, an [`Outgoing`] is what the HTTP connection sees of it. Neither ever holds a long message as a
//! whole, and neither ends a body early: what can't be read to its end tears the request down.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::SendError;
use super::link::lost;
use super::sealing::Payload;
use crate::envelope::BodyError;

/// Sealed bodies up to this are sealed in memory, so that a header can tell their SHA-256.
pub const WHOLE_MAX: u64 = 1 << 20;
/// Pieces of a body that wait for the socket.
const PIECES_AHEAD: usize = 2;
/// Pieces are cut to this, so that `write-timeout` is about little and an answer that comes too early is seen as such.
const PIECE_BYTES: usize = 64 << 10;

/// Feeds a request's body from a payload, piece by piece as the socket takes them.
pub(super) struct Pump {
    payload: Payload,
    /// Comes before the payload's own bytes: a multipart's head, or a short sealed body, sealed already.
    before: Option<Bytes>,
    /// Comes after them: a multipart's end.
    after: Option<Bytes>,
    length: u64,
    pieces: Option<mpsc::Sender<Result<Bytes, BodyError>>>,
    sent: Arc<AtomicBool>,
}

/// Why a body was not sent to its end.
pub(super) enum Cut {
    Unreadable(BodyError),
    Stuck,
}

impl Cut {
    pub(super) fn blame(self, address: &str) -> SendError {
        match self {
            Self::Unreadable(error) => unreadable(error),
            Self::Stuck => lost(format!("{address} took nothing more of the message: write-timeout")),
        }
    }
}

impl Pump {
    /// The payload as it is.
    pub(super) async fn new(mut payload: Payload) -> Result<Self, BodyError> {
        let mut whole = None;
        if payload.is_sealed() && payload.len() <= WHOLE_MAX {
            whole = Some(payload.collect().await?);
        }
        let length = payload.len();
        Ok(Self { payload, before: whole, after: None, length, pieces: None, sent: Arc::default() })
    }

    /// The payload with something before and after it.
    pub(super) fn framed(payload: Payload, before: Bytes, after: Bytes) -> Self {
        let length = payload.len() + before.len() as u64 + after.len() as u64;
        Self { payload, before: Some(before), after: Some(after), length, pieces: None, sent: Arc::default() }
    }

    /// What is sent.
    pub(super) fn payload(&self) -> &Payload {
        &self.payload
    }

    /// Turns true once the connection has taken the whole body.
    pub(super) fn sent(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.sent)
    }

    /// The body that this pump feeds.
    pub(super) fn body(&mut self) -> Outgoing {
        let (sender, pieces) = mpsc::channel(PIECES_AHEAD);
        self.pieces = Some(sender);
        Outgoing { pieces, left: self.length, sent: Arc::clone(&self.sent) }
    }

    /// Feeds the body to its end; each piece must be taken within `limit`.
    pub(super) async fn run(mut self, limit: Duration) -> Result<(), Cut> {
        let Some(pieces) = self.pieces.take() else { return Ok(()) };
        loop {
            match self.next().await {
                Ok(None) => return Ok(()),
                Ok(Some(bytes)) => match feed(&pieces, bytes, limit).await? {
                    Fed::On => {}
                    // The connection takes no more: it has its answer, or it broke. The request tells which.
                    Fed::Over => return Ok(()),
                },
                Err(error) => {
                    // Told to the connection as well, so that it is torn down and does not end the body early.
                    drop(pieces.try_send(Err(error.clone())));
                    return Err(Cut::Unreadable(error));
                }
            }
        }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, BodyError> {
        if let Some(before) = self.before.take() {
            return Ok(Some(before));
        }
        match self.payload.next().await? {
            Some(bytes) => Ok(Some(bytes)),
            None => Ok(self.after.take()),
        }
    }
}

/// Whether a body goes on.
enum Fed {
    On,
    Over,
}

async fn feed(pieces: &mpsc::Sender<Result<Bytes, BodyError>>, mut bytes: Bytes, limit: Duration) -> Result<Fed, Cut> {
    while !bytes.is_empty() {
        let piece = bytes.split_to(bytes.len().min(PIECE_BYTES));
        match timeout(limit, pieces.send(Ok(piece))).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Ok(Fed::Over),
            Err(_) => return Err(Cut::Stuck),
        }
    }
    Ok(Fed::On)
}

/// The body of a request: pieces from a [`Pump`], of a length that is known.
pub(super) struct Outgoing {
    pieces: mpsc::Receiver<Result<Bytes, BodyError>>,
    left: u64,
    sent: Arc<AtomicBool>,
}

impl HttpBody for Outgoing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.pieces.poll_recv(context).map(|piece| {
            let Some(piece) = piece else {
                // HTTP/2 would end the stream in order, and the server would take half a message for a whole one.
                let ended_early = || Err(BodyError::Unreadable("it ended early".into()));
                return (self.left > 0).then(ended_early);
            };
            if let Ok(piece) = &piece {
                self.left = self.left.saturating_sub(piece.len() as u64);
            }
            self.sent.store(self.left == 0, Ordering::Release);
            Some(piece.map(Frame::data))
        })
    }

    fn is_end_stream(&self) -> bool {
        if self.left == 0 {
            self.sent.store(true, Ordering::Release);
        }
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// Our own disk's fault: no upstream will get it.
pub(super) fn unreadable(error: BodyError) -> SendError {
    SendError::Rejected { reason: error.to_string() }
}
