//! Puts messages together out of the parts that analysers were acknowledged: one message is one record set, H to L.
//!
//! It reads the source's own lane of parts, in order; the cursor moves over a part only when the message that it belongs to is
//! committed. So a start after a power cut finds exactly what was acknowledged and is not a message yet, and this is the same code that
//! makes messages at any other time. It must never let go of a part before that: what no analyser goes on with becomes a message
//! flagged as incomplete. A message that was committed right before a power cut may be put together again: the duplicate window knows it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::astm_part::{Kind, Part};
use super::astm_transfers::{Standing, Transfers};
use super::intake::{About, Incoming, Intake};
use crate::envelope::{Flags, Stamp};
use crate::source::seldom::Seldom;
use crate::spool::{CommitError, Entry, Lane, Place};
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

/// See the module.
pub struct Assembly {
    lane: Lane,
    intake: Intake,
    transfers: Arc<Transfers>,
    open: BTreeMap<u64, Open>,
    /// What was read and is not passed yet.
    in_hand: VecDeque<InHand>,
    /// What is read may have been read before: by the run before, or before the spool did not take a message. The rest of a message
    /// whose beginning was passed is then committed.
    again: bool,
    /// A part could not be read back: what seems to be such a rest may be all that is left of a message.
    damaged: bool,
    queries: Seldom,
}

struct InHand {
    place: Place,
    /// The transfer whose message it waits for; `None`: for none.
    waits: Option<u64>,
}

/// A transfer of which parts were read.
struct Open {
    splitter: Splitter,
    message: Option<Message>,
    /// The part that was read last: ordinal and fingerprint.
    last: Option<(u64, u64)>,
    /// The beginning was passed already: this is the rest of a message that is committed.
    skipping: bool,
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
            again: true,
            damaged: false,
            queries: Seldom::default(),
        };
        let found = assembly.lane.waiting();
        if found > 0 {
            tracing::info!(source = %intake.source(), frames = found, "what was acknowledged before the start and is no message yet");
        }
        assembly.again = !matches!(assembly.look(true).await, Ok(true));
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
                    self.again = true;
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
            // What is not read can't be part of a message: given up now, the rest of it would be taken for one that is committed.
            let source = self.intake.source();
            tracing::warn!(%source, frames, "not all frames could be read in time: they wait in the spool for the next start");
            return;
        }
        let transfers: Vec<u64> = self.open.keys().copied().collect();
        if let Err(error) = self.abandon(&transfers).await {
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
            Ok(true) => self.abandon(&over).await.map(|()| true),
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

    /// Takes all parts that are there; false when not all could be read.
    async fn drain(&mut self, starting: bool) -> Result<bool, CommitError> {
        while self.lane.waiting() > 0 {
            let Ok(entry) = timeout(READ_TIME, self.lane.next()).await else { return Ok(false) };
            self.take(entry, starting).await?;
            self.pass();
        }
        Ok(true)
    }

    async fn take(&mut self, entry: Entry, starting: bool) -> Result<(), CommitError> {
        let Entry { place, content, .. } = entry;
        let read = match &content {
            Ok(envelope) => envelope.body.collect().await.map(|body| (body, envelope.meta.received)),
            Err(error) => Err(error.clone()),
        };
        let read = match &read {
            Ok((body, received)) => Part::decode(body).map(|part| (part, *received)).ok_or("it is of an unknown form"),
            Err(_) => Err("it is damaged on this box's disk"),
        };
        match read {
            Ok((part, received)) => self.part(place, &part, received, starting).await,
            Err(reason) => {
                self.damaged = true;
                tracing::error!(source = %self.intake.source(), reason, "a frame can't be read back");
                // A person must see it; the record names it among the dead letters.
                self.lane.bury(place, reason, 0).await?;
                self.in_hand.push_back(InHand { place, waits: None });
                Ok(())
            }
        }
    }

    async fn part(
        &mut self,
        place: Place,
        part: &Part<'_>,
        received: Stamp,
        starting: bool,
    ) -> Result<(), CommitError> {
        let identity = Some((part.ordinal, fingerprint(part.text)));
        if part.kind == Kind::Other {
            if let Some(open) = self.open.get_mut(&part.transfer) {
                open.last = identity;
            }
            self.in_hand.push_back(InHand { place, waits: None });
            return self.other(part, received).await;
        }
        self.in_hand.push_back(InHand { place, waits: Some(part.transfer) });
        let mut open = self.open.remove(&part.transfer).unwrap_or_else(|| Open {
            splitter: Splitter::within(part.record),
            message: None,
            last: None,
            skipping: self.again && !self.damaged && part.ordinal != part.start,
        });
        let outcome = match open.last {
            // One that was stored and not acknowledged after all came again: it has the same place in its transfer.
            last if last == identity => Ok(()),
            Some((last, _)) if part.ordinal > last + 1 => self.text_after_loss(&mut open, part, received).await,
            _ => self.text(&mut open, part, received).await,
        };
        open.last = identity;
        if starting {
            self.transfers.break_off(&part.line, open.standing(part));
        }
        match &mut open.message {
            Some(message) => message.parts += 1,
            None => self.free(part.transfer, None),
        }
        self.open.insert(part.transfer, open);
        outcome
    }

    /// Parts before this one are lost: what came before them and what comes now are not one message.
    async fn text_after_loss(&mut self, open: &mut Open, part: &Part<'_>, received: Stamp) -> Result<(), CommitError> {
        self.finish(open, part, Flags::INCOMPLETE).await?;
        open.splitter = Splitter::within(part.record);
        self.text(open, part, received).await
    }

    async fn text(&mut self, open: &mut Open, part: &Part<'_>, received: Stamp) -> Result<(), CommitError> {
        if part.start == part.ordinal {
            // Either nothing is open, or it has become too long for one message.
            self.finish(open, part, Flags::INCOMPLETE).await?;
        }
        let mut input = part.text;
        while let Some(piece) = open.splitter.pull(&mut input) {
            let is_header = piece.begins && piece.kind == b'H';
            if is_header {
                self.finish(open, part, Flags::INCOMPLETE).await?;
            }
            if open.message.is_none() && !open.skipping && piece.kind != 0 {
                open.message = Some(Message::begin(&self.intake, received, part.ordinal, is_header));
            }
            if let Some(message) = &mut open.message {
                message.write(piece.bytes).await?;
                message.asks |= piece.begins && piece.kind == b'Q';
            }
            if piece.ends && piece.kind == b'L' {
                self.finish(open, part, Flags::default()).await?;
            }
        }
        // The frame ends a record; devices that leave out its CR must not make two records one.
        let ended = matches!(part.kind, Kind::Frame { last: true, .. }).then(|| open.splitter.end()).flatten();
        if let (Some(_), Some(message)) = (ended, &mut open.message) {
            message.write(b"\r").await?;
        }
        if ended == Some(b'L') {
            self.finish(open, part, Flags::default()).await?;
        }
        Ok(())
    }

    /// Commits the open message, if there is one. Its parts are free, but the present one when something else follows in it.
    async fn finish(&mut self, open: &mut Open, part: &Part<'_>, flags: Flags) -> Result<(), CommitError> {
        open.skipping = false;
        let Some(message) = open.message.take() else { return Ok(()) };
        self.commit(part.transfer, message, flags).await?;
        let present = self.in_hand.back().map(|held| held.place);
        self.free(part.transfer, present);
        Ok(())
    }

    async fn commit(&self, transfer: u64, message: Message, flags: Flags) -> Result<(), CommitError> {
        let Message { incoming, header, start, flags: known, asks, .. } = message;
        let own = || format!("{transfer:016x}-{start}").into_bytes();
        let control_id = astm_record::control_id(&header).map_or_else(own, <[u8]>::to_vec);
        let about = About { content_type: MEDIA_TYPE.to_owned(), control_id, flags: known.with(flags) };
        incoming.commit(about).await?;
        if asks {
            self.asked();
        }
        Ok(())
    }

    async fn other(&self, part: &Part<'_>, received: Stamp) -> Result<(), CommitError> {
        let mut incoming = self.intake.begin_at(received);
        incoming.write(part.text).await?;
        let control_id = format!("{:016x}-{}", part.transfer, part.ordinal).into_bytes();
        let about = About { content_type: OTHER_CONTENT_TYPE.to_owned(), control_id, flags: Flags::UNREADABLE };
        incoming.commit(about).await.map(drop)
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
            if let Some(message) = open.message {
                let (source, parts) = (self.intake.source(), message.parts);
                tracing::warn!(%source, parts, "an analyser broke off a message: what it was acknowledged is stored as incomplete");
                self.commit(*transfer, message, Flags::INCOMPLETE).await?;
            }
            self.free(*transfer, None);
        }
        self.pass();
        Ok(())
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
        }
        if let Some(place) = passed {
            self.lane.advance(place);
        }
    }
}

impl Open {
    /// Where the transfer stands behind `part`.
    fn standing(&self, part: &Part<'_>) -> Standing {
        Standing {
            transfer: part.transfer,
            ordinal: part.ordinal + 1,
            start: self.message.as_ref().map_or(part.ordinal + 1, |message| message.start),
            record: self.splitter.within_record(),
            in_message: self.message.is_some(),
            last: part.identity(),
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
