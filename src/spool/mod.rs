//! The durable queue: append-only, encrypted logs. It knows bytes, not hospitals.
//!
//! # Promise
//!
//! When [`Draft::commit`] returned Ok the message is on stable storage, encrypted, with the upstreams that it is for. It stays
//! there until each of them took responsibility, or a person discarded it; what can't be kept is refused, and what is lost
//! (a damaged disk, a full telemetry log) is a record and an alarm. A second copy may be sent after a restart; its id tells.
//!
//! # Invariants
//!
//! * Nobody is told Ok before the sync that covers the record returned, and no lane reads what was not synced.
//! * A block that was synced is never written again in the same life of its file. After a failed write or sync the
//!   segment gets no more groups and no sync is repeated: the group goes to a fresh segment, under the same ids.
//! * After every start a new segment with a new random key is begun: no nonce is used twice, no old tail is adopted.
//! * Cursors, dead letters, sizes and ages are in the log; all that memory holds is rebuilt from it at every start.
//! * A file is wiped, and what is not live of it left out by compaction, by the cursors that are in the log and not by those in memory: what a
//!   start finds behind a cursor is all that was ever there, so that a lane never says old messages again without those behind them.
//!   (`compact` tells how cursors come there when space is short, and the one exception.)
//! * Order within a lane is the order of places; compaction keeps places and ids.
//! * Content leaves this room only through [`Lane`], [`Spool::message`] and what people ask for by name.
//!
//! # On disk (all numbers little endian)
//!
//! ```text
//! <path>/keyring.0, keyring.1      spool id and epoch keys, sealed by the root key, twice          (keys.rs)
//! <path>/keys-destroyed            only when a person destroyed the keys: when that was             (keys.rs)
//! <path>/recovery.age              the root key, sealed to the recovery recipients                  (escrow.rs)
//! <path>/index.redb                made again from the logs whenever it is not theirs               (index_file.rs, index.rs)
//! <path>/<log>/NNNNNN.seg          segment files of clinical, imaging and telemetry; the name says nothing
//!
//! segment   header · header · group · group · ... · trailer                                       (segment.rs)
//! group     clear header (32) · frame · frame · ... · zeros up to a multiple of 4096               (frame.rs)
//! frame     clear header (12: length, kind, lane tag, number) · ciphertext · tag (16)              (frame.rs)
//! record    the plaintext of a frame: postcard, for messages followed by bytes of the body         (record.rs)
//! ```
//!
//! | record | says | covers |
//! |---|---|---|
//! | OPENING | when, the segment before and how many groups it has, damage that is known | with CURSOR, DEAD and known GAP in the first group: the checkpoint |
//! | DATA | by what people find it; id if it is not derived, what the source said, digest (of images BLAKE3, else SHA-256), length, places of earlier pieces; last piece of the body | commits a message |
//! | FRAGMENT | stream number; a piece of up to 256 KiB | nothing by itself: without its DATA it is litter |
//! | CURSOR | lane, place | all of the lane up to and with the place is done |
//! | DEAD, DISCARD | message, upstream, why; who | a dead letter begins, ends |
//! | REPLAY | lane, message and its place | the message comes again in the lane, at this record's place |
//! | GAP | why, which segment, how many for which lanes | messages that are gone, or damage that a person took note of |
//! | FOOTER | for each lane count, bytes, first and last; what it refers to; times | the segment is closed |
//!
//! A place is a segment's order number and the record's number in it. A message's id is the random id of the segment that
//! first held it and its number there; a record that is written again elsewhere carries it.
//!
//! # Recovery
//!
//! 1. The keyring is opened; a wrong or missing key ends the start and changes nothing.
//! 2. Every file's header is read. Of two files with one order number the newest generation that is closed holds.
//! 3. A closed segment is known by its footer; every other one is scanned. A last group that is not whole is an ordinary power
//!    cut. A whole group behind one that is not is damage when it says that the other was synced before it, and so are fewer
//!    groups than the next OPENING names: quarantine. (Pieces of arriving bodies are synced by the commit that takes them over.)
//! 4. The newest checkpoint that is whole and all control records after it give cursors and dead letters; footers the backlogs.
//!    A compacted segment keeps its checkpoint, as it stood when the segment ended.
//! 5. What only a newer version can read is told and kept; lanes of its source make it a dead letter.
//! 6. The duplicate window: what the index holds, and the messages behind it that the logs hold. What was written and not
//!    closed is synced first, so that no second copy is answered for on the word of memory.
//!
//! # Space
//!
//! Files are prepared once and recycled; one is kept for compaction, a part of the active segment for control records, and of that a part for
//! cursors, so that draining is always possible (`compact`). For a time a full log may have
//! small files beyond its quota, together at most a segment, and a file for compaction that a power cut cost it before. There is no silent
//! expiry: delivered originals stay for `keep-delivered`, space permitting.
//!
//! # The rooms within
//!
//! `storage` (the disk as a trait) · `seal`, `keys` · `frame`, `record`, `segment`, `reader` · `log` (state), `batch`, `writer`, `requests`
//! (the way to it), `recovery`, `compact`, `live`, `keeper` · `index`, `index_file`, `fates` · `draft`, `duplicates`, `lanes`,
//! `operations`, `replay` (what the house sees) · `tokens` (by what people find messages) · `survey`
//! (reads all), `transfer`, `import` (from box to box) · `escrow`, `rescue` (a dead box) · `outside` (told without opening).

mod batch;
mod buffers;
mod compact;
mod draft;
mod duplicates;
mod escrow;
mod fates;
#[cfg(test)]
mod fates_tests;
mod frame;
mod import;
mod in_flight;
mod index;
mod index_file;
#[cfg(test)]
mod index_tests;
mod keeper;
#[cfg(test)]
mod keeping_tests;
mod keys;
mod lanes;
mod live;
mod log;
#[cfg(test)]
mod newer_tests;
mod operations;
#[cfg(test)]
mod order_tests;
mod outside;
#[cfg(test)]
mod pieces_tests;
mod reader;
mod record;
mod recovery;
mod replay;
mod requests;
mod rescue;
mod seal;
mod segment;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod space_tests;
mod storage;
#[cfg(test)]
mod strain_tests;
mod submit;
mod survey;
#[cfg(test)]
mod tests;
mod tokens;
mod transfer;
#[cfg(test)]
mod transfer_tests;
mod uptime;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};

pub use draft::{Draft, FRAGMENT_BYTES};
pub use escrow::{RECOVERY_BYTES_MAX, RECOVERY_FILE};
pub use fates::{Fate, Standing, Trace};
pub use import::{Import, ImportError, Imported};
pub use in_flight::{GATHERED_BYTES_MAX, IN_FLIGHT_BYTES_MAX, InFlight, STREAMED_BYTES_MAX};
pub use keys::{KeyError, parse_root};
pub use lanes::Lane;
pub use operations::RETIRED;
pub use outside::{check_root, is_empty, refuse_destroyed};
pub use record::Dead;
pub use replay::{ReplayOrder, Replayed};
pub use rescue::{Rescue, RescueError};
pub use seal::Secret;
pub use storage::{Disk, Storage};
pub use submit::{Submitted, Way};
pub use survey::{Damaged, Seen, Sight, Verified};
pub use transfer::{Tail, Writing};

use crate::envelope::{BodyError, Class, Envelope, MessageId, Stamp};
use crate::system::disk;
use crate::values::{ByteSize, Name, Problems, SecretRef, Section, Span};
use duplicates::Duplicates;
use index::Index;
use index_file::Owner;
use keys::Keyring;
use log::{Limits, Log, Parts};
use requests::Requests;
use tokens::Tokens;
use uptime::Uptime;
use writer::{Request, Writer};

/// Least quota of a log, in segments: one that is written, one that is free, one for compaction, one that is full.
const QUOTA_SEGMENTS_MIN: u64 = 4;

/// `[spool]`: where the logs live, their key, and how large each may grow.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SpoolConfig {
    /// The folder; made with mode 0700 when it is not there.
    pub path: PathBuf,
    /// The root key.
    pub key: SecretRef,
    /// age recipients who can read the disk of a dead box.
    #[serde(default)]
    pub recovery: Vec<String>,
    /// How long a second copy is recognised, counted in uptime.
    #[serde(default = "default_duplicate_window")]
    pub duplicate_window: Span,
    /// HL7, ASTM.
    #[serde(default)]
    pub clinical: LogConfig,
    /// DICOM.
    #[serde(default)]
    pub imaging: LogConfig,
    /// Device telemetry.
    #[serde(default)]
    pub telemetry: LogConfig,
}

/// `[spool.clinical]`, `[spool.imaging]`, `[spool.telemetry]`.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct LogConfig {
    /// Bytes on disk, all files of this log together.
    pub quota: Option<ByteSize>,
    /// How long delivered originals stay for replay, space permitting.
    pub keep_delivered: Option<Span>,
    /// What happens when the log is full; `drop-oldest` is for telemetry only.
    pub when_full: Option<WhenFull>,
}

/// What a full log does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenFull {
    /// New messages are refused; the device is told.
    Refuse,
    /// The oldest segment is dropped, after a GAP record that says so.
    DropOldest,
}

fn default_duplicate_window() -> Span {
    Span(Duration::from_secs(600))
}

impl SpoolConfig {
    /// The config of one log.
    pub fn log(&self, class: Class) -> &LogConfig {
        match class {
            Class::Clinical => &self.clinical,
            Class::Imaging => &self.imaging,
            Class::Telemetry => &self.telemetry,
        }
    }

    /// The quota of one log, in bytes: 8 GiB, 20 GiB and 1 GiB unless configured.
    pub fn quota(&self, class: Class) -> u64 {
        let default = match class {
            Class::Clinical => 8 << 30,
            Class::Imaging => 20 << 30,
            Class::Telemetry => 1 << 30,
        };
        self.log(class).quota.map_or(default, |quota| quota.0)
    }

    /// A quota that the disk does not have is no quota. Where the spool is not on this machine, its disk is not known.
    fn check_disk(&self, problems: &mut Problems) {
        let is_here = self.path.is_dir() || self.path.parent().is_some_and(Path::is_dir);
        let Some(space) = is_here.then(|| disk::space(&self.path).ok()).flatten() else { return };
        let all: u64 = Class::ALL.iter().map(|class| self.quota(*class)).sum();
        if all > space.total {
            let quotas: Vec<String> =
                Class::ALL.iter().map(|class| format!("{class} {}", ByteSize(self.quota(*class)))).collect();
            let text = format!(
                "the quotas are {} together ({}), and the whole disk has {}: it is full before they are. Lower them",
                ByteSize(all),
                quotas.join(", "),
                ByteSize(space.total >> 20 << 20)
            );
            problems.warn("path", text);
        }
    }

    fn limits(&self, class: Class) -> Limits {
        let log = self.log(class);
        Limits {
            quota: self.quota(class),
            segment_bytes: segment::segment_bytes(class),
            keep_delivered: log.keep_delivered.map_or(Duration::from_secs(7 * 86_400), |span| span.0),
            drop_oldest: log.when_full == Some(WhenFull::DropOldest),
        }
    }
}

impl Section for SpoolConfig {
    fn check(&self, problems: &mut Problems) {
        for class in Class::ALL {
            let least = QUOTA_SEGMENTS_MIN * segment::segment_bytes(class);
            problems.under(class.as_str(), |problems| {
                if self.quota(class) < least {
                    problems.error("quota", format!("too small: this log needs at least {}", ByteSize(least)));
                }
                if class != Class::Telemetry && self.log(class).when_full == Some(WhenFull::DropOldest) {
                    problems.error("when-full", "only telemetry may drop its oldest; write \"refuse\" or leave it out");
                }
            });
        }
        self.check_disk(problems);
        for recipient in &self.recovery {
            if recipient.parse::<age::x25519::Recipient>().is_err() {
                problems.error("recovery", format!("\"{recipient}\" is not an age recipient (age1...)"));
            }
        }
    }

    fn files(&mut self, visit: &mut dyn FnMut(&mut SecretRef)) {
        visit(&mut self.key);
    }
}

/// Why a message was not committed. The source turns it into its protocol's own words; both are for the device to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// The log has no room; it comes back by itself when messages are delivered.
    #[error("the log is full")]
    Full,
    /// The disk failed; a person must look after it.
    #[error("the spool has failed")]
    Failed,
}

/// How a commit ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Committed {
    /// On stable storage under this id.
    Stored(MessageId),
    /// The same, and flagged: another message with its worldwide unique id and different bytes is in the duplicate window.
    Differing(MessageId),
    /// A second copy of a message that is on stable storage under this id; not stored again.
    Repeat(MessageId),
}

/// A place in a log: segment's order number and the record's number in it. Order of places is order of commits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Place {
    /// The segment's order number.
    pub segment: u64,
    /// The record's number in its segment.
    pub ordinal: u32,
}

/// What a lane holds at one place.
pub struct Entry {
    /// Where; for [`Lane::advance`] and [`Lane::bury`].
    pub place: Place,
    /// The message's id.
    pub id: MessageId,
    /// The message, or why it can't be read back.
    pub content: Result<Arc<Envelope>, BodyError>,
}

/// Why a spool can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Keys: exit code 78.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The disk.
    #[error("the spool can't be read: {0}")]
    Io(#[from] std::io::Error),
}

/// The spool, opened. Cheap to clone; [`Spool::close`] ends it for all.
#[derive(Clone)]
pub struct Spool {
    inner: Arc<Inner>,
}

struct Inner {
    logs: [Opened; 3],
    uptime: Arc<Uptime>,
    duplicates: Arc<Duplicates>,
    tokens: Tokens,
    index: Arc<Index>,
    in_flight: InFlight,
    streams: AtomicU64,
    threads: Mutex<Vec<JoinHandle<()>>>,
    keeper: mpsc::Sender<()>,
    destroyed: AtomicBool,
}

struct Opened {
    log: Arc<Log>,
    requests: Requests,
    spool_id: [u8; 16],
}

impl Spool {
    /// Opens a spool, or makes one when the folder holds none. Reads what the logs hold; writes nothing to them yet.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(storage: Arc<dyn Storage>, root: Secret, config: &SpoolConfig) -> Result<Self, OpenError> {
        Self::open_with(storage, root, config, |class| config.limits(class))
    }

    fn open_with(
        storage: Arc<dyn Storage>,
        root: Secret,
        config: &SpoolConfig,
        limits: impl Fn(Class) -> Limits,
    ) -> Result<Self, OpenError> {
        for class in Class::ALL {
            storage.make_folder(class.as_str())?;
        }
        let empty = !recovery::has_segments(&*storage)?;
        let keyring = Keyring::open(&*storage, root, empty)?;
        escrow::keep(&*storage, keyring.root(), &config.recovery)?;
        let keyring = Arc::new(Mutex::new(keyring));
        let uptime = Arc::new(Uptime::new(0));
        let mut threads = Vec::new();
        let mut open = |class: Class| {
            let parts = Parts {
                class,
                storage: Arc::clone(&storage),
                keyring: Arc::clone(&keyring),
                uptime: Arc::clone(&uptime),
                limits: limits(class),
            };
            open_log(parts, &mut threads)
        };
        let logs = [open(Class::Clinical)?, open(Class::Imaging)?, open(Class::Telemetry)?];
        let (duplicates, index) = open_index(storage, &keyring, config, &logs);
        let tokens = Tokens::new(&keyring.lock().unwrap_or_else(PoisonError::into_inner).derived("tokens"));
        let (keeper, asked) = mpsc::channel();
        let watch =
            |opened: &Opened| keeper::Watched { log: Arc::clone(&opened.log), requests: opened.requests.clone() };
        let watched: Vec<keeper::Watched> = logs.iter().map(watch).collect();
        let followed = Arc::clone(&index);
        threads.push(thread("keeper", move || keeper::run(&watched, &followed, &asked))?);
        let inner = Inner {
            logs,
            uptime,
            duplicates,
            tokens,
            index,
            in_flight: InFlight::default(),
            streams: AtomicU64::new(1),
            threads: Mutex::new(threads),
            keeper,
            destroyed: AtomicBool::new(false),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Begins a message of `source` in one of the logs.
    pub fn begin(&self, class: Class, source: &Name) -> Draft {
        let opened = self.opened(class);
        let stream = self.inner.streams.fetch_add(1, Ordering::Relaxed);
        let duplicates = Arc::clone(&self.inner.duplicates);
        Draft::new(Arc::clone(&opened.log), opened.requests.clone(), duplicates, source.clone(), stream)
    }

    /// This moment, in wall clock and uptime.
    pub fn now(&self) -> Stamp {
        self.inner.uptime.stamp()
    }

    /// The budget for bytes in memory on their way in.
    pub fn in_flight(&self) -> &InFlight {
        &self.inner.in_flight
    }

    /// The lane from a source to an upstream, from its cursor on; made when it is new. One holder at a time: the caller answers for it.
    pub fn lane(&self, class: Class, source: &Name, upstream: &Name) -> Lane {
        let opened = self.opened(class);
        let tag = source_tag(&opened.spool_id, source);
        Lane::new((source.clone(), upstream.clone()), Arc::clone(&opened.log), opened.requests.clone(), tag)
    }

    /// Makes files ready for a log that will be used, so that the first message need not wait for them; those of images are made by
    /// the keeper, while none come. Blocks.
    pub fn prepare(&self, class: Class) {
        let log = &self.opened(class).log;
        log.state().expected = true;
        while class != Class::Imaging && compact::prepare(log) == compact::Prepared::Some {}
    }

    /// Writes cursors and footers and ends the threads. What comes later is refused. Blocks for the last syncs.
    pub fn close(&self) {
        for opened in &self.inner.logs {
            opened.requests.send(Request::Stop);
        }
        // It may have ended already.
        self.inner.keeper.send(()).ok();
        let threads = std::mem::take(&mut *self.inner.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the spool ended badly");
            }
        }
        self.inner.index.apply(&logs_of(&self.inner.logs));
    }

    fn opened(&self, class: Class) -> &Opened {
        let [clinical, imaging, telemetry] = &self.inner.logs;
        match class {
            Class::Clinical => clinical,
            Class::Imaging => imaging,
            Class::Telemetry => telemetry,
        }
    }
}

/// Which source a frame belongs to, without its name: lanes skip what is not theirs. Never 0.
fn source_tag(spool: &[u8; 16], source: &Name) -> u16 {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(spool);
    context.update(source.as_str().as_bytes());
    let hash = context.finish();
    hash.as_ref().first_chunk().map_or(1, |bytes| u16::from_le_bytes(*bytes).max(1))
}

fn logs_of(opened: &[Opened; 3]) -> [Arc<Log>; 3] {
    opened.each_ref().map(|opened| Arc::clone(&opened.log))
}

/// The duplicate window, filled with what was stored before this start, and the index that it comes from.
fn open_index(
    storage: Arc<dyn Storage>,
    keyring: &Mutex<Keyring>,
    config: &SpoolConfig,
    logs: &[Opened; 3],
) -> (Arc<Duplicates>, Arc<Index>) {
    let keys = keyring.lock().unwrap_or_else(PoisonError::into_inner);
    let (secret, owner) = (keys.derived("duplicates"), Owner::new(keys.spool, keys.derived("index").bytes()));
    drop(keys);
    let window_ms = u64::try_from(config.duplicate_window.0.as_millis()).unwrap_or(u64::MAX);
    let duplicates = Arc::new(Duplicates::new(secret, window_ms));
    let logs = logs.each_ref().map(|opened| &*opened.log);
    let index = Index::open(storage, owner, Arc::clone(&duplicates), &logs);
    (duplicates, Arc::new(index))
}

fn open_log(parts: Parts, threads: &mut Vec<JoinHandle<()>>) -> Result<Opened, OpenError> {
    let class = parts.class;
    let (recovered, spool_id) = {
        let keyring = parts.keyring.lock().unwrap_or_else(PoisonError::into_inner);
        (recovery::recover(&*parts.storage, class, parts.limits.segment_bytes, &keyring)?, keyring.spool)
    };
    parts.uptime.at_least(recovered.uptime_ms);
    let log = Arc::new(Log::new(parts, recovered.state));
    let (requests, queue) = requests::open(Writer::new(Arc::clone(&log), recovered.next_order));
    threads.push(thread(class.as_str(), move || queue.serve())?);
    Ok(Opened { log, requests, spool_id })
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(format!("spool-{name}")).spawn(work)
}
