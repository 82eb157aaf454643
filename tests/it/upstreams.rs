//! The network side against peers that are not ours: what arrives there are the bytes that were stored, and what is said there
//! decides what becomes of a message.

mod dicom;
mod dicom_commitment;
mod dicom_convert;
mod directory;
mod https;
mod mllp;
mod stow;
mod whole_way;

use std::fs;
use std::path::Path;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use wardgate::digest::{Algorithm, Digest};
use wardgate::envelope::{Body, Class, Envelope, Flags, MessageId, Meta, Stamp};
use wardgate::upstream::Identity;

/// A box of a hospital that does not exist.
fn identity() -> Identity {
    let name = |text: &str| text.parse().unwrap();
    Identity { gateway: name("icu-3"), site: name("st-marys"), upstream: name("engine") }
}

/// A section of the configuration, as a person would write it.
fn section<T: DeserializeOwned>(text: &str) -> T {
    toml::from_str(text).unwrap()
}

/// A message of an invented patient.
fn message(id: &str, asks: &str) -> String {
    format!(
        "MSH|^~\\&|MON|ICU|GW|HOSP|20260102030405||ORU^R01^ORU_R01|{id}|P|2.5.1|||{asks}\rPID|1||TEST-1||Probe^Paula\r\
         OBX|1|NM|8867-4^Heart rate^LN||72|/min\r"
    )
}

/// A stored message with these bytes.
fn envelope(id: &str, body: impl Into<Bytes>) -> Envelope {
    let body = body.into();
    let digest = Digest::of(Algorithm::Sha256, &body);
    let meta = Meta {
        source: "monitors".parse().unwrap(),
        protocol: "mllp".into(),
        content_type: "application/hl7-v2; charset=utf-8".into(),
        control_id: id.as_bytes().to_vec(),
        targets: vec![identity().upstream],
        flags: Flags::default(),
        received: Stamp { wall_us: 1_795_325_931_000_000, synchronised: true, uptime_ms: 1 },
        tokens: Vec::new(),
    };
    Envelope { id: MessageId([0xab; 16]), class: Class::Clinical, meta, digest, body: Body::whole(body) }
}

fn hex(sha256: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(sha256)
}

/// The bodies that a peer kept in its folder, under the digest of what came.
fn kept(store: &Path, sha256: &[u8]) -> bool {
    store.join(hex(sha256)).exists()
}

/// How many bodies a peer kept.
fn count(store: &Path) -> usize {
    fs::read_dir(store).unwrap().filter(|entry| entry.as_ref().unwrap().file_name().len() == 64).count()
}
