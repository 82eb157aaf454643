//! The device side: one file per protocol, one [`Source`] each.
//!
//! A source answers its device only after [`intake::Incoming::commit`] returned Ok, that is after the sync. It never retries
//! or restarts itself ([`supervise`] does), and no error that a stranger on the network can cause ends it.
//!
//! A new protocol is a file here, a variant of [`SourceConfig`] and a line in each of its matches.

use std::future::Future;
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::envelope::Class;
use crate::system::backoff::Backoff;
use crate::values::{Problems, SecretRef, Section, Span};
use intake::Intake;

pub mod accept;
pub mod dicom;
mod dicom_association;
pub mod dicom_commitment;
mod dicom_connection;
mod dicom_link;
mod dicom_store;
pub mod intake;
pub mod mllp;
mod mllp_connection;
#[cfg(test)]
mod mllp_tests;
pub mod mqtt;
mod mqtt_clients;
mod mqtt_closing;
mod mqtt_connection;
mod mqtt_endpoint;
mod mqtt_flights;
mod mqtt_greeting;
mod mqtt_inlet;
mod mqtt_reading;
mod mqtt_ring;
pub mod readings;
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

/// `[source.<name>]`: the protocol is the key of the next level.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
// There are as many of these as there are sources: a box around the larger one would save nothing.
#[allow(clippy::large_enum_variant)]
pub enum SourceConfig {
    /// HL7 v2 over MLLP.
    Mllp(mllp::MllpConfig),
    /// DICOM: C-STORE and C-ECHO.
    Dicom(dicom::DicomConfig),
    /// MQTT sensors.
    Mqtt(mqtt::MqttConfig),
}

impl SourceConfig {
    /// The protocol's key.
    pub fn protocol(&self) -> &'static str {
        match self {
            Self::Mllp(_) => mllp::Mllp::PROTOCOL,
            Self::Dicom(_) => dicom::Dicom::PROTOCOL,
            Self::Mqtt(_) => mqtt::Mqtt::PROTOCOL,
        }
    }

    /// The log that its messages belong to.
    pub fn class(&self) -> Class {
        match self {
            Self::Mllp(_) => Class::Clinical,
            Self::Dicom(_) => Class::Imaging,
            Self::Mqtt(config) => config.log.class(),
        }
    }

    /// After how long a silence an alarm is raised.
    pub fn silent_after(&self) -> Option<Span> {
        match self {
            Self::Mllp(config) => config.silent_after,
            Self::Dicom(config) => config.silent_after,
            Self::Mqtt(config) => config.silent_after,
        }
    }

    /// Opens the source and keeps it running until `stop`. [`Started::first`] tells how the first attempt to open it ended.
    pub async fn start(&self, intake: Intake, stop: Stop) -> Started {
        match self {
            Self::Mllp(config) => start::<mllp::Mllp>(config.clone(), intake, stop).await,
            Self::Dicom(config) => start::<dicom::Dicom>(config.clone(), intake, stop).await,
            Self::Mqtt(config) => start::<mqtt::Mqtt>(config.clone(), intake, stop).await,
        }
    }
}

impl Section for SourceConfig {
    fn check(&self, problems: &mut Problems) {
        problems.under(self.protocol(), |problems| match self {
            Self::Mllp(config) => config.check(problems),
            Self::Dicom(config) => config.check(problems),
            Self::Mqtt(config) => config.check(problems),
        });
    }

    fn files(&mut self, visit: &mut dyn FnMut(&mut SecretRef)) {
        match self {
            Self::Mllp(config) => config.files(visit),
            Self::Dicom(config) => config.files(visit),
            Self::Mqtt(config) => config.files(visit),
        }
    }
}

/// A source that is kept running.
pub struct Started {
    /// Why it could not be opened at once, if it could not. It is tried again and again all the same, until its stop: a boot goes
    /// on (the address may come up yet), a reload refuses the configuration and stops it.
    pub first: Result<(), SourceError>,
    /// Where it listens or reads, as it was last bound; empty until then.
    pub endpoint: watch::Receiver<String>,
    /// Ends after the stop, when its connections have ended.
    pub task: JoinHandle<()>,
}

async fn start<S: Source>(config: S::Config, intake: Intake, stop: Stop) -> Started {
    let (told, endpoint) = watch::channel(String::new());
    let opened = S::open(&config).await;
    let first = opened.as_ref().map(|_| ()).map_err(Clone::clone);
    if let Ok(source) = &opened {
        told.send_replace(source.endpoint());
    }
    let task = tokio::spawn(async move { supervise(opened, &config, &intake, &stop, &told).await });
    Started { first, endpoint, task }
}

/// Runs a source, and opens it anew after a pause whenever it could not be opened or broke. Its trouble stands in the counters.
async fn supervise<S: Source>(
    mut opened: Result<S, SourceError>,
    config: &S::Config,
    intake: &Intake,
    stop: &Stop,
    endpoint: &watch::Sender<String>,
) {
    let mut backoff = Backoff::default();
    while !stop.is_cancelled() {
        let began = Instant::now();
        let outcome = match opened {
            Ok(mut source) => {
                trouble(intake, None);
                tracing::info!(source = %intake.source(), protocol = S::PROTOCOL, endpoint = %source.endpoint(), "open");
                endpoint.send_replace(source.endpoint());
                source.run(intake, stop).await
            }
            Err(error) => Err(error),
        };
        let Err(error) = outcome else { return };
        let worked_for = if matches!(error, SourceError::Open(_)) { Duration::ZERO } else { began.elapsed() };
        let pause = backoff.pause(worked_for);
        tracing::error!(source = %intake.source(), protocol = S::PROTOCOL, retry_ms = pause.as_millis(), "{error}");
        trouble(intake, Some(error.to_string()));
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(pause) => {}
        }
        opened = S::open(config).await;
    }
}

fn trouble(intake: &Intake, cause: Option<String>) {
    *intake.counters().trouble.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = cause;
}
