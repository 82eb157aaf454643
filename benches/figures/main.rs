//! The figures that the README quotes, measured side by side with a floor on the machine at hand.
//!
//! `benches/run` builds and starts this. Without arguments it measures every row; `--only rate,drain` some of them; `--quick`
//! takes short runs (for trying out the benchmark itself: such figures are never quoted). The system under test is the released executable,
//! started as an operator would; the floor is a process of its own that does the least that the promise needs:
//! receive a frame, append, sync, acknowledge. Load, sink and floor share no code with wardgate.

// A benchmark prints its result, and one that can't go on stops with the reason.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::net::SocketAddr;
use std::path::PathBuf;

mod astm;
mod astm_floor;
mod broker;
mod dicom;
mod dicom_floor;
mod dicom_objects;
mod dicom_peers;
mod floor;
mod load;
mod message;
mod mqtt;
mod mqtt_floor;
mod mqtt_load;
mod proc;
mod rows;
mod serial;
mod sink;
mod subject;

/// Measures a group of rows.
type Measure = fn(&Plan) -> Vec<rows::Row>;

/// The groups that `--only` names.
const GROUPS: &[(&str, Measure)] = &[
    ("floor", rows::floor),
    ("rate", rows::rate),
    ("wear", rows::wear),
    ("memory", rows::memory),
    ("drain", rows::drain),
    ("dicom", dicom::rows),
    ("mqtt", mqtt::rows),
    ("astm", astm::rows),
    ("serial", serial::rows),
];

/// How long and how often; set by the command line.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Runs of each side, in turn; the median counts.
    pub runs: usize,
    /// Seconds of load in each run.
    pub seconds: u64,
    /// Bytes of the backlog for the rows that need one.
    pub backlog: u64,
    /// Messages of the backlog that is drained to the broker.
    pub drained: u64,
    /// Seconds over which lone messages are sent, one each second.
    pub lone_seconds: u64,
    /// CT images of 0.5 MB that a study has.
    pub images: usize,
    /// Bytes of the pixel data of a large DICOM object.
    pub large: u64,
    /// Bytes of the one that must not fit into memory.
    pub huge: u64,
    /// Groups of rows to measure; empty means all.
    pub only: Vec<String>,
    /// Folder for data: on the disk that is to be measured.
    pub folder: PathBuf,
    /// Folder of `wear`, when it has a file system of its own on which nobody else writes.
    pub wear_folder: Option<PathBuf>,
}

impl Plan {
    fn full() -> Self {
        Self {
            runs: 5,
            seconds: 5,
            backlog: 1 << 30,
            drained: 200_000,
            lone_seconds: 600,
            images: 500,
            large: 200_000_000,
            huge: 2 << 30,
            only: Vec::new(),
            folder: PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/figures"),
            wear_folder: None,
        }
    }

    fn quick(self) -> Self {
        let dicom = Self { images: 40, large: 20_000_000, huge: 64 << 20, ..self };
        Self { runs: 1, seconds: 2, backlog: 32 << 20, drained: 5_000, lone_seconds: 10, ..dicom }
    }

    fn has(&self, group: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == group)
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("floor") if arguments.get(1).is_some_and(|mode| mode == "dicom") => dicom_floor::serve(&arguments[2..]),
        Some("floor") => floor::serve(&arguments[1..]),
        _ => measure(&plan(arguments)),
    }
}

fn plan(arguments: Vec<String>) -> Plan {
    let mut plan = Plan::full();
    let mut rest = arguments.into_iter();
    while let Some(argument) = rest.next() {
        let mut value = || rest.next().unwrap_or_else(|| usage(&format!("{argument} needs a value")));
        match argument.as_str() {
            "--quick" => plan = plan.quick(),
            "--runs" => plan.runs = value().parse().unwrap(),
            "--seconds" => plan.seconds = value().parse().unwrap(),
            "--folder" => plan.folder = value().into(),
            "--wear-folder" => plan.wear_folder = Some(value().into()),
            "--only" => plan.only = value().split(',').map(str::to_owned).collect(),
            _ => usage(&format!("{argument} is not an option")),
        }
    }
    plan
}

fn usage(wrong: &str) -> ! {
    eprintln!(
        "{wrong}\nbenches/run [--quick] [--runs N] [--seconds N] [--folder DIR] [--wear-folder DIR] [--only floor,rate,wear,memory,drain,dicom,mqtt,astm,serial]"
    );
    std::process::exit(2);
}

fn measure(plan: &Plan) {
    std::fs::create_dir_all(&plan.folder).unwrap();
    println!("Machine: {}\n", proc::machine(&plan.folder));
    println!("| figure | to reach | measured | details |\n|---|---|---|---|");
    for (group, rows) in GROUPS.iter().filter(|(name, _)| plan.has(name)) {
        for row in rows(plan) {
            println!("{row}");
        }
        // What they wrote is of no use any more, and may be gigabytes.
        let _absent = std::fs::remove_dir_all(plan.folder.join(group));
    }
}

/// An address on loopback that was free a moment ago.
pub fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
