//! `wait-for-tpm`: a TPM that comes up late is waited for when the root key needs it, and only then.
//!
//! The firmware and the device are files here; with a TPM and systemd it is tried on the box in QEMU (`tests/appliance/boot`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::process::{Process, run};
use crate::support::tools::repository;
use crate::support::wait::PATIENCE;

/// What systemd-creds writes begins with one of these: sealed to the host key alone, and to TPM and host key.
const TO_HOST: &str = "Whxqht+dQJax1aZeCGLxmiAAAAABAAAADAAAABAAAAA";
const TO_TPM: &str = "k6iUCUh0RJCQyvL8k8q1UwAAAAABAAAADAAAABAAAAA";

/// A box that starts: its firmware names nothing, and there is no key yet.
struct Starting {
    folder: tempfile::TempDir,
}

impl Starting {
    fn new() -> Self {
        let starting = Self { folder: tempfile::tempdir().unwrap() };
        fs::create_dir_all(starting.tree()).unwrap();
        fs::create_dir(starting.path("keys")).unwrap();
        starting
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn tree(&self) -> PathBuf {
        self.path("firmware/devicetree/base")
    }

    /// A device on SPI in the device tree, as the kernel shows it: words that end with a zero byte.
    fn names_in_device_tree(&self, compatible: &str, status: Option<&str>) -> &Self {
        let node = self.tree().join("soc/spi@7e204000/device@1");
        fs::create_dir_all(&node).unwrap();
        fs::write(node.join("compatible"), format!("{compatible}\0")).unwrap();
        if let Some(status) = status {
            fs::write(node.join("status"), format!("{status}\0")).unwrap();
        }
        self
    }

    fn has_key(&self, sealed: &str) -> &Self {
        fs::write(self.path("keys/spool-key.cred"), sealed).unwrap();
        self
    }

    fn waits(&self, patience_s: &str) -> Command {
        let mut wait = Command::new(repository().join("systemd/wait-for-tpm"));
        wait.env("WARDGATE_KEYS", self.path("keys")).env("WARDGATE_TPM", self.path("tpmrm0"));
        wait.env("WARDGATE_FIRMWARE", self.path("firmware")).env("WARDGATE_PATIENCE_S", patience_s);
        wait
    }

    /// What it says when nothing comes up.
    fn said(&self, patience_s: &str) -> String {
        let ended = run(&mut self.waits(patience_s));
        assert!(ended.status.success(), "the start goes on in any case: {}", ended.said);
        ended.said
    }
}

fn comes_up(tpm: &Path) {
    fs::write(tpm, "").unwrap();
}

#[test]
fn a_box_without_a_tpm_does_not_wait() {
    assert_eq!(Starting::new().said("600"), "");
    assert_eq!(Starting::new().names_in_device_tree("brcm,bcm2835-spi", None).said("600"), "");
    assert_eq!(Starting::new().names_in_device_tree("infineon,slb9670", Some("disabled")).said("600"), "");
}

#[test]
fn a_key_that_is_sealed_to_the_host_alone_needs_no_tpm() {
    let starting = Starting::new();
    assert_eq!(starting.names_in_device_tree("infineon,slb9670", None).has_key(TO_HOST).said("600"), "");
}

#[test]
fn a_tpm_that_the_firmware_names_is_waited_for_before_the_key_is_made() {
    for status in [None, Some("okay")] {
        let starting = Starting::new();
        starting.names_in_device_tree("infineon,slb9670\0tcg,tpm_tis-spi", status);
        let mut waiting = Process::start(&mut starting.waits("600"));
        waiting.line_with("waiting for the TPM");
        comes_up(&starting.path("tpmrm0"));
        let ended = waiting.ends_within(PATIENCE);
        assert!(ended.status.success() && ended.said.contains("the TPM is there"), "{}", ended.said);
    }
}

#[test]
fn a_tpm_that_never_comes_up_is_said_aloud_and_the_start_goes_on() {
    let starting = Starting::new();
    fs::create_dir_all(starting.path("firmware/acpi/tables")).unwrap();
    fs::write(starting.path("firmware/acpi/tables/TPM2"), "").unwrap();
    let said = starting.said("1");
    assert!(said.contains("<3>the firmware says that there is a TPM 2.0, but it did not come up within 1 s"), "{said}");
    let said = Starting::new().has_key(TO_TPM).said("1");
    assert!(said.contains("<2>the root key of the spool is sealed to a TPM, and none came up within 1 s"), "{said}");
}
