//! What a source sees of the spool: begin a message, write its bytes as they come, commit it.
//!
//! An [`Intake`] belongs to one source. It knows the source's routes (targets are decided at commit), counts, and holds the
//! one budget for the bytes in flight of all connections. It never acknowledges: that is the source's part, after commit.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::callers::Callers;
use crate::envelope::{Class, Flags, Identifier, Meta, Stamp, Token};
use crate::spool::{
    CommitError, Committed, Draft, FRAGMENT_BYTES, GATHERED_BYTES_MAX, IN_FLIGHT_BYTES_MAX, InFlight, Lane,
    STREAMED_BYTES_MAX, Spool, Submitted, Way,
};
use crate::status::SourceCounters;
use crate::system::sockets::Sockets;
use crate::values::Name;

/// What a streamed body holds in memory at most: the piece that fills, and the one that is on its way to the disk.
pub const STREAM_BYTES: usize = 2 * FRAGMENT_BYTES;
/// What a message that is gathered holds in memory at most; a longer one is streamed.
pub const GATHER_BYTES: usize = 64 << 10;
/// Of what unfinished messages may hold, stalled senders of one source leave a quarter to the other sources.
const fn of_one_source(bytes: usize) -> usize {
    bytes / 4 * 3
}

/// A source's way into the spool. Cheap to clone: one for each connection.
#[derive(Clone)]
pub struct Intake {
    inner: Arc<Inner>,
    callers: Callers,
    sockets: Sockets,
}

struct Inner {
    source: Name,
    protocol: &'static str,
    class: Class,
    spool: Spool,
    /// For messages that are sent off and waited for later.
    way: Way,
    targets: watch::Receiver<Arc<[Name]>>,
    counters: Arc<SourceCounters>,
    in_flight: InFlight,
    /// What unfinished messages of this source may hold, streamed and gathered.
    streamed: Arc<Semaphore>,
    gathered: Arc<Semaphore>,
}

/// What the protocol's reader found out about a message, by the time it commits.
pub struct About {
    /// Media type, with charset where the device named one.
    pub content_type: String,
    /// The device's own id of the message, verbatim; empty where it has none.
    pub control_id: Vec<u8>,
    /// What was noticed.
    pub flags: Flags,
}

impl Intake {
    /// The intake of one source. The budget of bytes in flight is the spool's: all sources share it.
    pub fn new(
        source: Name,
        protocol: &'static str,
        class: Class,
        spool: Spool,
        targets: watch::Receiver<Arc<[Name]>>,
    ) -> Self {
        let in_flight = spool.in_flight().clone();
        let part = |bytes| Arc::new(Semaphore::new(of_one_source(bytes)));
        let (streamed, gathered) = (part(STREAMED_BYTES_MAX), part(GATHERED_BYTES_MAX));
        let (counters, way) = (Arc::default(), spool.way(class, &source));
        let inner = Inner { source, protocol, class, spool, way, targets, counters, in_flight, streamed, gathered };
        Self { inner: Arc::new(inner), callers: Callers::default(), sockets: Sockets::default() }
    }

    /// The same, whose devices can be called by those who know `callers`.
    pub fn with_callers(self, callers: Callers) -> Self {
        Self { callers, ..self }
    }

    /// The same, whose source listens on sockets that outlive the process.
    pub fn with_sockets(self, sockets: Sockets) -> Self {
        Self { sockets, ..self }
    }

    /// Where the source's listening sockets come from.
    pub fn sockets(&self) -> &Sockets {
        &self.sockets
    }

    /// Where devices are entered that stay on the line for an answer.
    pub fn callers(&self) -> &Callers {
        &self.callers
    }

    /// The source's name.
    pub fn source(&self) -> &Name {
        &self.inner.source
    }

    /// What the source counts.
    pub fn counters(&self) -> &Arc<SourceCounters> {
        &self.inner.counters
    }

    /// The present moment, by this box's clocks.
    pub fn now(&self) -> Stamp {
        self.inner.spool.now()
    }

    /// The present uptime, milliseconds.
    pub fn uptime_ms(&self) -> u64 {
        self.now().uptime_ms
    }

    /// Counts a message that is known to be stored already by other means than the duplicate window.
    pub fn repeated(&self, bytes: u64) {
        self.inner.count(self.now(), bytes);
        self.inner.counters.repeats.one();
    }

    /// Waits until `bytes` of a message that has wholly arrived may be held in memory.
    pub async fn share(&self, bytes: usize) -> Share {
        Share { _bytes: taken(&self.inner.in_flight.all, bytes.min(IN_FLIGHT_BYTES_MAX)).await, _unfinished: None }
    }

    /// As [`Self::share`], when it can be had at once.
    pub fn try_share(&self, bytes: usize) -> Option<Share> {
        let count = u32::try_from(bytes.min(IN_FLIGHT_BYTES_MAX)).unwrap_or(u32::MAX);
        let taken = Arc::clone(&self.inner.in_flight.all).try_acquire_many_owned(count).ok()?;
        Some(Share { _bytes: taken, _unfinished: None })
    }

    /// Room for a message that comes in several reads and is gathered in memory, up to [`GATHER_BYTES`]. Waits while stalled
    /// senders hold all the room that there is for unfinished messages.
    pub async fn gather_share(&self) -> Share {
        let inner = &self.inner;
        unfinished([&inner.gathered, &inner.in_flight.gathered, &inner.in_flight.all], GATHER_BYTES).await
    }

    /// Room for one body that is streamed into the spool, up to [`STREAM_BYTES`]: take it before the first
    /// [`Incoming::write`], whatever the protocol. The room is small and all sources share it: it must not be kept for a sender
    /// that may say nothing for ever, so the caller sets a time in which a body must go on, and drops message and share when it does not.
    pub async fn stream_share(&self) -> Share {
        let inner = &self.inner;
        unfinished([&inner.streamed, &inner.in_flight.streamed, &inner.in_flight.all], STREAM_BYTES).await
    }

    /// The lane of parts that this source keeps for itself until their message is whole: those that [`Incoming::commit_part`] stored.
    /// One holder at a time.
    pub fn parts(&self) -> Lane {
        self.inner.spool.lane(self.inner.class, &self.inner.source, &Name::assembly())
    }

    /// Begins a message; its time of reception is now.
    pub fn begin(&self) -> Incoming {
        self.begin_at(self.now())
    }

    /// Begins a message whose first byte came at `received`.
    pub fn begin_at(&self, received: Stamp) -> Incoming {
        let inner = &self.inner;
        Incoming {
            intake: self.clone(),
            draft: inner.spool.begin(inner.class, &inner.source),
            received,
            tokens: Vec::new(),
        }
    }
}

impl Intake {
    /// Sends off a message of at most [`FRAGMENT_BYTES`] that has wholly arrived and has no id of its own, and gives its end: Ok means that it
    /// may be acknowledged. The order of the calls is that of the log. `among_others`: see [`Incoming::among_others`].
    pub fn submit(&self, received: Stamp, body: &[u8], about: About, among_others: bool) -> Submission {
        let is_flagged = about.flags != Flags::default();
        self.inner.count(received, body.len() as u64);
        let targets = self.inner.targets.borrow().to_vec();
        let meta = self.inner.meta(received, targets, about);
        let end = self.inner.way.submit(body, meta, among_others);
        Submission { inner: Arc::clone(&self.inner), end, is_flagged }
    }
}

/// The end of a message that was sent off (see [`Intake::submit`]). Dropped, the message is stored all the same and not counted as such.
pub struct Submission {
    inner: Arc<Inner>,
    end: Submitted,
    is_flagged: bool,
}

impl Future for Submission {
    type Output = Result<Committed, CommitError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let outcome = Pin::new(&mut self.end).poll(context);
        if let Poll::Ready(outcome) = &outcome {
            self.inner.tell(outcome, self.is_flagged);
        }
        outcome
    }
}

impl Inner {
    fn meta(&self, received: Stamp, targets: Vec<Name>, about: About) -> Meta {
        Meta {
            source: self.source.clone(),
            protocol: self.protocol.to_owned(),
            content_type: about.content_type,
            control_id: about.control_id,
            targets,
            flags: about.flags,
            received,
            tokens: Vec::new(),
        }
    }

    /// Counts a message of the device that is about to be committed.
    fn count(&self, received: Stamp, length: u64) {
        self.counters.received.one();
        self.counters.received_bytes.add(length);
        self.counters.last_seen_ms.set(i64::try_from(received.uptime_ms).unwrap_or(i64::MAX));
    }

    /// Counts how its commit ended.
    fn tell(&self, outcome: &Result<Committed, CommitError>, is_flagged: bool) {
        match outcome {
            Ok(Committed::Stored(_) | Committed::Differing(_)) => self.counters.stored.one(),
            Ok(Committed::Repeat(_)) => self.counters.repeats.one(),
            Err(_) => self.counters.refused.one(),
        }
        if outcome.as_ref().is_ok_and(|how| is_flagged || matches!(how, Committed::Differing(_))) {
            self.counters.flagged.one();
        }
    }
}

/// What a message may hold in memory, given back when this is dropped. A message takes one share; while it holds it, it waits for
/// no other but one that is larger in kind (to gather, then to stream), so that no two messages can wait for each other.
pub struct Share {
    _bytes: OwnedSemaphorePermit,
    /// Its part of what unfinished messages may hold: the source's own, and that of all sources.
    _unfinished: Option<[OwnedSemaphorePermit; 2]>,
}

impl Share {
    /// The message has wholly arrived: its sender can't keep the room any more, only our own disk can.
    pub fn arrived(self) -> Self {
        Self { _bytes: self._bytes, _unfinished: None }
    }
}

async fn unfinished([own, shared, all]: [&Arc<Semaphore>; 3], bytes: usize) -> Share {
    let unfinished = [taken(own, bytes).await, taken(shared, bytes).await];
    Share { _bytes: taken(all, bytes).await, _unfinished: Some(unfinished) }
}

/// Waits in line for so many permits.
async fn taken(budget: &Arc<Semaphore>, bytes: usize) -> OwnedSemaphorePermit {
    let count = u32::try_from(bytes).unwrap_or(u32::MAX);
    // Unwrap safety: these semaphores live as long as the spool or the source and are never closed.
    #[allow(clippy::unwrap_used)]
    Arc::clone(budget).acquire_many_owned(count).await.unwrap()
}

/// A message that is arriving. Dropped without a commit, it never existed.
pub struct Incoming {
    intake: Intake,
    draft: Draft,
    received: Stamp,
    tokens: Vec<Token>,
}

impl Incoming {
    /// Others of the same sender follow at once: their commits share a sync (see [`Draft::among_others`]).
    pub fn among_others(&mut self) {
        self.draft.among_others();
    }

    /// A part (see [`Self::commit_part`]) that came at `received` and becomes durable with what this commits: all of it or nothing. When
    /// this is a second copy, the part is not stored.
    pub fn also_part(&mut self, content_type: &str, received: Stamp, body: Vec<u8>) {
        let about = About { content_type: content_type.to_owned(), control_id: Vec::new(), flags: Flags::default() };
        let meta = Meta { received, ..self.meta(vec![Name::assembly()], about) };
        self.draft.also(meta, body);
    }

    /// People who know this value can find the message by it. Only a keyed hash of it is kept.
    pub fn find_by(&mut self, identifier: Identifier, value: &[u8]) {
        self.tokens.push(self.intake.inner.spool.token(identifier, value));
    }

    /// Adds bytes; long bodies go to disk in fragments meanwhile. Waits when the disk is slower than the device. Who writes a body
    /// as it arrives holds a [`Intake::stream_share`].
    ///
    /// # Errors
    /// [`CommitError`] when the log is full or has failed; the message is then lost to us and the device must be told.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), CommitError> {
        self.draft.write(bytes).await
    }

    /// Bytes so far.
    pub fn len(&self) -> u64 {
        self.draft.len()
    }

    /// Whether nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes a request durable that this box itself must answer later (a DICOM storage commitment): it waits for `upstream`, whatever the
    /// routes say, and does not count as a message of the device.
    ///
    /// # Errors
    /// [`CommitError`] when the log is full or has failed; nothing is stored then.
    pub async fn commit_for(self, upstream: Name, about: About) -> Result<Committed, CommitError> {
        let meta = self.meta(vec![upstream], about);
        self.draft.commit(meta).await
    }

    /// Makes a word of this box itself durable (a device was unplugged): it goes where the device's messages go, and is no sign of life
    /// of the device.
    ///
    /// # Errors
    /// [`CommitError`] when the log is full or has failed; nothing is stored then.
    pub async fn commit_note(self, about: About) -> Result<Committed, CommitError> {
        let targets = self.intake.inner.targets.borrow().to_vec();
        let meta = self.meta(targets, about);
        self.draft.commit(meta).await
    }

    /// Makes a part of a message durable, which its device is told of before the message is whole. It goes nowhere by itself and does not
    /// count as a message: the source finds it in [`Intake::parts`], also after a restart.
    ///
    /// # Errors
    /// [`CommitError`] when the log is full or has failed; nothing is stored then.
    pub async fn commit_part(self, about: About) -> Result<Committed, CommitError> {
        self.commit_for(Name::assembly(), about).await
    }

    fn meta(&self, targets: Vec<Name>, about: About) -> Meta {
        self.intake.inner.meta(self.received, targets, about)
    }

    /// Makes the message durable. Ok means: on stable storage, encrypted, with its targets; it may be acknowledged.
    ///
    /// # Errors
    /// [`CommitError`] when the log is full or has failed; nothing is stored then.
    pub async fn commit(self, about: About) -> Result<Committed, CommitError> {
        let inner = &self.intake.inner;
        let (length, is_flagged) = (self.draft.len(), about.flags != Flags::default());
        let targets = inner.targets.borrow().to_vec();
        let meta = Meta { tokens: self.tokens, ..inner.meta(self.received, targets, about) };
        inner.count(self.received, length);
        let outcome = self.draft.commit(meta).await;
        inner.tell(&outcome, is_flagged);
        outcome
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::spool::{Disk, Secret, SpoolConfig};

    async fn all_that_it_gets<F: Future<Output = Share>>(share: impl Fn() -> F) -> Vec<Share> {
        let mut shares = Vec::new();
        while let Ok(share) = timeout(Duration::from_millis(20), share()).await {
            shares.push(share);
        }
        shares
    }

    #[tokio::test]
    async fn stalled_senders_of_two_sources_leave_room_for_others_and_for_what_has_arrived() {
        let folder = tempfile::tempdir().unwrap();
        let config: SpoolConfig = toml::from_str("path = '/unused'\nkey = 'unused'").unwrap();
        let spool = Spool::open(Arc::new(Disk::open(folder.path()).unwrap()), Secret::random(), &config).unwrap();
        let (_targets, routed) = watch::channel(Arc::from([]));
        let intake =
            |name: &str| Intake::new(name.parse().unwrap(), "mllp", Class::Clinical, spool.clone(), routed.clone());
        let (one, two) = (intake("one"), intake("two"));
        let mut streams = all_that_it_gets(|| one.stream_share()).await;
        assert!((1..STREAMED_BYTES_MAX / STREAM_BYTES).contains(&streams.len()), "one source took all");
        streams.extend(all_that_it_gets(|| two.stream_share()).await);
        assert_eq!(streams.len(), STREAMED_BYTES_MAX / STREAM_BYTES);
        let mut gathered = all_that_it_gets(|| one.gather_share()).await;
        gathered.extend(all_that_it_gets(|| two.gather_share()).await);
        assert_eq!(gathered.len(), GATHERED_BYTES_MAX / GATHER_BYTES);
        // They may stall for ever: what has arrived does not wait for them.
        let left = IN_FLIGHT_BYTES_MAX - STREAMED_BYTES_MAX - GATHERED_BYTES_MAX;
        assert_eq!(spool.in_flight().all.available_permits(), left);
        drop(timeout(Duration::from_secs(20), two.share(left)).await.unwrap());
        // One that has arrived makes room for the next that arrives, even before it is on disk.
        let arrived = streams.pop().unwrap().arrived();
        let next = timeout(Duration::from_secs(20), two.stream_share()).await.unwrap();
        drop((arrived, next, streams, gathered));
        assert_eq!(spool.in_flight().all.available_permits(), IN_FLIGHT_BYTES_MAX);
    }
}
