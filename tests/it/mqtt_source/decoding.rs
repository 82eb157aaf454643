//! Payloads that a profile reads: what a sensor says in JSON arrives as observations, beside its own bytes.

use std::fs;
use std::path::Path;

use wardgate::telemetry::record::{ClockQuality, Observation, Record, Validity, Value};

use super::{payload, records, sensors, start};
use crate::support::gateway::{Gateway, head};
use crate::support::process::{run, succeeds, wardgate};
use crate::support::tools::{python_peer, system};
use crate::support::wait::eventually;

const CLIENTS: &str = "[[source.sensors.mqtt.client]]\nid = \"sensor\"\npublish = [\"ward3/#\"]\n";
const DECODE: &str = "[[source.sensors.mqtt.decode]]\ntopic = \"ward3/+/climate\"\nprofile = \"climate.toml\"\n\
                      [[source.sensors.mqtt.decode]]\ntopic = \"ward3/#\"\nprofile = \"csv\"\n";
const CLIMATE: &str = r#"
name = "Climate sensor"
json = true
[time]
pointer = "/ts"
format = "unix"
[[value]]
pointer = "/room/0/t"
label = "temperature"
code = "MDC_TEMP_ROOM"
unit = "Cel"
scale = 0.1
none = ["-1000"]
[[value]]
pointer = "/door"
kind = "text"
[[value]]
pointer = "/fw"
kind = "device"
"#;

fn says(gateway: &Gateway, topic: &str, payload: &str) {
    let port = gateway.endpoint("sensors").port().to_string();
    let mut command = system("mosquitto_pub");
    command.args(["-h", "127.0.0.1", "-p", &port, "-i", "sensor", "-q", "1", "-t", topic, "-m", payload]);
    succeeds(&mut command);
}

fn shown(record: &Record) -> String {
    let one = |observation: &Observation| {
        let value = match &observation.value {
            Some(Value::Number(text) | Value::Text(text)) => text.clone(),
            None => "none".to_owned(),
        };
        let unit = observation.unit.as_deref().unwrap_or_default();
        format!("{}={value}{unit} {:?}", observation.vendor_code, observation.validity)
    };
    record.observations.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[test]
fn a_json_payload_arrives_as_observations_with_codes_and_units_beside_its_own_bytes() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("climate.toml"), CLIMATE).unwrap();
    let gateway = start(folder.path(), "", &(CLIENTS.to_owned() + DECODE));
    let good = r#"{"ts": 1700000000, "room": [{"t": 215, "h": 40.50}], "door": "SHUT", "fw": "1.4", "rssi": -100}"#;
    says(&gateway, "ward3/bed1/climate", good);
    says(&gateway, "ward3/bed1/climate", r#"{"room":[{"t":-1000}],"door":null}"#);
    says(&gateway, "ward3/bed1/climate", r#"{"room":[{"t":"#);
    says(&gateway, "ward3/bed1/other", "21.5,---");
    let records = records(&gateway, folder.path());
    assert_eq!(records.len(), 4);
    let expected = "temperature=21.5Cel Valid, /door=SHUT Valid, /room/0/h=40.50 Questionable, /rssi=-100 Questionable";
    assert_eq!(shown(&records[0]), expected, "what nobody described is kept, and may not be used as a value");
    assert_eq!(payload(&records[0]), good.as_bytes());
    let temperature = &records[0].observations[0];
    assert_eq!(temperature.code.as_ref().unwrap().name.as_deref(), Some("MDC_TEMP_ROOM"));
    assert_eq!((records[0].device[0].name.as_ref(), records[0].device[0].value.as_str()), ("/fw", "1.4"));
    let time = records[0].device_time.as_ref().unwrap();
    assert_eq!((time.said.as_str(), time.read.as_deref()), ("1700000000", Some("2023-11-14T22:13:20Z")));
    assert!(time.quality != ClockQuality::Measured && time.offset_ms.is_some(), "years off: {time:?}");
    assert_eq!(records[1].observations[0].validity, Validity::NotAvailable);
    assert_eq!(shown(&records[1]), "temperature=noneCel NotAvailable");
    assert_eq!((records[2].observations.len(), payload(&records[2])), (0, br#"{"room":[{"t":"#.to_vec()));
    assert_eq!(shown(&records[3]), "column 1=21.5 Questionable, column 2=none NotAvailable");
    eventually("the one that can't be read is counted", || sensors(&gateway)["flagged"] == 1);
}

#[test]
fn a_sensor_of_paho_is_read_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let decode = "[[source.sensors.mqtt.decode]]\ntopic = \"ward3/#\"\nprofile = \"text.toml\"\n";
    fs::write(
        folder.path().join("text.toml"),
        "name = \"number and unit\"\npattern = '(?<t>[0-9]+) \\xc2\\xb0C$'\n[frame]\ndelimiter = '\\n'\n[[value]]\ngroup = \"t\"\nunit = \"Cel\"\n",
    )
    .unwrap();
    let gateway = start(folder.path(), "", &(CLIENTS.to_owned() + decode));
    let port = gateway.endpoint("sensors").port().to_string();
    succeeds(python_peer("paho_sensor.py").args([&port, "5", "1", "20"]));
    let values: Vec<String> = records(&gateway, folder.path()).iter().map(shown).collect();
    assert_eq!(values, (0..20).map(|number| format!("t={number}Cel Valid")).collect::<Vec<_>>());
}

#[test]
fn check_tells_a_rule_that_can_not_work_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("climate.toml"), CLIMATE.replace("/room/0/t", "room.t")).unwrap();
    let file = folder.path().join("gateway.toml");
    let config = super::sensors_to_folder(folder.path(), "", &(CLIENTS.to_owned() + DECODE));
    fs::write(&file, head(folder.path()) + &config).unwrap();
    let told = run(wardgate().arg("check").arg(&file)).said;
    assert!(told.contains("climate.toml:8:11: is no JSON pointer: it begins with /"), "{told}");
}

/// The kernel's word on the clock is said by strace in its place: 5 is TIME_ERROR, a clock that follows nobody; 0 one that does.
fn start_with_clock(folder: &Path, kernel_says: u8) -> Gateway {
    fs::write(folder.join("climate.toml"), CLIMATE).unwrap();
    let mut strace = system("strace");
    strace.args(["-D", "-f", "-qq", "-e", "signal=none", "-e", "trace=adjtimex,clock_adjtime"]);
    strace.arg("-e").arg(format!("inject=adjtimex,clock_adjtime:retval={kernel_says}"));
    strace.arg("-o").arg(folder.join("trace"));
    let config = super::sensors_to_folder(folder, "", &(CLIENTS.to_owned() + DECODE));
    Gateway::start_under(strace, folder, &config)
}

#[test]
fn until_the_boxs_clock_is_known_to_be_right_readings_are_marked_and_none_is_refused() {
    for (kernel_says, is_right, quality) in
        [(5, false, ClockQuality::BoxUnsynchronised), (0, true, ClockQuality::Measured)]
    {
        let folder = tempfile::tempdir().unwrap();
        let gateway = start_with_clock(folder.path(), kernel_says);
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
        for number in 0..3 {
            says(&gateway, "ward3/bed1/climate", &format!(r#"{{"ts":{now},"room":[{{"t":{number}}}]}}"#));
        }
        let records = records(&gateway, folder.path());
        assert_eq!(records.len(), 3, "{kernel_says}");
        for record in &records {
            let time = record.device_time.as_ref().unwrap();
            assert_eq!((record.received.synchronised, time.quality), (is_right, quality), "{kernel_says}");
            assert!(time.offset_ms.is_some(), "measured all the same");
        }
        assert!(records.is_sorted_by_key(|record| record.received.uptime_ms), "the order is known without a clock");
        let status = sensors(&gateway);
        assert_eq!((&status["stored"], &status["refused"], &status["flagged"]), (&3.into(), &0.into(), &0.into()));
        gateway.stop();
    }
}
