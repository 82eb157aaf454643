//! What all connections of an MQTT source share, and what one begins with once its client was let in.
//!
//! Nothing here reads or writes: see `mqtt_greeting` and `mqtt_connection`.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use super::Stop;
use super::intake::Intake;
use super::mqtt::MqttConfig;
use super::mqtt_clients::{Clients, Place};
use super::mqtt_inlet::Inlet;
use super::readings::Reading;
use super::seldom::Seldom;
use crate::wire::mqtt_packet::Version;

/// Bytes of a topic that is taken. The standard allows 64 KiB; nobody routes by that.
pub(super) const TOPIC_BYTES_MAX: usize = 1024;

/// What all connections of a source share.
pub(super) struct Endpoint {
    /// Who may connect.
    pub clients: Clients,
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
    pub(super) fn new(config: &MqttConfig, clients: Clients, intake: Intake, stop: Stop) -> Self {
        let quiet = Seldom::default;
        Self {
            clients,
            intake,
            stop,
            packet_bytes_max: usize::try_from(config.max_packet_size.0).unwrap_or(usize::MAX),
            receive_maximum: config.receive_maximum,
            connect_time: config.connect_timeout.0,
            write_time: config.write_timeout.0,
            ringed: Arc::default(),
            strangers: quiet(),
            endings: quiet(),
            refusals: quiet(),
            drops: quiet(),
        }
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
