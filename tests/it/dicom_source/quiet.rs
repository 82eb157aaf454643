//! Peers that say nothing, or hear nothing: each timeout ends its own kind, says so in the log, and gives the place back.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;

use wardgate::wire::dicom::dimse::{Command, Status};
use wardgate::wire::dicom::pdu::Kind;

use super::device::{Device, ECHO, request, socket_from};
use super::start;
use crate::support::wait::{PATIENCE, eventually};

/// Echoes of which no buffers of the system hold the requests and the answers.
const ECHOES: usize = 1_000_000;

/// Reads until the other end closes: what came.
fn until_closed(mut stream: TcpStream) -> Vec<u8> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut heard = Vec::new();
    // A reset is an end, too.
    let _ended = stream.read_to_end(&mut heard);
    heard
}

#[test]
fn who_does_not_ask_for_an_association_in_time_is_sent_away() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "artim-timeout = \"200ms\"\nmax-associations-per-peer = 1");
    let at = gateway.endpoint("ct");
    let heard = until_closed(TcpStream::connect(at).unwrap());
    assert_eq!(heard.first(), Some(&7), "A-ABORT: {heard:?}");
    // Its place is free, and the timeout has no say over who has associated.
    let mut device = Device::associate(at);
    let again = until_closed(TcpStream::connect(at).unwrap());
    assert_eq!((again, device.echo().unwrap()), (heard, Status::SUCCESS));
    device.release();
    let said = gateway.stop();
    assert!(said.contains("the association request did not come whole within the ARTIM timeout"), "{said}");
}

#[test]
fn an_association_on_which_nothing_comes_is_aborted_and_its_place_is_free() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "idle-timeout = \"500ms\"\nmax-associations = 1");
    let at = gateway.endpoint("ct");
    let mut device = Device::associate(at);
    let (kind, body) = device.hear().unwrap();
    assert_eq!((kind, body.as_slice()), (Kind::Abort, &[0, 0, 2, 0][..]));
    eventually("there is room again", || Device::try_associate(at, "CT2", "WARDGATE").unwrap().is_ok());
    let said = gateway.stop();
    assert!(said.contains("no PDU was completed within the idle timeout"), "{said}");
}

#[test]
fn a_device_that_does_not_read_its_answers_is_cut_off_and_its_place_is_free() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "write-timeout = \"200ms\"\nmax-associations = 1");
    let at = gateway.endpoint("ct");
    let narrow = socket_from([127, 0, 0, 1]).narrow().to(at);
    let mut device = Device::over(narrow, &request("CT1", "WARDGATE")).unwrap().unwrap();
    let echo = Command::echo_request(1);
    let ended = (0..ECHOES).find_map(|_| device.send(ECHO, &echo, None).err());
    assert!(ended.is_some_and(|error| error.kind() != ErrorKind::WouldBlock), "it was not cut off");
    eventually("there is room again", || Device::try_associate(at, "CT2", "WARDGATE").unwrap().is_ok());
    let said = gateway.stop();
    assert!(said.contains("the peer did not read its answer within the write timeout"), "{said}");
}
