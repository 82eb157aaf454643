//! What was stored and still lies in the folder, kept durably until it is put away, so that it is not taken for a new message meanwhile:
//! after a crash between the two, after a restart, or when the disk or share comes back under another number.
//!
//! A [`Mark`] becomes durable together with its message, in the source's own lane of parts, and the lane's cursor moves over it once the
//! file is put away, or seen to be gone. It is the same file when name, size, time of the last change and every byte are; with other
//! content, or written anew at another time, it is another message. It must never name a file that is not stored. Names of files may
//! hold a patient's name: they are in the log, encrypted, and nowhere else.

use std::collections::{HashSet, VecDeque};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::digest;
use data_encoding::HEXLOWER;
use tokio::time::timeout;

use super::scan::{Scan, Seen};
use crate::envelope::{Flags, MessageId};
use crate::source::intake::{About, Intake};
use crate::spool::{CommitError, Entry, Lane, Place};
use crate::system::beneath::Volume;
use crate::system::seldom::Seldom;

/// The media type of a stored mark.
pub const CONTENT_TYPE: &str = "application/vnd.wardgate.file-mark";
/// The first word of a stored mark: names the form and its version.
const FORM: &str = "file-mark/1";
/// Longest first line.
const HEAD_BYTES_MAX: usize = 200;
/// Files that are stored, and known to lie in the folder or on a disk that is away; more of them, and the oldest is forgotten.
const MARKS_MAX: usize = 2048;
/// Entries that the cursor may wait to move over, for the sake of one file that can't be put away.
const HELD_MAX: usize = 8192;
/// So much uptime after it was stored, the file of a disk that is away is forgotten, milliseconds.
const KEPT_MS: u64 = 7 * 86_400_000;
/// How long a mark that was told to be there may take to be read.
const READ_TIME: Duration = Duration::from_secs(5);
/// The same once that was too short: a mark that can't be read is no reason to take no files.
const READ_TIME_AGAIN: Duration = Duration::from_millis(1);

/// A file that was stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mark {
    /// Where it was, from the watched folder.
    path: PathBuf,
    /// Bytes.
    size: u64,
    /// When it was changed last, seconds, to the two seconds that every file system can tell.
    changed_s: i64,
    /// Of its bytes.
    sha256: [u8; 32],
    /// The file system that it was on.
    volume: Volume,
}

impl Mark {
    /// Of a file that was read as it was seen.
    pub fn of(seen: &Seen, sha256: [u8; 32], volume: Volume) -> Self {
        Self { path: seen.path.clone(), size: seen.stamp.size, changed_s: seen.stamp.changed_s(), sha256, volume }
    }

    /// Where it was, from the watched folder.
    #[cfg(test)]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The id that it goes by where that of its message is not known any more.
    pub fn id(&self) -> MessageId {
        let mut id = [0; 16];
        id.copy_from_slice(&self.sha256[..16]);
        MessageId(id)
    }

    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        let Self { size, changed_s, volume: Volume { device, bytes }, .. } = self;
        let head = format!("{FORM} {size} {changed_s} {device} {bytes} {}\n", HEXLOWER.encode(&self.sha256));
        [head.as_bytes(), self.path.as_os_str().as_bytes()].concat()
    }

    /// Reads the stored form; `None` when it is none.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let end = bytes.iter().take(HEAD_BYTES_MAX).position(|byte| *byte == b'\n')?;
        let mut words = std::str::from_utf8(bytes.get(..end)?).ok()?.split(' ');
        if words.next()? != FORM {
            return None;
        }
        let (size, changed_s) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let volume = Volume { device: words.next()?.parse().ok()?, bytes: words.next()?.parse().ok()? };
        let sha256 = HEXLOWER.decode(words.next()?.as_bytes()).ok()?.try_into().ok()?;
        let path = std::ffi::OsString::from_vec(bytes.get(end + 1..)?.to_vec()).into();
        Some(Self { path, size, changed_s, sha256, volume })
    }

    fn fits(&self, seen: &Seen) -> bool {
        (self.path.as_path(), self.size, self.changed_s) == (&*seen.path, seen.stamp.size, seen.stamp.changed_s())
    }

    fn is_same_file(&self, other: &Self) -> bool {
        (&self.path, self.size, self.changed_s, self.sha256) == (&other.path, other.size, other.changed_s, other.sha256)
    }
}

/// The digest that marks hold.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    finished(digest::digest(&digest::SHA256, bytes))
}

/// A digest that was made in pieces.
pub fn finished(digest: digest::Digest) -> [u8; 32] {
    let mut sha256 = [0; 32];
    sha256.copy_from_slice(digest.as_ref());
    sha256
}

/// See the module.
pub struct Memory {
    lane: Lane,
    intake: Intake,
    /// What was read and is not passed yet, in its order.
    held: VecDeque<Held>,
    /// A mark could not be read in time.
    slow: bool,
    refusals: Seldom,
    /// See [`MARKS_MAX`].
    pub(super) marks_max: usize,
    /// See [`HELD_MAX`].
    pub(super) held_max: usize,
    /// See [`KEPT_MS`].
    pub(super) kept_ms: u64,
}

struct Held {
    place: Place,
    /// `None`: it is not needed any more.
    mark: Option<Mark>,
    /// Uptime at which it was stored, milliseconds.
    since_ms: u64,
}

impl Memory {
    /// With what the run before left: to be read by [`Self::read`].
    pub fn open(intake: &Intake) -> Self {
        let (lane, intake) = (intake.parts(), intake.clone());
        Self {
            lane,
            intake,
            held: VecDeque::new(),
            slow: false,
            refusals: Seldom::default(),
            marks_max: MARKS_MAX,
            held_max: HELD_MAX,
            kept_ms: KEPT_MS,
        }
    }

    /// Reads what was stored since it was read last.
    pub async fn read(&mut self) {
        while self.lane.waiting() > 0 {
            let time = if self.slow { READ_TIME_AGAIN } else { READ_TIME };
            let Ok(entry) = timeout(time, self.lane.next()).await else {
                self.slow = true;
                return;
            };
            self.slow = false;
            if !self.take(entry).await {
                return;
            }
        }
    }

    /// False when an entry can be neither used nor put aside now: the next round tries again.
    async fn take(&mut self, entry: Entry) -> bool {
        let Entry { place, content, .. } = entry;
        let (body, since_ms) = match &content {
            Ok(envelope) => (envelope.body.collect().await.ok(), envelope.meta.received.uptime_ms),
            Err(_) => (None, 0),
        };
        let mark = body.as_deref().and_then(Mark::decode);
        // A mark that is damaged is missed by nobody; anything else is of a source that had this name before.
        if mark.is_none() && body.is_some() {
            let reason = "it is of an unknown form: a source of another protocol kept it under this name";
            if let Err(error) = self.lane.bury(place, reason, 0).await {
                if let Some(unsaid) = self.refusals.speak() {
                    let source = self.intake.source();
                    tracing::error!(%source, %error, unsaid, "something that is no mark of a file can't be put aside");
                }
                self.lane.rewind();
                self.held.clear();
                return false;
            }
        }
        self.held.push_back(Held { place, mark, since_ms });
        true
    }

    /// Whether a file may be one that is stored: its bytes tell.
    pub fn may_know(&self, seen: &Seen) -> bool {
        self.marks().any(|mark| mark.fits(seen))
    }

    /// Whether this file is stored.
    pub fn knows(&self, mark: &Mark) -> bool {
        self.marks().any(|known| known.is_same_file(mark))
    }

    /// The paths whose presence matters to [`Self::reconcile`].
    pub fn paths(&self) -> HashSet<PathBuf> {
        self.marks().map(|mark| mark.path.clone()).collect()
    }

    /// Forgets what is put away.
    pub fn forget<'a>(&mut self, paths: impl Iterator<Item = &'a Path>) {
        let put_away: HashSet<&Path> = paths.collect();
        self.drop_where(|mark, _| put_away.contains(mark.path.as_path()));
    }

    /// Forgets what is not in the folder any more, as far as a look can tell: what is missing on another disk may come back with its own.
    pub fn reconcile(&mut self, scan: &Scan) {
        self.drop_where(|mark, _| scan.whole && mark.volume.is_like(scan.volume) && !scan.present.contains(&mark.path));
        self.expire(&scan.present);
    }

    /// Forgets what was stored long ago and is not among what is `present`.
    pub fn expire(&mut self, present: &HashSet<PathBuf>) {
        let now_ms = self.intake.uptime_ms();
        let kept_ms = self.kept_ms;
        self.drop_where(|mark, since_ms| !present.contains(&mark.path) && now_ms.saturating_sub(since_ms) > kept_ms);
    }

    /// Forgets the oldest when there are too many, and writes those anew that hold up the cursor for too long.
    pub async fn bound(&mut self) -> Result<(), CommitError> {
        let mut over = self.marks().count().saturating_sub(self.marks_max);
        self.drop_where(|_, _| {
            let is_over = over > 0;
            over = over.saturating_sub(1);
            is_over
        });
        while self.held.len() > self.held_max
            && let Some(Held { mark: Some(mark), .. }) = self.held.front()
        {
            let mark = mark.clone();
            keep(&self.intake, &mark).await?;
            self.held.front_mut().into_iter().for_each(|held| held.mark = None);
            self.pass();
        }
        Ok(())
    }

    /// How many files are stored that were not put away.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.marks().count()
    }

    fn marks(&self) -> impl Iterator<Item = &Mark> {
        self.held.iter().filter_map(|held| held.mark.as_ref())
    }

    fn drop_where(&mut self, mut which: impl FnMut(&Mark, u64) -> bool) {
        for held in &mut self.held {
            if held.mark.as_ref().is_some_and(|mark| which(mark, held.since_ms)) {
                held.mark = None;
            }
        }
        self.pass();
    }

    /// Moves the cursor over all that is not needed.
    fn pass(&mut self) {
        let mut passed = None;
        while let Some(held) = self.held.pop_front_if(|held| held.mark.is_none()) {
            passed = Some(held.place);
        }
        if let Some(place) = passed {
            self.lane.advance(place);
        }
    }
}

/// Makes a mark durable by itself: its message is stored already.
///
/// # Errors
/// [`CommitError`] when the log is full or has failed; nothing is stored then.
pub async fn keep(intake: &Intake, mark: &Mark) -> Result<(), CommitError> {
    let mut alone = intake.begin();
    alone.write(&mark.encode()).await?;
    let about = About { content_type: CONTENT_TYPE.to_owned(), control_id: Vec::new(), flags: Flags::default() };
    alone.commit_part(about).await.map(drop)
}
