//! SIGTERM, and what is there afterwards.

use std::time::{Duration, Instant};

use super::monitors_to_engine;
use crate::support::gateway::Gateway;
use crate::support::mllp::{Device, Engine, message};
use crate::support::process::{Process, run, wardgate};
use crate::support::wait::eventually;

/// The deadline that the service names for itself, and a slow machine.
const DRAINS_WITHIN: Duration = Duration::from_secs(15);

#[test]
fn sigterm_ends_the_service_in_time_and_what_was_acknowledged_is_there_after_the_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut receiver = Engine::down();
    let gateway = Gateway::start(folder.path(), &monitors_to_engine(receiver.port));
    let at = gateway.endpoint("monitors");
    // Devices that send as fast as they are answered, right into the stop.
    let devices: Vec<_> = (0..4)
        .map(|number| {
            std::thread::spawn(move || {
                let mut device = Device::connect(at);
                let ids = (0..).map(|message| format!("D{number}-{message}"));
                ids.take_while(|id| device.exchange(&message(id)).is_ok()).collect::<Vec<String>>()
            })
        })
        .collect();
    eventually("messages wait", || gateway.backlog() > 100);
    let since = Instant::now();
    let said = gateway.stop();
    assert!(since.elapsed() < DRAINS_WITHIN && said.contains("stopped"), "{said}");
    let acknowledged: Vec<Vec<String>> = devices.into_iter().map(|device| device.join().unwrap()).collect();

    receiver.restore();
    let gateway = Gateway::again(folder.path());
    let count: usize = acknowledged.iter().map(Vec::len).sum();
    eventually("the backlog is drained", || gateway.backlog() == 0 && receiver.count() >= count);
    let (arrived, _) = receiver.first_arrivals();
    for (number, expected) in acknowledged.iter().enumerate() {
        let prefix = format!("D{number}-");
        let own: Vec<&String> = arrived.iter().filter(|id| id.starts_with(&prefix)).collect();
        // The very last one may have been stored when its device was gone already.
        assert!(own.len() >= expected.len() && own.iter().zip(expected).all(|(a, b)| *a == b), "{prefix}: {own:?}");
    }
}

#[test]
fn a_stop_while_the_upstream_takes_its_time_waits_for_the_receipt() {
    let (folder, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut slow = crate::support::tools::python_peer("mllp_server.py");
    let mut server = Process::start(slow.args(["--delay", "0.5"]).arg("--store").arg(store.path()));
    let config = monitors_to_engine(server.listening().port());
    let gateway = Gateway::start(folder.path(), &config);
    assert_eq!(Device::connect(gateway.endpoint("monitors")).send(&message("1")), "AA");
    let order = || std::fs::read_to_string(store.path().join("order")).unwrap();
    eventually("the engine has it", || !order().is_empty());
    gateway.stop();
    let gateway = Gateway::again(folder.path());
    assert_eq!((gateway.backlog(), order().lines().count()), (0, 1), "the receipt was waited for: no second copy");
}

#[test]
fn a_second_copy_of_the_service_says_who_has_the_spool() {
    let folder = tempfile::tempdir().unwrap();
    let receiver = Engine::up();
    let gateway = Gateway::start(folder.path(), &monitors_to_engine(receiver.port));
    let config = folder.path().join("gateway.toml");
    let ended = run(wardgate().arg("run").arg("--config").arg(&config));
    assert_eq!(ended.status.code(), Some(69), "{}", ended.said);

    // The same spool under another control socket: the lock of the folder speaks.
    let text = std::fs::read_to_string(&config).unwrap().replace("control.sock", "other.sock");
    std::fs::write(folder.path().join("other.toml"), text).unwrap();
    let ended = run(wardgate().arg("run").arg("--config").arg(folder.path().join("other.toml")));
    let holder = format!("in use by process {}", gateway.process.pid());
    assert!(ended.status.code() == Some(69) && ended.said.contains(&holder), "{}", ended.said);
    assert_eq!(Device::connect(gateway.endpoint("monitors")).send(&message("1")), "AA");
}
