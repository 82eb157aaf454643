//! The network side: where stored messages go. One file (or folder) per protocol, one [`Upstream`] each.
//!
//! An upstream answers for one thing: its receipt means that the peer took responsibility. It never retries and never
//! decides what becomes of a message: [`forwarder`] owns reconnecting, backing off, dead letters and cursors.

use std::future::Future;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::envelope::Envelope;
use crate::values::{Problems, SecretRef, Section};
use forwarder::{Forwarding, forward};

mod answers;
pub mod commitment;
pub mod dicom;
pub mod directory;
#[cfg(test)]
mod fixtures;
mod flights;
pub mod forwarder;
#[cfg(test)]
mod forwarder_tests;
pub mod holds;
mod http_body;
pub mod http_link;
pub mod https;
mod lane;
mod link;
pub mod mllp;
pub mod mqtt;
pub mod mqtt_flights;
pub mod mqtt_link;
pub mod mqtt_session;
pub mod opening;
mod presence;
pub mod sealing;
pub mod stow;
pub mod url;

/// Stopping is a value that is passed in: when it is cancelled, send nothing new, wait shortly for receipts, return.
pub type Stop = CancellationToken;

/// `[upstream.<name>.<protocol>]`: one upstream's section.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpstreamConfig {
    /// HL7 v2 to an engine.
    Mllp(mllp::MllpConfig),
    /// MQTT 5 to a broker.
    Mqtt(mqtt::Config),
    /// POST to a server.
    Https(https::HttpsConfig),
    /// DICOM instances to a DICOMweb server.
    Stow(stow::StowConfig),
    /// Files in a folder.
    Directory(directory::DirectoryConfig),
    /// Reports of storage commitment to devices; made by the gateway, never read from a file.
    #[serde(skip)]
    Commitment(commitment::Config),
    /// C-STORE to an archive.
    Dicom(dicom::DicomConfig),
}

impl UpstreamConfig {
    /// The key in `[upstream.<name>.<protocol>]`.
    pub fn protocol(&self) -> &'static str {
        match self {
            Self::Mllp(_) => mllp::Mllp::PROTOCOL,
            Self::Mqtt(_) => mqtt::Mqtt::PROTOCOL,
            Self::Https(_) => https::Https::PROTOCOL,
            Self::Stow(_) => stow::Stow::PROTOCOL,
            Self::Directory(_) => directory::Directory::PROTOCOL,
            Self::Commitment(_) => commitment::Commitment::PROTOCOL,
            Self::Dicom(_) => dicom::Dicom::PROTOCOL,
        }
    }

    /// Where it sends to, for people.
    pub fn endpoint(&self) -> String {
        match self {
            Self::Mllp(config) => config.address.to_string(),
            Self::Mqtt(config) => config.address.to_string(),
            Self::Https(config) => config.url.to_string(),
            Self::Stow(config) => config.url.to_string(),
            Self::Directory(config) => config.path.display().to_string(),
            Self::Commitment(_) => "the devices that asked".to_owned(),
            Self::Dicom(config) => config.address.to_string(),
        }
    }

    /// Delivers until `stop`: see [`forwarder::forward`].
    pub async fn forward(self, forwarding: Forwarding, stop: Stop) {
        match self {
            Self::Mllp(config) => forward::<mllp::Mllp>(config, forwarding, stop).await,
            Self::Mqtt(config) => forward::<mqtt::Mqtt>(config, forwarding, stop).await,
            Self::Https(config) => forward::<https::Https>(config, forwarding, stop).await,
            Self::Stow(config) => forward::<stow::Stow>(config, forwarding, stop).await,
            Self::Directory(config) => forward::<directory::Directory>(config, forwarding, stop).await,
            Self::Commitment(config) => {
                let served = commitment::Served { config, spool: forwarding.spool.clone() };
                forward::<commitment::Commitment>(served, forwarding, stop).await;
            }
            Self::Dicom(config) => forward::<dicom::Dicom>(config, forwarding, stop).await,
        }
    }
}

impl Section for UpstreamConfig {
    fn check(&self, problems: &mut Problems) {
        match self {
            Self::Mllp(config) => config.check(problems),
            Self::Mqtt(config) => config.check(problems),
            Self::Https(config) => config.check(problems),
            Self::Stow(config) => config.check(problems),
            Self::Directory(config) => config.check(problems),
            Self::Commitment(config) => config.check(problems),
            Self::Dicom(config) => config.check(problems),
        }
    }

    fn files(&mut self, visit: &mut dyn FnMut(&mut SecretRef)) {
        match self {
            Self::Mllp(config) => config.files(visit),
            Self::Mqtt(config) => config.files(visit),
            Self::Https(config) => config.files(visit),
            Self::Stow(config) => config.files(visit),
            Self::Directory(config) => config.files(visit),
            Self::Commitment(config) => config.files(visit),
            Self::Dicom(config) => config.files(visit),
        }
    }
}

/// What becomes of a message that an upstream refuses for good: `when-refused` of each upstream.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenRefused {
    /// It is kept as a dead letter, shown and replayable; its lane goes on.
    #[default]
    DeadLetter,
    /// Its lane stands still and says why, until a person decides.
    Hold,
}

/// A protocol that takes messages upstream, over one connection (or none, for a directory).
pub trait Upstream: Sized + Send + Sync + 'static {
    /// Its section of the configuration.
    type Config: Section + Clone + PartialEq + Send + Sync + 'static;
    /// The key in `[upstream.<name>.<protocol>]`.
    const PROTOCOL: &'static str;
    /// How long a stop waits for receipts of what is on its way.
    const DRAIN_MAX: Duration = forwarder::DRAIN_MAX;

    /// The section's `when-refused`.
    fn when_refused(config: &Self::Config) -> WhenRefused;

    /// Connects and says hello. Fails fast: the forwarder waits and tries again.
    ///
    /// # Errors
    /// [`SendError::Disconnected`] with the cause in words.
    fn connect(config: &Self::Config, about: &Identity) -> impl Future<Output = Result<Self, SendError>> + Send;

    /// Puts the envelope on its way, in the order of the calls of one lane; the [`Delivery`] tells how it ended.
    ///
    /// # Errors
    /// [`SendError`], as for the delivery itself.
    fn send(&self, envelope: &Envelope) -> impl Future<Output = Result<Delivery, SendError>> + Send;

    /// How many messages of one lane may be on their way; 1 unless the protocol keeps their order.
    fn window(&self) -> usize {
        1
    }

    /// Completes when the connection is gone though nothing was sent (a peer that hangs up, a keep-alive that fails), with the
    /// cause in words. It is cancelled and called again at will.
    fn closed(&self) -> impl Future<Output = String> + Send {
        std::future::pending()
    }

    /// Tells the peer how this box stands, where the protocol has a place for it (MQTT: the retained status topic). Called
    /// once after each connect and whenever something changed; never blocks, never fails: a lost status is told again by the next connection.
    fn announce(&self, _status: &crate::status::Status) {}

    /// Says goodbye within a short time of its own (MQTT: DISCONNECT, so that no last will is sent).
    fn close(self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}

/// Who this box is, for protocols that say so (topics, client ids, HTTP headers).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The gateway's name.
    pub gateway: crate::values::Name,
    /// The site's name.
    pub site: crate::values::Name,
    /// The upstream's own name in the configuration.
    pub upstream: crate::values::Name,
}

/// The peer took responsibility for the message; what it said, for the log at debug level (no patient data).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The protocol's words: `AA`, `CA`, `201`, `puback`, `collector`, `renamed`.
    pub code: String,
}

/// A message on its way: resolves to the peer's receipt or to why there is none.
#[derive(Debug)]
pub struct Delivery(State);

#[derive(Debug)]
enum State {
    Done(Result<Receipt, SendError>),
    Waiting(oneshot::Receiver<Result<Receipt, SendError>>),
}

impl Delivery {
    /// The receipt is already here.
    pub fn done(code: impl Into<String>) -> Self {
        Self(State::Done(Ok(Receipt { code: code.into() })))
    }

    /// How it ended is already known: badly. For a failure that must wait for those on their way before it.
    pub fn failed(error: SendError) -> Self {
        Self(State::Done(Err(error)))
    }

    /// The receipt comes through `receiver`; when its sender is dropped the connection is taken for lost.
    pub fn waiting(receiver: oneshot::Receiver<Result<Receipt, SendError>>) -> Self {
        Self(State::Waiting(receiver))
    }

    /// The receipt, if it is here by now. Whoever has taken it does not ask again.
    pub(super) fn receipt_by_now(&mut self) -> Option<Receipt> {
        match &mut self.0 {
            State::Done(outcome) => outcome.clone().ok(),
            State::Waiting(receiver) => receiver.try_recv().ok()?.ok(),
        }
    }

    /// Waits for the end. Cancelling loses nothing: call it again.
    ///
    /// # Errors
    /// [`SendError`] as the peer or the connection gave it.
    pub async fn receipt(&mut self) -> Result<Receipt, SendError> {
        match &mut self.0 {
            State::Done(outcome) => outcome.clone(),
            State::Waiting(receiver) => receiver.await.unwrap_or_else(|_| {
                Err(SendError::Disconnected { cause: "the connection closed before the receipt came".into() })
            }),
        }
    }
}

/// Why there is no receipt, by what the forwarder must do. No variant carries patient data.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The connection's fault, never the message's: reconnect and try for ever.
    #[error("{cause}")]
    Disconnected {
        /// In words.
        cause: String,
    },
    /// The peer can't take anything just now (429, 503, quota): wait and try for ever; the lane is blocked, the connection is fine.
    #[error("{cause}")]
    Busy {
        /// In words.
        cause: String,
        /// How long the peer asked to wait.
        after: Option<Duration>,
    },
    /// The answer blames the message but may change (AE, CE, most of 4xx): tried at most 10 times and 15 minutes.
    #[error("{reason}")]
    Refused {
        /// The peer's answer in words, without content of the message.
        reason: String,
    },
    /// Refused for good (AR, CR, "not authorised", can't be sent over this protocol at all).
    #[error("{reason}")]
    Rejected {
        /// The peer's answer in words, without content of the message.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        let mut problems = Problems::default();
        toml::from_str::<UpstreamConfig>(text).unwrap().check(&mut problems);
        problems.into_found().into_iter().map(|problem| problem.text).collect()
    }

    #[test]
    fn sections_read_as_people_write_them_and_unsafe_ones_are_told() {
        for (text, told) in [
            ("[mllp]\naddress = 'engine.example:2575'\nplain = true", None),
            ("[mllp]\naddress = 'engine.example:2575'", Some("unencrypted")),
            ("[mllp]\naddress = 'a:1'\nplain = true\nreceipt = 'written'", Some("is lost")),
            ("[https]\nurl = 'http://a/in'\nplain = true\nwhen-refused = 'hold'", None),
            ("[https]\nurl = 'https://a/in'\nplain = true", Some("https:// goes with tls")),
            ("[directory]\npath = '/'\nunsealed = true\nmarker = 'WARDGATE'", None),
            ("[directory]\npath = '/'", Some("seal-to")),
            ("[dicom]\naddress = 'pacs:104'\ncalled = 'PACS'\nplain = true", None),
            ("[dicom]\naddress = 'pacs:104'\ncalled = 'PACS'", Some("unencrypted")),
            ("[dicom]\naddress = 'pacs:104'\ncalled = 'PACS'\nplain = true\nassociations = 17", Some("1 to 16")),
            ("[dicom]\naddress = 'pacs:104'\ncalled = 'PACS'\nplain = true\nmax-pdu = '1MiB'", Some("128KiB")),
        ] {
            let found = problems(text);
            assert_eq!(found.len(), usize::from(told.is_some()), "{text}: {found:?}");
            assert!(told.is_none_or(|told| found[0].contains(told)), "{text}: {found:?}");
        }
    }

    #[test]
    fn a_wrong_recipient_and_an_unknown_key_are_shown_where_they_stand() {
        let error =
            toml::from_str::<UpstreamConfig>("[directory]\npath = '/mnt'\nseal-to = [\n  'age1x',\n]").unwrap_err();
        assert!(error.to_string().contains("line 3") && error.to_string().contains("\"age1x\""), "{error}");
        let error = toml::from_str::<UpstreamConfig>("[mllp]\naddress = 'a:1'\nplane = true").unwrap_err();
        assert!(error.to_string().contains("line 3, column 1"), "{error}");
    }
}
