//! HTTPS: Python's own http.server and ssl.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use wardgate::upstream::https::{Https, HttpsConfig};
use wardgate::upstream::opening::Opener;
use wardgate::upstream::{SendError, Upstream};

use super::directory::age_identity;
use super::{count, envelope, hex, identity, kept, message, section};
use crate::support::certs::Authority;
use crate::support::process::Process;
use crate::support::tools::python_peer;

fn end(store: &Path, arguments: &[&str]) -> Process {
    Process::start(python_peer("https_end.py").args(arguments).arg("--store").arg(store))
}

async fn connect(end: &mut Process, scheme: &str, more: &str) -> Result<Https, SendError> {
    let url = format!("{scheme}://localhost:{}/in?site=1", end.listening().port());
    let config: HttpsConfig = section(&format!("url = \"{url}\"\n{more}"));
    Https::connect(&config, &identity()).await
}

async fn send(upstream: &Https, body: String) -> Result<String, SendError> {
    Ok(upstream.send(&envelope("4711", body)).await?.receipt().await?.code)
}

fn requests(store: &Path) -> Vec<serde_json::Value> {
    let lines = fs::read_to_string(store.join("requests")).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn a_post_carries_the_bytes_and_says_whose_they_are_but_nothing_of_what_is_in_them() {
    let store = tempfile::tempdir().unwrap();
    let mut end = end(store.path(), &[]);
    let upstream = connect(&mut end, "http", "plain = true").await.unwrap();
    let envelope = envelope("4711", message("4711", "|"));
    for _ in 0..3 {
        assert_eq!(upstream.send(&envelope).await.unwrap().receipt().await.unwrap().code, "201");
    }
    assert!(kept(store.path(), &envelope.digest.bytes));
    let request = requests(store.path()).remove(0);
    let header = |name: &str| {
        let headers = request["headers"].as_object().unwrap();
        let found = headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str().unwrap().to_owned()).unwrap_or_default()
    };
    let id = envelope.id.to_string();
    assert_eq!((request["method"].as_str(), request["path"].as_str()), (Some("POST"), Some("/in?site=1")));
    assert_eq!((header("idempotency-key"), header("wardgate-id")), (id.clone(), id));
    assert_eq!(header("content-type"), "application/hl7-v2; charset=utf-8");
    assert_eq!(header("wardgate-sha256"), hex(&envelope.digest.bytes));
    assert_eq!((header("wardgate-source"), header("wardgate-gateway")), ("monitors".into(), "icu-3".into()));
    assert_eq!(header("wardgate-received"), "2026-11-22T05:38:51Z");
    let text = request["headers"].to_string();
    assert!(!text.contains("4711") && !text.contains("Paula"), "{text}");
}

#[tokio::test]
async fn a_long_body_is_streamed_and_arrives_unchanged() {
    let store = tempfile::tempdir().unwrap();
    let mut end = end(store.path(), &[]);
    let upstream = connect(&mut end, "http", "plain = true").await.unwrap();
    let envelope = envelope("1", message("1", "|") + &"OBX|2|TX|||text\r".repeat(1 << 20));
    upstream.send(&envelope).await.unwrap().receipt().await.unwrap();
    assert!(kept(store.path(), &envelope.digest.bytes));
}

#[tokio::test]
async fn the_status_decides_and_retry_after_is_heard() {
    let store = tempfile::tempdir().unwrap();
    let statuses = "503,429,422,302,401,500,0,204";
    let mut end = end(store.path(), &["--statuses", statuses, "--retry-after", "7"]);
    let upstream = connect(&mut end, "http", "plain = true").await.unwrap();
    let mut told = Vec::new();
    for _ in 0..8 {
        told.push(match send(&upstream, message("1", "|")).await {
            Ok(code) => code,
            Err(SendError::Busy { after: Some(after), .. }) if after == Duration::from_secs(7) => "busy 7".into(),
            Err(SendError::Busy { .. }) => "busy".into(),
            Err(SendError::Refused { .. }) => "refused".into(),
            Err(SendError::Disconnected { .. }) => "disconnected".into(),
            Err(other) => other.to_string(),
        });
    }
    let expected = ["busy 7", "busy 7", "refused", "refused", "busy", "busy", "disconnected", "204"];
    assert_eq!(told, expected, "the last one over a new connection");
    assert_eq!(count(store.path()), 1);
}

/// Reads a request's head; the body, when there is one, stays unread.
async fn head(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    while !read.windows(4).any(|four| four == b"\r\n\r\n") {
        assert!(stream.read_buf(&mut read).await.unwrap() > 0);
    }
    String::from_utf8_lossy(&read).into_owned()
}

async fn raw_end() -> (TcpListener, HttpsConfig) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, section(&format!("url = 'http://127.0.0.1:{port}/'\nplain = true\nwrite-timeout = '20s'")))
}

#[tokio::test]
async fn an_answer_before_the_body_has_ended_counts_when_it_refuses_and_not_when_it_accepts() {
    let (listener, config) = raw_end().await;
    let serving = tokio::spawn(async move {
        let mut kept = Vec::new();
        for answer in ["413 Too Large", "200 OK"] {
            let (mut stream, _) = listener.accept().await.unwrap();
            head(&mut stream).await;
            let answer = format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
            // Kept open and unread: the body does not fit into the buffers of both ends.
            kept.push(stream);
        }
        std::future::pending::<()>().await;
    });
    let upstream = Https::connect(&config, &identity()).await.unwrap();
    let body = || message("1", "|") + &"X".repeat(48 << 20);
    let refused = send(&upstream, body()).await.unwrap_err();
    assert!(matches!(&refused, SendError::Refused { reason } if reason.contains("413")), "{refused}");
    let early = send(&upstream, body()).await.unwrap_err();
    assert!(matches!(&early, SendError::Disconnected { cause } if cause.contains("before it had")), "{early}");
    serving.abort();
}

#[tokio::test]
async fn a_server_that_closes_after_each_answer_is_no_fault() {
    let (listener, config) = raw_end().await;
    let serving = tokio::spawn(async move {
        for _ in 0..3 {
            let (mut stream, _) = listener.accept().await.unwrap();
            head(&mut stream).await;
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            stream.write_all(answer).await.unwrap();
        }
    });
    let upstream = Https::connect(&config, &identity()).await.unwrap();
    for _ in 0..3 {
        assert_eq!(send(&upstream, message("1", "|")).await.unwrap(), "200");
    }
    serving.await.unwrap();
}

#[tokio::test]
async fn mutual_tls_and_a_bearer_token_let_this_box_in() {
    let (store, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let ours = Authority::new(folder.path(), "ours");
    let (server, client) = (ours.server("server"), ours.client("icu-3"));
    let path = |path: &Path| path.display().to_string();
    let [ca, chain, server_key] = [&ours.certificate, &server.certificate, &server.key].map(|file| path(file));
    let secured = ["--token", "t0ken", "--certificate", &chain, "--key", &server_key, "--client-ca", &ca];
    let mut end = end(store.path(), &secured);
    let token = folder.path().join("token");
    fs::write(&token, "t0ken\n").unwrap();
    let (certificate, key) = (path(&client.certificate), path(&client.key));
    let tls = format!("tls = {{ ca = '{ca}', certificate = '{certificate}', key = '{key}' }}");
    let with_token = format!("{tls}\nbearer-token = '{}'", token.display());
    let upstream = connect(&mut end, "https", &with_token).await.unwrap();
    assert_eq!(send(&upstream, message("1", "|")).await.unwrap(), "201");
    // Without the token the message is not to blame.
    let upstream = connect(&mut end, "https", &tls).await.unwrap();
    let error = send(&upstream, message("1", "|")).await.unwrap_err();
    assert!(matches!(&error, SendError::Busy { cause, .. } if cause.contains("bearer-token")), "{error}");
}

#[tokio::test]
async fn what_is_sealed_arrives_sealed_and_says_so() {
    let (store, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (identity_file, recipient) = age_identity(folder.path(), "one");
    let mut end = end(store.path(), &[]);
    let upstream = connect(&mut end, "http", &format!("plain = true\nseal-to = ['{recipient}']")).await.unwrap();
    let opener = Opener::from_file(&identity_file).unwrap();
    for body in [message("1", "|"), message("2", "|") + &"OBX|2|TX|||text\r".repeat(200_000)] {
        assert_eq!(send(&upstream, body.clone()).await.unwrap(), "201");
        let request = requests(store.path()).pop().unwrap();
        assert_eq!(request["headers"]["wardgate-encoding"], "age");
        let sealed = fs::read(store.path().join(request["sha256"].as_str().unwrap())).unwrap();
        assert!(opener.open_whole(&sealed).unwrap() == body.as_bytes());
        // The digest is that of the bytes sent; a long body is sealed while it is sent, and has none.
        let told = request["headers"].get("wardgate-sha256");
        assert!(told.is_none_or(|told| *told == request["sha256"]));
        assert_eq!(told.is_some(), body.len() < 1 << 20);
    }
}
