//! The root key for the day when the box is dead: sealed to the hospital's recovery identities, beside the logs.
//!
//! `recovery.age` is an ordinary age file whose content is the root key in hexadecimal, so that `age -d` alone gives a key
//! file that works. `recovery.recipients` says in clear to whom it is sealed; it is written after the sealed file, so that a
//! power cut between the two only makes the next start seal again.

use std::io::{self, Read, Write};

use zeroize::Zeroizing;

use super::keys::{KeyError, parse_root};
use super::seal::Secret;
use super::storage::{Storage, read_small, replace_small};

/// The sealed root key.
pub const SEALED: &str = "recovery.age";
/// To whom it is sealed, one recipient a line.
pub const RECIPIENTS: &str = "recovery.recipients";
/// Longest of both files.
const BYTES_MAX: u64 = 64 << 10;

/// Why the sealed root key can't be had.
#[derive(Debug, thiserror::Error)]
pub enum EscrowError {
    /// There is none.
    #[error(
        "there is no {SEALED} in this folder: [spool] recovery named nobody while the box was alive. Only its own key opens it"
    )]
    Missing,
    /// Sealed to others.
    #[error("{SEALED} is sealed to other identities: {RECIPIENTS} beside it names them")]
    NotForUs,
    /// Not what was written there.
    #[error("{SEALED} is damaged: {0}")]
    Damaged(String),
    /// The disk.
    #[error("{SEALED} can't be read: {0}")]
    Io(#[from] io::Error),
}

/// Makes the sealed root key be there for exactly these recipients; removes it when there are none.
///
/// # Errors
/// As the disk gives them; `InvalidInput` for what is no recipient.
pub fn keep(storage: &dyn Storage, root: &Secret, recipients: &[String]) -> io::Result<()> {
    let mut wanted: Vec<&str> = recipients.iter().map(String::as_str).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let wanted: String = wanted.iter().map(|recipient| format!("{recipient}\n")).collect();
    let named = read_small(storage, RECIPIENTS, BYTES_MAX)?;
    let sealed = read_small(storage, SEALED, BYTES_MAX)?;
    if wanted.is_empty() {
        for name in [named.map(|_| RECIPIENTS), sealed.map(|_| SEALED)].into_iter().flatten() {
            storage.remove(name)?;
            storage.sync_folder("")?;
        }
        return Ok(());
    }
    if sealed.is_some() && named.as_deref() == Some(wanted.as_bytes()) {
        return Ok(());
    }
    replace_small(storage, "", SEALED, &seal(root, recipients)?)?;
    replace_small(storage, "", RECIPIENTS, wanted.as_bytes())
}

/// Opens the sealed root key.
///
/// # Errors
/// [`EscrowError`].
pub fn open(storage: &dyn Storage, identities: &[Box<dyn age::Identity>]) -> Result<Secret, EscrowError> {
    let sealed = read_small(storage, SEALED, BYTES_MAX)?.ok_or(EscrowError::Missing)?;
    let damaged = |error: &dyn std::fmt::Display| EscrowError::Damaged(error.to_string());
    let decryptor = age::Decryptor::new(sealed.as_slice()).map_err(|error| damaged(&error))?;
    let opened = decryptor.decrypt(identities.iter().map(AsRef::as_ref));
    let reader = opened.map_err(|error| match error {
        age::DecryptError::NoMatchingKeys => EscrowError::NotForUs,
        other => damaged(&other),
    })?;
    let mut text = Zeroizing::new(Vec::with_capacity(256));
    reader.take(BYTES_MAX).read_to_end(&mut text).map_err(|error| damaged(&error))?;
    parse_root(&text).map_err(|error: KeyError| damaged(&error))
}

fn seal(root: &Secret, recipients: &[String]) -> io::Result<Vec<u8>> {
    let wrong = |error: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidInput, error.to_string());
    let parsed = recipients.iter().map(|text| text.parse::<age::x25519::Recipient>().map_err(|error| wrong(&error)));
    let parsed: Vec<_> = parsed.collect::<io::Result<_>>()?;
    let encryptor = age::Encryptor::with_recipients(parsed.iter().map(|recipient| recipient as &dyn age::Recipient));
    let mut sealed = Vec::new();
    let mut writer = encryptor.map_err(|error| wrong(&error))?.wrap_output(&mut sealed)?;
    let text = Zeroizing::new(data_encoding::HEXLOWER.encode(root.bytes()) + "\n");
    writer.write_all(text.as_bytes())?;
    writer.finish()?;
    Ok(sealed)
}
