//! mosquitto, the MQTT broker that most sites have: one of its own for each test, on a port of its own.
//!
//! Its log names every packet, so that a test can wait for a SUBACK instead of sleeping.

use std::fs;
use std::path::{Path, PathBuf};

use super::ports::{free_port, start_on_port};
use super::process::Process;
use super::tools::system;

/// A broker that runs; ends with the value.
pub struct Broker {
    /// The process, for its log and for signals.
    pub process: Process,
    /// The port that it listens on, on 127.0.0.1.
    pub port: u16,
    config: PathBuf,
}

impl Broker {
    /// Starts one with its files in `folder`. `options` are lines of mosquitto.conf(5) that belong to the listener or to the whole broker.
    #[track_caller]
    pub fn start(folder: &Path, options: &str) -> Self {
        let config = folder.join("mosquitto.conf");
        let (process, port) = start_on_port(|port| {
            fs::write(&config, written(folder, port, options)).unwrap();
            launch(&config)
        });
        Self { process, port, config }
    }

    /// Kills it, as a power cut would, and starts it again on the same port and the same files.
    #[track_caller]
    pub fn kill_and_restart(self) -> Self {
        let Self { process, port, config } = self;
        process.kill();
        Self { process: launch(&config), port, config }
    }
}

fn launch(config: &Path) -> Process {
    Process::start(system("mosquitto").arg("-c").arg(config))
}

/// `user root` keeps it from giving up rights (only when root starts it): the test's folder is its owner's alone.
fn written(folder: &Path, port: u16, options: &str) -> String {
    let anonymous = if options.contains("allow_anonymous") { "" } else { "allow_anonymous true\n" };
    format!(
        "user root\nlog_type all\nlog_dest stderr\npersistence_location {}/\nlistener {port} 127.0.0.1\n{anonymous}{options}\n",
        folder.display()
    )
}

#[test]
fn a_broker_delivers_and_comes_back_on_its_port() {
    let folder = tempfile::tempdir().unwrap();
    let mut broker = Broker::start(folder.path(), "").kill_and_restart();
    super::wait::eventually("the broker listens again", || super::ports::listens(broker.port));
    let port = broker.port.to_string();
    let reader = Process::start(system("mosquitto_sub").args(["-p", &port, "-t", "t", "-C", "1"]));
    broker.process.line_with("Sending SUBACK");
    super::process::succeeds(system("mosquitto_pub").args(["-p", &port, "-t", "t", "-q", "1", "-m", "hello"]));
    assert_eq!(reader.ends_within(super::wait::PATIENCE).said, "hello");
}

#[test]
#[should_panic(expected = "did not listen on any of 5 ports")]
fn a_broker_that_refuses_its_configuration_fails_the_test() {
    // A port that nobody listens on is no excuse either.
    assert!(!super::ports::listens(free_port()));
    Broker::start(tempfile::tempdir().unwrap().path(), "no_such_option true");
}
