//! Readings for tests: an oximeter's, a monitor's alarm. Invented devices and no patients.

use super::codes;
use super::record::{
    Event, Gap, GapReason, Mode, Named, Observation, Phase, Priority, Raw, Record, Time, VERSION, Validity, Value,
};

/// An observation of a term of the table.
pub fn observation(vendor_code: &str, name: &str, digits: &str, unit: &str) -> Observation {
    Observation {
        vendor_code: vendor_code.into(),
        code: codes::by_name(name),
        value: Some(Value::Number(digits.into())),
        unit: Some(unit.into()).filter(|unit: &String| !unit.is_empty()),
        vendor_unit: None,
        validity: Validity::Valid,
        mode: Mode::Periodic,
        at: None,
        notes: vec![],
    }
}

/// A reading of an oximeter at 2026-09-21 13:46:40.123 UTC.
pub fn oximeter() -> Record {
    Record {
        v: VERSION,
        source: "oximeter".into(),
        stream: "numerics".into(),
        boot: "5f0a".into(),
        seq: 7,
        received: Time { utc_us: 1_789_998_400_123_456, synchronised: true, uptime_ms: 12 },
        device_time: None,
        observations: vec![
            observation("SPO2", "MDC_PULS_OXIM_SAT_O2", "098", "%"),
            observation("HR", "MDC_PULS_OXIM_PULS_RATE", "61", "/min"),
        ],
        events: vec![],
        gap: None,
        device: vec![],
        about: vec![],
        subject: vec![],
        raw: Some(Raw::of(b"SPO2=098 HR=061\r\n")),
    }
}

/// An alarm that begins.
pub fn alarm(vendor_code: &str, text: &str) -> Event {
    Event {
        kind: "alarm".into(),
        vendor_code: Some(vendor_code.into()),
        code: None,
        text: Some(text.into()),
        priority: Some(Priority::High),
        phase: Some(Phase::Start),
        details: vec![Named::new("type", "physiological")],
    }
}

/// Readings that are missing.
pub fn gap() -> Gap {
    Gap { reason: GapReason::Unplugged, from: None, to: None, count: Some(12), lasted_ms: Some(12_000) }
}
