//! The peers prove themselves on each other first, so that a failing test of ours can't be a peer's fault.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use crate::support::certs::{Authority, Issued};
use crate::support::process::{Process, run, succeeds};
use crate::support::tools::{node_peer, python_peer};

/// Two messages of invented patients, as files a sender takes.
fn messages(folder: &Path) {
    for (name, id) in [("one.hl7", "M1"), ("two.hl7", "M2")] {
        let text = format!(
            "MSH|^~\\&|MON|ICU|GW|HOSP|20260102030405||ORU^R01^ORU_R01|{id}|P|2.5.1\rPID|1||TEST-1||Probe^Paula\rOBX|1|NM|8867-4^Heart rate^LN||72|/min\r"
        );
        fs::write(folder.join(name), text).unwrap();
    }
}

fn stored(store: &Path) -> usize {
    fs::read_dir(store).unwrap().filter(|entry| entry.as_ref().unwrap().file_name().len() == 64).count()
}

#[test]
fn the_python_sender_and_receiver_agree_over_plain_tcp() {
    let (outbox, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    messages(outbox.path());
    let mut server = Process::start(python_peer("mllp_server.py").arg("--store").arg(store.path()));
    let port = server.listening().port().to_string();
    let said = succeeds(python_peer("mllp_client.py").args(["--port", &port]).arg("--folder").arg(outbox.path()));
    assert!(said.contains("sent 2"), "{said}");
    assert_eq!(stored(store.path()), 2);
}

#[test]
fn the_python_sender_reports_an_answer_that_is_not_the_expected_one() {
    let (outbox, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    messages(outbox.path());
    let mut server =
        Process::start(python_peer("mllp_server.py").args(["--answers", "AA,AE"]).arg("--store").arg(store.path()));
    let port = server.listening().port().to_string();
    let ended = run(python_peer("mllp_client.py").args(["--port", &port]).arg("--folder").arg(outbox.path()));
    assert!(!ended.status.success());
    assert!(ended.said.contains("two.hl7: answered AE"), "{}", ended.said);
    assert_eq!(stored(store.path()), 1);
}

#[test]
fn the_python_peers_agree_over_mutual_tls_and_refuse_a_stranger() {
    let (outbox, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    messages(outbox.path());
    let ours = Authority::new(outbox.path(), "ours");
    let (server, client) = (ours.server("server"), ours.client("client"));
    let stranger = Authority::new(outbox.path(), "strange").client("stranger");
    let mut end = Process::start(
        python_peer("mllp_server.py")
            .arg("--store")
            .arg(store.path())
            .arg("--certificate")
            .arg(&server.certificate)
            .arg("--key")
            .arg(&server.key)
            .arg("--client-ca")
            .arg(&ours.certificate),
    );
    let port = end.listening().port().to_string();
    let send_as = |who: &Issued| {
        run(python_peer("mllp_client.py")
            .args(["--port", &port])
            .arg("--folder")
            .arg(outbox.path())
            .arg("--ca")
            .arg(&ours.certificate)
            .arg("--certificate")
            .arg(&who.certificate)
            .arg("--key")
            .arg(&who.key))
    };
    assert!(!send_as(&stranger).status.success());
    assert_eq!(stored(store.path()), 0);
    let ended = send_as(&client);
    assert!(ended.status.success(), "{}", ended.said);
    assert_eq!(stored(store.path()), 2);
}

#[test]
fn the_javascript_sender_and_receiver_agree_with_the_python_ones() {
    let (outbox, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    messages(outbox.path());
    let mut python = Process::start(python_peer("mllp_server.py").arg("--store").arg(store.path()));
    let port = python.listening().port().to_string();
    let said = succeeds(node_peer("medplum.mjs").args(["send", &port]).arg(outbox.path()));
    assert!(said.contains("sent 2"), "{said}");
    assert_eq!(stored(store.path()), 2);

    let other = tempfile::tempdir().unwrap();
    let mut node = Process::start(node_peer("medplum.mjs").arg("serve").arg(other.path()));
    let port = node.listening().port().to_string();
    succeeds(python_peer("mllp_client.py").args(["--port", &port]).arg("--folder").arg(outbox.path()));
    assert_eq!(stored(other.path()), 2);
}

fn post(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.lines().next().unwrap_or_default().to_owned()
}

#[test]
fn the_http_end_takes_bodies_of_both_kinds_and_answers_as_told() {
    let store = tempfile::tempdir().unwrap();
    let mut end = Process::start(
        python_peer("https_end.py")
            .args(["--statuses", "503,201", "--retry-after", "1", "--token", "t0ken"])
            .arg("--store")
            .arg(store.path()),
    );
    let address = end.listening();
    let head = "POST /in HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer t0ken\r\n";
    let plain = format!("{head}Content-Length: 5\r\n\r\nhello");
    let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
    assert!(post(address, &plain).contains("503"));
    assert_eq!(stored(store.path()), 0);
    assert!(post(address, &plain).contains("201"));
    assert!(post(address, &chunked).contains("201"));
    assert!(post(address, &chunked.replace("t0ken", "other")).contains("401"));
    assert_eq!(stored(store.path()), 1);
    assert_eq!(fs::read_to_string(store.path().join("requests")).unwrap().lines().count(), 4);
}
