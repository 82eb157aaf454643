//! The promise at the frame: what an analyser was acknowledged arrives, however often the service is killed between frames.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use wardgate::wire::astm::{ACK, EOT};

use super::device::Analyser;
use super::{arrived, lab_to_folder};
use crate::support::gateway::Gateway;
use crate::support::rounds;
use crate::support::wait::{eventually, holds_within};

const ANALYSERS: usize = 4;
const RECORDS: u8 = 12;

/// What one analyser was acknowledged.
#[derive(Default)]
struct Told {
    /// Records, each unlike any other.
    records: Vec<String>,
    /// Whole messages.
    messages: Vec<String>,
    next: usize,
    /// The message that was cut off: the records that were acknowledged, and the number of the last frame.
    open: Vec<String>,
}

fn record(analyser: usize, message: usize, at: u8) -> String {
    match at {
        1 => format!("H|\\^&|A{analyser}-{message}||SIM|||||||P|1\r"),
        RECORDS => format!("L|{analyser}-{message}|N\r"),
        _ => format!("R|{at}|^^^T{analyser}-{message}-{at}|{}|mmol/L\r", usize::from(at) * message),
    }
}

/// Sends until the service is killed: goes on with the message that was cut off when `joins`, else begins it anew.
fn send(at: SocketAddr, analyser: usize, told: &mut Told, joins: bool, work: &AtomicUsize) -> std::io::Result<()> {
    let mut line = Analyser::dial(at)?;
    let mut first = 1;
    if joins && !told.open.is_empty() {
        // As on a serial line: the next frame comes, and there was no ENQ since.
        first = u8::try_from(told.open.len()).unwrap() + 1;
    }
    loop {
        if first == 1 {
            told.open.clear();
            assert_eq!(line.enquire()?, ACK);
        }
        for number in first..=RECORDS {
            let text = record(analyser, told.next, number);
            assert_eq!(line.frame(number % 8, &text)?, ACK, "{text:?} of {analyser}");
            told.records.push(text.clone());
            told.open.push(text);
            work.fetch_add(1, Ordering::SeqCst);
        }
        line.send(&[EOT])?;
        told.messages.push(told.open.concat());
        told.open.clear();
        (told.next, first) = (told.next + 1, 1);
    }
}

#[test]
fn what_was_acknowledged_arrives_however_often_the_service_is_killed_between_frames() {
    let folder = tempfile::tempdir().unwrap();
    let rounds = rounds(5, 25) as usize;
    let mut told: Vec<Told> = (0..ANALYSERS).map(|_| Told::default()).collect();
    let mut gateway = Gateway::start(folder.path(), &lab_to_folder(folder.path()));
    for round in 0..rounds {
        let (at, work) = (gateway.endpoint("lab"), Arc::new(AtomicUsize::new(0)));
        let lines: Vec<_> = std::mem::take(&mut told)
            .into_iter()
            .enumerate()
            .map(|(analyser, mut told)| {
                let work = Arc::clone(&work);
                std::thread::spawn(move || {
                    // All dial from one address: who of them goes on is known on lines of their own only.
                    let ended = send(at, analyser, &mut told, false, &work);
                    assert!(ended.is_err(), "it ends when the service is killed");
                    told
                })
            })
            .collect();
        // Killed by work done, and not by a clock; at another place in the messages each time.
        let until = 40 + round * 37 % 90;
        eventually("the work is acknowledged", || work.load(Ordering::SeqCst) >= until);
        gateway.process.kill();
        told = lines.into_iter().map(|line| line.join().unwrap()).collect();
        gateway = Gateway::again(folder.path());
    }
    // What nobody goes on with becomes a message when the service stops, if not before.
    gateway.stop();
    let gateway = Gateway::again(folder.path());
    eventually("everything that waits is delivered", || gateway.backlog() == 0);
    let all = arrived(folder.path());
    let joined = all.concat();
    for told in &told {
        assert!(told.records.iter().all(|record| joined.contains(record.as_str())), "an acknowledged record is lost");
        assert!(told.messages.iter().all(|message| all.contains(message)), "an acknowledged message is lost");
    }
    let count: usize = told.iter().map(|told| told.messages.len()).sum();
    let pieces = all.iter().filter(|text| !text.starts_with("H|") || !text.contains("\rL|")).count();
    eprintln!("{rounds} kills, {count} messages acknowledged, none lost, {} arrived, {pieces} incomplete", all.len());
}

#[test]
fn an_analyser_goes_on_after_the_restart_and_its_message_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let mut told = Told::default();
    let mut gateway = Gateway::start(folder.path(), &lab_to_folder(folder.path()));
    for round in 0..rounds(3, 10) as usize {
        let (at, work) = (gateway.endpoint("lab"), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&work);
        let line = std::thread::spawn(move || {
            let ended = send(at, 0, &mut told, true, &counted);
            assert!(ended.is_err(), "it ends when the service is killed");
            told
        });
        let until = 30 + round * 17 % 40;
        eventually("the work is acknowledged", || work.load(Ordering::SeqCst) >= until);
        gateway.process.kill();
        told = line.join().unwrap();
        // A kill right after an ACK leaves the end of a transfer open: then there is nothing to go on with.
        if told.open.len() == usize::from(RECORDS) {
            told.open.clear();
        }
        gateway = Gateway::again(folder.path());
    }
    let mut line = Analyser::dial(gateway.endpoint("lab")).unwrap();
    for number in told.open.len() + 1..=usize::from(RECORDS) {
        let number = u8::try_from(number).unwrap();
        let text = record(0, told.next, number);
        if number == 1 {
            assert_eq!(line.enquire().unwrap(), ACK);
        }
        assert_eq!(line.frame(number % 8, &text).unwrap(), ACK);
        told.open.push(text);
    }
    told.messages.push(told.open.concat());
    let whole = || {
        let all = arrived(folder.path());
        told.messages.iter().all(|message| all.contains(message))
    };
    assert!(holds_within(crate::support::wait::PATIENCE, whole), "a message is not whole");
}
