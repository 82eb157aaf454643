//! The promise under the worst treatment: the real executable killed again and again under load, its upstream down and up.
//!
//! Eight devices send numbered messages and, as devices do, send one again that was not acknowledged. At the end everything that
//! was acknowledged has arrived, byte for byte, each device's messages in their order. Second copies are allowed, counted
//! and printed: an upstream knows them by their MSH-10.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::gateway::monitors_to_engine;
use crate::support::gateway::Gateway;
use crate::support::mllp::{Device, Engine, long_message, message};
use crate::support::rounds;
use crate::support::wait::eventually;

const DEVICES: usize = 8;
/// Every so many messages one is longer than what the service keeps in memory until it is whole.
const LONG_EVERY: usize = 16;
const LONG_BYTES: usize = 100_000;

fn id(device: usize, number: usize) -> String {
    format!("D{device}-{number}")
}

fn body(device: usize, number: usize) -> Vec<u8> {
    match number % LONG_EVERY {
        5 => long_message(&id(device, number), LONG_BYTES),
        _ => message(&id(device, number)),
    }
}

/// Sends from number `next` on until the connection ends; returns the first number that was not acknowledged.
fn send_until_the_end(at: SocketAddr, device: usize, mut next: usize, acknowledged: &AtomicUsize) -> usize {
    let Ok(mut connection) = Device::try_connect(at) else { return next };
    while let Ok(answer) = connection.exchange(&body(device, next)) {
        let expected = format!("MSA|AA|{}\r", id(device, next));
        assert!(String::from_utf8_lossy(&answer).contains(&expected), "{}", String::from_utf8_lossy(&answer));
        next += 1;
        acknowledged.fetch_add(1, Ordering::SeqCst);
    }
    next
}

/// One life of the service: load, the upstream taken away or given back in the middle, SIGKILL.
fn live_and_die(gateway: Gateway, engine: &mut Engine, next: &mut [usize; DEVICES], round: usize) {
    let at = gateway.endpoint("monitors");
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let devices: Vec<_> = (0..DEVICES)
        .map(|device| {
            let (from, acknowledged) = (next[device], Arc::clone(&acknowledged));
            std::thread::spawn(move || send_until_the_end(at, device, from, &acknowledged))
        })
        .collect();
    // Killed at another moment in each round: by work done, and not by a clock.
    let work = 60 + round * 53 % 160;
    eventually("half of the work is acknowledged", || acknowledged.load(Ordering::SeqCst) >= work / 2);
    if round.is_multiple_of(2) {
        engine.cut()
    } else {
        engine.restore()
    }
    eventually("the rest is acknowledged", || acknowledged.load(Ordering::SeqCst) >= work);
    gateway.process.kill();
    for (device, sender) in devices.into_iter().enumerate() {
        next[device] = sender.join().unwrap();
    }
}

#[test]
fn what_was_acknowledged_arrives_in_order_however_often_the_service_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let mut engine = Engine::up();
    let mut next = [0; DEVICES];
    let rounds = rounds(25, 200) as usize;
    let mut gateway = Gateway::start(folder.path(), &monitors_to_engine(engine.port));
    for round in 0..rounds {
        live_and_die(gateway, &mut engine, &mut next, round);
        gateway = Gateway::again(folder.path());
    }
    engine.restore();
    eventually("everything that waits is delivered", || gateway.backlog() == 0);
    gateway.stop();

    let (order, copies) = engine.first_arrivals();
    for (device, acknowledged) in next.iter().enumerate() {
        let prefix = format!("D{device}-");
        let own: Vec<&String> = order.iter().filter(|id| id.starts_with(&prefix)).collect();
        // One more may have been stored whose acknowledgement was killed on its way.
        assert!((*acknowledged..=acknowledged + 1).contains(&own.len()), "{prefix}: {} of {acknowledged}", own.len());
        for (number, arrived) in own.iter().enumerate() {
            assert_eq!(**arrived, id(device, number), "out of order, or one is missing");
        }
    }
    let expected: BTreeSet<Vec<u8>> =
        next.iter().enumerate().flat_map(|(device, end)| (0..=*end).map(move |number| body(device, number))).collect();
    assert!(engine.arrivals().iter().all(|arrived| expected.contains(arrived)), "a body was changed on the way");
    let acknowledged: usize = next.iter().sum();
    assert!(acknowledged >= rounds * 60);
    eprintln!("{rounds} kills, {acknowledged} messages acknowledged, none lost, {copies} second copies");
}
