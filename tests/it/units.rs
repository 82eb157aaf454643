//! What lies around the executable on a box: systemd's units, their sandbox, the firewall's example, the Debian package.
//!
//! Offline and without systemd as process 1: systemd's own tools read the files. Whether the units start is seen on the box in QEMU
//! (`tests/appliance`).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::process::{run, succeeds, wardgate};
use crate::support::tools::{repository, system};

mod clock;
mod failure;
mod journal;
mod manager;
mod package;
mod tpm;

/// What systemd 252 (Debian 12) says of directives that are newer, and how it goes on. Nothing else may be said.
const NEWER_THAN_252: [&str; 6] = [
    "Failed to parse service type, ignoring: notify-reload",
    "Unknown key 'RestartSteps' in section [Service], ignoring.",
    "Unknown key 'RestartMaxDelaySec' in section [Service], ignoring.",
    "Unknown key 'RestartMode' in section [Service], ignoring.",
    "Unknown key 'FileDescriptorStorePreserve' in section [Service], ignoring.",
    "Unknown key 'ImportCredential' in section [Service], ignoring.",
];
/// Ten times what `systemd-analyze security` may find at most.
const EXPOSURE_MAX: &str = "--threshold=12";

fn units() -> PathBuf {
    repository().join("systemd")
}

fn files_in(folder: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let wanted = |path: &PathBuf| path.extension().is_some_and(|found| extensions.iter().any(|known| *known == found));
    let mut found: Vec<PathBuf> = files.filter(wanted).collect();
    found.sort();
    found
}

/// The units in a folder of their own, with the programs that they start where they lie in this repository.
fn units_with_our_programs(folder: &Path) -> Vec<PathBuf> {
    let scripts = format!("{}/", units().display());
    let executable = wardgate().get_program().to_str().unwrap().to_owned();
    let copied = files_in(&units(), &["service", "socket"]).into_iter().map(|unit| {
        let text = fs::read_to_string(&unit).unwrap();
        let text = text.replace("/usr/bin/wardgate", &executable).replace("/usr/lib/wardgate/", &scripts);
        let copy = folder.join(unit.file_name().unwrap());
        fs::write(&copy, text).unwrap();
        copy
    });
    copied.collect()
}

#[test]
fn systemd_understands_every_unit_but_for_what_is_newer_than_it() {
    let folder = tempfile::tempdir().unwrap();
    let said = run(system("systemd-analyze").arg("verify").args(units_with_our_programs(folder.path()))).said;
    let known = |line: &&str| !NEWER_THAN_252.iter().any(|known| line.ends_with(known));
    // Other units of this machine are read as well; their faults are not ours.
    let ours = said.lines().filter(|line| line.contains("wardgate")).filter(known);
    assert_eq!(ours.collect::<Vec<_>>(), Vec::<&str>::new());
    // And it says something when there is something to say.
    let wrong = folder.path().join("wardgate-wrong.service");
    fs::write(&wrong, "[Service]\nExecStart=/bin/true\nWardgate=1\n").unwrap();
    let said = run(system("systemd-analyze").arg("verify").arg(&wrong)).said;
    assert!(said.contains("wardgate-wrong.service"), "{said}");
}

#[test]
fn the_sandbox_of_the_service_leaves_at_most_1_2() {
    for unit in ["wardgate.service", "wardgate-failed.service", "wardgate-tpm.service"] {
        let mut analyze = system("systemd-analyze");
        succeeds(analyze.args(["security", "--offline=true", EXPOSURE_MAX]).arg(units().join(unit)));
    }
}

#[test]
fn the_threshold_of_the_sandbox_test_is_one_that_can_be_missed() {
    let folder = tempfile::tempdir().unwrap();
    let unit = folder.path().join("wardgate.service");
    let text = fs::read_to_string(units().join("wardgate.service")).unwrap();
    fs::write(&unit, text.replace("PrivateDevices=yes\n", "").replace("PrivateUsers=yes\n", "")).unwrap();
    let found = run(system("systemd-analyze").args(["security", "--offline=true", EXPOSURE_MAX]).arg(unit));
    assert!(!found.status.success(), "{}", found.said);
}

#[test]
fn the_example_of_a_firewall_is_one_that_nftables_takes() {
    // In a network of its own: even a check reads what is in force.
    let mut check = system("unshare");
    check.args(["--map-root-user", "--net", "nft", "--check", "--file"]).arg(units().join("examples/wardgate.nft"));
    succeeds(&mut check);
}

#[test]
fn the_scripts_that_root_runs_have_no_slip_of_the_pen() {
    for script in [
        "systemd/close-ports",
        "systemd/make-key",
        "systemd/wait-for-tpm",
        "systemd/report-failure",
        "debian/scripts/postinst",
        "debian/scripts/postrm",
    ] {
        succeeds(Command::new("sh").arg("-n").arg(repository().join(script)));
    }
}

/// systemd looks a kind of device up when the unit starts: one whose driver is not loaded yet would stay closed for good.
#[test]
fn a_serial_adapter_that_is_plugged_in_later_is_not_closed_to_the_service() {
    let text = fs::read_to_string(units().join("examples/serial-devices.conf")).unwrap();
    for (group, driver) in [("char-ttyUSB", "usbserial"), ("char-ttyACM", "cdc_acm")] {
        assert!(text.contains(&format!("\nDeviceAllow={group} rw\n")));
        for key in ["Wants", "After"] {
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("{key}="))).unwrap_or("");
            assert!(line.contains(&format!("modprobe@{driver}.service")), "{key} of {group}: {line}");
        }
    }
}

/// Each socket unit holds the address that its head names for a `listen`, and none is enabled by the preset.
#[test]
fn no_port_is_open_that_nobody_asked_for() {
    let preset = fs::read_to_string(units().join("system-preset/80-wardgate.preset")).unwrap();
    let enabled: Vec<&str> = preset.lines().filter_map(|line| line.strip_prefix("enable ")).collect();
    assert_eq!(enabled, ["wardgate.service"]);
    let mut ports = BTreeSet::new();
    for socket in files_in(&units(), &["socket"]) {
        let text = fs::read_to_string(&socket).unwrap();
        let address = text.lines().find_map(|line| line.strip_prefix("ListenStream=")).unwrap();
        ports.insert(address.strip_prefix("0.0.0.0:").unwrap().parse::<u16>().unwrap());
        assert!(text.contains("\nService=wardgate.service\n"), "{}", socket.display());
    }
    assert_eq!(ports, BTreeSet::from([104, 1883, 2575, 8883]));
}
