//! What an upstream refuses: for good, and for now.

use std::fs;
use std::path::Path;

use super::monitors_to_engine;
use crate::support::gateway::Gateway;
use crate::support::mllp::{Device, message};
use crate::support::process::Process;
use crate::support::tools::python_peer;
use crate::support::wait::eventually;

fn answering(store: &Path, answers: &str) -> (Process, String) {
    let mut server =
        Process::start(python_peer("mllp_server.py").args(["--answers", answers]).arg("--store").arg(store));
    let config = monitors_to_engine(server.listening().port());
    (server, config)
}

/// MSH-10 and answer of everything that the engine was sent.
fn order(store: &Path) -> Vec<String> {
    let text = fs::read_to_string(store.join("order")).unwrap();
    text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
}

#[test]
fn a_rejected_message_is_kept_shown_sent_again_or_given_up_and_stops_nobody() {
    let (folder, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_server, config) = answering(store.path(), "AA,AR,AR,AA");
    let gateway = Gateway::start(folder.path(), &config);
    let mut device = Device::connect(gateway.endpoint("monitors"));
    for id in ["1", "2", "3", "4"] {
        assert_eq!(device.send(&message(id)), "AA");
    }
    eventually("nothing waits", || gateway.backlog() == 0);
    assert_eq!(order(store.path()), ["1 AA", "2 AR", "3 AR", "4 AA"]);
    assert!(gateway.alarms().iter().any(|(code, _)| code == "dead-letters"), "{:?}", gateway.alarms());
    let dead = gateway.dead();
    assert_eq!(dead.len(), 2);
    let (third, second) = (dead[0]["id"].as_str().unwrap(), dead[1]["id"].as_str().unwrap());
    assert!(dead[0]["reason"].as_str().unwrap().contains("AR"), "{}", dead[0]);

    let kept = folder.path().join("second.hl7");
    let shown = gateway.ask(&["dead", "show", second, "--body", kept.to_str().unwrap()]);
    assert!(shown.contains("AR") && fs::read(&kept).unwrap() == message("2"), "{shown}");

    // Dead letters outlive the process.
    gateway.stop();
    let gateway = Gateway::again(folder.path());
    assert_eq!(gateway.dead().len(), 2);
    gateway.ask(&["dead", "retry", second]);
    eventually("it was sent again", || order(store.path()).last().is_some_and(|line| line == "2 AA"));
    gateway.ask(&["dead", "discard", third, "--yes"]);
    eventually("no dead letter is left", || gateway.dead().is_empty());
    gateway.stop();
    let gateway = Gateway::again(folder.path());
    assert!(gateway.dead().is_empty() && gateway.backlog() == 0);
    assert_eq!(order(store.path()).len(), 5);
    let ended = gateway.asked(&["dead", "show", third]);
    assert!(!ended.status.success() && ended.said.contains("not a dead letter"), "{}", ended.said);
}

#[test]
fn a_message_that_is_refused_for_now_is_sent_again_before_the_next() {
    let (folder, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_server, config) = answering(store.path(), "AE,AA");
    let gateway = Gateway::start(folder.path(), &config);
    let mut device = Device::connect(gateway.endpoint("monitors"));
    assert_eq!((device.send(&message("1")), device.send(&message("2"))), ("AA".into(), "AA".into()));
    eventually("nothing waits", || gateway.backlog() == 0);
    assert_eq!(order(store.path()), ["1 AE", "1 AA", "2 AA"]);
    let status = gateway.status();
    assert_eq!((&status["upstreams"]["engine"]["retried"], gateway.dead().len()), (&1.into(), 0), "{status}");
}

#[test]
fn a_lane_that_is_held_says_what_to_type_and_goes_on_when_a_person_has_decided() {
    let (folder, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_server, config) = answering(store.path(), "AR,AR,AA");
    let gateway =
        Gateway::start(folder.path(), &config.replace("plain = true", "plain = true\nwhen-refused = \"hold\""));
    let idle = gateway.asked(&["lane", "retry", "--upstream", "engine"]);
    assert!(!idle.status.success() && idle.said.contains("waits for a person"), "{}", idle.said);
    let mut device = Device::connect(gateway.endpoint("monitors"));
    assert_eq!((device.send(&message("1")), device.send(&message("2"))), ("AA".into(), "AA".into()));
    let advice = || gateway.alarms().into_iter().find(|(code, _)| code == "lane-held").map(|(_, text)| text);
    let which = "--upstream engine --source monitors";
    let asks = || advice().is_some_and(|text| text.contains(&format!("wardgate lane retry {which}")));
    eventually("the status says what to type", asks);
    assert_eq!((gateway.backlog(), gateway.dead().len()), (2, 0), "it stands still");

    gateway.ask(&["lane", "retry", "--upstream", "engine", "--source", "monitors"]);
    eventually("it was sent again and refused again", || order(store.path()) == ["1 AR", "1 AR"] && asks());
    let released = gateway.ask(&["lane", "set-aside", "--upstream", "engine", "--yes"]);
    assert!(released.contains("monitors > engine"), "{released}");
    eventually("the next one has passed", || gateway.backlog() == 0);
    assert_eq!(order(store.path()), ["1 AR", "1 AR", "2 AA"]);
    assert_eq!((gateway.dead().len(), advice()), (1, None));
    let log = gateway.stop();
    let decisions = log.lines().filter(|line| line.contains("a change was asked for") && line.contains("uid"));
    let decided: Vec<&str> = decisions.filter(|line| line.contains("lane-")).collect();
    assert!(decided.len() == 3 && decided[2].contains("lane-set-aside"), "{log}");
}
