//! Modbus units that are not ours (pymodbus), read by the real executable, over TCP and on a serial line of pseudo-terminals.
//!
//! What is looked at are the records that arrive upstream. Pseudo-terminals keep no parity: the settings of a real line are held by
//! the tests of the port itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::support::gateway::Gateway;
use crate::support::process::Process;
use crate::support::rounds;
use crate::support::tools::{python_peer, system};
use crate::support::wait::{eventually, eventually_some};

/// A line with units, and a folder for what the service delivers.
struct Plant {
    folder: tempfile::TempDir,
    units: Option<Process>,
    wire: Option<Process>,
    place: String,
}

impl Plant {
    fn tcp(units: &Value) -> Self {
        let mut plant = Self::new(units);
        plant.start_units(&[]);
        plant.place = format!("connect = \"{}\"", plant.units.as_mut().unwrap().listening());
        plant
    }

    fn serial(units: &Value) -> Self {
        let mut plant = Self::new(units);
        let ends = ["panel", "box"].map(|end| plant.folder.path().join(end));
        let pty = |end: &Path| format!("pty,raw,echo=0,link={}", end.display());
        plant.wire = Some(Process::start(system("socat").arg(pty(&ends[0])).arg(pty(&ends[1]))));
        eventually("both ends of the wire are there", || ends.iter().all(|end| end.exists()));
        plant.start_units(&["--serial", &ends[0].display().to_string()]);
        plant.units.as_mut().unwrap().line_with("ready");
        plant.place = format!("serial = {{ port = \"{}\", baud = 19200 }}", ends[1].display());
        plant
    }

    fn new(units: &Value) -> Self {
        let plant = Self { folder: tempfile::tempdir().unwrap(), units: None, wire: None, place: String::new() };
        fs::create_dir(plant.out()).unwrap();
        plant.become_(units);
        plant
    }

    fn start_units(&mut self, arguments: &[&str]) {
        let mut peer = python_peer("modbus_units.py");
        self.units = Some(Process::start(peer.args(arguments).arg("--units").arg(self.file("units.json"))));
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn out(&self) -> PathBuf {
        self.file("out")
    }

    /// From now on the units are as this says.
    fn become_(&self, units: &Value) {
        fs::write(self.file("units.new"), units.to_string()).unwrap();
        fs::rename(self.file("units.new"), self.file("units.json")).unwrap();
    }

    /// The configuration: `head` are keys of the source, `tables` its units.
    fn config(&self, head: &str, tables: &str) -> String {
        let (place, out) = (&self.place, self.out());
        format!(
            "[source.gas.modbus]\n{place}\n{head}\n{tables}\n[upstream.out.directory]\npath = \"{}\"\nunsealed = true\n\
             [[route]]\nfrom = [\"gas\"]\nto = [\"out\"]\n",
            out.display()
        )
    }

    fn start(&self, head: &str, tables: &str) -> Gateway {
        Gateway::start(self.folder.path(), &self.config(head, tables))
    }

    /// All records that were delivered, by stream, in their order.
    fn records(&self) -> BTreeMap<String, Vec<Value>> {
        let mut found = BTreeMap::<String, Vec<Value>>::new();
        for entry in fs::read_dir(self.out()).unwrap() {
            let path = entry.unwrap().path();
            let shown = !path.file_name().unwrap().to_string_lossy().starts_with('.');
            if let (true, Ok(bytes)) = (shown, fs::read(&path)) {
                let record: Value = serde_json::from_slice(&bytes).unwrap();
                found.entry(record["stream"].as_str().unwrap().to_owned()).or_default().push(record);
            }
        }
        for records in found.values_mut() {
            records.sort_by_key(|record| (record["received"]["uptime-ms"].as_u64(), record["seq"].as_u64()));
        }
        found
    }

    fn stream(&self, name: &str) -> Vec<Value> {
        self.records().remove(name).unwrap_or_default()
    }

    /// The values of one point of one unit, in their order; `None` where there was none.
    fn values(&self, unit: u8, point: &str) -> Vec<Option<String>> {
        let of_point = |record: &Value| {
            let observations = record["observations"].as_array().cloned().unwrap_or_default();
            observations.into_iter().filter(|one| one["vendor-code"] == point).collect::<Vec<_>>()
        };
        let value = |one: Value| one["value"]["number"].as_str().map(str::to_owned);
        self.stream(&format!("unit-{unit}")).iter().flat_map(of_point).map(value).collect()
    }

    #[track_caller]
    fn awaits(&self, unit: u8, point: &str, value: &str) {
        let what = format!("{point} of unit {unit} arrives as {value}");
        eventually(&what, || self.values(unit, point).last().is_some_and(|last| last.as_deref() == Some(value)));
    }

    /// The requests so far: unit, function, address, count.
    fn asked(&self) -> Vec<Vec<u32>> {
        let lines = self.units.as_ref().unwrap().lines();
        let asked = lines.iter().filter_map(|line| line.strip_prefix("asked "));
        asked.map(|line| line.split(' ').map(|number| number.parse().unwrap()).collect()).collect()
    }

    fn asked_of(&self, unit: u32) -> usize {
        self.asked().iter().filter(|asked| asked[0] == unit).count()
    }
}

fn unit(id: u8, more: &str, points: &[&str]) -> String {
    let head = format!("[[source.gas.modbus.unit]]\nid = {id}\nfirst-address = 1\n{more}\n");
    points.iter().fold(head, |text, point| text + "[[source.gas.modbus.unit.point]]\n" + point + "\n")
}

const PRESSURE: &str = "name = \"pressure\"\nkind = \"holding\"\naddress = 1\ntype = \"u16\"\nscale = 0.1\nunit = \"kPa\"\ndead-band = 0.5";
const FAST: &str = "every = \"50ms\"\nanswer-timeout = \"200ms\"";

fn observation<'a>(record: &'a Value, point: &str) -> &'a Value {
    let observations = record["observations"].as_array().unwrap();
    observations.iter().find(|one| one["vendor-code"] == point).unwrap_or_else(|| panic!("no {point} in {record}"))
}

#[test]
fn values_of_all_four_tables_arrive_scaled_with_their_units_and_are_only_ever_read() {
    let plant = Plant::tcp(&json!({"1": {
        "holding": {"0": 4017, "9": 0x4128, "10": 0, "11": 0x8000},
        "input": {"2": 0xfff6, "3": 513, "4": 0xffff, "5": 0xfffe},
        "coils": {"16": 1}, "discrete": {"1": 1},
    }}));
    let points = [
        PRESSURE,
        "name = \"flow\"\nkind = \"holding\"\naddress = 10\ntype = \"f32\"\nunit = \"L/min\"",
        "name = \"spare\"\nkind = \"holding\"\naddress = 12\ntype = \"i16\"\nsentinels = [-32768]",
        "name = \"temperature\"\nkind = \"input\"\naddress = 3\ntype = \"i16\"\nscale = 0.5\nunit = \"Cel\"",
        "name = \"panel\"\nkind = \"input\"\naddress = 4\ntype = \"bits\"\nbits = { 0 = \"o2-low\", 9 = \"air-low\", 3 = \"co2-low\" }\nalarm = \"high\"",
        "name = \"hours\"\nkind = \"input\"\naddress = 5\ntype = \"i32\"\norder = \"cdab\"",
        "name = \"pump\"\nkind = \"coil\"\naddress = 17",
        "name = \"door\"\nkind = \"discrete\"\naddress = 2",
    ];
    let gateway = plant.start(FAST, &unit(1, "", &points));
    plant.awaits(1, "door", "1");
    let record = plant.stream("unit-1").remove(0);
    let value = |point: &str| observation(&record, point)["value"]["number"].as_str().map(str::to_owned);
    let numbers = ["pressure", "flow", "spare", "temperature", "hours", "pump"].map(value);
    let wanted = [Some("401.7"), Some("10.5"), None, Some("-5.0"), Some("-65537"), Some("1")];
    assert_eq!(numbers, wanted.map(|text| text.map(str::to_owned)));
    assert_eq!(observation(&record, "pressure")["unit"], "kPa");
    assert_eq!(observation(&record, "spare")["validity"], "not-available");
    let bits = ["panel.o2-low", "panel.air-low", "panel.co2-low"].map(value);
    assert_eq!(bits, [Some("1".into()), Some("1".into()), Some("0".into())]);
    let alarms: Vec<&Value> = record["events"].as_array().unwrap().iter().map(|event| &event["vendor-code"]).collect();
    assert_eq!(alarms, ["panel.o2-low", "panel.air-low"]);
    let raw = data_encoding::BASE64.decode(record["raw"]["base64"].as_str().unwrap().as_bytes()).unwrap();
    assert!(raw.windows(5).any(|bytes| bytes == [1, 3, 2, 0x0f, 0xb1]), "the answers as they came: {raw:?}");
    // An alarm that ends is an event in the reading in which it ended.
    plant.become_(&json!({"1": {"input": {"3": 512}}}));
    plant.awaits(1, "panel.o2-low", "0");
    let last = plant.stream("unit-1").pop().unwrap();
    let events = last["events"].as_array().unwrap();
    assert_eq!((&events[0]["vendor-code"], &events[0]["phase"]), (&json!("panel.o2-low"), &json!("end")));
    let functions: BTreeSet<u32> = plant.asked().iter().map(|asked| asked[1]).collect();
    assert_eq!(functions, BTreeSet::from([1, 2, 3, 4]));
    gateway.stop();
}

#[test]
fn only_what_changed_beyond_its_dead_band_is_reported_and_all_of_it_every_so_often() {
    let at = |pressure: u32, other: u32| json!({"1": {"holding": {"0": pressure, "1": other}}});
    let plant = Plant::tcp(&at(4000, 1));
    let other = "name = \"other\"\nkind = \"holding\"\naddress = 2\ntype = \"u16\"";
    let gateway = plant.start(&format!("{FAST}\nat-least-every = \"1h\""), &unit(1, "", &[PRESSURE, other]));
    plant.awaits(1, "other", "1");
    for (pressure, number) in [(4005, 2), (3995, 3), (4006, 4)] {
        plant.become_(&at(pressure, number));
        plant.awaits(1, "other", &number.to_string());
    }
    plant.awaits(1, "pressure", "400.6");
    assert_eq!(plant.values(1, "pressure"), [Some("400.0".into()), Some("400.6".into())]);
    assert!(plant.asked().iter().all(|asked| asked[1..] == [3, 0, 2]), "two registers side by side are one request");
    let often = plant.config(&format!("{FAST}\nat-least-every = \"1s\""), &unit(1, "", &[PRESSURE, other]));
    let head = crate::support::gateway::head(plant.folder.path());
    assert_eq!(gateway.reload(often.strip_prefix(&head).unwrap_or(&often)), None);
    eventually("the same is said again", || plant.values(1, "pressure").len() >= 5);
    gateway.stop();
}

/// One healthy unit, one that is mute, another healthy one; the mute one comes back.
fn a_mute_unit_starves_nobody(plant: &Plant) {
    let of = |mute: bool| json!({"1": {"holding": {"0": 1000}}, "2": {"mute": mute, "holding": {"0": 2000}}, "3": {"holding": {"0": 3000}}});
    plant.become_(&of(true));
    let tables: String = (1..=3).map(|id| unit(id, "", &[PRESSURE])).collect();
    let gateway = plant.start(FAST, &tables);
    plant.awaits(1, "pressure", "100.0");
    plant.awaits(3, "pressure", "300.0");
    let events = |kind: &str| {
        let records = plant.stream("unit-2");
        records.into_iter().find(|record| record["events"][0]["kind"] == kind)
    };
    let gone = eventually_some("the mute unit is told", || events("unplugged"));
    assert!(gone["events"][0]["text"].as_str().unwrap().contains("unit 2"), "{gone}");
    let before = plant.asked_of(2);
    let others = plant.asked_of(1);
    eventually("the others are asked on", || plant.asked_of(1) >= others + 20);
    assert!(plant.asked_of(2) <= before + 6, "the mute one is asked less and less");
    plant.become_(&of(false));
    let back = eventually_some("it is back", || events("plugged"));
    assert_eq!(
        (&back["gap"]["reason"], observation(&back, "pressure")["value"]["number"].as_str()),
        (&json!("unplugged"), Some("200.0"))
    );
    assert!(back["gap"]["lasted-ms"].as_u64().unwrap() > 0);
    let values = [1, 3].map(|id| plant.values(id, "pressure").into_iter().flatten().collect::<BTreeSet<_>>());
    assert_eq!(values, [BTreeSet::from(["100.0".into()]), BTreeSet::from(["300.0".into()])]);
    gateway.stop();
}

#[test]
fn a_mute_unit_behind_a_tcp_gateway_starves_nobody_and_its_return_tells_how_long_it_was_away() {
    a_mute_unit_starves_nobody(&Plant::tcp(&json!({})));
}

#[test]
fn a_mute_unit_on_a_serial_line_starves_nobody_and_its_return_tells_how_long_it_was_away() {
    a_mute_unit_starves_nobody(&Plant::serial(&json!({})));
}

#[test]
fn a_late_answer_is_never_taken_for_the_next_units() {
    let plant = Plant::serial(&json!({}));
    let of = |late: f64| {
        let one = |id: u32, late: f64| json!({"holding": {"0": id * 1000}, "late": late});
        json!({"1": one(1, 0.0), "2": one(2, late), "3": one(3, 0.0)})
    };
    plant.become_(&of(0.0));
    let tables: String = (1..=3).map(|id| unit(id, "", &[PRESSURE])).collect();
    let gateway = plant.start(&format!("{FAST}\nat-least-every = \"1s\""), &tables);
    for id in 1..=3 {
        plant.awaits(id, "pressure", &format!("{id}00.0"));
    }
    // Within the time in which a late answer is drained, and far beyond it: in the middle of the others' questions.
    for late in [0.3, 0.45, 0.7] {
        plant.become_(&of(late));
        let (asked, others) = (plant.asked_of(2), plant.asked_of(1));
        eventually("the late unit is asked, and the others", || {
            plant.asked_of(2) >= asked + 2 && plant.asked_of(1) >= others + 5
        });
        plant.become_(&of(0.0));
        let values = |id: u8| plant.values(id, "pressure").len();
        let before = values(2);
        eventually("it is well again", || values(2) > before);
    }
    for id in 1..=3u8 {
        let values: BTreeSet<_> = plant.values(id, "pressure").into_iter().collect();
        assert_eq!(values, BTreeSet::from([Some(format!("{id}00.0"))]), "unit {id} has its own values only");
    }
    gateway.stop();
}

#[test]
fn an_exception_is_shown_at_its_values_and_garbage_costs_a_connection_and_nothing_else() {
    let good = json!({"holding": {"0": 1000}});
    let plant = Plant::tcp(&json!({"1": good, "2": good}));
    let tables: String = (1..=2).map(|id| unit(id, "", &[PRESSURE])).collect();
    let gateway = plant.start(FAST, &tables);
    plant.awaits(2, "pressure", "100.0");
    plant.become_(&json!({"1": {"holding": {"0": 1010}}, "2": {"refuse": 2}}));
    plant.awaits(1, "pressure", "101.0");
    eventually("the refused value is none", || plant.values(2, "pressure").last() == Some(&None));
    let refused = plant.stream("unit-2").pop().unwrap();
    let one = observation(&refused, "pressure");
    assert_eq!(
        (&one["validity"], &one["notes"][0]["value"]),
        (&json!("not-available"), &json!("illegal data address (2)"))
    );
    // Not Modbus at all; another transaction's answer; a length without end.
    for (number, garbage) in
        [(1020, "485454502f312e3120343030"), (1030, "eeee00000005010302ffff"), (1040, "00010000ffff0103")]
    {
        plant.become_(&json!({"1": {"garbage": garbage}, "2": {"holding": {"0": number}}}));
        plant.awaits(2, "pressure", &format!("{}.0", number / 10));
        plant.become_(&json!({"1": {"holding": {"0": number}}, "2": {}}));
        plant.awaits(1, "pressure", &format!("{}.0", number / 10));
    }
    assert!(!plant.values(1, "pressure").contains(&Some("6553.5".into())), "another transaction's answer was taken");
    gateway.stop();
}

#[test]
fn a_panel_that_is_switched_off_is_waited_for() {
    let mut plant = Plant::tcp(&json!({"1": {"holding": {"0": 1000}}}));
    let gateway = plant.start(FAST, &unit(1, "", &[PRESSURE]));
    plant.awaits(1, "pressure", "100.0");
    plant.units.take().unwrap().kill();
    eventually("the status says so", || gateway.status()["sources"]["gas"]["plug"]["state"] == "missing");
    plant.become_(&json!({"1": {"holding": {"0": 2000}}}));
    let port = plant.place.rsplit([':', '"']).nth(1).unwrap().to_owned();
    plant.start_units(&["--port", &port]);
    plant.awaits(1, "pressure", "200.0");
    gateway.stop();
}

#[test]
fn a_service_that_is_killed_in_the_middle_of_its_questions_goes_on_without_a_wrong_value() {
    let plant = Plant::tcp(&json!({}));
    let tables: String = (1..=2).map(|id| unit(id, "", &[PRESSURE])).collect();
    let of = |number: u32| json!({"1": {"holding": {"0": 1000 + 10 * number}}, "2": {"holding": {"0": 20_000 + 10 * number}}});
    let expected = |id: u32, number: u32| format!("{}.0", if id == 1 { 100 + number } else { 2000 + number });
    let rounds = rounds(4, 25);
    plant.become_(&of(0));
    let mut gateway = plant.start(FAST, &tables);
    for round in 1..=rounds {
        plant.become_(&of(round));
        let asked = plant.asked().len();
        eventually("it asks", || plant.asked().len() >= asked + 3 + usize::try_from(round % 5).unwrap());
        gateway.process.kill();
        gateway = Gateway::again(plant.folder.path());
    }
    for id in 1..=2u8 {
        plant.awaits(id, "pressure", &expected(id.into(), rounds));
    }
    gateway.stop();
    for id in 1..=2u32 {
        let allowed: BTreeSet<_> = (0..=rounds).map(|number| Some(expected(id, number))).collect();
        let seen = plant.values(u8::try_from(id).unwrap(), "pressure");
        assert!(seen.iter().all(|value| allowed.contains(value)), "unit {id}: {seen:?}");
        let mut by_boot = BTreeMap::<String, BTreeSet<u64>>::new();
        for record in plant.stream(&format!("unit-{id}")) {
            let boot = record["boot"].as_str().unwrap().to_owned();
            by_boot.entry(boot).or_default().insert(record["seq"].as_u64().unwrap());
        }
        for numbers in by_boot.values() {
            assert!(numbers.iter().copied().eq(1..=numbers.len() as u64), "a stored reading is missing: {numbers:?}");
        }
    }
}

#[test]
fn check_names_every_problem_of_a_register_map() {
    let plant = Plant::new(&json!({}));
    let wrong = "name = \"a b\"\nkind = \"coil\"\naddress = 0\ntype = \"u16\"";
    let config = plant.config("every = \"1ms\"", &unit(250, "", &[wrong]));
    let file = plant.file("wrong.toml");
    fs::write(&file, crate::support::gateway::head(plant.folder.path()) + &config).unwrap();
    let mut check: Command = crate::support::process::wardgate();
    let said = crate::support::process::run(check.arg("check").arg(&file)).said;
    for part in [
        "says not where the units are",
        "must be from 50ms",
        "over Modbus TCP 0 and 255",
        "is not a name",
        "one bit and has no type",
        "counted as first-address says",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}
