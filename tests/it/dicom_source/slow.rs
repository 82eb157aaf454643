//! Senders that go on and never get anywhere: each is cut off in time, and meanwhile others are told that there is no room.

use std::net::SocketAddr;
use std::thread::{self, JoinHandle};

use wardgate::wire::dicom::dimse::{Command, Status};
use wardgate::wire::dicom::pdu::{Kind, Pdv, write_data};
use wardgate::wire::dicom::values::CT_IMAGE;

use super::device::{COMMITMENT, CT, Device, instance};
use super::start;
use crate::support::wait::eventually_some;

/// More than a source has room for.
const SENDERS: usize = 8;
/// A source takes so many requests for storage commitment at once.
const REQUESTS: usize = 2;

type Ending = JoinHandle<std::io::Result<Kind>>;

/// Begins an instance, sends so many bytes of it at once, and then drips until it is cut off.
fn dripping(at: SocketAddr, bytes: usize) -> Ending {
    let mut device = Device::associate(at);
    thread::spawn(move || {
        let (own, data) = instance(9, 1, bytes);
        device.send(CT, &Command::store_request(1, CT_IMAGE, own), None)?;
        let mut out = Vec::new();
        for data in data.chunks(16_000) {
            write_data(&Pdv { context: CT, is_command: false, is_last: false, data }, &mut out);
        }
        device.write(&out)?;
        device.drip(CT).map(|(kind, _)| kind)
    })
}

#[track_caller]
fn all_are_aborted(senders: Vec<Ending>) {
    for sender in senders {
        assert_eq!(sender.join().unwrap().unwrap(), Kind::Abort);
    }
}

#[test]
fn instances_that_only_drip_are_aborted_and_leave_their_room_to_others() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "idle-timeout = \"500ms\"");
    let at = gateway.endpoint("ct");
    all_are_aborted((0..SENDERS).map(|_| dripping(at, 0)).collect());
    let mut device =
        eventually_some("an association is welcome", || Device::try_associate(at, "CT2", "WARDGATE").unwrap().ok());
    let (own, data) = instance(1, 1, 600_000);
    assert_eq!(device.store(&own, &data).unwrap(), Status::SUCCESS);
}

#[test]
fn an_instance_that_finds_no_room_is_refused_with_words() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "idle-timeout = \"4s\"");
    let at = gateway.endpoint("ct");
    // They have earned a longer time.
    let _senders: Vec<Ending> = (0..SENDERS).map(|_| dripping(at, 1 << 20)).collect();
    let (own, data) = instance(1, 1, 1000);
    let refused = eventually_some("one finds no room", || {
        let mut device = Device::try_associate(at, "CT2", "WARDGATE").unwrap().ok()?;
        device.send(CT, &Command::store_request(1, CT_IMAGE, own.clone()), Some(&data)).unwrap();
        Some(device.answer().unwrap()).filter(|answer| answer.status == Some(Status::OUT_OF_RESOURCES))
    });
    assert_eq!(refused.error_comment.as_deref(), Some("too many instances arrive at once; try again later"));
}

#[test]
fn requests_for_commitment_that_only_drip_are_aborted_and_meanwhile_others_are_refused_with_words() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "idle-timeout = \"4s\"\nreport-to = { CT1 = \"127.0.0.1:1\" }");
    let at = gateway.endpoint("ct");
    let request = Command::commitment_request(1);
    let dripping = || {
        let (mut device, request) = (Device::associate(at), request.clone());
        thread::spawn(move || {
            device.send(COMMITMENT, &request, None)?;
            device.drip(COMMITMENT).map(|(kind, _)| kind)
        })
    };
    let senders: Vec<Ending> = (0..REQUESTS).map(|_| dripping()).collect();
    let refused = eventually_some("one finds no room", || {
        let mut device = Device::associate(at);
        device.send(COMMITMENT, &request, Some(&[0; 8])).unwrap();
        Some(device.answer().unwrap()).filter(|answer| answer.status == Some(Status::RESOURCE_LIMITATION))
    });
    assert_eq!(refused.error_comment.as_deref(), Some("too many requests arrive at once; try again later"));
    all_are_aborted(senders);
}

#[test]
fn a_sender_that_hangs_up_while_it_waits_for_room_is_let_go_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "idle-timeout = \"2m\"");
    let at = gateway.endpoint("ct");
    let room = |device: &mut Device| {
        let (own, data) = instance(1, 1, 1000);
        device.send(CT, &Command::store_request(1, CT_IMAGE, own), None).unwrap();
        // Not the end: the room is not given back.
        let mut out = Vec::new();
        write_data(&Pdv { context: CT, is_command: false, is_last: false, data: &data }, &mut out);
        device.write(&out).unwrap();
    };
    let mut devices: Vec<Device> = (0..SENDERS).map(|_| Device::associate(at)).collect();
    devices.iter_mut().for_each(room);
    let open = || gateway.status()["sources"]["ct"]["imaging"]["associations"].as_u64().unwrap();
    eventually_some("all are there", || (open() == SENDERS as u64).then_some(()));
    let refused = || gateway.status()["sources"]["ct"]["refused"].as_u64().unwrap();
    let before = refused();
    // The last of them found no room: it waits for 20 seconds, and none of the others is done before two minutes.
    let began = std::time::Instant::now();
    drop(devices.pop());
    eventually_some("it is gone", || (open() < SENDERS as u64).then_some(()));
    assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
    assert_eq!(refused(), before, "nobody was there to be refused");
}
