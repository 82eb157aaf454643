//! A client's MQTT 5 connection over a stream: hello, subscribe, write what waits, read what comes.
//!
//! Used by the [`mqtt`](super::mqtt) upstream, which takes it apart once the hello is done, and by the collector. It knows
//! nothing of messages, retries or backoff. Every wait has a limit; what the broker sends is bounded by the machine.

use std::time::Duration;

use mqtt_protocol_core::mqtt::connection::role::Client;
use mqtt_protocol_core::mqtt::packet::v5_0::{Connect, Disconnect, Pingreq, Subscribe};
use mqtt_protocol_core::mqtt::packet::{Packet, Property, Qos, SessionExpiryInterval, SubEntry, SubOpts};
use mqtt_protocol_core::mqtt::result_code::{DisconnectReasonCode, MqttError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::wire::mqtt::{Fault, Granted, Machine, disconnect_words, limits, reason_string, subscribe_refusal};

/// How long the broker may take for its CONNACK or SUBACK.
pub const ANSWER_WAIT: Duration = Duration::from_secs(20);
/// How long a write may take before the connection counts as lost.
pub const WRITE_WAIT: Duration = Duration::from_secs(30);
/// Bytes that are read at once.
pub const READ_BYTES: usize = 64 << 10;

/// A connection's bytes, whatever carries them.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// What the client says first.
pub struct Hello {
    /// Unique at the broker: a second connection with the same one takes the session over.
    pub client_id: String,
    /// Who we are, where a certificate does not say it.
    pub username: Option<String>,
    /// Wiped when dropped.
    pub password: Option<Zeroizing<Vec<u8>>>,
    /// After so long without a packet one is asked for.
    pub keep_alive: Duration,
    /// How long the broker keeps the session when the connection is gone; 0: a new session each time.
    pub session_expiry_s: u32,
    /// Published for us, retained, when the connection ends without a goodbye: topic and payload.
    pub will: Option<(String, String)>,
    /// Largest packet that we take.
    pub packet_bytes_max: u32,
    /// Publishes that we take without having acknowledged them.
    pub receive_maximum: u16,
}

/// An open connection.
pub struct Link {
    /// Its packets and state.
    pub machine: Machine<Client>,
    /// Its bytes.
    pub stream: Box<dyn Duplex>,
    /// Packets that came together with the CONNACK: a broker that kept our session does not wait.
    early: Vec<Packet>,
    read: Vec<u8>,
    written: Vec<u8>,
}

impl Link {
    /// Says hello over `stream` and waits for the broker's answer.
    ///
    /// # Errors
    /// [`Fault`] in words: what the broker refused, or how the connection failed.
    pub async fn open(stream: Box<dyn Duplex>, hello: Hello) -> Result<(Self, Granted), Fault> {
        let machine = Machine::new(hello.packet_bytes_max, hello.receive_maximum);
        let mut link = Self { machine, stream, early: Vec::new(), read: vec![0; READ_BYTES], written: Vec::new() };
        link.machine.send(connect_packet(&hello).map_err(cant_say)?)?;
        let granted = timeout(ANSWER_WAIT, link.greeted());
        let granted = granted.await.map_err(|_| Fault(format!("no CONNACK within {} s", ANSWER_WAIT.as_secs())))??;
        Ok((link, granted))
    }

    /// Subscribes with QoS 1 and waits for the broker's consent. Messages that come first (of a session that it kept) are
    /// added to `early`.
    ///
    /// # Errors
    /// [`Fault`] in words.
    pub async fn subscribe(&mut self, filter: &str, early: &mut Vec<Packet>) -> Result<(), Fault> {
        let packet_id = self.machine.packet_id()?;
        let options = SubOpts::new().set_qos(Qos::AtLeastOnce);
        let entry = SubEntry::new(filter, options).map_err(cant_say)?;
        let subscribe = Subscribe::builder().entries(vec![entry]).packet_id(packet_id).build();
        self.machine.send(subscribe.map_err(cant_say)?)?;
        let consent = async {
            loop {
                let mut packets = Vec::new();
                self.exchange(&mut packets).await?;
                let mut consent = None;
                for packet in packets {
                    match packet {
                        Packet::V5_0Suback(suback) => consent = Some(suback.reason_codes()),
                        Packet::V5_0Disconnect(goodbye) => return Err(goodbye_fault(&goodbye)),
                        other => early.push(other),
                    }
                }
                if let Some(codes) = consent {
                    return codes.first().copied().and_then(subscribe_refusal).map_or(Ok(()), |words| {
                        Err(Fault(format!("the broker refused the subscription to {filter}: {words}")))
                    });
                }
            }
        };
        let wait = timeout(ANSWER_WAIT, consent).await;
        wait.map_err(|_| Fault(format!("no SUBACK within {} s", ANSWER_WAIT.as_secs())))?
    }

    /// Writes what waits, then reads once; what comes may be only a part of a packet. Cancelling loses nothing while nothing waits.
    ///
    /// # Errors
    /// [`Fault`] in words.
    pub async fn exchange(&mut self, packets: &mut Vec<Packet>) -> Result<(), Fault> {
        self.flush().await?;
        if !self.early.is_empty() {
            packets.append(&mut self.early);
            return Ok(());
        }
        let count = self.stream.read(&mut self.read).await.map_err(|error| lost(&error))?;
        match self.read.get(..count) {
            None | Some([]) => Err(closed_by_broker()),
            Some(bytes) => self.machine.receive(bytes, packets),
        }
    }

    /// Writes what waits.
    ///
    /// # Errors
    /// [`Fault`] in words.
    pub async fn flush(&mut self) -> Result<(), Fault> {
        if self.machine.waiting() == 0 {
            return Ok(());
        }
        self.machine.take(&mut self.written);
        write(&mut self.stream, &self.written).await
    }

    /// Says goodbye, so that the broker sends no last will.
    pub async fn close(mut self) {
        if let Ok(goodbye) = goodbye() {
            // A connection that is lost already needs no goodbye.
            drop(self.machine.send(goodbye));
            drop(self.flush().await);
            drop(self.stream.shutdown().await);
        }
    }

    async fn greeted(&mut self) -> Result<Granted, Fault> {
        let mut packets = Vec::new();
        while packets.is_empty() {
            self.exchange(&mut packets).await?;
        }
        let first = packets.remove(0);
        self.early = packets;
        match first {
            Packet::V5_0Connack(connack) => Granted::read(&connack),
            _ => Err(Fault("the broker answered the hello with something else than CONNACK".into())),
        }
    }
}

/// Writes all of `bytes` within [`WRITE_WAIT`].
///
/// # Errors
/// [`Fault`] in words.
pub async fn write<W: AsyncWrite + Unpin>(stream: &mut W, bytes: &[u8]) -> Result<(), Fault> {
    let write = async {
        stream.write_all(bytes).await?;
        stream.flush().await
    };
    match timeout(WRITE_WAIT, write).await {
        Ok(result) => result.map_err(|error| lost(&error)),
        Err(_) => Err(Fault(format!("the broker took no bytes for {} s", WRITE_WAIT.as_secs()))),
    }
}

/// A DISCONNECT without complaint.
///
/// # Errors
/// Never in practice: the packet has fixed content.
pub fn goodbye() -> Result<Disconnect, Fault> {
    Disconnect::builder().reason_code(DisconnectReasonCode::NormalDisconnection).build().map_err(cant_say)
}

/// A PINGREQ.
///
/// # Errors
/// Never in practice: the packet has fixed content.
pub fn ping() -> Result<Pingreq, Fault> {
    Pingreq::builder().build().map_err(cant_say)
}

/// What a broker's goodbye means.
pub fn goodbye_fault(goodbye: &Disconnect) -> Fault {
    let properties = goodbye.props().as_ref().map_or(&[][..], |properties| properties.as_slice());
    Fault(format!("{}{}", disconnect_words(goodbye.reason_code()), reason_string(properties)))
}

/// The broker hung up without a word.
pub fn closed_by_broker() -> Fault {
    Fault(
        "the broker closed the connection without a reason: it stopped, or another client connected with our client id"
            .into(),
    )
}

/// The connection failed under us.
pub fn lost(error: &std::io::Error) -> Fault {
    Fault(format!("the connection was lost: {error}"))
}

/// A packet that can't be built from what we were given.
pub fn cant_say(error: MqttError) -> Fault {
    Fault(format!("an MQTT packet can't be built: {error}"))
}

fn connect_packet(hello: &Hello) -> Result<Connect, MqttError> {
    let mut properties = limits(hello.packet_bytes_max, hello.receive_maximum);
    if hello.session_expiry_s > 0 {
        properties.push(Property::from(SessionExpiryInterval::new(hello.session_expiry_s)?));
    }
    let seconds = u16::try_from(hello.keep_alive.as_secs()).unwrap_or(u16::MAX);
    let clean = hello.session_expiry_s == 0;
    let mut connect = Connect::builder().client_id(hello.client_id.as_str())?.clean_start(clean).keep_alive(seconds);
    connect = connect.props(properties);
    if let Some((topic, payload)) = &hello.will {
        connect = connect.will_message(topic.as_str(), payload.as_bytes().to_vec(), Qos::AtLeastOnce, true)?;
    }
    if let Some(username) = &hello.username {
        connect = connect.user_name(username.as_str())?;
    }
    if let Some(password) = &hello.password {
        connect = connect.password(password.to_vec())?;
    }
    connect.build()
}
