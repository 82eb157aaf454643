//! Out of file descriptors: new connections wait, and nothing else happens.

use std::fs;
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use super::monitors_to_engine;
use crate::support::gateway::Gateway;
use crate::support::mllp::{Device, Engine, message};
use crate::support::process::{run, succeeds};
use crate::support::wait::eventually;

/// How long the shortage is watched: several pauses of the accept loop.
const WATCHED: Duration = Duration::from_millis(1500);
/// Descriptors that the process may still open: fewer than the devices that come, enough for what else it does.
const LEFT: usize = 12;
/// What the service says about it.
const COMPLAINT: &str = "no connection can be accepted now";

/// Clock ticks (`USER_HZ`, 100 a second) that the process has run; fields 14 and 15 of proc_pid_stat(5).
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    after_name[11].parse::<u64>().unwrap() + after_name[12].parse::<u64>().unwrap()
}

fn limit_files(pid: u32, most: usize) {
    succeeds(Command::new("prlimit").arg("--pid").arg(pid.to_string()).arg(format!("--nofile={most}:")));
}

#[test]
fn without_descriptors_new_devices_wait_quietly_and_are_served_as_soon_as_there_are_some() {
    let folder = tempfile::tempdir().unwrap();
    let receiver = Engine::up();
    let gateway = Gateway::start(folder.path(), &monitors_to_engine(receiver.port));
    let at = gateway.endpoint("monitors");
    let mut early = Device::connect(at);
    assert_eq!(early.send(&message("1")), "AA");
    eventually("it arrived", || receiver.count() == 1);

    let pid = gateway.process.pid();
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    limit_files(pid, open + LEFT);
    let idle: Vec<TcpStream> = (0..2 * LEFT).map(|_| TcpStream::connect(at).unwrap()).collect();
    eventually("it says so", || gateway.process.said().contains(COMPLAINT));
    let (since, before) = (Instant::now(), ticks(pid));
    while since.elapsed() < WATCHED {
        // Who is in already is served.
        assert_eq!(early.send(&message(&format!("E{}", since.elapsed().as_micros()))), "AA");
        std::thread::sleep(WATCHED / 10);
    }
    let spent = ticks(pid) - before;
    assert!(spent < 75, "{spent} ticks of CPU in {WATCHED:?}: it does not pause");
    assert_eq!(gateway.process.said().matches(COMPLAINT).count(), 1, "{}", gateway.process.said());

    let late = std::thread::spawn(move || Device::connect(at).send(&message("LATE")));
    drop(idle);
    assert_eq!(late.join().unwrap(), "AA");
    eventually("the operator is answered", || run(&mut gateway.command(&["status"])).status.success());
    assert_eq!(gateway.stop().matches(COMPLAINT).count(), 1);
}
