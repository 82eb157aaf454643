//! The directory upstream: a mounted share, a USB disk, a folder that another program empties.
//!
//! A message is a file. It is written under a temporary name in the same folder, synced, renamed, and the folder is synced;
//! only then there is a receipt, so a reader never sees half a file and a file that was seen survives a power cut.
//! Names hold the time of reception, the source and the message's id, never what is in the message; a second copy replaces the
//! first with the same bytes (or the same bytes sealed anew).
//!
//! A disk that is not mounted must not fill the root file system in its place: `marker` names a file that is only there
//! when it is mounted, and a folder that comes to lie on another file system while we run counts as gone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand;
use bytes::Bytes;
use data_encoding::HEXLOWER;
use jiff::Timestamp;
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::sealing::{Payload, Sealer};
use super::{Delivery, Identity, Receipt, SendError, Upstream, WhenRefused};
use crate::envelope::Envelope;
use crate::values::{Problems, SecretRef, Section};

/// Files that may be under way together, all lanes: their syncs share the file system's own group commit.
pub const WRITES_MAX: usize = 8;
/// Files that one sync of the folder covers at most.
pub const GROUP_MAX: usize = 64;
/// Longest that writing one piece, or syncing a file, may take.
pub const WRITE_MAX: Duration = Duration::from_secs(120);
/// Entries of the folder that are looked at for leftovers of an earlier run.
pub const LEFTOVERS_SCAN_MAX: usize = 100_000;
/// Pieces of a body that wait for the disk.
const PIECES_AHEAD: usize = 2;

/// `[upstream.<name>.directory]`.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DirectoryConfig {
    /// The folder, absolute; it must be there.
    pub path: PathBuf,
    /// A file or folder in it that is there only when the disk or share is mounted.
    #[serde(default)]
    pub marker: Option<String>,
    /// Who may open the files.
    #[serde(default)]
    pub seal_to: Option<Sealer>,
    /// Says aloud that the files are readable by whoever has the folder.
    #[serde(default)]
    pub unsealed: bool,
    /// What becomes of a message that can't be written at all.
    #[serde(default)]
    pub when_refused: WhenRefused,
}

impl Section for DirectoryConfig {
    fn check(&self, problems: &mut Problems) {
        if self.seal_to.is_none() && !self.unsealed {
            problems.error(
                "",
                "the files would be readable by whoever has the folder: add seal-to, or say unsealed = true",
            );
        }
        if self.seal_to.is_some() && self.unsealed {
            problems.error("unsealed", "seal-to and unsealed = true contradict each other: remove one");
        }
        if !self.path.is_absolute() {
            problems.error("path", "write the whole path, beginning with /");
        } else if !self.path.is_dir() {
            let text = format!("{} is no folder on this machine: make it, or mount what it is on", self.path.display());
            problems.warn("path", text);
        }
        if self.marker.as_ref().is_some_and(|name| name.is_empty() || name.contains('/') || name.starts_with("..")) {
            problems.error("marker", "name a file in the folder itself, without /");
        }
    }

    fn files(&mut self, _visit: &mut dyn FnMut(&mut SecretRef)) {}
}

/// The folder, while it is there.
pub struct Directory {
    folder: Arc<Folder>,
    sealer: Option<Sealer>,
    room: Arc<Semaphore>,
    finisher: mpsc::Sender<Written>,
}

impl Upstream for Directory {
    type Config = DirectoryConfig;
    const PROTOCOL: &'static str = "directory";

    fn when_refused(config: &DirectoryConfig) -> WhenRefused {
        config.when_refused
    }

    /// No time limit of its own: a hung mount keeps one thread waiting and not one for each attempt.
    async fn connect(config: &DirectoryConfig, about: &Identity) -> Result<Self, SendError> {
        let (path, marker) = (config.path.clone(), config.marker.clone());
        let prefix = format!(".wardgate.{}.{}.{}.", about.site, about.gateway, about.upstream);
        let opened = blocking(move || Folder::open(path, marker, prefix)).await;
        let folder = Arc::new(opened.map_err(|error| gone(&config.path.display().to_string(), &error))?);
        let (finisher, written) = mpsc::channel(GROUP_MAX);
        tokio::spawn(finish(Arc::clone(&folder), written));
        let (sealer, room) = (config.seal_to.clone(), Arc::new(Semaphore::new(WRITES_MAX)));
        Ok(Self { folder, sealer, room, finisher })
    }

    async fn send(&self, envelope: &Envelope) -> Result<Delivery, SendError> {
        let payload = Payload::new(envelope, self.sealer.as_ref());
        let payload = payload.map_err(|error| SendError::Rejected { reason: error.to_string() })?;
        let name = file_name(envelope, payload.is_sealed());
        // Unwrap safety: this semaphore is never closed.
        #[allow(clippy::unwrap_used)]
        let permit = Arc::clone(&self.room).acquire_owned().await.unwrap();
        let (reply, receiver) = oneshot::channel();
        let write = Writing { folder: Arc::clone(&self.folder), payload, permit };
        tokio::spawn(write.run(name, self.finisher.clone(), reply));
        Ok(Delivery::waiting(receiver))
    }

    fn window(&self) -> usize {
        WRITES_MAX
    }
}

type Reply = oneshot::Sender<Result<Receipt, SendError>>;

/// A file that is on disk under its temporary name.
struct Written {
    temporary: PathBuf,
    name: String,
    reply: Reply,
}

/// One file to be written.
struct Writing {
    folder: Arc<Folder>,
    payload: Payload,
    permit: OwnedSemaphorePermit,
}

impl Writing {
    async fn run(self, name: String, finisher: mpsc::Sender<Written>, reply: Reply) {
        let unanswered = match self.write().await {
            Ok(temporary) => match finisher.send(Written { temporary, name, reply }).await {
                Ok(()) => return,
                Err(mpsc::error::SendError(written)) => {
                    (written.reply, SendError::Disconnected { cause: "closed".into() })
                }
            },
            Err(error) => (reply, error),
        };
        // Nobody may wait for it any more: the lane was rewound.
        let (reply, error) = unanswered;
        drop(reply.send(Err(error)));
    }

    async fn write(self) -> Result<PathBuf, SendError> {
        let Self { folder, mut payload, permit } = self;
        let (length, whereto) = (payload.len(), folder.path.display().to_string());
        let (sender, pieces) = mpsc::channel(PIECES_AHEAD);
        let writing = spawn_blocking(move || {
            let written = folder.write(length, pieces);
            drop(permit);
            written
        });
        loop {
            let piece = payload.next().await;
            let Some(piece) = piece.map_err(|error| SendError::Rejected { reason: error.to_string() })? else { break };
            match timeout(WRITE_MAX, sender.send(piece)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => break, // the writing has failed and says why
                Err(_) => return Err(stuck(&whereto)),
            }
        }
        drop(sender);
        let written = timeout(WRITE_MAX, writing).await.map_err(|_| stuck(&whereto))?;
        let written = written.unwrap_or_else(|error| Err(io::Error::other(error)));
        written.map_err(|error| blame(&whereto, &error))
    }
}

/// The folder as it was found. All its methods block.
struct Folder {
    path: PathBuf,
    marker: Option<String>,
    device: u64,
    /// With what our temporary files begin; names the box, so that boxes may share a folder.
    prefix: String,
}

impl Folder {
    fn open(path: PathBuf, marker: Option<String>, prefix: String) -> io::Result<Self> {
        let device = fs::metadata(&path)?.dev();
        let folder = Self { path, marker, device, prefix };
        folder.check()?;
        folder.remove_leftovers()?;
        // Shows at once, and not at the first message, that the folder can't be written.
        let (probe, _) = folder.create()?;
        fs::remove_file(probe)?;
        Ok(folder)
    }

    /// Still the folder that was opened, and mounted.
    fn check(&self) -> io::Result<()> {
        let metadata = fs::metadata(&self.path)?;
        if !metadata.is_dir() {
            return Err(io::Error::new(ErrorKind::NotADirectory, "it is not a folder"));
        }
        if metadata.dev() != self.device {
            return Err(io::Error::new(ErrorKind::NotFound, "another file system lies there now"));
        }
        let Some(marker) = &self.marker else { return Ok(()) };
        fs::symlink_metadata(self.path.join(marker)).map(drop).map_err(|error| {
            io::Error::new(error.kind(), format!("marker \"{marker}\" is not there: is the disk or share mounted?"))
        })
    }

    fn create(&self) -> io::Result<(PathBuf, File)> {
        let mut random = [0; 8];
        rand::fill(&mut random).map_err(|_| io::Error::other("no random numbers"))?;
        let path = self.path.join(format!("{}{}.part", self.prefix, HEXLOWER.encode(&random)));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o640).open(&path)?;
        Ok((path, file))
    }

    /// Writes all pieces to a temporary file and syncs it.
    fn write(&self, length: u64, mut pieces: mpsc::Receiver<Bytes>) -> io::Result<PathBuf> {
        self.check()?;
        let (path, mut file) = self.create()?;
        let mut write = || {
            let mut written = 0;
            while let Some(piece) = pieces.blocking_recv() {
                file.write_all(&piece)?;
                written += piece.len() as u64;
            }
            match written == length {
                true => file.sync_all(),
                false => Err(io::Error::new(ErrorKind::UnexpectedEof, "the message ended early")),
            }
        };
        let outcome = write();
        if outcome.is_err() {
            drop(fs::remove_file(&path)); // else the next start removes it
        }
        outcome.map(|()| path)
    }

    /// Renames all files of a group, then makes the names durable with one sync.
    fn finish(&self, group: &[Written]) -> io::Result<()> {
        self.check()?;
        for written in group {
            fs::rename(&written.temporary, self.path.join(&written.name))?;
        }
        match File::open(&self.path)?.sync_all() {
            // Some network file systems have no sync for folders: their renames are on the server already.
            Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
            outcome => outcome,
        }
    }

    fn remove_leftovers(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)?.take(LEFTOVERS_SCAN_MAX) {
            let entry = entry?;
            let name = entry.file_name();
            if name.to_str().is_some_and(|name| name.starts_with(&self.prefix) && name.ends_with(".part")) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

/// Gives files their names, as many at a time as wait.
async fn finish(folder: Arc<Folder>, mut written: mpsc::Receiver<Written>) {
    let mut group = Vec::with_capacity(GROUP_MAX);
    while written.recv_many(&mut group, GROUP_MAX).await > 0 {
        let (files, inner) = (std::mem::take(&mut group), Arc::clone(&folder));
        let named = spawn_blocking(move || {
            let outcome = inner.finish(&files);
            (files, outcome)
        });
        // A task that panicked drops the replies: the deliveries then count as disconnected.
        let Ok((files, outcome)) = named.await else { continue };
        let answer = match outcome {
            Ok(()) => Ok(Receipt { code: "renamed".into() }),
            Err(error) => Err(blame(&folder.path.display().to_string(), &error)),
        };
        for file in files {
            drop(file.reply.send(answer.clone())); // nobody waits when the lane was rewound
        }
    }
}

/// `20261122T053851Z-monitors-<id>.hl7`, with `.age` when sealed: sorts by time, says nothing about the content.
fn file_name(envelope: &Envelope, sealed: bool) -> String {
    let meta = &envelope.meta;
    let received = Timestamp::from_microsecond(meta.received.wall_us).unwrap_or(Timestamp::UNIX_EPOCH);
    let media = meta.content_type.split(';').next().unwrap_or_default().trim();
    let extension = match media {
        "application/hl7-v2" => "hl7",
        "application/dicom" => "dcm",
        "application/json" | "application/senml+json" | "application/vnd.wardgate.record+json" => "json",
        "application/vnd.wardgate.astm" => "astm",
        _ => "bin",
    };
    let age = if sealed { ".age" } else { "" };
    format!("{}-{}-{}.{extension}{age}", received.strftime("%Y%m%dT%H%M%SZ"), meta.source, envelope.id)
}

async fn blocking<T: Send + 'static>(act: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(act).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// Who is to blame for an error while writing: the room, the message's size, or else the folder itself.
fn blame(whereto: &str, error: &io::Error) -> SendError {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            SendError::Busy { cause: format!("{whereto} is full: make room there"), after: None }
        }
        ErrorKind::FileTooLarge => {
            SendError::Refused { reason: format!("{whereto}: the file system takes no file of this size") }
        }
        _ => gone(whereto, error),
    }
}

fn gone(whereto: &str, error: &io::Error) -> SendError {
    SendError::Disconnected { cause: format!("{whereto}: {error}") }
}

fn stuck(whereto: &str) -> SendError {
    SendError::Disconnected {
        cause: format!("{whereto}: no answer from the file system for {} s", WRITE_MAX.as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::Body;
    use crate::upstream::fixtures::{envelope, identity};

    fn config(path: &std::path::Path) -> DirectoryConfig {
        let (path, when_refused) = (path.to_owned(), WhenRefused::DeadLetter);
        DirectoryConfig { path, marker: None, seal_to: None, unsealed: true, when_refused }
    }

    fn names(path: &std::path::Path) -> Vec<String> {
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[tokio::test]
    async fn a_message_is_a_whole_file_and_a_second_copy_replaces_it() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::connect(&config(folder.path()), &identity()).await.unwrap();
        let message = envelope(Body::whole(Bytes::from_static(b"MSH|1")));
        for _ in 0..2 {
            let receipt = directory.send(&message).await.unwrap().receipt().await.unwrap();
            assert_eq!(receipt.code, "renamed");
        }
        let name = format!("20261122T053851Z-monitors-{}.hl7", message.id);
        assert_eq!(names(folder.path()), std::slice::from_ref(&name));
        assert_eq!(fs::read(folder.path().join(name)).unwrap(), b"MSH|1");
    }

    #[test]
    fn the_extension_says_what_is_in_a_file() {
        let mut message = envelope(Body::whole(Bytes::new()));
        for (content_type, end) in
            [("application/dicom", ".dcm"), ("application/hl7-v2; charset=x", ".hl7"), ("a/b", ".bin")]
        {
            message.meta.content_type = content_type.into();
            assert!(file_name(&message, false).ends_with(end));
            assert!(file_name(&message, true).ends_with(&format!("{end}.age")));
        }
    }

    #[tokio::test]
    async fn without_its_marker_nothing_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let config = DirectoryConfig { marker: Some("mounted".into()), ..config(folder.path()) };
        let error = Directory::connect(&config, &identity()).await.err().unwrap();
        assert!(error.to_string().contains("is the disk or share mounted?"), "{error}");
        fs::write(folder.path().join("mounted"), "").unwrap();
        let directory = Directory::connect(&config, &identity()).await.unwrap();
        fs::remove_file(folder.path().join("mounted")).unwrap();
        let message = envelope(Body::whole(Bytes::from_static(b"MSH|1")));
        let error = directory.send(&message).await.unwrap().receipt().await.unwrap_err();
        assert!(matches!(error, SendError::Disconnected { .. }), "{error}");
        assert_eq!(names(folder.path()), Vec::<String>::new());
    }

    #[tokio::test]
    async fn leftovers_of_ours_are_removed_and_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, theirs) = (".wardgate.st-marys.icu.engine.00.part", ".wardgate.st-marys.ward-7.engine.00.part");
        for name in [ours, theirs] {
            fs::write(folder.path().join(name), "half").unwrap();
        }
        Directory::connect(&config(folder.path()), &identity()).await.unwrap();
        assert_eq!(names(folder.path()), [theirs]);
    }

    #[test]
    fn a_full_disk_blames_nobody_and_waits() {
        let full = blame("/mnt", &io::Error::from_raw_os_error(nix::libc::ENOSPC));
        assert!(matches!(full, SendError::Busy { .. }));
        let large = blame("/mnt", &io::Error::from_raw_os_error(nix::libc::EFBIG));
        assert!(matches!(large, SendError::Refused { .. }));
    }

    #[test]
    fn an_unsealed_directory_must_be_said_aloud() {
        let told = |unsealed| {
            let mut problems = Problems::default();
            DirectoryConfig { unsealed, ..config("/mnt".as_ref()) }.check(&mut problems);
            problems.into_found().into_iter().filter(|found| !found.warning).count()
        };
        assert_eq!((told(false), told(true)), (1, 0));
    }

    #[test]
    fn a_folder_that_is_not_there_is_warned_of() {
        let folder = tempfile::tempdir().unwrap();
        let told = |path: &std::path::Path| {
            let mut problems = Problems::default();
            DirectoryConfig { unsealed: true, ..config(path) }.check(&mut problems);
            problems.into_found().into_iter().map(|found| (found.warning, found.text)).collect::<Vec<_>>()
        };
        assert_eq!(told(folder.path()), []);
        let missing = told(&folder.path().join("usb"));
        assert!(matches!(missing.as_slice(), [(true, text)] if text.contains("usb is no folder")), "{missing:?}");
    }
}
