//! MLLP: the server of the PyPI package `hl7`, plain and with mutual TLS, and an end of our own that answers as no good peer would.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use wardgate::upstream::mllp::{Mllp, MllpConfig};
use wardgate::upstream::{SendError, Upstream};

use super::{count, envelope, identity, kept, message, section};
use crate::support::certs::Authority;
use crate::support::process::Process;
use crate::support::tools::python_peer;

async fn connect(address: SocketAddr, more: &str) -> Result<Mllp, SendError> {
    let config: MllpConfig = section(&format!("address = \"localhost:{}\"\n{more}", address.port()));
    Mllp::connect(&config, &identity()).await
}

async fn send(upstream: &Mllp, id: &str, body: String) -> Result<String, SendError> {
    Ok(upstream.send(&envelope(id, body)).await?.receipt().await?.code)
}

#[tokio::test]
async fn the_bytes_that_arrive_are_the_bytes_that_were_stored() {
    let store = tempfile::tempdir().unwrap();
    let mut server = Process::start(python_peer("mllp_server.py").arg("--store").arg(store.path()));
    let upstream = connect(server.listening(), "plain = true").await.unwrap();
    for id in ["1", "2", " 3^x"] {
        let envelope = envelope(id, message(id, "|"));
        let receipt = upstream.send(&envelope).await.unwrap().receipt().await.unwrap();
        assert_eq!(receipt.code, "AA");
        assert!(kept(store.path(), &envelope.digest.bytes), "{id}");
    }
}

#[tokio::test]
async fn a_message_of_forty_megabytes_arrives_unchanged() {
    let store = tempfile::tempdir().unwrap();
    let mut server = Process::start(python_peer("mllp_server.py").arg("--store").arg(store.path()));
    let upstream = connect(server.listening(), "plain = true").await.unwrap();
    let large = message("big", "|") + "OBX|2|ED|PDF^report||^application^pdf^Base64^" + &"QUJD".repeat(10 << 20) + "\r";
    let envelope = envelope("big", large);
    assert_eq!(upstream.send(&envelope).await.unwrap().receipt().await.unwrap().code, "AA");
    assert!(kept(store.path(), &envelope.digest.bytes));
}

#[tokio::test]
async fn mutual_tls_lets_this_box_in_and_no_other_server_is_trusted() {
    let (store, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (ours, strange) = (Authority::new(folder.path(), "ours"), Authority::new(folder.path(), "strange"));
    let (server, client) = (ours.server("server"), ours.client("icu-3"));
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
    let address = end.listening();
    let tls = |ca: &Authority| {
        let (ca, certificate, key) = (ca.certificate.display(), client.certificate.display(), client.key.display());
        format!("tls = {{ ca = '{ca}', certificate = '{certificate}', key = '{key}' }}")
    };
    let upstream = connect(address, &tls(&ours)).await.unwrap();
    let envelope = envelope("1", message("1", "|"));
    upstream.send(&envelope).await.unwrap().receipt().await.unwrap();
    assert!(kept(store.path(), &envelope.digest.bytes));
    let Err(SendError::Disconnected { cause }) = connect(address, &tls(&strange)).await else {
        panic!("a server of a strange CA was trusted")
    };
    assert!(cause.contains("TLS"), "{cause}");
}

#[tokio::test]
async fn what_the_peer_answers_decides_and_the_connection_stays() {
    let store = tempfile::tempdir().unwrap();
    let answers = ["--answers", "AE,AR,CE,CR,CA,AA"];
    let mut server = Process::start(python_peer("mllp_server.py").args(answers).arg("--store").arg(store.path()));
    let upstream = connect(server.listening(), "plain = true").await.unwrap();
    let mut told = Vec::new();
    for id in ["1", "2", "3", "4", "5", "6"] {
        told.push(match send(&upstream, id, message(id, "|")).await {
            Ok(code) => code,
            Err(SendError::Refused { .. }) => "refused".into(),
            Err(SendError::Rejected { .. }) => "rejected".into(),
            Err(other) => other.to_string(),
        });
    }
    assert_eq!(told, ["refused", "rejected", "refused", "rejected", "CA", "AA"]);
    assert_eq!(count(store.path()), 2);
}

#[tokio::test]
async fn an_acknowledgement_of_another_message_is_passed_over() {
    let store = tempfile::tempdir().unwrap();
    let mut server = Process::start(python_peer("mllp_server.py").arg("--wrong-id").arg("--store").arg(store.path()));
    let upstream = connect(server.listening(), "plain = true").await.unwrap();
    assert_eq!(send(&upstream, "1", message("1", "|")).await.unwrap(), "AA");
}

#[tokio::test]
async fn without_an_acknowledgement_in_time_the_connection_is_given_up() {
    let store = tempfile::tempdir().unwrap();
    let mut server =
        Process::start(python_peer("mllp_server.py").args(["--answers", "none"]).arg("--store").arg(store.path()));
    let upstream = connect(server.listening(), "plain = true\nack-timeout = \"100ms\"").await.unwrap();
    let expected = "no acknowledgement within";
    let error = send(&upstream, "1", message("1", "|")).await.unwrap_err();
    assert!(matches!(&error, SendError::Disconnected { cause } if cause.contains(expected)), "{error}");
    assert!(upstream.closed().await.contains(expected));
    let error = send(&upstream, "2", message("2", "|")).await.unwrap_err();
    assert!(matches!(&error, SendError::Disconnected { .. }), "a late answer can't be taken for this one: {error}");
}

#[tokio::test]
async fn a_message_that_asks_for_no_answer_is_rejected_rewritten_or_taken_for_written_as_configured() {
    let store = tempfile::tempdir().unwrap();
    let mut server = Process::start(python_peer("mllp_server.py").arg("--store").arg(store.path()));
    let address = server.listening();
    let (asks, body) = ("NE|NE", message("1", "NE|NE"));
    let upstream = connect(address, "plain = true").await.unwrap();
    let error = send(&upstream, "1", body.clone()).await.unwrap_err();
    assert!(matches!(&error, SendError::Rejected { reason } if reason.contains("request-ack")), "{error}");
    assert_eq!(count(store.path()), 0, "nothing was sent");

    let upstream = connect(address, "plain = true\nrequest-ack = \"rewrite\"").await.unwrap();
    assert_eq!(send(&upstream, "1", body.clone()).await.unwrap(), "AA");
    let rewritten = envelope("1", body.replace(asks, "AL|NE"));
    assert!(kept(store.path(), &rewritten.digest.bytes), "the one declared change, and no other");

    let upstream = connect(address, "plain = true\nreceipt = \"written\"").await.unwrap();
    assert_eq!(send(&upstream, "1", body).await.unwrap(), "written");
}

#[tokio::test]
async fn what_no_acknowledgement_could_name_is_rejected_with_words() {
    let end = End::start(|_, _| Vec::new()).await;
    let upstream = connect(end.address, "plain = true").await.unwrap();
    for (body, expected) in [(message("", "|"), "MSH-10"), ("no header".into(), "MSH")] {
        let error = send(&upstream, "", body).await.unwrap_err();
        assert!(matches!(&error, SendError::Rejected { reason } if reason.contains(expected)), "{error}");
    }
}

/// An end that reads frames and answers with whatever bytes the test says for the nth; `None` hangs up.
struct End {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl End {
    async fn start(answer: impl Fn(usize, &[u8]) -> Vec<Answer> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut received = Vec::new();
            for nth in 0.. {
                let Some(frame) = frame(&mut stream, &mut received).await else { return };
                for answer in answer(nth, &frame) {
                    match answer {
                        Answer::Bytes(bytes) => stream.write_all(&bytes).await.unwrap(),
                        Answer::HangUp => return,
                    }
                }
            }
        });
        Self { address, task }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.task.abort();
    }
}

enum Answer {
    Bytes(Vec<u8>),
    HangUp,
}

fn ack(code: &str, id: &str) -> Answer {
    Answer::Bytes(format!("\x0bMSH|^~\\&|||||||ACK|9|P|2.5\rMSA|{code}|{id}\r\x1c\r").into_bytes())
}

async fn frame(stream: &mut TcpStream, received: &mut Vec<u8>) -> Option<Vec<u8>> {
    loop {
        if let Some(end) = received.windows(2).position(|pair| pair == b"\x1c\r") {
            return Some(received.drain(..end + 2).collect());
        }
        if stream.read_buf(received).await.ok()? == 0 {
            return None;
        }
    }
}

#[tokio::test]
async fn the_applications_late_answer_is_not_taken_for_the_next_message() {
    // CA for each; the application's AA for the first, and an AE, come just before the second's own CR.
    let end = End::start(|nth, _| match nth {
        0 => vec![ack("CA", "same")],
        _ => vec![ack("AA", "same"), ack("AE", "same"), ack("CR", "same")],
    })
    .await;
    let upstream = connect(end.address, "plain = true").await.unwrap();
    assert_eq!(send(&upstream, "same", message("same", "AL|AL")).await.unwrap(), "CA");
    let second = send(&upstream, "same", message("same", "AL|AL")).await;
    assert!(matches!(second, Err(SendError::Rejected { .. })), "{second:?}");
}

#[tokio::test]
async fn a_peer_that_hangs_up_before_it_answers_took_nothing() {
    let end = End::start(|_, _| vec![Answer::HangUp]).await;
    let upstream = connect(end.address, "plain = true").await.unwrap();
    let error = send(&upstream, "1", message("1", "|")).await.unwrap_err();
    assert!(matches!(error, SendError::Disconnected { .. }), "{error}");
}

#[tokio::test]
async fn an_idle_connection_that_the_peer_closes_is_noticed_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = connect(listener.local_addr().unwrap(), "plain = true").await.unwrap();
    drop(listener.accept().await.unwrap());
    let cause = tokio::time::timeout(Duration::from_secs(10), upstream.closed()).await.unwrap();
    assert!(cause.contains("closed the connection"), "{cause}");
}

#[tokio::test]
async fn odd_frames_around_the_acknowledgement_do_no_harm() {
    let end = End::start(|_, _| {
        let odd = b"\r\n junk \x0b\x1c\r\x0bnot hl7\x1c\r".to_vec();
        vec![Answer::Bytes(odd), Answer::Bytes(b"\x0bMSH|^~\\&|||||||ACK|9|P|2.5\nMSA|AA|1\n\x1c\n".to_vec())]
    })
    .await;
    let upstream = connect(end.address, "plain = true").await.unwrap();
    assert_eq!(send(&upstream, "1", message("1", "|")).await.unwrap(), "AA");
}

#[tokio::test]
async fn an_acknowledgement_before_the_message_has_ended_is_no_receipt() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let early = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let Answer::Bytes(bytes) = ack("AA", "1") else { unreachable!() };
        stream.write_all(&bytes).await.unwrap();
        // Never reads: the message does not fit into the buffers of both ends.
        std::future::pending::<()>().await;
    });
    let upstream = connect(address, "plain = true").await.unwrap();
    let body = message("1", "|") + &"X".repeat(32 << 20);
    let error = send(&upstream, "1", body).await.unwrap_err();
    assert!(matches!(&error, SendError::Disconnected { cause } if cause.contains("before it had all")), "{error}");
    early.abort();
}

#[tokio::test]
async fn a_peer_that_takes_nothing_more_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = connect(listener.local_addr().unwrap(), "plain = true\nwrite-timeout = \"200ms\"").await.unwrap();
    let _never_read = listener.accept().await.unwrap();
    let error = send(&upstream, "1", message("1", "|") + &"X".repeat(32 << 20)).await.unwrap_err();
    assert!(matches!(&error, SendError::Disconnected { cause } if cause.contains("write-timeout")), "{error}");
    assert!(upstream.closed().await.contains("write-timeout"));
}
