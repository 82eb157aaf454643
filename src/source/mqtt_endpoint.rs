//! What all connections of an MQTT source share, and what one begins with once its client was let in.
//!
//! Nothing here reads or writes: see `mqtt_greeting` and `mqtt_connection`.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use super::Stop;
use super::intake::Intake;
use super::mqtt::{Decoder, MqttConfig};
use super::mqtt_clients::{Clients, Place};
use super::mqtt_inlet::Inlet;
use super::profile::Profile;
use super::readings::Reading;
use crate::system::seldom::Seldom;
use crate::wire::mqtt_packet::Version;

/// Bytes of a topic that is taken. The standard allows 64 KiB; nobody routes by that.
pub(super) const TOPIC_BYTES_MAX: usize = 1024;

/// A packet that has begun must end within this time.
const PACKET_TIME_MAX: Duration = Duration::from_secs(30);

/// What all connections of a source share.
pub(super) struct Endpoint {
    /// Who may connect.
    pub clients: Clients,
    /// What reads payloads.
    pub decoders: Arc<[Decoder]>,
    /// The way into the spool.
    pub intake: Intake,
    /// The end of the source.
    pub stop: Stop,
    /// `max-packet-size`.
    pub packet_bytes_max: usize,
    /// `receive-maximum`.
    pub receive_maximum: u16,
    /// `connect-timeout`.
    pub connect_time: Duration,
    /// `write-timeout`.
    pub write_time: Duration,
    /// How long a packet that has begun may take to end.
    pub packet_time: Duration,
    /// Bytes in the rings of all connections.
    pub ringed: Arc<AtomicUsize>,
    /// The right to speak of those who were turned away, of connections that ended badly, of topics that were refused, of messages dropped.
    pub strangers: Seldom,
    /// See [`Self::strangers`].
    pub endings: Seldom,
    /// See [`Self::strangers`].
    pub refusals: Seldom,
    /// See [`Self::strangers`].
    pub drops: Seldom,
}

impl Endpoint {
    pub(super) fn new(
        config: &MqttConfig,
        clients: Clients,
        decoders: &Arc<[Decoder]>,
        intake: Intake,
        stop: Stop,
    ) -> Self {
        let quiet = Seldom::default;
        Self {
            clients,
            decoders: Arc::clone(decoders),
            intake,
            stop,
            packet_bytes_max: usize::try_from(config.max_packet_size.0).unwrap_or(usize::MAX),
            receive_maximum: config.receive_maximum,
            connect_time: config.connect_timeout.0,
            write_time: config.write_timeout.0,
            packet_time: PACKET_TIME_MAX,
            ringed: Arc::default(),
            strangers: quiet(),
            endings: quiet(),
            refusals: quiet(),
            drops: quiet(),
        }
    }

    /// What reads the payloads of this topic, if anything does.
    pub(super) fn profile(&self, topic: &str) -> Option<&Profile> {
        self.decoders.iter().find(|decoder| decoder.topic.covers(topic)).map(|decoder| &*decoder.profile)
    }
}

/// A client that was let in.
pub(super) struct Guest {
    /// Whose it is, under which client id.
    pub place: Place,
    /// The version that it speaks.
    pub version: Version,
    /// What it asked for; 0: none.
    pub keep_alive_s: u16,
    /// The largest packet that it takes.
    pub packet_bytes_max: usize,
    /// To be stored if the connection breaks.
    pub will: Option<Box<Reading>>,
    /// What it sent behind its CONNECT.
    pub inlet: Inlet,
}
