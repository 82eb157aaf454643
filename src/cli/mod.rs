//! The command line: one file for each subcommand, and here the list of them with the texts that teach their use.
//!
//! Subcommands say things on standard output through [`terminal`], errors go to standard error, and the program ends with
//! the codes in [`exit`]. What concerns the running service goes through its control socket ([`crate::admin`]); nothing
//! here opens a spool that a service has open. Only this room and `gateway` know everything.

use std::ffi::OsString;
use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::admin::access::SOCKET_PATH;
use crate::admin::client::ControlClient;
use exit::{Exit, Failure, OrExit};

pub mod analyser;
pub mod check;
pub mod collect;
pub mod dead;
pub mod demo;
pub mod demo_broker;
pub mod demo_stage;
pub mod demo_view;
pub mod exit;
pub mod find;
mod health;
pub mod imaging_view;
pub mod inbox;
pub mod keys;
pub mod lane;
pub mod ledger;
pub mod mllp_client;
pub mod monitors;
mod own_gateway;
pub mod oximeter;
pub mod patients;
mod plug_view;
pub mod plugged_in;
pub mod ports;
pub mod probe;
mod probe_dicom;
pub mod recover;
pub mod replay;
pub mod run;
pub mod scanner;
pub mod sensors;
pub mod spool;
pub mod status;
pub mod status_view;
pub mod table;
pub mod terminal;
pub mod vendor;
mod watchdog;
pub mod when;

/// How long threads that still work on files may keep the process after all is done.
const LEAVE_TIME_MAX: Duration = Duration::from_secs(2);

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "wardgate", version, max_term_width = 100, about = ABOUT, after_help = AFTER_HELP)]
pub struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

const ABOUT: &str = "Takes HL7 v2, DICOM and device data in a hospital department, keeps it durably and encrypted, and \
                     forwards it upstream.";

const AFTER_HELP: &str = "\
First steps:
  wardgate demo --for 40s                see it work: simulated monitors, an upstream that is cut, nothing lost
  wardgate check gateway.toml            is this configuration good? every problem with its line
  wardgate run --config gateway.toml     the service itself
  wardgate status                        how does it stand? (while it runs)
  wardgate probe mllp 127.0.0.1:2575     does it answer? sends one message with an invented patient

Each subcommand has its own --help with examples; it says what is safe and what is not.

Exit codes: 0 done, 64 wrong command line, 65 bad data, 69 not running or not reachable, 70 a fault of wardgate,
73 can't make a file, 74 reading or writing failed, 75 try again, 77 no right to it, 78 bad configuration or key.";

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::RunArgs),
    Demo(demo::DemoArgs),
    Check(check::CheckArgs),
    Status(status::StatusArgs),
    Health(health::HealthArgs),
    Dead(dead::DeadArgs),
    Lane(lane::LaneArgs),
    Spool(spool::SpoolArgs),
    Probe(probe::ProbeArgs),
    Ports(ports::PortsArgs),
    Replay(replay::ReplayArgs),
    Keys(keys::KeysArgs),
    Recover(recover::RecoverArgs),
    Collect(collect::CollectArgs),
}

/// Where the running service listens for the command line.
#[derive(Debug, Args)]
pub struct SocketArgs {
    /// The service's control socket, as `[gateway] control` names it.
    #[arg(long, value_name = "PATH", default_value = SOCKET_PATH)]
    pub socket: PathBuf,
}

impl SocketArgs {
    /// Connects to the running service.
    ///
    /// # Errors
    /// [`Exit::Unavailable`] when it does not run, [`Exit::NoPermission`] with the group that would help.
    pub async fn connect(&self) -> Result<ControlClient, Failure> {
        Ok(ControlClient::connect(&self.socket).await?)
    }
}

/// Parses the arguments of the process, runs the subcommand, and tells what went wrong.
pub fn run() -> ExitCode {
    run_with(std::env::args_os())
}

/// The same for given arguments, the program's name first.
pub fn run_with(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let parsed = match CommandLine::try_parse_from(arguments) {
        Ok(parsed) => parsed,
        Err(error) => {
            // A closed standard error leaves nobody to tell.
            error.print().ok();
            return if error.use_stderr() { Exit::Usage.into() } else { ExitCode::SUCCESS };
        }
    };
    match perform(parsed.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if failure.exit != Exit::Closed {
                terminal::note(&format!("wardgate: {failure}"));
            }
            failure.exit.into()
        }
    }
}

fn perform(command: Command) -> Result<(), Failure> {
    match command {
        Command::Run(args) => block_on_all(run::run(args)),
        Command::Demo(args) => block_on_all(demo::run(args)),
        Command::Check(args) => check::run(&args),
        Command::Status(args) => block_on(status::run(args)),
        Command::Health(args) => block_on_all(health::run(args)),
        Command::Dead(args) => block_on(dead::run(args)),
        Command::Lane(args) => block_on(lane::run(args)),
        Command::Spool(args) => block_on(spool::run(args)),
        Command::Probe(args) => block_on(probe::run(args)),
        Command::Ports(args) => block_on(ports::run(args)),
        Command::Replay(args) => block_on(replay::run(args)),
        Command::Recover(args) => recover::run(&args),
        Command::Keys(args) => block_on(keys::run(args)),
        Command::Collect(args) => block_on(collect::run(args)),
    }
}

/// Runs a subcommand that needs the network on this thread.
fn block_on(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.or_exit(Exit::Software, "can't start the runtime")?.block_on(work)
}

/// Runs a subcommand that carries the whole gateway, on as many threads as there are cores.
fn block_on_all(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.or_exit(Exit::Software, "can't start the runtime")?;
    let outcome = runtime.block_on(work);
    // A thread that hangs in the file system of a share must not keep the process. All that matters has been awaited.
    runtime.shutdown_timeout(LEAVE_TIME_MAX);
    outcome
}

/// Prints a value as JSON for scripts: one document, indented.
///
/// # Errors
/// [`Exit::Software`] when the value has no JSON form, [`Exit::Io`] when it can't be written.
pub(crate) fn say_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).or_exit(Exit::Software, "can't write this as JSON")?;
    terminal::say(&text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_contradicts_itself_nowhere() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn every_subcommand_says_what_it_does_and_shows_an_example() {
        let mut commands: Vec<clap::Command> = CommandLine::command().get_subcommands().cloned().collect();
        while let Some(command) = commands.pop() {
            assert!(command.get_about().is_some(), "{} has no text", command.get_name());
            let examples = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(examples.contains("wardgate "), "{} has no example", command.get_name());
            commands.extend(command.get_subcommands().cloned());
        }
    }

    /// The words of an example, as a shell would split them; what follows two blanks is its explanation.
    fn words(example: &str) -> Vec<OsString> {
        let mut words = Vec::new();
        for (at, part) in example.split('\'').enumerate() {
            match at % 2 {
                0 => words.extend(part.split_whitespace().map(OsString::from)),
                _ => words.push(part.into()),
            }
        }
        words
    }

    #[test]
    fn the_examples_are_command_lines_as_they_are_printed() {
        let mut commands = vec![CommandLine::command()];
        let mut tried = 0;
        while let Some(command) = commands.pop() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let help = help.split("\\\n").map(str::trim).collect::<Vec<_>>().join(" ");
            let lines = help.lines().filter_map(|line| line.strip_prefix("  wardgate "));
            for line in lines {
                let example = line.split("  ").next().unwrap().split(" | ").next().unwrap();
                for example in format!("wardgate {example}").split(" && ").filter(|one| one.starts_with("wardgate ")) {
                    let parsed = CommandLine::try_parse_from(words(example));
                    assert!(parsed.is_ok(), "{example}: {}", parsed.unwrap_err());
                    tried += 1;
                }
            }
            commands.extend(command.get_subcommands().cloned());
        }
        assert!(tried > 30, "{tried}");
    }
}
