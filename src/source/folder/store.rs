//! Files on their way into the spool: short ones several at a time, so that they share a sync; a long one alone and in pieces.

use std::fs::File;
use std::future::{Future, poll_fn};
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use aws_lc_rs::digest;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::away::Afterwards;
use super::memory::{self, Mark, Memory};
use super::scan::Seen;
use super::take::{self, Held, TakeError};
use crate::envelope::MessageId;
use crate::source::intake::{About, Incoming, Intake};
use crate::spool::{CommitError, Committed, FRAGMENT_BYTES};
use crate::system::beneath::{Beneath, Volume};

/// Short files that are stored together.
const BATCH_FILES_MAX: usize = 32;
/// Bytes of files that are stored together; a longer file is streamed.
pub const BATCH_BYTES_MAX: u64 = 256 << 10;
/// How long one step may take: a piece of a file read, a batch put away. A hung share must not keep the room that all sources have
/// for bodies.
const STEP_TIME_MAX: Duration = Duration::from_secs(30);
/// What is said of a file system that does not answer.
pub const HUNG: &str = "the file system does not answer: look at the share, or at the disk";

/// What storing needs to know of the folder.
#[derive(Debug)]
pub struct Settings {
    /// The folder.
    pub root: PathBuf,
    /// What becomes of a stored file.
    pub afterwards: Afterwards,
    /// Patterns of names, and the media types of files with such names.
    pub rules: Vec<(String, String)>,
    /// What works on the file system.
    pub worker: Worker,
}

/// What blocks on the file system, one thing at a time: something that hangs keeps one thread, however often it is asked again, and the
/// threads that other sources need stay free.
#[derive(Clone, Debug)]
pub struct Worker {
    turn: Arc<Semaphore>,
    /// See [`STEP_TIME_MAX`].
    pub(super) step_time: Duration,
}

impl Default for Worker {
    fn default() -> Self {
        Self { turn: Arc::new(Semaphore::new(1)), step_time: STEP_TIME_MAX }
    }
}

impl Worker {
    /// Does what blocks, after what is being done; however long both take.
    ///
    /// # Errors
    /// When it broke.
    pub async fn act<T: Send + 'static>(&self, act: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let turn = Arc::clone(&self.turn).acquire_owned().await.map_err(io::Error::other)?;
        let acted = spawn_blocking(move || {
            let outcome = act();
            drop(turn);
            outcome
        });
        acted.await.map_err(io::Error::other)
    }

    /// The same within the time that a step may take. What hangs goes on hanging, with nobody waiting for it.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`], or when it broke.
    pub async fn act_in_time<T: Send + 'static>(&self, act: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        timeout(self.step_time, self.act(act)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn take<T: Send + 'static>(
        &self,
        act: impl FnOnce() -> Result<T, TakeError> + Send + 'static,
    ) -> Result<T, TakeError> {
        match self.act_in_time(act).await {
            Ok(outcome) => outcome,
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(TakeError::Hung),
            Err(error) => Err(TakeError::Unreadable(error)),
        }
    }
}

/// What became of a batch. Files that are named nowhere have changed and are looked at anew.
#[derive(Default)]
pub struct Taken {
    /// On stable storage, under this id.
    pub stored: Vec<(Seen, MessageId, Held)>,
    /// Can't be read.
    pub unreadable: Vec<(Seen, io::Error)>,
    /// Why the rest was not stored.
    pub refused: Option<String>,
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

/// Stores a batch in its order, each file with its mark; what is known by its mark is stored already.
pub async fn take(settings: &Arc<Settings>, batch: Vec<Seen>, memory: &Memory, intake: &Intake) -> Taken {
    let bytes = batch.iter().map(|seen| seen.stamp.size).sum::<u64>();
    match batch.first() {
        Some(long) if bytes > BATCH_BYTES_MAX => {
            let mut taken = Taken::default();
            match take_long(settings, long, memory, intake).await {
                Ok((id, held)) => taken.stored.push((long.clone(), id, held)),
                Err(Lost::File(TakeError::Changed)) => {}
                Err(Lost::File(TakeError::Unreadable(error))) => taken.unreadable.push((long.clone(), error)),
                Err(Lost::File(TakeError::Hung)) => taken.refused = Some(HUNG.to_owned()),
                Err(Lost::Log(error)) => taken.refused = Some(error.to_string()),
            }
            taken
        }
        _ => take_short(settings, batch, memory, (intake, bytes)).await,
    }
}

type Read = (Seen, Held, Mark);
type Outcome = Result<Committed, CommitError>;
type Commit = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// Reads all, and gives all to the writer before the first is awaited: in their order, and with one sync.
async fn take_short(
    settings: &Arc<Settings>,
    batch: Vec<Seen>,
    memory: &Memory,
    (intake, bytes): (&Intake, u64),
) -> Taken {
    let mut taken = Taken::default();
    let _share = intake.share(usize::try_from(bytes).unwrap_or(usize::MAX)).await;
    let root = settings.root.clone();
    let read = settings.worker.act_in_time(move || {
        let root = Beneath::open(&root)?;
        let volume = root.volume()?;
        Ok::<_, io::Error>(batch.into_iter().map(|seen| (whole(&root, &seen, volume), seen)).collect::<Vec<_>>())
    });
    let read = match read.await.flatten() {
        Ok(read) => read,
        Err(error) => {
            let is_hung = error.kind() == io::ErrorKind::TimedOut;
            taken.refused = Some(if is_hung { HUNG.to_owned() } else { error.to_string() });
            return taken;
        }
    };
    let mut underway: Vec<(Read, Commit)> = Vec::new();
    for (whole, seen) in read {
        match whole {
            Ok((bytes, mark, held)) if memory.knows(&mark) => {
                intake.repeated(bytes.len() as u64);
                taken.stored.push((seen, mark.id(), held));
            }
            Ok((bytes, mark, held)) => {
                let about = take::about(&seen.path, &bytes, &settings.rules);
                let mut incoming = intake.begin();
                incoming.also_part(memory::CONTENT_TYPE, intake.now(), mark.encode());
                match incoming.write(&bytes).await {
                    Ok(()) => underway.push(((seen, held, mark), Box::pin(incoming.commit(about)))),
                    Err(error) => taken.refused = Some(error.to_string()),
                }
            }
            Err(TakeError::Changed | TakeError::Hung) => {}
            Err(TakeError::Unreadable(error)) => taken.unreadable.push((seen, error)),
        }
    }
    for ((seen, held, mark), committed) in all(underway).await {
        match committed {
            Ok(committed) => {
                keep_of_repeat(intake, &mark, &committed).await;
                taken.stored.push((seen, id(&committed), held));
            }
            Err(error) => taken.refused = Some(error.to_string()),
        }
    }
    taken
}

/// The whole of a short file.
fn whole(root: &Beneath, seen: &Seen, volume: Volume) -> Result<(Vec<u8>, Mark, Held), TakeError> {
    let (bytes, held) = take::whole(root, seen)?;
    let mark = Mark::of(seen, memory::sha256(&bytes), volume);
    Ok((bytes, mark, held))
}

/// Nothing was stored of a second copy, its mark neither; without it the file may come a third time, which is harmless.
async fn keep_of_repeat(intake: &Intake, mark: &Mark, committed: &Committed) {
    if matches!(committed, Committed::Repeat(_)) {
        memory::keep(intake, mark).await.ok();
    }
}

/// Awaits all; each is begun in its order.
async fn all(underway: Vec<(Read, Commit)>) -> Vec<(Read, Outcome)> {
    let mut waiting: Vec<(Read, Commit, Option<Outcome>)> =
        underway.into_iter().map(|(read, commit)| (read, commit, None)).collect();
    poll_fn(|context| {
        for (_, commit, outcome) in waiting.iter_mut().filter(|(_, _, outcome)| outcome.is_none()) {
            if let Poll::Ready(ready) = commit.as_mut().poll(context) {
                *outcome = Some(ready);
            }
        }
        if waiting.iter().all(|(_, _, outcome)| outcome.is_some()) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    waiting.into_iter().filter_map(|(read, _, outcome)| Some((read, outcome?))).collect()
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

/// A long file that is being read.
struct Reading {
    file: File,
    digest: digest::Context,
    volume: Volume,
}

impl Reading {
    fn open(root: &Path, seen: &Seen) -> Result<Self, TakeError> {
        let root = Beneath::open(root).map_err(TakeError::Unreadable)?;
        let volume = root.volume().map_err(TakeError::Unreadable)?;
        Ok(Self { file: take::open(&root, seen)?, digest: digest::Context::new(&digest::SHA256), volume })
    }

    fn piece(mut self) -> Result<(Vec<u8>, Self), TakeError> {
        let piece = take::piece(&mut self.file, FRAGMENT_BYTES)?;
        self.digest.update(&piece);
        Ok((piece, self))
    }

    /// It was read to its end.
    fn end(self, seen: &Seen) -> Result<(Mark, Held), TakeError> {
        let mark = Mark::of(seen, memory::finished(self.digest.finish()), self.volume);
        Ok((mark, take::hold(self.file, seen)?))
    }
}

async fn opened(settings: &Settings, seen: &Seen) -> Result<Reading, TakeError> {
    let (root, seen) = (settings.root.clone(), seen.clone());
    settings.worker.take(move || Reading::open(&root, &seen)).await
}

async fn ended(settings: &Settings, seen: &Seen, reading: Reading) -> Result<(Mark, Held), TakeError> {
    let seen = seen.clone();
    settings.worker.take(move || reading.end(&seen)).await
}

/// A file in pieces: whatever its size, two of them are in memory.
async fn take_long(
    settings: &Settings,
    seen: &Seen,
    memory: &Memory,
    intake: &Intake,
) -> Result<(MessageId, Held), Lost> {
    if memory.may_know(seen) {
        let (mark, held) = read_through(settings, seen).await?;
        if memory.knows(&mark) {
            intake.repeated(seen.stamp.size);
            return Ok((mark.id(), held));
        }
    }
    let share = intake.stream_share().await;
    let mut incoming = intake.begin();
    let reading = opened(settings, seen).await?;
    let (first, mut reading) = settings.worker.take(move || reading.piece()).await?;
    let about = take::about(&seen.path, &first, &settings.rules);
    incoming.write(&first).await?;
    while incoming.len() < seen.stamp.size {
        let (piece, again) = settings.worker.take(move || reading.piece()).await?;
        reading = again;
        // Shorter than it was seen: somebody has cut it.
        if piece.is_empty() {
            return Err(TakeError::Changed.into());
        }
        incoming.write(&piece).await?;
    }
    let (mark, held) = ended(settings, seen, reading).await?;
    let _share = share.arrived();
    Ok((commit(incoming, about, &mark, intake).await?, held))
}

/// Reads a file to its end, for its mark.
async fn read_through(settings: &Settings, seen: &Seen) -> Result<(Mark, Held), TakeError> {
    let mut reading = opened(settings, seen).await?;
    let mut left = seen.stamp.size;
    while left > 0 {
        let (piece, again) = settings.worker.take(move || reading.piece()).await?;
        reading = again;
        if piece.is_empty() {
            return Err(TakeError::Changed);
        }
        left = left.saturating_sub(piece.len() as u64);
    }
    ended(settings, seen, reading).await
}

async fn commit(mut incoming: Incoming, about: About, mark: &Mark, intake: &Intake) -> Result<MessageId, Lost> {
    incoming.also_part(memory::CONTENT_TYPE, intake.now(), mark.encode());
    let committed = incoming.commit(about).await?;
    keep_of_repeat(intake, mark, &committed).await;
    Ok(id(&committed))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::channel;

    use super::*;

    #[tokio::test]
    async fn a_share_that_hangs_keeps_one_thread_however_often_it_is_asked() {
        let (worker, begun) = (Worker::default(), Arc::new(AtomicUsize::new(0)));
        let (answer, hangs) = channel::<()>();
        let hung = Arc::clone(&begun);
        let first = worker.act_in_time(move || {
            hung.fetch_add(1, Ordering::Relaxed);
            hangs.recv().ok();
        });
        assert!(timeout(Duration::from_millis(100), first).await.is_err());
        for _ in 0..3 {
            let counted = Arc::clone(&begun);
            let again = worker.act_in_time(move || counted.fetch_add(1, Ordering::Relaxed));
            assert!(timeout(Duration::from_millis(10), again).await.is_err());
        }
        assert_eq!(begun.load(Ordering::Relaxed), 1, "the others wait without a thread");
        answer.send(()).unwrap();
        let counted = Arc::clone(&begun);
        worker.act(move || counted.fetch_add(1, Ordering::Relaxed)).await.unwrap();
        assert_eq!(begun.load(Ordering::Relaxed), 2, "when it answers again, it goes on");
    }
}
