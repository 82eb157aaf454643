//! `wardgate health`: what an update asks before it keeps the new system.

use std::fs;
use std::net::TcpListener;

use wardgate::system::pty::Pty;

use crate::support::gateway::Gateway;
use crate::support::process::{Process, run, wardgate};
use crate::support::tools::system;
use crate::support::wait::{PATIENCE, eventually};

const PLAIN: &str = r#"
[source.monitors.mllp]
listen = "127.0.0.1:0"

[upstream.nobody.mllp]
address = "127.0.0.1:9"
plain = true

[[route]]
from = ["monitors"]
to = ["nobody"]
"#;

#[test]
fn a_box_whose_upstream_is_away_is_well_and_the_loops_message_stays_in_the_loop() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(folder.path(), PLAIN);
    let inside = tempfile::tempdir().unwrap();
    let said = gateway.ask(&["health", "--in", inside.path().to_str().unwrap()]);
    for words in ["its spool is open (clinical", "1 source up", "a message went in and came out as it was"] {
        assert!(said.contains(words), "{words} is not in:\n{said}");
    }
    assert_eq!(gateway.status()["sources"]["monitors"]["received"], 0, "the real source saw nothing of it");
    assert_eq!(gateway.backlog(), 0);
    assert_eq!(fs::read_dir(inside.path()).unwrap().count(), 0, "the loop cleans up");
}

#[test]
fn a_box_whose_service_does_not_run_is_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("control.sock");
    let ended = run(wardgate().arg("health").arg("--socket").arg(socket));
    assert_eq!(ended.status.code(), Some(69), "{}", ended.said);
    assert!(ended.said.contains("not running"), "{}", ended.said);
}

#[test]
fn a_box_is_given_time_to_come_up() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("control.sock");
    let asking = Process::start(wardgate().args(["health", "--wait", "1m"]).arg("--socket").arg(socket));
    let _gateway = Gateway::start(folder.path(), PLAIN);
    let ended = asking.ends_within(PATIENCE);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.said);
}

#[test]
fn a_box_one_of_whose_sources_does_not_run_is_not_kept() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let port = taken.local_addr().unwrap().port();
    let gateway = Gateway::start(folder.path(), &PLAIN.replace("127.0.0.1:0", &format!("127.0.0.1:{port}")));
    let ended = gateway.asked(&["health"]);
    assert_eq!(ended.status.code(), Some(69), "{}", ended.said);
    assert!(ended.said.contains("the source monitors does not run"), "{}", ended.said);
}

#[test]
fn a_device_that_is_switched_off_and_a_network_that_is_away_are_no_fault_of_the_system() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    let folder = tempfile::tempdir().unwrap();
    let _line = Pty::open(&folder.path().join("line")).unwrap();
    let line = folder.path().join("line");
    let more = format!(
        "[source.vent.medibus]\nserial = {{ port = \"{}\" }}\nquiet = \"1s\"\n[source.away.mllp]\nlisten = \"192.0.2.1:2575\"\nallow = [\"192.0.2.0/24\"]\n",
        line.display()
    );
    let routes = "[[route]]\nfrom = [\"away\"]\nto = [\"nobody\"]\n[[route]]\nfrom = [\"vent\"]\nto = [\"nobody\"]\nas = \"pcd-01\"\n";
    let gateway = Gateway::start(folder.path(), &(more + PLAIN + routes));
    let in_trouble = || ["vent", "away"].iter().all(|name| !gateway.status()["sources"][*name]["trouble"].is_null());
    eventually("both are in trouble", in_trouble);
    let said = gateway.ask(&["health"]);
    for words in [
        "1 source up",
        "note     the source away does not run",
        "note     the source vent does not run",
        "a message went in",
    ] {
        assert!(said.contains(words), "{words} is not in:\n{said}");
    }
}

/// The small file system is in a mount namespace of the command alone.
#[test]
fn a_full_disk_is_no_fault_of_the_system() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(folder.path(), PLAIN);
    let small = tempfile::tempdir().unwrap();
    let (inside, socket) = (small.path(), folder.path().join("control.sock"));
    let ours = wardgate();
    let mut command = system("unshare");
    command.args(["--mount", "sh", "-c", "mount -t tmpfs -o size=8m tmpfs \"$0\" && exec \"$@\""]).arg(inside);
    command.arg(ours.get_program()).arg("health").arg("--in").arg(inside).arg("--socket").arg(socket);
    let ended = run(&mut command);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.said);
    assert!(ended.said.contains("is nearly full: the loop is made elsewhere"), "{}", ended.said);
    gateway.stop();
}
