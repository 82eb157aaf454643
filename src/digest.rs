//! What a body is known by: its digest, taken while it arrives.
//!
//! Images are large and come fast, so theirs is BLAKE3 (<https://github.com/BLAKE3-team/BLAKE3-specs>): three to five times as quick as
//! SHA-256 where the processor has instructions for that, and on one that has none (a Raspberry Pi 4) as well. All others have SHA-256,
//! which receivers are told: what goes out by MQTT or HTTPS carries it, and of an image it is taken on the way out.

use aws_lc_rs::digest;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How a digest is taken.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Algorithm {
    /// FIPS 180-4.
    Sha256,
    /// BLAKE3 with its default output of 32 bytes, without a key.
    Blake3,
}

/// The digest of a whole body. Equal ones stand for equal bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Digest {
    /// How it was taken.
    pub algorithm: Algorithm,
    /// Its 32 bytes.
    pub bytes: [u8; 32],
}

impl Digest {
    /// The digest of bytes that lie in memory.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    /// The bytes, when it is SHA-256.
    pub fn sha256(&self) -> Option<[u8; 32]> {
        (self.algorithm == Algorithm::Sha256).then_some(self.bytes)
    }
}

/// In records and exports a digest is its 32 bytes; how it was taken is told by the first byte of the one and the kind of part in the
/// other, for those that are read as SHA-256 here.
impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.bytes.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <[u8; 32]>::deserialize(deserializer).map(|bytes| Self { algorithm: Algorithm::Sha256, bytes })
    }
}

/// A digest that is being taken.
#[derive(Clone)]
pub struct Hasher(State);

#[derive(Clone)]
enum State {
    Sha256(digest::Context),
    // Boxed: it is two kilobytes.
    Blake3(Box<blake3::Hasher>),
}

impl Hasher {
    /// Of no byte yet.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(digest::Context::new(&digest::SHA256)),
            Algorithm::Blake3 => State::Blake3(Box::default()),
        })
    }

    /// The next bytes. BLAKE3 is quickest with many at once.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(context) => context.update(bytes),
            State::Blake3(hasher) => drop(hasher.update(bytes)),
        }
    }

    /// The digest of all bytes so far.
    pub fn finish(&self) -> Digest {
        match &self.0 {
            State::Sha256(context) => {
                let mut bytes = [0; 32];
                bytes.copy_from_slice(context.clone().finish().as_ref());
                Digest { algorithm: Algorithm::Sha256, bytes }
            }
            State::Blake3(hasher) => Digest { algorithm: Algorithm::Blake3, bytes: *hasher.finalize().as_bytes() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_the_standards_however_the_bytes_come() {
        // FIPS 180-4 and BLAKE3's own test vectors: no byte, and the bytes 0 to 250 over and over.
        let input: Vec<u8> = (0..=250).cycle().take(102_400).collect();
        for (algorithm, of_nothing, of_input) in [
            (Algorithm::Sha256, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", None),
            (
                Algorithm::Blake3,
                "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
                Some("bc3e3d41a1146b069abffad3c0d44860cf664390afce4d9661f7902e7943e085"),
            ),
        ] {
            assert_eq!(data_encoding::HEXLOWER.encode(&Digest::of(algorithm, b"").bytes), of_nothing);
            let whole = Digest::of(algorithm, &input);
            if let Some(told) = of_input {
                assert_eq!(data_encoding::HEXLOWER.encode(&whole.bytes), told);
            }
            let mut hasher = Hasher::new(algorithm);
            input.chunks(1_777).for_each(|chunk| hasher.update(chunk));
            assert_eq!(hasher.finish(), whole);
            assert_eq!(whole.sha256().is_some(), algorithm == Algorithm::Sha256);
        }
    }
}
