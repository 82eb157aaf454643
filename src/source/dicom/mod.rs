//! DICOM storage and verification as a service (SCP): `[source.<name>.dicom]`.
//!
//! Modalities associate and send; each instance streams into the imaging log and is answered after its commit. Class and transfer
//! syntax are taken as they are proposed, data sets are never parsed beyond their head nor changed. Who may associate and how is
//! in `association`, the loop of one connection in `connection`, an instance on its way in `store`.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::accept::{Listener, Rules};
use super::intake::Intake;
use super::{Source, SourceError, Stop};
use crate::system::sockets::Sockets;
use crate::system::tls::{ClientTls, ServerTls};
use crate::values::{ByteSize, HostPort, Listen, Problems, SecretRef, Section, Span};
use crate::wire::dicom::pdu::DATA_BYTES_MAX;
use crate::wire::dicom::values::{AeTitle, Uid};
use commitment::{Commit, ReportOn, Reporting};
use connection::Settings;

mod association;
mod classes;
pub mod commitment;
mod connection;
mod link;
#[cfg(test)]
mod link_tests;
mod reports;
mod store;

/// What `max-pdu` may be.
const PDU_SIZES: (ByteSize, ByteSize) = (ByteSize(4 << 10), ByteSize(DATA_BYTES_MAX as u64));
/// What `max-instance-size` may be: up to what a spool can take as one body.
const INSTANCE_SIZES: (ByteSize, ByteSize) = (ByteSize(1 << 20), ByteSize(4 << 30));
/// What each of the timeouts may be.
const TIMEOUTS: (Span, Span) = (Span(Duration::from_millis(100)), Span(Duration::from_secs(86_400)));
/// What `max-associations` may be: each holds a PDU in memory.
const ASSOCIATIONS_MAX: usize = 1024;
/// Connections beyond the associations: those that have not said yet what they want, or are told that there is no room.
const SPARE_CONNECTIONS: usize = 64;
/// Titles, callers and transfer syntaxes in a list.
const LISTED_MAX: usize = 64;

/// `[source.<name>.dicom]`.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DicomConfig {
    /// Where to listen.
    pub listen: Listen,
    /// The AE titles that we answer to, without regard to case.
    pub ae_title: Titles,
    /// The AE titles that may call; empty: all may.
    #[serde(default)]
    pub calling: Titles,
    /// Networks that may connect; without it all may.
    #[serde(default)]
    pub allow: Vec<IpNet>,
    /// Speak TLS; with a `client-ca` devices must show a certificate.
    pub tls: Option<ServerTls>,
    /// Which of the transfer syntaxes of a presentation context is taken.
    #[serde(default)]
    pub transfer_syntaxes: Preference,
    /// The longest P-DATA PDU that peers may send.
    #[serde(default = "default_pdu")]
    pub max_pdu: ByteSize,
    /// Associations at once; more are rejected for now.
    #[serde(default = "default_associations")]
    pub max_associations: usize,
    /// Associations at once of one network address.
    #[serde(default = "default_associations_per_peer")]
    pub max_associations_per_peer: usize,
    /// A larger instance is refused.
    #[serde(default = "default_instance")]
    pub max_instance_size: ByteSize,
    /// A new connection must bring its whole association request within this time.
    #[serde(default = "default_artim")]
    pub artim_timeout: Span,
    /// An association on which no PDU is completed for so long is aborted. A data set that arrives must go on by 256 KiB in this
    /// time, or in a minute if that is shorter.
    #[serde(default = "default_idle")]
    pub idle_timeout: Span,
    /// A device that does not read its answer within this time is cut off.
    #[serde(default = "default_write")]
    pub write_timeout: Span,
    /// An alarm is raised when no instance came for so long.
    pub silent_after: Option<Span>,
    /// From when on an instance counts as safe for a device that asks for storage commitment.
    #[serde(default)]
    pub commit: Commit,
    /// On which association reports go: a new one, or the one of the request while it is open.
    #[serde(default)]
    pub report_on: ReportOn,
    /// Where each calling AE title takes the reports of storage commitment; without any, commitment is not offered.
    #[serde(default)]
    pub report_to: ReportTo,
    /// Reports go over TLS.
    pub report_tls: Option<ClientTls>,
}

/// One AE title or a list of them. Another case is another configuration, so that a reload notices it.
#[derive(Clone, Default, Debug)]
pub struct Titles(pub Vec<AeTitle>);

impl PartialEq for Titles {
    fn eq(&self, other: &Self) -> bool {
        self.0.iter().map(AeTitle::as_str).eq(other.0.iter().map(AeTitle::as_str))
    }
}

/// `report-to`: devices and where they take reports. A title in another case, or with blanks around it, is the same device.
#[derive(Clone, Default, Debug, Deserialize)]
#[serde(transparent)]
pub struct ReportTo(pub BTreeMap<String, HostPort>);

impl ReportTo {
    /// The devices, in an order that does not depend on how their titles are written.
    fn devices(&self) -> Vec<(AeTitle, HostPort)> {
        let read = |(title, address): (&String, &HostPort)| Some((title.parse().ok()?, address.clone()));
        let mut devices: Vec<(AeTitle, HostPort)> = self.0.iter().filter_map(read).collect();
        devices.sort_by_cached_key(|(title, _)| title.as_str().to_ascii_uppercase());
        devices
    }
}

impl PartialEq for ReportTo {
    fn eq(&self, other: &Self) -> bool {
        self.devices() == other.devices()
    }
}

/// Which transfer syntax of those that a presentation context proposes is taken. None is ever refused.
#[derive(Clone, PartialEq, Debug, Default)]
pub enum Preference {
    /// The first that is proposed: least work for the sender.
    #[default]
    First,
    /// The first of these that is proposed, else the first that is proposed.
    Listed(Vec<Uid>),
}

fn default_pdu() -> ByteSize {
    PDU_SIZES.1
}

fn default_associations() -> usize {
    64
}

fn default_associations_per_peer() -> usize {
    16
}

fn default_instance() -> ByteSize {
    INSTANCE_SIZES.1
}

fn default_artim() -> Span {
    Span(Duration::from_secs(30))
}

fn default_idle() -> Span {
    Span(Duration::from_secs(300))
}

fn default_write() -> Span {
    Span(Duration::from_secs(30))
}

impl DicomConfig {
    fn rules(&self) -> Rules {
        Rules {
            allow: self.allow.clone(),
            connections: self.max_associations.min(ASSOCIATIONS_MAX) + SPARE_CONNECTIONS,
        }
    }

    /// How storage commitment is answered; `None`: it is not offered.
    pub fn reporting(&self) -> Option<Reporting> {
        let to = self.report_to.devices();
        (!to.is_empty()).then(|| Reporting {
            commit: self.commit,
            on: self.report_on,
            to,
            tls: self.report_tls.clone(),
        })
    }

    fn check_limits(&self, problems: &mut Problems) {
        for (key, size, (least, most)) in
            [("max-pdu", self.max_pdu, PDU_SIZES), ("max-instance-size", self.max_instance_size, INSTANCE_SIZES)]
        {
            if !(least..=most).contains(&size) {
                problems.error(key, format!("must be from {least} to {most}"));
            }
        }
        for (key, count) in
            [("max-associations", self.max_associations), ("max-associations-per-peer", self.max_associations_per_peer)]
        {
            if !(1..=ASSOCIATIONS_MAX).contains(&count) {
                problems.error(key, format!("must be from 1 to {ASSOCIATIONS_MAX}"));
            }
        }
        let (shortest, longest) = TIMEOUTS;
        for (key, span) in [
            ("artim-timeout", self.artim_timeout),
            ("idle-timeout", self.idle_timeout),
            ("write-timeout", self.write_timeout),
        ] {
            if !(shortest..=longest).contains(&span) {
                problems.error(key, format!("must be from {shortest} to {longest}"));
            }
        }
    }
}

impl Section for DicomConfig {
    fn check(&self, problems: &mut Problems) {
        self.rules().check(self.listen, self.tls.as_ref(), problems);
        self.check_limits(problems);
        if self.ae_title.0.is_empty() {
            problems.error(
                "ae-title",
                "needs one title at least: what the modality calls this box, for example \"WARDGATE\"",
            );
        }
        for (key, listed) in [("ae-title", self.ae_title.0.len()), ("calling", self.calling.0.len())] {
            if listed > LISTED_MAX {
                problems.error(key, format!("has {listed} titles; at most {LISTED_MAX} are taken"));
            }
        }
        let titles: HashSet<&AeTitle> = self.ae_title.0.iter().collect();
        if titles.len() < self.ae_title.0.len() {
            problems.warn("ae-title", "names a title twice: case and blanks around it do not count");
        }
        commitment::check((self.commit, self.report_on), &self.report_to.0, self.report_tls.as_ref(), problems);
        if let Some(tls) = &self.tls {
            problems.under("tls", |problems| tls.check(problems));
        }
    }

    fn files(&mut self, visit: &mut dyn FnMut(&mut SecretRef)) {
        if let Some(tls) = &mut self.tls {
            tls.files(visit);
        }
        if let Some(tls) = &mut self.report_tls {
            tls.files(visit);
        }
    }
}

impl<'de> Deserialize<'de> for Titles {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = "an AE title of 1 to 16 characters such as \"WARDGATE\", or a list of them";
        let texts = deserializer.deserialize_any(OneOrMore { expected })?;
        let titles = texts.iter().map(|text| text.parse().map_err(de::Error::custom));
        titles.collect::<Result<_, _>>().map(Self)
    }
}

impl<'de> Deserialize<'de> for Preference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = "\"first\", or a list of transfer syntax UIDs such as [\"1.2.840.10008.1.2.4.70\"]";
        let texts = deserializer.deserialize_any(OneOrMore { expected })?;
        if texts.iter().map(String::as_str).eq(["first"]) {
            return Ok(Self::First);
        }
        let uid = |text: &String| {
            let uid: Option<Uid> = text.parse().ok().filter(Uid::is_valid);
            uid.ok_or_else(|| de::Error::custom(format!("\"{text}\" is not a UID: write {expected}")))
        };
        let listed = texts.iter().map(uid).collect::<Result<Vec<Uid>, _>>()?;
        match listed.len() {
            1..=LISTED_MAX => Ok(Self::Listed(listed)),
            _ => Err(de::Error::custom(format!("write {expected}, of 1 to {LISTED_MAX}"))),
        }
    }
}

/// A text or a list of texts.
struct OneOrMore {
    expected: &'static str,
}

impl<'de> Visitor<'de> for OneOrMore {
    type Value = Vec<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<String>, E> {
        Ok(vec![text.to_owned()])
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<String>, A::Error> {
        let mut texts = Vec::new();
        while let Some(text) = list.next_element()? {
            texts.push(text);
        }
        Ok(texts)
    }
}

/// A listener for DICOM.
pub struct Dicom {
    listener: Listener,
    settings: Arc<Settings>,
}

impl Source for Dicom {
    type Config = DicomConfig;

    const PROTOCOL: &'static str = "dicom";

    async fn open(config: &DicomConfig, sockets: &Sockets) -> Result<Self, SourceError> {
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
            move |stream| connection::serve(stream, Arc::clone(&settings), connections.clone(), stopping.clone());
        self.listener.run(intake.counters(), stop, serve).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<DicomConfig, toml::de::Error> {
        toml::from_str(text)
    }

    fn problems(text: &str) -> Vec<String> {
        let mut problems = Problems::default();
        parsed(text).unwrap().check(&mut problems);
        problems.into_found().into_iter().map(|problem| problem.path.join(".")).collect()
    }

    #[test]
    fn two_lines_are_enough_and_the_defaults_are_those_of_the_documentation() {
        let config = parsed("listen = \"127.0.0.1:11112\"\nae-title = \"WARDGATE\"").unwrap();
        assert_eq!(config.ae_title, Titles(vec!["WARDGATE".parse().unwrap()]));
        assert_eq!((config.transfer_syntaxes, config.max_pdu.to_string()), (Preference::First, "128KiB".into()));
        assert_eq!((config.max_associations, config.max_associations_per_peer), (64, 16));
        assert_eq!(config.max_instance_size.to_string(), "4GiB");
        assert_eq!((config.artim_timeout.to_string(), config.idle_timeout.to_string()), ("30s".into(), "5m".into()));
    }

    #[test]
    fn every_key_is_understood_and_an_unknown_one_is_an_error() {
        let config = parsed(
            "listen = \"10.21.0.1:11112\"\nallow = [\"10.21.0.0/24\"]\nae-title = [\"WARDGATE\", \"ARCHIVE\"]\ncalling = [\"CT1\"]\n\
             transfer-syntaxes = [\"1.2.840.10008.1.2.4.70\", \"1.2.840.10008.1.2.1\"]\nmax-pdu = \"16KiB\"\n\
             max-associations = 8\nmax-associations-per-peer = 2\nmax-instance-size = \"2GiB\"\nartim-timeout = \"5s\"\n\
             idle-timeout = \"1m\"\nwrite-timeout = \"2s\"\nsilent-after = \"12h\"\n\
             tls = { certificate = \"a.pem\", key = \"a.key\", client-ca = \"ca.pem\", client-certificate = \"optional\" }\n",
        )
        .unwrap();
        assert_eq!((config.ae_title.0.len(), config.calling.0.len()), (2, 1));
        assert!(matches!(&config.transfer_syntaxes, Preference::Listed(listed) if listed.len() == 2));
        let mut files = Vec::new();
        config.clone().files(&mut |file| files.push(file.to_string()));
        assert_eq!(files.len(), 3);
        assert!(parsed("listen = \"127.0.0.1:1\"\nae-title = \"A\"\ncaling = []").is_err());
        assert_eq!(
            parsed("listen = \"127.0.0.1:1\"\nae-title = \"A\"\ntransfer-syntaxes = \"first\"")
                .unwrap()
                .transfer_syntaxes,
            Preference::First
        );
    }

    #[test]
    fn a_title_in_another_case_is_another_configuration() {
        let with = |titles: &str| parsed(&format!("listen = \"127.0.0.1:1\"\n{titles}")).unwrap();
        let one = with("ae-title = \"WARDGATE\"\ncalling = [\"CT1\"]");
        assert_eq!(one, with("ae-title = [\" WARDGATE \"]\ncalling = \"CT1\""));
        assert_ne!(one, with("ae-title = \"Wardgate\"\ncalling = [\"CT1\"]"));
        assert_ne!(one, with("ae-title = \"WARDGATE\"\ncalling = [\"ct1\"]"));
    }

    #[test]
    fn a_device_of_report_to_is_the_same_however_its_title_is_written() {
        let with = |devices: &str| {
            parsed(&format!("listen = \"127.0.0.1:1\"\nae-title = \"A\"\nreport-to = {{ {devices} }}")).unwrap()
        };
        let one = with("CT1 = \"a:1\", MR = \"b:2\"");
        assert_eq!(one, with("\"ct1 \" = \"a:1\", mr = \"b:2\""));
        assert_eq!(one.reporting(), with("mr = \"b:2\", ct1 = \"a:1\"").reporting());
        assert_ne!(one, with("CT1 = \"a:1\", MR = \"b:3\""));
        assert_eq!(
            problems("listen = \"127.0.0.1:1\"\nae-title = \"A\"\nreport-to = { CT1 = \"a:1\", \"ct1 \" = \"b:2\" }"),
            ["report-to"]
        );
    }

    #[test]
    fn what_can_not_be_is_said_when_it_is_read() {
        for (line, words) in [
            ("ae-title = \"SEVENTEEN LETTERS\"", "1 to 16 characters"),
            ("ae-title = 7", "an AE title of 1 to 16 characters such as"),
            ("ae-title = \"A\"\ntransfer-syntaxes = \"jpeg\"", "\"jpeg\" is not a UID"),
            ("ae-title = \"A\"\ntransfer-syntaxes = []", "of 1 to 64"),
        ] {
            let error = parsed(&format!("listen = \"127.0.0.1:1\"\n{line}")).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn what_is_unsafe_or_impossible_is_named_by_its_key() {
        assert_eq!(problems("listen = \"0.0.0.0:104\"\nae-title = \"A\""), ["listen"]);
        assert_eq!(
            problems(
                "listen = \"127.0.0.1:1\"\nae-title = []\nmax-pdu = \"1MiB\"\nmax-instance-size = \"1KiB\"\nmax-associations = 0\n\
                 max-associations-per-peer = 5000\nidle-timeout = \"0s\""
            ),
            [
                "max-pdu",
                "max-instance-size",
                "max-associations",
                "max-associations-per-peer",
                "idle-timeout",
                "ae-title"
            ]
        );
        assert_eq!(problems("listen = \"127.0.0.1:1\"\nae-title = [\"A\", \"a \"]"), ["ae-title"]);
    }
}
