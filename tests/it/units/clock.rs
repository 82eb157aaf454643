//! A box whose clock is wrong: it takes, keeps, marks and sends, and says that its clock can't be right.

use std::process::Command;

use crate::gateway::monitors_to_engine;
use crate::support::gateway::Gateway;
use crate::support::mllp::{Device, Engine, message};
use crate::support::wait::eventually;

#[test]
fn with_a_clock_of_1970_or_2099_messages_are_taken_and_sent_and_an_alarm_says_so() {
    for (now, said) in [("1970-01-02 00:00:00", "long past"), ("2099-01-01 00:00:00", "far ahead")] {
        let folder = tempfile::tempdir().unwrap();
        let engine = Engine::up();
        let mut wrapper = Command::new("faketime");
        wrapper.args(["--exclude-monotonic", "-f", &format!("@{now}")]);
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
