//! The command line's side of the control socket.
//!
//! Its errors are for the person at the terminal: they say whether the service runs, which group lets one in, and what to
//! do next.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use data_encoding::BASE64;
use serde::de::DeserializeOwned;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::access::group_of_file;
use super::answers::Refusal;
use super::lines::{DATA_PIECE_BYTES_MAX, Feed, LineReader, REPLY_LINE_BYTES_MAX, Reply, write_line};
use super::operator::Saying;
use super::verbs::Request;

/// How long the service may take to accept.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How long the service may be silent: long jobs tell their progress, a sync on a worn flash takes seconds.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers on the socket.
    #[error(
        "wardgate is not running: nobody answers on {0}\n  start it:  systemctl start wardgate   (by hand: wardgate run --config FILE)\n  why it stopped:  journalctl -u wardgate -e\n  it has a socket elsewhere ([gateway.control] socket):  give its path with --socket PATH"
    )]
    NotRunning(PathBuf),
    /// The file system keeps this user out.
    #[error("no right to use {socket}: {advice}")]
    NotPermitted {
        /// The socket.
        socket: PathBuf,
        /// What to do.
        advice: String,
    },
    /// The service said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The conversation broke off.
    #[error("the conversation with the service on {socket} broke off: {cause}")]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// What happened.
        cause: String,
    },
}

/// A conversation with the running service.
pub struct ControlClient {
    socket: PathBuf,
    reader: LineReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl ControlClient {
    /// Connects.
    ///
    /// # Errors
    /// [`ClientError::NotRunning`], [`ClientError::NotPermitted`].
    pub async fn connect(socket: &Path) -> Result<Self, ClientError> {
        let connected = timeout(CONNECT_MAX, UnixStream::connect(socket)).await;
        let stream = connected.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()));
        let stream = stream.map_err(|error| connect_error(socket, &error))?;
        let (reader, writer) = stream.into_split();
        Ok(Self { socket: socket.to_owned(), reader: LineReader::new(reader, REPLY_LINE_BYTES_MAX), writer })
    }

    /// Asks, and waits for the answer; what a job says meanwhile is not wanted.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn ask<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T, ClientError> {
        self.ask_and_hear(request, |_| Ok(())).await
    }

    /// Asks; `hear` is given each piece of progress and data in order. Its error ends the conversation, and with it the job.
    ///
    /// # Errors
    /// [`ClientError`]; what `hear` returned is [`ClientError::Broken`].
    pub async fn ask_and_hear<T: DeserializeOwned>(
        &mut self,
        request: &Request,
        hear: impl FnMut(Saying) -> Result<(), String>,
    ) -> Result<T, ClientError> {
        self.tell(request).await?;
        self.answer(hear).await
    }

    /// Asks for something that takes bytes, and hands over what `bytes` gives until its sender is dropped.
    ///
    /// # Errors
    /// [`ClientError`]; an error among the bytes breaks the job off.
    pub async fn ask_and_feed<T: DeserializeOwned>(
        &mut self,
        request: &Request,
        mut bytes: mpsc::Receiver<Result<Bytes, String>>,
        hear: impl FnMut(Saying) -> Result<(), String>,
    ) -> Result<T, ClientError> {
        self.tell(request).await?;
        let (socket, reader, writer) = (&self.socket, &mut self.reader, &mut self.writer);
        let feeding = async {
            while let Some(piece) = bytes.recv().await {
                for piece in piece?.chunks(DATA_PIECE_BYTES_MAX) {
                    let line = Feed::Data(BASE64.encode(piece));
                    // The service may have answered already (full, refused): its answer says more than our broken pipe.
                    if write_line(writer, &line).await.is_err() {
                        return Ok(());
                    }
                }
            }
            write_line(writer, &Feed::End(true)).await.ok();
            Ok(())
        };
        let hearing = hear_out(socket, reader, hear);
        tokio::pin!(feeding, hearing);
        tokio::select! {
            biased;
            answer = &mut hearing => answer,
            fed = &mut feeding => match fed {
                Ok(()) => hearing.await,
                Err(cause) => Err(ClientError::Broken { socket: socket.clone(), cause }),
            },
        }
    }

    async fn tell(&mut self, request: &Request) -> Result<(), ClientError> {
        // A service that turns us away says why before it closes, so a write that fails is not the last word.
        if write_line(&mut self.writer, request).await.is_ok() {
            self.writer.flush().await.ok();
        }
        Ok(())
    }

    async fn answer<T: DeserializeOwned>(
        &mut self,
        hear: impl FnMut(Saying) -> Result<(), String>,
    ) -> Result<T, ClientError> {
        hear_out(&self.socket, &mut self.reader, hear).await
    }
}

/// Reads until the answer's last line.
async fn hear_out<T: DeserializeOwned>(
    socket: &Path,
    reader: &mut LineReader<OwnedReadHalf>,
    mut hear: impl FnMut(Saying) -> Result<(), String>,
) -> Result<T, ClientError> {
    let broken = |cause: String| ClientError::Broken { socket: socket.to_owned(), cause };
    loop {
        let line = timeout(SILENCE_MAX, reader.next()).await;
        let line = line.map_err(|_| broken(format!("no answer for {} s", SILENCE_MAX.as_secs())))?;
        let line = line.map_err(|error| broken(error.to_string()))?;
        let line = line.ok_or_else(|| broken("it closed the connection; it may be stopping".into()))?;
        let reply = serde_json::from_slice(&line).map_err(|error| broken(format!("not an answer: {error}")))?;
        match reply {
            Reply::Progress(progress) => hear(Saying::Progress(progress)).map_err(broken)?,
            Reply::Data(text) => {
                let bytes = BASE64.decode(text.as_bytes()).map_err(|error| broken(error.to_string()))?;
                hear(Saying::Data(bytes.into())).map_err(broken)?;
            }
            Reply::Ok(value) => {
                let other = |error| broken(format!("an answer of another kind, perhaps of another version: {error}"));
                return serde_json::from_value(value).map_err(other);
            }
            Reply::Error(refusal) => return Err(refusal.into()),
        }
    }
}

fn connect_error(socket: &Path, error: &std::io::Error) -> ClientError {
    let socket = socket.to_owned();
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => ClientError::NotRunning(socket),
        ErrorKind::PermissionDenied => {
            let advice = match group_of_file(&socket) {
                Some(group) => {
                    format!("be in the group \"{group}\" (usermod -aG {group} YOU, then log in again), or use sudo")
                }
                None => "use sudo; [gateway] control in the configuration can name a group that may".to_owned(),
            };
            ClientError::NotPermitted { socket, advice }
        }
        _ => ClientError::Broken { socket, cause: error.to_string() },
    }
}
