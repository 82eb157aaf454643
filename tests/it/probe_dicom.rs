//! `wardgate probe dicom` against archives that are not ours.

use serde_json::Value;

use crate::support::certs::Authority;
use crate::support::dicom::{AS_SENT, Archive, Storescp, tls_server};
use crate::support::orthanc::{Known, Orthanc};
use crate::support::ports::free_address;
use crate::support::process::wardgate;

/// How a probe ended.
#[derive(Debug)]
struct Probed {
    code: Option<i32>,
    out: String,
    errors: String,
}

fn probe(arguments: &[&str]) -> Probed {
    let output = wardgate().args(["probe", "dicom"]).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Probed { code: output.status.code(), out: text(&output.stdout), errors: text(&output.stderr) }
}

#[test]
fn an_archive_that_lets_us_in_is_shown_and_nothing_is_left_there() {
    let store = tempfile::tempdir().unwrap();
    let archive = Storescp::start(store.path(), AS_SENT);
    let ended = probe(&[&archive.address.to_string(), "--called", "ARCHIVE"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for words in
        ["we are WARDGATE and call ARCHIVE, over plain TCP", "OFFIS_DCMTK", "PDUs of at most 16384", "0000 (success)"]
    {
        assert!(ended.out.contains(words), "{words} is not in:\n{}", ended.out);
    }
    assert_eq!(archive.files().len(), 0);
}

#[test]
fn a_test_instance_is_stored_and_committed_and_told_for_scripts() {
    let (folder, listen) = (tempfile::tempdir().unwrap(), free_address());
    let known = [Known { name: "box", title: "WARDGATE", address: listen }];
    let orthanc = Orthanc::start(folder.path(), &known, &Value::Null);
    let (address, listen) = (orthanc.dicom.to_string(), listen.to_string());
    let ended = probe(&[&address, "--called", "ARCHIVE", "--store", "--commit", "--listen", &listen, "--json"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let finding: Value = serde_json::from_str(&ended.out).unwrap();
    let steps: Vec<_> = finding["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| (step["step"].as_str().unwrap(), &step["good"]))
        .collect();
    let good = &Value::Bool(true);
    assert_eq!(steps, [("association", good), ("echo", good), ("store", good), ("commitment", good)]);
    assert_eq!(orthanc.objects()[0].0, finding["sop-instance"]);
}

#[test]
fn what_the_archive_refuses_is_told_with_what_to_do() {
    let store = tempfile::tempdir().unwrap();
    let archive = Archive::start(store.path(), &["--calling", "CT1"]);
    let address = archive.address.to_string();
    let ended = probe(&[&address, "--called", "ARCHIVE"]);
    assert!(ended.code == Some(65) && ended.errors.contains("let its owner enter \"WARDGATE\""), "{ended:?}");
    let archive = Archive::start(store.path(), &["--statuses", "A700"]);
    let ended = probe(&[&archive.address.to_string(), "--called", "ARCHIVE", "--store"]);
    assert!(
        ended.code == Some(65) && ended.errors.contains("A700 (out of resources)") && !ended.out.contains("A700"),
        "{ended:?}"
    );
    let archive = Archive::start(store.path(), &["--transfer-syntaxes", "1.2.840.10008.1.2"]);
    let ended = probe(&[&archive.address.to_string(), "--called", "ARCHIVE", "--store"]);
    assert!(ended.code == Some(65) && ended.errors.contains("Secondary Capture Image Storage"), "{ended:?}");
}

#[test]
fn nobody_there_and_somebody_else_there_each_have_their_code() {
    let ended = probe(&[&free_address().to_string(), "--called", "ARCHIVE"]);
    assert!(ended.code == Some(69) && ended.errors.contains("refused the connection"), "{ended:?}");
    let ended = probe(&["127.0.0.1:104", "--called", "A TITLE THAT IS TOO LONG"]);
    assert!(ended.code == Some(64) && ended.errors.contains("1 to 16 characters"), "{ended:?}");
    let ended = probe(&["127.0.0.1:104", "--called", "A", "--tls-ca", "/nowhere/ca.pem"]);
    assert_eq!(ended.code, Some(78), "{ended:?}");
}

#[test]
fn over_tls_with_a_certificate_of_ours() {
    let (store, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let authority = Authority::new(folder.path(), "ours");
    let (server, client) = (authority.server("server"), authority.client("icu-3"));
    let archive = Storescp::start(store.path(), &tls_server(&server, &authority));
    let address = format!("localhost:{}", archive.address.port());
    let path = |path: &std::path::Path| path.display().to_string();
    let (ca, certificate, key) = (path(&authority.certificate), path(&client.certificate), path(&client.key));
    let ours = ["--tls-certificate", &certificate, "--tls-key", &key];
    let ended = probe(&[&[address.as_str(), "--called", "ARCHIVE", "--tls-ca", &ca], &ours[..]].concat());
    assert!(ended.code == Some(0) && ended.out.contains("over TLS"), "{ended:?}");
}
