//! What passes between the service and systemd: ready, reloading, the watchdog, sockets that outlive the process. systemd is a peer of
//! ours here (`service_manager.py`), which hears and hands over as sd_notify(3) and sd_listen_fds(3) say.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::gateway::monitors_to_engine;
use crate::support::gateway::{Gateway, head};
use crate::support::mllp::{Device, Engine, message};
use crate::support::ports::free_address;
use crate::support::process::Process;
use crate::support::tools::{repository, system};
use crate::support::wait::{PATIENCE, eventually, eventually_some};

/// `WatchdogSec=` in microseconds: a service on a busy machine keeps it easily, and a test need not wait for long.
const WATCHDOG: &str = "6000000";

fn manager(folder: &Path, options: &[&str]) -> Command {
    let mut manager = Command::new("python3");
    manager.arg("-u").arg(repository().join("tests/it/peers/service_manager.py"));
    manager.args(options).arg(folder).arg("--");
    manager
}

/// The source listens at `at`; nobody is at the upstream.
fn listening_at(at: SocketAddr) -> String {
    monitors_to_engine(Engine::down().port).replace("127.0.0.1:0", &at.to_string())
}

fn heard(gateway: &Gateway, part: &str) -> usize {
    gateway.process.lines().iter().filter(|line| line.starts_with("told ") && line.contains(part)).count()
}

fn acknowledged(answer: &[u8]) -> bool {
    String::from_utf8_lossy(answer).contains("MSA|AA|")
}

#[test]
fn a_device_that_connects_while_the_service_is_down_is_served_after_its_start() {
    let folder = tempfile::tempdir().unwrap();
    let at = free_address();
    let mut gateway = Gateway::start_under(manager(folder.path(), &[]), folder.path(), &listening_at(at));
    gateway.process.line_with(&format!("FDSTORE=1 FDNAME=tcp-127.0.0.1-{}", at.port()));
    gateway.process.signal("USR1");
    gateway.process.line_with("down");
    let mut device = Device::connect(at);
    device.write(&message("WHILE-DOWN")).unwrap();
    gateway.process.signal("USR2");
    assert!(acknowledged(&device.answer().unwrap()));
    eventually("it is kept", || gateway.backlog() == 1);
    drop(device);
    gateway.stop();
}

#[test]
fn a_listener_that_the_configuration_gives_up_is_closed_everywhere() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (free_address(), free_address());
    let mut gateway = Gateway::start_under(manager(folder.path(), &[]), folder.path(), &listening_at(first));
    gateway.process.line_with(&format!("FDSTORE=1 FDNAME=tcp-127.0.0.1-{}", first.port()));
    assert_eq!(gateway.reload(&listening_at(second)), None);
    gateway.process.line_with(&format!("FDSTOREREMOVE=1 FDNAME=tcp-127.0.0.1-{}", first.port()));
    eventually("nobody listens at the former address", || Device::try_connect(first).is_err());
    assert!(acknowledged(&Device::connect(second).exchange(&message("SECOND")).unwrap()));
    gateway.stop();
}

#[test]
fn a_socket_of_a_unit_is_taken_for_its_address_and_one_that_no_source_names_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let (named, unnamed) = (free_address(), free_address());
    let (ours, other) = (format!("wardgate-mllp={named}"), format!("wardgate-dicom={unnamed}"));
    let manager = manager(folder.path(), &["--socket", &ours, "--socket", &other]);
    let mut gateway = Gateway::start_under(manager, folder.path(), &listening_at(named));
    assert!(acknowledged(&Device::connect(named).exchange(&message("UNIT")).unwrap()));
    let said = gateway.process.line_with("no source listens");
    assert!(said.contains(&unnamed.to_string()) && said.contains("disable --now wardgate-dicom.socket"), "{said}");
    assert_eq!(heard(&gateway, "FDSTORE=1 "), 0, "systemd has both already");
    gateway.stop();
}

#[test]
fn systemd_hears_of_the_start_of_a_reload_and_of_the_stop() {
    let folder = tempfile::tempdir().unwrap();
    let config = listening_at(free_address());
    let mut gateway = Gateway::start_under(manager(folder.path(), &[]), folder.path(), &config);
    gateway.process.line_with("told READY=1 STATUS=test-box at test-site");
    assert_eq!(gateway.reload(&(config + "\n# changed\n")), None);
    gateway.process.line_with("told RELOADING=1 MONOTONIC_USEC=");
    gateway.process.line_with("told READY=1 STATUS=the changed configuration is in force");
    gateway.process.line_with("STATUS=test-box at test-site: 1 source, 1 upstream, 0 messages waiting");
    gateway.process.signal("TERM");
    gateway.process.line_with("told STOPPING=1");
    assert!(gateway.process.ends_within(PATIENCE).status.success());
}

/// Whether a process catches the signal, as the kernel tells it.
fn catches(pid: &str, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
    u64::from_str_radix(caught.trim(), 16).unwrap() & 1 << (signal as i32 - 1) != 0
}

#[test]
fn a_reload_that_is_asked_for_during_the_start_waits_for_it_and_ends_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("gateway.toml");
    std::fs::write(&config, head(folder.path()) + &listening_at(free_address())).unwrap();
    let ours = crate::support::process::wardgate();
    let mut manager = manager(folder.path(), &[]);
    manager.arg(ours.get_program()).args(["run", "--config"]).arg(config);
    let mut process = Process::start(&mut manager);
    let pid = process.line_with("started ").strip_prefix("started ").unwrap().to_owned();
    eventually("the service catches SIGTERM", || catches(&pid, Signal::SIGTERM));
    kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGHUP).unwrap();
    process.line_with("told RELOADING=1");
    process.line_with("told READY=1 STATUS=the changed configuration is in force");
    let told = process.lines();
    let at = |part: &str| told.iter().position(|line| line.contains(part)).unwrap();
    assert!(at("READY=1 STATUS=test-box") < at("RELOADING=1"), "{told:?}");
    process.signal("TERM");
    assert!(process.ends_within(PATIENCE).status.success());
}

#[test]
fn a_bad_configuration_ends_with_78_which_is_not_started_again() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("gateway.toml"), head(folder.path()) + "[source.x.mllp]\nlisten = 7\n").unwrap();
    let ours = crate::support::process::wardgate();
    let mut manager = manager(folder.path(), &[]);
    manager.arg(ours.get_program()).args(["run", "--config"]).arg(folder.path().join("gateway.toml"));
    let ended = Process::start(&mut manager).ends_within(PATIENCE);
    assert!(ended.said.contains("ended 78") && !ended.said.contains("READY=1"), "{}", ended.said);
    let unit = std::fs::read_to_string(repository().join("systemd/wardgate.service")).unwrap();
    assert!(unit.contains("\nRestartPreventExitStatus=78 243\n"));
}

#[test]
fn the_watchdog_is_fed_while_all_stages_move_and_not_while_the_disk_hangs() {
    let folder = tempfile::tempdir().unwrap();
    let at = free_address();
    let manager = manager(folder.path(), &["--watchdog", WATCHDOG]);
    let gateway = Gateway::start_under(manager, folder.path(), &listening_at(at));
    eventually("the watchdog is fed", || heard(&gateway, "WATCHDOG=1") > 2);
    let started = gateway.process.lines().iter().find_map(|line| line.strip_prefix("started ").map(str::to_owned));
    // From here on each sync takes an hour.
    let mut hang = system("strace");
    hang.args(["-f", "-p", &started.unwrap(), "-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_enter=3600s"]);
    let mut hang = Process::start(&mut hang);
    hang.line_with("attached");
    let device = std::thread::spawn(move || Device::connect(at).exchange(&message("HANGS")));
    let said = eventually_some("it is said which stage stands still", || {
        gateway.process.lines().into_iter().find(|line| line.contains("stands still"))
    });
    assert!(said.contains("the spool's writer of clinical"), "{said}");
    let fed = heard(&gateway, "WATCHDOG=1");
    let running = || gateway.status()["running-s"].as_u64().unwrap();
    let now = running();
    eventually("so much time goes by that it would have been fed", || running() > now + 4);
    assert_eq!(heard(&gateway, "WATCHDOG=1"), fed, "and nothing is fed");
    // The disk comes back: the message is answered, and all is well.
    drop(hang);
    assert!(acknowledged(&device.join().unwrap().unwrap()));
    eventually("the watchdog is fed again", || heard(&gateway, "WATCHDOG=1") > fed);
    gateway.stop();
}
