//! Taking a file: read as it was seen, stored, and only then moved away or deleted, if it is still the file that was stored.
//!
//! What is done to the file system is here and blocks; it runs on threads that may. Names of files may hold a patient's name: they are
//! never logged.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use super::scan::{Seen, Stamp, matches};
use crate::envelope::{Flags, MessageId};
use crate::source::intake::About;
use crate::wire::hl7::Header;
use crate::wire::result_file::{self, HEAD_BYTES_MAX, Kind};

/// Longest control id that is made of a file's name, bytes: its end.
const NAME_BYTES_MAX: usize = 512;

/// What becomes of a file after it was stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Afterwards {
    /// It is deleted.
    Delete,
    /// It is moved into this folder.
    Move(PathBuf),
}

/// Why a file was not taken.
#[derive(Debug)]
pub enum TakeError {
    /// It is not the file any more that was seen: it is looked at anew.
    Changed,
    /// It can't be read: why.
    Unreadable(io::Error),
}

/// Opens a file that was seen.
///
/// # Errors
/// [`TakeError`].
pub fn open(root: &Path, seen: &Seen) -> Result<File, TakeError> {
    // Never a link that was put in its place, never waiting for the other end of a pipe.
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(root.join(&seen.path));
    let file = file.map_err(unreadable)?;
    unchanged(&file, seen)?;
    Ok(file)
}

/// Whether an open file is still as it was seen.
///
/// # Errors
/// [`TakeError`].
pub fn unchanged(file: &File, seen: &Seen) -> Result<(), TakeError> {
    let about = file.metadata().map_err(unreadable)?;
    if about.is_file() && Stamp::of(&about) == seen.stamp { Ok(()) } else { Err(TakeError::Changed) }
}

/// The whole of a short file.
///
/// # Errors
/// [`TakeError`].
pub fn whole(root: &Path, seen: &Seen) -> Result<Vec<u8>, TakeError> {
    let mut file = open(root, seen)?;
    let bytes = piece(&mut file, usize::try_from(seen.stamp.size).unwrap_or(usize::MAX))?;
    unchanged(&file, seen)?;
    Ok(bytes)
}

/// The next `most` bytes, fewer at the end.
///
/// # Errors
/// [`TakeError`].
pub fn piece(file: &mut File, most: usize) -> Result<Vec<u8>, TakeError> {
    let mut bytes = Vec::with_capacity(most);
    file.take(most as u64).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}

fn unreadable(error: io::Error) -> TakeError {
    match error.kind() {
        // Taken away by somebody else, or replaced by a link.
        ErrorKind::NotFound => TakeError::Changed,
        _ => TakeError::Unreadable(error),
    }
}

/// What the box says of a file: its kind by the first rule that its name fits, or else by its first bytes, `head`.
pub fn about(path: &Path, head: &[u8], rules: &[(String, String)]) -> About {
    let name = path.file_name().unwrap_or_default().as_bytes();
    let ruled = rules.iter().find(|(pattern, _)| matches(pattern.as_bytes(), name)).map(|(_, media)| media.clone());
    let media = ruled.unwrap_or_else(|| result_file::look(head).media_type().to_owned());
    if media.split(';').next().unwrap_or_default().trim() == Kind::Hl7.media_type() {
        return about_hl7(media, head);
    }
    let path = path.as_os_str().as_bytes();
    let id = path.get(path.len().saturating_sub(NAME_BYTES_MAX)..).unwrap_or(path);
    About { content_type: media, control_id: id.to_vec(), flags: Flags::default() }
}

/// An HL7 message is known by its MSH-10, which its receivers name when they acknowledge it, and not by its file's name.
fn about_hl7(media: String, head: &[u8]) -> About {
    let head = head.get(..HEAD_BYTES_MAX).unwrap_or(head);
    let header = Header::read(head);
    let (header, unreadable) = (header.unwrap_or_else(|_| Header::none()), header.is_err());
    let id = header.control_id();
    let content_type = match header.charset() {
        Some(charset) if !media.contains(';') => format!("{media}; charset={charset}"),
        _ => media,
    };
    let noticed =
        [(Flags::UNREADABLE, unreadable), (Flags::NO_CONTROL_ID, id.is_empty()), (Flags::BATCH, header.is_batch())];
    let set = noticed.into_iter().filter(|(_, set)| *set);
    let flags = set.fold(Flags::default(), |flags, (flag, _)| flags.with(flag));
    About { content_type, control_id: id.get(..NAME_BYTES_MAX).unwrap_or(id).to_vec(), flags }
}

/// Moves a stored file away or deletes it, unless it has changed meanwhile: then it is another message. `id` is the one under which it was
/// stored; it tells files of one name apart.
///
/// # Errors
/// When the file system refuses: the file is still there, and was stored.
pub fn put_away(root: &Path, seen: &Seen, id: MessageId, afterwards: &Afterwards) -> io::Result<()> {
    let from = root.join(&seen.path);
    match fs::symlink_metadata(&from) {
        Ok(about) if about.is_file() && Stamp::of(&about) == seen.stamp => {}
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    let Afterwards::Move(done) = afterwards else { return fs::remove_file(&from) };
    let to = done.join(&seen.path);
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    // A name that is taken there keeps its file: this one gets its message's id behind its name.
    let to = if fs::symlink_metadata(&to).is_ok() { renamed(&to, id) } else { to };
    match fs::rename(&from, &to) {
        Err(error) if error.kind() == ErrorKind::InvalidFilename => {
            fs::rename(&from, to.with_file_name(id.to_string()))
        }
        moved => moved,
    }
}

fn renamed(path: &Path, id: MessageId) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{id}"));
    path.with_file_name(name)
}

/// Whether files can be put away: tried with one of our own, since permissions alone do not tell (a share may be mounted read-only).
///
/// # Errors
/// In words, with what to do.
pub fn can_put_away(root: &Path, afterwards: &Afterwards) -> Result<(), String> {
    let shown = root.display();
    let trial = root.join(".wardgate-trial");
    // Never through a link that somebody left there: what lies there goes, and only a new file is made.
    let _left = fs::remove_file(&trial);
    let made = OpenOptions::new().write(true).create_new(true).open(&trial).map(drop);
    made.map_err(|error| {
        format!("files in {shown} could not be taken away ({error}): give this service the right to write there, or mount it so")
    })?;
    let moved = match afterwards {
        Afterwards::Delete => fs::remove_file(&trial),
        Afterwards::Move(done) => fs::create_dir_all(done).and_then(|()| {
            let there = done.join(".wardgate-trial");
            fs::rename(&trial, &there).and_then(|()| fs::remove_file(&there))
        }),
    };
    moved.map_err(|error| {
        let _left = fs::remove_file(&trial);
        match (error.kind(), afterwards) {
            (ErrorKind::CrossesDevices, Afterwards::Move(done)) => {
                format!(
                    "{} is on another file system than {shown}: choose a folder for done on the same one",
                    done.display()
                )
            }
            _ => format!("files in {shown} could not be put away ({error}): look at the rights of the folders"),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(root: &Path, name: &str) -> Seen {
        let stamp = Stamp::of(&fs::symlink_metadata(root.join(name)).unwrap());
        Seen { stamp, path: name.into() }
    }

    fn id(number: u32) -> MessageId {
        MessageId::new([1; 12], number)
    }

    #[test]
    fn a_file_is_known_by_its_name_and_an_hl7_message_by_its_msh_10() {
        let rules = [("*.txt".to_owned(), "text/x-ours".to_owned())];
        let by_rule = about(Path::new("sub/A.TXT"), b"H|\\^&|", &rules);
        assert_eq!((by_rule.content_type.as_str(), &by_rule.control_id[..]), ("text/x-ours", &b"sub/A.TXT"[..]));
        assert_eq!(about(Path::new("a"), b"H|\\^&|", &rules).content_type, "application/vnd.wardgate.astm");
        let message = about(Path::new("a"), b"MSH|^~\\&|A|B|C|D|20260102||ORU^R01|4711|P|2.5\r", &rules);
        assert_eq!((message.content_type.as_str(), &message.control_id[..]), ("application/hl7-v2", &b"4711"[..]));
        assert!(about(Path::new("a"), b"MSH|^~\\&|A\r", &rules).flags.has(Flags::NO_CONTROL_ID));
        assert_eq!(about(Path::new(&"x".repeat(4000)), b"", &rules).control_id.len(), NAME_BYTES_MAX);
    }

    #[test]
    fn a_file_that_changed_after_it_was_seen_is_neither_read_nor_put_away() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("a"), "one").unwrap();
        let old = seen(root.path(), "a");
        assert_eq!(whole(root.path(), &old).unwrap(), b"one");
        fs::write(root.path().join("a"), "other").unwrap();
        assert!(matches!(whole(root.path(), &old), Err(TakeError::Changed)));
        put_away(root.path(), &old, id(1), &Afterwards::Delete).unwrap();
        assert_eq!(fs::read(root.path().join("a")).unwrap(), b"other", "the new content is another message");
        std::os::unix::fs::symlink("/etc/hostname", root.path().join("link")).unwrap();
        assert!(whole(root.path(), &seen(root.path(), "link")).is_err(), "links are not followed");
    }

    #[test]
    fn files_of_one_name_are_all_kept_in_the_folder_for_those_that_are_done() {
        let root = tempfile::tempdir().unwrap();
        let done = Afterwards::Move(root.path().join("done"));
        // A link that somebody left where the trial is made leads to a file of theirs: it is not touched.
        let others = root.path().join("others");
        fs::write(&others, "theirs").unwrap();
        std::os::unix::fs::symlink(&others, root.path().join(".wardgate-trial")).unwrap();
        can_put_away(root.path(), &done).unwrap();
        assert_eq!(fs::read(&others).unwrap(), b"theirs");
        for number in 0..3 {
            fs::write(root.path().join("a"), number.to_string()).unwrap();
            put_away(root.path(), &seen(root.path(), "a"), id(number), &done).unwrap();
        }
        let mut kept: Vec<Vec<u8>> = fs::read_dir(root.path().join("done"))
            .unwrap()
            .map(|entry| fs::read(entry.unwrap().path()).unwrap())
            .collect();
        kept.sort();
        assert_eq!(kept, [b"0", b"1", b"2"]);
        fs::write(root.path().join("b"), "x").unwrap();
        put_away(root.path(), &seen(root.path(), "b"), id(9), &Afterwards::Delete).unwrap();
        assert!(!root.path().join("b").exists());
    }
}
