//! What a MEDIBUS device says, on its way into records: values, settings, limits, alarms and texts as they begin and end, its clock.
//!
//! One chart for a source, kept while the device comes and goes: an alarm that was there before a cable was pulled and is not there after
//! it has ended. Values stay as the device wrote them, blanks are no value, unknown codes pass under the vendor's code, the device's
//! clock is measured and never corrected. What could not be stored is told by the next record.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::civil;
use jiff::tz::TimeZone;
use tokio::time::Instant;

use super::intake::Intake;
use super::medibus_values::{self, Row};
use super::medibus_words;
use super::readings::{Reading, Readings};
use crate::envelope::Stamp;
use crate::telemetry::record::{
    ClockQuality, DeviceTime, Event, Gap, GapReason, Mode, Named, Observation, Phase, Raw, Validity, Value,
};
use crate::wire::medibus::code;
use crate::wire::medibus_data::{self as data, Alarm, Item, Malformed, Said};

/// An alarm that goes on is told again after so long.
const ALARM_AGAIN: Duration = Duration::from_secs(60);
/// Settings, limits and texts that stay the same are told again after so long.
const SAME_AGAIN: Duration = Duration::from_secs(600);
/// A clock that is further off was never set.
const NEVER_SET_MS: u64 = 365 * 86_400_000;

/// An answer of the device, whole and with a right sum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Code of what was asked.
    pub page: u8,
    /// Its data.
    pub data: Vec<u8>,
    /// The frame, without what was interleaved.
    pub raw: Vec<u8>,
    /// When it was asked.
    pub asked: Stamp,
    /// When its first byte came.
    pub received: Stamp,
}

/// The records of one device.
pub struct Chart {
    source: String,
    numerics: Readings,
    settings: Readings,
    alarms: Readings,
    texts: Readings,
    clock: Readings,
    zone: TimeZone,
    present: BTreeMap<(u8, u8), Present>,
    /// What was last told of pages that are told when they change.
    told: BTreeMap<u8, (Vec<u8>, Instant)>,
    device: Vec<Named>,
    device_told: bool,
    gap: Option<Gap>,
    realtime: u64,
}

/// An alarm or a text that is there.
#[derive(Clone)]
struct Present {
    phrase: String,
    priority: Option<u8>,
    told: Instant,
}

/// What the device says is there now.
struct Shown<'a> {
    code: u8,
    phrase: &'a str,
    priority: Option<u8>,
}

impl Chart {
    /// A chart that begins now. The device's clock shows the time of `zone`.
    pub fn new(intake: &Intake, zone: TimeZone) -> Self {
        let stream = |name: &str| Readings::new(intake, name);
        Self {
            source: intake.source().to_string(),
            numerics: stream("numerics"),
            settings: stream("settings"),
            alarms: stream("alarms"),
            texts: stream("texts"),
            clock: stream("clock"),
            zone,
            present: BTreeMap::new(),
            told: BTreeMap::new(),
            device: Vec::new(),
            device_told: false,
            gap: None,
            realtime: 0,
        }
    }

    /// Who answers now: a word with the next values, and the end of the alarms of another device.
    pub async fn identified(&mut self, device: Vec<Named>) {
        if !self.device.is_empty() && self.device != device {
            let gone: Vec<(u8, u8)> = self.present.keys().copied().collect();
            let events = gone.iter().filter_map(|key| self.event(*key, self.present.get(key)?, Phase::End)).collect();
            self.present.clear();
            self.told.clear();
            if !gone.is_empty() {
                let outcome = self.alarms.store(Reading { events, ..Reading::default() }).await;
                self.noted(outcome.is_ok());
            }
        }
        self.device = device;
        self.device_told = false;
    }

    /// Readings are missing: told with the next values.
    pub fn missing(&mut self, reason: GapReason, count: Option<u64>, lasted: Option<Duration>) {
        let lasted_ms = lasted.map(|lasted| u64::try_from(lasted.as_millis()).unwrap_or(u64::MAX));
        let gap = self.gap.get_or_insert(Gap { reason, from: None, to: None, count: None, lasted_ms: None });
        // The longer story is the better one: an absence hides a bad sum before it.
        if reason == GapReason::Unplugged {
            gap.reason = reason;
        }
        gap.count = count.map(|count| gap.count.unwrap_or(0) + count).or(gap.count);
        gap.lasted_ms = lasted_ms.map(|lasted| gap.lasted_ms.unwrap_or(0) + lasted).or(gap.lasted_ms);
    }

    /// So many bytes of waveforms passed by.
    pub fn passed_by(&mut self, realtime: u64) {
        self.realtime += realtime;
    }

    /// Stores what an answer says.
    ///
    /// # Errors
    /// [`Malformed`] when it has not the layout of its page; nothing is stored then.
    pub async fn take(&mut self, answer: &Answer) -> Result<(), Malformed> {
        match answer.page {
            code::MEASURED_1 | code::MEASURED_2 => self.values(answer).await,
            code::SETTINGS | code::LOW_1 | code::LOW_2 | code::HIGH_1 | code::HIGH_2 => self.set(answer).await,
            code::ALARMS_1 | code::ALARMS_2 => {
                let alarms = data::alarms(&answer.data)?;
                self.compare(answer, &alarms.iter().map(Shown::from).collect::<Vec<_>>()).await;
                Ok(())
            }
            code::TEXTS => {
                let texts = data::texts(&answer.data)?;
                self.compare(answer, &texts.iter().map(Shown::from).collect::<Vec<_>>()).await;
                Ok(())
            }
            code::DATE_TIME => {
                self.clock(answer).await;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn values(&mut self, answer: &Answer) -> Result<(), Malformed> {
        let items = data::values(&answer.data)?;
        if items.is_empty() {
            return Ok(());
        }
        let mut reading = reading(answer);
        reading.observations = items.iter().map(|item| observation(answer.page, item)).collect();
        reading.gap = self.gap.clone();
        if !self.device_told {
            reading.device.clone_from(&self.device);
        }
        if self.realtime > 0 {
            reading.about.push(named("realtime-bytes", self.realtime.to_string()));
        }
        let outcome = self.numerics.store(reading).await;
        if self.noted(outcome.is_ok()) {
            (self.gap, self.device_told, self.realtime) = (None, true, 0);
        }
        Ok(())
    }

    /// Settings and limits, when they changed.
    async fn set(&mut self, answer: &Answer) -> Result<(), Malformed> {
        let items =
            if answer.page == code::SETTINGS { data::settings(&answer.data) } else { data::values(&answer.data) };
        let items = items?;
        let same = |told: &(Vec<u8>, Instant)| told.0 == answer.data && told.1.elapsed() < SAME_AGAIN;
        if items.is_empty() || self.told.get(&answer.page).is_some_and(same) {
            return Ok(());
        }
        let observations = items.iter().map(|item| observation(answer.page, item)).collect();
        let outcome = self.settings.store(Reading { observations, ..reading(answer) }).await;
        if self.noted(outcome.is_ok()) {
            self.told.insert(answer.page, (answer.data.clone(), Instant::now()));
        }
        Ok(())
    }

    /// What began, changed or ended on the page since it was last shown. Nothing counts as told that could not be stored.
    async fn compare(&mut self, answer: &Answer, shown: &[Shown<'_>]) {
        let page = answer.page;
        let now = Instant::now();
        let again = if page == code::TEXTS { SAME_AGAIN } else { ALARM_AGAIN };
        let (mut events, mut after) = (Vec::new(), BTreeMap::new());
        for one in shown {
            let key = (page, one.code);
            let before = self.present.get(&key);
            let mut present = Present { phrase: one.phrase.to_owned(), priority: one.priority, told: now };
            let phase = match before {
                None => Some(Phase::Start),
                Some(before) if before.phrase != present.phrase || before.priority != present.priority => {
                    Some(Phase::Continue)
                }
                Some(before) if now - before.told >= again => Some(Phase::Continue),
                Some(before) => {
                    present.told = before.told;
                    None
                }
            };
            events.extend(phase.and_then(|phase| self.event(key, &present, phase)));
            after.insert(key, present);
        }
        let gone = self.present.iter().filter(|(key, _)| key.0 == page && !after.contains_key(key));
        events.extend(gone.filter_map(|(key, present)| self.event(*key, present, Phase::End)));
        if events.is_empty() {
            return;
        }
        let reading = Reading { events, ..reading(answer) };
        let stream = if page == code::TEXTS { &mut self.texts } else { &mut self.alarms };
        let outcome = stream.store(reading).await;
        if self.noted(outcome.is_ok()) {
            self.present.retain(|key, _| key.0 != page);
            self.present.append(&mut after);
        }
    }

    fn event(&self, (page, code): (u8, u8), present: &Present, phase: Phase) -> Option<Event> {
        let mut details = Vec::new();
        details.extend(medibus_words::find(page, code).map(|label| named("label", label.to_owned())));
        details.extend(present.priority.map(|priority| named("priority", priority.to_string())));
        Some(Event {
            kind: if page == code::TEXTS { "text" } else { "alarm" }.into(),
            vendor_code: Some(vendor_code(page, code)),
            code: None,
            text: Some(present.phrase.clone()),
            priority: None, // which of the device's 31 is high differs from model to model
            phase: Some(phase),
            details,
        })
    }

    async fn clock(&mut self, answer: &Answer) {
        if answer.data.is_empty() {
            return;
        }
        let device_time = Some(device_time(answer, &self.zone));
        let outcome = self.clock.store(Reading { device_time, ..reading(answer) }).await;
        self.noted(outcome.is_ok());
    }

    fn noted(&self, stored: bool) -> bool {
        if !stored {
            // The spool says why, once; the next record of the stream says how many.
            tracing::debug!(source = %self.source, "a reading could not be stored");
        }
        stored
    }
}

impl<'a> From<&Alarm<'a>> for Shown<'a> {
    fn from(alarm: &Alarm<'a>) -> Self {
        Self { code: alarm.code, phrase: alarm.phrase, priority: Some(alarm.priority) }
    }
}

impl<'a> From<&Item<'a>> for Shown<'a> {
    fn from(text: &Item<'a>) -> Self {
        Self { code: text.code, phrase: text.text, priority: None }
    }
}

fn reading(answer: &Answer) -> Reading {
    let about = vec![named("page", format!("{:02X}", answer.page))];
    Reading { received: Some(answer.received), about, raw: Some(Raw::of(&answer.raw)), ..Reading::default() }
}

fn named(name: &'static str, value: String) -> Named {
    Named { name: name.into(), value }
}

/// The code that the record gives: the page's name and the code within it.
fn vendor_code(page: u8, code: u8) -> String {
    let (name, tail) = match page {
        code::MEASURED_1 | code::ALARMS_1 => ("CP1", ""),
        code::MEASURED_2 | code::ALARMS_2 => ("CP2", ""),
        code::LOW_1 => ("CP1", ":LOW"),
        code::HIGH_1 => ("CP1", ":HIGH"),
        code::LOW_2 => ("CP2", ":LOW"),
        code::HIGH_2 => ("CP2", ":HIGH"),
        code::SETTINGS => ("SET", ""),
        _ => ("TXT", ""),
    };
    format!("{name}:{code:02X}{tail}")
}

fn observation(page: u8, item: &Item<'_>) -> Observation {
    let row = medibus_values::find(page, item.code);
    let measured = matches!(page, code::MEASURED_1 | code::MEASURED_2);
    let (value, validity) = match data::said(item.text) {
        Said::Nothing => (None, Validity::NotAvailable),
        Said::Number(number) => (Some(Value::Number(number)), Validity::Valid),
        Said::Text(text) => (Some(Value::Text(text)), Validity::Valid),
    };
    let code = row.filter(|_| measured).and_then(Row::mdc);
    // The term says what it is; without one the words do.
    let label = row.filter(|_| code.is_none()).map(|row| named("label", row.label.to_owned()));
    Observation {
        vendor_code: vendor_code(page, item.code),
        code,
        unit: row.and_then(Row::unit).filter(|_| value.is_some()).map(str::to_owned),
        value,
        vendor_unit: None,
        validity,
        mode: if measured { Mode::Periodic } else { Mode::Episodic },
        at: None,
        notes: label.into_iter().collect(),
    }
}

/// What the device's clock says against ours, at the moment between question and answer.
fn device_time(answer: &Answer, zone: &TimeZone) -> DeviceTime {
    let said = String::from_utf8_lossy(&answer.data).trim().to_owned();
    let unreadable =
        |said| DeviceTime { said, read: None, offset_ms: None, error_ms: None, quality: ClockQuality::Unreadable };
    let Some(clock) = data::date_time(&answer.data) else { return unreadable(said) };
    let civil = civil::DateTime::new(
        clock.year,
        clock.month,
        clock.day,
        clock.hour,
        clock.minute,
        clock.second.unwrap_or(0),
        0,
    );
    let Some((civil, there)) = civil.ok().and_then(|civil| Some((civil, zone.to_timestamp(civil).ok()?))) else {
        return unreadable(said);
    };
    // A clock that shows whole seconds is on average half of one behind what it shows.
    let half_ms: u64 = if clock.second.is_some() { 500 } else { 30_000 };
    let took_us = (answer.received.wall_us - answer.asked.wall_us).max(0);
    let here_ms = (answer.asked.wall_us + took_us / 2) / 1000;
    let offset_ms = there.as_millisecond() + i64::try_from(half_ms).unwrap_or(0) - here_ms;
    let quality = match answer.received.synchronised {
        _ if offset_ms.unsigned_abs() > NEVER_SET_MS => ClockQuality::NeverSet,
        true => ClockQuality::Measured,
        false => ClockQuality::BoxUnsynchronised,
    };
    let error_ms = half_ms + took_us.unsigned_abs() / 2000;
    let read = Some(civil.to_string());
    DeviceTime { said, read, offset_ms: Some(offset_ms), error_ms: Some(error_ms), quality }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(page: u8, data: &[u8], wall_us: i64) -> Answer {
        let stamp = |wall_us| Stamp { wall_us, synchronised: true, uptime_ms: 0 };
        Answer { page, data: data.to_vec(), raw: vec![], asked: stamp(wall_us), received: stamp(wall_us + 200_000) }
    }

    fn observed(page: u8, data: &[u8]) -> Vec<Observation> {
        let items = if page == code::SETTINGS { data::settings(data) } else { data::values(data) };
        items.unwrap().iter().map(|item| observation(page, item)).collect()
    }

    #[test]
    fn a_value_has_its_term_and_unit_a_blank_is_none_and_an_unknown_code_passes() {
        let all = observed(code::MEASURED_1, b"78   5EB    3C12.5E7 1:2");
        let peep = &all[0];
        assert_eq!((peep.vendor_code.as_str(), &peep.value), ("CP1:78", &Some(Value::Number("5".into()))));
        assert_eq!(peep.code.as_ref().unwrap().name.as_deref(), Some("MDC_PRESS_AWAY_END_EXP_POS"));
        assert_eq!((peep.unit.as_deref(), peep.validity, peep.notes.len()), (Some("mbar"), Validity::Valid, 0));
        assert_eq!((&all[1].value, all[1].validity, &all[1].unit), (&None, Validity::NotAvailable, &None));
        assert_eq!((all[2].vendor_code.as_str(), &all[2].code, &all[2].unit), ("CP1:3C", &None, &None));
        assert_eq!(all[3].value, Some(Value::Text("1:2".into())));
        let set = observed(code::SETTINGS, b"0B  5.0");
        assert_eq!((set[0].vendor_code.as_str(), &set[0].code, set[0].mode), ("SET:0B", &None, Mode::Episodic));
        let limit = observed(code::HIGH_1, b"7D  40");
        assert_eq!((limit[0].vendor_code.as_str(), &limit[0].code), ("CP1:7D:HIGH", &None));
        assert_eq!(limit[0].notes[0].value, "Breathing pressure, peak");
    }

    #[test]
    fn the_clock_is_measured_at_the_middle_of_the_question_and_never_corrected() {
        // 2014-10-07T09:33:00Z; it was asked 99.6 s and answered 99.4 s before that.
        let at = 1_412_674_380_000_000 - 99_600_000;
        let measured = device_time(&answer(code::DATE_TIME, b" 9:33:00 7-OKT-14", at), &TimeZone::UTC);
        assert_eq!(measured.read.as_deref(), Some("2014-10-07T09:33:00"));
        assert_eq!((measured.said.as_str(), measured.offset_ms), ("9:33:00 7-OKT-14", Some(100_000)));
        assert_eq!((measured.error_ms, measured.quality), (Some(600), ClockQuality::Measured));
        let berlin = TimeZone::fixed(jiff::tz::offset(2));
        let local = device_time(&answer(code::DATE_TIME, b"11:33 7-OCT-14", at), &berlin);
        assert_eq!((local.offset_ms, local.error_ms), (Some(129_500), Some(30_100)));
    }

    #[test]
    fn a_clock_that_was_never_set_or_shows_no_time_is_told_as_such() {
        let quality =
            |said: &[u8]| device_time(&answer(code::DATE_TIME, said, 1_412_674_380_000_000), &TimeZone::UTC).quality;
        assert_eq!(quality(b"00:00:00 1-JAN-95"), ClockQuality::NeverSet);
        for said in [&b"09:33:0031-FEB-14"[..], b"25:00:00 7-OKT-14", b"--:--:--", b"  "] {
            assert_eq!(quality(said), ClockQuality::Unreadable, "{said:?}");
        }
    }
}
