//! What routes make of stored messages: readings, HL7 of the corpus, and what has no other form.

#![cfg(test)]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::convert::{CONVERTED_BYTES_MAX, Conversions};
use super::{Conversion, Form, RouteConfig};
use crate::digest::{Algorithm, Digest};
use crate::envelope::{Body, Class, Envelope, Flags, MessageId, Meta, Stamp};
use crate::telemetry::fixtures::oximeter;
use crate::telemetry::record::{
    CONTENT_TYPE, ClockQuality, Mode, Observation, Phase, Priority, Raw, Record, Validity, Value,
};
use crate::telemetry::site::SiteCodes;
use crate::values::Name;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn conversions(codes: &str) -> Conversions {
    let codes = SiteCodes::read(codes).unwrap();
    Conversions::new(&[], &name("icu-3-east"), &name("st-marys"), Arc::new(codes))
}

fn envelope(content_type: &str, body: impl Into<Bytes>) -> Envelope {
    let meta = Meta {
        source: name("monitors"),
        protocol: "mllp".into(),
        content_type: content_type.into(),
        control_id: b"4711".to_vec(),
        targets: vec![],
        flags: Flags::BATCH,
        received: Stamp { wall_us: 1_789_998_400_123_456, synchronised: true, uptime_ms: 5 },
        tokens: Vec::new(),
    };
    let body = Body::whole(body.into());
    Envelope { id: MessageId([7; 16]), class: Class::Clinical, meta, digest: Digest::of(Algorithm::Sha256, b""), body }
}

fn stored(record: &Record) -> Envelope {
    envelope(CONTENT_TYPE, serde_json::to_vec(record).unwrap())
}

fn form(form: Form) -> Conversion {
    Conversion { form, with_raw: true }
}

async fn made(conversion: Conversion, envelope: &Envelope) -> Envelope {
    conversions("").apply(conversion, envelope).await.unwrap().unwrap()
}

async fn refused(conversion: Conversion, envelope: &Envelope) -> String {
    conversions("").apply(conversion, envelope).await.err().unwrap()
}

async fn bytes(envelope: &Envelope) -> Vec<u8> {
    envelope.body.collect().await.unwrap().to_vec()
}

async fn record_of(file: &str) -> Record {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/hl7").join(file);
    let envelope = envelope("application/hl7-v2; charset=utf-8", fs::read(path).unwrap());
    let made = made(form(Form::Json), &envelope).await;
    assert_eq!(made.meta.content_type, CONTENT_TYPE);
    serde_json::from_slice(&bytes(&made).await).unwrap()
}

fn code(observation: &Observation) -> &str {
    observation.code.as_ref().map_or("", |code| code.code.as_ref())
}

#[tokio::test]
async fn a_reading_goes_in_each_form_with_the_hash_and_the_name_of_what_is_sent() {
    let reading = stored(&oximeter());
    let untouched = [form(Form::Json)];
    for conversion in untouched {
        assert!(conversions("").apply(conversion, &reading).await.unwrap().is_none());
    }
    let hl7 = made(form(Form::Pcd01), &reading).await;
    assert!(bytes(&hl7).await.starts_with(b"MSH|^~\\&|icu-3-east|st-marys|"));
    assert_eq!(hl7.meta.control_id, reading.id.to_string().as_bytes());
    assert_eq!(
        (hl7.meta.content_type.as_str(), hl7.meta.flags),
        ("application/hl7-v2; charset=utf-8", Flags::default())
    );
    let senml = made(form(Form::Senml), &reading).await;
    assert_eq!(
        (senml.meta.content_type.as_str(), senml.meta.control_id.as_slice()),
        ("application/senml+json", &b"4711"[..])
    );
    let raw = made(form(Form::Raw), &reading).await;
    assert_eq!(
        (bytes(&raw).await.as_slice(), raw.meta.content_type.as_str()),
        (&b"SPO2=098 HR=061\r\n"[..], "text/plain; charset=us-ascii")
    );
    let bare = made(Conversion { form: Form::Json, with_raw: false }, &reading).await;
    let record: Record = serde_json::from_slice(&bytes(&bare).await).unwrap();
    assert_eq!(record, Record { raw: None, ..oximeter() });
    for made in [hl7, senml, raw, bare] {
        assert_eq!(made.digest, Digest::of(Algorithm::Sha256, &bytes(&made).await));
        assert_eq!((made.id, &made.meta.source), (reading.id, &reading.meta.source));
    }
}

#[tokio::test]
async fn what_can_not_be_converted_is_told_in_words_without_its_content() {
    let other = envelope("application/dicom", "DICM");
    assert!(refused(form(Form::Senml), &other).await.contains("application/dicom holds no observations"));
    assert!(conversions("").apply(form(Form::Raw), &other).await.unwrap().is_none());
    let broken = refused(form(Form::Pcd01), &envelope(CONTENT_TYPE, r#"{"v":1,"source":"Probemann"}"#)).await;
    assert!(broken.contains("can't be read at byte") && !broken.contains("Probemann"), "{broken}");
    let long = vec![b' '; usize::try_from(CONVERTED_BYTES_MAX).unwrap() + 1];
    assert!(refused(form(Form::Pcd01), &envelope(CONTENT_TYPE, long)).await.contains("at most 1 MiB"));
    let adt = refused(form(Form::Json), &envelope("application/hl7-v2", "MSH|^~\\&|A||||||ADT^A01|1|P|2.6\r")).await;
    assert!(adt.contains("no ORU message") && adt.contains("as = \"json\""), "{adt}");
    let without = refused(form(Form::Raw), &stored(&Record { raw: None, ..oximeter() })).await;
    assert!(without.contains("no bytes of the device"), "{without}");
}

#[tokio::test]
async fn hl7_that_a_device_left_in_a_reading_is_sent_as_the_message_that_it_is() {
    let message = b"MSH|^~\\&|A||||||ORU^R01|DEV-9|P|2.6|||AL|NE\r";
    let reading = stored(&Record { raw: Some(Raw::of(message)), ..oximeter() });
    let raw = made(form(Form::Raw), &reading).await;
    assert_eq!((raw.meta.content_type.as_str(), raw.meta.control_id.as_slice()), ("application/hl7-v2", &b"DEV-9"[..]));
}

#[tokio::test]
async fn the_sites_own_codes_are_given_to_what_is_sent() {
    let mut record = oximeter();
    record.observations[0].code = None;
    record.observations[0].unit = None;
    let table = "code,system,name,vendor-code,unit,ucum,display\nX-1,urn:oid:2.999.1,SAT,SPO2,,%,\n";
    let made = conversions(table).apply(form(Form::Json), &stored(&record)).await.unwrap().unwrap();
    let sent: Record = serde_json::from_slice(&bytes(&made).await).unwrap();
    assert_eq!((code(&sent.observations[0]), sent.observations[0].unit.as_deref()), ("X-1", Some("%")));
    assert_eq!(code(&sent.observations[1]), "149530");
}

#[tokio::test]
async fn a_monitors_pcd_01_is_the_record_that_it_holds() {
    let record = record_of("01-mindray-monitor.hl7").await;
    assert_eq!((record.source.as_str(), record.stream.as_str()), ("monitors", "00A037009A000001/9A000001"));
    let [heart, saturation, breath] = record.observations.as_slice() else { panic!("{record:?}") };
    assert_eq!((code(heart), heart.unit.as_deref(), heart.validity), ("147842", Some("/min"), Validity::Valid));
    assert_eq!(heart.value, Some(Value::Number("72".into())));
    assert_eq!((heart.mode, heart.at.as_deref()), (Mode::Episodic, Some("2026-01-29T09:21:50.000")));
    assert_eq!((saturation.unit.as_deref(), saturation.vendor_unit.as_deref()), (Some("%"), Some("MDC_DIM_PERCENT")));
    assert_eq!(breath.vendor_code, "MDC_RESP_RATE");
    assert_eq!(record.device_time.unwrap().quality, ClockQuality::ZoneUnknown);
    assert_eq!(
        (record.subject[0].value.as_str(), record.subject[1].value.as_str()),
        ("TEST-0001^^^WARD^MR", "ICU^^Bed 4")
    );
}

#[tokio::test]
async fn a_pumps_levels_are_its_device_and_its_text_is_text() {
    let record = record_of("04-bbraun-pump.hl7").await;
    assert_eq!(record.device[0].value, "69985^MDC_DEV_PUMP_INFUS_MDS^MDC");
    let [flow, drug, rest] = record.observations.as_slice() else { panic!("{record:?}") };
    assert_eq!((code(flow), flow.unit.as_deref(), flow.mode), ("157784", Some("mL/h"), Mode::Periodic));
    assert_eq!(drug.value, Some(Value::Text("Noradrenalin 0,1 mg/ml".into())));
    assert_eq!(code(rest), "157872");
    let cuff = record_of("06-ge-vc150-application-ack.hl7").await;
    assert_eq!(cuff.observations[0].validity, Validity::Validated);
}

#[tokio::test]
async fn a_pcd_04_is_an_alarm_and_no_observation() {
    let record = record_of("08-alarm-pcd04.hl7").await;
    assert_eq!(record.observations, []);
    let [alarm] = record.events.as_slice() else { panic!("{record:?}") };
    assert_eq!(
        (alarm.kind.as_ref(), alarm.text.as_deref(), alarm.phase),
        ("alarm", Some("HR high"), Some(Phase::Start))
    );
    assert_eq!(alarm.code.as_ref().unwrap().code, "196674");
}

async fn observations(lines: &str) -> Record {
    let text = format!("MSH|^~\\&|MON||||20260921134640+0000||ORU^R01|1|P|2.6\rOBR|1|1|1|x\r{lines}");
    let made = made(form(Form::Json), &envelope("application/hl7-v2", text)).await;
    serde_json::from_slice(&bytes(&made).await).unwrap()
}

async fn converted(to: Form, content_type: &str, body: impl Into<Bytes>, zone: Option<&str>) -> Result<String, String> {
    let codes = SiteCodes::default().with_zone(zone.map(|zone| zone.parse().unwrap()));
    let conversions = Conversions::new(&[], &name("box"), &name("site"), Arc::new(codes));
    let made = conversions.apply(form(to), &envelope(content_type, body)).await?.unwrap();
    Ok(String::from_utf8(bytes(&made).await).unwrap())
}

/// A monitor that names no zone in its times; the middle of what it sent.
fn zoneless(header: &str) -> String {
    format!(
        "MSH|^~\\&|MON||||{header}||ORU^R01|1|P|2.6\rPID|||P\\T\\1^^^W&2.999&ISO^MR\rPV1||I|ICU^1&2\r\
         OBR|1|1|1|x|||20260921154630\rOBX|1|NM|1^A^MDC|1.1.1.1|5||||||R\r\
         OBX|2|NM|1^B^MDC|1.1.1.2|6||||||R|||20260921154500\r"
    )
}

#[tokio::test]
async fn times_without_a_zone_are_read_in_the_headers_or_the_sites_and_else_are_no_moment() {
    for (header, zone, obr, obx) in [
        ("20260921154640+0200", None, "20260921134630.000+0000", "20260921134500.000+0000"),
        ("20260921154640", Some("Europe/Berlin"), "20260921134630.000+0000", "20260921134500.000+0000"),
        ("20260921154640", None, "20260921134640.123+0000", "20260921134640.123+0000"),
    ] {
        let sent = converted(Form::Pcd01, "application/hl7-v2", zoneless(header), zone).await.unwrap();
        let of = |name: &str, number: usize| {
            let segment = sent.split('\r').rfind(|segment| segment.starts_with(name)).unwrap();
            segment.split('|').nth(number).unwrap().to_owned()
        };
        assert_eq!((of("OBR", 7), of("OBX", 14)), (obr.to_owned(), obx.to_owned()), "{header} {zone:?}");
        assert_eq!((of("PID", 3).as_str(), of("PV1", 3).as_str()), ("P\\T\\1^^^W&2.999&ISO^MR", "ICU^1&2"));
        let unknown = header == "20260921154640" && zone.is_none();
        assert_eq!(sent.contains("time: 2026-09-21T15:46:30 by the device's clock"), unknown, "{sent}");
        assert_eq!(sent.contains("zone-unknown"), unknown, "{sent}");
    }
    let json = converted(Form::Json, "application/hl7-v2", zoneless("20260921154640"), Some("Europe/Berlin")).await;
    let record: Record = serde_json::from_str(&json.unwrap()).unwrap();
    assert_eq!(record.observations[0].at.as_deref(), Some("2026-09-21T15:46:30+02:00"));
    assert!(record.observations[0].notes.iter().any(|note| note.name == "time-zone" && note.value == "of the site"));
    let time = record.device_time.unwrap();
    assert_eq!((time.quality, time.offset_ms), (ClockQuality::Measured, Some(-123)));
}

#[tokio::test]
async fn characters_are_those_that_the_header_or_the_configuration_says_or_it_is_refused_in_words() {
    let body = |said: &str, unit: &[u8]| {
        let head = format!("MSH|^~\\&|MON||||||ORU^R01|1|P|2.6||||||{said}\rOBX|1|NM|T^Temp^L|1.1.1.1|5|");
        [head.as_bytes(), unit, b"|||||R\r"].concat()
    };
    let text = async |said: &str, content_type: &str, unit: &[u8]| {
        let json = converted(Form::Json, content_type, body(said, unit), None).await?;
        Ok::<Record, String>(serde_json::from_str(&json).unwrap())
    };
    let hl7 = "application/hl7-v2";
    let record = text("8859/15", hl7, b"\xA4/\xB5g").await.unwrap();
    assert_eq!((record.observations[0].vendor_unit.as_deref(), record.about.len()), (Some("€/µg"), 0));
    let record = text("", "application/hl7-v2; charset=windows-1252", b"\x80").await.unwrap();
    assert_eq!(record.observations[0].vendor_unit.as_deref(), Some("€"));
    let record = text("", "application/hl7-v2; charset=ISO8859-1", b"\xB5g").await.unwrap();
    assert_eq!(record.observations[0].vendor_unit.as_deref(), Some("µg"), "the configuration spells it as devices do");
    let refused = text("KLINGON", "application/hl7-v2; charset=iso-8859-1", b"\xB5g").await.unwrap_err();
    assert!(
        refused.contains("of a name that is not known here"),
        "the configuration does not overrule the sender: {refused}"
    );
    let record = text("UNICODE UTF-8", hl7, b"\xB5g").await.unwrap();
    assert_eq!(record.observations[0].vendor_unit.as_deref(), Some("µg"));
    assert!(record.about[0].value.contains("the sender says utf-8, which it is not"), "{:?}", record.about);
    let refused = text("8859/5", hl7, b"\xB5g").await.unwrap_err();
    assert!(refused.contains("its characters are iso-8859-5 (MSH-18), which is not read here"), "{refused}");
    let refused = text("KLINGON", hl7, b"\xB5g").await.unwrap_err();
    assert!(refused.contains("of a name that is not known here") && !refused.contains("KLINGON"), "{refused}");
    assert!(text("8859/5", hl7, b"ug").await.is_ok(), "ASCII is the same in all of them");
}

#[tokio::test]
async fn what_is_no_value_is_none() {
    let lines = "OBX|1|NM|1^A^MDC|1.1.1.1|---||||||F\rOBX|2|NM|1^B^MDC|1.1.1.2|||||||R\rOBX|3|NM|1^C^MDC|1.1.1.3|5||||||P\r\
        OBX|4|NM|1^D^MDC|1.1.1.4|5||||||W\rOBX|5|NA|131329^E^MDC|1.1.1.5|1^2^3||||||R\rOBX|6|NM|1^F^MDC|1.1.1.6|\"\"||||||R\r\
        OBX|7||1^G^MDC|1.1.1.7|||||||X\rOBX|8|NM|1^H^MDC|1.1.1.8|36,5||||||R\rOBX|9|SN|1^I^MDC|1.1.1.9|>^100||||||R\r\
        OBX|10|NM|1^J^MDC|1.1.1.10|NaN||||||R\r";
    let record = observations(lines).await;
    let found: Vec<(Option<Value>, Validity)> =
        record.observations.iter().map(|observation| (observation.value.clone(), observation.validity)).collect();
    let number = |digits: &str| Some(Value::Number(digits.into()));
    let none = (None, Validity::NotAvailable);
    let expected = [
        none.clone(),
        none.clone(),
        (number("5"), Validity::Questionable),
        (number("5"), Validity::Invalid),
        none.clone(),
        none.clone(),
        none.clone(),
        (number("36.5"), Validity::Valid),
        (Some(Value::Text(">100".into())), Validity::Valid),
        none,
    ];
    assert_eq!(found, expected);
    let waveform: Vec<&str> = record.observations[4].notes.iter().map(|note| note.name.as_ref()).collect();
    assert_eq!(waveform, ["containment", "class", "waveform"]);
}

#[tokio::test]
async fn private_and_foreign_codes_are_kept_and_the_vendors_own_beside_them() {
    let lines = "OBX|1|NM|123455^MDC_PRIVATE_123455^MDC^123455^^urn:oid:2.999|1.1.1.1|5||||||R\r\
        OBX|2|NM|0^MDCX_LEAK^MDC|1.1.1.2|5||||||R\rOBX|3|NM|HR^Heart rate^L|1.1.1.3|5|bpm||||||R\r\
        OBX|4|NM|HF^Herz^99VENDOR^147842^MDC_ECG_HEART_RATE^MDC|1.1.1.4|5|/min^per minute^UCUM||||||R\r";
    let record = observations(lines).await;
    let codes: Vec<(&str, &str)> =
        record.observations.iter().map(|observation| (code(observation), observation.vendor_code.as_str())).collect();
    assert_eq!(codes, [("123455", "123455"), ("0", "MDCX_LEAK"), ("", "HR"), ("147842", "HF")]);
    assert_eq!(record.observations[2].vendor_unit.as_deref(), Some("bpm"));
    assert_eq!(record.observations[3].unit.as_deref(), Some("/min"));
}

#[tokio::test]
async fn an_alert_in_all_its_facets_is_one_alarm_with_its_source() {
    let lines = "OBX|1|CWE|196616^MDC_EVT_ALARM^MDC|1.1.1.1.1|196680^MDC_EVT_LEAD_OFF^MDC^LO^^L^^^Lead off|||A~PL~ST|||R\r\
        OBX|2|ST|68480^MDC_ATTR_ALERT_SOURCE^MDC|1.1.1.1.2|ECG||||||R\rOBX|3|ST|68165^MDC_ATTR_EVENT_PHASE^MDC|1.1.1.1.3|end||||||R\r\
        OBX|4|ST|68482^MDC_ATTR_ALARM_STATE^MDC|1.1.1.1.4|inactive||||||R\rOBX|5|ST|68484^MDC_ATTR_ALARM_PRIORITY^MDC|1.1.1.1.6|PM||||||R\r\
        OBX|6|ST|68485^MDC_ATTR_ALERT_TYPE^MDC|1.1.1.1.7|ST||||||R\rOBX|7|NM|147842^MDC_ECG_HEART_RATE^MDC|1.1.1.2|40||||||R\r";
    let record = observations(lines).await;
    assert_eq!(record.observations.len(), 1);
    let alarm = &record.events[0];
    assert_eq!((alarm.code.as_ref().unwrap().code.as_ref(), alarm.vendor_code.as_deref()), ("196680", Some("LO")));
    assert_eq!(
        (alarm.text.as_deref(), alarm.priority, alarm.phase),
        (Some("Lead off"), Some(Priority::Medium), Some(Phase::End))
    );
    let details: Vec<(&str, &str)> =
        alarm.details.iter().map(|detail| (detail.name.as_ref(), detail.value.as_str())).collect();
    assert_eq!(details, [("source", "ECG"), ("state", "inactive"), ("type", "technical")]);
}

#[tokio::test]
async fn our_own_pcd_01_and_04_read_back_as_what_they_were_made_of() {
    let mut record = oximeter();
    record.observations[0].validity = Validity::NotAvailable;
    record.observations[1].mode = Mode::Episodic;
    let hl7 = made(form(Form::Pcd01), &stored(&record)).await;
    let again = made(form(Form::Json), &hl7).await;
    let again: Record = serde_json::from_slice(&bytes(&again).await).unwrap();
    let [saturation, pulse] = again.observations.as_slice() else { panic!("{again:?}") };
    assert_eq!(
        (code(saturation), saturation.vendor_code.as_str(), saturation.validity),
        ("150456", "SPO2", Validity::NotAvailable)
    );
    assert_eq!((pulse.mode, pulse.at.as_deref()), (Mode::Episodic, Some("2026-09-21T13:46:40.123+00:00")));
    assert_eq!((pulse.unit.as_deref(), pulse.value.clone()), (Some("/min"), Some(Value::Number("61".into()))));
    assert_eq!(again.stream, "oximeter/numerics");
    assert_eq!(again.device_time.unwrap().offset_ms, Some(0));
    record.observations.clear();
    record.events = vec![crate::telemetry::fixtures::alarm("SH", "SpO2 high")];
    let hl7 = made(form(Form::Pcd01), &stored(&record)).await;
    let again: Record = serde_json::from_slice(&bytes(&made(form(Form::Json), &hl7).await).await).unwrap();
    let alarm = &again.events[0];
    assert_eq!(
        (alarm.vendor_code.as_deref(), alarm.text.as_deref(), alarm.priority),
        (Some("SH"), Some("SpO2 high"), Some(Priority::High))
    );
}

#[test]
fn lanes_that_no_route_serves_any_more_keep_their_form() {
    let route = |from: &str, to: &str| RouteConfig {
        from: vec![name(from)],
        to: vec![name(to)],
        form: Some(Form::Json),
        with_raw: None,
    };
    let of = |routes: &[RouteConfig]| Conversions::new(routes, &name("box"), &name("site"), Arc::default());
    let former = of(&[route("a", "x"), route("b", "y")]);
    let mut now = vec![route("b", "y")];
    now[0].form = None;
    let now = of(&now).with_former(former.lanes(), &now);
    let kept: Vec<String> = now.lanes().map(|lane| serde_json::to_string(&lane).unwrap()).collect();
    assert_eq!(kept, [r#"{"source":"a","upstream":"x","conversion":{"as":"json","with-raw":true}}"#]);
    assert_eq!(now.of(&name("a"), &name("x")), Some(form(Form::Json)));
    assert_eq!(now.of(&name("b"), &name("y")), None);
}

#[tokio::test]
async fn every_oru_of_the_corpus_is_a_record_and_everything_else_is_refused_in_words() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/hl7");
    let (mut records, mut refusals) = (0, 0);
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "hl7") {
            continue;
        }
        let envelope = envelope("application/hl7-v2", fs::read(&path).unwrap());
        for form in [form(Form::Json), form(Form::Pcd01), form(Form::Senml)] {
            match conversions("").apply(form, &envelope).await {
                Ok(made) => records += usize::from(made.is_some()),
                Err(reason) => {
                    assert!(reason.starts_with("it can't be sent as"), "{reason}");
                    refusals += 1;
                }
            }
        }
    }
    assert!(records >= 60 && refusals >= 60, "{records} {refusals}");
}

#[tokio::test]
async fn a_laboratory_message_goes_as_json_of_its_own_or_as_it_is() {
    let message = "H|\\^&|1||SIM\rP|1||X-7\rO|1|S-1\rR|1|^^^WBC|4.5|10*3/uL||N||F\rL|1|N\r";
    let lab = envelope("application/vnd.wardgate.astm", message);
    let sent = made(form(Form::Json), &lab).await;
    let value: serde_json::Value = serde_json::from_slice(&bytes(&sent).await).unwrap();
    let result = &value["patients"][0]["orders"][0]["results"][0];
    assert_eq!((&result["code"], &result["value"], &result["status"]), (&"WBC".into(), &"4.5".into(), &"F".into()));
    assert_eq!((sent.meta.content_type.as_str(), sent.meta.control_id.as_slice()), ("application/json", &b"4711"[..]));
    assert!(conversions("").apply(form(Form::Raw), &lab).await.unwrap().is_none(), "it is untouched");
    assert!(refused(form(Form::Pcd01), &lab).await.contains("(ASTM) goes as \"json\" or \"raw\""));
    let rest = envelope("application/vnd.wardgate.astm", "SECRET|1\r");
    assert!(!refused(form(Form::Json), &rest).await.contains("SECRET"));
}
