//! `wardgate recover`: reads the spool of a dead box with the recovery identity.
//!
//! Works on the disk (or a copy of it) without the service and changes nothing on it. What it writes is patient data in clear.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufWriter, ErrorKind, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use zeroize::Zeroizing;

use super::dead::new_private_file;
use super::exit::{Exit, Failure, OrExit};
use super::say_json;
use super::spool::damage_text;
use super::table::{bytes, count, counted};
use super::terminal::{progress, progress_over, say};
use crate::admin::answers::{Damage, Progress, When};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::envelope::{BodyError, Class, Envelope};
use crate::spool::{
    Damaged, KeyError, RECOVERY_BYTES_MAX, RECOVERY_FILE, Rescue, RescueError, Secret, Seen, Sight, parse_root,
    refuse_destroyed,
};
use crate::upstream::opening::{OpenError, Opener};
use crate::values::Name;

/// The list of what was written, one JSON object a line.
const LIST: &str = "messages.jsonl";

/// Reads what a dead box still held, with the recovery identity of the hospital.
///
/// The configuration named recovery recipients (spool.recovery) when the box was alive; the owner of one of their identities can
/// read its disk. Each message becomes a file, named by its time, source and id; `messages.jsonl` tells of each whether it still
/// waited, was refused (a dead letter) or had been delivered and was only kept.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wardgate recover --spool /mnt/deadbox/var/lib/wardgate --identity hospital-recovery.txt --into rescued
  wardgate recover --spool copy-of-the-spool --identity hospital-recovery.txt --into rescued --json

Safe: the spool is only read; work on a copy all the same. The files in --into hold patient data in clear (mode 0600).
Ends with 65 when something was damaged: what could be read has been written, and what could not is named.")]
pub struct RecoverArgs {
    /// The spool's folder.
    #[arg(long, value_name = "DIR")]
    pub spool: PathBuf,
    /// The file with the recovery identity (AGE-SECRET-KEY-1...).
    #[arg(long, value_name = "FILE")]
    pub identity: PathBuf,
    /// The folder for the messages, which must not be there yet.
    #[arg(long, value_name = "DIR")]
    pub into: PathBuf,
    /// Print JSON for a script.
    #[arg(long)]
    json: bool,
}

/// What was rescued.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Rescued {
    /// Messages that were written.
    pub messages: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Of these, such that some upstream had not taken yet.
    pub undelivered: u64,
    /// What could not be read.
    pub damage: Vec<Damage>,
}

/// Runs `wardgate recover`.
///
/// # Errors
/// [`Exit::CannotCreate`] when the folder is there already, [`Exit::NoPermission`] for a wrong identity, [`Exit::Config`] when there
/// is nothing for it to open, [`Exit::Data`] when something was damaged.
pub fn run(args: &RecoverArgs) -> Result<(), Failure> {
    let made = std::fs::DirBuilder::new().mode(0o700).create(&args.into);
    made.or_exit(Exit::CannotCreate, format!("can't make {}", args.into.display()))?;
    let rescued = rescue(args, &mut |step| progress(&format!("  {} {}", count(step.done), step.what)));
    progress_over();
    if rescued.is_err() {
        // Only an empty folder goes: what was written stays.
        std::fs::remove_dir(&args.into).ok();
    }
    let rescued = rescued?;
    match args.json {
        true => say_json(&rescued)?,
        false => say(&told(&rescued, args))?,
    }
    if rescued.damage.is_empty() {
        return Ok(());
    }
    let places = rescued.damage.iter().map(damage_text);
    Err(Failure::new(Exit::Data, format!("not everything could be read:{}", places.collect::<String>())))
}

fn told(rescued: &Rescued, args: &RecoverArgs) -> String {
    format!(
        "{} ({}) written into {}, not delivered yet of these: {}; they are patient data in clear",
        counted(rescued.messages, "message"),
        bytes(rescued.bytes),
        args.into.display(),
        count(rescued.undelivered)
    )
}

/// Opens the spool with the identity, read-only, and writes each message into the folder, which is there and empty.
fn rescue(args: &RecoverArgs, tell: &mut dyn FnMut(Progress)) -> Result<Rescued, Failure> {
    let root = root_key(&args.spool, &args.identity)?;
    let opened = Rescue::open(&args.spool, root).map_err(|error| {
        let exit = if matches!(error, RescueError::Key(_)) { Exit::Config } else { Exit::Io };
        Failure::new(exit, format!("{}: {error}", args.spool.display()))
    })?;
    let mut shelf = Shelf::new(&args.into)?;
    let mut trouble = None;
    let see = &mut |sight| {
        let outcome = match sight {
            Sight::Segments { done, total } => {
                tell(Progress { what: "segments".to_owned(), done, total: Some(total) });
                Ok(())
            }
            Sight::Message(seen) => shelf.put(&seen),
            Sight::Damage(found) => {
                shelf.note(found);
                Ok(())
            }
        };
        trouble = outcome.err();
        if trouble.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    opened.survey(see).or_exit(Exit::Io, format!("can't read {}", args.spool.display()))?;
    match trouble {
        Some(failure) => Err(failure),
        None => shelf.close(),
    }
}

/// The root key of a dead box, from what it had sealed for this day.
fn root_key(spool: &Path, identity: &Path) -> Result<Secret, Failure> {
    let opener = Opener::from_file(identity).or_exit(Exit::Config, "can't use the identity")?;
    let path = spool.join(RECOVERY_FILE);
    let mut sealed = Vec::new();
    let read = File::open(&path).and_then(|file| file.take(RECOVERY_BYTES_MAX).read_to_end(&mut sealed));
    read.map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            if let Err(error @ KeyError::Destroyed(_)) = refuse_destroyed(spool) {
                return Failure::new(Exit::Config, error.to_string());
            }
            let why = "[spool] recovery named nobody while the box was alive, or this is not a spool";
            Failure::new(Exit::Config, format!("{} is not there: {why}", path.display()))
        }
        _ => Failure::new(Exit::Io, format!("can't read {}: {error}", path.display())),
    })?;
    let text = opener.open_whole(&sealed).map(Zeroizing::new).map_err(|error| {
        let exit = if matches!(error, OpenError::NotForUs) { Exit::NoPermission } else { Exit::Data };
        Failure::new(exit, format!("{}: {error}", path.display()))
    })?;
    parse_root(&text).or_exit(Exit::Data, format!("{} holds no key", path.display()))
}

/// The folder that the messages are put into, and the list of them.
struct Shelf<'a> {
    folder: &'a Path,
    list: BufWriter<File>,
    rescued: Rescued,
    /// Bodies are read by a runtime of their own: this is no place for others.
    runtime: tokio::runtime::Runtime,
}

/// One line of `messages.jsonl`.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Line<'a> {
    file: &'a str,
    id: String,
    log: Class,
    source: &'a Name,
    protocol: &'a str,
    content_type: &'a str,
    control_id: Cow<'a, str>,
    flags: Vec<&'static str>,
    received: String,
    clock_synchronised: bool,
    bytes: u64,
    sha256: String,
    /// `waiting`, `dead` (refused by an upstream) or `delivered` (kept for replay).
    state: &'static str,
    waiting_for: &'a [Name],
    dead_for: &'a [Name],
}

impl<'a> Shelf<'a> {
    fn new(folder: &'a Path) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let runtime = runtime.or_exit(Exit::Software, "can't start the runtime")?;
        let list = BufWriter::new(new_private_file(&folder.join(LIST))?);
        Ok(Self { folder, list, rescued: Rescued::default(), runtime })
    }

    /// Writes a message; one that can't be read is noted as damage and leaves no file. One that nobody waits for and that is not kept any
    /// more is none.
    fn put(&mut self, seen: &Seen) -> Result<(), Failure> {
        let name = file_name(&seen.envelope);
        let path = self.folder.join(&name);
        let sha256 = match self.body(&seen.envelope, &path)? {
            Ok(sha256) => sha256,
            Err(error) => {
                std::fs::remove_file(&path).or_exit(Exit::Io, format!("can't remove {}", path.display()))?;
                if seen.is_let_go(&error) {
                    return Ok(());
                }
                let text = format!("message {}: {error}", seen.envelope.id);
                self.rescued.damage.push(Damage { log: seen.envelope.class, segment: 0, file: String::new(), text });
                return Ok(());
            }
        };
        serde_json::to_writer(&mut self.list, &line(seen, &name, &sha256))
            .or_exit(Exit::Io, format!("can't write {LIST}"))?;
        writeln!(self.list).or_exit(Exit::Io, format!("can't write {LIST}"))?;
        self.rescued.messages += 1;
        self.rescued.bytes += seen.envelope.body.len();
        self.rescued.undelivered += u64::from(seen.is_owed());
        Ok(())
    }

    /// Writes a body and tells its SHA-256; the inner error says why it can't be read or is not what was stored.
    fn body(&self, envelope: &Envelope, path: &Path) -> Result<Result<Digest, BodyError>, Failure> {
        let mut file = new_private_file(path)?;
        let mut digest = Hasher::new(envelope.digest.algorithm);
        let mut sha256 = Hasher::new(Algorithm::Sha256);
        let mut reader = envelope.body.reader();
        loop {
            match self.runtime.block_on(reader.next()) {
                Ok(None) => break,
                Err(error) => return Ok(Err(error)),
                Ok(Some(bytes)) => {
                    digest.update(&bytes);
                    sha256.update(&bytes);
                    file.write_all(&bytes).or_exit(Exit::Io, format!("can't write {}", path.display()))?;
                }
            }
        }
        let same = digest.finish() == envelope.digest;
        Ok(if same {
            Ok(sha256.finish())
        } else {
            Err(BodyError::Unreadable("its content does not fit its checksum".to_owned()))
        })
    }

    fn note(&mut self, found: Damaged) {
        self.rescued.damage.push(Damage {
            log: found.class,
            segment: found.segment,
            file: found.file,
            text: found.text,
        });
    }

    fn close(mut self) -> Result<Rescued, Failure> {
        self.list.flush().or_exit(Exit::Io, format!("can't write {LIST}"))?;
        // One call for many small files; the list is told of last.
        nix::unistd::syncfs(self.list.get_ref()).or_exit(Exit::Io, "what was written can't be made durable")?;
        Ok(self.rescued)
    }
}

fn line<'a>(seen: &'a Seen, file: &'a str, sha256: &Digest) -> Line<'a> {
    let (envelope, meta) = (&seen.envelope, &seen.envelope.meta);
    Line {
        file,
        id: envelope.id.to_string(),
        log: envelope.class,
        source: &meta.source,
        protocol: &meta.protocol,
        content_type: &meta.content_type,
        control_id: String::from_utf8_lossy(&meta.control_id),
        flags: meta.flags.names(),
        received: When::from(meta.received).to_string(),
        clock_synchronised: meta.received.synchronised,
        bytes: envelope.body.len(),
        sha256: data_encoding::HEXLOWER.encode(&sha256.bytes),
        state: match (seen.dead.is_empty(), seen.waiting.is_empty()) {
            (false, _) => "dead",
            (true, false) => "waiting",
            (true, true) => "delivered",
        },
        waiting_for: &seen.waiting,
        dead_for: &seen.dead,
    }
}

/// `20261122T140000Z-monitors-5b0c....hl7`: sorts by time.
fn file_name(envelope: &Envelope) -> String {
    let meta = &envelope.meta;
    let ending = match meta.content_type.split(';').next().unwrap_or_default().trim() {
        "application/hl7-v2" | "x-application/hl7-v2+er7" => "hl7",
        "application/dicom" => "dcm",
        _ => "bin",
    };
    let received = When::from(meta.received).0.strftime("%Y%m%dT%H%M%SZ").to_string();
    format!("{received}-{}-{}.{ending}", meta.source, envelope.id)
}
