//! The demo's far end: the folder that the collector fills. Each file is read back and looked up in the [`Ledger`].
//!
//! A monitor's message has served its purpose then and is deleted; a real device's stays for whoever sent it. Only the
//! collector's finished files are touched (`<site>/<gateway>/<source>/<file>`), never what it is still writing.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, DirEntry};
use std::io;
use std::path::{Path, PathBuf};

use super::ledger::{Ledger, fingerprint};

/// Largest file that is looked at as a monitor's message: they are 1 kB long.
const MESSAGE_BYTES_MAX: u64 = 64 << 10;
/// Files of real devices that are remembered, so that each is counted once.
const STRANGERS_MAX: usize = 100_000;

/// The folder.
pub struct Inbox {
    folder: PathBuf,
    strangers: HashSet<PathBuf>,
}

impl Inbox {
    /// The collector's folder.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), strangers: HashSet::new() }
    }

    /// Looks at all that has come since the last time. Blocks for disk reads.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn sweep(&mut self, ledger: &Ledger) -> io::Result<()> {
        for site in folders(&self.folder)? {
            for gateway in folders(&site.path())? {
                for source in folders(&gateway.path())? {
                    self.sweep_source(&source.path(), ledger)?;
                }
            }
        }
        Ok(())
    }

    /// How many messages of real devices have come.
    pub fn strangers(&self) -> usize {
        self.strangers.len()
    }

    fn sweep_source(&mut self, folder: &Path, ledger: &Ledger) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let path = entry.path();
            if self.strangers.contains(&path) || !entry.file_type()?.is_file() {
                continue;
            }
            let is_ours =
                entry.metadata()?.len() <= MESSAGE_BYTES_MAX && ledger.arrived(&fingerprint(&fs::read(&path)?));
            if is_ours {
                fs::remove_file(&path)?;
            } else if self.strangers.len() < STRANGERS_MAX {
                self.strangers.insert(path);
            }
        }
        Ok(())
    }
}

/// The folders in a folder, without hidden ones; none when it is not there yet.
fn folders(folder: &Path) -> io::Result<Vec<DirEntry>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let visible = |name: &OsStr| !name.as_encoded_bytes().starts_with(b".");
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() && visible(&entry.file_name()) {
            found.push(entry);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_monitors_message_is_ticked_off_and_a_real_devices_stays() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("demo/box/monitors");
        fs::create_dir_all(&source).unwrap();
        fs::create_dir_all(folder.path().join(".incoming/x/y")).unwrap();
        fs::write(folder.path().join(".incoming/x/y/half.hl7"), "half").unwrap();
        let (ledger, mut inbox) = (Ledger::default(), Inbox::new(folder.path()));
        let message = fingerprint(b"ours");
        ledger.sending(message, "1");
        ledger.acknowledged(&message);
        fs::write(source.join("1.hl7"), "ours").unwrap();
        fs::write(source.join("2.hl7"), "a real device's").unwrap();
        for _ in 0..2 {
            inbox.sweep(&ledger).unwrap();
            assert_eq!((ledger.totals().arrived, inbox.strangers()), (1, 1));
        }
        assert_eq!(fs::read_dir(&source).unwrap().count(), 1);
        assert!(ledger.missing().is_empty());
    }

    #[test]
    fn a_changed_byte_is_not_an_arrival() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("demo/box/monitors");
        fs::create_dir_all(&source).unwrap();
        let (ledger, message) = (Ledger::default(), fingerprint(b"ours"));
        ledger.sending(message, "1");
        ledger.acknowledged(&message);
        fs::write(source.join("1.hl7"), "0urs").unwrap();
        Inbox::new(folder.path()).sweep(&ledger).unwrap();
        assert_eq!(ledger.missing(), ["1"]);
    }
}
