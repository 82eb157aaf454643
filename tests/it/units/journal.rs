//! What reaches the journal: priorities, our fields, and the numbers by which a monitoring system knows an event.

use std::net::TcpListener;
use std::time::Duration;

use serde_json::Value;

use crate::gateway::monitors_to_engine;
use crate::support::gateway::head;
use crate::support::mllp::Engine;
use crate::support::process::{Process, wardgate};
use crate::support::tools::{repository, system};

/// The service looks at its alarms every five seconds.
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn an_alarm_is_in_the_journal_with_its_number_its_priority_and_what_it_is_about() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("127.0.0.1:{}", taken.local_addr().unwrap().port());
    let config = head(folder.path()) + &monitors_to_engine(Engine::down().port).replace("127.0.0.1:0", &listen);
    let file = folder.path().join("gateway.toml");
    std::fs::write(&file, config).unwrap();
    let mut alone = if nix::unistd::geteuid().is_root() { system("unshare") } else { system("sudo") };
    if !nix::unistd::geteuid().is_root() {
        alone.args(["-n", "unshare"]);
    }
    alone.args(["--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]);
    alone.arg(repository().join("tests/it/units/journal.sh")).arg("WARDGATE_ALARM=source-down");
    alone.arg(wardgate().get_program()).args(["run", "--config"]).arg(&file);
    let ended = Process::start(&mut alone).ends_within(LIMIT);
    let entries: Vec<Value> = ended.said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let with = |field: &str, value: &str| entries.iter().find(|entry| entry[field] == value).cloned();
    let alarm = with("WARDGATE_ALARM", "source-down").unwrap_or_else(|| panic!("{}", ended.said));
    let document = std::fs::read_to_string(repository().join("docs/appliance.md")).unwrap();
    let row = document.lines().find(|line| line.starts_with("| `source-down` |")).unwrap();
    assert!(row.contains(alarm["MESSAGE_ID"].as_str().unwrap()), "{alarm} is not in {row}");
    assert_eq!((&alarm["PRIORITY"], &alarm["WARDGATE_ABOUT"]), (&"4".into(), &"monitors".into()));
    assert_eq!(alarm["SYSLOG_IDENTIFIER"], "wardgate");
    let other = with("WARDGATE_SOURCE", "monitors").unwrap_or_else(|| panic!("{}", ended.said));
    assert_eq!((&other["PRIORITY"], &other["WARDGATE_PROTOCOL"]), (&"3".into(), &"mllp".into()));
}
