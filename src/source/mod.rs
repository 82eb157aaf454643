//! The device side: one file per protocol, one [`Source`] each.
//!
//! A source answers its device only after [`intake::Incoming::commit`] returned Ok, that is after the sync. It never retries
//! or restarts itself (`supervise` does), and no error that a stranger on the network can cause ends it.

use std::future::Future;

use tokio_util::sync::CancellationToken;

use crate::values::Section;
use intake::Intake;

pub mod accept;
pub mod intake;
pub mod mllp;
pub mod seldom;

/// Stopping is a value that is passed in: when it is cancelled, take no new message, answer what is committed, return.
pub type Stop = CancellationToken;

/// A protocol that devices speak.
pub trait Source: Sized + Send + 'static {
    /// Its section of the configuration.
    type Config: Section + Clone + PartialEq + Send + Sync + 'static;
    /// The key in `[source.<name>.<protocol>]`.
    const PROTOCOL: &'static str;

    /// Binds or opens. Fails fast: `supervise` owns restart and backoff.
    ///
    /// # Errors
    /// [`SourceError`], with what to do in words.
    fn open(config: &Self::Config) -> impl Future<Output = Result<Self, SourceError>> + Send;

    /// Where it listens or reads, as it is bound: `10.20.0.1:2575`.
    fn endpoint(&self) -> String;

    /// Runs until `stop`. Answers its device only after the commit returned Ok.
    ///
    /// # Errors
    /// [`SourceError`] when it can't go on by itself; it is opened anew after a pause.
    fn run(&mut self, intake: &Intake, stop: &Stop) -> impl Future<Output = Result<(), SourceError>> + Send;
}

/// Why a source is not running.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SourceError {
    /// It could not be opened or bound: address in use, no such port, bad certificate.
    #[error("{0}")]
    Open(String),
    /// It broke while running.
    #[error("{0}")]
    Broken(String),
}
