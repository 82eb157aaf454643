//! Programs that are not ours: the peers under `tests/it/peers`, and what `tests/setup` installed for them.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The repository's folder.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The Python packages that `tests/setup` installed.
#[track_caller]
pub fn venv() -> PathBuf {
    installed("venv")
}

/// One of our Python peers, run with the packages that `tests/setup` installed.
#[track_caller]
pub fn python_peer(script: &str) -> Command {
    let python = installed("venv/bin/python");
    let mut command = Command::new(python);
    command.arg("-u").arg(peer(script));
    command
}

/// One of our JavaScript peers; it finds its packages under `tests/.peers`.
#[track_caller]
pub fn node_peer(script: &str) -> Command {
    let modules = installed("node_modules");
    let mut command = Command::new("node");
    command.arg(peer(script)).env("PEERS", modules);
    command
}

/// A program of the system; Debian keeps some where users don't look.
pub fn system(program: &str) -> Command {
    let mut command = Command::new(program);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

/// A command that becomes the program that follows, to which `fault` happens in calls on files that have one of these names, as the kernel
/// writes them: `fdatasync:error=EIO` (strace, `--inject`).
pub fn with_faults(fault: &str, names: &[PathBuf]) -> Command {
    // Our service lets nobody see its open files but root, be it the one of a user namespace.
    let mut strace = match nix::unistd::geteuid().is_root() {
        true => system("strace"),
        false => {
            let mut unshare = system("unshare");
            unshare.args(["--map-root-user", "strace"]);
            unshare
        }
    };
    // -D: the program is our child and the tracer is not, so that signals reach the program.
    let calls = fault.split(':').next().unwrap_or_default();
    strace.args(["-D", "-f", "-qq", "-o", "/dev/null"]);
    strace.args(["-e", &format!("trace={calls}"), "-e", &format!("inject={fault}")]);
    for name in names {
        strace.arg("-P").arg(name);
    }
    strace
}

fn peer(script: &str) -> PathBuf {
    repository().join("tests/it/peers").join(script)
}

#[track_caller]
fn installed(part: &str) -> PathBuf {
    let path = repository().join("tests/.peers").join(part);
    assert!(path.exists(), "{} is missing: run tests/setup", path.display());
    path
}
