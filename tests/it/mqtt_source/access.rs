//! Who may connect, and where each may publish.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{ANYBODY, about, records, sensors, start};
use crate::support::certs::Authority;
use crate::support::gateway::Gateway;
use crate::support::mqtt::{Hello, Sensor, hello, publish};
use crate::support::process::{succeeds, wardgate};
use crate::support::tools::system;
use crate::support::wait::eventually;

/// The hash that an operator would make.
fn hashed(password: &str) -> String {
    use std::io::Write;
    let mut child = wardgate().args(["keys", "password"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(format!("{password}\n").as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// To check a password takes long in a build that is not optimised.
const PATIENT: &str = "connect-timeout = \"1m\"";

fn client(lines: &str) -> String {
    format!("[[source.sensors.mqtt.client]]\n{lines}\n")
}

fn answered(at: SocketAddr, hello: &Hello<'_>) -> Vec<u8> {
    Sensor::greet(at, hello).unwrap().1
}

#[test]
fn the_right_password_lets_in_and_a_wrong_one_is_told_as_such() {
    let folder = tempfile::tempdir().unwrap();
    let hash = hashed("correct horse");
    assert!(hash.starts_with("$argon2id$v=19$"), "{hash}");
    let gateway = start(
        folder.path(),
        PATIENT,
        &client(&format!("user = \"ward3\"\npassword = \"{hash}\"\npublish = [\"ward3/#\"]")),
    );
    let at = gateway.endpoint("sensors");
    let with = |level, password| Hello { login: Some(("ward3", password)), ..hello(level, "any") };
    let mut sensor = Sensor::connect(at, &with(4, "correct horse"));
    sensor.tell(1, "ward3/x", b"1");
    Sensor::connect(at, &with(5, "correct horse"));
    assert_eq!(answered(at, &with(4, "correct hors")), [0x20, 2, 0, 4]);
    assert_eq!(answered(at, &with(5, "")), [0x20, 3, 0, 0x86, 0]);
    let stranger = Hello { login: Some(("ward4", "correct horse")), ..hello(4, "any") };
    assert_eq!(answered(at, &stranger), [0x20, 2, 0, 4], "a name that nobody has is answered as a wrong password is");
    assert_eq!(answered(at, &hello(5, "any")), [0x20, 3, 0, 0x87, 0]);
    eventually("they are counted", || sensors(&gateway)["turned-away"] == 4);
    let records = records(&gateway, folder.path());
    assert_eq!((records[0].stream.as_str(), about(&records[0], "client-id")), ("ward3", Some("any")));
}

#[test]
fn a_topic_of_another_client_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let other = client("id = \"ecg\"\npublish = [\"ward3/+/ecg\"]");
    let gateway = start(folder.path(), "", &(ANYBODY.to_owned() + &other));
    let at = gateway.endpoint("sensors");
    let mut new = Sensor::connect(at, &hello(5, "ecg"));
    new.send(&publish(5, 0x02, 1, "ward3/bed1/spo2", b"x")).unwrap();
    assert_eq!(new.read().unwrap(), [0x40, 3, 0, 1, 0x87]);
    new.tell(2, "ward3/bed1/ecg", b"x");
    new.send(&publish(5, 0x00, 0, "ward3/bed1/spo2", b"x")).unwrap();
    new.is_closed_after(&[0xE0, 1, 0x87]);
    let mut old = Sensor::connect(at, &hello(4, "ecg"));
    old.send(&publish(4, 0x02, 1, "ward3/bed1/spo2", b"x")).unwrap();
    old.is_closed_after(&[]);
    let with_will = Hello { will: Some(("ward3/bed1/spo2", "x")), ..hello(5, "ecg") };
    assert_eq!(answered(at, &with_will), [0x20, 3, 0, 0x87, 0]);
    assert_eq!(records(&gateway, folder.path()).len(), 1);
    assert_eq!(sensors(&gateway)["rejected"], 3);
}

#[test]
fn a_second_connection_with_the_same_client_id_takes_the_first_ones_place() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "", ANYBODY);
    let at = gateway.endpoint("sensors");
    let mut first = Sensor::connect(at, &hello(5, "spo2"));
    first.tell(1, "ward3/bed1/spo2", b"1");
    let mut second = Sensor::connect(at, &hello(4, "spo2"));
    first.is_closed_after(&[0xE0, 1, 0x8E]);
    second.tell(1, "ward3/bed1/spo2", b"2");
    let seqs: Vec<u64> = records(&gateway, folder.path()).iter().map(|record| record.seq).collect();
    assert_eq!(seqs, [1, 2], "its stream goes on");
}

#[test]
fn a_client_gets_no_more_connections_than_it_may_have_and_a_nameless_one_gets_a_name() {
    let folder = tempfile::tempdir().unwrap();
    let clients = client("user = \"u\"\npassword = \"HASH\"\nmax-connections = 2\npublish = [\"#\"]")
        .replace("HASH", &hashed("p"));
    let gateway = start(folder.path(), "", &clients);
    let at = gateway.endpoint("sensors");
    let as_u = |level, id| Hello { login: Some(("u", "p")), ..hello(level, id) };
    let first = Sensor::connect(at, &as_u(4, "one"));
    let (_second, connack) = Sensor::greet(at, &as_u(5, "")).unwrap();
    assert!(String::from_utf8_lossy(&connack).contains("wardgate-"), "{connack:?}");
    assert_eq!(answered(at, &as_u(5, "three")), [0x20, 3, 0, 0x97, 0]);
    assert_eq!(answered(at, &as_u(4, "three")), [0x20, 2, 0, 3]);
    drop(first);
    eventually("there is room again", || answered(at, &as_u(4, "three")) == [0x20, 2, 0, 0]);
    let kept = Hello { clean: false, ..as_u(4, "") };
    assert_eq!(answered(at, &kept), [0x20, 2, 0, 2]);
}

fn over_tls(gateway: &Gateway, ca: &Authority, identity: Option<&crate::support::certs::Issued>) -> Command {
    let mut command = system("mosquitto_pub");
    command.args(["-h", "localhost", "-p", &gateway.endpoint("sensors").port().to_string()]);
    command.arg("--cafile").arg(&ca.certificate);
    if let Some(identity) = identity {
        command.arg("--cert").arg(&identity.certificate).arg("--key").arg(&identity.key);
    }
    command.args(["-q", "1", "-t", "ward3/x", "-m", "over tls"]);
    command
}

#[test]
fn a_certificate_says_who_it_is() {
    let (folder, keys) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let ca = Authority::new(keys.path(), "ours");
    let (server, known, unknown) = (ca.server("server"), ca.client("ward3-gateway"), ca.client("somebody"));
    let tls = format!(
        "tls = {{ certificate = \"{}\", key = \"{}\", client-ca = \"{}\" }}",
        server.certificate.display(),
        server.key.display(),
        ca.certificate.display()
    );
    let gateway = start(folder.path(), &tls, &client("certificate = \"ward3-gateway\"\npublish = [\"ward3/#\"]"));
    succeeds(&mut over_tls(&gateway, &ca, Some(&known)));
    for stranger in [Some(&unknown), None] {
        let ended = crate::support::process::run(&mut over_tls(&gateway, &ca, stranger));
        assert!(!ended.status.success(), "{}", ended.said);
    }
    let records = records(&gateway, folder.path());
    assert_eq!((records.len(), records[0].stream.as_str()), (1, "ward3-gateway"));
}

#[test]
fn guessing_a_password_is_slow_and_does_not_tell_which_names_there_are() {
    let folder = tempfile::tempdir().unwrap();
    let clients = client("user = \"u\"\npassword = \"HASH\"\npublish = [\"#\"]").replace("HASH", &hashed("p"));
    let gateway = start(folder.path(), PATIENT, &clients);
    let at = gateway.endpoint("sensors");
    let mut answers = ["u", "v"].map(|user| {
        let began = std::time::Instant::now();
        let answers = [4, 5].map(|level| answered(at, &Hello { login: Some((user, "wrong")), ..hello(level, "x") }));
        assert!(began.elapsed() >= Duration::from_secs(2));
        answers
    });
    let [known, unknown] = &mut answers;
    assert_eq!(known, unknown);
}

#[test]
fn topics_and_client_ids_stand_in_no_log_line_of_any_level() {
    let folder = tempfile::tempdir().unwrap();
    let clients =
        client("user = \"u\"\npassword = \"HASH\"\npublish = [\"ward3/#\"]").replace("HASH", &hashed("secret-word"));
    start(folder.path(), PATIENT, &clients).stop();
    let gateway = Gateway::again_with(folder.path(), &[("RUST_LOG", "trace")]);
    let at = gateway.endpoint("sensors");
    let paula = |level| Hello {
        login: Some(("u", "secret-word")),
        will: Some(("ward3/Probe-Paula", "Probe-Paula")),
        ..hello(level, "Probe-Paula")
    };
    let mut first = Sensor::connect(at, &paula(5));
    first.tell(1, "ward3/Probe-Paula/spo2", b"Probe-Paula");
    first.send(&publish(5, 0x02, 2, "Probe-Paula", b"Probe-Paula")).unwrap();
    assert_eq!(first.read().unwrap(), [0x40, 3, 0, 2, 0x87]);
    // Taken over, cut off for its topic, gone without a goodbye, turned away.
    let mut second = Sensor::connect(at, &paula(4));
    second.send(&publish(4, 0x02, 2, "Probe-Paula", b"Probe-Paula")).unwrap();
    second.is_closed_after(&[]);
    drop(Sensor::connect(at, &paula(4)));
    answered(at, &Hello { login: Some(("Probe-Paula", "secret-word")), ..hello(4, "Probe-Paula") });
    eventually("all wills are stored", || sensors(&gateway)["stored"] == 4);
    let said = gateway.stop();
    assert!(said.contains("sensors") && !said.contains("Paula") && !said.contains("secret-word"), "{said}");
}
