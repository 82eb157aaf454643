//! Storage commitment: an instance counts as delivered when the archive says that it keeps it. Orthanc, and pynetdicom.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use wardgate::envelope::{Class, Flags, Meta};
use wardgate::spool::{Disk, Secret, Spool, SpoolConfig};
use wardgate::upstream::dicom::Dicom;
use wardgate::upstream::forwarder::Forwarding;
use wardgate::upstream::{SendError, Stop, Upstream, UpstreamConfig};

use super::dicom::{connect, instance, send};
use super::{identity, section};
use crate::support::dicom::{AS_SENT, Archive, Storescp};
use crate::support::dicom_files::{data_set_hash_of, hashes_in};
use crate::support::orthanc::{Known, Orthanc};
use crate::support::ports::free_address;
use crate::support::wait::eventually_async;

/// Connects with a listener for reports, on a port that is free.
async fn listening(archive: SocketAddr, listen: SocketAddr) -> Dicom {
    let more = format!("plain = true\ncommitment = true\ncommitment-listen = {{ listen = '{listen}' }}");
    connect(archive, &more).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_archives_report_on_an_association_of_its_own_is_the_receipt() {
    let (store, listen) = (tempfile::tempdir().unwrap(), free_address());
    let archive = Archive::start(store.path(), &["--commit-to", &listen.to_string()]);
    let upstream = listening(archive.address, listen).await;
    let mut deliveries = Vec::new();
    for number in 1..=5 {
        deliveries.push(upstream.send(&instance(number)).await.unwrap());
    }
    for delivery in &mut deliveries {
        assert_eq!(delivery.receipt().await.unwrap().code, "committed");
    }
    let asked = archive.wait_for("action", 1);
    assert_eq!(asked.len(), 1, "all of them together");
    assert_eq!(archive.wait_for("reported", 1)[0]["status"], "0000");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_on_the_same_association_finds_it_open() {
    let store = tempfile::tempdir().unwrap();
    let archive = Archive::start(store.path(), &["--commitment", "same", "--commit-delay", "0.3"]);
    let upstream = connect(archive.address, "plain = true\ncommitment = true\nrelease-after = \"50ms\"").await.unwrap();
    assert_eq!(send(&upstream, &instance(1)).await.unwrap(), "committed");
    archive.wait_for("released", 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_messages_with_one_instance_are_committed_one_after_the_other_and_hold_up_no_others() {
    let store = tempfile::tempdir().unwrap();
    let archive = Archive::start(store.path(), &["--commitment", "same"]);
    // One association: the second must not keep it from the request for the first.
    let upstream = connect(archive.address, "plain = true\ncommitment = true\nassociations = 1").await.unwrap();
    let mut deliveries = Vec::new();
    for number in [1, 1, 2] {
        deliveries.push(upstream.send(&instance(number)).await.unwrap());
    }
    for delivery in &mut deliveries {
        assert_eq!(delivery.receipt().await.unwrap().code, "committed");
    }
    let asked = archive.events("action");
    for request in &asked {
        let instances = request["instances"].as_array().unwrap();
        assert!(instances.iter().filter(|uid| **uid == "2.25.7003.1").count() <= 1, "{request}");
    }
    assert!(asked.len() >= 2, "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_archive_does_not_keep_is_refused_with_its_reason() {
    let store = tempfile::tempdir().unwrap();
    let archive = Archive::start(store.path(), &["--commitment", "same", "--commit-fail", "2.25.7003.2"]);
    let upstream = connect(archive.address, "plain = true\ncommitment = true").await.unwrap();
    let (mut one, mut two) = (upstream.send(&instance(1)).await.unwrap(), upstream.send(&instance(2)).await.unwrap());
    assert_eq!(one.receipt().await.unwrap().code, "committed");
    let error = two.receipt().await.unwrap_err();
    assert!(
        matches!(&error, SendError::Refused { reason } if reason.contains("0112 (no such SOP instance)")),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_does_not_commit_itself_holds_the_lane_and_nothing_is_lost() {
    let store = tempfile::tempdir().unwrap();
    for (options, expected) in [
        (&["--commitment", "none"][..], "commitment-listen"),
        (&["--action-status", "0122"], "0122 (SOP class not supported)"),
    ] {
        let archive = Archive::start(store.path(), options);
        let more = "plain = true\ncommitment = true\ncommitment-timeout = \"700ms\"";
        let upstream = connect(archive.address, more).await.unwrap();
        let error = send(&upstream, &instance(1)).await.unwrap_err();
        assert!(matches!(&error, SendError::Busy { cause, .. } if cause.contains(expected)), "{error}");
    }
    // storescp knows nothing of commitment.
    let archive = Storescp::start(store.path(), &[AS_SENT, &["--fork"]].concat());
    let upstream = connect(archive.address, "plain = true\ncommitment = true").await.unwrap();
    let error = send(&upstream, &instance(1)).await.unwrap_err();
    let expected = "does not offer storage commitment";
    assert!(matches!(&error, SendError::Busy { cause, .. } if cause.contains(expected)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn orthanc_commits_itself_to_what_it_has() {
    let (folder, listen) = (tempfile::tempdir().unwrap(), free_address());
    let known = [Known { name: "box", title: "WARDGATE", address: listen }];
    let orthanc = Orthanc::start(folder.path(), &known, &serde_json::Value::Null);
    let upstream = listening(orthanc.dicom, listen).await;
    assert_eq!(send(&upstream, &instance(1)).await.unwrap(), "committed");
    assert_eq!(orthanc.count(), 1);
}

const INSTANCES: u32 = 30;

async fn store_in(spool: &Spool, number: u32) -> String {
    let envelope = instance(number);
    let body = envelope.body.as_whole().unwrap().clone();
    let source = "ct".parse().unwrap();
    let mut draft = spool.begin(Class::Imaging, &source);
    draft.write(&body).await.unwrap();
    let meta = Meta {
        source,
        protocol: "dicom".into(),
        content_type: "application/dicom".into(),
        control_id: envelope.meta.control_id,
        targets: vec![identity().upstream],
        flags: Flags::default(),
        received: spool.now(),
        tokens: Vec::new(),
    };
    draft.commit(meta).await.unwrap();
    data_set_hash_of(&body)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_is_killed_in_the_middle_and_comes_back_full_has_everything_in_the_end() {
    let (folder, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let config: SpoolConfig = section("path = '/unused'\nkey = 'unused'");
    let spool = Spool::open(Arc::new(Disk::open(folder.path()).unwrap()), Secret::random(), &config).unwrap();
    // Slow enough to be killed in the middle.
    let archive = Archive::start(store.path(), &["--delay", "0.02"]);
    let text = format!("[dicom]\naddress = '{}'\ncalled = 'ARCHIVE'\nplain = true", archive.address);
    let upstream: UpstreamConfig = section(&text);
    let forwarding = Forwarding {
        identity: identity(),
        spool: spool.clone(),
        lanes: vec![spool.lane(Class::Imaging, &"ct".parse().unwrap(), &identity().upstream)],
        conversions: tokio::sync::watch::Sender::new(Arc::default()).subscribe(),
        counters: Arc::default(),
        holds: Arc::default(),
        status: tokio::sync::watch::Sender::new(Arc::default()).subscribe(),
    };
    let (counters, stop) = (Arc::clone(&forwarding.counters), Stop::new());
    let running = tokio::spawn(upstream.forward(forwarding, stop.clone()));
    let mut expected = Vec::new();
    for number in 1..=INSTANCES {
        expected.push(store_in(&spool, number).await);
    }
    eventually_async("some arrived", || async { archive.files().len() >= 5 }).await;
    // The first that it is given then finds it full: it is kept for later.
    let archive = archive.again(&["--statuses", "A700,0000"]);
    eventually_async("all delivered", || async { counters.delivered.value() == u64::from(INSTANCES) }).await;
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(10), running).await.unwrap().unwrap();
    let mut arrived = hashes_in(store.path());
    arrived.dedup();
    expected.sort();
    assert_eq!(arrived, expected);
    assert_eq!((spool.lanes().iter().map(|lane| lane.backlog).sum::<u64>(), counters.dead.value()), (0, 0));
    drop(archive);
    tokio::task::spawn_blocking(move || spool.close()).await.unwrap();
}
