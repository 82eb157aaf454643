//! A box whose clock is wrong: it takes, keeps, marks and sends, and says that its clock can't be right.

use std::path::Path;
use std::process::Command;

use crate::gateway::monitors_to_engine;
use crate::support::gateway::Gateway;
use crate::support::mllp::{Device, Engine, message};
use crate::support::process::succeeds;
use crate::support::wait::eventually;

#[test]
fn with_a_clock_of_1970_or_2099_messages_are_taken_and_sent_and_an_alarm_says_so() {
    let files = succeeds(Command::new("dpkg").args(["--listfiles", "libfaketime"]));
    // The program "faketime" stays beside what it starts, and would take its signals.
    let library = files.lines().map(Path::new).find(|file| file.ends_with("libfaketimeMT.so.1")).unwrap();
    for (now, said) in [("1970-01-02 00:00:00", "long past"), ("2099-01-01 00:00:00", "far ahead")] {
        let folder = tempfile::tempdir().unwrap();
        let engine = Engine::up();
        let mut wrapper = Command::new("env");
        wrapper.arg(format!("LD_PRELOAD={}", library.display())).arg(format!("FAKETIME=@{now}"));
        wrapper.arg("FAKETIME_DONT_FAKE_MONOTONIC=1");
        let gateway = Gateway::start_under(wrapper, folder.path(), &monitors_to_engine(engine.port));
        let at = gateway.endpoint("monitors");
        let answer = Device::connect(at).send(&message("WRONG-CLOCK"));
        assert_eq!(answer, "AA", "{now}");
        eventually("it is delivered", || engine.has(&message("WRONG-CLOCK")));
        let alarms = gateway.alarms();
        let alarm = alarms.iter().find(|(code, _)| code == "clock");
        assert!(alarm.is_some_and(|(_, text)| text.contains(said)), "{now}: {alarms:?}");
        assert!(gateway.status()["since"].as_str().unwrap().starts_with(&now[..4]), "the box is at that time");
        assert!(gateway.stop().contains("alarm: clock (clock)"));
    }
}
