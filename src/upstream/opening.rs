//! The other end of [`super::sealing`]: opens what was sealed with age (<https://age-encryption.org/v1>) to one of our identities.
//!
//! What comes may be hostile: header and memory are bounded. An identity is never quoted in an error, nor logged.

use std::io::{self, Read};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use age::stream::StreamReader;
use age::x25519;

use super::sealing::SealError;

/// Longest file of identities.
pub const IDENTITY_FILE_BYTES_MAX: u64 = 64 << 10;
/// Most identities that are tried on a message.
pub const IDENTITIES_MAX: usize = 64;
/// Longest age header that is read before it must have named us.
pub const HEADER_BYTES_MAX: u64 = 64 << 10;

/// Those who can open what was sealed to them: `AGE-SECRET-KEY-1...` lines as `age-keygen` writes them.
#[derive(Clone)]
pub struct Opener {
    identities: Vec<x25519::Identity>,
}

impl Opener {
    /// Reads a file of identities.
    ///
    /// # Errors
    /// [`SealError::Identity`] with the path, never with what is in the file.
    pub fn from_file(path: &Path) -> Result<Self, SealError> {
        let wrong = |cause: String| SealError::Identity(format!("identities in {}: {cause}", path.display()));
        let file = std::fs::File::open(path).map_err(|error| wrong(error.to_string()))?;
        let mut text = String::new();
        let read = file.take(IDENTITY_FILE_BYTES_MAX + 1).read_to_string(&mut text);
        let read = read.map_err(|error| wrong(error.to_string()))?;
        if read as u64 > IDENTITY_FILE_BYTES_MAX {
            return Err(wrong(format!("longer than {IDENTITY_FILE_BYTES_MAX} bytes")));
        }
        text.parse().map_err(|error: SealError| wrong(error.to_string()))
    }

    /// Opens a sealed stream: what is read from the result is genuine, but the whole is complete only when the reader has
    /// come to its end without an error.
    ///
    /// # Errors
    /// [`OpenError`]. Reading blocks as `sealed` does; memory stays below some hundred KiB whatever comes.
    pub fn open<R: Read>(&self, sealed: R) -> Result<StreamReader<Bounded<R>>, OpenError> {
        let left = Arc::new(AtomicU64::new(HEADER_BYTES_MAX));
        let bounded = Bounded { inner: io::BufReader::new(sealed), left: Arc::clone(&left) };
        let decryptor = age::Decryptor::new(bounded).map_err(|error| OpenError::Format(error.to_string()))?;
        left.store(u64::MAX, Ordering::Relaxed);
        let identities = self.identities.iter().map(|identity| identity as &dyn age::Identity);
        decryptor.decrypt(identities).map_err(|error| match error {
            age::DecryptError::NoMatchingKeys => OpenError::NotForUs,
            other => OpenError::Format(other.to_string()),
        })
    }

    /// Opens sealed bytes that lie in memory.
    ///
    /// # Errors
    /// [`OpenError`], also when the bytes were cut off or changed.
    pub fn open_whole(&self, sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
        let mut plain = Vec::with_capacity(sealed.len());
        let read = self.open(sealed)?.read_to_end(&mut plain);
        read.map_err(|error| OpenError::Format(error.to_string()))?;
        Ok(plain)
    }
}

impl FromStr for Opener {
    type Err = SealError;

    fn from_str(text: &str) -> Result<Self, SealError> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let read = |line: &str| {
            let wrong = "a line is not an identity: each begins with AGE-SECRET-KEY-1, or with # for a comment";
            line.parse().map_err(|_| SealError::Identity(wrong.into()))
        };
        let identities: Vec<_> = lines.map(read).collect::<Result<_, _>>()?;
        match identities.len() {
            1..=IDENTITIES_MAX => Ok(Self { identities }),
            0 => Err(SealError::Identity("no identity found; make one with `age-keygen`".into())),
            count => Err(SealError::Identity(format!("{count} identities, at most {IDENTITIES_MAX} are tried"))),
        }
    }
}

/// Why sealed bytes could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Sealed to others.
    #[error("sealed to recipients whose identities are not here")]
    NotForUs,
    /// No age file, cut off, or changed on the way.
    #[error("not a genuine age file: {0}")]
    Format(String),
}

/// A reader that gives up when an age header does not end. Made by [`Opener::open`].
pub struct Bounded<R> {
    inner: io::BufReader<R>,
    left: Arc<AtomicU64>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left.load(Ordering::Relaxed);
        let room = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        if room == 0 && !buffer.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the header is too long"));
        }
        let (window, _) = buffer.split_at_mut(room);
        let read = self.inner.read(window)?;
        if left != u64::MAX {
            self.left.store(left.saturating_sub(read as u64), Ordering::Relaxed);
        }
        Ok(read)
    }
}

#[cfg(test)]
pub(super) mod fixtures {
    use age::secrecy::ExposeSecret;

    use super::*;

    /// Someone who can open, and the recipient to seal to.
    pub fn pair() -> (Opener, String) {
        let identity = x25519::Identity::generate();
        (identity.to_string().expose_secret().parse().unwrap(), identity.to_public().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::fixtures::pair;
    use super::*;
    use crate::upstream::sealing::Sealer;

    #[test]
    fn what_was_cut_off_or_changed_does_not_open() {
        let (opener, to) = pair();
        let mut sealed = Sealer::new(&[to]).unwrap().seal_whole(&[5; 70_000]).unwrap();
        assert!(opener.open_whole(&sealed[..sealed.len() - 1]).is_err());
        assert!(opener.open_whole(&sealed[..sealed.len() - 4_480]).is_err(), "cut at a chunk's end");
        let last = sealed.len() - 1;
        sealed[last] ^= 1;
        assert!(opener.open_whole(&sealed).is_err());
    }

    #[test]
    fn a_header_without_an_end_is_given_up() {
        let (opener, _) = pair();
        let endless = b"age-encryption.org/v1\n".chain(io::repeat(b'-'));
        assert!(opener.open(endless).is_err());
    }

    #[test]
    fn a_wrong_identity_is_not_quoted() {
        let error = "AGE-SECRET-KEY-1SECRET".parse::<Opener>().map(drop).unwrap_err().to_string();
        assert!(!error.contains("SECRET-KEY-1S"), "{error}");
    }
}
