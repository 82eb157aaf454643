//! MEDIBUS: a ventilator on a pseudo-terminal (`peers/medibus_device.py`, and by another hand `peers/medibus_ventilator.py`), the real executable, and the records that arrive.
//!
//! A pseudo-terminal has no parity, so that the line settings of the models are held by the tests of the source alone.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::gateway::Gateway;
use crate::support::process::Process;
use crate::support::rounds;
use crate::support::tools::python_peer;
use crate::support::wait::{eventually, eventually_some};

const OFTEN: &str = "every = '500ms'\nalarms-every = '500ms'\nsettings-every = '500ms'\nclock-every = '500ms'\n\
                     quiet = '1s'\nnegotiate = '200ms'\n";

/// A folder with the port, the spool and what arrived.
struct Ward(tempfile::TempDir);

impl Ward {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("arrived")).unwrap();
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn device_command(&self, arguments: &[&str]) -> Command {
        let mut command = python_peer("medibus_device.py");
        command.arg("--link").arg(self.path().join("port")).args(arguments);
        command
    }

    /// A device that is plugged in.
    #[track_caller]
    fn device(&self, arguments: &[&str]) -> Process {
        let mut device = Process::start(&mut self.device_command(arguments));
        device.line_with("ready ");
        device
    }

    /// The device of the other hand, with these oddities.
    #[track_caller]
    fn other_device(&self, oddities: &[&str]) -> Process {
        let mut command = python_peer("medibus_ventilator.py");
        command.arg("--link").arg(self.path().join("port"));
        command.args(oddities.iter().flat_map(|oddity| ["--oddity", oddity]));
        let mut device = Process::start(&mut command);
        device.line_with("ready");
        device
    }

    fn gateway(&self, source: &str) -> Gateway {
        let port = self.path().join("port");
        let place = format!("serial = {{ port = '{}' }}", port.display());
        self.gateway_at(&place, source)
    }

    fn gateway_at(&self, place: &str, source: &str) -> Gateway {
        let arrived = self.path().join("arrived");
        let rest = format!(
            "[source.vent.medibus]\n{place}\n{source}\n[upstream.store.directory]\npath = '{}'\nunsealed = true\n\
             [[route]]\nfrom = ['vent']\nto = ['store']\n",
            arrived.display()
        );
        Gateway::start(self.path(), &rest)
    }

    /// The records of a stream that have arrived, by the starts of the source in the order of their times, and each in order.
    fn records(&self, stream: &str) -> Vec<Value> {
        let files = fs::read_dir(self.path().join("arrived")).unwrap().map(|file| file.unwrap().path());
        let whole = files.filter(|file| !file.file_name().unwrap().to_str().unwrap().starts_with('.'));
        // A file may be renamed between the listing and the reading.
        let read = whole.filter_map(|file| fs::read(file).ok()).filter_map(|text| serde_json::from_slice(&text).ok());
        let mut records: Vec<Value> = read.filter(|record: &Value| record["stream"] == stream).collect();
        records.sort_by_key(|record| (record["received"]["utc-us"].as_i64(), record["seq"].as_u64()));
        records
    }

    #[track_caller]
    fn eventually(&self, stream: &str, count: usize) -> Vec<Value> {
        eventually(&format!("{count} records of {stream}"), || self.records(stream).len() >= count);
        self.records(stream)
    }

    /// What happened in a stream, as kind, code and phase.
    fn events(&self, stream: &str) -> Vec<String> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let records = self.records(stream);
        let events = records.iter().flat_map(|record| record["events"].as_array().cloned().unwrap_or_default());
        events
            .map(|event| format!("{} {} {}", text(&event["kind"]), text(&event["vendor-code"]), text(&event["phase"])))
            .collect()
    }

    /// No record is missing within any start of the source.
    #[track_caller]
    fn holds_no_gap(&self, stream: &str) {
        let mut boots: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for record in self.records(stream) {
            boots.entry(record["boot"].to_string()).or_default().push(record["seq"].as_u64().unwrap());
        }
        for (boot, mut numbers) in boots {
            numbers.sort_unstable();
            numbers.dedup();
            assert_eq!(numbers.first(), Some(&1), "{stream} {boot}");
            assert_eq!(numbers.last(), Some(&(numbers.len() as u64)), "{stream} {boot}: {numbers:?}");
        }
    }
}

#[track_caller]
fn observation<'a>(record: &'a Value, code: &str) -> &'a Value {
    let all = record["observations"].as_array().unwrap();
    all.iter().find(|one| one["vendor-code"] == code).unwrap_or_else(|| panic!("no {code} in {record}"))
}

/// The first record that has page `page`.
#[track_caller]
fn of_page<'a>(records: &'a [Value], page: &str) -> &'a Value {
    let has = |record: &&Value| record["about"].as_array().unwrap().iter().any(|about| about["value"] == page);
    records.iter().find(has).unwrap()
}

#[test]
fn the_values_of_a_ventilator_arrive_with_codes_units_and_its_own_bytes() {
    let ward = Ward::new();
    let mut device = ward.device(&[]);
    let gateway = ward.gateway(OFTEN);
    let numerics = ward.eventually("numerics", 6);
    let first = of_page(&numerics, "24");
    let peep = observation(first, "CP1:78");
    assert_eq!((&peep["value"]["number"], &peep["unit"]), (&"5".into(), &"mbar".into()));
    assert_eq!(peep["code"]["name"], "MDC_PRESS_AWAY_END_EXP_POS");
    assert_eq!(observation(first, "CP1:EB")["validity"], "not-available");
    assert_eq!(observation(first, "CP1:EB")["value"], Value::Null);
    assert_eq!(observation(first, "CP1:3C")["value"]["number"], "12.5", "an unknown code passes");
    let raw = data_encoding::BASE64.decode(first["raw"]["base64"].as_str().unwrap().as_bytes()).unwrap();
    assert!(raw.starts_with(b"\x01\x2478   57D  22B9 6.8") && raw.ends_with(b"\r"), "{raw:?}");
    assert_eq!(observation(of_page(&numerics, "2B"), "CP2:21")["value"]["number"], "480");
    assert_eq!(numerics[0]["device"][0], serde_json::json!({ "name": "model", "value": "EVITA-TEST" }));
    ward.holds_no_gap("numerics");

    let settings = ward.eventually("settings", 1);
    assert_eq!(observation(&settings[0], "SET:0B")["value"]["number"], "5.0");
    ward.eventually("texts", 1);
    assert_eq!(ward.events("texts"), ["text TXT:0E start", "text TXT:20 start"]);
    let clock = ward.eventually("clock", 2);
    assert_eq!(clock[0]["device-time"]["said"], "9:33:00 7-OKT-14");
    assert_eq!(clock[0]["device-time"]["read"], "2014-10-07T09:33:00");
    assert_eq!(clock[0]["device-time"]["quality"], "never-set", "it is years off");
    device.line_with("host 0161 WARDGATE 01.00:04.03");
    assert_eq!(gateway.status()["sources"]["vent"]["trouble"], Value::Null);
    gateway.stop();
    assert!(device.said().contains("host"), "{}", device.said());
}

#[test]
fn a_device_made_by_another_hand_is_understood_as_well() {
    let ward = Ward::new();
    let mut device = ward.other_device(&[]);
    let gateway = ward.gateway(OFTEN);
    let numerics = ward.eventually("numerics", 4);
    let first = of_page(&numerics, "24");
    let value = |code: &str| observation(first, code)["value"]["number"].clone();
    let expected =
        [("78", "5"), ("7D", "22"), ("88", "0.5"), ("B9", "12.3"), ("D6", "14"), ("C1", "36.9"), ("F9", "-1.5")];
    for (code, number) in expected {
        assert_eq!(value(&format!("CP1:{code}")), number, "{code}");
    }
    assert_eq!(observation(first, "CP1:F0")["validity"], "not-available");
    assert_eq!(observation(of_page(&numerics, "2B"), "CP2:21")["value"]["number"], "3.2");
    let named = serde_json::json!({ "name": "model", "value": "Ventilator Sim" });
    assert!(numerics[0]["device"].as_array().unwrap().contains(&named), "{}", numerics[0]["device"]);
    let settings = ward.eventually("settings", 3);
    for (code, number) in
        [("SET:01", "21.0"), ("SET:04", "0.50"), ("SET:0B", "12"), ("CP1:7D:HIGH", "40"), ("CP1:B9:LOW", "3.0")]
    {
        let all = settings.iter().flat_map(|record| record["observations"].as_array().unwrap());
        let found: Vec<&Value> = all.filter(|one| one["vendor-code"] == code).collect();
        assert_eq!(found.first().map(|one| &one["value"]["number"]), Some(&number.into()), "{code}");
    }
    eventually("its alarms and texts", || ward.events("alarms").len() >= 2 && ward.events("texts").len() >= 2);
    assert_eq!(ward.events("alarms"), ["alarm CP1:1D start", "alarm CP1:25 start"]);
    let alarms = ward.records("alarms")[0]["events"].to_string();
    assert!(alarms.contains("APNOEA") && alarms.contains("\"31\""), "{alarms}");
    assert_eq!(ward.events("texts"), ["text TXT:1E start", "text TXT:07 start"]);
    let clock = ward.eventually("clock", 1);
    // Whether this machine follows a time server is its own affair.
    let quality = clock[0]["device-time"]["quality"].as_str().unwrap();
    assert!(["measured", "box-unsynchronised"].contains(&quality), "{}", clock[0]);
    assert!(clock[0]["device-time"]["offset-ms"].as_i64().unwrap().abs() < 5_000, "{}", clock[0]);
    assert_eq!(gateway.status()["sources"]["vent"]["discarded-bytes"], 0);
    device.line_with("51");
    assert!(!device.said().contains("damaged"), "{}", device.said());
    gateway.stop();
}

#[test]
fn the_oddities_of_that_device_change_no_value_and_it_is_answered() {
    let ward = Ward::new();
    let mut device = ward.other_device(&["asks", "realtime", "handshake", "corrupt", "deaf", "chatty"]);
    let gateway = ward.gateway(OFTEN);
    for answer in ["answered 51", "answered 52", "answered 30"] {
        device.line_with(answer);
    }
    let numerics = ward.eventually("numerics", 12);
    for record in &numerics {
        let (code, number) = if record["about"][0]["value"] == "24" { ("CP1:7D", "22") } else { ("CP2:21", "3.2") };
        assert_eq!(observation(record, code)["value"]["number"], number);
        assert!(record["observations"].as_array().unwrap().len() <= 8, "{record}");
    }
    ward.holds_no_gap("numerics");
    eventually("alarms come through", || ward.events("alarms").contains(&"alarm CP1:1D start".to_owned()));
    assert!(!device.said().contains("damaged"), "{}", device.said());
    gateway.stop();
}

#[test]
fn answers_of_that_device_may_come_byte_by_byte() {
    let ward = Ward::new();
    let _device = ward.other_device(&["dribble"]);
    let gateway = ward.gateway(&OFTEN.replace("quiet = '1s'", "quiet = '5s'"));
    let numerics = ward.eventually("numerics", 2);
    assert_eq!(observation(of_page(&numerics, "24"), "CP1:78")["value"]["number"], "5");
    gateway.stop();
}

#[test]
fn that_device_forgets_that_communication_was_begun_and_is_begun_with_anew() {
    let ward = Ward::new();
    let device = ward.other_device(&["restarts"]);
    let gateway = ward.gateway(OFTEN);
    let beginnings = || device.lines().iter().filter(|line| line.as_str() == "51").count();
    eventually("it is begun with twice", || beginnings() >= 2);
    let before = ward.records("numerics").len();
    ward.eventually("numerics", before + 4);
    ward.holds_no_gap("numerics");
    gateway.stop();
}

#[test]
fn an_alarm_begins_and_ends_once_on_either_page() {
    let ward = Ward::new();
    let _device = ward.device(&["--alarm", "3-7:1:31:10:PAW HIGH;4-7:2:5:93:APNEA VENT"]);
    let gateway = ward.gateway(OFTEN);
    eventually("both alarms ended", || {
        ward.events("alarms").iter().filter(|event| event.ends_with("end")).count() == 2
    });
    let events = ward.events("alarms");
    for (code, phase) in [("CP1:10", "start"), ("CP1:10", "end"), ("CP2:93", "start"), ("CP2:93", "end")] {
        let count = events.iter().filter(|event| **event == format!("alarm {code} {phase}")).count();
        assert_eq!(count, 1, "{code} {phase}: {events:?}");
    }
    let high =
        ward.records("alarms").into_iter().find(|record| record["events"][0]["vendor-code"] == "CP1:10").unwrap();
    assert_eq!(high["events"][0]["text"], "PAW HIGH");
    let details = high["events"][0]["details"].to_string();
    assert!(details.contains("Airway pressure high") && details.contains("31"), "{details}");
    gateway.stop();
}

#[test]
fn waveforms_flow_control_noise_and_wrong_sums_change_no_value() {
    let ward = Ward::new();
    let _device = ward.device(&["--realtime", "--flow", "--noise", "--corrupt", "5", "--nak", "7"]);
    let gateway = ward.gateway(OFTEN);
    let numerics = ward.eventually("numerics", 16);
    for record in &numerics {
        let (code, number) = if record["about"][0]["value"] == "24" { ("CP1:7D", "22") } else { ("CP2:21", "480") };
        assert_eq!(observation(record, code)["value"]["number"], number);
    }
    let told = |record: &&Value| record["about"].to_string().contains("realtime-bytes");
    assert!(numerics.iter().any(|record| told(&record)), "waveforms are counted");
    ward.holds_no_gap("numerics");
    let discarded = gateway.status()["sources"]["vent"]["discarded-bytes"].as_u64().unwrap();
    assert!(discarded > 0, "wrong sums and noise are counted");
    gateway.stop();
}

#[test]
fn pulled_and_plugged_in_again_it_goes_on_and_what_ended_meanwhile_has_ended() {
    let ward = Ward::new();
    let device = ward.device(&["--alarm", "1-1000:1:31:10:PAW HIGH"]);
    let gateway = ward.gateway(OFTEN);
    ward.eventually("numerics", 4);
    eventually("the alarm began", || ward.events("alarms") == ["alarm CP1:10 start"]);
    device.kill();
    eventually("it is told that the device was unplugged", || {
        ward.events("line").iter().any(|event| event.starts_with("unplugged"))
    });
    let before = ward.records("numerics").len();
    let _device = ward.device(&[]);
    ward.eventually("numerics", before + 4);
    eventually("the alarm ended", || ward.events("alarms") == ["alarm CP1:10 start", "alarm CP1:10 end"]);
    ward.holds_no_gap("numerics");
    gateway.stop();
}

#[test]
fn a_device_that_falls_silent_is_told_and_initialised_anew_with_the_gap_said() {
    let ward = Ward::new();
    let mut device = ward.device(&[]);
    let gateway = ward.gateway(OFTEN);
    ward.eventually("numerics", 2);
    device.signal("STOP");
    let trouble = || gateway.status()["sources"]["vent"]["trouble"].as_str().map(str::to_owned);
    let said = eventually_some("the silence is told", trouble);
    assert!(said.contains("does not answer"), "{said}");
    device.signal("CONT");
    let gap = eventually_some("the gap is told", || {
        let records = ward.records("numerics");
        records.into_iter().map(|record| record["gap"].clone()).find(|gap| !gap.is_null())
    });
    assert_eq!(gap["reason"], "unplugged");
    assert!(gap["lasted-ms"].as_u64().unwrap() >= 1_000, "{gap}");
    eventually("the trouble is over", || trouble().is_none());
    assert!(!device.has_ended());
    gateway.stop();
}

#[test]
fn a_device_that_begins_anew_is_answered_identified_and_asked_again() {
    let ward = Ward::new();
    let mut device = ward.device(&["--restart-at", "3"]);
    let gateway = ward.gateway(OFTEN);
    device.line_with("restarted");
    eventually("it is asked again after its own beginning", || {
        let lines = device.lines();
        let after = lines.iter().skip_while(|line| *line != "restarted").collect::<Vec<_>>();
        let answered = after.iter().any(|line| *line == "icc-answered");
        answered
            && after.iter().filter(|line| line.starts_with("host ")).count() >= 1
            && after.iter().any(|line| *line == "ask 24")
    });
    gateway.stop();
}

#[test]
fn between_seldom_questions_the_line_is_kept_alive() {
    let ward = Ward::new();
    let device = ward.device(&[]);
    let seldom = "every = '1h'\nalarms-every = '1h'\nsettings-every = '1h'\nclock-every = '1h'\nlog = 'clinical'\n";
    let gateway = ward.gateway(seldom);
    eventually("it hears from us often enough", || device.lines().iter().filter(|line| *line == "nop").count() >= 4);
    assert!(!device.lines().iter().any(|line| line == "timed-out"), "{}", device.said());
    assert_eq!(ward.eventually("numerics", 2).len(), 2);
    gateway.stop();
}

#[test]
fn a_question_that_the_device_never_answers_is_left_out_and_the_others_go_on() {
    let ward = Ward::new();
    let device = ward.device(&["--mute", "2C"]);
    let gateway = ward.gateway(OFTEN);
    let numerics = ward.eventually("numerics", 10);
    let trouble = || gateway.status()["sources"]["vent"]["trouble"].clone();
    eventually("no silence is told for long", || trouble().is_null());
    ward.eventually("numerics", numerics.len() + 6);
    let beginnings = device.lines().iter().filter(|line| *line == "icc").count();
    assert!(beginnings <= 4, "it was initialised {beginnings} times:\n{}", device.said());
    gateway.stop();
}

#[test]
fn only_the_codes_that_the_site_wants_are_asked_for() {
    let ward = Ward::new();
    let mut device = ward.device(&["--without", "2B,2E,2C,2D"]);
    let gateway = ward.gateway(&format!("{OFTEN}only = ['24:78', '24:F0']\n"));
    device.line_with("configured 24 78 F0");
    let numerics = ward.eventually("numerics", 2);
    assert_eq!(numerics[0]["observations"].as_array().unwrap().len(), 2);
    gateway.stop();
}

#[test]
fn behind_a_serial_server_it_is_the_same_device() {
    let ward = Ward::new();
    let mut device = Process::start(python_peer("medibus_device.py").args(["--listen", "--date", "12:00:0001-JAN-95"]));
    let place = format!("connect = '{}'", device.listening());
    let gateway = ward.gateway_at(&place, OFTEN);
    let numerics = ward.eventually("numerics", 2);
    assert_eq!(observation(of_page(&numerics, "24"), "CP1:78")["value"]["number"], "5");
    gateway.stop();
}

#[test]
fn killed_in_the_middle_again_and_again_it_loses_no_record_that_it_had_stored() {
    let ward = Ward::new();
    let _device = ward.device(&["--realtime"]);
    let mut gateway = ward.gateway(OFTEN);
    for round in 0..rounds(5, 25) as usize {
        ward.eventually("numerics", 3 * (round + 1));
        gateway.process.kill();
        gateway = Gateway::again(ward.path());
    }
    let arrived = ward.records("numerics").len();
    ward.eventually("numerics", arrived + 2);
    gateway.stop();
    let boots: std::collections::BTreeSet<String> =
        ward.records("numerics").iter().map(|record| record["boot"].to_string()).collect();
    assert!(boots.len() > 5, "{boots:?}");
    ward.holds_no_gap("numerics");
}
