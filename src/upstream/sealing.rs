//! End-to-end sealing with age (<https://age-encryption.org/v1>, X25519 recipients): who carries a message on need not be
//! able to read it.
//!
//! [`Payload`] is what an upstream puts on the wire: the body as it is, or sealed by a [`Sealer`] piece by piece, so that
//! a long body never lies in memory. [`Opener`] is the other end; the `age` command opens the same bytes.
//!
//! Each sealing draws a new file key and a header of random length ("grease"), so sealing a body twice gives different
//! bytes of different lengths: the length is known once the sealing has begun, the SHA-256 once it has ended. What was sealed is never
//! kept or resumed; a second attempt seals anew.

use std::io::{self, Read, Write};
use std::path::Path;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use age::stream::{StreamReader, StreamWriter};
use age::x25519;
use aws_lc_rs::digest;
use bytes::Bytes;
use serde::{Deserialize, Deserializer, de};

use crate::envelope::{Body, BodyError, BodyReader, Envelope};

/// Most recipients of one `seal-to`: each adds about 100 bytes to every message.
pub const RECIPIENTS_MAX: usize = 16;
/// Longest file of identities.
pub const IDENTITY_FILE_BYTES_MAX: u64 = 64 << 10;
/// Most identities that are tried on a message.
pub const IDENTITIES_MAX: usize = 64;
/// Longest age header that is read before it must have named us.
pub const HEADER_BYTES_MAX: u64 = 64 << 10;

/// age encrypts in chunks of this size, each followed by a tag.
const CHUNK_BYTES: u64 = 64 << 10;
const TAG_BYTES: u64 = 16;

/// Those who may open what is sent: the value of `seal-to`, at least one `age1...` recipient.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sealer {
    recipients: Vec<x25519::Recipient>,
}

impl Sealer {
    /// A sealer for these recipients.
    ///
    /// # Errors
    /// [`SealError::Recipient`] when a text is not a recipient, [`SealError::Count`] for none or too many.
    pub fn new<T: AsRef<str>>(recipients: &[T]) -> Result<Self, SealError> {
        let read = |text: &T| recipient(text.as_ref());
        Self::of(recipients.iter().map(read).collect::<Result<_, _>>()?)
    }

    /// Seals bytes that lie in memory.
    ///
    /// # Errors
    /// [`BodyError`] when the recipients can't be used.
    pub fn seal_whole(&self, plain: &[u8]) -> Result<Vec<u8>, BodyError> {
        let mut sealing = Sealing::begin(self)?;
        sealing.push(plain)?;
        sealing.end()?;
        Ok(sealing.take())
    }

    fn of(recipients: Vec<x25519::Recipient>) -> Result<Self, SealError> {
        match recipients.len() {
            1..=RECIPIENTS_MAX => Ok(Self { recipients }),
            count => Err(SealError::Count(count)),
        }
    }
}

/// Why a `seal-to` or a file of identities can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Not an `age1...` text.
    #[error(
        "\"{0}\" is not an age recipient: it begins with age1 and has 62 characters; make one with `age-keygen` and give its \"public key\""
    )]
    Recipient(String),
    /// No recipient, or too many.
    #[error("{0} recipients: name 1 to {RECIPIENTS_MAX}, or leave seal-to out if the messages may be read on the way")]
    Count(usize),
    /// The identities are of no use. The text never quotes them.
    #[error("{0}")]
    Identity(String),
}

impl<'de> Deserialize<'de> for Sealer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// One element, so that an error stands at its own line and column.
        struct Element(x25519::Recipient);
        impl<'de> Deserialize<'de> for Element {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                recipient(&String::deserialize(deserializer)?).map(Self).map_err(de::Error::custom)
            }
        }
        let elements = Vec::<Element>::deserialize(deserializer)?;
        Self::of(elements.into_iter().map(|Element(recipient)| recipient).collect()).map_err(de::Error::custom)
    }
}

/// The bytes of one attempt to send a message: its body as it is, or sealed. Read with [`Payload::next`] until `None`.
pub struct Payload {
    length: u64,
    reader: BodyReader,
    sha256: Option<[u8; 32]>,
    sealing: Option<Box<Sealing>>,
}

impl Payload {
    /// Begins to send `envelope`, sealed when there is a sealer.
    ///
    /// # Errors
    /// [`BodyError`] when the sealing can't begin.
    pub fn new(envelope: &Envelope, sealer: Option<&Sealer>) -> Result<Self, BodyError> {
        let body = &envelope.body;
        let reader = body.reader();
        let Some(sealer) = sealer else {
            return Ok(Self { length: body.len(), reader, sha256: Some(envelope.sha256), sealing: None });
        };
        let sealing = Sealing::begin(sealer)?;
        let length = sealing.buffered() + sealed_payload_len(body);
        Ok(Self { length, reader, sha256: None, sealing: Some(Box::new(sealing)) })
    }

    /// Length of all bytes that will come, known from the beginning.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether no byte will come.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Whether the bytes are an age file.
    pub fn is_sealed(&self) -> bool {
        self.sealing.is_some()
    }

    /// SHA-256 of the bytes sent: for a body as it is from the beginning, for a sealed one once [`Payload::next`] has returned `None`.
    pub fn sha256(&self) -> Option<[u8; 32]> {
        self.sha256
    }

    /// The next bytes, at most some hundred KiB; `None` at the end.
    ///
    /// # Errors
    /// [`BodyError`] when the stored body can't be read; what was sent so far is worthless then.
    pub async fn next(&mut self) -> Result<Option<Bytes>, BodyError> {
        let Some(sealing) = &mut self.sealing else {
            return self.reader.next().await;
        };
        loop {
            if sealing.is_ended() && sealing.buffered() == 0 {
                self.sha256 = Some(sealing.digest());
                return Ok(None);
            }
            if !sealing.is_ended() {
                match self.reader.next().await? {
                    Some(piece) => sealing.push(&piece)?,
                    None => sealing.end()?,
                }
            }
            if sealing.buffered() > 0 {
                return Ok(Some(sealing.take().into()));
            }
        }
    }

    /// All bytes that are still to come at once, for a payload that the caller knows to be short enough to hold;
    /// [`Payload::sha256`] is known afterwards.
    ///
    /// # Errors
    /// As [`Payload::next`].
    pub async fn collect(&mut self) -> Result<Bytes, BodyError> {
        let Some(first) = self.next().await? else { return Ok(Bytes::new()) };
        // The only piece is handed out as it is, without a copy.
        let Some(second) = self.next().await? else { return Ok(first) };
        let mut all = Vec::with_capacity(usize::try_from(self.length).unwrap_or(0));
        all.extend_from_slice(&first);
        all.extend_from_slice(&second);
        while let Some(piece) = self.next().await? {
            all.extend_from_slice(&piece);
        }
        Ok(all.into())
    }

    /// [`Payload::collect`], and the SHA-256 of the bytes.
    ///
    /// # Errors
    /// As [`Payload::next`].
    pub async fn whole(mut self) -> Result<(Bytes, [u8; 32]), BodyError> {
        let all = self.collect().await?;
        let sha256 = self.sha256.ok_or_else(|| BodyError("it ended early".into()))?;
        Ok((all, sha256))
    }
}

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

/// A sealing under way: plain bytes go in, sealed bytes are taken out as they come to be.
pub struct Sealing {
    writer: Option<StreamWriter<Outlet>>,
    outlet: Outlet,
    digest: digest::Context,
}

/// Where age writes to and the payload takes from; shared because age's writer owns its output.
#[derive(Clone, Default)]
struct Outlet(Arc<Mutex<Vec<u8>>>);

impl Outlet {
    fn with<T>(&self, act: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.with(|buffer| buffer.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sealing {
    /// Begins an age file for these recipients: its header can be taken at once.
    ///
    /// # Errors
    /// [`BodyError`] when the recipients can't be used.
    pub fn begin(sealer: &Sealer) -> Result<Self, BodyError> {
        let recipients = sealer.recipients.iter().map(|recipient| recipient as &dyn age::Recipient);
        let encryptor = age::Encryptor::with_recipients(recipients).map_err(failed)?;
        let outlet = Outlet::default();
        let writer = encryptor.wrap_output(outlet.clone()).map_err(failed)?;
        Ok(Self { writer: Some(writer), outlet, digest: digest::Context::new(&digest::SHA256) })
    }

    /// Seals more bytes.
    ///
    /// # Errors
    /// [`BodyError`], which memory alone never gives.
    pub fn push(&mut self, plain: &[u8]) -> Result<(), BodyError> {
        self.writer.as_mut().map_or(Ok(()), |writer| writer.write_all(plain)).map_err(failed)
    }

    /// Seals the last chunk: without it the file counts as cut off.
    ///
    /// # Errors
    /// As [`Sealing::push`].
    pub fn end(&mut self) -> Result<(), BodyError> {
        self.writer.take().map_or(Ok(()), |writer| writer.finish().map(drop)).map_err(failed)
    }

    fn is_ended(&self) -> bool {
        self.writer.is_none()
    }

    /// Sealed bytes that wait to be taken.
    pub fn buffered(&self) -> u64 {
        self.outlet.with(|buffer| buffer.len() as u64)
    }

    /// Takes the sealed bytes that are ready.
    pub fn take(&mut self) -> Vec<u8> {
        let bytes = self.outlet.with(std::mem::take);
        self.digest.update(&bytes);
        bytes
    }

    /// SHA-256 of all that was taken.
    fn digest(&self) -> [u8; 32] {
        let mut sum = [0; 32];
        sum.copy_from_slice(self.digest.clone().finish().as_ref());
        sum
    }
}

/// Length of age's payload after header and nonce: each begun chunk has a tag; an empty body has one empty chunk.
fn sealed_payload_len(body: &Body) -> u64 {
    body.len() + body.len().div_ceil(CHUNK_BYTES).max(1) * TAG_BYTES
}

fn recipient(text: &str) -> Result<x25519::Recipient, SealError> {
    text.trim().parse().map_err(|_| SealError::Recipient(text.into()))
}

fn failed(error: impl std::fmt::Display) -> BodyError {
    BodyError(format!("sealing failed: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::Pieces;
    use crate::upstream::fixtures::envelope;
    use age::secrecy::ExposeSecret;

    fn pair() -> (Opener, String) {
        let identity = x25519::Identity::generate();
        (identity.to_string().expose_secret().parse().unwrap(), identity.to_public().to_string())
    }

    struct Zeros(usize);
    impl Pieces for Zeros {
        fn count(&self) -> usize {
            self.0
        }
        fn read(&self, _: usize) -> Result<Bytes, BodyError> {
            Ok(vec![0; 256 << 10].into())
        }
    }

    #[tokio::test]
    async fn every_recipient_opens_what_was_sealed_and_a_stranger_does_not() {
        let ((one, to_one), (two, to_two), (stranger, _)) = (pair(), pair(), pair());
        let sealer = Sealer::new(&[to_one, to_two]).unwrap();
        let sealed = sealer.seal_whole(b"MSH|^~\\&|").unwrap();
        for opener in [&one, &two] {
            assert_eq!(opener.open_whole(&sealed).unwrap(), b"MSH|^~\\&|");
        }
        assert_eq!(stranger.open_whole(&sealed), Err(OpenError::NotForUs));
    }

    #[tokio::test]
    async fn length_and_digest_told_are_those_of_the_bytes_sent() {
        let (opener, to) = pair();
        let sealer = Sealer::new(&[to]).unwrap();
        for length in [0, 1, 65_535, 65_536, 65_537, 131_072, 300_000] {
            let plain = Bytes::from(vec![7; length]);
            let mut payload = Payload::new(&envelope(Body::whole(plain.clone())), Some(&sealer)).unwrap();
            let told = payload.len();
            let sealed = payload.collect().await.unwrap();
            assert_eq!(told, sealed.len() as u64, "{length}");
            assert_eq!(digest::digest(&digest::SHA256, &sealed).as_ref(), payload.sha256().unwrap());
            assert_eq!(opener.open_whole(&sealed).unwrap(), plain);
        }
    }

    #[tokio::test]
    async fn a_long_body_is_sealed_piece_by_piece() {
        let (opener, to) = pair();
        let body = Body::pieces(40 * (256 << 10), Arc::new(Zeros(40)));
        let mut payload = Payload::new(&envelope(body), Some(&Sealer::new(&[to]).unwrap())).unwrap();
        let (told, mut sealed) = (payload.len(), Vec::new());
        while let Some(piece) = payload.next().await.unwrap() {
            assert!(piece.len() < 400 << 10);
            sealed.extend_from_slice(&piece);
        }
        assert_eq!(told, sealed.len() as u64);
        assert!(opener.open_whole(&sealed).unwrap() == vec![0; 40 * (256 << 10)]);
    }

    #[tokio::test]
    async fn without_a_sealer_the_bytes_go_as_they_are() {
        let envelope = envelope(Body::whole(Bytes::from_static(b"as they are")));
        let mut payload = Payload::new(&envelope, None).unwrap();
        assert!(!payload.is_sealed());
        assert_eq!(payload.collect().await.unwrap(), Bytes::from_static(b"as they are"));
        assert_eq!(payload.sha256(), Some(envelope.sha256));
    }

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
    fn a_wrong_recipient_is_named_and_a_wrong_identity_is_not() {
        let error = Sealer::new(&["age1nonsense"]).unwrap_err().to_string();
        assert!(error.contains("age1nonsense"), "{error}");
        let error = "AGE-SECRET-KEY-1SECRET".parse::<Opener>().map(drop).unwrap_err().to_string();
        assert!(!error.contains("SECRET-KEY-1S"), "{error}");
        assert!(Sealer::new::<&str>(&[]).is_err());
    }
}
