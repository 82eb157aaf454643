//! The executable: hands the arguments to [`wardgate::cli`] and ends with the exit code that comes back.

use std::process::ExitCode;

fn main() -> ExitCode {
    wardgate::cli::run()
}
