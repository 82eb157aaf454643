//! One look at a watched folder: the oldest files that are to be taken, whatever else lies there.
//!
//! Memory is bounded whatever the folder holds: of a hundred thousand files the oldest are remembered, the others come when these are
//! gone. Links are never followed, since what they lead to is not the folder's. All of this blocks: it runs on a thread that may.

use std::collections::{BinaryHeap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::system::beneath::{About, Beneath, Volume};

/// Files that are remembered from one look to the next.
pub const WATCHED_MAX: usize = 4096;
/// Entries that one look goes through.
pub const ENTRIES_MAX: usize = 1_000_000;
/// Folders within folders.
const DEPTH_MAX: usize = 8;
/// Folders that wait to be looked into.
const FOLDERS_MAX: usize = 4096;
/// Files that can't be read that are left alone for [`Asides::PAUSE`].
const ASIDE_MAX: usize = 65_536;

/// What tells whether a file is still being written: size and time of its last change.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Stamp {
    changed: (i64, i64),
    /// Bytes.
    pub size: u64,
}

impl Stamp {
    /// Of a file as it is now.
    pub fn of(about: &About) -> Self {
        Self { changed: about.changed, size: about.size }
    }

    /// The last change, in seconds, to the two seconds that every file system keeps over a mount (FAT keeps no more).
    pub fn changed_s(&self) -> i64 {
        self.changed.0.div_euclid(2) * 2
    }
}

/// A file, by its path from the watched folder. Ordered by its last change, then by name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Seen {
    /// How it was seen.
    pub stamp: Stamp,
    /// Where it is.
    pub path: PathBuf,
}

/// What of a folder is looked at.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The folder.
    pub root: PathBuf,
    /// A folder in it that is not looked into: where files go.
    pub done: Option<PathBuf>,
    /// Patterns of names that are not looked at.
    pub ignore: Vec<String>,
    /// Whether its folders are looked into.
    pub sub_folders: bool,
    /// A larger file is left where it is.
    pub size_max: u64,
    /// Counts the entries that were looked at: a look that takes long goes on as long as this does.
    pub progress: Arc<AtomicU64>,
}

/// What one look showed.
#[derive(Debug, Default)]
pub struct Scan {
    /// Files to be taken, the oldest first.
    pub files: Vec<Seen>,
    /// Files that are larger than allowed and were not seen before.
    pub too_large: u64,
    /// Sub-folders that could not be looked into.
    pub closed: u64,
    /// Those of the paths that were asked for that are there.
    pub present: HashSet<PathBuf>,
    /// All of the folder was looked through.
    pub whole: bool,
    /// The file system that it is on.
    pub volume: Volume,
}

/// Files that are left alone for a while, by what they are: larger than allowed, or not readable.
#[derive(Debug, Default)]
pub struct Asides {
    until: HashMap<u64, Option<Instant>>,
}

impl Asides {
    /// How long a file that could not be read is left alone.
    pub const PAUSE: Duration = Duration::from_secs(60);

    /// Leaves a file alone: for a while, or until it changes.
    pub fn put(&mut self, seen: &Seen, for_ever: bool) -> bool {
        if self.until.len() >= ASIDE_MAX {
            self.until.clear();
        }
        let until = if for_ever { None } else { Some(Instant::now() + Self::PAUSE) };
        self.until.insert(key(seen), until).is_none()
    }

    fn has(&self, seen: &Seen) -> bool {
        self.until.get(&key(seen)).is_some_and(|until| until.is_none_or(|until| Instant::now() < until))
    }
}

fn key(seen: &Seen) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&seen.path, seen.stamp).hash(&mut hasher);
    hasher.finish()
}

/// Looks through the folder, and whether files with the paths `asked` are there, taken or not.
///
/// # Errors
/// When the folder itself can't be looked into: not there, not mounted, no permission.
pub fn scan(rules: &Rules, asides: &mut Asides, asked: &HashSet<PathBuf>) -> io::Result<Scan> {
    let mut oldest = BinaryHeap::new();
    let mut scan = Scan::default();
    let mut folders = vec![(PathBuf::new(), 0)];
    let (mut left, mut left_out) = (ENTRIES_MAX, false);
    let root = Beneath::open(&rules.root)?;
    scan.volume = root.volume()?;
    while let Some((folder, depth)) = folders.pop() {
        let mut broken = None;
        let looked = root.entries(&folder, |entry| {
            rules.progress.fetch_add(1, Ordering::Relaxed);
            let (name, about) = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    broken = Some(error);
                    return false;
                }
            };
            let path = folder.join(&name);
            if rules.ignores(name.as_bytes()) {
                // Not looked at.
            } else if about.is_folder {
                if rules.looks_into(&path, depth) {
                    match folders.len() < FOLDERS_MAX {
                        true => folders.push((path, depth + 1)),
                        false => left_out = true,
                    }
                }
            } else if about.is_file && about.size > 0 {
                if asked.contains(&path) {
                    scan.present.insert(path.clone());
                }
                consider(Seen { stamp: Stamp::of(&about), path }, rules, (&mut oldest, &mut scan, asides));
            }
            left = left.saturating_sub(1);
            left > 0
        });
        match (looked, broken) {
            // A share that goes away in the middle must not look like a folder that is empty.
            (Err(error), _) | (Ok(()), Some(error)) if depth == 0 => return Err(error),
            // Also one that lists names and gives nothing away about them.
            (Err(_), _) | (_, Some(_)) => scan.closed += 1,
            (Ok(()), None) => {}
        }
    }
    scan.whole = scan.closed == 0 && !left_out && left > 0;
    scan.files = oldest.into_sorted_vec();
    Ok(scan)
}

/// Keeps a file when it is to be taken and among the oldest.
fn consider(seen: Seen, rules: &Rules, (oldest, scan, asides): (&mut BinaryHeap<Seen>, &mut Scan, &mut Asides)) {
    if seen.stamp.size > rules.size_max {
        scan.too_large += u64::from(asides.put(&seen, true));
    } else if !asides.has(&seen) {
        if oldest.len() < WATCHED_MAX {
            oldest.push(seen);
        } else if oldest.peek().is_some_and(|newest| seen < *newest) {
            oldest.pop();
            oldest.push(seen);
        }
    }
}

impl Rules {
    /// Hidden files are never looked at: programs that write a file and rename it begin so.
    fn ignores(&self, name: &[u8]) -> bool {
        name.starts_with(b".") || self.ignore.iter().any(|pattern| matches(pattern.as_bytes(), name))
    }

    fn looks_into(&self, folder: &Path, depth: usize) -> bool {
        self.sub_folders && depth < DEPTH_MAX && self.done.as_deref() != Some(folder)
    }
}

/// Whether a name fits a pattern: `*` for any bytes, `?` for one; letters of ASCII fit in either case.
pub fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut from) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while from < name.len() {
        let fits = match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, from));
                at += 1;
                continue;
            }
            Some(b'?') => true,
            Some(byte) => name.get(from).is_some_and(|other| other.eq_ignore_ascii_case(byte)),
            None => false,
        };
        match (fits, star) {
            (true, _) => (at, from) = (at + 1, from + 1),
            // The last star takes one byte more.
            (false, Some((place, taken))) => {
                star = Some((place, taken + 1));
                (at, from) = (place + 1, taken + 1);
            }
            (false, None) => return false,
        }
    }
    pattern.get(at..).unwrap_or_default().iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn rules(root: &Path) -> Rules {
        let ignore = vec!["*.part".to_owned(), "*.tmp".to_owned()];
        Rules {
            root: root.to_owned(),
            done: Some("done".into()),
            ignore,
            sub_folders: false,
            size_max: 100,
            progress: Arc::default(),
        }
    }

    fn look(rules: &Rules, asides: &mut Asides) -> io::Result<Scan> {
        scan(rules, asides, &HashSet::new())
    }

    fn names(scan: &Scan) -> Vec<String> {
        scan.files.iter().map(|seen| seen.path.to_string_lossy().into_owned()).collect()
    }

    fn write(root: &Path, name: impl AsRef<Path>, changed_s: u64) {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "x").unwrap();
        let changed = std::time::UNIX_EPOCH + Duration::from_secs(changed_s);
        fs::File::open(&path).unwrap().set_modified(changed).unwrap();
    }

    #[test]
    fn patterns_fit_names_as_people_expect_and_take_no_time_to_fail() {
        for (pattern, name) in
            [("*.astm", "A.ASTM"), ("r?.csv", "r1.csv"), ("*", ""), ("a*b*c", "aXbYbc"), ("*.part", ".part")]
        {
            assert!(matches(pattern.as_bytes(), name.as_bytes()), "{pattern} {name}");
        }
        for (pattern, name) in [("*.astm", "a.astm.part"), ("r?.csv", "r.csv"), ("", "a"), ("a*b", "ac")] {
            assert!(!matches(pattern.as_bytes(), name.as_bytes()), "{pattern} {name}");
        }
        assert!(!matches("*a".repeat(100).as_bytes(), &[b'a'; 99]));
        assert!(!matches(("*a".repeat(20) + "b").as_bytes(), &[b'a'; 4096]));
    }

    #[test]
    fn the_oldest_come_first_and_what_is_unfinished_hidden_empty_linked_or_moved_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        for (name, changed) in
            [("b.csv", 2), ("a.csv", 2), ("z.astm", 1), ("c.part", 1), (".d", 1), ("done/e.csv", 1), ("sub/f.csv", 3)]
        {
            write(root.path(), name, changed);
        }
        fs::write(root.path().join("empty"), "").unwrap();
        symlink("/etc/hostname", root.path().join("link.csv")).unwrap();
        symlink("/etc", root.path().join("folder-link")).unwrap();
        write(root.path(), OsStr::from_bytes(b"odd\xff\n.csv"), 4);
        let found = look(&rules(root.path()), &mut Asides::default()).unwrap();
        assert_eq!(names(&found), ["z.astm", "a.csv", "b.csv", "odd\u{fffd}\n.csv"]);
        let deep = Rules { sub_folders: true, ..rules(root.path()) };
        assert!(names(&look(&deep, &mut Asides::default()).unwrap()).contains(&"sub/f.csv".to_owned()));
        assert!(look(&Rules { root: root.path().join("gone"), ..deep }, &mut Asides::default()).is_err());
    }

    #[test]
    fn a_file_that_is_too_large_is_told_once_and_one_that_was_put_aside_comes_again_when_it_changes() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("large"), [0; 101]).unwrap();
        write(root.path(), "small", 1);
        let (rules, mut asides) = (rules(root.path()), Asides::default());
        let first = look(&rules, &mut asides).unwrap();
        assert_eq!((names(&first), first.too_large), (vec!["small".to_owned()], 1));
        assert!(asides.put(&first.files[0], false));
        let second = look(&rules, &mut asides).unwrap();
        assert_eq!((names(&second), second.too_large), (vec![], 0));
        write(root.path(), "small", 2);
        assert_eq!(names(&look(&rules, &mut asides).unwrap()), ["small"]);
    }

    #[test]
    fn of_more_files_than_are_remembered_the_oldest_are() {
        let root = tempfile::tempdir().unwrap();
        let count = WATCHED_MAX + 40;
        for number in 0..count {
            fs::write(root.path().join(format!("{number:06}")), "x").unwrap();
        }
        write(root.path(), "oldest", 1);
        let found = look(&rules(root.path()), &mut Asides::default()).unwrap();
        assert_eq!((found.files.len(), names(&found)[0].as_str()), (WATCHED_MAX, "oldest"));
    }

    #[test]
    fn it_is_told_whether_files_are_there_that_are_not_to_be_taken_and_whether_all_was_seen() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "aside", 1);
        fs::write(root.path().join("large"), [0; 101]).unwrap();
        fs::create_dir(root.path().join("sub")).unwrap();
        let (deep, mut asides) = (Rules { sub_folders: true, ..rules(root.path()) }, Asides::default());
        let first = look(&deep, &mut asides).unwrap();
        asides.put(&first.files[0], false);
        let asked: HashSet<PathBuf> = ["aside", "large", "gone"].map(PathBuf::from).into();
        let found = scan(&deep, &mut asides, &asked).unwrap();
        assert_eq!(found.present, ["aside", "large"].map(PathBuf::from).into());
        assert!(found.whole && found.files.is_empty());
        assert_eq!(found.volume.device, Beneath::open(root.path()).unwrap().volume().unwrap().device);
        assert!(found.volume.bytes > 0);
    }
}
