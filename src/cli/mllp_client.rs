//! The sending side of MLLP as a device has it: one message, one answer, on one connection. For `probe` and the demo's monitors.
//!
//! Not the gateway's own upstream: this one knows no queue and no retries.

use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use crate::system::stream::{self, DialError, Stream};
use crate::system::tls::Connector;
use crate::values::HostPort;
use crate::wire::ack::{ACKNOWLEDGEMENT_BYTES_MAX, Acknowledgement, AcknowledgementError, Code};
use crate::wire::mllp::{self, Decoder, Event};

/// Why there is no answer to a message.
#[derive(Debug, thiserror::Error)]
pub enum MllpError {
    /// No connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(#[from] std::io::Error),
    /// The peer closed instead of answering.
    #[error("the peer closed the connection without an answer")]
    Closed,
    /// The peer is silent.
    #[error("no answer within {0:?}")]
    Silent(Duration),
    /// Far more than an acknowledgement.
    #[error("the answer is larger than {ACKNOWLEDGEMENT_BYTES_MAX} bytes")]
    TooLong,
    /// Something else than an acknowledgement.
    #[error("what came back is not an acknowledgement: {0}")]
    NotAnAnswer(#[from] AcknowledgementError),
}

/// An answer, taken apart.
pub struct Answer {
    /// MSA-1.
    pub code: Code,
    /// MSA-2.
    pub control_id: Vec<u8>,
    /// MSA-3 or what stands for it: the peer's words.
    pub text: String,
    /// All of it.
    pub body: Vec<u8>,
}

/// A connection to something that takes HL7 v2 over MLLP.
pub struct MllpClient {
    stream: Stream,
    decoder: Decoder,
    received: BytesMut,
}

impl MllpClient {
    /// Connects within `limit`.
    ///
    /// # Errors
    /// [`MllpError::Dial`].
    pub async fn connect(address: &HostPort, tls: Option<&Connector>, limit: Duration) -> Result<Self, MllpError> {
        let stream = stream::dial(address, tls, limit).await?;
        Ok(Self { stream, decoder: Decoder::new(ACKNOWLEDGEMENT_BYTES_MAX), received: BytesMut::new() })
    }

    /// Sends a body as one frame and waits for one answer, `limit` for both together.
    ///
    /// # Errors
    /// [`MllpError`]; the connection should not be used again.
    pub async fn ask(&mut self, body: &[u8], limit: Duration) -> Result<Answer, MllpError> {
        let deadline = Instant::now() + limit;
        let mut frame = Vec::new();
        mllp::encode(body, &mut frame);
        let exchange = async {
            self.stream.write_all(&frame).await?;
            self.stream.flush().await?;
            self.next_body().await
        };
        let body = timeout_at(deadline, exchange).await.map_err(|_| MllpError::Silent(limit))??;
        let read = Acknowledgement::read(&body)?;
        let (code, control_id) = (read.code, read.control_id.to_vec());
        let text = String::from_utf8_lossy(read.text).into_owned();
        Ok(Answer { code, control_id, text, body })
    }

    async fn next_body(&mut self) -> Result<Vec<u8>, MllpError> {
        let mut body = Vec::new();
        loop {
            let mut input = self.received.chunk();
            let length = input.len();
            let ended = pull(&mut self.decoder, &mut input, &mut body)?;
            let used = length - input.len();
            self.received.advance(used);
            if ended {
                return Ok(body);
            }
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return match self.decoder.settle() {
                    Some(_) => Ok(body),
                    None => Err(MllpError::Closed),
                };
            }
        }
    }
}

/// Takes what there is; whether a frame with a body has ended.
fn pull(decoder: &mut Decoder, input: &mut &[u8], body: &mut Vec<u8>) -> Result<bool, MllpError> {
    while let Some(event) = decoder.pull(input) {
        match event {
            Event::Body(bytes) => body.extend_from_slice(bytes),
            Event::End(end) if end.length > 0 => return Ok(true),
            Event::End(_) | Event::Junk(_) => {}
            Event::Cut { .. } => body.clear(),
            Event::Oversize => return Err(MllpError::TooLong),
        }
    }
    Ok(false)
}
