//! The configuration file as a whole: what it sets up, part by part, so that two versions of it can be compared.
//!
//! The sections themselves live beside the code that they configure and implement [`Section`]; this room reads them,
//! shows every problem with its place, and checks what only the whole file shows. Nobody imports it but `gateway`, `cli`
//! and `admin`.
//!
//! ```toml
//! [gateway]                      # who this box is
//! [spool]                        # where messages are kept
//! [source.<name>.<protocol>]     # what devices talk to
//! [upstream.<name>.<protocol>]   # where messages go
//! [[route]]                      # from which sources to which upstreams, in which form
//! [telemetry]                    # the site's own table of codes
//! ```
//!
//! An upstream that is given up keeps its name, and one line beside its protocol says what becomes of what waits for it
//! (`drain` needs the protocol's table, to send; `dead-letter` does not):
//!
//! ```toml
//! [upstream.old]
//! retired = "drain"              # or "dead-letter"
//! [upstream.old.mllp]
//! address = "old-engine.example:2575"
//! ```
//!
//! `retired` is taken out before the table is read as an enum of protocols: it is no protocol, and one serde type for
//! both would lose the places of errors.
//!
//! [`load()`] reads and checks, `parts` makes the parts, [`report`] shows, `document` knows places, `cross` checks what spans sections, `fits`
//! whether upstreams can take what routes bring, `files` follows the files that sections name.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::admin::access::ControlConfig;
use crate::admin::scrape::MetricsConfig;
use crate::route::RouteConfig;
use crate::spool::SpoolConfig;
use crate::telemetry::site::SiteCodes;
use crate::values::{Name, Problems, SecretRef, Section};

mod cross;
mod document;
mod files;
mod fits;
pub mod load;
mod parts;
pub mod report;
#[cfg(test)]
mod shipped;

pub use load::{LoadError, Loaded, load};
pub use report::Report;

/// What can be read as a section: the enums of protocols, and each section by itself.
pub trait Readable: Section + DeserializeOwned + Clone + PartialEq {}

impl<T: Section + DeserializeOwned + Clone + PartialEq> Readable for T {}

/// A configuration without problems. `S` and `U` are the enums of the protocols of sources and upstreams.
#[derive(Clone, PartialEq, Debug)]
pub struct Config<S, U> {
    /// `[gateway]`.
    pub gateway: GatewayConfig,
    /// `[spool]`. Without a digest of its key: the key may be made at the first start, and is read only when one starts.
    pub spool: SpoolConfig,
    /// `[source.<name>.<protocol>]`.
    pub sources: BTreeMap<Name, Part<S>>,
    /// `[upstream.<name>.<protocol>]`.
    pub upstreams: BTreeMap<Name, Standing<U>>,
    /// `[[route]]`, in their order.
    pub routes: Vec<RouteConfig>,
    /// The table that `[telemetry] codes` names, read with the configuration.
    pub codes: Arc<SiteCodes>,
    /// SHA-256 of the file: which configuration this is, for people. Whether it does the same is told by comparing parts.
    pub digest: [u8; 32],
}

/// A section and the digest of all files that it names: equal parts need not be restarted.
#[derive(Clone, PartialEq, Debug)]
pub struct Part<T> {
    /// The section; relative paths in it count from the folder of the configuration file no more, they are whole.
    pub config: T,
    /// SHA-256 over the names and contents of the files and credentials that it names.
    pub files: [u8; 32],
    /// In words, for people: `mllp 10.20.0.1:2575`.
    pub title: String,
}

/// How an upstream stands in the configuration.
#[derive(Clone, PartialEq, Debug)]
pub enum Standing<U> {
    /// In use.
    Active(Part<U>),
    /// `retired = "drain"`: gets what waits for it and nothing new; may be taken out when nothing waits.
    Draining(Part<U>),
    /// `retired = "dead-letter"`: what waits for it becomes dead letters.
    Buried,
}

/// `retired` in `[upstream.<name>]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Retired {
    /// See [`Standing::Draining`].
    Drain,
    /// See [`Standing::Buried`].
    DeadLetter,
}

/// `[gateway]`: who this box is, and how it can be asked.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct GatewayConfig {
    /// The box's name; appears in topics, metadata and certificates.
    pub name: Name,
    /// The site's name; appears beside it.
    pub site: Name,
    /// A loopback address for Prometheus; none unless given.
    pub metrics: Option<MetricsConfig>,
    /// The socket of the command line.
    #[serde(default)]
    pub control: ControlConfig,
}

impl<S, U> Config<S, U> {
    /// The first 16 hexadecimal digits of the file's SHA-256, as `status` shows them.
    pub fn fingerprint(&self) -> String {
        data_encoding::HEXLOWER.encode(&self.digest).chars().take(16).collect()
    }
}

impl<U> Standing<U> {
    /// What it needs to send; `None` when it will not send any more.
    pub fn part(&self) -> Option<&Part<U>> {
        match self {
            Self::Active(part) | Self::Draining(part) => Some(part),
            Self::Buried => None,
        }
    }

    /// Whether new messages may be routed to it.
    pub fn is_active(&self) -> bool {
        matches!(self, Self::Active(_))
    }
}

impl Section for GatewayConfig {
    fn check(&self, problems: &mut Problems) {
        if let Some(metrics) = &self.metrics {
            problems.under("metrics", |problems| metrics.check(problems));
        }
        problems.under("control", |problems| self.control.check(problems));
    }

    fn files(&mut self, visit: &mut dyn FnMut(&mut SecretRef)) {
        self.control.files(visit);
    }
}
