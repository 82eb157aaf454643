//! Strangers and broken lines: none of them harms an analyser beside them.

use std::time::Duration;

use wardgate::wire::astm::{ACK, ENQ, EOT, STX};

use super::device::{Analyser, frame};
use super::{all_arrived, lab_to_folder};
use crate::support::gateway::Gateway;
use crate::support::process::Process;

const MESSAGE: [&str; 3] = ["H|\\^&|1||SIM\r", "R|1|^^^K|4.1|mmol/L\r", "L|1|N\r"];

/// A message in one piece, as TCP may deliver it.
fn stream() -> Vec<u8> {
    let frames = (1..).zip(MESSAGE).flat_map(|(number, record)| frame(number, record));
    std::iter::once(ENQ).chain(frames).chain([EOT]).collect()
}

fn memory_kib(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_message_in_one_segment_or_byte_by_byte_is_the_same_message() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(folder.path(), &lab_to_folder(folder.path()));
    let mut analyser = Analyser::dial(gateway.endpoint("lab")).unwrap();
    analyser.send(&stream()).unwrap();
    for _ in 0..4 {
        assert_eq!(analyser.answer().unwrap(), ACK);
    }
    for byte in stream() {
        analyser.send(&[byte]).unwrap();
    }
    for _ in 0..4 {
        assert_eq!(analyser.answer().unwrap(), ACK);
    }
    assert_eq!(all_arrived(&gateway, folder.path(), 1), [MESSAGE.concat()], "the second is a copy");
    assert_eq!(gateway.status()["sources"]["lab"]["repeats"], 1);
}

#[test]
fn an_endless_frame_and_binary_noise_take_no_memory_and_harm_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(folder.path(), &lab_to_folder(folder.path()));
    let at = gateway.endpoint("lab");
    let before = memory_kib(&gateway.process);
    let mut endless = Analyser::dial(at).unwrap();
    endless.send(&[ENQ, STX, b'1']).unwrap();
    let mut noise = Analyser::dial(at).unwrap();
    let (piece, mut seed) = (vec![b'R'; 64 << 10], 0x2545_f491_4f6c_dd1d_u64);
    for _ in 0..256 {
        endless.send(&piece).unwrap();
        let bytes: Vec<u8> = (0..16 << 10)
            .map(|_| {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                // Not the bytes that are answered: nobody reads the answers here.
                let byte = seed.to_le_bytes()[3];
                if matches!(byte, 2..=5) { 0 } else { byte }
            })
            .collect();
        noise.send(&bytes).unwrap();
    }
    let mut analyser = Analyser::dial(at).unwrap();
    analyser.send(&stream()).unwrap();
    for _ in 0..4 {
        assert_eq!(analyser.answer().unwrap(), ACK);
    }
    assert_eq!(all_arrived(&gateway, folder.path(), 1), [MESSAGE.concat()]);
    let grown = memory_kib(&gateway.process).saturating_sub(before);
    assert!(grown < 24 << 10, "{grown} KiB more");
    assert_eq!(endless.enquire().unwrap(), ACK, "an ENQ ends it, as always");
}

#[test]
fn frames_of_several_connections_from_one_address_do_not_mix() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(folder.path(), &lab_to_folder(folder.path()));
    let at = gateway.endpoint("lab");
    let lines: Vec<_> = (0..6)
        .map(|line| {
            std::thread::spawn(move || {
                let mut analyser = Analyser::dial(at).unwrap();
                for message in 0..5 {
                    assert_eq!(analyser.enquire().unwrap(), ACK);
                    for (number, record) in (1..).zip(MESSAGE) {
                        let text = record.replace("|1|", &format!("|{line}-{message}|"));
                        assert_eq!(analyser.frame(number, &text).unwrap(), ACK);
                    }
                    analyser.send(&[EOT]).unwrap();
                }
            })
        })
        .collect();
    for line in lines {
        line.join().unwrap();
    }
    let mut all = all_arrived(&gateway, folder.path(), 30);
    let numbers = (0..6).flat_map(|line| (0..5).map(move |message| format!("|{line}-{message}|")));
    let mut expected: Vec<String> = numbers.map(|number| MESSAGE.concat().replace("|1|", &number)).collect();
    all.sort();
    expected.sort();
    assert_eq!(all, expected);
    gateway.process.signal("TERM");
    let ended = gateway.process.ends_within(Duration::from_secs(30));
    assert!(ended.status.success());
}
