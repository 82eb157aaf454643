//! End-to-end sealing with age (<https://age-encryption.org/v1>, X25519 recipients): who carries a message on need not be
//! able to read it.
//!
//! [`Payload`] is what an upstream puts on the wire: the body as it is, or sealed by a [`Sealer`] piece by piece, so that
//! a long body never lies in memory. The other end is [`Opener`](super::opening::Opener); the `age` command opens the same bytes.
//!
//! Each sealing draws a new file key and a header of random length ("grease"), so sealing a body twice gives different
//! bytes of different lengths: the length is known once the sealing has begun, the SHA-256 once it has ended. What was sealed is never
//! kept or resumed; a second attempt seals anew.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use age::stream::StreamWriter;
use age::x25519;
use bytes::Bytes;
use serde::{Deserialize, Deserializer, de};

use crate::digest::{Algorithm, Hasher};
use crate::envelope::{Body, BodyError, BodyReader, Envelope};

/// Most recipients of one `seal-to`: each adds about 100 bytes to every message.
pub const RECIPIENTS_MAX: usize = 16;

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
    /// Takes the SHA-256 of a body as it is, where it is wanted and not known.
    summing: Option<Hasher>,
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
            let sha256 = envelope.digest.sha256();
            return Ok(Self { length: body.len(), reader, sha256, summing: None, sealing: None });
        };
        let sealing = Sealing::begin(sealer)?;
        let length = sealing.buffered() + sealed_payload_len(body);
        Ok(Self { length, reader, sha256: None, summing: None, sealing: Some(Box::new(sealing)) })
    }

    /// The same, whose [`Payload::sha256`] is known at its end at the latest.
    #[must_use]
    pub fn summed(mut self) -> Self {
        if self.sha256.is_none() && self.sealing.is_none() {
            self.summing = Some(Hasher::new(Algorithm::Sha256));
        }
        self
    }

    /// The same, whose [`Payload::sha256`] is known before the first byte goes, of a body as it is: one that is not known by it is read once
    /// more for that.
    ///
    /// # Errors
    /// [`BodyError`] when the stored body can't be read.
    pub async fn summed_first(mut self, body: &Body) -> Result<Self, BodyError> {
        if self.sha256.is_none() && self.sealing.is_none() {
            let (mut reader, mut hasher) = (body.reader(), Hasher::new(Algorithm::Sha256));
            while let Some(piece) = reader.next().await? {
                hasher.update(&piece);
            }
            self.sha256 = hasher.finish().sha256();
        }
        Ok(self)
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

    /// SHA-256 of the bytes sent: from the beginning for a body as it is that is known by it, else once [`Payload::next`] has returned
    /// `None`, of one as it is only when it was [`Payload::summed`].
    pub fn sha256(&self) -> Option<[u8; 32]> {
        self.sha256
    }

    /// The next bytes, at most some hundred KiB; `None` at the end.
    ///
    /// # Errors
    /// [`BodyError`] when the stored body can't be read; what was sent so far is worthless then.
    pub async fn next(&mut self) -> Result<Option<Bytes>, BodyError> {
        let Some(sealing) = &mut self.sealing else {
            let piece = self.reader.next().await?;
            match (&piece, &mut self.summing) {
                (Some(bytes), Some(summing)) => summing.update(bytes),
                (None, Some(summing)) => self.sha256 = summing.finish().sha256(),
                (_, None) => {}
            }
            return Ok(piece);
        };
        loop {
            if sealing.is_ended() && sealing.buffered() == 0 {
                self.sha256 = sealing.digest.finish().sha256();
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
        let sha256 = self.sha256.ok_or_else(|| BodyError::Unreadable("it ended early".into()))?;
        Ok((all, sha256))
    }
}

/// A sealing under way: plain bytes go in, sealed bytes are taken out as they come to be.
pub struct Sealing {
    writer: Option<StreamWriter<Outlet>>,
    outlet: Outlet,
    digest: Hasher,
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
        Ok(Self { writer: Some(writer), outlet, digest: Hasher::new(Algorithm::Sha256) })
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
}

/// Length of age's payload after header and nonce: each begun chunk has a tag; an empty body has one empty chunk.
fn sealed_payload_len(body: &Body) -> u64 {
    body.len() + body.len().div_ceil(CHUNK_BYTES).max(1) * TAG_BYTES
}

fn recipient(text: &str) -> Result<x25519::Recipient, SealError> {
    text.trim().parse().map_err(|_| SealError::Recipient(text.into()))
}

fn failed(error: impl std::fmt::Display) -> BodyError {
    BodyError::Unreadable(format!("sealing failed: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::envelope::Pieces;
    use crate::upstream::fixtures::envelope;
    use crate::upstream::opening::OpenError;
    use crate::upstream::opening::fixtures::pair;

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
            assert_eq!(Digest::of(Algorithm::Sha256, &sealed).sha256(), payload.sha256());
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
        assert_eq!(payload.sha256(), envelope.digest.sha256());
    }

    #[tokio::test]
    async fn of_an_image_the_receiver_is_told_the_sha256_too() {
        let mut envelope = envelope(Body::pieces(40 * (256 << 10), Arc::new(Zeros(40))));
        envelope.digest = Digest { algorithm: Algorithm::Blake3, bytes: [9; 32] };
        let mut payload = Payload::new(&envelope, None).unwrap().summed();
        assert_eq!(payload.sha256(), None, "not before it was read");
        let all = payload.collect().await.unwrap();
        let sum = Digest::of(Algorithm::Sha256, &all).sha256();
        assert_eq!(payload.sha256(), sum);
        let payload = Payload::new(&envelope, None).unwrap().summed_first(&envelope.body).await.unwrap();
        assert_eq!(payload.sha256(), sum, "in a header, which goes before the body");
    }

    #[test]
    fn a_wrong_recipient_is_named() {
        let error = Sealer::new(&["age1nonsense"]).unwrap_err().to_string();
        assert!(error.contains("age1nonsense"), "{error}");
        assert!(Sealer::new::<&str>(&[]).is_err());
    }
}
