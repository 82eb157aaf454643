//! SenML JSON of a [`Record`] (RFC 8428), for consumers of sensors that know nothing of medicine.
//!
//! It is lossy, because SenML has no room: no code system, no validity, no flags, no bytes. Only values that are valid or validated are
//! written, at the time that the device says where its zone is known. An event is a text, beside it what an alarm is known by. The first
//! entry counts the stream (`seq`), so that a loss is seen here as well.

use serde_json::{Map, Number, Value as Json, json};

use super::codes;
use super::record::{ClockQuality, Event, Observation, Record, Value};

/// The media type.
pub const CONTENT_TYPE: &str = "application/senml+json";
/// A smaller base time would be read as relative to now (RFC 8428, 4.5.3), in seconds.
const ABSOLUTE_TIME_MIN: i64 = 1 << 28;

/// UCUM units that SenML registers under another name (RFC 8428, 12.1; RFC 8798). All others are written in UCUM.
const REGISTERED: [(&str, &str); 4] = [("/min", "1/min"), ("L", "l"), ("1", "/"), ("L/s", "l/s")];

/// Writes the pack. `gateway` begins each name.
pub fn encode(record: &Record, gateway: &str) -> Vec<u8> {
    let mut pack = vec![Json::Object(base(record, gateway))];
    if !record.received.synchronised {
        pack.push(json!({ "n": "clock-synchronised", "vb": false }));
    }
    if let Some(gap) = &record.gap {
        pack.push(json!({ "n": "gap", "vs": gap.reason }));
        pack.extend(gap.count.map(|count| json!({ "n": "gap-count", "v": count })));
    }
    if let Some(time) = &record.device_time {
        pack.push(json!({ "n": "device-clock", "vs": time.said }));
        let off = time.offset_ms.and_then(|ms| Number::from_f64(ms as f64 / 1000.0));
        pack.extend(off.map(|off| json!({ "n": "device-clock-offset", "u": "s", "v": off })));
    }
    pack.extend(record.observations.iter().filter_map(|observation| entry(observation, record)));
    for (at, event) in record.events.iter().enumerate() {
        let before = record.events.iter().take(at).filter(|other| other.kind == event.kind).count();
        pack.extend(told(event, before));
    }
    // It can't fail: the keys are strings.
    serde_json::to_vec(&pack).unwrap_or_default()
}

fn base(record: &Record, gateway: &str) -> Map<String, Json> {
    let mut base = Map::new();
    let parts = [gateway, &record.source, &record.stream].map(name);
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    base.insert("bn".to_owned(), format!("{}:", parts.join(":")).into());
    let utc_us = record.received.utc_us;
    if utc_us / 1_000_000 >= ABSOLUTE_TIME_MIN {
        let seconds = format!("{}.{:06}", utc_us / 1_000_000, utc_us % 1_000_000);
        base.extend(number(&seconds).map(|seconds| ("bt".to_owned(), seconds.into())));
    }
    base.insert("n".to_owned(), "seq".into());
    base.insert("v".to_owned(), record.seq.into());
    base
}

/// An event as entries: its text, and of an alarm its phase and its priority. Several of one kind have numbers.
fn told(event: &Event, before: usize) -> Vec<Json> {
    let text = [event.vendor_code.as_deref(), event.text.as_deref()].into_iter().flatten();
    let number = if before == 0 { String::new() } else { format!(":{}", before + 1) };
    let named = format!("event:{}{number}", name(&event.kind));
    let mut told = vec![json!({ "n": named, "vs": text.collect::<Vec<_>>().join(" ") })];
    told.extend(event.phase.map(|phase| json!({ "n": format!("{named}:phase"), "vs": phase })));
    told.extend(event.priority.map(|priority| json!({ "n": format!("{named}:priority"), "vs": priority })));
    told
}

/// When the device says that it measured it, in seconds from the pack's time; `None` where that is no moment or the pack has none.
fn time(observation: &Observation, record: &Record) -> Option<Number> {
    let unset = record.device_time.as_ref().is_some_and(|time| time.quality == ClockQuality::NeverSet);
    let moment: jiff::Timestamp = observation.at.as_deref().filter(|_| !unset)?.parse().ok()?;
    let utc_us = record.received.utc_us;
    if utc_us / 1_000_000 < ABSOLUTE_TIME_MIN {
        return None;
    }
    Number::from_f64(moment.as_microsecond().saturating_sub(utc_us) as f64 / 1e6)
}

fn entry(observation: &Observation, record: &Record) -> Option<Json> {
    let value = observation.usable()?;
    let code = observation.code.as_ref();
    let label = code.and_then(|code| code.name.as_deref()).unwrap_or(&observation.vendor_code);
    let mut entry = Map::new();
    entry.insert("n".to_owned(), name(label).into());
    match value {
        Value::Number(digits) => {
            entry.insert("v".to_owned(), number(digits)?.into());
            entry.extend(unit(observation).map(|unit| ("u".to_owned(), unit.into())));
        }
        Value::Text(text) => drop(entry.insert("vs".to_owned(), text.as_str().into())),
    }
    entry.extend(time(observation, record).map(|time| ("t".to_owned(), time.into())));
    Some(entry.into())
}

/// The unit in SenML's own name, else in UCUM, else in the device's words.
fn unit(observation: &Observation) -> Option<String> {
    let Some(ucum) = observation.unit.as_deref() else { return observation.vendor_unit.clone() };
    let metric = observation.code.as_ref().and_then(|code| codes::metric_by_name(code.name.as_deref()?));
    let known = codes::unit_by_ucum(ucum, metric);
    if known.is_some_and(|unit| unit.name == "MDC_DIM_BEAT_PER_MIN") {
        return Some("beat/min".to_owned());
    }
    let ucum = known.map_or(ucum, |unit| unit.ucum);
    let registered = REGISTERED.iter().find(|(of_ucum, _)| *of_ucum == ucum);
    Some(registered.map_or(ucum, |(_, senml)| senml).to_owned())
}

/// The digits as a JSON number; `None` when they are none.
fn number(digits: &str) -> Option<Number> {
    let value: f64 = digits.trim().parse().ok()?;
    // A whole number stays one: 98 and not 98.0.
    match digits.trim().parse::<i64>() {
        Ok(whole) => Some(whole.into()),
        Err(_) => Number::from_f64(value),
    }
}

/// A name of the characters that SenML allows (RFC 8428, 4.5.1), beginning with a letter or digit; anything else becomes `_`.
fn name(text: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | ':' | '.' | '/' | '_') { c } else { '_' };
    let name: String = text.chars().map(allowed).collect();
    let begins_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if name.is_empty() || begins_well { name } else { format!("x{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::fixtures::{alarm, gap, observation, oximeter};
    use crate::telemetry::record::{DeviceTime, Phase, Validity};

    fn pack(record: &Record) -> Vec<Json> {
        serde_json::from_slice(&encode(record, "icu-3-east")).unwrap()
    }

    #[test]
    fn a_reading_is_a_pack_with_absolute_names_and_times() {
        let expected = json!([
            { "bn": "icu-3-east:oximeter:numerics:", "bt": 1_789_998_400.123_456, "n": "seq", "v": 7 },
            { "n": "MDC_PULS_OXIM_SAT_O2", "u": "%", "v": 98 },
            { "n": "MDC_PULS_OXIM_PULS_RATE", "u": "beat/min", "v": 61 }
        ]);
        assert_eq!(Json::from(pack(&oximeter())), expected);
    }

    #[test]
    fn a_value_has_the_devices_time_and_each_alarm_its_phase() {
        let mut record = oximeter();
        record.observations[0].at = Some("2026-09-21T15:46:30.123456+02:00".into());
        record.observations[1].at = Some("2026-09-21T15:46:30".into());
        let repeated = Event { kind: "dup".into(), phase: None, priority: None, ..alarm("x", "y") };
        record.events = vec![
            repeated,
            alarm("SH", "high"),
            Event { phase: Some(Phase::End), priority: None, ..alarm("PL", "low") },
        ];
        record.device_time = Some(DeviceTime {
            said: "20260921154630".into(),
            read: None,
            offset_ms: Some(-10_500),
            error_ms: None,
            quality: ClockQuality::Measured,
        });
        let pack = pack(&record);
        assert_eq!(
            pack[1..3],
            [
                json!({ "n": "device-clock", "vs": "20260921154630" }),
                json!({ "n": "device-clock-offset", "u": "s", "v": -10.5 }),
            ]
        );
        assert_eq!((&pack[3]["t"], &pack[4]["t"]), (&json!(-10.0), &Json::Null), "a time without a zone is no moment");
        let events: Vec<String> = pack[5..].iter().map(|entry| format!("{}={}", entry["n"], entry["vs"])).collect();
        // Each kind has its own numbers.
        let expected = [
            r#""event:dup"="x y""#,
            r#""event:alarm"="SH high""#,
            r#""event:alarm:phase"="start""#,
            r#""event:alarm:priority"="high""#,
            r#""event:alarm:2"="PL low""#,
            r#""event:alarm:2:phase"="end""#,
        ];
        assert_eq!(events, expected);
        record.device_time.as_mut().unwrap().quality = ClockQuality::NeverSet;
        assert_eq!(self::pack(&record)[3]["t"], Json::Null, "a clock that was never set says nothing");
    }

    #[test]
    fn what_is_no_value_is_left_out_and_never_zero() {
        let mut record = oximeter();
        record.observations[0].validity = Validity::NotAvailable;
        record.observations[1] = observation("Leck Ä", "", "36.70", "L");
        record.gap = Some(gap());
        record.events = vec![alarm("SH", "high")];
        record.received.synchronised = false;
        record.received.utc_us = 5_000_000;
        let expected = json!([
            { "bn": "icu-3-east:oximeter:numerics:", "n": "seq", "v": 7 },
            { "n": "clock-synchronised", "vb": false },
            { "n": "gap", "vs": "unplugged" },
            { "n": "gap-count", "v": 12 },
            { "n": "Leck__", "u": "l", "v": 36.7 },
            { "n": "event:alarm", "vs": "SH high" },
            { "n": "event:alarm:phase", "vs": "start" },
            { "n": "event:alarm:priority", "vs": "high" }
        ]);
        assert_eq!(Json::from(pack(&record)), expected);
        assert_eq!((name("_x"), name("")), ("x_x".to_owned(), String::new()));
    }
}
