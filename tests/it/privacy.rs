//! Patient data is in payloads and nowhere else: one invented patient goes through the whole service, at the most talkative log
//! level, and is looked for in everything that people, machines and disks get to see beside the message itself.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};

use crate::gateway::{engine, route, source};
use crate::support::broker::Broker;
use crate::support::gateway::{Gateway, head};
use crate::support::mllp::Device;
use crate::support::ports::free_address;
use crate::support::process::Process;
use crate::support::subscriber::Subscriber;
use crate::support::tools::python_peer;
use crate::support::wait::eventually;

mod dicom;

/// What nobody may see: the patient's name, number and date of birth, and MSH-10.
const SECRETS: [&str; 4] = ["Quolbertson", "PATNO-7719344", "19370214", "CTRL-XQ9042"];
/// MSH-8 to MSH-21 with the name where a device should name the message's type, its version, its charset and its profile.
const MISUSED: &str = "SECURITY|ORU^R01^Quolbertson|CTRL-XQ9042|P|Quolbertson^2.5||||||Quolbertson; charset=Quolbertson~UNICODE Quolbertson|Quolbertson||Quolbertson";

/// A message with all of it, and a long text.
fn message(text_bytes: usize) -> Vec<u8> {
    let [name, number, birth, id] = SECRETS;
    let head = format!("MSH|^~\\&|MON|ICU|GW|HOSP|20260102030405||ORU^R01^ORU_R01|{id}|P|2.5.1\r");
    let patient = format!("PID|1||{number}||{name}^Zyxa||{birth}|F\r");
    let text = format!("OBX|1|TX|^note||{}{name}\r", "x".repeat(text_bytes));
    format!("{head}{patient}{text}").into_bytes()
}

/// The same patient in fields of the header that are read, and that are no place for one.
fn misused() -> Vec<u8> {
    String::from_utf8(message(4)).unwrap().replace(&message_fields(), &format!("|{MISUSED}\r")).into_bytes()
}

/// What [`MISUSED`] takes the place of.
fn message_fields() -> String {
    format!("||ORU^R01^ORU_R01|{}|P|2.5.1\r", SECRETS[3])
}

/// Which of the secrets are in there.
fn revealed<'a>(secrets: &[&'a str], bytes: &[u8]) -> Vec<&'a str> {
    let holds = |secret: &&str| memchr::memmem::find(bytes, secret.as_bytes()).is_some();
    secrets.iter().copied().filter(holds).collect()
}

#[track_caller]
fn keeps_quiet(what: &str, bytes: impl AsRef<[u8]>) {
    keeps_quiet_about(&SECRETS, what, bytes);
}

#[track_caller]
fn keeps_quiet_about(secrets: &[&str], what: &str, bytes: impl AsRef<[u8]>) {
    let bytes = bytes.as_ref();
    assert!(!bytes.is_empty(), "{what}: there is nothing to look at");
    let revealed = revealed(secrets, bytes);
    assert_eq!(revealed, [""; 0], "{what} reveals patient data:\n{}", String::from_utf8_lossy(bytes));
}

/// Every file under a folder; the control socket is none.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] })
        .filter(|path| path.is_file())
        .collect()
}

fn page(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    assert!(page.contains("wardgate_source_received_total"), "{page}");
    page
}

/// A good message, the same again, a long one, one without a header, bytes between frames, and one that breaks off.
fn sends_everything_that_a_device_can(to: SocketAddr) {
    let mut device = Device::connect(to);
    for body in [message(1), message(1), message(600_000), misused()] {
        assert_eq!(device.send(&body), "AA");
    }
    device.write(&[b"XXX", message(2).as_slice()].concat()).unwrap();
    device.answer().unwrap();
    let mut stream = TcpStream::connect(to).unwrap();
    stream.write_all(&[message(3), b"\x0b".to_vec(), message(70_000)].concat()).unwrap();
}

/// Writes the configuration with all that can be routed to; the metrics are served at the address that it returns.
fn configure(folder: &Path, engine_port: u16, broker_port: u16) -> SocketAddr {
    let metrics = free_address();
    let archive = folder.join("archive");
    fs::create_dir(&archive).unwrap();
    let head = head(folder).replace("\n[spool]", &format!("metrics = \"{metrics}\"\n[spool]"));
    let cloud = format!("[upstream.cloud.mqtt]\naddress = \"127.0.0.1:{broker_port}\"\nplain = true\n");
    let archive = format!("[upstream.archive.directory]\npath = \"{}\"\nunsealed = true\n", archive.display());
    let routes = route("monitors", &["engine", "cloud", "archive"]);
    let parts = [head, source("monitors"), engine("engine", engine_port), cloud, archive, routes];
    fs::write(folder.join("gateway.toml"), parts.concat()).unwrap();
    metrics
}

/// All that the command line tells without being asked for content.
fn told(gateway: &Gateway) -> Vec<(String, String)> {
    let mut asked = vec!["status", "status --json", "dead list", "dead list --json", "spool usage"];
    let shown: Vec<String> = gateway.dead().iter().map(|letter| letter["id"].as_str().unwrap().to_owned()).collect();
    let shown: Vec<String> =
        shown.iter().flat_map(|id| [format!("dead show {id}"), format!("dead show {id} --json")]).collect();
    asked.extend(shown.iter().map(String::as_str));
    asked.iter().map(|line| ((*line).to_owned(), gateway.ask(&line.split(' ').collect::<Vec<_>>()))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_patient_is_found_in_payloads_and_nowhere_else() {
    let (folder, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut broker = Broker::start(store.path(), "");
    let subscriber = Subscriber::start(broker.port, "#", None).await;
    // The engine refuses for good, and says in its own words whom and what.
    let mut refusing = python_peer("mllp_server.py");
    refusing.args(["--answers", "AR", "--say", &SECRETS.join(" ")]).arg("--store").arg(store.path());
    let mut refusing = Process::start(&mut refusing);
    let metrics = configure(folder.path(), refusing.listening().port(), broker.port);
    let gateway = Gateway::again_with(folder.path(), &[("RUST_LOG", "trace")]);
    sends_everything_that_a_device_can(gateway.endpoint("monitors"));
    eventually("the engine refused", || gateway.dead().len() >= 3);
    eventually("the source saw the connections end", || gateway.status()["sources"]["monitors"]["connections"] == 0);
    eventually("nothing waits", || gateway.backlog() == 0);
    let wholes = subscriber.wait_for(4).await;

    for (asked, answer) in told(&gateway) {
        keeps_quiet(&asked, answer);
    }
    keeps_quiet("the metrics", page(metrics));
    let log = gateway.stop();
    assert!(log.contains("DEBUG"), "the log was not talkative:\n{log}");
    keeps_quiet("the log", log);
    for publish in subscriber.kept() {
        let topic = String::from_utf8(publish.topic.to_vec()).unwrap();
        keeps_quiet("a topic", &topic);
        keeps_quiet("the properties", format!("{:?}", publish.properties));
        if !topic.ends_with("/clinical") {
            keeps_quiet(&topic, &publish.payload);
        }
    }
    broker.process.line_with("Received PUBLISH");
    keeps_quiet("the broker's log", broker.process.lines().join("\n"));

    let (archived, ours): (Vec<_>, Vec<_>) =
        files(folder.path()).into_iter().partition(|path| path.parent().unwrap().ends_with("archive"));
    for path in archived.iter().chain(&ours) {
        keeps_quiet("the name of a file", path.to_str().unwrap());
    }
    assert!(
        ours.iter()
            .any(|path| path.starts_with(folder.path().join("spool")) && fs::metadata(path).unwrap().len() > 600_000)
    );
    for path in ours.iter().filter(|path| fs::metadata(path).unwrap().len() > 0) {
        keeps_quiet(&path.display().to_string(), fs::read(path).unwrap());
    }

    // And it did go through all of this.
    let payloads: Vec<Vec<u8>> = wholes.into_iter().map(|whole| whole.bytes).collect();
    let archived: Vec<Vec<u8>> = archived.iter().map(|path| fs::read(path).unwrap()).collect();
    for sent in [message(1), message(600_000), misused()] {
        assert_eq!(revealed(&SECRETS, &sent), SECRETS);
        assert!(payloads.contains(&sent) && archived.contains(&sent));
    }
    let refused = fs::read_to_string(store.path().join("order")).unwrap();
    assert!(refused.contains(&format!("{} AR", SECRETS[3])), "{refused}");
}
