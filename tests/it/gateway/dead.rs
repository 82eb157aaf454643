//! What an upstream refuses: for good, and for now.

use std::fs;
use std::path::Path;

use super::monitors_to_engine;
use crate::support::gateway::Gateway;
use crate::support::mllp::{Device, message};
use crate::support::ports::free_address;
use crate::support::process::Process;
use crate::support::tools::python_peer;
use crate::support::wait::eventually;

fn answering(store: &Path, answers: &str) -> (Process, String) {
    let mut server =
        Process::start(python_peer("mllp_server.py").args(["--answers", answers]).arg("--store").arg(store));
    let config = monitors_to_engine(server.listening().port());
    (server, config)
}

fn age_recipient() -> String {
    age::x25519::Identity::generate().to_public().to_string()
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
fn dead_letters_are_named_by_part_of_their_id_and_a_part_that_fits_several_chooses_none() {
    let (folder, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_server, config) = answering(store.path(), "AR,AR");
    let gateway = Gateway::start(folder.path(), &config);
    let mut device = Device::connect(gateway.endpoint("monitors"));
    for id in ["1", "2"] {
        assert_eq!(device.send(&message(id)), "AA");
    }
    eventually("both are refused", || gateway.dead().len() == 2);
    let dead = gateway.dead();
    let id = dead[0]["id"].as_str().unwrap();
    let (head, (_, tail)) = (id.split_at(6).0, id.split_at(28));
    let short = format!("{head}...{tail}");
    assert!(gateway.ask(&["dead", "show", &short]).contains(id));
    let said = gateway.asked(&["dead", "discard", "--yes", head]);
    assert_eq!(said.status.code(), Some(64), "{}", said.said);
    assert!(said.said.contains("fits several messages") && said.said.contains(id), "{}", said.said);
    assert_eq!(gateway.dead().len(), 2, "an ambiguous id discarded something");
    let said = gateway.ask(&["dead", "discard", "--yes", &short]);
    assert!(said.contains("1 dead letter discarded"), "{said}");
    assert_eq!(gateway.dead().len(), 1);
    let status = gateway.ask(&["status", "--once"]);
    assert!(!status.contains("all delivered") && status.contains("1 message refused for good"), "{status}");
}

#[test]
fn a_mistyped_name_is_refused_with_those_that_are_known() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(folder.path(), &monitors_to_engine(free_address().port()));
    let (key, file) = (age_recipient(), folder.path().join("x.age"));
    let file = file.to_str().unwrap();
    let wrong: [&[&str]; 7] = [
        &["dead", "list", "--upstream", "engin"],
        &["dead", "list", "--source", "monitor"],
        &["dead", "retry", "--all", "--upstream", "engin"],
        &["dead", "discard", "--all", "--yes", "--source", "monitor"],
        &["replay", "--source", "monitor", "--from", "2h", "--to", "now", "--upstream", "engine", "--dry-run"],
        &["replay", "--source", "monitors", "--from", "2h", "--to", "now", "--upstream", "engin", "--dry-run"],
        &["spool", "export", "--upstream", "engin", "--recipient", &key, "--to", file],
    ];
    for arguments in wrong {
        let said = gateway.asked(arguments);
        assert_eq!(said.status.code(), Some(64), "{arguments:?}: {}", said.said);
        let meant = if arguments.contains(&"engin") { "engine" } else { "monitors" };
        let words = format!("here. Did you mean \"{meant}\"? Known: {meant}");
        assert!(said.said.contains(&words), "{arguments:?}: {}", said.said);
    }
    assert!(gateway.ask(&["dead", "list", "--upstream", "engine"]).contains("no dead letters"));
}

#[test]
fn what_a_retired_upstream_left_over_is_not_called_refused() {
    let folder = tempfile::tempdir().unwrap();
    let config = monitors_to_engine(free_address().port());
    let gateway = Gateway::start(folder.path(), &config);
    assert_eq!(Device::connect(gateway.endpoint("monitors")).send(&message("1")), "AA");
    let spare = "[upstream.spare.mllp]\naddress = \"127.0.0.1:9\"\nplain = true\n";
    let routed = config.replace("to = [\"engine\"]", "to = [\"spare\"]");
    let kept = routed.split("[upstream.engine").next().unwrap();
    let route = routed.split("[[route]]").nth(1).unwrap();
    let retired = format!("{kept}{spare}[upstream.engine]\nretired = \"dead-letter\"\n[[route]]{route}");
    assert_eq!(gateway.reload(&retired), None, "{retired}");
    eventually("it is a dead letter", || gateway.dead().len() == 1);
    let alarms = gateway.alarms();
    let told = alarms.iter().find(|(code, _)| code == "dead-letters").unwrap();
    assert!(told.1.starts_with("1 message left over from the retired upstream: "), "{told:?}");
    assert!(!told.1.contains("mend the cause"), "{told:?}");
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
    let mistyped = gateway.asked(&["lane", "retry", "--upstream", "engin"]);
    assert_eq!(mistyped.status.code(), Some(64), "{}", mistyped.said);
    assert!(mistyped.said.contains("Did you mean \"engine\"?"), "{}", mistyped.said);
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
    assert!(decided.len() == 4 && decided[3].contains("lane-set-aside"), "{log}");
}
