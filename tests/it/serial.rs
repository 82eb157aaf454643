//! Devices on serial lines: the real service, socat's pseudo-terminals as cables, and pyserial as the device.
//!
//! A link in a folder stands for the socket of the box: it is there while socat runs. Parity and seven data bits can't be played: a
//! pseudo-terminal drops them. The flags that a real port is given for them are held by a test beside the code (`system/serial.rs`).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::gateway::Gateway;
use crate::support::process::{Process, succeeds, wardgate};
use crate::support::tools::{python_peer, system};
use crate::support::wait::{eventually, eventually_some};

/// From the moment that the cable is in to the first reading upstream, beside what the device itself needs.
const BACK_WITHIN: Duration = Duration::from_secs(2);

/// A cable between the box's socket and a device.
struct Cable {
    _socat: Process,
    device: PathBuf,
}

impl Cable {
    fn plug_in(folder: &Path, socket: &str) -> Self {
        let (port, device) = (port(folder, socket), folder.join(format!("device-{socket}")));
        fs::create_dir_all(port.parent().unwrap()).unwrap();
        let end = |link: &Path| format!("pty,raw,echo=0,link={}", link.display());
        let socat = Process::start(system("socat").args([end(&device), end(&port)]));
        eventually("the cable is in", || port.exists() && device.exists());
        Self { _socat: socat, device }
    }

    /// What a device says with these arguments.
    fn device(&self, arguments: &[&str]) -> Process {
        let mut device = Process::start(python_peer("serial_device.py").arg(&self.device).args(arguments));
        device.line_with("ready");
        device
    }

    /// The links go with socat; when it is killed they stay, as links that lead nowhere.
    fn unplug(self, folder: &Path, socket: &str) {
        self._socat.kill();
        fs::remove_file(port(folder, socket)).ok();
        fs::remove_file(&self.device).ok();
    }
}

fn port(folder: &Path, socket: &str) -> PathBuf {
    folder.join("dev/serial/by-path").join(socket)
}

fn oximeter(folder: &Path) -> String {
    let (port, out) = (port(folder, "usb-1"), folder.join("out"));
    fs::create_dir_all(&out).unwrap();
    format!(
        "[source.oximeter.serial]\nserial = {{ port = {port:?} }}\nprofile = \"nonin-ascii\"\nsilent-after = \"1s\"\n\
         [upstream.archive.directory]\npath = {out:?}\nunsealed = true\n\
         [[route]]\nfrom = [\"oximeter\"]\nto = [\"archive\"]\n"
    )
}

/// The records upstream, in no order.
fn records(folder: &Path) -> Vec<Value> {
    let files = fs::read_dir(folder.join("out")).unwrap().map(|entry| entry.unwrap().path());
    let read = |file: PathBuf| serde_json::from_slice::<Value>(&fs::read(file).ok()?).ok();
    files.filter_map(read).filter(|record| record["v"] == 1).collect()
}

fn values(folder: &Path) -> usize {
    records(folder).iter().filter(|record| record["observations"][0]["value"]["number"] == "098").count()
}

fn open_files(gateway: &Gateway) -> usize {
    fs::read_dir(format!("/proc/{}/fd", gateway.process.pid())).unwrap().count()
}

fn state(gateway: &Gateway) -> String {
    gateway.status()["sources"]["oximeter"]["plug"]["state"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_device_is_waited_for_read_and_taken_up_again_each_time_that_its_cable_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let gateway = Gateway::start(folder.path(), &oximeter(folder.path()));
    eventually("it waits for the port", || state(&gateway) == "missing");
    let mut files = 0;
    for round in 0..3 {
        let before = values(folder.path());
        let cable = Cable::plug_in(folder.path(), "usb-1");
        let plugged_in = Instant::now();
        eventually("the port is taken", || state(&gateway) == "plugged");
        assert!(plugged_in.elapsed() < BACK_WITHIN, "round {round}: {:?}", plugged_in.elapsed());
        let device = cable.device(&[]);
        eventually("readings arrive upstream", || values(folder.path()) > before + 2);
        drop(device);
        cable.unplug(folder.path(), "usb-1");
        eventually("it is seen to be unplugged", || state(&gateway) == "missing");
        let now = open_files(&gateway);
        assert!(round == 0 || now <= files + 2, "descriptors leak: {files} and now {now}");
        files = now;
    }
    eventually("all is upstream", || gateway.backlog() == 0);
    let of = |kind: &str| records(folder.path()).iter().filter(|record| record["events"][0]["kind"] == kind).count();
    assert_eq!((of("plugged"), of("unplugged")), (3, 4));
    let gaps = records(folder.path()).iter().filter(|record| record["gap"]["reason"] == "unplugged").count();
    assert_eq!(gaps, 3);
    let said = gateway.stop();
    assert!(!said.contains("SPO2"), "no bytes of a device in the log:\n{said}");
    // Four times, for more than one cause each: one line a minute, and the next says how many were left out.
    let lines = said.lines().filter(|line| line.contains("waiting for the device")).count();
    assert!((1..=1 + begun.elapsed().as_secs() / 60).contains(&(lines as u64)), "a flood:\n{said}");
}

#[test]
fn a_device_that_falls_silent_raises_an_alarm_and_one_that_speaks_again_clears_it() {
    let folder = tempfile::tempdir().unwrap();
    let cable = Cable::plug_in(folder.path(), "usb-1");
    let gateway = Gateway::start(folder.path(), &oximeter(folder.path()));
    let silent = || gateway.alarms().iter().any(|(code, _)| code == "silence");
    eventually("a device that never spoke is an alarm", silent);
    let device = cable.device(&[]);
    eventually("it speaks, and the alarm is gone", || !silent());
    drop(device);
    eventually("it is silent, and the alarm is back", silent);
    gateway.stop();
}

#[test]
fn ports_tells_who_uses_which_port_and_what_the_others_look_like() {
    let folder = tempfile::tempdir().unwrap();
    let (used, free) = (Cable::plug_in(folder.path(), "usb-1"), Cable::plug_in(folder.path(), "usb-2"));
    let gateway = Gateway::start(folder.path(), &oximeter(folder.path()));
    let _oximeter = used.device(&[]);
    let _other = free.device(&["--say", "01-Mar-26 12:00:02   97   120     50\\r\\n", "--every", "0.05"]);
    let root = folder.path().to_str().unwrap();
    let listed: Vec<Value> = eventually_some("the last bytes are told", || {
        let listed: Vec<Value> = serde_json::from_str(&gateway.ask(&["ports", "--json", "--root", root])).unwrap();
        (listed.len() == 2 && !listed[0]["plug"]["last-bytes"].as_str()?.is_empty()).then_some(listed)
    });
    assert_eq!((listed[0]["used-by"].as_str(), listed[1]["used-by"].as_str()), (Some("oximeter"), None));
    assert_eq!(listed[0]["plug"]["settings"], "9600 8N1");
    let identify = ["ports", "--identify", "--seconds", "1", "--root", root];
    let said = gateway.ask(&identify);
    assert!(said.contains("in use for") && said.contains("Nellcor N-595"), "{said}");
    gateway.stop();
    // The same without a service: both are free.
    let socket = folder.path().join("control.sock");
    let arguments = ["ports", "--identify", "--json", "--seconds", "1", "--root", root, "--socket"];
    let listed: Vec<Value> = serde_json::from_str(&succeeds(wardgate().args(arguments).arg(socket))).unwrap();
    assert!(listed[0]["heard"]["looks-like"].as_str().unwrap().contains("nonin-ascii"), "{listed:?}");
    assert_eq!(listed[0]["heard"]["settings"], "9600 8N1");
}

#[test]
fn two_sources_on_one_port_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let _cable = Cable::plug_in(folder.path(), "usb-1");
    let by_id = folder.path().join("by-id");
    std::os::unix::fs::symlink(fs::canonicalize(port(folder.path(), "usb-1")).unwrap(), &by_id).unwrap();
    let second = oximeter(folder.path()).replace(
        "[upstream",
        &format!("[source.other.serial]\nserial = {{ port = {by_id:?} }}\nprofile = \"csv\"\n[upstream"),
    );
    let text =
        crate::support::gateway::head(folder.path()) + &second.replace("[\"oximeter\"]", "[\"oximeter\", \"other\"]");
    let file = folder.path().join("gateway.toml");
    fs::write(&file, text).unwrap();
    let ended = crate::support::process::run(wardgate().arg("check").arg(&file));
    assert!(!ended.status.success() && ended.said.contains("has this port already"), "{}", ended.said);
}
