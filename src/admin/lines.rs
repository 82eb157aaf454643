//! JSON lines with a bound, for both ends of the control socket.
//!
//! A line that is longer than its bound ends the conversation: nothing is ever buffered beyond it. Reading is safe to
//! cancel: what has come stays in the buffer.

use bytes::{Buf, BytesMut};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::answers::{Progress, Refusal};

/// Longest line that the service reads.
pub const REQUEST_LINE_BYTES_MAX: usize = 64 << 10;
/// Longest line that the command line reads: a snapshot of hundreds of lanes, a thousand dead letters.
pub const REPLY_LINE_BYTES_MAX: usize = 4 << 20;
/// Bytes in one `data` line; in base64 they fit a line of either bound.
pub const DATA_PIECE_BYTES_MAX: usize = 32 << 10;

/// What the service writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// The job goes on.
    Progress(Progress),
    /// Bytes, in base64.
    Data(String),
    /// The end: done, with its answer.
    Ok(serde_json::Value),
    /// The end: not done.
    Error(Refusal),
}

/// What the command line writes after a request that takes bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Feed {
    /// Bytes, in base64.
    Data(String),
    /// All have come.
    End(bool),
}

/// Why there is no next line.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// The line has no end within the bound.
    #[error("a line is longer than {0} bytes")]
    TooLong(usize),
    /// The other end closed inside a line.
    #[error("the connection closed in the middle of a line")]
    Torn,
    /// The socket broke.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Reads lines from one direction of a socket.
pub struct LineReader<R> {
    from: R,
    buffer: BytesMut,
    searched: usize,
    line_bytes_max: usize,
}

impl<R: AsyncRead + Unpin> LineReader<R> {
    /// Reads lines of at most `line_bytes_max` bytes.
    pub fn new(from: R, line_bytes_max: usize) -> Self {
        Self { from, buffer: BytesMut::new(), searched: 0, line_bytes_max }
    }

    /// The next line without its end; `None` when the other end has closed. Cancelling loses nothing.
    ///
    /// # Errors
    /// [`LineError`]; the conversation is then over.
    pub async fn next(&mut self) -> Result<Option<BytesMut>, LineError> {
        loop {
            let fresh = self.buffer.get(self.searched..).unwrap_or_default();
            if let Some(at) = memchr::memchr(b'\n', fresh) {
                let mut line = self.buffer.split_to(self.searched + at + 1);
                self.searched = 0;
                line.truncate(line.len().saturating_sub(1));
                return Ok(Some(line));
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > self.line_bytes_max {
                return Err(LineError::TooLong(self.line_bytes_max));
            }
            if self.from.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.has_remaining() { Err(LineError::Torn) } else { Ok(None) };
            }
        }
    }

    /// What it reads from, without what is in the buffer.
    pub fn inner(&mut self) -> &mut R {
        &mut self.from
    }

    /// Completes when the other end has closed or said more than may wait; a next request may come meanwhile and is kept.
    pub async fn hung_up(&mut self) {
        while self.buffer.len() <= self.line_bytes_max {
            match self.from.read_buf(&mut self.buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }
}

/// Writes one value as a line.
///
/// # Errors
/// Those of the socket.
pub async fn write_line<W: AsyncWrite + Unpin, T: Serialize>(to: &mut W, value: &T) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    to.write_all(&line).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_come_whole_however_they_are_split() {
        let (mut writer, reader) = tokio::io::duplex(3);
        let writing = tokio::spawn(async move { writer.write_all(b"one\n\ntwo\n").await });
        let mut reader = LineReader::new(reader, 16);
        for expected in ["one", "", "two"] {
            assert_eq!(reader.next().await.unwrap().unwrap(), expected);
        }
        assert!(reader.next().await.unwrap().is_none());
        writing.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_endless_line_ends_the_conversation_at_its_bound() {
        let (mut writer, reader) = tokio::io::duplex(1 << 16);
        writer.write_all(&[b'x'; 40_000]).await.unwrap();
        let mut reader = LineReader::new(reader, 1_000);
        assert!(matches!(reader.next().await, Err(LineError::TooLong(1_000))));
    }

    #[tokio::test]
    async fn a_torn_line_is_not_a_line() {
        let mut reader = LineReader::new(&b"{\"verb\":\"keys-destroy\""[..], 1_000);
        assert!(matches!(reader.next().await, Err(LineError::Torn)));
    }
}
