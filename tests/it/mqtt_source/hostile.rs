//! Clients that mean harm, or are broken: each costs its own connection and nothing else.

use std::time::{Duration, Instant};

use super::{ANYBODY, records, sensors, start};
use crate::support::gateway::Gateway;
use crate::support::mqtt::{Sensor, hello, packet, publish};
use crate::support::wait::eventually;

const TOPIC: &str = "ward3/bed1/spo2";

#[track_caller]
fn still_serves(gateway: &Gateway) {
    Sensor::connect(gateway.endpoint("sensors"), &hello(4, "spo2")).tell(1, TOPIC, b"a good one");
}

#[test]
fn what_is_no_mqtt_ends_its_own_connection_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "", ANYBODY);
    let at = gateway.endpoint("sensors");
    let began = Instant::now();
    let cases: [(&[u8], &[u8]); 6] = [
        (b"GET / HTTP/1.1\r\nHost: box\r\n\r\n", b""),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b""),
        (&[0x10, 0xff, 0xff, 0xff, 0x7f], b""),
        (b"\x10\x0c\x00\x04MQTT\x06\x02\x00\x00\x00\x00\x00\x00", b"\x20\x03\x00\x84\x00"),
        (b"\x10\x0f\x00\x06MQIsdp\x03\x02\x00\x00\x00\x01c", b"\x20\x02\x00\x01"),
        (&[0x30, 0x03, 0x00, 0x01, b't'], b""),
    ];
    for (bytes, answer) in cases {
        let mut stranger = Sensor::silent(at).unwrap();
        stranger.send(bytes).unwrap();
        stranger.is_closed_after(answer);
    }
    assert!(began.elapsed() < Duration::from_secs(9), "they waited for the connect timeout");
    assert_eq!(sensors(&gateway)["turned-away"], 6);
    still_serves(&gateway);
}

#[test]
fn whatever_breaks_the_protocol_ends_its_own_connection_with_a_word() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "", ANYBODY);
    let at = gateway.endpoint("sensors");
    let long = "t".repeat(65_535);
    let cases: [(Vec<u8>, u8); 7] = [
        // Packet id 0; a second CONNECT; a wildcard; a topic that is no text; SUBSCRIBE without a filter; PUBACK; QoS 3.
        (publish(5, 0x02, 0, TOPIC, b"x"), 0x82),
        (hello(5, "spo2").bytes(), 0x82),
        (publish(5, 0x02, 1, "ward3/+/spo2", b"x"), 0x81),
        (packet(0x30, b"\x00\x02\xc3\x28\x00x"), 0x81),
        (packet(0x82, &[0, 1, 0]), 0x82),
        (vec![0x40, 2, 0, 1], 0x82),
        (publish(5, 0x06, 1, TOPIC, b"x"), 0x81),
    ];
    for (bytes, reason) in cases {
        let mut broken = Sensor::connect(at, &hello(5, "spo2"));
        broken.send(&bytes).unwrap();
        broken.is_closed_after(&[0xE0, 1, reason]);
        let mut old = Sensor::connect(at, &hello(4, "spo2"));
        old.send(&packet(0x32, b"\x00\x01t\x00\x00x")).unwrap();
        old.is_closed_after(&[]);
    }
    let mut endless = Sensor::connect(at, &hello(5, "spo2"));
    endless.send(&publish(5, 0x02, 1, &long, b"x")).unwrap();
    assert_eq!(endless.read().unwrap(), [0x40, 3, 0, 1, 0x90], "a topic of 64 KiB is refused, and its sender goes on");
    endless.tell(2, TOPIC, b"short");
    still_serves(&gateway);
}

#[test]
fn a_connect_that_comes_byte_by_byte_is_not_waited_for_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "connect-timeout = \"500ms\"", ANYBODY);
    let at = gateway.endpoint("sensors");
    let mut slow = Sensor::silent(at).unwrap();
    slow.send(&hello(4, "spo2").bytes()[..5]).unwrap();
    let mut silent = Sensor::silent(at).unwrap();
    slow.is_closed_after(&[]);
    silent.is_closed_after(&[]);
    assert_eq!(sensors(&gateway)["turned-away"], 2);
}

#[test]
fn two_thousand_silent_connections_leave_room_for_a_sensor() {
    // Both ends are processes of this machine: each may have a thousand files and more.
    const MANY: usize = 700;
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "max-connections = 1000\nconnect-timeout = \"2s\"", ANYBODY);
    let at = gateway.endpoint("sensors");
    for _ in 0..3 {
        let strangers: Vec<Sensor> = (0..MANY).map_while(|_| Sensor::silent(at).ok()).collect();
        assert_eq!(strangers.len(), MANY);
        still_serves(&gateway);
    }
    eventually("all of them are gone", || sensors(&gateway)["connections"] == 0);
    assert_eq!(records(&gateway, folder.path()).len(), 3);
}

#[test]
fn a_flood_of_qos_0_takes_little_memory_and_what_is_dropped_is_told() {
    const COUNT: u64 = 60_000;
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "", ANYBODY);
    let mut sensor = Sensor::connect(gateway.endpoint("sensors"), &hello(4, "spo2"));
    let one = publish(4, 0, 0, TOPIC, &[b'x'; 1000]);
    let hundred = one.repeat(100);
    for _ in 0..COUNT / 100 {
        sensor.send(&hundred).unwrap();
    }
    sensor.tell(1, TOPIC, b"the last");
    eventually("all are stored or dropped", || {
        let status = sensors(&gateway);
        status["stored"].as_u64().unwrap() + status["refused"].as_u64().unwrap() == COUNT + 1
    });
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.process.pid())).unwrap();
    let peak = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    let kib: u64 = peak.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kib < 150 << 10, "{peak}");
    let refused = sensors(&gateway)["refused"].as_u64().unwrap();
    let records = records(&gateway, folder.path());
    let told: u64 = records.iter().filter_map(|record| record.gap.as_ref()?.count).sum();
    assert_eq!((told, records.len() as u64 + refused), (refused, COUNT + 1));
    let seqs: std::collections::BTreeSet<u64> = records.iter().map(|record| record.seq).collect();
    assert_eq!((seqs.len(), seqs.last().copied()), (records.len(), Some(records.len() as u64)), "no number is missing");
}
