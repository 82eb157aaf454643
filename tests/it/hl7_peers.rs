//! HL7 v2 with devices and engines that are not ours on both sides of the real executable: `@medplum/hl7` (npm) and `hl7` (PyPI).
//!
//! Each has its own idea of an acknowledgement and of a frame; what is proven is that theirs and ours fit, and that bytes in are
//! bytes out, by hash.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use crate::gateway::{engine, monitors_to_engine, route};
use crate::mqtt::{hex, sha256};
use crate::support::gateway::Gateway;
use crate::support::mllp::message_asking;
use crate::support::process::{Process, succeeds};
use crate::support::tools::{node_peer, python_peer};
use crate::support::wait::eventually;

/// A folder of messages that ask for these acknowledgements (MSH-15, MSH-16), longer and longer and not in ASCII, and their
/// hashes in order.
fn outbox(count: usize, accept: &str, application: &str) -> (TempDir, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let mut hashes = Vec::new();
    for number in 0..count {
        let mut body = message_asking(&format!("ID-{number}"), accept, application);
        body.extend_from_slice("NTE|1||Grüße, καλημέρα, 中文|".as_bytes());
        body.extend_from_slice("x".repeat(number * number * 500).as_bytes());
        body.push(b'\r');
        fs::write(folder.path().join(format!("{number:03}.hl7")), &body).unwrap();
        hashes.push(hex(&sha256(&body)));
    }
    (folder, hashes)
}

/// Hashes of what an engine was sent, in the order in which it came.
fn order(store: &Path) -> Vec<String> {
    let text = fs::read_to_string(store.join("order")).unwrap_or_default();
    text.lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect()
}

#[track_caller]
fn all_arrive_in_order(gateway: &Gateway, store: &Path, hashes: &[String]) {
    eventually("all arrived, in order", || order(store) == hashes);
    assert!(hashes.iter().all(|hash| store.join(hash).exists()));
    let delivered = || gateway.status()["upstreams"]["engine"]["delivered"] == hashes.len();
    eventually("each has its receipt", || delivered() && gateway.backlog() == 0);
}

fn port_of(gateway: &Gateway) -> String {
    gateway.endpoint("monitors").port().to_string()
}

#[test]
fn a_medplum_device_reaches_a_python_engine_byte_for_byte() {
    let (folder, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut server = Process::start(python_peer("mllp_server.py").arg("--store").arg(store.path()));
    let gateway = Gateway::start(folder.path(), &monitors_to_engine(server.listening().port()));
    let (outbox, hashes) = outbox(12, "", "");
    let said = succeeds(node_peer("medplum.mjs").args(["send", &port_of(&gateway)]).arg(outbox.path()));
    assert!(said.contains("000.hl7 AA") && said.contains("sent 12"), "{said}");
    all_arrive_in_order(&gateway, store.path(), &hashes);
}

#[test]
fn a_python_device_that_does_not_wait_reaches_a_medplum_engine_in_order() {
    let (folder, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut server = Process::start(node_peer("medplum.mjs").arg("serve").arg(store.path()));
    let gateway = Gateway::start(folder.path(), &monitors_to_engine(server.listening().port()));
    let (outbox, hashes) = outbox(40, "", "");
    let mut client = python_peer("mllp_client.py");
    let client = client.args(["--pipelined", "--expect", "AA", "--port", &port_of(&gateway)]);
    let said = succeeds(client.arg("--folder").arg(outbox.path()));
    assert!(said.contains("sent 40"), "{said}");
    all_arrive_in_order(&gateway, store.path(), &hashes);
}

#[test]
fn medplum_on_both_sides_in_enhanced_mode_has_one_receipt_for_each_message() {
    let (folder, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // This engine answers each message twice: CA, then the application's AA.
    let mut server = Process::start(node_peer("medplum.mjs").arg("serve").arg(store.path()).arg("enhanced"));
    let gateway = Gateway::start(folder.path(), &monitors_to_engine(server.listening().port()));
    let (outbox, hashes) = outbox(20, "AL", "NE");
    let mut client = node_peer("medplum.mjs");
    let said = succeeds(client.args(["send", &port_of(&gateway)]).arg(outbox.path()).args(["first", "pipelined"]));
    assert_eq!(said.matches(".hl7 CA").count(), 20, "{said}");
    all_arrive_in_order(&gateway, store.path(), &hashes);
    let status = gateway.status();
    let engine = &status["upstreams"]["engine"];
    assert_eq!((&engine["retried"], &engine["connects"]), (&0.into(), &1.into()), "{engine}");
}

#[test]
fn a_medplum_device_that_waits_for_its_application_gets_that_answer_when_the_source_gives_it() {
    let (folder, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut server = Process::start(node_peer("medplum.mjs").arg("serve").arg(store.path()).arg("enhanced"));
    let source = "[source.monitors.mllp]\nlisten = \"127.0.0.1:0\"\napplication-ack = \"on-commit\"\n";
    let upstream = engine("engine", server.listening().port());
    let gateway = Gateway::start(folder.path(), &format!("{source}{upstream}{}", route("monitors", &["engine"])));
    let (outbox, hashes) = outbox(5, "AL", "AL");
    let said = succeeds(node_peer("medplum.mjs").args(["send", &port_of(&gateway)]).arg(outbox.path()));
    assert_eq!(said.matches(".hl7 AA").count(), 5, "{said}");
    all_arrive_in_order(&gateway, store.path(), &hashes);
}
