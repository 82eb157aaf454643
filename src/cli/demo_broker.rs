//! A small MQTT 5 broker in memory, for the demo and for fast tests only: loopback, no TLS, no passwords.
//!
//! CONNECT with takeover and last will, persistent sessions, SUBSCRIBE with wildcards, PUBLISH with QoS 0 and 1 both ways,
//! retained messages, receive maximum and maximum packet size of its clients. What it never does: keep anything over its own end, or let a
//! queue grow without a bound (a full one is answered with "quota exceeded"). It can be cut off: then it closes all connections and refuses
//! new ones until it is restored; sessions survive that, as at a broker whose network is gone.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mqtt_protocol_core::mqtt::common::ArcPayload;
use mqtt_protocol_core::mqtt::connection::role::Server;
use mqtt_protocol_core::mqtt::packet::v5_0::{
    Connack, Connect, Disconnect, GenericPuback, GenericPublish, GenericSuback, GenericSubscribe, GenericUnsuback,
    GenericUnsubscribe, Pingresp,
};
use mqtt_protocol_core::mqtt::packet::{AssignedClientIdentifier, MaximumQos, Packet, Property, Qos};
use mqtt_protocol_core::mqtt::result_code::{
    ConnectReasonCode, DisconnectReasonCode, PubackReasonCode, SubackReasonCode, UnsubackReasonCode,
};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::upstream::mqtt_link::{READ_BYTES, cant_say, closed_by_broker, lost, write};
use crate::wire::mqtt::{Fault, Machine, limits};
use crate::wire::mqtt_topic::covers;

/// Clients that are remembered.
pub const SESSIONS_MAX: usize = 256;
/// Messages that wait for one client, and their bytes.
pub const QUEUE_MAX: (usize, usize) = (100_000, 64 << 20);
/// Retained messages.
pub const RETAINED_MAX: usize = 1024;
/// Filters of one client.
pub const FILTERS_MAX: usize = 64;
/// Largest packet.
pub const PACKET_BYTES_MAX: u32 = 1 << 20;
/// Publishes that a client may have on their way.
pub const RECEIVE_MAXIMUM: u16 = 1024;
/// How long a client may take to say hello.
const HELLO_WAIT: Duration = Duration::from_secs(10);
/// Bytes that are gathered for one write.
const OUTLET_BYTES: usize = 1 << 20;

/// A broker that runs; ends with the value.
pub struct DemoBroker {
    address: SocketAddr,
    cut: watch::Sender<bool>,
    _stop: DropGuard,
}

impl DemoBroker {
    /// Listens at `listen` (port 0: any free one) and serves.
    ///
    /// # Errors
    /// When the address can't be had.
    pub async fn start(listen: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let (cut, stop) = (watch::Sender::new(false), CancellationToken::new());
        let accept = accept(listener, Arc::default(), cut.subscribe(), stop.clone());
        drop(tokio::spawn(stop.clone().run_until_cancelled_owned(accept)));
        Ok(Self { address, cut, _stop: stop.drop_guard() })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes all connections and refuses new ones.
    pub fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// Ends [`DemoBroker::cut`].
    pub fn restore(&self) {
        self.cut.send_replace(false);
    }
}

#[derive(Default)]
struct Hub(Mutex<State>);

#[derive(Default)]
struct State {
    sessions: HashMap<String, Session>,
    retained: BTreeMap<String, Message>,
    /// Counts connections; a session belongs to the one that came last.
    connections: u64,
}

#[derive(Default)]
struct Session {
    connection: u64,
    wake: Arc<Notify>,
    filters: Vec<String>,
    queue: VecDeque<Message>,
    queued_bytes: usize,
    in_flight: BTreeMap<u16, Message>,
    persistent: bool,
}

#[derive(Clone)]
struct Message {
    topic: Arc<str>,
    properties: Arc<[Property]>,
    payload: ArcPayload,
    qos: Qos,
    retain: bool,
    again: bool,
}

/// One connection of a client.
struct Client {
    hub: Arc<Hub>,
    machine: Machine<Server>,
    stream: TcpStream,
    id: String,
    connection: u64,
    wake: Arc<Notify>,
    receive_maximum: usize,
    keep_alive: Duration,
    will: Option<Message>,
}

/// Why a connection ends.
enum End {
    /// The client said goodbye: no last will.
    Goodbye,
    /// Anything else, in words that nobody reads: the client is told by a DISCONNECT where there is a reason for one.
    Failed,
}

impl From<Fault> for End {
    fn from(_: Fault) -> Self {
        Self::Failed
    }
}

impl Hub {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn publish(&mut self, message: &Message) -> PubackReasonCode {
        if message.retain && message.payload.is_empty() {
            self.retained.remove(&*message.topic);
        } else if message.retain && (self.retained.len() < RETAINED_MAX || self.retained.contains_key(&*message.topic))
        {
            self.retained.insert(message.topic.to_string(), message.clone());
        }
        let plain = Message { retain: false, ..message.clone() };
        let matches = |session: &&mut Session| session.filters.iter().any(|filter| covers(filter, &message.topic));
        let mut code = PubackReasonCode::NoMatchingSubscribers;
        for session in self.sessions.values_mut().filter(matches) {
            match session.push(plain.clone()) {
                true if code == PubackReasonCode::NoMatchingSubscribers => code = PubackReasonCode::Success,
                true => {}
                false => code = PubackReasonCode::QuotaExceeded,
            }
        }
        code
    }

    /// Gives the session of `id` to a new connection and wakes the old one, which sees that it was taken over.
    fn join(&mut self, id: &str, clean: bool, persistent: bool) -> Option<(u64, Arc<Notify>, bool)> {
        if self.sessions.len() >= SESSIONS_MAX && !self.sessions.contains_key(id) {
            return None;
        }
        self.connections += 1;
        let present = !clean && self.sessions.contains_key(id);
        let session = self.sessions.entry(id.to_owned()).or_default();
        session.wake.notify_one();
        if clean {
            *session = Session::default();
        }
        // What the last connection had not seen acknowledged goes out again, first.
        for mut message in std::mem::take(&mut session.in_flight).into_values().rev() {
            message.again = true;
            session.queued_bytes += message.payload.len();
            session.queue.push_front(message);
        }
        session.wake = Arc::default();
        (session.connection, session.persistent) = (self.connections, persistent);
        Some((self.connections, Arc::clone(&session.wake), present))
    }

    fn leave(&mut self, client: &mut Client, said_goodbye: bool) {
        if self
            .sessions
            .get(&client.id)
            .is_some_and(|session| session.connection == client.connection && !session.persistent)
        {
            self.sessions.remove(&client.id);
        }
        if let Some(will) = client.will.take().filter(|_| !said_goodbye) {
            self.publish(&will);
        }
    }
}

impl Session {
    fn push(&mut self, message: Message) -> bool {
        let full = self.queue.len() >= QUEUE_MAX.0 || self.queued_bytes + message.payload.len() > QUEUE_MAX.1;
        if !full {
            self.queued_bytes += message.payload.len();
            self.queue.push_back(message);
            self.wake.notify_one();
        }
        !full
    }
}

async fn accept(listener: TcpListener, hub: Arc<Hub>, cut: watch::Receiver<bool>, stop: CancellationToken) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let mut cut = cut.clone();
        if *cut.borrow() {
            continue;
        }
        // Packets are gathered already: waiting for more of them only delays.
        stream.set_nodelay(true).ok();
        let hub = Arc::clone(&hub);
        let serve = async move {
            tokio::select! {
                () = serve(stream, hub) => {}
                // An error means that the broker is gone: the same for the client.
                _ = cut.wait_for(|cut| *cut) => {}
            }
        };
        drop(tokio::spawn(stop.clone().run_until_cancelled_owned(serve)));
    }
}

async fn serve(stream: TcpStream, hub: Arc<Hub>) {
    let Ok(Ok((client, first))) = timeout(HELLO_WAIT, greet(stream, hub)).await else { return };
    let mut present = Present { client, said_goodbye: false };
    present.said_goodbye = matches!(present.client.run(first).await, Err(End::Goodbye));
}

/// A client that is connected: when this ends, however it ends (also by a cut), the last will is published.
struct Present {
    client: Client,
    said_goodbye: bool,
}

impl Drop for Present {
    fn drop(&mut self) {
        let hub = Arc::clone(&self.client.hub);
        hub.lock().leave(&mut self.client, self.said_goodbye);
    }
}

async fn greet(mut stream: TcpStream, hub: Arc<Hub>) -> Result<(Client, Vec<Packet>), Fault> {
    let mut machine = Machine::<Server>::new(PACKET_BYTES_MAX, RECEIVE_MAXIMUM);
    let (mut packets, mut buffer) = (Vec::new(), vec![0; 4096]);
    while packets.is_empty() {
        read(&mut stream, &mut machine, &mut buffer, &mut packets).await?;
    }
    let Packet::V5_0Connect(connect) = packets.remove(0) else { return Err(Fault("no CONNECT".into())) };
    let (expiry, receive_maximum) = wishes(&connect);
    let mut properties = limits(PACKET_BYTES_MAX, RECEIVE_MAXIMUM);
    properties.push(MaximumQos::new(1).map_err(cant_say)?.into());
    let mut id = connect.client_id().to_owned();
    if id.is_empty() {
        let peer = stream.peer_addr().map_err(|error| lost(&error))?;
        id = format!("anonymous-{}", peer.port());
        properties.push(AssignedClientIdentifier::new(id.as_str()).map_err(cant_say)?.into());
    }
    let joined = hub.lock().join(&id, connect.clean_start(), expiry > 0);
    let (connection, wake, present) = joined.ok_or_else(|| Fault("too many sessions".into()))?;
    let connack = Connack::builder().session_present(present).reason_code(ConnectReasonCode::Success).props(properties);
    machine.send(connack.build().map_err(cant_say)?)?;
    let keep_alive = match connect.keep_alive() {
        0 => Duration::from_secs(24 * 3600),
        seconds => Duration::from_secs(u64::from(seconds)) * 3 / 2,
    };
    let will = will_of(&connect);
    Ok((Client { hub, machine, stream, id, connection, wake, receive_maximum, keep_alive, will }, packets))
}

impl Client {
    /// Ends with an error always; see [`End`].
    async fn run(&mut self, mut packets: Vec<Packet>) -> Result<(), End> {
        let (mut buffer, mut written) = (vec![0; READ_BYTES], Vec::new());
        loop {
            for packet in packets.drain(..) {
                self.handle(packet)?;
            }
            let taken_over = self.pump()?;
            self.machine.take(&mut written);
            write(&mut self.stream, &written).await?;
            if taken_over {
                return Err(End::Failed);
            }
            tokio::select! {
                came = timeout(self.keep_alive, read(&mut self.stream, &mut self.machine, &mut buffer, &mut packets)) => {
                    came.map_err(|_| End::Failed)??;
                }
                () = self.wake.notified() => {}
            }
        }
    }

    /// Moves messages from the session's queue into the outlet, as far as the client allows. Tells whether the session was
    /// taken over.
    fn pump(&mut self) -> Result<bool, End> {
        let hub = Arc::clone(&self.hub);
        let mut state = hub.lock();
        let session = state.sessions.get_mut(&self.id).filter(|session| session.connection == self.connection);
        let Some(session) = session else {
            let goodbye = Disconnect::builder().reason_code(DisconnectReasonCode::SessionTakenOver).build();
            self.machine.send(goodbye.map_err(cant_say)?)?;
            return Ok(true);
        };
        while session.in_flight.len() < self.receive_maximum && self.machine.waiting() < OUTLET_BYTES {
            let Some(message) = session.queue.pop_front() else { return Ok(false) };
            session.queued_bytes = session.queued_bytes.saturating_sub(message.payload.len());
            let mut publish = GenericPublish::<u16>::builder().topic_name(&*message.topic).map_err(cant_say)?;
            publish = publish.qos(message.qos).retain(message.retain).payload(message.payload.clone());
            publish = publish.props(message.properties.to_vec());
            if message.qos == Qos::AtMostOnce {
                // A packet that is too large for this client is not for it (MQTT 5.0, 3.1.2.11.4).
                drop(self.machine.send(publish.build().map_err(cant_say)?));
                continue;
            }
            let id = self.machine.packet_id()?;
            let built = publish.packet_id(id).dup(message.again).build().map_err(cant_say)?;
            if self.machine.send(built).is_ok() {
                session.in_flight.insert(id, message);
            }
        }
        if !session.queue.is_empty() && session.in_flight.len() < self.receive_maximum {
            session.wake.notify_one();
        }
        Ok(false)
    }

    fn handle(&mut self, packet: Packet) -> Result<(), End> {
        match packet {
            Packet::V5_0Publish(publish) => self.published(&publish),
            Packet::V5_0Puback(puback) => {
                let mut state = self.hub.lock();
                if let Some(session) = state.sessions.get_mut(&self.id) {
                    session.in_flight.remove(&puback.packet_id());
                }
                Ok(())
            }
            Packet::V5_0Subscribe(subscribe) => self.subscribed(&subscribe),
            Packet::V5_0Unsubscribe(unsubscribe) => self.unsubscribed(&unsubscribe),
            Packet::V5_0Pingreq(_) => Ok(self.machine.send(Pingresp::builder().build().map_err(cant_say)?)?),
            Packet::V5_0Disconnect(goodbye) => match goodbye.reason_code() {
                None | Some(DisconnectReasonCode::NormalDisconnection) => Err(End::Goodbye),
                Some(_) => Err(End::Failed),
            },
            _ => Err(End::Failed),
        }
    }

    fn published(&mut self, publish: &GenericPublish<u16>) -> Result<(), End> {
        if publish.qos() == Qos::ExactlyOnce {
            return Err(End::Failed);
        }
        let code = self.hub.lock().publish(&Message::from(publish));
        let Some(id) = publish.packet_id() else { return Ok(()) };
        let puback = GenericPuback::builder().packet_id(id).reason_code(code).build();
        Ok(self.machine.send(puback.map_err(cant_say)?)?)
    }

    fn subscribed(&mut self, subscribe: &GenericSubscribe<u16>) -> Result<(), End> {
        let mut codes = Vec::new();
        let mut state = self.hub.lock();
        let State { sessions, retained, .. } = &mut *state;
        let session = sessions.get_mut(&self.id).ok_or(End::Failed)?;
        for entry in subscribe.entries() {
            let filter = entry.topic_filter();
            if session.filters.len() >= FILTERS_MAX || filter.starts_with("$share") {
                codes.push(SubackReasonCode::QuotaExceeded);
                continue;
            }
            if !session.filters.iter().any(|known| known == filter) {
                session.filters.push(filter.to_owned());
            }
            for message in retained.values().filter(|message| covers(filter, &message.topic)) {
                session.push(message.clone());
            }
            codes.push(SubackReasonCode::GrantedQos1);
        }
        drop(state);
        let suback = GenericSuback::<u16>::builder().packet_id(subscribe.packet_id()).reason_codes(codes).build();
        Ok(self.machine.send(suback.map_err(cant_say)?)?)
    }

    fn unsubscribed(&mut self, unsubscribe: &GenericUnsubscribe<u16>) -> Result<(), End> {
        let mut codes = Vec::new();
        let mut state = self.hub.lock();
        let session = state.sessions.get_mut(&self.id).ok_or(End::Failed)?;
        for filter in unsubscribe.entries() {
            let before = session.filters.len();
            session.filters.retain(|known| known != filter.as_str());
            codes.push(match before == session.filters.len() {
                true => UnsubackReasonCode::NoSubscriptionExisted,
                false => UnsubackReasonCode::Success,
            });
        }
        drop(state);
        let unsuback = GenericUnsuback::<u16>::builder().packet_id(unsubscribe.packet_id()).reason_codes(codes).build();
        Ok(self.machine.send(unsuback.map_err(cant_say)?)?)
    }
}

impl From<&GenericPublish<u16>> for Message {
    fn from(publish: &GenericPublish<u16>) -> Self {
        let hop =
            |property: &&Property| !matches!(property, Property::TopicAlias(_) | Property::SubscriptionIdentifier(_));
        Self {
            topic: publish.topic_name().into(),
            properties: publish.props().iter().filter(hop).cloned().collect(),
            payload: publish.payload().clone(),
            qos: publish.qos(),
            retain: publish.retain(),
            again: false,
        }
    }
}

fn will_of(connect: &Connect) -> Option<Message> {
    let (topic, payload) = (connect.will_topic()?, connect.will_payload()?);
    Some(Message {
        topic: topic.into(),
        properties: Arc::default(),
        payload: ArcPayload::new(payload.into(), 0, payload.len()),
        qos: connect.will_qos(),
        retain: connect.will_retain(),
        again: false,
    })
}

/// Session expiry and receive maximum that the client asks for.
fn wishes(connect: &Connect) -> (u32, usize) {
    let (mut expiry, mut receive_maximum) = (0, u16::MAX);
    for property in connect.props() {
        match property {
            Property::SessionExpiryInterval(seconds) => expiry = seconds.val(),
            Property::ReceiveMaximum(most) => receive_maximum = most.val(),
            _ => {}
        }
    }
    (expiry, usize::from(receive_maximum))
}

async fn read(
    stream: &mut TcpStream,
    machine: &mut Machine<Server>,
    buffer: &mut [u8],
    packets: &mut Vec<Packet>,
) -> Result<(), Fault> {
    let count = stream.read(buffer).await.map_err(|error| lost(&error))?;
    match buffer.get(..count) {
        None | Some([]) => Err(closed_by_broker()),
        Some(bytes) => machine.receive(bytes, packets),
    }
}
