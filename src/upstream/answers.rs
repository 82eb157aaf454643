//! Which acknowledgement belongs to which message, on one MLLP connection (HL7 v2.5.1, 2.9.2 and 2.9.3).
//!
//! At most one message is awaited at a time. An acknowledgement counts only when its MSA-2 is that message's MSH-10, byte for byte; what is
//! late, foreign or no acknowledgement at all is thrown away and told to the log without content. In enhanced mode the application's
//! own answer (AA, AE, AR) may follow an accept (CA) at any time in a frame of its own; since devices use the same MSH-10 again and again,
//! it must not be taken for the answer to the next message. A peer that mixes both modes and whose senders repeat an id costs a time-out
//! and a new connection, never a false receipt.

use std::io;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::system::fault;
use crate::wire::ack::{ACKNOWLEDGEMENT_BYTES_MAX, Acknowledgement, Code};
use crate::wire::mllp::{Decoder, Event};

/// Bytes of one read.
const READ_BYTES: usize = 4 << 10;
/// After an `FS` whose `CR` does not come, the frame counts as ended after this much silence.
const SETTLE_AFTER: Duration = Duration::from_millis(200);

/// The answers of one connection: who waits for one, and whether the connection is still there.
#[derive(Default)]
pub(super) struct Answers {
    state: Mutex<State>,
    gone: CancellationToken,
    cause: OnceLock<String>,
}

#[derive(Default)]
struct State {
    awaited: Option<Awaited>,
    /// MSH-10 of the last message that got a commit acknowledgement: its application's answer may still come.
    committed: Option<Vec<u8>>,
}

struct Awaited {
    control_id: Vec<u8>,
    answer: oneshot::Sender<Code>,
}

impl Answers {
    /// From now on the answer to this message is awaited, and no other.
    pub(super) fn awaits(&self, control_id: &[u8]) -> oneshot::Receiver<Code> {
        let (answer, receiver) = oneshot::channel();
        self.locked().awaited = Some(Awaited { control_id: control_id.to_owned(), answer });
        receiver
    }

    /// No answer is awaited any more.
    pub(super) fn forget(&self) {
        self.locked().awaited = None;
    }

    /// The connection is of no more use; the first cause counts.
    pub(super) fn lose(&self, cause: impl Into<String>) {
        self.cause.get_or_init(|| cause.into());
        self.gone.cancel();
    }

    /// Completes when the connection is gone, with the cause.
    pub(super) async fn gone(&self) -> String {
        self.gone.cancelled().await;
        self.cause.get().cloned().unwrap_or_default()
    }

    /// Whether it is gone, and why.
    pub(super) fn is_gone(&self) -> Option<String> {
        self.gone.is_cancelled().then(|| self.cause.get().cloned().unwrap_or_default())
    }

    /// Reads what the peer sends until the connection ends.
    pub(super) async fn listen(&self, mut peer: impl AsyncRead + Unpin) {
        let mut decoder = Decoder::new(ACKNOWLEDGEMENT_BYTES_MAX);
        let (mut frame, mut buffer) = (Vec::new(), vec![0; READ_BYTES]);
        loop {
            let read = match decoder.is_undecided() {
                false => peer.read(&mut buffer).await,
                true => match timeout(SETTLE_AFTER, peer.read(&mut buffer)).await {
                    Ok(read) => read,
                    Err(_) => {
                        decoder.settle();
                        self.frame(&std::mem::take(&mut frame));
                        continue;
                    }
                },
            };
            let bytes = match read {
                Ok(0) => return self.ended(&mut decoder, &frame),
                Ok(length) => buffer.get(..length).unwrap_or_default(),
                Err(error) => return self.lose(broken(&error)),
            };
            self.take(&mut decoder, &mut frame, bytes);
        }
    }

    fn take(&self, decoder: &mut Decoder, frame: &mut Vec<u8>, mut bytes: &[u8]) {
        while let Some(event) = decoder.pull(&mut bytes) {
            match event {
                Event::Body(piece) => frame.extend_from_slice(piece),
                Event::End(_) => self.frame(&std::mem::take(frame)),
                Event::Cut(_) | Event::Oversize => frame.clear(),
                Event::Junk(count) => tracing::debug!(count, "the peer sent bytes that belong to no acknowledgement"),
            }
        }
    }

    fn ended(&self, decoder: &mut Decoder, frame: &[u8]) {
        if decoder.settle().is_some() {
            self.frame(frame);
        }
        self.lose("the peer closed the connection");
    }

    fn frame(&self, body: &[u8]) {
        if body.is_empty() {
            return;
        }
        match Acknowledgement::read(body) {
            Ok(acknowledgement) => self.acknowledged(&acknowledgement),
            Err(error) => tracing::debug!(%error, "the peer sent a frame that is no acknowledgement"),
        }
    }

    fn acknowledged(&self, acknowledgement: &Acknowledgement<'_>) {
        let (code, id) = (acknowledgement.code, acknowledgement.control_id);
        let commit = matches!(code, Code::Ca | Code::Ce | Code::Cr);
        let mut state = self.locked();
        let awaited = state.awaited.as_ref().is_some_and(|awaited| awaited.control_id == id);
        let of_one_before = !commit && state.committed.as_deref() == Some(id);
        if !awaited || of_one_before {
            tracing::debug!(code = code.as_str(), of_one_before, "an acknowledgement that is not awaited");
            return;
        }
        state.committed = if code == Code::Ca { Some(id.to_owned()) } else { None };
        if state.awaited.take().is_some_and(|awaited| awaited.answer.send(code).is_err()) {
            // It was given up in this very moment, and the connection with it.
            tracing::debug!(code = code.as_str(), "an acknowledgement that nobody waits for any more");
        }
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn broken(error: &io::Error) -> String {
    format!("the connection broke: {}", fault::in_words(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(code: &str, id: &str) -> Vec<u8> {
        format!("\x0bMSH|^~\\&|||||||ACK|1|P|2.5\rMSA|{code}|{id}\r\x1c\r").into_bytes()
    }

    async fn told(answers: &Answers, frames: &[Vec<u8>]) {
        answers.listen(frames.concat().as_slice()).await;
    }

    #[tokio::test]
    async fn late_and_foreign_acknowledgements_are_not_taken() {
        let answers = Answers::default();
        let mut answer = answers.awaits(b"7");
        told(&answers, &[framed("AA", "6"), framed("AA", "07"), framed("AA", "7 "), b"\x0bMSH|\x1c\r".to_vec()]).await;
        assert!(answer.try_recv().is_err());
        told(&answers, &[framed("AE", "7")]).await;
        assert_eq!(answer.try_recv(), Ok(Code::Ae));
    }

    #[tokio::test]
    async fn the_applications_answer_to_one_message_is_not_taken_for_the_next_with_the_same_id() {
        let answers = Answers::default();
        let mut first = answers.awaits(b"1");
        told(&answers, &[framed("CA", "1")]).await;
        assert_eq!(first.try_recv(), Ok(Code::Ca));
        let mut second = answers.awaits(b"1");
        told(&answers, &[framed("AA", "1")]).await;
        assert!(second.try_recv().is_err(), "that was the application's answer to the first");
        told(&answers, &[framed("CA", "1")]).await;
        assert_eq!(second.try_recv(), Ok(Code::Ca));
    }

    #[tokio::test]
    async fn in_original_mode_the_same_id_again_is_answered_again() {
        let answers = Answers::default();
        for _ in 0..2 {
            let mut answer = answers.awaits(b"1");
            told(&answers, &[framed("AA", "1")]).await;
            assert_eq!(answer.try_recv(), Ok(Code::Aa));
        }
    }

    #[tokio::test]
    async fn the_first_cause_of_a_lost_connection_counts() {
        let answers = Answers::default();
        answers.lose("no acknowledgement in time");
        told(&answers, &[]).await;
        assert_eq!(answers.is_gone().unwrap(), "no acknowledgement in time");
    }
}
