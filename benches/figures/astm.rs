//! What a laboratory result costs: frames with one record each, every one synced before its ACK, until the message lies in a folder.
//!
//! The analyser here is written from the framing's rules alone and shares no code with wardgate.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::rows::{Row, median, row, spread};
use crate::subject::{Subject, Upstream};
use crate::{Plan, proc};

/// Records of a result: header, patient, order, results, terminator.
const RECORDS: usize = 40;
/// Results before the measurement begins.
const WARM_UP: u64 = 20;
/// The first number of what is measured.
const FIRST: u64 = 1_000_000;
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
const ARRIVES_WITHIN: Duration = Duration::from_secs(120);

/// One analyser and eight, and beside each a floor that appends the frames, syncs them and does nothing else.
pub fn rows(plan: &Plan) -> Vec<Row> {
    let mut all = Vec::new();
    for (analysers, floor_mode) in [(1, "astm"), (8, "astm-group")] {
        let (mut cpu, mut rates, mut floor) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..plan.runs {
            floor.push(floor_run(plan, analysers, floor_mode));
            let (cpu_ms, rate) = one_run(plan, analysers);
            cpu.push(cpu_ms);
            rates.push(rate);
        }
        let figure = format!(
            "processor time in ms for an ASTM result of {RECORDS} records in {RECORDS} frames, stored and forwarded; {} at once",
            if analysers == 1 { "1 analyser".to_owned() } else { format!("{analysers} analysers") }
        );
        let details = format!("{}; {} results/s", spread(&cpu), spread(&rates));
        all.push(row(&figure, "< 1", format!("{:.2}", median(&cpu)), details));
        let figure = "the same of the floor, which appends the frames, syncs them and does nothing else";
        all.push(row(figure, "", format!("{:.2}", median(&floor)), spread(&floor)));
    }
    all
}

fn one_run(plan: &Plan, analysers: u64) -> (f64, f64) {
    let folder = plan.folder.join("astm");
    let subject = Subject::wardgate(&folder, Upstream::Folder);
    let results = folder.join("results");
    send(subject.address, 1, WARM_UP);
    wait_for(&results, WARM_UP);
    let (began, cpu) = (Instant::now(), proc::cpu_seconds(subject.pid()));
    let count = send_all(plan, subject.address, analysers);
    let sent_in = began.elapsed();
    wait_for(&results, WARM_UP + count);
    let count = count as f64;
    ((proc::cpu_seconds(subject.pid()) - cpu) * 1e3 / count, count / sent_in.as_secs_f64())
}

fn floor_run(plan: &Plan, analysers: u64, mode: &str) -> f64 {
    let subject = Subject::floor(&plan.folder.join("astm"), mode, None);
    send(subject.address, 1, WARM_UP);
    let cpu = proc::cpu_seconds(subject.pid());
    let count = send_all(plan, subject.address, analysers);
    (proc::cpu_seconds(subject.pid()) - cpu) * 1e3 / count as f64
}

/// Sends the results of all analysers at once, and tells how many.
fn send_all(plan: &Plan, to: SocketAddr, analysers: u64) -> u64 {
    let each = plan.seconds * 40;
    std::thread::scope(|scope| {
        for analyser in 0..analysers {
            scope.spawn(move || send(to, FIRST + analyser * each, each));
        }
    });
    analysers * each
}

fn wait_for(folder: &Path, count: u64) {
    let began = Instant::now();
    while (fs::read_dir(folder).unwrap().count() as u64) < count {
        assert!(began.elapsed() < ARRIVES_WITHIN, "the results do not arrive in {}", folder.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sends results with the numbers from `first`, one after the other.
fn send(to: SocketAddr, first: u64, count: u64) {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(ANSWER_WITHIN)).unwrap();
    for number in first..first + count {
        acknowledged(&mut stream, b"\x05");
        for at in 1..=RECORDS {
            acknowledged(&mut stream, &frame(at, &record(number, at)));
        }
        stream.write_all(b"\x04").unwrap();
    }
}

fn acknowledged(stream: &mut TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).unwrap();
    let mut answer = [0];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, [6], "not acknowledged");
}

fn record(number: u64, at: usize) -> String {
    match at {
        1 => format!("H|\\^&|{number}||SIM^1.0|||||LIS||P|1|20261122101500\r"),
        2 => "P|1|PAT-1|||Doe^Jane||19800101|F\r".to_owned(),
        3 => format!("O|1|S-{number}|^1^2|^^^ALL|R|20261122093000|||||N||||Serum||||||||||F\r"),
        RECORDS => "L|1|N\r".to_owned(),
        _ => format!(
            "R|{0}|^^^T{0}^1|{number}.{0}|mmol/L|3.5 to 5.1|N||F||OP01|20261122101355|20261122101455|SIM\r",
            at - 3
        ),
    }
}

/// `STX number text ETX checksum CR LF`.
fn frame(number: usize, text: &str) -> Vec<u8> {
    let body = format!("{}{text}\x03", number % 8);
    let sum = body.bytes().fold(0u8, u8::wrapping_add);
    format!("\x02{body}{sum:02X}\r\n").into_bytes()
}
