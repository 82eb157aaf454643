//! The DICOM peers prove themselves on each other first, so that a failing test of ours can't be a peer's fault.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::certs::Authority;
use crate::support::dicom::{
    ARCHIVE, AS_SENT, Archive, HostileArchive, ListeningModality, Storescp, answers, dcmsend, echoscu, events, hostile,
    modality, send_image, storescu, tls_anonymous_client, tls_client, tls_server,
};
use crate::support::dicom_files::{
    bad_objects, ct_images, data_set_hash, data_set_hash_of, faults, hashes, hashes_in, large_objects, odd_objects,
    wheel_objects,
};
use crate::support::orthanc::{Known, Orthanc};
use crate::support::process::{run, succeeds};

#[test]
fn storescu_dcmsend_and_send_image_bring_the_bytes_that_storescp_keeps() {
    let (outbox, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let images = ct_images(outbox.path(), 3);
    let archive = Storescp::start(store.path(), &[AS_SENT, &["--fork"]].concat());
    succeeds(&mut echoscu(archive.address, ARCHIVE, &[]));
    let said = succeeds(&mut storescu(archive.address, ARCHIVE, &[], &[&images[0].path]));
    assert_eq!(answers(&said), [(images[0].path.clone(), "Success".to_owned())]);
    succeeds(&mut dcmsend(archive.address, ARCHIVE, &[], &[&images[1].path]));
    // It reads data sets in explicit VR only with a proposal to send them so.
    let explicit = ["-X", "1.2.840.10008.1.2.1"];
    succeeds(&mut send_image(archive.address, ARCHIVE, &explicit, &[&images[2].path]));
    assert_eq!(archive.files().len(), 3);
    let kept = store.path().join(format!("CT.{}", images[0].sop_instance));
    assert!(!faults(&images[0].path).is_empty());
    assert_eq!(faults(&kept), faults(&images[0].path));
    // These objects have nothing that an encoder could write otherwise.
    assert_eq!(hashes_in(store.path()), hashes(&images));
}

#[test]
fn storescp_takes_tls_clients_that_it_knows_and_no_stranger() {
    let folder = tempfile::tempdir().unwrap();
    let store = tempfile::tempdir().unwrap();
    let ours = Authority::new(folder.path(), "ours");
    let (server, client) = (ours.server("server"), ours.client("client"));
    let stranger = Authority::new(folder.path(), "strange").client("stranger");
    let archive = Storescp::start(store.path(), &tls_server(&server, &ours));
    let echo = |options: Vec<String>| {
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        run(&mut echoscu(archive.address, ARCHIVE, &options)).status.success()
    };
    assert!(echo(tls_client(&client, &ours)));
    assert!(!echo(tls_client(&stranger, &ours)));
    assert!(!echo(tls_anonymous_client(&ours)));
    assert!(!echo(Vec::new()));
}

#[test]
fn the_python_modality_brings_odd_and_bad_objects_to_the_python_archive_byte_for_byte() {
    let (outbox, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let objects = [odd_objects(outbox.path()), bad_objects(outbox.path())].concat();
    let archive = Archive::start(store.path(), &[] as &[&str]);
    let said = succeeds(modality(archive.address, ARCHIVE).arg(outbox.path()));
    assert_eq!(events(&said, "stored").len(), objects.len());
    assert_eq!(archive.wait_for("stored", objects.len()).len(), objects.len());
    assert_eq!(hashes_in(store.path()), hashes(&objects));
}

#[test]
fn the_python_archive_answers_as_it_is_told() {
    let (outbox, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    ct_images(outbox.path(), 4);
    let archive = Archive::start(store.path(), &["--statuses", "A700,B000,0110,0000"]);
    let ended = run(modality(archive.address, ARCHIVE).arg(outbox.path()));
    assert!(!ended.status.success());
    let statuses: Vec<Value> = events(&ended.said, "stored").iter().map(|event| event["status"].clone()).collect();
    assert_eq!(statuses, ["A700", "B000", "0110", "0000"]);
    assert_eq!(archive.files().len(), 2);
    let refused = run(&mut modality(archive.again(&["--calling", "OTHER"]).address, ARCHIVE));
    assert_eq!(events(&refused.said, "rejected")[0]["reason"], 3);
}

#[test]
fn the_python_peers_settle_storage_commitment_on_either_association() {
    let (outbox, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let images = ct_images(outbox.path(), 2);
    let also = format!("{}/1.2.3", images[0].sop_class);
    for (way, linger) in [("new", "0"), ("same", "30")] {
        let options = ["--commit", "same", "--linger", linger, "--commit-also", &also];
        let modality = ListeningModality::start(store.path(), ARCHIVE, &options, &[outbox.path()]);
        let to = modality.address.to_string();
        let archive = Archive::start(store.path(), &["--commitment", way, "--commit-to", &to]);
        modality.send_to(archive.address);
        let ended = modality.done();
        assert!(ended.status.success(), "{}", ended.said);
        let report = &events(&ended.said, "report")[0];
        assert_eq!((&report["association"], &report["kind"]), (&json!(way), &json!(2)));
        assert_eq!(report["committed"].as_array().unwrap().len(), 2);
        assert_eq!(report["failed"], json!({"1.2.3": "0112"}));
        assert_eq!(archive.wait_for("reported", 1)[0]["status"], "0000");
    }
}

#[test]
fn orthanc_keeps_what_comes_and_commits_to_it() {
    let (folder, outbox) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let images = ct_images(outbox.path(), 2);
    let modality = ListeningModality::start(folder.path(), ARCHIVE, &["--commit", "new"], &[outbox.path()]);
    let known = Known { name: "modality", title: "MODALITY", address: modality.address };
    let orthanc = Orthanc::start(folder.path(), &[known], &Value::Null);
    modality.send_to(orthanc.dicom);
    let ended = modality.done();
    assert!(ended.status.success(), "{}", ended.said);
    assert_eq!(events(&ended.said, "report")[0]["committed"].as_array().unwrap().len(), 2);
    assert_eq!(orthanc.count(), 2);
    let mut kept: Vec<_> = orthanc.objects().iter().map(|(_, file)| data_set_hash_of(file)).collect();
    kept.sort();
    assert_eq!(kept, hashes(&images));
    let (status, _) = orthanc.ask("GET", "/dicom-web/studies", b"");
    assert_eq!(status, 200);
    assert_eq!(orthanc.kill_and_restart().count(), 2);
}

#[test]
fn the_wheels_hold_261_objects_and_a_large_one_takes_no_room() {
    let folder = tempfile::tempdir().unwrap();
    let objects = wheel_objects(&folder.path().join("wheels"));
    assert_eq!(objects.len(), 261);
    for object in &objects {
        assert_eq!(data_set_hash(&object.path), object.sha256, "{}", object.path.display());
    }
    let large = large_objects(&folder.path().join("large"), 1, 64 << 20).remove(0);
    assert_eq!(data_set_hash(&large.path), large.sha256);
    assert!(room_of(&large.path) < 2 << 20);
    assert!(large.bytes > 64 << 20);
}

fn room_of(path: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(path).unwrap()) * 512
}

#[test]
fn the_rule_breakers_are_lawful_where_they_say_so() {
    let store = tempfile::tempdir().unwrap();
    let archive = Storescp::start(store.path(), &[AS_SENT, &["--fork"]].concat());
    for (case, statuses) in [
        ("unknown-item", json!(["8030:0000"])),
        ("command-after-data", json!(["8001:0000", "8030:0000"])),
        ("small-fragments", json!(["8001:0000"])),
    ] {
        let heard = hostile(archive.address, ARCHIVE, case, &[]);
        assert_eq!(heard["statuses"], statuses, "{heard}");
        assert_eq!(heard["pdus"].as_array().unwrap().last().unwrap(), "RELEASE-RP", "{heard}");
    }
    assert_eq!(hostile(archive.address, ARCHIVE, "version-2", &["--within", "1"])["pdus"], json!(["RJ 1/2/2"]));
    let end = HostileArchive::start("split-answers");
    let outbox = tempfile::tempdir().unwrap();
    let images = ct_images(outbox.path(), 1);
    let said = succeeds(&mut storescu(end.address, ARCHIVE, &[], &[&images[0].path]));
    assert_eq!(answers(&said)[0].1, "Success");
    let heard = &end.associations(1)[0];
    assert_eq!(heard["pdus"], json!(["RQ", "DATA", "RELEASE-RQ"]));
    assert_eq!(heard["stored"], 1);
}
