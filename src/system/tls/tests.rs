//! Real handshakes over loopback with certificates made on the spot, and what the sections' checks say.

use std::time::{Duration, UNIX_EPOCH};

use rustls::pki_types::UnixTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;
use crate::system::fault;
use crate::system::stream::{DialError, Stream, accept, dial};
use crate::system::test_pki::Pki;

const LIMIT: Duration = Duration::from_secs(10);

/// A box whose wall clock stands at five seconds after midnight of 1970-01-01.
#[derive(Debug)]
struct In1970 {
    raised: bool,
}

impl TimeProvider for In1970 {
    fn current_time(&self) -> Option<UnixTime> {
        let system = UNIX_EPOCH + Duration::from_secs(5);
        let time = if self.raised { clock::trusted_when(system) } else { system };
        time.duration_since(UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
    }
}

fn client(pki: &Pki) -> ClientTls {
    ClientTls { ca: pki.ca(), certificate: None, key: None, server_name: None }
}

fn server(pki: &Pki, hosts: &[&str], years: (i32, i32)) -> ServerTls {
    let (certificate, key) = pki.leaf_valid("server", hosts, years);
    ServerTls { certificate, key, client_ca: None, client_certificate: Default::default() }
}

/// Accepts one connection and echoes one word; returns whom the client's certificate named, or why it was turned away.
async fn echo(acceptor: TlsAcceptor) -> (HostPort, JoinHandle<Result<Option<String>, String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = HostPort { host: "localhost".into(), port: listener.local_addr().unwrap().port() };
    let task = tokio::spawn(async move {
        let (tcp, peer) = listener.accept().await.unwrap();
        let mut stream = accept(tcp, peer, Some(&acceptor), LIMIT).await?;
        let mut word = [0; 5];
        stream.read_exact(&mut word).await.map_err(|error| error.to_string())?;
        stream.write_all(&word).await.unwrap();
        stream.shutdown().await.unwrap();
        Ok(stream.peer_subject())
    });
    (address, task)
}

async fn say_hello(mut stream: Stream) -> std::io::Result<[u8; 5]> {
    stream.write_all(b"hello").await?;
    let mut word = [0; 5];
    stream.read_exact(&mut word).await.map(|_| word)
}

async fn meet(server: &ServerTls, client: &Connector) -> Result<(), DialError> {
    let (address, _task) = echo(server.acceptor().unwrap()).await;
    let stream = dial(&address, Some(client), LIMIT).await?;
    assert_eq!(&say_hello(stream).await.unwrap(), b"hello");
    Ok(())
}

async fn refusal(server: &ServerTls, client: &Connector) -> String {
    meet(server, client).await.unwrap_err().to_string()
}

#[tokio::test]
async fn both_ends_of_mutual_tls_know_each_other_by_name() {
    let pki = Pki::new();
    let mut server = server(&pki, &["localhost"], (2000, 4000));
    server.client_ca = Some(pki.ca());
    let (certificate, key) = pki.leaf("icu-3-east", &["icu-3-east"]);
    let client = ClientTls { certificate: Some(certificate), key: Some(key), ..client(&pki) };
    let (address, task) = echo(server.acceptor_for(&["mqtt"]).unwrap()).await;
    let stream = dial(&address, Some(&client.connector_for(&["mqtt"]).unwrap()), LIMIT).await.unwrap();
    assert_eq!(stream.peer_subject().as_deref(), Some("CN=server"));
    assert_eq!(stream.alpn(), Some(&b"mqtt"[..]));
    assert!(stream.is_tls());
    assert_eq!(&say_hello(stream).await.unwrap(), b"hello");
    assert_eq!(task.await.unwrap().unwrap().as_deref(), Some("CN=icu-3-east"));
}

#[tokio::test]
async fn a_client_without_a_certificate_is_turned_away_and_both_are_told_why() {
    let pki = Pki::new();
    let mut server = server(&pki, &["localhost"], (2000, 4000));
    server.client_ca = Some(pki.ca());
    let (address, task) = echo(server.acceptor().unwrap()).await;
    // TLS 1.3: the client's handshake is over before the server has looked for the certificate.
    let stream = dial(&address, Some(&client(&pki).connector().unwrap()), LIMIT).await.unwrap();
    let error = say_hello(stream).await.unwrap_err();
    let words = fault::in_words(&error);
    assert_eq!(words, "the peer wants a certificate of this box: set certificate and key (mutual TLS)");
    let words = task.await.unwrap().unwrap_err();
    assert_eq!(words, "the peer showed no certificate: give it one of the configured CA");
}

#[tokio::test]
async fn an_optional_certificate_may_be_left_out_but_a_bad_one_is_turned_away() {
    let (pki, stranger) = (Pki::new(), Pki::new());
    let mut server = server(&pki, &["localhost"], (2000, 4000));
    (server.client_ca, server.client_certificate) = (Some(pki.ca()), ClientCertificate::Optional);
    assert!(!server.is_mutual());
    meet(&server, &client(&pki).connector().unwrap()).await.unwrap();
    let (certificate, key) = pki.leaf("ct-1", &["ct-1"]);
    let known = ClientTls { certificate: Some(certificate), key: Some(key), ..client(&pki) };
    let (address, task) = echo(server.acceptor().unwrap()).await;
    say_hello(dial(&address, Some(&known.connector().unwrap()), LIMIT).await.unwrap()).await.unwrap();
    assert_eq!(task.await.unwrap().unwrap().as_deref(), Some("CN=ct-1"));
    let (certificate, key) = stranger.leaf("stranger", &["stranger"]);
    let unknown = ClientTls { certificate: Some(certificate), key: Some(key), ..client(&pki) };
    let (address, task) = echo(server.acceptor().unwrap()).await;
    if let Ok(stream) = dial(&address, Some(&unknown.connector().unwrap()), LIMIT).await {
        say_hello(stream).await.unwrap_err();
    }
    assert!(task.await.unwrap().unwrap_err().contains("is not from a CA that is trusted here"));
}

#[tokio::test]
async fn a_client_of_another_ca_is_turned_away() {
    let (pki, stranger) = (Pki::new(), Pki::new());
    let mut server = server(&pki, &["localhost"], (2000, 4000));
    server.client_ca = Some(pki.ca());
    let (certificate, key) = stranger.leaf("stranger", &["stranger"]);
    let client = ClientTls { certificate: Some(certificate), key: Some(key), ..client(&pki) };
    let (address, task) = echo(server.acceptor().unwrap()).await;
    if let Ok(stream) = dial(&address, Some(&client.connector().unwrap()), LIMIT).await {
        say_hello(stream).await.unwrap_err();
    }
    assert!(task.await.unwrap().unwrap_err().contains("is not from a CA that is trusted here"));
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let pki = Pki::new();
    let server = server(&pki, &["localhost"], (2020, 2021));
    let words = refusal(&server, &client(&pki).connector().unwrap()).await;
    assert!(
        words.ends_with("the peer's certificate has expired: renew it there (or this box's clock is ahead)"),
        "{words}"
    );
}

#[tokio::test]
async fn a_clock_in_1970_does_not_cut_the_box_off() {
    let pki = Pki::new();
    let server = server(&pki, &["localhost"], (2026, 4000));
    let client = client(&pki);
    let raised = client.connector_at(&[], Arc::new(In1970 { raised: true })).unwrap();
    meet(&server, &raised).await.unwrap();
    // The floor is what made the difference: by the bare wall clock the same certificate lies in the future.
    let bare = client.connector_at(&[], Arc::new(In1970 { raised: false })).unwrap();
    assert!(refusal(&server, &bare).await.contains("is not yet valid: this box's clock is behind"));
}

#[tokio::test]
async fn a_listener_in_1970_lets_devices_in_all_the_same() {
    let pki = Pki::new();
    let (certificate, key) = pki.leaf_valid("ct-1", &["ct-1"], (2026, 4000));
    let device = ClientTls { certificate: Some(certificate), key: Some(key), ..client(&pki) };
    let mut server = server(&pki, &["localhost"], (2026, 4000));
    server.client_ca = Some(pki.ca());
    let (address, task) = echo(server.acceptor_at(&[], Arc::new(In1970 { raised: true })).unwrap()).await;
    let stream = dial(&address, Some(&device.connector().unwrap()), LIMIT).await.unwrap();
    assert_eq!(&say_hello(stream).await.unwrap(), b"hello");
    assert_eq!(task.await.unwrap().unwrap().as_deref(), Some("CN=ct-1"));
}

#[tokio::test]
async fn an_old_device_that_speaks_tls_1_2_only_is_served() {
    let pki = Pki::new();
    let builder = ClientConfig::builder_with_provider(provider());
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS12]).unwrap();
    let config = builder.with_root_certificates(certificate::roots(&pki.ca()).unwrap()).with_no_client_auth();
    let device = Connector { inner: TlsConnector::from(Arc::new(config)), server_name: None };
    meet(&server(&pki, &["localhost"], (2000, 4000)), &device).await.unwrap();
}

#[tokio::test]
async fn a_clock_in_1970_still_refuses_what_expired_before_the_build() {
    let pki = Pki::new();
    let server = server(&pki, &["localhost"], (2000, 2021));
    let raised = client(&pki).connector_at(&[], Arc::new(In1970 { raised: true })).unwrap();
    assert!(refusal(&server, &raised).await.contains("has expired"));
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused_unless_that_name_is_configured() {
    let pki = Pki::new();
    let server = server(&pki, &["engine.example"], (2000, 4000));
    let mut client = client(&pki);
    let words = refusal(&server, &client.connector().unwrap()).await;
    assert!(words.contains("not for localhost but for"), "{words}");
    assert!(words.contains("engine.example") && words.ends_with("correct the address, or set server-name"), "{words}");
    client.server_name = Some("engine.example".into());
    meet(&server, &client.connector().unwrap()).await.unwrap();
}

#[tokio::test]
async fn a_server_of_another_ca_is_refused() {
    let (ours, theirs) = (Pki::new(), Pki::new());
    let strange = server(&theirs, &["localhost"], (2000, 4000));
    let words = refusal(&strange, &client(&ours).connector().unwrap()).await;
    assert!(words.ends_with("put its CA certificate into the ca file"), "{words}");
    // A CA that was made anew under the old name.
    let (before, after) = (Pki::named("hospital CA"), Pki::named("hospital CA"));
    let renewed = server(&after, &["localhost"], (2000, 4000));
    let words = refusal(&renewed, &client(&before).connector().unwrap()).await;
    assert!(words.ends_with("put its CA certificate into the ca file beside the old one"), "{words}");
}

fn problems(section: &impl Section) -> Vec<(String, bool)> {
    let mut problems = Problems::default();
    section.check(&mut problems);
    problems.into_found().into_iter().map(|p| (format!("{}: {}", p.path.join("."), p.text), p.warning)).collect()
}

#[test]
fn a_check_names_each_bad_file_under_its_key() {
    let pki = Pki::new();
    let (certificate, _) = pki.leaf("box", &["localhost"]);
    let (_, other_key) = pki.leaf("other", &["localhost"]);
    let server = ServerTls {
        certificate: certificate.clone(),
        key: other_key,
        client_ca: Some(pki.file("gone.pem")),
        client_certificate: Default::default(),
    };
    let found = problems(&server);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].0.starts_with("certificate: the key in") && !found[0].1);
    assert!(found[1].0.starts_with("client-ca: file") && found[1].0.contains("is not there") && found[1].1);
    let half = ClientTls { certificate: Some(certificate), server_name: Some("a b".into()), ..client(&pki) };
    let found = problems(&half);
    assert!(found[0].0.starts_with("server-name: \"a b\" is not a server name"), "{found:?}");
    assert_eq!(found[1].0, "certificate: needs its private key beside it: add key = \"...\"");
    assert!(matches!(half.connector(), Err(TlsError::HalfIdentity)));
}

#[test]
fn a_check_warns_of_an_expired_certificate_and_is_silent_when_all_is_well() {
    let pki = Pki::new();
    let found = problems(&server(&pki, &["localhost"], (2020, 2021)));
    assert_eq!(found.len(), 1);
    assert!(found[0].0.contains("the certificate of CN=server has expired") && found[0].1);
    assert_eq!(problems(&server(&pki, &["localhost"], (2000, 4000))), []);
    assert_eq!(problems(&client(&pki)), []);
}

#[test]
fn every_file_is_visited() {
    let pki = Pki::new();
    let mut seen = Vec::new();
    let mut full = ClientTls { certificate: Some(pki.file("a")), key: Some(pki.file("b")), ..client(&pki) };
    full.files(&mut |file| seen.push(file.to_string()));
    let mut full = ServerTls {
        certificate: pki.file("c"),
        key: pki.file("d"),
        client_ca: Some(pki.file("e")),
        client_certificate: Default::default(),
    };
    full.files(&mut |file| seen.push(file.to_string()));
    assert_eq!(seen.len(), 6);
}
