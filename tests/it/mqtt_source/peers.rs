//! Sensors that are not ours: mosquitto's command, paho (Python) and rumqttc, each with its own idea of the protocol.

use std::time::Duration;

use super::{about, payload, records, sensors, start};
use crate::support::gateway::Gateway;
use crate::support::process::succeeds;
use crate::support::tools::{python_peer, system};
use crate::support::wait::eventually;

const CLIENTS: &str = "[[source.sensors.mqtt.client]]\nid = \"sensor\"\npublish = [\"ward3/#\"]\n";
const COUNT: usize = 50;

fn port(gateway: &Gateway) -> String {
    gateway.endpoint("sensors").port().to_string()
}

#[test]
fn mosquitto_pub_is_served_in_both_versions_with_every_qos_that_is_offered() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "", CLIENTS);
    for (version, qos) in [("mqttv311", "0"), ("mqttv311", "1"), ("mqttv311", "2"), ("mqttv5", "0"), ("mqttv5", "1")] {
        let mut command = system("mosquitto_pub");
        command.args(["-h", "127.0.0.1", "-p", &port(&gateway), "-V", version, "-i", "sensor", "-q", qos, "-r"]);
        if version == "mqttv5" {
            command.args(["-D", "publish", "user-property", "bed", "7", "-D", "publish", "content-type", "text/plain"]);
        }
        succeeds(command.args(["-t", "ward3/mosquitto", "-m", &format!("{version} {qos}")]));
    }
    eventually("all are stored", || sensors(&gateway)["stored"] == 5);
    let records = records(&gateway, folder.path());
    let texts: Vec<String> = records.iter().map(|record| String::from_utf8(payload(record)).unwrap()).collect();
    assert_eq!(texts, ["mqttv311 0", "mqttv311 1", "mqttv311 2", "mqttv5 0", "mqttv5 1"]);
    assert_eq!((about(&records[4], "user:bed"), about(&records[4], "content-type")), (Some("7"), Some("text/plain")));
    assert!(records.iter().all(|record| about(record, "retain") == Some("true")));
}

#[test]
fn paho_keeps_many_in_flight_and_all_arrive_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "", CLIENTS);
    let mut expected = Vec::new();
    for (version, qos) in [("4", "1"), ("4", "2"), ("5", "1"), ("5", "0")] {
        let said = succeeds(python_peer("paho_sensor.py").args([&port(&gateway), version, qos, &COUNT.to_string()]));
        assert!(said.contains(&format!("acknowledged {COUNT}")), "{said}");
        assert!(said.contains("subscription refused"), "{said}");
        expected.extend((0..COUNT).map(|number| format!("{version} {qos} {number} \u{b0}C")));
    }
    eventually("all are stored", || sensors(&gateway)["stored"] == expected.len());
    let records = records(&gateway, folder.path());
    let texts: Vec<String> = records.iter().map(|record| String::from_utf8(payload(record)).unwrap()).collect();
    assert_eq!(texts, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn rumqttc_of_both_versions_gets_its_acknowledgements() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = tokio::task::block_in_place(|| start(folder.path(), "", CLIENTS));
    let at = tokio::task::block_in_place(|| gateway.endpoint("sensors"));
    let (client, mut events) =
        rumqttc::AsyncClient::new(rumqttc::MqttOptions::new("sensor", "127.0.0.1", at.port()), 100);
    for number in 0..COUNT {
        client.publish("ward3/rumqttc", rumqttc::QoS::AtLeastOnce, false, number.to_string()).await.unwrap();
    }
    let mut acknowledged = 0;
    while acknowledged < COUNT {
        let event = tokio::time::timeout(Duration::from_secs(30), events.poll()).await.unwrap().unwrap();
        acknowledged += usize::from(matches!(event, rumqttc::Event::Incoming(rumqttc::Packet::PubAck(_))));
    }
    let options = rumqttc::v5::MqttOptions::new("sensor", "127.0.0.1", at.port());
    let (client, mut events) = rumqttc::v5::AsyncClient::new(options, 100);
    for number in 0..COUNT {
        let qos = rumqttc::v5::mqttbytes::QoS::AtLeastOnce;
        client.publish("ward3/rumqttc", qos, false, number.to_string()).await.unwrap();
    }
    let mut acknowledged = 0;
    while acknowledged < COUNT {
        let event = tokio::time::timeout(Duration::from_secs(30), events.poll()).await.unwrap().unwrap();
        let puback = matches!(event, rumqttc::v5::Event::Incoming(rumqttc::v5::mqttbytes::v5::Packet::PubAck(_)));
        acknowledged += usize::from(puback);
    }
    assert_eq!(tokio::task::block_in_place(|| records(&gateway, folder.path())).len(), 2 * COUNT);
}
