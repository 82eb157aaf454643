//! `wardgate probe mllp` and the demo's monitors against receivers that are not ours.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use wardgate::cli::ledger::{Ledger, fingerprint};
use wardgate::cli::monitors::Monitors;

use crate::support::certs::Authority;
use crate::support::process::{Process, wardgate};
use crate::support::tools::python_peer;
use crate::support::wait::eventually_async;

fn receiver(store: &Path, options: &[&str]) -> (Process, String) {
    let mut peer = Process::start(python_peer("mllp_server.py").arg("--store").arg(store).args(options));
    let address = peer.listening().to_string();
    (peer, address)
}

/// How a probe ended.
#[derive(Debug)]
struct Probed {
    code: Option<i32>,
    out: String,
    errors: String,
}

fn probe(arguments: &[&str]) -> Probed {
    let output = wardgate().args(["probe", "mllp"]).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Probed { code: output.status.code(), out: text(&output.stdout), errors: text(&output.stderr) }
}

#[test]
fn a_receiver_that_accepts_is_shown_with_its_answer_and_its_time() {
    let store = tempfile::tempdir().unwrap();
    let (_peer, address) = receiver(store.path(), &[]);
    let ended = probe(&[&address]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for words in ["connected over plain TCP in", "AA in", "application accept", "MSA|AA|WGPROBE"] {
        assert!(ended.out.contains(words), "{words} is not in:\n{}", ended.out);
    }
    let ended = probe(&[&address, "--enhanced", "--json"]);
    let finding: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!((&finding["accepted"], &finding["correlated"]), (&Value::Bool(true), &Value::Bool(true)), "{finding}");
    assert_eq!(fs::read_to_string(store.path().join("order")).unwrap().lines().count(), 2);
}

#[test]
fn a_refusal_a_wrong_answer_and_silence_each_have_their_code() {
    let store = tempfile::tempdir().unwrap();
    let (_refusing, address) = receiver(store.path(), &["--answers", "AR"]);
    let ended = probe(&[&address]);
    assert!(ended.code == Some(65) && ended.out.contains("application reject"), "{ended:?}");
    let (_confused, address) = receiver(store.path(), &["--wrong-id"]);
    let ended = probe(&[&address]);
    assert!(ended.code == Some(65) && ended.errors.contains("about another message"), "{ended:?}");
    let (_silent, address) = receiver(store.path(), &["--answers", "none"]);
    let ended = probe(&[&address, "--timeout", "300ms"]);
    assert!(ended.code == Some(69) && ended.errors.contains("no answer within"), "{ended:?}");
    let (_rude, address) = receiver(store.path(), &["--answers", "hang-up"]);
    let ended = probe(&[&address]);
    assert!(ended.code == Some(69) && ended.errors.contains("closed the connection"), "{ended:?}");
}

#[test]
fn nobody_there_ends_with_69_and_says_what_to_check() {
    let address = crate::support::ports::free_address().to_string();
    let ended = probe(&[&address]);
    assert!(ended.code == Some(69) && ended.errors.contains("check the port"), "{ended:?}");
}

#[test]
fn tls_is_spoken_when_a_ca_is_given_and_a_wrong_one_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, other) = (Authority::new(folder.path(), "ours"), Authority::new(folder.path(), "other"));
    let (server, client) = (ours.server("engine"), ours.client("box"));
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (certificate, key, ca) = (text(&server.certificate), text(&server.key), text(&ours.certificate));
    let (_peer, address) = receiver(folder.path(), &["--certificate", &certificate, "--key", &key, "--client-ca", &ca]);
    let (box_certificate, box_key) = (text(&client.certificate), text(&client.key));
    let mutual = ["--tls-certificate", &box_certificate, "--tls-key", &box_key];
    let ended = probe(&[&[&address, "--tls-ca", &ca][..], &mutual].concat());
    assert!(ended.code == Some(0) && ended.out.contains("connected over TLS"), "{ended:?}");
    let other = text(&other.certificate);
    let ended = probe(&[&[&address, "--tls-ca", &other][..], &mutual].concat());
    assert_eq!(ended.code, Some(69), "{ended:?}");
    let ended = probe(&[&address, "--tls-ca", "/nonexistent.pem"]);
    assert_eq!(ended.code, Some(78), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_monitors_were_promised_is_what_the_receiver_has_byte_for_byte() {
    let store = tempfile::tempdir().unwrap();
    let (_peer, address) = receiver(store.path(), &["--answers", "AA"]);
    let ledger = Arc::new(Ledger::default());
    let monitors = Monitors::start(4, &address.parse().unwrap(), &ledger);
    eventually_async("twelve messages are acknowledged", || async { ledger.totals().acknowledged >= 12 }).await;
    monitors.stop().await;
    for entry in fs::read_dir(store.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap() != "order" {
            assert!(ledger.arrived(&fingerprint(&fs::read(&path).unwrap())), "{path:?} is none of theirs");
        }
    }
    assert_eq!(ledger.missing(), Vec::<String>::new());
    assert_eq!(ledger.totals().arrived, ledger.totals().acknowledged);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_that_is_refused_sends_the_same_message_again() {
    let store = tempfile::tempdir().unwrap();
    let (_peer, address) = receiver(store.path(), &["--answers", "AE,hang-up,AA"]);
    let ledger = Arc::new(Ledger::default());
    let monitors = Monitors::start(1, &address.parse().unwrap(), &ledger);
    eventually_async("a message is acknowledged", || async { ledger.totals().acknowledged >= 1 }).await;
    monitors.stop().await;
    let order = fs::read_to_string(store.path().join("order")).unwrap();
    let first: Vec<&str> = order.lines().take(3).map(|line| line.split(' ').next().unwrap()).collect();
    assert!(first.len() == 3 && first.iter().all(|hash| *hash == first[0]), "{order}");
}
