//! Passwords that somebody must show us: kept as argon2id hashes, in the form that other programs make too (`$argon2id$v=19$...`).
//!
//! To check one takes memory and tens of milliseconds of a core, by design: never on a thread of the runtime, and never many at once. A password is
//! never stored, printed or logged.

use std::fmt;
use std::str::FromStr;

use argon2::password_hash::{Error, PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use serde::Deserialize;

/// Memory of a new hash, KiB, its passes and lanes: as hard to guess as the 19 MiB in 2 passes that are usual, and lighter on a small box.
const NEW: (u32, u32, u32) = (7 * 1024, 5, 1);
/// Memory of a hash that is taken, KiB: a box has little, and strangers make it check.
const MEMORY_KIB_MAX: u32 = 64 << 10;
/// Passes of a hash that is taken.
const PASSES_MAX: u32 = 16;
/// Bytes of a password.
pub const PASSWORD_BYTES_MAX: usize = 1024;

/// The hash of a password, checked. Its own `Debug` does not show it.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Hashed(String);

/// Why a text is not a [`Hashed`].
#[derive(Debug, thiserror::Error)]
pub enum HashedError {
    /// Not the text of an argon2id hash; above all a password in clear.
    #[error("is not an argon2id hash: make one with \"wardgate keys password\", and never write a password here")]
    NotAHash,
    /// It asks for more than a small box has.
    #[error("asks for more than 64 MiB or 16 passes at each login: make one with \"wardgate keys password\"")]
    TooHeavy,
}

impl Hashed {
    /// The hash of `password` with a new salt.
    ///
    /// # Errors
    /// In words, when the system gives no random numbers.
    pub fn of(password: &[u8]) -> Result<Self, String> {
        let mut salt = [0; 16];
        aws_lc_rs::rand::fill(&mut salt).map_err(|_| "the system gives no random numbers".to_owned())?;
        let words = |error: Error| error.to_string();
        let salt = SaltString::encode_b64(&salt).map_err(words)?;
        let (memory, passes, lanes) = NEW;
        let params = Params::new(memory, passes, lanes, None).map_err(|error| error.to_string())?;
        let hash = Argon2::new(Algorithm::Argon2id, Version::V0x13, params).hash_password(password, &salt);
        Ok(Self(hash.map_err(words)?.to_string()))
    }

    /// Whether `password` is the one. Blocks for tens of milliseconds.
    pub fn is_of(&self, password: &[u8]) -> bool {
        let hash = PasswordHash::new(&self.0);
        hash.is_ok_and(|hash| Argon2::default().verify_password(password, &hash).is_ok())
    }

    /// The text for a configuration.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Hashed {
    type Err = HashedError;

    fn from_str(text: &str) -> Result<Self, HashedError> {
        let hash = PasswordHash::new(text).map_err(|_| HashedError::NotAHash)?;
        if hash.algorithm.as_str() != "argon2id" || hash.hash.is_none() || hash.salt.is_none() {
            return Err(HashedError::NotAHash);
        }
        let params = Params::try_from(&hash).map_err(|_| HashedError::NotAHash)?;
        if params.m_cost() > MEMORY_KIB_MAX || params.t_cost() > PASSES_MAX {
            return Err(HashedError::TooHeavy);
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Hashed {
    type Error = HashedError;

    fn try_from(text: String) -> Result<Self, HashedError> {
        text.parse()
    }
}

impl fmt::Debug for Hashed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hashed(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_known_again_and_another_is_not() {
        let hashed = Hashed::of(b"correct horse").unwrap();
        assert!(hashed.is_of(b"correct horse") && !hashed.is_of(b"correct hors") && !hashed.is_of(b""));
        let read: Hashed = hashed.as_str().parse().unwrap();
        assert!(read.is_of(b"correct horse"));
        assert_ne!(hashed, Hashed::of(b"correct horse").unwrap(), "each has a salt of its own");
        assert_eq!(format!("{hashed:?}"), "Hashed(..)");
    }

    #[test]
    fn a_password_in_clear_and_a_hash_that_would_take_all_memory_are_refused() {
        for bad in ["secret", "", "$2b$12$abcdefghijklmnopqrstuv", "$argon2id$v=19$m=7168,t=5,p=1"] {
            assert!(bad.parse::<Hashed>().unwrap_err().to_string().contains("wardgate keys password"), "{bad}");
        }
        let heavy = Hashed::of(b"x").unwrap().as_str().replace("m=7168", "m=1048576");
        assert!(matches!(heavy.parse::<Hashed>(), Err(HashedError::TooHeavy)));
        let other_kind = Hashed::of(b"x").unwrap().as_str().replace("argon2id", "argon2i");
        assert!(other_kind.parse::<Hashed>().is_err());
    }
}
