//! The folder that a collector fills.
//!
//! ```text
//! <site>/<gateway>/<source>/<received>-<id>.<ext>   one file for each message: hl7, dcm, astm, json, txt or bin
//! received.jsonl                                   one line of JSON for each: id, file, sha256, content type, flags, ...
//! received.1.jsonl                                 the lines before those
//! .incoming/                                       what is not complete
//! ```
//!
//! Names sort by the time of reception, so a program that reads a folder in order has the source's order. A file appears whole and
//! synced, by rename; it may be moved or deleted by whoever processes it. A message that was sealed and could not be
//! opened is kept as it came, with `.age` at its end: content never stops storage. Each batch is synced together, in this order: bodies,
//! names, journal. So whatever is receipted is on disk, and whatever the journal names is.
//!
//! Second copies are known by their `id`: the last [`KNOWN_MAX`] of the journal, and any file that still lies there.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use mqtt_protocol_core::mqtt::common::ArcPayload;
use mqtt_protocol_core::mqtt::packet::v5_0::GenericPublish;
use mqtt_protocol_core::mqtt::result_code::PubackReasonCode;

use super::parts::Parts;
use crate::system::disk::{FolderLock, sync_folder};
use crate::upstream::opening::Opener;
use crate::values::Name;
use crate::wire::mqtt_label::{Label, LabelError, Received};

/// Ids that are remembered to know second copies by.
pub const KNOWN_MAX: usize = 1 << 18;
/// The journal is begun anew when it is longer.
pub const JOURNAL_BYTES_MAX: u64 = 256 << 20;
/// Of the journal's end so much is read at the start.
const JOURNAL_TAIL_BYTES: u64 = 128 << 20;
/// Up to so many new files are synced one by one; more are synced with their whole file system.
const SINGLE_SYNCS_MAX: usize = 4;
/// Bytes that are copied at once.
const COPY_BYTES: usize = 128 << 10;

/// A publish as it came.
pub struct Incoming {
    topic: String,
    packet_id: Option<u16>,
    label: Result<Label, LabelError>,
    payload: ArcPayload,
}

impl From<&GenericPublish<u16>> for Incoming {
    fn from(publish: &GenericPublish<u16>) -> Self {
        Self {
            topic: publish.topic_name().to_owned(),
            packet_id: publish.packet_id(),
            label: Label::read(publish.props()),
            payload: publish.payload().clone(),
        }
    }
}

/// What became of it. Everything that an outcome says is synced.
#[derive(Debug)]
pub struct Outcome {
    /// For the PUBACK.
    pub packet_id: Option<u16>,
    /// What to tell the gateway, and on which topic.
    pub receipt: Option<(String, Received)>,
    /// What was done.
    pub verdict: Verdict,
}

/// What was done with a publish.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A new message.
    Stored {
        /// Its length on disk.
        bytes: u64,
    },
    /// A second copy.
    Repeat,
    /// One part of several.
    Part,
    /// Not usable.
    Refused {
        /// For the PUBACK.
        code: PubackReasonCode,
        /// In words, without content.
        reason: String,
    },
}

/// The folder can't be used, or writing failed. Nothing of the batch was acknowledged.
#[derive(Debug, thiserror::Error)]
#[error("{}: {cause}; check its owner and that the disk has room", path.display())]
pub struct StoreError {
    path: PathBuf,
    cause: io::Error,
}

/// The folder, open. One at a time.
pub struct Store {
    folder: PathBuf,
    parts: Parts,
    known: Known,
    journal: File,
    opener: Option<Opener>,
    _lock: FolderLock,
}

/// What a batch wrote and has not synced yet.
#[derive(Default)]
struct Batch {
    fresh: Vec<File>,
    staged: Vec<Staged>,
    complete: Vec<String>,
    ids: HashSet<String>,
    /// Journal lines of messages whose files are there already.
    lines: String,
}

/// A whole message that waits for its name.
struct Staged {
    temporary: PathBuf,
    place: PathBuf,
    line: String,
}

impl Store {
    /// Opens the folder, making it when it is not there.
    ///
    /// # Errors
    /// [`StoreError`], also when another collector has it open.
    pub fn open(folder: &Path, opener: Option<Opener>) -> Result<Self, StoreError> {
        let failed = |cause| StoreError { path: folder.to_owned(), cause };
        let incoming = folder.join(".incoming");
        fs::create_dir_all(&incoming).map_err(failed)?;
        let lock = FolderLock::acquire(folder).map_err(|error| failed(io::Error::other(error)))?;
        let parts = Parts::find(&incoming).map_err(failed)?;
        // What a run that was cut off had renamed counts as a second copy from now on: it must be on disk before it is receipted.
        sync_file_system(folder).map_err(failed)?;
        let known = Known::read(folder).map_err(failed)?;
        let journal = open_journal(folder).map_err(failed)?;
        Ok(Self { folder: folder.to_owned(), parts, known, journal, opener, _lock: lock })
    }

    /// Writes a batch and syncs it. Blocks.
    ///
    /// # Errors
    /// [`StoreError`]; the store must be opened anew then.
    pub fn take(&mut self, incoming: Vec<Incoming>) -> Result<Vec<Outcome>, StoreError> {
        let path = self.folder.clone();
        self.take_io(incoming).map_err(|cause| StoreError { path, cause })
    }

    fn take_io(&mut self, incoming: Vec<Incoming>) -> io::Result<Vec<Outcome>> {
        let mut batch = Batch::default();
        let mut outcomes = Vec::with_capacity(incoming.len());
        for publish in incoming {
            outcomes.push(self.one(&mut batch, publish)?);
        }
        self.commit(batch)?;
        Ok(outcomes)
    }

    fn one(&mut self, batch: &mut Batch, publish: Incoming) -> io::Result<Outcome> {
        let packet_id = publish.packet_id;
        let refused = |code, reason| Outcome { packet_id, receipt: None, verdict: Verdict::Refused { code, reason } };
        let label = match publish.label {
            Ok(label) => label,
            Err(error) => return Ok(refused(PubackReasonCode::PayloadFormatInvalid, error.to_string())),
        };
        let Some(place) = Place::read(&publish.topic) else {
            let reason = "the topic is not <root>/<site>/<gateway>/<source>/<log>".to_owned();
            return Ok(refused(PubackReasonCode::TopicNameInvalid, reason));
        };
        let receipt = label.sha256.clone().map(|sha256| (place.receipt(), Received { id: label.id.clone(), sha256 }));
        let known = self.known.has(&label.id) || batch.ids.contains(&label.id) || self.find(batch, &place, &label)?;
        let verdict = match (&label.part, known) {
            (None, true) => Verdict::Repeat,
            (Some(part), true) if part.part == part.parts => Verdict::Repeat,
            (Some(_), true) => return Ok(Outcome { packet_id, receipt: None, verdict: Verdict::Part }),
            (_, false) => self.add(batch, &place, &label, publish.payload.as_slice())?,
        };
        let receipt = receipt.filter(|_| matches!(verdict, Verdict::Stored { .. } | Verdict::Repeat));
        Ok(Outcome { packet_id, receipt, verdict })
    }

    /// Takes a message, or a part of one.
    fn add(&mut self, batch: &mut Batch, place: &Place, label: &Label, bytes: &[u8]) -> io::Result<Verdict> {
        let Some(part) = &label.part else {
            return self.stage(batch, place, label, bytes);
        };
        batch.fresh.extend(self.parts.add(part, bytes)?);
        if !self.parts.is_complete(part) {
            return Ok(Verdict::Part);
        }
        let verdict = self.stage(batch, place, label, self.parts.reader(part))?;
        match &verdict {
            // Whatever was wrong with it, the gateway sends it again as another transfer.
            Verdict::Refused { .. } => self.parts.remove(&part.transfer)?,
            _ => batch.complete.push(part.transfer.clone()),
        }
        Ok(verdict)
    }

    /// Writes a whole message to a temporary file: verified, and opened if it is sealed to us.
    fn stage(&self, batch: &mut Batch, place: &Place, label: &Label, bytes: impl Read) -> io::Result<Verdict> {
        let temporary = self.folder.join(".incoming").join(format!("{}.writing", label.id));
        let mut file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(&temporary)?;
        let (mut length, mut digest) = copy(bytes, &mut file)?;
        if Some(&digest) != label.sha256.as_ref() {
            fs::remove_file(&temporary)?;
            let reason = "its bytes do not have the digest that its label says: changed on the way".to_owned();
            return Ok(Verdict::Refused { code: PubackReasonCode::PayloadFormatInvalid, reason });
        }
        let mut opened = !label.sealed;
        if let Some(opener) = self.opener.as_ref().filter(|_| label.sealed) {
            let clear = temporary.with_extension("opening");
            match open_sealed(opener, &mut file, &clear)? {
                Ok((written, bytes, sum)) => {
                    fs::rename(&clear, &temporary)?;
                    (file, length, digest, opened) = (written, bytes, sum, true);
                }
                Err(cause) => {
                    fs::remove_file(&clear)?;
                    tracing::error!(id = label.id, cause, "a sealed message can't be opened and is kept as it came");
                }
            }
        }
        let name = file_name(label, opened);
        let line = place.journal_line(label, &name, (length, &digest), opened);
        let place = self.folder.join(place.folder()).join(name);
        batch.fresh.push(file);
        batch.ids.insert(label.id.clone());
        batch.staged.push(Staged { temporary, place, line });
        Ok(Verdict::Stored { bytes: length })
    }

    /// Bodies, names, journal: each synced before the next is begun.
    fn commit(&mut self, batch: Batch) -> io::Result<()> {
        if batch.fresh.is_empty() && batch.lines.is_empty() {
            return Ok(());
        }
        match batch.fresh.len() <= SINGLE_SYNCS_MAX {
            true => batch.fresh.iter().try_for_each(File::sync_data)?,
            false => sync_file_system(&self.folder)?,
        }
        let mut folders = BTreeSet::from([self.folder.join(".incoming")]);
        for staged in &batch.staged {
            if let Some(folder) = staged.place.parent() {
                make_folder(folder)?;
                folders.insert(folder.to_owned());
            }
            fs::rename(&staged.temporary, &staged.place)?;
        }
        folders.iter().try_for_each(|folder| sync_folder(folder))?;
        let lines: String =
            batch.staged.iter().map(|staged| staged.line.as_str()).chain([batch.lines.as_str()]).collect();
        if !lines.is_empty() {
            self.journal.write_all(lines.as_bytes())?;
            self.journal.sync_data()?;
        }
        batch.ids.into_iter().for_each(|id| self.known.add(id));
        batch.complete.iter().try_for_each(|transfer| self.parts.remove(transfer))?;
        self.rotate()
    }

    fn rotate(&mut self) -> io::Result<()> {
        if self.journal.metadata()?.len() > JOURNAL_BYTES_MAX {
            fs::rename(self.folder.join(JOURNAL), self.folder.join(JOURNAL_BEFORE))?;
            self.journal = open_journal(&self.folder)?;
        }
        Ok(())
    }

    /// Whether its file is there though the journal does not know it: a run was cut off between the two. It gets its line.
    fn find(&self, batch: &mut Batch, place: &Place, label: &Label) -> io::Result<bool> {
        for opened in [true, false] {
            let name = file_name(label, opened);
            let file = match File::open(self.folder.join(place.folder()).join(&name)) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let (length, digest) = copy(file, &mut io::sink())?;
            batch.lines.push_str(&place.journal_line(label, &name, (length, &digest), opened));
            batch.ids.insert(label.id.clone());
            return Ok(true);
        }
        Ok(false)
    }
}

const JOURNAL: &str = "received.jsonl";
const JOURNAL_BEFORE: &str = "received.1.jsonl";

/// The levels of a message's topic.
struct Place {
    root: String,
    site: Name,
    gateway: Name,
    source: Name,
    log: Name,
}

impl Place {
    fn read(topic: &str) -> Option<Self> {
        let mut levels = topic.rsplitn(5, '/');
        let mut name = || levels.next()?.parse::<Name>().ok();
        let (log, source, gateway, site) = (name()?, name()?, name()?, name()?);
        Some(Self { root: levels.next()?.to_owned(), site, gateway, source, log })
    }

    fn receipt(&self) -> String {
        format!("{}/{}/{}/receipt", self.root, self.site, self.gateway)
    }

    fn folder(&self) -> PathBuf {
        [&self.site, &self.gateway, &self.source].into_iter().map(Name::as_str).collect()
    }

    fn journal_line(&self, label: &Label, name: &str, (bytes, sha256): (u64, &str), opened: bool) -> String {
        let line = serde_json::json!({
            "id": label.id,
            "file": self.folder().join(name).to_string_lossy(),
            "site": self.site.as_str(),
            "gateway": self.gateway.as_str(),
            "source": self.source.as_str(),
            "log": self.log.as_str(),
            "protocol": label.protocol,
            "received": label.received,
            "content-type": label.content_type,
            "flags": label.flags,
            "bytes": bytes,
            "sha256": sha256,
            "sealed": !opened,
        });
        format!("{line}\n")
    }
}

/// The ids of the last messages, the oldest first.
struct Known {
    ids: HashSet<u128>,
    order: VecDeque<u128>,
}

impl Known {
    fn read(folder: &Path) -> io::Result<Self> {
        let mut known = Self { ids: HashSet::new(), order: VecDeque::new() };
        for journal in [JOURNAL_BEFORE, JOURNAL] {
            match File::open(folder.join(journal)) {
                Ok(file) => known.read_tail(file)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(known)
    }

    fn read_tail(&mut self, mut file: File) -> io::Result<()> {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(JOURNAL_TAIL_BYTES)))?;
        let mut reader = BufReader::new(file.take(JOURNAL_TAIL_BYTES));
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line)? > 0 {
            // A line that was cut off by a power cut was not receipted: its message comes again.
            if let Ok(serde_json::Value::Object(line)) = serde_json::from_slice(&line) {
                line.get("id").and_then(|id| id.as_str()).into_iter().for_each(|id| self.add(id.to_owned()));
            }
            line.clear();
        }
        Ok(())
    }

    fn has(&self, id: &str) -> bool {
        u128::from_str_radix(id, 16).is_ok_and(|id| self.ids.contains(&id))
    }

    fn add(&mut self, id: String) {
        let Ok(id) = u128::from_str_radix(&id, 16) else { return };
        if !self.ids.insert(id) {
            return;
        }
        self.order.push_back(id);
        if self.order.len() > KNOWN_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
    }
}

fn open_journal(folder: &Path) -> io::Result<File> {
    let path = folder.join(JOURNAL);
    let mut journal = OpenOptions::new().create(true).append(true).read(true).open(path)?;
    let length = journal.metadata()?.len();
    // A line that a power cut left half must not swallow the next one.
    if length > 0 {
        let mut last = [0];
        journal.seek(SeekFrom::Start(length - 1))?;
        journal.read_exact(&mut last)?;
        if last != *b"\n" {
            journal.write_all(b"\n")?;
        }
    }
    sync_folder(folder)?;
    Ok(journal)
}

fn file_name(label: &Label, opened: bool) -> String {
    let received = label.received.parse::<jiff::Timestamp>().ok();
    let received = received.map(|at| at.strftime("%Y%m%dT%H%M%S.%6fZ-").to_string()).unwrap_or_default();
    let essence = label.content_type.split(';').next().unwrap_or_default().trim();
    let extension = match essence {
        "application/hl7-v2" => "hl7",
        "application/dicom" => "dcm",
        "application/json" | "application/fhir+json" | "application/senml+json" => "json",
        "application/vnd.wardgate.record+json" => "json",
        "application/vnd.wardgate.astm" => "astm",
        "text/plain" => "txt",
        _ => "bin",
    };
    let sealed = if opened { "" } else { ".age" };
    format!("{received}{}.{extension}{sealed}", label.id)
}

fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(folder)?;
    // The names of the new folders, too, must be on disk before a receipt.
    folder.ancestors().skip(1).take(3).try_for_each(sync_folder)
}

fn sync_file_system(folder: &Path) -> io::Result<()> {
    nix::unistd::syncfs(File::open(folder)?).map_err(io::Error::from)
}

fn open_sealed(opener: &Opener, sealed: &mut File, clear: &Path) -> io::Result<Result<(File, u64, String), String>> {
    sealed.seek(SeekFrom::Start(0))?;
    let mut file = File::create(clear)?;
    let reader = match opener.open(&*sealed) {
        Ok(reader) => reader,
        Err(error) => return Ok(Err(error.to_string())),
    };
    // Only our own disk's faults stop the batch; sealed bytes that turn out not to be genuine do not.
    let mut genuine = Genuine { reader, fault: None };
    let copied = copy(&mut genuine, &mut file)?;
    Ok(match genuine.fault {
        Some(fault) => Err(fault),
        None => Ok((file, copied.0, copied.1)),
    })
}

/// Ends the stream at the first fault and keeps it.
struct Genuine<R> {
    reader: R,
    fault: Option<String>,
}

impl<R: Read> Read for Genuine<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buffer).or_else(|error| {
            self.fault = Some(error.to_string());
            Ok(0)
        })
    }
}

fn copy(mut from: impl Read, to: &mut impl Write) -> io::Result<(u64, String)> {
    let (mut length, mut sum) = (0, digest::Context::new(&digest::SHA256));
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        let count = from.read(&mut buffer)?;
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else { break };
        sum.update(bytes);
        to.write_all(bytes)?;
        length += bytes.len() as u64;
    }
    Ok((length, data_encoding::HEXLOWER.encode(sum.finish().as_ref())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::mqtt_label::Part;

    const TOPIC: &str = "wardgate/st-marys/icu-3/monitors/clinical";

    fn incoming(id: u8, bytes: &[u8], sha256: Option<&[u8]>, part: Option<(&str, u32, u32)>) -> Incoming {
        let sum = |bytes| data_encoding::HEXLOWER.encode(digest::digest(&digest::SHA256, bytes).as_ref());
        let label = Label {
            id: format!("{id:032x}"),
            source: "monitors".into(),
            protocol: "mllp".into(),
            received: "2026-01-02T03:04:05Z".into(),
            sha256: sha256.map(sum),
            sealed: false,
            flags: None,
            content_type: "application/hl7-v2; charset=utf-8".into(),
            part: part.map(|(transfer, part, parts)| Part { transfer: transfer.into(), part, parts }),
        };
        let payload = ArcPayload::new(bytes.into(), 0, bytes.len());
        Incoming { topic: TOPIC.into(), packet_id: Some(1), label: Ok(label), payload }
    }

    fn file(folder: &Path, id: u8) -> PathBuf {
        folder.join(format!("st-marys/icu-3/monitors/20260102T030405.000000Z-{id:032x}.hl7"))
    }

    fn journal(folder: &Path) -> usize {
        fs::read_to_string(folder.join(JOURNAL)).unwrap().lines().filter(|line| !line.is_empty()).count()
    }

    #[test]
    fn a_transfer_that_a_restart_interrupted_is_completed_by_its_last_part() {
        let folder = tempfile::tempdir().unwrap();
        let whole = Some(&b"abc"[..]);
        let mut store = Store::open(folder.path(), None).unwrap();
        let first = [incoming(1, b"a", None, Some(("t", 1, 3))), incoming(1, b"b", None, Some(("t", 2, 3)))];
        let outcomes = store.take(first.into()).unwrap();
        assert!(outcomes.iter().all(|outcome| outcome.verdict == Verdict::Part && outcome.receipt.is_none()));
        drop(store);
        let mut store = Store::open(folder.path(), None).unwrap();
        // The broker sends what we had not acknowledged again.
        let rest = [incoming(1, b"b", None, Some(("t", 2, 3))), incoming(1, b"c", whole, Some(("t", 3, 3)))];
        let outcomes = store.take(rest.into()).unwrap();
        assert_eq!(outcomes[1].verdict, Verdict::Stored { bytes: 3 });
        assert_eq!(outcomes[1].receipt.as_ref().unwrap().0, "wardgate/st-marys/icu-3/receipt");
        assert_eq!(fs::read(file(folder.path(), 1)).unwrap(), b"abc");
        assert_eq!(fs::read_dir(folder.path().join(".incoming")).unwrap().count(), 0);
    }

    #[test]
    fn a_second_copy_is_receipted_again_and_not_stored_again_even_in_the_same_batch() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path(), None).unwrap();
        let copies = [incoming(1, b"x", Some(b"x"), None), incoming(1, b"x", Some(b"x"), None)];
        let outcomes = store.take(copies.into()).unwrap();
        assert_eq!(outcomes[1].verdict, Verdict::Repeat);
        assert_eq!(outcomes[0].receipt, outcomes[1].receipt);
        assert_eq!(journal(folder.path()), 1);
    }

    #[test]
    fn a_transfer_with_the_wrong_digest_is_refused_and_sent_anew_it_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path(), None).unwrap();
        let wrong = [incoming(1, b"a", None, Some(("t", 1, 2))), incoming(1, b"X", Some(b"ab"), Some(("t", 2, 2)))];
        let outcomes = store.take(wrong.into()).unwrap();
        assert!(matches!(outcomes[1].verdict, Verdict::Refused { code: PubackReasonCode::PayloadFormatInvalid, .. }));
        let again = [incoming(1, b"a", None, Some(("u", 1, 2))), incoming(1, b"b", Some(b"ab"), Some(("u", 2, 2)))];
        assert_eq!(store.take(again.into()).unwrap()[1].verdict, Verdict::Stored { bytes: 2 });
    }

    #[test]
    fn a_run_that_was_cut_off_between_file_and_journal_is_made_good() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path(), None).unwrap();
        store.take(vec![incoming(1, b"one", Some(b"one"), None), incoming(2, b"two", Some(b"two"), None)]).unwrap();
        drop(store);
        let path = folder.path().join(JOURNAL);
        let lines = fs::read(&path).unwrap();
        fs::write(&path, &lines[..lines.len() - 20]).unwrap();
        let mut store = Store::open(folder.path(), None).unwrap();
        let outcomes =
            store.take(vec![incoming(1, b"one", Some(b"one"), None), incoming(2, b"two", Some(b"two"), None)]);
        assert!(outcomes.unwrap().iter().all(|outcome| outcome.verdict == Verdict::Repeat));
        let last = fs::read_to_string(&path).unwrap().lines().last().unwrap().to_owned();
        let last: serde_json::Value = serde_json::from_str(&last).unwrap();
        assert_eq!((last["id"].as_str(), last["bytes"].as_u64()), (Some(format!("{:032x}", 2).as_str()), Some(3)));
    }

    #[test]
    fn two_collectors_do_not_share_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let _first = Store::open(folder.path(), None).unwrap();
        assert!(Store::open(folder.path(), None).is_err());
    }
}
