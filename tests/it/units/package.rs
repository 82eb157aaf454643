//! The Debian package: made from the executable of this build, installed, started, upgraded, removed and purged on a copy of this
//! system that nobody sees (`package.sh`).

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::process::{Process, run, succeeds, wardgate};
use crate::support::tools::{repository, system};

/// It unpacks and reads a debug build several times.
const LIMIT: Duration = Duration::from_secs(400);

fn making(folder: &Path, arch: &str) -> Command {
    let mut make = Command::new(repository().join("debian/package"));
    make.args(["--fast", "--arch", arch, "--executable"]).arg(wardgate().get_program()).arg("--out").arg(folder);
    make
}

/// The package of this build, for this machine.
fn package(folder: &Path) -> String {
    let native = succeeds(Command::new("dpkg").arg("--print-architecture"));
    let told = ends_well(&mut making(folder, native.trim()));
    let package = told.lines().last().unwrap().to_owned();
    assert!(package.ends_with(&format!("/wardgate_{}_{}.deb", env!("CARGO_PKG_VERSION"), native.trim())), "{package}");
    package
}

/// As `succeeds`, with time to read a debug build on a busy machine.
fn ends_well(command: &mut Command) -> String {
    let ended = Process::start(command).ends_within(LIMIT);
    assert!(ended.status.success(), "{}", ended.said);
    ended.said
}

#[test]
fn it_installs_runs_upgrades_and_goes_without_a_trace() {
    let folder = tempfile::tempdir().unwrap();
    let package = package(folder.path());
    let place = folder.path().join("system");
    std::fs::create_dir(&place).unwrap();
    let mut alone = if nix::unistd::geteuid().is_root() { system("unshare") } else { system("sudo") };
    if !nix::unistd::geteuid().is_root() {
        alone.args(["-n", "unshare"]);
    }
    alone.args(["--mount", "--pid", "--fork", "--kill-child"]);
    alone.arg(repository().join("tests/it/units/package.sh")).arg(package).arg(&place);
    let said = ends_well(&mut alone);
    assert!(said.contains("holds: nothing is left behind"), "{said}");
}

#[test]
fn an_executable_for_another_machine_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let other = if cfg!(target_arch = "aarch64") { "amd64" } else { "arm64" };
    let ended = run(&mut making(folder.path(), other));
    assert!(!ended.status.success());
    assert!(ended.said.contains(&format!("not for {other}")), "{}", ended.said);
}

#[test]
fn lintian_finds_nothing_that_has_no_reason() {
    let folder = tempfile::tempdir().unwrap();
    let package = package(folder.path());
    // The package of a test is not compressed.
    let mut lintian = system("lintian");
    lintian.args(["--allow-root", "--fail-on", "error,warning", "--suppress-tags"]);
    lintian.arg("uses-no-compression-for-control-tarball,uses-no-compression-for-data-tarball");
    ends_well(lintian.arg(package));
}
