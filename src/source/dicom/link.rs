//! The bytes of one DICOM connection: whole PDUs out of a bounded buffer, answers back, and why it ended.
//!
//! A PDU is judged by its first six bytes, before room is made for it or another byte is read (PS3.8 section 9.3.1). The buffer
//! holds one PDU and what one read brings beyond it, never more.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::time::{Instant, sleep, timeout};

use crate::source::Stop;
use crate::system::stream::Stream;
use crate::wire::dicom::dimse::CommandError;
use crate::wire::dicom::pdu::{Abort, HEADER_BYTES, Header, Kind, PduError, RELEASE_REQUEST, RELEASE_RESPONSE, Reject};

/// Bytes that a new connection's buffer has: enough for the request of most modalities.
const FIRST_BYTES: usize = 16 << 10;
/// What a read may bring beyond the longest PDU, so that short PDUs come several at a time.
const BEYOND_BYTES: usize = 32 << 10;
/// How long a peer has to take the last word before its connection is closed on it.
const FAREWELL_TIME: Duration = Duration::from_millis(250);
/// How long a peer has to agree to a release that we asked for.
const RELEASE_TIME: Duration = Duration::from_secs(1);

/// How often is looked whether a peer whose message waits for room has hung up.
const HANG_UP_INTERVAL: Duration = Duration::from_millis(200);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Closing {
    #[error("released")]
    Released,
    #[error("the peer closed it")]
    Peer,
    #[error("the source is stopping")]
    Stopped,
    #[error("the peer aborted: {0}")]
    Aborted(Abort),
    #[error("{0}")]
    Rejected(Reject),
    #[error("this peer has too many connections without an association")]
    Crowded,
    #[error("the association request did not come whole within the ARTIM timeout")]
    Artim,
    #[error("no PDU was completed within the idle timeout")]
    Idle,
    #[error("a data set went on too slowly")]
    Slow,
    #[error("{0}")]
    Pdu(#[from] PduError),
    #[error("{0}")]
    Command(#[from] CommandError),
    #[error("{0} can't come now")]
    Unexpected(Kind),
    #[error("{0}")]
    Order(&'static str),
    #[error("the peer did not read its answer within the write timeout")]
    Deaf,
    #[error("the connection broke: {0}")]
    Broken(io::Error),
}

impl Closing {
    /// What is sent as the last word.
    fn last_word(&self) -> Option<[u8; 10]> {
        match self {
            Self::Rejected(reject) => Some(reject.bytes()),
            Self::Artim | Self::Crowded | Self::Idle | Self::Slow | Self::Stopped => Some(Abort::NO_REASON.bytes()),
            Self::Pdu(error) => Some(Abort::answer_to(error).bytes()),
            Self::Command(_) | Self::Order(_) => Some(Abort::INVALID_PARAMETER.bytes()),
            Self::Unexpected(_) => Some(Abort::UNEXPECTED_PDU.bytes()),
            Self::Released | Self::Peer | Self::Aborted(_) | Self::Deaf | Self::Broken(_) => None,
        }
    }

    /// Whether it is nothing to look at.
    pub(super) fn is_ordinary(&self) -> bool {
        matches!(self, Self::Released | Self::Peer | Self::Stopped)
    }
}

/// How long a message is kept waiting for room in memory, and for whom.
pub(super) struct Patience<'a> {
    pub(super) limit: Duration,
    pub(super) stop: &'a Stop,
    pub(super) link: &'a Link,
}

/// Why a message has no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoRoom {
    /// There was none in time, or the source stops meanwhile.
    Late,
    /// Its sender has hung up.
    Gone,
}

impl Patience<'_> {
    /// Waits for the room.
    pub(super) async fn wait<T>(&self, room: impl Future<Output = T>) -> Result<T, NoRoom> {
        tokio::select! {
            biased;
            room = timeout(self.limit, room) => room.map_err(|_| NoRoom::Late),
            () = self.stop.cancelled() => Err(NoRoom::Late),
            () = self.link.hung_up() => Err(NoRoom::Gone),
        }
    }
}

/// A whole PDU; its body is in the buffer until the next one is asked for.
pub(super) struct Frame {
    pub(super) kind: Kind,
    body: Range<usize>,
}

/// See the module.
pub(super) struct Link {
    stream: Stream,
    buffer: Vec<u8>,
    /// What was read and not taken yet.
    held: Range<usize>,
    data_bytes_max: u32,
    write: Duration,
    /// An association was accepted: what may come is no longer a request.
    is_established: bool,
}

impl Link {
    /// A new connection. `data_bytes_max` is what we announce; `write` the time in which a peer must read.
    pub(super) fn new(stream: Stream, data_bytes_max: u32, write: Duration) -> Self {
        Self { stream, buffer: vec![0; FIRST_BYTES], held: 0..0, data_bytes_max, write, is_established: false }
    }

    pub(super) fn peer(&self) -> SocketAddr {
        self.stream.peer()
    }

    /// When the connection came about, before any TLS handshake.
    pub(super) fn since(&self) -> Instant {
        self.stream.since()
    }

    /// Whom the peer's certificate names.
    pub(super) fn certificate(&self) -> Option<String> {
        self.stream.peer_subject()
    }

    /// From now on data comes.
    pub(super) fn establish(&mut self) {
        self.is_established = true;
        let held = self.buffer.get(self.held.clone()).unwrap_or_default().to_vec();
        let data_bytes = usize::try_from(self.data_bytes_max).unwrap_or(usize::MAX);
        // Zeroed by the system, page by page as it is used.
        self.buffer = vec![0; (HEADER_BYTES + data_bytes + BEYOND_BYTES).max(held.len())];
        self.held = 0..held.len();
        for (place, byte) in self.buffer.iter_mut().zip(held) {
            *place = byte;
        }
    }

    /// Waits for the next PDU. May be dropped and asked again.
    pub(super) async fn next(&mut self) -> Result<Frame, Closing> {
        loop {
            let held = self.buffer.get(self.held.clone()).unwrap_or_default();
            let mut needed = HEADER_BYTES;
            if let Some(first) = held.first_chunk() {
                let header = Header::read(*first, self.data_bytes_max)?;
                self.expect(header.kind)?;
                needed += usize::try_from(header.length).unwrap_or(usize::MAX);
                if held.len() >= needed {
                    let body = self.held.start + HEADER_BYTES..self.held.start + needed;
                    self.held.start = body.end;
                    return Ok(Frame { kind: header.kind, body });
                }
            }
            self.make_room(needed);
            self.fill(needed).await?;
        }
    }

    /// The body of the PDU that came last.
    pub(super) fn body(&self, frame: &Frame) -> &[u8] {
        self.buffer.get(frame.body.clone()).unwrap_or_default()
    }

    /// What can't come now is not even read.
    fn expect(&self, kind: Kind) -> Result<(), Closing> {
        let expected = match kind {
            Kind::AssociateRequest => !self.is_established,
            Kind::Abort => true,
            Kind::Data | Kind::ReleaseRequest | Kind::ReleaseResponse => self.is_established,
            Kind::AssociateAccept | Kind::AssociateReject => false,
        };
        if expected { Ok(()) } else { Err(Closing::Unexpected(kind)) }
    }

    /// Completes when the peer has hung up; what it sent before need not be read for that.
    async fn hung_up(&self) {
        while let Ok(ready) = self.stream.tcp().ready(Interest::READABLE).await {
            if ready.is_read_closed() {
                return;
            }
            // It stays readable while nobody reads.
            sleep(HANG_UP_INTERVAL).await;
        }
    }

    fn make_room(&mut self, needed: usize) {
        if self.held.is_empty() {
            self.held = 0..0;
        }
        let left = self.buffer.len() - self.held.end;
        if self.held.start > 0 && (left < BEYOND_BYTES || self.buffer.len() - self.held.start < needed) {
            self.buffer.copy_within(self.held.clone(), 0);
            self.held = 0..self.held.len();
        }
        if self.buffer.len() < needed {
            self.buffer.resize(needed, 0);
        }
    }

    /// Reads more of a PDU of `needed` bytes, and what came behind it; behind a long one only the next header, so that hardly anything
    /// has to be moved to the front for the next.
    async fn fill(&mut self, needed: usize) -> Result<(), Closing> {
        // A sender that waits for the acknowledgement of its last short segment gets it at once, and not after 40 ms. The kernel
        // forgets the option by itself.
        self.stream.tcp().set_quickack(true).ok();
        let end = match needed > BEYOND_BYTES {
            true => (self.held.start + needed + HEADER_BYTES).min(self.buffer.len()),
            false => self.buffer.len(),
        };
        let room = self.buffer.get_mut(self.held.end..end).unwrap_or_default();
        match self.stream.read(room).await {
            Ok(0) => Err(Closing::Peer),
            Ok(count) => {
                self.held.end += count;
                Ok(())
            }
            Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
                Err(Closing::Peer)
            }
            Err(error) => Err(Closing::Broken(error)),
        }
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<(), Closing> {
        let written = timeout(self.write, async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        });
        match written.await {
            Err(_) => Err(Closing::Deaf),
            Ok(outcome) => outcome.map_err(Closing::Broken),
        }
    }

    /// Says the last word and leaves so that the peer can read it.
    pub(super) async fn close(mut self, closing: &Closing) {
        if matches!(closing, Closing::Stopped)
            && self.is_established
            && matches!(timeout(RELEASE_TIME, self.release()).await, Ok(Ok(())))
        {
            return;
        }
        if let Some(word) = closing.last_word()
            && self.send(&word).await.is_err()
        {
            return;
        }
        // Closing a socket with unread bytes resets it, and a reset can take away a word that the peer has not read yet.
        let farewell = async {
            self.stream.shutdown().await?;
            while self.stream.read(&mut self.buffer).await? > 0 {}
            Ok::<(), io::Error>(())
        };
        if !matches!(closing, Closing::Deaf | Closing::Broken(_)) {
            // However it ends, the connection is over.
            timeout(FAREWELL_TIME, farewell).await.ok();
        }
    }

    /// Asks for a release and waits for it. When both ask at the same time, the requestor answers first and then we do
    /// (PS3.8 section 9.2, AR-8 to AR-10 and AR-4).
    async fn release(&mut self) -> Result<(), Closing> {
        self.send(&RELEASE_REQUEST).await?;
        let mut asked = false;
        loop {
            match self.next().await?.kind {
                Kind::ReleaseRequest => asked = true,
                Kind::ReleaseResponse if asked => return self.send(&RELEASE_RESPONSE).await,
                Kind::ReleaseResponse | Kind::Abort => return Ok(()),
                // Was on its way; it is not answered any more, and so not acknowledged.
                _ => {}
            }
        }
    }
}
