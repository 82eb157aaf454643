//! The shortest whole way, HL7 in and MQTT out, with the service killed twice in between.
//!
//! It needs nothing but mosquitto and stays short: tests/arm/run puts the ARM executable through it under emulation, too.

use std::net::SocketAddr;

use crate::gateway::{route, source};
use crate::support::broker::Broker;
use crate::support::gateway::Gateway;
use crate::support::mllp::{Device, long_message, message};
use crate::support::ports::free_port;
use crate::support::subscriber::Subscriber;
use crate::support::wait::eventually;

/// Messages that are acknowledged in each life of the service.
const EACH_LIFE: usize = 12;
/// One in each life is longer than what is published in one part.
const LONG_BYTES: usize = 700_000;
/// Where the messages of the gateway come.
const MESSAGES: &str = "wardgate/+/+/+/+";

fn monitors_to_cloud(port: u16) -> String {
    let cloud = format!("[upstream.cloud.mqtt]\naddress = \"127.0.0.1:{port}\"\nplain = true\n");
    source("monitors") + &cloud + &route("monitors", &["cloud"])
}

fn bodies(life: usize) -> Vec<Vec<u8>> {
    let id = |number: usize| format!("L{life}-{number}");
    let short = (1..EACH_LIFE).map(|number| message(&id(number)));
    short.chain([long_message(&id(EACH_LIFE), LONG_BYTES)]).collect()
}

fn send(to: SocketAddr, bodies: &[Vec<u8>]) {
    let mut device = Device::connect(to);
    for body in bodies {
        assert_eq!(device.send(body), "AA");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_before_two_kills_reaches_the_broker_byte_for_byte_and_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let nobody = monitors_to_cloud(free_port());
    for life in [1, 2] {
        let gateway = Gateway::start(folder.path(), &nobody);
        send(gateway.endpoint("monitors"), &bodies(life));
        gateway.process.kill();
    }

    let broker = Broker::start(folder.path(), "");
    let subscriber = Subscriber::start(broker.port, MESSAGES, None).await;
    let gateway = Gateway::start(folder.path(), &monitors_to_cloud(broker.port));
    send(gateway.endpoint("monitors"), &bodies(3));
    let sent: Vec<Vec<u8>> = (1..=3).flat_map(bodies).collect();
    let came = subscriber.wait_for(sent.len()).await;
    let same: Vec<bool> = came.iter().zip(&sent).map(|(came, sent)| came.bytes == *sent).collect();
    assert_eq!(same, vec![true; sent.len()], "changed on the way, or out of order");
    eventually("the receipts are counted", || gateway.backlog() == 0);
    gateway.stop();
}
