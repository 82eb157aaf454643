//! A watched folder: `[source.<name>.folder]`. Result files of analysers that write to a share, a USB disk or a folder of this box.
//!
//! A file is taken when it has not changed for a while, stored in its own bytes, and only after the sync moved away or deleted. One that
//! is still there afterwards, because of a crash or since its disk was pulled out, is known by its name, time and content (`memory`) and not
//! stored again. A folder that is not there is waited for. Files that are written for ever, are too large or can't be read are left where
//! they are and stop no other.
//!
//! Names of files may hold a patient's name: they travel as the message's own id and are never logged.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::intake::Intake;
use super::plug_journal::Journal;
use super::{Source, SourceError, Stop};
use crate::envelope::MessageId;
use crate::system::disk;
use crate::system::seldom::Seldom;
use crate::system::sockets::Sockets;
use crate::values::{ByteSize, Problems, SecretRef, Section, Span};
use away::{Afterwards, Places};
use memory::Memory;
use scan::{Asides, Rules, Scan, Seen, Stamp, scan};
use store::{HUNG, Settings, Taken, Worker};
use take::Held;

mod away;
mod memory;
mod scan;
mod store;
mod take;
#[cfg(test)]
mod tests;

/// What `settle` and `every` may be.
const SPANS: (Span, Span) = (Span(Duration::from_millis(100)), Span(Duration::from_secs(3600)));
/// What `max-size` may be: up to what the spool takes.
const SIZES: (ByteSize, ByteSize) = (ByteSize(1 << 10), ByteSize(4 << 30));
/// Patterns of each kind.
const PATTERNS_MAX: usize = 64;
/// Bytes of a pattern or a media type.
const PATTERN_BYTES_MAX: usize = 128;
/// Stored files that could not be put away; more are not taken until that works again.
const STUCK_MAX: usize = 1024;
/// A file system that does not answer for so long is told as missing.
const HUNG_AFTER: Duration = Duration::from_secs(10);
/// How long a check of the configuration asks whether the folder is there: a share that is away may never answer.
const CHECK_TIME: Duration = Duration::from_secs(2);
/// How long a round may go on after the source was stopped.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(5);
/// The pause after the log refused a file.
const REFUSED_PAUSE: Duration = Duration::from_secs(5);
/// The shortest pause between two looks.
const PAUSE_LEAST: Duration = Duration::from_millis(100);

/// `[source.<name>.folder]`.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct FolderConfig {
    /// The folder, absolute.
    pub path: PathBuf,
    /// A file or folder in it that is there only when the disk or share is mounted.
    pub marker: Option<String>,
    /// What becomes of a file after it was stored.
    #[serde(default)]
    pub then: Then,
    /// Where files are moved to; relative to `path`.
    pub done: Option<PathBuf>,
    /// A file that has not changed for so long is complete.
    #[serde(default = "default_settle")]
    pub settle: Span,
    /// How often the folder is looked through.
    #[serde(default = "default_every")]
    pub every: Span,
    /// Names of files that are not looked at, `*` and `?` as usual.
    #[serde(default = "default_ignore")]
    pub ignore: Vec<String>,
    /// Look into its folders, too.
    #[serde(default)]
    pub sub_folders: bool,
    /// A larger file is left where it is.
    #[serde(default = "default_max_size")]
    pub max_size: ByteSize,
    /// What files are, by their names; the first that fits. Others are recognised by their content.
    #[serde(default)]
    pub file: Vec<FileRule>,
    /// An alarm is raised when no file came for so long.
    pub silent_after: Option<Span>,
}

/// `then`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Then {
    /// Moved into `done`.
    #[default]
    Move,
    /// Deleted.
    Delete,
}

/// `[[source.<name>.folder.file]]`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct FileRule {
    /// The pattern that names fit.
    pub pattern: String,
    /// Their media type.
    pub content_type: String,
}

fn default_settle() -> Span {
    Span(Duration::from_secs(2))
}

fn default_every() -> Span {
    Span(Duration::from_secs(1))
}

fn default_ignore() -> Vec<String> {
    ["*.part", "*.tmp", "*.partial", "~*"].map(str::to_owned).to_vec()
}

fn default_max_size() -> ByteSize {
    ByteSize(256 << 20)
}

impl Section for FolderConfig {
    fn check(&self, problems: &mut Problems) {
        let shown = self.path.display();
        if !self.path.is_absolute() {
            problems.error("path", "write the whole path, beginning with /");
        } else {
            match disk::is_folder(&self.path, CHECK_TIME) {
                Some(true) => {}
                Some(false) => {
                    problems.warn("path", format!("{shown} is no folder on this machine: it will be waited for"));
                }
                None => {
                    problems.warn("path", format!("{shown} does not answer: look at the share; it will be waited for"));
                }
            }
        }
        if self.marker.as_ref().is_some_and(|name| name.is_empty() || name.contains('/') || name.starts_with("..")) {
            problems.error("marker", "name a file in the folder itself, without /");
        }
        if self.then == Then::Delete && self.done.is_some() {
            problems.error("done", "has no meaning with then = \"delete\": remove one");
        }
        let odd = |part: Component<'_>| !matches!(part, Component::Normal(_) | Component::RootDir);
        if self.done.as_ref().is_some_and(|done| done.as_os_str().is_empty() || done.components().any(odd)) {
            problems.error("done", "write a folder's name, or a whole path, without . and ..");
        } else if self.then == Then::Move && self.path.starts_with(self.done_folder()) {
            problems.error("done", "must not hold the watched folder: its files would be taken again");
        }
        let (shortest, longest) = SPANS;
        for (key, span) in [("settle", self.settle), ("every", self.every)] {
            if !(shortest..=longest).contains(&span) {
                problems.error(key, format!("must be from {shortest} to {longest}"));
            }
        }
        let (least, most) = SIZES;
        if !(least..=most).contains(&self.max_size) {
            problems.error("max-size", format!("must be from {least} to {most}"));
        }
        self.check_patterns(problems);
    }

    fn files(&mut self, _visit: &mut dyn FnMut(&mut SecretRef)) {}
}

impl FolderConfig {
    fn check_patterns(&self, problems: &mut Problems) {
        let legal =
            |pattern: &String| !pattern.is_empty() && pattern.len() <= PATTERN_BYTES_MAX && !pattern.contains('/');
        if self.ignore.len() > PATTERNS_MAX || !self.ignore.iter().all(legal) {
            problems.error(
                "ignore",
                format!("must be at most {PATTERNS_MAX} patterns of names like \"*.part\", without /"),
            );
        }
        if self.file.len() > PATTERNS_MAX {
            problems.error("file", format!("must be at most {PATTERNS_MAX} tables [[source.<name>.folder.file]]"));
        }
        problems.under("file", |problems| {
            for (index, rule) in self.file.iter().enumerate() {
                problems.under(&index.to_string(), |problems| {
                    if !legal(&rule.pattern) {
                        problems.error("pattern", "must be a pattern of names like \"*.astm\", without /");
                    }
                    let media = &rule.content_type;
                    let plain = media.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
                    if !plain
                        || media.len() > PATTERN_BYTES_MAX
                        || media.split(';').next().unwrap_or("").split('/').count() != 2
                    {
                        problems.error(
                            "content-type",
                            "is no media type: write for example \"application/vnd.wardgate.astm\" or \"text/csv\"",
                        );
                    }
                });
            }
        });
    }

    fn done_folder(&self) -> PathBuf {
        self.path.join(self.done.as_deref().unwrap_or_else(|| Path::new("done")))
    }

    fn afterwards(&self) -> Afterwards {
        match self.then {
            Then::Delete => Afterwards::Delete,
            Then::Move => Afterwards::Move(self.done_folder()),
        }
    }

    fn rules(&self) -> Rules {
        let done = self.done_folder().strip_prefix(&self.path).ok().map(Path::to_owned);
        Rules {
            root: self.path.clone(),
            done: done.filter(|_| self.then == Then::Move),
            ignore: self.ignore.clone(),
            sub_folders: self.sub_folders,
            size_max: self.max_size.0,
            progress: Arc::default(),
        }
    }
}

/// A folder that is looked through.
pub struct Folder {
    config: FolderConfig,
    settings: Arc<Settings>,
    rules: Arc<Rules>,
    asides: Arc<Mutex<Asides>>,
    watch: Watch,
    /// Stored files that are still there since they could not be put away.
    stuck: HashMap<PathBuf, (Stamp, MessageId, Held)>,
    /// Files can be put away, as far as is known.
    tried: bool,
    left_alone: Seldom,
    stays: Seldom,
    /// Sub-folders that could not be looked into at the last look.
    closed: u64,
}

/// Since when each file has been as it is.
#[derive(Default)]
struct Watch {
    known: HashMap<PathBuf, (Stamp, Instant)>,
}

impl Watch {
    /// Those that have not changed for `settle`, in their order.
    fn settled(&mut self, files: Vec<Seen>, now: Instant, settle: Duration) -> Vec<Seen> {
        let mut known = HashMap::with_capacity(files.len());
        let mut settled = Vec::new();
        for seen in files {
            let before = self.known.get(&seen.path).filter(|(stamp, _)| *stamp == seen.stamp);
            let since = before.map_or(now, |(_, since)| *since);
            known.insert(seen.path.clone(), (seen.stamp, since));
            if now - since >= settle {
                settled.push(seen);
            }
        }
        self.known = known;
        settled
    }
}

impl Source for Folder {
    type Config = FolderConfig;

    const PROTOCOL: &'static str = "folder";

    /// A folder that is not there yet is waited for, and no reason to refuse a configuration.
    async fn open(config: &FolderConfig, _sockets: &Sockets) -> Result<Self, SourceError> {
        let rules = config.file.iter().map(|rule| (rule.pattern.clone(), rule.content_type.clone())).collect();
        let (root, afterwards, worker) = (config.path.clone(), config.afterwards(), Worker::default());
        let settings = Settings { root, afterwards, rules, worker };
        Ok(Self {
            config: config.clone(),
            settings: Arc::new(settings),
            rules: Arc::new(config.rules()),
            asides: Arc::default(),
            watch: Watch::default(),
            stuck: HashMap::new(),
            tried: false,
            left_alone: Seldom::default(),
            stays: Seldom::default(),
            closed: 0,
        })
    }

    fn endpoint(&self) -> String {
        self.config.path.display().to_string()
    }

    async fn run(&mut self, intake: &Intake, stop: &Stop) -> Result<(), SourceError> {
        let (mut journal, mut memory) = (Journal::of_port(intake), Memory::open(intake));
        intake.counters().plug.at(&self.endpoint(), "");
        // A round that is under way is ended well, unless the file system hangs.
        let stopped = async {
            stop.cancelled().await;
            sleep(DRAIN_TIME_MAX).await;
        };
        let mut stopped = pin!(stopped);
        while !stop.is_cancelled() {
            let pause = tokio::select! {
                pause = self.round((&mut journal, &mut memory), intake, stop) => pause,
                () = &mut stopped => return Ok(()),
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = sleep(pause) => {}
            }
        }
        Ok(())
    }
}

impl Folder {
    /// Looks through the folder once and takes what has settled. Returns how long to pause.
    async fn round(
        &mut self,
        (journal, memory): (&mut Journal, &mut Memory),
        intake: &Intake,
        stop: &Stop,
    ) -> Duration {
        let began = Instant::now();
        let every = self.config.every.0;
        let progress = Arc::clone(&self.rules.progress);
        memory.read().await;
        let scan = match answered(journal, self.look(memory), &progress).await {
            Ok(scan) => scan,
            Err(cause) => {
                self.tried = false;
                memory.expire(&HashSet::new());
                journal.missing(&cause).await;
                return every;
            }
        };
        journal.there().await;
        self.tell(&scan, intake);
        memory.reconcile(&scan);
        memory.bound().await.ok();
        let full = scan.files.len() >= scan::WATCHED_MAX;
        let pause = began.elapsed().max(every);
        let settled = self.watch.settled(scan.files, Instant::now(), self.config.settle.0);
        // A long file takes its time, and each piece of it has a limit of its own: that is no sign of a file system that hangs.
        match self.take(settled, memory, intake, stop).await {
            Ok(0) => pause,
            // There may be more than one look remembers.
            Ok(_) if full => PAUSE_LEAST,
            Ok(_) => pause,
            Err(cause) => {
                if let Some(unsaid) = self.stays.speak() {
                    tracing::warn!(source = %intake.source(), cause, unsaid, "files are left where they are");
                }
                REFUSED_PAUSE
            }
        }
    }

    /// One look, when the folder is there and files can be put away.
    async fn look(&mut self, memory: &Memory) -> Result<Scan, String> {
        let (rules, asides, marker) = (Arc::clone(&self.rules), Arc::clone(&self.asides), self.config.marker.clone());
        let (tried, afterwards, asked) = (self.tried, self.settings.afterwards.clone(), memory.paths());
        let looked = self.settings.worker.act(move || {
            let shown = rules.root.display();
            let missing = |error: io::Error| format!("{shown} can't be looked into: {error}");
            if let Some(marker) = marker
                && rules.root.join(&marker).symlink_metadata().is_err()
            {
                return Err(format!("{shown} has no \"{marker}\" in it: mount the disk or share"));
            }
            let mut asides = asides.lock().unwrap_or_else(PoisonError::into_inner);
            if !tried {
                // What a crash left comes back before the look.
                away::recover(&rules.root).map_err(missing)?;
            }
            let scan = scan(&rules, &mut asides, &asked).map_err(missing)?;
            if !tried {
                away::can_put_away(&rules.root, &afterwards)?;
            }
            Ok(scan)
        });
        let scan = looked.await.unwrap_or_else(|error| Err(error.to_string()))?;
        self.tried = true;
        Ok(scan)
    }

    fn tell(&mut self, scan: &Scan, intake: &Intake) {
        intake.counters().rejected.add(scan.too_large);
        let closed = scan.closed;
        intake.counters().closed_folders.set(i64::try_from(closed).unwrap_or(i64::MAX));
        if std::mem::replace(&mut self.closed, closed) != closed && closed > 0 {
            tracing::warn!(source = %intake.source(), closed, "folders in the watched one can't be looked into: give this service the right to read them");
        }
        if scan.too_large > 0
            && let Some(unsaid) = self.left_alone.speak()
        {
            let (count, limit) = (scan.too_large, self.config.max_size);
            tracing::warn!(source = %intake.source(), count, %limit, unsaid, "files are larger than max-size and left where they are");
        }
    }

    /// Stores what has settled and puts it away; how many files that were.
    async fn take(
        &mut self,
        settled: Vec<Seen>,
        memory: &mut Memory,
        intake: &Intake,
        stop: &Stop,
    ) -> Result<usize, String> {
        let mut done = 0;
        let (mut again, mut new) = (Vec::new(), Vec::new());
        for seen in settled {
            match self.stuck.remove(&seen.path) {
                Some((stamp, id, held)) if stamp == seen.stamp => again.push((seen, id, held)),
                _ => new.push(seen),
            }
        }
        // What is not there any more, or has changed, is no concern of ours.
        self.stuck.clear();
        self.put_away(again, memory).await?;
        for batch in store::batches(new) {
            if stop.is_cancelled() {
                break;
            }
            let Taken { stored, unreadable, refused } = store::take(&self.settings, batch, memory, intake).await;
            done += stored.len();
            self.leave_alone(unreadable, intake);
            self.put_away(stored, memory).await?;
            if let Some(error) = refused {
                return Err(error);
            }
        }
        Ok(done)
    }

    /// Files that can't be read stop no other: they are tried again later.
    fn leave_alone(&self, unreadable: Vec<(Seen, io::Error)>, intake: &Intake) {
        let Some((_, error)) = unreadable.first() else { return };
        let count = unreadable.len();
        intake.counters().rejected.add(count as u64);
        if let Some(unsaid) = self.left_alone.speak() {
            tracing::warn!(source = %intake.source(), count, %error, unsaid, "files can't be read: look at their permissions");
        }
        let mut asides = self.asides.lock().unwrap_or_else(PoisonError::into_inner);
        for (seen, _) in &unreadable {
            asides.put(seen, false);
        }
    }

    async fn put_away(&mut self, stored: Vec<(Seen, MessageId, Held)>, memory: &mut Memory) -> Result<(), String> {
        if stored.is_empty() {
            return Ok(());
        }
        // What is stored and can't be put away now is known later.
        memory.read().await;
        let remembered: Vec<_> =
            stored.iter().map(|(seen, id, held)| (seen.path.clone(), (seen.stamp, *id, held.remembered()))).collect();
        let settings = Arc::clone(&self.settings);
        let put = self.settings.worker.act_in_time(move || put_all_away(&settings, stored));
        let failed = match put.await {
            Ok(Put { away, failed }) => {
                memory.forget(away.iter().map(PathBuf::as_path));
                failed
            }
            Err(error) => {
                // Which of them were put away is not known: those that are still there are stored, and wait for it.
                self.stuck.extend(remembered);
                self.tried = false;
                let hung = error.kind() == io::ErrorKind::TimedOut;
                return Err(if hung { HUNG.to_owned() } else { error.to_string() });
            }
        };
        let Some((_, _, _, error)) = failed.first() else { return Ok(()) };
        let error = error.to_string();
        self.stuck.extend(failed.into_iter().map(|(seen, id, held, _)| (seen.path, (seen.stamp, id, held))));
        self.tried = false;
        if self.stuck.len() >= STUCK_MAX {
            return Err(format!("{} stored files can't be put away ({error}): no more are taken", self.stuck.len()));
        }
        if let Some(unsaid) = self.stays.speak() {
            let path = self.config.path.display();
            tracing::warn!(%path, error, unsaid, "a stored file can't be put away: it is tried again");
        }
        Ok(())
    }
}

/// What became of stored files.
#[derive(Default)]
struct Put {
    /// They are put away.
    away: Vec<PathBuf>,
    /// They could not be, and why.
    failed: Vec<(Seen, MessageId, Held, io::Error)>,
}

/// Puts stored files away. One that is not there any more, or is another file now, is neither put away nor failed: the next look tells.
fn put_all_away(settings: &Settings, stored: Vec<(Seen, MessageId, Held)>) -> Put {
    let (places, mut put_all) = (Places::open(&settings.root, &settings.afterwards), Put::default());
    let mut paths = Vec::with_capacity(stored.len());
    for (seen, id, held) in stored {
        let put = match &places {
            Ok(places) => places.put_away(&seen, &held, id),
            Err(error) => Err(error.kind().into()),
        };
        paths.push(seen.path.clone());
        match put {
            Ok(true) => put_all.away.push(seen.path),
            Ok(false) => {}
            Err(error) => {
                let now = places.as_ref().ok().and_then(|places| places.now(&seen));
                put_all.failed.push((seen, id, held.let_go(now), error));
            }
        }
    }
    if let Ok(places) = &places {
        places.tidy(paths.iter().map(PathBuf::as_path));
        places.settle(put_all.away.iter().map(PathBuf::as_path));
    }
    put_all
}

/// Waits for the file system, and says so when it does not answer: a folder of very many files on a slow share takes its time.
async fn answered<T>(journal: &mut Journal, act: impl Future<Output = T>, progress: &AtomicU64) -> T {
    let mut act = pin!(act);
    let mut before = progress.load(Ordering::Relaxed);
    loop {
        tokio::select! {
            outcome = &mut act => return outcome,
            () = sleep(HUNG_AFTER) => {}
        }
        let now = progress.load(Ordering::Relaxed);
        if now == before {
            journal.missing(HUNG).await;
        }
        before = now;
    }
}
