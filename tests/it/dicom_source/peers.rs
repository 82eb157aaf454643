//! Peers that are not ours: dcmtk, pynetdicom, CTN; plain and with TLS.

use crate::support::certs::{Authority, Issued};
use crate::support::dicom::{
    answers, dcmsend, echoscu, events, modality, send_image, storescu, tls_anonymous_client, tls_client,
};
use crate::support::dicom_files::{bad_objects, ct_images, hashes, odd_objects, wheel_objects};
use crate::support::process::{run, run_long, succeeds};
use crate::support::tools::system;

use super::{arrived, ct, start};

#[test]
fn modalities_of_three_makers_echo_and_store_and_the_study_is_seen() {
    let (folder, outbox) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let images = ct_images(outbox.path(), 4);
    let gateway = start(folder.path(), "");
    let at = gateway.endpoint("ct");
    succeeds(&mut echoscu(at, "wardgate", &[]));
    let said = succeeds(&mut storescu(at, "WARDGATE", &[], &[&images[0].path, &images[1].path]));
    assert!(answers(&said).iter().all(|(_, status)| status == "Success"), "{said}");
    succeeds(&mut dcmsend(at, "WARDGATE", &[], &[&images[2].path]));
    succeeds(&mut send_image(at, "WARDGATE", &["-X", "1.2.840.10008.1.2.1"], &[&images[3].path]));
    arrived(&gateway, folder.path(), &hashes(&images));
    for file in crate::support::dicom::files_in(&folder.path().join("out")) {
        let said = succeeds(system("dcmdump").arg(&file));
        assert!(said.contains("(0002,0016) AE [MODALITY]"), "{said}");
    }
    let status = ct(&gateway);
    let study = &status["imaging"]["studies"][0];
    assert_eq!(
        (&study["instances"], &study["modality"], &study["calling"]),
        (&4.into(), &"CT".into(), &"MODALITY".into())
    );
    let software = status["imaging"]["peers"][0]["implementation-class"].as_str().unwrap();
    assert!(software.starts_with("1."), "{status}");
    let shown = gateway.ask(&["status"]);
    assert!(shown.contains("QUIET FOR") && shown.contains("MIRCTN") && shown.contains("OFFIS_DCMTK"), "{shown}");
    assert_eq!(status["imaging"]["associations"], 0);
    gateway.stop();
}

#[test]
fn video_private_syntaxes_private_classes_and_bad_headers_arrive_with_the_bytes_that_were_sent() {
    let (folder, outbox) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let objects = [odd_objects(outbox.path()), bad_objects(outbox.path())].concat();
    let gateway = start(folder.path(), "");
    let said = run(modality(gateway.endpoint("ct"), "WARDGATE").arg(outbox.path())).said;
    let told = events(&said, "stored");
    assert_eq!(told.len(), objects.len(), "{said}");
    for answer in &told {
        let name = answer["file"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
        let expected = match name.as_str() {
            "path-in-data-set.dcm" | "other-instance.dcm" => "A900",
            "path-in-command.dcm" | "space-in-command.dcm" => "C000",
            _ => "0000",
        };
        assert_eq!(answer["status"], expected, "{name}: {answer}");
    }
    // Those of which the data set says something else than the command are kept, too; those without a usable UID are not.
    let kept: Vec<_> = objects
        .into_iter()
        .filter(|object| {
            !object.path.ends_with("path-in-command.dcm") && !object.path.ends_with("space-in-command.dcm")
        })
        .collect();
    arrived(&gateway, folder.path(), &hashes(&kept));
    let status = ct(&gateway);
    assert_eq!((&status["stored"], &status["rejected"]), (&kept.len().into(), &4.into()), "{status}");
    assert!(status["flagged"].as_u64().unwrap() >= 7, "{status}");
    gateway.stop();
}

#[test]
fn every_object_of_the_wheels_arrives_with_the_bytes_that_were_sent() {
    let (folder, outbox) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let objects = wheel_objects(outbox.path());
    let gateway = start(folder.path(), "");
    let mut sender = modality(gateway.endpoint("ct"), "WARDGATE");
    let said = run_long(sender.args(["--associations", "4", "--max-pdu", "0"]).arg(outbox.path())).said;
    let told = events(&said, "stored");
    let refused: Vec<_> = told.iter().filter(|answer| answer["status"] != "0000").collect();
    // The command's own UIDs are from group 2: where those of the data set differ the modality is told, and the object kept.
    assert!(refused.iter().all(|answer| answer["status"] == "A900"), "{refused:?}");
    assert_eq!(told.len(), objects.len(), "{said}");
    let mut sent: Vec<String> = told.iter().map(|answer| answer["sha256"].as_str().unwrap().to_owned()).collect();
    sent.sort();
    assert_eq!(sent, hashes(&objects));
    let repeats = ct(&gateway)["repeats"].as_u64().unwrap();
    assert_eq!(ct(&gateway)["stored"].as_u64().unwrap() + repeats, objects.len() as u64);
    if repeats == 0 {
        arrived(&gateway, folder.path(), &sent);
    }
    gateway.stop();
}

#[test]
fn devices_show_a_certificate_or_may_or_need_not_as_the_configuration_says() {
    let folder = tempfile::tempdir().unwrap();
    let ours = Authority::new(folder.path(), "ours");
    let (server, client) = (ours.server("server"), ours.client("ct-1"));
    let stranger = Authority::new(folder.path(), "strange").client("stranger");
    let with = |more: &str| {
        let (certificate, key) = (server.certificate.display(), server.key.display());
        format!("tls = {{ certificate = \"{certificate}\", key = \"{key}\"{more} }}")
    };
    let ca = format!(", client-ca = \"{}\"", ours.certificate.display());
    let known = |client: &Issued| tls_client(client, &ours);
    for (lines, expected) in [
        (with(&ca), [true, false, false]),
        (with(&format!("{ca}, client-certificate = \"optional\"")), [true, false, true]),
        (with(""), [true, true, true]),
    ] {
        let home = tempfile::tempdir().unwrap();
        let gateway = start(home.path(), &lines);
        let at = gateway.endpoint("ct");
        let echo = |options: &[String]| {
            let options: Vec<&str> = options.iter().map(String::as_str).collect();
            run(&mut echoscu(at, "WARDGATE", &options)).status.success()
        };
        let outcomes = [echo(&known(&client)), echo(&known(&stranger)), echo(&tls_anonymous_client(&ours))];
        assert_eq!(outcomes, expected, "{lines}");
        assert!(!echo(&[]), "a device without TLS");
        let status = ct(&gateway);
        let peers = status["imaging"]["peers"].as_array().unwrap();
        let shown = peers.iter().any(|peer| peer["certificate"] == "CN=ct-1");
        assert_eq!(shown, lines.contains("client-ca"), "{status}");
    }
}
