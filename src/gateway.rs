//! The wiring: the one file in which the whole system can be seen being put together.
//!
//! [`Gateway::start`] opens the spool and starts a forwarder for each upstream and an intake for each source;
//! [`Gateway::reload`] compares the parts that run with those of a changed configuration and starts and stops only what
//! differs; [`Gateway::stop`] drains. The spool is never closed in between. What people ask of it is in [`verbs`].

mod burials;
mod carry;
mod find;
mod forms;
mod keyfile;
mod parts;
mod reports;
mod verbs;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use crate::admin::alarms;
use crate::admin::events::{self, Announcer};
use crate::config::{self, LoadError, Loaded};
use crate::source::SourceConfig;
use crate::spool::{Disk, OpenError, Spool};
use crate::status::{Alarm, Counter, PARTS_STAGE, Status, Turns};
use crate::system::clock;
use crate::system::disk::{FolderLock, LockError};
use crate::system::sockets::Sockets;
use crate::upstream::UpstreamConfig;
use crate::values::counted;
use keyfile::KeyFileError;
use parts::Parts;

/// A configuration of this gateway.
pub type Config = config::Config<SourceConfig, UpstreamConfig>;

/// How long a stop waits for sources and forwarders before the spool is closed under them.
const DRAIN_MAX: Duration = Duration::from_secs(20);
/// How often the status that goes upstream is looked at anew.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);
/// How often the right time is remembered.
const CLOCK_INTERVAL: Duration = Duration::from_secs(3600);
/// The small file beside the logs in which the last right time is kept.
const CLOCK_FILE: &str = "last-synchronised";

/// A running gateway.
pub struct Gateway {
    /// The configuration file, read again on reload.
    file: PathBuf,
    spool: Spool,
    parts: Mutex<Parts>,
    /// Grows with each look at the parts.
    looks: Counter,
    /// Held by the one import that may be under way.
    importing: Mutex<()>,
    status: watch::Sender<Arc<Status>>,
    started: Instant,
    /// What the last check of all records found damaged.
    damaged: std::sync::Mutex<Vec<Alarm>>,
    /// Why the last reload was refused, until one is taken.
    refused: std::sync::Mutex<Option<String>>,
    _lock: FolderLock,
}

/// Why a gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration has problems.
    #[error(transparent)]
    Config(#[from] LoadError),
    /// The spool's folder can't be made or is another process's.
    #[error(transparent)]
    Folder(#[from] LockError),
    /// The root key can't be read.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// The spool can't be opened.
    #[error("{}: {cause}", path.display())]
    Spool {
        /// Its folder.
        path: PathBuf,
        /// Why.
        cause: OpenError,
    },
    /// Something of the system.
    #[error("{doing}: {cause}")]
    Io {
        /// What was being done.
        doing: String,
        /// The system's words.
        cause: std::io::Error,
    },
}

/// Why a changed configuration was not applied. What ran before runs on.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The file has problems.
    #[error("the changed configuration has problems and changes nothing:\n{0}")]
    Config(#[from] LoadError),
    /// A part of it can't be applied.
    #[error("the changed configuration is not applied: {0}")]
    Refused(String),
}

impl Gateway {
    /// Starts everything that `config` (read from `file`) names; what listens takes its socket from `sockets`. A source or upstream that can't be opened yet is tried again
    /// by itself; only the spool must be there.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(file: &Path, config: Config, sockets: Sockets) -> Result<Arc<Self>, StartError> {
        let path = config.spool.path.clone();
        let disk = Disk::open(&path)
            .map_err(|cause| StartError::Io { doing: format!("can't make {}", path.display()), cause })?;
        let lock = FolderLock::acquire(&path)?;
        if let Some(at) = clock::recall(&path.join(CLOCK_FILE)) {
            clock::remember(at);
        }
        let root = keyfile::root_key(&config.spool)?;
        let settings = config.spool.clone();
        let spool = tokio::task::spawn_blocking(move || Spool::open(Arc::new(disk), root, &settings)).await;
        let spool = match spool {
            Ok(Ok(spool)) => spool,
            Ok(Err(cause)) => return Err(StartError::Spool { path, cause }),
            Err(error) => return Err(StartError::Io { doing: "can't open the spool".into(), cause: error.into() }),
        };
        let status = watch::Sender::new(Arc::new(Status::default()));
        let mut parts = Parts::new(spool.clone(), status.subscribe(), &config, sockets);
        let troubles = parts.settle(&config).await;
        for trouble in troubles.into_iter().chain(parts.keep_recovery().await.err()) {
            tracing::error!("{trouble}");
        }
        parts.put_in_force().await;
        let gateway = Self {
            file: file.to_owned(),
            spool,
            parts: Mutex::new(parts),
            looks: Counter::default(),
            importing: Mutex::default(),
            status,
            started: Instant::now(),
            damaged: std::sync::Mutex::default(),
            refused: std::sync::Mutex::default(),
            _lock: lock,
        };
        Ok(Arc::new(gateway))
    }

    /// Reads the configuration file again and applies what changed, part by part.
    ///
    /// # Errors
    /// [`ReloadError`]; everything is then as it was.
    pub async fn reload(&self) -> Result<(), ReloadError> {
        let outcome = self.try_reload().await;
        let refused = outcome.as_ref().err().map(ToString::to_string);
        *self.refused.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = refused;
        outcome
    }

    async fn try_reload(&self) -> Result<(), ReloadError> {
        let file = self.file.clone();
        let loaded = tokio::task::spawn_blocking(move || config::load::<SourceConfig, UpstreamConfig>(&file)).await;
        let Loaded { config, report } = loaded.map_err(|error| ReloadError::Refused(error.to_string()))??;
        if report.warnings() > 0 {
            tracing::warn!("{report}");
        }
        let mut parts = self.parts.lock().await;
        parts.check_change(&config).map_err(ReloadError::Refused)?;
        let before = parts.config().clone();
        let outcome = match parts.settle(&config).await.into_iter().next() {
            Some(trouble) => Err(trouble),
            None => parts.keep_recovery().await,
        };
        let Err(trouble) = outcome else {
            parts.put_in_force().await;
            tracing::info!(
                target: events::TARGET, message_id = events::CONFIG_IN_FORCE, wardgate_config = config.fingerprint(),
                "the changed configuration is in force"
            );
            return Ok(());
        };
        for trouble in parts.settle(&before).await {
            tracing::error!("while the former configuration was put back: {trouble}");
        }
        parts.put_in_force().await;
        Err(ReloadError::Refused(format!("{trouble}. The former configuration is in force again")))
    }

    /// Does what must be done now and then, until `stop`: the status for upstreams, the memory of the time. Runs as a task of
    /// its own: it takes locks in turn with others, and one that waits for a lock must always be polled.
    pub async fn tend(self: Arc<Self>, stop: CancellationToken) {
        let mut remembered: Option<Instant> = None;
        let mut announcer = Announcer::default();
        while !stop.is_cancelled() {
            // A person who hung up in the middle of an import may have left messages in lanes that are new.
            self.parts.lock().await.serve_new_lanes().await;
            let status = self.snapshot().await;
            announcer.tell(&status.alarms);
            self.status.send_replace(Arc::new(status));
            if remembered.is_none_or(|at| at.elapsed() >= CLOCK_INTERVAL) {
                remembered = Some(Instant::now());
                let path = self.parts.lock().await.config().spool.path.join(CLOCK_FILE);
                if let Err(error) = clock::tend(&path) {
                    tracing::warn!(%error, "the right time can't be kept for the next start");
                }
            }
            stop.run_until_cancelled(tokio::time::sleep(STATUS_INTERVAL)).await;
        }
    }

    /// Takes no new message, answers what is committed, waits shortly for receipts, closes the spool.
    pub async fn stop(&self) {
        let drained = async { self.parts.lock().await.stop().await };
        if tokio::time::timeout(DRAIN_MAX, drained).await.is_err() {
            tracing::warn!("not everything ended within {} s; what was acknowledged is on disk", DRAIN_MAX.as_secs());
        }
        let spool = self.spool.clone();
        if tokio::task::spawn_blocking(move || spool.close()).await.is_err() {
            tracing::error!("the spool was not closed well; the next start reads it as after a power cut");
        }
    }

    /// The turns of each stage. While a configuration is being applied the parts can't be seen: then only the spool's.
    pub fn turns(&self) -> Turns {
        let mut turns = self.spool.turns();
        if let Ok(parts) = self.parts.try_lock() {
            self.looks.one();
            turns.extend(parts.turns());
        }
        turns.insert(PARTS_STAGE.to_owned(), self.looks.value());
        turns
    }

    /// One line for `systemctl status`, of the last snapshot.
    pub fn headline(&self) -> Option<String> {
        let status = Arc::clone(&self.status.borrow());
        let (waiting, _) = status.backlog();
        let line = format!(
            "{} at {}: {}, {}, {} waiting, {}",
            status.gateway,
            status.site,
            counted(status.sources.len() as u64, "source"),
            counted(status.upstreams.len() as u64, "upstream"),
            counted(waiting, "message"),
            counted(status.alarms.len() as u64, "alarm")
        );
        // There is none before the first.
        (!status.gateway.is_empty()).then_some(line)
    }

    /// How everything stands.
    pub async fn snapshot(&self) -> Status {
        let parts = self.parts.lock().await;
        let config = parts.config();
        let mut status = Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            gateway: config.gateway.name.to_string(),
            site: config.gateway.site.to_string(),
            running_s: self.started.elapsed().as_secs(),
            since: since(self.started.elapsed()),
            config: config.fingerprint(),
            sources: parts.sources(),
            upstreams: parts.upstreams(),
            lanes: self.spool.lanes(),
            logs: self.spool.logs(),
            cipher: self.spool.cipher().to_owned(),
            index_written: self.spool.index_written(),
            alarms: self.spool.alarms(),
        };
        status.alarms.extend(parts.alarms());
        status.alarms.extend(clock_alarm());
        drop(parts);
        let damaged = self.damaged.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        // The check names files, which is more than the spool says by itself.
        status
            .alarms
            .retain(|alarm| !damaged.iter().any(|found| (&found.code, &found.about) == (&alarm.code, &alarm.about)));
        status.alarms.extend(damaged);
        let refused = self.refused.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        status.alarms.extend(refused.map(|text| Alarm {
            code: "config-refused".into(),
            about: "configuration".into(),
            // Without the lines of the file that the full report shows; they are in the log and in `wardgate check`.
            text: text.lines().filter(|line| !line.starts_with(' ')).collect::<Vec<_>>().join(" "),
        }));
        let derived = alarms::derive(&status);
        let new = derived
            .into_iter()
            .filter(|alarm| !status.alarms.iter().any(|known| known.about == alarm.about && known.code == alarm.code));
        let new: Vec<Alarm> = new.collect();
        status.alarms.extend(new);
        status
    }
}

/// A clock that can't be right. Nothing is refused for it; who reads the times must know.
fn clock_alarm() -> Option<Alarm> {
    let text = clock::doubt()?.to_string();
    Some(Alarm { code: "clock".into(), about: "clock".into(), text })
}

/// When that was, by the clock as it is now: a clock that is set right later makes this right, too.
fn since(elapsed: Duration) -> String {
    let then = jiff::Timestamp::now().checked_sub(elapsed).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    format!("{then:.0}")
}
