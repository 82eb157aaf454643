//! What the rest of the house needs of the file system beside the spool's own files: free space, one owner for a folder,
//! and small files that are replaced whole or not at all. For the spool's files the one call that the standard library lacks.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::libc;
use nix::sys::statvfs::statvfs;

/// The file in a locked folder that carries the lock and the owner's process id.
pub const LOCK_FILE: &str = "lock";

/// Longest process id that is read from a lock file, in bytes.
const PID_BYTES_MAX: u64 = 20;

/// Room on the file system that holds a path, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Space {
    /// The file system's size.
    pub total: u64,
    /// What a process without special rights may still write.
    pub free: u64,
}

/// Room on the file system that holds `path`, or its nearest folder that exists.
///
/// # Errors
/// Those of `statvfs`.
pub fn space(path: &Path) -> io::Result<Space> {
    let existing = path.ancestors().find(|folder| folder.exists()).unwrap_or_else(|| Path::new("/"));
    let found = statvfs(existing)?;
    #[allow(clippy::useless_conversion)] // the fields are 32 bits wide on armv7
    let [fragment, blocks, available]: [u64; 3] =
        [found.fragment_size().into(), found.blocks().into(), found.blocks_available().into()];
    Ok(Space { total: fragment.saturating_mul(blocks), free: fragment.saturating_mul(available) })
}

/// Whether a folder is there; `None` when the file system does not say so in time. What hangs on a share that is away keeps a thread for
/// as long as it hangs: for what is asked seldom.
pub fn is_folder(path: &Path, patience: Duration) -> Option<bool> {
    let path = path.to_owned();
    answered_within(patience, move || path.is_dir())
}

/// What `act` gives, which may hang; `None` when it takes longer.
fn answered_within<T: Send + 'static>(patience: Duration, act: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (tell, told) = sync_channel(1);
    let asking = thread::Builder::new().name("disk-asks".into());
    asking.spawn(move || tell.send(act()).ok()).ok()?;
    told.recv_timeout(patience).ok()
}

/// Begins to write a part of a file's dirty pages to the disk, and does not wait for it. No promise: what is durable is known
/// after a sync only, and an error on the way is told by that.
///
/// # Errors
/// Those of `sync_file_range`.
#[allow(unsafe_code)] // nix has no name for this call
pub fn start_writing(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let number = |value: u64| i64::try_from(value).map_err(io::Error::other);
    let (fd, offset, length) = (file.as_raw_fd(), number(offset)?, number(length)?);
    // SAFETY: the call takes numbers only, and the descriptor is open while this runs.
    let code = unsafe { libc::sync_file_range(fd, offset, length, libc::SYNC_FILE_RANGE_WRITE) };
    Ok(Errno::result(code).map(drop)?)
}

/// Replaces the file `path` by one with these bytes: after a crash there is the old content or the new, never a mixture.
///
/// # Errors
/// Those of the file system; the old file then stands.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(".new");
    let temporary = folder.join(name);
    // A leftover of a crash must neither be kept nor lend the new file its mode.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_folder(folder)
}

/// Overwrites a file with zeros and removes it, durably; one that is not there counts as done.
///
/// # Errors
/// Those of the file system.
pub fn erase(path: &Path) -> io::Result<()> {
    let mut file = match OpenOptions::new().write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let length = file.metadata()?.len();
    io::copy(&mut io::repeat(0).take(length), &mut file)?;
    file.sync_all()?;
    fs::remove_file(path)?;
    sync_folder(path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new(".")))
}

/// Makes the entries of a folder durable: new files, renames, removals.
///
/// # Errors
/// Those of the file system.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Why a folder could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error("\"{}\" is in use by process {holder}: stop that one first, or use another folder", folder.display())]
    Held {
        /// The folder.
        folder: PathBuf,
        /// The other's process id, or "(unknown)".
        holder: String,
    },
    /// The lock file can't be made or locked.
    #[error("\"{}\" can't be locked: {cause}", folder.display())]
    Io {
        /// The folder.
        folder: PathBuf,
        /// The system's words.
        cause: io::Error,
    },
}

/// A folder that belongs to this process alone, until it is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct FolderLock {
    _file: Flock<File>,
}

impl FolderLock {
    /// Locks the folder by `flock` on its file [`LOCK_FILE`].
    ///
    /// # Errors
    /// [`LockError::Held`] with the holder's process id when another process, or another part of this one, has it.
    pub fn acquire(folder: &Path) -> Result<Self, LockError> {
        let failed = |cause: io::Error| LockError::Io { folder: folder.to_owned(), cause };
        let path = folder.join(LOCK_FILE);
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        match Flock::lock(file.map_err(failed)?, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                file.set_len(0).map_err(failed)?;
                writeln!(&mut *file, "{}", std::process::id()).map_err(failed)?;
                Ok(Self { _file: file })
            }
            Err((file, Errno::EWOULDBLOCK)) => {
                Err(LockError::Held { folder: folder.to_owned(), holder: holder(&file) })
            }
            Err((_, errno)) => Err(failed(errno.into())),
        }
    }
}

fn holder(file: &File) -> String {
    let mut text = String::new();
    let read = file.take(PID_BYTES_MAX).read_to_string(&mut text);
    let pid = text.trim_end();
    let known = read.is_ok() && !pid.is_empty() && pid.chars().all(|c| c.is_ascii_digit());
    if known { pid.to_owned() } else { "(unknown)".to_owned() }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_system_that_never_answers_holds_nobody_up() {
        let (answer, hangs) = sync_channel::<()>(1);
        let hung = answered_within(Duration::from_millis(20), move || hangs.recv().is_ok());
        assert_eq!(hung, None);
        answer.send(()).ok();
        let folder = tempfile::tempdir().unwrap();
        let patience = Duration::from_secs(60);
        assert_eq!(is_folder(folder.path(), patience), Some(true));
        assert_eq!(is_folder(&folder.path().join("none"), patience), Some(false));
    }

    #[test]
    fn a_folder_has_one_owner_and_the_second_is_told_who() {
        let folder = tempfile::tempdir().unwrap();
        let first = FolderLock::acquire(folder.path()).unwrap();
        let words = FolderLock::acquire(folder.path()).unwrap_err().to_string();
        assert!(words.contains(&format!("is in use by process {}: stop", std::process::id())), "{words}");
        drop(first);
        FolderLock::acquire(folder.path()).unwrap();
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let words = FolderLock::acquire(Path::new("/nonexistent/spool")).unwrap_err().to_string();
        assert!(words.starts_with("\"/nonexistent/spool\" can't be locked: "), "{words}");
    }

    #[test]
    fn a_replaced_file_has_the_new_bytes_and_mode_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        fs::write(folder.path().join("state.new"), "left by a crash, and longer than what follows").unwrap();
        replace(&path, b"one", 0o600).unwrap();
        replace(&path, b"two", 0o640).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn space_is_known_for_a_folder_that_is_yet_to_be_made() {
        let folder = tempfile::tempdir().unwrap();
        let found = space(&folder.path().join("not/there/yet")).unwrap();
        assert!(found.total > 0 && found.free <= found.total);
    }
}
