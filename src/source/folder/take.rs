//! Reading a file as it was seen, and what is said of it. It is held open until it is put away (`away.rs`).
//!
//! Reading blocks; it runs on a thread that may. Names of files may hold a patient's name: they are never logged.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::scan::{Seen, Stamp, matches};
use crate::envelope::Flags;
use crate::source::intake::About;
use crate::system::beneath::{self, Beneath};
use crate::wire::hl7::Header;
use crate::wire::result_file::{self, HEAD_BYTES_MAX, Kind};

/// Longest control id that is made of a file's name, bytes: its end.
const NAME_BYTES_MAX: usize = 512;

/// Why a file was not taken.
#[derive(Debug)]
pub enum TakeError {
    /// It is not the file any more that was seen: it is looked at anew.
    Changed,
    /// It can't be read: why.
    Unreadable(io::Error),
    /// The file system does not answer.
    Hung,
}

/// A file that was read to its end, as it was then. It is held open, so that no other file is given its number meanwhile.
#[derive(Debug)]
pub struct Held {
    about: beneath::About,
    _file: Option<File>,
}

impl Held {
    /// The same without the open file, for one that waits for being put away: as it is `now`, if it is still the same. Its name may have
    /// been changed and changed back.
    pub fn let_go(self, now: Option<beneath::About>) -> Self {
        let about = now.filter(|now| self.is(now)).unwrap_or(self.about);
        Self { about, _file: None }
    }

    /// What is to be known of it when it was not put away, without the open file.
    pub fn remembered(&self) -> Self {
        Self { about: self.about, _file: None }
    }

    /// Whether this is the file that was read, and nothing about it has changed since.
    pub fn is_as_read(&self, now: &beneath::About) -> bool {
        *now == self.about
    }

    /// Whether this, found under another name, is the very file that was read.
    pub fn is(&self, now: &beneath::About) -> bool {
        (now.place, now.size, now.changed) == (self.about.place, self.about.size, self.about.changed)
    }
}

/// Opens a file that was seen; never a link that was put in its place.
///
/// # Errors
/// [`TakeError`].
pub fn open(root: &Beneath, seen: &Seen) -> Result<File, TakeError> {
    let file = root.file(&seen.path).map_err(unreadable)?;
    unchanged(&file, seen)?;
    Ok(file)
}

/// What an open file is, when it is still as it was seen.
///
/// # Errors
/// [`TakeError`].
pub fn unchanged(file: &File, seen: &Seen) -> Result<beneath::About, TakeError> {
    let about = beneath::About::of(file).map_err(unreadable)?;
    if about.is_file && Stamp::of(&about) == seen.stamp { Ok(about) } else { Err(TakeError::Changed) }
}

/// Holds a file that was read to its end.
///
/// # Errors
/// [`TakeError`] when it changed meanwhile.
pub fn hold(file: File, seen: &Seen) -> Result<Held, TakeError> {
    Ok(Held { about: unchanged(&file, seen)?, _file: Some(file) })
}

/// The whole of a short file.
///
/// # Errors
/// [`TakeError`].
pub fn whole(root: &Beneath, seen: &Seen) -> Result<(Vec<u8>, Held), TakeError> {
    let mut file = open(root, seen)?;
    let bytes = piece(&mut file, usize::try_from(seen.stamp.size).unwrap_or(usize::MAX))?;
    Ok((bytes, hold(file, seen)?))
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

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
    fn a_file_that_changed_after_it_was_seen_is_not_read() {
        let root = tempfile::tempdir().unwrap();
        let beneath = Beneath::open(root.path()).unwrap();
        let seen = |name: &str| {
            let path = Path::new(name);
            Seen { stamp: Stamp::of(&beneath.about(path).unwrap()), path: path.to_owned() }
        };
        fs::write(root.path().join("a"), "one").unwrap();
        let old = seen("a");
        assert_eq!(whole(&beneath, &old).unwrap().0, b"one");
        fs::write(root.path().join("a"), "other").unwrap();
        assert!(matches!(whole(&beneath, &old), Err(TakeError::Changed)));
        std::os::unix::fs::symlink("/etc/hostname", root.path().join("link")).unwrap();
        assert!(matches!(whole(&beneath, &seen("link")), Err(TakeError::Changed)), "links are not followed");
    }
}
