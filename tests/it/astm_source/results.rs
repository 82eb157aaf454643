//! Results of labmcp's analyser, over TCP both ways and over a pseudo-terminal.

use std::process::Command;

use serde_json::Value;
use wardgate::wire::astm::{ACK, EOT, NAK};

use super::device::Analyser;
use super::{all_arrived, lab, lab_to_folder};
use crate::support::gateway::Gateway;
use crate::support::process::{Process, succeeds};
use crate::support::tools::{python_peer, system};
use crate::support::wait::{PATIENCE, eventually};

fn said(text: &str) -> Value {
    serde_json::from_str(text.lines().find(|line| line.starts_with('{')).unwrap()).unwrap()
}

fn sorted(mut texts: Vec<String>) -> Vec<String> {
    texts.sort();
    texts
}

fn sent(told: &Value) -> Vec<String> {
    sorted(told["sent"].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect())
}

#[test]
fn the_results_of_an_analyser_arrive_byte_for_byte_though_frames_are_damaged_on_the_line() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(folder.path(), &lab_to_folder(folder.path()));
    let to = gateway.endpoint("lab").to_string();
    let damage = ["0:0", "0:2", "0:6", "1:3", "1:17"];
    let told =
        said(&succeeds(python_peer("astm_analyser.py").args(["--to", &to, "--times", "3", "--corrupt"]).args(damage)));
    assert_eq!((told["taken"].as_u64(), told["naks"].as_u64()), (Some(6), Some(5)));
    assert_eq!(sorted(all_arrived(&gateway, folder.path(), 6)), sent(&told));
    let status = &gateway.status()["sources"]["lab"];
    assert_eq!((status["received"].as_u64(), status["flagged"].as_u64()), (Some(6), Some(0)));
    assert!(!gateway.stop().contains("PAT-000417"), "patient data in the log");
}

#[test]
fn an_analyser_that_gives_up_after_six_refusals_is_reported_and_what_it_was_acknowledged_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(folder.path(), &lab_to_folder(folder.path()));
    let to = gateway.endpoint("lab").to_string();
    let told = said(&succeeds(python_peer("astm_analyser.py").args(["--to", &to, "--deaf"])));
    assert_eq!((told["taken"].as_u64(), told["naks"].as_u64()), (Some(1), Some(6)));
    let all = all_arrived(&gateway, folder.path(), 2);
    let whole = told["sent"][1].as_str().unwrap();
    let part = all.iter().find(|text| *text != whole).unwrap();
    assert!(told["sent"][0].as_str().unwrap().starts_with(part.as_str()), "{part}");
    let status = &gateway.status()["sources"]["lab"];
    assert_eq!((status["rejected"].as_u64(), status["flagged"].as_u64()), (Some(1), Some(1)));
}

#[test]
fn an_analyser_that_waits_to_be_dialled_is_dialled() {
    let folder = tempfile::tempdir().unwrap();
    let mut analyser = Process::start(python_peer("astm_analyser.py").arg("--listen"));
    let place = format!("connect = \"{}\"", analyser.listening());
    let gateway = Gateway::start(folder.path(), &lab(&place, folder.path()));
    let told = said(&analyser.ends_within(PATIENCE).said);
    assert_eq!(sorted(all_arrived(&gateway, folder.path(), 2)), sent(&told));
}

#[test]
fn an_analyser_on_a_serial_line_is_heard() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, theirs) = (folder.path().join("ours"), folder.path().join("theirs"));
    let pair = [&ours, &theirs].map(|path| format!("pty,raw,echo=0,link={}", path.display()));
    let _line = Process::start(system("socat").args(&pair));
    eventually("socat has made the pseudo-terminals", || ours.exists() && theirs.exists());
    let place = format!("serial = {{ port = \"{}\", baud = 9600 }}", ours.display());
    let gateway = Gateway::start(folder.path(), &lab(&place, folder.path()));
    eventually("the port is open", || gateway.status()["sources"]["lab"]["connections"] == 1);
    let mut analyser: Command = python_peer("astm_analyser.py");
    let told = said(&succeeds(analyser.arg("--serial").arg(&theirs)));
    assert_eq!((told["taken"].as_u64(), told["naks"].as_u64()), (Some(2), Some(1)));
    assert_eq!(sorted(all_arrived(&gateway, folder.path(), 2)), sent(&told));
}

#[test]
fn a_question_that_nobody_answers_is_an_alarm_that_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(folder.path(), &lab_to_folder(folder.path()));
    let mut analyser = Analyser::dial(gateway.endpoint("lab")).unwrap();
    let question = ["H|\\^&|1\r", "Q|1|^S26-1||ALL\r", "L|1|N\r"];
    assert_eq!(analyser.enquire().unwrap(), ACK);
    for (number, record) in (1..).zip(question) {
        assert_eq!(analyser.frame(number, record).unwrap(), ACK);
    }
    analyser.send(&[EOT]).unwrap();
    assert_eq!(all_arrived(&gateway, folder.path(), 1), [question.concat()]);
    let alarms = gateway.alarms();
    assert!(alarms.iter().any(|(code, text)| code == "query-unanswered" && text.contains("query mode")), "{alarms:?}");
}

#[test]
fn a_frame_without_an_enquiry_is_taken_when_it_is_the_first_and_refused_when_others_are_missing() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(folder.path(), &lab_to_folder(folder.path()));
    let mut analyser = Analyser::dial(gateway.endpoint("lab")).unwrap();
    assert_eq!(analyser.frame(4, "R|1\r").unwrap(), NAK, "it goes on with nothing that is here");
    assert_eq!(analyser.frame(1, "H|\\^&|1\r").unwrap(), ACK, "a first frame without ENQ is taken");
    assert_eq!(analyser.frame(2, "L|1\r").unwrap(), ACK);
    assert_eq!(all_arrived(&gateway, folder.path(), 1), ["H|\\^&|1\rL|1\r"]);
}
