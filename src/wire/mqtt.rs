//! MQTT 5 without I/O: one connection's packets and state, for a client and for a server.
//!
//! A [`Machine`] is fed the bytes that came and gives packets; packets that are sent become bytes in its outlet, so that
//! many of them leave in one write. The packet formats and the protocol's rules (packet ids, receive maximum, maximum
//! packet size; MQTT 5.0, OASIS Standard, 2019) are those of `mqtt-protocol-core`. What it must never do: trust a peer.
//! Whatever bytes come, the answer is packets or a [`Fault`], and no buffer is larger than the maximum packet size that
//! was given when the machine was made.
//!
//! What wardgate puts into topics and user properties is in [`super::mqtt_label`].

use mqtt_protocol_core::mqtt::common::Cursor;
use mqtt_protocol_core::mqtt::connection::role::{Client, RoleType, Server};
use mqtt_protocol_core::mqtt::connection::{ConnectionOptions, Event};
use mqtt_protocol_core::mqtt::packet::v5_0::{Connack, Connect, Publish};
use mqtt_protocol_core::mqtt::packet::{GenericPacketTrait, MaximumPacketSize, Packet, Property, Qos, ReceiveMaximum};
use mqtt_protocol_core::mqtt::result_code::{
    ConnectReasonCode, DisconnectReasonCode, MqttError, PubackReasonCode, SubackReasonCode,
};
use mqtt_protocol_core::mqtt::{Connection, Version};

/// Largest packet that MQTT can express (MQTT 5.0, 1.5.5 and 2.1.4): 1 + 4 + 268,435,455.
pub const PACKET_BYTES_MAX: u32 = 268_435_460;

/// The peer broke the protocol, or a packet can't be sent as it is. The connection is of no further use, but for what
/// the machine still has to say (a DISCONNECT with the reason lies in its outlet).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Fault(pub String);

/// One connection's packets and state.
pub struct Machine<R: RoleType> {
    connection: Connection<R>,
    outlet: Vec<u8>,
}

impl<R: RoleType> Machine<R> {
    /// A machine that takes packets of at most `packet_bytes_max` and at most `receive_maximum` unacknowledged publishes;
    /// it tells the peer both.
    pub fn new(packet_bytes_max: u32, receive_maximum: u16) -> Self {
        let options = ConnectionOptions::new()
            .maximum_packet_size_recv(packet_bytes_max.min(PACKET_BYTES_MAX - 1))
            .receive_maximum(receive_maximum);
        Self { connection: Connection::with_options(Version::V5_0, options), outlet: Vec::new() }
    }

    /// Takes what came from the peer and adds the packets in it to `packets`.
    ///
    /// # Errors
    /// [`Fault`]; the packets before it are genuine.
    pub fn receive(&mut self, bytes: &[u8], packets: &mut Vec<Packet>) -> Result<(), Fault> {
        let mut cursor = Cursor::new(bytes);
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        while cursor.position() < length {
            let events = self.connection.recv(&mut cursor);
            self.note(events, packets)?;
        }
        Ok(())
    }

    /// Encodes a packet into the outlet.
    ///
    /// # Errors
    /// [`Fault`] when the peer's limits or the protocol forbid it.
    pub fn send(&mut self, packet: impl Into<Packet>) -> Result<(), Fault> {
        let events = self.connection.send(packet.into());
        self.note(events, &mut Vec::new())
    }

    /// A packet id that is not in use.
    ///
    /// # Errors
    /// [`Fault`] when all 65,535 are.
    pub fn packet_id(&mut self) -> Result<u16, Fault> {
        self.connection.acquire_packet_id().map_err(|_| Fault("all packet ids are in use".into()))
    }

    /// Bytes that wait to be written.
    pub fn waiting(&self) -> usize {
        self.outlet.len()
    }

    /// Exchanges the bytes that wait to be written with `written`, which is emptied and used again.
    pub fn take(&mut self, written: &mut Vec<u8>) {
        written.clear();
        std::mem::swap(&mut self.outlet, written);
    }

    fn note(&mut self, events: Vec<Event>, packets: &mut Vec<Packet>) -> Result<(), Fault> {
        let mut fault = None;
        for event in events {
            match event {
                // Forbidden (MQTT 5.0, 2.2.1), but let through: a QoS 2 publish that came twice with it would be a panic.
                Event::NotifyPacketReceived(Packet::V5_0Publish(publish)) if publish.packet_id() == Some(0) => {
                    fault = Some(Fault("the peer sent a publish with packet id 0".into()));
                }
                Event::NotifyPacketReceived(packet) => packets.push(packet),
                Event::RequestSendPacket { packet, .. } => {
                    for part in packet.to_buffers() {
                        self.outlet.extend_from_slice(&part);
                    }
                }
                Event::NotifyError(error) => fault = Some(Fault(error_words(error).into())),
                // A close that is asked for comes with an error or with a DISCONNECT; keep-alive is counted by whoever
                // owns the clock.
                _ => {}
            }
        }
        fault.map_or(Ok(()), Err)
    }
}

/// What a broker allows, from its CONNACK (MQTT 5.0, 3.2.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Publishes that may be unacknowledged.
    pub receive_maximum: u16,
    /// Largest packet that it takes.
    pub packet_bytes_max: u32,
    /// Keep-alive in seconds, when it asks for another one than was offered.
    pub keep_alive_s: Option<u16>,
    /// Whether it takes retained messages.
    pub retain: bool,
    /// Whether it takes QoS 1.
    pub qos_1: bool,
    /// Whether it kept a session of this client.
    pub session_present: bool,
}

impl Granted {
    /// Reads the broker's answer.
    ///
    /// # Errors
    /// [`Fault`] with the broker's refusal in words.
    pub fn read(connack: &Connack) -> Result<Self, Fault> {
        if connack.reason_code() != ConnectReasonCode::Success {
            let said = reason_string(connack.props());
            return Err(Fault(format!(
                "the broker refused the connection: {}{said}",
                connect_words(connack.reason_code())
            )));
        }
        let mut granted = Self {
            receive_maximum: u16::MAX,
            packet_bytes_max: PACKET_BYTES_MAX,
            keep_alive_s: None,
            retain: true,
            qos_1: true,
            session_present: connack.session_present(),
        };
        for property in connack.props() {
            match property {
                Property::ReceiveMaximum(most) => granted.receive_maximum = most.val().max(1),
                Property::MaximumPacketSize(most) => granted.packet_bytes_max = most.val().min(PACKET_BYTES_MAX),
                Property::ServerKeepAlive(seconds) => granted.keep_alive_s = Some(seconds.val()),
                Property::RetainAvailable(flag) => granted.retain = flag.val() != 0,
                Property::MaximumQos(qos) => granted.qos_1 = qos.val() != 0,
                _ => {}
            }
        }
        Ok(granted)
    }
}

/// What the peer added in words, as ` ("...")`, at most 200 characters and without control characters; else nothing.
pub fn reason_string(properties: &[Property]) -> String {
    let said = properties.iter().find_map(|property| match property {
        Property::ReasonString(text) => Some(text.val()),
        _ => None,
    });
    said.map_or_else(String::new, |text| {
        let clean: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
        format!(" (\"{clean}\")")
    })
}

/// A CONNACK's refusal in words (MQTT 5.0, table 3-1).
pub fn connect_words(code: ConnectReasonCode) -> &'static str {
    match code {
        ConnectReasonCode::BadUserNameOrPassword => "user name or password is wrong",
        ConnectReasonCode::NotAuthorized => "not authorised",
        ConnectReasonCode::ClientIdentifierNotValid => "it does not accept this client id",
        ConnectReasonCode::UnsupportedProtocolVersion => "it does not speak MQTT 5",
        ConnectReasonCode::ServerUnavailable => "it is not available",
        ConnectReasonCode::ServerBusy => "it is busy",
        ConnectReasonCode::Banned => "this client is banned",
        ConnectReasonCode::QuotaExceeded => "a quota is exceeded",
        ConnectReasonCode::ConnectionRateExceeded => "too many connections in a short time",
        ConnectReasonCode::TopicNameInvalid => "it does not accept the topic of the last will",
        ConnectReasonCode::RetainNotSupported => "it does not keep retained messages",
        ConnectReasonCode::QosNotSupported => "it does not support QoS 1",
        ConnectReasonCode::UseAnotherServer | ConnectReasonCode::ServerMoved => "another broker should be used",
        ConnectReasonCode::PacketTooLarge => "the CONNECT packet is too large",
        ConnectReasonCode::BadAuthenticationMethod => "it asks for another authentication method",
        _ => "it gave no usable reason",
    }
}

/// A PUBACK's refusal in words (MQTT 5.0, table 3-4).
pub fn puback_words(code: PubackReasonCode) -> &'static str {
    match code {
        PubackReasonCode::Success => "success",
        PubackReasonCode::NoMatchingSubscribers => "nobody is subscribed",
        PubackReasonCode::UnspecifiedError => "unspecified error",
        PubackReasonCode::ImplementationSpecificError => "implementation specific error",
        PubackReasonCode::NotAuthorized => "not authorised",
        PubackReasonCode::TopicNameInvalid => "topic name invalid",
        PubackReasonCode::PacketIdentifierInUse => "packet identifier in use",
        PubackReasonCode::QuotaExceeded => "quota exceeded",
        PubackReasonCode::PayloadFormatInvalid => "payload format invalid",
    }
}

/// A broker's DISCONNECT in words (MQTT 5.0, table 3-10), with what to do where it is clear.
pub fn disconnect_words(code: Option<DisconnectReasonCode>) -> &'static str {
    match code {
        Some(DisconnectReasonCode::SessionTakenOver) => {
            "the session was taken over: another client connected with the same client id; give each box its own"
        }
        Some(DisconnectReasonCode::ServerShuttingDown) => "the broker shuts down",
        Some(DisconnectReasonCode::KeepAliveTimeout) => "the broker missed our keep-alive",
        Some(DisconnectReasonCode::NotAuthorized) => "the broker took our authorisation away",
        Some(DisconnectReasonCode::AdministrativeAction) => "an administrator of the broker ended the connection",
        Some(DisconnectReasonCode::QuotaExceeded) => "the broker's quota is exceeded",
        Some(DisconnectReasonCode::PacketTooLarge) => "a packet was too large for the broker",
        Some(DisconnectReasonCode::ReceiveMaximumExceeded) => "the broker says that its receive maximum was exceeded",
        Some(DisconnectReasonCode::MessageRateTooHigh) => "the broker says that messages come too fast",
        Some(DisconnectReasonCode::ServerBusy) => "the broker is busy",
        Some(DisconnectReasonCode::UseAnotherServer | DisconnectReasonCode::ServerMoved) => {
            "the broker says that another one should be used"
        }
        Some(DisconnectReasonCode::MalformedPacket | DisconnectReasonCode::ProtocolError) => {
            "the broker says that we broke the protocol"
        }
        _ => "the broker ended the connection without a usable reason",
    }
}

/// A SUBACK's refusal in words (MQTT 5.0, table 3-8); `None`: granted.
pub fn subscribe_refusal(code: SubackReasonCode) -> Option<&'static str> {
    match code {
        SubackReasonCode::GrantedQos0 | SubackReasonCode::GrantedQos1 | SubackReasonCode::GrantedQos2 => None,
        SubackReasonCode::NotAuthorized => Some("not authorised"),
        SubackReasonCode::TopicFilterInvalid => Some("topic filter invalid"),
        SubackReasonCode::QuotaExceeded => Some("quota exceeded"),
        SubackReasonCode::WildcardSubscriptionsNotSupported => Some("wildcards are not supported"),
        _ => Some("refused"),
    }
}

/// Feeds bytes of a hostile broker to a client that has publishes on their way, in the pieces that `cut` gives. For fuzzing.
pub fn hostile_broker(bytes: &[u8], cut: usize) {
    let mut machine = Machine::<Client>::new(64 << 10, 16);
    let Ok(connect) = Connect::builder().client_id("c").and_then(|connect| connect.clean_start(true).build()) else {
        return;
    };
    let mut packets = Vec::new();
    if machine.send(connect).is_err() {
        return;
    }
    for piece in bytes.chunks(cut.max(1)) {
        if machine.receive(piece, &mut packets).is_err() {
            return;
        }
        for packet in packets.drain(..) {
            match packet {
                Packet::V5_0Connack(connack) => drop(Granted::read(&connack).map(|_| publish_one(&mut machine))),
                Packet::V5_0Publish(publish) => drop(super::mqtt_label::Label::read(publish.props())),
                _ => drop(publish_one(&mut machine)),
            }
        }
    }
}

/// Feeds bytes of a hostile client to a server that accepts everyone, in the pieces that `cut` gives. For fuzzing.
pub fn hostile_client(bytes: &[u8], cut: usize) {
    let mut machine = Machine::<Server>::new(64 << 10, 16);
    let mut packets = Vec::new();
    for piece in bytes.chunks(cut.max(1)) {
        if machine.receive(piece, &mut packets).is_err() {
            return;
        }
        for packet in packets.drain(..) {
            let sent = match packet {
                Packet::V5_0Connect(_) => {
                    let connack =
                        Connack::builder().session_present(false).reason_code(ConnectReasonCode::Success).build();
                    connack.map_err(|error| Fault(error.to_string())).and_then(|connack| machine.send(connack))
                }
                Packet::V5_0Publish(publish) => {
                    drop(super::mqtt_label::Label::read(publish.props()));
                    publish_one(&mut machine)
                }
                _ => Ok(()),
            };
            if sent.is_err() {
                return;
            }
        }
    }
}

fn publish_one<R: RoleType>(machine: &mut Machine<R>) -> Result<(), Fault> {
    let id = machine.packet_id()?;
    let publish = Publish::builder()
        .topic_name("a/b")
        .and_then(|publish| publish.qos(Qos::AtLeastOnce).packet_id(id).payload(b"MSH").build());
    machine.send(publish.map_err(|error| Fault(error.to_string()))?)
}

fn error_words(error: MqttError) -> &'static str {
    match error {
        MqttError::MalformedPacket => "the peer sent a malformed MQTT packet",
        MqttError::ProtocolError => "the peer broke the MQTT protocol",
        MqttError::PacketTooLarge => "an MQTT packet is larger than was agreed",
        MqttError::ReceiveMaximumExceeded => "more MQTT publishes are unacknowledged than was agreed",
        MqttError::UnsupportedProtocolVersion => "the peer does not speak MQTT 5",
        MqttError::TopicAliasInvalid => "the peer used a topic alias that it may not use",
        MqttError::PacketNotAllowedToSend => "an MQTT packet was to be sent at the wrong moment",
        _ => "an MQTT packet could not be processed",
    }
}

/// Properties that tell the peer our limits, for a CONNECT or CONNACK that has properties of its own.
pub fn limits(packet_bytes_max: u32, receive_maximum: u16) -> Vec<Property> {
    let mut properties = Vec::new();
    properties.extend(MaximumPacketSize::new(packet_bytes_max).ok().map(Property::from));
    properties.extend(ReceiveMaximum::new(receive_maximum).ok().map(Property::from));
    properties
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CONNECT: &[u8] = &[0x10, 16, 0, 4, b'M', b'Q', b'T', b'T', 5, 2, 0, 60, 3, 0x21, 0, 10, 0, 0];
    const CONNACK: &[u8] = &[0x20, 16, 0, 0, 13, 0x21, 0, 10, 0x27, 0, 0, 0x10, 0, 0x22, 0, 5, 0x24, 1];
    const OTHERS: &[&[u8]] = &[
        &[0x40, 4, 0, 1, 0x10, 0],
        &[0x40, 2, 0, 1],
        &[0x90, 4, 0, 2, 0, 1],
        &[0xd0, 0],
        &[0xe0, 2, 0x8e, 0],
        &[0x32, 0x12, 0, 3, b'a', b'/', b'b', 0, 1, 6, 0x26, 0, 1, b'k', 0, 0, b'p', b'q', b'r', b's'],
        &[0x82, 9, 0, 1, 0, 0, 3, b'a', b'/', b'#', 1],
        &[0x62, 2, 0, 1],
        &[0x30, 0xff, 0xff, 0xff, 0x7f],
    ];

    fn hostile(hello: &'static [u8]) -> impl Strategy<Value = Vec<u8>> {
        let packet = prop_oneof![
            Just(hello.to_vec()),
            proptest::sample::select(OTHERS).prop_map(<[u8]>::to_vec),
            proptest::collection::vec(any::<u8>(), 0..20),
        ];
        let mutations = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..8u8), 0..4);
        (any::<bool>(), proptest::collection::vec(packet, 0..6), mutations).prop_map(
            move |(greet, packets, mutations)| {
                let mut bytes = if greet { hello.to_vec() } else { Vec::new() };
                bytes.extend(packets.concat());
                for (at, byte, kind) in mutations {
                    match (bytes.is_empty(), kind) {
                        (true, _) | (_, 0) => bytes.push(byte),
                        (_, 1) => drop(bytes.remove(at.index(bytes.len()))),
                        _ => {
                            let at = at.index(bytes.len());
                            bytes[at] = byte;
                        }
                    }
                }
                bytes
            },
        )
    }

    proptest! {
        #[test]
        fn a_hostile_broker_gets_no_further_than_an_error(bytes in hostile(CONNACK), cut in 1..40usize) {
            hostile_broker(&bytes, cut);
        }

        #[test]
        fn a_hostile_client_gets_no_further_than_an_error(bytes in hostile(CONNECT), cut in 1..40usize) {
            hostile_client(&bytes, cut);
        }
    }

    /// MQTT 5.0, 2.2.1. `mqtt-protocol-core` lets it through, and panics when a QoS 2 publish with it comes a second time.
    #[test]
    fn a_publish_with_packet_id_zero_ends_the_connection_and_not_the_process() {
        for header in [0x34, 0x32] {
            let publish = &[header, 6, 0, 1, b'a', 0, 0, 0];
            hostile_broker(&[CONNACK, publish, publish].concat(), 64);
            hostile_client(&[CONNECT, publish, publish].concat(), 64);
            let mut packets = Vec::new();
            let fault = Machine::<Server>::new(1024, 4).receive(publish, &mut packets).unwrap_err();
            assert_eq!((fault.0.as_str(), packets.len()), ("the peer sent a publish with packet id 0", 0));
        }
    }

    #[test]
    fn a_packet_over_the_limit_is_refused_by_its_length_alone() {
        let mut machine = Machine::<Server>::new(1024, 4);
        let fault = machine.receive(&[0x10, 0xff, 0xff, 0xff, 0x7f], &mut Vec::new()).unwrap_err();
        assert_eq!(fault.0, "an MQTT packet is larger than was agreed");
    }

    #[test]
    fn a_broker_that_refuses_is_quoted_in_words() {
        let connack =
            Connack::builder().session_present(false).reason_code(ConnectReasonCode::NotAuthorized).build().unwrap();
        assert_eq!(Granted::read(&connack).unwrap_err().0, "the broker refused the connection: not authorised");
    }
}
