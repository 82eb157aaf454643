//! One lane over one connection: reads on, keeps a window of deliveries on their way, moves the cursor on receipts.
//!
//! The cursor moves over the front of the window only, and only on the upstream's own receipt or after the message has durably become a
//! dead letter. What blames the connection ends the work on it ([`LaneRun::run`] tells the cause, nothing is lost); what blames
//! the message concerns this lane only. After an answer that stops the front, the window is forgotten and filled anew, one
//! message at a time until the front has passed. Of two versions of one object (an instance that came again with other bytes) the later one
//! is sent when the cursor has passed the earlier one. No path loops without a pause.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::holds::{Decision, Holds};
use super::{Delivery, Receipt, SendError, Stop, Upstream, WhenRefused};
use crate::envelope::{Envelope, MessageId};
use crate::route::convert::Conversions;
use crate::spool::{CommitError, Entry, Lane, Place, Spool};
use crate::status::UpstreamCounters;
use crate::system::backoff::Backoff;
use crate::system::pulse::beating;

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
    pub(super) conversions: watch::Receiver<Arc<Conversions>>,
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
    /// Receipts for messages behind the front that came before the lane went back: these are not sent again.
    answered: BTreeMap<Place, Receipt>,
    /// Nothing was read since the lane went back to its cursor: the first entry is not in hand.
    rewound: bool,
}

/// A message on its way.
struct Flight {
    place: Place,
    id: MessageId,
    bytes: u64,
    delivery: Delivery,
    fate: Fate,
    /// See [`object`].
    object: Vec<u8>,
    /// It waits for one before it, and is sent after that.
    behind: Option<Behind>,
}

/// A message that waits for another one.
struct Behind {
    envelope: Arc<Envelope>,
    /// Its delivery waits for this, and nobody ever says it.
    _never: oneshot::Sender<Result<Receipt, SendError>>,
}

/// What is known about a message beside its delivery.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It is on its way.
    Open,
    /// It failed at once: nothing after it is sent before its turn has come.
    Failed,
    /// The same, and no upstream will ever get it: it can't be read back.
    Damaged,
}

/// Why the first message of the lane has not passed.
struct Trouble {
    place: Place,
    id: MessageId,
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
        let (window, answered) = Default::default();
        Self { lane, shared, backoff: pauses(), window, trouble: None, sent: None, answered, rewound: false }
    }

    /// Works until the connection is lost or `stop`; on `stop`, what is on its way is waited for. `Some`: this lane found the
    /// connection broken, with the cause. The lane is then rewound.
    pub(super) async fn run<U: Upstream>(
        mut self,
        upstream: Arc<U>,
        lost: CancellationToken,
        stop: Stop,
    ) -> (Self, Option<String>) {
        let turns = self.shared.counters.lane(self.lane.source());
        let cause = beating(self.work(upstream.as_ref(), &lost, &stop), || turns.one()).await;
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
            if let Some(turn) = self.send_who_was_behind(upstream).await {
                return turn;
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
        self.window.len() < window && self.window.back().is_none_or(|flight| flight.fate == Fate::Open)
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
        self.rewound = false;
        let Entry { place, id, content } = entry;
        let envelope = match content {
            Ok(envelope) => envelope,
            Err(damage) => {
                self.window.push_back(Flight::damaged(place, id, damage.to_string()));
                return None;
            }
        };
        if let Some(receipt) = self.answered.remove(&place) {
            self.window.push_back(Flight::new(place, id, &envelope, (Delivery::done(receipt.code), Fate::Open)));
            return None;
        }
        if self.sent.is_some_and(|sent| place <= sent) {
            self.shared.counters.retried.one();
        }
        self.sent = self.sent.max(Some(place));
        if self.is_behind(object(&envelope), self.window.len()) {
            self.window.push_back(Flight::behind(place, id, envelope));
            return None;
        }
        let begun = match self.begin(upstream, &envelope).await {
            Ok(begun) => begun,
            Err(turn) => return Some(turn),
        };
        self.window.push_back(Flight::new(place, id, &envelope, begun));
        None
    }

    async fn begin<U: Upstream>(&self, upstream: &U, envelope: &Envelope) -> Result<(Delivery, Fate), Turn> {
        match self.convert_and_send(upstream, envelope).await {
            Err(SendError::Disconnected { cause }) => Err(Turn::Lost(cause)),
            Ok(delivery) => Ok((delivery, Fate::Open)),
            // Those before it are still on their way: its turn comes when it is at the front.
            Err(error) => Ok((Delivery::failed(error), Fate::Failed)),
        }
    }

    /// Whether one of the first `count` in the window is of the same object. Who is behind it waits until the cursor has passed it: were
    /// the later version taken and the earlier one not yet, the earlier one would come last when it is sent again, and replace the other.
    fn is_behind(&self, object: &[u8], count: usize) -> bool {
        !object.is_empty() && self.window.iter().take(count).any(|flight| flight.object == object)
    }

    /// Sends the first message that waited for one before it, and does not any more.
    async fn send_who_was_behind<U: Upstream>(&mut self, upstream: &U) -> Option<Turn> {
        let may_go = |(at, flight): (usize, &Flight)| flight.behind.is_some() && !self.is_behind(&flight.object, at);
        let at = self.window.iter().enumerate().position(may_go)?;
        let behind = self.window.get_mut(at)?.behind.take()?;
        match self.begin(upstream, &behind.envelope).await {
            Ok((delivery, fate)) => {
                let flight = self.window.get_mut(at)?;
                (flight.delivery, flight.fate) = (delivery, fate);
                None
            }
            Err(turn) => Some(turn),
        }
    }

    /// Sends the message in the form that its route asks for now.
    async fn convert_and_send<U: Upstream>(&self, upstream: &U, envelope: &Envelope) -> Result<Delivery, SendError> {
        let conversions = Arc::clone(&self.shared.conversions.borrow());
        let Some(conversion) = conversions.of(self.lane.source(), self.lane.upstream()) else {
            return upstream.send(envelope).await;
        };
        match conversions.apply(conversion, envelope).await {
            Ok(None) => upstream.send(envelope).await,
            Ok(Some(converted)) => upstream.send(&converted).await,
            Err(reason) => Err(SendError::Rejected { reason }),
        }
    }

    fn delivered(&mut self, flight: &Flight, receipt: &Receipt) {
        self.pass(flight.place);
        let counters = &self.shared.counters;
        counters.delivered.one();
        counters.delivered_bytes.add(flight.bytes);
        counters.last_receipt_ms.set(i64::try_from(self.shared.spool.now().uptime_ms).unwrap_or(i64::MAX));
        tracing::debug!(upstream = %self.lane.upstream(), id = %flight.id, code = receipt.code, "delivered");
    }

    /// The cursor moves over `place`; whatever troubled it is over.
    fn pass(&mut self, place: Place) {
        self.lane.advance(place);
        self.answered.retain(|answered, _| *answered > place);
        if self.trouble.take().is_some() {
            self.backoff = pauses();
            self.lane.hold(None);
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
                if flight.fate == Fate::Damaged { Next::Bury(Instant::now()) } else { self.give_up() }
            }
        };
        self.lane.hold(Some(trouble.reason.clone()));
        // A message that is set aside leaves those behind it on their way; else they come again after it.
        if !matches!(trouble.next, Next::Bury(_)) {
            self.rewind();
        }
        self.trouble = Some(trouble);
    }

    fn refused(&mut self, trouble: &mut Trouble, reason: String) -> Next {
        (trouble.reason, trouble.refusals) = (reason, trouble.refusals + 1);
        tracing::warn!(
            upstream = %self.lane.upstream(), source = %self.lane.source(), id = %trouble.id,
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
        while let Some(trouble) = &mut self.trouble {
            if matches!(trouble.next, Next::Send) {
                break;
            }
            let waited = tokio::select! {
                biased;
                () = lost.cancelled() => return false,
                () = stop.cancelled() => return false,
                waited = wait(trouble.next, &mut self.lane, self.rewound, &self.shared.holds) => waited,
            };
            match waited {
                Waited::Over => trouble.next = Next::Send,
                Waited::Decided(Decision::DeadLetter) => trouble.next = Next::Bury(Instant::now()),
                Waited::Decided(Decision::Retry) => {
                    (trouble.next, trouble.refusals, trouble.paused) = (Next::Send, 0, Duration::ZERO);
                }
                Waited::InHand(place) => {
                    let same = place.is_none_or(|place| place == trouble.place);
                    self.rewound = false;
                    // Once begun it is not given up half way: the record may be on disk already.
                    if same { self.bury().await } else { self.start_anew() }
                }
            }
        }
        !lost.is_cancelled()
    }

    /// Makes the message in trouble a dead letter and goes on with the next; a spool that can't take it holds the lane.
    async fn bury(&mut self) {
        let Some(trouble) = &mut self.trouble else { return };
        match self.lane.bury(trouble.place, &trouble.reason, trouble.refusals).await {
            Ok(()) => {
                tracing::warn!(
                    upstream = %self.lane.upstream(), source = %self.lane.source(), id = %trouble.id,
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
                self.lane.hold(Some(reason));
            }
        }
    }

    /// The first entry is not the one that was in trouble, which nothing but a change of the log itself can cause.
    fn start_anew(&mut self) {
        self.trouble = None;
        self.lane.hold(None);
        self.rewind();
    }

    /// Forgets what is on its way: it comes again, and is sent again unless its receipt is here.
    fn rewind(&mut self) {
        for mut flight in self.window.drain(..) {
            if let Some(receipt) = flight.delivery.receipt_by_now() {
                self.answered.insert(flight.place, receipt);
            }
        }
        self.lane.rewind();
        self.rewound = true;
    }
}

impl Flight {
    fn new(place: Place, id: MessageId, envelope: &Envelope, (delivery, fate): (Delivery, Fate)) -> Self {
        let (bytes, object) = (envelope.body.len(), object(envelope).to_vec());
        Self { place, id, bytes, delivery, fate, object, behind: None }
    }

    fn behind(place: Place, id: MessageId, envelope: Arc<Envelope>) -> Self {
        let (never, receipt) = oneshot::channel();
        let flight = Self::new(place, id, &envelope, (Delivery::waiting(receipt), Fate::Open));
        Self { behind: Some(Behind { envelope, _never: never }), ..flight }
    }

    fn damaged(place: Place, id: MessageId, reason: String) -> Self {
        let delivery = Delivery::failed(SendError::Rejected { reason });
        Self { place, id, bytes: 0, delivery, fate: Fate::Damaged, object: Vec::new(), behind: None }
    }
}

/// What a message is a version of, where there may be several (a DICOM instance); else nothing.
fn object(envelope: &Envelope) -> &[u8] {
    if envelope.class.has_unique_ids() { &envelope.meta.control_id } else { &[] }
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

/// How a wait ended.
enum Waited {
    Over,
    Decided(Decision),
    /// The first entry may be buried; its place if it had to be read again.
    InHand(Option<Place>),
}

/// Waits for what comes next with a message in trouble. The spool buries only what is in hand, so after a rewind it is read again.
async fn wait(next: Next, lane: &mut Lane, rewound: bool, holds: &Holds) -> Waited {
    match next {
        Next::Send => Waited::Over,
        Next::Pause(until) => {
            tokio::time::sleep_until(until).await;
            Waited::Over
        }
        Next::Hold => Waited::Decided(holds.decision(lane.source()).await),
        Next::Bury(from) => {
            tokio::time::sleep_until(from).await;
            Waited::InHand(if rewound { Some(lane.next().await.place) } else { None })
        }
    }
}

fn pauses() -> Backoff {
    Backoff::new(PAUSE_FIRST, PAUSE_LONGEST, Duration::MAX)
}
