//! Encryption of frames: what leaves this file for the disk is authenticated and tied to its place.
//!
//! Every segment file has a random key of its own, used for one life of the file: a frame's nonce is its group and frame
//! number, and no group number is written twice under one key. Moving, repeating or mixing frames fails authentication,
//! because the associated data names the spool, log, segment, group and frame. Cutting off the newest groups is not seen here.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroizing;

/// Bytes that sealing adds.
pub const TAG_BYTES: usize = 16;
/// Bytes of every key.
pub const KEY_BYTES: usize = 32;
/// Bytes of a nonce.
pub const NONCE_BYTES: usize = 12;

/// A key that is wiped from memory when dropped and never printed.
#[derive(Clone)]
pub struct Secret(Zeroizing<[u8; KEY_BYTES]>);

impl Secret {
    /// Takes the bytes of a key.
    pub fn new(bytes: [u8; KEY_BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// A new random key.
    pub fn random() -> Self {
        Self::new(random())
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Random bytes from the system's generator.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // Unwrap safety: the generator is seeded by the kernel; without it nothing may be encrypted at all.
    #[allow(clippy::unwrap_used)]
    aws_lc_rs::rand::fill(&mut bytes).unwrap();
    bytes
}

/// The authenticated cipher of a segment, kept in its header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Algorithm {
    /// AES-256-GCM (NIST SP 800-38D).
    Aes256Gcm,
    /// ChaCha20-Poly1305 (RFC 8439).
    ChaCha20Poly1305,
}

impl Algorithm {
    /// AES where the CPU has instructions for it, else ChaCha20, which is several times faster in software.
    pub fn preferred() -> Self {
        match cpu_has_aes() {
            true => Self::Aes256Gcm,
            false => Self::ChaCha20Poly1305,
        }
    }

    /// As people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Aes256Gcm => "AES-256-GCM",
            Self::ChaCha20Poly1305 => "ChaCha20-Poly1305",
        }
    }

    /// The byte in the header.
    pub fn code(self) -> u8 {
        match self {
            Self::Aes256Gcm => 1,
            Self::ChaCha20Poly1305 => 2,
        }
    }

    /// From the byte in the header.
    pub fn from_code(code: u8) -> Option<Self> {
        [Self::Aes256Gcm, Self::ChaCha20Poly1305].into_iter().find(|algorithm| algorithm.code() == code)
    }
}

/// What does not authenticate: damaged, moved, or under another key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("does not authenticate")]
pub struct Unauthentic;

/// A key, ready for use.
pub struct Cipher(LessSafeKey);

impl Cipher {
    /// Prepares a key.
    pub fn new(algorithm: Algorithm, secret: &Secret) -> Self {
        let aead = match algorithm {
            Algorithm::Aes256Gcm => &AES_256_GCM,
            Algorithm::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        };
        // Unwrap safety: both ciphers take keys of exactly KEY_BYTES.
        #[allow(clippy::unwrap_used)]
        Self(LessSafeKey::new(UnboundKey::new(aead, secret.bytes()).unwrap()))
    }

    /// Seals in place and returns the tag. The caller answers for a nonce that this key never saw.
    pub fn seal(&self, nonce: [u8; NONCE_BYTES], aad: &[u8], in_out: &mut [u8]) -> [u8; TAG_BYTES] {
        let nonce = Nonce::assume_unique_for_key(nonce);
        let sealed = self.0.seal_in_place_separate_tag(nonce, Aad::from(aad), in_out);
        let mut tag = [0; TAG_BYTES];
        // Unwrap safety: sealing fails only above the ciphers' length limit of 64 GiB; frames are below 1 MiB.
        #[allow(clippy::unwrap_used)]
        tag.copy_from_slice(sealed.unwrap().as_ref());
        tag
    }

    /// Opens in place: `in_out` is ciphertext and tag, the result is the plaintext at its front.
    ///
    /// # Errors
    /// [`Unauthentic`].
    pub fn open<'a>(
        &self,
        nonce: [u8; NONCE_BYTES],
        aad: &[u8],
        in_out: &'a mut [u8],
    ) -> Result<&'a mut [u8], Unauthentic> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.0.open_in_place(nonce, Aad::from(aad), in_out).map_err(|_| Unauthentic)
    }
}

/// Seals a small secret under a long-lived key with a random nonce: nonce, ciphertext, tag. For keys that wrap a few others only.
pub fn wrap(wrapping: &Secret, aad: &[u8], plaintext: &[u8]) -> Vec<u8> {
    let nonce: [u8; NONCE_BYTES] = random();
    let mut sealed = nonce.to_vec();
    sealed.extend_from_slice(plaintext);
    let (_, in_out) = sealed.split_at_mut(NONCE_BYTES);
    let tag = Cipher::new(Algorithm::Aes256Gcm, wrapping).seal(nonce, aad, in_out);
    sealed.extend_from_slice(&tag);
    sealed
}

/// Opens what [`wrap`] sealed.
///
/// # Errors
/// [`Unauthentic`].
pub fn unwrap(wrapping: &Secret, aad: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Unauthentic> {
    let (nonce, rest) = sealed.split_first_chunk::<NONCE_BYTES>().ok_or(Unauthentic)?;
    let mut in_out = Zeroizing::new(rest.to_vec());
    let length = Cipher::new(Algorithm::Aes256Gcm, wrapping).open(*nonce, aad, &mut in_out)?.len();
    in_out.truncate(length);
    Ok(in_out)
}

#[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
fn cpu_has_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq")
}

#[cfg(target_arch = "aarch64")]
fn cpu_has_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "x86", target_arch = "aarch64")))]
fn cpu_has_aes() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_only_unchanged_and_in_its_place() {
        for algorithm in [Algorithm::Aes256Gcm, Algorithm::ChaCha20Poly1305] {
            let cipher = Cipher::new(algorithm, &Secret::random());
            let mut bytes = b"PID|1||4711".to_vec();
            let tag = cipher.seal([1; 12], b"here", &mut bytes);
            bytes.extend_from_slice(&tag);
            assert!(!bytes.windows(3).any(|window| window == b"PID"));
            assert_eq!(cipher.open([1; 12], b"there", &mut bytes.clone()), Err(Unauthentic));
            assert_eq!(cipher.open([2; 12], b"here", &mut bytes.clone()), Err(Unauthentic));
            let mut flipped = bytes.clone();
            flipped[3] ^= 1;
            assert_eq!(cipher.open([1; 12], b"here", &mut flipped), Err(Unauthentic));
            assert_eq!(cipher.open([1; 12], b"here", &mut bytes).unwrap(), b"PID|1||4711");
        }
    }

    #[test]
    fn a_wrapped_key_opens_under_its_own_wrapping_key_only() {
        let (right, wrong) = (Secret::random(), Secret::random());
        let sealed = wrap(&right, b"epoch", &[9; 32]);
        assert_eq!(unwrap(&right, b"epoch", &sealed).unwrap().as_slice(), [9; 32]);
        assert!(unwrap(&wrong, b"epoch", &sealed).is_err());
        assert!(unwrap(&right, b"epoch", &sealed[..20]).is_err());
    }
}
