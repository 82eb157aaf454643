//! The keys of a spool: a root key from outside wraps the keyring, whose epoch keys wrap one random key for each segment.
//!
//! The keyring is the only file that the root key opens. It is kept twice (`keyring.0`, `keyring.1`), so that one damaged
//! block costs nothing, and a wrong root key is told from damage by the checksum. A keyring is made for an empty spool
//! only: where there are segments but no keyring, or a keyring that the key does not open, nothing is touched.
//!
//! ```text
//! keyring.N        "WGKEYS01" · spool id (16) · length (u32) · sealed keyring (wrap, AAD = the 24 bytes before) · CRC-32 (u32)
//! keys-destroyed   when a person destroyed them, RFC 3339: a later start says so instead of guessing
//! ```

use std::io;

use aws_lc_rs::hkdf;
use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use super::seal::{self, KEY_BYTES, Secret};
use super::storage::{Storage, erase_small, read_small, replace_small};

/// Epochs that a keyring may hold; older ones are dropped when no segment uses them.
const EPOCHS_MAX: usize = 4096;
/// How long an epoch that no segment uses is kept after the next one was made, in uptime.
const SUPERSEDED_KEPT_MS: u64 = 3_600_000;
const KEYRING_BYTES_MAX: u64 = 1 << 20;
const MAGIC: &[u8; 8] = b"WGKEYS01";
const COPIES: [&str; 2] = ["keyring.0", "keyring.1"];
/// Left behind by a destruction.
const DESTROYED: &str = "keys-destroyed";
const DESTROYED_BYTES_MAX: u64 = 64;

/// Why the keys of a spool can't be had. All of them are for a person to mend: exit code 78.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The root key opens neither copy of the keyring.
    #[error(
        "this key does not open the spool: it was made with another one. Nothing was changed. \
         Give the right key in [spool] key, or move the spool's folder away to begin an empty one"
    )]
    Wrong,
    /// Both copies are damaged or gone, and there are segments.
    #[error(
        "the spool holds data but its keyring (keyring.0, keyring.1) is missing or damaged. Nothing was changed. \
         Restore the files, or read the spool with the recovery identity: wardgate recover"
    )]
    Lost,
    /// A person destroyed them, at that moment by this box's clock.
    #[error(
        "the keys of this spool were destroyed on request at {0} (wardgate keys destroy): what it held can never be read \
         again. To begin anew, move the spool's folder away"
    )]
    Destroyed(String),
    /// The key is not 32 bytes.
    #[error("the spool key must be 32 bytes, raw or as 64 hexadecimal digits; this one has {0} bytes")]
    Malformed(usize),
    /// The disk.
    #[error("the keyring can't be read or written: {0}")]
    Io(#[from] io::Error),
}

/// Reads a root key: 32 raw bytes, or 64 hexadecimal digits with optional white space around.
///
/// # Errors
/// [`KeyError::Malformed`].
pub fn parse_root(bytes: &[u8]) -> Result<Secret, KeyError> {
    if let Ok(raw) = <[u8; KEY_BYTES]>::try_from(bytes) {
        return Ok(Secret::new(raw));
    }
    let text = bytes.trim_ascii();
    let decoded = data_encoding::HEXLOWER_PERMISSIVE.decode(text).ok();
    decoded
        .and_then(|mut decoded| {
            let key = <[u8; KEY_BYTES]>::try_from(decoded.as_slice()).ok();
            decoded.zeroize();
            key
        })
        .map(Secret::new)
        .ok_or(KeyError::Malformed(bytes.len()))
}

/// The spool's id and its epoch keys.
pub struct Keyring {
    /// Random, made once: part of what every frame is tied to.
    pub spool: [u8; 16],
    root: Secret,
    held: Held,
}

#[derive(Serialize, Deserialize, Clone)]
struct Held {
    generation: u64,
    epochs: Vec<Epoch>,
}

#[derive(Serialize, Deserialize, Clone)]
struct Epoch {
    number: u32,
    key: [u8; KEY_BYTES],
    /// Wall clock, for people.
    made_us: i64,
    /// Uptime, for rotation.
    made_uptime_ms: u64,
}

impl Drop for Epoch {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl Keyring {
    /// Opens the spool's keyring, or makes one when the spool is `empty`.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn open(storage: &dyn Storage, root: Secret, empty: bool) -> Result<Self, KeyError> {
        if let Some(keyring) = Self::read(storage, root.clone())? {
            return Ok(keyring);
        }
        // A power cut while the very first keyring is written leaves temporary files only, or a first copy that is whole.
        match empty && !is_present(storage)? {
            true => Self::make(storage, root),
            false => Err(KeyError::Lost),
        }
    }

    /// The spool's keyring; `None` when there is none that is intact. Changes nothing.
    ///
    /// # Errors
    /// [`KeyError::Wrong`], [`KeyError::Destroyed`], [`KeyError::Io`].
    pub fn read(storage: &dyn Storage, root: Secret) -> Result<Option<Self>, KeyError> {
        let mut newest: Option<Self> = None;
        let mut intact = false;
        for name in COPIES {
            let Some(bytes) = read_small(storage, name, KEYRING_BYTES_MAX)? else { continue };
            let Some((spool, sealed)) = split(&bytes) else { continue };
            intact = true;
            if let Some(keyring) = Self::unseal(spool, sealed, &root)
                && newest.as_ref().is_none_or(|other| other.held.generation < keyring.held.generation)
            {
                newest = Some(keyring);
            }
        }
        match newest {
            Some(keyring) => Ok(Some(keyring)),
            None if intact => Err(KeyError::Wrong),
            None => refuse_destroyed(storage).map(|()| None),
        }
    }

    /// The newest epoch and its key.
    pub fn newest(&self) -> (u32, Secret) {
        let newest = self.held.epochs.iter().max_by_key(|epoch| epoch.number);
        // Unwrap safety: a keyring is made with one epoch and pruned to the newest at least.
        #[allow(clippy::unwrap_used)]
        let epoch = newest.unwrap();
        (epoch.number, Secret::new(epoch.key))
    }

    /// The key of an epoch, if it is still held.
    pub fn epoch(&self, number: u32) -> Option<Secret> {
        self.held.epochs.iter().find(|epoch| epoch.number == number).map(|epoch| Secret::new(epoch.key))
    }

    /// A secret for one purpose, the same at every start: HKDF-SHA256 (RFC 5869) of the root key, salted with the spool's id.
    /// It lasts as long as the root key does.
    pub fn derived(&self, purpose: &'static str) -> Secret {
        let mut bytes = [0; KEY_BYTES];
        let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, &self.spool).extract(self.root.bytes());
        let info = [purpose.as_bytes()];
        let filled = secret.expand(&info, hkdf::HKDF_SHA256).and_then(|okm| okm.fill(&mut bytes));
        // Unwrap safety: one output of SHA-256 is always within the limits of HKDF.
        #[allow(clippy::unwrap_used)]
        filled.unwrap();
        Secret::new(bytes)
    }

    /// Uptime at which the newest epoch was made, milliseconds.
    pub fn newest_made_uptime_ms(&self) -> u64 {
        self.held.epochs.iter().map(|epoch| epoch.made_uptime_ms).max().unwrap_or(0)
    }

    /// Makes a new epoch and forgets those that are not `used` by any segment. Durable when it returns.
    ///
    /// # Errors
    /// [`KeyError::Io`]; the old keyring stays in force.
    pub fn rotate(&mut self, storage: &dyn Storage, used: &[u32], now: (i64, u64)) -> Result<u32, KeyError> {
        let mut held = self.held.clone();
        held.epochs.sort_by_key(|epoch| std::cmp::Reverse(epoch.number));
        // A segment that is just being begun or compacted under an epoch is not among those in use yet.
        let mut ended = now.1;
        held.epochs.retain(|epoch| {
            let young = ended.saturating_add(SUPERSEDED_KEPT_MS) > now.1;
            ended = epoch.made_uptime_ms;
            young || used.contains(&epoch.number)
        });
        held.epochs.truncate(EPOCHS_MAX);
        let number = self.newest().0.wrapping_add(1);
        held.epochs.push(Epoch { number, key: seal::random(), made_us: now.0, made_uptime_ms: now.1 });
        self.store(storage, held)?;
        Ok(number)
    }

    /// The root key, to be sealed for recovery.
    pub fn root(&self) -> &Secret {
        &self.root
    }

    /// Forgets all keys, erases both copies on disk and leaves word of it for the next start (`at_us`: wall clock). Blocks;
    /// durable when it returns.
    ///
    /// # Errors
    /// As the disk gives them: the memory has forgotten all the same.
    pub fn destroy(&mut self, storage: &dyn Storage, at_us: i64) -> io::Result<()> {
        self.root = Secret::random();
        for epoch in &mut self.held.epochs {
            epoch.key = seal::random();
        }
        for name in COPIES {
            erase_small(storage, name)?;
            erase_small(storage, &format!("{name}.tmp"))?;
        }
        let at = jiff::Timestamp::from_microsecond(at_us).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        replace_small(storage, "", DESTROYED, format!("{at:.0}").as_bytes())
    }

    fn make(storage: &dyn Storage, root: Secret) -> Result<Self, KeyError> {
        let epoch = Epoch { number: 1, key: seal::random(), made_us: 0, made_uptime_ms: 0 };
        let mut keyring = Self { spool: seal::random(), root, held: Held { generation: 0, epochs: Vec::new() } };
        keyring.store(storage, Held { generation: 0, epochs: vec![epoch] })?;
        Ok(keyring)
    }

    fn unseal(spool: [u8; 16], sealed: &[u8], root: &Secret) -> Option<Self> {
        let plain = seal::unwrap(root, &aad(&spool), sealed).ok()?;
        let held: Held = postcard::from_bytes(&plain).ok()?;
        (!held.epochs.is_empty()).then(|| Self { spool, root: root.clone(), held })
    }

    fn store(&mut self, storage: &dyn Storage, mut held: Held) -> Result<(), KeyError> {
        held.generation = self.held.generation + 1;
        let mut plain = postcard::to_stdvec(&held).map_err(|error| io::Error::other(error.to_string()))?;
        let sealed = seal::wrap(&self.root, &aad(&self.spool), &plain);
        plain.zeroize();
        let mut bytes = aad(&self.spool);
        bytes.extend_from_slice(&u32::try_from(sealed.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend_from_slice(&sealed);
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        for name in COPIES {
            replace_small(storage, "", name, &bytes)?;
        }
        self.held = held;
        Ok(())
    }
}

/// Refuses a spool without a keyring whose keys a person destroyed.
///
/// # Errors
/// [`KeyError::Destroyed`], [`KeyError::Io`].
pub fn refuse_destroyed(storage: &dyn Storage) -> Result<(), KeyError> {
    match read_small(storage, DESTROYED, DESTROYED_BYTES_MAX)? {
        Some(at) if !is_present(storage)? => Err(KeyError::Destroyed(String::from_utf8_lossy(&at).into_owned())),
        _ => Ok(()),
    }
}

fn is_present(storage: &dyn Storage) -> io::Result<bool> {
    for name in COPIES {
        if read_small(storage, name, KEYRING_BYTES_MAX)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn aad(spool: &[u8; 16]) -> Vec<u8> {
    [MAGIC.as_slice(), spool].concat()
}

/// Spool id and sealed keyring of an intact copy.
fn split(bytes: &[u8]) -> Option<([u8; 16], &[u8])> {
    let (content, crc) = bytes.split_last_chunk::<4>()?;
    if crc32fast::hash(content).to_le_bytes() != *crc {
        return None;
    }
    let rest = content.strip_prefix(MAGIC.as_slice())?;
    let (spool, rest) = rest.split_first_chunk::<16>()?;
    let (length, sealed) = rest.split_first_chunk::<4>()?;
    (u32::from_le_bytes(*length) as usize == sealed.len()).then_some((*spool, sealed))
}

#[cfg(test)]
mod tests {
    use super::super::storage::Disk;
    use super::*;

    fn disk() -> (tempfile::TempDir, Disk) {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::open(folder.path()).unwrap();
        (folder, disk)
    }

    #[test]
    fn a_wrong_key_changes_nothing_and_says_so() {
        let (_folder, disk) = disk();
        let right = Secret::random();
        let made = Keyring::open(&disk, right.clone(), true).unwrap();
        assert!(matches!(Keyring::open(&disk, Secret::random(), true), Err(KeyError::Wrong)));
        let again = Keyring::open(&disk, right, false).unwrap();
        assert_eq!((made.spool, made.newest().1.bytes()), (again.spool, again.newest().1.bytes()));
    }

    #[test]
    fn one_damaged_copy_costs_nothing_and_two_are_told_from_a_wrong_key() {
        let (_folder, disk) = disk();
        let root = Secret::random();
        Keyring::open(&disk, root.clone(), true).unwrap();
        for (name, lost) in [("keyring.0", false), ("keyring.1", true)] {
            disk.open(name).unwrap().write_at(b"?", 40).unwrap();
            assert_eq!(Keyring::open(&disk, root.clone(), false).is_err(), lost);
        }
        assert!(matches!(Keyring::open(&disk, root, true), Err(KeyError::Lost)));
    }

    #[test]
    fn a_spool_with_data_never_gets_a_new_key() {
        let (_folder, disk) = disk();
        assert!(matches!(Keyring::open(&disk, Secret::random(), false), Err(KeyError::Lost)));
        assert!(disk.list("").unwrap().is_empty());
    }

    #[test]
    fn rotation_keeps_epochs_in_use_and_forgets_the_others() {
        let (_folder, disk) = disk();
        let root = Secret::random();
        let mut keyring = Keyring::open(&disk, root.clone(), true).unwrap();
        let hour = SUPERSEDED_KEPT_MS;
        keyring.rotate(&disk, &[1], (0, hour)).unwrap();
        keyring.rotate(&disk, &[2], (0, hour + 1)).unwrap();
        assert!(keyring.epoch(1).is_some(), "a segment may just be beginning under it");
        keyring.rotate(&disk, &[2], (0, 3 * hour)).unwrap();
        let again = Keyring::open(&disk, root, false).unwrap();
        let held = [1, 2, 3, 4].map(|number| again.epoch(number).is_some());
        assert_eq!(held, [false, true, true, true]);
        assert_eq!((again.newest().0, again.newest_made_uptime_ms()), (4, 3 * hour));
    }

    #[test]
    fn a_derived_secret_is_the_same_at_every_start_and_only_for_its_purpose_spool_and_root_key() {
        let (_folder, disk) = disk();
        let (_folder, other) = self::disk();
        let root = Secret::random();
        let keyring = Keyring::open(&disk, root.clone(), true).unwrap();
        let secret = *keyring.derived("duplicates").bytes();
        assert_eq!(*Keyring::open(&disk, root.clone(), false).unwrap().derived("duplicates").bytes(), secret);
        assert_ne!(*keyring.derived("index").bytes(), secret);
        assert_ne!(*Keyring::open(&other, root, true).unwrap().derived("duplicates").bytes(), secret);
    }

    #[test]
    fn root_keys_are_read_raw_and_in_hexadecimal() {
        assert_eq!(parse_root(&[5; 32]).unwrap().bytes(), &[5; 32]);
        assert_eq!(parse_root(format!("{}\n", "05".repeat(32)).as_bytes()).unwrap().bytes(), &[5; 32]);
        assert!(matches!(parse_root(b"short"), Err(KeyError::Malformed(5))));
    }
}
