//! The form in which messages go upstream, with the real executable between a device and readers that are not ours: hl7apy for
//! PCD-01 and PCD-04, jsonschema for records, RFC 8428's own rules for SenML.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;
use wardgate::telemetry::codes;
use wardgate::telemetry::record::{
    ClockQuality, DeviceTime, Event, Gap, GapReason, Mode, Named, Observation, Phase, Priority, Raw, Record, Time,
    VERSION, Validity,
};

use crate::gateway::{engine, source};
use crate::mqtt::{hex, sha256};
use crate::support::broker::Broker;
use crate::support::gateway::{Gateway, head};
use crate::support::mllp::{Device, Engine, field};
use crate::support::process::{Process, run, succeeds, wardgate};
use crate::support::subscriber::Subscriber;
use crate::support::tools::{python_peer, repository};
use crate::support::wait::eventually;

/// Messages of monitors, a pump and an alarm manager that hold observations.
const ORU: [&str; 4] =
    ["01-mindray-monitor.hl7", "04-bbraun-pump.hl7", "06-ge-vc150-application-ack.hl7", "08-alarm-pcd04.hl7"];

fn corpus(file: &str) -> Vec<u8> {
    fs::read(repository().join("tests/corpus/hl7").join(file)).unwrap()
}

fn directory(name: &str, path: &Path) -> String {
    format!("[upstream.{name}.directory]\npath = \"{}\"\nunsealed = true\n", path.display())
}

fn route(to: &str, form: &str) -> String {
    format!("[[route]]\nfrom = [\"monitors\"]\nto = [\"{to}\"]\n{form}\n")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    // What is still being written has another name.
    files.retain(|file| file.extension().is_some_and(|extension| extension != "part" && extension != "tmp"));
    files.sort();
    files
}

/// One JSON value for each line that a peer printed.
fn lines(said: &str) -> Vec<Value> {
    said.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What jsonschema says of each file.
fn verdicts(folder: &Path) -> Vec<String> {
    let schema = repository().join("config/record.schema.json");
    let said = succeeds(python_peer("record_check.py").arg(schema).arg(folder));
    said.lines().map(|line| line.split_once(": ").unwrap().1.to_owned()).collect()
}

#[test]
fn each_upstream_gets_the_form_that_its_route_says_and_readers_that_are_not_ours_understand_it() {
    let (folder, store): (TempDir, TempDir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let [json, bare, senml, raw] = ["json", "bare", "senml", "raw"].map(|name| {
        let path = folder.path().join(name);
        fs::create_dir(&path).unwrap();
        path
    });
    let mut server = Process::start(python_peer("mllp_server.py").arg("--store").arg(store.path()));
    let config = [
        source("monitors"),
        engine("engine", server.listening().port()),
        directory("json", &json) + &directory("bare", &bare) + &directory("senml", &senml) + &directory("raw", &raw),
        route("engine", "as = \"pcd-01\"") + &route("json", "as = \"json\"") + &route("bare", "with-raw = false"),
        route("senml", "as = \"senml\"") + &route("raw", "as = \"raw\""),
    ];
    let gateway = Gateway::start(folder.path(), &config.concat());
    let mut device = Device::connect(gateway.endpoint("monitors"));
    for file in ORU {
        device.send(&corpus(file));
    }
    eventually("everything is delivered", || gateway.backlog() == 0);
    assert_eq!(gateway.dead(), [Value::Null; 0]);

    assert_eq!(verdicts(&json), ["valid"; ORU.len()]);
    assert_eq!(verdicts(&bare), ["valid"; ORU.len()]);
    let mut with_raw = files(&json).into_iter().map(|file| fs::read_to_string(file).unwrap());
    assert!(with_raw.all(|text| text.contains("\"raw\":{\"text\":\"MSH|")));
    assert!(files(&bare).into_iter().all(|file| !fs::read_to_string(file).unwrap().contains("MSH|")));
    let mut arrived: Vec<Vec<u8>> = files(&raw).into_iter().map(|file| fs::read(file).unwrap()).collect();
    let mut sent: Vec<Vec<u8>> = ORU.into_iter().map(corpus).collect();
    arrived.sort();
    sent.sort();
    assert!(arrived == sent, "\"raw\" is byte for byte what came");
    understood_as_pcd(store.path());
    understood_as_senml(&files(&senml));
}

/// What hl7apy reads in what the engine was sent.
fn understood_as_pcd(store: &Path) {
    let order = fs::read_to_string(store.join("order")).unwrap();
    let bodies: Vec<PathBuf> = order.lines().map(|line| store.join(line.split(' ').next().unwrap())).collect();
    let read = lines(&succeeds(python_peer("hl7_check.py").args(&bodies)));
    assert_eq!(read.len(), ORU.len());
    for message in &read {
        assert_eq!((&message["version"], &message["faults"]), (&"2.6".into(), &Value::Array(vec![])), "{message}");
        assert_eq!(message["acks"], serde_json::json!(["AL", "NE"]));
        assert!(message["time"].as_array().unwrap().iter().all(|time| time.as_str().unwrap().ends_with("+0000")));
        assert_eq!(message["control"].as_str().unwrap().len(), 32, "the message's own id");
    }
    let [monitor, pump, cuff, alarm] = read.as_slice() else { panic!("{read:?}") };
    assert_eq!((&monitor["structure"], &monitor["profile"]), (&"ORU^R01^ORU_R01".into(), &"IHE_PCD_001".into()));
    let heart = &monitor["observations"][0];
    let told = ["code", "name", "system", "place", "value", "unit", "status"].map(|key| heart[key].as_str().unwrap());
    assert_eq!(told, ["147842", "MDC_ECG_HEART_RATE", "MDC", "1.0.0.1", "72", "264864", "R"]);
    // The monitor gave this one a time, the pump gave its flow none.
    assert_ne!(heart["time"], "");
    assert_eq!((&pump["observations"][0]["time"], &pump["observations"][0]["value"]), (&"".into(), &"5.5".into()));
    assert_eq!(cuff["observations"][0]["status"], "F");
    assert_eq!((&alarm["structure"], &alarm["profile"]), (&"ORU^R40^ORU_R40".into(), &"IHE_PCD_ACM_001".into()));
    let facets: Vec<&str> =
        alarm["observations"].as_array().unwrap().iter().map(|facet| facet["place"].as_str().unwrap()).collect();
    assert_eq!(facets[..4], ["1.0.0.1.1", "1.0.0.1.2", "1.0.0.1.3", "1.0.0.1.4"]);
    assert_eq!(alarm["observations"][2]["value"], "start");
}

fn understood_as_senml(files: &[PathBuf]) {
    let packs = lines(&succeeds(python_peer("senml_check.py").args(files)));
    assert_eq!(packs.len(), ORU.len());
    let all: Vec<&Value> = packs.iter().flat_map(|pack| pack.as_array().unwrap()).collect();
    let heart = all.iter().find(|record| record["name"].as_str().unwrap().ends_with(":MDC_ECG_HEART_RATE")).unwrap();
    assert_eq!((&heart["value"], &heart["unit"]), (&72.into(), &"beat/min".into()));
    assert!(heart["name"].as_str().unwrap().starts_with("test-box:monitors:00A037009A000001/9A000001:"));
    assert!(all.iter().any(|record| record["name"].as_str().unwrap().ends_with("event:alarm")));
}

#[test]
fn an_observation_of_nobody_known_lacks_the_patients_id_and_nothing_else() {
    let (folder, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut server = Process::start(python_peer("mllp_server.py").arg("--store").arg(store.path()));
    let upstream = engine("engine", server.listening().port());
    let gateway =
        Gateway::start(folder.path(), &(source("monitors") + &upstream + &route("engine", "as = \"pcd-01\"")));
    let mut device = Device::connect(gateway.endpoint("monitors"));
    // No probe, a unit and a code that nobody else knows, a text that would break its field.
    let observed = "OBX|1|NM|150456^MDC_PULS_OXIM_SAT_O2^MDC|1.1.1.1|---||||||R\rOBX|2|NM|LK^Leck^L|1.1.1.2|5|furz^furz^L|||||R\r\
        OBX|3|ST|M^Mode^L|1.1.1.3|a\\F\\b\\X0D\\OBX\\F\\9||||||R\r";
    device.send(format!("MSH|^~\\&|MON||||20260102030405||ORU^R01|1|P|2.5|||AL|NE\r{observed}").as_bytes());
    eventually("it is delivered", || gateway.backlog() == 0);
    assert_eq!(gateway.dead(), [Value::Null; 0]);
    let order = fs::read_to_string(store.path().join("order")).unwrap();
    let body = store.path().join(order.split(' ').next().unwrap());
    let read = &lines(&succeeds(python_peer("hl7_check.py").arg(body)))[0];
    // Whom it was measured on can't be made up: CX.1 stays empty, as the profile has it for a device that does not know.
    assert_eq!(read["faults"], serde_json::json!(["Error: Missing required child PID_3.CX_1"]));
    let told =
        |index: usize| ["type", "code", "value", "unit", "status"].map(|key| read["observations"][index][key].clone());
    assert_eq!(told(0), ["", "150456", "", "", "X"]);
    assert_eq!(told(1), ["NM", "LK", "5", "furz", "R"]);
    assert_eq!((told(2)[0].clone(), read["observations"].as_array().unwrap().len()), ("ST".into(), 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_beside_a_message_is_said_of_the_bytes_that_are_sent() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Broker::start(folder.path(), "");
    let subscriber = Subscriber::start(broker.port, "wardgate/test-site/test-box/monitors/clinical", None).await;
    let cloud = format!("[upstream.cloud.mqtt]\naddress = \"127.0.0.1:{}\"\nplain = true\n", broker.port);
    let gateway = Gateway::start(folder.path(), &(source("monitors") + &cloud + &route("cloud", "with-raw = false")));
    Device::connect(gateway.endpoint("monitors")).send(&corpus(ORU[0]));
    let came = subscriber.wait_for(1).await.remove(0);
    assert_eq!(came.properties["sha256"], hex(&sha256(&came.bytes)));
    assert_eq!(came.content_type.as_deref(), Some("application/vnd.wardgate.record+json"));
    let record: Record = serde_json::from_slice(&came.bytes).unwrap();
    assert_eq!((record.boot.as_str(), record.raw), (came.properties["id"].as_str(), None));
}

#[test]
fn a_message_that_has_no_such_form_is_a_dead_letter_that_says_so_and_the_lane_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    fs::create_dir(&out).unwrap();
    let config = source("monitors") + &directory("out", &out) + &route("out", "as = \"json\"");
    let gateway = Gateway::start(folder.path(), &config);
    let mut device = Device::connect(gateway.endpoint("monitors"));
    device.send(&corpus("13-adt-a01.hl7"));
    device.send(&corpus(ORU[0]));
    eventually("what has that form has arrived", || files(&out).len() == 1 && gateway.backlog() == 0);
    let dead = gateway.dead();
    assert_eq!(dead.len(), 1);
    let reason = dead[0]["reason"].as_str().unwrap();
    assert!(reason.contains("it can't be sent as \"json\": it is no ORU message"), "{reason}");
}

#[test]
fn a_reload_that_changes_only_the_form_holds_for_what_waits() {
    let folder = tempfile::tempdir().unwrap();
    let mut engine_of_others = Engine::down();
    let parts = source("monitors") + &engine("engine", engine_of_others.port);
    let gateway = Gateway::start(folder.path(), &(parts.clone() + &route("engine", "as = \"pcd-01\"")));
    let body = corpus(ORU[0]);
    let mut device = Device::connect(gateway.endpoint("monitors"));
    device.send(&body);
    assert_eq!(gateway.backlog(), 1);
    assert_eq!(gateway.reload(&(parts.clone() + &route("engine", ""))), None);
    engine_of_others.restore();
    eventually("what waited went as it is stored", || engine_of_others.has(&body));
    assert_eq!(gateway.reload(&(parts + &route("engine", "as = \"pcd-01\""))), None);
    // A reload that changes only a route keeps the source and the device's connection.
    device.send(&corpus(ORU[1]));
    eventually("the next one went in the new form", || engine_of_others.count() == 2);
    assert_eq!(field(&engine_of_others.arrivals()[1], "MSH", 3), "test-box");
}

#[test]
fn what_waits_for_a_retired_upstream_goes_in_the_form_of_its_former_route_after_a_restart_too() {
    former_route(true);
}

#[test]
fn what_waits_goes_in_the_form_of_its_former_route_when_the_file_was_changed_while_nobody_ran() {
    former_route(false);
}

fn former_route(reloaded: bool) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    fs::create_dir(&out).unwrap();
    let mut old = Engine::down();
    let elsewhere = source("monitors") + &directory("out", &out) + &route("out", "as = \"raw\"");
    let config = elsewhere.clone() + &engine("engine", old.port) + &route("engine", "as = \"pcd-01\"");
    let gateway = Gateway::start(folder.path(), &config);
    Device::connect(gateway.endpoint("monitors")).send(&corpus(ORU[0]));
    let retired = format!("[upstream.engine]\nretired = \"drain\"\n{}", engine("engine", old.port));
    let changed = elsewhere + &retired;
    if reloaded {
        assert_eq!(gateway.reload(&changed), None);
    }
    gateway.stop();
    let gateway = Gateway::start(folder.path(), &changed);
    old.restore();
    eventually("what waited has arrived", || gateway.backlog() == 0 && old.count() == 1);
    assert_eq!(field(&old.arrivals()[0], "MSH", 3), "test-box");
}

#[test]
fn check_tells_forms_that_contradict_and_forms_that_an_upstream_can_not_take() {
    let folder = tempfile::tempdir().unwrap();
    let told = |rest: &str| {
        let file = folder.path().join("gateway.toml");
        fs::write(&file, head(folder.path()) + rest).unwrap();
        run(wardgate().arg("check").arg(&file)).said
    };
    let parts = source("monitors") + &engine("engine", 1) + &directory("out", folder.path());
    let good = told(&(parts.clone() + &route("engine", "as = \"pcd-01\"") + &route("out", "as = \"json\"")));
    assert!(!good.contains("error"), "{good}");
    let two =
        told(&(parts.clone() + &route("engine", "") + &route("out", "as = \"json\"") + &route("out", "as = \"raw\"")));
    assert!(two.contains("route 2 gives some of these messages to the same upstream in another form"), "{two}");
    let json = told(&(parts.clone() + &route("engine", "as = \"json\"") + &route("out", "")));
    assert!(json.contains("\"engine\" takes HL7 v2 only"), "{json}");
    let reading = parts.replace("monitors.mllp", "monitors.udp") + &route("engine", "") + &route("out", "");
    assert!(told(&reading).contains("is no HL7, which is all that \"engine\" takes: write as = \"pcd-01\""));
    let odd = told(&(parts.clone() + &route("engine", "") + &route("out", "as = \"fhir\"")));
    assert!(odd.contains("fhir") && odd.contains("pcd-01"), "{odd}");
    fs::write(
        folder.path().join("codes.csv"),
        "code,system,name,vendor-code,unit,ucum,display\n1,MDC,MDC_TEMP,T1,,,\n",
    )
    .unwrap();
    let codes = "[telemetry]\ncodes = \"codes.csv\"\n";
    let bad = told(&(parts + &route("engine", "") + &route("out", "as = \"json\"") + codes));
    assert!(bad.contains("codes.csv:2: MDC_TEMP is 150344 and not 1"), "{bad}");
}

#[test]
fn a_row_that_is_added_to_the_sites_table_codes_what_is_sent_from_the_next_reload_on() {
    let folder = tempfile::tempdir().unwrap();
    let (out, table) = (folder.path().join("out"), folder.path().join("codes.csv"));
    fs::create_dir(&out).unwrap();
    let columns = "code,system,name,vendor-code,unit,ucum,display\n";
    fs::write(&table, columns).unwrap();
    let config = |note: &str| {
        let codes = format!("[telemetry]\ncodes = \"codes.csv\" # {note}\n");
        source("monitors") + &directory("out", &out) + &route("out", "as = \"json\"") + &codes
    };
    let gateway = Gateway::start(folder.path(), &config("empty"));
    let mut device = Device::connect(gateway.endpoint("monitors"));
    let message =
        |id: &str| format!("MSH|^~\\&|M||||||ORU^R01|{id}|P|2.6\rOBX|1|NM|LK^Leck^L|1|5|||||R\r").into_bytes();
    device.send(&message("1"));
    eventually("the first one is there", || files(&out).len() == 1);
    fs::write(&table, format!("{columns}LK-7,urn:oid:2.999.1,LEAK,LK,,L/min,\n")).unwrap();
    assert_eq!(gateway.reload(&config("with a row")), None);
    device.send(&message("2"));
    eventually("the second one is there", || files(&out).len() == 2);
    let texts: Vec<String> = files(&out).into_iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    assert_eq!(texts.iter().filter(|text| text.contains("\"code\":\"LK-7\"")).count(), 1, "{texts:?}");
    assert_eq!(verdicts(&out), ["valid"; 2]);
}

/// A record with everything that there is, once.
fn full() -> Record {
    let named = || vec![Named::new("name", "value")];
    Record {
        v: VERSION,
        source: "oximeter".into(),
        stream: "numerics".into(),
        boot: "5f".into(),
        seq: 1,
        received: Time { utc_us: 1_790_000_000_000_000, synchronised: true, uptime_ms: 12 },
        device_time: Some(DeviceTime {
            said: "21-SEP-26 13:46".into(),
            read: Some("2026-09-21T13:46:00".into()),
            offset_ms: Some(-3),
            error_ms: Some(500),
            quality: ClockQuality::Measured,
        }),
        observations: vec![Observation {
            vendor_code: "SPO2".into(),
            code: codes::by_name("MDC_PULS_OXIM_SAT_O2"),
            value: Some(wardgate::telemetry::record::Value::Number("098".into())),
            unit: Some("%".into()),
            vendor_unit: Some("percent".into()),
            validity: Validity::Valid,
            mode: Mode::Episodic,
            at: Some("2026-09-21T13:46:00Z".into()),
            notes: named(),
        }],
        events: vec![Event {
            kind: "alarm".into(),
            vendor_code: Some("SH".into()),
            code: codes::by_name("MDC_EVT_HI"),
            text: Some("SpO2 high".into()),
            priority: Some(Priority::High),
            phase: Some(Phase::Start),
            details: named(),
        }],
        gap: Some(Gap { reason: GapReason::Parse, from: Some(1), to: Some(2), count: Some(2), lasted_ms: Some(3) }),
        device: named(),
        about: named(),
        subject: named(),
        raw: Some(Raw::of(b"SPO2=098\r\n")),
    }
}

/// The full record with one thing after the other in each of its forms.
fn variants() -> Vec<Record> {
    let mut all = vec![full()];
    let mut with = |change: &dyn Fn(&mut Record)| {
        let mut record = full();
        change(&mut record);
        all.push(record);
    };
    for validity in [Validity::Validated, Validity::Questionable, Validity::Calibrating, Validity::Invalid] {
        with(&|record| record.observations[0].validity = validity);
    }
    for validity in [Validity::NotAvailable, Validity::OverRange, Validity::UnderRange, Validity::Invalid] {
        with(&|record| (record.observations[0].validity, record.observations[0].value) = (validity, None));
    }
    for reason in [GapReason::Unplugged, GapReason::Parse, GapReason::Overflow, GapReason::Clock] {
        with(&|record| record.gap = Some(Gap { reason, from: None, to: None, count: None, lasted_ms: None }));
    }
    for quality in
        [ClockQuality::BoxUnsynchronised, ClockQuality::NeverSet, ClockQuality::Unreadable, ClockQuality::ZoneUnknown]
    {
        let time = || DeviceTime { said: "?".into(), read: None, offset_ms: None, error_ms: None, quality };
        with(&|record| record.device_time = Some(time()));
    }
    for priority in [Priority::Information, Priority::Low, Priority::Medium] {
        with(&|record| record.events[0].priority = Some(priority));
    }
    for phase in [Phase::Continue, Phase::End] {
        with(&|record| record.events[0].phase = Some(phase));
    }
    with(&|record| record.observations[0].mode = Mode::Periodic);
    with(&|record| record.raw = Some(Raw::of(b"\x02\xff\x03")));
    with(&|record| record.raw = None);
    with(&|record| record.observations[0].value = Some(wardgate::telemetry::record::Value::Text("OPEN".into())));
    with(&|record| {
        (record.observations, record.events, record.gap, record.device_time) = (vec![], vec![], None, None);
        (record.device, record.about, record.subject) = (vec![], vec![], vec![]);
    });
    all
}

#[test]
fn every_form_that_a_record_can_take_is_valid_under_the_shipped_schema_and_what_is_none_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: String, text: String| fs::write(folder.path().join(name), text).unwrap();
    let variants = variants();
    for (number, record) in variants.iter().enumerate() {
        write(format!("{number:03}.json"), serde_json::to_string(record).unwrap());
    }
    assert_eq!(verdicts(folder.path()), vec!["valid"; variants.len()]);
    let text = serde_json::to_string(&full()).unwrap();
    let bad = [
        ("\"v\":1", "\"v\":2"),
        ("\"seq\":1", "\"seq\":0"),
        ("\"number\":\"098\"", "\"number\":\"---\""),
        ("\"number\":\"098\"", "\"number\":98"),
        ("\"validity\":\"valid\"", "\"validity\":\"not-available\""),
        ("\"stream\"", "\"room\""),
    ];
    for file in files(folder.path()) {
        fs::remove_file(file).unwrap();
    }
    for (number, (good, bad)) in bad.iter().enumerate() {
        assert!(text.contains(good), "{good}");
        write(format!("{number:03}.json"), text.replacen(good, bad, 1));
    }
    let verdicts = verdicts(folder.path());
    assert!(verdicts.len() == bad.len() && verdicts.iter().all(|verdict| verdict != "valid"), "{verdicts:?}");
}
