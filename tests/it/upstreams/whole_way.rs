//! From the spool over the forwarder to a peer that is killed and comes back.

use std::sync::Arc;

use aws_lc_rs::digest;
use wardgate::envelope::{Class, Flags, Meta};
use wardgate::spool::{Disk, Secret, Spool, SpoolConfig};
use wardgate::upstream::forwarder::Forwarding;
use wardgate::upstream::{Stop, UpstreamConfig};

use super::{count, hex, identity, message, section};
use crate::support::ports::start_on_port;
use crate::support::process::Process;
use crate::support::tools::python_peer;
use crate::support::wait::eventually_async;

const MESSAGES: usize = 60;

async fn store(spool: &Spool, number: usize) -> String {
    let body = message(&format!("M{number}"), "|");
    let source = "monitors".parse().unwrap();
    let mut draft = spool.begin(Class::Clinical, &source);
    draft.write(body.as_bytes()).await.unwrap();
    let meta = Meta {
        source,
        protocol: "mllp".into(),
        content_type: "application/hl7-v2".into(),
        control_id: format!("M{number}").into_bytes(),
        targets: vec![identity().upstream],
        flags: Flags::default(),
        received: spool.now(),
        tokens: Vec::new(),
    };
    draft.commit(meta).await.unwrap();
    hex(digest::digest(&digest::SHA256, body.as_bytes()).as_ref())
}

#[tokio::test]
async fn a_peer_that_is_killed_in_the_middle_has_every_message_in_order_in_the_end() {
    let (folder, peer_store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let config: SpoolConfig = section("path = '/unused'\nkey = 'unused'");
    let spool = Spool::open(Arc::new(Disk::open(folder.path()).unwrap()), Secret::random(), &config).unwrap();
    let server = |port: u16| {
        let port = port.to_string();
        // Slow enough to be killed in the middle.
        let arguments = ["--delay", "0.01", "--port", &port];
        Process::start(python_peer("mllp_server.py").args(arguments).arg("--store").arg(peer_store.path()))
    };
    let (first, port) = start_on_port(server);
    let upstream: UpstreamConfig = section(&format!("[mllp]\naddress = \"127.0.0.1:{port}\"\nplain = true"));
    let forwarding = Forwarding {
        identity: identity(),
        spool: spool.clone(),
        lanes: vec![spool.lane(Class::Clinical, &"monitors".parse().unwrap(), &identity().upstream)],
        conversions: tokio::sync::watch::Sender::new(Arc::default()).subscribe(),
        counters: Arc::default(),
        holds: Arc::default(),
        status: tokio::sync::watch::Sender::new(Arc::default()).subscribe(),
    };
    let (counters, stop) = (Arc::clone(&forwarding.counters), Stop::new());
    let running = tokio::spawn(upstream.forward(forwarding, stop.clone()));
    let mut expected = Vec::new();
    for number in 0..MESSAGES {
        expected.push(store(&spool, number).await);
    }
    eventually_async("some arrived", || async { count(peer_store.path()) >= 10 }).await;
    first.kill();
    let arrived = count(peer_store.path());
    assert!(arrived < MESSAGES, "it was killed too late to show anything");
    let second = server(port);
    eventually_async("all arrived", || async { counters.delivered.value() == u64::try_from(MESSAGES).unwrap() }).await;
    drop(second);
    stop.cancel();
    running.await.unwrap();
    let order = std::fs::read_to_string(peer_store.path().join("order")).unwrap();
    let mut seen: Vec<&str> = order.lines().map(|line| line.split(' ').next().unwrap()).collect();
    seen.dedup();
    assert_eq!(seen, expected, "in order; a second copy only of the one that was on its way");
    assert_eq!(spool.lanes().iter().map(|lane| lane.backlog).sum::<u64>(), 0);
    tokio::task::spawn_blocking(move || spool.close()).await.unwrap();
}
