//! Files on their way into the spool: short ones several at a time, so that they share a sync; a long one alone and in pieces.

use std::future::{Future, poll_fn};
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::away::Afterwards;
use super::scan::Seen;
use super::take::{self, Held, TakeError};
use crate::envelope::MessageId;
use crate::source::intake::{About, Incoming, Intake};
use crate::spool::{CommitError, Committed, FRAGMENT_BYTES};
use crate::system::beneath::Beneath;

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
pub struct Worker(Arc<Semaphore>);

impl Default for Worker {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

impl Worker {
    /// Does what blocks, after what is being done; however long both take.
    ///
    /// # Errors
    /// When it broke.
    pub async fn act<T: Send + 'static>(&self, act: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let turn = Arc::clone(&self.0).acquire_owned().await.map_err(io::Error::other)?;
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
        timeout(STEP_TIME_MAX, self.act(act)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
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

/// Stores a batch in its order.
pub async fn take(settings: &Arc<Settings>, batch: Vec<Seen>, intake: &Intake) -> Taken {
    let bytes = batch.iter().map(|seen| seen.stamp.size).sum::<u64>();
    match batch.first() {
        Some(long) if bytes > BATCH_BYTES_MAX => {
            let mut taken = Taken::default();
            match take_long(settings, long, intake).await {
                Ok((id, held)) => taken.stored.push((long.clone(), id, held)),
                Err(Lost::File(TakeError::Changed)) => {}
                Err(Lost::File(TakeError::Unreadable(error))) => taken.unreadable.push((long.clone(), error)),
                Err(Lost::File(TakeError::Hung)) => taken.refused = Some(HUNG.to_owned()),
                Err(Lost::Log(error)) => taken.refused = Some(error.to_string()),
            }
            taken
        }
        _ => take_short(settings, batch, (intake, bytes)).await,
    }
}

type Read = (Seen, Held);
type Outcome = Result<Committed, CommitError>;
type Commit = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// Reads all, and gives all to the writer before the first is awaited: in their order, and with one sync.
async fn take_short(settings: &Arc<Settings>, batch: Vec<Seen>, (intake, bytes): (&Intake, u64)) -> Taken {
    let mut taken = Taken::default();
    let _share = intake.share(usize::try_from(bytes).unwrap_or(usize::MAX)).await;
    let root = settings.root.clone();
    let read = settings.worker.act_in_time(move || {
        let root = Beneath::open(&root)?;
        Ok::<_, io::Error>(batch.into_iter().map(|seen| (take::whole(&root, &seen), seen)).collect::<Vec<_>>())
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
            Ok((bytes, held)) => {
                let about = take::about(&seen.path, &bytes, &settings.rules);
                let mut incoming = intake.begin();
                match incoming.write(&bytes).await {
                    Ok(()) => underway.push(((seen, held), Box::pin(incoming.commit(about)))),
                    Err(error) => taken.refused = Some(error.to_string()),
                }
            }
            Err(TakeError::Changed | TakeError::Hung) => {}
            Err(TakeError::Unreadable(error)) => taken.unreadable.push((seen, error)),
        }
    }
    for ((seen, held), committed) in all(underway).await {
        match committed {
            Ok(committed) => taken.stored.push((seen, id(&committed), held)),
            Err(error) => taken.refused = Some(error.to_string()),
        }
    }
    taken
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

/// A file in pieces: whatever its size, two of them are in memory.
async fn take_long(settings: &Arc<Settings>, seen: &Seen, intake: &Intake) -> Result<(MessageId, Held), Lost> {
    let share = intake.stream_share().await;
    let mut incoming = intake.begin();
    let (root, wanted, worker) = (settings.root.clone(), seen.clone(), &settings.worker);
    let opened = worker.take(move || {
        let root = Beneath::open(&root).map_err(TakeError::Unreadable)?;
        let mut file = take::open(&root, &wanted)?;
        Ok((take::piece(&mut file, FRAGMENT_BYTES)?, file))
    });
    let (first, mut file) = opened.await?;
    let about = take::about(&seen.path, &first, &settings.rules);
    incoming.write(&first).await?;
    while incoming.len() < seen.stamp.size {
        let next = worker.take(move || Ok((take::piece(&mut file, FRAGMENT_BYTES)?, file)));
        let (piece, again) = next.await?;
        file = again;
        // Shorter than it was seen: somebody has cut it.
        if piece.is_empty() {
            return Err(TakeError::Changed.into());
        }
        incoming.write(&piece).await?;
    }
    let wanted = seen.clone();
    let held = worker.take(move || take::hold(file, &wanted)).await?;
    let _share = share.arrived();
    Ok((commit(incoming, about).await?, held))
}

async fn commit(incoming: Incoming, about: About) -> Result<MessageId, Lost> {
    Ok(id(&incoming.commit(about).await?))
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
