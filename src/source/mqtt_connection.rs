//! The loop of one MQTT connection: read, store, acknowledge, in this order and never another.
//!
//! Messages of QoS 1 and 2 are committed together as they come and acknowledged in their order; a client may have as many unacknowledged as it was
//! told. Those of QoS 0 wait in a ring that loses its oldest. A message takes a share of the one budget before it goes to the disk; while there is
//! none, QoS 1 and 2 are not read on. However the connection ends, what came whole before is stored, and so is its will if it broke. Neither
//! topics nor client ids are ever logged: see [`super::mqtt`].

use std::collections::BTreeMap;
use std::future::pending;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep_until, timeout};

use super::intake::{Intake, Share};
use super::mqtt::MqttConfig;
use super::mqtt_clients::{Clients, Place};
use super::mqtt_flights::{Flights, Landing, Waiting};
use super::mqtt_inlet::{Inlet, Need};
use super::mqtt_reading;
use super::mqtt_ring::Ring;
use super::readings::Reading;
use super::seldom::Seldom;
use super::{Stop, mqtt_greeting};
use crate::spool::CommitError;
use crate::system::stream::Stream;
use crate::wire::mqtt_answer::{self as answer, Reason};
use crate::wire::mqtt_packet::{Fault, Packet, Publish, Version};

/// Bytes of a topic that is taken. The standard allows 64 KiB; nobody routes by that.
pub(super) const TOPIC_BYTES_MAX: usize = 1024;
/// Messages of QoS 0 of one connection that are on their way to the disk at once.
const QOS_0_FLIGHTS_MAX: usize = 16;
/// Packet ids of QoS 2 that a client may have recorded and not released.
const UNRELEASED_MAX: usize = 1024;
/// A packet that has begun must end within this time.
const PACKET_TIME_MAX: Duration = Duration::from_secs(30);
/// How long what came whole has to reach the disk once the connection has ended.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(4);
/// How long a client has to take our last words.
const FAREWELL_TIME: Duration = Duration::from_millis(250);
/// Bytes that the buffer of answers keeps.
const ANSWERS_KEPT: usize = 256;

/// What all connections of a source share.
pub(super) struct Endpoint {
    pub clients: Clients,
    pub intake: Intake,
    pub stop: Stop,
    pub packet_bytes_max: usize,
    pub receive_maximum: u16,
    pub connect_time: Duration,
    write_time: Duration,
    /// Bytes in the rings of all connections.
    ringed: Arc<AtomicUsize>,
    pub strangers: Seldom,
    endings: Seldom,
    refusals: Seldom,
    drops: Seldom,
}

impl Endpoint {
    pub(super) fn new(config: &MqttConfig, clients: Clients, intake: Intake, stop: Stop) -> Self {
        let quiet = Seldom::default;
        Self {
            clients,
            intake,
            stop,
            packet_bytes_max: usize::try_from(config.max_packet_size.0).unwrap_or(usize::MAX),
            receive_maximum: config.receive_maximum,
            connect_time: config.connect_timeout.0,
            write_time: config.write_timeout.0,
            ringed: Arc::default(),
            strangers: quiet(),
            endings: quiet(),
            refusals: quiet(),
            drops: quiet(),
        }
    }
}

/// A client that was let in.
pub(super) struct Guest {
    pub place: Place,
    pub version: Version,
    pub keep_alive_s: u16,
    /// The largest packet that it takes.
    pub packet_bytes_max: usize,
    pub will: Option<Box<Reading>>,
    /// What it sent behind its CONNECT.
    pub inlet: Inlet,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Closing {
    #[error("it said goodbye")]
    Goodbye,
    #[error("it said goodbye and wants its will published")]
    GoodbyeWithWill,
    #[error("the peer closed it without a goodbye")]
    Peer,
    #[error("the source is stopping")]
    Stopped,
    #[error("another connection came with the same client id: give each device its own")]
    TakenOver,
    #[error("nothing came within one and a half times the keep-alive")]
    Silent,
    #[error("a packet did not end in time")]
    Slow,
    #[error("the client did not read its acknowledgements within the write timeout")]
    Deaf,
    #[error("{0}")]
    Fault(#[from] Fault),
    #[error("it published where it may not, or to a topic of more than 1024 bytes: see its publish list")]
    Refused(Reason),
    #[error(
        "more messages are unacknowledged than the receive maximum, or more of QoS 2 unreleased than anybody needs"
    )]
    TooMany,
    #[error("its message could not be stored and is not acknowledged: {0}")]
    NotStored(CommitError),
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
}

impl Closing {
    /// The reason that a client of MQTT 5 is told, if there is anybody to tell.
    fn reason(&self) -> Option<Reason> {
        Some(match self {
            Self::Goodbye | Self::GoodbyeWithWill | Self::Peer | Self::Deaf | Self::Broken(_) => return None,
            Self::Stopped => Reason::ShuttingDown,
            Self::TakenOver => Reason::TakenOver,
            Self::Silent | Self::Slow => Reason::KeepAlive,
            Self::Fault(fault) => Reason::Fault(*fault),
            Self::Refused(reason) => *reason,
            Self::TooMany => Reason::ReceiveMaximum,
            Self::NotStored(CommitError::Full) => Reason::Quota,
            Self::NotStored(CommitError::Failed) => Reason::Unspecified,
        })
    }

    /// Whether the will is in force (3.1.2.5). A source that stops says so itself.
    fn leaves_will(&self) -> bool {
        !matches!(self, Self::Goodbye | Self::Stopped)
    }

    fn is_ordinary(&self) -> bool {
        matches!(self, Self::Goodbye | Self::GoodbyeWithWill | Self::Peer | Self::Stopped)
    }
}

/// Serves a connection until it ends or the source stops.
pub(super) async fn serve(mut stream: Stream, endpoint: Arc<Endpoint>) {
    // Boxed: what it takes to let somebody in is not kept for as long as he stays.
    let Some(guest) = Box::pin(mqtt_greeting::greet(&mut stream, &endpoint)).await else { return };
    let mut connection = Connection {
        ring: Ring::new(Arc::clone(&endpoint.ringed)),
        stream,
        endpoint,
        place: guest.place,
        version: guest.version,
        keep_alive: (guest.keep_alive_s > 0).then(|| Duration::from_secs(guest.keep_alive_s.into()) * 3 / 2),
        packet_bytes_max: guest.packet_bytes_max,
        will: guest.will,
        inlet: guest.inlet,
        heard: Instant::now(),
        unfinished_since: None,
        out: Vec::new(),
        flights: Flights::default(),
        held: None,
        wait: None,
        unreleased: BTreeMap::new(),
    };
    let closing = connection.converse().await;
    Box::pin(connection.close(closing)).await;
}

struct Connection {
    stream: Stream,
    endpoint: Arc<Endpoint>,
    place: Place,
    version: Version,
    /// One and a half times what the client asked for.
    keep_alive: Option<Duration>,
    packet_bytes_max: usize,
    will: Option<Box<Reading>>,
    inlet: Inlet,
    /// When the last bytes came.
    heard: Instant,
    unfinished_since: Option<Instant>,
    out: Vec<u8>,
    flights: Flights,
    ring: Ring,
    /// A message that waits for its share; nothing is read meanwhile.
    held: Option<Held>,
    wait: Option<Wait>,
    /// Packet ids of QoS 2 that were not released, and whether their PUBREC was sent.
    unreleased: BTreeMap<u16, bool>,
}

struct Held {
    waiting: Waiting,
    reading: Reading,
    bytes: usize,
}

/// A share of the budget that could not be had at once.
struct Wait {
    what: Job,
    share: Pin<Box<dyn Future<Output = Share> + Send>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Job {
    /// To read a long packet.
    Read,
    /// To store the message that is held.
    Held,
    /// To store the front of the ring.
    Ring,
}

impl Connection {
    async fn converse(&mut self) -> Closing {
        let mut landed = Vec::new();
        let mut clock = pin!(sleep_until(self.deadline()));
        loop {
            if let Err(closing) = self.digest() {
                return closing;
            }
            if let Err(closing) = self.write().await {
                return closing;
            }
            let deadline = self.deadline();
            if deadline < clock.deadline() {
                clock.as_mut().reset(deadline);
            }
            let may_read = self.may_read();
            let Self { stream, endpoint, place, inlet, flights, wait, .. } = self;
            let outcome = tokio::select! {
                biased;
                () = endpoint.stop.cancelled() => return Closing::Stopped,
                () = place.taken_over.cancelled() => return Closing::TakenOver,
                () = flights.land(&mut landed) => self.acknowledge(&mut landed),
                share = granted(wait) => {
                    self.granted(share);
                    Ok(())
                }
                read = inlet.read(stream), if may_read => self.arrived(read),
                () = clock.as_mut() => {
                    let outcome = self.late();
                    clock.as_mut().reset(self.deadline());
                    outcome
                }
            };
            if let Err(closing) = outcome {
                return closing;
            }
        }
    }

    fn deadline(&self) -> Instant {
        let far = || Instant::now() + Duration::from_secs(86_400);
        let silent = self.keep_alive.map(|span| self.heard + span);
        let slow = self.unfinished_since.map(|since| since + PACKET_TIME_MAX);
        [silent, slow].into_iter().flatten().min().unwrap_or_else(far)
    }

    fn late(&mut self) -> Result<(), Closing> {
        let now = Instant::now();
        if self.unfinished_since.is_some_and(|since| now >= since + PACKET_TIME_MAX) {
            return Err(Closing::Slow);
        }
        if !self.may_read() {
            // Time in which we did not read is not the client's.
            self.heard = now;
        }
        let silent = self.keep_alive.is_some_and(|span| now >= self.heard + span);
        if silent { Err(Closing::Silent) } else { Ok(()) }
    }

    /// Whether there is room for what comes next.
    fn may_read(&self) -> bool {
        let waits = self.wait.as_ref().is_some_and(|wait| wait.what == Job::Read);
        !waits && self.held.is_none() && !self.is_at_most()
    }

    /// A client of 3.1.1 was told no receive maximum: it is read no further instead.
    fn is_at_most(&self) -> bool {
        self.version == Version::V311 && self.flights.waited_for() >= usize::from(self.endpoint.receive_maximum)
    }

    fn arrived(&mut self, read: io::Result<usize>) -> Result<(), Closing> {
        match read {
            Ok(0) => Err(Closing::Peer),
            Ok(_) => {
                self.heard = Instant::now();
                Ok(())
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
                Err(Closing::Peer)
            }
            Err(error) => Err(Closing::Broken(error)),
        }
    }

    /// Takes the packets that are whole, and sends off what can be sent.
    fn digest(&mut self) -> Result<(), Closing> {
        let mut inlet = std::mem::take(&mut self.inlet);
        let outcome = self.take(&mut inlet);
        let need = if outcome.is_ok() { inlet.settle(self.endpoint.packet_bytes_max) } else { Need::Nothing };
        self.inlet = inlet;
        outcome?;
        let since = self.unfinished_since.unwrap_or_else(Instant::now);
        self.unfinished_since = (self.inlet.is_unfinished() && self.may_read()).then_some(since);
        let intake = self.endpoint.intake.clone();
        if self.wait.is_none() && self.held.is_none() {
            match need {
                Need::Nothing => {}
                Need::Gathered => self.wait_for(Job::Read, async move { intake.gather_share().await }),
                Need::Streamed => self.wait_for(Job::Read, async move { intake.stream_share().await }),
            }
        }
        Ok(())
    }

    fn wait_for(&mut self, what: Job, share: impl Future<Output = Share> + Send + 'static) {
        self.wait = Some(Wait { what, share: Box::pin(share) });
    }

    fn take(&mut self, inlet: &mut Inlet) -> Result<(), Closing> {
        self.advance(false);
        loop {
            if self.held.is_some() || self.is_at_most() {
                return Ok(());
            }
            let Some(header) = inlet.whole(self.endpoint.packet_bytes_max)? else { return Ok(()) };
            let packet = Packet::read(header, inlet.body(header), self.version)?;
            let outcome = self.handle(packet);
            inlet.consume(header);
            outcome?;
            self.advance(inlet.first().is_some());
        }
    }

    fn handle(&mut self, packet: Packet<'_>) -> Result<(), Closing> {
        let version = self.version;
        match packet {
            Packet::Publish(publish) => self.published(&publish)?,
            Packet::Release(id) => match self.unreleased.get(&id) {
                Some(false) => return Err(Fault::Protocol("a PUBREL before its PUBREC").into()),
                // One that is not known was recorded on a connection before this one, or released already.
                _ => {
                    self.unreleased.remove(&id);
                    answer::pubcomp(&mut self.out, version, id);
                }
            },
            Packet::Subscribe(_, filters) if filters + 16 > self.packet_bytes_max => {
                return Err(Fault::Protocol("more filters than it takes answers").into());
            }
            Packet::Subscribe(id, filters) => answer::suback_refused(&mut self.out, version, id, filters),
            Packet::Unsubscribe(id, filters) => answer::unsuback(&mut self.out, version, id, filters),
            Packet::Ping => answer::pingresp(&mut self.out),
            Packet::Disconnect(with_will) => {
                return Err(if with_will { Closing::GoodbyeWithWill } else { Closing::Goodbye });
            }
        }
        Ok(())
    }

    fn published(&mut self, publish: &Publish<'_>) -> Result<(), Closing> {
        let waiting = match publish.qos {
            0 => Waiting::Nobody,
            1 => Waiting::Puback(publish.id),
            _ => Waiting::Pubrec(publish.id),
        };
        if waiting != Waiting::Nobody && self.flights.waited_for() >= usize::from(self.endpoint.receive_maximum) {
            return Err(Closing::TooMany);
        }
        let topic = publish.message.topic;
        if topic.len() > TOPIC_BYTES_MAX {
            return self.refuse(waiting, Reason::BadTopic);
        }
        if !self.place.client().may_publish(topic) {
            return self.refuse(waiting, Reason::NotAuthorised);
        }
        if publish.qos == 2 && !self.is_new(publish.id)? {
            return Ok(());
        }
        let reading = mqtt_reading::of_publish(publish, self.place.id(), self.endpoint.intake.now());
        let bytes = mqtt_reading::bytes_of(&publish.message);
        match waiting {
            Waiting::Nobody => self.ring(reading, bytes),
            _ => self.held = Some(Held { waiting, reading, bytes }),
        }
        Ok(())
    }

    /// Whether a message of QoS 2 is the first with its packet id. A second one before the PUBREL is the same again (4.3.3): its PUBREC is
    /// said again if it was said.
    fn is_new(&mut self, id: u16) -> Result<bool, Closing> {
        match self.unreleased.get(&id) {
            None if self.unreleased.len() >= UNRELEASED_MAX => Err(Closing::TooMany),
            None => {
                self.unreleased.insert(id, false);
                Ok(true)
            }
            Some(recorded) => {
                if *recorded {
                    answer::pubrec(&mut self.out, self.version, id, Reason::Success);
                }
                self.endpoint.intake.counters().repeats.one();
                Ok(false)
            }
        }
    }

    /// 3.1.1 has no word for it, and neither has QoS 0: then the connection ends.
    fn refuse(&mut self, waiting: Waiting, reason: Reason) -> Result<(), Closing> {
        let endpoint = &self.endpoint;
        endpoint.intake.counters().rejected.one();
        if self.version == Version::V311 || waiting == Waiting::Nobody {
            return Err(Closing::Refused(reason));
        }
        if let Some(unsaid) = endpoint.refusals.speak() {
            let (source, client) = (endpoint.intake.source(), self.place.client().name());
            tracing::warn!(%source, client, unsaid, "{}", Closing::Refused(reason));
        }
        self.flights.refuse(waiting, reason);
        Ok(())
    }

    fn ring(&mut self, reading: Reading, bytes: usize) {
        let dropped = self.ring.push(reading, bytes);
        if dropped > 0 {
            let endpoint = &self.endpoint;
            endpoint.intake.counters().refused.add(dropped);
            self.place.client().readings().lose(dropped);
            if let Some(unsaid) = endpoint.drops.speak() {
                let (source, client) = (endpoint.intake.source(), self.place.client().name());
                tracing::warn!(%source, client, dropped, unsaid, "QoS 0 came faster than the disk takes it: the oldest were dropped");
            }
        }
    }

    /// Sends off what waits, as far as there is room. `more` is known to follow at once.
    fn advance(&mut self, more: bool) {
        while self.wait.is_none() {
            let unwaited = self.flights.len() - self.flights.waited_for();
            let (what, bytes) = match (&self.held, self.ring.front_bytes()) {
                (Some(held), _) => (Job::Held, held.bytes),
                (None, Some(bytes)) if unwaited < QOS_0_FLIGHTS_MAX => (Job::Ring, bytes),
                _ => return,
            };
            let intake = self.endpoint.intake.clone();
            match intake.try_share(bytes) {
                Some(share) => self.put(what, share, more),
                None => self.wait_for(what, async move { intake.share(bytes).await }),
            }
        }
    }

    fn put(&mut self, what: Job, share: Share, more: bool) {
        let next = match what {
            Job::Held => self.held.take().map(|held| (held.waiting, held.reading)),
            _ => self.ring.pop().map(|reading| (Waiting::Nobody, reading)),
        };
        let Some((waiting, reading)) = next else { return };
        let among_others = more || self.flights.len() > 0 || self.ring.len() > 0;
        let commit = self.place.client().readings().put(reading, share, among_others);
        self.flights.push(waiting, Box::pin(commit));
    }

    fn granted(&mut self, share: Share) {
        match self.wait.take().map(|wait| wait.what) {
            Some(Job::Read) => self.inlet.grant(share),
            Some(what) => self.put(what, share, false),
            None => {}
        }
    }

    fn acknowledge(&mut self, landed: &mut Vec<(Waiting, Landing)>) -> Result<(), Closing> {
        for (waiting, landing) in landed.drain(..) {
            let reason = match landing {
                Landing::Stored => Reason::Success,
                Landing::Refused(reason) => reason,
                Landing::Failed(error) if waiting != Waiting::Nobody => return Err(Closing::NotStored(error)),
                // The next record of the stream tells of it.
                Landing::Failed(_) => continue,
            };
            match waiting {
                Waiting::Nobody => {}
                Waiting::Puback(id) => answer::puback(&mut self.out, self.version, id, reason),
                Waiting::Pubrec(id) => {
                    self.unreleased.insert(id, true);
                    answer::pubrec(&mut self.out, self.version, id, reason);
                }
            }
        }
        Ok(())
    }

    async fn write(&mut self) -> Result<(), Closing> {
        if self.out.is_empty() {
            return Ok(());
        }
        let written = timeout(self.endpoint.write_time, self.stream.write_all(&self.out)).await;
        self.out.clear();
        self.out.shrink_to(ANSWERS_KEPT);
        Ok(written.map_err(|_| Closing::Deaf)??)
    }

    /// Stores what came whole, and the will if it is in force; then says goodbye.
    async fn close(mut self, closing: Closing) {
        let speaks = matches!(closing, Closing::Stopped);
        if timeout(DRAIN_TIME_MAX, self.drain(speaks)).await.is_err() {
            tracing::warn!(source = %self.endpoint.intake.source(), "the disk did not take all that came before the end of a connection");
        }
        if let (true, Some(will)) = (closing.leaves_will(), self.will.take()) {
            let share = self.endpoint.intake.share(mqtt_reading::WILL_BYTES).await;
            let commit = self.place.client().readings().put(*will, share, false);
            // One that fails is told of by the next record of the stream.
            timeout(DRAIN_TIME_MAX, commit).await.ok();
        }
        if let Some(reason) = closing.reason() {
            answer::disconnect(&mut self.out, self.version, reason);
        }
        if !matches!(closing, Closing::Broken(_) | Closing::Deaf) {
            let farewell = async {
                self.stream.write_all(&self.out).await?;
                self.stream.shutdown().await
            };
            timeout(FAREWELL_TIME, farewell).await.map(Result::ok).ok();
        }
        self.tell(&closing);
    }

    fn tell(&self, closing: &Closing) {
        let (source, peer) = (self.endpoint.intake.source(), self.stream.peer());
        let client = self.place.client().name();
        if closing.is_ordinary() {
            tracing::debug!(%source, %peer, client, "the connection ended: {closing}");
        } else if let Some(unsaid) = self.endpoint.endings.speak() {
            tracing::warn!(%source, %peer, client, unsaid, "the connection ended: {closing}");
        }
    }

    async fn drain(&mut self, speaks: bool) {
        let mut landed = Vec::new();
        loop {
            self.advance(true);
            if self.flights.len() == 0 && self.wait.is_none() {
                return;
            }
            if self.wait.as_ref().is_some_and(|wait| wait.what == Job::Read) {
                self.wait = None;
                continue;
            }
            let Self { flights, wait, .. } = self;
            tokio::select! {
                () = flights.land(&mut landed) => {
                    if !speaks || self.acknowledge(&mut landed).is_err() {
                        landed.clear();
                    }
                }
                share = granted(wait) => self.granted(share),
            }
        }
    }
}

/// The share that is waited for; never, when none is.
async fn granted(wait: &mut Option<Wait>) -> Share {
    match wait {
        Some(wait) => wait.share.as_mut().await,
        None => pending().await,
    }
}
