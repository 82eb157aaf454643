//! Files below a folder, reached step by step and never over a link: whatever somebody puts in the place of a folder or a file, nothing
//! outside is read, moved or deleted.
//!
//! The folder itself is opened as it is named (an administrator may have made it a link). Below it each step is opened from the one before
//! it (openat with O_NOFOLLOW). All of this blocks.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, RenameFlags, openat, renameat, renameat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, mkdirat};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::{UnlinkatFlags, fsync, unlinkat};

/// A folder that is made gets the rights that the process's mask leaves of these.
const FOLDER_MODE: Mode = Mode::from_bits_truncate(0o777);

/// A folder that is open.
#[derive(Debug)]
pub struct Beneath(OwnedFd);

/// What the file system says of a file: which one it is, and how it was changed last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct About {
    /// A plain file.
    pub is_file: bool,
    /// A folder.
    pub is_folder: bool,
    /// Bytes.
    pub size: u64,
    /// Its last change: seconds and nanoseconds.
    pub changed: (i64, i64),
    /// The last change of anything about it, its name included; no program can set it.
    pub touched: (i64, i64),
    /// The device and its number there.
    pub place: (u64, u64),
}

/// What tells one file system from another, as far as numbers can: above all a disk from the empty folder below it, which shows when it is
/// not mounted.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Volume {
    /// The device's number: the same as long as it is mounted, and with most disks after it, too.
    pub device: u64,
    /// Bytes of the whole: with most the same after each mount.
    pub bytes: u64,
}

impl Volume {
    /// Whether they may be the same.
    pub fn is_like(self, other: Self) -> bool {
        self.device == other.device || self.bytes == other.bytes
    }
}

impl About {
    /// Of an open file.
    ///
    /// # Errors
    /// Those of the system.
    pub fn of(file: &File) -> io::Result<Self> {
        Ok(Self::read(&fstat(file)?))
    }

    // The fields are of other widths on other machines.
    #[allow(clippy::unnecessary_cast, clippy::useless_conversion)]
    fn read(stat: &FileStat) -> Self {
        let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        Self {
            is_file: kind == SFlag::S_IFREG,
            is_folder: kind == SFlag::S_IFDIR,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            changed: (i64::from(stat.st_mtime), i64::from(stat.st_mtime_nsec)),
            touched: (i64::from(stat.st_ctime), i64::from(stat.st_ctime_nsec)),
            place: (u64::from(stat.st_dev), u64::from(stat.st_ino)),
        }
    }
}

impl Beneath {
    /// Opens the folder.
    ///
    /// # Errors
    /// Those of the system.
    pub fn open(root: &Path) -> io::Result<Self> {
        Ok(Self(openat(AT_FDCWD, root, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?))
    }

    /// The file system that the folder is on.
    ///
    /// # Errors
    /// Those of the system.
    // The fields are of other widths on other machines.
    #[allow(clippy::unnecessary_cast, clippy::useless_conversion)]
    pub fn volume(&self) -> io::Result<Volume> {
        let (stat, found) = (fstat(&self.0)?, fstatvfs(&self.0)?);
        let [fragment, blocks]: [u64; 2] = [found.fragment_size().into(), found.blocks().into()];
        Ok(Volume { device: u64::from(stat.st_dev), bytes: fragment.saturating_mul(blocks) })
    }

    /// Brings what was changed in a folder below (names that were given, taken or moved) to the disk.
    ///
    /// # Errors
    /// Those of the system; some file systems can't.
    pub fn sync_folder(&self, path: &Path) -> io::Result<()> {
        Ok(fsync(self.folder(path)?)?)
    }

    /// A folder below, as a root of its own.
    ///
    /// # Errors
    /// Those of the system; also when it is a link.
    pub fn below(&self, path: &Path) -> io::Result<Self> {
        self.folder(path).map(Self)
    }

    /// Calls `visit` with each entry of a folder below, or the reason why an entry can't be read, until it says `false`. An entry that is
    /// gone meanwhile is left out. The path of the root itself is empty.
    ///
    /// # Errors
    /// When the folder can't be opened, or is none (also: a link).
    pub fn entries(
        &self,
        folder: &Path,
        mut visit: impl FnMut(io::Result<(OsString, About)>) -> bool,
    ) -> io::Result<()> {
        let mut listing = Dir::from_fd(self.folder(folder)?)?;
        let stats = self.folder(folder)?;
        for entry in listing.iter() {
            let seen = match entry {
                Ok(entry) => {
                    let name = OsStr::from_bytes(entry.file_name().to_bytes());
                    if name == "." || name == ".." {
                        continue;
                    }
                    match fstatat(&stats, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                        Ok(stat) => Ok((name.to_owned(), About::read(&stat))),
                        Err(Errno::ENOENT) => continue,
                        // A share that went away is no empty folder.
                        Err(error) => Err(error.into()),
                    }
                }
                Err(error) => Err(error.into()),
            };
            let is_last = seen.is_err();
            if !visit(seen) || is_last {
                break;
            }
        }
        Ok(())
    }

    /// Of a file below: of a link, the link's own.
    ///
    /// # Errors
    /// Those of the system; [`ErrorKind::NotFound`] also when a folder on the way is none any more.
    pub fn about(&self, path: &Path) -> io::Result<About> {
        let (folder, name) = self.place(path)?;
        Ok(About::read(&fstatat(&folder, name, AtFlags::AT_SYMLINK_NOFOLLOW)?))
    }

    /// Opens a file below for reading; never a link, and never waiting for the other end of a pipe.
    ///
    /// # Errors
    /// Those of the system; [`ErrorKind::NotFound`] also when it, or a folder on the way, is a link.
    pub fn file(&self, path: &Path) -> io::Result<File> {
        let (folder, name) = self.place(path)?;
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        Ok(File::from(openat(&folder, name, flags, Mode::empty()).map_err(link_is_nothing)?))
    }

    /// Makes an empty file.
    ///
    /// # Errors
    /// Those of the system; [`ErrorKind::AlreadyExists`] when anything is there, be it a link.
    pub fn make_file(&self, path: &Path) -> io::Result<()> {
        let (folder, name) = self.place(path)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat(&folder, name, flags, Mode::from_bits_truncate(0o666))?;
        Ok(())
    }

    /// Makes the folders of a path that are not there.
    ///
    /// # Errors
    /// Those of the system; also when one of them is a link.
    pub fn make_folders(&self, path: &Path) -> io::Result<()> {
        let mut at = self.0.try_clone()?;
        for name in names(path)? {
            match mkdirat(&at, name, FOLDER_MODE) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(error) => return Err(error.into()),
            }
            at = step(&at, name)?;
        }
        Ok(())
    }

    /// Gives a file another name, below `into`. What has that name keeps it.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] when the name is taken; others of the system.
    pub fn rename(&self, from: &Path, into: &Self, to: &Path) -> io::Result<()> {
        let ((old, from), (new, name)) = (self.place(from)?, into.place(to)?);
        match renameat2(&old, from, &new, name, RenameFlags::RENAME_NOREPLACE) {
            // This file system, or kernel, can't promise it: looked at first.
            Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {}
            renamed => return Ok(renamed?),
        }
        if fstatat(&new, name, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok() {
            return Err(ErrorKind::AlreadyExists.into());
        }
        Ok(renameat(&old, from, &new, name)?)
    }

    /// Deletes a file; of a link, the link.
    ///
    /// # Errors
    /// Those of the system.
    pub fn remove_file(&self, path: &Path) -> io::Result<()> {
        let (folder, name) = self.place(path)?;
        Ok(unlinkat(&folder, name, UnlinkatFlags::NoRemoveDir)?)
    }

    /// Deletes a folder that is empty.
    ///
    /// # Errors
    /// Those of the system.
    pub fn remove_folder(&self, path: &Path) -> io::Result<()> {
        let (folder, name) = self.place(path)?;
        Ok(unlinkat(&folder, name, UnlinkatFlags::RemoveDir)?)
    }

    fn folder(&self, path: &Path) -> io::Result<OwnedFd> {
        let mut at = openat(&self.0, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        for name in names(path)? {
            at = step(&at, name)?;
        }
        Ok(at)
    }

    /// The folder that a path's last name is in, and that name.
    fn place<'a>(&self, path: &'a Path) -> io::Result<(OwnedFd, &'a OsStr)> {
        let name = path.file_name().ok_or(ErrorKind::InvalidInput)?;
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => self.folder(parent)?,
            _ => self.0.try_clone()?,
        };
        Ok((folder, name))
    }
}

/// One step down, into a folder and not over a link.
fn step(at: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(openat(at, name, flags, Mode::empty()).map_err(link_is_nothing)?)
}

/// A link that was put in the place of a file or a folder means that this is not there any more.
fn link_is_nothing(error: Errno) -> Errno {
    match error {
        Errno::ELOOP | Errno::ENOTDIR => Errno::ENOENT,
        other => other,
    }
}

fn names(path: &Path) -> io::Result<Vec<&OsStr>> {
    let plain = |part: Component<'_>| matches!(part, Component::Normal(_));
    if !path.components().all(plain) {
        return Err(ErrorKind::InvalidInput.into());
    }
    Ok(path.iter().collect())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_link_in_the_place_of_a_folder_or_a_file_leads_nowhere() {
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(outside.path().join("secret"), "theirs").unwrap();
        fs::create_dir_all(root.path().join("sub/deep")).unwrap();
        fs::write(root.path().join("sub/deep/a"), "ours").unwrap();
        let beneath = Beneath::open(root.path()).unwrap();
        let mut read = String::new();
        beneath.file(Path::new("sub/deep/a")).unwrap().read_to_string(&mut read).unwrap();
        assert_eq!(read, "ours");
        symlink(outside.path(), root.path().join("link")).unwrap();
        symlink(outside.path().join("secret"), root.path().join("file")).unwrap();
        let into = |path: &str| beneath.rename(Path::new("sub/deep/a"), &beneath, Path::new(path));
        for path in ["link/secret", "file", "../outside", "/etc/hostname", "link"] {
            assert!(beneath.file(Path::new(path)).is_err(), "{path}");
        }
        assert_eq!(beneath.file(Path::new("link/secret")).unwrap_err().kind(), ErrorKind::NotFound);
        assert!(beneath.about(Path::new("link/secret")).is_err());
        assert!(beneath.remove_file(Path::new("link/secret")).is_err());
        assert!(beneath.make_folders(Path::new("link/made")).is_err() && into("link/b").is_err());
        assert!(beneath.entries(Path::new("link"), |_| panic!("it was looked into")).is_err());
        assert_eq!(into("file").unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert!(!beneath.about(Path::new("file")).unwrap().is_file, "the link's own, and not what it leads to");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_name_that_is_taken_keeps_its_file() {
        let root = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            fs::write(root.path().join(name), name).unwrap();
        }
        let beneath = Beneath::open(root.path()).unwrap();
        beneath.make_folders(Path::new("x/y")).unwrap();
        let before = beneath.about(Path::new("a")).unwrap();
        beneath.rename(Path::new("a"), &beneath, Path::new("x/y/a")).unwrap();
        let after = beneath.about(Path::new("x/y/a")).unwrap();
        assert_eq!((before.place, before.changed, before.size), (after.place, after.changed, after.size));
        let refused = beneath.rename(Path::new("b"), &beneath, Path::new("x/y/a")).unwrap_err();
        assert_eq!(
            (refused.kind(), fs::read(root.path().join("x/y/a")).unwrap()),
            (ErrorKind::AlreadyExists, b"a".to_vec())
        );
        let mut names = Vec::new();
        beneath
            .entries(Path::new(""), |entry| {
                names.push(entry.unwrap().0);
                true
            })
            .unwrap();
        names.sort();
        assert_eq!(names, ["b", "x"]);
        beneath.remove_file(Path::new("x/y/a")).unwrap();
        beneath.remove_folder(Path::new("x/y")).unwrap();
        assert!(beneath.make_file(Path::new("b")).is_err() && beneath.make_file(Path::new("c")).is_ok());
    }
}
