//! The server side of the control socket: takes connections, checks who asks, has the [`Operator`] carry out, answers.
//!
//! Nothing that a peer does here may end the service or hold it up: lines, connections and times are bounded, and a
//! peer without rights is told so before a byte of it is read. Each change is logged with uid, verb and arguments,
//! whether it was allowed or not; arguments hold ids, names and times, never content.

use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use data_encoding::BASE64;
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::access::{self, Access, ControlConfig, NoSuchGroup, Peer};
use super::answers::{Code, Refusal};
use super::lines::{DATA_PIECE_BYTES_MAX, Feed, LineError, LineReader, REQUEST_LINE_BYTES_MAX, Reply, write_line};
use super::operator::{Answer, Inlet, Operator, Outlet, Saying};
use super::verbs::{Level, PRIVATE_FIELDS, Request};

/// Conversations at the same time; one more is told to try again.
const CONNECTIONS_MAX: usize = 16;
/// A peer that says nothing for so long is let go; `status` asks once a second.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// A peer that does not read for so long is let go.
const WRITE_MAX: Duration = Duration::from_secs(10);
/// How long a socket file that is already there may take to answer before it counts as left over.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// How long, and for how many bytes, a peer that was refused is listened to: a socket that closes with something unread takes
/// its last answer away from its peer.
const FAREWELL_MAX: Duration = Duration::from_millis(500);
const FAREWELL_BYTES_MAX: u64 = 1 << 20;
/// After an accept that failed for want of files or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Another copy answers on it.
    #[error(
        "another wardgate is already running: it answers on {0}; stop it first, or give this one a socket of its own"
    )]
    InUse(PathBuf),
    /// Something else lies there.
    #[error("{0} is there and is not a socket; remove it, or name another path in [gateway] control")]
    NotASocket(PathBuf),
    /// A group is missing.
    #[error(transparent)]
    Group(#[from] NoSuchGroup),
    /// The file system says no.
    #[error(
        "can't make the control socket {path}: {cause}; its folder must be writable for the service's user. Not root, not under \
         systemd? Give it another place in the configuration, and to each command with --socket:\n\
         \x20 [gateway.control]\n\
         \x20 socket = \"{}\"",
        access::own_socket().display()
    )]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
}

/// A bound control socket. Its file goes when this is dropped, if it is still the same file.
pub struct ControlSocket {
    listener: UnixListener,
    access: Arc<Access>,
    path: PathBuf,
    file: (u64, u64),
}

impl ControlSocket {
    /// Binds it: under another name first, so that it appears with its final mode and replaces a left-over file at once.
    ///
    /// # Errors
    /// [`ControlError`], with what to do.
    pub async fn bind(config: &ControlConfig) -> Result<Self, ControlError> {
        let access = Arc::new(Access::new(config)?);
        let path = config.socket.clone();
        expect_nobody(&path).await?;
        let (listener, file) =
            bind_file(&path, &access).map_err(|cause| ControlError::Io { path: path.clone(), cause })?;
        Ok(Self { listener, access, path, file })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Answers until `stop`; conversations that are under way then are broken off.
    pub async fn serve<O: Operator>(self, operator: Arc<O>, stop: CancellationToken) {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let farewells = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let tasks = TaskTracker::new();
        while let Some(accepted) = stop.run_until_cancelled(self.listener.accept()).await {
            let Ok((stream, _)) = accepted else {
                // Out of files or memory, or a peer that was gone at once: neither may end the service.
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let (access, operator, stop) = (Arc::clone(&self.access), Arc::clone(&operator), stop.clone());
            let permit = Arc::clone(&permits).try_acquire_owned();
            let farewells = Arc::clone(&farewells);
            tasks.spawn(async move {
                let talk = async {
                    match permit {
                        Ok(_permit) => converse(stream, &access, operator.as_ref()).await,
                        Err(_) => turn_away(stream, &farewells).await,
                    }
                };
                stop.run_until_cancelled(talk).await;
            });
        }
        tasks.close();
        tasks.wait().await;
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        if file_identity(&self.path).is_ok_and(|file| file == self.file) {
            // A file that stays is harmless: the next start finds that nobody answers on it.
            std::fs::remove_file(&self.path).ok();
        }
    }
}

/// A path that is free, or on which nobody answers.
async fn expect_nobody(path: &Path) -> Result<(), ControlError> {
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(ControlError::NotASocket(path.to_owned()));
    }
    match timeout(ANSWER_MAX, UnixStream::connect(path)).await {
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => Ok(()),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Ok(Ok(_)) | Err(_) => Err(ControlError::InUse(path.to_owned())),
        Ok(Err(cause)) => Err(ControlError::Io { path: path.to_owned(), cause }),
    }
}

fn bind_file(path: &Path, access: &Access) -> std::io::Result<(UnixListener, (u64, u64))> {
    if let Some(folder) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    }
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{}", std::process::id()));
    let fresh = PathBuf::from(fresh);
    std::fs::remove_file(&fresh).ok();
    let listener = UnixListener::bind(&fresh)?;
    let (mut mode, group) = access.file_mode();
    if let Some(group) = group
        && let Err(error) = std::os::unix::fs::chown(&fresh, None, Some(group))
    {
        // A service's user may hand a file only to its own groups. The rule decides then, without the file system's help.
        tracing::warn!(%error, "the control socket can't be given to its group; access is decided by the peer's groups alone");
        mode = 0o666;
    }
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(mode))?;
    std::fs::rename(&fresh, path)?;
    Ok((listener, file_identity(path)?))
}

fn file_identity(path: &Path) -> std::io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// One too many: is told so, as long as not too many are being told.
async fn turn_away(stream: UnixStream, farewells: &Semaphore) {
    let Ok(_permit) = farewells.try_acquire() else { return };
    let (mut reader, mut writer) = stream.into_split();
    let text = format!("{CONNECTIONS_MAX} others are using the control socket; try again in a moment");
    refuse(&mut reader, &mut writer, Refusal::new(Code::Unavailable, text)).await;
}

/// One connection: requests and their answers, one after the other.
async fn converse<O: Operator>(stream: UnixStream, access: &Arc<Access>, operator: &O) {
    let Some((peer, level)) = identify(&stream, access).await else { return };
    let (mut reader, mut writer) = stream.into_split();
    let Some(level) = level else {
        tracing::warn!(uid = peer.uid, "someone without rights was turned away from the control socket");
        return refuse(&mut reader, &mut writer, Refusal::new(Code::NotPermitted, access.advice(Level::Read))).await;
    };
    let mut reader = LineReader::new(reader, REQUEST_LINE_BYTES_MAX);
    loop {
        let line = match timeout(IDLE_MAX, reader.next()).await {
            Ok(Ok(Some(line))) => line,
            Ok(Err(error @ LineError::TooLong(_))) => {
                return refuse(reader.inner(), &mut writer, Refusal::bad(error.to_string())).await;
            }
            Ok(Ok(None) | Err(_)) | Err(_) => return,
        };
        let reply = match admit(&line, &peer, level, access) {
            Ok(request) => carry_out(request, peer.uid, operator, &mut reader, &mut writer).await,
            Err(refusal) => Some(Reply::Error(refusal)),
        };
        let Some(reply) = reply else { return };
        if write(&mut writer, &reply).await.is_err() {
            return;
        }
    }
}

/// Who is there. Groups are looked up off the runtime's threads.
async fn identify(stream: &UnixStream, access: &Arc<Access>) -> Option<(Peer, Option<Level>)> {
    let credentials = stream.peer_cred().ok()?;
    let access = Arc::clone(access);
    let look_up = tokio::task::spawn_blocking(move || {
        let peer = access::peer(credentials.uid(), credentials.gid());
        let level = access.level(&peer);
        (peer, level)
    });
    look_up.await.ok()
}

/// The request, if it is one and its peer may ask it.
fn admit(line: &BytesMut, peer: &Peer, level: Level, access: &Access) -> Result<Request, Refusal> {
    let request: Request = serde_json::from_slice(line)
        .map_err(|error| Refusal::bad(format!("not a request that is known here: {error}")))?;
    request.check()?;
    if request.level() > level {
        tracing::warn!(uid = peer.uid, verb = request.verb(), arguments = %arguments(&request), "a change was refused: no right to it");
        return Err(Refusal::new(Code::NotPermitted, access.advice(request.level())));
    }
    Ok(request)
}

/// Carries out one request; `None` when the peer is gone.
async fn carry_out<O: Operator>(
    request: Request,
    uid: u32,
    operator: &O,
    reader: &mut LineReader<OwnedReadHalf>,
    writer: &mut OwnedWriteHalf,
) -> Option<Reply> {
    let (verb, change, arguments) = (request.verb(), request.level() == Level::Change, arguments(&request));
    if change {
        tracing::info!(uid, verb, %arguments, "a change was asked for");
    }
    let feeds = matches!(request, Request::SpoolImport(_));
    let (outlet, sayings) = Outlet::channel();
    let (feed, mut inlet) = Inlet::channel();
    let job = perform(operator, request, &outlet, &mut inlet);
    let answer = accompany(job, sayings, feeds.then_some(feed), reader, writer).await;
    if change {
        let outcome = match &answer {
            Some(Ok(_)) => "done",
            Some(Err(refusal)) => refusal.text.as_str(),
            None => "broken off: the one who asked has hung up",
        };
        tracing::info!(uid, verb, outcome, "a change has ended");
    }
    answer.map(|answer| answer.map_or_else(Reply::Error, Reply::Ok))
}

/// Runs the job, passes on what it says, feeds it what comes, and drops it when its peer is gone (`None`).
async fn accompany(
    job: impl Future<Output = Answer<serde_json::Value>>,
    mut sayings: mpsc::Receiver<Saying>,
    mut feed: Option<mpsc::Sender<Option<Bytes>>>,
    reader: &mut LineReader<OwnedReadHalf>,
    writer: &mut OwnedWriteHalf,
) -> Option<Answer<serde_json::Value>> {
    tokio::pin!(job);
    loop {
        tokio::select! {
            biased;
            Some(saying) = sayings.recv() => say(writer, saying).await.ok()?,
            answer = &mut job => {
                while let Ok(saying) = sayings.try_recv() {
                    say(writer, saying).await.ok()?;
                }
                return Some(answer);
            }
            heard = listen(feed.as_ref(), reader) => match heard {
                Some(Feed::Data(_)) => {}
                Some(Feed::End(_)) => feed = None,
                None => return None,
            },
        }
    }
}

/// Waits for what the peer does meanwhile: passes bytes on when the job has room for them, and is `None` when it hangs up,
/// falls silent inside its bytes or sends something else. Cancelling loses nothing.
async fn listen(feed: Option<&mpsc::Sender<Option<Bytes>>>, reader: &mut LineReader<OwnedReadHalf>) -> Option<Feed> {
    let Some(feed) = feed else {
        reader.hung_up().await;
        return None;
    };
    let Ok(permit) = feed.reserve().await else { return std::future::pending().await };
    let line = timeout(IDLE_MAX, reader.next()).await.ok()?.ok()??;
    let heard = serde_json::from_slice(&line).ok()?;
    match &heard {
        Feed::Data(text) => permit.send(Some(BASE64.decode(text.as_bytes()).ok()?.into())),
        Feed::End(_) => permit.send(None),
    }
    Some(heard)
}

/// One arm for each verb, nothing else.
async fn perform<O: Operator>(
    operator: &O,
    request: Request,
    outlet: &Outlet,
    inlet: &mut Inlet,
) -> Answer<serde_json::Value> {
    match request {
        Request::Status => value(operator.status().await),
        Request::DeadList(query) => value(operator.dead_list(query).await?),
        Request::DeadShow(which) => value(operator.dead_show(which.id).await?),
        Request::DeadBody(which) => value(operator.dead_body(which.id, outlet).await?),
        Request::DeadRetry(selection) => value(operator.dead_retry(selection).await?),
        Request::DeadDiscard(selection) => value(operator.dead_discard(selection).await?),
        Request::LaneRetry(selection) => value(operator.lane_retry(selection).await?),
        Request::LaneSetAside(selection) => value(operator.lane_set_aside(selection).await?),
        Request::SpoolUsage => value(operator.spool_usage().await?),
        Request::SpoolVerify => value(operator.spool_verify(outlet).await?),
        Request::SpoolAcceptDamage => value(operator.spool_accept_damage().await?),
        Request::SpoolFind(request) => value(operator.spool_find(request, outlet).await?),
        Request::SpoolExport(request) => value(operator.spool_export(request, outlet).await?),
        Request::SpoolImport(request) => value(operator.spool_import(request, inlet, outlet).await?),
        Request::Replay(request) => value(operator.replay(request, outlet).await?),
        Request::KeysRotate => value(operator.keys_rotate().await?),
        Request::KeysDestroy(request) => value(operator.keys_destroy(request).await?),
    }
}

fn value(answer: impl Serialize) -> Answer<serde_json::Value> {
    serde_json::to_value(answer).map_err(|error| Refusal::new(Code::Failed, error.to_string()))
}

/// The request without its verb and without patient data, for the log.
fn arguments(request: &Request) -> String {
    let Ok(serde_json::Value::Object(mut fields)) = serde_json::to_value(request) else { return String::new() };
    fields.remove("verb");
    fields.retain(|_, value| !value.is_null());
    for private in PRIVATE_FIELDS {
        fields.get_mut(private).into_iter().for_each(|value| *value = "(not logged)".into());
    }
    serde_json::Value::Object(fields).to_string()
}

async fn say(writer: &mut OwnedWriteHalf, saying: Saying) -> std::io::Result<()> {
    match saying {
        Saying::Progress(progress) => write(writer, &Reply::Progress(progress)).await,
        Saying::Data(bytes) => {
            for piece in bytes.chunks(DATA_PIECE_BYTES_MAX) {
                write(writer, &Reply::Data(BASE64.encode(piece))).await?;
            }
            Ok(())
        }
    }
}

async fn write(writer: &mut OwnedWriteHalf, reply: &Reply) -> std::io::Result<()> {
    timeout(WRITE_MAX, write_line(writer, reply)).await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}

/// Tells a peer why, lets it finish what it was saying, and lets it go.
async fn refuse(reader: &mut OwnedReadHalf, writer: &mut OwnedWriteHalf, refusal: Refusal) {
    if write(writer, &Reply::Error(refusal)).await.is_ok() && writer.shutdown().await.is_ok() {
        let (mut rest, mut nowhere) = (reader.take(FAREWELL_BYTES_MAX), tokio::io::sink());
        // Whatever it still says is not heard; that it ends is all that counts.
        timeout(FAREWELL_MAX, tokio::io::copy(&mut rest, &mut nowhere)).await.ok();
    }
}
