//! What clients send, by the letter of the standards and against it.

use super::mqtt_packet::{Connect, Fault, Header, Message, Packet, Publish, USER_PROPERTIES_MAX, Version};

fn framed(first: u8, body: &[u8]) -> Vec<u8> {
    let length = u8::try_from(body.len()).unwrap();
    assert!(length < 0x80);
    [&[first, length], body].concat()
}

fn connect(bytes: &[u8]) -> Result<Connect<'_>, Fault> {
    let header = Header::read(bytes, 1024)?.unwrap();
    Connect::read(header, &bytes[header.size..])
}

fn packet(bytes: &[u8], version: Version) -> Result<Packet<'_>, Fault> {
    let header = Header::read(bytes, 1 << 20)?.unwrap();
    Packet::read(header, &bytes[header.size..], version)
}

#[test]
fn a_connect_of_3_1_1_with_will_user_and_password_is_read_whole() {
    let bytes = framed(0x10, b"\x00\x04MQTT\x04\xee\x00\x3c\x00\x02id\x00\x01w\x00\x03bye\x00\x01u\x00\x02pw");
    let read = connect(&bytes).unwrap();
    assert_eq!((read.version, read.clean, read.keep_alive_s, read.client_id), (Version::V311, true, 60, "id"));
    assert_eq!((read.user, read.password), (Some("u"), Some(&b"pw"[..])));
    let (will, qos, retain) = read.will.unwrap();
    assert_eq!((will.topic, will.payload, qos, retain), ("w", &b"bye"[..], 1, true));
}

#[test]
fn a_connect_of_5_brings_its_wishes() {
    let bytes =
        framed(0x10, b"\x00\x04MQTT\x05\x02\x00\x00\x0d\x11\x00\x00\x0e\x10\x27\x00\x00\x04\x00\x21\x00\x0a\x00\x00");
    let read = connect(&bytes).unwrap();
    assert_eq!((read.session_expiry_s, read.packet_bytes_max, read.client_id), (3600, 1024, ""));
    assert!(!read.extended_authentication && read.will.is_none());
}

#[test]
fn what_is_no_connect_is_told_apart() {
    assert_eq!(connect(&framed(0x10, b"\x00\x06MQIsdp\x03\x02\x00\x00\x00\x01c")), Err(Fault::Version(3)));
    assert_eq!(connect(&framed(0x10, b"\x00\x04MQTT\x06\x02\x00\x00\x00\x01c")), Err(Fault::Version(6)));
    assert!(matches!(connect(b"\xc0\x00"), Err(Fault::Protocol(_))));
    // Reserved flag, QoS 3 of a will, a will's flags without a will, a password without a user, bytes after the end.
    for body in [
        &b"\x00\x04MQTT\x04\x03\x00\x00\x00\x01c"[..],
        b"\x00\x04MQTT\x04\x1e\x00\x00\x00\x01c\x00\x01w\x00\x00",
        b"\x00\x04MQTT\x04\x22\x00\x00\x00\x01c",
        b"\x00\x04MQTT\x04\x42\x00\x00\x00\x01c\x00\x01p",
        b"\x00\x04MQTT\x04\x02\x00\x00\x00\x01cx",
        b"\x00\x04HTTP\x04\x02\x00\x00\x00\x01c",
    ] {
        assert!(matches!(connect(&framed(0x10, body)), Err(Fault::Malformed(_))), "{body:?}");
    }
}

#[test]
fn a_publish_of_5_brings_content_type_and_user_properties() {
    let bytes = framed(0x3b, b"\x00\x03a/b\x01\x02\x10\x03\x00\x01j\x26\x00\x01k\x00\x01v\x01\x01\x23\x00\x01");
    assert_eq!(packet(&bytes, Version::V5), Err(Fault::TopicAlias));
    let bytes = framed(0x3b, b"\x00\x03a/b\x01\x02\x0b\x03\x00\x01j\x26\x00\x01k\x00\x01vpay");
    let message =
        Message { topic: "a/b", payload: b"pay", content_type: Some("j"), user: vec![("k", "v")], user_left_out: 0 };
    assert_eq!(
        packet(&bytes, Version::V5),
        Ok(Packet::Publish(Publish { qos: 1, id: 258, dup: true, retain: true, message }))
    );
}

#[test]
fn more_user_properties_than_are_kept_are_counted() {
    let count = USER_PROPERTIES_MAX + 3;
    let properties = b"\x26\x00\x01k\x00\x01v".repeat(count);
    let length = [u8::try_from(properties.len() & 0x7F).unwrap() | 0x80, u8::try_from(properties.len() >> 7).unwrap()];
    let body = [b"\x00\x01t", &length[..], &properties].concat();
    let whole =
        [&[0x30, u8::try_from(body.len() & 0x7F).unwrap() | 0x80, u8::try_from(body.len() >> 7).unwrap()], &body[..]]
            .concat();
    let Ok(Packet::Publish(publish)) = packet(&whole, Version::V5) else { panic!() };
    assert_eq!((publish.message.user.len(), publish.message.user_left_out), (USER_PROPERTIES_MAX, 3));
}

#[test]
fn a_publish_against_the_rules_is_a_fault() {
    assert_eq!(packet(b"\x34\x06\x00\x01t\x00\x00M", Version::V311), Err(Fault::Protocol("packet id 0")));
    assert_eq!(packet(b"\x34\x07\x00\x01t\x00\x01\x00M", Version::V5), Err(Fault::Qos));
    for bytes in [
        &b"\x36\x05\x00\x01t\x00\x01"[..],
        b"\x38\x03\x00\x01t",
        b"\x30\x03\x00\x01+",
        b"\x30\x02\x00\x00",
        b"\x30\x03\x00\x01\xff",
        b"\x30\x03\x00\x01\x00",
        b"\x32\x03\x00\x01t",
    ] {
        assert!(matches!(packet(bytes, Version::V311), Err(Fault::Malformed(_))), "{bytes:?}");
    }
}

#[test]
fn the_other_packets_are_read_as_the_standard_writes_them() {
    assert_eq!(packet(b"\xc0\x00", Version::V311), Ok(Packet::Ping));
    assert_eq!(packet(b"\x62\x02\x00\x07", Version::V311), Ok(Packet::Release(7)));
    assert_eq!(packet(b"\x62\x04\x00\x07\x00\x00", Version::V5), Ok(Packet::Release(7)));
    assert_eq!(packet(b"\x82\x0a\x00\x01\x00\x01#\x01\x00\x01a\x00", Version::V311), Ok(Packet::Subscribe(1, 2)));
    assert_eq!(packet(b"\xa2\x06\x00\x01\x00\x00\x01#", Version::V5), Ok(Packet::Unsubscribe(1, 1)));
    assert_eq!(packet(b"\xe0\x00", Version::V5), Ok(Packet::Disconnect(false)));
    assert_eq!(packet(b"\xe0\x01\x04", Version::V5), Ok(Packet::Disconnect(true)));
    for bytes in [
        &b"\x60\x02\x00\x07"[..],
        b"\x80\x06\x00\x01\x00\x01#\x01",
        b"\xc1\x00",
        b"\xe0\x01\x04",
        b"\xf0\x00",
        b"\x00\x00",
    ] {
        assert!(matches!(packet(bytes, Version::V311), Err(Fault::Malformed(_))), "{bytes:?}");
    }
    assert!(matches!(packet(b"\x20\x02\x00\x00", Version::V311), Err(Fault::Protocol(_))));
    assert!(matches!(packet(b"\x82\x03\x00\x01\x00", Version::V5), Err(Fault::Protocol(_))));
}

#[test]
fn a_length_is_judged_before_its_bytes_come() {
    assert_eq!(Header::read(b"\x30", 100), Ok(None));
    assert_eq!(Header::read(b"\x30\x80", 100), Ok(None));
    assert_eq!(Header::read(b"\x30\x80\x01", 200), Ok(Some(Header { first: 0x30, size: 3, length: 128 })));
    assert_eq!(Header::read(b"\x30\x80\x01", 130), Err(Fault::TooLarge));
    assert!(matches!(Header::read(b"\x30\xff\xff\xff\xff\x7f", 100), Err(Fault::Malformed(_))));
}
