//! The demo's simulated laboratory analyser: a chemistry analyser on a pseudo-terminal that speaks ASTM E1381 and E1394.
//!
//! It behaves as analysers do: it asks for the line, sends frame by frame, repeats a frame that is not acknowledged, and never sends
//! again what was. What it was told is safe goes into the [`Ledger`]. It shares no code with the gateway's reader.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::ledger::{Ledger, fingerprint};
use super::plugged_in::PluggedIn;
use crate::system::pty::Pty;

/// Between two samples.
const PERIOD: Duration = Duration::from_secs(2);
/// How long it waits for an answer (E1381, 6.5.2: 15 seconds).
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// Before it asks for the line again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How often a frame is sent before the transfer is given up (E1381, 6.5.1.2).
const TRIES_MAX: u32 = 6;

const STX: u8 = 0x02;
const ETX: u8 = 0x03;
const EOT: u8 = 0x04;
const ENQ: u8 = 0x05;
const ACK: u8 = 0x06;

/// What it measures: code, unit, the usual value in tenths.
const TESTS: [(&str, &str, u64); 8] = [
    ("NA", "mmol/L", 1400),
    ("K", "mmol/L", 41),
    ("CL", "mmol/L", 1020),
    ("GLU", "mmol/L", 54),
    ("CREA", "umol/L", 780),
    ("UREA", "mmol/L", 52),
    ("CRP", "mg/L", 38),
    ("LAC", "mmol/L", 12),
];

/// Sets an analyser going at the far end of `pty`.
pub fn start(pty: Pty, ledger: &Arc<Ledger>) -> PluggedIn {
    let ledger = Arc::clone(ledger);
    PluggedIn::start(pty, |line, stop| async move { analyse(&line, &ledger, &stop).await })
}

async fn analyse(pty: &Pty, ledger: &Ledger, stop: &CancellationToken) {
    let mut period = interval(PERIOD);
    for number in 1.. {
        if stop.run_until_cancelled(period.tick()).await.is_none() {
            return;
        }
        let records = records(number, jiff::Timestamp::now());
        let fingerprint = fingerprint(records.concat().as_bytes());
        ledger.sending(fingerprint, &format!("sample {number}"));
        while !transfer(pty, &records).await {
            if stop.run_until_cancelled(sleep(AGAIN_AFTER)).await.is_none() {
                return;
            }
        }
        ledger.acknowledged(&fingerprint);
    }
}

/// Sends one message, a record in each frame. Whether all of it was acknowledged.
async fn transfer(pty: &Pty, records: &[String]) -> bool {
    if pty.write_all(&[ENQ]).await.is_err() || !is_acknowledged(pty).await {
        return false;
    }
    for (number, record) in (1_u8..).zip(records) {
        let frame = frame(number % 8, record.as_bytes());
        let mut tries = 0;
        loop {
            if pty.write_all(&frame).await.is_err() {
                return false;
            }
            if is_acknowledged(pty).await {
                break;
            }
            tries += 1;
            if tries == TRIES_MAX {
                // The line is given back; that it is so is nobody's promise.
                pty.write_all(&[EOT]).await.ok();
                return false;
            }
        }
    }
    pty.write_all(&[EOT]).await.is_ok()
}

async fn is_acknowledged(pty: &Pty) -> bool {
    let mut answer = [0];
    matches!(timeout(ANSWER_MAX, pty.read(&mut answer)).await, Ok(Ok(1))) && answer == [ACK]
}

/// `STX number text ETX sum CR LF`; the sum is that of all from the number to the ETX.
fn frame(number: u8, text: &[u8]) -> Vec<u8> {
    let mut frame = vec![STX, b'0' + number];
    frame.extend_from_slice(text);
    frame.push(ETX);
    let sum = frame.iter().skip(1).fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    frame.extend_from_slice(format!("{sum:02X}\r\n").as_bytes());
    frame
}

/// The records of one sample of nobody, each with its CR.
fn records(number: u64, at: jiff::Timestamp) -> Vec<String> {
    let time = at.strftime("%Y%m%d%H%M%S");
    let mut records = vec![
        format!("H|\\^&|{number}||WARDGATE-DEMO^CHEM||||||||P|LIS2-A2|{time}\r"),
        format!("P|1||DEMO-{number}\r"),
        format!("O|1|DEMO-{number}||^^^CHEM8|R||{time}||||||||SERUM\r"),
    ];
    for (line, (code, unit, usual)) in (1..).zip(TESTS) {
        // It wanders a little from sample to sample.
        let tenths = usual + (number * 7 + line * 3) % (usual / 10 + 2);
        records.push(format!("R|{line}|^^^{code}|{}.{}|{unit}||N||F||||{time}\r", tenths / 10, tenths % 10));
    }
    records.push("L|1|N\r".to_owned());
    records
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_have_the_sums_of_the_standards_vectors() {
        assert_eq!(frame(1, b"H|\\^&\r"), b"\x021H|\\^&\r\x03E5\r\n");
        assert_eq!(frame(2, b"L|1|N\r"), b"\x022L|1|N\r\x0305\r\n");
    }

    #[test]
    fn no_two_samples_are_the_same_and_each_frame_is_short_enough() {
        let at = |second| jiff::Timestamp::from_second(second).unwrap();
        let (one, two) = (records(1, at(0)), records(2, at(0)));
        assert_ne!(one.concat(), two.concat());
        assert_ne!(one.concat(), records(1, at(1)).concat());
        assert!(one.iter().all(|record| record.len() <= 240 && record.ends_with('\r')));
        assert!(one[0].starts_with("H|") && one[11] == "L|1|N\r" && one.len() == 12, "{one:?}");
    }
}
