//! Devices that send datagrams, read by a profile: `[source.<name>.udp]`.
//!
//! UDP promises nothing: what the network drops is lost and nobody is told. Strangers are kept out by their address alone, which anybody
//! on the same network can forge; so a network of devices must be one.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;
use tokio::net::UdpSocket;
use tokio::sync::{Mutex, mpsc};
use tokio::time::sleep;

use super::intake::Intake;
use super::profile::{Profile, ProfileRef};
use super::readings::{Readings, TelemetryLog};
use super::serial::loaded;
use super::serial_line::{Catcher, store_all};
use super::{Source, SourceError, Stop};
use crate::system::seldom::Seldom;
use crate::system::sockets::Sockets;
use crate::telemetry::record::Named;
use crate::values::{Listen, Problems, SecretRef, Section, Span};
use crate::wire::checksum::Checksum;
use crate::wire::serial_frame::{Framer, Framing};

/// The longest datagram there is.
const DATAGRAM_BYTES_MAX: usize = 65_535;
/// Datagrams between the socket and the spool.
const QUEUE_DATAGRAMS: usize = 256;
/// Their bytes; they are a part of what all sources may hold in memory together.
const QUEUE_BYTES: usize = 1 << 20;
/// After an error of the socket (out of memory, a peer's ICMP message).
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// `[source.<name>.udp]`.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct UdpConfig {
    /// Where to listen.
    pub listen: Listen,
    /// Networks whose datagrams are taken.
    #[serde(default)]
    pub allow: Vec<IpNet>,
    /// What is in a datagram: built in, or a file.
    pub profile: ProfileRef,
    /// Whether a datagram is one frame, or has several that the profile tells apart.
    #[serde(default)]
    pub datagram: Datagram,
    /// The log that its readings belong to.
    #[serde(default)]
    pub log: TelemetryLog,
    /// An alarm is raised when nothing came for so long.
    pub silent_after: Option<Span>,
}

/// What a datagram is.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Datagram {
    /// One frame, whatever the profile says of framing and checksum.
    #[default]
    Frame,
    /// Frames as on a serial line; none goes over the end of a datagram.
    Frames,
}

impl Section for UdpConfig {
    fn check(&self, problems: &mut Problems) {
        if !self.listen.0.ip().to_canonical().is_loopback() && self.allow.is_empty() {
            let text = format!(
                "{} can be reached from the network and anybody may send: add allow = [\"10.20.0.5/32\"] with the addresses \
                 of the devices",
                self.listen
            );
            problems.error("listen", text);
        }
        match self.profile.load() {
            Ok(profile) if profile.asking != Default::default() && !profile.asking.polls.is_empty() => {
                problems.warn("profile", "this profile asks the device, which a datagram source never does");
            }
            Ok(_) => {}
            Err(found) => found.into_iter().for_each(|problem| problems.error("profile", problem)),
        }
    }

    fn files(&mut self, visit: &mut dyn FnMut(&mut SecretRef)) {
        self.profile.files(visit);
    }
}

/// A bound socket.
pub struct Udp {
    socket: UdpSocket,
    endpoint: SocketAddr,
    profile: Arc<Profile>,
    allow: Vec<IpNet>,
    datagram: Datagram,
}

impl Source for Udp {
    type Config = UdpConfig;

    const PROTOCOL: &'static str = "udp";

    async fn open(config: &UdpConfig, _sockets: &Sockets) -> Result<Self, SourceError> {
        let profile = loaded(&config.profile)?;
        let bound = async {
            let socket = UdpSocket::bind(config.listen.0).await?;
            let endpoint = socket.local_addr()?;
            Ok((socket, endpoint))
        };
        let explain = |error: std::io::Error| {
            SourceError::Open(format!(
                "can't listen at {}: {error}; check the address, and who else listens",
                config.listen
            ))
        };
        let (socket, endpoint) = bound.await.map_err(explain)?;
        Ok(Self { socket, endpoint, profile, allow: config.allow.clone(), datagram: config.datagram })
    }

    fn endpoint(&self) -> String {
        self.endpoint.to_string()
    }

    async fn run(&mut self, intake: &Intake, stop: &Stop) -> Result<(), SourceError> {
        let (queue, caught) = mpsc::channel(QUEUE_DATAGRAMS);
        let framer = match self.datagram {
            Datagram::Frames => self.profile.framer(),
            Datagram::Frame => Framer::new(Framing::Idle, Checksum::None, 0, DATAGRAM_BYTES_MAX + 1),
        };
        let catcher = Catcher::new(intake, framer, queue, QUEUE_BYTES);
        let readings = Mutex::new(Readings::new(intake, self.profile.stream.clone()));
        let storing = store_all(caught, &self.profile, intake, &readings);
        tokio::join!(self.take(catcher, intake, stop), storing);
        Ok(())
    }
}

impl Udp {
    /// Ends at the stop; the catcher is dropped then.
    async fn take(&self, mut catcher: Catcher, intake: &Intake, stop: &Stop) {
        let strangers = Seldom::default();
        let mut bytes = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            let came = tokio::select! {
                () = stop.cancelled() => return,
                came = self.socket.recv_from(&mut bytes) => came,
            };
            let Ok((count, peer)) = came else {
                // Of no datagram of ours: what a peer's host answers to somebody else can end up here.
                sleep(ERROR_PAUSE).await;
                continue;
            };
            if !self.admits(peer.ip()) {
                intake.counters().turned_away.one();
                if let Some(unsaid) = strangers.speak() {
                    tracing::warn!(%peer, unsaid, "a datagram from no network of the allow list is passed over");
                }
                continue;
            }
            let about = [Named { name: "peer".into(), value: peer.to_string() }];
            let datagram = bytes.get(..count).unwrap_or_default();
            intake.counters().plug.came(datagram);
            catcher.push(datagram, &about);
            catcher.settle(&about);
        }
    }

    fn admits(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.allow.is_empty() || self.allow.iter().any(|network| network.contains(&peer))
    }
}
