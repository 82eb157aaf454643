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
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep_until, timeout};

use super::intake::Share;
use super::mqtt_clients::Place;
use super::mqtt_closing::Closing;
use super::mqtt_endpoint::{Endpoint, TOPIC_BYTES_MAX};
use super::mqtt_flights::{Flights, Landing, Waiting};
use super::mqtt_inlet::{Inlet, Need};
use super::mqtt_ring::Ring;
use super::readings::Reading;
use super::{mqtt_greeting, mqtt_reading};
use crate::envelope::Stamp;
use crate::system::stream::Stream;
use crate::wire::mqtt_answer::{self as answer, Reason};
use crate::wire::mqtt_packet::{Fault, Packet, Publish, Version};

/// Messages of QoS 0 of one connection that are on their way to the disk at once.
const QOS_0_FLIGHTS_MAX: usize = 16;
/// Packet ids of QoS 2 that a client may have recorded and not released.
const UNRELEASED_MAX: usize = 1024;
/// How long what came whole has to reach the disk once the connection has ended.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(4);
/// How long a client has to take our last words.
const FAREWELL_TIME: Duration = Duration::from_millis(250);
/// Bytes that the buffer of answers keeps.
const ANSWERS_KEPT: usize = 256;

/// Serves a connection until it ends or the source stops.
pub(super) async fn serve(mut stream: Stream, endpoint: Arc<Endpoint>) {
    // Boxed: what it takes to let somebody in is not kept for as long as he stays.
    let Some(guest) = Box::pin(mqtt_greeting::greet(&mut stream, &endpoint)).await else { return };
    let mut connection = Connection {
        ring: Ring::new(Arc::clone(&endpoint.ringed)),
        came: endpoint.intake.now(),
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
    /// The same moment by the box's clocks: when the messages in them came.
    came: Stamp,
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
        // Made once and not in each turn: to wait for one takes a lock that all connections of the source share.
        let (stop, taken_over) = (self.endpoint.stop.clone(), self.place.taken_over.clone());
        let (mut stopped, mut replaced) = (pin!(stop.cancelled()), pin!(taken_over.cancelled()));
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
            let Self { stream, inlet, flights, wait, .. } = self;
            let outcome = tokio::select! {
                biased;
                () = stopped.as_mut() => return Closing::Stopped,
                () = replaced.as_mut() => return Closing::TakenOver,
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
        let slow = self.unfinished_since.map(|since| since + self.endpoint.packet_time);
        [silent, slow].into_iter().flatten().min().unwrap_or_else(far)
    }

    fn late(&mut self) -> Result<(), Closing> {
        let now = Instant::now();
        if self.unfinished_since.is_some_and(|since| now >= since + self.endpoint.packet_time) {
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
                // Asking the system whether its clock is right takes longer than to read a packet: once for all of a read.
                self.came = self.endpoint.intake.now();
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
            // What follows it has begun now: a busy client has half a packet at the end of nearly every read.
            self.unfinished_since = None;
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
        let profile = self.endpoint.profile(topic);
        let reading = mqtt_reading::of_publish(publish, self.place.id(), self.came, profile);
        let bytes = mqtt_reading::bytes_of(&publish.message, &reading);
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
        // In two steps: what is sent off may be written at once, which must not hold up other connections of the client.
        let numbered = self.place.client().readings().number(reading);
        self.flights.push(waiting, numbered.send(share, among_others));
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
            // Of QoS 0 nobody says again what waits still; commits that nobody waits for count themselves.
            let left = u64::try_from(self.ring.len()).unwrap_or(u64::MAX);
            self.endpoint.intake.counters().refused.add(left);
            self.place.client().readings().lose(left);
        }
        if let (true, Some(will)) = (closing.leaves_will(), self.will.take()) {
            let share = self.endpoint.intake.share(mqtt_reading::WILL_BYTES).await;
            let numbered = self.place.client().readings().number(*will);
            let commit = numbered.send(share, false);
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
