//! What a server answers an MQTT client, versions 3.1.1 and 5, as bytes.
//!
//! MQTT 3.1.1 and MQTT 5.0, OASIS Standards of 2014 and 2019. Everything is appended to a buffer that the caller writes out in one go;
//! nothing here decides anything: whether a message is stored is known to the caller alone.

use super::mqtt_packet::{Connect, Fault, Header, Packet, Version};

/// What an answer says: a reason code of MQTT 5 (2.4); 3.1.1 has words for few of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// Done.
    Success,
    /// It did not work, and nobody is to blame.
    Unspecified,
    /// Not this version.
    UnsupportedVersion,
    /// Not this client id.
    BadClientId,
    /// User name or password is wrong.
    BadPassword,
    /// Not allowed.
    NotAuthorised,
    /// The box or the source stops.
    ShuttingDown,
    /// No authentication in several steps.
    BadAuthenticationMethod,
    /// Nothing came within one and a half times the keep-alive.
    KeepAlive,
    /// Another connection came with the same client id.
    TakenOver,
    /// The topic is one that can't be taken.
    BadTopic,
    /// More unacknowledged messages than the receive maximum.
    ReceiveMaximum,
    /// Full, or more connections than a client may have.
    Quota,
    /// The QoS of a will is not supported.
    Qos,
    /// The peer broke the protocol.
    Fault(Fault),
}

impl Reason {
    /// The code in MQTT 5.
    pub fn code(self) -> u8 {
        match self {
            Self::Success => 0x00,
            Self::Unspecified => 0x80,
            Self::UnsupportedVersion => 0x84,
            Self::BadClientId => 0x85,
            Self::BadPassword => 0x86,
            Self::NotAuthorised => 0x87,
            Self::ShuttingDown => 0x8B,
            Self::BadAuthenticationMethod => 0x8C,
            Self::KeepAlive => 0x8D,
            Self::TakenOver => 0x8E,
            Self::BadTopic => 0x90,
            Self::ReceiveMaximum => 0x93,
            Self::Quota => 0x97,
            Self::Qos => 0x9B,
            Self::Fault(fault) => fault.reason(),
        }
    }

    /// The return code of a CONNACK in MQTT 3.1.1 (table 3.1).
    fn return_code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::UnsupportedVersion => 1,
            Self::BadClientId => 2,
            Self::BadPassword => 4,
            Self::NotAuthorised | Self::BadTopic | Self::Qos => 5,
            _ => 3,
        }
    }
}

/// What a CONNACK of MQTT 5 tells the client.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Terms {
    /// Unacknowledged messages that it may have.
    pub receive_maximum: u16,
    /// Largest packet that is taken.
    pub packet_bytes_max: u32,
    /// The client asked for a session that outlives its connection: it gets none.
    pub no_session: bool,
    /// The keep-alive that it has to use in place of its own, seconds.
    pub keep_alive_s: Option<u16>,
    /// The client id that was chosen for it.
    pub assigned_id: Option<String>,
}

/// CONNACK (3.2). There is never a session from before.
pub fn connack(out: &mut Vec<u8>, version: Version, reason: Reason, terms: &Terms) {
    if version == Version::V311 {
        out.extend([0x20, 2, 0, reason.return_code()]);
        return;
    }
    let mut properties = Vec::new();
    if reason == Reason::Success {
        properties.push(0x21);
        properties.extend(terms.receive_maximum.to_be_bytes());
        properties.extend([0x24, 1]);
        properties.push(0x27);
        properties.extend(terms.packet_bytes_max.to_be_bytes());
        // No subscriptions: neither wildcards, nor identifiers, nor shared ones.
        properties.extend([0x28, 0, 0x29, 0, 0x2A, 0]);
        if terms.no_session {
            properties.extend([0x11, 0, 0, 0, 0]);
        }
        if let Some(seconds) = terms.keep_alive_s {
            properties.push(0x13);
            properties.extend(seconds.to_be_bytes());
        }
        if let Some(id) = &terms.assigned_id {
            properties.push(0x12);
            properties.extend(u16::try_from(id.len()).unwrap_or(0).to_be_bytes());
            properties.extend(id.as_bytes());
        }
    }
    out.push(0x20);
    length(out, 2 + 1 + properties.len());
    out.extend([0, reason.code()]);
    // Never more than some forty bytes: its length takes one.
    length(out, properties.len());
    out.extend(properties);
}

/// PUBACK (3.4): QoS 1.
pub fn puback(out: &mut Vec<u8>, version: Version, id: u16, reason: Reason) {
    acknowledgement(out, 0x40, version, id, reason);
}

/// PUBREC (3.5): QoS 2, the first answer.
pub fn pubrec(out: &mut Vec<u8>, version: Version, id: u16, reason: Reason) {
    acknowledgement(out, 0x50, version, id, reason);
}

/// PUBCOMP (3.7): QoS 2, the last.
pub fn pubcomp(out: &mut Vec<u8>, version: Version, id: u16) {
    acknowledgement(out, 0x70, version, id, Reason::Success);
}

fn acknowledgement(out: &mut Vec<u8>, kind: u8, version: Version, id: u16, reason: Reason) {
    let [high, low] = id.to_be_bytes();
    match (version, reason) {
        (Version::V311, _) | (_, Reason::Success) => out.extend([kind, 2, high, low]),
        (Version::V5, reason) => out.extend([kind, 3, high, low, reason.code()]),
    }
}

/// SUBACK (3.9) that refuses every filter.
pub fn suback_refused(out: &mut Vec<u8>, version: Version, id: u16, filters: usize) {
    let code = if version == Version::V5 { Reason::NotAuthorised.code() } else { 0x80 };
    per_filter(out, 0x90, version, id, vec![code; filters]);
}

/// UNSUBACK (3.11): there was no such subscription.
pub fn unsuback(out: &mut Vec<u8>, version: Version, id: u16, filters: usize) {
    let codes = if version == Version::V5 { vec![0x11; filters] } else { Vec::new() };
    per_filter(out, 0xB0, version, id, codes);
}

fn per_filter(out: &mut Vec<u8>, kind: u8, version: Version, id: u16, codes: Vec<u8>) {
    let properties: &[u8] = if version == Version::V5 { &[0] } else { &[] };
    out.push(kind);
    length(out, 2 + properties.len() + codes.len());
    out.extend(id.to_be_bytes());
    out.extend(properties);
    out.extend(codes);
}

/// PINGRESP (3.13).
pub fn pingresp(out: &mut Vec<u8>) {
    out.extend([0xD0, 0]);
}

/// DISCONNECT (3.14), which a server has in MQTT 5 only.
pub fn disconnect(out: &mut Vec<u8>, version: Version, reason: Reason) {
    if version == Version::V5 {
        out.extend([0xE0, 1, reason.code()]);
    }
}

fn length(out: &mut Vec<u8>, length: usize) {
    let mut left = length;
    loop {
        let byte = u8::try_from(left & 0x7F).unwrap_or(0);
        left >>= 7;
        out.push(if left > 0 { byte | 0x80 } else { byte });
        if left == 0 {
            return;
        }
    }
}

/// Reads what a hostile client sends in one connection, as a server does, and writes the answers. For fuzzing.
pub fn hostile_publisher(mut bytes: &[u8], bytes_max: usize) {
    let (mut version, mut out) = (None, Vec::new());
    while let Ok(Some(header)) = Header::read(bytes, bytes_max) {
        let Some(packet) = bytes.get(..header.total()) else { return };
        let body = packet.get(header.size..).unwrap_or_default();
        bytes = bytes.get(header.total()..).unwrap_or_default();
        out.clear();
        let outcome = match version {
            None => Connect::read(header, body).map(|connect| {
                version = Some(connect.version);
                let terms = Terms { assigned_id: Some("a".into()), no_session: true, ..Terms::default() };
                connack(&mut out, connect.version, Reason::Success, &terms);
            }),
            Some(version) => Packet::read(header, body, version).map(|packet| answer(&mut out, version, &packet)),
        };
        if let Err(fault) = outcome {
            disconnect(&mut out, version.unwrap_or(Version::V5), Reason::Fault(fault));
            return;
        }
        assert!(
            out.is_empty() || matches!(Header::read(&out, usize::MAX), Ok(Some(header)) if header.total() == out.len())
        );
    }
}

fn answer(out: &mut Vec<u8>, version: Version, packet: &Packet<'_>) {
    match packet {
        Packet::Publish(publish) => {
            assert!((publish.qos == 0) == (publish.id == 0) && super::mqtt_topic::is_name(publish.message.topic));
            match publish.qos {
                0 => {}
                1 => puback(out, version, publish.id, Reason::NotAuthorised),
                _ => pubrec(out, version, publish.id, Reason::Success),
            }
        }
        Packet::Release(id) => pubcomp(out, version, *id),
        Packet::Subscribe(id, filters) => suback_refused(out, version, *id, *filters),
        Packet::Unsubscribe(id, filters) => unsuback(out, version, *id, *filters),
        Packet::Ping => pingresp(out),
        Packet::Disconnect(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use mqtt_protocol_core::mqtt::Version as Level;
    use mqtt_protocol_core::mqtt::common::Cursor;
    use mqtt_protocol_core::mqtt::connection::role::Client;
    use mqtt_protocol_core::mqtt::connection::{Connection, Event};
    use mqtt_protocol_core::mqtt::packet::{v3_1_1, v5_0};
    use proptest::prelude::*;

    use super::*;

    /// What another implementation reads of our answers, behind a CONNECT of its own.
    fn read_by_another(level: Level, answers: &[u8]) -> Vec<String> {
        let mut client = Connection::<Client>::new(level);
        let connect: Vec<u8> = match level {
            Level::V5_0 => {
                let packet = v5_0::Connect::builder().client_id("c").unwrap().build().unwrap();
                let bytes = packet.to_continuous_buffer();
                drop(client.send(packet.into()));
                bytes
            }
            _ => {
                let packet = v3_1_1::Connect::builder().client_id("c").unwrap().clean_session(true).build().unwrap();
                let bytes = packet.to_continuous_buffer();
                drop(client.send(packet.into()));
                bytes
            }
        };
        let header = Header::read(&connect, 1024).unwrap().unwrap();
        assert_eq!(Connect::read(header, &connect[header.size..]).unwrap().client_id, "c");
        let (mut cursor, mut read) = (Cursor::new(answers), Vec::new());
        while cursor.position() < answers.len() as u64 {
            for event in client.recv(&mut cursor) {
                match event {
                    Event::NotifyPacketReceived(packet) => read.push(packet.to_string()),
                    Event::NotifyError(error) => panic!("{error:?}"),
                    _ => {}
                }
            }
        }
        read
    }

    #[test]
    fn another_implementation_reads_our_connack_of_both_versions() {
        let terms = Terms {
            receive_maximum: 16,
            packet_bytes_max: 262_144,
            keep_alive_s: Some(60),
            no_session: true,
            assigned_id: Some("wg".into()),
        };
        let mut out = Vec::new();
        connack(&mut out, Version::V5, Reason::Success, &terms);
        let read = read_by_another(Level::V5_0, &out).concat();
        for said in ["16", "262144", "wg", "60"] {
            assert!(read.contains(said), "{said}: {read}");
        }
        out.clear();
        connack(&mut out, Version::V311, Reason::Success, &terms);
        assert_eq!(read_by_another(Level::V3_1_1, &out).len(), 1);
    }

    #[test]
    fn acknowledgements_are_the_bytes_of_the_standard() {
        let mut out = Vec::new();
        puback(&mut out, Version::V5, 258, Reason::Success);
        puback(&mut out, Version::V5, 1, Reason::NotAuthorised);
        pubrec(&mut out, Version::V311, 2, Reason::Success);
        pubcomp(&mut out, Version::V311, 2);
        pingresp(&mut out);
        disconnect(&mut out, Version::V311, Reason::TakenOver);
        disconnect(&mut out, Version::V5, Reason::TakenOver);
        suback_refused(&mut out, Version::V311, 3, 2);
        suback_refused(&mut out, Version::V5, 3, 1);
        unsuback(&mut out, Version::V311, 4, 2);
        unsuback(&mut out, Version::V5, 4, 1);
        let expected: [&[u8]; 10] = [
            &[0x40, 2, 1, 2],
            &[0x40, 3, 0, 1, 0x87],
            &[0x50, 2, 0, 2],
            &[0x70, 2, 0, 2],
            &[0xD0, 0],
            &[0xE0, 1, 0x8E],
            &[0x90, 4, 0, 3, 0x80, 0x80],
            &[0x90, 4, 0, 3, 0, 0x87],
            &[0xB0, 2, 0, 4],
            &[0xB0, 4, 0, 4, 0, 0x11],
        ];
        assert_eq!(out, expected.concat());
    }

    const HELLOS: [&[u8]; 2] =
        [b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01c", b"\x10\x0e\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x01c"];
    const PACKETS: &[&[u8]] = &[
        b"\x32\x06\x00\x01t\x00\x01M",
        b"\x32\x07\x00\x01t\x00\x01\x00M",
        b"\x34\x06\x00\x01t\x00\x02M",
        b"\x3a\x06\x00\x01t\x00\x02M",
        b"\x62\x02\x00\x02",
        b"\x82\x06\x00\x01\x00\x01#\x01",
        b"\x82\x07\x00\x01\x00\x00\x01#\x01",
        b"\xa2\x06\x00\x01\x00\x00\x01#",
        b"\xc0\x00",
        b"\xe0\x00",
        b"\x30\xff\xff\xff\x7f",
        b"\x30\xff\xff\xff\xff\x01",
    ];

    proptest! {
        #[test]
        fn whatever_a_client_sends_is_answered_or_ends_its_connection(
            hello in 0..3usize,
            packets in proptest::collection::vec(prop_oneof![
                proptest::sample::select(PACKETS).prop_map(<[u8]>::to_vec),
                proptest::collection::vec(any::<u8>(), 0..24),
            ], 0..8),
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            let mut bytes = HELLOS.get(hello).copied().unwrap_or_default().to_vec();
            bytes.extend(packets.concat());
            for (at, byte) in changes {
                if !bytes.is_empty() {
                    let at = at.index(bytes.len());
                    bytes[at] = byte;
                }
            }
            hostile_publisher(&bytes, 4096);
        }
    }
}
