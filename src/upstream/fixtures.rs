//! Envelopes for the tests of this room; invented content only.

#![cfg(test)]

use super::Identity;
use crate::digest::{Algorithm, Digest};
use crate::envelope::{Body, Class, Envelope, Flags, MessageId, Meta, Stamp};

/// An envelope around `body`, with the digest of its bytes when they lie in memory.
pub(crate) fn envelope(body: Body) -> Envelope {
    let digest = Digest::of(Algorithm::Sha256, body.as_whole().map_or(&[], |bytes| bytes));
    let meta = Meta {
        source: "monitors".parse().unwrap(),
        protocol: "mllp".into(),
        content_type: "application/hl7-v2".into(),
        control_id: b"4711".to_vec(),
        targets: vec!["engine".parse().unwrap()],
        flags: Flags::default(),
        received: Stamp { wall_us: 1_795_325_931_000_000, synchronised: true, uptime_ms: 1 },
        tokens: Vec::new(),
    };
    Envelope { id: MessageId([0xab; 16]), class: Class::Clinical, meta, digest, body }
}

/// A box of a hospital that does not exist.
pub(crate) fn identity() -> Identity {
    Identity { gateway: "icu".parse().unwrap(), site: "st-marys".parse().unwrap(), upstream: "engine".parse().unwrap() }
}
