//! Real DICOM ends: dcmtk's programs as they come from Debian, and our scripts over pynetdicom.
//!
//! Receivers run on a free port and end with their value; senders are commands, and what they were answered is read from
//! what they say. dcmtk's senders decode an object and write it anew: bytes are compared with what *they* sent to a peer, or
//! with [`modality`], which sends a file's data set as it is.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::certs::{Authority, Issued};
use super::ports::start_on_port;
use super::process::{Ended, Process, run};
use super::tools::{python_peer, system};
use super::wait::eventually_some;

/// Options with which `storescp` takes what it is given, in whatever transfer syntax it knows, and writes the bytes that came.
pub const AS_SENT: &[&str] = &["+B", "+xa", "-pm"];

/// The title of the archives here, unless a test names another.
pub const ARCHIVE: &str = "ARCHIVE";

/// A program of dcmtk that says what it does, its sockets without Nagle's algorithm. A test of a stock sender takes the variable
/// away again: `.env_remove("TCP_NODELAY")`.
pub fn dcmtk(program: &str) -> Command {
    let mut command = system(program);
    command.arg("-v").env("TCP_NODELAY", "1");
    command
}

/// `storescu` that calls `called`; options, then files, follow. `+sd` is on: folders may be given.
pub fn storescu(to: SocketAddr, called: &str, options: &[&str], files: &[&Path]) -> Command {
    let mut command = sender("storescu", to, called, &[&["+sd"], options].concat());
    command.args(files);
    command
}

/// `dcmsend` that calls `called`: contexts as the files need them, one transfer syntax each (`storescu` needs `-x..` for that).
pub fn dcmsend(to: SocketAddr, called: &str, options: &[&str], files: &[&Path]) -> Command {
    let mut command = sender("dcmsend", to, called, &[&["+sd"], options].concat());
    command.args(files);
    command
}

/// `echoscu` that calls `called`.
pub fn echoscu(to: SocketAddr, called: &str, options: &[&str]) -> Command {
    sender("echoscu", to, called, options)
}

fn sender(program: &str, to: SocketAddr, called: &str, options: &[&str]) -> Command {
    let mut command = dcmtk(program);
    command.args(["-aet", "MODALITY", "-aec", called]).args(options);
    command.arg(to.ip().to_string()).arg(to.port().to_string());
    command
}

/// CTN's `send_image`, a second stack: it sends files one by one over one association and stops at a status that is no success.
pub fn send_image(to: SocketAddr, called: &str, options: &[&str], files: &[&Path]) -> Command {
    let mut command = system("send_image");
    command.args(["-r", "-a", "MODALITY", "-c", called]).args(options);
    command.arg(to.ip().to_string()).arg(to.port().to_string()).args(files);
    command
}

/// What `storescu` was answered: each file and the words of its status, in the order sent.
pub fn answers(said: &str) -> Vec<(PathBuf, String)> {
    let (mut file, mut found) = (None, Vec::new());
    for line in said.lines() {
        if let Some((_, name)) = line.split_once("Sending file: ") {
            file = Some(PathBuf::from(name.trim()));
        } else if let Some((_, status)) = line.split_once("Received Store Response (") {
            found.extend(file.take().map(|file| (file, status.trim_end_matches(')').to_owned())));
        }
    }
    found
}

/// Options for a dcmtk receiver that speaks TLS, a client certificate required. Add `-vc` or `-ic` for optional and none.
pub fn tls_server(ours: &Issued, trusted: &Authority) -> Vec<String> {
    tls_options(ours, trusted)
}

/// Options for a dcmtk sender that speaks TLS with a certificate of its own.
pub fn tls_client(ours: &Issued, trusted: &Authority) -> Vec<String> {
    tls_options(ours, trusted)
}

fn tls_options(ours: &Issued, trusted: &Authority) -> Vec<String> {
    let text = |path: &Path| path.display().to_string();
    ["+tls".to_owned(), text(&ours.key), text(&ours.certificate), "+cf".to_owned(), text(&trusted.certificate)].into()
}

/// Options for a dcmtk sender that speaks TLS without a certificate.
pub fn tls_anonymous_client(trusted: &Authority) -> Vec<String> {
    ["+tla".to_owned(), "+cf".to_owned(), trusted.certificate.display().to_string()].into()
}

/// dcmtk's `storescp`.
pub struct Storescp {
    /// The process, for its log and for signals.
    pub process: Process,
    /// Where it listens. It binds every address of the machine: it knows no other way.
    pub address: SocketAddr,
    store: PathBuf,
}

impl Storescp {
    /// Starts one whose title is [`ARCHIVE`] and whose files go to `store`. [`AS_SENT`] are the options most tests want; with `--fork` it takes
    /// several associations at once.
    #[track_caller]
    pub fn start<S: AsRef<str>>(store: &Path, options: &[S]) -> Self {
        let (process, port) = start_on_port(|port| {
            let mut command = dcmtk("storescp");
            command.args(["-aet", ARCHIVE]).args(options.iter().map(AsRef::as_ref));
            Process::start(command.arg("-od").arg(store).arg(port.to_string()))
        });
        Self { process, address: ([127, 0, 0, 1], port).into(), store: store.to_owned() }
    }

    /// The files that it has written so far, sorted by name (`CT.1.2.3`: modality and SOP instance). It writes in place: one of them
    /// may not be whole yet while a sender is at work.
    pub fn files(&self) -> Vec<PathBuf> {
        files_in(&self.store)
    }
}

/// Files in a folder, sorted by name; unfinished ones (`.part`) are left out.
pub fn files_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        entries.filter(|path| path.is_file() && path.extension().is_none_or(|end| end != "part")).collect();
    files.sort();
    files
}

/// The pynetdicom archive of `tests/it/peers/dicom_scp.py`: statuses, delays, commitment and refusals as the test says.
pub struct Archive {
    /// The process.
    pub process: Process,
    /// Where it listens.
    pub address: SocketAddr,
    store: PathBuf,
}

impl Archive {
    /// Starts one whose title is [`ARCHIVE`] and whose files go to `store`; the script's `--help` tells the options.
    #[track_caller]
    pub fn start<S: AsRef<str>>(store: &Path, options: &[S]) -> Self {
        let mut process = Process::start(
            python_peer("dicom_scp.py").arg("--store").arg(store).args(options.iter().map(AsRef::as_ref)),
        );
        let address = process.listening();
        Self { process, address, store: store.to_owned() }
    }

    /// Starts it again on the same port after it was killed; what it knew of stored instances is gone.
    #[track_caller]
    pub fn again<S: AsRef<str>>(self, options: &[S]) -> Self {
        let Self { process, address, store } = self;
        process.kill();
        let port = ["--port".to_owned(), address.port().to_string()];
        let options = options.iter().map(|option| option.as_ref().to_owned());
        Self::start(&store, &options.chain(port).collect::<Vec<_>>())
    }

    /// The objects that it took, whole, sorted by name (`<SOP instance>.dcm`).
    pub fn files(&self) -> Vec<PathBuf> {
        files_in(&self.store)
    }

    /// What happened so far: the events of one kind (`"stored"`, `"associated"`, `"action"`, ...).
    pub fn events(&self, kind: &str) -> Vec<Value> {
        events(&self.process.lines().join("\n"), kind)
    }

    /// Waits until `count` events of a kind have happened and returns them. What was answered already may not have been heard here.
    #[track_caller]
    pub fn wait_for(&self, kind: &str, count: usize) -> Vec<Value> {
        eventually_some(&format!("{count} times \"{kind}\" at the archive"), || {
            Some(self.events(kind)).filter(|events| events.len() >= count)
        })
    }
}

/// The pynetdicom modality of `tests/it/peers/dicom_scu.py`: sends files as they are on disk, asks for commitment, listens for
/// the report. The script's `--help` tells the options; files and folders are given among them.
pub fn modality(to: SocketAddr, called: &str) -> Command {
    let mut command = python_peer("dicom_scu.py");
    command.args(["--to", &to.to_string(), "--called", called]);
    command
}

/// A modality that listens for commitment reports first and sends when it is told where: so the other end can be configured with
/// its port. The value's process ends when the modality is done.
pub struct ListeningModality {
    /// The process.
    pub process: Process,
    /// Where it listens for reports, as AE `MODALITY`.
    pub address: SocketAddr,
    to_file: PathBuf,
}

impl ListeningModality {
    /// Starts it; `folder` is for a file of ours, `options` and files as for [`modality`].
    #[track_caller]
    pub fn start(folder: &Path, called: &str, options: &[&str], files: &[&Path]) -> Self {
        let to_file = folder.join("modality-sends-to");
        // Of an earlier one.
        let _absent = fs::remove_file(&to_file);
        let mut command = python_peer("dicom_scu.py");
        command.args(["--listen", "0", "--called", called]).arg("--to-file").arg(&to_file).args(options).args(files);
        let mut process = Process::start(&mut command);
        let address = process.listening();
        Self { process, address, to_file }
    }

    /// Lets it send to `to`; it goes on by itself.
    pub fn send_to(&self, to: SocketAddr) {
        let unfinished = self.to_file.with_extension("part");
        fs::write(&unfinished, to.to_string()).unwrap();
        fs::rename(unfinished, &self.to_file).unwrap();
    }

    /// What happened so far, by kind.
    pub fn events(&self, kind: &str) -> Vec<Value> {
        events(&self.process.lines().join("\n"), kind)
    }

    /// Waits until it is done, and tells how it ended.
    #[track_caller]
    pub fn done(self) -> Ended {
        self.process.ends_within(super::wait::PATIENCE)
    }
}

/// The events of one kind among the lines that a pynetdicom peer said.
pub fn events(said: &str, kind: &str) -> Vec<Value> {
    let parsed = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    parsed.filter(|event| event["event"] == kind).collect()
}

/// One case of `tests/it/peers/dicom_hostile.py` against `to`: what the other end answered, as the script tells it (`pdu`: the types
/// of the PDUs that came back, `closed`: whether the other end closed, `seconds`). It ends when the other end closes; one that leaves
/// the connection open costs the seconds of `--within` (5).
#[track_caller]
pub fn hostile(to: SocketAddr, called: &str, case: &str, options: &[&str]) -> Value {
    let mut command = python_peer("dicom_hostile.py");
    let ended = run(command.args(["--to", &to.to_string(), "--called", called, case]).args(options));
    let line = ended.said.lines().last().unwrap_or_default();
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{case}: {error}; it said:\n{}", ended.said))
}

/// A rule-breaking archive: `tests/it/peers/dicom_hostile_scp.py`, whose `--help` tells the cases.
pub struct HostileArchive {
    /// The process.
    pub process: Process,
    /// Where it listens.
    pub address: SocketAddr,
}

impl HostileArchive {
    /// Starts one that serves `case`.
    #[track_caller]
    pub fn start(case: &str) -> Self {
        let mut process = Process::start(python_peer("dicom_hostile_scp.py").arg(case));
        let address = process.listening();
        Self { process, address }
    }

    /// Waits until `count` associations have ended, and tells of each what the client did.
    #[track_caller]
    pub fn associations(&self, count: usize) -> Vec<Value> {
        eventually_some(&format!("{count} associations at the archive"), || {
            let ended = events(&self.process.lines().join("\n"), "association");
            (ended.len() >= count).then_some(ended)
        })
    }
}
