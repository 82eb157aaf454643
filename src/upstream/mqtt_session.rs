//! What is on its way over one MQTT connection: publishes without PUBACK, messages without receipt, bytes not yet written.
//!
//! Publishing encodes into the machine's outlet under a lock and wakes the writer, which writes all that has gathered
//! meanwhile at once; the reader completes deliveries as PUBACKs and receipts come. Two semaphores bound what is on its
//! way: publishes by the broker's receive maximum, bytes by [`OUTLET_BYTES_MAX`], so that memory does not grow with the size of a
//! message. When the connection ends, for whatever reason, every delivery ends with it: the spool is the only truth.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mqtt_protocol_core::mqtt::connection::role::Client;
use mqtt_protocol_core::mqtt::packet::v5_0::{GenericPuback, GenericPublish};
use mqtt_protocol_core::mqtt::packet::{Packet, Qos};
use tokio::io::{AsyncReadExt, ReadHalf, WriteHalf};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::SendError;
use super::mqtt_flights::{Flights, Reply};
use super::mqtt_link::{
    Duplex, Link, READ_BYTES, cant_say, closed_by_broker, goodbye, goodbye_fault, lost, ping, write,
};
use crate::envelope::MessageId;
use crate::wire::mqtt::{Fault, Machine};
use crate::wire::mqtt_label::read_receipts;

/// Bytes that may wait to be written.
pub const OUTLET_BYTES_MAX: usize = 1 << 20;
/// How long a broker may acknowledge nothing while publishes wait for it.
pub const PUBACK_WAIT: Duration = Duration::from_secs(60);
/// How long a goodbye may take.
const GOODBYE_WAIT: Duration = Duration::from_secs(2);
/// How often time limits are looked at.
const TICK: Duration = Duration::from_millis(500);

/// One connection and what is on its way over it. Dropping it cuts the connection.
pub struct Session {
    shared: Arc<Shared>,
    _stop: DropGuard,
}

/// Limits that hold for the life of a session.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Publishes without PUBACK.
    pub in_flight: u16,
    /// See [`super::mqtt_link::Hello`].
    pub keep_alive: Duration,
    /// How long a collector's receipt may take after the PUBACK; `None`: the PUBACK is the receipt.
    pub receipt_wait: Option<Duration>,
}

struct Shared {
    state: Mutex<State>,
    limits: Limits,
    wake: Notify,
    slots: Semaphore,
    room: Semaphore,
    ended: watch::Sender<Option<String>>,
}

struct State {
    machine: Machine<Client>,
    /// Bytes of the outlet that `room` was charged for.
    charged: usize,
    /// The goodbye is in the outlet: once it is written, the session ends.
    closing: bool,
    flights: Flights,
    heard: Instant,
    pinged: Instant,
}

/// A message that is being published; when dropped before its last publish, it is forgotten.
pub struct Publication<'a> {
    session: &'a Session,
    key: u64,
    left: u64,
}

impl Session {
    /// Takes the link apart: from now on two tasks own its stream, until the session is dropped or the connection ends.
    pub fn start(link: Link, limits: Limits) -> Self {
        let now = Instant::now();
        let state = State {
            machine: link.machine,
            charged: 0,
            closing: false,
            flights: Flights::new(limits.receipt_wait),
            heard: now,
            pinged: now,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            limits,
            wake: Notify::new(),
            slots: Semaphore::new(usize::from(limits.in_flight)),
            room: Semaphore::new(OUTLET_BYTES_MAX),
            ended: watch::Sender::new(None),
        });
        let stop = CancellationToken::new();
        let (reader, writer) = tokio::io::split(link.stream);
        let (read, write) = (read_loop(Arc::clone(&shared), reader), write_loop(Arc::clone(&shared), writer));
        for task in
            [stop.clone().run_until_cancelled_owned(boxed(read)), stop.clone().run_until_cancelled_owned(boxed(write))]
        {
            drop(tokio::spawn(task));
        }
        Self { shared, _stop: stop.drop_guard() }
    }

    /// Begins a message that goes out in `publishes` packets; `reply` is answered when the last of them is acknowledged
    /// (and the collector's receipt came), or when it can't be any more.
    ///
    /// # Errors
    /// [`SendError::Disconnected`].
    pub fn begin(&self, id: MessageId, publishes: u64, reply: Reply) -> Result<Publication<'_>, SendError> {
        let mut state = self.shared.lock();
        self.shared.alive()?;
        let key = state.flights.begin(id, publishes, reply);
        Ok(Publication { session: self, key, left: publishes })
    }

    /// Sends a packet that needs no acknowledgement.
    pub fn say(&self, packet: impl Into<Packet>) {
        let said = self.shared.lock().machine.send(packet);
        match said {
            Ok(()) => self.shared.wake.notify_one(),
            Err(fault) => self.shared.end(&fault),
        }
    }

    /// Completes with the cause when the connection is gone.
    pub async fn closed(&self) -> String {
        let mut ended = self.shared.ended.subscribe();
        match ended.wait_for(Option::is_some).await {
            Ok(cause) => cause.clone().unwrap_or_default(),
            Err(_) => "the connection is closed".into(),
        }
    }

    /// Says goodbye, so that no last will is sent, and closes.
    pub async fn close(self) {
        if let Ok(goodbye) = goodbye() {
            self.say(goodbye);
            self.shared.lock().closing = true;
            self.shared.wake.notify_one();
            drop(timeout(GOODBYE_WAIT, self.closed()).await);
        }
    }
}

impl Publication<'_> {
    /// Publishes the next packet of the message, once the broker and the outlet have room; `digest` with the last one.
    /// False when the message's fate is decided already (an earlier part was refused): the rest need not be sent.
    ///
    /// # Errors
    /// [`SendError`]; the message is forgotten then.
    pub async fn publish(
        &mut self,
        packet: impl FnOnce(u16) -> Result<GenericPublish<u16>, SendError>,
        bytes: usize,
        digest: Option<[u8; 32]>,
    ) -> Result<bool, SendError> {
        let shared = &self.session.shared;
        let room = u32::try_from(bytes.min(OUTLET_BYTES_MAX)).unwrap_or(u32::MAX);
        let gone = |_| shared.disconnected();
        let slot = shared.slots.acquire().await.map_err(gone)?;
        let charge = shared.room.acquire_many(room).await.map_err(gone)?;
        let mut guard = shared.lock();
        let state = &mut *guard;
        shared.alive()?;
        if !state.flights.is_open(self.key, digest) {
            return Ok(false);
        }
        let sent = state.machine.packet_id().map_err(broken).and_then(|id| {
            let packet = packet(id)?;
            state.machine.send(packet).map(|()| id).map_err(broken)
        })?;
        state.flights.published(sent, self.key);
        state.charged += charge.num_permits();
        self.left = self.left.saturating_sub(1);
        drop(guard);
        slot.forget();
        charge.forget();
        shared.wake.notify_one();
        Ok(true)
    }
}

impl Drop for Publication<'_> {
    fn drop(&mut self) {
        if self.left > 0 {
            self.session.shared.lock().flights.forget(self.key);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn alive(&self) -> Result<(), SendError> {
        match self.ended.borrow().is_some() {
            true => Err(self.disconnected()),
            false => Ok(()),
        }
    }

    fn disconnected(&self) -> SendError {
        let cause = self.ended.borrow().clone();
        SendError::Disconnected { cause: cause.unwrap_or_else(|| "the connection is closed".into()) }
    }

    /// Ends the session: every delivery with it. The first cause counts.
    fn end(&self, fault: &Fault) {
        let mut state = self.lock();
        self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            ended.get_or_insert_with(|| fault.0.clone());
            first
        });
        self.slots.close();
        self.room.close();
        state.flights.end(&self.disconnected());
        // What the machine has to say about it (DISCONNECT with the reason) is still written.
        self.wake.notify_one();
    }

    fn receive(&self, bytes: &[u8], packets: &mut Vec<Packet>) -> Result<(), Fault> {
        let mut guard = self.lock();
        let state = &mut *guard;
        state.heard = Instant::now();
        let received = state.machine.receive(bytes, packets);
        let (mut freed, mut handled) = (0, Ok(()));
        for packet in packets.drain(..) {
            match packet {
                Packet::V5_0Puback(puback) => freed += usize::from(state.flights.note_puback(&puback)),
                Packet::V5_0Publish(publish) => handled = handled.and_then(|()| note_receipts(state, &publish)),
                Packet::V5_0Disconnect(goodbye) => handled = Err(goodbye_fault(&goodbye)),
                _ => {}
            }
        }
        let waiting = state.machine.waiting() > 0;
        drop(guard);
        self.slots.add_permits(freed);
        if waiting {
            self.wake.notify_one();
        }
        received.and(handled)
    }

    /// Looks at the time limits: keep-alive, a broker that acknowledges nothing, receipts that do not come.
    fn tick(&self) -> Result<(), Fault> {
        let now = Instant::now();
        let mut state = self.lock();
        let (silent, keep_alive) = (now - state.heard, self.limits.keep_alive);
        if silent > keep_alive + keep_alive / 2 {
            return Err(Fault(format!("the broker has been silent for {} s", silent.as_secs())));
        }
        if state.flights.stalled() > PUBACK_WAIT {
            return Err(Fault(format!("the broker acknowledged nothing for {} s", PUBACK_WAIT.as_secs())));
        }
        // A client must be heard within the keep-alive, whatever it receives (MQTT 5.0, 3.1.2.10).
        if now - state.pinged >= keep_alive / 2 {
            state.pinged = now;
            state.machine.send(ping()?)?;
            self.wake.notify_one();
        }
        state.flights.expire();
        Ok(())
    }
}

async fn read_loop(shared: Arc<Shared>, mut stream: ReadHalf<Box<dyn Duplex>>) {
    let (mut buffer, mut packets, mut ticked) = (vec![0; READ_BYTES], Vec::new(), Instant::now());
    let fault = loop {
        let step = match timeout(TICK, stream.read(&mut buffer)).await {
            Err(_) => Ok(()),
            Ok(Err(error)) => Err(lost(&error)),
            Ok(Ok(count)) => match buffer.get(..count) {
                None | Some([]) => Err(closed_by_broker()),
                Some(bytes) => shared.receive(bytes, &mut packets),
            },
        };
        let step = step.and_then(|()| {
            if ticked.elapsed() < TICK {
                return Ok(());
            }
            ticked = Instant::now();
            shared.tick()
        });
        if let Err(fault) = step {
            break fault;
        }
    };
    shared.end(&fault);
}

async fn write_loop(shared: Arc<Shared>, mut stream: WriteHalf<Box<dyn Duplex>>) {
    let mut bytes = Vec::new();
    loop {
        shared.wake.notified().await;
        let (charged, closing) = {
            let mut state = shared.lock();
            state.machine.take(&mut bytes);
            (std::mem::take(&mut state.charged), state.closing)
        };
        if let Err(fault) = write(&mut stream, &bytes).await {
            shared.end(&fault);
            return;
        }
        if closing {
            shared.end(&Fault("we said goodbye".into()));
            return;
        }
        shared.room.add_permits(charged);
    }
}

fn note_receipts(state: &mut State, publish: &GenericPublish<u16>) -> Result<(), Fault> {
    for receipt in read_receipts(publish.payload().as_slice()) {
        let sha256 = data_encoding::HEXLOWER.decode(receipt.sha256.as_bytes());
        if let (Ok(id), Ok(sha256)) = (receipt.id.parse(), sha256) {
            state.flights.note_receipt(id, &sha256);
        }
    }
    match (publish.qos(), publish.packet_id()) {
        (Qos::AtLeastOnce, Some(id)) => {
            let puback = GenericPuback::builder().packet_id(id).build();
            state.machine.send(puback.map_err(cant_say)?)
        }
        _ => Ok(()),
    }
}

fn broken(fault: Fault) -> SendError {
    SendError::Disconnected { cause: fault.0 }
}

fn boxed(task: impl Future<Output = ()> + Send + 'static) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(task)
}

#[cfg(test)]
mod tests {
    use mqtt_protocol_core::mqtt::connection::role::Server;
    use mqtt_protocol_core::mqtt::packet::v5_0::{Connack, Pingresp};
    use mqtt_protocol_core::mqtt::result_code::ConnectReasonCode;
    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
    use tokio::sync::oneshot;

    use super::super::mqtt_link::Hello;
    use super::*;

    const KEEP_ALIVE: Duration = Duration::from_secs(30);
    const ID: MessageId = MessageId([7; 16]);

    /// A broker's end of the connection, driven by the test.
    struct Broker {
        machine: Machine<Server>,
        stream: DuplexStream,
    }

    impl Broker {
        /// Reads what came, answers PINGREQ if `pongs`, and returns the ids of publishes; `None` at the end.
        async fn hear(&mut self, pongs: bool) -> Option<Vec<u16>> {
            let mut buffer = vec![0; 4096];
            let count = self.stream.read(&mut buffer).await.unwrap();
            let (mut packets, mut ids) = (Vec::new(), Vec::new());
            self.machine.receive(&buffer[..count], &mut packets).unwrap();
            for packet in packets {
                match packet {
                    Packet::V5_0Connect(_) => {
                        let connack = Connack::builder().session_present(false).reason_code(ConnectReasonCode::Success);
                        self.say(connack.build().unwrap()).await;
                    }
                    Packet::V5_0Pingreq(_) if pongs => self.say(Pingresp::builder().build().unwrap()).await,
                    Packet::V5_0Publish(publish) => ids.extend(publish.packet_id()),
                    _ => {}
                }
            }
            (count > 0).then_some(ids)
        }

        async fn acknowledge(&mut self, id: u16) {
            self.say(GenericPuback::<u16>::builder().packet_id(id).build().unwrap()).await;
        }

        async fn say(&mut self, packet: impl Into<Packet>) {
            let mut bytes = Vec::new();
            self.machine.send(packet).unwrap();
            self.machine.take(&mut bytes);
            self.stream.write_all(&bytes).await.unwrap();
        }
    }

    async fn pair() -> (Session, Broker) {
        let (ours, theirs) = duplex(2048);
        let mut broker = Broker { machine: Machine::new(1 << 20, 16), stream: theirs };
        let hello = Hello {
            client_id: "box".into(),
            username: None,
            password: None,
            keep_alive: KEEP_ALIVE,
            session_expiry_s: 0,
            will: None,
            packet_bytes_max: 1 << 16,
            receive_maximum: 4,
        };
        let (opened, _) = tokio::join!(Link::open(Box::new(ours), hello), broker.hear(true));
        let limits = Limits { in_flight: 4, keep_alive: KEEP_ALIVE, receipt_wait: None };
        (Session::start(opened.unwrap().0, limits), broker)
    }

    fn packet(id: u16) -> Result<GenericPublish<u16>, SendError> {
        let publish = GenericPublish::builder().topic_name("t").unwrap().qos(Qos::AtLeastOnce).packet_id(id);
        Ok(publish.payload(vec![0; 1000]).build().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_broker_that_falls_silent_is_given_up_after_one_and_a_half_keep_alives() {
        let (session, broker) = pair().await;
        let began = Instant::now();
        let cause = session.closed().await;
        assert!(cause.contains("silent"), "{cause}");
        assert!(began.elapsed() >= KEEP_ALIVE * 3 / 2 && began.elapsed() < KEEP_ALIVE * 2);
        drop(broker);
    }

    #[tokio::test(start_paused = true)]
    async fn a_broker_that_answers_pings_but_acknowledges_nothing_is_given_up() {
        let (session, mut broker) = pair().await;
        let answers = tokio::spawn(async move { while broker.hear(true).await.is_some() {} });
        let (reply, delivery) = oneshot::channel();
        let mut publication = session.begin(ID, 1, reply).unwrap();
        publication.publish(packet, 1000, None).await.unwrap();
        drop(publication);
        let began = Instant::now();
        let ended = delivery.await.unwrap();
        assert!(
            matches!(&ended, Err(SendError::Disconnected { cause }) if cause.contains("acknowledged nothing")),
            "{ended:?}"
        );
        assert!(began.elapsed() >= PUBACK_WAIT);
        answers.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_broker_that_takes_no_bytes_is_given_up() {
        let (session, _broker) = pair().await;
        for number in 0..4 {
            let mut publication = session.begin(MessageId([number; 16]), 1, oneshot::channel().0).unwrap();
            publication.publish(packet, 1000, None).await.unwrap();
        }
        let cause = session.closed().await;
        assert!(cause.contains("took no bytes"), "{cause}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_is_dropped_between_its_parts_leaves_nothing_behind() {
        let (session, mut broker) = pair().await;
        let mut abandoned = session.begin(ID, 3, oneshot::channel().0).unwrap();
        abandoned.publish(packet, 1000, None).await.unwrap();
        drop(abandoned);
        let (reply, delivery) = oneshot::channel();
        session.begin(ID, 1, reply).unwrap().publish(packet, 1000, None).await.unwrap();
        let mut ids = Vec::new();
        while ids.len() < 2 {
            ids.extend(broker.hear(true).await.unwrap());
        }
        for id in ids {
            broker.acknowledge(id).await;
        }
        assert_eq!(delivery.await.unwrap().unwrap().code, "puback");
        assert_eq!(session.shared.slots.available_permits(), 4);
        assert_eq!(session.shared.room.available_permits(), OUTLET_BYTES_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_broker_that_breaks_the_protocol_ends_all_deliveries_and_hears_why() {
        let (session, mut broker) = pair().await;
        let (reply, delivery) = oneshot::channel();
        let mut publication = session.begin(ID, 1, reply).unwrap();
        publication.publish(packet, 1000, None).await.unwrap();
        drop(publication);
        broker.hear(true).await.unwrap();
        // A PUBACK for a packet that was never sent.
        broker.stream.write_all(&[0x40, 2, 0x77, 0x77]).await.unwrap();
        assert!(matches!(delivery.await.unwrap(), Err(SendError::Disconnected { .. })));
        let mut last = [0; 2];
        broker.stream.read_exact(&mut last).await.unwrap();
        assert_eq!(last, [0xe0, 1], "DISCONNECT with a reason");
        assert!(matches!(session.begin(ID, 1, oneshot::channel().0), Err(SendError::Disconnected { .. })));
    }
}
