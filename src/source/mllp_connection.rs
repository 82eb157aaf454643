//! The loop of one MLLP connection: read, store, answer, in this order and never another.
//!
//! A message that is whole in memory is written and committed in one go; a long one goes into the spool in pieces while it
//! arrives. What comes in one read takes its share of the one budget for the time of its commit only. What comes in several takes
//! one before it gathers more than a little, and loses it when its frame does not end in time: so neither memory nor the
//! messages of others depend on how many senders stall. Nothing of a body is ever logged: peers, codes and counts only.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};

use super::mllp::MllpConfig;
use crate::envelope::Flags;
use crate::source::Stop;
use crate::source::intake::{About, GATHER_BYTES, Incoming, Intake, Share};
use crate::spool::CommitError;
use crate::system::clock;
use crate::system::seldom::Seldom;
use crate::system::stream::Stream;
use crate::wire::ack::{self, Answer, CONTROL_ID_BYTES_MAX, Fault};
use crate::wire::answer::{ApplicationAck, Codes, Condition, Mode, Outcome, codes};
use crate::wire::hl7::{HEADER_BYTES_MAX, Header};
use crate::wire::mllp::{Decoder, END, End, Event, Quirks, VT};

/// Bytes that one read takes at most.
const READ_BYTES: usize = 16 << 10;
/// What a connection may hold of an unfinished message without a share of the budget, and what it keeps of its buffers when idle.
const FREE_BYTES: usize = 4 << 10;
/// A frame that has so many bytes more has earned another `frame-timeout`.
const FRAME_STEP_BYTES: u64 = 256 << 10;
/// What a frame that had to wait for its share has left at least: one that does not go on then has stalled, and others wait too.
const TURN_TIME: Duration = Duration::from_secs(1);
/// How long a lone `FS` waits for its `CR`. A peer that never sends the `CR` waits for it once.
const UNDECIDED_TIME: Duration = Duration::from_millis(25);
/// Junk without a frame after which a peer is taken for something else than a device.
const JUNK_BYTES_MAX: u64 = 1 << 20;
/// How long a peer that was answered has to take the answer before its connection is closed on it.
const FAREWELL_TIME: Duration = Duration::from_millis(250);

// A streamed body leaves its whole header behind in what was gathered.
const _: () = assert!(GATHER_BYTES - READ_BYTES >= HEADER_BYTES_MAX);

/// What all connections of a source share.
pub(super) struct Settings {
    policy: (Mode, ApplicationAck),
    message_bytes_max: u64,
    idle: Duration,
    frame: Duration,
    write: Duration,
    charset: Option<String>,
    /// The last MSH-10 that we gave: begins with the wall clock, so that it does not come again after a restart.
    control_id: AtomicU64,
    quirks: Seldom,
    faults: Seldom,
    endings: Seldom,
}

impl Settings {
    pub(super) fn new(config: &MllpConfig) -> Self {
        Self {
            policy: (config.ack, config.application_ack),
            message_bytes_max: config.max_message_size.0,
            idle: config.idle_timeout.0,
            frame: config.frame_timeout.0,
            write: config.write_timeout.0,
            charset: config.charset.clone(),
            control_id: AtomicU64::new(clock::wall_us().unsigned_abs()),
            quirks: Seldom::default(),
            faults: Seldom::default(),
            endings: Seldom::default(),
        }
    }

    /// An MSH-10 of ours: at most 18 letters and digits.
    fn next_control_id(&self) -> String {
        format!("WG{:X}", self.control_id.fetch_add(1, Ordering::Relaxed))
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Closing {
    #[error("the peer closed it")]
    Peer,
    #[error("the source is stopping")]
    Stopped,
    #[error("nothing came within the idle timeout")]
    Idle,
    #[error("the peer closed it inside a frame: {0} bytes were not acknowledged and are not kept")]
    InsideFrame(u64),
    #[error("a frame did not end within the frame timeout: {0} bytes were not acknowledged and are not kept")]
    Slow(u64),
    #[error("the peer did not read its answer within the write timeout")]
    Deaf,
    #[error("what comes is not MLLP")]
    Junk,
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
}

/// Serves a connection until it ends or `stop`: then no new frame is begun, and one that has begun may end.
pub(super) async fn serve(stream: Stream, settings: Arc<Settings>, intake: Intake, stop: Stop) {
    let decoder = Decoder::new(settings.message_bytes_max);
    let mut connection = Connection {
        stream,
        settings,
        intake,
        decoder,
        message: None,
        gathered: Vec::new(),
        out: Vec::new(),
        frame_since: None,
        turn: None,
        waited: Duration::ZERO,
        bare_fs: false,
        junk: 0,
        is_device: false,
        noted: Quirks::default(),
    };
    let closing = connection.run(&stop).await;
    connection.close(&closing).await;
}

struct Connection {
    stream: Stream,
    settings: Arc<Settings>,
    intake: Intake,
    decoder: Decoder,
    /// The message that is arriving.
    message: Option<Message>,
    /// Its bytes so far, or of a streamed one the first of them.
    gathered: Vec<u8>,
    out: Vec<u8>,
    frame_since: Option<Instant>,
    /// When the frame last came out of a wait for its share.
    turn: Option<Instant>,
    /// How long what the last read brought has waited for shares.
    waited: Duration,
    /// The peer does not send the CR after FS.
    bare_fs: bool,
    /// Junk since the last frame.
    junk: u64,
    /// A frame has come: whatever else comes, the peer is a device.
    is_device: bool,
    /// Quirks that were logged.
    noted: Quirks,
}

/// Where the bytes of a message go.
enum Message {
    /// Into `gathered`, until it is whole; with its share once it is more than a little.
    Gathering(Incoming, Option<Share>),
    /// Into the spool.
    Streaming(Incoming, Share),
    /// Nowhere: it is over the limit, or the spool did not take it.
    Lost(Fault),
}

/// How a message is held while it arrives.
#[derive(Clone, Copy)]
enum Kind {
    Gathered,
    Streamed,
}

impl Connection {
    async fn run(&mut self, stop: &Stop) -> Closing {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let taken = match self.read(&mut buffer, stop).await {
                Ok(count) => self.take(buffer.get(..count).unwrap_or_default(), stop).await,
                Err(closing) => return closing,
            };
            if let Err(closing) = taken {
                return closing;
            }
        }
    }

    /// Waits for bytes, but no longer than the state of the connection allows.
    async fn read(&mut self, buffer: &mut [u8], stop: &Stop) -> Result<usize, Closing> {
        if self.decoder.is_undecided() {
            let patience = if self.bare_fs { Duration::ZERO } else { UNDECIDED_TIME };
            if let Ok(read) = timeout(patience, self.stream.read(buffer)).await {
                return self.arrived(read).await;
            }
            self.settle().await?;
        }
        let in_frame = self.decoder.is_in_frame();
        let is_stranger = self.junk > 0 && !self.is_device;
        let deadline = match in_frame {
            true => self.frame_deadline(),
            false if is_stranger => Instant::now() + self.settings.frame,
            false => Instant::now() + self.settings.idle,
        };
        let read = tokio::select! {
            biased;
            () = stop.cancelled(), if !in_frame => return Err(Closing::Stopped),
            read = timeout_at(deadline, self.stream.read(buffer)) => read,
        };
        match read {
            Ok(read) => self.arrived(read).await,
            Err(_) if in_frame => Err(Closing::Slow(self.decoder.length())),
            Err(_) if is_stranger => Err(Closing::Junk),
            Err(_) => Err(Closing::Idle),
        }
    }

    async fn arrived(&mut self, read: io::Result<usize>) -> Result<usize, Closing> {
        match read {
            Ok(0) => {}
            Ok(count) => return Ok(count),
            // Devices that are switched off, or that leave TLS without a goodbye: the end, like any other.
            Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {}
            Err(error) => return Err(Closing::Broken(error)),
        }
        self.settle().await?;
        Err(if self.decoder.is_in_frame() { Closing::InsideFrame(self.decoder.length()) } else { Closing::Peer })
    }

    /// A lone FS ends its frame: nothing more comes for now.
    async fn settle(&mut self) -> Result<(), Closing> {
        match self.decoder.settle() {
            Some(end) => {
                self.bare_fs = true;
                (self.frame_since, self.turn) = (None, None);
                self.finish(end).await
            }
            None => Ok(()),
        }
    }

    fn frame_deadline(&mut self) -> Instant {
        let since = *self.frame_since.get_or_insert_with(Instant::now);
        let steps = u32::try_from(self.decoder.length() / FRAME_STEP_BYTES).unwrap_or(u32::MAX);
        let deadline = since + self.settings.frame.saturating_mul(steps.saturating_add(1));
        self.turn.map_or(deadline, |turn| deadline.max(turn + TURN_TIME))
    }

    async fn take(&mut self, mut input: &[u8], stop: &Stop) -> Result<(), Closing> {
        let began = Instant::now();
        self.waited = Duration::ZERO;
        while let Some(event) = self.decoder.pull(&mut input) {
            match event {
                // What follows a body in the same read is, nearly always, its end.
                Event::Body(bytes) => self.body(bytes, !input.is_empty()).await,
                Event::End(end) => {
                    self.bare_fs &= end.quirks.has(Quirks::FS_WITHOUT_CR);
                    (self.frame_since, self.turn) = (None, None);
                    self.finish(end).await?;
                    if stop.is_cancelled() {
                        return Err(Closing::Stopped);
                    }
                }
                Event::Cut(count) => {
                    self.intake.counters().discarded_bytes.add(count);
                    self.message = None;
                    (self.frame_since, self.turn) = (None, None);
                }
                Event::Oversize => {
                    self.message = Some(Message::Lost(Fault::TooLarge));
                    self.keep_header();
                }
                Event::Junk(count) => self.scrap(count)?,
            }
        }
        // The time that our own storage took is not the peer's fault. The wait for a share counts, so that a line of stalled
        // senders does not take its whole frame time one after the other; what has come meanwhile is read in any case.
        if let Some(since) = &mut self.frame_since {
            *since += began.elapsed().saturating_sub(self.waited);
        }
        Ok(())
    }

    fn scrap(&mut self, count: u64) -> Result<(), Closing> {
        self.intake.counters().discarded_bytes.add(count);
        self.note(Quirks::JUNK_BEFORE);
        self.junk += count;
        if self.junk > JUNK_BYTES_MAX { Err(Closing::Junk) } else { Ok(()) }
    }

    async fn body(&mut self, bytes: &[u8], is_ending: bool) {
        let message = self.message.take().unwrap_or_else(|| {
            self.gathered.clear();
            self.frame_since.get_or_insert_with(Instant::now);
            Message::Gathering(self.intake.begin(), None)
        });
        self.message = Some(match message {
            Message::Gathering(incoming, share) => {
                let length = self.gathered.len() + bytes.len();
                let share = match share {
                    None if length > free_bytes(is_ending) => Some(self.share(Kind::Gathered).await),
                    share => share,
                };
                if length <= GATHER_BYTES {
                    self.gathered.extend_from_slice(bytes);
                    Message::Gathering(incoming, share)
                } else {
                    // What is gathered keeps its share until it has gone over into the other.
                    let message = Message::Streaming(incoming, self.share(Kind::Streamed).await);
                    let message = message.written(&self.gathered).await.written(bytes).await;
                    self.keep_header();
                    message
                }
            }
            Message::Streaming(..) => message.written(bytes).await,
            Message::Lost(fault) => Message::Lost(fault),
        });
    }

    async fn share(&mut self, kind: Kind) -> Share {
        let began = Instant::now();
        let share = match kind {
            Kind::Gathered => self.intake.gather_share().await,
            Kind::Streamed => self.intake.stream_share().await,
        };
        self.waited += began.elapsed();
        self.turn = Some(Instant::now());
        share
    }

    /// Keeps of a long body what its answer needs.
    fn keep_header(&mut self) {
        self.gathered.truncate(HEADER_BYTES_MAX);
        self.gathered.shrink_to_fit();
    }

    /// A frame has ended: store the message, then answer it.
    async fn finish(&mut self, end: End) -> Result<(), Closing> {
        (self.junk, self.is_device) = (0, true);
        self.note(end.quirks);
        let Some(message) = self.message.take() else { return Ok(()) };
        let gathered = std::mem::take(&mut self.gathered);
        let read = Header::read(&gathered);
        let header = read.unwrap_or_else(|_| Header::none());
        let fault = match read {
            _ if matches!(message, Message::Lost(_)) => None,
            Err(_) => Some(Fault::NoHeader),
            Ok(_) if !ack::is_correlatable(&header) => Some(Fault::NoControlId),
            Ok(_) => (end.discarded > 0).then_some(Fault::BytesLost),
        };
        let about = self.about(&header, fault, end);
        let (outcome, fault) = match self.store(message, &gathered, about).await {
            Ok(()) if fault.is_none() => (Outcome::Success, None),
            Ok(()) => (Outcome::Reject, fault),
            Err(Fault::TooLarge) => (Outcome::Reject, Some(Fault::TooLarge)),
            Err(fault) => (Outcome::Error, Some(fault)),
        };
        if outcome == Outcome::Reject {
            self.intake.counters().rejected.one();
        }
        if let Some(fault) = fault {
            self.complain(fault, end);
        }
        self.compose(&header, self.codes(&header, outcome), fault);
        self.gathered = small(gathered);
        self.send().await
    }

    fn codes(&self, header: &Header<'_>, outcome: Outcome) -> Codes {
        let asked = [15, 16].map(|number| Condition::read(header.field(number)));
        codes(asked[0], asked[1], outcome, self.settings.policy)
    }

    /// What is stored beside the body.
    fn about(&self, header: &Header<'_>, fault: Option<Fault>, end: End) -> About {
        let mut flags = Flags::default();
        let told = self.codes(header, Outcome::Reject).iter().any(Option::is_some);
        for (flag, set) in [
            (Flags::UNREADABLE, fault == Some(Fault::NoHeader)),
            (Flags::NO_CONTROL_ID, fault == Some(Fault::NoControlId)),
            (Flags::DISCARDED_BYTES, end.discarded > 0),
            (Flags::REJECTED, fault.is_some() && told),
            (Flags::BATCH, header.is_batch()),
        ] {
            if set {
                flags = flags.with(flag);
            }
        }
        let content_type = match header.charset().or(self.settings.charset.as_deref()) {
            Some(charset) => format!("application/hl7-v2; charset={charset}"),
            None => "application/hl7-v2".to_owned(),
        };
        let control_id = header.control_id();
        let kept = control_id.len().min(CONTROL_ID_BYTES_MAX);
        About { content_type, control_id: control_id.get(..kept).unwrap_or_default().to_vec(), flags }
    }

    async fn store(&self, message: Message, gathered: &[u8], about: About) -> Result<(), Fault> {
        let (incoming, _share) = match message {
            Message::Gathering(mut incoming, share) => {
                let share = match share {
                    Some(share) => share.arrived(),
                    None => self.intake.share(gathered.len()).await,
                };
                if let Err(error) = incoming.write(gathered).await {
                    self.intake.counters().refused.one();
                    return Err(refusal(error));
                }
                (incoming, share)
            }
            Message::Streaming(incoming, share) => (incoming, share.arrived()),
            Message::Lost(fault) => {
                if fault == Fault::CannotStore {
                    self.intake.counters().refused.one();
                }
                return Err(fault);
            }
        };
        incoming.commit(about).await.map(|_| ()).map_err(refusal)
    }

    fn compose(&mut self, header: &Header<'_>, codes: Codes, fault: Option<Fault>) {
        let time = jiff::Timestamp::now().strftime("%Y%m%d%H%M%S+0000").to_string();
        for code in codes.into_iter().flatten() {
            let control_id = self.settings.next_control_id();
            self.out.push(VT);
            ack::write(header, &Answer { code, time: &time, control_id: &control_id, fault }, &mut self.out);
            self.out.extend_from_slice(&END);
        }
    }

    /// Sends what was composed, in one write.
    async fn send(&mut self) -> Result<(), Closing> {
        if self.out.is_empty() {
            return Ok(());
        }
        let written = timeout(self.settings.write, async {
            self.stream.write_all(&self.out).await?;
            self.stream.flush().await
        });
        let written = written.await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()));
        self.out = small(std::mem::take(&mut self.out));
        written.map_err(|error| match error.kind() {
            ErrorKind::TimedOut => Closing::Deaf,
            _ => Closing::Broken(error),
        })
    }

    fn complain(&self, fault: Fault, end: End) {
        if let Some(unsaid) = self.settings.faults.speak() {
            let (source, peer, bytes, reason) = (self.intake.source(), self.stream.peer(), end.length, fault.text());
            let stored = !matches!(fault, Fault::CannotStore | Fault::TooLarge);
            tracing::warn!(%source, %peer, bytes, stored, reason, unsaid, "a message was not accepted");
        }
    }

    /// Logs quirks once for a connection, and seldom for a source.
    fn note(&mut self, quirks: Quirks) {
        let new = quirks.without(self.noted);
        if new.is_empty() {
            return;
        }
        self.noted = self.noted.with(new);
        if let Some(unsaid) = self.settings.quirks.speak() {
            let (source, peer) = (self.intake.source(), self.stream.peer());
            tracing::info!(%source, %peer, quirks = %new, unsaid, "frames are not as MLLP wants them");
        }
    }

    async fn close(mut self, closing: &Closing) {
        let (source, peer) = (self.intake.source(), self.stream.peer());
        match closing {
            Closing::Peer | Closing::Stopped | Closing::Idle => {
                tracing::debug!(%source, %peer, "connection closed: {closing}");
            }
            Closing::InsideFrame(_) | Closing::Slow(_) | Closing::Deaf | Closing::Junk | Closing::Broken(_) => {
                if let Closing::InsideFrame(count) | Closing::Slow(count) = closing {
                    self.intake.counters().discarded_bytes.add(*count);
                }
                if let Some(unsaid) = self.settings.endings.speak() {
                    tracing::warn!(%source, %peer, unsaid, "connection closed: {closing}");
                }
            }
        }
        // Closing a socket with unread bytes resets it, and a reset can take away an answer that the peer has not read yet.
        let farewell = async {
            self.stream.shutdown().await?;
            let mut scrap = [0; 1024];
            while self.stream.read(&mut scrap).await? > 0 {}
            Ok::<(), io::Error>(())
        };
        if matches!(closing, Closing::Stopped | Closing::Idle | Closing::Peer) {
            // However it ends, the connection is over.
            timeout(FAREWELL_TIME, farewell).await.ok();
        }
    }
}

impl Message {
    async fn written(self, bytes: &[u8]) -> Self {
        match self {
            Self::Streaming(mut incoming, share) => match incoming.write(bytes).await {
                Ok(()) => Self::Streaming(incoming, share),
                Err(error) => Self::Lost(refusal(error)),
            },
            other => other,
        }
    }
}

/// What an unfinished message may hold without a share: a little, and one read more when it seems to end with that.
fn free_bytes(is_ending: bool) -> usize {
    if is_ending { FREE_BYTES + READ_BYTES } else { FREE_BYTES }
}

/// An empty buffer that is as good as the one before, without the memory of a long message.
fn small(mut buffer: Vec<u8>) -> Vec<u8> {
    buffer.clear();
    buffer.shrink_to(FREE_BYTES);
    buffer
}

fn refusal(error: CommitError) -> Fault {
    match error {
        CommitError::Full | CommitError::Failed => Fault::CannotStore,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_connection_does_not_keep_the_memory_of_a_long_message() {
        let long = Vec::from([0; GATHER_BYTES]);
        assert!(small(long).capacity() <= FREE_BYTES);
        assert_eq!(small(Vec::with_capacity(1_000)).capacity(), 1_000, "a short one would allocate anew each time");
    }
}
