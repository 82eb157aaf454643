//! The spool of a dead box, opened with the hospital's recovery identity and only ever read.
//!
//! The files are opened for reading alone and the storage refuses every change, so that what stands on the disk stays as it
//! was found: a second look, or a better one, must remain possible.

use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::keys::{KeyError, Keyring};
use super::log::{Limits, Log, Parts};
use super::storage::{ReadOnlyDisk, Storage};
use super::survey::{Damaged, Sight, survey};
use super::uptime::Uptime;
use super::{Secret, recovery, segment};
use crate::envelope::Class;

/// Why the spool of a dead box can't be read.
#[derive(Debug, thiserror::Error)]
pub enum RescueError {
    /// The keyring can't be had.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The disk.
    #[error("the spool can't be read: {0}")]
    Io(#[from] io::Error),
}

/// See the module.
pub struct Rescue {
    logs: Vec<Arc<Log>>,
}

impl Rescue {
    /// Opens the spool in `folder` with its root key. Blocks: reads what the last start of the box would have read.
    ///
    /// # Errors
    /// [`RescueError`].
    pub fn open(folder: &Path, root: Secret) -> Result<Self, RescueError> {
        Self::open_on(Arc::new(ReadOnlyDisk::new(folder)), root)
    }

    pub(super) fn open_on(storage: Arc<dyn Storage>, root: Secret) -> Result<Self, RescueError> {
        let keyring = Arc::new(Mutex::new(Keyring::open(&*storage, root, false)?));
        let uptime = Arc::new(Uptime::new(0));
        let open = |class: Class| {
            let limits = Limits {
                quota: u64::MAX,
                segment_bytes: segment::segment_bytes(class),
                keep_delivered: std::time::Duration::MAX,
                drop_oldest: false,
            };
            let keys = keyring.lock().unwrap_or_else(PoisonError::into_inner);
            let recovered = recovery::recover(&*storage, class, limits.segment_bytes, &keys)?;
            drop(keys);
            let (storage, keyring, uptime) = (Arc::clone(&storage), Arc::clone(&keyring), Arc::clone(&uptime));
            Ok(Arc::new(Log::new(Parts { class, storage, keyring, uptime, limits }, recovered.state)))
        };
        Ok(Self { logs: Class::ALL.into_iter().map(open).collect::<io::Result<_>>()? })
    }

    /// Shows every message that is held to `see`, as [`Spool::survey`](super::Spool::survey) does, and all that can't be read.
    ///
    /// # Errors
    /// As the disk gives them.
    pub fn survey(&self, see: &mut dyn FnMut(Sight) -> ControlFlow<()>) -> io::Result<()> {
        survey(&self.logs, see)?;
        for log in &self.logs {
            let state = log.state();
            let lost = "records that were synced are missing or damaged";
            let file =
                |order: &u64| state.segments.get(order).map(|held| held.segment.name.clone()).unwrap_or_default();
            let quarantined = state.quarantined.iter().map(|order| (*order, file(order), lost.to_owned()));
            let unknown = "it is under a key that is not in the keyring";
            let foreign = state.foreign.iter().map(|name| (0, name.clone(), unknown.to_owned()));
            let damage: Vec<(u64, String, String)> = quarantined.chain(foreign).collect();
            drop(state);
            for (segment, file, text) in damage {
                if see(Sight::Damage(Damaged { class: log.class, segment, file, text })).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}
