//! What was acknowledged is there: through kill -9, a stop, and a full spool.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use wardgate::wire::dicom::dimse::{Command, Status};
use wardgate::wire::dicom::pdu::{Kind, Pdv, RELEASE_REQUEST, RELEASE_RESPONSE, Reject, write_data};
use wardgate::wire::dicom::values::CT_IMAGE;

use super::device::{CT, Device, instance};
use super::{ct, ct_to_folder, start};
use crate::support::dicom::files_in;
use crate::support::dicom_files::data_set_offset;
use crate::support::gateway::Gateway;
use crate::support::rounds;
use crate::support::wait::{eventually, eventually_some};

const MODALITIES: usize = 4;
/// Some of them are longer than a fragment of the spool.
fn pixels(number: usize) -> usize {
    if number.is_multiple_of(5) { 600_000 } else { 20_000 }
}

/// Sends instances from `next` on until the association ends; returns the first that was not acknowledged.
fn send_until_the_end(at: SocketAddr, modality: usize, mut next: usize, acknowledged: &AtomicUsize) -> usize {
    let Ok(Ok(mut device)) = Device::try_associate(at, "CT1", "WARDGATE") else { return next };
    loop {
        let (own, data) = instance(u32::try_from(modality).unwrap(), next, pixels(next));
        match device.store(&own, &data) {
            Ok(status) => assert_eq!(status, Status::SUCCESS),
            Err(_) => return next,
        }
        next += 1;
        acknowledged.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn every_instance_that_was_acknowledged_arrives_whole_however_often_the_service_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let mut next = [0; MODALITIES];
    let mut gateway = start(folder.path(), "");
    for round in 0..rounds(3, 60) as usize {
        let (at, acknowledged) = (gateway.endpoint("ct"), Arc::<AtomicUsize>::default());
        let senders: Vec<_> = (0..MODALITIES)
            .map(|modality| {
                let (from, acknowledged) = (next[modality], Arc::clone(&acknowledged));
                std::thread::spawn(move || send_until_the_end(at, modality, from, &acknowledged))
            })
            .collect();
        eventually("some are acknowledged", || acknowledged.load(Ordering::SeqCst) >= 12 + round % 7);
        gateway.process.kill();
        for (modality, sender) in senders.into_iter().enumerate() {
            next[modality] = sender.join().unwrap();
        }
        gateway = Gateway::again(folder.path());
    }
    eventually("everything that waits is delivered", || gateway.backlog() == 0);
    let mut there: Vec<Vec<u8>> = Vec::new();
    for file in files_in(&folder.path().join("out")) {
        let bytes = fs::read(file).unwrap();
        there.push(bytes[data_set_offset(&bytes)..].to_vec());
    }
    for (modality, end) in next.into_iter().enumerate() {
        for number in 0..end {
            let (_, data) = instance(u32::try_from(modality).unwrap(), number, pixels(number));
            assert!(there.contains(&data), "{number} of {end} of modality {modality} was acknowledged and is lost");
        }
    }
    gateway.stop();
}

#[test]
fn a_stop_lets_the_instance_that_is_arriving_end_and_then_releases() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "");
    let mut device = Device::associate(gateway.endpoint("ct"));
    let (own, data) = instance(1, 1, 300_000);
    let (first, rest) = data.split_at(10_000);
    let piece = |data, is_last| {
        let mut out = Vec::new();
        write_data(&Pdv { context: CT, is_command: false, is_last, data }, &mut out);
        out
    };
    device.send(CT, &Command::store_request(1, CT_IMAGE, own), None).unwrap();
    device.write(&piece(first, false)).unwrap();
    // Quiet associations end at once: when this one has, the stop has come. Here both ask for the release at the same time: the
    // requestor answers first.
    let mut quiet = Device::associate(gateway.endpoint("ct"));
    gateway.process.signal("TERM");
    assert_eq!(quiet.hear().unwrap().0, Kind::ReleaseRequest);
    quiet.write(&RELEASE_REQUEST).unwrap();
    quiet.write(&RELEASE_RESPONSE).unwrap();
    assert_eq!(quiet.hear().unwrap().0, Kind::ReleaseResponse);
    for chunk in rest.chunks(16_000) {
        device.write(&piece(chunk, false)).unwrap();
    }
    device.write(&piece(&[], true)).unwrap();
    assert_eq!(device.answer().unwrap().status, Some(Status::SUCCESS));
    assert_eq!(device.hear().unwrap().0, Kind::ReleaseRequest);
    device.write(&RELEASE_RESPONSE).unwrap();
    gateway.stop();
    let gateway = Gateway::again(folder.path());
    eventually("it is delivered", || gateway.backlog() == 0);
    assert_eq!(files_in(&folder.path().join("out")).len(), 1);
}

#[test]
fn a_full_spool_is_told_as_such_and_intake_comes_back_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let quota = "[spool.imaging]\nquota = \"256MiB\"\n";
    let down = "marker = \".mounted\"\nunsealed = true";
    let config = quota.to_owned() + &ct_to_folder(folder.path(), "").replace("unsealed = true", down);
    let gateway = Gateway::start(folder.path(), &config);
    let at = gateway.endpoint("ct");
    let mut device = Device::associate(at);
    let size = 15 << 20;
    let mut stored = 0;
    let refused = loop {
        let (own, data) = instance(1, stored, size);
        match device.store(&own, &data).unwrap() {
            Status::SUCCESS => stored += 1,
            status => break status,
        }
        assert!(stored < 20, "a small quota can't hold all of this");
    };
    assert_eq!((refused, stored > 5), (Status::OUT_OF_RESOURCES, true));
    // The association goes on; new ones that want to store are told to come later, and an echo is answered.
    assert_eq!(device.echo().unwrap(), Status::SUCCESS);
    let (own, data) = instance(1, stored, size);
    assert_eq!(device.store(&own, &data).unwrap(), Status::OUT_OF_RESOURCES);
    assert_eq!(Device::try_associate(at, "CT2", "WARDGATE").unwrap().err(), Some(Reject::CONGESTION));
    eventually("it is an alarm", || gateway.alarms().iter().any(|(code, _)| code == "spool-full"));
    fs::write(folder.path().join("out/.mounted"), "").unwrap();
    eventually("what was accepted is delivered", || gateway.backlog() == 0);
    let mut device =
        eventually_some("a new association is welcome", || Device::try_associate(at, "CT2", "WARDGATE").unwrap().ok());
    eventually("intake comes back by itself", || device.store(&own, &data).unwrap() == Status::SUCCESS);
    assert_eq!(ct(&gateway)["stored"], stored + 1);
    gateway.stop();
}
