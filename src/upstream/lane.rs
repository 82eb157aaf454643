//! One lane over one connection: reads on, keeps a window of deliveries on their way, moves the cursor on receipts.
//!
//! The cursor moves over the front of the window only, and only on the upstream's own receipt or after the message has durably become a
//! dead letter. What blames the connection ends the work on it ([`LaneRun::run`] tells the cause, nothing is lost); what blames
//! the message concerns this lane only. After an answer that stops the front, the window is forgotten and filled anew, one
//! message at a time until the front has passed. No path loops without a pause.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::holds::{Decision, Holds};
use super::{Delivery, Receipt, SendError, Stop, Upstream, WhenRefused};
use crate::envelope::{Envelope, MessageId};
use crate::spool::{CommitError, Entry, Lane, Place, Spool};
use crate::status::UpstreamCounters;
use crate::system::backoff::Backoff;
use crate::values::Name;

/// How often an answer that blames the message is taken for passing.
pub const REFUSALS_MAX: u32 = 10;
/// How long the pauses between them may be, all together.
pub const REFUSED_FOR_MAX: Duration = Duration::from_secs(15 * 60);
/// The pauses of a lane: at first up to this long.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
/// The pauses of a lane: at last up to this long.
const PAUSE_LONGEST: Duration = Duration::from_secs(120);
/// Longest pause that a peer may ask for.
const ASKED_PAUSE_MAX: Duration = Duration::from_secs(3600);

/// What all lanes of an upstream share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) spool: Spool,
    pub(super) when_refused: WhenRefused,
    pub(super) counters: Arc<UpstreamCounters>,
    pub(super) holds: Arc<Holds>,
}

/// A lane and how it stands. It outlives connections.
pub(super) struct LaneRun {
    lane: Lane,
    shared: Shared,
    backoff: Backoff,
    window: VecDeque<Flight>,
    trouble: Option<Trouble>,
    /// The last entry that was sent at all: an entry up to it is sent again.
    sent: Option<Place>,
    /// The last entry that the cursor was moved over.
    passed: Option<Place>,
}

/// A message on its way.
struct Flight {
    place: Place,
    id: Option<MessageId>,
    bytes: u64,
    delivery: Delivery,
    /// Its fate was known at once: nothing after it is sent.
    failed: bool,
}

/// Why the first message of the lane has not passed.
struct Trouble {
    place: Place,
    id: Option<MessageId>,
    reason: String,
    refusals: u32,
    paused: Duration,
    next: Next,
}

/// What happens next with a message in trouble.
#[derive(Clone, Copy)]
enum Next {
    Send,
    Pause(Instant),
    Hold,
    Bury(Instant),
}

/// Why sending has paused.
enum Turn {
    Stopped,
    Lost(String),
    Failed(Flight, SendError),
}

impl LaneRun {
    pub(super) fn new(lane: Lane, shared: Shared) -> Self {
        Self { lane, shared, backoff: pauses(), window: VecDeque::new(), trouble: None, sent: None, passed: None }
    }

    /// Works until the connection is lost or `stop`; on `stop`, what is on its way is waited for. `Some`: this lane found the
    /// connection broken, with the cause. The lane is then rewound.
    pub(super) async fn run<U: Upstream>(
        mut self,
        upstream: Arc<U>,
        lost: CancellationToken,
        stop: Stop,
    ) -> (Self, Option<String>) {
        let cause = self.work(upstream.as_ref(), &lost, &stop).await;
        self.rewind();
        (self, cause)
    }

    async fn work<U: Upstream>(&mut self, upstream: &U, lost: &CancellationToken, stop: &Stop) -> Option<String> {
        loop {
            if !self.settle(lost, stop).await {
                return None;
            }
            let turn = tokio::select! {
                biased;
                () = lost.cancelled() => return None,
                turn = self.deliver(upstream, stop) => turn,
            };
            match turn {
                Turn::Stopped => return None,
                Turn::Lost(cause) => return Some(cause),
                Turn::Failed(flight, error) => self.failed(flight, error),
            }
        }
    }

    /// Fills the window and takes receipts from its front until something needs more than that.
    async fn deliver<U: Upstream>(&mut self, upstream: &U, stop: &Stop) -> Turn {
        loop {
            let stopping = stop.is_cancelled();
            if stopping && self.window.is_empty() {
                return Turn::Stopped;
            }
            let room = !stopping && self.has_room(upstream.window());
            let waiting = !self.window.is_empty();
            tokio::select! {
                biased;
                outcome = front(&mut self.window), if waiting => match self.arrived(outcome) {
                    Some(turn) => return turn,
                    None => continue,
                },
                entry = self.lane.next(), if room => match self.send(upstream, entry).await {
                    Some(turn) => return turn,
                    None => continue,
                },
                () = stop.cancelled(), if !stopping => {}
            }
        }
    }

    fn has_room(&self, window: usize) -> bool {
        let window = if self.trouble.is_some() { 1 } else { window.max(1) };
        self.window.len() < window && self.window.back().is_none_or(|flight| !flight.failed)
    }

    /// The front of the window has its answer.
    fn arrived(&mut self, outcome: Result<Receipt, SendError>) -> Option<Turn> {
        let error = match outcome {
            Ok(receipt) => {
                if let Some(flight) = self.window.pop_front() {
                    self.delivered(&flight, &receipt);
                }
                return None;
            }
            Err(SendError::Disconnected { cause }) => return Some(Turn::Lost(cause)),
            Err(error) => error,
        };
        self.window.pop_front().map(|flight| Turn::Failed(flight, error))
    }

    async fn send<U: Upstream>(&mut self, upstream: &U, entry: Entry) -> Option<Turn> {
        let place = entry.place;
        if self.passed.is_some_and(|passed| place <= passed) {
            return None;
        }
        let envelope = match entry.content {
            Ok(envelope) => envelope,
            Err(damage) => {
                self.window.push_back(Flight::damaged(place, damage.to_string()));
                return None;
            }
        };
        if self.sent.is_some_and(|sent| place <= sent) {
            self.shared.counters.retried.one();
        }
        self.sent = self.sent.max(Some(place));
        match upstream.send(&envelope).await {
            Err(SendError::Disconnected { cause }) => return Some(Turn::Lost(cause)),
            Ok(delivery) => self.window.push_back(Flight::new(place, &envelope, delivery, false)),
            // Those before it are still on their way: its turn comes when it is at the front.
            Err(error) => self.window.push_back(Flight::new(place, &envelope, Delivery::failed(error), true)),
        }
        None
    }

    fn delivered(&mut self, flight: &Flight, receipt: &Receipt) {
        self.pass(flight.place);
        let counters = &self.shared.counters;
        counters.delivered.one();
        counters.delivered_bytes.add(flight.bytes);
        counters.last_receipt_ms.set(i64::try_from(self.shared.spool.now().uptime_ms).unwrap_or(i64::MAX));
        tracing::debug!(upstream = %self.lane.upstream(), id = %shown(flight.id), code = receipt.code, "delivered");
    }

    /// The cursor moves over `place`; whatever troubled it is over.
    fn pass(&mut self, place: Place) {
        self.lane.advance(place);
        self.passed = Some(place);
        if self.trouble.take().is_some() {
            self.backoff = pauses();
            self.shared.holds.moves(self.lane.source());
        }
    }

    /// The front was not taken: decides what happens with it.
    fn failed(&mut self, flight: Flight, error: SendError) {
        let known = self.trouble.take().filter(|trouble| trouble.place == flight.place);
        let mut trouble = known.unwrap_or_else(|| Trouble::new(&flight));
        trouble.next = match error {
            SendError::Busy { cause, after } => {
                trouble.reason = cause;
                let asked = after.unwrap_or_default().min(ASKED_PAUSE_MAX);
                Next::Pause(Instant::now() + asked.max(self.backoff.pause(Duration::ZERO)))
            }
            SendError::Disconnected { cause } => {
                trouble.reason = cause;
                Next::Send
            }
            SendError::Refused { reason } => self.refused(&mut trouble, reason),
            SendError::Rejected { reason } => {
                (trouble.reason, trouble.refusals) = (reason, trouble.refusals + 1);
                if flight.id.is_none() { Next::Bury(Instant::now()) } else { self.give_up() }
            }
        };
        // A message that is set aside leaves those behind it on their way; else they come again after it.
        match trouble.next {
            Next::Pause(_) => {
                self.shared.holds.waits(self.lane.source(), trouble.reason.clone());
                self.rewind();
            }
            Next::Bury(_) => {}
            Next::Hold | Next::Send => self.rewind(),
        }
        self.trouble = Some(trouble);
    }

    fn refused(&mut self, trouble: &mut Trouble, reason: String) -> Next {
        (trouble.reason, trouble.refusals) = (reason, trouble.refusals + 1);
        tracing::warn!(
            upstream = %self.lane.upstream(), source = %self.lane.source(), id = %shown(trouble.id),
            attempt = trouble.refusals, reason = trouble.reason, "refused"
        );
        if trouble.refusals >= REFUSALS_MAX || trouble.paused >= REFUSED_FOR_MAX {
            return self.give_up();
        }
        let pause = self.backoff.pause(Duration::ZERO);
        trouble.paused += pause;
        Next::Pause(Instant::now() + pause)
    }

    fn give_up(&self) -> Next {
        match self.shared.when_refused {
            WhenRefused::DeadLetter => Next::Bury(Instant::now()),
            WhenRefused::Hold => Next::Hold,
        }
    }

    /// Waits until the first message may be sent (again) or was set aside; false when there is no point any more.
    async fn settle(&mut self, lost: &CancellationToken, stop: &Stop) -> bool {
        loop {
            if lost.is_cancelled() || stop.is_cancelled() && self.window.is_empty() {
                return false;
            }
            let Some(trouble) = &mut self.trouble else { return true };
            let until = match trouble.next {
                Next::Send => return true,
                Next::Pause(until) | Next::Bury(until) => Some(until),
                Next::Hold => None,
            };
            let waited = tokio::select! {
                biased;
                () = lost.cancelled() => return false,
                () = stop.cancelled() => return false,
                decision = wait(until, &self.shared.holds, self.lane.source(), &trouble.reason) => decision,
            };
            match (trouble.next, waited) {
                (Next::Bury(_), _) => self.bury().await,
                (Next::Hold, Some(Decision::DeadLetter)) => trouble.next = Next::Bury(Instant::now()),
                (Next::Hold, _) => {
                    (trouble.next, trouble.refusals, trouble.paused) = (Next::Send, 0, Duration::ZERO);
                    self.shared.holds.moves(self.lane.source());
                }
                (Next::Pause(_) | Next::Send, _) => trouble.next = Next::Send,
            }
        }
    }

    /// Makes the message in trouble a dead letter and goes on with the next; a spool that can't take it holds the lane.
    async fn bury(&mut self) {
        let Some(trouble) = &mut self.trouble else { return };
        match self.lane.bury(trouble.place, &trouble.reason, trouble.refusals).await {
            Ok(()) => {
                tracing::warn!(
                    upstream = %self.lane.upstream(), source = %self.lane.source(), id = %shown(trouble.id),
                    attempts = trouble.refusals, reason = trouble.reason, "dead letter"
                );
                let place = trouble.place;
                self.shared.counters.dead.one();
                self.pass(place);
            }
            Err(error) => {
                let what = match error {
                    CommitError::Full => "there is no room for another dead letter: retry or discard some",
                    CommitError::Failed => "the spool has failed and can't keep it as a dead letter",
                };
                let reason = format!("{}; {what}", trouble.reason);
                trouble.next = Next::Bury(Instant::now() + self.backoff.pause(Duration::ZERO));
                self.shared.holds.waits(self.lane.source(), reason);
            }
        }
    }

    /// Forgets what is on its way: it comes again.
    fn rewind(&mut self) {
        self.window.clear();
        self.lane.rewind();
    }
}

impl Flight {
    fn new(place: Place, envelope: &Envelope, delivery: Delivery, failed: bool) -> Self {
        Self { place, id: Some(envelope.id), bytes: envelope.body.len(), delivery, failed }
    }

    /// It can't be read back: no upstream will ever get it, whatever the configuration says about refusals.
    fn damaged(place: Place, reason: String) -> Self {
        Self { place, id: None, bytes: 0, delivery: Delivery::failed(SendError::Rejected { reason }), failed: true }
    }
}

impl Trouble {
    fn new(flight: &Flight) -> Self {
        let (place, id) = (flight.place, flight.id);
        Self { place, id, reason: String::new(), refusals: 0, paused: Duration::ZERO, next: Next::Send }
    }
}

/// Waits for the front's end; cancelling loses nothing. Only called when there is a front.
async fn front(window: &mut VecDeque<Flight>) -> Result<Receipt, SendError> {
    match window.front_mut() {
        Some(flight) => flight.delivery.receipt().await,
        None => std::future::pending().await,
    }
}

/// Waits for a moment, or for a person's decision.
async fn wait(until: Option<Instant>, holds: &Holds, source: &Name, reason: &str) -> Option<Decision> {
    match until {
        Some(until) => {
            tokio::time::sleep_until(until).await;
            None
        }
        None => Some(holds.wait_for_a_person(source, reason).await),
    }
}

fn pauses() -> Backoff {
    Backoff::new(PAUSE_FIRST, PAUSE_LONGEST, Duration::MAX)
}

fn shown(id: Option<MessageId>) -> String {
    id.map_or_else(|| "unreadable".to_owned(), |id| id.to_string())
}
