//! All file access of the spool goes through [`Storage`], so that tests can run it on a disk that loses power.
//!
//! Names are relative to the spool's folder, with `/` between folders. Nothing here knows what is in a file, and nothing
//! here retries: after a failed write or sync the caller must not use the same descriptor for the same bytes again.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use crate::system::disk;

/// A folder on a disk.
pub trait Storage: Send + Sync + 'static {
    /// Whether anything may be changed here: the disk of a dead box is only read.
    fn is_writable(&self) -> bool {
        true
    }
    /// Makes a new, empty file. Fails when it is there.
    ///
    /// # Errors
    /// As the disk gives them.
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>>;
    /// Opens a file for reading and writing.
    ///
    /// # Errors
    /// As the disk gives them; `NotFound` when it is not there.
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>>;
    /// Names of the files in a folder, without the folder; none when the folder is not there.
    ///
    /// # Errors
    /// As the disk gives them.
    fn list(&self, folder: &str) -> io::Result<Vec<String>>;
    /// Makes a folder (and those above it) when it is not there.
    ///
    /// # Errors
    /// As the disk gives them.
    fn make_folder(&self, folder: &str) -> io::Result<()>;
    /// Gives a file another name, replacing what has it. Durable after [`Storage::sync_folder`].
    ///
    /// # Errors
    /// As the disk gives them.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file. Durable after [`Storage::sync_folder`].
    ///
    /// # Errors
    /// As the disk gives them.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes creations, renames and removals in a folder durable.
    ///
    /// # Errors
    /// As the disk gives them.
    fn sync_folder(&self, folder: &str) -> io::Result<()>;
}

/// An open file.
pub trait File: Send + Sync {
    /// Fills `buffer` from `offset`. `UnexpectedEof` when the file is shorter.
    ///
    /// # Errors
    /// As the disk gives them.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `bytes` at `offset`. Durable after [`File::sync`].
    ///
    /// # Errors
    /// As the disk gives them.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Begins to bring what was written there to the disk, so that the sync which makes it durable has less left to do. A hint:
    /// says nothing about success, and waits for nothing.
    fn start_writing(&self, _offset: u64, _length: u64) {}
    /// Makes what was written durable, with the file's length.
    ///
    /// # Errors
    /// As the disk gives them. After an error nothing may be assumed about what was written since the last good sync.
    fn sync(&self) -> io::Result<()>;
    /// Length in bytes.
    ///
    /// # Errors
    /// As the disk gives them.
    fn length(&self) -> io::Result<u64>;
    /// Cuts or extends (with zeros).
    ///
    /// # Errors
    /// As the disk gives them.
    fn set_length(&self, length: u64) -> io::Result<()>;
    /// Reserves blocks up to `length` and extends the file to it, so that writing there needs no room any more.
    ///
    /// # Errors
    /// As the disk gives them: `StorageFull` when there is no room.
    fn allocate(&self, length: u64) -> io::Result<()>;
}

/// Reads a whole small file; `None` when it is not there.
///
/// # Errors
/// As the disk gives them, and `InvalidData` when it is longer than `bytes_max`.
pub fn read_small(storage: &dyn Storage, name: &str, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match storage.open(name) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let length = file.length()?;
    let size = usize::try_from(length).ok().filter(|_| length <= bytes_max);
    let mut bytes = vec![0; size.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "file is too long"))?];
    file.read_at(&mut bytes, 0)?;
    Ok(Some(bytes))
}

/// Writes a whole small file so that a power cut leaves either the old or the new one: temporary file, sync, rename, sync.
///
/// # Errors
/// As the disk gives them.
pub fn replace_small(storage: &dyn Storage, folder: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = format!("{name}.tmp");
    match storage.remove(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = storage.create(&temporary)?;
    file.write_at(bytes, 0)?;
    file.sync()?;
    storage.rename(&temporary, name)?;
    storage.sync_folder(folder)
}

/// Overwrites a small file with zeros and removes it; one that is not there counts as done. On flash the old block may still be
/// found by a laboratory: what was in the file must be worthless without another secret.
///
/// # Errors
/// As the disk gives them.
pub fn erase_small(storage: &dyn Storage, name: &str) -> io::Result<()> {
    let file = match storage.open(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let length = usize::try_from(file.length()?).map_err(io::Error::other)?;
    file.write_at(&vec![0; length], 0)?;
    file.sync()?;
    storage.remove(name)
}

/// A real folder.
pub struct Disk {
    root: PathBuf,
}

impl Disk {
    /// The folder `root`; made with mode 0700 when it is not there.
    ///
    /// # Errors
    /// As the disk gives them.
    pub fn open(root: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(root)?;
        Ok(Self { root: root.to_owned() })
    }
}

impl Storage for Disk {
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let mut options = fs::OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(self.root.join(name))?;
        Ok(Arc::new(file))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let file = fs::OpenOptions::new().read(true).write(true).open(self.root.join(name))?;
        Ok(Arc::new(file))
    }

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        names_in(&self.root.join(folder))
    }

    fn make_folder(&self, folder: &str) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(self.root.join(folder))?;
        fs::File::open(&self.root)?.sync_all()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.root.join(from), self.root.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.root.join(name))
    }

    fn sync_folder(&self, folder: &str) -> io::Result<()> {
        fs::File::open(self.root.join(folder))?.sync_all()
    }
}

/// A real folder in which nothing is changed.
pub struct ReadOnlyDisk {
    root: PathBuf,
}

impl ReadOnlyDisk {
    /// The folder `root`, which need not be writable.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }
}

impl Storage for ReadOnlyDisk {
    fn is_writable(&self) -> bool {
        false
    }

    fn create(&self, _name: &str) -> io::Result<Arc<dyn File>> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(fs::File::open(self.root.join(name))?))
    }

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        names_in(&self.root.join(folder))
    }

    fn make_folder(&self, _folder: &str) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn rename(&self, _from: &str, _to: &str) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn remove(&self, _name: &str) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync_folder(&self, _folder: &str) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}

/// Names of the files in a folder; none when it is not there.
fn names_in(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_file()
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

impl File for fs::File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn start_writing(&self, offset: u64, length: u64) {
        // Whatever is wrong with the disk is told by the sync.
        disk::start_writing(self, offset, length).ok();
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        // The call takes 32 bits on armv7; no file of ours is that long.
        let asked = length.try_into().map_err(io::Error::other)?;
        match fallocate(self, FallocateFlags::empty(), 0, asked) {
            // Not every file system can: the caller's writes then find out.
            Err(Errno::EOPNOTSUPP) => self.set_len(length),
            other => Ok(other?),
        }
    }
}
