//! Command sets, heads of files and the data sets of storage commitment: no bytes make a reader panic, and what was read can be
//! written and is read again as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wardgate_fuzz::wire::dicom::commitment::{REFERENCES_MAX, Report};
use wardgate_fuzz::wire::dicom::element::Encoding;
use wardgate_fuzz::wire::dicom::file::FileMeta;
use wardgate_fuzz::wire::dicom::dimse::{Command, Status};

fuzz_target!(|data: &[u8]| {
    let Some((&which, bytes)) = data.split_first() else { return };
    match which % 5 {
        0 => command(bytes),
        1 => file(bytes),
        2 => report(Encoding::Implicit, bytes),
        3 => report(Encoding::Explicit, bytes),
        _ => report(Encoding::ExplicitBig, bytes),
    }
});

fn command(bytes: &[u8]) {
    let Ok(command) = Command::read(bytes) else { return };
    let written = command.bytes();
    assert_eq!(written.len() % 2, 0);
    assert_eq!(Command::read(&written).as_ref(), Ok(&command));
    let response = command.response(Status::CANNOT_UNDERSTAND).with_comment("whatever");
    assert_eq!(Command::read(&response.bytes()), Ok(response));
    let _ = command.status.map(|status| (status.class(), status.to_string()));
}

fn file(bytes: &[u8]) {
    let whole = [&[0; 128][..], b"DICM", bytes].concat();
    let _ = FileMeta::read(bytes);
    let Ok((meta, at)) = FileMeta::read(&whole) else { return };
    assert!(at <= whole.len());
    let again = meta.bytes();
    assert_eq!(FileMeta::read(&again), Ok((meta, again.len())));
}

fn report(encoding: Encoding, bytes: &[u8]) {
    let Ok(report) = Report::read(encoding, bytes) else { return };
    assert!(report.committed.len() + report.failed.len() <= REFERENCES_MAX);
    assert_eq!(Report::read(encoding, &report.bytes(encoding)), Ok(report));
}
