//! An ingest endpoint for MQTT sensors, versions 3.1.1 and 5, plain or TLS: `[source.<name>.mqtt]`.
//!
//! It takes messages and gives none: a SUBSCRIBE is refused, no session outlives its connection. QoS 1 and 2 are acknowledged after the sync of
//! the reading that the message became; MQTT 5 clients are told that QoS 1 is the most. A second copy after a reconnect is stored again: at
//! least once. Who may connect and publish where is in `mqtt_clients`, the loop of one connection in `mqtt_connection`, what the bytes mean in
//! [`crate::wire::mqtt_packet`].
//!
//! Topics and client ids may hold anything that a device puts there, a patient's name too: they stand in the stored record and in no log line, of
//! whatever level, no figure and no alarm. Logs name a client as the configuration does.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;

use super::accept::{CONNECTIONS_DEFAULT, Listener, Rules};
use super::intake::{Intake, STREAM_BYTES};
use super::mqtt_clients::Clients;
use super::mqtt_connection;
use super::mqtt_endpoint::{Endpoint, TOPIC_BYTES_MAX};
use super::profile::{Asking, Profile, ProfileRef};
use super::readings::TelemetryLog;
use super::serial::loaded;
use super::{Source, SourceError, Stop};
use crate::system::password::Hashed;
use crate::system::sockets::Sockets;
use crate::system::tls::ServerTls;
use crate::values::{ByteSize, Listen, Problems, SecretRef, Section, Span};
use crate::wire::mqtt_topic;

/// What `max-packet-size` may be: up to what a message that is still arriving may hold in memory.
const PACKET_SIZES: (ByteSize, ByteSize) = (ByteSize(1 << 10), ByteSize(STREAM_BYTES as u64));
/// What `receive-maximum` may be.
const RECEIVE_MAXIMUM_MAX: u16 = 1024;
/// What each of the timeouts may be.
const TIMEOUTS: (Span, Span) = (Span(Duration::from_millis(100)), Span(Duration::from_secs(3_600)));
/// Clients that a source may list.
const CLIENTS_MAX: usize = 4096;
/// Rules for payloads: each message is held against them.
const DECODERS_MAX: usize = 64;
/// Topic filters that a client may have.
const FILTERS_MAX: usize = 64;
/// Bytes of an id, a user or a certificate's name in the configuration: it names a stream.
const IDENTITY_BYTES_MAX: usize = 128;

/// `[source.<name>.mqtt]`.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct MqttConfig {
    /// Where to listen.
    pub listen: Listen,
    /// Networks that may connect; without it all may.
    #[serde(default)]
    pub allow: Vec<IpNet>,
    /// Speak TLS; with a `client-ca` clients must show a certificate, or may when it is optional.
    pub tls: Option<ServerTls>,
    /// The log that readings go to.
    #[serde(default)]
    pub log: TelemetryLog,
    /// A larger packet ends its connection.
    #[serde(default = "default_packet_size")]
    pub max_packet_size: ByteSize,
    /// Messages of QoS 1 and 2 that a client may have unacknowledged; MQTT 5 clients are told, others are read no further.
    #[serde(default = "default_receive_maximum")]
    pub receive_maximum: u16,
    /// Connections at once; more wait.
    #[serde(default = "default_connections")]
    pub max_connections: usize,
    /// A new connection must bring its whole CONNECT within this time.
    #[serde(default = "default_timeout")]
    pub connect_timeout: Span,
    /// A client that does not read its acknowledgements within this time is cut off.
    #[serde(default = "default_timeout")]
    pub write_timeout: Span,
    /// An alarm is raised when no message came for so long.
    pub silent_after: Option<Span>,
    /// Who may connect.
    #[serde(default)]
    pub client: Vec<ClientConfig>,
    /// Which payloads are read; others are kept as they come.
    #[serde(default)]
    pub decode: Vec<DecodeConfig>,
}

/// `[[source.<name>.mqtt.decode]]`: payloads of these topics are read by a profile. The first that covers a topic counts.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DecodeConfig {
    /// Topic filter.
    pub topic: Filter,
    /// Built in, or a file. A payload is a frame: framing and checksum of the profile are passed over.
    pub profile: ProfileRef,
}

/// `[[source.<name>.mqtt.client]]`: who it is, and where it may publish. All that is given of id, user and certificate must fit.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ClientConfig {
    /// The MQTT client id that it must use; without it any.
    pub id: Option<String>,
    /// The user name that it must give, with its password.
    pub user: Option<String>,
    /// The hash of its password, from `wardgate keys password`.
    pub password: Option<Hashed>,
    /// The common name in the certificate that it must show.
    pub certificate: Option<String>,
    /// Topic filters: where it may publish.
    pub publish: Vec<Filter>,
    /// Connections at once, each with a client id of its own.
    #[serde(default = "default_client_connections")]
    pub max_connections: usize,
}

/// A topic filter, checked.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Filter(String);

impl Filter {
    /// Whether it covers this topic name.
    pub fn covers(&self, topic: &str) -> bool {
        mqtt_topic::covers(&self.0, topic)
    }
}

impl TryFrom<String> for Filter {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match mqtt_topic::is_filter(&text) && text.len() <= TOPIC_BYTES_MAX {
            true => Ok(Self(text)),
            false => Err(format!(
                "{text:?} is not a topic filter: levels stand between /, + stands for a whole level and # for all that follow"
            )),
        }
    }
}

impl fmt::Display for ClientConfig {
    /// The name of its stream.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.id.as_ref().or(self.user.as_ref()).or(self.certificate.as_ref());
        f.write_str(name.map_or("", String::as_str))
    }
}

fn default_packet_size() -> ByteSize {
    ByteSize(256 << 10)
}

fn default_receive_maximum() -> u16 {
    64
}

fn default_connections() -> usize {
    CONNECTIONS_DEFAULT
}

fn default_client_connections() -> usize {
    CONNECTIONS_DEFAULT
}

fn default_timeout() -> Span {
    Span(Duration::from_secs(10))
}

impl MqttConfig {
    fn rules(&self) -> Rules {
        Rules { allow: self.allow.clone(), connections: self.max_connections }
    }

    fn check_decoding(&self, problems: &mut Problems) {
        if self.decode.len() > DECODERS_MAX {
            problems.error("decode", format!("lists more than {DECODERS_MAX}: let one profile serve several topics"));
        }
        for (at, DecodeConfig { profile, .. }) in self.decode.iter().enumerate() {
            let check = |problems: &mut Problems| match profile.load() {
                Ok(profile) if profile.asking != Asking::default() => {
                    problems.warn("profile", "this profile asks the device, which never happens over MQTT");
                }
                Ok(_) => {}
                Err(found) => found.into_iter().for_each(|problem| problems.error("profile", problem)),
            };
            problems.under("decode", |problems| problems.under(&at.to_string(), check));
        }
    }

    fn check_clients(&self, problems: &mut Problems) {
        if self.client.is_empty() {
            problems.error(
                "",
                "nobody may connect: add [[source.NAME.mqtt.client]] with an id, user or certificate, and publish = [\"TOPIC/#\"]",
            );
        }
        if self.client.len() > CLIENTS_MAX {
            problems
                .error("client", format!("lists more than {CLIENTS_MAX}: let several share a user or a topic filter"));
        }
        let certificates = self.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        let secret = self.tls.is_some() || self.listen.0.ip().to_canonical().is_loopback();
        for (at, client) in self.client.iter().enumerate() {
            let check = |problems: &mut Problems| {
                client.check(problems);
                if client.certificate.is_some() && !certificates {
                    problems.error("certificate", "nobody can show one here: add tls with a client-ca");
                }
                if client.password.is_some() && !secret {
                    problems.warn("password", "it crosses the network in clear: add tls");
                }
            };
            problems.under("client", |problems| problems.under(&at.to_string(), check));
        }
    }
}

impl ClientConfig {
    fn check(&self, problems: &mut Problems) {
        let given = [("id", &self.id), ("user", &self.user), ("certificate", &self.certificate)];
        if given.iter().all(|(_, name)| name.is_none()) {
            problems.error("", "needs at least one of id, user and certificate, to know the client by");
        }
        for (key, name) in given.into_iter().filter_map(|(key, name)| Some((key, name.as_ref()?))) {
            if name.is_empty() || name.len() > IDENTITY_BYTES_MAX || name.contains(char::is_control) {
                problems.error(key, format!("must have 1 to {IDENTITY_BYTES_MAX} bytes and no control characters"));
            }
        }
        if self.user.is_some() != self.password.is_some() {
            problems.error("", "user and password belong together: give both, or neither");
        }
        if self.publish.is_empty() || self.publish.len() > FILTERS_MAX {
            problems.error("publish", format!("must name 1 to {FILTERS_MAX} topic filters: \"ward3/+/spo2\""));
        }
        if self.max_connections == 0 {
            problems.error("max-connections", "must be at least 1");
        }
        if self.user.is_none() && self.certificate.is_none() {
            problems
                .warn("id", "has neither password nor certificate beside it: whoever can connect may use this name");
        }
    }
}

impl Section for MqttConfig {
    fn check(&self, problems: &mut Problems) {
        self.rules().check(self.listen, self.tls.as_ref(), problems);
        let (least, most) = PACKET_SIZES;
        if !(least..=most).contains(&self.max_packet_size) {
            problems.error("max-packet-size", format!("must be from {least} to {most}"));
        }
        if !(1..=RECEIVE_MAXIMUM_MAX).contains(&self.receive_maximum) {
            problems.error("receive-maximum", format!("must be from 1 to {RECEIVE_MAXIMUM_MAX}"));
        }
        let (shortest, longest) = TIMEOUTS;
        for (key, span) in [("connect-timeout", self.connect_timeout), ("write-timeout", self.write_timeout)] {
            if !(shortest..=longest).contains(&span) {
                problems.error(key, format!("must be from {shortest} to {longest}"));
            }
        }
        self.check_clients(problems);
        self.check_decoding(problems);
        if let Some(tls) = &self.tls {
            problems.under("tls", |problems| tls.check(problems));
        }
    }

    fn files(&mut self, visit: &mut dyn FnMut(&mut SecretRef)) {
        if let Some(tls) = &mut self.tls {
            tls.files(visit);
        }
        self.decode.iter_mut().for_each(|rule| rule.profile.files(visit));
    }
}

/// A listener for MQTT.
pub struct Mqtt {
    listener: Listener,
    config: MqttConfig,
    decoders: Arc<[Decoder]>,
}

/// A filter and what reads the payloads of its topics.
pub(super) struct Decoder {
    pub(super) topic: Filter,
    pub(super) profile: Arc<Profile>,
}

impl Source for Mqtt {
    type Config = MqttConfig;

    const PROTOCOL: &'static str = "mqtt";

    async fn open(config: &MqttConfig, sockets: &Sockets) -> Result<Self, SourceError> {
        let decoder = |rule: &DecodeConfig| Ok(Decoder { topic: rule.topic.clone(), profile: loaded(&rule.profile)? });
        let decoders = config.decode.iter().map(decoder).collect::<Result<_, SourceError>>()?;
        let listener = Listener::open(config.listen, config.rules(), config.tls.as_ref(), sockets).await?;
        Ok(Self { listener, config: config.clone(), decoders })
    }

    fn endpoint(&self) -> String {
        self.listener.endpoint().to_string()
    }

    async fn run(&mut self, intake: &Intake, stop: &Stop) -> Result<(), SourceError> {
        let clients = Clients::new(&self.config.client, intake);
        let endpoint = Arc::new(Endpoint::new(&self.config, clients, &self.decoders, intake.clone(), stop.clone()));
        let serve = move |stream| mqtt_connection::serve(stream, Arc::clone(&endpoint));
        self.listener.run(intake.counters(), stop, serve).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: &str = "[[client]]\nid = \"a\"\npublish = [\"a/#\"]\n";

    fn parsed(text: &str) -> Result<MqttConfig, toml::de::Error> {
        toml::from_str(text)
    }

    fn problems(text: &str) -> Vec<String> {
        let mut problems = Problems::default();
        parsed(text).unwrap().check(&mut problems);
        problems
            .into_found()
            .into_iter()
            .map(|problem| format!("{}: {}", problem.path.join("."), problem.text))
            .collect()
    }

    #[test]
    fn a_listener_and_a_client_are_enough_and_the_defaults_are_those_of_the_documentation() {
        let config = parsed(&format!("listen = \"127.0.0.1:1883\"\n{CLIENT}")).unwrap();
        assert_eq!((config.max_packet_size.to_string(), config.receive_maximum), ("256KiB".into(), 64));
        assert_eq!((config.max_connections, config.log), (256, TelemetryLog::Telemetry));
        assert_eq!(
            (config.connect_timeout.to_string(), config.write_timeout.to_string()),
            ("10s".into(), "10s".into())
        );
        assert_eq!(config.client[0].max_connections, 256);
    }

    #[test]
    fn a_client_that_cannot_be_known_or_may_publish_nowhere_is_a_problem_in_words() {
        let with = |client: &str| problems(&format!("listen = \"127.0.0.1:1\"\n[[client]]\n{client}")).join("\n");
        assert!(with("publish = [\"#\"]").contains("at least one of id, user and certificate"));
        assert!(with("user = \"u\"\npublish = [\"#\"]").contains("user and password belong together"));
        assert!(with("id = \"a\"\npublish = []").contains("must name 1 to 64 topic filters"));
        assert!(with("certificate = \"a\"\npublish = [\"#\"]").contains("add tls with a client-ca"));
        assert!(with("id = \"a\"\npublish = [\"#\"]").contains("whoever can connect may use this name"));
        assert!(problems("listen = \"127.0.0.1:1\"").join("").contains("nobody may connect"));
    }

    #[test]
    fn a_profile_for_payloads_that_can_not_be_read_is_told_with_its_place() {
        let with =
            |rule: &str| problems(&format!("listen = \"127.0.0.1:1\"\n{CLIENT}[[decode]]\ntopic = \"a/#\"\n{rule}"));
        assert!(with("profile = \"json\"").iter().all(|problem| !problem.contains("decode")));
        let unknown = with("profile = \"jsn\"").join("\n");
        assert!(unknown.contains("decode.0.profile: ") && unknown.contains("built-in profiles"), "{unknown}");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("bad.toml");
        std::fs::write(&file, "name = \"x\"\njson = true\n[[value]]\npointer = \"a\"\n").unwrap();
        let bad = with(&format!("profile = \"{}\"", file.display())).join("\n");
        assert!(bad.contains("bad.toml:4:11: is no JSON pointer: it begins with /"), "{bad}");
    }

    #[test]
    fn a_password_in_clear_and_a_bad_filter_do_not_load() {
        let with =
            |client: &str| parsed(&format!("listen = \"127.0.0.1:1\"\n[[client]]\n{client}")).unwrap_err().to_string();
        assert!(with("user = \"u\"\npassword = \"secret\"\npublish = [\"#\"]").contains("wardgate keys password"));
        assert!(with("id = \"u\"\npublish = [\"a/#/b\"]").contains("not a topic filter"));
    }

    #[test]
    fn what_is_unsafe_or_impossible_is_named_by_its_key() {
        let found = problems(&format!(
            "listen = \"0.0.0.0:1883\"\nmax-packet-size = \"1MiB\"\nreceive-maximum = 0\nconnect-timeout = \"0s\"\n{CLIENT}"
        ));
        let keys: Vec<&str> = found.iter().filter_map(|text| text.split(':').next()).collect();
        assert_eq!(keys, ["listen", "max-packet-size", "receive-maximum", "connect-timeout", "client.0.id"]);
    }
}
