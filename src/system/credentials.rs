//! Reads what a [`SecretRef`] names: a systemd credential or a file.
//!
//! What is read is wiped from memory when dropped and is never logged or shown in an error. Certificates come this way as
//! well, so that each may lie in a file or in a credential.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::values::SecretRef;

/// Largest credential or file that is read: a bundle of all public CAs has a quarter of this.
pub const SECRET_BYTES_MAX: u64 = 1 << 20;

/// Why a secret or certificate could not be read. Says where it should be and what to do.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The process has no credentials at all.
    #[error(
        "credential \"{0}\" is not there: this process was given no credentials; start it by systemd with \
         LoadCredential={0}:/path in the unit, or write {{ file = \"path\" }}"
    )]
    NoCredentials(String),
    /// There are credentials, but not this one.
    #[error("credential \"{0}\" is not there: add LoadCredential={0}:/path to the unit and restart the service")]
    NoSuchCredential(String),
    /// The file is not there.
    #[error("file \"{}\" is not there: put it there, or correct the path", .0.display())]
    NoSuchFile(PathBuf),
    /// The file may not be read.
    #[error("{0} may not be read by this user: change its owner or mode")]
    Denied(SecretRef),
    /// Empty: a file that was never filled.
    #[error("{0} is empty: fill it")]
    Empty(SecretRef),
    /// Not what it should be.
    #[error("{0} is larger than 1 MiB: this is not the right file")]
    TooLarge(SecretRef),
    /// The disk or the path.
    #[error("{0} can't be read: {1}")]
    Unreadable(SecretRef, io::Error),
}

/// Reads a secret, at most [`SECRET_BYTES_MAX`] bytes; it is wiped when dropped.
///
/// # Errors
/// [`CredentialError`], in words for the person who configures.
pub fn read(secret: &SecretRef) -> Result<Zeroizing<Vec<u8>>, CredentialError> {
    read_from(secret, credentials_directory().as_deref())
}

/// Where the secret lies.
///
/// # Errors
/// [`CredentialError::NoCredentials`] for a credential when the process was given none.
pub fn path(secret: &SecretRef) -> Result<PathBuf, CredentialError> {
    path_from(secret, credentials_directory().as_deref())
}

/// Whether this process was given credentials by systemd (`wardgate check` on a desk has none).
pub fn has_credentials() -> bool {
    credentials_directory().is_some()
}

/// Words of warning when a file that holds a secret may be read by others than its owner; `None`: all is well, or it is
/// a credential (systemd guards those), or not there.
pub fn exposure(secret: &SecretRef) -> Option<String> {
    let SecretRef::File(path) = secret else { return None };
    let mode = path.metadata().ok()?.permissions().mode() & 0o777;
    (mode & 0o077 != 0).then(|| {
        let shown = path.display();
        format!("file \"{shown}\" holds a secret, but others may use it (mode {mode:03o}): run chmod 600 {shown}")
    })
}

fn credentials_directory() -> Option<PathBuf> {
    std::env::var_os("CREDENTIALS_DIRECTORY").filter(|directory| !directory.is_empty()).map(PathBuf::from)
}

fn path_from(secret: &SecretRef, directory: Option<&Path>) -> Result<PathBuf, CredentialError> {
    match secret {
        SecretRef::File(path) => Ok(path.clone()),
        SecretRef::Credential(name) => {
            let directory = directory.ok_or_else(|| CredentialError::NoCredentials(name.clone()))?;
            Ok(directory.join(name))
        }
    }
}

fn read_from(secret: &SecretRef, directory: Option<&Path>) -> Result<Zeroizing<Vec<u8>>, CredentialError> {
    let path = path_from(secret, directory)?;
    let explained = |error: io::Error| explain(secret, error);
    let file = File::open(&path).map_err(explained)?;
    let expected = file.metadata().map_err(explained)?.size().min(SECRET_BYTES_MAX);
    // One allocation of the right size: a vector that grows leaves copies behind that nobody wipes.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(expected).unwrap_or(0) + 64));
    file.take(SECRET_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(explained)?;
    match bytes.len() as u64 {
        0 => Err(CredentialError::Empty(secret.clone())),
        length if length > SECRET_BYTES_MAX => Err(CredentialError::TooLarge(secret.clone())),
        _ => Ok(bytes),
    }
}

fn explain(secret: &SecretRef, error: io::Error) -> CredentialError {
    match (error.kind(), secret) {
        (io::ErrorKind::NotFound, SecretRef::File(path)) => CredentialError::NoSuchFile(path.clone()),
        (io::ErrorKind::NotFound, SecretRef::Credential(name)) => CredentialError::NoSuchCredential(name.clone()),
        (io::ErrorKind::PermissionDenied, _) => CredentialError::Denied(secret.clone()),
        _ => CredentialError::Unreadable(secret.clone(), error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_and_a_credential_are_read_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("box.key"), b"\x00secret\n").unwrap();
        let file = SecretRef::File(folder.path().join("box.key"));
        assert_eq!(&read(&file).unwrap()[..], b"\x00secret\n");
        let credential = SecretRef::Credential("box.key".into());
        assert_eq!(&read_from(&credential, Some(folder.path())).unwrap()[..], b"\x00secret\n");
    }

    #[test]
    fn what_is_missing_is_said_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let credential = SecretRef::Credential("spool-key".into());
        let words =
            |result: Result<_, CredentialError>| result.map(|_: Zeroizing<Vec<u8>>| ()).unwrap_err().to_string();
        assert!(words(read_from(&credential, None)).contains("LoadCredential=spool-key:/path"));
        assert!(words(read_from(&credential, Some(folder.path()))).contains("add LoadCredential=spool-key:/path"));
        let file = SecretRef::File(folder.path().join("dev.key"));
        assert!(words(read(&file)).ends_with("dev.key\" is not there: put it there, or correct the path"));
    }

    #[test]
    fn an_empty_file_a_folder_and_a_huge_file_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        fs::write(&path, b"").unwrap();
        let secret = SecretRef::File(path.clone());
        assert!(matches!(read(&secret), Err(CredentialError::Empty(_))));
        File::options().write(true).open(&path).unwrap().set_len(SECRET_BYTES_MAX + 1).unwrap();
        assert!(matches!(read(&secret), Err(CredentialError::TooLarge(_))));
        assert!(matches!(read(&SecretRef::File(folder.path().into())), Err(CredentialError::Unreadable(..))));
    }

    #[test]
    fn a_secret_that_others_may_read_is_pointed_at() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("box.key");
        fs::write(&path, b"secret").unwrap();
        let secret = SecretRef::File(path.clone());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let words = exposure(&secret).unwrap();
        assert!(words.contains("(mode 640): run chmod 600 "), "{words}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(exposure(&secret), None);
    }
}
