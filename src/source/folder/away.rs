//! Putting a stored file away: deleted, or moved into the folder for those that are done; but only the very file that was read.
//!
//! It is first given a name in a folder of our own, where nobody else writes, and looked at there: another file that was put in its place
//! at the last moment goes back unread and is taken anew. What a crash leaves in that folder goes back, too. No link is followed below the
//! watched folder. All of this blocks. Names of files may hold a patient's name: they are never logged.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use aws_lc_rs::rand;
use data_encoding::HEXLOWER;

use super::scan::Seen;
use super::take::Held;
use crate::envelope::MessageId;
use crate::system::beneath::{About, Beneath};

/// The folder of our own in the watched one: hidden, there for moments only.
const TAKEN: &str = ".wardgate-taken";
/// The file with which is tried whether files can be put away.
const TRIAL: &str = ".wardgate-trial";
/// Folders within folders of what a crash left.
const DEPTH_MAX: usize = 16;

/// What becomes of a file after it was stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Afterwards {
    /// It is deleted.
    Delete,
    /// It is moved into this folder.
    Move(PathBuf),
}

/// The folders, open.
pub struct Places {
    root: Beneath,
    done: Option<Beneath>,
}

impl Places {
    /// Opens the watched folder, and makes and opens that for files that are done. When that lies in the watched folder, no link leads to it.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(root: &Path, afterwards: &Afterwards) -> io::Result<Self> {
        let opened = Beneath::open(root)?;
        let done = match afterwards {
            Afterwards::Delete => None,
            Afterwards::Move(done) => Some(match done.strip_prefix(root) {
                Ok(within) => {
                    opened.make_folders(within)?;
                    opened.below(within)?
                }
                Err(_) => {
                    fs::create_dir_all(done)?;
                    Beneath::open(done)?
                }
            }),
        };
        Ok(Self { root: opened, done })
    }

    /// Moves a stored file away or deletes it, unless another one is there meanwhile, or it has changed: then that is another message. `id` is the
    /// one under which it was stored; it tells files of one name apart. False when it is not there any more.
    ///
    /// # Errors
    /// When the file system refuses: the file is still there, and was stored.
    pub fn put_away(&self, seen: &Seen, held: &Held, id: MessageId) -> io::Result<bool> {
        match self.root.about(&seen.path) {
            Ok(now) if held.is_as_read(&now) => {}
            Ok(_) => return Ok(false),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        }
        let ours = Path::new(TAKEN).join(&seen.path);
        self.root.make_folders(ours.parent().unwrap_or_else(|| Path::new(TAKEN)))?;
        match self.root.rename(&seen.path, &self.root, &ours) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            // Another disk is mounted in the sub-folder: it stays there until it goes.
            Err(error) if error.kind() == ErrorKind::CrossesDevices => {
                return self.finish(&seen.path, seen, id).map(|()| true);
            }
            Err(error) => return Err(error),
        }
        if !held.is(&self.root.about(&ours)?) {
            return give_back(&self.root, &ours, &seen.path).map(|()| false);
        }
        self.finish(&ours, seen, id).map(|()| true).inspect_err(|_| {
            // Where that fails, too, the next look does it.
            give_back(&self.root, &ours, &seen.path).ok();
        })
    }

    /// Brings to the disk that these were put away, as far as the file system can: one that is pulled out afterwards does not show them again.
    pub fn settle<'a>(&self, files: impl Iterator<Item = &'a Path>) {
        let folders: BTreeSet<&Path> = files.map(|file| file.parent().unwrap_or_else(|| Path::new(""))).collect();
        for folder in folders {
            // A file that shows again all the same is known by its mark, or at worst is a second copy.
            self.root.sync_folder(folder).ok();
            if let Some(done) = &self.done {
                done.sync_folder(folder).ok();
            }
        }
    }

    /// What is there now under a file's name.
    pub fn now(&self, seen: &Seen) -> Option<About> {
        self.root.about(&seen.path).ok()
    }

    /// Takes the folder of our own away again, when nothing is left in it.
    pub fn tidy<'a>(&self, files: impl Iterator<Item = &'a Path>) {
        let folders: BTreeSet<PathBuf> =
            files.flat_map(|file| file.ancestors().skip(1)).map(|folder| Path::new(TAKEN).join(folder)).collect();
        for folder in folders.iter().rev() {
            self.root.remove_folder(folder).ok();
        }
    }

    fn finish(&self, from: &Path, seen: &Seen, id: MessageId) -> io::Result<()> {
        let Some(done) = &self.done else { return self.root.remove_file(from) };
        done.make_folders(seen.path.parent().unwrap_or_else(|| Path::new("")))?;
        // A name that is taken there keeps its file: this one gets its message's id behind its name, or, when the very same file was put
        // there before, also something that no other has. Where the name is too long for that, it is left out.
        let (name, again) = (seen.path.as_path(), random()?);
        let to = [
            name.to_owned(),
            with(name, &format!(".{id}")),
            with(name, &format!(".{id}.{again}")),
            name.with_file_name(id.to_string()),
            name.with_file_name(format!("{id}.{again}")),
        ];
        let mut refused = ErrorKind::AlreadyExists.into();
        for to in &to {
            match self.root.rename(from, done, to) {
                Err(error) if matches!(error.kind(), ErrorKind::AlreadyExists | ErrorKind::InvalidFilename) => {
                    refused = error
                }
                moved => return moved,
            }
        }
        Err(refused)
    }
}

fn with(path: &Path, behind: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(behind);
    path.with_file_name(name)
}

fn random() -> io::Result<String> {
    let mut random = [0; 4];
    rand::fill(&mut random).map_err(|_| io::Error::other("the system gives no random numbers"))?;
    Ok(HEXLOWER.encode(&random))
}

/// A file of the folder of our own gets its name again, or one like it when that is taken.
fn give_back(root: &Beneath, ours: &Path, path: &Path) -> io::Result<()> {
    for number in 0..100 {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        if number > 0 {
            name.push(format!(".{number}"));
        }
        match root.rename(ours, root, &path.with_file_name(name)) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            given => return given,
        }
    }
    Err(ErrorKind::AlreadyExists.into())
}

/// Gives back what a crash left in the folder of our own.
///
/// # Errors
/// Those of the file system: the rest is still there.
pub fn recover(root: &Path) -> io::Result<()> {
    let root = Beneath::open(root)?;
    match root.about(Path::new(TAKEN)) {
        Ok(about) if about.is_folder => recover_folder(&root, Path::new(""), 0),
        _ => Ok(()),
    }
}

fn recover_folder(root: &Beneath, folder: &Path, depth: usize) -> io::Result<()> {
    let ours = Path::new(TAKEN).join(folder);
    let mut left = Vec::new();
    root.entries(&ours, |entry| {
        left.extend(entry.ok());
        true
    })?;
    for (name, about) in left {
        let path = folder.join(&name);
        if about.is_folder && depth < DEPTH_MAX {
            recover_folder(root, &path, depth + 1)?;
        } else if !about.is_folder {
            root.make_folders(folder)?;
            give_back(root, &ours.join(&name), &path)?;
        }
    }
    // Something of somebody else in it is left to them.
    root.remove_folder(&ours).ok();
    Ok(())
}

/// Whether files can be put away: tried with one of our own, since permissions alone do not tell (a share may be mounted read-only).
///
/// # Errors
/// In words, with what to do.
pub fn can_put_away(root: &Path, afterwards: &Afterwards) -> Result<(), String> {
    let (shown, trial) = (root.display(), Path::new(TRIAL));
    let unable = |error: io::Error| {
        format!("files in {shown} could not be put away ({error}): look at the rights of the folders")
    };
    let places = Places::open(root, afterwards).map_err(unable)?;
    // Never through a link that somebody left there: what lies there goes, and only a new file is made.
    places.root.remove_file(trial).ok();
    places.root.make_file(trial).map_err(|error| {
        format!("files in {shown} could not be taken away ({error}): give this service the right to write there, or mount it so")
    })?;
    // The whole way of a file, through the folder of our own.
    let ours = Path::new(TAKEN).join(TRIAL);
    places.root.remove_file(&ours).ok();
    let claimed =
        places.root.make_folders(Path::new(TAKEN)).and_then(|()| places.root.rename(trial, &places.root, &ours));
    let moved = claimed.and_then(|()| match &places.done {
        None => places.root.remove_file(&ours),
        Some(done) => {
            done.remove_file(trial).ok();
            places.root.rename(&ours, done, trial).and_then(|()| done.remove_file(trial))
        }
    });
    places.tidy(std::iter::once(trial));
    moved.map_err(|error| {
        places.root.remove_file(trial).ok();
        places.root.remove_file(&ours).ok();
        places.tidy(std::iter::once(trial));
        match (error.kind(), afterwards) {
            (ErrorKind::CrossesDevices, Afterwards::Move(done)) => {
                format!(
                    "{} is on another file system than {shown}: choose a folder for done on the same one",
                    done.display()
                )
            }
            _ => unable(error),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::fs::{File, FileTimes};
    use std::os::unix::fs::{FileExt, symlink};

    use super::*;
    use crate::source::folder::scan::Stamp;
    use crate::source::folder::take::{TakeError, whole};

    fn seen(root: &Path, name: &str) -> Seen {
        let about = Beneath::open(root).unwrap().about(Path::new(name)).unwrap();
        Seen { stamp: Stamp::of(&about), path: name.into() }
    }

    fn id(number: u32) -> MessageId {
        MessageId::new([1; 12], number)
    }

    fn read(root: &Path, seen: &Seen) -> Held {
        whole(&Beneath::open(root).unwrap(), seen).unwrap().1
    }

    /// Writes a file, or another in its place, with this time of its last change.
    fn replace(root: &Path, name: &str, text: &str) {
        let new = root.join("new.part");
        fs::write(&new, text).unwrap();
        let at = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_800_000_000);
        File::options().write(true).open(&new).unwrap().set_times(FileTimes::new().set_modified(at)).unwrap();
        fs::rename(&new, root.join(name)).unwrap();
    }

    #[test]
    fn another_file_of_the_same_size_and_time_is_not_put_away_unread() {
        for afterwards in [Afterwards::Delete, Afterwards::Move("done".into())] {
            let root = tempfile::tempdir().unwrap();
            let afterwards = match afterwards {
                Afterwards::Move(done) => Afterwards::Move(root.path().join(done)),
                delete => delete,
            };
            let places = Places::open(root.path(), &afterwards).unwrap();
            replace(root.path(), "a", "one");
            let first = seen(root.path(), "a");
            let held = read(root.path(), &first);
            replace(root.path(), "a", "two");
            assert_eq!(seen(root.path(), "a"), first, "by size and time it is the same");
            places.put_away(&first, &held, id(1)).unwrap();
            assert_eq!(fs::read(root.path().join("a")).unwrap(), b"two", "it is another message");
            // Written over in its place, with its time set back.
            let held = read(root.path(), &first);
            let over = fs::OpenOptions::new().write(true).open(root.path().join("a")).unwrap();
            let (time, before) = (over.metadata().unwrap().modified().unwrap(), About::of(&over).unwrap());
            // The kernel's clock for such times goes in steps of some milliseconds.
            while About::of(&over).unwrap().touched == before.touched {
                over.write_all_at(b"six", 0).unwrap();
                over.set_modified(time).unwrap();
            }
            assert_eq!(seen(root.path(), "a"), first);
            places.put_away(&first, &held, id(2)).unwrap();
            assert_eq!(fs::read(root.path().join("a")).unwrap(), b"six");
            places.put_away(&first, &read(root.path(), &first), id(3)).unwrap();
            assert!(!root.path().join("a").exists());
            places.tidy([Path::new("a")].into_iter());
            assert!(!root.path().join(TAKEN).exists());
        }
    }

    #[test]
    fn each_further_copy_of_a_file_that_is_kept_finds_a_name_of_its_own() {
        for name in ["a", &"x".repeat(250)] {
            let root = tempfile::tempdir().unwrap();
            let done = root.path().join("done");
            let places = Places::open(root.path(), &Afterwards::Move(done.clone())).unwrap();
            for copies in 1..=4 {
                replace(root.path(), name, "the same");
                let file = seen(root.path(), name);
                assert!(places.put_away(&file, &read(root.path(), &file), id(1)).unwrap());
                assert_eq!(fs::read_dir(&done).unwrap().count(), copies);
            }
        }
    }

    #[test]
    fn what_a_crash_left_in_our_folder_goes_back_and_nothing_is_written_over() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join(TAKEN).join("sub")).unwrap();
        fs::write(root.path().join(TAKEN).join("a"), "old").unwrap();
        fs::write(root.path().join(TAKEN).join("sub/b"), "deep").unwrap();
        fs::write(root.path().join("a"), "new").unwrap();
        recover(root.path()).unwrap();
        let read = |name: &str| fs::read_to_string(root.path().join(name)).unwrap();
        assert_eq!([read("a"), read("a.1"), read("sub/b")], ["new", "old", "deep"]);
        assert!(!root.path().join(TAKEN).exists());
        recover(root.path()).unwrap();
    }

    #[test]
    fn a_sub_folder_that_became_a_link_leads_to_nobody_elses_files() {
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(root.path().join("sub")).unwrap();
        replace(root.path(), "sub/a", "ours");
        let file = seen(root.path(), "sub/a");
        let held = read(root.path(), &file);
        fs::rename(root.path().join("sub"), root.path().join("away")).unwrap();
        replace(outside.path(), "a", "them");
        symlink(outside.path(), root.path().join("sub")).unwrap();
        assert!(matches!(whole(&Beneath::open(root.path()).unwrap(), &file), Err(TakeError::Changed)));
        Places::open(root.path(), &Afterwards::Delete).unwrap().put_away(&file, &held, id(1)).unwrap();
        assert!(outside.path().join("a").exists() && root.path().join("away/a").exists());
        // Nor is anything moved out of the folder by a link in the place of the one for files that are done.
        symlink(outside.path(), root.path().join("done")).unwrap();
        assert!(can_put_away(root.path(), &Afterwards::Move(root.path().join("done"))).is_err());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    }

    #[test]
    fn files_of_one_name_are_all_kept_in_the_folder_for_those_that_are_done() {
        let root = tempfile::tempdir().unwrap();
        let done = Afterwards::Move(root.path().join("done"));
        // A link that somebody left where the trial is made leads to a file of theirs: it is not touched.
        let others = root.path().join("others");
        fs::write(&others, "theirs").unwrap();
        symlink(&others, root.path().join(TRIAL)).unwrap();
        can_put_away(root.path(), &done).unwrap();
        assert_eq!(fs::read(&others).unwrap(), b"theirs");
        let places = Places::open(root.path(), &done).unwrap();
        for number in 0..3 {
            fs::write(root.path().join("a"), number.to_string()).unwrap();
            let file = seen(root.path(), "a");
            places.put_away(&file, &read(root.path(), &file), id(number)).unwrap();
        }
        let kept = fs::read_dir(root.path().join("done")).unwrap();
        let mut kept: Vec<Vec<u8>> = kept.map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect();
        kept.sort();
        assert_eq!(kept, [b"0", b"1", b"2"]);
    }
}
