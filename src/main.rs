//! The executable: hands the arguments to [`wardgate::cli`] and maps how it ended to an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    wardgate::cli::run()
}
