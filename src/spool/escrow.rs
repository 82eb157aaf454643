//! The root key for the day when the box is dead: sealed to the hospital's recovery identities, beside the logs.
//!
//! `recovery.age` is an ordinary age file whose content is the root key in hexadecimal, so that `age -d` alone gives a key
//! file that works. `recovery.recipients` says in clear to whom it is sealed; it is written after the sealed file, so that a
//! power cut between the two only makes the next start seal again.

use std::io::{self, Write};

use zeroize::Zeroizing;

use super::seal::Secret;
use super::storage::{Storage, read_small, replace_small};

/// The sealed root key, in the spool's folder.
pub const RECOVERY_FILE: &str = "recovery.age";
/// To whom it is sealed, one recipient a line.
pub const RECIPIENTS: &str = "recovery.recipients";
/// Longest of both files.
pub const RECOVERY_BYTES_MAX: u64 = 64 << 10;

/// Makes the sealed root key be there for exactly these recipients; removes it when there are none.
///
/// # Errors
/// As the disk gives them; `InvalidInput` for what is no recipient.
pub fn keep(storage: &dyn Storage, root: &Secret, recipients: &[String]) -> io::Result<()> {
    let mut wanted: Vec<&str> = recipients.iter().map(String::as_str).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let wanted: String = wanted.iter().map(|recipient| format!("{recipient}\n")).collect();
    let named = read_small(storage, RECIPIENTS, RECOVERY_BYTES_MAX)?;
    let sealed = read_small(storage, RECOVERY_FILE, RECOVERY_BYTES_MAX)?;
    if wanted.is_empty() {
        for name in [named.map(|_| RECIPIENTS), sealed.map(|_| RECOVERY_FILE)].into_iter().flatten() {
            storage.remove(name)?;
            storage.sync_folder("")?;
        }
        return Ok(());
    }
    if sealed.is_some() && named.as_deref() == Some(wanted.as_bytes()) {
        return Ok(());
    }
    replace_small(storage, "", RECOVERY_FILE, &seal(root, recipients)?)?;
    replace_small(storage, "", RECIPIENTS, wanted.as_bytes())
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
