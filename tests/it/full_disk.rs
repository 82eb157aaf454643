//! No room: devices are told so, a person sees why, draining works, and intake comes back by itself.
//!
//! The small file system is a tmpfs in a mount namespace of the service alone, made with the rights of root or in a user namespace of its
//! own. Where the machine forbids both, the test says so and runs on a small quota, which another test does in any case.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::gateway::{engine, monitors_to_engine, route, source};
use crate::support::gateway::Gateway;
use crate::support::mllp::{Device, Engine, long_message};
use crate::support::process::run;
use crate::support::tools::system;
use crate::support::wait::{eventually, eventually_some};

const MIB: usize = 1 << 20;
/// More messages of 1 MiB than either of the small disks can hold.
const TOO_MANY: usize = 100;
/// The least that the configuration allows for this log.
const SMALL_QUOTA: &str = "[spool.clinical]\nquota = \"64MiB\"\n";
/// Room for four segments of 16 MiB and what is beside them.
const SMALL_DISK: &str = "size=72m";

fn body(number: usize) -> Vec<u8> {
    long_message(&format!("M{number}"), MIB)
}

/// Fills, drains and fills again. `why` are words that the status must say while there is no room.
fn fills_and_comes_back(gateway: &Gateway, receiver: &mut Engine, why: &str) {
    let mut device = Device::connect(gateway.endpoint("monitors"));
    let mut accepted = Vec::new();
    let refused = (0..TOO_MANY).find(|number| {
        let answer = device.send(&body(*number));
        assert!(["AA", "AE"].contains(&answer.as_str()), "{answer}");
        if answer == "AA" {
            accepted.push(*number);
        }
        answer == "AE"
    });
    let refused = refused.expect("a small disk can't hold all of this");
    assert!(accepted.len() > 20, "only {} were taken", accepted.len());
    assert_eq!(device.send(&body(refused)), "AE", "again, over the same connection");
    let alarms = gateway.alarms();
    let told =
        alarms.iter().any(|(code, text)| code == "spool-full" && text.contains(why) && text.contains("by itself"));
    assert!(told && alarms.iter().filter(|(_, text)| text.contains("are refused")).count() == 1, "{alarms:?}");
    let status = gateway.status();
    assert!(status["logs"][0]["refusing"].as_str().unwrap().contains(why), "{status}");
    assert_eq!(status["sources"]["monitors"]["refused"], 2, "{status}");
    assert_eq!(status["lanes"][0]["backlog"], accepted.len(), "{status}");

    receiver.restore();
    eventually("what was accepted is delivered", || gateway.backlog() == 0);
    let ids: Vec<String> = accepted.iter().map(|number| format!("M{number}")).collect();
    assert_eq!(receiver.first_arrivals().0, ids);
    // Nobody does anything but the device, which tries again.
    eventually("intake comes back by itself", || device.send(&body(refused)) == "AA");
    for number in TOO_MANY..2 * TOO_MANY {
        let answered = || (device.send(&body(number)) == "AA").then_some(());
        eventually_some("there is room as long as messages are delivered", answered);
    }
    eventually("everything is delivered", || gateway.backlog() == 0);
    assert!(gateway.alarms().iter().all(|(code, _)| code != "spool-full"), "{:?}", gateway.alarms());
    let (order, copies) = receiver.first_arrivals();
    assert_eq!((order.len(), copies), (accepted.len() + 1 + TOO_MANY, 0));
}

/// A command that mounts a small file system on the spool, seen by nobody else, and becomes what follows; `None` where that is forbidden.
fn on_a_small_disk(spool: &Path) -> Option<Command> {
    fs::create_dir(spool).unwrap();
    let root = nix::unistd::geteuid().is_root();
    let unshare = || {
        let mut unshare = system("unshare");
        unshare.args(if root { &["--mount"][..] } else { &["--mount", "--map-root-user"] });
        unshare.args(["sh", "-c", &format!("mount -t tmpfs -o {SMALL_DISK} tmpfs \"$0\" && exec \"$@\"")]).arg(spool);
        unshare
    };
    run(unshare().arg("true")).status.success().then(unshare)
}

#[test]
fn a_full_file_system_is_said_drained_and_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let mut receiver = Engine::down();
    let config = monitors_to_engine(receiver.port);
    let (gateway, why) = match on_a_small_disk(&folder.path().join("spool")) {
        Some(wrapper) => (Gateway::start_under(wrapper, folder.path(), &config), "disk"),
        None => {
            eprintln!("this machine forbids mounts: a small quota stands for the small file system");
            (Gateway::start(folder.path(), &(SMALL_QUOTA.to_owned() + &config)), "quota")
        }
    };
    fills_and_comes_back(&gateway, &mut receiver, why);
    gateway.stop();
}

#[test]
fn a_full_quota_is_said_drained_and_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let mut receiver = Engine::down();
    let config = SMALL_QUOTA.to_owned() + &monitors_to_engine(receiver.port);
    let gateway = Gateway::start(folder.path(), &config);
    fills_and_comes_back(&gateway, &mut receiver, "quota");
    gateway.stop();
}

/// Bytes of all files in a folder and below.
fn bytes_of(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .map(|path| if path.is_dir() { bytes_of(&path) } else { fs::metadata(&path).map_or(0, |data| data.len()) })
        .sum()
}

#[test]
fn a_dead_lane_beside_a_busy_one_does_not_fill_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let (mut gone, busy) = (Engine::down(), Engine::up());
    let config = SMALL_QUOTA.to_owned()
        + &source("pumps")
        + &engine("gone", gone.port)
        + &route("pumps", &["gone"])
        + &monitors_to_engine(busy.port);
    let gateway = Gateway::start(folder.path(), &config);
    let mut pumps = Device::connect(gateway.endpoint("pumps"));
    let mut monitors = Device::connect(gateway.endpoint("monitors"));
    let mut kept = Vec::new();
    for number in 0..4 * TOO_MANY {
        // Some of the dead lane's messages in every segment of the busy one.
        if number % 5 == 0 {
            let id = format!("P{number}");
            assert_eq!(pumps.send(&long_message(&id, 1000)), "AA", "message {number}");
            kept.push(id);
        }
        assert_eq!(monitors.send(&long_message(&format!("M{number}"), MIB / 5)), "AA", "message {number}");
        if number % 20 == 0 {
            eventually("the busy lane keeps up", || gateway.backlog_of("engine") < 5);
        }
    }
    assert!(bytes_of(&folder.path().join("spool")) < 65 * MIB as u64);
    assert_eq!(gateway.backlog_of("gone"), kept.len() as u64);
    gone.restore();
    eventually("the dead lane comes alive", || gateway.backlog() == 0);
    assert_eq!(gone.first_arrivals(), (kept, 0));
    assert_eq!(busy.first_arrivals().0.len(), 4 * TOO_MANY);
    gateway.stop();
}
