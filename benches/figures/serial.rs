//! What serial lines cost: 32 ports at 9600 baud that are never still, read by a shipped profile, stored, and delivered to a broker.
//!
//! The lines are pseudo-terminals that are fed as a port's driver is: 15 bytes 64 times a second each, 960 bytes a second, as much as 9600
//! baud can carry. The frames are those of a Masimo (ASCII 1). A real one writes one line a second and leaves its line still most of the time.

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::pty::openpty;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::ttyname;

use crate::broker::Broker;
use crate::rows::{Row, median, row, spread};
use crate::subject::{Subject, Upstream};
use crate::{Plan, free_address, proc};

/// As the figure is defined.
pub const PORTS: usize = 32;
/// What a driver hands over at once, and how often: 960 bytes a second.
const PIECE: usize = 15;
const PIECES_EACH_SECOND: u32 = 64;
/// A run lasts so many times as long as those of other figures: the kernel counts processor time in hundredths of a second.
const LENGTH: u64 = 6;
/// After the start: all ports open, the first records delivered.
const WARM_UP: Duration = Duration::from_secs(3);

/// With the broker there, and with nobody there.
pub fn rows(plan: &Plan) -> Vec<Row> {
    let figure = format!("% of one core: {PORTS} serial ports at 9600 baud, all busy, stored and delivered by MQTT");
    let runs: Vec<Run> = (0..plan.runs.min(3)).map(|_| one_run(plan, true)).collect();
    let alone: Vec<Run> = (0..plan.runs.min(3)).map(|_| one_run(plan, false)).collect();
    let shares = |runs: &[Run]| runs.iter().map(|run| run.share).collect::<Vec<f64>>();
    let details = |runs: &[Run]| {
        let of = |part: fn(&Run) -> f64| median(&runs.iter().map(part).collect::<Vec<f64>>());
        format!(
            "{}; {:.0} records/s, {:.0} syncs/s, {:.0} us a record",
            spread(&shares(runs)),
            of(|run| run.records),
            of(|run| run.syncs),
            of(|run| run.share * 1e4 / run.records)
        )
    };
    // Links that lead nowhere any more.
    let _absent = fs::remove_dir_all(plan.folder.join("serial-ports"));
    vec![
        row(&figure, "< 5", format!("{:.1}", median(&shares(&runs))), details(&runs)),
        row(
            "the same, stored while the upstream is away",
            "",
            format!("{:.1}", median(&shares(&alone))),
            details(&alone),
        ),
    ]
}

/// What one run gave: percent of a core, and each second records that were stored and syncs.
struct Run {
    share: f64,
    records: f64,
    syncs: f64,
}

fn one_run(plan: &Plan, is_delivered: bool) -> Run {
    let folder = plan.folder.join("serial");
    let lines = Lines::lay(&plan.folder.join("serial-ports"));
    let address = free_address();
    let subject = Subject::wardgate(&folder, Upstream::SerialTo(address));
    let _broker = is_delivered.then(|| Broker::start(&folder, address));
    let over = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&over);
    let feeding = std::thread::spawn(move || lines.feed(&stop));
    std::thread::sleep(WARM_UP);
    let look = || (Instant::now(), proc::cpu_seconds(subject.pid()), subject.stored(), subject.syncs());
    let before = look();
    std::thread::sleep(Duration::from_secs(plan.seconds * LENGTH));
    let after = look();
    over.store(true, Ordering::Relaxed);
    feeding.join().unwrap();
    let seconds = (after.0 - before.0).as_secs_f64();
    let each_second = |from: u64, to: u64| (to - from) as f64 / seconds;
    let share = (after.1 - before.1) * 100.0 / seconds;
    Run { share, records: each_second(before.2, after.2), syncs: each_second(before.3, after.3) }
}

/// The devices' ends of the lines; the others have a name in a folder.
struct Lines {
    ours: Vec<fs::File>,
    /// Kept open, so that what is written has somewhere to go before the port is opened.
    _theirs: Vec<OwnedFd>,
}

impl Lines {
    /// As `port-1` and on in `folder`, which is made anew.
    fn lay(folder: &Path) -> Self {
        let _absent = fs::remove_dir_all(folder);
        fs::create_dir_all(folder).unwrap();
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for number in 1..=PORTS {
            let pair = openpty(None, None).unwrap();
            let mut raw = tcgetattr(&pair.slave).unwrap();
            cfmakeraw(&mut raw);
            tcsetattr(&pair.slave, SetArg::TCSANOW, &raw).unwrap();
            symlink(ttyname(&pair.slave).unwrap(), folder.join(format!("port-{number}"))).unwrap();
            ours.push(fs::File::from(pair.master));
            theirs.push(pair.slave);
        }
        Self { ours, _theirs: theirs }
    }

    /// Writes to all, a piece at a time, each line beginning at another place of its text.
    fn feed(mut self, stop: &AtomicBool) {
        let text: Vec<Vec<u8>> =
            (0..PORTS).map(|port| (0..60).flat_map(|second| line(port, second)).collect()).collect();
        let mut places: Vec<usize> = (0..PORTS).map(|port| port * 997).collect();
        let began = Instant::now();
        for piece in 1_u32.. {
            for ((port, text), place) in self.ours.iter_mut().zip(&text).zip(&mut places) {
                let bytes: Vec<u8> = (0..PIECE).map(|step| text[(*place + step) % text.len()]).collect();
                port.write_all(&bytes).unwrap();
                *place = (*place + PIECE) % text.len();
            }
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let next = Duration::from_secs(1) * piece / PIECES_EACH_SECOND;
            std::thread::sleep(next.saturating_sub(began.elapsed()));
        }
    }
}

/// A line of ASCII 1 with its CR LF.
fn line(port: usize, second: usize) -> Vec<u8> {
    let (saturation, rate) = (95 + (port + second) % 5, 60 + (port + second) % 30);
    format!(
        "11/22/26 10:15:{second:02} SN={port:010} SPO2={saturation:03}% BPM={rate:03} PI=03.60% SPCO=--.-% SPMET=--.-% DESAT=-- PIDELTA=+-- \
         ALARM=0000 EXC=000000\r\n"
    )
    .into_bytes()
}
