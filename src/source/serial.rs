//! Any device that writes frames to a serial line or a TCP connection, by a profile: `[source.<name>.serial]`.
//!
//! The profile says how frames are told apart, checked and read (`source/profile.rs`). Nothing is acknowledged, so nothing can be asked for
//! again: what can't be stored is told as a gap.

use std::sync::Arc;

use ipnet::IpNet;
use serde::Deserialize;
use tokio::sync::Mutex;

use super::intake::Intake;
use super::plug::{Line, Plug, PlugConfig};
use super::profile::{Profile, ProfileRef};
use super::readings::{Readings, TelemetryLog};
use super::serial_line;
use super::{Source, SourceError, Stop};
use crate::system::serial::SerialConfig;
use crate::system::sockets::Sockets;
use crate::system::tls::ServerTls;
use crate::values::{HostPort, Listen, Problems, SecretRef, Section, Span};

/// `[source.<name>.serial]`.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SerialSourceConfig {
    /// The port and its line settings.
    pub serial: Option<SerialConfig>,
    /// Or: a device on the network, or a serial server, that is dialled.
    pub connect: Option<HostPort>,
    /// Or: where the device dials to.
    pub listen: Option<Listen>,
    /// With `listen`: networks that may connect.
    #[serde(default)]
    pub allow: Vec<IpNet>,
    /// With `listen`: connections at once.
    pub connections: Option<usize>,
    /// With `listen`: speak TLS; with a `client-ca` devices must show a certificate.
    pub tls: Option<ServerTls>,
    /// What the device's frames look like: built in, or a file.
    pub profile: ProfileRef,
    /// The log that its readings belong to.
    #[serde(default)]
    pub log: TelemetryLog,
    /// An alarm is raised when nothing came for so long.
    pub silent_after: Option<Span>,
}

impl SerialSourceConfig {
    fn plug(&self) -> PlugConfig {
        let Self { serial, connect, listen, allow, connections, tls, .. } = self.clone();
        PlugConfig { serial, connect, listen, allow, connections, tls }
    }
}

impl Section for SerialSourceConfig {
    fn check(&self, problems: &mut Problems) {
        self.plug().check(problems);
        match self.profile.load() {
            Ok(profile) => {
                let usual = profile.line.baud.zip(self.serial.as_ref());
                if let Some((usual, serial)) = usual.filter(|(usual, serial)| *usual != serial.baud) {
                    let text =
                        format!("the profile's devices are delivered with baud = {usual}, this says {}", serial.baud);
                    problems.under("serial", |problems| problems.warn("baud", text));
                }
            }
            Err(found) => found.into_iter().for_each(|problem| problems.error("profile", problem)),
        }
    }

    fn files(&mut self, visit: &mut dyn FnMut(&mut SecretRef)) {
        self.profile.files(visit);
        PlugConfig::files(&mut self.tls, visit);
    }
}

/// The profile as a source needs it.
///
/// # Errors
/// [`SourceError::Open`] with all that is wrong with it.
pub fn loaded(profile: &ProfileRef) -> Result<Arc<Profile>, SourceError> {
    profile.load().map(Arc::new).map_err(|found| SourceError::Open(found.join("; ")))
}

/// A device at its plug.
pub struct Serial {
    plug: Plug,
    profile: Arc<Profile>,
}

impl Source for Serial {
    type Config = SerialSourceConfig;

    const PROTOCOL: &'static str = "serial";

    async fn open(config: &SerialSourceConfig, sockets: &Sockets) -> Result<Self, SourceError> {
        Ok(Self { plug: Plug::open(config.plug(), sockets).await?, profile: loaded(&config.profile)? })
    }

    fn endpoint(&self) -> String {
        self.plug.endpoint()
    }

    async fn run(&mut self, intake: &Intake, stop: &Stop) -> Result<(), SourceError> {
        let readings = Arc::new(Mutex::new(Readings::new(intake, self.profile.stream.clone())));
        let (profile, source, stopping) = (Arc::clone(&self.profile), intake.clone(), stop.clone());
        let serve = move |line: Line| {
            serial_line::serve(line, Arc::clone(&profile), source.clone(), Arc::clone(&readings), stopping.clone())
        };
        self.plug.run(intake, stop, serve).await
    }
}
