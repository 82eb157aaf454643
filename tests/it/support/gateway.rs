//! Our own service as an operator runs it: the real executable, a configuration file, a folder of its own.
//!
//! Listeners bind port 0; where they are bound is asked over the control socket, as an operator would with `wardgate status`.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::process::{Ended, Process, run, succeeds, wardgate};
use super::wait::{PATIENCE, eventually, eventually_some};

/// A running service. Its files stay in the folder that it was given.
pub struct Gateway {
    /// The process: what it said, signals, its id.
    pub process: Process,
    folder: PathBuf,
}

/// The head of a configuration whose spool, key and control socket are in `folder`; sources, upstreams and routes follow it.
pub fn head(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        r#"[gateway]
name = "test-box"
site = "test-site"
control = {{ socket = "{folder}/control.sock" }}

[spool]
path = "{folder}/spool"
key = {{ file = "{folder}/spool.key" }}
"#
    )
}

impl Gateway {
    /// Starts the service with [`head`] and `rest` as its configuration, and waits until it answers.
    #[track_caller]
    pub fn start(folder: &Path, rest: &str) -> Self {
        configure(folder, rest);
        Self::again(folder)
    }

    /// The same as the child of a program that becomes it by `exec`: a tracer, a shell in a namespace of its own.
    #[track_caller]
    pub fn start_under(wrapper: Command, folder: &Path, rest: &str) -> Self {
        configure(folder, rest);
        Self::launch(wrapper, folder)
    }

    /// Starts it on the configuration and the spool that are in `folder`.
    #[track_caller]
    pub fn again(folder: &Path) -> Self {
        Self::launch(Command::new("env"), folder)
    }

    /// The same with these variables in its environment.
    #[track_caller]
    pub fn again_with(folder: &Path, variables: &[(&str, &str)]) -> Self {
        let mut wrapper = Command::new("env");
        wrapper.args(variables.iter().map(|(name, value)| format!("{name}={value}")));
        Self::launch(wrapper, folder)
    }

    #[track_caller]
    fn launch(mut wrapper: Command, folder: &Path) -> Self {
        let ours = wardgate();
        for (name, value) in ours.get_envs() {
            assert!(value.is_none(), "names are only taken away");
            wrapper.env_remove(name);
        }
        let process =
            Process::start(wrapper.arg(ours.get_program()).arg("run").arg("--config").arg(folder.join("gateway.toml")));
        let mut gateway = Self { process, folder: folder.to_owned() };
        let mut ended = false;
        eventually("the service answers on its control socket, or ends", || {
            ended = gateway.process.has_ended();
            ended || gateway.try_status().is_some()
        });
        assert!(!ended, "the service ended at its start; it said:\n{}", gateway.process.said());
        gateway
    }

    /// `wardgate status --json`.
    #[track_caller]
    pub fn status(&self) -> Value {
        eventually_some("the service tells its status", || self.try_status())
    }

    /// Where the source is bound.
    #[track_caller]
    pub fn endpoint(&self, source: &str) -> SocketAddr {
        let bound = || self.status()["sources"][source]["endpoint"].as_str()?.parse().ok();
        let address: Option<SocketAddr> = Some(eventually_some("the source is bound", bound));
        address.filter(|address| address.port() != 0).unwrap()
    }

    /// Messages that wait, all lanes together.
    #[track_caller]
    pub fn backlog(&self) -> u64 {
        let status = self.status();
        let lanes = status["lanes"].as_array().unwrap();
        lanes.iter().map(|lane| lane["backlog"].as_u64().unwrap()).sum()
    }

    /// Runs a subcommand that talks to the service; fails the test when it fails. Returns what it printed.
    #[track_caller]
    pub fn ask(&self, arguments: &[&str]) -> String {
        succeeds(&mut self.command(arguments))
    }

    /// Runs a subcommand that talks to the service, and tells how it ended.
    #[track_caller]
    pub fn asked(&self, arguments: &[&str]) -> Ended {
        run(&mut self.command(arguments))
    }

    /// Writes another configuration behind the same head, sends SIGHUP and waits until it is in force or refused. Returns why
    /// it was refused.
    #[track_caller]
    pub fn reload(&self, rest: &str) -> Option<String> {
        let before = self.status();
        let (fingerprint, refusal) = (before["config"].clone(), refused(&before));
        configure(&self.folder, rest);
        self.process.signal("HUP");
        eventually_some("the changed file is in force or refused", || {
            let status = self.status();
            let now = refused(&status);
            if now.is_some() && now != refusal {
                return Some(now);
            }
            (status["config"] != fingerprint).then_some(None)
        })
    }

    /// Messages that wait for one upstream.
    #[track_caller]
    pub fn backlog_of(&self, upstream: &str) -> u64 {
        let status = self.status();
        let lanes = status["lanes"].as_array().unwrap().iter();
        lanes.filter(|lane| lane["upstream"] == upstream).map(|lane| lane["backlog"].as_u64().unwrap()).sum()
    }

    /// The alarms, each as its code and its words.
    #[track_caller]
    pub fn alarms(&self) -> Vec<(String, String)> {
        alarms(&self.status())
    }

    /// `wardgate dead list --json`, newest first.
    #[track_caller]
    pub fn dead(&self) -> Vec<Value> {
        let list: Value = serde_json::from_str(&self.ask(&["dead", "list", "--json"])).unwrap();
        list["letters"].as_array().unwrap().clone()
    }

    /// Stops it as systemd would and returns what it said; fails the test when it does not end well and in time.
    #[track_caller]
    pub fn stop(self) -> String {
        self.process.signal("TERM");
        let ended = self.process.ends_within(PATIENCE);
        assert!(ended.status.success(), "{}; it said:\n{}", ended.status, ended.said);
        ended.said
    }

    /// A subcommand that talks to the service, to be run.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = wardgate();
        command.args(arguments).arg("--socket").arg(self.folder.join("control.sock"));
        command
    }

    fn try_status(&self) -> Option<Value> {
        let ended = run(&mut self.command(&["status", "--json"]));
        ended.status.success().then(|| serde_json::from_str(&ended.said).unwrap())
    }
}

fn configure(folder: &Path, rest: &str) {
    fs::write(folder.join("gateway.toml"), format!("{}\n{rest}", head(folder))).unwrap();
}

fn alarms(status: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    status["alarms"].as_array().unwrap().iter().map(|alarm| (text(&alarm["code"]), text(&alarm["text"]))).collect()
}

fn refused(status: &Value) -> Option<String> {
    alarms(status).into_iter().find(|(code, _)| code == "config-refused").map(|(_, text)| text)
}
