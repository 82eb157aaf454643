//! The demo's far end: the folder that the collector fills. Each file is read back and looked up in the [`Books`].
//!
//! What the demo's own devices sent has served its purpose then and is deleted; a real device's stays for whoever sent it. Only the
//! collector's finished files are touched (`<site>/<gateway>/<source>/<file>`), never what it is still writing.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, DirEntry};
use std::io;
use std::path::{Path, PathBuf};

use super::ledger::{Books, fingerprint};
use crate::telemetry::record::Record;
use crate::wire::dicom::file::FileMeta;

/// Largest file that is looked at as a monitor's message: they are 1 kB long.
const MESSAGE_BYTES_MAX: u64 = 64 << 10;
/// Largest file that is looked at as a scanner's image: they have half of that.
const IMAGE_BYTES_MAX: u64 = 1 << 20;
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
    pub fn sweep(&mut self, books: &Books) -> io::Result<()> {
        for site in folders(&self.folder)? {
            for gateway in folders(&site.path())? {
                for source in folders(&gateway.path())? {
                    self.sweep_source(&source.path(), books)?;
                }
            }
        }
        Ok(())
    }

    /// How many messages and images of real devices have come.
    pub fn strangers(&self) -> usize {
        self.strangers.len()
    }

    fn sweep_source(&mut self, folder: &Path, books: &Books) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let path = entry.path();
            if self.strangers.contains(&path) || !entry.file_type()?.is_file() {
                continue;
            }
            if is_ours(&path, entry.metadata()?.len(), books)? {
                fs::remove_file(&path)?;
            } else if self.strangers.len() < STRANGERS_MAX {
                self.strangers.insert(path);
            }
        }
        Ok(())
    }
}

/// Whether one of the demo's devices sent this; it is ticked off then. An image is known by its data set: its file's head is the
/// gateway's. A reading, and a line of the oximeter, is known by the device's own bytes in its record.
fn is_ours(path: &Path, length: u64, books: &Books) -> io::Result<bool> {
    let is_image = path.extension() == Some(OsStr::new("dcm"));
    if length > if is_image { IMAGE_BYTES_MAX } else { MESSAGE_BYTES_MAX } {
        return Ok(false);
    }
    let bytes = fs::read(path)?;
    if !is_image {
        let whole = fingerprint(&bytes);
        return Ok(books.messages.arrived(&whole) || books.results.arrived(&whole) || is_reading(&bytes, books));
    }
    let data_set = FileMeta::read(&bytes).ok().and_then(|(_, at)| bytes.get(at..));
    Ok(data_set.is_some_and(|data_set| books.images.arrived(&fingerprint(data_set))))
}

fn is_reading(bytes: &[u8], books: &Books) -> bool {
    let Ok(record) = serde_json::from_slice::<Record>(bytes) else { return false };
    let Some(payload) = record.raw.and_then(|raw| raw.bytes()) else { return false };
    let fingerprint = fingerprint(&payload);
    // A line arrives as what it says, too: one that the profile could not read is missing.
    let is_read = !record.observations.is_empty();
    books.readings.arrived(&fingerprint) || (is_read && books.lines.arrived(&fingerprint))
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
    use crate::wire::dicom::values::{AeTitle, CT_IMAGE, EXPLICIT_LITTLE_ENDIAN};

    #[test]
    fn a_monitors_message_is_ticked_off_and_a_real_devices_stays() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("demo/box/monitors");
        fs::create_dir_all(&source).unwrap();
        fs::create_dir_all(folder.path().join(".incoming/x/y")).unwrap();
        fs::write(folder.path().join(".incoming/x/y/half.hl7"), "half").unwrap();
        let (books, mut inbox) = (Books::default(), Inbox::new(folder.path()));
        let message = fingerprint(b"ours");
        books.messages.sending(message, "1");
        books.messages.acknowledged(&message);
        fs::write(source.join("1.hl7"), "ours").unwrap();
        fs::write(source.join("2.hl7"), "a real device's").unwrap();
        for _ in 0..2 {
            inbox.sweep(&books).unwrap();
            assert_eq!((books.messages.totals().arrived, inbox.strangers()), (1, 1));
        }
        assert_eq!(fs::read_dir(&source).unwrap().count(), 1);
        assert!(books.messages.missing().is_empty());
    }

    #[test]
    fn a_reading_is_known_by_the_bytes_of_the_device_in_its_record() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("demo/box/sensors");
        fs::create_dir_all(&source).unwrap();
        let (books, reading) = (Books::default(), fingerprint(b"4.2"));
        books.readings.sending(reading, "fridge-1/1");
        books.readings.acknowledged(&reading);
        let record = |raw: &str| {
            format!(
                "{{\"v\":1,\"source\":\"sensors\",\"stream\":\"fridge-1\",\"boot\":\"5f\",\"seq\":1,\
                 \"received\":{{\"utc-us\":0,\"synchronised\":true,\"uptime-ms\":1}},\"raw\":{{\"text\":\"{raw}\"}}}}"
            )
        };
        fs::write(source.join("1.json"), record("4.3")).unwrap();
        let mut inbox = Inbox::new(folder.path());
        inbox.sweep(&books).unwrap();
        assert_eq!((books.are_even(), inbox.strangers()), (false, 1));
        fs::write(source.join("2.json"), record("4.2")).unwrap();
        inbox.sweep(&books).unwrap();
        assert!(books.are_even());
    }

    #[test]
    fn a_line_of_the_oximeter_has_arrived_when_its_bytes_did_and_its_values_with_them() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("demo/box/oximeter");
        fs::create_dir_all(&source).unwrap();
        let (books, line) = (Books::default(), fingerprint(b"SPO2=098%"));
        books.lines.sending(line, "line 1");
        books.lines.acknowledged(&line);
        let record = |observations: &str| {
            format!(
                "{{\"v\":1,\"source\":\"oximeter\",\"stream\":\"numerics\",\"boot\":\"5f\",\"seq\":1,\
                 \"received\":{{\"utc-us\":0,\"synchronised\":true,\"uptime-ms\":1}},\
                 \"observations\":[{observations}],\"raw\":{{\"text\":\"SPO2=098%\"}}}}"
            )
        };
        let mut inbox = Inbox::new(folder.path());
        fs::write(source.join("1.json"), record("")).unwrap();
        inbox.sweep(&books).unwrap();
        assert_eq!(books.lines.missing(), ["line 1"]);
        let value = "{\"vendor-code\":\"SPO2\",\"value\":{\"number\":\"098\"},\"unit\":\"%\",\"validity\":\"valid\"}";
        fs::write(source.join("2.json"), record(value)).unwrap();
        inbox.sweep(&books).unwrap();
        assert!(books.are_even());
    }

    #[test]
    fn a_changed_byte_is_not_an_arrival() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("demo/box/monitors");
        fs::create_dir_all(&source).unwrap();
        let (books, message) = (Books::default(), fingerprint(b"ours"));
        books.messages.sending(message, "1");
        books.messages.acknowledged(&message);
        fs::write(source.join("1.hl7"), "0urs").unwrap();
        Inbox::new(folder.path()).sweep(&books).unwrap();
        assert_eq!(books.messages.missing(), ["1"]);
    }

    #[test]
    fn an_image_is_known_by_its_data_set_under_whatever_head_it_has() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("demo/box/scanners");
        fs::create_dir_all(&source).unwrap();
        let (books, mut inbox) = (Books::default(), Inbox::new(folder.path()));
        let image = fingerprint(b"data set");
        books.images.sending(image, "2.25.1");
        books.images.acknowledged(&image);
        let meta = FileMeta {
            sop_class: CT_IMAGE,
            sop_instance: "2.25.1".parse().unwrap(),
            transfer_syntax: EXPLICIT_LITTLE_ENDIAN,
            source_ae: AeTitle::default(),
            receiving_ae: AeTitle::default(),
        };
        for (name, data_set) in [("1.dcm", &b"data set"[..]), ("2.dcm", b"another")] {
            fs::write(source.join(name), [&meta.bytes(), data_set].concat()).unwrap();
        }
        fs::write(source.join("3.dcm"), "no image at all").unwrap();
        inbox.sweep(&books).unwrap();
        assert!(books.are_even());
        assert_eq!((books.images.totals().arrived, inbox.strangers()), (1, 2));
    }
}
