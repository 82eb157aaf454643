//! The upstream that the gateway makes by itself: reports of storage commitment go back to the devices that asked for them.
//!
//! It is there while a source offers storage commitment, or while requests still wait in the spool.

use super::Config;
use crate::callers::Callers;
use crate::config::{Part, Standing};
use crate::source::SourceConfig;
use crate::source::dicom::commitment::Commit;
use crate::spool::Spool;
use crate::upstream::{UpstreamConfig, commitment};
use crate::values::Name;

/// The configuration with that upstream in it, if it is needed.
pub fn with_reports(config: &Config, spool: &Spool, callers: &Callers) -> Config {
    let name = Name::storage_commitment();
    let mut config = config.clone();
    let reporting = config.sources.iter().filter_map(|(source, part)| Some((source.clone(), reporting(&part.config)?)));
    let made = commitment::Config { sources: reporting.collect(), callers: callers.clone() };
    let waits = || spool.lane_classes().iter().any(|(_, _, upstream)| *upstream == name);
    if !made.sources.is_empty() || waits() {
        let part = Part { config: UpstreamConfig::Commitment(made), files: files_of(&config), title: name.to_string() };
        config.upstreams.insert(name, Standing::Active(part));
    }
    config
}

/// Whether requests of a source go to that upstream.
pub fn offers(config: &SourceConfig) -> bool {
    reporting(config).is_some()
}

fn reporting(config: &SourceConfig) -> Option<commitment::Reporting> {
    let SourceConfig::Dicom(config) = config else { return None };
    let reporting = config.reporting()?;
    Some(commitment::Reporting {
        when_delivered: reporting.commit == Commit::Delivered,
        report_to: reporting.to,
        tls: reporting.tls,
    })
}

/// A digest that changes when a file of a source that offers storage commitment does.
fn files_of(config: &Config) -> [u8; 32] {
    let mut digest = [0; 32];
    for part in config.sources.values().filter(|part| offers(&part.config)) {
        for (byte, other) in digest.iter_mut().zip(part.files) {
            *byte ^= other;
        }
    }
    digest
}
