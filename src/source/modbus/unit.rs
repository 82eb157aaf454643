//! One unit of a bus: what is read from it, what was last said about it, and when it is asked again.
//!
//! Only what changed becomes a reading, and all of it every so often. A unit that does not answer is asked less and less often, so
//! that it takes no time from the others; when it comes back, its reading says for how long nothing was known.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::link::{Link, LinkError, Reply};
use super::map::{Block, Point, Sample, blocks};
use super::{ModbusConfig, UnitConfig};
use crate::source::intake::Intake;
use crate::source::readings::{Reading, Readings};
use crate::system::seldom::Seldom;
use crate::telemetry::codes;
use crate::telemetry::record::{Code, Event, Gap, GapReason, Mode, Named, Observation, Phase, Raw, Validity, Value};
use crate::wire::modbus::Exception;

/// Polls in a row without an answer after which a unit counts as unreachable, and that is said.
pub const FAILURES_TOLERATED: u32 = 3;
/// Longest pause between two attempts to reach a unit that does not answer.
pub const RETRY_PAUSE_MAX: Duration = Duration::from_secs(30);
/// An absence of the line of no more than this, and the time between two polls, is no gap.
const GAP_AFTER: Duration = Duration::from_secs(5);
/// After a question that was not answered the unit is left alone for so many times the time that an answer may take: what comes
/// late must have come by then.
const LATE_ANSWER_TIMES: u32 = 2;

/// A unit that is asked.
pub struct Unit {
    config: UnitConfig,
    every: Duration,
    at_least_every: Duration,
    answer_time: Duration,
    points: Vec<Point>,
    blocks: Vec<Block>,
    readings: Readings,
    /// What was last stored of each point.
    said: Vec<Option<Sample>>,
    /// When all points were last stored.
    said_all: Option<Instant>,
    due: Instant,
    failures: u32,
    answered: Option<Instant>,
    /// Since when nothing is known of it.
    silent_since: Option<Instant>,
    /// That it is unreachable was stored.
    told: bool,
    /// And logged: one that comes and goes is logged once a minute.
    logged: bool,
    log: Seldom,
}

/// What one poll brought: the samples of all points, and the answers that they were in.
struct Poll {
    samples: Vec<Sample>,
    /// The answer of each block: unit, function, byte count, data.
    answers: Vec<Vec<u8>>,
}

/// How a poll ended that did not break the line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Polled {
    /// The unit answered.
    Answered,
    /// It did not.
    Silent,
}

impl Unit {
    /// A unit of a checked configuration, due at once.
    pub fn new(source: &ModbusConfig, config: &UnitConfig, intake: &Intake) -> Self {
        let blocks = blocks(&config.point, config.first_address, config.gap_max, config.registers_max);
        Self {
            every: config.every.unwrap_or(source.every).0,
            at_least_every: source.at_least_every.0,
            answer_time: source.answer_timeout.0,
            points: config.point.iter().map(Point::new).collect(),
            blocks,
            readings: Readings::new(intake, format!("unit-{}", config.id)),
            said: vec![None; config.point.len()],
            said_all: None,
            due: Instant::now(),
            failures: 0,
            answered: None,
            silent_since: None,
            told: false,
            logged: false,
            log: Seldom::default(),
            config: config.clone(),
        }
    }

    /// When it is to be asked.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// The line was made anew: whether something is missing is known when it answers.
    pub fn line_anew(&mut self) {
        self.silent_since = self.silent_since.or(self.answered);
    }

    /// Asks for everything, and stores what changed.
    ///
    /// # Errors
    /// [`LinkError`]: the line must be made anew. The unit then counts as silent.
    pub async fn poll<S>(&mut self, link: &mut Link<S>) -> Result<Polled, LinkError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        match self.read(link).await {
            Ok(Some(poll)) => {
                self.take(poll).await;
                Ok(Polled::Answered)
            }
            Ok(None) => {
                self.fail("it does not answer: look at its power, its cable, its address and the settings of the line")
                    .await;
                Ok(Polled::Silent)
            }
            Err(error) => {
                self.fail(&error.to_string()).await;
                Err(error)
            }
        }
    }

    /// The whole of it, or `None` when it left a question unanswered.
    async fn read<S>(&self, link: &mut Link<S>) -> Result<Option<Poll>, LinkError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let mut samples = vec![Sample::Nothing; self.points.len()];
        let mut answers = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            match link.ask(self.config.id, &block.read).await? {
                Reply::Silence => return Ok(None),
                Reply::Exception(why) if why.is_unreachable() => return Ok(None),
                Reply::Exception(why) => {
                    fill(&mut samples, block, |_, _| Sample::Refused(why));
                    answers.push(vec![self.config.id, block.read.table().function() | 0x80, why.0]);
                }
                Reply::Data(data) => {
                    fill(&mut samples, block, |index, at| {
                        self.points.get(index).map_or(Sample::Nothing, |point| point.sample(&data, at))
                    });
                    let count = u8::try_from(data.len()).unwrap_or(u8::MAX);
                    answers.push([&[self.config.id, block.read.table().function(), count], &data[..]].concat());
                }
            }
        }
        Ok(Some(Poll { samples, answers }))
    }

    /// Notes that it did not answer; says so once when that lasts.
    async fn fail(&mut self, why: &str) {
        let now = Instant::now();
        self.silent_since = self.silent_since.or(self.answered).or(Some(now));
        self.failures = self.failures.saturating_add(1);
        let doubled = self.every.saturating_mul(1 << self.failures.min(16));
        let pause = doubled.min(RETRY_PAUSE_MAX).max(self.answer_time * LATE_ANSWER_TIMES);
        self.due = now + pause;
        if self.failures < FAILURES_TOLERATED {
            return;
        }
        let speak = match (self.told, self.logged) {
            (false, _) => self.log.speak(),
            (true, false) => self.log.speak_yet(),
            (true, true) => None,
        };
        if let Some(unsaid) = speak {
            self.logged = true;
            tracing::warn!(stream = %format_args!("unit-{}", self.config.id), why, unsaid, "a Modbus unit can't be reached");
        }
        if self.told {
            return;
        }
        self.told = true;
        let event = event("unplugged", format!("unit {} can't be reached: {why}", self.config.id));
        // When it can't be stored, the next reading of this stream says that one is missing.
        let _told =
            self.readings.store(Reading { events: vec![event], about: self.about(), ..Reading::default() }).await;
    }

    /// Stores what is new. What could not be stored is new again in the next poll.
    async fn take(&mut self, poll: Poll) {
        let now = Instant::now();
        self.due = (self.due + self.every).max(now);
        self.failures = 0;
        self.answered = Some(now);
        let silence = self.silent_since.map(|since| now - since);
        let gap = silence.filter(|silence| self.told || *silence > GAP_AFTER + self.every);
        let all = gap.is_some() || self.said_all.is_none_or(|said| now - said >= self.at_least_every);
        let news: Vec<usize> = (0..self.points.len()).filter(|index| all || self.is_news(*index, &poll)).collect();
        if !news.is_empty() {
            let reading = self.reading(&news, &poll, gap);
            if self.readings.store(reading).await.is_err() {
                return;
            }
        }
        if self.logged {
            tracing::info!(stream = %format_args!("unit-{}", self.config.id), "a Modbus unit is back");
        }
        (self.silent_since, self.told, self.logged) = (None, false, false);
        if all {
            self.said_all = Some(now);
        }
        for (index, sample) in poll.samples.into_iter().enumerate() {
            if let (true, Some(said)) = (news.contains(&index), self.said.get_mut(index)) {
                *said = Some(sample);
            }
        }
    }

    fn is_news(&self, index: usize, poll: &Poll) -> bool {
        let (Some(point), Some(new)) = (self.points.get(index), poll.samples.get(index)) else { return false };
        let said = self.said.get(index).and_then(Option::as_ref);
        said.is_none_or(|said| point.differs(said, new))
    }

    fn reading(&self, news: &[usize], poll: &Poll, gap: Option<Duration>) -> Reading {
        let mut reading = Reading { about: self.about(), ..Reading::default() };
        for index in news {
            let (Some(point), Some(sample)) = (self.points.get(*index), poll.samples.get(*index)) else { continue };
            reading.observations.extend(observations(point, sample));
            let said = self.said.get(*index).and_then(Option::as_ref);
            reading.events.extend(alarms(point, said, sample));
        }
        if let Some(lasted) = gap {
            let lasted_ms = u64::try_from(lasted.as_millis()).ok();
            reading.gap = Some(Gap { reason: GapReason::Unplugged, from: None, to: None, count: None, lasted_ms });
        }
        if self.told {
            reading.events.insert(0, event("plugged", format!("unit {} answers again", self.config.id)));
        }
        let mut raw = Vec::new();
        for (block, answer) in self.blocks.iter().zip(&poll.answers) {
            if block.points.iter().any(|(index, _)| news.contains(index)) {
                raw.extend_from_slice(answer);
                let (address, count) = (block.read.address(), block.read.count());
                let value = format!("function {} address {address} count {count}", block.read.table().function());
                reading.about.push(Named { name: "read".into(), value });
            }
        }
        reading.raw = Some(Raw::of(&raw));
        reading
    }

    fn about(&self) -> Vec<Named> {
        vec![Named { name: "unit".into(), value: self.config.id.to_string() }]
    }
}

fn fill(samples: &mut [Sample], block: &Block, sample: impl Fn(usize, u16) -> Sample) {
    for (index, at) in &block.points {
        if let Some(place) = samples.get_mut(*index) {
            *place = sample(*index, *at);
        }
    }
}

fn event(kind: &'static str, text: String) -> Event {
    let (vendor_code, code, priority, phase) = (None, None, None, None);
    Event { kind: kind.into(), vendor_code, code, text: Some(text), priority, phase, details: vec![] }
}

/// The observations of a point: one, or one for each named bit.
fn observations(point: &Point, sample: &Sample) -> Vec<Observation> {
    let note = |why: &Exception| Named { name: "exception".into(), value: why.to_string() };
    let notes: Vec<Named> = if let Sample::Refused(why) = sample { vec![note(why)] } else { vec![] };
    let one = |name: String, value: Option<String>| Observation {
        vendor_code: name,
        code: code(point.config.code.as_deref()),
        value: value.map(Value::Number),
        unit: point.config.unit.clone(),
        vendor_unit: None,
        validity: if sample.bits().is_some() { Validity::Valid } else { sample.validity() },
        mode: Mode::Periodic,
        at: None,
        notes: notes.clone(),
    };
    let name = &point.config.name;
    if point.config.bits.is_empty() {
        let value = if let Sample::Value(text) = sample { Some(text.clone()) } else { None };
        return vec![one(name.clone(), value)];
    }
    let set = |number: u8| sample.bits().map(|bits| (bits >> number & 1).to_string());
    point.config.named_bits().map(|(number, bit)| one(format!("{name}.{bit}"), set(number))).collect()
}

fn code(name: Option<&str>) -> Option<Code> {
    name.and_then(codes::by_name)
}

/// What begins, goes on from before the start of this service, or ends.
fn alarms(point: &Point, said: Option<&Sample>, sample: &Sample) -> Vec<Event> {
    let (Some(priority), Some(now)) = (point.config.alarm, sample.bits()) else { return Vec::new() };
    let before = said.and_then(Sample::bits);
    let name = &point.config.name;
    let bits: Vec<(u8, String)> = if point.config.bits.is_empty() {
        vec![(0, name.clone())]
    } else {
        point.config.named_bits().map(|(number, bit)| (number, format!("{name}.{bit}"))).collect()
    };
    let phase = |number: u8| match (before.map(|before| before >> number & 1 == 1), now >> number & 1 == 1) {
        (None, true) => Some(Phase::Continue),
        (Some(false), true) => Some(Phase::Start),
        (Some(true), false) => Some(Phase::End),
        _ => None,
    };
    let alarm = |(number, vendor_code): (u8, String)| {
        let phase = phase(number)?;
        let (code, text, details) = (code(point.config.code.as_deref()), None, vec![]);
        let (priority, phase) = (Some(priority), Some(phase));
        Some(Event { kind: "alarm".into(), vendor_code: Some(vendor_code), code, text, priority, phase, details })
    };
    bits.into_iter().filter_map(alarm).collect()
}
