//! The rows of the table: what is measured, against what, and what is to be reached.
//!
//! Sides that are compared run in turn (A B A B), each on fresh data, and the median of the runs counts.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::broker::{Broker, subscribe};
use crate::load::{Load, Outcome};
use crate::sink::Sink;
use crate::subject::{Subject, Upstream};
use crate::{Plan, free_address, proc};

/// Messages before the measurement begins, on each fresh process.
const WARM_UP: u64 = 500;
/// The first number of what is measured: above the warm-up's.
const FIRST: u64 = 1_000_000;
/// A quota that is filled before `wear` measures, so that files are used again as in a spool that has run for some time.
const WEAR_QUOTA: &str = "256MiB";
/// Messages that fill it.
const WEAR_FILL: u64 = 250_000;
/// Messages of the burst that is measured: what is taken in runs ahead of what is forwarded, and must fit into the quota.
const WEAR_BURST: u64 = 100_000;
/// A fresh spool has its files ready by then.
const SETTLES_WITHIN: Duration = Duration::from_secs(15);
const DRAINS_WITHIN: Duration = Duration::from_secs(600);
/// Bytes of the body in the row that sends one large message.
const LARGE: usize = 50 << 20;

/// A line of the table.
pub struct Row {
    figure: String,
    target: &'static str,
    measured: String,
    details: String,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "| {} | {} | {} | {} |", self.figure, self.target, self.measured, self.details)
    }
}

/// A line of the table.
pub fn row(figure: &str, target: &'static str, measured: String, details: String) -> Row {
    Row { figure: figure.to_owned(), target, measured, details }
}

/// What one run of one side gave.
struct Run {
    load: Outcome,
    /// Messages each second until the sink had all of them; 0 when nothing is forwarded.
    forwarded: f64,
    /// CPU time of the process under test for each message, in microseconds.
    cpu_us: f64,
}

/// Rate and latency, beside the floor: one connection and sixteen.
pub fn rate(plan: &Plan) -> Vec<Row> {
    let folder = plan.folder.join("rate");
    let floor = |mode: &'static str, forwards: bool| {
        let folder = folder.clone();
        move |sink: &Sink| Subject::floor(&folder, mode, forwards.then_some(sink.address))
    };
    let ours = |sink: &Sink| Subject::wardgate(&folder, Upstream::Mllp(sink.address));
    let (serial, one) = in_turn(plan, 1, (&floor("serial", false), false), (&ours, true));
    let (group, sixteen) = in_turn(plan, 16, (&floor("group", true), true), (&ours, true));
    vec![
        compared("1 kB ORU, 1 connection: acknowledged/s over the serial floor", ">= 0.8", &serial, &one, |run| {
            run.load.rate()
        }),
        compared(
            "the same, 16 connections: over the floor with group commit that forwards",
            ">= 0.7",
            &group,
            &sixteen,
            |run| run.load.rate(),
        ),
        compared(
            "p99 of the acknowledgement in ms, 16 connections: over the floor's",
            "<= 2",
            &group,
            &sixteen,
            |run| run.load.permille_ms(990),
        ),
        compared("p50 of the same", "", &group, &sixteen, |run| run.load.permille_ms(500)),
        compared("forwarded/s until the upstream had all, 16 connections", "", &group, &sixteen, |run| run.forwarded),
        compared("CPU for each message in us, 16 connections", "", &group, &sixteen, |run| run.cpu_us),
    ]
}

/// The floors alone: what this machine's disk and cores allow.
pub fn floor(plan: &Plan) -> Vec<Row> {
    let folder = plan.folder.join("floor");
    let kinds =
        [("serial", 1, false), ("serial", 16, false), ("group", 1, false), ("group", 16, false), ("group", 16, true)];
    let measured = kinds.into_iter().map(|(mode, connections, forwards)| {
        let start = |sink: &Sink| Subject::floor(&folder, mode, forwards.then_some(sink.address));
        let runs: Vec<Run> = (0..plan.runs).map(|_| one_run(plan, connections, (&start, forwards))).collect();
        let rates: Vec<f64> = runs.iter().map(|run| run.load.rate()).collect();
        let p99: Vec<f64> = runs.iter().map(|run| run.load.permille_ms(990)).collect();
        let forwarding = if forwards { ", forwarding" } else { "" };
        let figure = format!("floor alone, {mode}{forwarding}, {connections} connections: acknowledged/s");
        row(&figure, "", spread(&rates), format!("p99 {} ms", spread(&p99)))
    });
    measured.collect()
}

type Start<'a> = (&'a dyn Fn(&Sink) -> Subject, bool);

fn in_turn(plan: &Plan, connections: usize, a: Start<'_>, b: Start<'_>) -> (Vec<Run>, Vec<Run>) {
    let mut runs = (Vec::new(), Vec::new());
    for _ in 0..plan.runs {
        runs.0.push(one_run(plan, connections, a));
        runs.1.push(one_run(plan, connections, b));
    }
    runs
}

fn one_run(plan: &Plan, connections: usize, (start, forwards): Start<'_>) -> Run {
    let sink = Sink::listen();
    let subject = start(&sink);
    let warm = Load::of_count(connections, 1, WARM_UP).run(subject.address).acked;
    if forwards {
        sink.wait_for(warm, DRAINS_WITHIN);
    }
    let (began, cpu) = (Instant::now(), proc::cpu_seconds(subject.pid()));
    let load = Load::of_seconds(connections, FIRST, plan.seconds).run(subject.address);
    let mut forwarded = 0.0;
    if forwards {
        sink.wait_for(warm + load.acked, DRAINS_WITHIN);
        forwarded = load.acked as f64 / began.elapsed().as_secs_f64();
    }
    let cpu_us = (proc::cpu_seconds(subject.pid()) - cpu) * 1e6 / load.acked as f64;
    Run { load, forwarded, cpu_us }
}

fn compared(figure: &str, target: &'static str, floor: &[Run], ours: &[Run], of: fn(&Run) -> f64) -> Row {
    let (floor, ours): (Vec<f64>, Vec<f64>) = (floor.iter().map(of).collect(), ours.iter().map(of).collect());
    let ratio = median(&ours) / median(&floor);
    let details = format!("ours {}; floor {}", spread(&ours), spread(&floor));
    row(figure, target, format!("{ratio:.2}"), details)
}

/// Bytes written for each message, once the files of the quota are there and are used again and again, as on a box in service;
/// and before that, while each new file is written through once.
pub fn wear(plan: &Plan) -> Vec<Row> {
    let folder = plan.wear_folder.as_deref().unwrap_or(&plan.folder);
    let lone = wear_of_lone(plan, folder);
    let sink = Sink::listen();
    let upstream = Upstream::Mllp(sink.address);
    let subject = Subject::wardgate_within(&folder.join("wear"), upstream, WEAR_QUOTA);
    Load::of_count(1, 1, WARM_UP).run(subject.address);
    let fresh = written_by(&subject, folder, || Load::of_count(32, FIRST, WEAR_FILL).run(subject.address).acked);
    sink.wait_for(WARM_UP + WEAR_FILL, DRAINS_WITHIN);
    let batches = written_by(&subject, folder, || Load::of_count(32, 2 * FIRST, WEAR_BURST).run(subject.address).acked);
    let over = format!("one each second; {}", lone.1);
    let kb = |(each, _): &(f64, String)| format!("{each:.2}");
    vec![
        row("kB at the device for each lone 1 kB message, all files and the journal", "<= 6", kb(&lone), over),
        row("kB at the device for each 1 kB message, 32 connections", "<= 1.5", kb(&batches), batches.1),
        row("the same while the quota is filled for the first time", "", kb(&fresh), fresh.1),
    ]
}

/// One message each second, on a spool of its own: after a burst the index would go on forgetting the burst's messages, and what
/// that writes is not the lone ones'.
fn wear_of_lone(plan: &Plan, folder: &Path) -> (f64, String) {
    let sink = Sink::listen();
    let subject = Subject::wardgate_within(&folder.join("wear"), Upstream::Mllp(sink.address), WEAR_QUOTA);
    Load::of_count(1, 1, WARM_UP).run(subject.address);
    // The next files are being written through; that belongs to the installation.
    std::thread::sleep(SETTLES_WITHIN);
    written_by(&subject, folder, || {
        for second in 0..plan.lone_seconds {
            let began = Instant::now();
            Load::of_count(1, FIRST + second, 1).run(subject.address);
            std::thread::sleep(Duration::from_secs(1).saturating_sub(began.elapsed()));
        }
        plan.lone_seconds
    })
}

/// Kilobytes for each message at the block device: all files, the file system's journal, and whatever else the machine
/// writes meanwhile. The kernel's account of the process is in the details only: since ext4 has large folios it counts a
/// whole folio (up to 1 MiB and more) for a block of 4 KiB that was changed in it.
fn written_by(subject: &Subject, folder: &Path, send: impl FnOnce() -> u64) -> (f64, String) {
    let device = || proc::device_bytes(folder).expect("--folder lies on a block device of its own name");
    let before = (proc::written_bytes(subject.pid()), device(), subject.syncs());
    let messages = send() as f64;
    let each_kb = |bytes: u64| bytes as f64 / messages / 1000.0;
    let written = each_kb(device() - before.1);
    let own = each_kb(proc::written_bytes(subject.pid()) - before.0);
    let syncs = (subject.syncs() - before.2) as f64 / messages;
    (written, format!("{messages} messages, {syncs:.2} syncs each; {own:.2} kB by the process's own account"))
}

/// Resident memory, and the start with a backlog.
pub fn memory(plan: &Plan) -> Vec<Row> {
    let folder = plan.folder.join("memory");
    let idle_run = idle(&folder);
    let large = large_body(&folder);
    // Nobody listens there: everything stays.
    let subject = Subject::wardgate(&folder, Upstream::Mllp(free_address()));
    let messages = plan.backlog / 1000;
    Load::of_count(16, FIRST, messages).run(subject.address);
    proc::forget_peak(subject.pid());
    Load::of_seconds(16, 10 * FIRST, plan.seconds).run(subject.address);
    let loaded = proc::peak_kib(subject.pid());
    let stopped = subject.stop().again();
    let after_stop = stopped.started_in;
    let killed = stopped.kill().again();
    let backlog = format!("backlog of {messages} messages of 1 kB");
    vec![
        row("MiB resident, idle", "<= 16", mib(idle_run), String::new()),
        row("MiB resident at most, 16 connections", "<= 48", mib(loaded), backlog.clone()),
        row("MiB above idle at most, a 50 MiB body in flight", "<= 16", mib(large), String::new()),
        row(
            "s from start to listening",
            "<= 1",
            format!("{:.2}", killed.started_in.max(after_stop)),
            format!("{backlog}; after a stop {after_stop:.2}, after kill -9 {:.2}", killed.started_in),
        ),
    ]
}

fn idle(folder: &Path) -> u64 {
    let subject = Subject::wardgate(folder, Upstream::Mllp(free_address()));
    std::thread::sleep(Duration::from_secs(3));
    proc::resident_kib(subject.pid())
}

fn large_body(folder: &Path) -> u64 {
    let sink = Sink::listen();
    let subject = Subject::wardgate(folder, Upstream::Mllp(sink.address));
    Load::of_count(1, 1, 1).run(subject.address);
    sink.wait_for(1, DRAINS_WITHIN);
    let before = proc::resident_kib(subject.pid());
    proc::forget_peak(subject.pid());
    Load { size: LARGE, ..Load::of_count(1, FIRST, 1) }.run(subject.address);
    sink.wait_for(2, DRAINS_WITHIN);
    proc::peak_kib(subject.pid()) - before
}

/// A backlog to a broker: what mosquitto delivered to a subscriber each second.
pub fn drain(plan: &Plan) -> Vec<Row> {
    let (mut rates, mut copies) = (Vec::new(), 0);
    for _ in 0..plan.runs {
        let folder: PathBuf = plan.folder.join("drain");
        let address = free_address();
        let subject = Subject::wardgate(&folder, Upstream::Mqtt(address));
        Load::of_count(16, FIRST, plan.drained).run(subject.address);
        let (_broker, sink) = (Broker::start(&folder, address), Sink::listen());
        subscribe(address, sink.clone());
        // The pause before the next try to connect is not part of the drain.
        sink.wait_for(1, DRAINS_WITHIN);
        let left = plan.drained - sink.count();
        rates.push(left as f64 / sink.wait_for(plan.drained, DRAINS_WITHIN));
        copies += sink.copies();
    }
    let details = format!("{} messages, {}; {copies} second copies", plan.drained, spread(&rates));
    vec![row(
        "messages/s from a backlog to MQTT QoS 1 (mosquitto), until a subscriber had all",
        ">= 5000",
        format!("{:.0}", median(&rates)),
        details,
    )]
}

/// The median of at least one value.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}

/// Median, least and greatest.
pub fn spread(values: &[f64]) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let greatest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let places = if greatest < 100.0 { 2 } else { 0 };
    format!("{:.places$} ({least:.places$} to {greatest:.places$})", median(values))
}

/// Kibibytes as mebibytes.
pub fn mib(kib: u64) -> String {
    format!("{:.1}", kib as f64 / 1024.0)
}
