//! PCD-01 and PCD-04 as a receiver reads them.

#![cfg(test)]

use super::fixtures::{alarm, gap, observation, oximeter};
use super::pcd::{Sender, encode};
use super::record::{ClockQuality, DeviceTime, Event, Mode, Named, Phase, Record, Validity, Value};

const SENDER: Sender<'_> = Sender { gateway: "icu-3-east", site: "st-marys", id: "00ff" };

fn segments(record: &Record) -> Vec<String> {
    let text = encode(record, &SENDER);
    assert!(text.ends_with('\r') && !text.contains('\n'));
    text.trim_end_matches('\r').split('\r').map(str::to_owned).collect()
}

/// The segments with this name.
fn named(record: &Record, name: &str) -> Vec<String> {
    segments(record).into_iter().filter(|segment| segment.starts_with(name)).collect()
}

fn field(segment: &str, number: usize) -> &str {
    segment.split('|').nth(number).unwrap_or_default()
}

#[test]
fn a_reading_is_a_pcd_01_message() {
    let expected = [
        "MSH|^~\\&|icu-3-east|st-marys|||20260921134640.123+0000||ORU^R01^ORU_R01|00ff|P|2.6|||AL|NE||UNICODE UTF-8|||IHE_PCD_001^IHE PCD^1.3.6.1.4.1.19376.1.6.1.1.1^ISO",
        "PID|||^^^^U||^^^^^^U",
        "PV1||U",
        "OBR|1|00ff-1^icu-3-east|00ff-1^icu-3-east|182777000^monitoring of patient^SCT|||20260921134640.123+0000",
        "OBX|1|NM|150456^MDC_PULS_OXIM_SAT_O2^MDC^SPO2^^L|1.0.0.1|098|262688^MDC_DIM_PERCENT^MDC|||||R|||||||oximeter/numerics^icu-3-east",
        "OBX|2|NM|149530^MDC_PULS_OXIM_PULS_RATE^MDC^HR^^L|1.0.0.2|61|264864^MDC_DIM_BEAT_PER_MIN^MDC|||||R|||||||oximeter/numerics^icu-3-east",
    ];
    assert_eq!(segments(&oximeter()), expected);
    assert_eq!(encode(&oximeter(), &SENDER), encode(&oximeter(), &SENDER));
}

#[test]
fn only_valid_and_validated_values_are_written() {
    let mut record = oximeter();
    for validity in [
        Validity::Questionable,
        Validity::Calibrating,
        Validity::NotAvailable,
        Validity::OverRange,
        Validity::UnderRange,
        Validity::Invalid,
    ] {
        record.observations[0].validity = validity;
        let observed = &named(&record, "OBX")[0];
        assert_eq!(
            (field(observed, 2), field(observed, 5), field(observed, 6), field(observed, 11)),
            ("", "", "", "X")
        );
        assert!(!encode(&record, &SENDER).contains("098"));
    }
    record.observations[0].validity = Validity::Validated;
    assert_eq!(field(&named(&record, "OBX")[0], 11), "F");
}

#[test]
fn what_a_bad_profile_takes_for_a_number_is_no_value() {
    let mut record = oximeter();
    for (text, written) in [("---", ""), ("NaN", ""), ("inf", ""), ("", ""), (" -1.50 ", "-1.50"), (".5", ".5")] {
        record.observations[0].value = Some(Value::Number(text.into()));
        let observed = &named(&record, "OBX")[0];
        assert_eq!(
            (field(observed, 5), field(observed, 11)),
            (written, if written.is_empty() { "X" } else { "R" }),
            "{text}"
        );
    }
}

#[test]
fn only_an_episodic_value_has_a_time_of_its_own_and_it_is_told_in_utc() {
    let mut record = oximeter();
    let mut cuff = observation("NBP", "MDC_PRESS_CUFF_SYS", "120", "mm[Hg]");
    cuff.mode = Mode::Episodic;
    let local = cuff.clone();
    cuff.at = Some("2026-09-21T15:40:00+02:00".into());
    record.observations = vec![cuff, local];
    record.observations[1].at = Some("2026-09-21T15:40:00".into());
    let observed = named(&record, "OBX");
    assert_eq!(field(&observed[0], 14), "20260921134000.000+0000");
    // A time without a zone would be read as UTC: when it came is told instead, and what the device says beside it.
    assert_eq!(field(&observed[1], 14), "20260921134640.123+0000");
    let notes = named(&record, "NTE");
    assert!(notes.len() == 1 && notes[0].contains("time: 2026-09-21T15:40:00 by the device's clock"), "{notes:?}");
    assert_eq!(field(&named(&oximeter(), "OBX")[0], 14), "");
}

#[test]
fn periodic_values_stand_under_an_order_with_the_time_at_which_the_device_measured_them() {
    let mut record = oximeter();
    record.observations[0].at = Some("2026-09-21T15:46:30+02:00".into());
    record.observations[1].at = Some("2026-09-21T15:46:35+02:00".into());
    let orders: Vec<String> = named(&record, "OBR").iter().map(|order| field(order, 7).to_owned()).collect();
    assert_eq!(orders, ["20260921134630.000+0000", "20260921134635.000+0000"]);
    let observed = named(&record, "OBX");
    assert_eq!((field(&observed[1], 1), field(&observed[1], 4), field(&observed[1], 14)), ("1", "1.0.0.2", ""));
    record.device_time = Some(clock(ClockQuality::NeverSet));
    let orders = named(&record, "OBR");
    assert_eq!((orders.len(), field(&orders[0], 7)), (1, "20260921134640.123+0000"), "a clock that was never set");
}

fn clock(quality: ClockQuality) -> DeviceTime {
    DeviceTime { said: "12:00".into(), read: None, offset_ms: Some(-7), error_ms: None, quality }
}

#[test]
fn whom_it_was_measured_on_is_passed_on_as_it_was_written() {
    let mut record = oximeter();
    record.subject =
        vec![Named::new("patient-id", "A\\T\\1^^^WARD&2.999&ISO^MR"), Named::new("location", "ICU^Bed|4~5\r")];
    assert_eq!(field(&named(&record, "PID")[0], 3), "A\\T\\1^^^WARD&2.999&ISO^MR");
    assert_eq!(field(&named(&record, "PV1")[0], 3), "ICU^Bed\\F\\4\\R\\5\\X0D\\");
}

#[test]
fn an_alarm_tells_what_is_missing_and_when_it_was() {
    let mut record = oximeter();
    record.observations.clear();
    let at = Named::new("time", "2026-09-21T15:46:30+02:00");
    record.events = vec![Event { details: vec![at], ..alarm("SH", "SpO2 high") }, alarm("PL", "Pulse low")];
    record.gap = Some(gap());
    record.device_time = Some(clock(ClockQuality::BoxUnsynchronised));
    let text = segments(&record);
    assert_eq!(field(&text[0], 8), "ORU^R40^ORU_R40");
    let told: Vec<&String> = text[3..].iter().take_while(|segment| !segment.starts_with("OBX")).collect();
    assert_eq!(field(told[0], 7), "20260921134630.000+0000");
    assert_eq!(
        told[1..],
        [
            "NTE|1|L|gap: unplugged, 12 missing, 12000 ms",
            "NTE|1|L|device clock: 12:00; -7 ms off the gateway's, box-unsynchronised",
        ]
    );
    assert_eq!(field(&named(&record, "OBX")[0], 14), "20260921134630.000+0000");
    assert_eq!(named(&record, "NTE").iter().filter(|note| note.contains("gap")).count(), 1);
}

#[test]
fn unknown_codes_units_and_texts_go_in_the_devices_own_words_and_break_no_field() {
    let mut record = oximeter();
    let own = &mut record.observations[0];
    (own.vendor_code, own.code, own.unit) = ("T|1^".into(), None, None);
    own.vendor_unit = Some("bar&g".into());
    record.observations[1].unit = Some("furlong".into());
    let mut text = observation("MODE", "", "", "");
    text.value = Some(Value::Text("a~b\\c\r\nOBX|9|Grüße".into()));
    let mut number = observation("E", "", "1e5", "");
    number.notes = vec![Named::new("flags", "x|y")];
    record.observations.extend([text, number]);
    let observed = named(&record, "OBX");
    assert_eq!(observed.len(), 4);
    assert_eq!(
        (field(&observed[0], 3), field(&observed[0], 6)),
        ("T\\F\\1\\S\\^T\\F\\1\\S\\^L", "bar\\T\\g^bar\\T\\g^L")
    );
    assert_eq!(field(&observed[1], 6), "furlong^furlong^UCUM");
    assert_eq!(
        (field(&observed[2], 2), field(&observed[2], 5)),
        ("ST", "a\\R\\b\\E\\c\\X0D\\\\X0A\\OBX\\F\\9\\F\\Grüße")
    );
    assert_eq!((field(&observed[3], 2), field(&observed[3], 5)), ("NM", "100000"));
    assert_eq!(named(&record, "NTE"), ["NTE|1|L|flags: x\\F\\y"]);
}

#[test]
fn gaps_events_and_an_unsure_clock_are_told_in_notes() {
    let mut record = oximeter();
    record.received.synchronised = false;
    record.gap = Some(gap());
    record.observations.clear();
    record.events =
        vec![Event { kind: "unplugged".into(), text: Some("the cable".into()), phase: None, ..alarm("", "") }];
    record.events[0].vendor_code = None;
    record.device = vec![Named::new("serial", "4711")];
    let notes = named(&record, "NTE");
    let expected = [
        "NTE|1|L|clock: the time of the gateway was not synchronised",
        "NTE|1|L|gap: unplugged, 12 missing, 12000 ms",
        "NTE|1|L|unplugged: the cable",
        "NTE|1|L|device serial: 4711",
    ];
    assert_eq!(notes, expected);
    assert_eq!(named(&record, "OBX"), [""; 0]);
}

#[test]
fn alarms_alone_are_pcd_04_with_an_order_for_each() {
    let mut record = oximeter();
    record.observations.clear();
    record.events = vec![alarm("SH", "SpO2 high"), Event { phase: Some(Phase::End), ..alarm("PL", "Pulse low") }];
    let text = segments(&record);
    assert_eq!(field(&text[0], 8), "ORU^R40^ORU_R40");
    assert!(field(&text[0], 20).starts_with("IHE_PCD_ACM_001^IHE PCD"));
    let orders = named(&record, "OBR");
    assert_eq!(orders.len(), 2);
    assert_eq!((field(&orders[1], 3), field(&orders[1], 4)), ("00ff-2^icu-3-east", "196616^MDC_EVT_ALARM^MDC"));
    let facets: Vec<String> =
        named(&record, "OBX").iter().map(|facet| format!("{} {}", field(facet, 4), field(facet, 5))).collect();
    let expected = [
        "1.0.0.1.1 SH^SH^L^^^^^^SpO2 high",
        "1.0.0.1.2 oximeter",
        "1.0.0.1.3 start",
        "1.0.0.1.4 active",
        "1.0.0.1.6 PH",
        "1.0.0.1.7 SP",
    ];
    assert_eq!(facets[..6], expected);
    assert_eq!(facets[8..10], ["1.0.0.2.3 end", "1.0.0.2.4 inactive"]);
}

#[test]
fn an_alarm_beside_values_travels_with_them() {
    let mut record = oximeter();
    record.events = vec![alarm("SH", "SpO2 high")];
    let text = segments(&record);
    assert_eq!(field(&text[0], 8), "ORU^R01^ORU_R01");
    let last = named(&record, "OBX").pop().unwrap();
    assert_eq!((field(&last, 3), field(&last, 4)), ("196616^MDC_EVT_ALARM^MDC", "1.0.0.3"));
    let notes = named(&record, "NTE");
    assert_eq!(notes, ["NTE|1|L|phase: start", "NTE|1|L|priority: high", "NTE|1|L|type: physiological"]);
}
