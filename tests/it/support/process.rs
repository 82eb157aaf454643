//! A child process that ends with the value that holds it, and whose words are kept for the message of a failing test.
//!
//! It is ended by its own process id, never by name.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::wait::{PATIENCE, holds_within};

/// Lines of output that are shown when a test fails.
const LINES_SHOWN: usize = 60;

/// A running child.
pub struct Process {
    name: String,
    child: Child,
    words: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
}

/// How a child ended and all that it said.
pub struct Ended {
    /// Its status.
    pub status: ExitStatus,
    /// Standard output and standard error, line by line as they came.
    pub said: String,
}

/// Our own executable: the one that cargo built together with the tests, or the program that `WARDGATE_EXECUTABLE` names. That
/// may be a script that starts an executable for another processor under emulation (tests/arm/run); it must become it by `exec`.
pub fn executable() -> PathBuf {
    std::env::var_os("WARDGATE_EXECUTABLE").map_or_else(|| env!("CARGO_BIN_EXE_wardgate").into(), PathBuf::from)
}

/// [`executable`], to be run in an environment without what would change its behaviour.
pub fn wardgate() -> Command {
    let mut command = Command::new(executable());
    command.env_remove("RUST_LOG").env_remove("CREDENTIALS_DIRECTORY").env_remove("NOTIFY_SOCKET");
    command
}

impl Process {
    /// Starts `command` with its output kept and nothing on its standard input.
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.unwrap_or_else(|error| panic!("{name} did not start ({error}); run tests/setup"));
        let words = Arc::<Mutex<Vec<String>>>::default();
        let readers = vec![
            keep_lines(child.stdout.take().unwrap(), Arc::clone(&words)),
            keep_lines(child.stderr.take().unwrap(), Arc::clone(&words)),
        ];
        Self { name, child, words, readers }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All lines so far, standard output and standard error together.
    pub fn lines(&self) -> Vec<String> {
        self.words.lock().unwrap().clone()
    }

    /// The last lines that it said, for a failure message.
    pub fn said(&self) -> String {
        let lines = self.lines();
        lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n")
    }

    /// Waits for a line that contains `part` and returns it; fails the test when the child ends first or takes too long.
    #[track_caller]
    pub fn line_with(&mut self, part: &str) -> String {
        let mut found = None;
        let mut ended = false;
        holds_within(PATIENCE, || {
            // In this order: what it said before it ended is still found.
            ended = self.has_ended();
            found = self.lines().into_iter().find(|line| line.contains(part));
            found.is_some() || ended
        });
        let state = if ended { "ended" } else { "is running" };
        found.unwrap_or_else(|| panic!("{} ({state}) never said \"{part}\"; it said:\n{}", self.name, self.said()))
    }

    /// Waits for `listening 127.0.0.1:PORT`, the line that all our peers print, and returns the address.
    #[track_caller]
    pub fn listening(&mut self) -> SocketAddr {
        let line = self.line_with("listening ");
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Sends a signal by number-less name: `"TERM"`, `"HUP"`, `"STOP"`, `"CONT"`, `"KILL"`.
    #[track_caller]
    pub fn signal(&self, name: &str) {
        let signal: nix::sys::signal::Signal = format!("SIG{name}").parse().unwrap();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.pid()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// Waits until it ends by itself; fails the test after `limit`.
    #[track_caller]
    pub fn ends_within(mut self, limit: Duration) -> Ended {
        let ended = holds_within(limit, || self.has_ended());
        assert!(ended, "{} still runs after {limit:?}; it said:\n{}", self.name, self.said());
        self.collect()
    }

    /// Kills it as a power cut would, and waits until it is gone.
    pub fn kill(mut self) -> Ended {
        self.child.kill().unwrap();
        self.collect()
    }

    fn collect(&mut self) -> Ended {
        let status = self.child.wait().unwrap();
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        Ended { status, said: self.lines().join("\n") }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to kill.
        let _gone = self.child.kill();
        let _status = self.child.wait();
        if std::thread::panicking() && !self.readers.is_empty() {
            eprintln!("--- {} said:\n{}\n---", self.name, self.said());
        }
    }
}

/// Runs `command` to its end and fails the test when that takes longer than [`PATIENCE`].
#[track_caller]
pub fn run(command: &mut Command) -> Ended {
    Process::start(command).ends_within(PATIENCE)
}

/// Runs `command` and fails the test when it does not succeed; returns what it said.
#[track_caller]
pub fn succeeds(command: &mut Command) -> String {
    let ended = run(command);
    assert!(ended.status.success(), "{command:?}: {}; it said:\n{}", ended.status, ended.said);
    ended.said
}

fn keep_lines(stream: impl Read + Send + 'static, words: Arc<Mutex<Vec<String>>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
            words.lock().unwrap().push(String::from_utf8_lossy(&line).into_owned());
        }
    })
}

#[test]
fn what_a_child_says_is_kept_and_found() {
    let mut child = Process::start(Command::new("sh").args(["-c", "echo one; echo two >&2; exec sleep 60"]));
    assert_eq!(child.line_with("tw"), "two");
    assert!(!child.has_ended());
    child.signal("TERM");
    let ended = child.ends_within(PATIENCE);
    assert!(!ended.status.success());
    assert!(ended.said.contains("one"));
}

#[test]
#[should_panic(expected = "(ended) never said \"three\"")]
fn a_child_that_ends_without_the_line_fails_the_test_at_once() {
    Process::start(Command::new("sh").args(["-c", "echo one"])).line_with("three");
}

#[test]
fn a_child_ends_with_the_value_that_holds_it() {
    let child = Process::start(Command::new("sleep").arg("600"));
    let proc = PathBuf::from(format!("/proc/{}", child.pid()));
    assert!(proc.exists());
    drop(child);
    assert!(!proc.exists());
}
