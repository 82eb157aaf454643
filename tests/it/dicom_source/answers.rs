//! What a modality is told, and what is kept of what it sent.

use std::fs;

use wardgate::wire::dicom::dimse::{Command, Status};
use wardgate::wire::dicom::values::CT_IMAGE;

use super::device::{CT, Device, INSTANCE_ROOT, instance, uid};
use super::{arrived, ct, ct_to_folder, start};
use crate::support::dicom::files_in;
use crate::support::dicom_files::hashes_in;
use crate::support::gateway::{self, Gateway};
use crate::support::wait::eventually;

#[test]
fn a_second_copy_is_acknowledged_and_not_sent_twice_and_other_bytes_under_the_same_name_are_kept_and_flagged() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "");
    let mut device = Device::associate(gateway.endpoint("ct"));
    let (own, data) = instance(1, 1, 400_000);
    assert_eq!(device.store(&own, &data).unwrap(), Status::SUCCESS);
    assert_eq!(device.store(&own, &data).unwrap(), Status::SUCCESS);
    let mut other = data.clone();
    *other.last_mut().unwrap() ^= 1;
    assert_eq!(device.store(&own, &other).unwrap(), Status::SUCCESS);
    device.release();
    let status = ct(&gateway);
    let counted = ["stored", "repeats", "flagged", "rejected"].map(|key| status[key].as_u64().unwrap());
    assert_eq!(counted, [2, 1, 1, 0], "{status}");
    assert_eq!(status["imaging"]["studies"][0]["instances"], 2);
    eventually("both are delivered", || gateway.backlog() == 0);
    let out = folder.path().join("out");
    assert_eq!((files_in(&out).len(), hashes_in(&out).len()), (2, 2));
}

#[test]
fn an_instance_that_says_it_is_another_one_is_refused_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "");
    let mut device = Device::associate(gateway.endpoint("ct"));
    let (_, data) = instance(1, 1, 1000);
    assert_eq!(device.store(&uid("1.2.3.4"), &data).unwrap(), Status::CLASS_MISMATCH);
    let status = ct(&gateway);
    let counted = ["stored", "rejected", "flagged"].map(|key| status[key].as_u64().unwrap());
    assert_eq!(counted, [1, 1, 1], "{status}");
    eventually("it is delivered all the same", || gateway.backlog() == 0);
}

#[test]
fn the_characters_of_a_path_in_a_uid_never_become_one() {
    const ESCAPING: &str = "../../../wardgate-escaped/.";
    assert_eq!(ESCAPING.len(), INSTANCE_ROOT.len());
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "");
    let mut device = Device::associate(gateway.endpoint("ct"));
    let (own, mut data) = instance(1, 1, 1000);
    // Study and instance.
    while let Some(at) = memchr::memmem::find(&data, INSTANCE_ROOT.as_bytes()) {
        data.splice(at..at + ESCAPING.len(), ESCAPING.bytes());
    }
    assert_eq!(device.store(&own, &data).unwrap(), Status::CLASS_MISMATCH);
    assert_eq!(device.store(&uid(&format!("{ESCAPING}1.1")), &data).unwrap(), Status::CANNOT_UNDERSTAND);
    eventually("the first is delivered all the same", || gateway.backlog() == 0);
    let out = folder.path().join("out");
    assert_eq!(files_in(&out).len(), 1);
    assert!(out.ancestors().all(|folder| !folder.join("wardgate-escaped").exists()));
    let told = gateway.ask(&["status"]) + &gateway.stop();
    assert!(!told.contains("wardgate-escaped"), "{told}");
}

#[test]
fn an_instance_over_the_limit_is_read_to_its_end_refused_and_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "max-instance-size = \"1MiB\"");
    let mut device = Device::associate(gateway.endpoint("ct"));
    let (large, data) = instance(1, 1, 3 << 20);
    let request = Command::store_request(device.next_message(), CT_IMAGE, large);
    device.send(CT, &request, Some(&data)).unwrap();
    let answer = device.answer().unwrap();
    assert_eq!(answer.status, Some(Status::CANNOT_UNDERSTAND), "after A700 it would come again for ever");
    assert_eq!(answer.error_comment.as_deref(), Some("larger than the configured max-instance-size"));
    let (own, data) = instance(1, 2, 100);
    assert_eq!(device.store(&own, &data).unwrap(), Status::SUCCESS);
    let status = ct(&gateway);
    assert_eq!((&status["stored"], &status["rejected"]), (&1.into(), &1.into()), "{status}");
    device.release();
    eventually("only the small one is delivered", || gateway.backlog() == 0);
    let files = files_in(&folder.path().join("out"));
    assert_eq!((files.len(), files[0].metadata().unwrap().len() < 2000), (1, true));
    let said = gateway.stop();
    assert!(
        said.contains("C000") && said.contains("larger than max-instance-size (1MiB)") && !said.contains(own.as_str()),
        "{said}"
    );
}

#[test]
fn nothing_of_an_instance_is_in_logs_status_or_clear_on_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let config = gateway::head(folder.path()) + "\n" + &ct_to_folder(folder.path(), "max-instance-size = \"1MiB\"");
    fs::write(folder.path().join("gateway.toml"), config).unwrap();
    let gateway = Gateway::again_with(folder.path(), &[("RUST_LOG", "trace")]);
    let mut device = Device::associate(gateway.endpoint("ct"));
    let (own, data) = instance(77, 1, 700_000);
    // A name where a modality should be, and in a place where text is.
    let mut data = [&data[..], b"\xe0\x7f\x11\0LO\x0c\0QUOLBERTSON "].concat();
    let modality = memchr::memmem::find(&data, b"CS\x02\0CT").unwrap();
    data.splice(modality..modality + 6, *b"CS\x0c\0QUOLBERTSON ");
    assert_eq!(device.store(&own, &data).unwrap(), Status::SUCCESS);
    assert_eq!(device.store(&own, &data).unwrap(), Status::SUCCESS);
    assert_eq!(device.store(&uid(&format!("{INSTANCE_ROOT}77.2")), &data).unwrap(), Status::CLASS_MISMATCH);
    let (large, pixels) = instance(77, 3, 2 << 20);
    assert_eq!(device.store(&large, &pixels).unwrap(), Status::CANNOT_UNDERSTAND);
    device.write(b"\x42\0\0\0\0\x04QUOL").unwrap();
    device.hear().unwrap();
    let told = gateway.ask(&["status", "--json"]) + &gateway.ask(&["status"]);
    assert!(told.contains("STUDY") && told.contains("CT1"), "{told}");
    let said = gateway.stop();
    assert!(said.contains("A900"), "{said}");
    let mut seen: Vec<(String, Vec<u8>)> =
        vec![("status".into(), told.into_bytes()), ("log".into(), said.into_bytes())];
    for log in ["", "imaging"] {
        let entries = fs::read_dir(folder.path().join("spool").join(log)).unwrap().map(|entry| entry.unwrap().path());
        let files = entries.filter(|path| path.is_file());
        seen.extend(files.map(|path| (path.display().to_string(), fs::read(&path).unwrap())));
    }
    assert!(seen.len() > 4, "logs, keys and an index");
    for (what, bytes) in seen {
        for secret in ["QUOLBERTSON", INSTANCE_ROOT] {
            assert!(memchr::memmem::find(&bytes, secret.as_bytes()).is_none(), "{what} reveals {secret}");
        }
    }
}

#[test]
fn an_association_that_breaks_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "");
    for _ in 0..3 {
        let mut device = Device::associate(gateway.endpoint("ct"));
        let (own, data) = instance(1, 1, 2 << 20);
        let command = Command::store_request(1, CT_IMAGE, own);
        device.send(CT, &command, None).unwrap();
        let mut out = Vec::new();
        let first =
            wardgate::wire::dicom::pdu::Pdv { context: CT, is_command: false, is_last: false, data: &data[..1 << 20] };
        for piece in first.data.chunks(16_000) {
            wardgate::wire::dicom::pdu::write_data(&wardgate::wire::dicom::pdu::Pdv { data: piece, ..first }, &mut out);
        }
        device.write(&out).unwrap();
    }
    eventually("all have ended", || ct(&gateway)["connections"] == 0);
    let status = ct(&gateway);
    assert_eq!((&status["received"], &status["imaging"]["associations"]), (&0.into(), &0.into()), "{status}");
    let mut device = Device::associate(gateway.endpoint("ct"));
    let (own, data) = instance(1, 1, 1000);
    assert_eq!(device.store(&own, &data).unwrap(), Status::SUCCESS);
    device.release();
    eventually("it is delivered", || gateway.backlog() == 0);
    assert_eq!(files_in(&folder.path().join("out")).len(), 1);
    arrived(&gateway, folder.path(), &hashes_in(&folder.path().join("out")));
}
