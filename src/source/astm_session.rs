//! One line of an analyser: reads, stores each frame as a part of its message, answers, in this order and never another.
//!
//! An analyser never repeats what it was acknowledged, so ACK goes out only after the frame's sync. The rules of the framing are in
//! [`crate::wire::astm`]; the messages are put together in `astm_assembly`. Nothing of a text is ever logged.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::astm_gather::Inlet;
use super::astm_part::{Kind, Part};
use super::astm_transfers::{Standing, Transfers};
use super::intake::{GATHER_BYTES, Intake, Share};
use crate::source::Stop;
use crate::spool::CommitError;
use crate::system::seldom::Seldom;
use crate::wire::astm::{ACK, Event, Frame, NAK, Receiver};
use crate::wire::astm_record::Splitter;

/// Bytes that one read takes at most.
const READ_BYTES: usize = 4 << 10;
/// How long a receiver waits for the next frame or the end of the transfer (E1381: 30 s).
const RECEIVE_TIME: Duration = Duration::from_secs(30);
/// A frame must end within [`RECEIVE_TIME`], and a second more for so many bytes: slower is no line that analysers have.
const FRAME_STEP_BYTES: usize = 256;
/// How long the CR LF behind a checksum is waited for.
const UNDECIDED_TIME: Duration = Duration::from_millis(250);
/// A line on which nothing comes outside of transfers for so long is let go: a connection that is dead, mostly.
const IDLE_TIME: Duration = Duration::from_secs(86_400);
/// An analyser that does not take its answer within this time is cut off.
const WRITE_TIME: Duration = Duration::from_secs(10);
/// Pause before records that nobody acknowledges are offered to the spool again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// What the open message of a line may hold in memory without a share of the budget.
const FREE_BYTES: u64 = 4 << 10;
/// Longer messages are streamed into the spool by the assembly.
const GATHERED_BYTES: u64 = GATHER_BYTES as u64;
/// Each time that so much of a message has come, the assembly takes it.
const NUDGE_BYTES: u64 = 64 << 10;
/// Parts of one message; more of them make another message.
pub(super) const PARTS_MAX: u64 = 50_000;

/// What all lines of a source share.
#[derive(Debug)]
pub(super) struct Settings {
    /// A longer message is stored in pieces.
    pub(super) message_bytes_max: u64,
    pub(super) transfers: Arc<Transfers>,
    parts: Inlet,
    faults: Seldom,
    endings: Seldom,
}

impl Settings {
    pub(super) fn new(message_bytes_max: u64, transfers: Arc<Transfers>, parts: Inlet) -> Self {
        Self { message_bytes_max, transfers, parts, faults: Seldom::default(), endings: Seldom::default() }
    }
}

/// Why a line ended.
#[derive(Debug, thiserror::Error)]
enum Closing {
    #[error("the device closed it")]
    Peer,
    #[error("the source is stopping")]
    Stopped,
    #[error("nothing came for a day")]
    Idle,
    #[error("the device did not take its answer in time")]
    Deaf,
    #[error("it broke: {0}")]
    Broken(#[from] io::Error),
}

/// Serves a line until it ends or `stop`: then no new transfer is begun, and one that is under way may end. `line` tells lines
/// apart over reconnects: empty where there is one only, else the peer's address.
pub(super) async fn serve<S>(stream: S, line: String, settings: Arc<Settings>, intake: Intake, stop: Stop)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    settings.transfers.connected(&line);
    let mut session = Session {
        stream,
        line,
        link: u32::try_from(random() >> 32).unwrap_or_default(),
        settings,
        intake,
        receiver: Receiver::default(),
        transfer: None,
        frame_since: None,
        failures: 0,
        room: (Room::None, None),
    };
    let closing = session.run(&stop).await;
    session.receiver_gives_up().await;
    if let Some(unsaid) = session.settings.endings.speak() {
        let (source, line) = (session.intake.source(), &session.line);
        tracing::info!(%source, line, unsaid, "line closed: {closing}");
    }
}

struct Session<S> {
    stream: S,
    line: String,
    /// See [`Part`].
    link: u32,
    settings: Arc<Settings>,
    intake: Intake,
    receiver: Receiver,
    /// Begins with the first part of a transfer.
    transfer: Option<Transfer>,
    /// When the frame that is arriving began.
    frame_since: Option<Instant>,
    /// Frames that were not taken, one after the other.
    failures: u64,
    /// For the message that is arriving.
    room: (Room, Option<Share>),
}

/// The room that the assembly needs for a message that is arriving.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Room {
    None,
    Gathered,
    Streamed,
}

/// What has come since ENQ.
struct Transfer {
    id: u64,
    /// The ordinal of the next part.
    ordinal: u64,
    splitter: Splitter,
    message: Option<Message>,
    last: Option<(u8, u64)>,
    /// Nobody else was connected from the same address when the last part came.
    alone: bool,
}

/// The message that is arriving.
struct Message {
    start: u64,
    bytes: u64,
    parts: u64,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Session<S> {
    async fn run(&mut self, stop: &Stop) -> Closing {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let taken = match self.read(&mut buffer, stop).await {
                Ok(count) => self.take(buffer.get(..count).unwrap_or_default()).await,
                Err(closing) => return closing,
            };
            if let Err(closing) = taken {
                return closing;
            }
        }
    }

    /// Waits for bytes, but no longer than the state of the line allows. 0: nothing came, and what had begun is given up.
    async fn read(&mut self, buffer: &mut [u8], stop: &Stop) -> Result<usize, Closing> {
        if self.receiver.is_undecided() {
            match timeout(UNDECIDED_TIME, self.stream.read(buffer)).await {
                Ok(read) => return arrived(read),
                Err(_) => {
                    if let Some(event) = self.receiver.settle() {
                        self.frame_since = None;
                        self.event(event).await?;
                    }
                }
            }
        }
        let busy = self.receiver.is_in_transfer() || self.receiver.is_in_frame();
        let deadline = match self.frame_since {
            Some(since) => since + self.frame_time(),
            None if busy => Instant::now() + RECEIVE_TIME,
            None => Instant::now() + IDLE_TIME,
        };
        let read = tokio::select! {
            biased;
            () = stop.cancelled(), if !busy => return Err(Closing::Stopped),
            read = timeout_at(deadline, self.stream.read(buffer)) => read,
        };
        match read {
            Ok(read) => arrived(read),
            Err(_) if busy => {
                self.receiver_gives_up().await;
                self.break_off();
                Ok(0)
            }
            Err(_) => Err(Closing::Idle),
        }
    }

    fn frame_time(&self) -> Duration {
        RECEIVE_TIME + Duration::from_secs((self.receiver.held() / FRAME_STEP_BYTES) as u64)
    }

    async fn take(&mut self, mut input: &[u8]) -> Result<(), Closing> {
        while let Some(event) = self.receiver.pull(&mut input) {
            self.frame_since = None;
            self.event(event).await?;
        }
        match self.receiver.is_in_frame() {
            true => _ = self.frame_since.get_or_insert_with(Instant::now),
            false => self.frame_since = None,
        }
        Ok(())
    }

    /// Does what an event asks for, then answers.
    async fn event(&mut self, event: Event) -> Result<(), Closing> {
        let event = match event {
            Event::Stray(frame) => self.judge(frame),
            event => event,
        };
        let answer = event.answer();
        let answer = match event {
            Event::Enquiry { .. } => {
                self.end();
                answer
            }
            Event::Frame(frame) => Some(self.frame(&frame).await),
            Event::Other(text) => match self.hold(Kind::Other, &text).await {
                Ok(_) => answer,
                Err(error) => Some(self.not_stored(error)),
            },
            Event::Repeat => answer,
            Event::BadFrame(fault) => {
                self.refused(fault.words());
                answer
            }
            Event::Stray(_) => {
                self.refused("it came without ENQ and goes on with nothing");
                answer
            }
            Event::End { .. } => {
                self.end();
                None
            }
            Event::Bare(text) => {
                self.bare(&text).await;
                None
            }
            Event::Junk(count) => {
                self.intake.counters().discarded_bytes.add(count);
                None
            }
        };
        match answer {
            Some(answer) => self.answer(answer).await,
            None => Ok(()),
        }
    }

    /// A frame without ENQ: it may go on with a transfer that broke off, by our restart or by a line that was gone for a moment; a first
    /// frame begins a transfer of a device that sends no ENQ.
    fn judge(&mut self, frame: Frame) -> Event {
        if let Some(standing) = self.settings.transfers.rejoin(&self.line, &frame) {
            tracing::info!(source = %self.intake.source(), line = self.line, "the analyser goes on where its transfer broke off");
            // It gave up nothing: what was not taken before was this, and no message.
            self.failures = 0;
            // What came without ENQ meanwhile is over.
            self.end();
            self.receiver.resume(standing.last);
            self.transfer = Some(Transfer::resumed(standing));
        } else if frame.number == 1 {
            self.receiver.resume(None);
        }
        self.receiver.judge(frame)
    }

    async fn frame(&mut self, frame: &Frame) -> u8 {
        let kind = Kind::Frame { number: frame.number, last: frame.last };
        match self.hold(kind, &frame.text).await {
            Ok(bytes) => {
                self.failures = 0;
                let last = (frame.number, frame.fingerprint());
                self.receiver.accept(last.0, last.1);
                if let Some(transfer) = &mut self.transfer {
                    transfer.last = Some(last);
                }
                // Only now, that a line which is cut meanwhile knows which frame was its last.
                self.room_for(bytes).await;
                ACK
            }
            Err(error) => self.not_stored(error),
        }
    }

    /// Records that nobody acknowledges: the line is not read on until they are stored.
    async fn bare(&mut self, text: &[u8]) {
        loop {
            match self.hold(Kind::Bare, text).await {
                Ok(bytes) => return self.room_for(bytes).await,
                Err(error) => drop(self.not_stored(error)),
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    /// Makes a part durable. Gives the bytes that its message has so far, for [`Self::room_for`].
    async fn hold(&mut self, kind: Kind, text: &[u8]) -> Result<u64, CommitError> {
        let transfer = self.transfer.get_or_insert_with(|| Transfer::new(&self.settings.transfers, &self.line));
        let ordinal = transfer.ordinal;
        let start = transfer.message.as_ref().map_or(ordinal, |message| message.start);
        let record = transfer.splitter.within_record();
        let alone = self.settings.transfers.is_alone(&self.line);
        let (link, line) = (self.link, self.line.clone());
        let part = Part { transfer: transfer.id, ordinal, start, record, kind, link, alone, line, text };
        let body = part.encode();
        let share = self.intake.share(body.len()).await;
        self.settings.parts.commit(body, self.intake.now()).await?;
        // Given back before room is waited for: who holds a share waits for no other.
        drop(share);
        transfer.ordinal += 1;
        transfer.alone = alone;
        if kind == Kind::Other {
            self.settings.transfers.nudge();
            return Ok(0);
        }
        let last = matches!(kind, Kind::Frame { last: true, .. });
        let before = transfer.bytes();
        let ended = transfer.follow(ordinal, text, last, self.settings.message_bytes_max);
        let bytes = transfer.bytes();
        if ended || bytes / NUDGE_BYTES != before / NUDGE_BYTES {
            self.settings.transfers.nudge();
        }
        Ok(bytes)
    }

    /// Takes the room that the assembly needs for a message of this length so far, before more of it is read.
    async fn room_for(&mut self, bytes: u64) {
        let wanted = match bytes {
            _ if bytes <= FREE_BYTES => Room::None,
            _ if bytes <= GATHERED_BYTES => Room::Gathered,
            _ => Room::Streamed,
        };
        if wanted != self.room.0 {
            let share = match wanted {
                Room::None => None,
                Room::Gathered => Some(self.intake.gather_share().await),
                Room::Streamed => Some(self.intake.stream_share().await),
            };
            self.room = (wanted, share);
        }
    }

    fn not_stored(&self, error: CommitError) -> u8 {
        self.intake.counters().refused.one();
        if let Some(unsaid) = self.settings.faults.speak() {
            let (source, line) = (self.intake.source(), &self.line);
            tracing::warn!(%source, line, unsaid, %error, "a frame could not be stored and was not acknowledged");
        }
        NAK
    }

    fn refused(&mut self, reason: &str) {
        self.failures += 1;
        if let Some(unsaid) = self.settings.faults.speak() {
            let (source, line) = (self.intake.source(), &self.line);
            tracing::warn!(%source, line, unsaid, reason, "a frame was not taken: the analyser is to send it again");
        }
    }

    /// The transfer is over: EOT, or ENQ of another.
    fn end(&mut self) {
        if std::mem::take(&mut self.failures) > 0 {
            self.intake.counters().rejected.one();
            let (source, line) = (self.intake.source(), &self.line);
            tracing::warn!(%source, line, "the analyser gave up a message after frames that did not come through: look at its cable and settings");
        }
        self.room = (Room::None, None);
        if let Some(transfer) = self.transfer.take() {
            self.settings.transfers.end(transfer.id);
        }
    }

    async fn receiver_gives_up(&mut self) {
        while let Some(event) = self.receiver.give_up() {
            match event {
                Event::Bare(text) => self.bare(&text).await,
                Event::Junk(count) => self.intake.counters().discarded_bytes.add(count),
                // Of a frame whose line is gone nobody waits for the answer; its sync makes it part of its message all the same.
                Event::Frame(frame) => _ = self.frame(&frame).await,
                _ => {}
            }
        }
    }

    async fn answer(&mut self, answer: u8) -> Result<(), Closing> {
        let sent = timeout(WRITE_TIME, async {
            self.stream.write_all(&[answer]).await?;
            self.stream.flush().await
        });
        sent.await.map_err(|_| Closing::Deaf)?.map_err(Closing::Broken)
    }
}

impl<S> Session<S> {
    /// Nothing comes any more: its analyser may go on with the transfer on another connection, or after its cable is back.
    fn break_off(&mut self) {
        self.room = (Room::None, None);
        self.frame_since = None;
        self.failures = 0;
        if let Some(transfer) = self.transfer.take() {
            self.settings.transfers.break_off(&self.line, transfer.standing(self.link));
        }
    }
}

/// Also when the line is cut in the middle of something.
impl<S> Drop for Session<S> {
    fn drop(&mut self) {
        self.break_off();
        self.settings.transfers.disconnected(&self.line);
    }
}

impl Transfer {
    fn new(transfers: &Transfers, line: &str) -> Self {
        let id = random();
        transfers.begin(line, id);
        Self { id, ordinal: 0, splitter: Splitter::default(), message: None, last: None, alone: true }
    }

    fn resumed(standing: Standing) -> Self {
        let Standing { transfer, ordinal, start, record, in_message, last, alone, .. } = standing;
        let message = in_message.then_some(Message { start, bytes: 0, parts: ordinal - start.min(ordinal) });
        Self { id: transfer, ordinal, splitter: Splitter::within(record), message, last, alone }
    }

    fn standing(&self, link: u32) -> Standing {
        Standing {
            link,
            alone: self.alone,
            transfer: self.id,
            ordinal: self.ordinal,
            start: self.message.as_ref().map_or(self.ordinal, |message| message.start),
            record: self.splitter.within_record(),
            in_message: self.message.is_some(),
            last: self.last,
        }
    }

    fn bytes(&self) -> u64 {
        self.message.as_ref().map_or(0, |message| message.bytes)
    }

    /// Follows the records of a part that is stored; whether a message ended in it. The assembly does the same later, with the
    /// same outcome.
    fn follow(&mut self, ordinal: u64, mut text: &[u8], last: bool, bytes_max: u64) -> bool {
        let mut ended = false;
        while let Some(piece) = self.splitter.pull(&mut text) {
            if piece.begins && piece.kind == b'H' {
                self.message = None;
            }
            if self.message.is_none() && piece.kind != 0 {
                self.message = Some(Message { start: ordinal, bytes: 0, parts: 0 });
            }
            if let Some(message) = &mut self.message {
                message.bytes += piece.bytes.len() as u64;
            }
            if piece.ends && piece.kind == b'L' {
                (self.message, ended) = (None, true);
            }
        }
        if last && self.splitter.end() == Some(b'L') {
            (self.message, ended) = (None, true);
        }
        let Some(message) = &mut self.message else { return ended };
        message.parts += 1;
        if message.bytes >= bytes_max || message.parts >= PARTS_MAX {
            tracing::warn!("a message is longer than max-message-size: it is stored in pieces");
            (self.message, ended) = (None, true);
        }
        ended
    }
}

/// Tells transfers apart.
fn random() -> u64 {
    let mut bytes = [0; 8];
    if aws_lc_rs::rand::fill(&mut bytes).is_err() {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        bytes.copy_from_slice(&since.as_nanos().to_le_bytes()[..8]);
    }
    u64::from_le_bytes(bytes)
}

/// A read that ended: 0 bytes are the end of the line.
fn arrived(read: io::Result<usize>) -> Result<usize, Closing> {
    match read {
        Ok(0) => Err(Closing::Peer),
        Ok(count) => Ok(count),
        Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
            Err(Closing::Peer)
        }
        Err(error) => Err(Closing::Broken(error)),
    }
}
