//! HL7 v2 over MLLP, plain or TLS: `[source.<name>.mllp]`.
//!
//! Devices connect and send; each message is answered after its commit, in the codes that its MSH-15 and MSH-16 ask for. What
//! can't be understood is stored and flagged all the same, and rejected. The rules of the framing are in [`crate::wire::mllp`],
//! those of the answers in [`crate::wire::answer`], the loop of one connection in `mllp_connection`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;

use super::accept::{CONNECTIONS_DEFAULT, Listener, Rules};
use super::intake::Intake;
use super::mllp_connection::{self, Settings};
use super::{Source, SourceError, Stop};
use crate::system::sockets::Sockets;
use crate::system::tls::ServerTls;
use crate::values::{ByteSize, Listen, Problems, SecretRef, Section, Span};
use crate::wire::answer::{ApplicationAck, Mode};
use crate::wire::mllp::BODY_BYTES_MAX;

/// What `max-message-size` may be: from what one read can bring to what a spool can take.
const MESSAGE_SIZES: (ByteSize, ByteSize) = (ByteSize(64 << 10), ByteSize(1 << 30));
/// What each of the timeouts may be.
const TIMEOUTS: (Span, Span) = (Span(Duration::from_millis(100)), Span(Duration::from_secs(7 * 86_400)));

/// `[source.<name>.mllp]`.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct MllpConfig {
    /// Where to listen.
    pub listen: Listen,
    /// Networks that may connect; without it all may.
    #[serde(default)]
    pub allow: Vec<IpNet>,
    /// Speak TLS; with a `client-ca` devices must show a certificate.
    pub tls: Option<ServerTls>,
    /// Who chooses between AA (original mode) and CA (enhanced mode): each message, or this line for all of them.
    #[serde(default)]
    pub ack: Mode,
    /// Whether a message that asks for both acknowledgements gets the application's from this box.
    #[serde(default)]
    pub application_ack: ApplicationAck,
    /// A larger message is rejected.
    #[serde(default = "default_message_size")]
    pub max_message_size: ByteSize,
    /// Connections at once; more wait.
    #[serde(default = "default_connections")]
    pub max_connections: usize,
    /// A connection on which nothing comes for so long is closed.
    #[serde(default = "default_idle")]
    pub idle_timeout: Span,
    /// A frame that has begun must end within this time, and as much again for each 256 KiB that it has.
    #[serde(default = "default_frame")]
    pub frame_timeout: Span,
    /// A device that does not read its answer within this time is cut off.
    #[serde(default = "default_write")]
    pub write_timeout: Span,
    /// An alarm is raised when no message came for so long.
    pub silent_after: Option<Span>,
    /// The charset (IANA name) of messages that do not name one in MSH-18.
    pub charset: Option<String>,
}

fn default_message_size() -> ByteSize {
    ByteSize(BODY_BYTES_MAX)
}

fn default_connections() -> usize {
    CONNECTIONS_DEFAULT
}

fn default_idle() -> Span {
    Span(Duration::from_secs(86_400))
}

fn default_frame() -> Span {
    Span(Duration::from_secs(30))
}

fn default_write() -> Span {
    Span(Duration::from_secs(10))
}

impl MllpConfig {
    fn rules(&self) -> Rules {
        Rules { allow: self.allow.clone(), connections: self.max_connections }
    }
}

impl Section for MllpConfig {
    fn check(&self, problems: &mut Problems) {
        self.rules().check(self.listen, self.tls.as_ref(), problems);
        let (least, most) = MESSAGE_SIZES;
        if !(least..=most).contains(&self.max_message_size) {
            problems.error("max-message-size", format!("must be from {least} to {most}"));
        }
        let (shortest, longest) = TIMEOUTS;
        for (key, span) in [
            ("idle-timeout", self.idle_timeout),
            ("frame-timeout", self.frame_timeout),
            ("write-timeout", self.write_timeout),
        ] {
            if !(shortest..=longest).contains(&span) {
                problems.error(key, format!("must be from {shortest} to {longest}"));
            }
        }
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
        if self.charset.as_ref().is_some_and(|name| name.is_empty() || name.len() > 40 || !name.chars().all(legal)) {
            problems.error("charset", "is not a charset name: write for example \"iso-8859-1\" or \"utf-8\"");
        }
        if self.application_ack == ApplicationAck::OnCommit && self.ack == Mode::Original {
            problems
                .warn("application-ack", "has no effect with ack = \"original\", which knows one acknowledgement only");
        }
        if let Some(tls) = &self.tls {
            problems.under("tls", |problems| tls.check(problems));
        }
    }

    fn files(&mut self, visit: &mut dyn FnMut(&mut SecretRef)) {
        if let Some(tls) = &mut self.tls {
            tls.files(visit);
        }
    }
}

/// A listener for MLLP.
pub struct Mllp {
    listener: Listener,
    settings: Arc<Settings>,
}

impl Source for Mllp {
    type Config = MllpConfig;

    const PROTOCOL: &'static str = "mllp";

    async fn open(config: &MllpConfig, sockets: &Sockets) -> Result<Self, SourceError> {
        let listener = Listener::open(config.listen, config.rules(), config.tls.as_ref(), sockets).await?;
        Ok(Self { listener, settings: Arc::new(Settings::new(config)) })
    }

    fn endpoint(&self) -> String {
        let bound: SocketAddr = self.listener.endpoint();
        bound.to_string()
    }

    async fn run(&mut self, intake: &Intake, stop: &Stop) -> Result<(), SourceError> {
        let (settings, connections, stopping) = (Arc::clone(&self.settings), intake.clone(), stop.clone());
        let serve =
            move |stream| mllp_connection::serve(stream, Arc::clone(&settings), connections.clone(), stopping.clone());
        self.listener.run(intake.counters(), stop, serve).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<MllpConfig, toml::de::Error> {
        toml::from_str(text)
    }

    fn problems(text: &str) -> Vec<String> {
        let mut problems = Problems::default();
        parsed(text).unwrap().check(&mut problems);
        problems.into_found().into_iter().map(|problem| problem.path.join(".")).collect()
    }

    #[test]
    fn one_line_is_enough_and_the_defaults_are_those_of_the_documentation() {
        let config = parsed("listen = \"127.0.0.1:2575\"").unwrap();
        assert_eq!((config.ack, config.application_ack), (Mode::Auto, ApplicationAck::Never));
        assert_eq!(config.max_message_size.to_string(), "64MiB");
        assert_eq!((config.idle_timeout.to_string(), config.frame_timeout.to_string()), ("1d".into(), "30s".into()));
        assert_eq!((config.max_connections, config.silent_after), (256, None));
    }

    #[test]
    fn every_key_is_understood_and_an_unknown_one_is_an_error() {
        let config = parsed(
            "listen = \"10.20.0.1:2575\"\nallow = [\"10.20.0.0/24\"]\nack = \"enhanced\"\napplication-ack = \"on-commit\"\n\
             max-message-size = \"16MiB\"\nmax-connections = 8\nidle-timeout = \"5m\"\nframe-timeout = \"10s\"\n\
             write-timeout = \"2s\"\nsilent-after = \"5m\"\ncharset = \"iso-8859-1\"\n\
             tls = { certificate = \"a.pem\", key = \"a.key\", client-ca = \"ca.pem\" }\n",
        )
        .unwrap();
        assert_eq!((config.ack, config.application_ack), (Mode::Enhanced, ApplicationAck::OnCommit));
        let mut files = Vec::new();
        config.clone().files(&mut |file| files.push(file.to_string()));
        assert_eq!(files.len(), 3);
        assert!(parsed("listen = \"127.0.0.1:1\"\nalow = []").is_err());
        assert_eq!(parsed("listen = \"127.0.0.1:1\"\nack = \"application\"").unwrap().ack, Mode::Original);
        assert!(parsed("listen = \"127.0.0.1:1\"\nack = \"always\"").is_err());
    }

    #[test]
    fn what_is_unsafe_or_impossible_is_named_by_its_key() {
        assert_eq!(problems("listen = \"0.0.0.0:2575\""), ["listen"]);
        assert_eq!(problems("listen = \"0.0.0.0:2575\"\nallow = [\"10.0.0.0/8\"]"), Vec::<String>::new());
        assert_eq!(
            problems(
                "listen = \"127.0.0.1:1\"\nmax-message-size = \"1KiB\"\nmax-connections = 0\nframe-timeout = \"0s\"\n\
                 charset = \"latin one\"\nack = \"original\"\napplication-ack = \"on-commit\""
            ),
            ["max-connections", "max-message-size", "frame-timeout", "charset", "application-ack"]
        );
    }
}
