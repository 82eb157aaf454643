//! Transfers that are not complete yet: each part is a file of its own, so that it survives a restart once it is synced.
//!
//! Bounded in number, bytes and age. A transfer that is given up is told aloud: with `receipt = "collector"` its gateway sends the message again.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::wire::mqtt_label::Part;

/// Most transfers that are open at once.
pub const TRANSFERS_MAX: usize = 256;
/// Most bytes of all open transfers together.
pub const OPEN_BYTES_MAX: u64 = 16 << 30;
/// A transfer to which nothing was added for so long is given up.
pub const AGE_MAX: Duration = Duration::from_secs(24 * 3600);

/// The open transfers of a folder.
pub struct Parts {
    folder: PathBuf,
    open: HashMap<String, Transfer>,
}

struct Transfer {
    have: BTreeSet<u32>,
    bytes: u64,
    touched: SystemTime,
}

impl Parts {
    /// Finds the parts that lie in `folder` from an earlier run.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub fn find(folder: &Path) -> io::Result<Self> {
        let mut parts = Self { folder: folder.to_owned(), open: HashMap::new() };
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let numbered =
                name.rsplit_once('.').and_then(|(transfer, part)| Some((transfer.to_owned(), part.parse().ok()?)));
            let (metadata, path) = (entry.metadata()?, entry.path());
            match numbered {
                Some((transfer, part)) => parts.note(&transfer, part, metadata.len(), metadata.modified()?),
                // A message that was being written when the power went: it was never acknowledged.
                None => fs::remove_file(path)?,
            }
        }
        Ok(parts)
    }

    /// Writes a part, unless it is there already. Returns its file when it was written, for syncing.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn add(&mut self, part: &Part, bytes: &[u8]) -> io::Result<Option<File>> {
        if self.open.get(&part.transfer).is_some_and(|transfer| transfer.have.contains(&part.part)) {
            return Ok(None);
        }
        self.make_room(&part.transfer, bytes.len() as u64)?;
        let mut file = File::create(self.path(&part.transfer, part.part))?;
        file.write_all(bytes)?;
        self.note(&part.transfer, part.part, bytes.len() as u64, SystemTime::now());
        Ok(Some(file))
    }

    /// Whether all parts are there.
    pub fn is_complete(&self, part: &Part) -> bool {
        let have = self.open.get(&part.transfer).map_or(0, |transfer| transfer.have.len());
        u32::try_from(have) == Ok(part.parts)
    }

    /// Reads all parts one after the other.
    pub fn reader(&self, part: &Part) -> PartsReader {
        PartsReader {
            folder: self.folder.clone(),
            transfer: part.transfer.clone(),
            next: 1,
            parts: part.parts,
            file: None,
        }
    }

    /// Forgets a transfer and its files.
    ///
    /// # Errors
    /// When a file can't be removed.
    pub fn remove(&mut self, transfer: &str) -> io::Result<()> {
        let Some(gone) = self.open.remove(transfer) else { return Ok(()) };
        gone.have.iter().try_for_each(|part| fs::remove_file(self.path(transfer, *part)))
    }

    fn note(&mut self, transfer: &str, part: u32, bytes: u64, at: SystemTime) {
        let fresh = || Transfer { have: BTreeSet::new(), bytes: 0, touched: at };
        let open = self.open.entry(transfer.to_owned()).or_insert_with(fresh);
        open.bytes += bytes;
        open.touched = open.touched.max(at);
        open.have.insert(part);
    }

    fn make_room(&mut self, transfer: &str, bytes: u64) -> io::Result<()> {
        let known = self.open.contains_key(transfer);
        let old = |open: &Transfer| open.touched.elapsed().is_ok_and(|age| age > AGE_MAX);
        loop {
            let others = self.open.iter().filter(|(name, _)| name.as_str() != transfer);
            let Some((name, oldest)) = others.min_by_key(|(_, open)| open.touched) else { return Ok(()) };
            let total: u64 = self.open.values().map(|open| open.bytes).sum();
            let full = (!known && self.open.len() >= TRANSFERS_MAX) || total.saturating_add(bytes) > OPEN_BYTES_MAX;
            if !full && !old(oldest) {
                return Ok(());
            }
            let name = name.clone();
            tracing::error!(
                transfer = name,
                parts = oldest.have.len(),
                "a transfer that never became complete is given up"
            );
            self.remove(&name)?;
        }
    }

    fn path(&self, transfer: &str, part: u32) -> PathBuf {
        self.folder.join(format!("{transfer}.{part}"))
    }
}

/// The parts of a transfer as one stream.
pub struct PartsReader {
    folder: PathBuf,
    transfer: String,
    next: u32,
    parts: u32,
    file: Option<File>,
}

impl Read for PartsReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(file) = &mut self.file {
                match file.read(buffer)? {
                    0 => self.file = None,
                    count => return Ok(count),
                }
            }
            if self.next > self.parts {
                return Ok(0);
            }
            self.file = Some(File::open(self.folder.join(format!("{}.{}", self.transfer, self.next)))?);
            self.next += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(transfer: &str, part: u32, parts: u32) -> Part {
        Part { transfer: transfer.into(), part, parts }
    }

    #[test]
    fn parts_in_any_order_and_twice_read_back_as_one_also_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let mut parts = Parts::find(folder.path()).unwrap();
        parts.add(&part("t", 2, 3), b"b").unwrap();
        parts.add(&part("t", 3, 3), b"c").unwrap();
        assert!(parts.add(&part("t", 2, 3), b"x").unwrap().is_none());
        fs::write(folder.path().join("half.writing"), b"x").unwrap();
        let mut parts = Parts::find(folder.path()).unwrap();
        assert!(!parts.is_complete(&part("t", 1, 3)));
        parts.add(&part("t", 1, 3), b"a").unwrap();
        assert!(parts.is_complete(&part("t", 1, 3)));
        let mut all = String::new();
        parts.reader(&part("t", 1, 3)).read_to_string(&mut all).unwrap();
        assert_eq!(all, "abc");
        parts.remove("t").unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn transfers_that_never_end_do_not_fill_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let mut parts = Parts::find(folder.path()).unwrap();
        for number in 0..TRANSFERS_MAX + 50 {
            parts.add(&part(&format!("t{number}"), 1, 2), b"x").unwrap();
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), TRANSFERS_MAX);
    }
}
