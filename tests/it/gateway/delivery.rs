//! What a device sends is acknowledged and arrives, byte for byte, now or when the upstream is back.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use aws_lc_rs::digest;
use data_encoding::HEXLOWER;

use super::{engine, monitors_to_engine, route, source};
use crate::support::gateway::Gateway;
use crate::support::mllp::{Device, Engine, field, long_message, message, message_asking};
use crate::support::process::{Process, succeeds};
use crate::support::tools::{python_peer, repository};
use crate::support::wait::eventually;

fn sha256(body: &[u8]) -> String {
    HEXLOWER.encode(digest::digest(&digest::SHA256, body).as_ref())
}

/// Names and bodies of the corpus, in order.
fn corpus() -> Vec<(String, Vec<u8>)> {
    let folder = repository().join("tests/corpus/hl7");
    let names = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let names: BTreeSet<String> = names.filter(|name| name.ends_with(".hl7")).collect();
    names.into_iter().map(|name| (name.clone(), fs::read(folder.join(name)).unwrap())).collect()
}

/// SHA-256 of every file in a folder.
fn hashes(folder: &Path) -> BTreeSet<String> {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.is_file()).map(|path| sha256(&fs::read(path).unwrap())).collect()
}

#[test]
fn what_a_foreign_device_sends_reaches_a_foreign_engine_byte_for_byte() {
    let (folder, outbox, store) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut server = Process::start(python_peer("mllp_server.py").arg("--store").arg(store.path()));
    let gateway = Gateway::start(folder.path(), &monitors_to_engine(server.listening().port()));
    let bodies: Vec<Vec<u8>> = (0..20).map(|n| long_message(&format!("M{n}"), n * n * 700)).collect();
    for (number, body) in bodies.iter().enumerate() {
        fs::write(outbox.path().join(format!("{number:02}.hl7")), body).unwrap();
    }
    let port = gateway.endpoint("monitors").port().to_string();
    let mut client = python_peer("mllp_client.py");
    succeeds(client.args(["--port", &port, "--connections", "3"]).arg("--folder").arg(outbox.path()));
    let arrived = |body: &Vec<u8>| store.path().join(sha256(body)).exists();
    eventually("all arrived by hash", || bodies.iter().all(arrived));
    eventually("nothing waits", || gateway.backlog() == 0);
    gateway.stop();
}

#[test]
fn every_message_of_the_corpus_arrives_by_hash_and_what_an_engine_could_never_take_says_why() {
    let (folder, archive) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let receiver = Engine::up();
    let directory = format!("[upstream.archive.directory]\npath = \"{}\"\nunsealed = true\n", archive.path().display());
    let config =
        source("monitors") + &engine("engine", receiver.port) + &directory + &route("monitors", &["engine", "archive"]);
    let gateway = Gateway::start(folder.path(), &config);
    let mut device = Device::connect(gateway.endpoint("monitors"));
    let corpus = corpus();
    for (_, body) in &corpus {
        device.write(body).unwrap();
    }
    let sent: BTreeSet<String> = corpus.iter().map(|(_, body)| sha256(body)).collect();
    assert_eq!(sent.len(), corpus.len());
    eventually("every hash is in the archive", || hashes(archive.path()) == sent);
    eventually("nothing waits for the engine", || gateway.backlog() == 0);
    let (arrived, missing): (Vec<_>, Vec<_>) = corpus.iter().partition(|(_, body)| receiver.has(body));
    let no_receipt = |name: &str| {
        let modes = ["35-mode-su", "36-mode-er-ne", "37-mode-ne-ne", "38-mode-ne-er", "39-mode-empty-ne"];
        modes.iter().any(|mode| name.starts_with(mode))
    };
    for (name, _) in &missing {
        assert!(name.contains("-reject-") || no_receipt(name), "{name} did not reach the engine");
    }
    assert_eq!(arrived.len() + gateway.dead().len(), corpus.len());
    for letter in gateway.dead() {
        let reason = letter["reason"].as_str().unwrap();
        let known = ["control id", "not an HL7 message", "ask for no positive answer", "MSH-10"];
        assert!(letter["upstream"] == "engine" && known.iter().any(|words| reason.contains(words)), "{letter}");
    }
}

#[test]
fn while_the_upstream_is_down_devices_are_answered_and_afterwards_everything_arrives_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let mut receiver = Engine::down();
    let gateway = Gateway::start(folder.path(), &monitors_to_engine(receiver.port));
    let mut device = Device::connect(gateway.endpoint("monitors"));
    let ids: Vec<String> = (0..100).map(|n| format!("M{n}")).collect();
    for (sent, id) in (1..).zip(&ids) {
        assert_eq!(device.send(&message(id)), "AA");
        if sent % 25 == 0 {
            assert_eq!(gateway.backlog(), sent);
        }
    }
    let status = gateway.status();
    assert_eq!(status["upstreams"]["engine"]["link"]["state"], "down", "{status}");
    receiver.restore();
    eventually("the backlog is drained", || gateway.backlog() == 0);
    assert_eq!(receiver.first_arrivals(), (ids, 0));
}

#[test]
fn a_device_is_answered_in_the_mode_that_it_asks_for() {
    let folder = tempfile::tempdir().unwrap();
    let receiver = Engine::up();
    let gateway = Gateway::start(folder.path(), &monitors_to_engine(receiver.port));
    let mut device = Device::connect(gateway.endpoint("monitors"));
    assert_eq!(device.send(&message("original")), "AA");
    assert_eq!(device.send(&message_asking("enhanced", "AL", "NE")), "CA");
    assert_eq!(device.send(&message_asking("both", "AL", "AL")), "CA");
    let answer = device.exchange(&message("swapped")).unwrap();
    let of = |number| field(&answer, "MSH", number);
    assert_eq!([of(3), of(4), of(5), of(6)], ["GW", "HOSP", "MON", "ICU"]);
    assert_eq!(of(9), "ACK^R01^ACK");
    eventually("all arrived", || receiver.count() == 4);
}

#[test]
fn a_repeated_message_is_acknowledged_again_and_delivered_once() {
    let folder = tempfile::tempdir().unwrap();
    let receiver = Engine::up();
    let gateway = Gateway::start(folder.path(), &monitors_to_engine(receiver.port));
    let at = gateway.endpoint("monitors");
    let mut device = Device::connect(at);
    assert_eq!((device.send(&message("1")), device.send(&message("1"))), ("AA".into(), "AA".into()));
    // A device that lost its connection sends again over another one.
    assert_eq!(Device::connect(at).send(&message("1")), "AA");
    // The same MSH-10 with another content is another message: counters begin anew when a monitor is switched on.
    assert_eq!(device.send(&long_message("1", 10)), "AA");
    eventually("both arrived", || receiver.count() == 2 && gateway.backlog() == 0);
    let source = &gateway.status()["sources"]["monitors"];
    assert_eq!((&source["received"], &source["stored"], &source["repeats"]), (&4.into(), &2.into(), &2.into()));
    gateway.stop();
    assert_eq!(receiver.count(), 2);
}
