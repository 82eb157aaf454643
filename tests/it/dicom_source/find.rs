//! Finding what the box holds of a patient or an order.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use wardgate::wire::dicom::element::{self as element, Encoding, Tag};
use wardgate::wire::dicom::values::CT_IMAGE;

use super::device::{Device, INSTANCE_ROOT, uid};
use super::start;
use crate::support::gateway::Gateway;
use crate::support::process::{run, succeeds};
use crate::support::wait::eventually;

/// Stores an instance of this number with these bytes as patient id and accession number.
fn store(gateway: &Gateway, number: u32, patient: &[u8], accession: &str) {
    let own = format!("{INSTANCE_ROOT}77.{number}");
    let mut data = Vec::new();
    let mut add = |tag, vr: &[u8; 2], value: &[u8]| {
        element::write(Encoding::Explicit, (Tag(tag), vr), value, &mut data);
    };
    add(0x0008_0016, b"UI", CT_IMAGE.as_str().as_bytes());
    add(0x0008_0018, b"UI", own.as_bytes());
    add(0x0008_0050, b"SH", accession.as_bytes());
    add(0x0010_0020, b"LO", patient);
    add(0x0020_000d, b"UI", format!("{INSTANCE_ROOT}77").as_bytes());
    add(0x7fe0_0010, b"OB", &[7; 100]);
    let mut device = Device::associate(gateway.endpoint("ct"));
    assert_eq!(device.store(&uid(&own), &data).unwrap().0, 0);
    device.release();
}

/// Three instances: two of one patient, for two orders, and one of another whose number is not in ASCII.
fn store_three(gateway: &Gateway) {
    store(gateway, 1, b"T-4711 ", "A100");
    store(gateway, 2, b"T-4711 ", "A200");
    store(gateway, 3, b"M\xdcL-9", "A300");
}

/// How many are found with these arguments when so many headers must be read for it.
fn found(gateway: &Gateway, arguments: &[&str], headers_read: usize) -> usize {
    let report = report(&gateway.ask(&[&["spool", "find", "--json"], arguments].concat()));
    assert_eq!(report["headers-read"], headers_read, "{report}");
    let listed = report["messages"].as_array().unwrap();
    assert!(listed.iter().all(|message| message["log"] == "imaging"), "{report}");
    assert_eq!(report["total"], listed.len());
    listed.len()
}

fn report(said: &str) -> Value {
    let (_, rest) = said.split_once("{\n").unwrap_or_else(|| panic!("no JSON in: {said}"));
    serde_json::from_str(&format!("{{{rest}")).unwrap()
}

fn finds_all(gateway: &Gateway, headers_read: usize) {
    for (arguments, expected) in [
        (&["--patient-id", "T-4711"][..], 2),
        (&["--patient-id", "T-4711 "], 2),
        (&["--patient-id", "t-4711"], 0),
        (&["--accession", "T-4711"], 0),
        (&["--accession", "A200"], 1),
        (&["--patient-id", "T-4711", "--accession", "A200"], 1),
        (&["--patient-id", "T-4711", "--accession", "A300"], 0),
        (&["--patient-id", "M\u{dc}L-9"], 1),
    ] {
        assert_eq!(found(gateway, arguments, headers_read), expected, "{arguments:?}");
    }
}

#[test]
fn the_images_of_a_patient_are_found_by_number_and_nobody_reads_the_number_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "");
    store_three(&gateway);
    finds_all(&gateway, 0);
    eventually("all is delivered", || gateway.backlog() == 0);
    let said = gateway.ask(&["spool", "find", "--patient-id", "T-4711"]);
    assert!(said.contains("delivered, unless a person discarded it") && said.contains("2 messages"), "{said}");

    let mut asking = gateway.command(&["spool", "find", "--json", "--source", "ct", "--accession"]);
    let mut asking = asking.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    asking.stdin.take().unwrap().write_all(b"A100\r\nmore").unwrap();
    let answer = asking.wait_with_output().unwrap();
    assert_eq!(report(&String::from_utf8(answer.stdout).unwrap())["total"], 1);
    let nobody = gateway.ask(&["spool", "find", "--accession", "A999"]);
    assert!(nobody.contains("nothing that is held here"), "{nobody}");
    let refused = [
        &["spool", "find"][..],
        &["spool", "find", "--patient-id", "T-4711", "--source", "tc"],
        // Left out, the blank one would show another patient's order of the same number.
        &["spool", "find", "--patient-id", " ", "--accession", "A200"],
        &["spool", "find", "--patient-id", "T-4711", "--limit", "0"],
    ];
    for arguments in refused {
        assert_eq!(gateway.asked(arguments).status.code(), Some(64), "{arguments:?}");
    }
    let neither = gateway.asked(&["spool", "find"]).said;
    assert!(neither.contains("--patient-id [<ID>]|--accession [<NUMBER>]"), "one of both is enough: {neither}");

    let log = gateway.stop();
    assert!(log.contains("spool-find") && !log.contains("4711") && !log.contains("A100"), "{log}");
    let again = Gateway::again(folder.path());
    finds_all(&again, 0);
}

#[test]
fn images_that_came_from_another_box_are_found_by_what_is_in_their_header() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let gateway = start(first.path(), "");
    store_three(&gateway);
    let (identity, file) = (first.path().join("courier.txt"), first.path().join("all.age"));
    succeeds(Command::new("age-keygen").arg("-o").arg(&identity));
    let text = fs::read_to_string(&identity).unwrap();
    let recipient = text.lines().find_map(|line| line.strip_prefix("# public key: ")).unwrap();
    let shown = |path: &Path| path.to_str().unwrap().to_owned();
    gateway.ask(&["spool", "export", "--recipient", recipient, "--to", &shown(&file)]);
    let opened = run(Command::new("age")
        .arg("-d")
        .arg("-i")
        .arg(&identity)
        .arg("-o")
        .arg(first.path().join("clear"))
        .arg(&file));
    assert!(opened.status.success(), "{}", opened.said);

    let other = start(second.path(), "");
    let import = ["spool", "import", &shown(&file), "--identity", &shown(&identity), "--upstream", "archive"];
    other.ask(&import);
    finds_all(&other, 3);
}
