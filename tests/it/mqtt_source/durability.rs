//! The promise under the worst treatment: the service killed again and again while sensors publish with QoS 1 and QoS 2.
//!
//! What was acknowledged (PUBACK, PUBREC) arrives, with its bytes. A sensor says again what was not; second copies are allowed.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{ANYBODY, payload, records, sensors_to_folder};
use crate::support::gateway::Gateway;
use crate::support::mqtt::{Sensor, hello, publish};
use crate::support::rounds;
use crate::support::wait::eventually;

const SENSORS: usize = 6;
/// Those from here on use QoS 2.
const QOS_2_FROM: usize = 4;
const IN_FLIGHT: usize = 16;

/// A client with QoS 1 and a full log: it is told so, and nothing is acknowledged that is not stored.
#[test]
fn a_full_log_acknowledges_nothing_and_a_sensor_that_says_it_again_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let quota = "[spool.clinical]\nquota = \"64MiB\"\n";
    let config = sensors_to_folder(folder.path(), "log = \"clinical\"", ANYBODY);
    let config = quota.to_owned() + &config.replace("unsealed = true", "marker = \".mounted\"\nunsealed = true");
    let gateway = Gateway::start(folder.path(), &config);
    let at = gateway.endpoint("sensors");
    let topic = "ward3/bed1/spo2";
    let body = |number: u16| format!("{number:05}{}", "x".repeat(240 << 10)).into_bytes();
    let mut sensor = Sensor::connect(at, &hello(5, "spo2"));
    let mut acknowledged = 0;
    loop {
        let number = acknowledged + 1;
        assert!(number < 1000, "a small quota can't hold all of this");
        sensor.send(&publish(5, 0x02, number, topic, &body(number))).unwrap();
        match sensor.read().unwrap().as_slice() {
            [0x40, 2, ..] => acknowledged = number,
            answer => break assert_eq!(answer, [0xE0, 1, 0x97], "told: quota exceeded"),
        }
    }
    assert!(acknowledged > 50, "only {acknowledged} were taken");
    // A client of 3.1.1 has no word for it: its connection ends without an acknowledgement.
    let mut old = Sensor::connect(at, &hello(4, "spo2"));
    old.send(&publish(4, 0x02, 1, topic, &body(acknowledged + 1))).unwrap();
    old.is_closed_after(&[]);
    std::fs::write(folder.path().join("out/.mounted"), "").unwrap();
    eventually("what was acknowledged is delivered", || gateway.backlog() == 0);
    let last = acknowledged + 1;
    eventually("it is taken as soon as there is room", || {
        let mut sensor = Sensor::connect(at, &hello(5, "spo2"));
        sensor.send(&publish(5, 0x0A, last, topic, &body(last))).unwrap();
        sensor.read().unwrap().starts_with(&[0x40, 2])
    });
    let records = records(&gateway, folder.path());
    let number = |record| String::from_utf8(payload(record)[..5].to_vec()).unwrap().parse().unwrap();
    let arrived: Vec<u16> = records.iter().map(number).collect();
    assert_eq!(arrived, (1..=last).collect::<Vec<u16>>());
    let missing = records.last().unwrap().gap.as_ref().and_then(|gap| gap.count).unwrap();
    assert!(missing >= 2, "both refusals are told, since nobody here knows that they came again: {missing}");
}

fn text(sensor: usize, number: usize) -> Vec<u8> {
    format!("sensor {sensor} reading {number} {}", "\u{b0}".repeat(number % 97)).into_bytes()
}

fn packet_id(number: usize) -> u16 {
    u16::try_from(number % 60_000 + 1).unwrap()
}

/// Publishes from number `next` on until the connection ends; returns the first number that was not acknowledged.
fn publish_until_the_end(at: SocketAddr, sensor: usize, mut next: usize, acknowledged: &AtomicUsize) -> usize {
    let id = format!("sensor-{sensor}");
    let qos_2 = sensor >= QOS_2_FROM;
    let flags = if qos_2 { 0x04 } else { 0x02 };
    let Ok((mut connection, _)) = Sensor::greet(at, &hello(4, &id)) else { return next };
    let (mut sent, mut unacknowledged) = (next, VecDeque::new());
    loop {
        let mut batch = Vec::new();
        while unacknowledged.len() < IN_FLIGHT {
            batch.extend(publish(4, flags, packet_id(sent), "ward3/x", &text(sensor, sent)));
            unacknowledged.push_back(packet_id(sent));
            sent += 1;
        }
        if connection.send(&batch).is_err() {
            return next;
        }
        let Ok(answer) = connection.read() else { return next };
        match answer.as_slice() {
            [0x40 | 0x50, 2, high, low] => {
                assert_eq!(unacknowledged.pop_front(), Some(u16::from_be_bytes([*high, *low])), "out of order");
                next += 1;
                acknowledged.fetch_add(1, Ordering::SeqCst);
                if qos_2 && connection.send(&[0x62, 2, *high, *low]).is_err() {
                    return next;
                }
            }
            [0x70, ..] => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn every_acknowledged_message_arrives_however_often_the_service_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let clients: String = (0..SENSORS)
        .map(|sensor| format!("[[source.sensors.mqtt.client]]\nid = \"sensor-{sensor}\"\npublish = [\"ward3/#\"]\n"))
        .collect();
    let mut gateway = Gateway::start(folder.path(), &sensors_to_folder(folder.path(), "", &clients));
    let mut next = [0; SENSORS];
    let rounds = rounds(3, 25) as usize;
    for round in 0..rounds {
        let at = gateway.endpoint("sensors");
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let senders: Vec<_> = (0..SENSORS)
            .map(|sensor| {
                let (from, acknowledged) = (next[sensor], Arc::clone(&acknowledged));
                std::thread::spawn(move || publish_until_the_end(at, sensor, from, &acknowledged))
            })
            .collect();
        // Killed at another moment in each round: by work done, and not by a clock.
        let work = 150 + round * 53 % 160;
        eventually("the work is acknowledged", || acknowledged.load(Ordering::SeqCst) >= work);
        gateway.process.kill();
        for (sensor, sender) in senders.into_iter().enumerate() {
            next[sensor] = sender.join().unwrap();
        }
        gateway = Gateway::again(folder.path());
    }
    let arrived: BTreeSet<Vec<u8>> = records(&gateway, folder.path()).iter().map(payload).collect();
    for (sensor, acknowledged) in next.into_iter().enumerate() {
        let missing = (0..acknowledged).find(|number| !arrived.contains(&text(sensor, *number)));
        assert_eq!(missing, None, "sensor {sensor} of {acknowledged}");
    }
    let possible: BTreeSet<Vec<u8>> = next
        .iter()
        .enumerate()
        .flat_map(|(sensor, end)| (0..end + IN_FLIGHT + 1).map(move |number| text(sensor, number)))
        .collect();
    assert!(arrived.is_subset(&possible), "a payload was changed on the way");
    assert!(next.iter().all(|acknowledged| *acknowledged > 0), "{next:?}");
}
