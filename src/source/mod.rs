//! The device side: one file (or folder) per protocol, one [`Source`] each.
//!
//! A source answers its device only after [`intake::Incoming::commit`] returned Ok, that is after the sync. It never retries
//! or restarts itself ([`supervise`] does), and no error that a stranger on the network can cause ends it.
//!
//! A new protocol is a file here, a variant of [`SourceConfig`] and a line in each of its matches.

use std::future::Future;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::envelope::Class;
use crate::system::backoff::Backoff;
use crate::system::pulse::beating;
use crate::system::sockets::Sockets;
use crate::values::{Problems, SecretRef, Section, Span};
use intake::Intake;

pub mod accept;
pub mod astm;
mod astm_assembly;
mod astm_gather;
mod astm_part;
mod astm_session;
#[cfg(test)]
mod astm_tests;
mod astm_transfers;
pub mod dicom;
pub mod folder;
pub mod identify;
pub mod intake;
pub mod medibus;
pub mod medibus_chart;
pub mod medibus_session;
mod medibus_values;
mod medibus_words;
pub mod mllp;
mod mllp_connection;
#[cfg(test)]
mod mllp_tests;
pub mod modbus;
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
#[cfg(test)]
mod mqtt_tests;
pub mod plug;
mod plug_journal;
mod plug_line;
#[cfg(test)]
mod plug_tests;
pub mod profile;
pub mod readings;
pub mod serial;
mod serial_line;
#[cfg(test)]
mod serial_tests;
pub mod udp;

/// Stopping is a value that is passed in: when it is cancelled, take no new message, answer what is committed, return.
pub type Stop = CancellationToken;

/// A protocol that devices speak.
pub trait Source: Sized + Send + 'static {
    /// Its section of the configuration.
    type Config: Section + Clone + PartialEq + Send + Sync + 'static;
    /// The key in `[source.<name>.<protocol>]`.
    const PROTOCOL: &'static str;

    /// Binds or opens; a listening socket comes from `sockets`. Fails fast: `supervise` owns restart and backoff.
    ///
    /// # Errors
    /// [`SourceError`], with what to do in words.
    fn open(config: &Self::Config, sockets: &Sockets) -> impl Future<Output = Result<Self, SourceError>> + Send;

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
    /// Modbus, RTU and TCP.
    Modbus(modbus::ModbusConfig),
    /// Draeger's ventilators and anaesthesia machines.
    Medibus(medibus::MedibusConfig),
    /// MQTT sensors.
    Mqtt(mqtt::MqttConfig),
    /// Laboratory analysers.
    Astm(astm::AstmConfig),
    /// Files in a watched folder.
    Folder(folder::FolderConfig),
    /// Frames on a serial line or a connection, by a profile.
    Serial(serial::SerialSourceConfig),
    /// Datagrams, by a profile.
    Udp(udp::UdpConfig),
}

impl SourceConfig {
    /// The protocol's key.
    pub fn protocol(&self) -> &'static str {
        match self {
            Self::Mllp(_) => mllp::Mllp::PROTOCOL,
            Self::Dicom(_) => dicom::Dicom::PROTOCOL,
            Self::Modbus(_) => modbus::Modbus::PROTOCOL,
            Self::Medibus(_) => medibus::Medibus::PROTOCOL,
            Self::Mqtt(_) => mqtt::Mqtt::PROTOCOL,
            Self::Astm(_) => astm::Astm::PROTOCOL,
            Self::Folder(_) => folder::Folder::PROTOCOL,
            Self::Serial(_) => serial::Serial::PROTOCOL,
            Self::Udp(_) => udp::Udp::PROTOCOL,
        }
    }

    /// The log that its messages belong to.
    pub fn class(&self) -> Class {
        match self {
            Self::Mllp(_) | Self::Astm(_) | Self::Folder(_) => Class::Clinical,
            Self::Dicom(_) => Class::Imaging,
            Self::Modbus(config) => config.log.class(),
            Self::Medibus(config) => config.log.class(),
            Self::Mqtt(config) => config.log.class(),
            Self::Serial(config) => config.log.class(),
            Self::Udp(config) => config.log.class(),
        }
    }

    /// After how long a silence an alarm is raised.
    pub fn silent_after(&self) -> Option<Span> {
        match self {
            Self::Mllp(config) => config.silent_after,
            Self::Dicom(config) => config.silent_after,
            Self::Modbus(config) => config.silent_after,
            Self::Medibus(config) => config.silent_after,
            Self::Mqtt(config) => config.silent_after,
            Self::Astm(config) => config.silent_after,
            Self::Folder(config) => config.silent_after,
            Self::Serial(config) => config.silent_after,
            Self::Udp(config) => config.silent_after,
        }
    }

    /// Where it listens over TCP, if it does.
    pub fn listens(&self) -> Option<SocketAddr> {
        let listen = match self {
            Self::Mllp(config) => Some(config.listen),
            Self::Dicom(config) => Some(config.listen),
            Self::Mqtt(config) => Some(config.listen),
            Self::Medibus(config) => config.listen,
            Self::Astm(config) => config.listen,
            Self::Serial(config) => config.listen,
            Self::Modbus(_) | Self::Folder(_) | Self::Udp(_) => None,
        };
        listen.map(|listen| listen.0)
    }

    /// Opens the source and keeps it running until `stop`. [`Started::first`] tells how the first attempt to open it ended.
    pub async fn start(&self, intake: Intake, stop: Stop) -> Started {
        match self {
            Self::Mllp(config) => start::<mllp::Mllp>(config.clone(), intake, stop).await,
            Self::Dicom(config) => start::<dicom::Dicom>(config.clone(), intake, stop).await,
            Self::Modbus(config) => start::<modbus::Modbus>(config.clone(), intake, stop).await,
            Self::Medibus(config) => start::<medibus::Medibus>(config.clone(), intake, stop).await,
            Self::Mqtt(config) => start::<mqtt::Mqtt>(config.clone(), intake, stop).await,
            Self::Astm(config) => start::<astm::Astm>(config.clone(), intake, stop).await,
            Self::Folder(config) => start::<folder::Folder>(config.clone(), intake, stop).await,
            Self::Serial(config) => start::<serial::Serial>(config.clone(), intake, stop).await,
            Self::Udp(config) => start::<udp::Udp>(config.clone(), intake, stop).await,
        }
    }
}

impl Section for SourceConfig {
    fn check(&self, problems: &mut Problems) {
        problems.under(self.protocol(), |problems| match self {
            Self::Mllp(config) => config.check(problems),
            Self::Dicom(config) => config.check(problems),
            Self::Modbus(config) => config.check(problems),
            Self::Medibus(config) => config.check(problems),
            Self::Mqtt(config) => config.check(problems),
            Self::Astm(config) => config.check(problems),
            Self::Folder(config) => config.check(problems),
            Self::Serial(config) => config.check(problems),
            Self::Udp(config) => config.check(problems),
        });
    }

    fn files(&mut self, visit: &mut dyn FnMut(&mut SecretRef)) {
        match self {
            Self::Mllp(config) => config.files(visit),
            Self::Dicom(config) => config.files(visit),
            Self::Modbus(config) => config.files(visit),
            Self::Medibus(config) => config.files(visit),
            Self::Mqtt(config) => config.files(visit),
            Self::Astm(config) => config.files(visit),
            Self::Folder(config) => config.files(visit),
            Self::Serial(config) => config.files(visit),
            Self::Udp(config) => config.files(visit),
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
    let opened = S::open(&config, intake.sockets()).await;
    let first = opened.as_ref().map(|_| ()).map_err(Clone::clone);
    if let Ok(source) = &opened {
        told.send_replace(source.endpoint());
    }
    let task = tokio::spawn(async move {
        let supervised = supervise(opened, &config, &intake, &stop, &told);
        beating(supervised, || intake.counters().turns.one()).await;
    });
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
        opened = S::open(config, intake.sockets()).await;
    }
}

fn trouble(intake: &Intake, cause: Option<String>) {
    *intake.counters().trouble.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = cause;
}
