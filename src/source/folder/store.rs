//! Files on their way into the spool: short ones several at a time, so that they share a sync; a long one alone and in pieces.

use std::fs::File;
use std::future::{Future, poll_fn};
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::scan::Seen;
use super::take::{self, Afterwards, TakeError};
use crate::envelope::MessageId;
use crate::source::intake::{About, Incoming, Intake};
use crate::spool::{CommitError, Committed, FRAGMENT_BYTES};

/// Short files that are stored together.
const BATCH_FILES_MAX: usize = 32;
/// Bytes of files that are stored together; a longer file is streamed.
pub const BATCH_BYTES_MAX: u64 = 256 << 10;
/// How long one piece of a file may take to be read. A hung share must not keep the room that all sources have for long bodies.
const PIECE_TIME_MAX: Duration = Duration::from_secs(30);

/// What storing needs to know of the folder.
#[derive(Debug)]
pub struct Settings {
    /// The folder.
    pub root: PathBuf,
    /// What becomes of a stored file.
    pub afterwards: Afterwards,
    /// Patterns of names, and the media types of files with such names.
    pub rules: Vec<(String, String)>,
}

/// What became of a batch. Files that are named nowhere have changed and are looked at anew.
#[derive(Default)]
pub struct Taken {
    /// On stable storage, under this id.
    pub stored: Vec<(Seen, MessageId)>,
    /// Can't be read.
    pub unreadable: Vec<(Seen, io::Error)>,
    /// Why the rest was not stored.
    pub refused: Option<CommitError>,
}

/// Files in batches, in their order.
pub fn batches(files: Vec<Seen>) -> Vec<Vec<Seen>> {
    let mut batches: Vec<Vec<Seen>> = Vec::new();
    let mut bytes = 0;
    for seen in files {
        bytes += seen.stamp.size;
        match batches.last_mut() {
            Some(batch) if batch.len() < BATCH_FILES_MAX && bytes <= BATCH_BYTES_MAX => batch.push(seen),
            _ => {
                bytes = seen.stamp.size;
                batches.push(vec![seen]);
            }
        }
    }
    batches
}

/// Stores a batch in its order.
pub async fn take(settings: &Arc<Settings>, batch: Vec<Seen>, intake: &Intake) -> Taken {
    let bytes = batch.iter().map(|seen| seen.stamp.size).sum::<u64>();
    match batch.first() {
        Some(long) if bytes > BATCH_BYTES_MAX => {
            let mut taken = Taken::default();
            match take_long(settings, long, intake).await {
                Ok(id) => taken.stored.push((long.clone(), id)),
                Err(Lost::File(TakeError::Changed)) => {}
                Err(Lost::File(TakeError::Unreadable(error))) => taken.unreadable.push((long.clone(), error)),
                Err(Lost::Log(error)) => taken.refused = Some(error),
            }
            taken
        }
        _ => take_short(settings, batch, (intake, bytes)).await,
    }
}

type Outcome = Result<Committed, CommitError>;
type Commit = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// Reads all, and gives all to the writer before the first is awaited: in their order, and with one sync.
async fn take_short(settings: &Arc<Settings>, batch: Vec<Seen>, (intake, bytes): (&Intake, u64)) -> Taken {
    let mut taken = Taken::default();
    let _share = intake.share(usize::try_from(bytes).unwrap_or(usize::MAX)).await;
    let root = settings.root.clone();
    let read = blocking(move || batch.into_iter().map(|seen| (take::whole(&root, &seen), seen)).collect::<Vec<_>>());
    let Ok(read) = read.await else { return taken };
    let mut underway: Vec<(Seen, Commit)> = Vec::new();
    for (whole, seen) in read {
        match whole {
            Ok(bytes) => {
                let about = take::about(&seen.path, &bytes, &settings.rules);
                let mut incoming = intake.begin();
                match incoming.write(&bytes).await {
                    Ok(()) => underway.push((seen, Box::pin(incoming.commit(about)))),
                    Err(error) => taken.refused = Some(error),
                }
            }
            Err(TakeError::Changed) => {}
            Err(TakeError::Unreadable(error)) => taken.unreadable.push((seen, error)),
        }
    }
    for (seen, committed) in all(underway).await {
        match committed {
            Ok(committed) => taken.stored.push((seen, id(&committed))),
            Err(error) => taken.refused = Some(error),
        }
    }
    taken
}

/// Awaits all; each is begun in its order.
async fn all(underway: Vec<(Seen, Commit)>) -> Vec<(Seen, Outcome)> {
    let mut waiting: Vec<(Seen, Commit, Option<Outcome>)> =
        underway.into_iter().map(|(seen, commit)| (seen, commit, None)).collect();
    poll_fn(|context| {
        for (_, commit, outcome) in waiting.iter_mut().filter(|(_, _, outcome)| outcome.is_none()) {
            if let Poll::Ready(ready) = commit.as_mut().poll(context) {
                *outcome = Some(ready);
            }
        }
        if waiting.iter().all(|(_, _, outcome)| outcome.is_some()) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    waiting.into_iter().filter_map(|(seen, _, outcome)| Some((seen, outcome?))).collect()
}

fn id(committed: &Committed) -> MessageId {
    match committed {
        Committed::Stored(id) | Committed::Differing(id) | Committed::Repeat(id) => *id,
    }
}

enum Lost {
    File(TakeError),
    Log(CommitError),
}

impl From<TakeError> for Lost {
    fn from(error: TakeError) -> Self {
        Self::File(error)
    }
}

impl From<CommitError> for Lost {
    fn from(error: CommitError) -> Self {
        Self::Log(error)
    }
}

/// A file in pieces: whatever its size, two of them are in memory.
async fn take_long(settings: &Arc<Settings>, seen: &Seen, intake: &Intake) -> Result<MessageId, Lost> {
    let share = intake.stream_share().await;
    let mut incoming = intake.begin();
    let (root, wanted) = (settings.root.clone(), seen.clone());
    let opened = in_time(move || {
        let mut file = take::open(&root, &wanted)?;
        Ok((take::piece(&mut file, FRAGMENT_BYTES)?, file))
    });
    let (first, mut file) = opened.await?;
    let about = take::about(&seen.path, &first, &settings.rules);
    incoming.write(&first).await?;
    while incoming.len() < seen.stamp.size {
        let (piece, again) = next_piece(file).await?;
        file = again;
        // Shorter than it was seen: somebody has cut it.
        if piece.is_empty() {
            return Err(TakeError::Changed.into());
        }
        incoming.write(&piece).await?;
    }
    let wanted = seen.clone();
    in_time(move || take::unchanged(&file, &wanted)).await?;
    let _share = share.arrived();
    commit(incoming, about).await
}

async fn commit(incoming: Incoming, about: About) -> Result<MessageId, Lost> {
    Ok(id(&incoming.commit(about).await?))
}

async fn next_piece(mut file: File) -> Result<(Vec<u8>, File), TakeError> {
    in_time(move || Ok((take::piece(&mut file, FRAGMENT_BYTES)?, file))).await
}

async fn in_time<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, TakeError> + Send + 'static,
) -> Result<T, TakeError> {
    let late = || TakeError::Unreadable(io::ErrorKind::TimedOut.into());
    match timeout(PIECE_TIME_MAX, blocking(act)).await {
        Ok(outcome) => outcome.unwrap_or_else(|error| Err(TakeError::Unreadable(error))),
        Err(_) => Err(late()),
    }
}

/// Does what blocks on a thread that may.
pub async fn blocking<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    spawn_blocking(act).await.map_err(io::Error::other)
}
