//! The collector behind mosquitto: what a gateway was given a receipt for lies in a file, whole, once, whatever happens.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::PublishProperties;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use wardgate::collector::{Collection, Progress, collect};
use wardgate::envelope::{Body, BodyError, Class, Envelope, Pieces};
use wardgate::upstream::mqtt::Mqtt;
use wardgate::upstream::opening::Opener;
use wardgate::upstream::{SendError, Upstream};

use crate::mqtt::{about, age_key, config, envelope, hex, long, message, sha256, tls_options};
use crate::support::broker::Broker;
use crate::support::certs::Authority;
use crate::support::subscriber::Subscriber;
use crate::support::wait::eventually_async;

/// A collector in the background.
pub struct Collector {
    pub progress: Arc<Progress>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Collector {
    pub async fn start(port: u16, into: &Path, opener: Option<Opener>) -> Self {
        let collection = Collection {
            broker: format!("127.0.0.1:{port}").parse().unwrap(),
            tls: None,
            client_id: "collector".into(),
            username: None,
            password: None,
            topic: "wardgate/+/+/+/+".into(),
            into: into.to_owned(),
            opener,
        };
        let (progress, stop) = (Arc::<Progress>::default(), CancellationToken::new());
        let (counts, token) = (Arc::clone(&progress), stop.clone());
        let task = tokio::spawn(async move { collect(&collection, &counts, &token).await.unwrap() });
        eventually_async("the collector is connected", || async { progress.connects.value() > 0 }).await;
        Self { progress, stop, task }
    }

    pub async fn stop(self) -> Arc<Progress> {
        self.stop.cancel();
        self.task.await.unwrap();
        self.progress
    }
}

/// All messages in the folder: id and path.
fn files(into: &Path) -> BTreeMap<String, PathBuf> {
    let folder = into.join("st-marys/icu-3/monitors");
    let Ok(entries) = fs::read_dir(folder) else { return BTreeMap::new() };
    let named = entries.map(|entry| {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        (name.split_once('-').unwrap().1.split('.').next().unwrap().to_owned(), path)
    });
    named.collect()
}

#[track_caller]
pub fn assert_collected(into: &Path, sent: &[Envelope]) {
    let files = files(into);
    assert_eq!(files.len(), sent.len());
    for sent in sent {
        let bytes = fs::read(&files[&sent.id.to_string()]).unwrap();
        assert_eq!(sha256(&bytes), sent.digest.bytes, "bytes out are not bytes in");
    }
}

pub const BY_COLLECTOR: &str = "plain = true\nreceipt = \"collector\"\nreceipt-timeout = \"10s\"";

/// Sends all of `sent` as a forwarder would: in order, again what got no receipt, over a new connection when one is lost.
pub async fn forward(port: u16, more: &str, sent: &[Envelope]) {
    let mut next = 0;
    while next < sent.len() {
        let Ok(mqtt) = Mqtt::connect(&config(port, more), &about()).await else {
            // Sleep: the pause of a forwarder between two attempts to connect.
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            continue;
        };
        next += drain(&mqtt, &sent[next..]).await;
    }
}

async fn drain(mqtt: &Mqtt, sent: &[Envelope]) -> usize {
    let (mut waiting, mut begun, mut done) = (VecDeque::new(), 0, 0);
    while done < sent.len() {
        while waiting.len() < mqtt.window() && begun < sent.len() {
            let Ok(delivery) = mqtt.send(&sent[begun]).await else { return done };
            waiting.push_back(delivery);
            begun += 1;
        }
        match waiting.pop_front().unwrap().receipt().await {
            Ok(receipt) => assert_eq!(receipt.code, "collector"),
            Err(SendError::Disconnected { .. } | SendError::Busy { .. }) => return done,
            Err(other) => panic!("{other:?}"),
        }
        done += 1;
    }
    done
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_a_receipt_lies_in_a_file_with_its_line_in_the_journal() {
    let (folder, into) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let broker = Broker::start(folder.path(), "max_packet_size 100000");
    let collector = Collector::start(broker.port, into.path(), None).await;
    let mut sent: Vec<Envelope> = (0..300).map(message).collect();
    sent.push(long(300, 1_500_000));
    forward(broker.port, BY_COLLECTOR, &sent).await;
    assert_collected(into.path(), &sent);
    let journal = fs::read_to_string(into.path().join("received.jsonl")).unwrap();
    let line: serde_json::Value = serde_json::from_str(journal.lines().next().unwrap()).unwrap();
    assert_eq!(line["id"], sent[0].id.to_string());
    assert_eq!(line["sha256"], hex(&sent[0].digest.bytes));
    assert_eq!(line["file"], format!("st-marys/icu-3/monitors/20260102T030405.000006Z-{}.hl7", sent[0].id));
    assert_eq!(journal.lines().count(), sent.len());
    assert_eq!(collector.stop().await.stored.value(), 301);
    assert_eq!(fs::read_dir(into.path().join(".incoming")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_has_a_receipt_is_lost_when_the_broker_is_killed_again_and_again() {
    let (folder, into) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut broker = Broker::start(folder.path(), "max_queued_messages 0\nmax_packet_size 60000");
    let port = broker.port;
    let collector = Collector::start(port, into.path(), None).await;
    let sent: Arc<Vec<Envelope>> = Arc::new(
        (0..1200).map(|number| if number % 200 == 7 { long(number, 400_000) } else { message(number) }).collect(),
    );
    let forwarder = tokio::spawn({
        let sent = Arc::clone(&sent);
        async move { forward(port, BY_COLLECTOR, &sent).await }
    });
    for round in 1..=3 {
        eventually_async("some arrived", || async { collector.progress.stored.value() > round * 150 }).await;
        broker = broker.kill_and_restart();
    }
    forwarder.await.unwrap();
    assert_collected(into.path(), &sent);
    assert!(collector.stop().await.connects.value() >= 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_comes_back_drops_second_copies_and_takes_what_came_while_it_was_away() {
    let (folder, into) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let broker = Broker::start(folder.path(), "");
    let sent = [message(1), message(2)];
    let collector = Collector::start(broker.port, into.path(), None).await;
    forward(broker.port, BY_COLLECTOR, &sent).await;
    collector.stop().await;
    // Whoever processes a message may take it away: it is known all the same.
    fs::remove_file(&files(into.path())[&sent[0].id.to_string()]).unwrap();
    let by_broker = Mqtt::connect(&config(broker.port, "plain = true"), &about()).await.unwrap();
    let while_away = message(3);
    by_broker.send(&while_away).await.unwrap().receipt().await.unwrap();
    let collector = Collector::start(broker.port, into.path(), None).await;
    forward(broker.port, BY_COLLECTOR, &sent).await;
    eventually_async("what came while away", || async { files(into.path()).contains_key(&while_away.id.to_string()) })
        .await;
    assert!(!files(into.path()).contains_key(&sent[0].id.to_string()));
    assert_eq!(collector.stop().await.repeats.value(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn sealed_messages_are_opened_and_those_sealed_to_others_are_kept_as_they_came() {
    let (folder, into) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (key, to) = age_key(folder.path(), "ours");
    let (other_key, to_others) = age_key(folder.path(), "others");
    let broker = Broker::start(folder.path(), "");
    let collector = Collector::start(broker.port, into.path(), Some(Opener::from_file(&key).unwrap())).await;
    let sealed = |to: &str| format!("{BY_COLLECTOR}\nseal-to = [\"{to}\"]");
    let (ours, theirs) = ([message(1), long(2, 700_000)], [message(3)]);
    forward(broker.port, &sealed(&to), &ours).await;
    assert_collected(into.path(), &ours);
    forward(broker.port, &sealed(&to_others), &theirs).await;
    collector.stop().await;
    let kept = &files(into.path())[&theirs[0].id.to_string()];
    assert!(kept.to_str().unwrap().ends_with(".hl7.age"));
    let opened = Opener::from_file(&other_key).unwrap().open_whole(&fs::read(kept).unwrap()).unwrap();
    assert_eq!(sha256(&opened), theirs[0].digest.bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_were_changed_on_the_way_are_neither_stored_nor_receipted() {
    let (folder, into) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let broker = Broker::start(folder.path(), "");
    let collector = Collector::start(broker.port, into.path(), None).await;
    let receipts = Subscriber::start(broker.port, "wardgate/+/+/receipt", None).await;
    let labelled = |id: &str, sha256: &[u8; 32]| {
        let pairs = [("id", id), ("source", "monitors"), ("sha256", &hex(sha256))];
        let user_properties = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        PublishProperties { user_properties, ..PublishProperties::default() }
    };
    let publish = async |topic: &str, properties: PublishProperties| {
        receipts.client.publish_with_properties(topic, QoS::AtLeastOnce, false, "MSH|", properties).await.unwrap();
    };
    let topic = "wardgate/st-marys/icu-3/monitors/clinical";
    publish(topic, labelled(&"1".repeat(32), &sha256(b"MSH|changed"))).await;
    publish(topic, labelled("../../etc/passwd", &sha256(b"MSH|"))).await;
    publish("wardgate/st-marys/icu-3/..-/clinical", labelled(&"2".repeat(32), &sha256(b"MSH|"))).await;
    publish("wardgate/St Mary/icu-3/monitors/clinical", labelled(&"3".repeat(32), &sha256(b"MSH|"))).await;
    publish(topic, labelled(&"4".repeat(32), &sha256(b"MSH|"))).await;
    eventually_async("the good one is receipted", || async { !receipts.kept().is_empty() }).await;
    let counts = collector.stop().await;
    assert_eq!((counts.stored.value(), counts.refused.value()), (1, 4));
    assert_eq!(receipts.kept()[0].payload, format!("{} {}\n", "4".repeat(32), hex(&sha256(b"MSH|"))));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_collects_says_so_and_ends_cleanly_on_sigterm() {
    use crate::support::process::{Process, wardgate};
    let (folder, into) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let ours = Authority::new(folder.path(), "ours");
    let (server, client) = (ours.server("server"), ours.client("client"));
    let mut broker = Broker::start(folder.path(), &tls_options(&ours, &server));
    let address = format!("127.0.0.1:{}", broker.port);
    let mut collect = wardgate();
    collect.args(["collect", "--broker", &address, "--into"]).arg(into.path());
    collect.arg("--tls-ca").arg(&ours.certificate).arg("--cert").arg(&client.certificate).arg("--key").arg(&client.key);
    let command = Process::start(&mut collect);
    broker.process.line_with("Sending SUBACK to wardgate-collect");
    let sent = [message(1), long(2, 300_000)];
    let paths = [&ours.certificate, &client.certificate, &client.key].map(|path| path.display().to_string());
    let tls = format!("tls = {{ ca = \"{}\", certificate = \"{}\", key = \"{}\" }}", paths[0], paths[1], paths[2]);
    forward(broker.port, &BY_COLLECTOR.replace("plain = true", &tls), &sent).await;
    assert_collected(into.path(), &sent);
    command.signal("TERM");
    let ended = command.ends_within(crate::support::wait::PATIENCE);
    assert!(ended.status.success(), "{}", ended.said);
    assert!(ended.said.contains("2 stored (293.0 KiB), 0 second copies, 0 refused"), "{}", ended.said);
    let refused = crate::support::process::run(wardgate().args(["collect", "--broker", &address, "--into", "x"]));
    assert_eq!(refused.status.code(), Some(64), "TLS is only left out when that is said aloud: {}", refused.said);
}

/// A DICOM instance of 16 MiB that is made when it is read: as the spool hands out a long one.
struct Frames;

const FRAMES: (usize, usize) = (64, 256 << 10);

impl Pieces for Frames {
    fn count(&self) -> usize {
        FRAMES.0
    }
    fn read(&self, index: usize) -> Result<Bytes, BodyError> {
        Ok(vec![u8::try_from(index % 251).unwrap(); FRAMES.1].into())
    }
}

fn dicom(number: u32) -> Envelope {
    let mut sum = Context::new(&SHA256);
    (0..FRAMES.0).for_each(|index| sum.update(&Frames.read(index).unwrap()));
    let sum = sum.finish().as_ref().try_into().unwrap();
    let mut envelope = envelope(number, Body::pieces((FRAMES.0 * FRAMES.1) as u64, Arc::new(Frames)), sum);
    (envelope.meta.content_type, envelope.meta.protocol) = ("application/dicom".into(), "dicom".into());
    Envelope { class: Class::Imaging, ..envelope }
}

/// Peak memory of a process in KiB (proc(5), `VmHWM`).
fn peak_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_dicom_instance_becomes_a_dcm_file_and_is_never_held_in_memory() {
    use crate::support::process::{Process, wardgate};
    let (folder, into) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut broker = Broker::start(folder.path(), "max_queued_messages 0\nmax_inflight_messages 0");
    let address = format!("127.0.0.1:{}", broker.port);
    let mut collect = wardgate();
    collect.args(["collect", "--plain", "--broker", &address, "--into"]).arg(into.path());
    let command = Process::start(&mut collect);
    broker.process.line_with("Sending SUBACK to wardgate-collect");
    forward(broker.port, BY_COLLECTOR, &[message(1)]).await;
    let before = peak_kib(command.pid());
    let sent = dicom(2);
    forward(broker.port, BY_COLLECTOR, std::slice::from_ref(&sent)).await;
    let grown = peak_kib(command.pid()) - before;
    assert!(grown < 6 << 10, "{grown} KiB for one of {} KiB", (FRAMES.0 * FRAMES.1) >> 10);
    assert_collected(into.path(), &[message(1), dicom(2)]);
    let path = &files(into.path())[&sent.id.to_string()];
    assert_eq!(path.extension().unwrap(), "dcm");
    let journal = fs::read_to_string(into.path().join("received.jsonl")).unwrap();
    let line: serde_json::Value = serde_json::from_str(journal.lines().last().unwrap()).unwrap();
    assert_eq!((&line["content-type"], &line["log"]), (&"application/dicom".into(), &"imaging".into()));
}
