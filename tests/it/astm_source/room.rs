//! No room, no configuration, no sense: what an analyser and an operator are told then, and that nothing of it lasts.

use std::fs;

use wardgate::wire::astm::{ACK, EOT, NAK};

use super::device::Analyser;
use super::{all_arrived, arrived, lab_to_folder};
use crate::support::gateway::{Gateway, head};
use crate::support::process::{run, wardgate};
use crate::support::wait::eventually;

/// Text of one frame, which fills the log soon.
const COMMENT_BYTES: usize = 60_000;
/// More messages of that size than a small quota can hold, each with its frames.
const TOO_MANY: usize = 1500;

fn records(number: usize) -> [String; 3] {
    [format!("H|\\^&|{number}\r"), format!("C|1|I|{}\r", "x".repeat(COMMENT_BYTES)), format!("L|{number}|N\r")]
}

/// Sends a message; false when one of its frames was refused.
fn is_taken(line: &mut Analyser, number: usize) -> bool {
    assert_eq!(line.enquire().unwrap(), ACK);
    let taken = (1..).zip(records(number)).all(|(at, record)| match line.frame(at, &record).unwrap() {
        ACK => true,
        NAK => false,
        other => panic!("{other:#04x} is no answer to a frame"),
    });
    line.send(&[EOT]).unwrap();
    taken
}

#[test]
fn a_full_log_is_told_to_the_analyser_frame_by_frame_and_intake_comes_back_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let config = lab_to_folder(folder.path()).replace("unsealed = true", "marker = \".mounted\"\nunsealed = true");
    let config = config.replace("[upstream", "max-message-size = \"128KiB\"\n[upstream");
    let config = format!("[spool.clinical]\nquota = \"64MiB\"\n{config}");
    let gateway = Gateway::start(folder.path(), &config);
    let mut line = Analyser::dial(gateway.endpoint("lab")).unwrap();
    let taken = (0..TOO_MANY).take_while(|number| is_taken(&mut line, *number)).count();
    assert!((100..TOO_MANY).contains(&taken), "{taken}");
    assert!(!is_taken(&mut line, taken), "again, over the same connection");
    // It stays, though the beginning of a message that was broken off is shorter and was stored.
    let full = || gateway.alarms().iter().any(|(code, _)| code == "spool-full");
    eventually("the alarm is raised", full);
    fs::write(folder.path().join("results/.mounted"), "").unwrap();
    eventually("intake comes back by itself", || is_taken(&mut line, taken));
    let all = all_arrived(&gateway, folder.path(), taken + 1);
    for number in 0..=taken {
        let whole = records(number).concat();
        assert_eq!(all.iter().filter(|text| **text == whole).count(), 1, "message {number} of {taken}");
    }
    eventually("the alarm is over", || !full());
}

#[test]
fn frames_of_an_analyser_that_is_configured_no_more_are_an_alarm_until_it_is_there_again() {
    let folder = tempfile::tempdir().unwrap();
    let config = lab_to_folder(folder.path());
    let gateway = Gateway::start(folder.path(), &config);
    let mut line = Analyser::dial(gateway.endpoint("lab")).unwrap();
    assert_eq!(line.enquire().unwrap(), ACK);
    assert_eq!(line.frame(1, "H|\\^&|1\r").unwrap(), ACK);
    gateway.process.kill();
    let gateway = Gateway::start(folder.path(), &config.replace("[source.lab.astm]", "[source.lab.mllp]"));
    let orphaned = |gateway: &Gateway| {
        let alarms = gateway.alarms();
        alarms.iter().any(|(code, text)| code == "orphaned-lane" && text.contains("[source.lab.astm]"))
    };
    assert!(orphaned(&gateway), "{:?}", gateway.alarms());
    assert_eq!(gateway.reload(&config), None);
    eventually("the alarm is over", || !orphaned(&gateway));
    // A stop ends what nobody goes on with.
    gateway.stop();
    let gateway = Gateway::again(folder.path());
    assert_eq!(all_arrived(&gateway, folder.path(), 1), ["H|\\^&|1\r"]);
    assert_eq!(arrived(folder.path()).len(), 1);
}

#[test]
fn check_tells_a_log_that_one_message_can_fill_and_a_receiver_that_speaks_another_language() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("checked.toml");
    let told = |rest: &str| {
        fs::write(&file, head(folder.path()) + rest).unwrap();
        run(wardgate().arg("check").arg(&file)).said
    };
    let config = lab_to_folder(folder.path());
    let small = format!("[spool.clinical]\nquota = \"64MiB\"\n{config}");
    let said = told(&small);
    assert!(said.contains("smaller max-message-size") && said.contains("quota = \"95MiB\" or more"), "{said}");
    for enough in
        [small.replace("64MiB", "95MiB"), small.replace("[upstream", "max-message-size = \"1MiB\"\n[upstream")]
    {
        let said = told(&enough);
        assert!(!said.contains("max-message-size"), "{said}");
    }
    let engine = "[upstream.engine.mllp]\naddress = \"127.0.0.1:2575\"\nplain = true\n";
    let said = told(&format!("{config}{engine}").replace("[\"folder\"]", "[\"folder\", \"engine\"]"));
    assert!(
        said.contains("is ASTM") && said.contains("route \"lab\" to an https, mqtt or directory upstream"),
        "{said}"
    );
}
