//! The rows for DICOM: the same sender (dcmtk's `storescu`) to wardgate, to `storescp`, to Orthanc and to the floor, in turn.
//!
//! wardgate stores and forwards, to a `storescp` that writes what comes, but in the rows that say "storing only": there its archive is
//! away, so that it does what `storescp` does. What it is compared with stores only, but in the row of Orthanc.
//!
//! Each is met in the same state: what the one before it left unwritten is on the disk, and some images were sent already. Else
//! who follows pays for the writes of `storescp`, which does not sync, and who was idle before for a processor that slept.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::dicom_objects::dealt_out;
use crate::dicom_peers::{Peer, orthanc, send, sink, storescp};
use crate::rows::{Row, median, mib, row, spread};
use crate::subject::{Subject, Upstream};
use crate::{Plan, free_address, proc};

/// Objects and backlog of one run fit.
const QUOTA: &str = "12GiB";
const ARRIVES_WITHIN: Duration = Duration::from_secs(600);
/// Large objects of a run.
const LARGE: usize = 4;
/// Images that are sent before it is measured.
const WARM_UP: usize = 40;
const IDLES_AFTER: Duration = Duration::from_secs(3);

/// Folders of this group; what is sent is made once.
struct Rooms {
    subject: PathBuf,
    peer: PathBuf,
    sink: PathBuf,
    study: Vec<PathBuf>,
    study_of_four: Vec<PathBuf>,
    warm_up: Vec<PathBuf>,
    large: Vec<PathBuf>,
    large_of_four: Vec<PathBuf>,
}

impl Rooms {
    fn furnished(plan: &Plan) -> Self {
        let folder = plan.folder.join("dicom");
        let files = folder.join("files");
        Self {
            subject: folder.join("subject"),
            peer: folder.join("peer"),
            sink: folder.join("sink"),
            study: dealt_out(&files, "one", 1, plan.images, None),
            study_of_four: dealt_out(&files, "four", 4, plan.images, None),
            warm_up: dealt_out(&files, "warm", 1, WARM_UP, None),
            large: dealt_out(&files, "large", 1, LARGE, Some(plan.large)),
            large_of_four: dealt_out(&files, "larges", 4, LARGE, Some(plan.large)),
        }
    }

    fn wardgate(&self) -> (Subject, Peer) {
        let up = sink(&self.sink);
        (Subject::wardgate_within(&self.subject, Upstream::Dicom(up.address), QUOTA).rested(), up)
    }

    /// What comes before each measurement; see the module.
    fn warm_up(&self, to: std::net::SocketAddr, stock: bool) {
        assert!(Command::new("sync").status().unwrap().success());
        send(&self.warm_up, to, stock);
    }

    /// One whose archive is away.
    fn storing_only(&self) -> Subject {
        Subject::wardgate_within(&self.subject, Upstream::Dicom(free_address()), QUOTA).rested()
    }
}

/// All rows.
pub fn rows(plan: &Plan) -> Vec<Row> {
    let rooms = Rooms::furnished(plan);
    let study = format!("{} CT instances of 0.5 MB", plan.images);
    let stock = format!("{study}, stock storescu, one association, forwarding as well: rate over storescp");
    let mut rows = vec![over_storescp(
        plan,
        &rooms,
        (&stock, ">= 10"),
        Sending { stock: true, forwarded: true, folders: &rooms.study },
    )];
    for (figure, target, forwarded, folders) in [
        ("NODELAY on both, storing only: rate over storescp, which does not sync", ">= 0.8", false, &rooms.study),
        ("the same, forwarding as well", "", true, &rooms.study),
        ("four associations, storing only: rate over storescp", ">= 1.0", false, &rooms.study_of_four),
        ("the same, forwarding as well", "", true, &rooms.study_of_four),
    ] {
        rows.push(over_storescp(plan, &rooms, (figure, target), Sending { stock: false, forwarded, folders }));
    }
    for (figure, folders) in [
        (
            "the floor (receive, encrypt, write, sync) in our place, NODELAY, one association: rate over storescp",
            &rooms.study,
        ),
        ("the floor in our place, four associations: rate over storescp", &rooms.study_of_four),
    ] {
        rows.push(floor_over_storescp(plan, &rooms, figure, folders));
    }
    rows.push(over_orthanc(plan, &rooms));
    for (figure, target, forwarded, folders) in [
        ("storing only: MB/s over the floor (receive, encrypt, write, sync)", ">= 0.8", false, &rooms.large),
        ("forwarding as well, over the same floor", "", true, &rooms.large),
        ("four associations, storing only, over the floor", "", false, &rooms.large_of_four),
    ] {
        rows.push(over_floor(plan, &rooms, (figure, target), Sending { stock: false, forwarded, folders }));
    }
    rows.extend(memory(plan, &rooms));
    rows
}

/// Instances each second until all were answered.
fn rate(plan: &Plan, rooms: &Rooms, folders: &[PathBuf], to: std::net::SocketAddr, stock: bool) -> f64 {
    rooms.warm_up(to, stock);
    plan.images as f64 / send(folders, to, stock)
}

/// What is sent, and how.
struct Sending<'a> {
    /// `storescu` as it comes, with Nagle's algorithm.
    stock: bool,
    /// Our archive is there.
    forwarded: bool,
    folders: &'a [PathBuf],
}

fn over_storescp(plan: &Plan, rooms: &Rooms, what: (&str, &'static str), sending: Sending<'_>) -> Row {
    let Sending { stock, forwarded, folders } = sending;
    let (mut theirs, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..plan.runs {
        let peer = storescp(&rooms.peer, stock, &[]);
        theirs.push(rate(plan, rooms, folders, peer.address, stock));
        drop(peer);
        if forwarded {
            let (subject, up) = rooms.wardgate();
            ours.push(rate(plan, rooms, folders, subject.address, stock));
            up.wait_for(WARM_UP + plan.images, ARRIVES_WITHIN);
        } else {
            ours.push(rate(plan, rooms, folders, rooms.storing_only().address, stock));
        }
    }
    compared(what.0, what.1, &ours, "storescp", &theirs)
}

/// What the promise itself costs on this machine, whoever keeps it: its floor beside the same `storescp`.
fn floor_over_storescp(plan: &Plan, rooms: &Rooms, figure: &str, folders: &[PathBuf]) -> Row {
    let (mut theirs, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..plan.runs {
        theirs.push(rate(plan, rooms, folders, storescp(&rooms.peer, false, &[]).address, false));
        floor.push(rate(plan, rooms, folders, Subject::dicom_floor(&rooms.subject).address, false));
    }
    let ratio = median(&floor) / median(&theirs);
    row(figure, "", format!("{ratio:.2}"), format!("floor {}; storescp {}", spread(&floor), spread(&theirs)))
}

fn over_orthanc(plan: &Plan, rooms: &Rooms) -> Row {
    let (mut theirs, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..plan.runs {
        let up = sink(&rooms.sink);
        let peer = orthanc(&rooms.peer, up.address);
        theirs.push(end_to_end(plan, rooms, peer.address, &up));
        drop((peer, up));
        let (subject, up) = rooms.wardgate();
        ours.push(end_to_end(plan, rooms, subject.address, &up));
    }
    let figure = "instances/s end to end, NODELAY, one association: over Orthanc storing and forwarding";
    compared(figure, ">= 3", &ours, "Orthanc", &theirs)
}

/// Instances each second until the other end had all.
fn end_to_end(plan: &Plan, rooms: &Rooms, to: std::net::SocketAddr, up: &Peer) -> f64 {
    rooms.warm_up(to, false);
    up.wait_for(WARM_UP, ARRIVES_WITHIN);
    let began = Instant::now();
    send(&rooms.study, to, false);
    up.wait_for(WARM_UP + plan.images, ARRIVES_WITHIN);
    plan.images as f64 / began.elapsed().as_secs_f64()
}

fn over_floor(plan: &Plan, rooms: &Rooms, what: (&str, &'static str), sending: Sending<'_>) -> Row {
    let Sending { forwarded, folders, .. } = sending;
    let (mut floor, mut ours) = (Vec::new(), Vec::new());
    let megabytes = (plan.large * LARGE as u64) as f64 / 1e6;
    for _ in 0..plan.runs {
        let subject = Subject::dicom_floor(&rooms.subject);
        rooms.warm_up(subject.address, false);
        floor.push(megabytes / send(folders, subject.address, false));
        drop(subject);
        if forwarded {
            let (subject, up) = rooms.wardgate();
            rooms.warm_up(subject.address, false);
            ours.push(megabytes / send(folders, subject.address, false));
            up.wait_for(WARM_UP + LARGE, ARRIVES_WITHIN);
        } else {
            let subject = rooms.storing_only();
            rooms.warm_up(subject.address, false);
            ours.push(megabytes / send(folders, subject.address, false));
        }
    }
    let figure = format!("{LARGE} instances of {} MB, {}", plan.large / 1_000_000, what.0);
    compared(&figure, what.1, &ours, "floor", &floor)
}

fn compared(figure: &str, target: &'static str, ours: &[f64], other: &str, theirs: &[f64]) -> Row {
    let ratio = median(ours) / median(theirs);
    row(figure, target, format!("{ratio:.2}"), format!("ours {}; {other} {}", spread(ours), spread(theirs)))
}

/// Peaks of resident memory above idle, while objects arrive and leave.
fn memory(plan: &Plan, rooms: &Rooms) -> Vec<Row> {
    let four = peak_above_idle(rooms, &rooms.large_of_four, LARGE);
    let files = rooms.peer.with_file_name("files");
    let huge = dealt_out(Path::new(&files), "huge", 1, 1, Some(plan.huge));
    let one = peak_above_idle(rooms, &huge, 1);
    let gibibytes = plan.huge as f64 / f64::from(1 << 30);
    vec![
        row("MiB above idle at most, four associations of large instances at once", "<= 32", mib(four), String::new()),
        row(&format!("the same, one instance of {gibibytes} GiB arrives and leaves"), "<= 32", mib(one), String::new()),
    ]
}

fn peak_above_idle(rooms: &Rooms, folders: &[PathBuf], objects: usize) -> u64 {
    let (subject, up) = rooms.wardgate();
    std::thread::sleep(IDLES_AFTER);
    let idle = proc::resident_kib(subject.pid());
    proc::forget_peak(subject.pid());
    send(folders, subject.address, false);
    up.wait_for(objects, ARRIVES_WITHIN);
    proc::peak_kib(subject.pid()).saturating_sub(idle)
}
