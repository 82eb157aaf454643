//! What happens when the service fails: what is said, and which ports stay open. systemd is a script here.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::support::process::succeeds;
use crate::support::tools::repository;

/// A `systemctl` that answers `show` and writes down what it is asked to do.
fn systemctl(folder: &Path, active_state: &str) {
    let script = format!(
        r#"#!/bin/sh
case "$*" in
    "show --property=ActiveState --value wardgate.service") echo {active_state} ;;
    "show --property=TriggeredBy --value wardgate.service") echo wardgate-dicom.socket site.timer site-mllp.socket ;;
    *) echo "$*" >>{}/asked ;;
esac
"#,
        folder.display()
    );
    let file = folder.join("systemctl");
    fs::write(&file, script).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
}

/// One of our scripts, with that `systemctl` before the real one.
fn script(name: &str, folder: &Path) -> Command {
    let mut script = Command::new(repository().join("systemd").join(name));
    script.env("PATH", format!("{}:{}", folder.display(), std::env::var("PATH").unwrap()));
    script
}

fn reported(status: &str, active_state: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    systemctl(folder.path(), active_state);
    let mut report = script("report-failure", folder.path());
    report.env("MONITOR_SERVICE_RESULT", "exit-code").env("MONITOR_EXIT_STATUS", status);
    succeeds(&mut report)
}

#[test]
fn an_alert_says_that_it_does_not_run_only_when_it_is_not_being_started_again() {
    for back in ["active", "activating", "reloading"] {
        assert_eq!(reported("101", back), "", "{back}");
    }
    for down in ["failed", "inactive", ""] {
        let said = reported("101", down);
        assert!(said.contains("<1>wardgate does not run (exit-code, exit status 101)"), "{down}: {said}");
    }
    for (status, what) in [("78", "its configuration or a key is wrong"), ("243", "a credential that its unit names")] {
        let said = reported(status, "failed");
        assert!(said.contains("<1>wardgate does not run") && said.contains(what), "{said}");
    }
}

/// What systemd is asked to stop after the service ended with `status`.
fn closed(status: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    systemctl(folder.path(), "deactivating");
    succeeds(script("close-ports", folder.path()).env("EXIT_STATUS", status));
    fs::read_to_string(folder.path().join("asked")).unwrap_or_default()
}

#[test]
fn a_service_that_waits_for_a_person_is_not_started_again_by_the_next_device() {
    let sockets = "stop --no-block wardgate-dicom.socket\nstop --no-block site-mllp.socket\n";
    assert_eq!(closed("78"), sockets);
    assert_eq!(closed("243"), sockets);
    for restarted in ["0", "1", "69", "101", "ABRT", "KILL", ""] {
        assert_eq!(closed(restarted), "", "after {restarted} it is started again, and devices wait");
    }
    let read = |unit: &str| fs::read_to_string(repository().join("systemd").join(unit)).unwrap();
    assert!(read("wardgate.service").contains("\nExecStopPost=-+/usr/lib/wardgate/close-ports\n"));
    for socket in ["dicom", "mllp", "mqtt", "mqtts"] {
        let comes_back = read(&format!("wardgate-{socket}.socket")).contains("\nWantedBy=wardgate.service\n");
        assert!(comes_back, "{socket}: a start of the service opens its port again");
    }
}

/// systemd 254 and later: else each crash would be reported as the end.
#[test]
fn a_restart_by_itself_is_no_failure_to_systemd() {
    let unit = fs::read_to_string(repository().join("systemd/wardgate.service")).unwrap();
    assert!(unit.contains("\nRestartMode=direct\n") && unit.contains("\nOnFailure=wardgate-failed.service\n"));
}
