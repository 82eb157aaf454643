//! STOW: a scripted DICOMweb end over HTTP/1.1 and HTTP/2, and Orthanc with its DICOMweb plugin.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use serde_json::Value;
use wardgate::envelope::{Body, BodyError, Envelope, Pieces};
use wardgate::upstream::stow::{Stow, StowConfig};
use wardgate::upstream::{SendError, Upstream};

use super::{count, envelope, hex, identity, kept, message, section};
use crate::support::certs::Authority;
use crate::support::dicom_files::data_set_hash_of;
use crate::support::orthanc::Orthanc;
use crate::support::process::Process;
use crate::support::tools::python_peer;
use crate::support::wait::{PATIENCE, holds_within};

/// A data element with explicit VR, little endian (PS3.5, 7.1.2).
fn element(group: u16, number: u16, vr: &str, value: &[u8]) -> Vec<u8> {
    let pad = if vr == "UI" { 0 } else { b' ' };
    let mut value = value.to_vec();
    if value.len() % 2 == 1 {
        value.push(pad);
    }
    let mut out = [&group.to_le_bytes()[..], &number.to_le_bytes(), vr.as_bytes()].concat();
    match vr {
        "OB" | "OW" => {
            out.extend([0, 0]);
            out.extend(u32::try_from(value.len()).unwrap().to_le_bytes());
        }
        _ => out.extend(u16::try_from(value.len()).unwrap().to_le_bytes()),
    }
    [out, value].concat()
}

const SECONDARY_CAPTURE: &[u8] = b"1.2.840.10008.5.1.4.1.1.7";
const EXPLICIT_LITTLE: &[u8] = b"1.2.840.10008.1.2.1";

/// A Part 10 file of an invented patient: one instance of the study `1.2.826.0.1.3680043.8.498.1`.
fn part_10(uid: &str, pixels: &[u8]) -> Vec<u8> {
    let group_2 = [
        element(2, 1, "OB", &[0, 1]),
        element(2, 2, "UI", SECONDARY_CAPTURE),
        element(2, 3, "UI", uid.as_bytes()),
        element(2, 0x10, "UI", EXPLICIT_LITTLE),
    ]
    .concat();
    let data_set = [
        element(8, 0x16, "UI", SECONDARY_CAPTURE),
        element(8, 0x18, "UI", uid.as_bytes()),
        element(8, 0x60, "CS", b"OT"),
        element(0x10, 0x10, "PN", b"Probe^Paula"),
        element(0x10, 0x20, "LO", b"TEST-1"),
        element(0x20, 0xd, "UI", b"1.2.826.0.1.3680043.8.498.1"),
        element(0x20, 0xe, "UI", b"1.2.826.0.1.3680043.8.498.1.1"),
        element(0x7fe0, 0x10, "OB", pixels),
    ]
    .concat();
    let length = u32::try_from(group_2.len()).unwrap().to_le_bytes();
    [vec![0; 128], b"DICM".to_vec(), element(2, 0, "UL", &length), group_2, data_set].concat()
}

/// An instance as the spool hands it out.
pub(super) fn instance(number: u32, pixels: &[u8]) -> Envelope {
    let uid = format!("1.2.826.0.1.3680043.8.498.1.1.{number}");
    let mut envelope = envelope(&uid, part_10(&uid, pixels));
    envelope.meta.content_type = "application/dicom".into();
    envelope
}

fn end(store: &Path, arguments: &[&str]) -> Process {
    Process::start(python_peer("stow_end.py").args(arguments).arg("--store").arg(store))
}

async fn connect(end: &mut Process, scheme: &str, more: &str) -> Result<Stow, SendError> {
    let url = format!("{scheme}://localhost:{}/dicom-web/studies", end.listening().port());
    let config: StowConfig = section(&format!("url = \"{url}\"\n{more}"));
    Stow::connect(&config, &identity()).await
}

async fn send(upstream: &Stow, instance: &Envelope) -> Result<String, SendError> {
    Ok(upstream.send(instance).await?.receipt().await?.code)
}

fn requests(store: &Path) -> Vec<Value> {
    let lines = fs::read_to_string(store.join("requests")).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn in_short(outcome: Result<String, SendError>) -> String {
    match outcome {
        Ok(code) => code,
        Err(SendError::Busy { after: Some(after), .. }) if after == Duration::from_secs(7) => "busy 7".into(),
        Err(SendError::Busy { cause, .. }) => format!("busy {cause}"),
        Err(SendError::Refused { reason }) => format!("refused {reason}"),
        Err(other) => format!("{other:?}"),
    }
}

#[tokio::test]
async fn an_instance_arrives_unchanged_as_the_only_part_of_a_request_over_a_connection_that_stays() {
    let store = tempfile::tempdir().unwrap();
    let mut end = end(store.path(), &[]);
    let upstream = connect(&mut end, "http", "plain = true").await.unwrap();
    for (number, length) in [(1, 512 << 10), (2, 0), (3, 5_000_000)] {
        let instance = instance(number, &vec![7; length]);
        assert_eq!(send(&upstream, &instance).await.unwrap(), "200");
        assert!(kept(store.path(), &instance.digest.bytes));
    }
    let requests = requests(store.path());
    assert!(requests.iter().all(|request| request["connection"] == requests[0]["connection"]));
    assert_eq!(requests[0]["path"], "/dicom-web/studies");
    let headers = &requests[0]["headers"];
    assert_eq!(headers["accept"], "application/dicom+json");
    assert!(!headers.to_string().contains("1.2.826"), "{headers}");
}

#[tokio::test]
async fn the_result_of_the_instance_decides_and_the_reason_is_in_our_own_words() {
    let script =
        "200:failed=0110,202:stored=B007,202:failed=A700,409:failed=0111,409:failed=A900,409:html,503,200:html,202";
    let expected = [
        "refused the server (200) says 0110: it failed to process the instance",
        "202 B007",
        "busy 7",
        "409 0111",
        "refused the server (409) says A900: the data set does not match its SOP class",
        "refused the server answered 409 Conflict: it did not store the instance and did not say why",
        "busy 7",
        "busy the server answered 200 OK, but not as a DICOMweb server does: check url",
        "refused the server answered 202 Accepted: it did not say what became of the instance",
    ];
    for more in [&[][..], &["--xml"]] {
        let store = tempfile::tempdir().unwrap();
        // "Retry-After" comes with all but 2xx and is told where it helps.
        let mut end = end(store.path(), &[&["--answers", script, "--retry-after", "7"][..], more].concat());
        let upstream = connect(&mut end, "http", "plain = true").await.unwrap();
        let instance = instance(1, b"pixels");
        for expected in expected {
            let told = in_short(send(&upstream, &instance).await);
            let same =
                told == expected || (expected == "busy 7" && told.starts_with("busy the server (202) says A700"));
            assert!(same, "{told} instead of {expected}");
            assert!(!told.contains("Paula"));
        }
    }
}

#[tokio::test]
async fn several_instances_are_on_their_way_at_once_over_either_http() {
    for (more, http) in [(&[][..], "1.1"), (&["--http2"], "2")] {
        let store = tempfile::tempdir().unwrap();
        let mut end = end(store.path(), &[&["--together", "3"], more].concat());
        let upstream = connect(&mut end, "http", &format!("plain = true\nhttp = '{http}'")).await.unwrap();
        assert_eq!(upstream.window(), 4);
        let mut deliveries = Vec::new();
        for number in 1..=3 {
            deliveries.push(upstream.send(&instance(number, &vec![1; 300_000])).await.unwrap());
        }
        for mut delivery in deliveries {
            assert_eq!(delivery.receipt().await.unwrap().code, "200");
        }
        assert_eq!(count(store.path()), 3);
        let mut connections: Vec<_> =
            requests(store.path()).iter().map(|said| said["connection"].to_string()).collect();
        connections.sort();
        connections.dedup();
        assert_eq!(connections.len(), if http == "2" { 1 } else { 3 });
    }
}

#[tokio::test]
async fn two_versions_of_one_instance_arrive_in_their_order() {
    let store = tempfile::tempdir().unwrap();
    let mut end = end(store.path(), &[]);
    let upstream = connect(&mut end, "http", "plain = true").await.unwrap();
    let versions = [instance(1, &vec![1; 3_000_000]), instance(1, &[2; 8]), instance(1, &[3; 8])];
    let mut deliveries = Vec::new();
    for version in &versions {
        deliveries.push(upstream.send(version).await.unwrap());
    }
    for mut delivery in deliveries {
        delivery.receipt().await.unwrap();
    }
    let arrived: Vec<_> =
        requests(store.path()).iter().map(|said| said["sha256"].as_str().unwrap().to_owned()).collect();
    assert_eq!(arrived, versions.map(|version| hex(&version.digest.bytes)));
}

#[tokio::test]
async fn the_server_picks_the_http_in_the_tls_handshake_and_knows_this_box() {
    let folder = tempfile::tempdir().unwrap();
    let ours = Authority::new(folder.path(), "ours");
    let (server, client) = (ours.server("server"), ours.client("icu-3"));
    let path = |path: &Path| path.display().to_string();
    let [ca, chain, key] = [&ours.certificate, &server.certificate, &server.key].map(|file| path(file));
    let token = folder.path().join("token");
    fs::write(&token, "t0ken\n").unwrap();
    let tls = format!(
        "tls = {{ ca = '{ca}', certificate = '{}', key = '{}' }}",
        path(&client.certificate),
        path(&client.key)
    );
    let secured = ["--token", "t0ken", "--certificate", &chain, "--key", &key, "--client-ca", &ca];
    for (offered, asked, spoken) in
        [("h2,http/1.1", "auto", "2"), ("http/1.1", "auto", "1.1"), ("h2,http/1.1", "1.1", "1.1")]
    {
        let store = tempfile::tempdir().unwrap();
        let mut end = end(store.path(), &[&secured[..], &["--alpn", offered]].concat());
        let with_token = format!("{tls}\nhttp = '{asked}'\nbearer-token = '{}'", token.display());
        let upstream = connect(&mut end, "https", &with_token).await.unwrap();
        let instance = instance(1, &vec![9; 1 << 20]);
        assert_eq!(send(&upstream, &instance).await.unwrap(), "200");
        assert!(kept(store.path(), &instance.digest.bytes));
        assert_eq!(requests(store.path())[0]["http"], spoken);
        let upstream = connect(&mut end, "https", &format!("{tls}\nhttp = '{asked}'")).await.unwrap();
        let told = in_short(send(&upstream, &instance).await);
        assert!(told.contains("busy") && told.contains("bearer-token"), "{told}");
    }
}

#[tokio::test]
async fn a_server_that_goes_away_blames_no_instance() {
    let store = tempfile::tempdir().unwrap();
    for (more, http) in [(&[][..], "1.1"), (&["--http2"], "2")] {
        let mut end = end(store.path(), &[&["--together", "2"], more].concat());
        let upstream = connect(&mut end, "http", &format!("plain = true\nhttp = '{http}'")).await.unwrap();
        let mut delivery = upstream.send(&instance(1, b"pixels")).await.unwrap();
        drop(end);
        let error = delivery.receipt().await.unwrap_err();
        assert!(matches!(error, SendError::Disconnected { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_server_that_goes_while_nothing_is_sent_is_missed() {
    let store = tempfile::tempdir().unwrap();
    let mut end = end(store.path(), &[]);
    let upstream = connect(&mut end, "http", "plain = true\ncheck-every = '1s'").await.unwrap();
    send(&upstream, &instance(1, b"pixels")).await.unwrap();
    drop(end);
    let cause = tokio::time::timeout(PATIENCE, upstream.closed()).await.unwrap();
    assert!(cause.contains("refused the connection"), "{cause}");
}

#[tokio::test]
async fn what_is_no_instance_is_not_sent() {
    let store = tempfile::tempdir().unwrap();
    let mut end = end(store.path(), &[]);
    let upstream = connect(&mut end, "http", "plain = true").await.unwrap();
    let error = upstream.send(&envelope("1", message("1", "|"))).await.unwrap_err();
    assert!(matches!(&error, SendError::Rejected { reason } if reason.contains("no DICOM instance")), "{error}");
    assert_eq!(count(store.path()), 0);
}

#[tokio::test]
async fn orthanc_stores_what_we_send_unchanged_and_a_second_copy_is_no_fault() {
    let folder = tempfile::tempdir().unwrap();
    let orthanc = Orthanc::start(folder.path(), &[], &Value::Null);
    let config = format!("url = 'http://{}/dicom-web/studies'\nplain = true", orthanc.http);
    let upstream = Stow::connect(&section(&config), &identity()).await.unwrap();
    let sent: Vec<_> = (1..=6).map(|number| instance(number, &vec![5; 200_000])).collect();
    let mut deliveries = Vec::new();
    for instance in sent.iter().chain(&sent[..1]) {
        deliveries.push(upstream.send(instance).await.unwrap());
    }
    for mut delivery in deliveries {
        assert_eq!(delivery.receipt().await.unwrap().code, "200");
    }
    let hash = |instance: &Envelope| data_set_hash_of(instance.body.as_whole().unwrap());
    let mut expected: Vec<_> = sent.iter().map(hash).collect();
    let mut held: Vec<_> = orthanc.objects().iter().map(|(_, file)| data_set_hash_of(file)).collect();
    expected.sort();
    held.sort();
    assert_eq!(held, expected);
    // What it can't read it refuses, whatever the status, and we say so.
    let mut broken = envelope("1.2.3", vec![7; 5000]);
    broken.meta.content_type = "application/dicom".into();
    let told = in_short(send(&upstream, &broken).await);
    assert!(told.starts_with("refused"), "{told}");
}

/// An instance of 28 MiB that is made when it is read, and counts how far that went.
struct Lazy {
    head: Vec<u8>,
    read: AtomicUsize,
}

const LAZY: (usize, usize) = (112, 256 << 10);

impl Pieces for Lazy {
    fn count(&self) -> usize {
        LAZY.0 + 1
    }
    fn read(&self, index: usize) -> Result<Bytes, BodyError> {
        self.read.fetch_max(index, Ordering::Relaxed);
        Ok(if index == 0 { self.head.clone().into() } else { vec![7; LAZY.1].into() })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_instance_is_read_only_as_fast_as_the_server_takes_it() {
    for (more, http) in [(&[][..], "1.1"), (&["--http2"], "2")] {
        let store = tempfile::tempdir().unwrap();
        let mut end = end(store.path(), more);
        let upstream = connect(&mut end, "http", &format!("plain = true\nhttp = '{http}'")).await.unwrap();
        let mut sent = instance(1, b"");
        let lazy = Arc::new(Lazy { head: sent.body.as_whole().unwrap().to_vec(), read: AtomicUsize::new(0) });
        let whole = [lazy.head.clone(), vec![7; LAZY.0 * LAZY.1]].concat();
        sent.digest.bytes = *digest(&SHA256, &whole).as_ref().first_chunk().unwrap();
        sent.body = Body::pieces(whole.len() as u64, lazy.clone());
        end.signal("STOP");
        let mut delivery = upstream.send(&sent).await.unwrap();
        // What the sockets of both sides hold is a few MiB.
        let far = || lazy.read.load(Ordering::Relaxed) > 80;
        assert!(
            !tokio::task::block_in_place(|| holds_within(Duration::from_millis(300), far)),
            "it was read into memory"
        );
        end.signal("CONT");
        assert_eq!(delivery.receipt().await.unwrap().code, "200");
        assert!(kept(store.path(), &sent.digest.bytes));
    }
}
