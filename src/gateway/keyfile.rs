//! The spool's root key: read from where the configuration says, or made, once, for an empty spool on a developer's machine.
//!
//! A key is never made where there is data, and never where a credential was named: that one comes from systemd.

use std::path::{Path, PathBuf};

use crate::spool::{self, KeyError, Secret, SpoolConfig};
use crate::system::{credentials, disk};
use crate::values::SecretRef;

/// Why there is no root key: exit code 78.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It can't be read.
    #[error("the spool key: {0}")]
    Unreadable(#[from] credentials::CredentialError),
    /// It is not there, but data is.
    #[error(
        "the spool key: file \"{}\" is not there, but the spool in {} holds data that only this key opens: put the file back, or \
         move the spool's folder away to begin an empty one",
        file.display(), spool.display()
    )]
    Missing {
        /// The file.
        file: PathBuf,
        /// The spool's folder.
        spool: PathBuf,
    },
    /// It, and what it opened, was destroyed.
    #[error(transparent)]
    Destroyed(KeyError),
    /// It is no key.
    #[error("the spool key ({place}): {cause}")]
    Malformed {
        /// Where it was read.
        place: SecretRef,
        /// Why.
        cause: KeyError,
    },
    /// A new one can't be written.
    #[error("can't make the spool key {file}: {cause}")]
    Unwritable {
        /// The file.
        file: String,
        /// The system's words.
        cause: std::io::Error,
    },
}

/// The root key of the spool in `config`.
///
/// # Errors
/// [`KeyFileError`].
pub fn root_key(config: &SpoolConfig) -> Result<Secret, KeyFileError> {
    spool::refuse_destroyed(&config.path).map_err(KeyFileError::Destroyed)?;
    if let SecretRef::File(file) = &config.key
        && !file.exists()
    {
        match spool::is_empty(&config.path) {
            Ok(true) => make(file)?,
            _ => return Err(KeyFileError::Missing { file: file.clone(), spool: config.path.clone() }),
        }
    }
    let bytes = credentials::read(&config.key)?;
    spool::parse_root(&bytes).map_err(|cause| KeyFileError::Malformed { place: config.key.clone(), cause })
}

/// Destroys the root key where it is a file; tells in words what is left to do where it is not.
///
/// # Errors
/// The system's words.
pub fn destroy(config: &SpoolConfig) -> std::io::Result<Option<String>> {
    match &config.key {
        SecretRef::File(file) => disk::erase(file).map(|()| None),
        SecretRef::Credential(name) => Ok(Some(format!(
            "The root key is the credential \"{name}\", which only you can delete: remove the file that LoadCredential= or \
             LoadCredentialEncrypted= names in the unit, and every copy of it. Until then, a laboratory could still find old \
             blocks of the keyring on the flash"
        ))),
    }
}

fn make(file: &Path) -> Result<(), KeyFileError> {
    let key = Secret::random();
    let mut text = data_encoding::HEXLOWER.encode(key.bytes());
    text.push('\n');
    let written = disk::replace(file, text.as_bytes(), 0o600);
    zeroize::Zeroize::zeroize(&mut text);
    written.map_err(|cause| KeyFileError::Unwritable { file: file.display().to_string(), cause })?;
    tracing::warn!(
        file = %file.display(),
        "a new spool key was made. Good for development; on a box give the key as a systemd credential and keep a copy: \
         without it nothing in the spool can be read"
    );
    Ok(())
}
