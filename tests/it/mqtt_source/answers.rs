//! What a client is answered, in both versions of the protocol, and what becomes of what it said.

use super::{ANYBODY, about, payload, records, sensors, start};
use crate::support::mqtt::{Hello, Sensor, hello, packet, publish, text};
use crate::support::wait::eventually;

const TOPIC: &str = "ward3/bed1/spo2";

#[test]
fn a_message_is_acknowledged_and_arrives_with_all_that_was_said_about_it() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "", ANYBODY);
    let mut sensor = Sensor::connect(gateway.endpoint("sensors"), &hello(5, "spo2"));
    let properties = [&[0x03][..], &text("application/json"), &[0x26], &text("unit"), &text("%")].concat();
    let body =
        [&text(TOPIC)[..], &[0, 7, u8::try_from(properties.len()).unwrap()], &properties, b"{\"spo2\":98}"].concat();
    sensor.send(&packet(0x33, &body)).unwrap();
    assert_eq!(sensor.read().unwrap(), [0x40, 2, 0, 7]);
    let binary = [0, 1, 0xff, 0x80, b'\n'];
    sensor.tell(8, TOPIC, &binary);
    sensor.tell(9, TOPIC, b"");
    let records = records(&gateway, folder.path());
    assert_eq!(records.iter().map(payload).collect::<Vec<_>>(), [b"{\"spo2\":98}".to_vec(), binary.to_vec(), vec![]]);
    assert_eq!(records.iter().map(|record| record.seq).collect::<Vec<_>>(), [1, 2, 3]);
    let first = &records[0];
    assert_eq!((first.source.as_str(), first.stream.as_str()), ("sensors", "spo2"));
    let said =
        ["client-id", "topic", "qos", "retain", "content-type", "user:unit"].map(|name| about(first, name).unwrap());
    assert_eq!(said, ["spo2", TOPIC, "1", "true", "application/json", "%"]);
    assert_eq!(first.events[0].kind, "retained");
    assert!(records[1].events.is_empty());
}

#[test]
fn acknowledgements_of_many_at_once_keep_their_order_and_share_syncs() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "", ANYBODY);
    for level in [4, 5] {
        let mut sensor = Sensor::connect(gateway.endpoint("sensors"), &hello(level, "spo2"));
        let before = syncs(&gateway);
        let many: Vec<u8> = (1..=60).flat_map(|id| publish(level, 0x02, id, TOPIC, &id.to_be_bytes())).collect();
        sensor.send(&many).unwrap();
        for id in 1..=60_u16 {
            let [high, low] = id.to_be_bytes();
            assert_eq!(sensor.read().unwrap(), [0x40, 2, high, low]);
        }
        assert!(syncs(&gateway) - before < 40, "each had a sync of its own");
    }
    let records = records(&gateway, folder.path());
    assert_eq!(records.iter().map(|record| record.seq).collect::<Vec<_>>(), (1..=120).collect::<Vec<_>>());
}

fn syncs(gateway: &crate::support::gateway::Gateway) -> u64 {
    gateway.status()["logs"].as_array().unwrap().iter().map(|log| log["syncs"].as_u64().unwrap()).sum()
}

#[test]
fn qos_2_of_3_1_1_is_stored_once_however_often_it_is_said_again_before_its_release() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "", ANYBODY);
    let mut sensor = Sensor::connect(gateway.endpoint("sensors"), &hello(4, "spo2"));
    let first = publish(4, 0x04, 5, TOPIC, b"once");
    sensor.send(&[&first[..], &publish(4, 0x0C, 5, TOPIC, b"once")].concat()).unwrap();
    assert_eq!(sensor.read().unwrap(), [0x50, 2, 0, 5]);
    sensor.send(&publish(4, 0x0C, 5, TOPIC, b"once")).unwrap();
    assert_eq!(sensor.read().unwrap(), [0x50, 2, 0, 5]);
    sensor.send(&[0x62, 2, 0, 5]).unwrap();
    assert_eq!(sensor.read().unwrap(), [0x70, 2, 0, 5]);
    // Its id may be used again, and one that was never seen is released all the same: it may be from before a restart.
    sensor.send(&first).unwrap();
    assert_eq!(sensor.read().unwrap(), [0x50, 2, 0, 5]);
    sensor.send(&[0x62, 2, 0, 99]).unwrap();
    assert_eq!(sensor.read().unwrap(), [0x70, 2, 0, 99]);
    assert_eq!(records(&gateway, folder.path()).len(), 2);
    assert_eq!(sensors(&gateway)["repeats"], 2);
}

#[test]
fn a_client_of_5_is_told_the_terms_and_ends_when_it_breaks_them() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "receive-maximum = 3\nmax-packet-size = \"2KiB\"", ANYBODY);
    let at = gateway.endpoint("sensors");
    let (mut sensor, connack) = Sensor::greet(at, &hello(5, "spo2")).unwrap();
    let expected = [0x20, 19, 0, 0, 16, 0x21, 0, 3, 0x24, 1, 0x27, 0, 0, 8, 0, 0x28, 0, 0x29, 0, 0x2A, 0];
    assert_eq!(connack, expected);
    sensor.send(&publish(5, 0x04, 1, TOPIC, b"two")).unwrap();
    sensor.is_closed_after(&[0xE0, 1, 0x9B]);
    let mut sensor = Sensor::connect(at, &hello(5, "spo2"));
    sensor.send(&packet(0x32, &[&text(TOPIC)[..], &[0, 1, 3, 0x23, 0, 1], b"alias"].concat())).unwrap();
    sensor.is_closed_after(&[0xE0, 1, 0x94]);
    let mut sensor = Sensor::connect(at, &hello(5, "spo2"));
    sensor.send(&publish(5, 0x02, 1, TOPIC, &[b'x'; 3000])).unwrap();
    sensor.is_closed_after(&[0xE0, 1, 0x95]);
}

#[test]
fn a_client_of_3_1_1_may_send_as_much_at_once_as_it_likes() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "receive-maximum = 2", ANYBODY);
    let mut sensor = Sensor::connect(gateway.endpoint("sensors"), &hello(4, "spo2"));
    let mut writer = sensor.twin();
    let sending = std::thread::spawn(move || {
        for id in 1..=300 {
            writer.send(&publish(4, 0x02, id, TOPIC, b"x")).unwrap();
        }
    });
    for id in 1..=300_u16 {
        assert_eq!(sensor.read().unwrap()[2..], id.to_be_bytes());
    }
    sending.join().unwrap();
}

#[test]
fn a_subscription_is_refused_politely_and_the_connection_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "", ANYBODY);
    let at = gateway.endpoint("sensors");
    let mut old = Sensor::connect(at, &hello(4, "spo2"));
    old.send(&packet(0x82, &[&[0, 1][..], &text("cmd/#"), &[1], &text("$SYS/#"), &[0]].concat())).unwrap();
    assert_eq!(old.read().unwrap(), [0x90, 4, 0, 1, 0x80, 0x80]);
    old.send(&packet(0xA2, &[&[0, 2][..], &text("cmd/#")].concat())).unwrap();
    assert_eq!(old.read().unwrap(), [0xB0, 2, 0, 2]);
    old.send(&[0xC0, 0]).unwrap();
    assert_eq!(old.read().unwrap(), [0xD0, 0]);
    old.tell(3, TOPIC, b"still here");
    let mut new = Sensor::connect(at, &hello(5, "spo2"));
    new.send(&packet(0x82, &[&[0, 1, 0][..], &text("cmd/#"), &[1]].concat())).unwrap();
    assert_eq!(new.read().unwrap(), [0x90, 4, 0, 1, 0, 0x87]);
    new.send(&packet(0xA2, &[&[0, 2, 0][..], &text("cmd/#")].concat())).unwrap();
    assert_eq!(new.read().unwrap(), [0xB0, 4, 0, 2, 0, 0x11]);
    new.tell(3, TOPIC, b"still here");
}

#[test]
fn qos_0_is_stored_though_its_sender_says_goodbye_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "", ANYBODY);
    let mut sensor = Sensor::connect(gateway.endpoint("sensors"), &hello(4, "spo2"));
    let many: Vec<u8> = (0..40_u8).flat_map(|number| publish(4, 0, 0, TOPIC, &[number])).collect();
    sensor.send(&[&many[..], &[0xE0, 0]].concat()).unwrap();
    sensor.is_closed_after(&[]);
    eventually("all were stored", || sensors(&gateway)["stored"] == 40);
    let payloads: Vec<Vec<u8>> = records(&gateway, folder.path()).iter().map(payload).collect();
    assert_eq!(payloads, (0..40_u8).map(|number| vec![number]).collect::<Vec<_>>());
}

#[test]
fn a_will_is_recorded_when_the_connection_breaks_and_not_after_a_goodbye() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "", ANYBODY);
    let at = gateway.endpoint("sensors");
    let with_will = Hello { will: Some((TOPIC, "gone")), ..hello(4, "spo2") };
    let mut polite = Sensor::connect(at, &with_will);
    polite.send(&[0xE0, 0]).unwrap();
    polite.is_closed_after(&[]);
    drop(Sensor::connect(at, &with_will));
    eventually("the will is stored", || sensors(&gateway)["stored"] == 1);
    let will = records(&gateway, folder.path()).remove(0);
    assert_eq!(
        (will.events[0].kind.as_ref(), payload(&will), about(&will, "topic")),
        ("will", b"gone".to_vec(), Some(TOPIC))
    );
}

#[test]
fn a_client_that_falls_silent_is_cut_off_after_one_and_a_half_times_its_keep_alive() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "", ANYBODY);
    let hello = Hello { keep_alive: 1, will: Some((TOPIC, "silent")), ..hello(5, "spo2") };
    let mut sensor = Sensor::connect(gateway.endpoint("sensors"), &hello);
    let began = std::time::Instant::now();
    sensor.is_closed_after(&[0xE0, 1, 0x8D]);
    assert!(began.elapsed().as_millis() >= 1400, "{:?}", began.elapsed());
    eventually("its will is stored", || sensors(&gateway)["stored"] == 1);
}

#[test]
fn a_stopping_service_acknowledges_what_it_has_and_says_goodbye() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "", ANYBODY);
    let mut sensor = Sensor::connect(gateway.endpoint("sensors"), &hello(5, "spo2"));
    sensor.tell(1, TOPIC, b"x");
    gateway.stop();
    sensor.is_closed_after(&[0xE0, 1, 0x8B]);
}
