//! The `mqtt` upstream: messages to an MQTT 5 broker with QoS 1, in order, several at once.
//!
//! Topics and user properties are those of [`crate::wire::mqtt_label`]. A receipt is the broker's PUBACK with success, or with
//! `receipt = "collector"` the collector's own receipt for the same bytes: a broker's PUBACK need not mean that anything is on
//! its disk. Each connection is a new MQTT session, since the spool is the only truth: what was on its way when a
//! connection ended is sent again by the forwarder. A body that is longer than the broker takes in one packet goes out in
//! parts as it is read; no body lies in memory as a whole beyond [`PART_BYTES_MAX`].

use std::time::Duration;

use aws_lc_rs::rand;
use bytes::BytesMut;
use mqtt_protocol_core::mqtt::packet::Qos;
use mqtt_protocol_core::mqtt::packet::v5_0::GenericPublish;
use mqtt_protocol_core::mqtt::result_code::MqttError;
use serde::Deserialize;
use tokio::sync::oneshot;

use super::mqtt_link::{Hello, Link};
use super::mqtt_session::{Limits, Publication, Session};
use super::sealing::{Payload, Sealer};
use super::{Delivery, Identity, SendError, Upstream, WhenRefused};
use crate::envelope::{BodyError, Envelope};
use crate::status::{Alarm, Status};
use crate::system::credentials;
use crate::system::stream;
use crate::system::tls::ClientTls;
use crate::values::{HostPort, Problems, SecretRef, Section, Span};
use crate::wire::mqtt::{Fault, Granted};
use crate::wire::mqtt_label::{Label, PARTS_MAX, Part};

/// `topic-root` unless given.
pub const TOPIC_ROOT: &str = "wardgate";
/// Longest body that goes out in one packet, and longest part of a longer one.
pub const PART_BYTES_MAX: usize = 256 << 10;
/// Shortest part that is worth sending: a broker that takes less is not usable.
const PART_BYTES_MIN: usize = 64;
/// How long the connection may take, name, TCP and TLS together.
const DIAL_WAIT: Duration = Duration::from_secs(20);
/// Largest packet that we take: receipts come in less.
const INCOMING_BYTES_MAX: u32 = 1 << 20;
/// Publishes that we take without having acknowledged them.
const INCOMING_MAX: u16 = 64;
/// Bounds of `keep-alive`.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(18 * 3600));
/// Longest `topic-root` and client id.
const TEXT_BYTES_MAX: usize = 128;

/// `[upstream.<name>.mqtt]`
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Config {
    /// The broker.
    pub address: HostPort,
    /// How to trust it, and who we are to it.
    pub tls: Option<ClientTls>,
    /// Said aloud: without TLS.
    #[serde(default)]
    pub plain: bool,
    /// Default `wardgate-<site>-<gateway>-<upstream>`. Unique at the broker.
    pub client_id: Option<String>,
    /// For brokers that ask for one.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<SecretRef>,
    /// First level(s) of all topics, default `wardgate`.
    #[serde(default = "default_root")]
    pub topic_root: String,
    /// After so long the broker is asked whether it is still there, default 30 s.
    #[serde(default = "default_keep_alive")]
    pub keep_alive: Span,
    /// Whose word moves the cursor.
    #[serde(default)]
    pub receipt: ReceiptOf,
    /// How long a collector's receipt may take before the message is sent again, default 60 s.
    #[serde(default = "default_receipt_timeout")]
    pub receipt_timeout: Span,
    /// Sealed to these recipients, so that the broker sees ciphertext.
    pub seal_to: Option<Sealer>,
    /// Messages of one lane that may be on their way, default 256; the broker's receive maximum may lower it.
    #[serde(default = "default_in_flight")]
    pub max_in_flight: u16,
    /// What becomes of a message that the broker refuses for good.
    #[serde(default)]
    pub when_refused: WhenRefused,
}

/// Whose word counts as the receipt.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReceiptOf {
    /// The broker's PUBACK.
    #[default]
    Broker,
    /// `wardgate collect`, after its own sync.
    Collector,
}

/// A connection to a broker.
pub struct Mqtt {
    session: Session,
    sealer: Option<Sealer>,
    /// `<root>/<site>/<gateway>`
    base: String,
    window: usize,
    packet_bytes_max: usize,
    retain: bool,
    announced: std::sync::Mutex<String>,
}

impl Upstream for Mqtt {
    type Config = Config;
    const PROTOCOL: &'static str = "mqtt";

    fn when_refused(config: &Config) -> WhenRefused {
        config.when_refused
    }

    async fn connect(config: &Config, about: &Identity) -> Result<Self, SendError> {
        let base = format!("{}/{}/{}", config.topic_root, about.site, about.gateway);
        let hello = hello(config, about, &base)?;
        let connector =
            config.tls.as_ref().map(ClientTls::connector).transpose().map_err(|error| down(error.to_string()))?;
        let dialled = stream::dial(&config.address, connector.as_ref(), DIAL_WAIT).await;
        let stream = dialled.map_err(|error| down(error.to_string()))?;
        let (mut link, granted) = Link::open(Box::new(stream), hello).await.map_err(gone)?;
        usable(&granted)?;
        let wants_receipts = config.receipt == ReceiptOf::Collector;
        if wants_receipts {
            // Receipts that come this early are for messages of an earlier connection: those are sent again.
            link.subscribe(&format!("{base}/receipt"), &mut Vec::new()).await.map_err(gone)?;
        }
        let in_flight = config.max_in_flight.min(granted.receive_maximum).max(1);
        let limits = Limits {
            in_flight: granted.receive_maximum.min(config.max_in_flight.max(1).saturating_mul(4)),
            keep_alive: granted.keep_alive_s.map_or(config.keep_alive.0, |s| Duration::from_secs(u64::from(s.max(1)))),
            receipt_wait: wants_receipts.then_some(config.receipt_timeout.0),
        };
        let mqtt = Self {
            session: Session::start(link, limits),
            sealer: config.seal_to.clone(),
            base,
            window: usize::from(in_flight),
            packet_bytes_max: usize::try_from(granted.packet_bytes_max).unwrap_or(usize::MAX),
            retain: granted.retain,
            announced: std::sync::Mutex::default(),
        };
        mqtt.say_status(&status_text("online", None));
        Ok(mqtt)
    }

    async fn send(&self, envelope: &Envelope) -> Result<Delivery, SendError> {
        let payload = Payload::new(envelope, self.sealer.as_ref()).map_err(unreadable)?.summed();
        let mut outgoing = Outgoing::new(self, envelope, payload.is_sealed());
        let part_bytes = outgoing.part_bytes(self.packet_bytes_max)?;
        let (reply, delivery) = oneshot::channel();
        let parts = payload.len().div_ceil(part_bytes as u64).max(1);
        let mut publication = self.session.begin(envelope.id, parts, reply)?;
        if parts == 1 {
            let (bytes, sha256) = payload.whole().await.map_err(unreadable)?;
            outgoing.publish(&mut publication, &bytes, Some(sha256)).await?;
        } else {
            outgoing.label.part = Some(first_part(parts)?);
            outgoing.publish_parts(&mut publication, payload, part_bytes).await?;
        }
        Ok(Delivery::waiting(delivery))
    }

    fn window(&self) -> usize {
        self.window
    }

    async fn closed(&self) -> String {
        self.session.closed().await
    }

    fn announce(&self, status: &Status) {
        let text = status_text("online", Some(status));
        let mut announced = self.announced.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if *announced != text {
            self.say_status(&text);
            *announced = text;
        }
    }

    async fn close(self) {
        self.say_status(&status_text("offline", None));
        self.session.close().await;
    }
}

impl Mqtt {
    /// QoS 0: it is retained by the broker all the same, and what is lost with the connection is said again by the next.
    fn say_status(&self, text: &str) {
        let publish = GenericPublish::<u16>::builder().topic_name(format!("{}/status", self.base));
        let built = publish.and_then(|publish| publish.qos(Qos::AtMostOnce).retain(self.retain).payload(text).build());
        match built {
            Ok(publish) if publish.size() <= self.packet_bytes_max => self.session.say(publish),
            _ => tracing::warn!(bytes = text.len(), "the status is too long for the broker and is not published"),
        }
    }
}

/// One message on its way out.
struct Outgoing {
    topic: String,
    label: Label,
}

impl Outgoing {
    fn new(mqtt: &Mqtt, envelope: &Envelope, sealed: bool) -> Self {
        let meta = &envelope.meta;
        let flags = meta.flags.names().join(",");
        let received = jiff::Timestamp::from_microsecond(meta.received.wall_us).map(|at| at.to_string());
        let label = Label {
            id: envelope.id.to_string(),
            source: meta.source.to_string(),
            protocol: meta.protocol.clone(),
            received: received.unwrap_or_default(),
            sha256: None,
            sealed,
            flags: Some(flags).filter(|flags| !flags.is_empty()),
            content_type: meta.content_type.clone(),
            part: None,
        };
        Self { topic: format!("{}/{}/{}", mqtt.base, meta.source, envelope.class), label }
    }

    /// How many bytes of the body fit into one packet beside the rest of it.
    fn part_bytes(&self, packet_bytes_max: usize) -> Result<usize, SendError> {
        let longest = Part { transfer: "0".repeat(16), part: PARTS_MAX, parts: PARTS_MAX };
        let label = Label { sha256: Some("0".repeat(64)), part: Some(longest), ..self.label.clone() };
        let empty = publish_packet(&self.topic, &label, 1, &[])?;
        // The length fields grow with the payload: by at most 3 bytes.
        let room = packet_bytes_max.saturating_sub(empty.size() + 3).min(PART_BYTES_MAX);
        match room >= PART_BYTES_MIN {
            true => Ok(room),
            false => Err(SendError::Rejected {
                reason: format!(
                    "the broker takes packets of at most {packet_bytes_max} bytes: too few for any message; raise its maximum packet size"
                ),
            }),
        }
    }

    async fn publish(
        &mut self,
        publication: &mut Publication<'_>,
        bytes: &[u8],
        sha256: Option<[u8; 32]>,
    ) -> Result<bool, SendError> {
        self.label.sha256 = sha256.map(|sha256| data_encoding::HEXLOWER.encode(&sha256));
        let (topic, label) = (&self.topic, &self.label);
        publication.publish(|id| publish_packet(topic, label, id, bytes), bytes.len() + PACKET_OVERHEAD, sha256).await
    }

    /// Cuts the pieces as they come into parts of `part_bytes` and publishes each.
    async fn publish_parts(
        &mut self,
        publication: &mut Publication<'_>,
        mut payload: Payload,
        part_bytes: usize,
    ) -> Result<(), SendError> {
        let mut gathered = BytesMut::with_capacity(part_bytes);
        loop {
            let piece = payload.next().await.map_err(unreadable)?;
            let ended = piece.is_none();
            let mut piece = piece.unwrap_or_default();
            while gathered.len() + piece.len() > part_bytes {
                let take = piece.split_to(part_bytes - gathered.len());
                gathered.extend_from_slice(&take);
                if !self.publish(publication, &gathered, payload.sha256()).await? {
                    return Ok(());
                }
                gathered.clear();
                self.next_part();
            }
            gathered.extend_from_slice(&piece);
            if ended {
                return self.last_part(publication, &gathered, payload.sha256()).await;
            }
        }
    }

    async fn last_part(
        &mut self,
        publication: &mut Publication<'_>,
        bytes: &[u8],
        sha256: Option<[u8; 32]>,
    ) -> Result<(), SendError> {
        match self.label.part.as_ref().is_some_and(|part| part.part == part.parts) {
            true => self.publish(publication, bytes, sha256).await.map(drop),
            false => Err(unreadable(BodyError::Unreadable("its length is not what was stored".into()))),
        }
    }

    fn next_part(&mut self) {
        if let Some(part) = &mut self.label.part {
            part.part += 1;
        }
    }
}

/// What a packet has beside payload, roughly: counted against the bytes that may wait.
const PACKET_OVERHEAD: usize = 512;

fn publish_packet(topic: &str, label: &Label, id: u16, bytes: &[u8]) -> Result<GenericPublish<u16>, SendError> {
    let properties = label.properties().map_err(|error| SendError::Rejected { reason: error.to_string() })?;
    let publish = GenericPublish::builder().topic_name(topic);
    let built = publish
        .and_then(|publish| publish.qos(Qos::AtLeastOnce).packet_id(id).props(properties).payload(bytes).build());
    built.map_err(|error: MqttError| SendError::Rejected { reason: format!("it can't be sent over MQTT: {error}") })
}

fn first_part(parts: u64) -> Result<Part, SendError> {
    let mut random = [0; 8];
    rand::fill(&mut random).map_err(|_| down("the system gives no random numbers".into()))?;
    let parts = u32::try_from(parts).ok().filter(|parts| *parts <= PARTS_MAX);
    let parts = parts.ok_or_else(|| SendError::Rejected {
        reason: format!("it needs more than {PARTS_MAX} parts: raise the broker's maximum packet size"),
    })?;
    Ok(Part { transfer: data_encoding::HEXLOWER.encode(&random), part: 1, parts })
}

fn hello(config: &Config, about: &Identity, base: &str) -> Result<Hello, SendError> {
    let default_id = || format!("wardgate-{}-{}-{}", about.site, about.gateway, about.upstream);
    let password =
        config.password.as_ref().map(credentials::read).transpose().map_err(|error| down(error.to_string()))?;
    Ok(Hello {
        client_id: config.client_id.clone().unwrap_or_else(default_id),
        username: config.username.clone(),
        // Files end with a line end as a rule, passwords do not.
        password: password.map(|secret| secret.trim_ascii_end().to_vec().into()),
        keep_alive: config.keep_alive.0,
        session_expiry_s: 0,
        will: Some((format!("{base}/status"), status_text("offline", None))),
        packet_bytes_max: INCOMING_BYTES_MAX,
        receive_maximum: INCOMING_MAX,
    })
}

fn usable(granted: &Granted) -> Result<(), SendError> {
    match granted.qos_1 {
        true => Ok(()),
        false => Err(down("the broker supports only QoS 0, which acknowledges nothing: allow QoS 1 there".into())),
    }
}

/// The retained status: what a person upstream must see. No patient data is in a [`Status`].
fn status_text(state: &str, status: Option<&Status>) -> String {
    let alarms: &[Alarm] = status.map_or(&[], |status| status.alarms.as_slice());
    let text = serde_json::json!({
        "state": state,
        "version": env!("CARGO_PKG_VERSION"),
        "config": status.map(|status| status.config.as_str()),
        "alarms": alarms,
    });
    text.to_string()
}

fn down(cause: String) -> SendError {
    SendError::Disconnected { cause }
}

fn gone(fault: Fault) -> SendError {
    down(fault.0)
}

/// Our own disk's fault, but it blames this message only: retried, then a dead letter.
fn unreadable(error: BodyError) -> SendError {
    SendError::Refused { reason: error.to_string() }
}

fn default_root() -> String {
    TOPIC_ROOT.into()
}

fn default_keep_alive() -> Span {
    Span(Duration::from_secs(30))
}

fn default_receipt_timeout() -> Span {
    Span(Duration::from_secs(60))
}

fn default_in_flight() -> u16 {
    256
}

impl Section for Config {
    fn check(&self, problems: &mut Problems) {
        match (&self.tls, self.plain) {
            (None, false) => problems
                .error("", "without TLS everyone on the way can read it: give tls = { ca = ... }, or say plain = true"),
            (Some(_), true) => problems.error("plain", "plain = true and tls exclude each other: remove one"),
            (Some(tls), false) => problems.under("tls", |problems| tls.check(problems)),
            (None, true) if self.password.is_some() => {
                problems.warn("password", "it goes over the network in clear: use tls")
            }
            (None, true) => {}
        }
        if self.password.is_some() && self.username.is_none() {
            problems.error("password", "a password needs a username");
        }
        let root = &self.topic_root;
        let wild = root.contains(['+', '#', '$', '\0']) || root.starts_with('/') || root.ends_with('/');
        if wild || root.is_empty() || root.len() > TEXT_BYTES_MAX {
            problems.error(
                "topic-root",
                format!("1 to {TEXT_BYTES_MAX} characters without + # $, neither beginning nor ending with /"),
            );
        }
        if self.client_id.as_ref().is_some_and(|id| id.is_empty() || id.len() > TEXT_BYTES_MAX) {
            problems.error("client-id", format!("1 to {TEXT_BYTES_MAX} characters; leave it out for a good default"));
        }
        if !(KEEP_ALIVE.0..=KEEP_ALIVE.1).contains(&self.keep_alive.0) {
            problems.error("keep-alive", "between 5s and 18h");
        }
        if self.receipt_timeout.0 < Duration::from_secs(1) {
            problems.error("receipt-timeout", "at least 1s");
        }
        if self.max_in_flight == 0 {
            problems.error("max-in-flight", "at least 1");
        }
    }

    fn files(&mut self, visit: &mut dyn FnMut(&mut SecretRef)) {
        if let Some(tls) = &mut self.tls {
            tls.files(visit);
        }
        if let Some(password) = &mut self.password {
            visit(password);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<(String, bool)> {
        let mut problems = Problems::default();
        toml::from_str::<Config>(text).unwrap().check(&mut problems);
        problems.into_found().into_iter().map(|found| (found.path.join("."), found.warning)).collect()
    }

    #[test]
    fn a_broker_without_tls_must_be_said_aloud() {
        assert_eq!(problems("address = \"b:1883\""), [(String::new(), false)]);
        assert_eq!(problems("address = \"b:1883\"\nplain = true"), []);
        let both = "address = \"b:1883\"\nplain = true\ntls = { ca = \"ca.pem\" }";
        assert!(problems(both).contains(&("plain".into(), false)));
        let clear = "address = \"b:1883\"\nplain = true\nusername = \"u\"\npassword = \"p\"";
        assert_eq!(problems(clear), [("password".into(), true)]);
    }

    #[test]
    fn every_value_out_of_bounds_is_named_at_once() {
        let text = "address = \"b:1\"\nplain = true\ntopic-root = \"a/+\"\nclient-id = \"\"\nkeep-alive = \"1s\"\nreceipt-timeout = \"1ms\"\nmax-in-flight = 0\npassword = \"p\"";
        let named: Vec<_> = problems(text).into_iter().map(|(path, _)| path).collect();
        let expected =
            ["password", "password", "topic-root", "client-id", "keep-alive", "receipt-timeout", "max-in-flight"];
        assert_eq!(named, expected);
        assert!(toml::from_str::<Config>("address = \"b:1\"\nreceipt = \"nobody\"").is_err());
    }
}
