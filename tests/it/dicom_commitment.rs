//! Storage commitment: a modality asks, and is told the truth about each of its images, over restarts and long waits.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;
use wardgate::wire::dicom::dimse::Status;
use wardgate::wire::dicom::pdu::Kind;

use crate::dicom_source::device::{Device, is_sent_away};
use crate::support::ctn::Ctn;
use crate::support::dicom::{Archive, ListeningModality, send_image};
use crate::support::dicom_files::ct_images;
use crate::support::gateway::Gateway;
use crate::support::ports::{free_address, free_port};
use crate::support::process::succeeds;
use crate::support::wait::eventually_some;

/// Whose images all synthetic ones are.
const PATIENT: &str = "TEST-1";

fn config(archive: SocketAddr, modality: SocketAddr, more: &str) -> String {
    format!(
        "[source.ct.dicom]\nlisten = \"127.0.0.1:0\"\nae-title = \"WARDGATE\"\nreport-to = {{ MODALITY = \"{modality}\" }}\n{more}\n\
         [upstream.archive.dicom]\naddress = \"{archive}\"\ncalled = \"ARCHIVE\"\nplain = true\n\n\
         [[route]]\nfrom = [\"ct\"]\nto = [\"archive\"]\n"
    )
}

fn modality(folder: &Path, options: &[&str], count: usize) -> ListeningModality {
    let images = ct_images(&folder.join("images"), count);
    let files: Vec<&Path> = images.iter().map(|image| image.path.as_path()).collect();
    ListeningModality::start(folder, "WARDGATE", options, &files)
}

fn store(folder: &TempDir) -> PathBuf {
    let store = folder.path().join("archive");
    fs::create_dir(&store).unwrap();
    store
}

#[track_caller]
fn report(modality: &ListeningModality) -> Value {
    eventually_some("the report", || modality.events("report").pop())
}

fn counts(report: &Value) -> (usize, usize) {
    (report["committed"].as_array().map_or(0, Vec::len), report["failed"].as_object().map_or(0, |failed| failed.len()))
}

#[test]
fn a_modality_is_told_which_images_the_archive_has_and_which_never_came() {
    let folder = tempfile::tempdir().unwrap();
    let archive = Archive::start::<&str>(&store(&folder), &[]);
    let never_sent = "1.2.840.10008.5.1.4.1.1.2/1.2.3.4.5";
    let modality = modality(folder.path(), &["--commit", "same", "--commit-also", never_sent], 3);
    let gateway = Gateway::start(folder.path(), &config(archive.address, modality.address, ""));
    modality.send_to(gateway.endpoint("ct"));
    let report = report(&modality);
    assert_eq!(counts(&report), (3, 1), "{report}");
    assert_eq!((report["kind"].as_u64(), report["association"].as_str()), (Some(2), Some("new")), "{report}");
    assert_eq!(report["calling"], "WARDGATE", "{report}");
    assert_eq!(archive.files().len(), 3);
}

#[test]
fn the_report_waits_for_the_archive_and_outlives_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let nobody = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let modality = modality(folder.path(), &["--commit", "new"], 2);
    let gateway = Gateway::start(folder.path(), &config(nobody, modality.address, ""));
    modality.send_to(gateway.endpoint("ct"));
    let asked = eventually_some("the answer to the request", || modality.events("action").pop());
    assert_eq!(asked["status"], "0000", "{asked}");
    assert_eq!(gateway.backlog_of("storage-commitment"), 1);
    gateway.process.kill();
    let port = ["--port".to_owned(), nobody.port().to_string()];
    let gateway = Gateway::again(folder.path());
    assert!(modality.events("report").is_empty(), "nothing is safe yet");
    let archive = Archive::start(&store(&folder), &port);
    assert_eq!(counts(&report(&modality)), (2, 0));
    assert_eq!(archive.files().len(), 2);
    assert_eq!(modality.done().status.code(), Some(0));
    eventually_some("the request is done", || (gateway.backlog_of("storage-commitment") == 0).then_some(()));
}

#[test]
fn with_commit_stored_the_box_answers_for_what_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let nobody = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let modality = modality(folder.path(), &["--commit", "same"], 2);
    let gateway = Gateway::start(folder.path(), &config(nobody, modality.address, "commit = \"stored\""));
    modality.send_to(gateway.endpoint("ct"));
    assert_eq!(counts(&report(&modality)), (2, 0));
    assert_eq!(gateway.backlog_of("archive"), 2);
}

#[test]
fn an_image_that_the_archive_refuses_for_good_is_reported_as_failed() {
    let folder = tempfile::tempdir().unwrap();
    // This archive takes no explicit VR.
    let archive = Archive::start(&store(&folder), &["--transfer-syntaxes", "1.2.840.10008.1.2"]);
    let modality = modality(folder.path(), &["--commit", "same"], 1);
    let gateway = Gateway::start(folder.path(), &config(archive.address, modality.address, ""));
    modality.send_to(gateway.endpoint("ct"));
    assert_eq!(counts(&report(&modality)), (0, 1));
    assert_eq!(gateway.dead().len(), 1);
}

#[test]
fn a_changed_image_that_the_archive_does_not_take_is_reported_as_failed() {
    let folder = tempfile::tempdir().unwrap();
    // It keeps the first copy of an instance.
    let archive = Archive::start(&store(&folder), &["--statuses", "0000,0111"]);
    let modality = modality(folder.path(), &["--commit", "same"], 1);
    let gateway = Gateway::start(folder.path(), &config(archive.address, modality.address, ""));
    let former = folder.path().join("former.dcm");
    let image = fs::read_dir(folder.path().join("images")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(image).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&former, bytes).unwrap();
    let at = gateway.endpoint("ct");
    succeeds(&mut send_image(at, "WARDGATE", &["-X", "1.2.840.10008.1.2.1"], &[&former]));
    archive.wait_for("stored", 1);
    modality.send_to(at);
    assert_eq!(counts(&report(&modality)), (0, 1));
    let dead = gateway.dead();
    assert_eq!(dead.len(), 1);
    assert!(dead[0].to_string().contains("the former one"), "{dead:?}");
}

#[test]
fn who_is_not_in_report_to_is_refused_when_it_asks() {
    let folder = tempfile::tempdir().unwrap();
    let nobody = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let modality = modality(folder.path(), &["--commit", "same", "--calling", "STRANGER", "--report-within", "0"], 1);
    let gateway = Gateway::start(folder.path(), &config(nobody, modality.address, ""));
    modality.send_to(gateway.endpoint("ct"));
    let asked = eventually_some("the answer to the request", || modality.events("action").pop());
    assert_eq!(asked["status"], "0124", "{asked}");
}

#[test]
fn a_modality_of_another_maker_is_told_which_images_the_archive_has_and_which_never_came() {
    let folder = tempfile::tempdir().unwrap();
    let archive = Archive::start::<&str>(&store(&folder), &[]);
    let images = ct_images(&folder.path().join("images"), 3);
    let made: Vec<&Path> = images.iter().map(|image| image.path.as_path()).collect();
    let (sent, never_sent) = made.split_at(2);
    let own = free_address();
    let gateway = Gateway::start(folder.path(), &config(archive.address, own, ""));
    let at = gateway.endpoint("ct");
    let modality = Ctn::start(folder.path(), own.port(), ("WARDGATE", at));
    modality.made(sent);
    succeeds(&mut send_image(at, "WARDGATE", &["-X", "1.2.840.10008.1.2.1"], sent));
    let said = modality.ask("WARDGATE", PATIENT);
    eventually_some("the report", || (modality.reported() == (2, 0)).then_some(()));
    modality.made(never_sent);
    let said = said + &modality.ask("WARDGATE", PATIENT);
    eventually_some("the second report", || (modality.reported() == (4, 1)).then_some(()));
    eventually_some("the requests are done", || (gateway.backlog_of("storage-commitment") == 0).then_some(()));
    let told = gateway.stop();
    let safe = |counts: &str| told.matches(&format!("device=MODALITY {counts}")).count();
    assert_eq!((safe("safe=2 failed=0"), safe("safe=2 failed=1")), (1, 1), "{told}\n{said}");
    assert_eq!(archive.files().len(), 2);
}

const ON_THE_SAME: &str = "report-on = \"same-association\"";

#[test]
fn a_modality_that_waits_is_told_on_the_association_on_which_it_asked() {
    let folder = tempfile::tempdir().unwrap();
    let archive = Archive::start::<&str>(&store(&folder), &[]);
    let never_sent = "1.2.840.10008.5.1.4.1.1.2/1.2.3.4.5";
    let options = ["--commit", "same", "--linger", "30", "--commit-also", never_sent];
    let modality = modality(folder.path(), &options, 3);
    let gateway = Gateway::start(folder.path(), &config(archive.address, modality.address, ON_THE_SAME));
    modality.send_to(gateway.endpoint("ct"));
    let report = report(&modality);
    assert_eq!(counts(&report), (3, 1), "{report}");
    assert_eq!((report["kind"].as_u64(), report["association"].as_str()), (Some(2), Some("same")), "{report}");
    assert_eq!(modality.done().status.code(), Some(0));
    eventually_some("the request is done", || (gateway.backlog_of("storage-commitment") == 0).then_some(()));
    assert!(gateway.dead().is_empty());
}

#[test]
fn a_modality_that_has_left_is_told_on_a_new_association() {
    let folder = tempfile::tempdir().unwrap();
    let archive = Archive::start::<&str>(&store(&folder), &[]);
    let modality = modality(folder.path(), &["--commit", "new"], 2);
    let gateway = Gateway::start(folder.path(), &config(archive.address, modality.address, ON_THE_SAME));
    modality.send_to(gateway.endpoint("ct"));
    assert_eq!(counts(&report(&modality)), (2, 0));
    assert_eq!(modality.done().status.code(), Some(0));
}

#[test]
fn a_report_that_the_modality_waited_for_comes_on_a_new_association_after_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let nobody = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let modality = modality(folder.path(), &["--commit", "same", "--linger", "60"], 2);
    let gateway = Gateway::start(folder.path(), &config(nobody, modality.address, ON_THE_SAME));
    modality.send_to(gateway.endpoint("ct"));
    eventually_some("the answer to the request", || modality.events("action").pop());
    gateway.process.kill();
    let gateway = Gateway::again(folder.path());
    let _archive = Archive::start(&store(&folder), &["--port".to_owned(), nobody.port().to_string()]);
    let report = report(&modality);
    assert_eq!((counts(&report), report["association"].as_str()), ((2, 0), Some("new")), "{report}");
    eventually_some("the request is done", || (gateway.backlog_of("storage-commitment") == 0).then_some(()));
}

#[test]
fn strangers_at_the_listener_for_reports_are_turned_away_with_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let (archive, listen) = (Archive::start::<&str>(&store(&folder), &[]), free_address());
    let nobody = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let listener = format!("commitment-listen = {{ listen = \"{listen}\", allow = [\"192.0.2.0/24\"] }}");
    let more = format!("plain = true\ncommitment = true\n{listener}\n");
    let gateway = Gateway::start(folder.path(), &config(archive.address, nobody, "").replace("plain = true\n", &more));
    for _ in 0..20 {
        let mut stranger = eventually_some("it listens", || TcpStream::connect(listen).ok());
        assert!(is_sent_away(&mut stranger), "a stranger is kept, or spoken to");
    }
    let said = gateway.stop();
    assert_eq!(said.matches("turned away").count(), 1, "{said}");
}

#[test]
fn a_changed_upstream_listens_for_reports_at_once_though_the_archive_holds_an_association_there() {
    let folder = tempfile::tempdir().unwrap();
    let (archive, listen) = (Archive::start::<&str>(&store(&folder), &[]), free_address());
    let nobody = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let more = format!("plain = true\ncommitment = true\ncommitment-listen = {{ listen = \"{listen}\" }}\n");
    let config = config(archive.address, nobody, "").replace("plain = true\n", &more);
    let gateway = Gateway::start(folder.path(), &config);
    let report = || Device::try_associate(listen, "ARCHIVE", "WARDGATE").ok()?.ok();
    let mut held = eventually_some("it listens", report);
    assert_eq!(held.echo().unwrap(), Status::SUCCESS);
    let changed = config.replace("commitment = true\n", "commitment = true\nassociations = 3\n");
    assert_eq!(gateway.reload(&changed), None);
    assert_eq!(held.hear().unwrap().0, Kind::Abort);
    let mut next = eventually_some("the next one listens", report);
    assert_eq!(next.echo().unwrap(), Status::SUCCESS);
    next.release();
    let said = gateway.stop();
    assert!(!said.contains("commitment-listen"), "it could not listen: {said}");
}
