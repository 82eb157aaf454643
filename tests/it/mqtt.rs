//! The mqtt upstream against mosquitto, read by a subscriber that is not ours: bytes in are bytes out, by hash, whatever
//! the broker allows and whatever happens to it.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use wardgate::digest::{Algorithm, Digest};
use wardgate::envelope::{Body, BodyError, Class, Envelope, Flags, MessageId, Meta, Pieces, Stamp};
use wardgate::upstream::mqtt::{Config, Mqtt};
use wardgate::upstream::{Identity, SendError, Upstream};

use crate::support::broker::Broker;
use crate::support::certs::{Authority, Issued};
use crate::support::ports::free_port;
use crate::support::subscriber::{Subscriber, Whole};
use crate::support::tools::system;
use crate::support::wait::{eventually_async, holds_within};

const FILTER: &str = "wardgate/st-marys/icu-3/#";
const MESSAGES: &str = "wardgate/+/+/+/+";

pub fn about() -> Identity {
    Identity {
        gateway: "icu-3".parse().unwrap(),
        site: "st-marys".parse().unwrap(),
        upstream: "cloud".parse().unwrap(),
    }
}

pub fn config(port: u16, more: &str) -> Config {
    toml::from_str(&format!("address = \"127.0.0.1:{port}\"\n{more}")).unwrap()
}

pub async fn connect(port: u16, more: &str) -> Mqtt {
    Mqtt::connect(&config(port, more), &about()).await.unwrap()
}

pub fn envelope(number: u32, body: Body, sha256: [u8; 32]) -> Envelope {
    let meta = Meta {
        source: "monitors".parse().unwrap(),
        protocol: "mllp".into(),
        content_type: "application/hl7-v2; charset=utf-8".into(),
        control_id: number.to_string().into_bytes(),
        targets: vec!["cloud".parse().unwrap()],
        flags: Flags::BATCH,
        received: Stamp { wall_us: 1_767_323_045_000_006, synchronised: true, uptime_ms: 1 },
        tokens: Vec::new(),
    };
    let digest = Digest { algorithm: Algorithm::Sha256, bytes: sha256 };
    Envelope { id: MessageId::new([3; 12], number), class: Class::Clinical, meta, digest, body }
}

pub fn message(number: u32) -> Envelope {
    let text = format!("MSH|^~\\&|MON|ICU|GW|HOSP|20260102030405||ORU^R01|{number}|P|2.5.1\rPID|1||TEST-{number}\r");
    whole(number, text.into_bytes())
}

fn whole(number: u32, bytes: Vec<u8>) -> Envelope {
    let sha256 = sha256(&bytes);
    envelope(number, Body::whole(bytes.into()), sha256)
}

pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest(&SHA256, bytes).as_ref().try_into().unwrap()
}

/// A body as the spool keeps a long one: in pieces, of uneven lengths.
struct Uneven(Vec<Bytes>);

impl Pieces for Uneven {
    fn count(&self) -> usize {
        self.0.len()
    }
    fn read(&self, index: usize) -> Result<Bytes, BodyError> {
        Ok(self.0[index].clone())
    }
}

pub fn long(number: u32, length: usize) -> Envelope {
    let bytes: Vec<u8> = (0..length).map(|at| u8::try_from(at * 31 % 251).unwrap()).collect();
    let mut left = Bytes::from(bytes.clone());
    let mut pieces = Vec::new();
    for size in [1, 200_000, 256 << 10, 17].into_iter().cycle() {
        if left.is_empty() {
            break;
        }
        pieces.push(left.split_to(size.min(left.len())));
    }
    envelope(number, Body::pieces(length as u64, Arc::new(Uneven(pieces))), sha256(&bytes))
}

pub fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

#[track_caller]
fn assert_same(sent: &Envelope, came: &Whole) {
    assert_eq!(came.properties["id"], sent.id.to_string());
    assert_eq!(came.properties["sha256"], hex(&sha256(&came.bytes)));
    assert_eq!(sha256(&came.bytes), sent.digest.bytes, "bytes out are not bytes in");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_arrives_byte_for_byte_with_all_that_is_said_about_it() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Broker::start(folder.path(), "");
    let subscriber = Subscriber::start(broker.port, MESSAGES, None).await;
    let mqtt = connect(broker.port, "plain = true").await;
    let sent = message(7);
    let receipt = mqtt.send(&sent).await.unwrap().receipt().await.unwrap();
    assert_eq!(receipt.code, "puback");
    let came = subscriber.wait_for(1).await.remove(0);
    assert_same(&sent, &came);
    assert_eq!(came.topic, "wardgate/st-marys/icu-3/monitors/clinical");
    assert_eq!(came.content_type.as_deref(), Some("application/hl7-v2; charset=utf-8"));
    let said = ["source", "protocol", "received", "flags"].map(|name| came.properties[name].as_str());
    assert_eq!(said, ["monitors", "mllp", "2026-01-02T03:04:05.000006Z", "batch"]);
    assert!(!came.properties.contains_key("encoding") && !came.properties.contains_key("transfer"));
}

#[tokio::test(flavor = "multi_thread")]
async fn order_and_bytes_are_kept_within_a_small_window() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Broker::start(folder.path(), "max_inflight_messages 3");
    let subscriber = Subscriber::start(broker.port, MESSAGES, None).await;
    let mqtt = connect(broker.port, "plain = true").await;
    assert_eq!(mqtt.window(), 3);
    let mut deliveries = Vec::new();
    for number in 0..300 {
        deliveries.push(mqtt.send(&message(number)).await.unwrap());
    }
    for delivery in &mut deliveries {
        delivery.receipt().await.unwrap();
    }
    for (number, came) in (0..).zip(subscriber.wait_for(300).await) {
        assert_same(&message(number), &came);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_body_goes_out_in_parts_that_a_small_broker_takes() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Broker::start(folder.path(), "max_packet_size 2000\nmax_inflight_messages 2\nmax_queued_messages 0");
    let subscriber = Subscriber::start(broker.port, MESSAGES, None).await;
    let mqtt = connect(broker.port, "plain = true").await;
    let sent = [long(1, 700_001), message(2), long(3, 2_000), long(4, 0)];
    for sent in &sent {
        mqtt.send(sent).await.unwrap().receipt().await.unwrap();
    }
    let came = subscriber.wait_for(sent.len()).await;
    for (sent, came) in sent.iter().zip(&came) {
        assert_same(sent, came);
    }
    assert!(came[0].properties["parts"].parse::<u32>().unwrap() > 350);
    assert!(!came[1].properties.contains_key("parts"));
    assert!(subscriber.kept().iter().all(|publish| publish.payload.len() < 2000));
}

/// A body of 50 MiB that is made when it is read, and counts how far that went.
struct Lazy(AtomicUsize);

const LAZY: (usize, usize) = (200, 256 << 10);

impl Pieces for Lazy {
    fn count(&self) -> usize {
        LAZY.0
    }
    fn read(&self, index: usize) -> Result<Bytes, BodyError> {
        self.0.fetch_max(index + 1, Ordering::Relaxed);
        Ok(vec![7; LAZY.1].into())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_very_long_body_is_read_only_as_fast_as_the_broker_takes_it() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Broker::start(folder.path(), "max_queued_messages 0\nmax_queued_bytes 0");
    let subscriber = Subscriber::start(broker.port, MESSAGES, None).await;
    let mqtt = Arc::new(connect(broker.port, "plain = true").await);
    let lazy = Arc::new(Lazy(AtomicUsize::new(0)));
    let sum = sha256(&vec![7; LAZY.0 * LAZY.1]);
    let sent = envelope(1, Body::pieces((LAZY.0 * LAZY.1) as u64, lazy.clone()), sum);
    broker.process.signal("STOP");
    let sending = tokio::spawn(async move {
        mqtt.send(&sent).await.unwrap().receipt().await.unwrap();
        sent
    });
    // What the sockets of both sides hold is a few MiB.
    let far = || lazy.0.load(Ordering::Relaxed) > 80;
    assert!(!tokio::task::block_in_place(|| holds_within(Duration::from_millis(500), far)), "it was read into memory");
    broker.process.signal("CONT");
    let sent = sending.await.unwrap();
    assert_same(&sent, &subscriber.wait_for(1).await[0]);
    assert!(subscriber.kept().iter().all(|publish| publish.payload.len() <= 256 << 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sealed_is_opened_by_the_age_command() {
    let folder = tempfile::tempdir().unwrap();
    let (key, to) = age_key(folder.path(), "identity");
    let broker = Broker::start(folder.path(), "max_packet_size 30000");
    let subscriber = Subscriber::start(broker.port, MESSAGES, None).await;
    let mqtt = connect(broker.port, &format!("plain = true\nseal-to = [\"{to}\"]")).await;
    let sent = [message(1), long(2, 200_000)];
    for sent in &sent {
        mqtt.send(sent).await.unwrap().receipt().await.unwrap();
    }
    for (sent, came) in sent.iter().zip(subscriber.wait_for(2).await) {
        assert_eq!(came.properties["encoding"], "age");
        assert_eq!(came.properties["sha256"], hex(&sha256(&came.bytes)));
        let sealed = folder.path().join("sealed");
        fs::write(&sealed, &came.bytes).unwrap();
        let opened = system("age").arg("-d").arg("-i").arg(&key).arg(&sealed).output().unwrap();
        assert_eq!(sha256(&opened.stdout), sent.digest.bytes, "{}", String::from_utf8_lossy(&opened.stderr));
    }
}

pub fn age_key(folder: &Path, name: &str) -> (std::path::PathBuf, String) {
    let key = folder.join(name);
    let made = system("age-keygen").arg("-o").arg(&key).output().unwrap();
    let said = String::from_utf8(made.stderr).unwrap();
    (key, said.trim().rsplit(' ').next().unwrap().to_owned())
}

/// A listener on which both sides show certificates.
pub fn tls_options(ca: &Authority, server: &Issued) -> String {
    let paths = [&ca.certificate, &server.certificate, &server.key].map(|path| path.display().to_string());
    format!("cafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true", paths[0], paths[1], paths[2])
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_with_certificates_on_both_sides_lets_us_in_and_a_stranger_not() {
    let folder = tempfile::tempdir().unwrap();
    let ours = Authority::new(folder.path(), "ours");
    let (server, client) = (ours.server("server"), ours.client("box"));
    let inside = free_port();
    let options = format!("{}\nlistener {inside} 127.0.0.1\nallow_anonymous true", tls_options(&ours, &server));
    let broker = Broker::start(folder.path(), &options);
    let subscriber = Subscriber::start(inside, MESSAGES, None).await;
    let tls = |who: &str| format!("tls = {{ ca = \"{}\"{who} }}", ours.certificate.display());
    let as_box = format!(", certificate = \"{}\", key = \"{}\"", client.certificate.display(), client.key.display());
    let mqtt = connect(broker.port, &tls(&as_box)).await;
    let sent = [message(1), long(2, 900_000)];
    for sent in &sent {
        mqtt.send(sent).await.unwrap().receipt().await.unwrap();
    }
    for (sent, came) in sent.iter().zip(subscriber.wait_for(2).await) {
        assert_same(sent, &came);
    }
    let stranger = Mqtt::connect(&config(broker.port, &tls("")), &about()).await.map(drop);
    assert!(matches!(&stranger, Err(SendError::Disconnected { .. })), "{stranger:?}");
    let other = Authority::new(folder.path(), "other");
    let distrust = format!("tls = {{ ca = \"{}\"{as_box} }}", other.certificate.display());
    let SendError::Disconnected { cause } =
        Mqtt::connect(&config(broker.port, &distrust), &about()).await.map(drop).unwrap_err()
    else {
        panic!("a broker of another CA is not ours");
    };
    assert!(cause.contains("TLS"), "{cause}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_told_in_words_and_a_topic_that_is_not_allowed_is_refused_for_good() {
    let folder = tempfile::tempdir().unwrap();
    let (users, acl) = (folder.path().join("users"), folder.path().join("acl"));
    let made = system("mosquitto_passwd").args(["-b", "-c"]).arg(&users).args(["box", "right"]).status().unwrap();
    assert!(made.success());
    fs::write(&acl, "user box\ntopic write wardgate/st-marys/icu-3/status\n").unwrap();
    let options = format!("allow_anonymous false\npassword_file {}\nacl_file {}", users.display(), acl.display());
    let broker = Broker::start(folder.path(), &options);
    let secret = folder.path().join("secret");
    let with_password = |password: &str| {
        fs::write(&secret, password).unwrap();
        format!("plain = true\nusername = \"box\"\npassword = {{ file = \"{}\" }}", secret.display())
    };
    let wrong = Mqtt::connect(&config(broker.port, &with_password("wrong")), &about()).await.map(drop).unwrap_err();
    assert_eq!(wrong.to_string(), "the broker refused the connection: not authorised");
    let mqtt = connect(broker.port, &with_password("right\n")).await;
    let refused = mqtt.send(&message(1)).await.unwrap().receipt().await.unwrap_err();
    assert_eq!(refused, SendError::Rejected { reason: "the broker answered: not authorised".into() });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_nobody_is_subscribed_to_is_not_delivered() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Broker::start(folder.path(), "");
    let mqtt = connect(broker.port, "plain = true").await;
    let answer = mqtt.send(&message(1)).await.unwrap().receipt().await;
    assert!(
        matches!(&answer, Err(SendError::Busy { cause, .. }) if cause.contains("goes on by itself as soon as somebody subscribes")),
        "{answer:?}"
    );
    let _subscriber = Subscriber::start(broker.port, MESSAGES, None).await;
    assert!(mqtt.send(&message(1)).await.unwrap().receipt().await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_killed_in_the_middle_ends_every_delivery_and_a_new_connection_sends_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let mut broker = Broker::start(folder.path(), "max_queued_messages 0");
    let subscriber = Subscriber::start(broker.port, MESSAGES, None).await;
    let mut acknowledged = 0;
    for round in 1..=3 {
        let mqtt = connect(broker.port, "plain = true").await;
        let mut waiting = std::collections::VecDeque::new();
        let mut next = acknowledged;
        while acknowledged < round * 200 {
            while waiting.len() < mqtt.window() {
                waiting.push_back(mqtt.send(&message(next)).await.unwrap());
                next += 1;
            }
            waiting.pop_front().unwrap().receipt().await.unwrap();
            acknowledged += 1;
        }
        broker = broker.kill_and_restart();
        let cause = mqtt.closed().await;
        assert!(cause.contains("connection"), "{cause}");
        for mut delivery in waiting {
            match delivery.receipt().await {
                Ok(_) => acknowledged += 1,
                Err(SendError::Disconnected { .. }) => {}
                Err(other) => panic!("{other:?}"),
            }
        }
        subscriber.subscribed(round + 1).await;
    }
    let came: std::collections::BTreeMap<String, [u8; 32]> =
        subscriber.wholes().iter().map(|whole| (whole.properties["id"].clone(), sha256(&whole.bytes))).collect();
    // mosquitto keeps what it acknowledged in memory only: what it had not passed on when it was killed is gone with it.
    // That is what `receipt = "collector"` is for; the collector's tests hold that nothing is lost then.
    assert!(came.len() > 300, "{}", came.len());
    for number in 0..acknowledged {
        let sent = message(number);
        assert!(came.get(&sent.id.to_string()).is_none_or(|sum| *sum == sent.digest.bytes));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_client_with_our_id_takes_the_session_over_and_we_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Broker::start(folder.path(), "");
    let first = connect(broker.port, "plain = true").await;
    let _second = connect(broker.port, "plain = true").await;
    let cause = first.closed().await;
    // This mosquitto hangs up without a DISCONNECT; brokers that send 0x8E are quoted in its words.
    assert!(cause.contains("client id"), "{cause}");
    assert!(matches!(first.send(&message(1)).await, Err(SendError::Disconnected { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_is_retained_online_and_the_will_says_offline() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Broker::start(folder.path(), "");
    let subscriber = Subscriber::start(broker.port, FILTER, None).await;
    let states = || -> Vec<String> {
        let read = |payload: &[u8]| serde_json::from_slice::<serde_json::Value>(payload).unwrap()["state"].to_string();
        subscriber.kept().iter().map(|publish| read(&publish.payload)).collect()
    };
    let mqtt = connect(broker.port, "plain = true").await;
    eventually_async("a status", || async { states() == ["\"online\""] }).await;
    drop(mqtt);
    eventually_async("a will", || async { states() == ["\"online\"", "\"offline\""] }).await;
    connect(broker.port, "plain = true").await.close().await;
    eventually_async("a goodbye", || async { states().len() == 4 }).await;
    let late = Subscriber::named("late", broker.port, "wardgate/+/+/status", None).await;
    eventually_async("a retained status", || async { late.kept().len() == 1 }).await;
    assert!(late.kept()[0].retain);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_collectors_receipt_the_brokers_word_is_not_enough() {
    use rumqttc::v5::mqttbytes::QoS;
    let folder = tempfile::tempdir().unwrap();
    let broker = Broker::start(folder.path(), "");
    let subscriber = Subscriber::start(broker.port, MESSAGES, None).await;
    let mqtt = connect(broker.port, "plain = true\nreceipt = \"collector\"\nreceipt-timeout = \"2s\"").await;
    let (one, two) = (message(1), message(2));
    let (mut first, mut second) = (mqtt.send(&one).await.unwrap(), mqtt.send(&two).await.unwrap());
    subscriber.wait_for(2).await;
    // A receipt for other bytes under the same id is none.
    let lines = format!("{} {}\n{} {}\n", one.id, hex(&one.digest.bytes), two.id, hex(&one.digest.bytes));
    subscriber.client.publish("wardgate/st-marys/icu-3/receipt", QoS::AtLeastOnce, false, lines).await.unwrap();
    assert_eq!(first.receipt().await.unwrap().code, "collector");
    let late = second.receipt().await;
    assert!(matches!(&late, Err(SendError::Busy { cause, .. }) if cause.contains("receipt has not come")), "{late:?}");
}
