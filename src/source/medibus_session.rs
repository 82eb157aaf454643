//! One time that a MEDIBUS device is on the line: initialise, identify, configure, then ask in turn; silence begins anew.
//!
//! States and timers: *negotiating* asks for the initialisation every [`Settings::negotiate`]; *connected* asks for what is due, one question
//! at a time, and keeps the line alive with a NOP; *quiet* is no byte for [`Settings::quiet`], and leads back to negotiating. The device's own
//! questions (ICC, device identification, NOP) are answered whenever they come.
//!
//! It only asks: no command here changes how the device treats its patient, and none configures its waveforms.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};

use super::Stop;
use super::intake::Intake;
use super::medibus_chart::{Answer, Chart};
use crate::envelope::Stamp;
use crate::system::seldom::Seldom;
use crate::telemetry::record::{GapReason, Named};
use crate::wire::medibus::{self, Decoder, Event, Lead, code};
use crate::wire::medibus_data;

/// What one read takes at most.
const READ_BYTES: usize = 4 << 10;
/// The device is told that we are there after so long a silence of ours; it forgets us after three seconds.
const NOP_AFTER: Duration = Duration::from_millis(1500);
/// An answer that has not come after so long, while other bytes did, is given up.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
/// Bytes that the line does not take in this time are a broken line.
const WRITE_TIME_MAX: Duration = Duration::from_secs(5);
/// How long the device may hold us up with XOFF.
const PAUSE_TIME_MAX: Duration = Duration::from_secs(2);
/// Answers to the device that wait until it lets us go on.
const WAITING_BYTES_MAX: usize = 1 << 10;
/// A question that got a corrupt answer is asked so often in all, before its turn is over.
const TRIES: u32 = 3;
/// A question that was not answered so often in a row is one that the device does not know.
const MISSES_MAX: u32 = 2;
/// It is tried again after so long.
const MISSED_PAUSE: Duration = Duration::from_secs(600);
/// Who we say we are: number, name, and software and protocol revision in eleven characters. The number is what public drivers give for a
/// computer; devices do not look at it.
const IDENTITY: &[u8] = b"0161'WARDGATE'01.00:04.03";

/// What of the configuration counts for a session.
#[derive(Debug)]
pub struct Settings {
    /// Measured values are asked for so often.
    pub every: Duration,
    /// Alarms are.
    pub alarms_every: Duration,
    /// Settings, limits and texts are.
    pub settings_every: Duration,
    /// The clock is.
    pub clock_every: Duration,
    /// No byte for so long: the device is gone.
    pub quiet: Duration,
    /// The pause between questions for the initialisation.
    pub negotiate: Duration,
    /// Of these pages only these codes are asked for.
    pub only: Vec<(u8, Vec<u8>)>,
    /// What is told at most once a minute.
    pub faults: Seldom,
    /// What is logged of the beginnings of its communication.
    pub greetings: Seldom,
}

/// Why a session is over.
#[derive(Debug)]
pub enum End {
    /// By [`Stop`].
    Stopped,
    /// The line broke: unplugged, hung up.
    Gone(io::Error),
}

/// How a question ended.
enum Outcome {
    Answer(Box<Answer>),
    /// A wrong sum, here or there.
    Corrupt,
    /// Other bytes came, the answer did not.
    Missing,
    /// Nothing came at all.
    Quiet,
    /// The device began anew.
    Anew,
}

/// How long an answer is waited for.
#[derive(Clone, Copy)]
struct Patience {
    /// While no byte at all comes.
    quiet: Duration,
    /// In all.
    whole: Duration,
}

/// Something whole that came.
enum Heard {
    Answer(Box<Answer>),
    Command(u8),
    Corrupt(Lead),
    Flow(u8),
}

/// A question that is asked again and again.
struct Job {
    page: u8,
    every: Duration,
    due: Instant,
    misses: u32,
}

struct Session<'a, S> {
    line: S,
    intake: &'a Intake,
    settings: &'a Settings,
    chart: &'a mut Chart,
    stop: &'a Stop,
    decoder: Decoder,
    heard: VecDeque<Heard>,
    jobs: Vec<Job>,
    /// What is to be sent, and since when nothing was.
    out: Vec<u8>,
    sent: Instant,
    asked: Stamp,
    first_byte: Stamp,
    last_byte: Instant,
    /// The device holds us up, until then at most.
    paused: Option<Instant>,
    /// When an XON came that ended no pause.
    lone_xon: Option<Instant>,
    quiet_since: Option<Instant>,
}

/// Serves the device on `line` until it is gone or the source stops.
pub async fn serve<S>(line: S, intake: &Intake, settings: &Settings, chart: &mut Chart, stop: &Stop) -> End
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (now, stamp) = (Instant::now(), intake.now());
    let mut session = Session {
        line,
        intake,
        settings,
        chart,
        stop,
        decoder: Decoder::new(),
        heard: VecDeque::new(),
        jobs: jobs(settings, now),
        out: Vec::new(),
        sent: now,
        asked: stamp,
        first_byte: stamp,
        last_byte: now,
        paused: None,
        lone_xon: None,
        quiet_since: None,
    };
    let end = match session.run().await {
        Ok(never) => match never {},
        Err(end) => end,
    };
    session.account();
    if matches!(end, End::Stopped) {
        session.farewell().await;
    }
    end
}

fn jobs(settings: &Settings, now: Instant) -> Vec<Job> {
    let job = |every| move |page| Job { page, every, due: now, misses: 0 };
    let often = [code::MEASURED_1, code::MEASURED_2].map(job(settings.every));
    let alarms = [code::ALARMS_1, code::ALARMS_2].map(job(settings.alarms_every));
    let clock = [code::DATE_TIME].map(job(settings.clock_every));
    let seldom = [code::SETTINGS, code::TEXTS, code::LOW_1, code::HIGH_1, code::LOW_2, code::HIGH_2];
    let seldom = seldom.map(job(settings.settings_every));
    often.into_iter().chain(alarms).chain(clock).chain(seldom).collect()
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Session<'_, S> {
    async fn run(&mut self) -> Result<std::convert::Infallible, End> {
        loop {
            if self.negotiate().await? {
                self.connected().await?;
            }
        }
    }

    /// Whether the device is there and knows us. It is asked until it is, unless it began anew in the middle.
    async fn negotiate(&mut self) -> Result<bool, End> {
        let negotiate = self.settings.negotiate;
        loop {
            let began = Instant::now();
            match self.ask(code::INITIALISE, b"", Patience { quiet: negotiate, whole: negotiate }).await? {
                // Its own ICC is as good as the answer to ours: both sides have begun anew.
                Outcome::Answer(_) | Outcome::Anew => break,
                Outcome::Quiet => self.silent(),
                Outcome::Corrupt | Outcome::Missing => {}
            }
            self.wait_until(began + negotiate).await?;
        }
        let Some(device) = self.identify().await? else { return Ok(false) };
        for (page, codes) in &self.settings.only {
            let mut argument = vec![*page];
            argument.extend(codes.iter().flat_map(|code| medibus::digits(*code)));
            if !matches!(self.persistently(code::CONFIGURE, &argument).await?, Outcome::Answer(_)) {
                let (source, page) = (self.intake.source(), format!("{page:02X}"));
                tracing::warn!(%source, page, "the device did not take the list of codes and sends all that it has");
            }
        }
        self.welcome(device).await;
        Ok(true)
    }

    async fn identify(&mut self) -> Result<Option<Vec<Named>>, End> {
        let Outcome::Answer(answer) = self.persistently(code::IDENTIFY, b"").await? else { return Ok(None) };
        let identity = medibus_data::identity(&answer.data).ok().flatten();
        let named = |name: &'static str, value: &str| Named { name: name.into(), value: value.to_owned() };
        Ok(Some(identity.map_or_else(Vec::new, |identity| {
            vec![named("model", identity.name), named("number", identity.number), named("revision", identity.revision)]
        })))
    }

    async fn welcome(&mut self, device: Vec<Named>) {
        let model = device.first().map_or("", |model| model.value.as_str());
        if let Some(unsaid) = self.settings.greetings.speak() {
            tracing::info!(source = %self.intake.source(), model, unsaid, "the device answers");
        }
        self.intake.counters().set_trouble(None);
        self.chart.identified(device).await;
        if let Some(since) = self.quiet_since.take() {
            self.chart.missing(GapReason::Unplugged, None, Some(since.elapsed()));
        }
        let now = Instant::now();
        for job in self.jobs.iter_mut().filter(|job| job.misses < MISSES_MAX) {
            job.due = now;
        }
    }

    /// Asks for what is due until the device falls silent or begins anew.
    async fn connected(&mut self) -> Result<(), End> {
        loop {
            let next = self.jobs.iter().map(|job| job.due).min().unwrap_or(self.sent + NOP_AFTER);
            let until = next.min(self.sent + NOP_AFTER);
            if self.wait_until(until).await? {
                return Ok(());
            }
            let due = self.jobs.iter_mut().filter(|job| job.due <= Instant::now()).min_by_key(|job| job.due);
            let outcome = match due.map(|job| job.page) {
                Some(page) => self.turn(page).await?,
                None => self.ask(code::NOP, b"", self.patience()).await?,
            };
            match outcome {
                Outcome::Quiet => {
                    self.silent();
                    return Ok(());
                }
                Outcome::Anew => return Ok(()),
                Outcome::Answer(_) | Outcome::Corrupt | Outcome::Missing => {}
            }
        }
    }

    /// One question and what becomes of its answer.
    async fn turn(&mut self, page: u8) -> Result<Outcome, End> {
        let outcome = self.persistently(page, b"").await?;
        self.account();
        let missed = matches!(outcome, Outcome::Missing | Outcome::Quiet);
        let now = Instant::now();
        for job in self.jobs.iter_mut().filter(|job| job.page == page) {
            job.misses = if missed { job.misses + 1 } else { 0 };
            let pause = if job.misses >= MISSES_MAX { MISSED_PAUSE } else { job.every };
            // From when it was due, so that the steps are even, unless we are late.
            job.due = (job.due + pause).max(now);
        }
        let lost = match &outcome {
            Outcome::Answer(answer) => self.chart.take(answer).await.is_err(),
            Outcome::Corrupt => true,
            Outcome::Missing | Outcome::Quiet | Outcome::Anew => false,
        };
        if lost {
            self.chart.missing(GapReason::Parse, Some(1), None);
            self.complain("an answer can't be read: check the line settings and the cable");
        }
        Ok(outcome)
    }

    fn patience(&self) -> Patience {
        Patience { quiet: self.settings.quiet, whole: ANSWER_TIME_MAX }
    }

    /// Asks again when the sum was wrong.
    async fn persistently(&mut self, page: u8, argument: &[u8]) -> Result<Outcome, End> {
        let mut outcome = Outcome::Corrupt;
        for _ in 0..TRIES {
            outcome = self.ask(page, argument, self.patience()).await?;
            if !matches!(outcome, Outcome::Corrupt) {
                break;
            }
        }
        Ok(outcome)
    }

    /// One question.
    async fn ask(&mut self, page: u8, argument: &[u8], patience: Patience) -> Result<Outcome, End> {
        medibus::command(page, argument, &mut self.out);
        self.asked = self.intake.now();
        let began = Instant::now();
        let give_up = began + patience.whole;
        loop {
            while let Some(heard) = self.heard.pop_front() {
                match self.understood(heard) {
                    Some(Outcome::Answer(answer)) if answer.page != page => {} // late, or to nothing
                    Some(outcome) => return Ok(outcome),
                    None => {}
                }
            }
            let deadline = give_up.min(self.last_byte.max(began) + patience.quiet);
            if !self.read(deadline).await? && Instant::now() >= deadline {
                self.decoder.give_up();
                return Ok(if self.last_byte < began { Outcome::Quiet } else { Outcome::Missing });
            }
        }
    }

    /// Answers the device meanwhile. Whether it began anew.
    async fn wait_until(&mut self, until: Instant) -> Result<bool, End> {
        loop {
            while let Some(heard) = self.heard.pop_front() {
                if let Some(Outcome::Anew) = self.understood(heard) {
                    return Ok(true);
                }
            }
            if Instant::now() >= until {
                return Ok(false);
            }
            self.read(until).await?;
        }
    }

    /// What something that came means for a question; the device's own questions are answered here.
    fn understood(&mut self, heard: Heard) -> Option<Outcome> {
        match heard {
            Heard::Answer(answer) if answer.page == code::CORRUPT => Some(Outcome::Corrupt),
            Heard::Answer(answer) => Some(Outcome::Answer(answer)),
            Heard::Corrupt(Lead::Response) => Some(Outcome::Corrupt),
            Heard::Corrupt(Lead::Command) => {
                self.reply(code::CORRUPT, b"");
                None
            }
            Heard::Flow(byte) => {
                self.flow(byte);
                None
            }
            Heard::Command(code) => {
                let data = if code == code::IDENTIFY { IDENTITY } else { b"" };
                self.reply(code, data);
                if code == code::TIME_CHANGED {
                    self.jobs
                        .iter_mut()
                        .filter(|job| job.page == code::DATE_TIME)
                        .for_each(|job| job.due = Instant::now());
                }
                (code == code::INITIALISE).then_some(Outcome::Anew)
            }
        }
    }

    fn reply(&mut self, code: u8, data: &[u8]) {
        if self.out.len() < WAITING_BYTES_MAX {
            medibus::response(code, data, &mut self.out);
        }
    }

    /// XOFF stops us and XON lets us go on. A lone XON says nothing: devices send it when they are switched on. Some documents have the two the
    /// other way round, so that an XOFF soon after one is no stop either: a question that is lost is asked again, and a line that stands still is not.
    fn flow(&mut self, byte: u8) {
        let now = Instant::now();
        let is_pair = self.lone_xon.take().is_some_and(|at| now - at < PAUSE_TIME_MAX);
        match (byte, self.paused) {
            (medibus::XON, Some(_)) => self.paused = None,
            (medibus::XON, None) => self.lone_xon = Some(now),
            _ if is_pair => {}
            _ => self.paused = Some(now + PAUSE_TIME_MAX),
        }
    }

    /// Sends what waits and reads once. Whether bytes came before `deadline`.
    async fn read(&mut self, deadline: Instant) -> Result<bool, End> {
        let mut deadline = deadline;
        match self.paused {
            Some(until) if until > Instant::now() => deadline = deadline.min(until),
            _ => {
                self.paused = None;
                self.flush().await?;
            }
        }
        let mut buffer = [0; READ_BYTES];
        let read = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Err(End::Stopped),
            read = timeout_at(deadline, self.line.read(&mut buffer)) => read,
        };
        let count = match read {
            Err(_) => return Ok(false),
            Ok(Ok(0)) => return Err(End::Gone(io::ErrorKind::UnexpectedEof.into())),
            Ok(Ok(count)) => count,
            Ok(Err(error)) => return Err(End::Gone(error)),
        };
        self.came(buffer.get(..count).unwrap_or_default());
        Ok(true)
    }

    async fn flush(&mut self) -> Result<(), End> {
        if self.out.is_empty() {
            return Ok(());
        }
        let written = timeout(WRITE_TIME_MAX, async {
            self.line.write_all(&self.out).await?;
            self.line.flush().await
        });
        written.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(End::Gone)?;
        self.out.clear();
        self.sent = Instant::now();
        Ok(())
    }

    fn came(&mut self, mut input: &[u8]) {
        let now = self.intake.now();
        self.last_byte = Instant::now();
        if !self.decoder.is_in_frame() {
            self.first_byte = now;
        }
        while let Some(event) = self.decoder.pull(&mut input) {
            self.heard.push_back(match event {
                Event::Frame(frame) if frame.lead == Lead::Response => Heard::Answer(Box::new(Answer {
                    page: frame.code,
                    data: frame.data.to_vec(),
                    raw: frame.raw.to_vec(),
                    asked: self.asked,
                    received: self.first_byte,
                })),
                Event::Frame(frame) => Heard::Command(frame.code),
                Event::Corrupt(lead) => Heard::Corrupt(lead),
                Event::Flow(byte) => Heard::Flow(byte),
            });
            self.first_byte = now;
        }
    }

    /// Counts what passed by beside the frames.
    fn account(&mut self) {
        let counts = self.decoder.take_counts();
        self.chart.passed_by(counts.realtime);
        self.intake.counters().discarded_bytes.add(counts.junk);
    }

    /// The device says nothing.
    fn silent(&mut self) {
        if self.quiet_since.is_some() {
            return;
        }
        self.quiet_since = Some(self.last_byte);
        let text = "the device does not answer: check that it is switched on, that its port is set to MEDIBUS, and its line settings";
        self.intake.counters().set_trouble(Some(text.to_owned()));
        self.complain(text);
    }

    fn complain(&self, text: &str) {
        if let Some(unsaid) = self.settings.faults.speak() {
            tracing::warn!(source = %self.intake.source(), unsaid, "{text}");
        }
    }

    /// Tells the device that we go, so that it need not miss us.
    async fn farewell(&mut self) {
        self.out.clear();
        medibus::command(code::STOP, b"", &mut self.out);
        // However it ends, the session is over.
        self.flush().await.ok();
    }
}
