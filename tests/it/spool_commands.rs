//! What people can do with what a spool holds, as they do it: with the executable, a running service and the `age` command.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::gateway::Gateway;
use crate::support::ports::free_address;
use crate::support::process::{run, succeeds, wardgate};
use crate::support::wait::eventually;

const MESSAGES: usize = 5;

/// A source, and an engine that nobody answers for.
fn waiting_box() -> String {
    format!(
        "[source.monitors.mllp]\nlisten = \"127.0.0.1:0\"\n\
         [upstream.engine.mllp]\naddress = \"{}\"\nplain = true\n\
         [[route]]\nfrom = [\"monitors\"]\nto = [\"engine\"]\n",
        free_address()
    )
}

/// A source, and a folder that takes everything.
fn delivering_box(folder: &Path) -> String {
    fs::create_dir_all(folder.join("out")).unwrap();
    format!(
        "[source.bench.mllp]\nlisten = \"127.0.0.1:0\"\n\
         [upstream.archive.directory]\npath = \"{}/out\"\nunsealed = true\n\
         [[route]]\nfrom = [\"bench\"]\nto = [\"archive\"]\n",
        folder.display()
    )
}

fn message(number: usize) -> String {
    format!("MSH|^~\\&|MON|ICU|ENG|HIS|20261122140000||ORU^R01|N{number}|P|2.5\rPID|1||T{number}||Test^Patient\r")
}

/// Sends messages as a monitor does and waits for each answer.
fn send(to: SocketAddr, numbers: std::ops::Range<usize>) {
    let mut stream = TcpStream::connect(to).unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap());
    for number in numbers {
        stream.write_all(format!("\x0b{}\x1c\r", message(number)).as_bytes()).unwrap();
        let mut answer = Vec::new();
        answers.read_until(0x1c, &mut answer).unwrap();
        assert!(String::from_utf8_lossy(&answer).contains("|AA|"), "{}", String::from_utf8_lossy(&answer));
        answers.read_until(b'\r', &mut Vec::new()).unwrap();
    }
}

/// A new age identity: its file and its recipient.
fn identity(folder: &Path, name: &str) -> (PathBuf, String) {
    let file = folder.join(name);
    succeeds(Command::new("age-keygen").arg("-o").arg(&file));
    let text = fs::read_to_string(&file).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("# public key: ")).unwrap();
    (file, line.to_owned())
}

/// What the files of a folder hold, except the list.
fn held(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    let files = entries.filter(|path| path.extension().is_some_and(|ending| ending == "hl7"));
    let mut texts: Vec<String> = files.map(|path| fs::read_to_string(path).unwrap()).collect();
    texts.sort();
    texts
}

fn json(text: &str) -> Value {
    // Progress is told on standard error, before the answer.
    let (_, rest) = text.split_once("{\n").unwrap_or_else(|| panic!("no JSON in: {text}"));
    serde_json::from_str(&format!("{{{rest}")).unwrap()
}

#[test]
fn a_sound_spool_is_told_from_a_damaged_one() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(folder.path(), &waiting_box());
    send(gateway.endpoint("monitors"), 0..MESSAGES);
    let sound = json(&gateway.ask(&["spool", "verify", "--json"]));
    assert_eq!(sound["damage"], Value::Array(vec![]), "{sound}");
    let said = gateway.ask(&["spool", "verify"]);
    assert!(said.lines().count() == 1 && said.contains(" in 1 segment read") && said.contains("all sound"), "{said}");
    assert!(sound["records"].as_u64().unwrap() > MESSAGES as u64 && sound["bytes"].as_u64().unwrap() > 0, "{sound}");
    // The third block of the file that is in use: the first records.
    let clinical = fs::read_dir(folder.path().join("spool/clinical")).unwrap().map(|entry| entry.unwrap().path());
    let used = clinical.filter(|path| fs::read(path).unwrap()[0] != 0).collect::<Vec<_>>();
    assert_eq!(used.len(), 1);
    let mut bytes = fs::read(&used[0]).unwrap();
    bytes[8192 + 60] ^= 1;
    let file = fs::OpenOptions::new().write(true).open(&used[0]).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes[8192..8192 + 64], 8192).unwrap();
    let ended = run(&mut gateway.command(&["spool", "verify"]));
    assert_eq!(ended.status.code(), Some(65), "{}", ended.said);
    assert!(ended.said.contains("clinical segment 1:"), "{}", ended.said);
    let file = used[0].display().to_string();
    assert!(ended.said.contains(&file) && ended.said.contains("1 place damaged"), "{}", ended.said);
    let alarms = gateway.alarms();
    let told: Vec<_> = alarms.iter().filter(|(code, _)| code == "damaged").collect();
    assert!(told.len() == 1 && told[0].1.contains(&file), "the running service does not tell of it: {alarms:?}");
}

#[test]
fn what_waits_on_one_box_is_carried_to_another_sealed_and_arrives_once() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (file, recipient) = identity(first.path(), "courier.txt");
    let (_, other) = identity(first.path(), "other.txt");
    let sending = Gateway::start(first.path(), &waiting_box());
    send(sending.endpoint("monitors"), 0..MESSAGES);
    let export = first.path().join("waiting.age");
    let to = export.to_str().unwrap();
    let arguments =
        ["spool", "export", "--upstream", "engine", "--recipient", &recipient, "--recipient", &other, "--to", to];
    let said = sending.ask(&arguments);
    assert!(said.contains("5 messages") && said.contains("nothing was marked as delivered"), "{said}");
    assert_eq!(sending.backlog(), 5);
    let sealed = fs::read(&export).unwrap();
    assert!(!sealed.windows(4).any(|window| window == b"MSH|"), "in clear");
    let opened = Command::new("age").arg("-d").arg("-i").arg(&file).arg(&export).output().unwrap();
    assert!(opened.status.success() && opened.stdout.starts_with(b"WGXFER01"));
    assert_eq!(opened.stdout.windows(4).filter(|window| *window == b"MSH|").count(), MESSAGES);

    let taking = Gateway::start(second.path(), &delivering_box(second.path()));
    let arguments = ["spool", "import", to, "--identity", file.to_str().unwrap(), "--upstream", "archive", "--json"];
    let report = json(&taking.ask(&arguments));
    assert_eq!((&report["stored"], &report["repeats"]), (&5.into(), &0.into()), "{report}");
    let out = second.path().join("out");
    eventually("the other box delivers what was carried to it", || held(&out).len() == MESSAGES);
    let expected: Vec<String> = (0..MESSAGES).map(message).collect();
    assert_eq!(held(&out), expected);
    let again = json(&taking.ask(&arguments));
    assert_eq!((&again["stored"], &again["repeats"]), (&0.into(), &5.into()), "{again}");

    fs::write(&export, &sealed[..sealed.len() - 40]).unwrap();
    let cut = run(&mut taking.command(&arguments));
    assert!(!cut.status.success(), "an export that was cut off passes for a whole one: {}", cut.said);
}

#[test]
fn messages_are_exported_by_id_and_one_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (_, recipient) = identity(folder.path(), "courier.txt");
    let gateway = Gateway::start(folder.path(), &waiting_box());
    send(gateway.endpoint("monitors"), 0..1);
    let nobody = "00112233445566778899aabbccddeeff";
    let file = folder.path().join("one.age");
    let arguments = ["spool", "export", nobody, "--recipient", &recipient, "--to", file.to_str().unwrap()];
    let ended = run(&mut gateway.command(&arguments));
    assert_eq!(ended.status.code(), Some(65), "{}", ended.said);
    assert!(ended.said.contains(nobody) && ended.said.contains("0 messages"), "{}", ended.said);
}

#[test]
fn a_replay_to_an_upstream_that_never_had_the_source_is_delivered_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let rest = format!("{}\n{}", waiting_box(), delivering_box(folder.path()));
    let gateway = Gateway::start(folder.path(), &rest);
    send(gateway.endpoint("monitors"), 0..MESSAGES);
    let range = ["replay", "--source", "monitors", "--from", "1h", "--to", "now", "--upstream", "archive"];
    let counted = json(&gateway.ask(&[&range[..], &["--dry-run", "--json"]].concat()));
    assert_eq!((&counted["messages"], &counted["incomplete"]), (&MESSAGES.into(), &false.into()), "{counted}");
    assert!(counted["first"].as_str().unwrap() <= counted["last"].as_str().unwrap(), "{counted}");
    assert_eq!(held(&folder.path().join("out")).len(), 0, "counting sends nothing");
    gateway.ask(&[&range[..], &["--yes"]].concat());
    eventually("the archive has them", || held(&folder.path().join("out")).len() == MESSAGES);
}

#[test]
fn a_replay_to_an_upstream_that_no_route_leads_to_is_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("cold")).unwrap();
    let cold = format!("[upstream.cold.directory]\npath = \"{}/cold\"\nunsealed = true\n", folder.path().display());
    let gateway = Gateway::start(folder.path(), &(waiting_box() + &cold));
    send(gateway.endpoint("monitors"), 0..1);
    let range = ["replay", "--source", "monitors", "--from", "1h", "--to", "now", "--upstream", "cold", "--yes"];
    let refused = gateway.asked(&range);
    assert!(!refused.status.success() && refused.said.contains("to = [\"cold\"]"), "{}", refused.said);
    assert_eq!(held(&folder.path().join("cold")).len(), 0);
}

#[test]
fn a_dead_box_is_read_with_the_recovery_identity_of_the_hospital() {
    let folder = tempfile::tempdir().unwrap();
    let (file, recipient) = identity(folder.path(), "hospital.txt");
    let (stranger, _) = identity(folder.path(), "stranger.txt");
    // `[spool]` is the last table of the head.
    let gateway = Gateway::start(folder.path(), &format!("recovery = [\"{recipient}\"]\n{}", waiting_box()));
    send(gateway.endpoint("monitors"), 0..MESSAGES);
    gateway.process.kill();
    fs::remove_file(folder.path().join("spool.key")).unwrap();
    let (spool, into) = (folder.path().join("spool"), folder.path().join("rescued"));
    let recover = |identity: &Path| {
        let mut command = wardgate();
        command.arg("recover").arg("--spool").arg(&spool).arg("--identity").arg(identity);
        run(command.arg("--into").arg(&into))
    };
    let refused = recover(&stranger);
    assert_eq!(refused.status.code(), Some(77), "{}", refused.said);
    let done = recover(&file);
    assert!(done.status.success() && done.said.contains("5 messages"), "{}", done.said);
    assert_eq!(held(&into), (0..MESSAGES).map(message).collect::<Vec<_>>());
    let list = fs::read_to_string(into.join("messages.jsonl")).unwrap();
    let lines: Vec<Value> = list.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), MESSAGES);
    for line in &lines {
        assert_eq!((&line["state"], &line["source"]), (&"waiting".into(), &"monitors".into()), "{line}");
        assert_eq!(line["waiting-for"][0], "engine");
        assert!(into.join(line["file"].as_str().unwrap()).exists());
    }
    assert_eq!(recover(&file).status.code(), Some(73), "nothing is written over an earlier rescue");
}

#[test]
fn keys_are_rotated_in_service_and_destroyed_for_good() {
    let folder = tempfile::tempdir().unwrap();
    let (_, recipient) = identity(folder.path(), "hospital.txt");
    let mut gateway = Gateway::start(folder.path(), &format!("recovery = [\"{recipient}\"]\n{}", waiting_box()));
    let source = gateway.endpoint("monitors");
    send(source, 0..2);
    assert_eq!(json(&gateway.ask(&["keys", "rotate", "--json"]))["epoch"], 2);
    send(source, 2..4);
    assert_eq!(gateway.backlog(), 4);
    let wrong = run(&mut gateway.command(&["keys", "destroy", "--gateway", "another-box", "--yes"]));
    assert!(!wrong.status.success() && wrong.said.contains("nothing was destroyed"), "{}", wrong.said);
    assert_eq!(gateway.backlog(), 4);
    let done = gateway.ask(&["keys", "destroy", "--gateway", "test-box", "--yes"]);
    assert!(done.contains("can ever be read again"), "{done}");
    assert!(TcpStream::connect(source).is_err(), "intake is off");
    for gone in ["spool.key", "spool/keyring.0", "spool/keyring.1", "spool/recovery.age", "spool/recovery.recipients"] {
        assert!(!folder.path().join(gone).exists(), "{gone}");
    }
    gateway.process.signal("TERM");
    eventually("the service ends", || gateway.process.has_ended());
    for command in [&["run", "--config"][..], &["check"]] {
        let again = run(wardgate().args(command).arg(folder.path().join("gateway.toml")));
        assert_eq!(again.status.code(), Some(78), "{}", again.said);
        assert!(again.said.contains("were destroyed on request at 20"), "{}", again.said);
    }
}
