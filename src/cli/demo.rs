//! `wardgate demo`: the whole way of a message on one machine, with an upstream that is cut again and again.
//!
//! Everything is real but the devices: the gateway of `run` with a spool on disk, MQTT to a broker, the collector of `collect`.
//! The verdict comes from the demo's own [`Books`]: what the devices were told is safe must be at the far end, byte for byte.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::analyser;
use super::demo_stage::{Doors, Stage, TICK};
use super::demo_view::{self, View};
use super::exit::{Exit, Failure, OrExit};
use super::ledger::{Books, Ledger};
use super::monitors::Monitors;
use super::oximeter;
use super::scanner::Scanners;
use super::sensors::Sensors;
use super::terminal::{Screen, is_terminal, say, size};
use crate::values::{Listen, Span};

/// Most simulated monitors: twice as many messages a second.
const MONITORS_MAX: u64 = 500;
/// Most simulated scanners: each holds an image in memory.
const SCANNERS_MAX: u64 = 8;
/// Most simulated sensors: as many readings a second.
const SENSORS_MAX: u64 = 100;
/// When the upstream is cut for the first time, and how long each time.
const FIRST_CUT: Duration = Duration::from_secs(10);
const CUT_LENGTH: Duration = Duration::from_secs(6);
/// From the beginning of one cut to that of the next.
const CUT_PERIOD: Duration = Duration::from_secs(60);
/// How long the backlog may take to drain at the end.
const DRAIN_MAX: Duration = Duration::from_secs(60);
/// Control ids or instances that are named when something is missing.
const NAMED_MAX: usize = 10;

/// Shows the whole at work on this machine: simulated devices, an upstream that is cut, a backlog that grows and drains.
///
/// Needs no configuration, no root and no network. Monitors send realistic messages, a CT scanner sends studies, a laboratory analyser results,
/// a pulse oximeter its lines and refrigerators their temperatures, all about invented patients, to a gateway with a real, encrypted spool in a temporary folder; it forwards them over MQTT to a collector. The upstream is cut after 10
/// seconds for some seconds, and again in each minute after.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wardgate demo                                       until Ctrl-C
  wardgate demo --for 40s                             ends by itself: 0 only when all that was acknowledged has arrived
  wardgate demo --listen 10.20.0.1:2575 --into got    point a real device at it; what it sends is put into ./got
  wardgate demo --listen-dicom 10.20.0.1:11112        point a real modality at it (C-STORE, AE title WARDGATE)

Safe: it touches nothing but its temporary folder, which it deletes, and loopback. With --listen and
--listen-dicom anyone who reaches that address can send to it.")]
pub struct DemoArgs {
    /// End after this time, wait for the rest to arrive, and give a verdict.
    #[arg(long = "for", value_name = "TIME")]
    length: Option<Span>,
    /// Listen here for real devices, too (HL7 v2 over MLLP).
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<Listen>,
    /// Listen here for real modalities, too (DICOM).
    #[arg(long, value_name = "ADDRESS")]
    listen_dicom: Option<Listen>,
    /// How many monitors are simulated; each sends two messages a second.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u64).range(0..=MONITORS_MAX))]
    monitors: u64,
    /// How many CT scanners are simulated; each sends a study of 24 images (12 MB) every 15 seconds.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(0..=SCANNERS_MAX))]
    scanners: u64,
    /// How many laboratory analysers are simulated, on a pseudo-terminal; it sends a sample every 2 seconds (ASTM).
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(0..=1))]
    analysers: u64,
    /// How many pulse oximeters are simulated, on a pseudo-terminal; it writes a line a second (Masimo, ASCII 1).
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(0..=1))]
    oximeters: u64,
    /// How many refrigerators with a sensor are simulated; each publishes a reading a second (MQTT).
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(0..=SENSORS_MAX))]
    sensors: u64,
    /// Put what real devices send into this folder. Without it, it is deleted at the end.
    #[arg(long, value_name = "DIR")]
    into: Option<PathBuf>,
}

/// Runs `wardgate demo`.
///
/// # Errors
/// [`Exit::Data`] when something that was acknowledged did not arrive; others when it can't be set up.
pub async fn run(args: DemoArgs) -> Result<(), Failure> {
    let books = Books::default();
    let doors = Doors { messages: args.listen, images: args.listen_dicom };
    let count = |devices: u64| usize::try_from(devices).unwrap_or(0);
    let mut stage = Stage::set(doors, count(args.sensors), args.into.as_deref()).await?;
    let monitors = Monitors::start(count(args.monitors), &stage.endpoint("monitors")?, &books.messages);
    let scanners = Scanners::start(count(args.scanners), &stage.endpoint("scanners")?, &books.images);
    let sensors = Sensors::start(count(args.sensors), &stage.endpoint("sensors")?, &books.readings);
    let (analyser, oximeter) = stage.take_lines();
    let analyser = analyser.filter(|_| args.analysers > 0).map(|line| analyser::start(line, &books.results));
    let oximeter = oximeter.filter(|_| args.oximeters > 0).map(|line| oximeter::start(line, &books.lines));
    let played = play(&args, &mut stage, &books).await;
    stage.broker.restore();
    tokio::join!(monitors.stop(), scanners.stop(), sensors.stop());
    let mut plugged_in = Vec::new();
    if let Some(analyser) = analyser {
        plugged_in.push(analyser.stop().await);
    }
    if let Some(oximeter) = oximeter {
        plugged_in.push(oximeter.stop().await);
    }
    let drained = match played {
        Ok(()) => drain(&mut stage, &books).await,
        Err(failure) => Err(failure),
    };
    let struck = stage.strike().await;
    drop(plugged_in); // before that the gateway would tell of devices that were unplugged
    drained?;
    struck?;
    verdict(&books)
}

/// Shows what happens until the time is over or someone has seen enough.
async fn play(args: &DemoArgs, stage: &mut Stage, books: &Books) -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate()).or_exit(Exit::Software, "can't wait for signals")?;
    let begun = Instant::now();
    let mut view = View::new(stage.how_to(), args.length.map(|length| length.0));
    let live = is_terminal();
    if !live {
        say(&stage.how_to())?;
    }
    let mut screen = if live { Some(Screen::open()?) } else { None };
    let mut ticks = tokio::time::interval(TICK);
    let mut lines_said = 0;
    while args.length.is_none_or(|length| begun.elapsed() < length.0) {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
        }
        let elapsed = begun.elapsed();
        let cut = is_cut(elapsed);
        stage.set_cut(cut);
        let moment = stage.moment(elapsed, cut, books).await?;
        match &mut screen {
            Some(screen) => screen.draw(&view.screen(&moment, size().0))?,
            None if elapsed.as_secs() >= lines_said => {
                lines_said = elapsed.as_secs() + 1;
                say(&demo_view::line(&moment))?;
            }
            None => {}
        }
    }
    Ok(())
}

/// Whether the upstream is cut at this time of the play.
fn is_cut(elapsed: Duration) -> bool {
    let Some(since_first) = elapsed.checked_sub(FIRST_CUT) else { return false };
    since_first.as_millis() % CUT_PERIOD.as_millis() < CUT_LENGTH.as_millis()
}

/// The devices have stopped: waits until all that they were promised has arrived and nothing waits any more.
async fn drain(stage: &mut Stage, books: &Books) -> Result<(), Failure> {
    let begun = Instant::now();
    say("the devices have stopped; what waits is delivered")?;
    loop {
        let moment = stage.moment(begun.elapsed(), false, books).await?;
        let done = books.are_even() && moment.waiting == 0;
        if done || begun.elapsed() > DRAIN_MAX {
            return say(&demo_view::line(&moment));
        }
        tokio::time::sleep(TICK).await;
    }
}

fn verdict(books: &Books) -> Result<(), Failure> {
    let simulated: Vec<_> = books.named().into_iter().filter(|(_, ledger)| ledger.totals().sent > 0).collect();
    if simulated.is_empty() {
        return say("nothing was simulated: nothing to compare");
    }
    let broken: Vec<String> = simulated.iter().filter_map(|(what, ledger)| broken(what, ledger)).collect();
    if !broken.is_empty() {
        return Err(Failure::new(Exit::Data, format!("BAD: {}", broken.join("; "))));
    }
    let (unanswered, answered): (Vec<_>, Vec<_>) =
        simulated.iter().partition(|(_, ledger)| Arc::ptr_eq(ledger, &books.lines));
    let named = |devices: Vec<&(&str, &Arc<Ledger>)>| {
        let named: Vec<String> =
            devices.iter().map(|(what, ledger)| format!("{} {what}", ledger.totals().acknowledged)).collect();
        named.join(" and ")
    };
    say(&match (named(answered), named(unanswered)) {
        (answered, none) if none.is_empty() => {
            format!("GOOD: {answered} were acknowledged, and every one of them has arrived, byte for byte")
        }
        (none, said) if none.is_empty() => format!("GOOD: every one of {said} has arrived, byte for byte"),
        (answered, said) => format!(
            "GOOD: {answered} were acknowledged, and every one of them has arrived, byte for byte; so have {said}, \
             to which nobody answers"
        ),
    })
}

/// In which way a promise was broken.
fn broken(what: &str, ledger: &Ledger) -> Option<String> {
    let (totals, missing) = (ledger.totals(), ledger.missing());
    if totals.acknowledged == 0 {
        return Some(format!("of {} {what} that were sent none was acknowledged", totals.sent));
    }
    let named: Vec<&str> = missing.iter().take(NAMED_MAX).map(String::as_str).collect();
    (!missing.is_empty()).then(|| {
        let (count, all) = (missing.len(), totals.acknowledged);
        format!("{count} of {all} {what} that were acknowledged have not arrived: {}", named.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::ledger::fingerprint;

    #[test]
    fn the_upstream_is_cut_at_ten_seconds_and_again_in_each_minute_after() {
        let cut_at: Vec<u64> = (0..150).filter(|second| is_cut(Duration::from_secs(*second))).collect();
        let expected: Vec<u64> = [10..16, 70..76, 130..136].into_iter().flatten().collect();
        assert_eq!(cut_at, expected);
    }

    #[test]
    fn the_verdict_is_bad_when_a_promise_was_broken_or_none_was_made() {
        let books = Books::default();
        assert!(verdict(&books).is_ok(), "nothing was promised");
        for (ledger, name) in [(&books.messages, "17"), (&books.images, "2.25.18")] {
            let one = fingerprint(name.as_bytes());
            ledger.sending(one, name);
            assert_eq!(verdict(&books).unwrap_err().exit, Exit::Data);
            ledger.acknowledged(&one);
            let failure = verdict(&books).unwrap_err();
            assert!(failure.exit == Exit::Data && failure.to_string().contains(name), "{failure}");
            ledger.arrived(&one);
            assert!(verdict(&books).is_ok());
        }
    }
}
