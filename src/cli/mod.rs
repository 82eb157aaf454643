//! The command line: one file for each subcommand.

use std::process::ExitCode;

/// Parses the arguments and runs the subcommand.
pub fn run() -> ExitCode {
    ExitCode::SUCCESS
}
