//! Puts messages together out of the parts that analysers were acknowledged: one message is one record set, H to L.
//!
//! It reads the source's own lane of parts, in order; the cursor moves over a part only when the message that it belongs to is
//! committed. So a start after a power cut finds exactly what was acknowledged and is not a message yet, and this is the same code that
//! makes messages at any other time. It must never let go of a part before that: what no analyser goes on with becomes a message
//! flagged as incomplete.
//!
//! The parts of a message that was committed may stand behind the cursor for long, because those of another line are before them. So
//! each message is committed together with a [`Done`] in the same lane, which says what of its transfer needs its parts no more: both are
//! durable or none, and no message is made twice. A start reads all of these before it makes the first message.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::astm_part::{self, At, Done, Kind, Part};
use super::astm_transfers::{Standing, Transfers};
use super::intake::{About, Incoming, Intake};
use crate::envelope::{Flags, Stamp};
use crate::spool::{CommitError, Committed, Entry, Lane, Place};
use crate::system::seldom::Seldom;
use crate::wire::astm::fingerprint;
use crate::wire::astm_record::{self, HEADER_BYTES_MAX, MEDIA_TYPE, Splitter};

/// The media type of text between STX and ETX that is not ASTM.
pub const OTHER_CONTENT_TYPE: &str = "application/octet-stream";
/// How often it is looked for transfers that nobody goes on with.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Pause after the spool did not take a message.
const RETRY_PAUSE: Duration = Duration::from_secs(2);
/// How long a part that was told to be there may take to be read.
const READ_TIME: Duration = Duration::from_secs(1);
/// Parts that wait, of all lines together: more than one message can have. Beyond it the message that holds up the others is stored as far
/// as it has come, and the rest of it apart.
const HELD_MAX: usize = 65_536;

/// See the module.
pub struct Assembly {
    lane: Lane,
    intake: Intake,
    transfers: Arc<Transfers>,
    open: BTreeMap<u64, Open>,
    /// What was read and is not passed yet.
    in_hand: VecDeque<InHand>,
    /// Up to where each transfer is in messages that are committed, as long as its parts may be read again.
    done: BTreeMap<u64, At>,
    /// Parts that are messages of their own and committed: transfer and ordinal.
    others: BTreeSet<(u64, u64)>,
    /// All that the run before left was looked through, for what is done.
    surveyed: bool,
    /// Parts of what the run before left may be missing: nobody may go on with it.
    damaged: bool,
    /// See [`HELD_MAX`].
    pub(super) held_max: usize,
    queries: Seldom,
}

struct InHand {
    place: Place,
    /// The transfer whose message it waits for; `None`: for none.
    waits: Option<u64>,
    /// It is no part but says this.
    says: Option<(u64, Done)>,
}

/// A transfer of which parts were read.
struct Open {
    splitter: Splitter,
    message: Option<Message>,
    /// The part that was read last: ordinal and fingerprint.
    last: Option<(u64, u64)>,
}

/// A message that is being put together.
struct Message {
    incoming: Incoming,
    /// Its first bytes.
    header: Vec<u8>,
    /// Where it began.
    start: u64,
    parts: u64,
    flags: Flags,
    asks: bool,
}

impl Assembly {
    /// The assembly of a source, with all that was left by the run before.
    pub async fn begin(intake: &Intake, transfers: Arc<Transfers>) -> Self {
        let mut assembly = Self {
            lane: intake.parts(),
            intake: intake.clone(),
            transfers,
            open: BTreeMap::new(),
            in_hand: VecDeque::new(),
            done: BTreeMap::new(),
            others: BTreeSet::new(),
            surveyed: false,
            damaged: false,
            held_max: HELD_MAX,
            queries: Seldom::default(),
        };
        let found = assembly.lane.waiting();
        if found > 0 {
            tracing::info!(source = %intake.source(), frames = found, "what was acknowledged before the start and is no message yet");
        }
        // Frames that could not be read now may stand behind those that were: what broke off is not where it seems to be.
        if !matches!(assembly.look(true).await, Ok(true)) {
            assembly.transfers.forget_broken();
        }
        assembly
    }

    /// Works until `done`; then what is unfinished becomes incomplete messages. `done` comes after the last line has ended.
    pub async fn run(mut self, done: CancellationToken) {
        let all_read = loop {
            // Asked before the look: what the last line stored before it ended is seen by the last look.
            let is_last = done.is_cancelled();
            let all_read = match self.look(false).await {
                Ok(all_read) => all_read,
                Err(_) => {
                    sleep(RETRY_PAUSE).await;
                    false
                }
            };
            if is_last {
                break all_read;
            }
            tokio::select! {
                () = done.cancelled() => {}
                () = self.transfers.nudged() => {}
                () = sleep(LOOK_INTERVAL), if !self.open.is_empty() || self.lane.waiting() > 0 => {}
            }
        };
        let frames = self.lane.waiting() + self.in_hand.len() as u64;
        if !all_read && frames > 0 {
            // What is not read may go on with what is open: given up now, one message would become two pieces.
            let source = self.intake.source();
            tracing::warn!(%source, frames, "not all frames could be read in time: they wait in the spool for the next start");
            return;
        }
        let transfers: Vec<u64> = self.open.keys().copied().collect();
        if let Err(error) = self.give_up(&transfers).await {
            let (source, frames) = (self.intake.source(), self.in_hand.len());
            tracing::warn!(%source, frames, %error, "unfinished messages wait in the spool for the next start");
        }
    }

    /// Takes all parts that are there, and gives up transfers that nobody goes on with; false when not all could be read. After an error
    /// all begins anew at the cursor.
    async fn look(&mut self, starting: bool) -> Result<bool, CommitError> {
        // Before the parts are read: all parts of a transfer that is over now are there.
        let over = self.transfers.abandoned(self.open.keys().copied());
        let outcome = match self.drain(starting).await {
            Ok(true) => self.give_up(&over).await,
            // The disk is slow: perhaps not all of them were read.
            Ok(false) => Ok(false),
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            tracing::warn!(source = %self.intake.source(), %error, "a message can't be stored yet; its frames are");
            self.open.clear();
            self.in_hand.clear();
            self.lane.rewind();
        }
        outcome
    }

    /// Looks through all that is there for what is done already, then goes back; false when not all could be read.
    async fn survey(&mut self) -> bool {
        while self.lane.waiting() > 0 {
            let Ok(Entry { content, .. }) = timeout(READ_TIME, self.lane.next()).await else {
                // What damage took is not waited for.
                if self.lane.waiting() == 0 {
                    break;
                }
                self.lane.rewind();
                return false;
            };
            let body = match &content {
                Ok(envelope) => envelope.body.collect().await.ok(),
                Err(_) => None,
            };
            match body {
                Some(body) => {
                    if let Some((transfer, done)) = Done::decode(&body) {
                        self.note(transfer, done);
                    }
                }
                None => self.damaged = true,
            }
        }
        self.damaged |= self.lane.is_damaged();
        self.lane.rewind();
        self.surveyed = true;
        true
    }

    /// This needs its parts no more.
    fn note(&mut self, transfer: u64, done: Done) {
        match done {
            Done::Until(at) => {
                let known = self.done.entry(transfer).or_default();
                *known = at.max(*known);
            }
            Done::Other(ordinal) => _ = self.others.insert((transfer, ordinal)),
        }
    }

    /// Takes all parts that are there; false when not all could be read.
    async fn drain(&mut self, starting: bool) -> Result<bool, CommitError> {
        if !self.surveyed && !self.survey().await {
            return Ok(false);
        }
        while self.lane.waiting() > 0 {
            let Ok(entry) = timeout(READ_TIME, self.lane.next()).await else { return Ok(self.lane.waiting() == 0) };
            self.take(entry, starting).await?;
            self.pass();
            if self.in_hand.len() > self.held_max {
                self.cut().await?;
            }
        }
        Ok(true)
    }

    /// Stores the message that holds up all others as far as it has come.
    async fn cut(&mut self) -> Result<(), CommitError> {
        let Some(transfer) = self.in_hand.front().and_then(|held| held.waits) else { return Ok(()) };
        let Some(open) = self.open.get_mut(&transfer) else { return Ok(()) };
        let at = At { ordinal: open.last.map_or(0, |(ordinal, _)| ordinal + 1), byte: 0 };
        if let Some(message) = open.message.take() {
            tracing::warn!(source = %self.intake.source(), "a message is open for so long that it holds up too many others: it is stored in pieces");
            self.commit(transfer, message, at, Flags::INCOMPLETE).await?;
        }
        self.free(transfer, None);
        self.pass();
        Ok(())
    }

    async fn take(&mut self, entry: Entry, starting: bool) -> Result<(), CommitError> {
        let Entry { place, content, .. } = entry;
        let read = match &content {
            Ok(envelope) => envelope.body.collect().await.map(|body| (body, envelope.meta.received)),
            Err(error) => Err(error.clone()),
        };
        let Ok((body, received)) = read else { return self.bury(place, "it is damaged on this box's disk").await };
        if let Some((transfer, done)) = Done::decode(&body) {
            self.note(transfer, done);
            self.in_hand.push_back(InHand { place, waits: None, says: Some((transfer, done)) });
            return Ok(());
        }
        match Part::decode(&body) {
            Some(part) if part.kind == Kind::Other => self.other(place, &part, received).await,
            Some(part) => self.part(place, &part, received, starting).await,
            None => self.bury(place, "it is of an unknown form").await,
        }
    }

    /// A person must see it; the record names it among the dead letters.
    async fn bury(&mut self, place: Place, reason: &str) -> Result<(), CommitError> {
        tracing::error!(source = %self.intake.source(), reason, "a frame can't be read back");
        self.lane.bury(place, reason, 0).await?;
        self.in_hand.push_back(InHand { place, waits: None, says: None });
        Ok(())
    }

    async fn part(
        &mut self,
        place: Place,
        part: &Part<'_>,
        received: Stamp,
        starting: bool,
    ) -> Result<(), CommitError> {
        let is_done = self.done.get(&part.transfer).is_some_and(|done| part.ordinal < done.ordinal);
        self.in_hand.push_back(InHand { place, waits: (!is_done).then_some(part.transfer), says: None });
        let identity = (part.ordinal, fingerprint(part.text));
        let mut open = self.open.remove(&part.transfer).unwrap_or_else(Open::new);
        let outcome = match open.last {
            // One that was stored and not acknowledged after all came again: it has the same place in its transfer.
            Some(last) if last == identity => Ok(()),
            _ if is_done => Ok(()),
            // Parts before this one are lost: what came before them and what comes now are not one message.
            Some((last, _)) if part.ordinal > last + 1 => {
                let at = At { ordinal: part.ordinal, byte: 0 };
                match self.finish(&mut open, part, at, Flags::INCOMPLETE).await {
                    Ok(()) => self.text(&mut open, part, received).await,
                    Err(error) => Err(error),
                }
            }
            _ => self.text(&mut open, part, received).await,
        };
        open.last = Some(identity);
        if starting && !self.damaged {
            self.transfers.break_off(&part.line, open.standing(part));
        }
        match &mut open.message {
            Some(message) => message.parts += 1,
            None if is_done => {}
            None => self.free(part.transfer, None),
        }
        self.open.insert(part.transfer, open);
        outcome
    }

    /// Takes what is not done of a part.
    async fn text(&mut self, open: &mut Open, part: &Part<'_>, received: Stamp) -> Result<(), CommitError> {
        let ordinal = part.ordinal;
        let done = self.done.get(&part.transfer).filter(|done| done.ordinal == ordinal).map_or(0, |done| done.byte);
        let mut input = part.text.get(done..).unwrap_or_default();
        open.splitter = Splitter::within(part.record.filter(|_| done == 0));
        if part.start == ordinal && done == 0 {
            // Either nothing is open, or it has become too long for one message.
            self.finish(open, part, At { ordinal, byte: 0 }, Flags::INCOMPLETE).await?;
        }
        loop {
            let before = At { ordinal, byte: part.text.len() - input.len() };
            let Some(piece) = open.splitter.pull(&mut input) else { break };
            let behind = At { ordinal, byte: part.text.len() - input.len() };
            let is_header = piece.begins && piece.kind == b'H';
            if is_header {
                self.finish(open, part, before, Flags::INCOMPLETE).await?;
            }
            if open.message.is_none() && piece.kind != 0 {
                open.message = Some(Message::begin(&self.intake, received, ordinal, is_header));
            }
            if let Some(message) = &mut open.message {
                message.write(piece.bytes).await?;
                message.asks |= piece.begins && piece.kind == b'Q';
            }
            if piece.ends && piece.kind == b'L' {
                self.finish(open, part, behind, Flags::default()).await?;
            }
        }
        // The frame ends a record; devices that leave out its CR must not make two records one.
        let ended = matches!(part.kind, Kind::Frame { last: true, .. }).then(|| open.splitter.end()).flatten();
        if let (Some(_), Some(message)) = (ended, &mut open.message) {
            message.write(b"\r").await?;
        }
        if ended == Some(b'L') {
            self.finish(open, part, At { ordinal: ordinal + 1, byte: 0 }, Flags::default()).await?;
        }
        Ok(())
    }

    /// Commits the open message, if there is one, which ends `at`. Its parts are free, but the present one when something else follows in it.
    async fn finish(&mut self, open: &mut Open, part: &Part<'_>, at: At, flags: Flags) -> Result<(), CommitError> {
        let Some(message) = open.message.take() else { return Ok(()) };
        self.commit(part.transfer, message, at, flags).await?;
        let present = self.in_hand.back().map(|held| held.place);
        self.free(part.transfer, present);
        Ok(())
    }

    async fn commit(&mut self, transfer: u64, message: Message, at: At, flags: Flags) -> Result<(), CommitError> {
        let Message { incoming, header, start, flags: known, asks, .. } = message;
        let own = || format!("{transfer:016x}-{start}").into_bytes();
        let control_id = astm_record::control_id(&header).map_or_else(own, <[u8]>::to_vec);
        let about = About { content_type: MEDIA_TYPE.to_owned(), control_id, flags: known.with(flags) };
        self.store(incoming, about, transfer, Done::Until(at)).await?;
        if asks {
            self.asked();
        }
        Ok(())
    }

    /// Commits a message together with the word that its parts are not needed any more.
    async fn store(
        &mut self,
        mut incoming: Incoming,
        about: About,
        transfer: u64,
        done: Done,
    ) -> Result<(), CommitError> {
        incoming.also_part(astm_part::CONTENT_TYPE, self.intake.now(), done.encode(transfer));
        if let Committed::Repeat(_) = incoming.commit(about).await? {
            // It was stored before, and nothing of it now.
            let mut alone = self.intake.begin();
            alone.write(&done.encode(transfer)).await?;
            alone.commit_part(astm_part::about()).await?;
        }
        self.note(transfer, done);
        Ok(())
    }

    /// Text that is not ASTM: a message of its own.
    async fn other(&mut self, place: Place, part: &Part<'_>, received: Stamp) -> Result<(), CommitError> {
        self.in_hand.push_back(InHand { place, waits: None, says: None });
        let Part { transfer, ordinal, .. } = *part;
        if let Some(open) = self.open.get_mut(&transfer) {
            open.last = Some((ordinal, fingerprint(part.text)));
        }
        if self.others.contains(&(transfer, ordinal)) {
            return Ok(());
        }
        let mut incoming = self.intake.begin_at(received);
        incoming.write(part.text).await?;
        let control_id = format!("{transfer:016x}-{ordinal}").into_bytes();
        let about = About { content_type: OTHER_CONTENT_TYPE.to_owned(), control_id, flags: Flags::UNREADABLE };
        self.store(incoming, about, transfer, Done::Other(ordinal)).await
    }

    fn asked(&self) {
        let counters = self.intake.counters();
        counters.queries.one();
        counters.last_query_ms.set(i64::try_from(self.intake.uptime_ms()).unwrap_or(i64::MAX));
        if let Some(unsaid) = self.queries.speak() {
            let source = self.intake.source();
            tracing::warn!(%source, unsaid, "the analyser asks for orders and nobody answers here: turn off query mode on it");
        }
    }

    /// These transfers are over: what they left becomes incomplete messages.
    async fn abandon(&mut self, transfers: &[u64]) -> Result<(), CommitError> {
        for transfer in transfers {
            let Some(open) = self.open.remove(transfer) else { continue };
            let at = At { ordinal: open.last.map_or(0, |(ordinal, _)| ordinal + 1), byte: 0 };
            if let Some(message) = open.message {
                let (source, parts) = (self.intake.source(), message.parts);
                tracing::warn!(%source, parts, "an analyser broke off a message: what it was acknowledged is stored as incomplete");
                self.commit(*transfer, message, at, Flags::INCOMPLETE).await?;
            }
            self.free(*transfer, None);
        }
        self.pass();
        Ok(())
    }

    /// See [`Self::abandon`]; reads what was written of it, so that the cursor can pass over all. False when not all could be read.
    async fn give_up(&mut self, transfers: &[u64]) -> Result<bool, CommitError> {
        self.abandon(transfers).await?;
        self.drain(false).await
    }

    /// The parts of a transfer wait for nothing any more, but for the one at `present`.
    fn free(&mut self, transfer: u64, present: Option<Place>) {
        for held in &mut self.in_hand {
            if held.waits == Some(transfer) && Some(held.place) != present {
                held.waits = None;
            }
        }
    }

    /// Moves the cursor over all that waits for nothing.
    fn pass(&mut self) {
        let mut passed = None;
        while let Some(held) = self.in_hand.pop_front_if(|held| held.waits.is_none()) {
            passed = Some(held.place);
            match held.says {
                // All parts that it is about are passed, too.
                Some((transfer, Done::Until(at))) if self.done.get(&transfer) == Some(&at) => {
                    self.done.remove(&transfer);
                }
                Some((transfer, Done::Other(ordinal))) => _ = self.others.remove(&(transfer, ordinal)),
                _ => {}
            }
        }
        if let Some(place) = passed {
            self.lane.advance(place);
        }
    }
}

impl Open {
    fn new() -> Self {
        Self { splitter: Splitter::default(), message: None, last: None }
    }

    /// Where the transfer stands behind `part`.
    fn standing(&self, part: &Part<'_>) -> Standing {
        Standing {
            transfer: part.transfer,
            ordinal: part.ordinal + 1,
            start: self.message.as_ref().map_or(part.ordinal + 1, |message| message.start),
            record: self.splitter.within_record(),
            in_message: self.message.is_some(),
            last: part.identity(),
            link: part.link,
            alone: part.alone,
        }
    }
}

impl Message {
    fn begin(intake: &Intake, received: Stamp, start: u64, is_header: bool) -> Self {
        let flags = if is_header { Flags::default() } else { Flags::INCOMPLETE };
        Self { incoming: intake.begin_at(received), header: Vec::new(), start, parts: 0, flags, asks: false }
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), CommitError> {
        let room = HEADER_BYTES_MAX.saturating_sub(self.header.len());
        self.header.extend(bytes.iter().take(room));
        self.incoming.write(bytes).await
    }
}
