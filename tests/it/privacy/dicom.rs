//! The same for images: an invented patient's name, number, date of birth, accession number and the UIDs of study, series and
//! instance go through the whole service, and are found in what is forwarded and nowhere else.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use wardgate::wire::dicom::dimse::Command;
use wardgate::wire::dicom::element::{self as element, Encoding, Tag};
use wardgate::wire::dicom::file::FileMeta;
use wardgate::wire::dicom::pdu::{Pdv, write_data};
use wardgate::wire::dicom::values::{AeTitle, CT_IMAGE, EXPLICIT_LITTLE_ENDIAN};

use super::{files, keeps_quiet_about, page, revealed, told};
use crate::dicom_source::device::{CT, Device, uid};
use crate::gateway::route;
use crate::support::broker::Broker;
use crate::support::dicom::{Archive, ListeningModality};
use crate::support::gateway::{Gateway, head};
use crate::support::ports::free_address;
use crate::support::process::{Process, wardgate};
use crate::support::subscriber::Subscriber;
use crate::support::tools::python_peer;
use crate::support::wait::eventually;

/// Name, number, date of birth, accession number, and what the UIDs of study, series and instances begin with.
const SECRETS: [&str; 5] = ["QUOLBERTSON", "PATNO7719344", "19370214", "ACC7719355", "2.25.7719344"];

/// The number of an instance as its SOP instance UID.
fn own(number: u32) -> String {
    format!("{}403.{number}", SECRETS[4])
}

/// A data set with all of it. `modality` is where a code belongs, and where some devices put what they like.
fn data_set(number: u32, modality: &str, pixels: usize) -> Vec<u8> {
    let [name, patient, birth, accession, uids] = SECRETS;
    let mut out = Vec::new();
    let mut add = |tag: u32, vr: &[u8; 2], value: &str| {
        element::write(Encoding::Explicit, (Tag(tag), vr), value.as_bytes(), &mut out);
    };
    add(0x0008_0016, b"UI", CT_IMAGE.as_str());
    add(0x0008_0018, b"UI", &own(number));
    add(0x0008_0050, b"SH", accession);
    add(0x0008_0060, b"CS", modality);
    add(0x0008_1030, b"LO", name);
    add(0x0010_0010, b"PN", &format!("{name}^ZYXA"));
    add(0x0010_0020, b"LO", patient);
    add(0x0010_0030, b"DA", birth);
    add(0x0020_000d, b"UI", &format!("{uids}401.{number}"));
    add(0x0020_000e, b"UI", &format!("{uids}402"));
    add(0x7fe0_0010, b"OB", &"x".repeat(pixels));
    out
}

/// A file with such an instance, for the modality that asks for storage commitment.
fn write_file(path: &Path, number: u32) {
    let meta = FileMeta {
        sop_class: CT_IMAGE,
        sop_instance: uid(&own(number)),
        transfer_syntax: EXPLICIT_LITTLE_ENDIAN,
        source_ae: AeTitle::default(),
        receiving_ae: AeTitle::default(),
    };
    fs::write(path, [meta.bytes(), data_set(number, "CT", 1000)].concat()).unwrap();
}

/// Good ones, a second copy, a long one, other bytes under the same UID, another instance than was said, a patient where codes and
/// UIDs belong, a header that breaks off, and one that never ends.
fn sends_everything_that_a_modality_can(to: SocketAddr) {
    let mut device = Device::associate(to);
    let mut store = |named: &str, data: &[u8]| device.store(&uid(named), data).unwrap().0;
    let good = data_set(1, "CT", 1000);
    for data in [&good, &good, &data_set(1, "CT", 1001)] {
        assert_eq!(store(&own(1), data), 0);
    }
    assert_eq!(store(&own(2), &data_set(2, "CT", 700_000)), 0);
    for (number, modality) in [(3, SECRETS[0]), (4, SECRETS[1])] {
        assert_eq!(store(&own(number), &data_set(number, modality, 10)), 0);
    }
    assert_eq!(store(&own(5), &data_set(6, "CT", 10)), 0xa900);
    assert_eq!(store(&own(7), &data_set(7, "CT", 10)[..150]), 0);
    assert_eq!(store(SECRETS[1], &data_set(8, "CT", 10)), 0xc000);
    let request = Command::store_request(device.next_message(), CT_IMAGE, uid(&own(9)));
    device.send(CT, &request, None).unwrap();
    let mut half = Vec::new();
    write_data(&Pdv { context: CT, is_command: false, is_last: false, data: &data_set(9, "CT", 10_000) }, &mut half);
    device.write(&half).unwrap();
}

/// Writes the configuration with everything that images can be routed to; the metrics are served at the address that it returns.
fn configure(folder: &Path, [pacs, strict, web, report_to]: [SocketAddr; 4], broker: u16) -> SocketAddr {
    let metrics = free_address();
    let archive = |name: &str, at: SocketAddr| {
        format!("[upstream.{name}.dicom]\naddress = \"{at}\"\ncalled = \"ARCHIVE\"\nplain = true\n")
    };
    let out = folder.join("archive");
    fs::create_dir(&out).unwrap();
    let parts = [
        head(folder).replace("\n[spool]", &format!("metrics = \"{metrics}\"\n[spool]")),
        "[source.ct.dicom]\nlisten = \"127.0.0.1:0\"\nae-title = \"WARDGATE\"\n".to_owned(),
        format!("report-to = {{ MODALITY = \"{report_to}\" }}\ncommit = \"stored\"\n"),
        archive("pacs", pacs),
        archive("strict", strict),
        format!("[upstream.web.stow]\nurl = \"http://{web}/dicom-web/studies\"\nplain = true\n"),
        format!("[upstream.cloud.mqtt]\naddress = \"127.0.0.1:{broker}\"\nplain = true\nreceipt = \"collector\"\n"),
        format!("[upstream.folder.directory]\npath = \"{}\"\nunsealed = true\n", out.display()),
        route("ct", &["pacs", "strict", "web", "cloud", "folder"]),
    ];
    fs::write(folder.join("gateway.toml"), parts.concat()).unwrap();
    metrics
}

fn keeps_quiet(what: &str, bytes: impl AsRef<[u8]>) {
    keeps_quiet_about(&SECRETS, what, bytes);
}

/// The names of the files in a folder, and what is in those of them that are not images.
fn keeps_quiet_on_disk(folder: &Path) -> Vec<Vec<u8>> {
    let mut images = Vec::new();
    for path in files(folder) {
        keeps_quiet("the name of a file", path.to_str().unwrap());
        let bytes = fs::read(&path).unwrap();
        match path.extension().is_some_and(|end| end == "dcm") {
            true => images.push(bytes),
            false if !bytes.is_empty() => keeps_quiet(&path.display().to_string(), bytes),
            false => {}
        }
    }
    images
}

#[tokio::test(flavor = "multi_thread")]
async fn the_patient_of_an_image_is_found_in_what_is_forwarded_and_nowhere_else() {
    let (folder, store, into) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut broker = Broker::start(store.path(), "");
    let subscriber = Subscriber::start(broker.port, "#", None).await;
    let mut collector = Process::start(
        wardgate()
            .args(["collect", "--plain", "--broker", &format!("127.0.0.1:{}", broker.port), "--into"])
            .arg(into.path())
            .env("RUST_LOG", "trace"),
    );
    broker.process.line_with("Sending SUBACK to wardgate-collect");
    // These refuse, and say in their own words whom.
    let pacs = Archive::start(store.path(), &["--statuses", "0110", "--comment", &SECRETS.join(" ")]);
    let mut web = python_peer("stow_end.py");
    let mut web =
        Process::start(web.args(["--answers", "409:html", "--page", &SECRETS.join(" "), "--store"]).arg(store.path()));
    // This one takes no explicit VR: its dead letters are there at once.
    let strict = Archive::start(store.path(), &["--transfer-syntaxes", "1.2.840.10008.1.2"]);
    let file = store.path().join("committed");
    write_file(&file, 20);
    let options = ["--commit", "same", "--transaction", "2.25.7719344999"];
    let modality = ListeningModality::start(store.path(), "WARDGATE", &options, &[&file]);
    let ends = [pacs.address, strict.address, web.listening(), modality.address];
    let metrics = configure(folder.path(), ends, broker.port);
    let gateway = Gateway::again_with(folder.path(), &[("RUST_LOG", "trace")]);

    sends_everything_that_a_modality_can(gateway.endpoint("ct"));
    modality.send_to(gateway.endpoint("ct"));
    eventually("the modality has its report", || !modality.events("report").is_empty());
    for upstream in ["strict", "cloud", "folder"] {
        eventually("nothing waits there", || gateway.backlog_of(upstream) == 0);
    }
    for refused in ["refused upstream=pacs", "refused upstream=web"] {
        eventually(refused, || gateway.process.lines().iter().any(|line| line.contains(refused)));
    }
    eventually("the associations have ended", || gateway.status()["sources"]["ct"]["imaging"]["associations"] == 0);
    assert!(gateway.dead().len() >= 8, "{:?}", gateway.dead());

    for (asked, answer) in told(&gateway) {
        keeps_quiet(&asked, answer);
    }
    for (option, number) in [("--patient-id", SECRETS[1]), ("--accession", SECRETS[3])] {
        let found = gateway.ask(&["spool", "find", option, number]);
        assert!(found.contains("refused by") && found.contains(" messages"), "{found}");
        keeps_quiet(option, found);
    }
    keeps_quiet("the metrics", page(metrics));
    let log = gateway.stop();
    assert!(log.contains("DEBUG"), "the log was not talkative:\n{log}");
    keeps_quiet("the log", log);
    for publish in subscriber.kept() {
        let topic = String::from_utf8(publish.topic.to_vec()).unwrap();
        keeps_quiet("a topic", &topic);
        keeps_quiet("the properties", format!("{:?}", publish.properties));
        if !topic.ends_with("/imaging") && !publish.payload.is_empty() {
            keeps_quiet(&topic, &publish.payload);
        }
    }
    keeps_quiet("the broker's log", broker.process.lines().join("\n"));
    collector.signal("TERM");
    eventually("the collector has ended", || collector.has_ended());
    keeps_quiet("what the collector says", collector.lines().join("\n"));

    // And it did go through all of this.
    let (archived, collected) = (keeps_quiet_on_disk(folder.path()), keeps_quiet_on_disk(into.path()));
    for sent in [data_set(1, "CT", 1000), data_set(2, "CT", 700_000), data_set(4, SECRETS[1], 10)] {
        assert_eq!(revealed(&SECRETS, &sent), SECRETS);
        for images in [&archived, &collected] {
            assert!(images.iter().any(|image| image.ends_with(&sent)));
        }
    }
    let spooled = files(&folder.path().join("spool"));
    assert!(spooled.iter().any(|path| fs::metadata(path).unwrap().len() > 700_000));
}
