//! How the program ends: the exit codes of `sysexits.h`, in one place, and errors that carry one.
//!
//! A script, a systemd unit (`RestartPreventExitStatus=78`) and a monitoring system read these numbers: they never change
//! their meaning.

use std::fmt;
use std::process::ExitCode;

use crate::admin::answers::Code;
use crate::admin::client::ClientError;

/// Why the program ends without success.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    /// Whoever read standard output has seen enough and closed it (`| head`): not an error, and nobody is there to be told.
    Closed = 0,
    /// The command line is wrong.
    Usage = 64,
    /// The data is wrong: a damaged spool, an answer that is no acknowledgement, messages that did not arrive.
    Data = 65,
    /// Something that is needed is not there: the service does not run, the peer does not answer.
    Unavailable = 69,
    /// A fault of this program.
    Software = 70,
    /// A file can't be made.
    CannotCreate = 73,
    /// Reading or writing failed.
    Io = 74,
    /// Not now: trying again may help.
    TryAgain = 75,
    /// No right to do it.
    NoPermission = 77,
    /// The configuration, a key or a certificate is wrong.
    Config = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An error on its way to the person at the terminal, and the code that the program ends with.
#[derive(Debug)]
pub struct Failure {
    /// The code.
    pub exit: Exit,
    /// What happened, where, and what to do.
    pub error: anyhow::Error,
}

impl Failure {
    /// What went wrong, in words.
    pub fn new(exit: Exit, text: impl fmt::Display + fmt::Debug + Send + Sync + 'static) -> Self {
        Self { exit, error: anyhow::Error::msg(text) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.error)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let exit = match &error {
            ClientError::NotRunning(_) => Exit::Unavailable,
            ClientError::NotPermitted { .. } => Exit::NoPermission,
            ClientError::Broken { .. } => Exit::Io,
            ClientError::Refused(refusal) => match refusal.code {
                Code::BadRequest => Exit::Usage,
                Code::NotPermitted => Exit::NoPermission,
                Code::NotFound => Exit::Data,
                Code::Unavailable => Exit::TryAgain,
                Code::Failed => Exit::Io,
            },
        };
        Self { exit, error: error.into() }
    }
}

/// Gives an error its code and says what was being done.
pub trait OrExit<T> {
    /// The value, or a [`Failure`] with this code.
    ///
    /// # Errors
    /// The error, with `doing` before it.
    fn or_exit(self, exit: Exit, doing: impl fmt::Display + Send + Sync + 'static) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> OrExit<T> for Result<T, E> {
    fn or_exit(self, exit: Exit, doing: impl fmt::Display + Send + Sync + 'static) -> Result<T, Failure> {
        self.map_err(|error| Failure { exit, error: error.into().context(doing) })
    }
}
