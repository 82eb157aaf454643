//! The sync comes before the acknowledgement: shown by the system calls of the running service, for every acknowledgement.
//!
//! strace writes a call's beginning before the kernel carries it out and its end after; the order of its lines is therefore an order
//! of events that the service can't have seen otherwise. What a record holds is encrypted: that a write holds a message is
//! known from its place, after the last byte of the message was read and before its answer. A lone device makes that
//! unambiguous; eight at once show that group commit keeps the rule.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use wardgate::wire::dicom::dimse::Status;

use crate::dicom_source::ct_to_folder;
use crate::dicom_source::device::{Device as Modality, INSTANCE_ROOT, instance};
use crate::gateway::monitors_to_engine;
use crate::support::gateway::Gateway;
use crate::support::mllp::{Device, Engine, long_message, message};
use crate::support::tools::system;

const TRACED: &str =
    "trace=openat,accept4,close,pwrite64,pwritev,fdatasync,fsync,read,recvfrom,write,writev,sendto,sendmsg";
const LONE_MESSAGES: usize = 40;
const DEVICES: usize = 8;
const MESSAGES_EACH: usize = 15;
const MODALITIES: u32 = 3;
const INSTANCES_EACH: usize = 9;
const MLLP_MARK: &str = "MSA|AA|";
/// The instance in a C-STORE-RSP; nothing else that is sent names it.
const DICOM_MARK: &str = INSTANCE_ROOT;

/// A finished system call. `begun` and `ended` are line numbers.
struct Call {
    name: String,
    arguments: String,
    result: i64,
    begun: usize,
    ended: usize,
}

/// What a trace showed.
#[derive(Debug, Default, PartialEq)]
struct Finding {
    /// Acknowledgements to devices after a completed sync.
    kept: usize,
    /// The lines of those that had none.
    broken: Vec<usize>,
}

/// The calls of a trace by `strace -f -o`, also those that were interrupted by other threads' lines.
fn calls(trace: &str) -> Vec<Call> {
    let mut open: HashMap<&str, (usize, String)> = HashMap::new();
    let mut calls = Vec::new();
    for (line, text) in trace.lines().enumerate() {
        let mut parts = text.splitn(2, ' ');
        let thread = parts.next().unwrap();
        let rest = parts.next().unwrap_or_default().trim_start();
        let Some((_time, call)) = rest.split_once(' ') else { continue };
        if let Some(begun) = call.strip_suffix(" <unfinished ...>") {
            open.insert(thread, (line, begun.to_owned()));
        } else if let Some((_, tail)) = call.strip_prefix("<... ").and_then(|call| call.split_once(" resumed>")) {
            let Some((begun, head)) = open.remove(thread) else { continue };
            calls.extend(call_of(&format!("{head}{tail}"), begun, line));
        } else {
            calls.extend(call_of(call, line, line));
        }
    }
    calls
}

/// `None` for signals, exits and calls that never returned.
fn call_of(text: &str, begun: usize, ended: usize) -> Option<Call> {
    let (name, rest) = text.split_once('(')?;
    let (arguments, result) = rest.rsplit_once(" = ")?;
    let result = result.split(' ').next()?.parse().ok()?;
    let name = name.to_owned();
    name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_').then(|| Call {
        name,
        arguments: arguments.trim_end().trim_end_matches(')').to_owned(),
        result,
        begun,
        ended,
    })
}

/// What the descriptors are, and what was done with each so far.
struct Seen {
    /// By what an acknowledgement to a device is known.
    mark: &'static str,
    segments: BTreeMap<i64, Vec<Written>>,
    devices: BTreeMap<i64, usize>,
}

/// A write to a segment and, once there was one, the end of the first sync that began after it.
struct Written {
    begun: usize,
    ended: usize,
    synced: Option<usize>,
}

impl Seen {
    /// Takes in a call that has ended; tells whether it is an acknowledgement to a device and whether it was allowed.
    fn take(&mut self, call: &Call) -> Option<bool> {
        let descriptor: i64 = call.arguments.split(',').next().and_then(|first| first.parse().ok()).unwrap_or(-1);
        match call.name.as_str() {
            "openat" if call.result >= 0 && call.arguments.contains(".seg\"") => {
                self.segments.insert(call.result, Vec::new());
            }
            "accept4" if call.result >= 0 && call.arguments.contains("AF_INET") => {
                self.devices.insert(call.result, call.ended);
            }
            "close" => {
                self.segments.remove(&descriptor);
                self.devices.remove(&descriptor);
            }
            "read" | "recvfrom" if call.result > 0 => {
                self.devices.entry(descriptor).and_modify(|read| *read = call.ended);
            }
            // Zeros are a file that is written through before its use.
            "pwrite64" | "pwritev" if call.result > 0 && !call.arguments.contains(r#", "\0\0\0\0\0\0\0\0"#) => {
                if let Some(writes) = self.segments.get_mut(&descriptor) {
                    writes.push(Written { begun: call.begun, ended: call.ended, synced: None });
                }
            }
            "fdatasync" | "fsync" if call.result == 0 => {
                let writes = self.segments.get_mut(&descriptor).into_iter().flatten();
                for write in writes.filter(|write| write.synced.is_none() && write.ended < call.begun) {
                    write.synced = Some(call.ended);
                }
            }
            "write" | "writev" | "sendto" | "sendmsg" if call.arguments.contains(self.mark) => {
                let read = *self.devices.get(&descriptor)?;
                let mut writes = self.segments.values().flatten();
                return Some(
                    writes.any(|write| write.begun > read && write.synced.is_some_and(|end| end < call.begun)),
                );
            }
            _ => {}
        }
        None
    }
}

/// Looks at every acknowledgement of a trace, known by its `mark`.
fn finding(trace: &str, mark: &'static str) -> Finding {
    let mut calls = calls(trace);
    // In the order of their ends. An acknowledgement's own end is after its beginning, which is what the times are compared with.
    calls.sort_by_key(|call| call.ended);
    let mut seen = Seen { mark, segments: BTreeMap::new(), devices: BTreeMap::new() };
    let mut finding = Finding::default();
    for call in &calls {
        match seen.take(call) {
            Some(true) => finding.kept += 1,
            Some(false) => finding.broken.push(call.begun + 1),
            None => {}
        }
    }
    finding
}

fn traced(folder: &Path, trace: &Path, config: &str) -> Gateway {
    let mut strace = system("strace");
    // -D: the service is our child and the tracer is not, so that signals reach the service.
    strace.args(["-D", "-f", "-ttt", "-s", "200", "-e", "signal=none", "-e", TRACED]).arg("-o").arg(trace);
    Gateway::start_under(strace, folder, config)
}

#[test]
fn every_acknowledgement_comes_after_the_sync_of_what_it_acknowledges() {
    let folder = tempfile::tempdir().unwrap();
    // Down: with nothing delivered there are no cursors, and every record that is written is a message.
    let engine = Engine::down();
    let trace = folder.path().join("trace");
    let gateway = traced(folder.path(), &trace, &monitors_to_engine(engine.port));
    let at = gateway.endpoint("monitors");
    let mut lone = Device::connect(at);
    for number in 0..LONE_MESSAGES {
        let id = format!("L{number}");
        let body = if number % 10 == 9 { long_message(&id, 600_000) } else { message(&id) };
        assert_eq!(lone.send(&body), "AA");
    }
    let devices: Vec<_> = (0..DEVICES)
        .map(|device| {
            std::thread::spawn(move || {
                let mut connection = Device::connect(at);
                for number in 0..MESSAGES_EACH {
                    assert_eq!(connection.send(&message(&format!("D{device}-{number}"))), "AA");
                }
            })
        })
        .collect();
    devices.into_iter().for_each(|device| device.join().unwrap());
    gateway.stop();
    let text = fs::read_to_string(&trace).unwrap();
    holds(&text, MLLP_MARK, LONE_MESSAGES + DEVICES * MESSAGES_EACH);
}

/// Each of so many acknowledgements came after its sync.
#[track_caller]
fn holds(text: &str, mark: &'static str, count: usize) {
    let found = finding(text, mark);
    let lines: Vec<&str> = found.broken.iter().take(3).filter_map(|line| text.lines().nth(line - 1)).collect();
    assert!(found.broken.is_empty(), "acknowledged before the sync: {lines:?}");
    assert_eq!(found.kept, count);
}

#[test]
fn every_instance_is_answered_after_the_sync_of_its_last_piece() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace");
    // Nobody takes them: every record that is written is an instance or a piece of one.
    let nobody = "marker = \".mounted\"\nunsealed = true";
    let config = ct_to_folder(folder.path(), "").replace("unsealed = true", nobody);
    let gateway = traced(folder.path(), &trace, &config);
    let at = gateway.endpoint("ct");
    let modalities: Vec<_> = (0..MODALITIES)
        .map(|study| {
            std::thread::spawn(move || {
                let mut modality = Modality::associate(at);
                for number in 0..INSTANCES_EACH {
                    let (own, data) = instance(study, number, if number % 3 == 2 { 600_000 } else { 3_000 });
                    assert_eq!(modality.store(&own, &data).unwrap(), Status::SUCCESS);
                }
            })
        })
        .collect();
    modalities.into_iter().for_each(|modality| modality.join().unwrap());
    gateway.stop();
    holds(&fs::read_to_string(&trace).unwrap(), DICOM_MARK, MODALITIES as usize * INSTANCES_EACH);
}

/// A lone message as strace shows it, with the service's threads in each other's lines.
const GOOD: &str = r#"10 1.0 openat(AT_FDCWD, "/spool/clinical/000001.seg", O_RDWR|O_CREAT, 0600) = 7
11 1.1 accept4(5, {sa_family=AF_INET, sin_port=htons(40000), sin_addr=inet_addr("127.0.0.1")}, [128 => 16], SOCK_CLOEXEC) = 9
11 1.2 recvfrom(9, "\vMSH|^~\\&|MON|ICU|GW|HOSP|2026||ORU|1|P|2.5\r\34\r", 16384, 0, NULL, NULL) = 46
11 1.3 recvfrom(9, 0x55, 16384, 0, NULL, NULL) = -1 EAGAIN (Resource temporarily unavailable)
10 1.4 pwrite64(7, "WGRP\1\0\0\0"..., 4096, 8192 <unfinished ...>
11 1.5 epoll_wait(3,  <unfinished ...>
10 1.6 <... pwrite64 resumed>) = 4096
10 1.7 fdatasync(7 <unfinished ...>
10 1.8 <... fdatasync resumed>) = 0
11 1.9 <... epoll_wait resumed>[{events=EPOLLIN}], 1024, -1) = 1
11 2.0 sendto(9, "\vMSH|^~\\&|GW|HOSP|MON|ICU|2026||ACK|WG1|P|2.5\rMSA|AA|1\r\34\r", 57, MSG_NOSIGNAL, NULL, 0) = 57
11 2.1 +++ exited with 0 +++
"#;

#[test]
fn the_checker_takes_a_good_trace_and_finds_what_is_wrong_with_each_bad_one() {
    assert_eq!(finding(GOOD, MLLP_MARK), Finding { kept: 1, broken: vec![] });
    let line = |text: &str, number: usize| text.lines().nth(number - 1).unwrap().to_owned() + "\n";
    let acknowledgement = line(GOOD, 11);
    let without = GOOD.replace(&acknowledgement, "");
    let early = |before: usize| without.replace(&line(GOOD, before), &(acknowledgement.clone() + &line(GOOD, before)));
    let bad = [
        ("before the sync has ended", early(9)),
        ("before the sync has begun", early(8)),
        ("before the write", early(5)),
        ("no sync at all", GOOD.replace("fdatasync", "fadvise64")),
        ("the sync failed", GOOD.replace("<... fdatasync resumed>) = 0", "<... fdatasync resumed>) = -1 EIO (I/O)")),
        ("the sync is of another file", GOOD.replace("fdatasync(7", "fdatasync(8")),
        ("the write is to another file", GOOD.replace("pwrite64(7", "pwrite64(8")),
        ("only zeros were written", GOOD.replace(r"WGRP\1\0\0\0", r"\0\0\0\0\0\0\0\0")),
        ("the write was before the message", {
            let read = line(GOOD, 3);
            GOOD.replace(&read, "").replace(&line(GOOD, 10), &(read + &line(GOOD, 10)))
        }),
    ];
    for (what, trace) in bad {
        let found = finding(&trace, MLLP_MARK);
        assert!(found.kept == 0 && found.broken.len() == 1, "{what}: {found:?} in\n{trace}");
    }
}
