//! DICOM: dcmtk's `storescp`, Orthanc, and an archive made of pynetdicom that answers as the test says.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use wardgate::envelope::{Body, BodyError, Envelope, Flags, Pieces};
use wardgate::upstream::dicom::{Dicom, DicomConfig};
use wardgate::upstream::{SendError, Upstream};
use wardgate::wire::dicom::file::FileMeta;
use wardgate::wire::dicom::sample::Sample;
use wardgate::wire::dicom::values::{AeTitle, EXPLICIT_LITTLE_ENDIAN, SECONDARY_CAPTURE, Uid};

use super::{envelope, identity, section};
use crate::support::certs::Authority;
use crate::support::dicom::{AS_SENT, Archive, HostileArchive, Storescp, tls_server};
use crate::support::dicom_files::{data_set_hash, data_set_hash_of, hashes, hashes_in, odd_objects, wheel_objects};
use crate::support::orthanc::Orthanc;
use crate::support::ports::free_address;
use crate::support::wait::{eventually, eventually_async};

/// None of them is anybody's.
const CT: &str = "1.2.840.10008.5.1.4.1.1.2";
const JPEG_2000: &str = "1.2.840.10008.1.2.4.90";

pub(super) async fn connect(address: SocketAddr, more: &str) -> Result<Dicom, SendError> {
    let config: DicomConfig = section(&format!("address = \"{address}\"\ncalled = \"ARCHIVE\"\n{more}"));
    Dicom::connect(&config, &identity()).await
}

pub(super) async fn send(upstream: &Dicom, envelope: &Envelope) -> Result<String, SendError> {
    Ok(upstream.send(envelope).await?.receipt().await?.code)
}

fn uid(text: &str) -> Uid {
    text.parse().unwrap()
}

/// A stored instance of an invented patient.
pub(super) fn instance(number: u32) -> Envelope {
    file_of(number, &SECONDARY_CAPTURE, &EXPLICIT_LITTLE_ENDIAN)
}

/// The same, said to be of another class or encoding.
fn file_of(number: u32, class: &Uid, syntax: &Uid) -> Envelope {
    let (study, series) = (uid("2.25.7001"), uid("2.25.7002"));
    let sop_instance = uid(&format!("2.25.7003.{number}"));
    let (date, time) = ("20260102", "030405");
    let sample = Sample { sop_instance: &sop_instance, study: &study, series: &series, number, date, time, side: 64 };
    let source_ae = AeTitle::read(b"CT1");
    let meta = FileMeta {
        sop_class: class.clone(),
        sop_instance: sop_instance.clone(),
        transfer_syntax: syntax.clone(),
        source_ae,
        receiving_ae: AeTitle::default(),
    };
    envelope(&sop_instance.to_string(), [meta.bytes(), sample.data_set()].concat())
}

fn hash(envelope: &Envelope) -> String {
    data_set_hash_of(envelope.body.as_whole().unwrap())
}

pub(super) fn read(path: &Path) -> Envelope {
    envelope("2.25.1", std::fs::read(path).unwrap())
}

#[tokio::test]
async fn storescp_has_the_bytes_that_were_stored() {
    let store = tempfile::tempdir().unwrap();
    let archive = Storescp::start(store.path(), &[AS_SENT, &["--fork"]].concat());
    let upstream = connect(archive.address, "plain = true").await.unwrap();
    let sent: Vec<_> = (1..=5).map(instance).collect();
    for instance in &sent {
        assert_eq!(send(&upstream, instance).await.unwrap(), "0000");
    }
    let mut expected: Vec<_> = sent.iter().map(hash).collect();
    expected.sort();
    assert_eq!(hashes_in(store.path()), expected);
    upstream.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_messages_with_one_instance_are_never_on_their_way_together() {
    let store = tempfile::tempdir().unwrap();
    let archive = Archive::start(store.path(), &["--delay", "0.3"]);
    let upstream = connect(archive.address, "plain = true\nassociations = 4").await.unwrap();
    let (first, second) = (upstream.send(&instance(1)).await.unwrap(), upstream.send(&instance(1)).await.unwrap());
    for mut delivery in [first, second] {
        assert_eq!(delivery.receipt().await.unwrap().code, "0000");
    }
    assert_eq!(archive.wait_for("stored", 2).len(), 2);
    assert_eq!(archive.events("associated").len(), 2, "the trial at the start, and one over which both went");
}

#[tokio::test]
async fn orthanc_has_the_bytes_that_were_stored() {
    let folder = tempfile::tempdir().unwrap();
    let orthanc = Orthanc::start(folder.path(), &[], &serde_json::Value::Null);
    let upstream = connect(orthanc.dicom, "plain = true").await.unwrap();
    let instance = instance(1);
    assert_eq!(send(&upstream, &instance).await.unwrap(), "0000");
    let objects = orthanc.objects();
    assert_eq!(objects.iter().map(|(_, file)| data_set_hash_of(file)).collect::<Vec<_>>(), [hash(&instance)]);
    // Once more: it has it already, and that is as good.
    send(&upstream, &instance).await.unwrap();
    assert_eq!(orthanc.count(), 1);
}

#[tokio::test]
async fn every_object_of_the_wheels_and_every_odd_one_arrives_unchanged() {
    let (objects, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut sent = wheel_objects(&objects.path().join("wheels"));
    sent.extend(odd_objects(&objects.path().join("odd")));
    let archive = Archive::start::<&str>(store.path(), &[]);
    let upstream = connect(archive.address, "plain = true\nassociations = 4").await.unwrap();
    let mut deliveries = Vec::new();
    for object in &sent {
        deliveries.push(upstream.send(&read(&object.path)).await.unwrap());
    }
    let mut taken = Vec::new();
    for (delivery, object) in deliveries.iter_mut().zip(sent) {
        match delivery.receipt().await {
            Ok(_) => taken.push(object),
            // pynetdicom knows classes whose storage is a service of its own (palettes, templates) and does not offer that.
            Err(SendError::Rejected { reason }) if !object.sop_class.starts_with("1.2.840.10008.5.1.4.1.1.") => {
                assert!(reason.contains(&object.sop_class), "{reason}");
            }
            Err(other) => panic!("{}: {other}", object.path.display()),
        }
    }
    assert!(taken.len() > 250, "only {}", taken.len());
    let sent = taken;
    let mut arrived: Vec<_> = archive
        .wait_for("stored", sent.len())
        .iter()
        .map(|event| event["sha256"].as_str().unwrap().to_owned())
        .collect();
    arrived.sort();
    assert_eq!(arrived, hashes(&sent));
}

#[tokio::test]
async fn the_status_decides_and_the_association_stays() {
    let store = tempfile::tempdir().unwrap();
    let statuses = [
        "0000", "B000", "B006", "B007", "B123", "0111", "A700", "0213", "0122", "0124", "0110", "A900", "C000", "C122",
        "C211", "0000",
    ];
    let archive = Archive::start(store.path(), &["--statuses", &statuses.join(",")]);
    let upstream = connect(archive.address, "plain = true").await.unwrap();
    let mut told = Vec::new();
    for status in statuses {
        told.push(match send(&upstream, &instance(1)).await {
            Ok(code) => code,
            Err(SendError::Busy { cause, .. }) if cause.contains(status) => "busy".into(),
            Err(SendError::Refused { reason }) if reason.contains(status) => "refused".into(),
            Err(SendError::Rejected { reason }) if reason.contains(status) => "rejected".into(),
            Err(other) => other.to_string(),
        });
    }
    let (b, r, n) = ("busy", "refused", "rejected");
    assert_eq!(told, ["0000", "B000", "B006", "B007", "B123", "0111", b, b, n, r, r, n, n, n, r, "0000"]);
    assert_eq!(archive.wait_for("associated", 2).len(), 2, "one to see whether it is there, one for all instances");
}

#[tokio::test]
async fn a_changed_instance_that_the_archive_does_not_take_is_not_delivered() {
    let store = tempfile::tempdir().unwrap();
    let archive = Archive::start(store.path(), &["--statuses", "0000,0111,0111,0000"]);
    let upstream = connect(archive.address, "plain = true").await.unwrap();
    let (former, mut changed) = (instance(1), file_of(1, &uid(CT), &EXPLICIT_LITTLE_ENDIAN));
    changed.meta.flags = Flags::DUPLICATE;
    assert_eq!(send(&upstream, &former).await.unwrap(), "0000");
    assert_eq!(send(&upstream, &former).await.unwrap(), "0111", "the same bytes: it has them");
    let error = send(&upstream, &changed).await.unwrap_err();
    let told = matches!(&error, SendError::Rejected { reason } if reason.contains("0111") && reason.contains("the former one"));
    assert!(told, "{error:?}");
    assert_eq!(send(&upstream, &changed).await.unwrap(), "0000", "an archive that replaces it has it");
}

#[tokio::test]
async fn a_refused_class_or_encoding_is_rejected_with_its_name() {
    let store = tempfile::tempdir().unwrap();
    let options = [
        "--transfer-syntaxes",
        "1.2.840.10008.1.2.1",
        "--sop-classes",
        "1.2.840.10008.5.1.4.1.1.7,1.2.840.10008.5.1.4.1.1.2",
    ];
    let archive = Archive::start(store.path(), &options);
    let upstream = connect(archive.address, "plain = true").await.unwrap();
    let mut reasons = Vec::new();
    for instance in
        [file_of(1, &uid("1.2.840.10008.5.1.4.1.1.4"), &EXPLICIT_LITTLE_ENDIAN), file_of(2, &uid(CT), &uid(JPEG_2000))]
    {
        let Err(SendError::Rejected { reason }) = send(&upstream, &instance).await else { panic!("it was taken") };
        reasons.push(reason);
    }
    assert!(reasons[0].contains("MR Image Storage (1.2.840.10008.5.1.4.1.1.4)"), "{reasons:?}");
    assert!(reasons[1].contains("CT Image Storage (1.2.840.10008.5.1.4.1.1.2)"), "{reasons:?}");
    assert!(reasons[1].contains("JPEG 2000 Lossless (1.2.840.10008.1.2.4.90)"), "{reasons:?}");
    let before = archive.events("associated").len();
    assert!(send(&upstream, &file_of(3, &uid(CT), &uid(JPEG_2000))).await.is_err());
    assert_eq!(archive.events("associated").len(), before, "the next of the kind costs no association");
    assert_eq!(send(&upstream, &instance(4)).await.unwrap(), "0000");
}

#[tokio::test]
async fn an_abort_at_an_instance_is_tried_again_as_a_refusal_is_and_not_for_ever() {
    let store = tempfile::tempdir().unwrap();
    let archive = Archive::start(store.path(), &["--statuses", "abort,0000"]);
    let upstream = connect(archive.address, "plain = true").await.unwrap();
    let error = send(&upstream, &instance(1)).await.unwrap_err();
    assert!(matches!(&error, SendError::Refused { reason } if reason.contains("at this instance: aborted")), "{error}");
    assert_eq!(send(&upstream, &instance(1)).await.unwrap(), "0000");
}

#[tokio::test]
async fn after_silence_the_association_is_not_used_again() {
    let store = tempfile::tempdir().unwrap();
    let archive = Archive::start(store.path(), &["--statuses", "silence,0000"]);
    let upstream = connect(archive.address, "plain = true\nresponse-timeout = \"300ms\"").await.unwrap();
    let error = send(&upstream, &instance(1)).await.unwrap_err();
    assert!(matches!(&error, SendError::Disconnected { cause } if cause.contains("did not answer")), "{error}");
    let before = archive.events("associated").len();
    assert_eq!(send(&upstream, &instance(2)).await.unwrap(), "0000");
    assert_eq!(archive.wait_for("associated", before + 1).len(), before + 1);
}

#[tokio::test]
async fn the_archives_longest_pdu_is_honoured_whatever_it_is() {
    for (maximum, side) in [("0", 1), ("8", 2), ("9", 3), ("4096", 4), ("1048576", 5)] {
        let store = tempfile::tempdir().unwrap();
        let archive = Archive::start(store.path(), &["--max-pdu", maximum]);
        let upstream = connect(archive.address, "plain = true").await.unwrap();
        let instance = instance(side);
        assert_eq!(send(&upstream, &instance).await.unwrap(), "0000", "{maximum}");
        assert_eq!(archive.wait_for("stored", 1)[0]["sha256"], hash(&instance), "{maximum}");
    }
    let store = tempfile::tempdir().unwrap();
    let archive = Archive::start(store.path(), &["--max-pdu", "7"]);
    let Err(error) = connect(archive.address, "plain = true").await else { panic!("no room for data") };
    assert!(error.to_string().contains("at most 7 bytes"), "{error}");
}

#[tokio::test]
async fn more_kinds_than_an_association_has_contexts_arrive_all() {
    let store = tempfile::tempdir().unwrap();
    let archive = Archive::start(store.path(), &["--discard"]);
    let upstream = connect(archive.address, "plain = true\nassociations = 1").await.unwrap();
    for number in 1..=140 {
        let class = uid(&format!("1.2.840.113619.4.{number}"));
        assert_eq!(send(&upstream, &file_of(number, &class, &EXPLICIT_LITTLE_ENDIAN)).await.unwrap(), "0000");
    }
    let proposed: Vec<_> =
        archive.events("associated").iter().map(|event| event["proposed"].as_u64().unwrap()).collect();
    assert_eq!(proposed.iter().max(), Some(&128));
}

#[tokio::test]
async fn several_associations_are_used_side_by_side_and_no_more_than_configured() {
    let store = tempfile::tempdir().unwrap();
    let archive = Archive::start(store.path(), &["--discard", "--delay", "0.05"]);
    let upstream = connect(archive.address, "plain = true\nassociations = 3").await.unwrap();
    assert_eq!(upstream.window(), 3);
    let mut deliveries = Vec::new();
    for number in 1..=12 {
        deliveries.push(upstream.send(&instance(number)).await.unwrap());
    }
    for delivery in &mut deliveries {
        delivery.receipt().await.unwrap();
    }
    assert_eq!(archive.wait_for("associated", 1 + 3).len(), 1 + 3);
}

#[tokio::test]
async fn an_archive_that_takes_one_association_at_a_time_gets_one_at_a_time() {
    let store = tempfile::tempdir().unwrap();
    // Without --fork the second one is not answered while the first is open.
    let archive = Storescp::start(store.path(), AS_SENT);
    let upstream = connect(archive.address, "plain = true\nconnect-timeout = \"300ms\"").await.unwrap();
    let mut deliveries = Vec::new();
    for number in 1..=8 {
        deliveries.push(upstream.send(&instance(number)).await.unwrap());
    }
    for delivery in &mut deliveries {
        assert_eq!(delivery.receipt().await.unwrap().code, "0000");
    }
    assert_eq!(archive.files().len(), 8);
}

#[tokio::test]
async fn when_it_is_quiet_the_association_is_released_and_the_next_instance_opens_another() {
    let store = tempfile::tempdir().unwrap();
    let archive = Archive::start(store.path(), &["--discard"]);
    let upstream = connect(archive.address, "plain = true\nrelease-after = \"100ms\"").await.unwrap();
    send(&upstream, &instance(1)).await.unwrap();
    eventually_async("released", || async { archive.events("released").len() == 2 }).await;
    send(&upstream, &instance(2)).await.unwrap();
    upstream.close().await;
    archive.wait_for("released", 3);
    assert_eq!(archive.events("aborted").len(), 0);
}

#[tokio::test]
async fn who_does_not_let_us_in_is_told_with_what_to_do() {
    let store = tempfile::tempdir().unwrap();
    let archive = Archive::start(store.path(), &["--calling", "CT1"]);
    let Err(error) = connect(archive.address, "plain = true").await else { panic!("it let us in") };
    assert!(matches!(&error, SendError::Disconnected { cause } if cause.contains("\"WARDGATE\"")), "{error}");
    let upstream = connect(archive.address, "plain = true\ncalling = \"CT1\"").await.unwrap();
    assert_eq!(send(&upstream, &instance(1)).await.unwrap(), "0000");
    let archive = Archive::start(store.path(), &["--check-called"]);
    let config = format!("address = '{}'\ncalled = 'ELSE'\nplain = true", archive.address);
    let Err(error) = Dicom::connect(&section(&config), &identity()).await else { panic!("it let us in") };
    assert!(error.to_string().contains("called = \"ELSE\""), "{error}");
    let Err(error) = connect(free_address(), "plain = true").await else { panic!("nobody is there") };
    assert!(error.to_string().contains("refused the connection"), "{error}");
}

#[tokio::test]
async fn dcmtk_over_tls_takes_instances_from_who_shows_a_certificate() {
    let (store, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let authority = Authority::new(folder.path(), "ours");
    let (server, client) = (authority.server("server"), authority.client("icu-3"));
    let mut options = tls_server(&server, &authority);
    options.extend([AS_SENT, &["--fork"]].concat().iter().map(|option| (*option).to_owned()));
    let archive = Storescp::start(store.path(), &options);
    let address = SocketAddr::from(([127, 0, 0, 1], archive.address.port()));
    let (ca, certificate, key) = (authority.certificate.display(), client.certificate.display(), client.key.display());
    let tls =
        format!("tls = {{ ca = '{ca}', certificate = '{certificate}', key = '{key}', server-name = 'localhost' }}");
    let upstream = connect(address, &tls).await.unwrap();
    let instance = instance(1);
    assert_eq!(send(&upstream, &instance).await.unwrap(), "0000");
    assert_eq!(data_set_hash(&archive.files()[0]), hash(&instance));
    upstream.close().await;
    let stranger = format!("tls = {{ ca = '{ca}', server-name = 'localhost' }}");
    assert!(matches!(connect(address, &stranger).await, Err(SendError::Disconnected { .. })));
}

#[tokio::test]
async fn what_is_no_dicom_file_is_rejected_and_nothing_is_sent() {
    let store = tempfile::tempdir().unwrap();
    let archive = Archive::start::<&str>(store.path(), &[]);
    let upstream = connect(archive.address, "plain = true").await.unwrap();
    for body in [Vec::new(), b"MSH|^~\\&|".to_vec(), vec![0; 400]] {
        let error = send(&upstream, &envelope("1", body)).await.unwrap_err();
        assert!(matches!(&error, SendError::Rejected { reason } if reason.contains("DICOM file")), "{error}");
    }
    assert_eq!(archive.wait_for("associated", 1).len(), 1);
}

/// A head, then a data set of one long value, made as it is read.
struct Long {
    head: Bytes,
    count: usize,
}

/// What the spool's fragments have at most.
const PIECE: usize = 256 << 10;

impl Pieces for Long {
    fn count(&self) -> usize {
        1 + self.count
    }

    fn read(&self, index: usize) -> Result<Bytes, BodyError> {
        match index {
            0 => Ok(self.head.clone()),
            _ => Ok(vec![u8::try_from(index % 251).unwrap(); PIECE].into()),
        }
    }
}

fn long(count: usize) -> Envelope {
    let mut envelope = instance(9);
    let whole = envelope.body.as_whole().unwrap().clone();
    let (_, data_set) = FileMeta::read(&whole).unwrap();
    let mut head = whole.slice(..data_set).to_vec();
    head.extend_from_slice(&[0xe0, 0x7f, 0x10, 0, b'O', b'B', 0, 0]);
    head.extend_from_slice(&u32::try_from(count * PIECE).unwrap().to_le_bytes());
    let length = head.len() + count * PIECE;
    let pieces = Long { head: head.into(), count };
    envelope.body = Body::pieces(u64::try_from(length).unwrap(), Arc::new(pieces));
    envelope
}

#[tokio::test]
async fn an_instance_of_sixty_four_megabytes_is_streamed() {
    let store = tempfile::tempdir().unwrap();
    let archive = Archive::start(store.path(), &["--discard", "--max-pdu", "0"]);
    let upstream = connect(archive.address, "plain = true").await.unwrap();
    assert_eq!(send(&upstream, &long(256)).await.unwrap(), "0000");
    let stored = archive.wait_for("stored", 1);
    assert_eq!(stored[0]["bytes"], 12 + 256 * PIECE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_that_nobody_waits_for_ends_its_association() {
    let store = tempfile::tempdir().unwrap();
    let archive = Archive::start(store.path(), &["--discard", "--statuses", "silence,0000"]);
    let upstream = connect(archive.address, "plain = true\nassociations = 1").await.unwrap();
    let delivery = upstream.send(&instance(1)).await.unwrap();
    archive.wait_for("stored", 1);
    drop(delivery);
    assert_eq!(send(&upstream, &instance(2)).await.unwrap(), "0000", "the one association is free again");
    eventually("two stored", || archive.events("stored").len() == 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_breaks_the_rules_gets_no_receipt_from_us_and_an_odd_one_gets_its_instances() {
    let more = "plain = true\nconnect-timeout = \"500ms\"\nresponse-timeout = \"500ms\"";
    for (case, expected) in [
        ("good", "0000"),
        ("max-pdu-0", "0000"),
        ("max-pdu-tiny", "0000"),
        ("short-rejections", "0000"),
        ("unknown-items", "0000"),
        ("split-answers", "0000"),
        ("two-answers", "0000"),
        ("collision", "0000"),
        ("max-pdu-4", "at most 4 bytes"),
        ("silent", "did not answer the request"),
        ("closes", "the connection to the archive ended"),
        ("http", "this is not DICOM"),
        ("huge", "bytes; at most"),
        ("rejects-for-now", "local limit exceeded"),
        ("rejects-for-ever", "called AE title not recognised"),
        ("other-syntax", "rejected: the archive does not take Secondary Capture"),
        ("no-contexts", "rejected: the archive does not take Secondary Capture"),
        ("silent-store", "did not answer"),
        ("closes-in-store", "the connection to the archive ended"),
        ("abort-in-store", "the archive"),
        ("wrong-message", "did not answer"),
        ("wrong-instance", "for another instance"),
    ] {
        let archive = HostileArchive::start(case);
        let outcome = match connect(archive.address, more).await {
            Err(error) => error.to_string(),
            Ok(upstream) => {
                // Twice, since what is left over of the first must not harm the second.
                let (first, second) = (send(&upstream, &instance(1)).await, send(&upstream, &instance(2)).await);
                assert_eq!(first.is_ok(), second.is_ok(), "{case}: {first:?}, {second:?}");
                match first {
                    Ok(code) => code,
                    Err(SendError::Rejected { reason }) => format!("rejected: {reason}"),
                    Err(SendError::Disconnected { cause }) => cause,
                    Err(other) => format!("blamed on the message: {other}"),
                }
            }
        };
        assert!(outcome.contains(expected), "{case}: {outcome}");
    }
}

/// An archive in maintenance would empty the whole backlog into dead letters.
#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_does_not_say_why_it_takes_no_instance_is_tried_again_and_its_owner_to_be_asked() {
    for (case, why) in [
        ("user-rejections", "rejected by the application"),
        ("no-reasons", "rejected without a reason"),
        ("left-out", "rejected without a reason"),
    ] {
        for more in ["plain = true", "plain = true\nconvert = \"uncompressed\""] {
            let archive = HostileArchive::start(case);
            let upstream = connect(archive.address, more).await.unwrap();
            let error = send(&upstream, &instance(1)).await.unwrap_err();
            let SendError::Refused { reason } = &error else { panic!("{case}: {error:?}") };
            let advice = "ask its owner whether it stores for \"WARDGATE\" now";
            assert!(reason.contains(why) && reason.contains(advice), "{case}: {reason}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_association_that_the_archive_ended_while_it_was_quiet_is_no_fault() {
    let store = tempfile::tempdir().unwrap();
    let archive = Archive::start::<&str>(store.path(), &[]);
    let upstream = connect(archive.address, "plain = true").await.unwrap();
    assert_eq!(send(&upstream, &instance(1)).await.unwrap(), "0000");
    let archive = archive.again::<&str>(&[]);
    assert_eq!(send(&upstream, &instance(2)).await.unwrap(), "0000");
    assert_eq!(archive.files().len(), 2);
}
