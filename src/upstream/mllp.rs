//! The MLLP upstream: HL7 v2 to an engine or an information system, one message at a time, its acknowledgement as the receipt.
//!
//! The bytes are those that the device sent. AA and CA are receipts; AE and CE refuse for now, AR and CR for good. After a
//! missing or early answer the connection is closed, so that no answer can be taken for another message's ([`super::answers`]).
//!
//! A message that asks for no positive answer (MSH-15 and MSH-16) would never have a receipt. `request-ack = "rewrite"`
//! asks for one in its place (MSH-15 AL, MSH-16 NE: the one declared change of bytes); `receipt = "written"` takes
//! the sent bytes for delivered, which they may not be. Without either such a message is rejected, with words.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use memchr::memmem;
use serde::Deserialize;
use tokio::io::{AsyncWriteExt, WriteHalf};
use tokio::sync::{Mutex, oneshot};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::answers::Answers;
use super::link::{self, lost};
use super::{Delivery, Identity, SendError, Upstream, WhenRefused};
use crate::envelope::{BodyReader, Envelope, Flags};
use crate::system::fault;
use crate::system::stream::Stream;
use crate::system::tls::ClientTls;
use crate::values::{HostPort, Problems, SecretRef, Section, Span};
use crate::wire::ack::Code;
use crate::wire::answer::Condition;
use crate::wire::hl7::{self, HEADER_BYTES_MAX, Header};
use crate::wire::mllp::{END, VT};

/// Bodies up to this are written in one piece with their frame: one packet for a usual message.
const ONE_WRITE_MAX: usize = 64 << 10;

/// `[upstream.<name>.mllp]`.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct MllpConfig {
    /// Where it listens.
    pub address: HostPort,
    /// Whom to trust, and who we are.
    #[serde(default)]
    pub tls: Option<ClientTls>,
    /// Says aloud that the connection is not encrypted.
    #[serde(default)]
    pub plain: bool,
    /// Whether a message that asks for no positive answer may be made to ask for one.
    #[serde(default)]
    pub request_ack: RequestAck,
    /// What counts as the receipt of a message that asks for no positive answer.
    #[serde(default)]
    pub receipt: ReceiptRule,
    /// For name, TCP and TLS together; default 10 s.
    #[serde(default = "connect_timeout")]
    pub connect_timeout: Span,
    /// For the peer to take the next piece of a message; default 30 s.
    #[serde(default = "patience")]
    pub write_timeout: Span,
    /// From the last byte sent to the acknowledgement; default 30 s.
    #[serde(default = "patience")]
    pub ack_timeout: Span,
    /// What becomes of a message that the peer refuses for good.
    #[serde(default)]
    pub when_refused: WhenRefused,
}

/// `request-ack`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RequestAck {
    /// MSH-15 and MSH-16 stay as the device wrote them.
    #[default]
    AsSent,
    /// They become AL and NE in messages that would get no receipt.
    Rewrite,
}

/// `receipt`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReceiptRule {
    /// The acknowledgement, always.
    #[default]
    Acknowledged,
    /// For messages that ask for no positive answer: that all bytes were handed to the network.
    Written,
}

fn connect_timeout() -> Span {
    Span(Duration::from_secs(10))
}

fn patience() -> Span {
    Span(Duration::from_secs(30))
}

impl Section for MllpConfig {
    fn check(&self, problems: &mut Problems) {
        link::check(problems, self.tls.as_ref(), self.plain);
        match (self.request_ack, self.receipt) {
            (RequestAck::Rewrite, ReceiptRule::Written) => problems.error(
                "receipt",
                "request-ack = \"rewrite\" and receipt = \"written\" exclude each other: rewrite is the safe one",
            ),
            (RequestAck::AsSent, ReceiptRule::Written) => problems.warn(
                "receipt",
                "messages that ask for no acknowledgement count as delivered once they are written to the network: what the \
                 peer loses then is lost; request-ack = \"rewrite\" is safe",
            ),
            _ => {}
        }
    }

    fn files(&mut self, visit: &mut dyn FnMut(&mut SecretRef)) {
        link::files(self.tls.as_mut(), visit);
    }
}

/// A connection to a peer.
pub struct Mllp {
    config: MllpConfig,
    writer: Mutex<WriteHalf<Stream>>,
    answers: Arc<Answers>,
    listening: AbortHandle,
}

impl Upstream for Mllp {
    type Config = MllpConfig;
    const PROTOCOL: &'static str = "mllp";

    fn when_refused(config: &MllpConfig) -> WhenRefused {
        config.when_refused
    }

    async fn connect(config: &MllpConfig, _about: &Identity) -> Result<Self, SendError> {
        let stream = link::dial(&config.address, config.tls.as_ref(), &[], config.connect_timeout.0).await?;
        let (reader, writer) = tokio::io::split(stream);
        let answers = Arc::new(Answers::default());
        let listening = tokio::spawn({
            let answers = Arc::clone(&answers);
            async move { answers.listen(reader).await }
        });
        let (writer, listening) = (Mutex::new(writer), listening.abort_handle());
        Ok(Self { config: config.clone(), writer, answers, listening })
    }

    /// One message at a time, of all lanes together: returns when its receipt is here.
    async fn send(&self, envelope: &Envelope) -> Result<Delivery, SendError> {
        correlatable(envelope)?;
        let mut outgoing = Outgoing::begin(envelope, &self.config).await?;
        let mut writer = self.writer.lock().await;
        if let Some(cause) = self.answers.is_gone() {
            return Err(lost(cause));
        }
        let answer = self.answers.awaits(&envelope.meta.control_id);
        // Whatever ends the exchange early leaves half a frame or an answer on the way: the connection can't be used again.
        let mut unfinished = Unfinished { answers: &self.answers, armed: true };
        let code = self.exchange(&mut writer, &mut outgoing, answer).await;
        unfinished.armed = !matches!(code, Ok(_) | Err(Failure::Answered(_)));
        if let Err(Failure::Lost(cause)) = &code {
            self.answers.lose(cause.clone());
        }
        match code {
            Ok(code) => Ok(Delivery::done(code)),
            Err(Failure::Answered(code)) => Err(negative(code)),
            Err(Failure::AnsweredEarly(code)) => Err(negative(code)),
            Err(Failure::Lost(cause)) => Err(lost(cause)),
            Err(Failure::Body(reason)) => Err(SendError::Rejected { reason }),
        }
    }

    async fn closed(&self) -> String {
        self.answers.gone().await
    }

    async fn close(self) {
        // TLS says goodbye; a peer that is gone already does not hear it.
        drop(self.writer.lock().await.shutdown().await);
    }
}

impl Drop for Mllp {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// Why an exchange has no positive answer.
enum Failure {
    Answered(Code),
    /// Before the message was sent to its end.
    AnsweredEarly(Code),
    Lost(String),
    Body(String),
}

/// Closes the connection when an exchange is dropped before its end.
struct Unfinished<'a> {
    answers: &'a Answers,
    armed: bool,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.answers.lose("an exchange was given up");
        }
    }
}

impl Mllp {
    /// Writes the frame and waits for its answer: the receipt's code.
    async fn exchange(
        &self,
        writer: &mut WriteHalf<Stream>,
        outgoing: &mut Outgoing,
        mut answer: oneshot::Receiver<Code>,
    ) -> Result<&'static str, Failure> {
        let awaited = outgoing.answered;
        tokio::select! {
            biased;
            written = outgoing.write(writer, self.config.write_timeout.0) => written?,
            code = &mut answer => return Err(match code {
                Ok(code) if !code.is_positive() => Failure::AnsweredEarly(code),
                _ => Failure::Lost("the peer acknowledged a message before it had all of it".into()),
            }),
            cause = self.answers.gone() => return Err(Failure::Lost(cause)),
        }
        if !awaited {
            self.answers.forget();
            return Ok("written");
        }
        let limit = self.config.ack_timeout.0;
        let code = tokio::select! {
            biased;
            code = timeout(limit, answer) => match code {
                Ok(Ok(code)) => code,
                Ok(Err(_)) => return Err(Failure::Lost("the connection closed before the acknowledgement came".into())),
                Err(_) => return Err(Failure::Lost(format!("no acknowledgement within {} s", limit.as_secs().max(1)))),
            },
            cause = self.answers.gone() => return Err(Failure::Lost(cause)),
        };
        if code.is_positive() { Ok(code.as_str()) } else { Err(Failure::Answered(code)) }
    }
}

/// A message on its way into a frame.
struct Outgoing {
    /// The first bytes, perhaps with another MSH-15 and MSH-16.
    head: Bytes,
    rest: BodyReader,
    /// Whether a positive answer will come.
    answered: bool,
}

impl Outgoing {
    async fn begin(envelope: &Envelope, config: &MllpConfig) -> Result<Self, SendError> {
        let rejected = |reason: String| SendError::Rejected { reason };
        let mut rest = envelope.body.reader();
        let first = rest.next().await.map_err(|error| rejected(error.to_string()))?.unwrap_or_default();
        let start = first.get(..HEADER_BYTES_MAX).unwrap_or(&first);
        let header = Header::read(start).map_err(|error| rejected(format!("not an HL7 message: {error}")))?;
        if asks_for_an_answer(&header) {
            return Ok(Self { head: first, rest, answered: true });
        }
        match (config.request_ack, config.receipt) {
            (RequestAck::Rewrite, _) => {
                let new = hl7::ask_accept_only(start).map_err(|error| rejected(format!("not an HL7 message: {error}")))?;
                let head = [new.head.as_slice(), first.get(new.consumed..).unwrap_or_default()].concat();
                Ok(Self { head: head.into(), rest, answered: true })
            }
            (_, ReceiptRule::Written) => Ok(Self { head: first, rest, answered: false }),
            _ => Err(rejected(
                "its MSH-15 and MSH-16 ask for no positive answer, so that it could never have a receipt: set request-ack = \
                 \"rewrite\" for this upstream"
                    .into(),
            )),
        }
    }

    async fn write(&mut self, writer: &mut WriteHalf<Stream>, limit: Duration) -> Result<(), Failure> {
        let mut carried = Carried::default();
        carried.check(&self.head)?;
        let mut piece = Some(std::mem::take(&mut self.head));
        let mut framed = vec![VT];
        while let Some(bytes) = piece.take() {
            if framed.len() + bytes.len() <= ONE_WRITE_MAX {
                framed.extend_from_slice(&bytes);
            } else {
                put(writer, &framed, limit).await?;
                framed.clear();
                put(writer, &bytes, limit).await?;
            }
            piece = self.rest.next().await.map_err(|error| Failure::Body(error.to_string()))?;
            if let Some(piece) = &piece {
                carried.check(piece)?;
            }
        }
        framed.extend_from_slice(&END);
        put(writer, &framed, limit).await?;
        let flushed = timeout(limit, writer.flush()).await;
        flushed.map_err(|_| stuck())?.map_err(|error| Failure::Lost(fault::in_words(&error)))
    }
}

/// MLLP has no escape for its own end: a body that holds it would arrive as two.
#[derive(Default)]
struct Carried {
    after_fs: bool,
}

impl Carried {
    fn check(&mut self, piece: &[u8]) -> Result<(), Failure> {
        let [fs, cr] = END;
        let across = self.after_fs && piece.first() == Some(&cr);
        if across || memmem::find(piece, &END).is_some() {
            return Err(Failure::Body("it holds the bytes FS CR, which end a frame: MLLP can't carry it".into()));
        }
        self.after_fs = piece.last() == Some(&fs);
        Ok(())
    }
}

async fn put(writer: &mut WriteHalf<Stream>, bytes: &[u8], limit: Duration) -> Result<(), Failure> {
    if bytes.is_empty() {
        return Ok(());
    }
    let written = timeout(limit, writer.write_all(bytes)).await;
    written.map_err(|_| stuck())?.map_err(|error| Failure::Lost(fault::in_words(&error)))
}

fn stuck() -> Failure {
    Failure::Lost("the peer takes nothing more of the message: write-timeout".into())
}

/// Whether the message could have an answer that names it.
fn correlatable(envelope: &Envelope) -> Result<(), SendError> {
    let meta = &envelope.meta;
    let reason = match () {
        () if meta.flags.has(Flags::UNREADABLE) => "it has no MSH: an acknowledgement could not name it",
        () if meta.control_id.is_empty() => "its MSH-10 is empty: an acknowledgement could not name it",
        () => return Ok(()),
    };
    Err(SendError::Rejected { reason: reason.into() })
}

/// Whether the peer will say yes to it (HL7 v2.5.1, 2.9.2: MSH-15 and MSH-16, table 0155).
fn asks_for_an_answer(header: &Header<'_>) -> bool {
    let (accept, application) = (Condition::read(header.field(15)), Condition::read(header.field(16)));
    let says_yes = |condition| matches!(condition, Condition::Always | Condition::OnSuccess);
    says_yes(accept) || says_yes(application) || (accept, application) == (Condition::Unset, Condition::Unset)
}

fn negative(code: Code) -> SendError {
    let said = |what: &str| format!("the peer answered {}: {what}", code.as_str());
    match code {
        Code::Ar => SendError::Rejected { reason: said("it rejects the message for good") },
        Code::Cr => {
            SendError::Rejected { reason: said("it rejects the message for good, before its application saw it") }
        }
        Code::Ce => SendError::Refused { reason: said("it could not take the message into its storage") },
        _ => SendError::Refused { reason: said("its application could not process the message") },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(accept: &str, application: &str) -> bool {
        let message = format!("MSH|^~\\&|||||||ORU^R01|1|P|2.5|||{accept}|{application}\r");
        asks_for_an_answer(&Header::read(message.as_bytes()).unwrap())
    }

    #[test]
    fn only_messages_that_can_have_a_positive_answer_ask_for_one() {
        for (accept, application) in
            [("", ""), ("AL", ""), ("AL", "NE"), ("SU", "NE"), ("NE", "AL"), ("", "SU"), ("ER", "AL")]
        {
            assert!(asks(accept, application), "{accept}/{application}");
        }
        for (accept, application) in
            [("NE", "NE"), ("NE", ""), ("ER", ""), ("ER", "NE"), ("", "NE"), ("", "ER"), ("NE", "ER")]
        {
            assert!(!asks(accept, application), "{accept}/{application}");
        }
    }

    #[test]
    fn a_body_that_holds_the_end_of_a_frame_is_not_sent_whatever_its_pieces() {
        for pieces in [&[&b"a\x1c\rb"[..]][..], &[b"a\x1c", b"\rb"]] {
            let mut carried = Carried::default();
            assert!(pieces.iter().any(|piece| carried.check(piece).is_err()));
        }
        let mut carried = Carried::default();
        assert!([&b"a\x1c"[..], b"b\r"].iter().all(|piece| carried.check(piece).is_ok()));
    }

    #[test]
    fn negative_answers_are_for_now_or_for_good() {
        assert!(matches!(negative(Code::Ae), SendError::Refused { .. }));
        assert!(matches!(negative(Code::Ce), SendError::Refused { .. }));
        assert!(matches!(negative(Code::Ar), SendError::Rejected { .. }));
        assert!(matches!(negative(Code::Cr), SendError::Rejected { .. }));
    }
}
